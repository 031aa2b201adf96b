// Package elephant is the diffuser that BitLocker combined with AES-CBC until
// Windows 8: two passes over the 32-bit words of a sector without a key. The
// sector key that is xored beside it is the caller's business.
package elephant

import (
	"encoding/binary"
	"fmt"
	"math/bits"
	"sync"
)

const (
	maxWords = 1024 // of a sector of 4096 bytes
	cyclesA  = 5
	cyclesB  = 3
)

// What the words are rotated by, by their index modulo 4.
var (
	rotateA = [4]int{9, 0, 13, 0}
	rotateB = [4]int{0, 10, 0, 25}
)

// scratch is wiped before it goes back: it held plaintext.
var scratch = sync.Pool{New: func() any { return new([maxWords]uint32) }}

// words runs f over the words of a sector, little endian.
func words(sector []byte, f func(d []uint32)) {
	n := len(sector) / 4
	if n < 16 || n > maxWords || len(sector)%16 != 0 {
		panic(fmt.Sprintf("elephant: sector of %d bytes", len(sector)))
	}
	buf := scratch.Get().(*[maxWords]uint32)
	defer scratch.Put(buf)
	d := buf[:n]
	for i := range d {
		d[i] = binary.LittleEndian.Uint32(sector[i*4:])
	}
	f(d)
	for i, w := range d {
		binary.LittleEndian.PutUint32(sector[i*4:], w)
	}
	clear(d)
}

// Decrypt diffuses one sector, of 64 to 4096 bytes, in place in the direction
// of decryption: B, then A.
func Decrypt(sector []byte) { words(sector, decrypt) }

// Encrypt is the inverse of Decrypt.
func Encrypt(sector []byte) { words(sector, encrypt) }

// The loops take four words at a time, whose rotations are fixed, and go round
// the end of the sector word by word.

func decrypt(d []uint32) {
	n := len(d)
	for range cyclesB {
		for i := 0; i < n-8; i += 4 {
			w := (*[9]uint32)(d[i:])
			w[0] += w[2] ^ w[5]
			w[1] += w[3] ^ bits.RotateLeft32(w[6], 10)
			w[2] += w[4] ^ w[7]
			w[3] += w[5] ^ bits.RotateLeft32(w[8], 25)
		}
		for i := n - 8; i < n; i++ {
			d[i] += d[(i+2)%n] ^ bits.RotateLeft32(d[(i+5)%n], rotateB[i%4])
		}
	}
	for range cyclesA {
		for i := range 8 {
			d[i] += d[(i+n-2)%n] ^ bits.RotateLeft32(d[(i+n-5)%n], rotateA[i%4])
		}
		for i := 8; i < n; i += 4 {
			w := (*[9]uint32)(d[i-5:])
			w[5] += w[3] ^ bits.RotateLeft32(w[0], 9)
			w[6] += w[4] ^ w[1]
			w[7] += w[5] ^ bits.RotateLeft32(w[2], 13)
			w[8] += w[6] ^ w[3]
		}
	}
}

func encrypt(d []uint32) {
	n := len(d)
	for range cyclesA {
		for i := n - 4; i >= 8; i -= 4 {
			w := (*[9]uint32)(d[i-5:])
			w[8] -= w[6] ^ w[3]
			w[7] -= w[5] ^ bits.RotateLeft32(w[2], 13)
			w[6] -= w[4] ^ w[1]
			w[5] -= w[3] ^ bits.RotateLeft32(w[0], 9)
		}
		for i := 7; i >= 0; i-- {
			d[i] -= d[(i+n-2)%n] ^ bits.RotateLeft32(d[(i+n-5)%n], rotateA[i%4])
		}
	}
	for range cyclesB {
		for i := n - 1; i >= n-8; i-- {
			d[i] -= d[(i+2)%n] ^ bits.RotateLeft32(d[(i+5)%n], rotateB[i%4])
		}
		for i := n - 12; i >= 0; i -= 4 {
			w := (*[9]uint32)(d[i:])
			w[3] -= w[5] ^ bits.RotateLeft32(w[8], 25)
			w[2] -= w[4] ^ w[7]
			w[1] -= w[3] ^ bits.RotateLeft32(w[6], 10)
			w[0] -= w[2] ^ w[5]
		}
	}
}
