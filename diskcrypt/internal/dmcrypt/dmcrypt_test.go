package dmcrypt

import (
	"bytes"
	"crypto/aes"
	"crypto/cipher"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"testing"

	"golang.org/x/crypto/xts"
)

func seq(n int) []byte {
	b := make([]byte, n)
	for i := range b {
		b[i] = byte(i*7 + i>>8)
	}
	return b
}

// TestXTSAgainstXCrypto lets an implementation that is not ours decide every
// key size, sector size and a sector number beyond 32 bits.
func TestXTSAgainstXCrypto(t *testing.T) {
	for _, keyBytes := range []int{32, 64} {
		for _, size := range []int{512, 1024, 2048, 4096} {
			for _, unit := range []uint64{0, 8, 1<<32 + 16} {
				t.Run(fmt.Sprintf("%d/%d/%d", keyBytes*8, size, unit), func(t *testing.T) {
					key := seq(keyBytes)
					c, err := New("aes-xts-plain64", key, size)
					if err != nil {
						t.Fatal(err)
					}
					ref, err := xts.NewCipher(aes.NewCipher, key)
					if err != nil {
						t.Fatal(err)
					}
					plain := seq(4096 * 2)
					want := bytes.Clone(plain)
					for i := 0; i < len(want); i += size {
						ref.Encrypt(want[i:i+size], want[i:i+size], unit+uint64(i/512))
					}
					got := bytes.Clone(plain)
					c.Encrypt(got, unit)
					if !bytes.Equal(got, want) {
						t.Fatal("ciphertext differs from x/crypto/xts")
					}
					c.Decrypt(got, unit)
					if !bytes.Equal(got, plain) {
						t.Fatal("decrypting does not give the plaintext back")
					}
				})
			}
		}
	}
}

func TestCBCAgainstStandardLibrary(t *testing.T) {
	key := seq(32)
	salt := sha256.Sum256(key)
	essiv, _ := aes.NewCipher(salt[:])
	block, _ := aes.NewCipher(key)
	ivs := map[string]func(iv []byte, unit uint64){
		"plain":   func(iv []byte, u uint64) { binary.LittleEndian.PutUint32(iv, uint32(u)) },
		"plain64": func(iv []byte, u uint64) { binary.LittleEndian.PutUint64(iv, u) },
		"essiv:sha256": func(iv []byte, u uint64) {
			binary.LittleEndian.PutUint64(iv, u)
			essiv.Encrypt(iv, iv)
		},
	}
	for name, makeIV := range ivs {
		t.Run(name, func(t *testing.T) {
			c, err := New("aes-cbc-"+name, key, 512)
			if err != nil {
				t.Fatal(err)
			}
			plain := seq(2048)
			want := bytes.Clone(plain)
			unit := uint64(1<<32 + 3)
			for i := 0; i < len(want); i += 512 {
				iv := make([]byte, 16)
				makeIV(iv, unit+uint64(i/512))
				cipher.NewCBCEncrypter(block, iv).CryptBlocks(want[i:i+512], want[i:i+512])
			}
			got := bytes.Clone(plain)
			c.Encrypt(got, unit)
			if !bytes.Equal(got, want) {
				t.Fatal("ciphertext differs from crypto/cipher")
			}
			c.Decrypt(got, unit)
			if !bytes.Equal(got, plain) {
				t.Fatal("decrypting does not give the plaintext back")
			}
		})
	}
}

func TestRefusals(t *testing.T) {
	for _, s := range []string{
		"serpent-xts-plain64", "twofish-xts-plain64", "camellia-xts-plain64", "aes-lrw-plain64", "aes-xts-essiv:wp256",
		"xchacha12,aes-adiantum-plain64", "capi:authenc(hmac(sha256),xts(aes))-plain64", "aes", "aes-ecb", "", "-", "aes-xts",
	} {
		if _, err := New(s, seq(64), 512); !errors.Is(err, ErrUnsupported) {
			t.Errorf("%q: %v, want ErrUnsupported", s, err)
		}
	}
	if _, err := New("aes-xts-plain64", seq(31), 512); !errors.Is(err, ErrUnsupported) {
		t.Errorf("31-byte key: %v", err)
	}
	if _, err := New("aes-xts-plain64", seq(64), 8192); err == nil {
		t.Error("sector size 8192 accepted")
	}
}

func TestNullCipherIsIdentity(t *testing.T) {
	c, err := New("cipher_null-ecb", nil, 512)
	if err != nil {
		t.Fatal(err)
	}
	b := seq(1024)
	c.Decrypt(b, 5)
	if !bytes.Equal(b, seq(1024)) {
		t.Fatal("the null cipher changed bytes")
	}
}

func TestDecryptAllocatesOncePerRun(t *testing.T) {
	c, _ := New("aes-xts-plain64", seq(64), 512)
	b := seq(1 << 20)
	if n := testing.AllocsPerRun(10, func() { c.Decrypt(b, 0) }); n > 4 {
		t.Fatalf("%v allocations for 2048 sectors", n)
	}
}

func BenchmarkDecrypt(b *testing.B) {
	for _, s := range []string{"aes-xts-plain64", "aes-cbc-essiv:sha256"} {
		b.Run(s, func(b *testing.B) {
			key := seq(64)
			if s != "aes-xts-plain64" {
				key = seq(32)
			}
			c, _ := New(s, key, 512)
			buf := seq(1 << 20)
			b.SetBytes(1 << 20)
			for b.Loop() {
				c.Decrypt(buf, 0)
			}
		})
	}
}
