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

	"github.com/lockstep-backup/lockstep/diskcrypt/internal/aesni"
)

const blockSize = 16

// Cipher transforms runs of sectors in place. It is safe for concurrent use.
type Cipher struct {
	data, tweak       cipher.Block // the portable path
	fastData, fastTwk *aesni.Key   // nil: not AES, or not this processor
}

// New makes a Cipher of AES. key is the data key followed by the tweak key:
// 32, 48 or 64 bytes. It is used during the call only.
func New(key []byte) (*Cipher, error) {
	switch len(key) {
	case 32, 48, 64:
	default:
		return nil, fmt.Errorf("xts: key of %d bits", len(key)*8)
	}
	if !aesni.Supported() {
		return newPortable(key)
	}
	data, err := aesni.New(key[:len(key)/2])
	if err != nil {
		return nil, fmt.Errorf("xts: %w", err)
	}
	tweak, err := aesni.New(key[len(key)/2:])
	if err != nil {
		return nil, fmt.Errorf("xts: %w", err)
	}
	return &Cipher{fastData: data, fastTwk: tweak}, nil
}

func newPortable(key []byte) (*Cipher, error) {
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
	iv := littleEndian(first)
	if c.fastData != nil {
		c.fastData.DecryptXTS(c.fastTwk, b, sectorSize, &iv, step)
		return
	}
	c.portable(b, sectorSize, &iv, step, decryptBlocks)
}

// Encrypt is the inverse of Decrypt.
func (c *Cipher) Encrypt(b []byte, sectorSize int, first, step uint64) {
	iv := littleEndian(first)
	if c.fastData != nil {
		c.fastData.EncryptXTS(c.fastTwk, b, sectorSize, &iv, step)
		return
	}
	c.portable(b, sectorSize, &iv, step, encryptBlocks)
}

// DecryptSector decrypts one sector under a tweak that is not such a number.
func (c *Cipher) DecryptSector(sector []byte, tweak *[16]byte) {
	if c.fastData != nil {
		c.fastData.DecryptXTS(c.fastTwk, sector, len(sector), tweak, 0)
		return
	}
	c.portable(sector, len(sector), tweak, 0, decryptBlocks)
}

// EncryptSector is the inverse of DecryptSector.
func (c *Cipher) EncryptSector(sector []byte, tweak *[16]byte) {
	if c.fastData != nil {
		c.fastData.EncryptXTS(c.fastTwk, sector, len(sector), tweak, 0)
		return
	}
	c.portable(sector, len(sector), tweak, 0, encryptBlocks)
}

// Wipe overwrites the key schedules that are the Cipher's own: with AES
// instructions all of them, elsewhere none, since crypto/aes and NewBlocks'
// caller keep theirs. The Cipher must not be used afterwards.
func (c *Cipher) Wipe() {
	c.fastData.Wipe()
	c.fastTwk.Wipe()
	c.data, c.tweak = nil, nil
}

func littleEndian(n uint64) (iv [blockSize]byte) {
	binary.LittleEndian.PutUint64(iv[:], n)
	return iv
}

// stretch is what is transformed at a time: its tweaks are all made first, so
// that the two xors run over the whole of it at once.
const stretch = 4096

var scratch = sync.Pool{New: func() any { return new([stretch + blockSize]byte) }}

func (c *Cipher) portable(b []byte, sectorSize int, iv *[blockSize]byte, step uint64, do func(k cipher.Block, b []byte)) {
	if sectorSize <= 0 || sectorSize%blockSize != 0 || len(b)%sectorSize != 0 {
		panic("xts: not a whole number of blocks and sectors")
	}
	buf := scratch.Get().(*[stretch + blockSize]byte)
	defer scratch.Put(buf)
	defer clear(buf[:])
	tweaks, first := buf[:stretch], buf[stretch:]
	number := binary.LittleEndian.Uint64(iv[:])
	// A stretch is of several small sectors, or a part of a large one.
	var t tweak
	left := 0 // bytes of the sector that t is the next tweak of
	for len(b) > 0 {
		part := b[:min(len(b), stretch)]
		b = b[len(part):]
		for at := 0; at < len(part); {
			if left == 0 {
				copy(first, iv[:])
				binary.LittleEndian.PutUint64(first, number)
				number += step
				c.tweak.Encrypt(first, first)
				t = tweak{binary.LittleEndian.Uint64(first), binary.LittleEndian.Uint64(first[8:])}
				left = sectorSize
			}
			n := min(left, len(part)-at)
			t = t.fill(tweaks[at : at+n])
			at += n
			left -= n
		}
		subtle.XORBytes(part, part, tweaks)
		do(c.data, part)
		subtle.XORBytes(part, part, tweaks)
	}
}

// tweak is one of GF(2^128), little endian.
type tweak struct{ lo, hi uint64 }

// fill writes t, t*x, t*x^2 and so on, and returns what would come next.
func (t tweak) fill(b []byte) tweak {
	lo, hi := t.lo, t.hi
	for ; len(b) >= blockSize; b = b[blockSize:] {
		binary.LittleEndian.PutUint64(b[:8], lo)
		binary.LittleEndian.PutUint64(b[8:blockSize], hi)
		carry := uint64(int64(hi)>>63) & 0x87
		hi = hi<<1 | lo>>63
		lo = lo<<1 ^ carry
	}
	return tweak{lo, hi}
}

func decryptBlocks(k cipher.Block, b []byte) {
	for i := 0; i+blockSize <= len(b); i += blockSize {
		x := b[i : i+blockSize : i+blockSize]
		k.Decrypt(x, x)
	}
}

func encryptBlocks(k cipher.Block, b []byte) {
	for i := 0; i+blockSize <= len(b); i += blockSize {
		x := b[i : i+blockSize : i+blockSize]
		k.Encrypt(x, x)
	}
}
