package unlock_test

import (
	"bufio"
	"bytes"
	"context"
	"crypto/pbkdf2"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"hash"
	"io"
	"iter"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/crypto/argon2"

	"github.com/lockstep-backup/lockstep/diskcrypt"
	"github.com/lockstep-backup/lockstep/diskcrypt/luks/luksformat"
	"github.com/lockstep-backup/lockstep/envelope"
	"github.com/lockstep-backup/lockstep/unlock"
)

// holderArgument lets the test's binary be a process that opens a volume, waits,
// closes it, and waits again: others look into its memory.
const holderArgument = "hold-keys"

func TestMain(m *testing.M) {
	if len(os.Args) == 3 && os.Args[1] == holderArgument {
		if err := holdKeys(os.Args[2]); err != nil {
			fmt.Println(err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

const passphraseBytes = 24

// holdKeys opens the volume in a file by what stdin gives: a passphrase, which
// goes nowhere else, then a byte for each step.
func holdKeys(image string) error {
	f, err := os.Open(image)
	if err != nil {
		return err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return err
	}
	pass := make([]byte, passphraseBytes)
	if _, err := io.ReadFull(os.Stdin, pass); err != nil {
		return err
	}
	keys := func(context.Context, string, diskcrypt.Volume) iter.Seq2[unlock.Key, error] {
		return func(yield func(unlock.Key, error) bool) {
			wrong := unlock.Key{Kind: diskcrypt.KindPassphrase, Secret: envelope.NewSecret([]byte("another"))}
			if yield(wrong, nil) {
				yield(unlock.Key{Kind: diskcrypt.KindPassphrase, Secret: envelope.NewSecret(pass)}, nil)
			}
		}
	}
	tree, err := unlock.Open(context.Background(), []unlock.Disk{{ID: "vda", R: f, Size: info.Size()}}, keys, options)
	if err != nil {
		return err
	}
	if len(tree.Devices) != 2 {
		return fmt.Errorf("%+v", tree)
	}
	// Across sectors, at no boundary: through the buffers of the engine.
	some := make([]byte, 300<<10)
	if _, err := tree.Devices[1].R.ReadAt(some, 100); err != nil {
		return err
	}
	fmt.Println("open")
	step := make([]byte, 1)
	if _, err := io.ReadFull(os.Stdin, step); err != nil {
		return err
	}
	envelope.Wipe(some)
	if err := tree.Close(); err != nil {
		return err
	}
	fmt.Println("closed")
	_, _ = io.ReadFull(os.Stdin, step)
	return nil
}

// inMemory says which of the patterns are in the writable memory of a process.
func inMemory(t *testing.T, pid int, patterns map[string][]byte) map[string]bool {
	t.Helper()
	maps, err := os.ReadFile(fmt.Sprintf("/proc/%d/maps", pid))
	if err != nil {
		t.Fatal(err)
	}
	mem, err := os.Open(fmt.Sprintf("/proc/%d/mem", pid))
	if err != nil {
		t.Skipf("the memory of a child cannot be read here: %v", err)
	}
	defer mem.Close()
	found, read := map[string]bool{}, 0
	for line := range strings.Lines(string(maps)) {
		var from, to int64
		var mode string
		if _, err := fmt.Sscanf(line, "%x-%x %s", &from, &to, &mode); err != nil || !strings.HasPrefix(mode, "rw") {
			continue
		}
		b := make([]byte, to-from)
		n, _ := mem.ReadAt(b, from)
		read += n
		for name, p := range patterns {
			if bytes.Contains(b[:n], p) {
				found[name] = true
			}
		}
	}
	if read < 1<<20 {
		t.Fatalf("only %d bytes of memory could be read", read)
	}
	return found
}

// slotKey is the key of the area of a volume's slot 0, made without what is tested.
func slotKey(t *testing.T, image memory, passphrase []byte) []byte {
	t.Helper()
	if image[7] == 1 { // LUKS1: hash "sha256", slot 0 at 208
		slot := image[208:]
		iterations := int(slot[4])<<24 | int(slot[5])<<16 | int(slot[6])<<8 | int(slot[7])
		return derived(t, sha256.New, passphrase, slot[8:40], iterations)
	}
	end := 4096 + bytes.IndexByte(image[4096:], 0)
	var meta struct {
		Keyslots map[string]struct {
			KDF struct {
				Type, Hash, Salt   string
				Iterations         int
				Time, Memory, CPUs uint32
			}
		}
	}
	if err := json.Unmarshal(image[4096:end], &meta); err != nil {
		t.Fatal(err)
	}
	k := meta.Keyslots["0"].KDF
	salt, err := base64.StdEncoding.DecodeString(k.Salt)
	if err != nil {
		t.Fatal(err)
	}
	switch k.Type {
	case "argon2id":
		return argon2.IDKey(passphrase, salt, k.Time, k.Memory, uint8(k.CPUs), 64)
	case "argon2i":
		return argon2.Key(passphrase, salt, k.Time, k.Memory, uint8(k.CPUs), 64)
	}
	return derived(t, sha256.New, passphrase, salt, k.Iterations)
}

func derived(t *testing.T, h func() hash.Hash, passphrase, salt []byte, iterations int) []byte {
	t.Helper()
	key, err := pbkdf2.Key(h, string(passphrase), salt, iterations, 64)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

// Nothing that opens a volume is left in memory when its tree was closed: what a
// core dump of the process would show.
func TestNoKeysInMemoryAfterClose(t *testing.T) {
	for name, o := range map[string]struct {
		format luksformat.Options
		kdf    luksformat.KDF
	}{
		"luks1":          {luksformat.Options{Version: 1}, luksformat.KDF{}},
		"luks2 pbkdf2":   {luksformat.Options{KeyslotsSize: 256 * kib}, luksformat.KDF{Type: "pbkdf2"}},
		"luks2 argon2id": {luksformat.Options{KeyslotsSize: 256 * kib}, luksformat.KDF{Type: "argon2id", Time: 4, MemoryKiB: 1 << 10, Lanes: 1}},
	} {
		t.Run(name, func(t *testing.T) {
			image := make(memory, 4*mib)
			v, err := luksformat.Format(image, int64(len(image)), o.format)
			if err != nil {
				t.Fatal(err)
			}
			defer v.Close()
			pass := make([]byte, passphraseBytes/2)
			if _, err := rand.Read(pass); err != nil {
				t.Fatal(err)
			}
			pass = fmt.Appendf(nil, "%x", pass)
			if _, err := v.AddKey(t.Context(), envelope.CopySecret(pass), o.kdf); err != nil {
				t.Fatal(err)
			}
			w, err := v.Payload(nil, 0)
			if err != nil {
				t.Fatal(err)
			}
			marker := make([]byte, 32)
			if _, err := rand.Read(marker); err != nil {
				t.Fatal(err)
			}
			plain := bytes.Repeat(marker, 20_000)
			if _, err := w.WriteAt(plain, 0); err != nil {
				t.Fatal(err)
			}
			path := filepath.Join(t.TempDir(), "image")
			if err := os.WriteFile(path, image, 0o600); err != nil {
				t.Fatal(err)
			}
			vk := v.VolumeKey().Expose()
			slot := slotKey(t, image, pass)
			patterns := map[string][]byte{
				"passphrase":                   pass,
				"start of the volume key":      vk[:16],
				"end of the volume key":        vk[len(vk)-16:],
				"middle of the volume key":     vk[24:40],
				"start of the key slot's key":  slot[:16],
				"middle of the key slot's key": slot[24:40],
				"plaintext":                    marker[:16],
			}

			self, err := os.Executable()
			if err != nil {
				t.Fatal(err)
			}
			cmd := exec.Command(self, holderArgument, path)
			in, err := cmd.StdinPipe()
			if err != nil {
				t.Fatal(err)
			}
			out, err := cmd.StdoutPipe()
			if err != nil {
				t.Fatal(err)
			}
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
			defer func() {
				_ = in.Close()
				_ = cmd.Wait()
			}()
			lines := bufio.NewReader(out)
			step := func(send []byte, want string) map[string]bool {
				t.Helper()
				if _, err := in.Write(send); err != nil {
					t.Fatal(err)
				}
				if line, err := lines.ReadString('\n'); strings.TrimSpace(line) != want {
					t.Fatalf("%q, %v", line, err)
				}
				return inMemory(t, cmd.Process.Pid, patterns)
			}
			// What is looked for can be found.
			if open := step(pass, "open"); !open["start of the volume key"] || !open["plaintext"] {
				t.Errorf("of an open volume there is in memory: %v", open)
			}
			for what := range step([]byte{'\n'}, "closed") {
				// Plaintext is whose it was given to; x/crypto/argon2 keeps a piece of
				// its input in a hash that nobody can reach (THREATMODEL.md).
				if what == "plaintext" || what == "passphrase" && strings.HasPrefix(o.kdf.Type, "argon2") {
					continue
				}
				t.Errorf("in memory after closing: the %s", what)
			}
		})
	}
}
