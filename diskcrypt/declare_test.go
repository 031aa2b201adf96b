package diskcrypt_test

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	"github.com/lockstep-backup/lockstep/diskcrypt"
	"github.com/lockstep-backup/lockstep/diskcrypt/luks"
	"github.com/lockstep-backup/lockstep/diskcrypt/plaindm"
	"github.com/lockstep-backup/lockstep/diskcrypt/veracrypt"
)

func TestParseDeclaration(t *testing.T) {
	for text, want := range map[string]string{
		"veracrypt":                        "veracrypt",
		"veracrypt,hash=sha512,cipher=aes": "veracrypt,cipher=aes,hash=sha512",
		"dm-crypt,size=256,cipher=xchacha12,aes-adiantum-plain64,hash=sha256": "dm-crypt,cipher=xchacha12,aes-adiantum-plain64,hash=sha256,size=256",
		"":                        "",
		"luks2":                   "",
		"veracrypt,size=256":      "",
		"veracrypt,hash":          "",
		"veracrypt,hash=":         "",
		"veracrypt,hash=a,hash=b": "",
		"veracrypt,type=dm-crypt": "",
		"veracrypt,hash=a b":      "",
		"veracrypt,hash=\x1b[31m": "",
		"veracrypt,hash=" + strings.Repeat("x", 129): "",
	} {
		d, err := diskcrypt.ParseDeclaration(text)
		if errors.Is(err, diskcrypt.ErrDeclaration) != (want == "") {
			t.Errorf("%.40q: %v", text, err)
		}
		if err == nil && diskcrypt.FormatDeclaration(d) != want {
			t.Errorf("%q became %q", text, diskcrypt.FormatDeclaration(d))
		}
	}
}

// noise is a disk of random bytes with one partition, p1, of half of it.
func noise(partition bool) []byte {
	b := make([]byte, 4<<20)
	_, _ = rand.NewChaCha8([32]byte{7}).Read(b)
	b[510], b[511] = 0, 0
	if partition {
		clear(b[:512])
		b[450] = 0x83
		binary.LittleEndian.PutUint32(b[454:], 2048)
		binary.LittleEndian.PutUint32(b[458:], 4096)
		b[510], b[511] = 0x55, 0xAA
	}
	return b
}

func TestFindDeclared(t *testing.T) {
	declaration := func(s string) map[string]string {
		d, err := diskcrypt.ParseDeclaration(s)
		if err != nil {
			t.Fatal(err)
		}
		return d
	}
	const plain = "dm-crypt,cipher=aes-xts-plain64,size=256,hash=sha256"
	luksAt0 := noise(false)
	copy(luksAt0, "LUKS\xba\xbe\x00\x01")
	for _, c := range []struct {
		name     string
		disk     []byte
		declared map[string]map[string]string
		want     []string // ID TYPE
		warns    string
	}{
		{"nothing declared", noise(false), nil, []string{"disk opaque"}, ""},
		{"whole disk", noise(false), map[string]map[string]string{"disk": declaration("veracrypt")}, []string{"disk veracrypt"}, ""},
		{"whole disk over what looks like a table", noise(true), map[string]map[string]string{"disk": declaration(plain)}, []string{"disk dm-crypt"}, ""},
		{"partition", noise(true), map[string]map[string]string{"p1": declaration("veracrypt,hash=sha256")}, []string{"p1 veracrypt"}, ""},
		{"another partition", noise(true), map[string]map[string]string{"p7": declaration("veracrypt")}, []string{"p1 opaque"}, "p7: declared as veracrypt, but there is no such place"},
		{"what can be seen counts", luksAt0, map[string]map[string]string{"disk": declaration("veracrypt")}, []string{"disk luks1"}, "the declaration does not count"},
	} {
		t.Run(c.name, func(t *testing.T) {
			opts := diskcrypt.FindOptions{Formats: []diskcrypt.Format{luks.Format{}, veracrypt.Format{}, plaindm.Format{}}, Declared: c.declared}
			rep, err := diskcrypt.Find(context.Background(), bytes.NewReader(c.disk), int64(len(c.disk)), opts)
			if err != nil {
				t.Fatal(err)
			}
			var got []string
			for _, v := range rep.Volumes {
				got = append(got, v.ID+" "+v.Type)
				if (v.Declared != nil) != (v.Type == diskcrypt.TypeVeraCrypt || v.Type == diskcrypt.TypePlain) {
					t.Errorf("%s: declared %v", v.ID, v.Declared)
				}
			}
			if !slices.Equal(got, c.want) || !strings.Contains(strings.Join(rep.Warnings, "\n"), c.warns) {
				t.Errorf("%q, warnings %q", got, rep.Warnings)
			}
		})
	}
	opts := diskcrypt.FindOptions{Formats: []diskcrypt.Format{plaindm.Format{}}, Declared: map[string]map[string]string{"disk": declaration("dm-crypt")}}
	if _, err := diskcrypt.Find(context.Background(), bytes.NewReader(noise(false)), 4<<20, opts); !errors.Is(err, diskcrypt.ErrDeclaration) {
		t.Errorf("a declaration without its parameters: %v", err)
	}
}
