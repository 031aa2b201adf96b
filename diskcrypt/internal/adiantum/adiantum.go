// Package adiantum is the length-preserving encryption of that name (Crowley
// and Biggers, 2018) with XChaCha12 or XChaCha20, AES-256, NH and Poly1305: a
// sector is one block of it. Linux encrypts the disks of machines without AES
// instructions with it.
package adiantum

import (
	"crypto/aes"
	"crypto/cipher"
	"encoding/binary"
	"errors"
	"math/bits"

	//lint:ignore SA1019 Adiantum is made of the bare one-time authenticator
	"golang.org/x/crypto/poly1305"

	"github.com/lockstep-backup/lockstep/diskcrypt/internal/aesni"
)

const (
	// KeySize is in bytes.
	KeySize = 32
	// TweakSize is in bytes, as Linux has it.
	TweakSize = 32

	blockSize = 16
	nhMessage = 1024 // bytes that one NH hash covers
	nhUnit    = 16
	nhPasses  = 4
	nhKeySize = nhMessage + (nhPasses-1)*nhUnit
)

// Cipher transforms sectors in place. It is safe for concurrent use.
type Cipher struct {
	rounds int
	stream [8]uint32
	block  cipher.Block
	fast   *aesni.Key // block, where it is ours to wipe
	tweak  [32]byte   // Poly1305 key of tweak and length; its second half is zero
	mac    [32]byte   // Poly1305 key of NH's hashes; likewise
	nh     [nhKeySize / 4]uint32
}

// New makes a Cipher of ChaCha of 8, 12 or 20 rounds. The key is used during the call only.
func New(key []byte, rounds int) (*Cipher, error) {
	if len(key) != KeySize {
		return nil, errors.New("adiantum: a key has 32 bytes")
	}
	if rounds != 8 && rounds != 12 && rounds != 20 {
		return nil, errors.New("adiantum: ChaCha has 8, 12 or 20 rounds")
	}
	c := &Cipher{rounds: rounds}
	for i := range c.stream {
		c.stream[i] = binary.LittleEndian.Uint32(key[4*i:])
	}
	var derived [32 + 16 + 16 + nhKeySize]byte
	defer clear(derived[:])
	c.xor(derived[:], &[24]byte{0: 1})
	var err error
	if aesni.Supported() {
		c.fast, err = aesni.New(derived[:32])
		c.block = c.fast
	} else {
		c.block, err = aes.NewCipher(derived[:32])
	}
	if err != nil {
		return nil, err
	}
	copy(c.tweak[:], derived[32:48])
	copy(c.mac[:], derived[48:64])
	for i := range c.nh {
		c.nh[i] = binary.LittleEndian.Uint32(derived[64+4*i:])
	}
	return c, nil
}

// Encrypt encrypts sector, of at least 16 bytes, in place.
func (c *Cipher) Encrypt(sector []byte, tweak *[TweakSize]byte) {
	left, right := sector[:len(sector)-blockSize], sector[len(sector)-blockSize:]
	t := c.tweakHash(left, tweak)
	m := load(right).add(t).add(c.hash(left))
	var middle [blockSize]byte
	m.store(middle[:])
	c.block.Encrypt(middle[:], middle[:])
	c.xor(left, nonce(&middle))
	load(middle[:]).sub(t).sub(c.hash(left)).store(right)
}

// Decrypt is the inverse of Encrypt.
func (c *Cipher) Decrypt(sector []byte, tweak *[TweakSize]byte) {
	left, right := sector[:len(sector)-blockSize], sector[len(sector)-blockSize:]
	t := c.tweakHash(left, tweak)
	m := load(right).add(t).add(c.hash(left))
	var middle [blockSize]byte
	m.store(middle[:])
	c.xor(left, nonce(&middle))
	c.block.Decrypt(middle[:], middle[:])
	load(middle[:]).sub(t).sub(c.hash(left)).store(right)
}

// Wipe overwrites the keys that are the Cipher's own; without AES instructions
// crypto/aes keeps its schedule. The Cipher must not be used afterwards.
func (c *Cipher) Wipe() {
	c.fast.Wipe()
	*c = Cipher{}
}

func nonce(middle *[blockSize]byte) *[24]byte {
	n := [24]byte{blockSize: 1}
	copy(n[:], middle[:])
	return &n
}

// tweakHash is Poly1305 over the length in bits and the tweak.
func (c *Cipher) tweakHash(left []byte, tweak *[TweakSize]byte) sum {
	var b [16 + TweakSize]byte
	binary.LittleEndian.PutUint64(b[:], uint64(len(left))*8)
	copy(b[16:], tweak[:])
	var tag [16]byte
	poly1305.Sum(&tag, b[:], &c.tweak)
	return load(tag[:])
}

// hash is Poly1305 over the NH hashes of 1024 bytes each, the last one padded
// to whole units.
func (c *Cipher) hash(b []byte) sum {
	mac := poly1305.New(&c.mac)
	var out [8 * nhPasses]byte
	for len(b) >= nhMessage {
		c.nhHash(&out, b[:nhMessage])
		_, _ = mac.Write(out[:])
		b = b[nhMessage:]
	}
	if len(b) > 0 {
		var last [nhMessage]byte
		n := (copy(last[:], b) + nhUnit - 1) / nhUnit * nhUnit
		c.nhHash(&out, last[:n])
		_, _ = mac.Write(out[:])
	}
	var tag [16]byte
	mac.Sum(tag[:0])
	return load(tag[:])
}

// nhHash takes whole units: four passes, each with the key moved on by one.
func (c *Cipher) nhHash(out *[8 * nhPasses]byte, b []byte) {
	var s [nhPasses]uint64
	for u := 0; (u+1)*nhUnit <= len(b); u++ {
		m := b[u*nhUnit : (u+1)*nhUnit]
		m0, m1 := binary.LittleEndian.Uint32(m), binary.LittleEndian.Uint32(m[4:])
		m2, m3 := binary.LittleEndian.Uint32(m[8:]), binary.LittleEndian.Uint32(m[12:])
		k := (*[4 * nhPasses]uint32)(c.nh[4*u:])
		s[0] += uint64(m0+k[0])*uint64(m2+k[2]) + uint64(m1+k[1])*uint64(m3+k[3])
		s[1] += uint64(m0+k[4])*uint64(m2+k[6]) + uint64(m1+k[5])*uint64(m3+k[7])
		s[2] += uint64(m0+k[8])*uint64(m2+k[10]) + uint64(m1+k[9])*uint64(m3+k[11])
		s[3] += uint64(m0+k[12])*uint64(m2+k[14]) + uint64(m1+k[13])*uint64(m3+k[15])
	}
	for i, v := range s {
		binary.LittleEndian.PutUint64(out[8*i:], v)
	}
}

// sum is a number modulo 2^128.
type sum struct{ lo, hi uint64 }

func load(b []byte) sum {
	return sum{binary.LittleEndian.Uint64(b), binary.LittleEndian.Uint64(b[8:])}
}

func (s sum) store(b []byte) {
	binary.LittleEndian.PutUint64(b, s.lo)
	binary.LittleEndian.PutUint64(b[8:], s.hi)
}

func (s sum) add(t sum) sum {
	lo, carry := bits.Add64(s.lo, t.lo, 0)
	hi, _ := bits.Add64(s.hi, t.hi, carry)
	return sum{lo, hi}
}

func (s sum) sub(t sum) sum {
	lo, borrow := bits.Sub64(s.lo, t.lo, 0)
	hi, _ := bits.Sub64(s.hi, t.hi, borrow)
	return sum{lo, hi}
}
