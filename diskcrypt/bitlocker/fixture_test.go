package bitlocker_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/lockstep-backup/lockstep/diskcrypt"
	"github.com/lockstep-backup/lockstep/diskcrypt/bitlocker"
	"github.com/lockstep-backup/lockstep/envelope"
	"github.com/lockstep-backup/lockstep/internal/judge"
)

var ctx = context.Background()

func pass(s string) envelope.Secret { return envelope.NewSecret([]byte(s)) }

// fixture returns the path of a fixture.
func fixture(t *testing.T, name string) string {
	t.Helper()
	src := filepath.Join(judge.Fixtures(t), "bitlocker", name)
	if _, err := os.Stat(src); err != nil {
		judge.Missing(t, "fixture bitlocker/"+name)
	}
	return src
}

// unxz unpacks one image, sparse, into a temporary folder.
func unxz(t *testing.T, name string) diskcrypt.Place {
	t.Helper()
	cmd := exec.Command(judge.Tool(t, "xz"), "-dc", fixture(t, name))
	out, err := os.Create(filepath.Join(t.TempDir(), "image"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { out.Close() })
	pipe, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	buf, zero := make([]byte, 64<<10), make([]byte, 64<<10)
	size := int64(0)
	for {
		n, err := io.ReadFull(pipe, buf)
		if n > 0 && !bytes.Equal(buf[:n], zero[:n]) {
			if _, err := out.WriteAt(buf[:n], size); err != nil {
				t.Fatal(err)
			}
		}
		if size += int64(n); err != nil {
			break
		}
	}
	if err := cmd.Wait(); err != nil {
		t.Fatal(err)
	}
	if err := out.Truncate(size); err != nil {
		t.Fatal(err)
	}
	return diskcrypt.Place{Data: out, Size: size}
}

func open(t testing.TB, path string) diskcrypt.Place {
	t.Helper()
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	st, err := f.Stat()
	if err != nil {
		t.Fatal(err)
	}
	return diskcrypt.Place{Data: f, Size: st.Size()}
}

func shaOf(t *testing.T, o diskcrypt.Opened) string {
	t.Helper()
	h := sha256.New()
	if _, err := io.CopyBuffer(struct{ io.Writer }{h}, io.NewSectionReader(o, 0, o.Size()), make([]byte, 2<<20)); err != nil {
		t.Fatal(err)
	}
	return hex.EncodeToString(h.Sum(nil))
}

// images reads images.conf: name to its fields.
func images(t *testing.T, dir string) map[string]map[string]string {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(dir, "images.conf"))
	if err != nil {
		t.Fatal(err)
	}
	out := map[string]map[string]string{}
	var now map[string]string
	for line := range strings.Lines(string(b)) {
		line = strings.TrimSpace(line)
		if name, ok := strings.CutPrefix(line, "["); ok {
			now = map[string]string{}
			out[strings.TrimSuffix(name, "]")] = now
		} else if key, value, ok := strings.Cut(line, "="); ok {
			now[key] = value
		}
	}
	return out
}

const lostConversion = "used-space-only conversion; how far it came is lost"

// facts are what the images are known for beside images.conf.
var facts = map[string]struct {
	sector     int
	bits       int
	protectors []string // sorted kinds
	warns      string
	conversion string
}{
	"bitlk-aes-cbc-128-4k":                {sector: 4096},
	"bitlk-aes-cbc-256":                   {bits: 256},
	"bitlk-aes-cbc-elephant-256":          {bits: 256},
	"bitlk-aes-xts-256":                   {bits: 256},
	"bitlk-aes-xts-128-4k":                {sector: 4096},
	"bitlk-aes-xts-128-crc":               {warns: "not good"},
	"bitlk-aes-xts-128-clearkey-only":     {protectors: []string{"clear-key"}},
	"bitlk-aes-xts-128-smart-card":        {protectors: []string{"recovery-password", "smart-card"}},
	"bitlk-aes-xts-128-startup-key":       {protectors: []string{"passphrase", "recovery-password", "startup-key"}},
	"bitlk-aes-xts-128-startup-key-win11": {protectors: []string{"passphrase", "recovery-password", "startup-key"}},
	"bitlk-aes-xts-128-two-recovery":      {protectors: []string{"passphrase", "recovery-password", "recovery-password"}},
	// What tells how far these two were converted is zeroed.
	"bitlk-aes-xts-128-eow":                 {warns: "no conversion information", conversion: lostConversion},
	"bitlk-partially-encrypted-aes-cbc-128": {warns: "no conversion information", conversion: lostConversion, protectors: []string{"clear-key", "passphrase", "recovery-password"}},
}

// TestImages: real volumes of Windows 7 to 11 open with every secret that is
// known of them, and the whole volume is what another program decrypted.
func TestImages(t *testing.T) {
	dir := t.TempDir()
	if out, err := exec.Command(judge.Tool(t, "tar"), "-SxJf", fixture(t, "bitlk-images.tar.xz"), "-C", dir).CombinedOutput(); err != nil {
		t.Fatalf("tar: %v: %s", err, out)
	}
	dir = filepath.Join(dir, "bitlk-images")
	list := images(t, dir)
	if len(list) != 21 {
		t.Fatalf("%d images", len(list))
	}
	for name, want := range list {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			inspectImage(t, open(t, filepath.Join(dir, name+".img")), name, want)
			openImage(t, open(t, filepath.Join(dir, name+".img")), dir, want)
		})
	}
}

func inspectImage(t *testing.T, p diskcrypt.Place, name string, want map[string]string) {
	v, err := bitlocker.Format{}.Inspect(ctx, p)
	if err != nil {
		t.Fatal(err)
	}
	fact := facts[name]
	if fact.sector == 0 {
		fact.sector = 512
	}
	if fact.bits == 0 {
		fact.bits = 128
	}
	if fact.protectors == nil {
		fact.protectors = []string{"passphrase", "recovery-password"}
	}
	var kinds []string
	for _, p := range v.Protectors {
		kinds = append(kinds, p.Kind)
		if p.Created.Year() < 2019 || p.Created.Year() > 2026 {
			t.Errorf("%s was made %v", p.ID, p.Created)
		}
	}
	slices.Sort(kinds)
	if v.UUID != want["GUID"] || v.SectorSize != fact.sector || v.KeyBits != fact.bits || !slices.Equal(kinds, fact.protectors) || v.Unsupported != "" {
		t.Errorf("%+v", v)
	}
	if cipher, _, _ := strings.Cut(want["CIPHER"], "-plain64"); strings.TrimSuffix(cipher, "-eboiv") != v.Cipher {
		t.Errorf("cipher %s, want %s", v.Cipher, want["CIPHER"])
	}
	if warnings := strings.Join(v.Warnings, "\n"); !strings.Contains(warnings, fact.warns) || fact.warns == "" && warnings != "" {
		t.Errorf("warnings: %q", v.Warnings)
	}
	if (v.SelfOpening != "") != slices.Contains(kinds, "clear-key") {
		t.Errorf("self-opening: %q", v.SelfOpening)
	}
	if v.Conversion != fact.conversion {
		t.Errorf("conversion: %q", v.Conversion)
	}
}

func openImage(t *testing.T, p diskcrypt.Place, dir string, want map[string]string) {
	type secret struct {
		kind      diskcrypt.Kind
		text      []byte
		protector string
	}
	var secrets []secret
	for _, c := range []struct {
		kind        diskcrypt.Kind
		field, guid string
	}{
		{diskcrypt.KindPassphrase, "PW", "PW_VMK_GUID"},
		{diskcrypt.KindRecoveryPassword, "RP", "RP_VMK_GUID"},
		{diskcrypt.KindRecoveryPassword, "RP2", "RP2_VMK_GUID"},
	} {
		if want[c.field] != "" {
			secrets = append(secrets, secret{c.kind, []byte(want[c.field]), want[c.guid]})
		}
	}
	if guid := want["SK_VMK_GUID"]; guid != "" {
		b, err := os.ReadFile(filepath.Join(dir, strings.ToUpper(guid)+".BEK"))
		if err != nil {
			t.Fatal(err)
		}
		secrets = append(secrets, secret{diskcrypt.KindStartupKey, b, guid})
	}
	if guid := want["CLEARKEY_VMK_GUID"]; guid != "" {
		secrets = append(secrets, secret{diskcrypt.KindNone, nil, guid})
	}
	if len(secrets) == 0 {
		t.Fatal("no secret is known")
	}
	var mac []byte
	var given [][]byte
	for i, s := range secrets {
		o, err := bitlocker.Format{}.Open(ctx, p, s.kind, envelope.CopySecret(s.text), diskcrypt.Limits{})
		if err != nil {
			t.Fatalf("%s: %v", s.kind, err)
		}
		defer o.Close()
		if o.Protector() != s.protector || o.KeyCheck() != "bitlocker-validation" {
			t.Errorf("%s: opened by %s, checked by %s", s.kind, o.Protector(), o.KeyCheck())
		}
		if got := o.KeyMAC([]byte("k")); mac != nil && !bytes.Equal(got, mac) {
			t.Error("another key")
		} else {
			mac = got
		}
		if i == 0 && want["SHA256SUM"] != "" {
			if got := shaOf(t, o); got != want["SHA256SUM"] {
				t.Errorf("decrypted: %s, want %s", got, want["SHA256SUM"])
			}
			judge.Decided(t, "images of the cryptsetup project")
		}
		given = append(given, s.text)
	}
	// Each secret gives all the others that the volume holds.
	derived, err := bitlocker.Derive(ctx, p, secrets[0].kind, envelope.CopySecret(secrets[0].text), diskcrypt.Limits{})
	if err != nil {
		t.Fatal(err)
	}
	var got [][]byte
	for _, d := range derived {
		got = append(got, d.Secret.Expose())
	}
	for i, s := range secrets {
		if s.kind == diskcrypt.KindPassphrase || s.kind == diskcrypt.KindNone {
			continue
		}
		if s.kind == diskcrypt.KindStartupKey {
			// The file's own time is not on the volume, nor what Windows 11 adds: it must open.
			at := slices.IndexFunc(derived, func(d diskcrypt.Derived) bool { return d.Protector == s.protector })
			if at < 0 {
				t.Errorf("no startup key derived")
				continue
			}
			ids, err := bitlocker.Format{}.OpensAll(ctx, p, s.kind, derived[at].Secret, diskcrypt.Limits{})
			if err != nil || !slices.Equal(ids, []string{s.protector}) {
				t.Errorf("derived startup key: %v %v", ids, err)
			}
			continue
		}
		if !slices.ContainsFunc(got, func(b []byte) bool { return bytes.Equal(b, given[i]) }) {
			t.Errorf("%s %d of %d was not derived", s.kind, i, len(got))
		}
	}
}

// TestVolumesWithFiles: volumes refilled with a real file system.
func TestVolumesWithFiles(t *testing.T) {
	text, err := os.ReadFile(fixture(t, "with-files.txt"))
	if err != nil {
		t.Fatal(err)
	}
	cases := regexp.MustCompile(`== (\S+)\s+recovery (\S+).*\ndecrypted sha256 (\S+) type (\S+)`).FindAllStringSubmatch(string(text), -1)
	if len(cases) != 5 {
		t.Fatalf("%d images", len(cases))
	}
	for _, c := range cases {
		t.Run(c[1], func(t *testing.T) {
			t.Parallel()
			p := unxz(t, c[1]+".xz")
			o, err := bitlocker.Format{}.Open(ctx, p, diskcrypt.KindRecoveryPassword, pass(c[2]), diskcrypt.Limits{})
			if err != nil {
				t.Fatal(err)
			}
			defer o.Close()
			if got := shaOf(t, o); got != c[3] {
				t.Errorf("decrypted: %s, want %s", got, c[3])
			}
			judge.Decided(t, "volumes that dislocker and the kernel read")
			if _, err := (bitlocker.Format{}).Open(ctx, p, diskcrypt.KindRecoveryPassword, pass("000011-000022-000033-000044-000055-000066-000077-000088"), diskcrypt.Limits{}); !errors.Is(err, diskcrypt.ErrWrongSecret) {
				t.Error(err)
			}
		})
	}
}
