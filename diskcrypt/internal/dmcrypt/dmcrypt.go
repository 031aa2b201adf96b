// Package dmcrypt encrypts and decrypts runs of sectors the way the Linux
// dm-crypt target does, named by its cipher strings ("aes-xts-plain64"). It
// knows nothing of headers. Its invariant: IVs count units of 512 bytes,
// whatever the sector size, as dm-crypt does without iv_large_sectors.
package dmcrypt

import (
	"crypto/aes"
	"crypto/cipher"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/binary"
	"errors"
	"fmt"
	"strings"
	"sync"
)

// ErrUnsupported marks a cipher string that is understood to be one, and not offered here.
var ErrUnsupported = errors.New("cipher not supported")

const (
	blockSize     = aes.BlockSize
	ivUnit        = 512
	maxSectorSize = 4096
)

// Spec is a parsed cipher string.
type Spec struct {
	Name string // "aes", "cipher_null"
	Mode string // "xts", "cbc", "ecb"
	IV   string // "plain", "plain64", "essiv:sha256", "" for the null cipher
}

// ParseSpec reads "cipher-mode-iv". ErrUnsupported for what Cipher does not do.
func ParseSpec(s string) (Spec, error) {
	parts := strings.SplitN(strings.ToLower(s), "-", 3)
	spec := Spec{Name: parts[0]}
	if len(parts) > 1 {
		spec.Mode = parts[1]
	}
	if len(parts) > 2 {
		spec.IV = parts[2]
	}
	if spec.Null() {
		return spec, nil
	}
	ok := spec.Name == "aes" && (spec.Mode == "xts" || spec.Mode == "cbc")
	switch spec.IV {
	case "plain", "plain64", "essiv:sha256":
	default:
		ok = false
	}
	if !ok {
		return spec, fmt.Errorf("%w: %q", ErrUnsupported, s)
	}
	return spec, nil
}

// Null reports a cipher that does not encrypt.
func (s Spec) Null() bool { return s.Name == "cipher_null" || s.Name == "null" }

// KeySizeOK reports whether keyBytes is a key size of this cipher.
func (s Spec) KeySizeOK(keyBytes int) bool {
	switch {
	case s.Null():
		return keyBytes >= 0
	case s.Mode == "xts":
		return keyBytes == 32 || keyBytes == 48 || keyBytes == 64
	}
	return keyBytes == 16 || keyBytes == 24 || keyBytes == 32
}

// Cipher transforms runs of sectors. It is safe for concurrent use.
type Cipher struct {
	spec       Spec
	sectorSize int
	data       cipher.Block
	tweak      cipher.Block // XTS
	essiv      cipher.Block
	scratch    sync.Pool // *[maxSectorSize]byte
}

// New makes a Cipher. The key is used during the call only; the key schedules
// that crypto/aes makes of it live until the Cipher is collected.
func New(cipherString string, key []byte, sectorSize int) (*Cipher, error) {
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
	c.scratch.New = func() any { return new([maxSectorSize]byte) }
	if spec.Null() {
		return c, nil
	}
	if !spec.KeySizeOK(len(key)) {
		return nil, fmt.Errorf("%w: %q with a key of %d bits", ErrUnsupported, cipherString, len(key)*8)
	}
	dataKey := key
	if spec.Mode == "xts" {
		dataKey = key[:len(key)/2]
		if c.tweak, err = aes.NewCipher(key[len(key)/2:]); err != nil {
			return nil, fmt.Errorf("cipher %s: %w", cipherString, err)
		}
	}
	if c.data, err = aes.NewCipher(dataKey); err != nil {
		return nil, fmt.Errorf("cipher %s: %w", cipherString, err)
	}
	if spec.IV == "essiv:sha256" {
		salt := sha256.Sum256(key) // over the whole volume key, both halves for XTS
		defer clear(salt[:])
		if c.essiv, err = aes.NewCipher(salt[:]); err != nil {
			return nil, fmt.Errorf("cipher %s: %w", cipherString, err)
		}
	}
	return c, nil
}

// SectorSize is the size in bytes of the unit that is encrypted by itself.
func (c *Cipher) SectorSize() int { return c.sectorSize }

// Decrypt replaces the ciphertext in b, a whole number of sectors, by its
// plaintext; unit is the number of its first 512 bytes.
func (c *Cipher) Decrypt(b []byte, unit uint64) { c.run(b, unit, c.decryptSector) }

// Encrypt is the inverse of Decrypt.
func (c *Cipher) Encrypt(b []byte, unit uint64) { c.run(b, unit, c.encryptSector) }

func (c *Cipher) run(b []byte, unit uint64, do func(sector []byte, iv *[blockSize]byte, scratch []byte)) {
	if c.spec.Null() {
		return
	}
	buf := c.scratch.Get().(*[maxSectorSize]byte)
	scratch := buf[:c.sectorSize]
	// The IV passes through the cipher.Block interface; kept in the pooled
	// buffer's neighbourhood it would escape per sector, so one per run.
	iv := new([blockSize]byte)
	for len(b) > 0 {
		c.iv(iv, unit)
		do(b[:c.sectorSize], iv, scratch)
		b = b[c.sectorSize:]
		unit += uint64(c.sectorSize / ivUnit)
	}
	clear(buf[:])
	c.scratch.Put(buf)
}

func (c *Cipher) iv(iv *[blockSize]byte, unit uint64) {
	*iv = [blockSize]byte{}
	switch c.spec.IV {
	case "plain":
		binary.LittleEndian.PutUint32(iv[:], uint32(unit))
	case "plain64":
		binary.LittleEndian.PutUint64(iv[:], unit)
	case "essiv:sha256":
		binary.LittleEndian.PutUint64(iv[:], unit)
		c.essiv.Encrypt(iv[:], iv[:])
	}
}

func (c *Cipher) decryptSector(sector []byte, iv *[blockSize]byte, scratch []byte) {
	if c.spec.Mode == "xts" {
		c.tweaks(scratch, iv)
		subtle.XORBytes(sector, sector, scratch)
		for i := 0; i < len(sector); i += blockSize {
			c.data.Decrypt(sector[i:i+blockSize], sector[i:i+blockSize])
		}
		subtle.XORBytes(sector, sector, scratch)
		return
	}
	copy(scratch, iv[:])
	copy(scratch[blockSize:], sector)
	for i := 0; i < len(sector); i += blockSize {
		c.data.Decrypt(sector[i:i+blockSize], sector[i:i+blockSize])
	}
	subtle.XORBytes(sector, sector, scratch)
}

func (c *Cipher) encryptSector(sector []byte, iv *[blockSize]byte, scratch []byte) {
	if c.spec.Mode == "xts" {
		c.tweaks(scratch, iv)
		subtle.XORBytes(sector, sector, scratch)
		for i := 0; i < len(sector); i += blockSize {
			c.data.Encrypt(sector[i:i+blockSize], sector[i:i+blockSize])
		}
		subtle.XORBytes(sector, sector, scratch)
		return
	}
	prev := iv[:]
	for i := 0; i < len(sector); i += blockSize {
		block := sector[i : i+blockSize]
		subtle.XORBytes(block, block, prev)
		c.data.Encrypt(block, block)
		prev = block
	}
}

// tweaks fills t with the XTS tweaks of one sector (IEEE 1619): all first, so
// that the two xors run over the whole sector at once.
func (c *Cipher) tweaks(t []byte, iv *[blockSize]byte) {
	c.tweak.Encrypt(iv[:], iv[:])
	lo := binary.LittleEndian.Uint64(iv[:8])
	hi := binary.LittleEndian.Uint64(iv[8:])
	for i := 0; i+blockSize <= len(t); i += blockSize {
		binary.LittleEndian.PutUint64(t[i:], lo)
		binary.LittleEndian.PutUint64(t[i+8:], hi)
		carry := hi >> 63
		hi = hi<<1 | lo>>63
		lo = lo<<1 ^ carry*0x87
	}
}
