package luks_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"github.com/lockstep-backup/lockstep/diskcrypt"
	"github.com/lockstep-backup/lockstep/diskcrypt/internal/plainview"
	"github.com/lockstep-backup/lockstep/diskcrypt/luks"
	"github.com/lockstep-backup/lockstep/internal/judge"
)

// halfway is the metadata of a LUKS2 header as far as it tells how far a conversion is.
type halfway struct {
	Segments map[string]struct {
		Type   string   `json:"type"`
		Offset string   `json:"offset"`
		Size   string   `json:"size"`
		Flags  []string `json:"flags"`
	} `json:"segments"`
	Keyslots map[string]struct {
		Type string `json:"type"`
		Area struct {
			Type   string `json:"type"`
			Offset string `json:"offset"`
		} `json:"area"`
	} `json:"keyslots"`
}

func (h halfway) flagged(id, flag string) bool {
	for _, f := range h.Segments[id].Flags {
		if f == flag {
			return true
		}
	}
	return false
}

func (h halfway) resilience() string {
	for _, k := range h.Keyslots {
		if k.Type == "reencrypt" {
			return k.Area.Type
		}
	}
	return ""
}

func readHalfway(path string) (h halfway, ok bool) {
	f, err := os.Open(path)
	if err != nil {
		return h, false
	}
	defer f.Close()
	raw := make([]byte, 16<<10)
	if _, err := f.ReadAt(raw, 0); err != nil {
		return h, false
	}
	text, _, _ := bytes.Cut(raw[4096:], []byte{0})
	return h, json.Unmarshal(text, &h) == nil
}

// Steps at which a conversion is killed.
var (
	inTheMiddle = func(h halfway) bool {
		for id := range h.Segments {
			if id != "0" && h.flagged(id, "in-reencryption") {
				return true
			}
		}
		return false
	}
	// Without resilience the header says nothing of the steps.
	whenever       = func(halfway) bool { return true }
	inTheFirstPart = func(h halfway) bool { return h.flagged("0", "in-reencryption") }
)

type conversionCase struct {
	name       string
	start      string // "" or how the data are encrypted before it begins
	detached   bool
	args       string
	at         func(halfway) bool
	resilience string
}

var conversions = []conversionCase{
	{"re-encryption, checksum", "--sector-size 512", false, "--resilience checksum --hotzone-size 1m", inTheMiddle, "checksum"},
	{"re-encryption to 4096, checksum", "--sector-size 512 --cipher aes-cbc-essiv:sha256 --key-size 256", false, "--resilience checksum --resilience-hash sha512 --sector-size 4096 --cipher aes-xts-plain64 --key-size 512 --hotzone-size 1m", inTheMiddle, "checksum"},
	{"re-encryption, checksum, first step", "", false, "--resilience checksum --hotzone-size 8m", inTheFirstPart, "checksum"},
	{"re-encryption, journal", "--sector-size 4096", false, "--resilience journal --hotzone-size 1m", inTheMiddle, "journal"},
	{"re-encryption, none", "", false, "--resilience none --hotzone-size 1m", whenever, "none"},
	{"re-encryption, detached, journal", "", true, "--resilience journal --hotzone-size 1m", inTheMiddle, "journal"},
	{"re-encryption, data shift", "", false, "--reduce-device-size 8m --hotzone-size 1m", inTheMiddle, "datashift"},
	{"encryption, data shift", "none", false, "--encrypt --type luks2 --reduce-device-size 32m --hotzone-size 1m", inTheMiddle, "datashift"},
	{"encryption, data shift, first part", "none", false, "--encrypt --type luks2 --reduce-device-size 32m", inTheFirstPart, "datashift"},
	{"encryption, detached, checksum", "none", true, "--encrypt --type luks2 --resilience checksum --hotzone-size 1m", inTheMiddle, "checksum"},
	{"decryption, detached, checksum", "", true, "--decrypt --resilience checksum --hotzone-size 1m", inTheMiddle, "checksum"},
	{"decryption, data shift", "", false, "--decrypt --hotzone-size 1m", inTheMiddle, "datashift-checksum"},
	{"decryption, data shift, first part", "", false, "--decrypt", inTheFirstPart, "datashift-checksum"},
}

// TestConversionsKilled: cryptsetup converts, and is killed in the middle of a
// step. The plaintext is known; what cannot be decided is refused, and nothing
// else is. On a copy cryptsetup goes on, and its end says the same.
func TestConversionsKilled(t *testing.T) {
	for _, c := range conversions {
		t.Run(c.name, func(t *testing.T) {
			s := startConversion(t, c)
			before, err := os.ReadFile(s.data)
			if err != nil {
				t.Fatal(err)
			}
			if v, err := (luks.Format{}).Inspect(context.Background(), s.place(t)); err != nil || v.Conversion == "" || strings.Contains(v.Conversion, "cannot be read") != (c.resilience == "none") {
				t.Fatalf("%+v %v", v, err)
			}
			got, lost := s.read(t, c)
			if c.resilience == "none" != (lost > 0) {
				t.Fatalf("%d bytes cannot be decided", lost)
			}
			if after, _ := os.ReadFile(s.data); !bytes.Equal(before, after) {
				t.Fatal("reading changed the data")
			}
			if c.resilience == "none" {
				return
			}
			hot, _ := readHalfway(s.head)
			head, err := os.ReadFile(s.head)
			if err != nil {
				t.Fatal(err)
			}
			// The same by cryptsetup's own recovery.
			args := []string{"-q", "repair", "--key-file", s.key}
			if s.head != s.data {
				args = append(args, "--header", s.head)
			}
			run(t, "", "cryptsetup", append(args, s.data)...)
			after, err := os.ReadFile(s.data)
			if err != nil {
				t.Fatal(err)
			}
			h, _ := readHalfway(s.head)
			switch {
			case h.resilience() == "" && strings.Contains(c.args, "--decrypt"): // that was the last step
				if !bytes.HasPrefix(after, s.want) {
					t.Fatal("cryptsetup repair did not decrypt the last part")
				}
			default:
				if again, _ := s.read(t, c); !bytes.HasPrefix(again, got) { // after the last step the device has no end of its own
					t.Fatalf("after cryptsetup repair the plaintext of %d bytes is another, of %d bytes", len(got), len(again))
				}
			}
			s.mixed(t, c, hot, before, head, after)
			judge.Decided(t, "cryptsetup reencrypt, killed; cryptsetup repair")
		})
	}
}

type conversionState struct {
	data, head, key string
	want            []byte
}

func (s conversionState) place(t *testing.T) diskcrypt.Place {
	t.Helper()
	p := place(t, s.data)
	if s.head != s.data {
		h := place(t, s.head)
		p.Header, p.HeadSize = h.Data, h.Size
	}
	return p
}

// read reads all of the plaintext, zeroes where it cannot be decided, and
// compares the rest.
func (s conversionState) read(t *testing.T, c conversionCase) (got []byte, lost int) {
	t.Helper()
	p := s.place(t)
	o, err := luks.Format{}.Open(context.Background(), p, diskcrypt.KindPassphrase, pass("one"), diskcrypt.Limits{})
	if err != nil {
		t.Fatal(err)
	}
	defer o.Close()
	got = make([]byte, o.Size())
	for at := 0; at < len(got); at += 64 << 10 {
		b := got[at:min(len(got), at+64<<10)]
		switch n, err := o.ReadAt(b, int64(at)); {
		case errors.Is(err, plainview.ErrUnreadable):
			lost += len(b) - n
			clear(b[n:])
		case err != nil && !errors.Is(err, io.EOF):
			t.Fatal(err)
		case at < len(s.want) && !bytes.Equal(b, s.want[at:min(len(s.want), at+len(b))]): // behind it lies what encrypting left over
			t.Fatalf("plaintext of %d bytes differs at %d", len(got), at)
		}
	}
	return got, lost
}

// mixed makes the state of a step of which every second page was done: before
// with these pages of after, and reads it.
func (s conversionState) mixed(t *testing.T, c conversionCase, h halfway, before, head, after []byte) {
	t.Helper()
	m := bytes.Clone(before)
	for id, seg := range h.Segments {
		if !h.flagged(id, "in-reencryption") {
			continue
		}
		from, err1 := strconv.Atoi(seg.Offset)
		size, err2 := strconv.Atoi(seg.Size)
		if err1 != nil || err2 != nil {
			t.Fatal(seg)
		}
		for at := from; at < from+size; at += 2 * 4096 {
			copy(m[at:at+4096], after[at:])
		}
	}
	if err := os.WriteFile(s.data, m, 0o600); err != nil {
		t.Fatal(err)
	}
	if s.head != s.data {
		if err := os.WriteFile(s.head, head, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	s.read(t, c)
}

func startConversion(t *testing.T, c conversionCase) conversionState {
	t.Helper()
	const most = 20 // on a busy machine cryptsetup is often done before it is looked at
	said := ""
	for range most {
		s, out := tryConversion(t, c)
		if out == "" {
			return s
		}
		said = out
	}
	t.Fatalf("cryptsetup was done before it could be killed, %d times: %s", most, said)
	return conversionState{}
}

// tryConversion is one try: said is what cryptsetup said where it came to its end.
func tryConversion(t *testing.T, c conversionCase) (state conversionState, said string) {
	t.Helper()
	size := int64(24 << 20)
	if c.name == "encryption, data shift" {
		size = 48 << 20 // cryptsetup takes steps of 16 MiB
	}
	dir := t.TempDir()
	s := conversionState{data: filepath.Join(dir, "data"), key: filepath.Join(dir, "key"), want: make([]byte, size)}
	s.head = s.data
	_, _ = rand.NewChaCha8([32]byte{7}).Read(s.want)
	if err := os.WriteFile(s.key, []byte("one"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(s.data, s.want, 0o600); err != nil {
		t.Fatal(err)
	}
	kdf := strings.Fields("--pbkdf pbkdf2 --pbkdf-force-iterations 1000 --key-file " + s.key)
	reencrypt := func(args string, more ...string) *exec.Cmd {
		all := append(append([]string{"reencrypt", "-q"}, kdf...), strings.Fields(args)...)
		return exec.Command(judge.Tool(t, "cryptsetup"), append(append(all, more...), s.data)...)
	}
	grow := func() {
		if err := os.Truncate(s.data, size+32<<20); err != nil {
			t.Fatal(err)
		}
	}
	if c.detached {
		s.head = filepath.Join(dir, "head")
	} else if c.start != "none" || strings.Contains(c.args, "--encrypt") {
		grow()
	}
	var apart []string
	if c.detached {
		apart = []string{"--header", s.head}
	}
	if c.start != "none" {
		how := "--encrypt --type luks2 --resilience none " + c.start
		if !c.detached {
			how = "--encrypt --type luks2 --reduce-device-size 32m " + c.start
		}
		if out, err := reencrypt(how, apart...).CombinedOutput(); err != nil {
			t.Fatalf("%v: %s", err, out)
		}
	}
	if strings.Contains(c.args, "--decrypt") && !c.detached {
		s.head = filepath.Join(dir, "exported")
		apart = []string{"--header", s.head}
	}
	args := c.args
	if !strings.Contains(args, "--encrypt") {
		args += " --force-offline-reencrypt" // a file cannot be asked whether it is in use
	}
	cmd := reencrypt(args, apart...)
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	done := make(chan error, 1)
	go func() { done <- cmd.Wait() }()
	sound := func() bool {
		h, ok := readHalfway(s.head)
		if !ok || h.resilience() != c.resilience || !c.at(h) {
			return false
		}
		v, err := (luks.Format{}).Inspect(context.Background(), s.place(t))
		return err == nil && v.Conversion != ""
	}
	for {
		if sound() {
			// What was seen may be gone already: it is stopped, looked at again, and only then killed.
			_ = cmd.Process.Signal(syscall.SIGSTOP)
			if sound() {
				_ = cmd.Process.Kill()
				<-done
				if sound() { // it was not about to write
					return s, ""
				}
				return s, "it went on after it was seen"
			}
			_ = cmd.Process.Signal(syscall.SIGCONT)
		}
		select {
		case err := <-done:
			return s, fmt.Sprintf("done: %v: %s", err, out.String())
		default:
		}
	}
}

// TestForgedConversions: what says how a conversion goes is believed only with
// its digest, which takes both keys to make.
func TestForgedConversions(t *testing.T) {
	ctx := context.Background()
	image, err := os.ReadFile(unxz(t, "luks/luks2-reenc-midway-checksum.img.xz"))
	if err != nil {
		t.Fatal(err)
	}
	reencryptSlot := func(o object) object {
		for _, k := range at(o, "keyslots") {
			if k.(object)["type"] == "reencrypt" {
				return k.(object)
			}
		}
		t.Fatal("no slot of a re-encryption")
		return nil
	}
	flagged := func(o object, flag string) object {
		for _, s := range at(o, "segments") {
			if b, _ := json.Marshal(s.(object)["flags"]); strings.Contains(string(b), flag) {
				return s.(object)
			}
		}
		t.Fatal("no segment with " + flag)
		return nil
	}
	for _, c := range []struct {
		name   string
		change func(object)
		want   error
		says   string
	}{
		{"direction", func(o object) { reencryptSlot(o)["direction"] = "backward" }, diskcrypt.ErrDamaged, "does not match its digest"},
		{"resilience", func(o object) { at(reencryptSlot(o), "area")["type"] = "journal" }, diskcrypt.ErrDamaged, "does not match its digest"},
		{"block of the checksums", func(o object) { at(reencryptSlot(o), "area")["sector_size"] = 512 }, diskcrypt.ErrDamaged, "does not match its digest"},
		{"cipher of the goal", func(o object) { flagged(o, "backup-final")["encryption"] = "aes-xts-plain" }, diskcrypt.ErrDamaged, "does not match its digest"},
		{"IVs of the start", func(o object) { flagged(o, "backup-previous")["iv_tweak"] = "8" }, diskcrypt.ErrDamaged, "does not match its digest"},
		{"a plain segment", func(o object) {
			s := at(o, "segments", "1")
			s["type"] = "linear"
			for _, m := range []string{"encryption", "iv_tweak", "sector_size"} {
				delete(s, m)
			}
		}, diskcrypt.ErrDamaged, "neither as before nor as after"},
		{"unknown resilience", func(o object) { at(reencryptSlot(o), "area")["type"] = "prayer" }, diskcrypt.ErrUnsupported, `"prayer"`},
		{"unknown mode", func(o object) { reencryptSlot(o)["mode"] = "transmute" }, diskcrypt.ErrDamaged, "transmute"},
		{"one passphrase of two", func(o object) {
			at(o, "keyslots", "1", "kdf")["salt"] = "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA="
		}, diskcrypt.ErrUnsupported, "the secret opens slot-0, and not slot-1"},
	} {
		t.Run(c.name, func(t *testing.T) {
			m := memory(bytes.Clone(image))
			metadata(c.change)(m)
			o, err := luks.Format{}.Open(ctx, m.place(), diskcrypt.KindPassphrase, pass("fixture-pass"), diskcrypt.Limits{})
			if !errors.Is(err, c.want) || !strings.Contains(err.Error(), c.says) {
				t.Fatalf("%v %v", o, err)
			}
		})
	}
}
