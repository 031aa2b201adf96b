package envelope

import (
	"crypto/subtle"
	"fmt"
	"log/slog"
	"runtime"
)

// Secret holds bytes that must not leak: passphrases, key files, volume keys,
// repository keys. Printing it with any verb, logging it or marshalling it
// gives "[redacted]". The zero value is an empty secret.
type Secret struct{ b []byte }

const redacted = "[redacted]"

// NewSecret takes ownership of b: the caller must not use b afterwards.
func NewSecret(b []byte) Secret { return Secret{b: b} }

// CopySecret copies b into a new Secret; the caller keeps b, and wipes it.
func CopySecret(b []byte) Secret { return Secret{b: append([]byte(nil), b...)} }

// Expose returns the bytes themselves, not a copy. They are valid until Wipe.
func (s Secret) Expose() []byte { return s.b }

// Len is the number of bytes.
func (s Secret) Len() int { return len(s.b) }

// Equal compares in constant time.
func (s Secret) Equal(o Secret) bool { return subtle.ConstantTimeCompare(s.b, o.b) == 1 }

// Wipe overwrites the bytes with zeroes. Copies made with CopySecret stay.
func (s Secret) Wipe() { Wipe(s.b) }

// Wipe overwrites b with zeroes in a way the compiler keeps.
func Wipe(b []byte) {
	clear(b)
	runtime.KeepAlive(b)
}

func (s Secret) String() string                 { return redacted }
func (s Secret) GoString() string               { return redacted }
func (s Secret) Format(f fmt.State, _ rune)     { _, _ = f.Write([]byte(redacted)) }
func (s Secret) LogValue() slog.Value           { return slog.StringValue(redacted) }
func (s Secret) MarshalText() ([]byte, error)   { return []byte(redacted), nil }
func (s Secret) MarshalJSON() ([]byte, error)   { return []byte(`"` + redacted + `"`), nil }
func (s Secret) MarshalBinary() ([]byte, error) { return []byte(redacted), nil }
