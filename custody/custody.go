// Package custody is the model of which secret opens which recovery point:
// proofs, states, holds, changes between recovery points, declarations, key
// packages. docs/spec/custody.md is the format of what it signs.
//
// It does not store anything, read repositories, or open volumes: prove does
// the first two, the prover (package custody/prover, a process of its own) the
// last. Its invariant: nothing here is proven that was not opened from the
// recovery point's own bytes, and nothing signed here holds a secret that is
// not sealed to a recovery recipient.
package custody

import (
	"errors"
	"fmt"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/lockstep-backup/lockstep/envelope"
)

// State of a recovery point, or of one volume of it.
type State string

// The states; docs/glossary.md and the design of custody say what they mean.
const (
	Proven        State = "proven"
	AtRisk        State = "at-risk"
	Unproven      State = "unproven"
	Unrecoverable State = "unrecoverable"
	Shredded      State = "shredded"
	Plain         State = "plain"
	Opaque        State = "opaque"
)

// Errors that callers act on.
var (
	ErrStatement = errors.New("statement is malformed")
	ErrFormat    = errors.New("statement's format is not known")
	ErrMismatch  = errors.New("statement is about something else")
	ErrRevoked   = errors.New("statement is signed by a revoked key")
	ErrTooLarge  = errors.New("larger than a package may be")

	// ErrProverDied: the prover's process ended in the middle (killed, out of
	// memory). Nothing was proven; another try starts another process.
	ErrProverDied = errors.New("prover died")
	// ErrProverStart: the prover's process cannot be started, and why.
	ErrProverStart = errors.New("prover cannot be started")
	// ErrProverProtocol: what came from the prover's process cannot be.
	ErrProverProtocol = errors.New("prover does not follow its protocol")
	// ErrManager: the prover cannot have secrets from the key manager now.
	ErrManager = errors.New("key manager gives no secrets")
)

// Trust says which keys may sign what. repository.Trust is one.
type Trust interface {
	// KeySet returns the keys of a role.
	KeySet(role string) envelope.KeySet
	// Key returns a key by its id, and since when it is revoked, nil if it is not.
	Key(id envelope.KeyID) (key envelope.PublicKey, revoked *time.Time, ok bool)
}

// TrustKeys is a Trust of keys none of which is revoked.
type TrustKeys envelope.KeySet

// KeySet implements Trust.
func (t TrustKeys) KeySet(role string) envelope.KeySet { return envelope.KeySet(t).WithRole(role) }

// Key implements Trust.
func (t TrustKeys) Key(id envelope.KeyID) (envelope.PublicKey, *time.Time, bool) {
	k, ok := envelope.KeySet(t).Find(id)
	return k, nil, ok
}

// verify checks a statement's signature by a key of the role. With ErrRevoked
// the payload is returned too; whether it may be used is the caller's rule.
func verify(raw []byte, payloadType, role string, trust Trust) ([]byte, envelope.KeyID, error) {
	// The trust log is asked for the role once more: what it hands out as a
	// role's keys must not depend on how an implementation filters.
	payload, signer, err := envelope.Verify(raw, payloadType, trust.KeySet(role).WithRole(role))
	if err != nil {
		return nil, "", err
	}
	_, revoked, ok := trust.Key(signer)
	if !ok {
		return nil, "", fmt.Errorf("verify statement: %w", envelope.ErrSignature)
	}
	if revoked != nil {
		return payload, signer, fmt.Errorf("verify statement: %w: %s since %s", ErrRevoked, signer, revoked.UTC().Format(time.RFC3339))
	}
	return payload, signer, nil
}

const (
	formatVersion = 1
	maxText       = 1024
	maxReason     = 4096
)

func checkFormat(format int) error {
	if format != formatVersion {
		return fmt.Errorf("%w: %d, this version reads %d", ErrFormat, format, formatVersion)
	}
	return nil
}

// checkText refuses what must not reach a terminal or a file name.
func checkText(field, s string, limit int) error {
	if len(s) > limit {
		return fmt.Errorf("%w: %s has %d bytes, the limit is %d", ErrStatement, field, len(s), limit)
	}
	if !utf8.ValidString(s) {
		return fmt.Errorf("%w: %s is not UTF-8", ErrStatement, field)
	}
	for _, r := range s {
		if unicode.IsControl(r) {
			return fmt.Errorf("%w: %s holds a control character", ErrStatement, field)
		}
	}
	return nil
}

func checkTexts(pairs ...string) error {
	for i := 0; i+1 < len(pairs); i += 2 {
		if err := checkText(pairs[i], pairs[i+1], maxText); err != nil {
			return err
		}
	}
	return nil
}

func isHex(s string) bool {
	for _, c := range []byte(s) {
		if (c < '0' || c > '9') && (c < 'a' || c > 'f') {
			return false
		}
	}
	return true
}

// checkIDs refuses ids that are not 32 lower-case hex digits.
func checkIDs(pairs ...string) error {
	for i := 0; i+1 < len(pairs); i += 2 {
		if id := pairs[i+1]; len(id) != 32 || !isHex(id) {
			return fmt.Errorf("%w: %s is not an id of 32 hex digits", ErrStatement, pairs[i])
		}
	}
	return nil
}

func checkHex(field, s string) error {
	if s == "" || len(s) > 128 || !isHex(s) {
		return fmt.Errorf("%w: %s is not hex", ErrStatement, field)
	}
	return nil
}

func checkTime(field string, t time.Time) error {
	if t.IsZero() {
		return fmt.Errorf("%w: %s is missing", ErrStatement, field)
	}
	return nil
}
