package veracrypt

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"hash/crc32"
	"io"

	"github.com/lockstep-backup/lockstep/diskcrypt"
	"github.com/lockstep-backup/lockstep/envelope"
)

// Secret is what opens a volume, as docs/spec/veracrypt-secret.md writes it.
// Whoever makes one wipes it.
type Secret struct {
	Format   int      `json:"format"`
	Password []byte   `json:"password,omitempty"`
	PIM      uint64   `json:"pim,omitempty"`      // 0 = the default
	KeyFiles [][]byte `json:"keyfiles,omitempty"` // the first MiB of each counts
	// Hidden asks for the hidden volume only: its password must not open another.
	Hidden bool `json:"hidden,omitempty"`
}

const (
	secretFormat = 1
	maxKeyFiles  = 256
	keyFileBytes = 1 << 20
	maxPassword  = 128
	oldPassword  = 64 // TrueCrypt's, and the smaller pool's
)

var errSecret = errors.New("secret is malformed")

// Wipe overwrites password and key files.
func (s Secret) Wipe() {
	envelope.Wipe(s.Password)
	for _, k := range s.KeyFiles {
		envelope.Wipe(k)
	}
}

// Seal encodes the secret as one of KindVeraCrypt.
func (s Secret) Seal() (envelope.Secret, error) {
	s.Format = secretFormat
	if err := s.check(); err != nil {
		return envelope.Secret{}, err
	}
	b, err := json.Marshal(s)
	return envelope.NewSecret(b), err
}

func (s Secret) check() error {
	switch {
	case s.Format != secretFormat:
		return fmt.Errorf("%w: format %d, this version reads %d", errSecret, s.Format, secretFormat)
	case len(s.Password) > maxPassword:
		return fmt.Errorf("%w: password of %d bytes, the limit is %d", errSecret, len(s.Password), maxPassword)
	case s.PIM > maxPIM:
		return fmt.Errorf("%w: PIM is larger than %d", errSecret, maxPIM)
	case len(s.KeyFiles) > maxKeyFiles:
		return fmt.Errorf("%w: %d key files", errSecret, len(s.KeyFiles))
	case len(s.Password) == 0 && len(s.KeyFiles) == 0:
		return fmt.Errorf("%w: neither password nor key file", errSecret)
	}
	return nil
}

// secretOf understands a secret of any kind that opens these volumes. Another
// kind, or one that is malformed, opens nothing.
func secretOf(kind diskcrypt.Kind, given envelope.Secret) (Secret, error) {
	b := given.Expose()
	var s Secret
	switch kind {
	case diskcrypt.KindPassphrase:
		s = Secret{Format: secretFormat, Password: bytes.Clone(b)}
	case diskcrypt.KindKeyFile:
		if len(b) == 0 {
			return s, errSecret
		}
		s = Secret{Format: secretFormat, KeyFiles: [][]byte{bytes.Clone(b[:min(len(b), keyFileBytes)])}}
	case diskcrypt.KindVeraCrypt:
		d := json.NewDecoder(bytes.NewReader(b))
		d.DisallowUnknownFields()
		if err := d.Decode(&s); err != nil {
			s.Wipe()
			return Secret{}, errSecret // what is wrong with it may quote it
		}
		if _, err := d.Token(); !errors.Is(err, io.EOF) || !bytes.HasSuffix(b, []byte("}")) {
			s.Wipe()
			return Secret{}, errSecret
		}
	default:
		return s, fmt.Errorf("a secret of kind %q opens no volume of this type", kind)
	}
	if err := s.check(); err != nil {
		s.Wipe()
		return Secret{}, err
	}
	return s, nil
}

// mixed is the password with the key files in it. The caller wipes it.
func (s Secret) mixed() []byte {
	if len(s.KeyFiles) == 0 {
		return bytes.Clone(s.Password)
	}
	size := oldPassword
	if len(s.Password) > oldPassword {
		size = maxPassword
	}
	pool := make([]byte, size)
	copy(pool, s.Password)
	for _, k := range s.KeyFiles {
		mix(pool, k)
	}
	return pool
}

// mix adds a key file to the pool: after each byte the state of a running
// CRC-32, most significant byte first.
func mix(pool, file []byte) {
	file = file[:min(len(file), keyFileBytes)]
	state, at := ^uint32(0), 0
	for _, c := range file {
		state = crc32.IEEETable[byte(state)^c] ^ state>>8
		for shift := 24; shift >= 0; shift -= 8 {
			pool[at] += byte(state >> shift)
			at = (at + 1) % len(pool)
		}
	}
}
