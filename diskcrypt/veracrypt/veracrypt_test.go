package veracrypt_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	"github.com/lockstep-backup/lockstep/diskcrypt"
	"github.com/lockstep-backup/lockstep/diskcrypt/diskcrypttest"
	"github.com/lockstep-backup/lockstep/diskcrypt/veracrypt"
	"github.com/lockstep-backup/lockstep/diskcrypt/veracrypt/veracryptformat"
	"github.com/lockstep-backup/lockstep/envelope"
)

type memory []byte

func (m memory) WriteAt(p []byte, off int64) (int, error) { return copy(m[off:], p), nil }

// random is filling that looks like ciphertext, the same in each run.
func random(n int, seed uint64) []byte {
	b := make([]byte, n)
	r := rand.NewChaCha8([32]byte{byte(seed)})
	_, _ = r.Read(b)
	return b
}

const size = 1 << 20

var outer = veracryptformat.Options{Secret: veracrypt.Secret{Password: []byte("of the outer one"), PIM: 1}, Hash: "sha512", Cipher: "aes-twofish-serpent"}

var inner = veracryptformat.Options{Secret: veracrypt.Secret{Password: []byte("of the hidden one"), PIM: 1}, Hash: "sha256", Cipher: "aes", HiddenSize: 256 << 10}

// format makes a container with volumes in it, and returns their plaintexts.
func format(t *testing.T, all ...veracryptformat.Options) (memory, [][]byte) {
	t.Helper()
	m := memory(random(size, 1))
	var plain [][]byte
	for i, o := range all {
		_, n := o.DataRange(size)
		plain = append(plain, random(int(n), uint64(i+2)))
		if err := veracryptformat.Format(m, size, o, bytes.NewReader(plain[i])); err != nil {
			t.Fatal(err)
		}
	}
	return m, plain
}

func place(m memory, text string) diskcrypt.Place {
	d, err := diskcrypt.ParseDeclaration(text)
	if err != nil {
		panic(err)
	}
	return diskcrypt.Place{Data: bytes.NewReader(m), Size: int64(len(m)), Declared: d}
}

func open(t *testing.T, p diskcrypt.Place, s veracrypt.Secret) (diskcrypt.Opened, error) {
	t.Helper()
	return veracrypt.Format{}.Open(context.Background(), p, diskcrypt.KindVeraCrypt, sealed(t, s), diskcrypt.Limits{})
}

func TestConformance(t *testing.T) {
	declared := "veracrypt,hash=sha512"
	single, plain := format(t, outer)
	old := veracryptformat.Options{Secret: veracrypt.Secret{Password: []byte("of TrueCrypt")}, Hash: "sha512", Cipher: "serpent", TrueCrypt: true}
	oldOne, oldPlain := format(t, old)
	both := []string{"header", "backup"}
	diskcrypttest.Run(t, veracrypt.Format{}, []diskcrypttest.Volume{
		{
			Name: "veracrypt", Type: diskcrypt.TypeVeraCrypt, Plain: plain[0], Place: place(single, declared),
			Secrets: []diskcrypttest.Secret{{Kind: diskcrypt.KindVeraCrypt, Bytes: sealed(t, outer.Secret).Expose(), Protectors: both}},
			Wrong:   diskcrypttest.Secret{Kind: diskcrypt.KindVeraCrypt, Bytes: []byte(`{"format":1,"password":"eA==","pim":1}`)},
		},
		{
			Name: "truecrypt", Type: diskcrypt.TypeVeraCrypt, Plain: oldPlain[0], Place: place(oldOne, declared),
			Secrets: []diskcrypttest.Secret{{Kind: diskcrypt.KindPassphrase, Bytes: old.Secret.Password, Protectors: both}},
			Wrong:   diskcrypttest.Secret{Kind: diskcrypt.KindVeraCrypt, Bytes: []byte(`{"format":1,"password":"eA==","pim":1}`)},
		},
	})
}

// Nothing but that it opens tells a hidden volume from random filling, and each
// password opens its own.
func TestHiddenVolume(t *testing.T) {
	m, plain := format(t, outer, inner)
	p := place(m, "veracrypt")
	single, _ := format(t, outer)
	a, err := veracrypt.Format{}.Inspect(context.Background(), p)
	if err != nil {
		t.Fatal(err)
	}
	b, err := veracrypt.Format{}.Inspect(context.Background(), place(single, "veracrypt"))
	if err != nil {
		t.Fatal(err)
	}
	ids := func(v *diskcrypt.Volume) (out []string) {
		for _, p := range v.Protectors {
			out = append(out, p.ID+p.Note)
		}
		return out
	}
	if !slices.Equal(ids(a), ids(b)) || len(a.Warnings)+len(b.Warnings) > 0 {
		t.Errorf("inspection tells them apart: %v %v", ids(a), ids(b))
	}
	for i, o := range []veracryptformat.Options{outer, inner} {
		vol, err := open(t, p, o.Secret)
		if err != nil {
			t.Fatal(err)
		}
		got := make([]byte, vol.Size())
		if _, err := vol.ReadAt(got, 0); err != nil && !errors.Is(err, io.EOF) {
			t.Fatal(err)
		}
		want := plain[i]
		if i == 0 { // the hidden volume overwrote its end
			got, want = got[:size-2*(128<<10)-(256<<10)], want[:size-2*(128<<10)-(256<<10)]
		}
		if !bytes.Equal(got, want) || vol.Protector() != []string{"header", "hidden"}[i] {
			t.Errorf("%s: not its plaintext", vol.Protector())
		}
		vol.Close()
	}
	only := outer.Secret
	only.Hidden = true
	if _, err := open(t, place(m, "veracrypt,hash=sha512"), only); !errors.Is(err, diskcrypt.ErrWrongSecret) {
		t.Errorf("asked for the hidden volume, the outer one's password: %v", err)
	}
}

// One lost header: its copy at the end opens. Both lost: the header copy of a
// recovery point is all that would.
func TestMutations(t *testing.T) {
	flip := func(at int) func(memory) { return func(m memory) { m[at] ^= 1 } }
	zero := func(from, n int) func(memory) { return func(m memory) { clear(m[from : from+n]) } }
	all := func(fs ...func(memory)) func(memory) {
		return func(m memory) {
			for _, f := range fs {
				f(m)
			}
		}
	}
	const backup = size - 128<<10
	for _, c := range []struct {
		name   string
		mutate func(memory)
		opens  string // "" = nothing
		warns  string // in a protector's note
	}{
		{"salt of the header", flip(3), "backup", ""},
		{"encrypted part of the header", flip(100), "backup", ""},
		{"last byte of the header", flip(511), "backup", ""},
		{"header wiped", zero(0, 512), "backup", "header"},
		{"start wiped", zero(0, 128<<10), "backup", "header"},
		{"backup wiped", zero(backup, 512), "header", "backup"},
		{"both", all(flip(200), flip(backup+200)), "", ""},
		{"both wiped", all(zero(0, 4096), zero(backup, 4096)), "", "header backup"},
		{"behind the header", flip(512), "header", ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			m, plain := format(t, outer)
			c.mutate(m)
			p := place(m, "veracrypt,hash=sha512,cipher=aes-twofish-serpent")
			v, err := veracrypt.Format{}.Inspect(context.Background(), p)
			if err != nil {
				t.Fatal(err)
			}
			for _, x := range v.Protectors {
				if over := strings.Contains(x.Note, "overwritten"); over != (slices.Contains(strings.Fields(c.warns), x.ID) || c.name == "start wiped" && x.ID == "hidden") {
					t.Errorf("%s: %s", x.ID, x.Note)
				}
			}
			o, err := open(t, p, outer.Secret)
			if c.opens == "" {
				if !errors.Is(err, diskcrypt.ErrWrongSecret) {
					t.Fatalf("opened: %v", err)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			defer o.Close()
			got := make([]byte, len(plain[0]))
			if _, err := o.ReadAt(got, 0); err != nil && !errors.Is(err, io.EOF) || o.Protector() != c.opens || !bytes.Equal(got, plain[0]) {
				t.Errorf("%s: %v", o.Protector(), err)
			}
		})
	}
}

func TestDeclarations(t *testing.T) {
	m := memory(random(1<<20, 1))
	for text, want := range map[string]string{
		"veracrypt,cipher=camellia":              `cipher "camellia"`,
		"veracrypt,cipher=kuznyechik-aes":        `cipher "kuznyechik-aes"`,
		"veracrypt,cipher=aes-lrw":               `cipher "aes-lrw"`,
		"veracrypt,hash=streebog":                `hash "streebog"`,
		"veracrypt,hash=SHA512,cipher=AES":       "",
		"veracrypt,hash=sha256,cipher=aes-xts":   "",
		"veracrypt,cipher=AES-Twofish,system=no": "",
	} {
		v, err := veracrypt.Format{}.Inspect(context.Background(), place(m, text))
		if err != nil {
			t.Errorf("%s: %v", text, err)
			continue
		}
		if !strings.Contains(v.Unsupported, want) || want == "" && v.Unsupported != "" {
			t.Errorf("%s: %q", text, v.Unsupported)
		}
		_, err = veracrypt.Format{}.Open(context.Background(), place(m, text), diskcrypt.KindPassphrase, envelope.CopySecret([]byte("x")), diskcrypt.Limits{KDFWork: 1})
		if got := errors.Is(err, diskcrypt.ErrUnsupported); got != (want != "") {
			t.Errorf("%s: %v", text, err)
		}
	}
	if _, err := (veracrypt.Format{}).Inspect(context.Background(), place(m, "veracrypt,system=perhaps")); !errors.Is(err, diskcrypt.ErrDeclaration) {
		t.Errorf("%v", err)
	}
	if _, err := (veracrypt.Format{}).Inspect(context.Background(), place(m[:1000], "veracrypt")); !errors.Is(err, diskcrypt.ErrNotThisFormat) {
		t.Errorf("1000 bytes: %v", err)
	}
}

func TestSecrets(t *testing.T) {
	m := memory(random(1<<20, 1))
	long := strings.Repeat("x", 129)
	for name, s := range map[string]veracrypt.Secret{
		"empty": {}, "long": {Password: []byte(long)}, "pim": {Password: []byte("x"), PIM: 1 << 40},
		"key files": {KeyFiles: make([][]byte, 257)},
	} {
		if _, err := s.Seal(); err == nil {
			t.Errorf("%s: sealed", name)
		}
	}
	for _, text := range []string{"", "{}", "null", `{"format":2,"password":"eA=="}`, `{"format":1,"password":"eA==","unknown":1}`, `{"format":1,"password":"eA=="} x`, `{"format":1,"password":"eA==","pim":-1}`} {
		p := place(m, "veracrypt,hash=sha512,cipher=aes")
		_, err := veracrypt.Format{}.Open(context.Background(), p, diskcrypt.KindVeraCrypt, envelope.CopySecret([]byte(text)), diskcrypt.Limits{})
		if !errors.Is(err, diskcrypt.ErrWrongSecret) {
			t.Errorf("%s: %v", text, err)
		}
	}
	// A PIM is a number of iterations that the secret asks for.
	p := place(m, "veracrypt,hash=sha512,cipher=aes")
	for _, pim := range []uint64{1 << 20, 2_147_468} {
		_, err := veracrypt.Format{}.Open(context.Background(), p, diskcrypt.KindVeraCrypt, sealed(t, veracrypt.Secret{Password: []byte("x"), PIM: pim}), diskcrypt.Limits{KDFWork: 1 << 30})
		if !errors.Is(err, diskcrypt.ErrLimit) {
			t.Errorf("PIM %d: %v", pim, err)
		}
	}
	s := veracrypt.Secret{Password: []byte("a"), KeyFiles: [][]byte{{1}}, Hidden: true}
	b := sealed(t, s)
	var back map[string]any
	if err := json.Unmarshal(b.Expose(), &back); err != nil || back["format"] != 1.0 || back["hidden"] != true || back["keyfiles"] == nil {
		t.Errorf("%v %v", back, err)
	}
}
