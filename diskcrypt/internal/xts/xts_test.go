package xts

import (
	"bytes"
	"crypto/aes"
	"encoding/hex"
	"fmt"
	"math/rand/v2"
	"testing"

	judge "golang.org/x/crypto/xts"

	"github.com/lockstep-backup/lockstep/diskcrypt/internal/aesni"
)

func unhex(t *testing.T, s string) []byte {
	t.Helper()
	b, err := hex.DecodeString(s)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func random(seed uint64, n int) []byte {
	r := rand.NewChaCha8([32]byte{byte(seed), byte(seed >> 8)})
	b := make([]byte, n)
	_, _ = r.Read(b)
	return b
}

// paths are the implementations that this machine has.
func paths(t testing.TB, key []byte) map[string]*Cipher {
	t.Helper()
	portable, err := newPortable(key)
	if err != nil {
		t.Fatal(err)
	}
	all := map[string]*Cipher{"portable": portable}
	if aesni.Supported() {
		if all["asm"], err = New(key); err != nil {
			t.Fatal(err)
		}
	}
	return all
}

// The vectors of IEEE 1619-2007, annex B, that are whole blocks.
func TestVectorsOfTheStandard(t *testing.T) {
	upTo255 := make([]byte, 512)
	for i := range upTo255 {
		upTo255[i] = byte(i)
	}
	for i, v := range []struct {
		key    string
		number uint64
		plain  []byte
		start  string // of the ciphertext
	}{
		{"0000000000000000000000000000000000000000000000000000000000000000", 0, make([]byte, 32), "917cf69ebd68b2ec9b9fe9a3eadda692cd43d2f59598ed858c02c2652fbf922e"},
		{"1111111111111111111111111111111122222222222222222222222222222222", 0x3333333333, bytes.Repeat([]byte{0x44}, 32), "c454185e6a16936e39334038acef838bfb186fff7480adc4289382ecd6d394f0"},
		{"fffefdfcfbfaf9f8f7f6f5f4f3f2f1f022222222222222222222222222222222", 0x3333333333, bytes.Repeat([]byte{0x44}, 32), "af85336b597afc1a900b2eb21ec949d292df4c047e0b21532186a5971a227a89"},
		{"2718281828459045235360287471352631415926535897932384626433832795", 0, upTo255, "27a7479befa1d476489f308cd4cfa6e2a96e4bbe3208ff25287dd3819616e89c"},
		{"2718281828459045235360287471352662497757247093699959574966967627" + "3141592653589793238462643383279502884197169399375105820974944592", 0xff, upTo255, "1c3b3a102f770386e4836c99e370cf9bea00803f5e482357a4ae12d414a3e63b"},
	} {
		for name, c := range paths(t, unhex(t, v.key)) {
			got := bytes.Clone(v.plain)
			c.Encrypt(got, len(got), v.number, 1)
			if !bytes.HasPrefix(got, unhex(t, v.start)) {
				t.Errorf("vector %d, %s: ciphertext begins with %x", i, name, got[:32])
			}
			c.Decrypt(got, len(got), v.number, 1)
			if !bytes.Equal(got, v.plain) {
				t.Errorf("vector %d, %s: decrypting does not give the plaintext back", i, name)
			}
		}
	}
}

// TestAgainstXCrypto has an implementation that is not ours decide every key
// size, and sector sizes that end in the middle of a batch.
func TestAgainstXCrypto(t *testing.T) {
	for _, keySize := range []int{32, 48, 64} {
		key := random(uint64(keySize), keySize)
		ref, err := judge.NewCipher(aes.NewCipher, key)
		if err != nil {
			t.Fatal(err)
		}
		for _, size := range []int{16, 112, 128, 144, 448, 512, 1024, 4096, 4096 + 16, 3 * 4096} {
			for _, n := range []struct{ first, step uint64 }{{0, 1}, {7, 8}, {1<<32 - 1, 1}, {1<<64 - 1, 1}, {5, 0}} {
				plain := random(uint64(size), 9*size)
				want := bytes.Clone(plain)
				for i := range 9 {
					s := want[i*size : (i+1)*size]
					ref.Encrypt(s, s, n.first+uint64(i)*n.step)
				}
				for name, c := range paths(t, key) {
					what := fmt.Sprintf("%s, key of %d bits, sectors of %d bytes, numbers %d+%d", name, keySize*8, size, n.first, n.step)
					got := bytes.Clone(plain)
					c.Encrypt(got, size, n.first, n.step)
					if !bytes.Equal(got, want) {
						t.Fatalf("%s: ciphertext differs", what)
					}
					c.Decrypt(got, size, n.first, n.step)
					if !bytes.Equal(got, plain) {
						t.Fatalf("%s: plaintext differs", what)
					}
				}
			}
		}
	}
}

// A tweak of all 16 bytes: x/crypto cannot, so the portable path decides.
func TestSectorUnderAnyTweak(t *testing.T) {
	key := random(3, 64)
	tweak := [16]byte(random(4, 16))
	plain := random(5, 512)
	var ciphertexts [][]byte
	for name, c := range paths(t, key) {
		b := bytes.Clone(plain)
		c.EncryptSector(b, &tweak)
		ciphertexts = append(ciphertexts, bytes.Clone(b))
		c.DecryptSector(b, &tweak)
		if !bytes.Equal(b, plain) {
			t.Errorf("%s: decrypting does not give the plaintext back", name)
		}
	}
	// By hand, one block at a time.
	k1, _ := aes.NewCipher(key[:32])
	k2, _ := aes.NewCipher(key[32:])
	want := bytes.Clone(plain)
	var x [16]byte
	k2.Encrypt(x[:], tweak[:])
	for i := 0; i < len(want); i += 16 {
		for j := range x {
			want[i+j] ^= x[j]
		}
		k1.Encrypt(want[i:i+16], want[i:i+16])
		carry := byte(0)
		for j := range x {
			want[i+j] ^= x[j]
			x[j], carry = x[j]<<1|carry, x[j]>>7
		}
		x[0] ^= carry * 0x87
	}
	for _, c := range ciphertexts {
		if !bytes.Equal(c, want) {
			t.Error("ciphertext differs from the definition")
		}
	}
}

func TestKeysAndBlocks(t *testing.T) {
	for _, n := range []int{0, 16, 31, 33, 63, 65, 128} {
		if _, err := New(make([]byte, n)); err == nil {
			t.Errorf("key of %d bytes accepted", n)
		}
	}
	key := random(1, 64)
	k1, _ := aes.NewCipher(key[:32])
	k2, _ := aes.NewCipher(key[32:])
	blocks, err := NewBlocks(k1, k2)
	if err != nil {
		t.Fatal(err)
	}
	c, err := New(key)
	if err != nil {
		t.Fatal(err)
	}
	a, b := random(2, 4096), random(2, 4096)
	c.Encrypt(a, 512, 9, 1)
	blocks.Encrypt(b, 512, 9, 1)
	if !bytes.Equal(a, b) {
		t.Error("NewBlocks over AES differs from New")
	}
	for _, bad := range []struct{ n, size int }{{512, 0}, {512, 100}, {500, 512}, {520, 512}} {
		for name, c := range paths(t, key) {
			func() {
				defer func() {
					if recover() == nil {
						t.Errorf("%s: %d bytes in sectors of %d accepted", name, bad.n, bad.size)
					}
				}()
				c.Decrypt(make([]byte, bad.n), bad.size, 0, 1)
			}()
		}
	}
}

func TestNoAllocation(t *testing.T) {
	b := make([]byte, 1<<16)
	for name, c := range paths(t, random(1, 64)) {
		if n := testing.AllocsPerRun(20, func() { c.Decrypt(b, 512, 0, 1) }); n > 2 {
			t.Errorf("%s: %v allocations for a run", name, n)
		}
	}
}

func FuzzPathsAgree(f *testing.F) {
	f.Add(uint8(2), uint16(512), uint64(1<<63), uint64(8), []byte("a disk"))
	f.Fuzz(func(t *testing.T, keys uint8, size uint16, first, step uint64, seed []byte) {
		sector := (int(size)%5000/16 + 1) * 16
		key := random(uint64(len(seed)), 32+16*int(keys%3))
		b := make([]byte, sector*3)
		copy(b, seed)
		var last []byte
		for name, c := range paths(t, key) {
			got := bytes.Clone(b)
			c.Decrypt(got, sector, first, step)
			if last != nil && !bytes.Equal(got, last) {
				t.Fatal("the paths differ in decrypting")
			}
			last = bytes.Clone(got)
			c.Encrypt(got, sector, first, step)
			if !bytes.Equal(got, b) {
				t.Fatalf("%s: encrypting is not the inverse", name)
			}
		}
	})
}

func BenchmarkDecrypt(b *testing.B) {
	key := random(1, 64)
	for _, size := range []int{512, 4096} {
		buf := make([]byte, 1<<20)
		for name, c := range paths(b, key) {
			b.Run(fmt.Sprintf("%s/%d", name, size), func(b *testing.B) {
				b.SetBytes(int64(len(buf)))
				for b.Loop() {
					c.Decrypt(buf, size, 0, uint64(size/512))
				}
			})
		}
		ref, err := judge.NewCipher(aes.NewCipher, key)
		if err != nil {
			b.Fatal(err)
		}
		b.Run(fmt.Sprintf("xcrypto/%d", size), func(b *testing.B) {
			b.SetBytes(int64(len(buf)))
			for b.Loop() {
				for i := 0; i < len(buf); i += size {
					ref.Decrypt(buf[i:i+size], buf[i:i+size], uint64(i/512))
				}
			}
		})
	}
}
