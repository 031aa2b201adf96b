package aesni

import (
	"bytes"
	"crypto/aes"
	"errors"
	"math/rand/v2"
	"testing"
)

// The modes are held to other implementations by the packages that use them.
func TestBlockAgainstTheStandardLibrary(t *testing.T) {
	if !Supported() {
		t.Skip("this build or processor has no AES instructions")
	}
	r := rand.NewChaCha8([32]byte{1})
	for _, size := range []int{16, 24, 32} {
		for range 50 {
			key, in := make([]byte, size), make([]byte, BlockSize)
			_, _ = r.Read(key)
			_, _ = r.Read(in)
			want, err := aes.NewCipher(key)
			if err != nil {
				t.Fatal(err)
			}
			k, err := New(key)
			if err != nil {
				t.Fatal(err)
			}
			a, b := make([]byte, BlockSize), make([]byte, BlockSize)
			want.Encrypt(a, in)
			if k.Encrypt(b, in); !bytes.Equal(a, b) {
				t.Fatalf("key of %d bits: encrypting differs", size*8)
			}
			if k.Decrypt(b, b); !bytes.Equal(b, in) {
				t.Fatalf("key of %d bits: decrypting is not the inverse", size*8)
			}
			k.Wipe()
			if *k != (Key{}) {
				t.Fatal("something of the key is left")
			}
		}
	}
	var size KeySizeError
	if _, err := New(make([]byte, 17)); !errors.As(err, &size) || size != 17 {
		t.Errorf("key of 17 bytes: %v", err)
	}
}

// A key that was wiped must not go on as the key of zeros.
func TestWipedKeysAreRefused(t *testing.T) {
	if !Supported() {
		t.Skip("this build or processor has no AES instructions")
	}
	k, err := New(make([]byte, 32))
	if err != nil {
		t.Fatal(err)
	}
	k.Wipe()
	var iv [BlockSize]byte
	for name, use := range map[string]func(){
		"xts": func() { k.DecryptXTS(k, make([]byte, 512), 512, &iv, 1) },
		"cbc": func() { k.EncryptCBC(make([]byte, 512), &iv) },
	} {
		func() {
			defer func() {
				if recover() == nil {
					t.Errorf("%s: a wiped key is used", name)
				}
			}()
			use()
		}()
	}
}
