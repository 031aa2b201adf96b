// Package dmcrypt encrypts and decrypts runs of sectors the way the Linux
// dm-crypt target does, named by its cipher strings ("aes-xts-plain64"). It
// knows nothing of headers. Its invariant: it is handed numbers of units of 512
// bytes, whatever the sector size; IVs count them, or whole sectors with
// IVLargeSectors, as dm-crypt's option iv_large_sectors has it.
package dmcrypt

import (
	"crypto/aes"
	"crypto/cipher"
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"math"
	"math/bits"

	"github.com/aead/serpent"
	"golang.org/x/crypto/twofish" //lint:ignore SA1019 a cipher of dm-crypt

	"github.com/lockstep-backup/lockstep/diskcrypt/internal/adiantum"
	"github.com/lockstep-backup/lockstep/diskcrypt/internal/cbc"
	"github.com/lockstep-backup/lockstep/diskcrypt/internal/xts"
)

const (
	blockSize = 16
	ivUnit    = 512
)

// blocks are the block ciphers. For AES the packages of the modes have a faster way.
var blocks = map[string]func(key []byte) (cipher.Block, error){
	"aes":     aes.NewCipher,
	"serpent": serpent.NewCipher,
	"twofish": func(key []byte) (cipher.Block, error) { return twofish.NewCipher(key) },
}

// rounds are those of the stream cipher of Adiantum.
var rounds = map[string]int{"xchacha12,aes": 12, "xchacha20,aes": 20}

// Option changes how sectors are numbered.
type Option func(*Cipher)

// IVLargeSectors has IVs count sectors instead of units of 512 bytes.
func IVLargeSectors(c *Cipher) { c.shift = uint(bits.TrailingZeros(uint(c.sectorSize / ivUnit))) }

// Cipher transforms runs of sectors. It is safe for concurrent use.
type Cipher struct {
	spec       Spec
	sectorSize int
	shift      uint // from units to what IVs count

	xts      *xts.Cipher
	cbc      *cbc.Cipher
	adiantum *adiantum.Cipher
	essiv    *cbc.Cipher // for its EncryptBlock
}

// New makes a Cipher. The key is used during the call only. ErrUnsupported for
// ciphers and key sizes that are not offered.
func New(cipherString string, key []byte, sectorSize int, options ...Option) (*Cipher, error) {
	spec, err := ParseSpec(cipherString)
	if err != nil {
		return nil, err
	}
	switch sectorSize {
	case 512, 1024, 2048, 4096:
	default:
		return nil, fmt.Errorf("cipher %s: sector size %d", cipherString, sectorSize)
	}
	c := &Cipher{spec: spec, sectorSize: sectorSize}
	for _, o := range options {
		o(c)
	}
	if spec.Null() {
		return c, nil
	}
	if !spec.KeySizeOK(len(key)) {
		return nil, fmt.Errorf("%w: %q with a key of %d bits", ErrUnsupported, cipherString, len(key)*8)
	}
	switch spec.Mode {
	case "xts":
		c.xts, err = newXTS(spec.Name, key)
	case "cbc":
		c.cbc, err = newCBC(spec.Name, key)
	case "adiantum":
		c.adiantum, err = adiantum.New(key, rounds[spec.Name])
	}
	if err == nil && spec.IV == "essiv:sha256" {
		salt := sha256.Sum256(key) // over the whole volume key, both halves for XTS
		defer clear(salt[:])
		c.essiv, err = newCBC(spec.Name, salt[:])
	}
	if err != nil {
		c.Wipe()
		return nil, fmt.Errorf("cipher %s: %w", cipherString, err)
	}
	return c, nil
}

func newXTS(name string, key []byte) (*xts.Cipher, error) {
	if name == "aes" {
		return xts.New(key)
	}
	data, err := blocks[name](key[:len(key)/2])
	if err != nil {
		return nil, err
	}
	tweak, err := blocks[name](key[len(key)/2:])
	if err != nil {
		return nil, err
	}
	return xts.NewBlocks(data, tweak)
}

func newCBC(name string, key []byte) (*cbc.Cipher, error) {
	if name == "aes" {
		return cbc.New(key)
	}
	block, err := blocks[name](key)
	if err != nil {
		return nil, err
	}
	return cbc.NewBlock(block)
}

// SectorSize is the size in bytes of the unit that is encrypted by itself.
func (c *Cipher) SectorSize() int { return c.sectorSize }

// Wipe overwrites the key schedules that are this module's own: of AES on
// processors with AES instructions, and of Adiantum. Others live until the
// Cipher is collected. It must not be used afterwards.
func (c *Cipher) Wipe() {
	if c.xts != nil {
		c.xts.Wipe()
	}
	for _, k := range []*cbc.Cipher{c.cbc, c.essiv} {
		if k != nil {
			k.Wipe()
		}
	}
	if c.adiantum != nil {
		c.adiantum.Wipe()
	}
}

// Decrypt replaces the ciphertext in b, a whole number of sectors, by its
// plaintext; unit is the number of its first 512 bytes.
func (c *Cipher) Decrypt(b []byte, unit uint64) {
	if c.xts != nil {
		if first, step, ok := c.ascending(len(b), unit); ok {
			c.xts.Decrypt(b, c.sectorSize, first, step)
			return
		}
	}
	c.each(b, unit, func(sector []byte, iv *[adiantum.TweakSize]byte) {
		short := (*[blockSize]byte)(iv[:])
		switch {
		case c.xts != nil:
			c.xts.DecryptSector(sector, short)
		case c.cbc != nil:
			c.cbc.Decrypt(sector, short)
		default:
			c.adiantum.Decrypt(sector, iv)
		}
	})
}

// Encrypt is the inverse of Decrypt.
func (c *Cipher) Encrypt(b []byte, unit uint64) {
	if c.xts != nil {
		if first, step, ok := c.ascending(len(b), unit); ok {
			c.xts.Encrypt(b, c.sectorSize, first, step)
			return
		}
	}
	c.each(b, unit, func(sector []byte, iv *[adiantum.TweakSize]byte) {
		short := (*[blockSize]byte)(iv[:])
		switch {
		case c.xts != nil:
			c.xts.EncryptSector(sector, short)
		case c.cbc != nil:
			c.cbc.Encrypt(sector, short)
		default:
			c.adiantum.Encrypt(sector, iv)
		}
	})
}

// ascending reports whether the IVs of n bytes are first, first+step, … little
// endian, which is done in one go.
func (c *Cipher) ascending(n int, unit uint64) (first, step uint64, ok bool) {
	units := uint64(c.sectorSize / ivUnit)
	first, step = unit>>c.shift, units>>c.shift
	switch c.spec.IV {
	case "plain64":
		return first, step, true
	case "plain":
		first &= math.MaxUint32
		last := first + uint64(n/c.sectorSize)*step
		return first, step, last <= math.MaxUint32
	}
	return 0, 0, false
}

// each gives one sector after the other with its IV, whose first 16 bytes are
// that of a block cipher.
func (c *Cipher) each(b []byte, unit uint64, do func(sector []byte, iv *[adiantum.TweakSize]byte)) {
	if c.spec.Null() {
		return
	}
	iv := new([adiantum.TweakSize]byte) // one per run: it escapes
	for ; len(b) > 0; b = b[c.sectorSize:] {
		c.iv(iv, unit>>c.shift)
		do(b[:c.sectorSize], iv)
		unit += uint64(c.sectorSize / ivUnit)
	}
	clear(iv[:])
}

// iv makes the IV of sector number n.
func (c *Cipher) iv(iv *[adiantum.TweakSize]byte, n uint64) {
	*iv = [adiantum.TweakSize]byte{}
	size := blockSize
	if c.adiantum != nil {
		size = adiantum.TweakSize
	}
	short := (*[blockSize]byte)(iv[:])
	switch c.spec.IV {
	case "plain":
		binary.LittleEndian.PutUint32(iv[:], uint32(n))
	case "plain64":
		binary.LittleEndian.PutUint64(iv[:], n)
	case "plain64be":
		binary.BigEndian.PutUint64(iv[size-8:], n)
	case "essiv:sha256":
		binary.LittleEndian.PutUint64(iv[:], n)
		c.essiv.EncryptBlock(short)
	case "benbi": // counts blocks of 16 bytes from 1, in 512-byte sectors
		binary.BigEndian.PutUint64(iv[size-8:], n<<5+1)
	case "eboiv": // the byte offset, encrypted
		binary.LittleEndian.PutUint64(iv[:], n*uint64(c.sectorSize))
		c.cbc.EncryptBlock(short)
	}
}
