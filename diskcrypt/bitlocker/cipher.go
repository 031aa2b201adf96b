package bitlocker

import (
	"crypto/aes"
	"crypto/cipher"
	"crypto/subtle"
	"encoding/binary"
	"fmt"

	"github.com/lockstep-backup/lockstep/diskcrypt/bitlocker/internal/fve"
	"github.com/lockstep-backup/lockstep/diskcrypt/internal/elephant"
	"github.com/lockstep-backup/lockstep/diskcrypt/internal/plainview"
	"github.com/lockstep-backup/lockstep/diskcrypt/internal/xts"
	"github.com/lockstep-backup/lockstep/envelope"
)

// method is how the sectors of a volume are encrypted.
type method struct {
	name    string
	keyBits int
	fvek    int // bytes of the key in the metadata
	xts     bool
	diffuse bool
}

var methods = map[uint16]method{
	fve.MethodCBC128Elephant: {name: "aes-cbc-elephant", keyBits: 128, fvek: 64, diffuse: true},
	fve.MethodCBC256Elephant: {name: "aes-cbc-elephant", keyBits: 256, fvek: 64, diffuse: true},
	fve.MethodCBC128:         {name: "aes-cbc", keyBits: 128, fvek: 16},
	fve.MethodCBC256:         {name: "aes-cbc", keyBits: 256, fvek: 32},
	fve.MethodXTS128:         {name: "aes-xts", keyBits: 128, fvek: 32, xts: true},
	fve.MethodXTS256:         {name: "aes-xts", keyBits: 256, fvek: 64, xts: true},
}

// used is what of an FVEK encrypts: the key with the diffuser's behind it. The
// rest of a 128-bit key with diffuser is random filling. The caller wipes it.
func (m method) used(fvek []byte) []byte {
	n := m.keyBits / 8
	switch {
	case m.diffuse:
		return append(append(make([]byte, 0, 2*n), fvek[:n]...), fvek[32:32+n]...)
	case m.xts:
		n *= 2
	}
	return append(make([]byte, 0, n), fvek[:n]...)
}

// sectorCipher is a method with its key, on sectors of a size.
type sectorCipher struct {
	size  int
	xts   *xts.Cipher
	block cipher.Block // CBC
	tweak cipher.Block // of the diffuser, nil without
}

var _ plainview.Cipher = (*sectorCipher)(nil)

// newCipher makes the cipher of a key as used gives it.
func (m method) newCipher(key []byte, sectorSize int) (*sectorCipher, error) {
	c := &sectorCipher{size: sectorSize}
	var err error
	switch {
	case m.xts:
		c.xts, err = xts.New(key)
	case m.diffuse:
		if c.tweak, err = aes.NewCipher(key[len(key)/2:]); err == nil {
			c.block, err = aes.NewCipher(key[:len(key)/2])
		}
	default:
		c.block, err = aes.NewCipher(key)
	}
	if err != nil {
		return nil, fmt.Errorf("%s with %d bits: %w", m.name, m.keyBits, err)
	}
	return c, nil
}

func (c *sectorCipher) SectorSize() int { return c.size }

// unitSize is what the engine counts in.
const unitSize = 512

// Decrypt decrypts sectors from where they lie: byte unit*512 of the volume.
func (c *sectorCipher) Decrypt(b []byte, unit uint64) {
	if c.xts != nil {
		c.xts.Decrypt(b, c.size, unit*unitSize/uint64(c.size), 1)
		return
	}
	c.cbc(b, unit, cipher.NewCBCDecrypter, func(mode cipher.BlockMode, sector, mask []byte) {
		mode.CryptBlocks(sector, sector)
		if c.tweak != nil {
			elephant.Decrypt(sector)
			xorMask(sector, mask)
		}
	})
}

// Encrypt is the opposite of Decrypt.
func (c *sectorCipher) Encrypt(b []byte, unit uint64) {
	if c.xts != nil {
		c.xts.Encrypt(b, c.size, unit*unitSize/uint64(c.size), 1)
		return
	}
	c.cbc(b, unit, cipher.NewCBCEncrypter, func(mode cipher.BlockMode, sector, mask []byte) {
		if c.tweak != nil {
			xorMask(sector, mask)
			elephant.Encrypt(sector)
		}
		mode.CryptBlocks(sector, sector)
	})
}

// cbc runs do on each sector, with the mode set to the sector's IV and the key
// of the diffuser for it.
func (c *sectorCipher) cbc(b []byte, unit uint64, mode func(cipher.Block, []byte) cipher.BlockMode, do func(cipher.BlockMode, []byte, []byte)) {
	var iv [aes.BlockSize]byte
	var mask [2 * aes.BlockSize]byte
	defer envelope.Wipe(mask[:])
	m := mode(c.block, iv[:])
	reset, _ := m.(interface{ SetIV([]byte) })
	for off := unit * unitSize; len(b) > 0; off += uint64(c.size) {
		clear(iv[8:])
		binary.LittleEndian.PutUint64(iv[:], off)
		if c.tweak != nil {
			copy(mask[:], iv[:])
			copy(mask[16:], iv[:])
			mask[31] = 0x80
			c.tweak.Encrypt(mask[:16], mask[:16])
			c.tweak.Encrypt(mask[16:], mask[16:])
		}
		c.block.Encrypt(iv[:], iv[:])
		if reset != nil {
			reset.SetIV(iv[:])
		} else {
			m = mode(c.block, iv[:])
		}
		do(m, b[:c.size], mask[:])
		b = b[c.size:]
	}
}

func xorMask(sector, mask []byte) {
	for ; len(sector) > 0; sector = sector[len(mask):] {
		subtle.XORBytes(sector[:len(mask)], sector[:len(mask)], mask)
	}
}

// wipe forgets the keys as far as the library lets it.
func (c *sectorCipher) wipe() {
	if c.xts != nil {
		c.xts.Wipe()
	}
	c.block, c.tweak = nil, nil
}
