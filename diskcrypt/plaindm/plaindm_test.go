package plaindm_test

import (
	"bytes"
	"context"
	"crypto/aes"
	"crypto/cipher"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/crypto/ripemd160" //lint:ignore SA1019 cryptsetup's default until 2.6
	"golang.org/x/crypto/xts"

	"github.com/lockstep-backup/lockstep/diskcrypt"
	"github.com/lockstep-backup/lockstep/diskcrypt/diskcrypttest"
	"github.com/lockstep-backup/lockstep/diskcrypt/plaindm"
	"github.com/lockstep-backup/lockstep/envelope"
	"github.com/lockstep-backup/lockstep/internal/judge"
)

const size = 4 << 20

// fileSystem is an ext4 that mkfs made, the same in each run.
func fileSystem(t *testing.T) []byte {
	t.Helper()
	path := filepath.Join(t.TempDir(), "fs")
	if err := os.WriteFile(path, make([]byte, size), 0o600); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(judge.Tool(t, "mkfs.ext4"), "-q", "-F", "-U", "11111111-2222-3333-4444-555555555555", path)
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("mkfs.ext4: %v: %s", err, out)
	}
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// encryptXTS is aes-xts-plain64 by another implementation.
func encryptXTS(t *testing.T, plain, key []byte, skip uint64, sector int) []byte {
	t.Helper()
	c, err := xts.NewCipher(aes.NewCipher, key)
	if err != nil {
		t.Fatal(err)
	}
	out := make([]byte, len(plain))
	for i := 0; i < len(plain); i += sector {
		c.Encrypt(out[i:i+sector], plain[i:i+sector], skip+uint64(i/512))
	}
	return out
}

// encryptESSIV is aes-cbc-essiv:sha256 by the standard library.
func encryptESSIV(t *testing.T, plain, key []byte) []byte {
	t.Helper()
	data, err := aes.NewCipher(key)
	if err != nil {
		t.Fatal(err)
	}
	salt := sha256.Sum256(key)
	ivs, err := aes.NewCipher(salt[:])
	if err != nil {
		t.Fatal(err)
	}
	out := make([]byte, len(plain))
	for i := 0; i < len(plain); i += 512 {
		iv := make([]byte, 16)
		binary.LittleEndian.PutUint64(iv, uint64(i/512))
		ivs.Encrypt(iv, iv)
		cipher.NewCBCEncrypter(data, iv).CryptBlocks(out[i:i+512], plain[i:i+512])
	}
	return out
}

func place(t *testing.T, b []byte, text string) diskcrypt.Place {
	t.Helper()
	d, err := diskcrypt.ParseDeclaration(text)
	if err != nil {
		t.Fatal(err)
	}
	return diskcrypt.Place{Data: bytes.NewReader(b), Size: int64(len(b)), Declared: d}
}

func TestConformance(t *testing.T) {
	plain := fileSystem(t)
	pass := []byte("a passphrase of plain dm-crypt")
	half := sha256.Sum256(pass)
	second := sha256.Sum256(append([]byte("A"), pass...))
	long := append(half[:], second[:]...)
	old := ripemd160.New()
	old.Write(pass)
	oldKey := old.Sum(nil)
	old.Reset()
	old.Write(append([]byte("A"), pass...))
	oldKey = append(oldKey, old.Sum(nil)...)[:32]
	keyFile := bytes.Repeat([]byte("key file"), 20)
	one := []string{"key"}
	wrong := diskcrypttest.Secret{Kind: diskcrypt.KindPassphrase, Bytes: []byte("another")}
	shifted := append(make([]byte, 8*512), encryptXTS(t, plain, half[:], 0, 512)...)

	diskcrypttest.Run(t, plaindm.Format{}, []diskcrypttest.Volume{
		{
			Name: "defaults since 2.7", Type: diskcrypt.TypePlain, Plain: plain, Wrong: wrong,
			Place: place(t, encryptXTS(t, plain, half[:], 0, 512), "dm-crypt,cipher=aes-xts-plain64,size=256,hash=sha256"),
			Secrets: []diskcrypttest.Secret{
				{Kind: diskcrypt.KindPassphrase, Bytes: pass, Protectors: one},
				{Kind: diskcrypt.KindVolumeKey, Bytes: half[:], Protectors: []string{"volume-key"}},
			},
		},
		{
			Name: "defaults before 2.7", Type: diskcrypt.TypePlain, Plain: plain, Wrong: wrong,
			Place:   place(t, encryptESSIV(t, plain, oldKey), "dm-crypt,cipher=aes-cbc-essiv:sha256,size=256,hash=ripemd160"),
			Secrets: []diskcrypttest.Secret{{Kind: diskcrypt.KindPassphrase, Bytes: pass, Protectors: one}},
		},
		{
			Name: "two rounds of the hash, skip", Type: diskcrypt.TypePlain, Plain: plain, Wrong: wrong,
			Place:   place(t, encryptXTS(t, plain, long, 77, 512), "dm-crypt,cipher=aes-xts-plain64,size=512,hash=sha256,skip=77"),
			Secrets: []diskcrypttest.Secret{{Kind: diskcrypt.KindPassphrase, Bytes: pass, Protectors: one}},
		},
		{
			Name: "key file, sectors of 4096", Type: diskcrypt.TypePlain, Plain: plain, Wrong: wrong,
			Place:   place(t, encryptXTS(t, plain, keyFile[:64], 0, 4096), "dm-crypt,cipher=aes-xts-plain64,size=512,hash=plain,sector-size=4096"),
			Secrets: []diskcrypttest.Secret{{Kind: diskcrypt.KindKeyFile, Bytes: keyFile[:64], Protectors: one, Prefix: true}},
		},
	})
	// Numbers of whole sectors.
	c, err := xts.NewCipher(aes.NewCipher, half[:])
	if err != nil {
		t.Fatal(err)
	}
	large := make([]byte, size)
	for i := 0; i < size; i += 4096 {
		c.Encrypt(large[i:i+4096], plain[i:i+4096], uint64(i/4096))
	}
	whole, err := plaindm.Format{}.Open(context.Background(), place(t, large, "dm-crypt,cipher=aes-xts-plain64,size=256,hash=sha256,sector-size=4096,iv-large-sectors=yes"),
		diskcrypt.KindPassphrase, envelope.CopySecret(pass), diskcrypt.Limits{})
	if err != nil {
		t.Fatal(err)
	}
	defer whole.Close()
	{
		b := make([]byte, size)
		if _, err := whole.ReadAt(b, 0); err != nil && !errors.Is(err, io.EOF) || !bytes.Equal(b, plain) {
			t.Errorf("iv-large-sectors: %v", err)
		}
	}
	// The offset moves the data and not their numbers.
	o, err := plaindm.Format{}.Open(context.Background(), place(t, shifted, "dm-crypt,cipher=aes-xts-plain64,size=256,hash=sha256,offset=8"),
		diskcrypt.KindPassphrase, envelope.CopySecret(pass), diskcrypt.Limits{})
	if err != nil {
		t.Fatal(err)
	}
	defer o.Close()
	got := make([]byte, size)
	if _, err := o.ReadAt(got, 0); err != nil && !errors.Is(err, io.EOF) || !bytes.Equal(got, plain) {
		t.Errorf("behind an offset: %v", err)
	}
	if o.KeyCheck() != "plain-checksum-ext4" {
		t.Errorf("key check %q", o.KeyCheck())
	}
}

// The only check is what is recognised: where there is nothing, it is said so.
func TestNothingRecognised(t *testing.T) {
	key := sha256.Sum256([]byte("right"))
	b := make([]byte, 1<<20)
	_, _ = rand.NewChaCha8([32]byte{1}).Read(b)
	p := place(t, encryptXTS(t, b, key[:], 0, 512), "dm-crypt,cipher=aes-xts-plain64,size=256,hash=sha256")
	_, err := plaindm.Format{}.Open(context.Background(), p, diskcrypt.KindPassphrase, envelope.CopySecret([]byte("right")), diskcrypt.Limits{})
	if !errors.Is(err, diskcrypt.ErrWrongSecret) || !strings.Contains(err.Error(), "nothing is recognised") {
		t.Errorf("%v", err)
	}
}

// Keys as "cryptsetup open --type plain" makes them: printf 'AA…PASS' | sha256sum.
func TestHashLength(t *testing.T) {
	want, err := hex.DecodeString(strings.Repeat("78", 16) + strings.Repeat("00", 16))
	if err != nil {
		t.Fatal(err)
	}
	plain := fileSystem(t)
	p := place(t, encryptXTS(t, plain, want, 0, 512), "dm-crypt,cipher=aes-xts-plain64,size=256,hash=plain:16")
	o, err := plaindm.Format{}.Open(context.Background(), p, diskcrypt.KindPassphrase, envelope.CopySecret([]byte(strings.Repeat("x", 20))), diskcrypt.Limits{})
	if err != nil {
		t.Fatal(err)
	}
	o.Close()
}

func TestDeclarations(t *testing.T) {
	b := make([]byte, 1<<20)
	const good = "dm-crypt,cipher=aes-xts-plain64,size=256,hash=sha256"
	for _, c := range []struct {
		text        string
		unsupported string // "" = the declaration cannot be
	}{
		{"dm-crypt", ""},
		{"dm-crypt,cipher=aes-xts-plain64,size=256", ""},
		{strings.Replace(good, "256", "255", 1), ""},
		{strings.Replace(good, "256", "0", 1), ""},
		{strings.Replace(good, "256", "99999", 1), ""},
		{good + ",offset=-1", ""},
		{good + ",offset=99999999999999999999", ""},
		{good + ",sector-size=513", ""},
		{good + ",sector-size=8192", ""},
		{good + ",iv-large-sectors=maybe", ""},
		{strings.Replace(good, "sha256", "sha256:33", 1), ""},
		{strings.Replace(good, "256", "320", 1), "320 bits"},
		{strings.Replace(good, "sha256", "md5", 1), `hash "md5"`},
		{strings.Replace(good, "aes-xts-plain64", "rot13-ecb", 1), "rot13-ecb"},
	} {
		p := place(t, b, c.text)
		v, err := plaindm.Format{}.Inspect(context.Background(), p)
		_, operr := plaindm.Format{}.Open(context.Background(), p, diskcrypt.KindPassphrase, envelope.CopySecret([]byte("x")), diskcrypt.Limits{})
		if c.unsupported == "" {
			if !errors.Is(err, diskcrypt.ErrDeclaration) || !errors.Is(operr, diskcrypt.ErrDeclaration) {
				t.Errorf("%s: %v, %v", c.text, err, operr)
			}
			continue
		}
		if err != nil || !strings.Contains(v.Unsupported, c.unsupported) || !errors.Is(operr, diskcrypt.ErrUnsupported) {
			t.Errorf("%s: %+v %v, %v", c.text, v, err, operr)
		}
	}
	if _, err := (plaindm.Format{}).Inspect(context.Background(), place(t, b, good+",offset=2048")); !errors.Is(err, diskcrypt.ErrNotThisFormat) {
		t.Errorf("all of the place is before the offset: %v", err)
	}
}

func FuzzDeclaration(f *testing.F) {
	f.Add("dm-crypt,cipher=aes-xts-plain64,size=256,hash=sha256,offset=8,skip=3,sector-size=4096,iv-large-sectors=yes")
	f.Fuzz(func(t *testing.T, s string) {
		d, err := diskcrypt.ParseDeclaration(s)
		if err != nil {
			return
		}
		p := diskcrypt.Place{Data: bytes.NewReader(make([]byte, 64<<10)), Size: 64 << 10, Declared: d}
		if _, err := (plaindm.Format{}).Inspect(context.Background(), p); err != nil {
			return
		}
		_, _ = plaindm.Format{}.Open(context.Background(), p, diskcrypt.KindPassphrase, envelope.CopySecret([]byte("x")), diskcrypt.Limits{})
	})
}
