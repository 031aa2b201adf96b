package envelope

import (
	"bytes"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"strings"
)

// Roles of signing keys. One key has one role.
const (
	RoleWriter    = "writer"
	RoleProver    = "prover"
	RoleCustodian = "custodian"
)

// Errors of key files and public keys.
var (
	ErrKeyFile     = errors.New("key file is not valid")
	ErrKeyFileOpen = errors.New("key file is open to others than its owner")
	ErrPublicKey   = errors.New("public key is not valid")
)

const (
	signingKeyBlock = "LOCKSTEP SIGNING KEY"
	publicKeyPrefix = "lockstep-key-v1:"
	maxKeyFile      = 4096
)

// KeyID names a public key: "ed25519:" and 32 hex digits of its SHA-256.
type KeyID string

// PublicKey is the public half of a signing key. ID follows from Key; Check
// tells whether it does.
type PublicKey struct {
	ID   KeyID             `json:"id"`
	Role string            `json:"role"`
	Key  ed25519.PublicKey `json:"key"`
}

// SigningKey is an Ed25519 private key with its role. Printing it gives its
// role and ID, never the key. The zero value cannot sign.
type SigningKey struct {
	seed Secret
	role string
}

// GenerateSigningKey makes a new key for a role.
func GenerateSigningKey(role string) (SigningKey, error) {
	if !knownRole(role) {
		return SigningKey{}, fmt.Errorf("generate signing key: role %q is not known", role)
	}
	seed := make([]byte, ed25519.SeedSize)
	if _, err := rand.Read(seed); err != nil {
		return SigningKey{}, fmt.Errorf("generate signing key: %w", err)
	}
	return SigningKey{seed: NewSecret(seed), role: role}, nil
}

// NewSigningKey makes a key from its 32-byte seed (RFC 8032), which it takes over.
func NewSigningKey(role string, seed Secret) (SigningKey, error) {
	if !knownRole(role) {
		return SigningKey{}, fmt.Errorf("make signing key: role %q is not known", role)
	}
	if seed.Len() != ed25519.SeedSize {
		return SigningKey{}, fmt.Errorf("make signing key: %w", ErrKeySize)
	}
	return SigningKey{seed: seed, role: role}, nil
}

// Role is the key's role.
func (k SigningKey) Role() string { return k.role }

// ID names the key.
func (k SigningKey) ID() KeyID { return k.Public().ID }

// Public is the public half.
func (k SigningKey) Public() PublicKey {
	if k.seed.Len() != ed25519.SeedSize {
		return PublicKey{}
	}
	private := ed25519.NewKeyFromSeed(k.seed.Expose())
	defer Wipe(private)
	return NewPublicKey(k.role, bytes.Clone(private.Public().(ed25519.PublicKey)))
}

// Sign signs message as it is. What is signed must begin with a constant of
// its own format, as DSSE's PAE does, so that no signature passes for another.
func (k SigningKey) Sign(message []byte) (keyID string, sig []byte, err error) {
	if k.seed.Len() != ed25519.SeedSize {
		return "", nil, errors.New("sign: there is no key")
	}
	private := ed25519.NewKeyFromSeed(k.seed.Expose())
	defer Wipe(private)
	id := IDOfKey(private.Public().(ed25519.PublicKey))
	return string(id), ed25519.Sign(private, message), nil
}

// Wipe overwrites the private key.
func (k SigningKey) Wipe() { k.seed.Wipe() }

func (k SigningKey) String() string {
	return fmt.Sprintf("%s key %s %s", k.role, k.ID(), redacted)
}
func (k SigningKey) GoString() string               { return k.String() }
func (k SigningKey) Format(f fmt.State, _ rune)     { _, _ = io.WriteString(f, k.String()) }
func (k SigningKey) LogValue() slog.Value           { return slog.StringValue(k.String()) }
func (k SigningKey) MarshalText() ([]byte, error)   { return []byte(k.String()), nil }
func (k SigningKey) MarshalBinary() ([]byte, error) { return []byte(k.String()), nil }

// EncodeSigningKey gives the text of a private key file.
func EncodeSigningKey(k SigningKey) (Secret, error) {
	if k.seed.Len() != ed25519.SeedSize {
		return Secret{}, errors.New("encode signing key: there is no key")
	}
	return NewSecret(pem.EncodeToMemory(&pem.Block{
		Type:    signingKeyBlock,
		Headers: map[string]string{"Role": k.role, "Key-Id": string(k.ID())},
		Bytes:   k.seed.Expose(),
	})), nil
}

// ParseSigningKey reads the text of a private key file. Every byte counts: what
// is not the canonical encoding of a key is refused with ErrKeyFile.
func ParseSigningKey(text Secret) (SigningKey, error) {
	if text.Len() > maxKeyFile {
		return SigningKey{}, fmt.Errorf("parse signing key: %w: longer than %d bytes", ErrKeyFile, maxKeyFile)
	}
	block, _ := pem.Decode(text.Expose())
	if block == nil || block.Type != signingKeyBlock {
		return SigningKey{}, fmt.Errorf("parse signing key: %w: no %q block", ErrKeyFile, signingKeyBlock)
	}
	key, err := NewSigningKey(block.Headers["Role"], NewSecret(block.Bytes))
	if err != nil {
		Wipe(block.Bytes)
		return SigningKey{}, fmt.Errorf("parse signing key: %w: %w", ErrKeyFile, err)
	}
	canonical, err := EncodeSigningKey(key)
	if err != nil {
		return SigningKey{}, fmt.Errorf("parse signing key: %w", err)
	}
	defer canonical.Wipe()
	if !canonical.Equal(text) {
		key.Wipe()
		return SigningKey{}, fmt.Errorf("parse signing key: %w: ID, layout or content differs from what the key gives", ErrKeyFile)
	}
	return key, nil
}

// WriteSigningKeyFile writes a new private key file with mode 0600. It never
// overwrites; the error then matches fs.ErrExist.
func WriteSigningKeyFile(path string, k SigningKey) error {
	text, err := EncodeSigningKey(k)
	if err != nil {
		return err
	}
	defer text.Wipe()
	return WriteNewFileDurable(path, text.Expose(), 0o600)
}

// ReadSigningKeyFile loads a private key file. On Unix one that group or
// others can read or write is refused with ErrKeyFileOpen.
func ReadSigningKeyFile(path string) (SigningKey, error) {
	f, err := os.Open(path)
	if err != nil {
		return SigningKey{}, fmt.Errorf("read signing key: %w", err)
	}
	defer f.Close()
	if err := checkOwnerOnly(f); err != nil {
		return SigningKey{}, fmt.Errorf("read signing key %s: %w", path, err)
	}
	text, err := readBounded(f, maxKeyFile)
	if err != nil {
		return SigningKey{}, fmt.Errorf("read signing key %s: %w", path, err)
	}
	defer text.Wipe()
	key, err := ParseSigningKey(text)
	if err != nil {
		return SigningKey{}, fmt.Errorf("read signing key %s: %w", path, err)
	}
	return key, nil
}

// NewPublicKey makes a PublicKey with the ID that follows from key.
func NewPublicKey(role string, key ed25519.PublicKey) PublicKey {
	return PublicKey{ID: IDOfKey(key), Role: role, Key: key}
}

// IDOfKey is the ID of a public key.
func IDOfKey(key ed25519.PublicKey) KeyID {
	sum := sha256.Sum256(key)
	return KeyID("ed25519:" + hex.EncodeToString(sum[:16]))
}

// Check refuses a key of the wrong size, of an unknown role, or with an ID
// that is not its own.
func (p PublicKey) Check() error {
	switch {
	case len(p.Key) != ed25519.PublicKeySize:
		return fmt.Errorf("%w: %d bytes", ErrPublicKey, len(p.Key))
	case !knownRole(p.Role):
		return fmt.Errorf("%w: role %q is not known", ErrPublicKey, p.Role)
	case p.ID != IDOfKey(p.Key):
		return fmt.Errorf("%w: ID %q is not that of the key", ErrPublicKey, p.ID)
	}
	return nil
}

// Verify tells whether sig is this key's signature of message.
func (p PublicKey) Verify(message, sig []byte) bool {
	return len(p.Key) == ed25519.PublicKeySize && ed25519.Verify(p.Key, message, sig)
}

// String is the key's line, as ParsePublicKey reads it.
func (p PublicKey) String() string {
	return publicKeyPrefix + p.Role + ":" + hex.EncodeToString(p.Key)
}

// ParsePublicKey reads "lockstep-key-v1:<role>:<hex>".
func ParsePublicKey(line string) (PublicKey, error) {
	rest, ok := strings.CutPrefix(line, publicKeyPrefix)
	role, digits, ok2 := strings.Cut(rest, ":")
	if !ok || !ok2 || len(digits) != 2*ed25519.PublicKeySize {
		return PublicKey{}, fmt.Errorf("parse public key: %w", ErrPublicKey)
	}
	raw, err := hex.DecodeString(digits)
	if err != nil {
		return PublicKey{}, fmt.Errorf("parse public key: %w: %w", ErrPublicKey, err)
	}
	key := NewPublicKey(role, raw)
	if err := key.Check(); err != nil {
		return PublicKey{}, fmt.Errorf("parse public key: %w", err)
	}
	if key.String() != line {
		return PublicKey{}, fmt.Errorf("parse public key: %w: not lower-case", ErrPublicKey)
	}
	return key, nil
}

// KeySet is the public keys a reader trusts.
type KeySet []PublicKey

// WithRole is the keys of one role.
func (s KeySet) WithRole(role string) KeySet {
	var out KeySet
	for _, k := range s {
		if k.Role == role {
			out = append(out, k)
		}
	}
	return out
}

// Find looks a key up by its ID.
func (s KeySet) Find(id KeyID) (PublicKey, bool) {
	for _, k := range s {
		if k.ID == id {
			return k, true
		}
	}
	return PublicKey{}, false
}

func knownRole(role string) bool {
	return role == RoleWriter || role == RoleProver || role == RoleCustodian
}

// VerifySignature checks a signature over message as it is, by the key of the
// set that keyID names. It is the counterpart of SigningKey.Sign.
func (s KeySet) VerifySignature(keyID string, message, sig []byte) error {
	k, ok := s.Find(KeyID(keyID))
	if !ok || k.Check() != nil || !k.Verify(message, sig) {
		return fmt.Errorf("verify signature by %q: %w", keyID, ErrSignature)
	}
	return nil
}
