package keys

import (
	"context"
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"unicode/utf16"
	"unicode/utf8"

	"github.com/lockstep-backup/lockstep/envelope"
)

// SaltSize is the size of a protector's salt.
const SaltSize = 16

// rounds of the stretching: the format has no other number.
const rounds = 1 << 20

// StretchWork is what one stretching costs, in the unit of diskcrypt.Limits.KDFWork:
// 2^20 hashes.
const StretchWork = rounds << 10

// Stretch makes the key of a protector of initial, a hash of 32 bytes, and its
// salt. It ends early, with the context's error, when ctx ends. The caller
// wipes the key.
func Stretch(ctx context.Context, initial [32]byte, salt []byte) ([]byte, error) {
	if len(salt) != SaltSize {
		return nil, fmt.Errorf("salt of %d bytes", len(salt))
	}
	// last hash, first hash, salt, counter
	var b [88]byte
	defer envelope.Wipe(b[:])
	copy(b[32:], initial[:])
	copy(b[64:], salt)
	for i := range uint64(rounds) {
		if i&0x3fff == 0 && ctx.Err() != nil {
			return nil, ctx.Err()
		}
		binary.LittleEndian.PutUint64(b[80:], i)
		sum := sha256.Sum256(b[:])
		copy(b[:32], sum[:])
	}
	key := make([]byte, 32)
	copy(key, b[:32])
	return key, nil
}

// PasswordHash is what is stretched of a password in UTF-8: the double hash of
// its UTF-16. Not ok: it is empty or no text, and opens nothing.
func PasswordHash(password []byte) (hash [32]byte, ok bool) {
	if len(password) == 0 || !utf8.Valid(password) {
		return hash, false
	}
	// Made with its whole capacity, so that no copy stays behind unwiped.
	b := make([]byte, 0, 2*len(password))
	for rest := password; len(rest) > 0; {
		r, n := utf8.DecodeRune(rest)
		rest = rest[n:]
		if hi, lo := utf16.EncodeRune(r); hi != utf8.RuneError {
			b = binary.LittleEndian.AppendUint16(b, uint16(hi))
			r = lo
		}
		b = binary.LittleEndian.AppendUint16(b, uint16(r))
	}
	defer envelope.Wipe(b)
	hash = sha256.Sum256(b)
	return sha256.Sum256(hash[:]), true
}

// RecoveryHash is what is stretched of a recovery key.
func RecoveryHash(key [RecoverySize]byte) [32]byte { return sha256.Sum256(key[:]) }
