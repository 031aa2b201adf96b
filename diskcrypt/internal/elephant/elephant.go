// Package elephant is the diffuser that BitLocker combined with AES-CBC until
// Windows 8: two passes over the 32-bit words of a sector without a key. The
// sector key that is xored beside it is the caller's business.
package elephant

import (
	"encoding/binary"
	"fmt"
	"math/bits"
)

var (
	rotateB = [4]int{0, 10, 0, 25}
	rotateA = [4]int{9, 0, 13, 0}
)

func check(sector []byte) {
	if len(sector) < 64 || len(sector)%32 != 0 {
		panic(fmt.Sprintf("elephant: sector of %d bytes", len(sector)))
	}
}

// Decrypt diffuses one sector in place in the direction of decryption (B then A).
func Decrypt(sector []byte) {
	check(sector)
	n := len(sector) / 4
	d := make([]uint32, n)
	for i := range d {
		d[i] = binary.LittleEndian.Uint32(sector[i*4:])
	}
	for range 3 {
		for i := range d {
			d[i] += d[(i+2)%n] ^ bits.RotateLeft32(d[(i+5)%n], rotateB[i%4])
		}
	}
	for range 5 {
		for i := range d {
			d[i] += d[(i+n-2)%n] ^ bits.RotateLeft32(d[(i+n-5)%n], rotateA[i%4])
		}
	}
	for i, w := range d {
		binary.LittleEndian.PutUint32(sector[i*4:], w)
	}
}

// Encrypt is the inverse of Decrypt.
func Encrypt(sector []byte) {
	check(sector)
	n := len(sector) / 4
	d := make([]uint32, n)
	for i := range d {
		d[i] = binary.LittleEndian.Uint32(sector[i*4:])
	}
	for range 5 {
		for i := n - 1; i >= 0; i-- {
			d[i] -= d[(i+n-2)%n] ^ bits.RotateLeft32(d[(i+n-5)%n], rotateA[i%4])
		}
	}
	for range 3 {
		for i := n - 1; i >= 0; i-- {
			d[i] -= d[(i+2)%n] ^ bits.RotateLeft32(d[(i+5)%n], rotateB[i%4])
		}
	}
	for i, w := range d {
		binary.LittleEndian.PutUint32(sector[i*4:], w)
	}
}
