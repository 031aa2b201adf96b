// Package cbc is AES and other block ciphers in CBC mode, a sector at a time
// and in place. Its invariant: every path gives the same bytes; they differ in
// speed alone.
package cbc

import (
	"crypto/aes"
	"crypto/cipher"
	"crypto/subtle"
	"fmt"
	"sync"

	"github.com/lockstep-backup/lockstep/diskcrypt/internal/aesni"
)

const blockSize = 16

// Cipher transforms sectors in place. It is safe for concurrent use.
type Cipher struct {
	block cipher.Block
	fast  *aesni.Key // nil: not AES, or not this processor
}

// New makes a Cipher of AES with a key of 16, 24 or 32 bytes, which is used
// during the call only.
func New(key []byte) (*Cipher, error) {
	if aesni.Supported() {
		k, err := aesni.New(key)
		if err != nil {
			return nil, fmt.Errorf("cbc: %w", err)
		}
		return &Cipher{block: k, fast: k}, nil
	}
	k, err := aes.NewCipher(key)
	if err != nil {
		return nil, fmt.Errorf("cbc: key of %d bits", len(key)*8)
	}
	return &Cipher{block: k}, nil
}

// NewBlock makes a Cipher of a block cipher of 16-byte blocks, which it keeps.
func NewBlock(block cipher.Block) (*Cipher, error) {
	if block.BlockSize() != blockSize {
		return nil, fmt.Errorf("cbc: blocks of %d bytes", block.BlockSize())
	}
	return &Cipher{block: block}, nil
}

// EncryptBlock encrypts one block, as IVs are made of numbers.
func (c *Cipher) EncryptBlock(b *[16]byte) { c.block.Encrypt(b[:], b[:]) }

// scratch holds what the xor of a sector needs of its ciphertext.
var scratch = sync.Pool{New: func() any { return new([4096]byte) }}

// Decrypt replaces the ciphertext in sector, whole blocks, by its plaintext.
func (c *Cipher) Decrypt(sector []byte, iv *[16]byte) {
	check(sector)
	if c.fast != nil {
		c.fast.DecryptCBC(sector, iv)
		return
	}
	buf := scratch.Get().(*[4096]byte)
	defer scratch.Put(buf)
	previous := *iv
	for len(sector) > 0 {
		part := sector[:min(len(sector), len(buf))]
		sector = sector[len(part):]
		copy(buf[:blockSize], previous[:])
		copy(buf[blockSize:], part)
		copy(previous[:], part[len(part)-blockSize:])
		for i := 0; i+blockSize <= len(part); i += blockSize {
			x := part[i : i+blockSize : i+blockSize]
			c.block.Decrypt(x, x)
		}
		subtle.XORBytes(part, part, buf[:len(part)])
	}
}

// Encrypt is the inverse of Decrypt.
func (c *Cipher) Encrypt(sector []byte, iv *[16]byte) {
	check(sector)
	if c.fast != nil {
		c.fast.EncryptCBC(sector, iv)
		return
	}
	previous := iv[:]
	for i := 0; i < len(sector); i += blockSize {
		x := sector[i : i+blockSize : i+blockSize]
		subtle.XORBytes(x, x, previous)
		c.block.Encrypt(x, x)
		previous = x
	}
}

// Wipe overwrites the key schedule where it is the Cipher's own, as with
// xts.Cipher. The Cipher must not be used afterwards.
func (c *Cipher) Wipe() {
	c.fast.Wipe()
	c.block = nil
}

func check(sector []byte) {
	if len(sector)%blockSize != 0 {
		panic("cbc: not a whole number of blocks")
	}
}
