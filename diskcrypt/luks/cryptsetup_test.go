package luks_test

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"sort"
	"strconv"
	"strings"
	"testing"

	"github.com/lockstep-backup/lockstep/diskcrypt"
	"github.com/lockstep-backup/lockstep/diskcrypt/luks"
	"github.com/lockstep-backup/lockstep/internal/judge"
)

func run(t *testing.T, stdin, tool string, args ...string) string {
	t.Helper()
	const most = 20
	for try := 1; ; try++ {
		cmd := exec.Command(judge.Tool(t, tool), args...)
		cmd.Stdin = strings.NewReader(stdin)
		out, err := cmd.CombinedOutput()
		if err == nil {
			return string(out)
		}
		// QEMU measures a key derivation, and now and then sees that it took no time.
		if try == most || !strings.Contains(string(out), "Unable to get accurate CPU usage") {
			t.Fatalf("%s %s: %v: %s", tool, strings.Join(args, " "), err, out)
		}
	}
}

func blank(t *testing.T, size int64) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "disk")
	if err := os.WriteFile(path, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(path, size); err != nil {
		t.Fatal(err)
	}
	return path
}

func opensAll(t *testing.T, path, secret string) string {
	t.Helper()
	ids, err := luks.Format{}.OpensAll(context.Background(), place(t, path), diskcrypt.KindPassphrase, pass(secret), diskcrypt.Limits{})
	if err != nil {
		return err.Error()
	}
	return strings.Join(ids, " ")
}

func inspect(t *testing.T, path string) *diskcrypt.Volume {
	t.Helper()
	v, err := luks.Format{}.Inspect(context.Background(), place(t, path))
	if err != nil {
		t.Fatal(err)
	}
	return v
}

// dump is what cryptsetup says of a LUKS2 header.
type dump struct {
	Keyslots map[string]struct {
		KeySize int `json:"key_size"`
		KDF     struct {
			Type       string `json:"type"`
			Hash       string `json:"hash"`
			Iterations int    `json:"iterations"`
			Time       int    `json:"time"`
			Memory     int    `json:"memory"`
			CPUs       int    `json:"cpus"`
		} `json:"kdf"`
	} `json:"keyslots"`
	Segments map[string]struct {
		Encryption string `json:"encryption"`
		SectorSize int    `json:"sector_size"`
	} `json:"segments"`
	Tokens map[string]struct {
		Type     string   `json:"type"`
		Keyslots []string `json:"keyslots"`
	} `json:"tokens"`
}

// sameAsDump compares our view with cryptsetup's.
func sameAsDump(t *testing.T, path string) *diskcrypt.Volume {
	t.Helper()
	var d dump
	if err := json.Unmarshal([]byte(run(t, "", "cryptsetup", "luksDump", "--dump-json-metadata", path)), &d); err != nil {
		t.Fatal(err)
	}
	text := run(t, "", "cryptsetup", "luksDump", path)
	v := inspect(t, path)
	if len(v.Warnings) > 0 || v.Unsupported != "" {
		t.Fatalf("%q %q", v.Warnings, v.Unsupported)
	}
	if len(v.Protectors) != len(d.Keyslots) || len(v.Tokens) != len(d.Tokens) {
		t.Fatalf("%d slots and %d tokens, cryptsetup sees %d and %d", len(v.Protectors), len(v.Tokens), len(d.Keyslots), len(d.Tokens))
	}
	for _, p := range v.Protectors {
		k, ok := d.Keyslots[strings.TrimPrefix(p.ID, "slot-")]
		want := fmt.Sprintf("pbkdf2 %s i=%d", k.KDF.Hash, k.KDF.Iterations)
		if k.KDF.Type != "pbkdf2" {
			want = fmt.Sprintf("%s t=%d m=%d p=%d", k.KDF.Type, k.KDF.Time, k.KDF.Memory, k.KDF.CPUs)
		}
		if !ok || p.KDF != want || k.KeySize*8 != v.KeyBits {
			t.Fatalf("%s: %q, cryptsetup sees %q", p.ID, p.KDF, want)
		}
	}
	for _, token := range v.Tokens {
		d := d.Tokens[token.ID]
		var slots []string
		for _, s := range d.Keyslots {
			slots = append(slots, "slot-"+s)
		}
		sort.Strings(slots)
		sort.Strings(token.Slots)
		if token.Type != d.Type || strings.Join(slots, " ") != strings.Join(token.Slots, " ") {
			t.Fatalf("token %+v, cryptsetup sees %+v", token, d)
		}
	}
	seg := d.Segments["0"]
	if v.Cipher != seg.Encryption || v.SectorSize != seg.SectorSize {
		t.Fatalf("%s %d, cryptsetup sees %s %d", v.Cipher, v.SectorSize, seg.Encryption, seg.SectorSize)
	}
	if !strings.Contains(text, v.UUID) || !strings.Contains(text, "Epoch:         \t"+strconv.FormatUint(v.SequenceID, 10)) {
		t.Fatalf("uuid %s, seqid %d not in:\n%s", v.UUID, v.SequenceID, text)
	}
	judge.Decided(t, "cryptsetup luksDump --dump-json-metadata")
	return v
}

// sameAsBackup compares ExportHeader with cryptsetup luksHeaderBackup.
func sameAsBackup(t *testing.T, path string) {
	t.Helper()
	backup := filepath.Join(t.TempDir(), "backup")
	run(t, "", "cryptsetup", "-q", "luksHeaderBackup", "--header-backup-file", backup, path)
	want, err := os.ReadFile(backup)
	if err != nil {
		t.Fatal(err)
	}
	var got bytes.Buffer
	n, err := luks.Format{}.ExportHeader(context.Background(), place(t, path), &got)
	if err != nil || n != int64(got.Len()) {
		t.Fatal(n, err)
	}
	if !bytes.Equal(got.Bytes(), want) {
		t.Fatalf("export of %d bytes differs from luksHeaderBackup's %d bytes", got.Len(), len(want))
	}
	judge.Decided(t, "cryptsetup luksHeaderBackup")
	v := inspect(t, path)
	if v.HeaderRanges[0].Length < n {
		t.Fatalf("header range of %d bytes, backup of %d", v.HeaderRanges[0].Length, n)
	}
	// The raw range restores a wiped header as well.
	raw := make([]byte, v.HeaderRanges[0].Length)
	if _, err := place(t, path).Data.ReadAt(raw, 0); err != nil {
		t.Fatal(err)
	}
	for name, content := range map[string][]byte{"export": got.Bytes(), "range": raw} {
		disk, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		clear(disk[:len(raw)])
		wiped := filepath.Join(t.TempDir(), "wiped")
		file := filepath.Join(t.TempDir(), "header")
		if os.WriteFile(wiped, disk, 0o600) != nil || os.WriteFile(file, content, 0o600) != nil {
			t.Fatal("write")
		}
		run(t, "", "cryptsetup", "-q", "luksHeaderRestore", "--header-backup-file", file, wiped)
		after := inspect(t, wiped)
		if after.HeaderDigest != v.HeaderDigest {
			t.Fatalf("header digest differs after luksHeaderRestore of the %s", name)
		}
		judge.Decided(t, "cryptsetup luksHeaderRestore")
	}
}

// TestWhatCryptsetupMakes: formatted and edited by cryptsetup, read by us.
func TestWhatCryptsetupMakes(t *testing.T) {
	low := []string{"-q", "--pbkdf", "pbkdf2", "--pbkdf-force-iterations", "1000"}
	for _, c := range []struct {
		name string
		args string
	}{
		{"luks2 pbkdf2 sha512", "--type luks2 --pbkdf pbkdf2 --hash sha512 --pbkdf-force-iterations 1000"},
		{"luks2 pbkdf2 sha1 4096", "--type luks2 --pbkdf pbkdf2 --hash sha1 --pbkdf-force-iterations 1000 --sector-size 4096 --label x"},
		{"luks2 argon2id", "--type luks2 --pbkdf argon2id --pbkdf-memory 1024 --pbkdf-parallel 2 --pbkdf-force-iterations 4"},
		{"luks2 argon2i", "--type luks2 --pbkdf argon2i --pbkdf-memory 64 --pbkdf-parallel 1 --pbkdf-force-iterations 5 --cipher aes-cbc-essiv:sha256 --key-size 256"},
		{"luks2 small areas", "--type luks2 --pbkdf pbkdf2 --pbkdf-force-iterations 1000 --luks2-metadata-size 32k --luks2-keyslots-size 1m --offset 8192"},
	} {
		t.Run(c.name, func(t *testing.T) {
			path := blank(t, 24<<20)
			run(t, "one", "cryptsetup", append(append([]string{"luksFormat", "-q"}, strings.Fields(c.args)...), path, "-")...)
			first := sameAsDump(t, path)
			sameAsBackup(t, path)
			if got := opensAll(t, path, "one"); got != "slot-0" {
				t.Fatal(got)
			}
			two := filepath.Join(t.TempDir(), "two")
			if err := os.WriteFile(two, []byte("two\nlines\n"), 0o600); err != nil {
				t.Fatal(err)
			}
			run(t, "one", "cryptsetup", append(low, "luksAddKey", "--key-file", "-", path, two)...)
			if got := opensAll(t, path, "two\nlines\n"); got != "slot-1" {
				t.Fatal(got)
			}
			run(t, `{"type":"mine","keyslots":["1"],"deep":{"b":[1,2.50,{"x":null}],"a":"é/<"}}`, "cryptsetup", "token", "import", path)
			second := sameAsDump(t, path)
			run(t, "one", "cryptsetup", "-q", "luksConvertKey", "--key-file", "-", "--key-slot", "0", "--pbkdf", "pbkdf2", "--pbkdf-force-iterations", "2000", path)
			third := sameAsDump(t, path)
			if third.Protectors[0].Fingerprint == second.Protectors[0].Fingerprint || third.Protectors[1] != second.Protectors[1] {
				t.Fatal("luksConvertKey of slot 0 is not seen as such")
			}
			run(t, "", "cryptsetup", "config", "--label", "other", path)
			fourth := sameAsDump(t, path)
			if fourth.SequenceID <= third.SequenceID || fourth.Label != "other" || fourth.Protectors[0] != third.Protectors[0] || fourth.Tokens[0].Digest != second.Tokens[0].Digest {
				t.Fatal("a new label changed a slot or a token")
			}
			run(t, "", "cryptsetup", "-q", "luksKillSlot", path, "0")
			fifth := sameAsDump(t, path)
			if len(fifth.Protectors) != 1 || fifth.Epoch != first.Epoch {
				t.Fatal("luksKillSlot is not seen as such")
			}
			for _, step := range []*diskcrypt.Volume{second, third, fourth, fifth} {
				if step.HeaderDigest == first.HeaderDigest {
					t.Fatal("the header digest did not change")
				}
			}
			sameAsBackup(t, path)
		})
	}
	for _, c := range []struct{ name, args string }{
		{"luks1 xts 512", "--hash sha512"},
		{"luks1 xts 256", "--key-size 256 --hash sha1"},
		{"luks1 cbc-essiv", "--cipher aes-cbc-essiv:sha256 --key-size 256 --hash ripemd160"},
		{"luks1 cbc-plain", "--cipher aes-cbc-plain --key-size 128 --hash sha256"},
	} {
		t.Run(c.name, func(t *testing.T) {
			path := blank(t, 24<<20)
			run(t, "one", "cryptsetup", append(append([]string{"luksFormat", "-q", "--type", "luks1", "--pbkdf-force-iterations", "1000"}, strings.Fields(c.args)...), path, "-")...)
			v := inspect(t, path)
			text := run(t, "", "cryptsetup", "luksDump", path)
			cipher, mode, _ := strings.Cut(v.Cipher, "-")
			for _, want := range []string{v.UUID, "Cipher name:   \t" + cipher, "Cipher mode:   \t" + mode, fmt.Sprintf("MK bits:       \t%d", v.KeyBits)} {
				if !strings.Contains(text, want) {
					t.Fatalf("%q is not in\n%s", want, text)
				}
			}
			sameAsBackup(t, path)
			if got := opensAll(t, path, "one"); got != "slot-0" {
				t.Fatal(got)
			}
			if strings.Contains(c.args, "ripemd160") || strings.Contains(c.args, "cbc-plain") {
				return
			}
			// Converted, it keeps all its fingerprints.
			run(t, "", "cryptsetup", "-q", "convert", "--type", "luks2", path)
			w := sameAsDump(t, path)
			if w.Type != "luks2" || w.Epoch != v.Epoch || w.Protectors[0].Fingerprint != v.Protectors[0].Fingerprint || w.Protectors[0].AreaDigest != v.Protectors[0].AreaDigest {
				t.Fatalf("conversion to LUKS2 changed fingerprints:\n%+v\n%+v", v, w)
			}
			if got := opensAll(t, path, "one"); got != "slot-0" {
				t.Fatal(got)
			}
			run(t, "", "cryptsetup", "-q", "convert", "--type", "luks1", path)
			if u := inspect(t, path); u.Epoch != v.Epoch || u.Protectors[0].Fingerprint != v.Protectors[0].Fingerprint {
				t.Fatal("conversion back to LUKS1 changed fingerprints")
			}
		})
	}
	t.Run("luks1 by qemu", func(t *testing.T) {
		path := filepath.Join(t.TempDir(), "q")
		secret := filepath.Join(t.TempDir(), "s")
		if err := os.WriteFile(secret, []byte("one"), 0o600); err != nil {
			t.Fatal(err)
		}
		run(t, "", "qemu-img", "create", "-q", "-f", "luks", "--object", "secret,id=s,file="+secret, "-o", "key-secret=s,iter-time=10", path, "5M")
		if got := opensAll(t, path, "one"); got != "slot-0" {
			t.Fatal(got)
		}
		sameAsBackup(t, path)
	})
}

// TestPayloadsOfCryptsetup: encrypted in place by cryptsetup, decrypted by us.
func TestPayloadsOfCryptsetup(t *testing.T) {
	for _, args := range []string{
		"--cipher aes-xts-plain64 --key-size 512",
		"--cipher aes-xts-plain64 --key-size 256 --sector-size 4096",
		"--cipher aes-xts-plain --key-size 512 --sector-size 1024",
		"--cipher aes-cbc-essiv:sha256 --key-size 256 --sector-size 2048",
		"--cipher aes-cbc-plain64 --key-size 192",
		"--cipher aes-cbc-plain --key-size 128",
		"--cipher aes-xts-essiv:sha256 --key-size 512",
	} {
		t.Run(args, func(t *testing.T) {
			const size = 2 << 20
			want := make([]byte, size)
			_, _ = rand.NewChaCha8([32]byte{3}).Read(want)
			data := filepath.Join(t.TempDir(), "data")
			if err := os.WriteFile(data, want, 0o600); err != nil {
				t.Fatal(err)
			}
			head := filepath.Join(t.TempDir(), "head")
			run(t, "one", "cryptsetup", append(append([]string{
				"reencrypt", "-q", "--encrypt", "--type", "luks2", "--header", head,
				"--pbkdf", "pbkdf2", "--pbkdf-force-iterations", "1000", "--key-file", "-", "--resilience", "none",
			}, strings.Fields(args)...), data)...)
			p := place(t, data)
			h := place(t, head)
			p.Header, p.HeadSize = h.Data, h.Size
			o, err := luks.Format{}.Open(context.Background(), p, diskcrypt.KindPassphrase, pass("one"), diskcrypt.Limits{})
			if err != nil {
				t.Fatal(err)
			}
			defer o.Close()
			got := make([]byte, size)
			if n, err := o.ReadAt(got, 0); n != size || err != nil || !bytes.Equal(got, want) {
				t.Fatalf("decrypts to something else (%d, %v)", n, err)
			}
			raw, _ := os.ReadFile(data)
			if bytes.Equal(raw, want) {
				t.Fatal("cryptsetup did not encrypt")
			}
			judge.Decided(t, "cryptsetup reencrypt --encrypt")
		})
	}
}
