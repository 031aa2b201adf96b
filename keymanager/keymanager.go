// Package keymanager is the contract for where secret versions live. It does
// not know what a secret opens, nor who may have it: that is custody's.
// Versions are never overwritten; a version with holds is never destroyed.
package keymanager

import (
	"context"
	"errors"
	"fmt"
	"strings"
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
	ErrDamaged     = errors.New("key manager's state is damaged") // what it stored does not authenticate or is gone
	ErrInvalid     = errors.New("invalid request")                // no retry will help
)

// HeldError refuses to destroy a version that recovery points need.
type HeldError struct {
	Ref   Ref
	Holds []Hold
}

func (e *HeldError) Error() string {
	if len(e.Holds) == 1 {
		return "held by 1 recovery point"
	}
	return fmt.Sprintf("held by %d recovery points", len(e.Holds))
}

// TransitionError refuses a change of state that CheckTransition does not know.
type TransitionError struct {
	Ref      Ref
	From, To State
	Why      string
}

func (e *TransitionError) Error() string {
	return fmt.Sprintf("set state of secret %s: from %s to %s: %s", e.Ref, e.From, e.To, e.Why)
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

// transitions lists where SetState may go. Destroyed is reached by Destroy
// alone, from every state; Compromised is left by Destroy alone.
var transitions = map[State][]State{
	PreActive:   {Active, Compromised},
	Active:      {Disabled, Deactivated, Compromised},
	Disabled:    {Active, Deactivated, Compromised},
	Deactivated: {Active, Compromised},
	Compromised: {},
	Destroyed:   {},
}

// CheckTransition says whether SetState may go from one state to another:
// nil, ErrDestroyed (wrapped) or a *TransitionError. Going to the present state
// is fine and changes nothing, so that a call whose answer was lost can be
// repeated. Deactivated to active needs a reason: it is what happens when a
// guest is reverted to a snapshot and its earlier protectors come back.
func CheckTransition(ref Ref, from, to State, reason string) error {
	if from == Destroyed {
		return fmt.Errorf("set state of secret %s: %w", ref, ErrDestroyed)
	}
	refuse := func(why string) error { return &TransitionError{Ref: ref, From: from, To: to, Why: why} }
	if _, known := transitions[to]; !known {
		return refuse("no such state")
	}
	if to == Destroyed {
		return refuse("only Destroy destroys")
	}
	if from == to {
		return nil
	}
	for _, s := range transitions[from] {
		if s != to {
			continue
		}
		if from == Deactivated && to == Active && strings.TrimSpace(reason) == "" {
			return refuse("needs a reason")
		}
		return nil
	}
	return refuse("no such transition")
}

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

// Key identifies the hold: placing it twice is placing it once. Slashes inside
// the parts are escaped, so that two different holds never share a key.
func (h Hold) Key() string {
	e := strings.NewReplacer("%", "%25", "/", "%2F").Replace
	return e(h.Installer) + "/" + e(h.Repository) + "/" + e(h.Machine) + "/" + e(h.Point)
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
	// ID of the secret; "" = a new secret with a new id. An id that does not
	// exist yet makes a new secret of that id, so a caller who picks the id can
	// repeat a Put whose answer was lost. Portable ids are made of lower-case
	// letters, digits and hyphens, at most 64 of them.
	ID     string
	Kind   string            // diskcrypt.Kind; all versions of a secret have the same
	Labels map[string]string // merged into the secret's labels when a version is added
	State  State             // PreActive or Active
	Secret envelope.Secret   // not empty; the caller wipes it
	Reason string            // goes into the version's first Transition
}

// Manager keeps secret versions. All methods are safe for concurrent use, also
// from several processes; what returned nil survives kill -9. What returned an
// error may have happened or not; repeating the call is always safe. A manager
// is trusted with the bytes and believed about states; errors never contain
// secret bytes.
type Manager interface {
	// Put adds a version, numbered one past the highest ever given to this
	// secret, destroyed ones included. Where any version of the same secret id
	// that is not destroyed has the same bytes, that version is returned as it is
	// and nothing is added or changed. ErrInvalid: empty bytes, another kind than
	// the secret has, a state other than PreActive or Active.
	Put(ctx context.Context, p Put) (Version, error)
	// Get returns a copy of the bytes; the caller wipes it. ErrNotFound,
	// ErrDisabled, ErrDestroyed. Pre-active, deactivated and compromised versions
	// are returned: what they opened must still open.
	Get(ctx context.Context, ref Ref) (envelope.Secret, error)
	// List returns all secrets, ordered by id, never their bytes. With an error
	// that wraps ErrDamaged it still returns those that could be read.
	List(ctx context.Context) ([]Info, error)
	// SetState records a transition that CheckTransition allows; the state the
	// version has already is recorded once only.
	SetState(ctx context.Context, ref Ref, s State, reason string) error
	// Hold places a hold, Unhold releases some; both are idempotent by Hold.Key.
	// The first Since stays. A destroyed version takes no hold: ErrDestroyed.
	Hold(ctx context.Context, ref Ref, h Hold) error
	Unhold(ctx context.Context, ref Ref, holds ...Hold) error
	// Destroy wipes a version's bytes for ever, from any state; *HeldError with
	// every hold while there are some. The version stays listed as Destroyed.
	// Destroying a destroyed version finishes what may have been left over and
	// returns nil.
	Destroy(ctx context.Context, ref Ref, reason string) error
}
