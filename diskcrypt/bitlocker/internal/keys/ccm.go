// Package keys is the mathematics of BitLocker's key protectors: the AES-CCM
// boxes, the stretching of passwords, and the digits of recovery passwords. It
// reads no metadata. Its invariant: what it returns was authenticated.
package keys

import (
	"crypto/aes"
	"crypto/cipher"
	"crypto/subtle"
	"errors"

	"github.com/lockstep-backup/lockstep/envelope"
)

// ErrWrong says that a key does not open a box.
var ErrWrong = errors.New("wrong key")

// Sizes of CCM as BitLocker uses it (NIST SP 800-38C, L = 3).
const (
	NonceSize = 12
	TagSize   = 16
	blockSize = aes.BlockSize
	maxBox    = 1 << 16
)

// Open decrypts and authenticates a box under a key of 32 bytes. The caller
// wipes what it returns. ErrWrong: the key is another.
func Open(key, nonce, tag, sealed []byte) ([]byte, error) {
	c, err := newCCM(key, nonce, len(sealed))
	if err != nil || len(tag) != TagSize {
		return nil, ErrWrong
	}
	plain := make([]byte, len(sealed))
	c.crypt(plain, sealed)
	want := c.tag(plain)
	if subtle.ConstantTimeCompare(want[:], tag) != 1 {
		envelope.Wipe(plain)
		return nil, ErrWrong
	}
	return plain, nil
}

// Seal is the opposite of Open. A nonce must never be used twice with a key.
func Seal(key, nonce, plain []byte) (tag, sealed []byte, err error) {
	c, err := newCCM(key, nonce, len(plain))
	if err != nil {
		return nil, nil, err
	}
	sum := c.tag(plain)
	sealed = make([]byte, len(plain))
	c.crypt(sealed, plain)
	return sum[:], sealed, nil
}

type ccm struct {
	block cipher.Block
	nonce []byte
}

func newCCM(key, nonce []byte, size int) (ccm, error) {
	if len(key) != 32 || len(nonce) != NonceSize || size > maxBox {
		return ccm{}, ErrWrong
	}
	block, err := aes.NewCipher(key)
	return ccm{block, nonce}, err
}

// counter is A_i of the standard.
func (c ccm) counter(i int) (a [blockSize]byte) {
	a[0] = 2 // L - 1
	copy(a[1:], c.nonce)
	a[13], a[14], a[15] = byte(i>>16), byte(i>>8), byte(i)
	return a
}

func (c ccm) crypt(dst, src []byte) {
	first := c.counter(1)
	cipher.NewCTR(c.block, first[:]).XORKeyStream(dst, src)
}

// tag is the CBC-MAC of the length and the plaintext, encrypted with counter 0.
func (c ccm) tag(plain []byte) (t [TagSize]byte) {
	var x [blockSize]byte
	x[0] = 0x3a // no associated data, tag of 16, L = 3
	copy(x[1:], c.nonce)
	n := len(plain)
	x[13], x[14], x[15] = byte(n>>16), byte(n>>8), byte(n)
	c.block.Encrypt(x[:], x[:])
	for len(plain) > 0 {
		m := subtle.XORBytes(x[:], x[:], plain[:min(blockSize, len(plain))])
		c.block.Encrypt(x[:], x[:])
		plain = plain[m:]
	}
	a := c.counter(0)
	c.block.Encrypt(a[:], a[:])
	subtle.XORBytes(t[:], x[:], a[:])
	return t
}
