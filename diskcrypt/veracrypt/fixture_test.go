package veracrypt_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/lockstep-backup/lockstep/blockstack"
	"github.com/lockstep-backup/lockstep/disk"
	"github.com/lockstep-backup/lockstep/diskcrypt"
	"github.com/lockstep-backup/lockstep/diskcrypt/veracrypt"
	"github.com/lockstep-backup/lockstep/envelope"
	"github.com/lockstep-backup/lockstep/internal/judge"
)

// images unpacks the volumes that TrueCrypt and VeraCrypt made.
func images(t *testing.T) string {
	t.Helper()
	src := filepath.Join(judge.Fixtures(t), "veracrypt", "tcrypt-images.tar.xz")
	if _, err := os.Stat(src); err != nil {
		judge.Missing(t, "fixture veracrypt/tcrypt-images.tar.xz")
	}
	dir := t.TempDir()
	if out, err := exec.Command(judge.Tool(t, "tar"), "-SxJf", src, "-C", dir).CombinedOutput(); err != nil {
		t.Fatalf("tar: %v: %s", err, out)
	}
	return filepath.Join(dir, "tcrypt-images")
}

const (
	outerPassword  = "aaaaaaaaaaaa"
	hiddenPassword = "bbbbbbbbbbbb"
	pimPassword    = "cccccccccccccccccccc"
	longPassword   = "aaaaaaaaaaaabbbbbbbbbbbbccccccccccccddddddddddddeeeeeeeeeeeeffffffffffff"
)

// image is a fixture as its name describes it.
type image struct {
	family, hash, mode, cipher string
	hidden                     bool
}

func parse(name string) image {
	parts := strings.SplitN(name, "-", 4)
	i := image{family: parts[0], hash: parts[1], mode: parts[2], cipher: parts[3]}
	i.cipher, i.hidden = strings.CutSuffix(i.cipher, "-hidden")
	return i
}

// secrets are those that open the image: protector to secret.
func (i image) secrets(t *testing.T, dir string) map[string]veracrypt.Secret {
	t.Helper()
	s := veracrypt.Secret{Password: []byte(outerPassword)}
	family, _, _ := strings.Cut(i.family, "_")
	if strings.HasSuffix(i.family, "_nopw") {
		s.Password = nil
	}
	if strings.HasSuffix(i.family, "_pw72") {
		s.Password = []byte(longPassword)
	}
	switch family {
	case "tck", "vck":
		for _, name := range []string{"keyfile1", "keyfile2"} {
			b, err := os.ReadFile(filepath.Join(dir, name))
			if err != nil {
				t.Fatal(err)
			}
			s.KeyFiles = append(s.KeyFiles, b)
		}
	case "vcpim":
		s.Password = []byte(pimPassword)
		if _, err := fmt.Sscanf(i.family, "vcpim_1_%d", &s.PIM); err != nil {
			t.Fatal(err)
		}
	case "sys":
		return map[string]veracrypt.Secret{"system": s}
	}
	out := map[string]veracrypt.Secret{"header": s}
	if i.hidden {
		out["hidden"] = veracrypt.Secret{Password: []byte(hiddenPassword)}
	}
	return out
}

// refused: recognised by what is declared, and not read.
func (i image) refused() bool {
	return i.mode != "xts" || i.hash == "stribog512" || strings.Contains(i.cipher, "camellia") || strings.Contains(i.cipher, "kuznyechik")
}

func (i image) declaration(full bool) map[string]string {
	d := map[string]string{diskcrypt.DeclaredType: diskcrypt.TypeVeraCrypt}
	if strings.HasPrefix(i.family, "sys") {
		d["system"] = "yes"
	}
	if full {
		d["hash"], d["cipher"] = i.hash, i.cipher
		if i.mode != "xts" {
			d["cipher"] += "-" + i.mode
		}
	}
	return d
}

func sealed(t *testing.T, s veracrypt.Secret) envelope.Secret {
	t.Helper()
	b, err := s.Seal()
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// Every image opens, to a FAT file system with the serial number that whoever
// made the images gave it, or is refused by the name of what is declared.
func TestFixtures(t *testing.T) {
	dir := images(t)
	files, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	opened, refused := 0, 0
	for _, file := range files {
		if !strings.Contains(file.Name(), "-") {
			continue
		}
		i := parse(file.Name())
		b, err := os.ReadFile(filepath.Join(dir, file.Name()))
		if err != nil {
			t.Fatal(err)
		}
		if i.hash == "argon2id" && i.family != "vcpim_1_8" && os.Getenv("LOCKSTEP_SOAK") == "" {
			continue // a gigabyte, 15 passes
		}
		t.Run(file.Name(), func(t *testing.T) {
			p := diskcrypt.Place{Data: bytes.NewReader(b), Size: int64(len(b)), Declared: i.declaration(true)}
			v, err := veracrypt.Format{}.Inspect(context.Background(), p)
			if err != nil || v.Type != diskcrypt.TypeVeraCrypt {
				t.Fatalf("inspect: %+v %v", v, err)
			}
			if i.refused() {
				_, err := veracrypt.Format{}.Open(context.Background(), p, diskcrypt.KindPassphrase, envelope.CopySecret([]byte(outerPassword)), diskcrypt.Limits{})
				if !errors.Is(err, diskcrypt.ErrUnsupported) || v.Unsupported == "" {
					t.Errorf("%v, %q", err, v.Unsupported)
				}
				refused++
				return
			}
			if v.Unsupported != "" {
				t.Fatal(v.Unsupported)
			}
			for id, s := range i.secrets(t, dir) {
				o, err := veracrypt.Format{}.Open(context.Background(), p, diskcrypt.KindVeraCrypt, sealed(t, s), diskcrypt.Limits{})
				if err != nil {
					t.Errorf("%s: %v", id, err)
					continue
				}
				if got := strings.TrimPrefix(o.Protector(), "old-"); got != id {
					t.Errorf("opened by %q, want %q", got, id)
				}
				judgeFAT(t, o, id)
				o.Close()
				opened++
			}
		})
	}
	t.Logf("%d opened, %d refused by name", opened, refused)
	if opened < 50 || refused < 30 {
		t.Errorf("%d opened, %d refused by name", opened, refused)
	}
}

// judgeFAT looks for the file system that the images were made with; on a
// system disk in the partitions of the table, which is not encrypted.
func judgeFAT(t *testing.T, o diskcrypt.Opened, id string) {
	t.Helper()
	if id == "system" {
		layout, err := disk.ReadLayout(o, o.Size())
		if err != nil {
			t.Fatal(err)
		}
		var classes []string
		for _, p := range layout.Partitions {
			found, err := blockstack.Identify(io.NewSectionReader(o, p.Range.Offset, p.Range.Length), p.Range.Length)
			if err != nil {
				t.Fatal(err)
			}
			for _, f := range found {
				classes = append(classes, f.String()+" "+f.UUID)
			}
		}
		if !strings.Contains(strings.Join(classes, ","), "DEAD-BABE") {
			t.Errorf("partitions of the %s: %q", layout.Table, classes)
		}
		return
	}
	found, err := blockstack.Identify(o, o.Size())
	if err != nil || len(found) == 0 {
		t.Fatalf("%s: nothing recognised (%v)", id, err)
	}
	want := "DEAD-BABE"
	if id == "hidden" {
		want = "CAFE-BABE"
	}
	if !strings.EqualFold(found[0].UUID, want) {
		t.Errorf("%s: %v with serial %s, want %s", id, found[0], found[0].UUID, want)
	}
}
