package bitlockerformat

import (
	"crypto/aes"
	"crypto/cipher"
	"crypto/subtle"

	"github.com/lockstep-backup/lockstep/diskcrypt/internal/elephant"
	"github.com/lockstep-backup/lockstep/diskcrypt/internal/xts"
)

// sectorCipher encrypts a sector at a time, in the plainest way there is.
type sectorCipher struct {
	mode       byte
	xts        *xts.Cipher
	data, mask cipher.Block
}

func newCipher(m methodSpec, fvek []byte) (c sectorCipher, err error) {
	c.mode = m.mode
	if m.mode == 'x' {
		c.xts, err = xts.New(fvek)
		return c, err
	}
	if c.data, err = aes.NewCipher(fvek[:m.keySize]); err != nil || m.mode == 'c' {
		return c, err
	}
	c.mask, err = aes.NewCipher(fvek[32 : 32+m.keySize])
	return c, err
}

// encrypt encrypts the sector that lies at off.
func (c sectorCipher) encrypt(sector []byte, off uint64) {
	if c.mode == 'x' {
		c.xts.Encrypt(sector, len(sector), off/uint64(len(sector)), 1)
		return
	}
	var iv [32]byte
	le.PutUint64(iv[:], off)
	copy(iv[16:], iv[:16])
	if c.mode == 'e' {
		mask := iv
		mask[31] = 0x80
		c.mask.Encrypt(mask[:16], mask[:16])
		c.mask.Encrypt(mask[16:], mask[16:])
		for i := 0; i < len(sector); i += len(mask) {
			subtle.XORBytes(sector[i:i+len(mask)], sector[i:i+len(mask)], mask[:])
		}
		elephant.Encrypt(sector)
	}
	c.data.Encrypt(iv[:16], iv[:16])
	cipher.NewCBCEncrypter(c.data, iv[:16]).CryptBlocks(sector, sector)
}
