// Package keymanager is the contract for where secret versions live. Versions
// are never overwritten; a version with holds is never destroyed.
package keymanager

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/lockstep-backup/lockstep/envelope"
)

// Errors that callers act on; adapters wrap them.
var (
	ErrNotFound    = errors.New("no such secret")
	ErrDestroyed   = errors.New("secret version is destroyed")
	ErrDisabled    = errors.New("secret version is disabled")
	ErrSealed      = errors.New("key manager is sealed") // its own key cannot be had
	ErrUnavailable = errors.New("key manager does not answer")
)

// HeldError refuses to destroy a version that recovery points need.
type HeldError struct {
	Ref   Ref
	Holds []Hold
}

func (e *HeldError) Error() string {
	return fmt.Sprintf("destroy secret %s: held by %d recovery points", e.Ref, len(e.Holds))
}

// State of a version, after NIST SP 800-57 part 1.
type State string

// The states. Deactivated opens old recovery points (the archive); Disabled is
// refused by Get until enabled again (SP 800-57's suspended).
const (
	PreActive   State = "pre-active"
	Active      State = "active"
	Disabled    State = "disabled"
	Deactivated State = "deactivated"
	Compromised State = "compromised"
	Destroyed   State = "destroyed"
)

// Ref names one version of a secret. It prints as "id@version".
type Ref struct {
	ID      string `json:"id"`
	Version int    `json:"version"` // 1, 2, …
}

func (r Ref) String() string { return fmt.Sprintf("%s@%d", r.ID, r.Version) }

// Hold says that a recovery point in a repository needs a version.
type Hold struct {
	Repository string    `json:"repository"` // repository id
	Machine    string    `json:"machine"`    // machine id
	Point      string    `json:"point"`      // recovery point id
	Installer  string    `json:"installer"`  // installation id: several may share a manager
	Since      time.Time `json:"since"`
}

// Key identifies the hold: placing it twice is placing it once.
func (h Hold) Key() string {
	return h.Installer + "/" + h.Repository + "/" + h.Machine + "/" + h.Point
}

// Transition is one dated change of state.
type Transition struct {
	State  State     `json:"state"`
	At     time.Time `json:"at"`
	Reason string    `json:"reason,omitempty"`
}

// Version is what is known of one version without its bytes.
type Version struct {
	Ref     Ref          `json:"ref"`
	State   State        `json:"state"`
	Created time.Time    `json:"created"`
	History []Transition `json:"history"`
	Holds   []Hold       `json:"holds,omitempty"`
	Expires *time.Time   `json:"expires,omitempty"`
}

// Info is what is known of a secret without its bytes.
type Info struct {
	ID       string            `json:"id"`
	Kind     string            `json:"kind"` // diskcrypt.Kind
	Labels   map[string]string `json:"labels,omitempty"`
	Versions []Version         `json:"versions"` // ascending
}

// Labels that custody sets. A secret belongs to a machine; volume is a scope, may be empty.
const (
	LabelMachine = "machine" // machine id
	LabelVolume  = "volume"  // "DISK/VOLUME" or ""
)

// Put asks for a new version.
type Put struct {
	ID     string // "" = a new secret with a new id
	Kind   string
	Labels map[string]string
	State  State // PreActive or Active
	Secret envelope.Secret
	Reason string
}

// Manager keeps secret versions. All methods are safe for concurrent use, also
// from several processes; what returned nil survives kill -9.
type Manager interface {
	// Put adds a version. Where the newest... any version of the same secret id
	// has the same bytes, that version is returned and nothing is added.
	Put(ctx context.Context, p Put) (Version, error)
	// Get returns the bytes; the caller wipes them. ErrDisabled, ErrDestroyed.
	Get(ctx context.Context, ref Ref) (envelope.Secret, error)
	// List returns all secrets, ordered by id.
	List(ctx context.Context) ([]Info, error)
	// SetState records a transition; not to Destroyed (see Destroy).
	SetState(ctx context.Context, ref Ref, s State, reason string) error
	// Hold places a hold, Unhold releases it; both are idempotent.
	Hold(ctx context.Context, ref Ref, h Hold) error
	Unhold(ctx context.Context, ref Ref, h Hold) error
	// Destroy wipes a version's bytes for ever; *HeldError while there are holds.
	Destroy(ctx context.Context, ref Ref, reason string) error
}
