package keyslot

import (
	"bytes"
	"crypto/pbkdf2"
	"crypto/sha256"
	"hash"
	"testing"
)

// crypto/pbkdf2 decides; it takes any hash.
func TestPBKDF2(t *testing.T) {
	for _, name := range []string{"sha1", "sha224", "sha256", "sha384", "sha512", "ripemd160", "whirlpool"} {
		newHash, err := NewHash(name)
		if err != nil {
			t.Fatal(err)
		}
		for _, password := range []int{0, 1, 63, 64, 65, 128, 129, 300} {
			for _, keyLen := range []int{1, 20, 32, 64, 96, 192} {
				for _, iterations := range []int{1, 2, 7} {
					p, salt := bytes.Repeat([]byte{0xa5}, password), []byte("salt")
					want, err := pbkdf2.Key(newHash, string(p), salt, iterations, keyLen)
					if err != nil {
						t.Fatal(err)
					}
					if got := pbkdf2Key(newHash, p, salt, uint64(iterations), keyLen); !bytes.Equal(got, want) {
						t.Errorf("%s, %d bytes, %d iterations, %d bytes of password: %x, want %x", name, keyLen, iterations, password, got, want)
					}
				}
			}
		}
	}
}

// plainHash hides what else a hash can do.
type plainHash struct{ hash.Hash }

func TestPBKDF2WithoutStates(t *testing.T) {
	newHash := func() hash.Hash { return plainHash{sha256.New()} }
	got, want := pbkdf2Key(newHash, []byte("p"), []byte("s"), 3, 40), pbkdf2Key(sha256.New, []byte("p"), []byte("s"), 3, 40)
	if !bytes.Equal(got, want) {
		t.Errorf("%x, want %x", got, want)
	}
}

func BenchmarkPBKDF2(b *testing.B) {
	b.Run("ours", func(b *testing.B) {
		for b.Loop() {
			pbkdf2Key(sha256.New, []byte("passphrase"), []byte("salt"), 10_000, 64)
		}
	})
	b.Run("crypto", func(b *testing.B) {
		for b.Loop() {
			if _, err := pbkdf2.Key(sha256.New, "passphrase", []byte("salt"), 10_000, 64); err != nil {
				b.Fatal(err)
			}
		}
	})
}
