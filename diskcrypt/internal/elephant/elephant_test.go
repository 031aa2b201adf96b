package elephant

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"math/bits"
	"math/rand/v2"
	"testing"
)

func random(n int) []byte {
	b := make([]byte, n)
	_, _ = rand.NewChaCha8([32]byte{byte(n), byte(n >> 8)}).Read(b)
	return b
}

// definition is the diffuser as it is written down, word by word.
func definition(sector []byte) {
	n := len(sector) / 4
	d := make([]uint32, n)
	for i := range d {
		d[i] = binary.LittleEndian.Uint32(sector[4*i:])
	}
	for range 3 {
		for i := range n {
			d[i] += d[(i+2)%n] ^ bits.RotateLeft32(d[(i+5)%n], []int{0, 10, 0, 25}[i%4])
		}
	}
	for range 5 {
		for i := range n {
			d[i] += d[(i-2+n)%n] ^ bits.RotateLeft32(d[(i-5+n)%n], []int{9, 0, 13, 0}[i%4])
		}
	}
	for i, w := range d {
		binary.LittleEndian.PutUint32(sector[4*i:], w)
	}
}

// BitLocker images decide the definition, in diskcrypt/bitlocker; here the fast
// loops are held to it.
func TestAgainstTheDefinition(t *testing.T) {
	for _, size := range []int{64, 80, 512, 1024, 4096} {
		t.Run(fmt.Sprint(size), func(t *testing.T) {
			in := random(size)
			want, got := bytes.Clone(in), bytes.Clone(in)
			definition(want)
			if Decrypt(got); !bytes.Equal(got, want) {
				t.Error("differs from the definition")
			}
			if Encrypt(got); !bytes.Equal(got, in) {
				t.Error("encrypting is not the inverse")
			}
		})
	}
}

func BenchmarkDecrypt(b *testing.B) {
	for _, size := range []int{512, 4096} {
		b.Run(fmt.Sprint(size), func(b *testing.B) {
			s := random(size)
			b.SetBytes(int64(size))
			for b.Loop() {
				Decrypt(s)
			}
		})
	}
}
