package cbc

import (
	"bytes"
	"crypto/aes"
	"crypto/cipher"
	"fmt"
	"math/rand/v2"
	"testing"
)

func random(seed byte, n int) []byte {
	b := make([]byte, n)
	_, _ = rand.NewChaCha8([32]byte{seed}).Read(b)
	return b
}

// The standard library decides, for sectors that end in the middle of a batch.
func TestAgainstTheStandardLibrary(t *testing.T) {
	for _, keySize := range []int{16, 24, 32} {
		key := random(byte(keySize), keySize)
		block, err := aes.NewCipher(key)
		if err != nil {
			t.Fatal(err)
		}
		auto, err := New(key)
		if err != nil {
			t.Fatal(err)
		}
		portable, err := NewBlock(block)
		if err != nil {
			t.Fatal(err)
		}
		for name, c := range map[string]*Cipher{"auto": auto, "portable": portable} {
			for _, size := range []int{0, 16, 112, 128, 144, 512, 4096, 4112, 3 * 4096} {
				t.Run(fmt.Sprintf("%s/%d/%d", name, keySize*8, size), func(t *testing.T) {
					iv := [16]byte(random(7, 16))
					plain := random(8, size)
					want := bytes.Clone(plain)
					cipher.NewCBCEncrypter(block, iv[:]).CryptBlocks(want, want)
					got := bytes.Clone(plain)
					c.Encrypt(got, &iv)
					if !bytes.Equal(got, want) {
						t.Fatal("ciphertext differs")
					}
					c.Decrypt(got, &iv)
					if !bytes.Equal(got, plain) {
						t.Fatal("plaintext differs")
					}
					b, e := iv, make([]byte, 16)
					c.EncryptBlock(&b)
					if block.Encrypt(e, iv[:]); !bytes.Equal(b[:], e) {
						t.Fatal("a block by itself differs")
					}
				})
			}
		}
	}
	if _, err := New(make([]byte, 20)); err == nil {
		t.Error("key of 160 bits accepted")
	}
}

func BenchmarkDecrypt(b *testing.B) {
	key := random(1, 32)
	block, _ := aes.NewCipher(key)
	auto, _ := New(key)
	portable, _ := NewBlock(block)
	buf := make([]byte, 1<<20)
	var iv [16]byte
	for name, c := range map[string]*Cipher{"auto": auto, "portable": portable} {
		b.Run(name, func(b *testing.B) {
			b.SetBytes(int64(len(buf)))
			for b.Loop() {
				for i := 0; i < len(buf); i += 512 {
					c.Decrypt(buf[i:i+512], &iv)
				}
			}
		})
	}
}
