package adiantum

import (
	"crypto/subtle"
	"encoding/binary"
	"math/bits"
)

// ChaCha of 12 rounds is why this is here: x/crypto has 20 only.

const chachaBlock = 64

// start is "expand 32-byte k".
func start(key *[8]uint32) (x [16]uint32) {
	x[0], x[1], x[2], x[3] = 0x61707865, 0x3320646e, 0x79622d32, 0x6b206574
	copy(x[4:12], key[:])
	return x
}

// xor applies the XChaCha key stream of a 24-byte nonce to b.
func (c *Cipher) xor(b []byte, nonce *[24]byte) {
	// HChaCha makes a key of the first 16 bytes.
	x := start(&c.stream)
	for i := range 4 {
		x[12+i] = binary.LittleEndian.Uint32(nonce[4*i:])
	}
	permute(&x, c.rounds)
	sub := [8]uint32{x[0], x[1], x[2], x[3], x[12], x[13], x[14], x[15]}

	s := start(&sub)
	s[14], s[15] = binary.LittleEndian.Uint32(nonce[16:]), binary.LittleEndian.Uint32(nonce[20:])
	var stream [chachaBlock]byte
	for len(b) > 0 {
		x = s
		permute(&x, c.rounds)
		for i, w := range x {
			binary.LittleEndian.PutUint32(stream[4*i:], w+s[i])
		}
		n := subtle.XORBytes(b, b, stream[:min(len(b), chachaBlock)])
		b = b[n:]
		if s[12]++; s[12] == 0 {
			s[13]++
		}
	}
	clear(stream[:])
	clear(sub[:])
}

func permute(x *[16]uint32, rounds int) {
	x0, x1, x2, x3, x4, x5, x6, x7 := x[0], x[1], x[2], x[3], x[4], x[5], x[6], x[7]
	x8, x9, x10, x11, x12, x13, x14, x15 := x[8], x[9], x[10], x[11], x[12], x[13], x[14], x[15]
	for i := 0; i < rounds; i += 2 {
		x0, x4, x8, x12 = quarter(x0, x4, x8, x12)
		x1, x5, x9, x13 = quarter(x1, x5, x9, x13)
		x2, x6, x10, x14 = quarter(x2, x6, x10, x14)
		x3, x7, x11, x15 = quarter(x3, x7, x11, x15)
		x0, x5, x10, x15 = quarter(x0, x5, x10, x15)
		x1, x6, x11, x12 = quarter(x1, x6, x11, x12)
		x2, x7, x8, x13 = quarter(x2, x7, x8, x13)
		x3, x4, x9, x14 = quarter(x3, x4, x9, x14)
	}
	*x = [16]uint32{x0, x1, x2, x3, x4, x5, x6, x7, x8, x9, x10, x11, x12, x13, x14, x15}
}

func quarter(a, b, c, d uint32) (uint32, uint32, uint32, uint32) {
	a += b
	d = bits.RotateLeft32(d^a, 16)
	c += d
	b = bits.RotateLeft32(b^c, 12)
	a += b
	d = bits.RotateLeft32(d^a, 8)
	c += d
	b = bits.RotateLeft32(b^c, 7)
	return a, b, c, d
}
