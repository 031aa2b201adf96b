//go:build amd64 && !purego

package aesni

import (
	"encoding/binary"
	"math/bits"

	"golang.org/x/sys/cpu"
)

// Supported reports whether this processor has the instructions.
func Supported() bool { return cpu.X86.HasAES && cpu.X86.HasSSE2 }

// New expands a key of 16, 24 or 32 bytes (FIPS 197, 5.2), which it does not
// keep. It must not be called unless Supported.
func New(key []byte) (*Key, error) {
	switch len(key) {
	case 16, 24, 32:
	default:
		return nil, KeySizeError(len(key))
	}
	nk := len(key) / 4
	k := &Key{rounds: nk + 6}
	var w [4 * (maxRounds + 1)]uint32
	for i := range nk {
		w[i] = binary.LittleEndian.Uint32(key[4*i:])
	}
	rcon := uint32(1)
	for i := nk; i < 4*(k.rounds+1); i++ {
		t := w[i-1]
		switch {
		case i%nk == 0:
			t = subWord(bits.RotateLeft32(t, -8)) ^ rcon
			rcon = rcon<<1 ^ rcon>>7*0x11b
		case nk > 6 && i%nk == 4:
			t = subWord(t)
		}
		w[i] = w[i-nk] ^ t
	}
	for i := range 4 * (k.rounds + 1) {
		binary.LittleEndian.PutUint32(k.enc[i/4][i%4*4:], w[i])
	}
	clear(w[:])
	k.dec[0], k.dec[k.rounds] = k.enc[k.rounds], k.enc[0]
	for i := 1; i < k.rounds; i++ {
		invMixColumns(&k.dec[i], &k.enc[k.rounds-i])
	}
	return k, nil
}

// BlockSize is cipher.Block's.
func (k *Key) BlockSize() int { return BlockSize }

// Encrypt is cipher.Block's.
func (k *Key) Encrypt(dst, src []byte) {
	encryptBlock(&dst[:BlockSize][0], &src[:BlockSize][0], &k.enc, k.rounds)
}

// Decrypt is cipher.Block's.
func (k *Key) Decrypt(dst, src []byte) {
	decryptBlock(&dst[:BlockSize][0], &src[:BlockSize][0], &k.dec, k.rounds)
}

// EncryptXTS encrypts b, whole sectors of whole blocks, in place. The tweak of
// sector i before it is encrypted with tweak is iv with i*step added to its
// first 8 bytes, little endian, wrapping. The keys are of one size.
func (k *Key) EncryptXTS(tweak *Key, b []byte, sectorSize int, iv *[BlockSize]byte, step uint64) {
	if k.xts(tweak, b, sectorSize) {
		xtsEncrypt(&b[0], len(b)/sectorSize, sectorSize, iv, step, &k.enc, &tweak.enc, k.rounds)
	}
}

// DecryptXTS is the inverse of EncryptXTS.
func (k *Key) DecryptXTS(tweak *Key, b []byte, sectorSize int, iv *[BlockSize]byte, step uint64) {
	if k.xts(tweak, b, sectorSize) {
		xtsDecrypt(&b[0], len(b)/sectorSize, sectorSize, iv, step, &k.dec, &tweak.enc, k.rounds)
	}
}

// xts reports whether there is anything to do; the assembly trusts its arguments.
func (k *Key) xts(tweak *Key, b []byte, sectorSize int) bool {
	if sectorSize <= 0 || sectorSize%BlockSize != 0 || len(b)%sectorSize != 0 {
		panic("aesni: not a whole number of blocks and sectors")
	}
	if k.rounds == 0 || k.rounds != tweak.rounds {
		panic("aesni: keys are wiped or of two sizes")
	}
	return len(b) > 0
}

// EncryptCBC encrypts one sector, whole blocks, in place.
func (k *Key) EncryptCBC(sector []byte, iv *[BlockSize]byte) {
	if k.cbc(sector) {
		cbcEncrypt(&sector[0], len(sector)/BlockSize, iv, &k.enc, k.rounds)
	}
}

// DecryptCBC is the inverse of EncryptCBC.
func (k *Key) DecryptCBC(sector []byte, iv *[BlockSize]byte) {
	if k.cbc(sector) {
		cbcDecrypt(&sector[0], len(sector)/BlockSize, iv, &k.dec, k.rounds)
	}
}

func (k *Key) cbc(sector []byte) bool {
	if len(sector)%BlockSize != 0 {
		panic("aesni: not a whole number of blocks")
	}
	if k.rounds == 0 {
		panic("aesni: the key is wiped")
	}
	return len(sector) > 0
}
