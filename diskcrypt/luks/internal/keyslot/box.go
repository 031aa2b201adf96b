package keyslot

import (
	"context"
	"crypto/rand"
	"crypto/subtle"
	"encoding/binary"
	"fmt"
	"hash"
	"io"

	"github.com/lockstep-backup/lockstep/diskcrypt/internal/dmcrypt"
	"github.com/lockstep-backup/lockstep/envelope"
)

// Stripes is the only number of anti-forensic stripes that LUKS writes.
const Stripes = 4000

// MaxKeyBytes bounds a volume key; the largest known is 96 (XTS + HMAC).
const MaxKeyBytes = 512

const sector = 512

// Box is a key slot's binary area and what opens it.
type Box struct {
	KDF           KDF
	KeyBytes      int    // of the volume key
	AFHash        string // hash of the anti-forensic splitter
	Cipher        string // of the area
	CipherKeySize int    // bytes
	Offset        int64  // of the area, from the start of the header
	Size          int64  // of the area; at least MaterialSize
}

// MaterialSize is the length of the split key on disk: whole sectors.
func MaterialSize(keyBytes int) int64 {
	return (int64(keyBytes)*Stripes + sector - 1) / sector * sector
}

// Supported is nil where Open can work, or says why not (ErrUnsupported).
func (b Box) Supported() error {
	if err := b.KDF.Supported(); err != nil {
		return err
	}
	if _, err := NewHash(b.AFHash); err != nil {
		return err
	}
	spec, err := dmcrypt.ParseSpec(b.Cipher)
	if err != nil {
		return fmt.Errorf("cipher %q: %w", b.Cipher, ErrUnsupported)
	}
	if !spec.KeySizeOK(b.CipherKeySize) {
		return fmt.Errorf("cipher %q with a key of %d bits: %w", b.Cipher, b.CipherKeySize*8, ErrUnsupported)
	}
	return nil
}

// Null reports that the area is not encrypted: it opens with any secret, so
// with none that means anything.
func (b Box) Null() bool {
	spec, err := dmcrypt.ParseSpec(b.Cipher)
	return err == nil && spec.Null()
}

// Open derives the slot's key from secret and returns the candidate for the
// volume key, which only a Digest can tell from garbage. r is the header.
func (b Box) Open(ctx context.Context, r io.ReaderAt, secret []byte) ([]byte, error) {
	if err := b.Supported(); err != nil {
		return nil, err
	}
	if b.KeyBytes < 1 || b.KeyBytes > MaxKeyBytes {
		return nil, fmt.Errorf("key of %d bytes: %w", b.KeyBytes, ErrUnsupported)
	}
	key, err := b.KDF.derive(ctx, secret, b.CipherKeySize)
	if err != nil {
		return nil, err
	}
	defer envelope.Wipe(key)
	c, err := dmcrypt.New(b.Cipher, key, sector)
	if err != nil {
		return nil, err
	}
	defer c.Wipe()
	material := make([]byte, MaterialSize(b.KeyBytes))
	defer envelope.Wipe(material)
	if _, err := r.ReadAt(material, b.Offset); err != nil {
		return nil, fmt.Errorf("read key area: %w", err)
	}
	c.Decrypt(material, 0)
	return merge(material[:b.KeyBytes*Stripes], b.KeyBytes, b.AFHash)
}

// Seal is the inverse of Open: the bytes of the area that give volumeKey for
// secret. The padding up to the sector is random.
func (b Box) Seal(ctx context.Context, secret, volumeKey []byte) ([]byte, error) {
	if err := b.Supported(); err != nil {
		return nil, err
	}
	key, err := b.KDF.derive(ctx, secret, b.CipherKeySize)
	if err != nil {
		return nil, err
	}
	defer envelope.Wipe(key)
	c, err := dmcrypt.New(b.Cipher, key, sector)
	if err != nil {
		return nil, err
	}
	defer c.Wipe()
	material := make([]byte, MaterialSize(len(volumeKey)))
	if err := split(material[:len(volumeKey)*Stripes], volumeKey, b.AFHash); err != nil {
		return nil, err
	}
	if _, err := rand.Read(material[len(volumeKey)*Stripes:]); err != nil {
		return nil, err
	}
	c.Encrypt(material, 0)
	return material, nil
}

// merge undoes the anti-forensic splitter (TKS1): the key is the last stripe
// xored with the diffused sum of all others.
func merge(material []byte, n int, hashName string) ([]byte, error) {
	newHash, err := NewHash(hashName)
	if err != nil {
		return nil, err
	}
	h := newHash()
	out := make([]byte, n)
	for i := 0; i < Stripes-1; i++ {
		subtle.XORBytes(out, out, material[i*n:(i+1)*n])
		diffuse(h, out)
	}
	subtle.XORBytes(out, out, material[(Stripes-1)*n:])
	return out, nil
}

// split fills material with len(key)*Stripes bytes.
func split(material, key []byte, hashName string) error {
	newHash, err := NewHash(hashName)
	if err != nil {
		return err
	}
	n := len(key)
	last := (Stripes - 1) * n
	if _, err := rand.Read(material[:last]); err != nil {
		return err
	}
	h := newHash()
	sum := make([]byte, n)
	defer envelope.Wipe(sum)
	for i := 0; i < Stripes-1; i++ {
		subtle.XORBytes(sum, sum, material[i*n:(i+1)*n])
		diffuse(h, sum)
	}
	subtle.XORBytes(material[last:], sum, key)
	return nil
}

// diffuse replaces each piece of b of the hash's size by the hash of its number and itself.
func diffuse(h hash.Hash, b []byte) {
	var number [4]byte
	var sum [64]byte
	for j := uint32(0); len(b) > 0; j++ {
		piece := b[:min(h.Size(), len(b))]
		binary.BigEndian.PutUint32(number[:], j)
		h.Reset()
		h.Write(number[:])
		h.Write(piece)
		copy(piece, h.Sum(sum[:0]))
		b = b[len(piece):]
	}
	clear(sum[:])
}
