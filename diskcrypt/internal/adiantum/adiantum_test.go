package adiantum

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"testing"

	judge "lukechampine.com/adiantum"
	"lukechampine.com/adiantum/hbsh"
)

func random(seed byte, n int) []byte {
	b := make([]byte, n)
	_, _ = rand.NewChaCha8([32]byte{seed}).Read(b)
	return b
}

// TestAgainstAnotherImplementation: the judge is held to the vectors that the
// authors of Adiantum published, which Linux tests itself by as well.
func TestAgainstAnotherImplementation(t *testing.T) {
	for rounds, other := range map[int]func([]byte) *hbsh.HBSH{8: judge.New8, 12: judge.New, 20: judge.New20} {
		key := random(byte(rounds), KeySize)
		c, err := New(key, rounds)
		if err != nil {
			t.Fatal(err)
		}
		for _, size := range []int{16, 17, 31, 32, 128, 512, 1024 + 16, 1024 + 17, 1536, 2048, 4096} {
			t.Run(fmt.Sprintf("%d/%d", rounds, size), func(t *testing.T) {
				tweak := [TweakSize]byte(random(3, TweakSize))
				plain := random(4, size)
				want := other(key).Encrypt(bytes.Clone(plain), tweak[:])
				got := bytes.Clone(plain)
				c.Encrypt(got, &tweak)
				if !bytes.Equal(got, want) {
					t.Fatal("ciphertext differs")
				}
				c.Decrypt(got, &tweak)
				if !bytes.Equal(got, plain) {
					t.Fatal("decrypting does not give the plaintext back")
				}
			})
		}
	}
}

func TestKeysAndRounds(t *testing.T) {
	if _, err := New(make([]byte, 31), 12); err == nil {
		t.Error("key of 31 bytes accepted")
	}
	if _, err := New(make([]byte, 32), 10); err == nil {
		t.Error("10 rounds accepted")
	}
}

func BenchmarkDecrypt(b *testing.B) {
	c, err := New(random(1, KeySize), 12)
	if err != nil {
		b.Fatal(err)
	}
	buf := make([]byte, 4096)
	b.SetBytes(4096)
	var tweak [TweakSize]byte
	for b.Loop() {
		c.Decrypt(buf, &tweak)
	}
}
