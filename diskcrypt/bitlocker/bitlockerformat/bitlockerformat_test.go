package bitlockerformat_test

import (
	"bytes"
	"context"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/lockstep-backup/lockstep/diskcrypt"
	"github.com/lockstep-backup/lockstep/diskcrypt/bitlocker"
	"github.com/lockstep-backup/lockstep/diskcrypt/bitlocker/bitlockerformat"
	"github.com/lockstep-backup/lockstep/envelope"
	"github.com/lockstep-backup/lockstep/internal/judge"
)

const size = 4 << 20

// content is a volume with a boot sector and bytes that do not repeat.
func content(sectorSize int) []byte {
	b := make([]byte, size)
	_, _ = rand.NewChaCha8([32]byte{7}).Read(b)
	copy(b, bitlockerformat.BootSector(size, sectorSize))
	return b
}

// by is a protector and how dislocker is told to use it.
type by struct {
	kind   string
	secret diskcrypt.Kind
}

var (
	byPassword = by{bitlockerformat.Password, diskcrypt.KindPassphrase}
	byRecovery = by{bitlockerformat.Recovery, diskcrypt.KindRecoveryPassword}
	byKeyFile  = by{bitlockerformat.StartupKey, diskcrypt.KindStartupKey}
	byClear    = by{bitlockerformat.ClearKey, diskcrypt.KindNone}
)

func (b by) flags(t *testing.T, dir string, p bitlockerformat.Protector) []string {
	switch b {
	case byPassword:
		return []string{"-u" + string(p.Secret)}
	case byRecovery:
		return []string{"-p" + string(p.Secret)}
	case byClear:
		return []string{"-c"}
	}
	bek := filepath.Join(dir, "key.BEK")
	if err := os.WriteFile(bek, p.Secret, 0o600); err != nil {
		t.Fatal(err)
	}
	return []string{"-f", bek}
}

// TestJudged: dislocker decrypts what the formatter makes, and cryptsetup lists
// it, before our own reader sees it.
func TestJudged(t *testing.T) {
	dislocker, cryptsetup := judge.Tool(t, "dislocker-file"), judge.Tool(t, "cryptsetup")
	type image struct {
		name   string
		o      bitlockerformat.Options
		by     by
		noDump bool // cryptsetup does not know the flavour
	}
	cases := []image{
		{name: "password", by: byPassword},
		{name: "recovery password", by: byRecovery},
		{name: "clear key", by: byClear},
		{name: "half converted", o: bitlockerformat.Options{Watermark: 3 << 19, State: 3, Next: 1}, by: byKeyFile, noDump: true},
		{name: "to go", o: bitlockerformat.Options{Flavour: bitlockerformat.ToGo}, by: byKeyFile},
		{name: "vista", o: bitlockerformat.Options{Flavour: bitlockerformat.Vista, Method: "aes-cbc-elephant-128"}, by: byKeyFile, noDump: true},
	}
	for _, m := range bitlockerformat.Methods {
		cases = append(cases, image{name: m, o: bitlockerformat.Options{Method: m}, by: byKeyFile})
	}
	for _, m := range []string{"aes-xts-128", "aes-xts-256", "aes-cbc-128", "aes-cbc-256"} {
		cases = append(cases, image{name: m + " 4096", o: bitlockerformat.Options{Method: m, SectorSize: 4096}, by: byKeyFile})
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			dir := t.TempDir()
			path := filepath.Join(dir, "disk")
			f, err := os.Create(path)
			if err != nil {
				t.Fatal(err)
			}
			defer f.Close()
			c.o.Label = "made by a test"
			c.o.Protectors = []bitlockerformat.Protector{{Kind: c.by.kind}, {Kind: bitlockerformat.TPM}}
			if c.by == byPassword {
				c.o.Protectors[0].Secret = []byte("a password")
			}
			v, err := bitlockerformat.Format(context.Background(), f, content(max(512, c.o.SectorSize)), c.o)
			if err != nil {
				t.Fatal(err)
			}
			if !c.noDump {
				out, err := exec.Command(cryptsetup, "bitlkDump", path).CombinedOutput()
				if err != nil || !strings.Contains(string(out), v.GUID) || !strings.Contains(string(out), v.Protectors[0].GUID) {
					t.Fatalf("cryptsetup bitlkDump: %v\n%s", err, out)
				}
				judge.Decided(t, "cryptsetup bitlkDump")
			}
			decrypted := filepath.Join(dir, "decrypted")
			args := append([]string{"-V", path}, c.by.flags(t, dir, v.Protectors[0])...)
			if out, err := exec.Command(dislocker, append(args, "--", decrypted)...).CombinedOutput(); err != nil {
				t.Fatalf("dislocker-file: %v\n%s", err, out)
			}
			got, err := os.ReadFile(decrypted)
			if err != nil {
				t.Fatal(err)
			}
			want := v.Plain
			if c.o.Watermark > 0 {
				want = want[:c.o.Watermark] // dislocker ends there
			}
			if c.o.Flavour == bitlockerformat.Vista {
				copy(got[56:64], want[56:64]) // dislocker 0.7.3 leaves BitLocker's own field there
			}
			same(t, "dislocker", got, want)
			judge.Decided(t, "dislocker-file")

			place := diskcrypt.Place{Data: f, Size: size}
			o, err := bitlocker.Format{}.Open(context.Background(), place, c.by.secret, envelope.CopySecret(ours(c.by, v)), diskcrypt.Limits{})
			if err != nil {
				t.Fatal(err)
			}
			defer o.Close()
			got = make([]byte, o.Size())
			if _, err := o.ReadAt(got, 0); err != nil {
				t.Fatal(err)
			}
			same(t, "our reader", got, v.Plain)
		})
	}
}

func ours(b by, v *bitlockerformat.Volume) []byte {
	if b == byClear {
		return nil
	}
	return v.Protectors[0].Secret
}

func same(t *testing.T, who string, got, want []byte) {
	t.Helper()
	if len(got) != len(want) {
		t.Errorf("%s: %d bytes, want %d", who, len(got), len(want))
	}
	for i := 0; i < min(len(got), len(want)); i += 512 {
		if !bytes.Equal(got[i:i+512], want[i:i+512]) {
			t.Fatalf("%s: the sector at %#x differs: % x, want % x", who, i, got[i:i+16], want[i:i+16])
		}
	}
}
