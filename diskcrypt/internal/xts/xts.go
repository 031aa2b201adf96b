// Package xts is the XTS mode of IEEE 1619 over runs of sectors: the numbers of
// the sectors ascend by a fixed step, as in every disk encryption. It has no
// ciphertext stealing, since sectors are whole blocks. Its invariant: every
// path gives the same bytes; they differ in speed alone.
package xts

import (
	"crypto/aes"
	"crypto/cipher"
	"crypto/subtle"
	"encoding/binary"
	"fmt"
	"sync"
)

const blockSize = 16

// Cipher transforms runs of sectors in place. It is safe for concurrent use.
type Cipher struct {
	data, tweak cipher.Block
}

// New makes a Cipher of AES. key is the data key followed by the tweak key:
// 32, 48 or 64 bytes. It is used during the call only.
func New(key []byte) (*Cipher, error) {
	switch len(key) {
	case 32, 48, 64:
	default:
		return nil, fmt.Errorf("xts: key of %d bits", len(key)*8)
	}
	data, err := aes.NewCipher(key[:len(key)/2])
	if err != nil {
		return nil, fmt.Errorf("xts: %w", err)
	}
	tweak, err := aes.NewCipher(key[len(key)/2:])
	if err != nil {
		return nil, fmt.Errorf("xts: %w", err)
	}
	return &Cipher{data: data, tweak: tweak}, nil
}

// NewBlocks makes a Cipher of block ciphers of 16-byte blocks, which it keeps.
func NewBlocks(data, tweak cipher.Block) (*Cipher, error) {
	if data.BlockSize() != blockSize || tweak.BlockSize() != blockSize {
		return nil, fmt.Errorf("xts: blocks of %d and %d bytes", data.BlockSize(), tweak.BlockSize())
	}
	return &Cipher{data: data, tweak: tweak}, nil
}

// Decrypt replaces the ciphertext in b by its plaintext. b is a whole number of
// sectors, a sector a whole number of 16-byte blocks. The tweak of sector i is
// first + i*step (64 bits, wrapping) as 16 bytes little endian.
func (c *Cipher) Decrypt(b []byte, sectorSize int, first, step uint64) {
	c.run(b, sectorSize, first, step, c.data.Decrypt)
}

// Encrypt is the inverse of Decrypt.
func (c *Cipher) Encrypt(b []byte, sectorSize int, first, step uint64) {
	c.run(b, sectorSize, first, step, c.data.Encrypt)
}

// Wipe overwrites the key schedules that are the Cipher's own. It must not be
// used afterwards.
func (c *Cipher) Wipe() { c.data, c.tweak = nil, nil }

// scratch holds tweaks: all of a stretch are made first, so that the two xors
// run over the whole stretch at once.
var scratch = sync.Pool{New: func() any { return new([4096 + blockSize]byte) }}

func (c *Cipher) run(b []byte, sectorSize int, first, step uint64, do func(dst, src []byte)) {
	if sectorSize <= 0 || sectorSize%blockSize != 0 || len(b)%sectorSize != 0 {
		panic("xts: not a whole number of blocks and sectors")
	}
	buf := scratch.Get().(*[4096 + blockSize]byte)
	defer scratch.Put(buf)
	defer clear(buf[:])
	iv := buf[4096:]
	for ; len(b) > 0; b = b[sectorSize:] {
		clear(iv)
		binary.LittleEndian.PutUint64(iv, first)
		first += step
		c.tweak.Encrypt(iv, iv)
		sector(b[:sectorSize], buf[:4096], iv, do)
	}
}

// sector transforms b under the encrypted tweak t.
func sector(b, tweaks, t []byte, do func(dst, src []byte)) {
	lo, hi := binary.LittleEndian.Uint64(t), binary.LittleEndian.Uint64(t[8:])
	for len(b) > 0 {
		part := b[:min(len(b), len(tweaks))]
		b = b[len(part):]
		for i := 0; i < len(part); i += blockSize {
			binary.LittleEndian.PutUint64(tweaks[i:], lo)
			binary.LittleEndian.PutUint64(tweaks[i+8:], hi)
			carry := hi >> 63
			hi = hi<<1 | lo>>63
			lo = lo<<1 ^ carry*0x87
		}
		subtle.XORBytes(part, part, tweaks)
		for i := 0; i < len(part); i += blockSize {
			block := part[i : i+blockSize]
			do(block, block)
		}
		subtle.XORBytes(part, part, tweaks)
	}
}
