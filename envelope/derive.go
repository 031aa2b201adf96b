package envelope

import (
	"crypto/hkdf"
	"crypto/rand"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
)

// KeySize is the size of every symmetric key here, in bytes.
const KeySize = 32

// ErrKeySize says that a key is not of KeySize bytes.
var ErrKeySize = errors.New("key is not 32 bytes long")

// kindWrappedKey is the frame kind of a wrapped key (docs/spec/envelope.md, section 3).
const kindWrappedKey = 0x0001

// NewKey draws a random 32-byte key.
func NewKey() (Secret, error) {
	b := make([]byte, KeySize)
	if _, err := rand.Read(b); err != nil {
		return Secret{}, fmt.Errorf("draw key: %w", err)
	}
	return NewSecret(b), nil
}

// DeriveKey derives a 32-byte key from a secret of high entropy with
// HKDF-SHA256. purpose is a constant of the format; purpose and every context
// are length-prefixed, so that no two lists of them meet. An empty secret is a
// programming error and panics.
func DeriveKey(secret Secret, purpose string, context ...[]byte) Secret {
	if secret.Len() == 0 {
		panic("derive key: the secret is empty")
	}
	info := appendPrefixed([]byte("lockstep/derive/1"), []byte(purpose))
	for _, c := range context {
		info = appendPrefixed(info, c)
	}
	key, err := hkdf.Key(sha256.New, secret.Expose(), nil, string(info), KeySize)
	if err != nil {
		panic("derive key: " + err.Error())
	}
	return NewSecret(key)
}

// WrapKey seals a 32-byte key under a 32-byte KEK, bound to context.
func WrapKey(kek, key Secret, context []byte) ([]byte, error) {
	k, err := kek.Key32()
	if err != nil {
		return nil, fmt.Errorf("wrap key: KEK: %w", err)
	}
	defer Wipe(k[:])
	if key.Len() != KeySize {
		return nil, fmt.Errorf("wrap key: %w", ErrKeySize)
	}
	wrapped, err := SealFrame(kindWrappedKey, k, wrapContext(context), key.Expose())
	if err != nil {
		return nil, fmt.Errorf("wrap key: %w", err)
	}
	return wrapped, nil
}

// UnwrapKey undoes WrapKey. ErrFrameAuth: another KEK, another context, or changed.
func UnwrapKey(kek Secret, wrapped, context []byte) (Secret, error) {
	k, err := kek.Key32()
	if err != nil {
		return Secret{}, fmt.Errorf("unwrap key: KEK: %w", err)
	}
	defer Wipe(k[:])
	body, err := OpenFrame(wrapped, kindWrappedKey, k, wrapContext(context))
	if err != nil {
		return Secret{}, fmt.Errorf("unwrap key: %w", err)
	}
	if len(body) != KeySize {
		Wipe(body)
		return Secret{}, fmt.Errorf("unwrap key: %w", ErrKeySize)
	}
	return NewSecret(body), nil
}

// Key32 returns a copy of a 32-byte secret in the form that SealFrame and
// OpenFrame take; the caller wipes it.
func (s Secret) Key32() (*[32]byte, error) {
	if len(s.b) != KeySize {
		return nil, ErrKeySize
	}
	k := [32]byte(s.b)
	return &k, nil
}

func wrapContext(context []byte) []byte {
	return appendPrefixed([]byte("lockstep/wrap/1"), context)
}

func appendPrefixed(out, b []byte) []byte {
	out = binary.LittleEndian.AppendUint64(out, uint64(len(b)))
	return append(out, b...)
}
