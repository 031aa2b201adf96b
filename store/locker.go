package store

import (
	"context"
	"errors"
	"time"
)

// Errors of stores that deny and lock; adapters wrap them.
var (
	// ErrDenied says that the store refuses the credentials, or the right to do something.
	ErrDenied = errors.New("store denies access")
	// ErrLocked says that an object is retained and cannot be deleted yet.
	ErrLocked = errors.New("object is locked")
	// ErrNoLock says that a store does not lock objects.
	ErrNoLock = errors.New("store does not lock objects")
)

// LockMode says who can lift a lock early.
type LockMode string

// The modes of object lock.
const (
	Governance LockMode = "governance" // who has a special right can
	Compliance LockMode = "compliance" // nobody can
)

// LockStatus is what a store says about locking. The zero value: it does not.
type LockStatus struct {
	Enabled bool
	// Default is how long a new object is retained without Retain, 0 = not at all.
	Default     time.Duration
	DefaultMode LockMode
	// Now is the store's clock, by which locks end.
	Now time.Time
}

// Shadow is an object that something newer hides: on a store that locks, what
// was locked stays, but deleting or overwriting by name hides it from whoever
// asks for the newest version.
type Shadow struct {
	Key     string
	Deleted bool // the newest version is a delete marker
	Newer   int  // versions and delete markers above the one that Store methods use
}

// Locker is implemented by stores that can lock objects (WORM, object lock). On
// such a store, with locking enabled, all methods of Store use an object's
// oldest locked version, whatever lies above it: an object that was locked can
// be neither hidden nor replaced, Put over it is ErrExist, and Delete is
// ErrLocked while the lock holds.
type Locker interface {
	LockStatus(ctx context.Context) (LockStatus, error)
	// Retain locks an object until then, to the second. It never shortens a
	// lock, nor weakens its mode: a longer one stays, without an error.
	Retain(ctx context.Context, key string, until time.Time, mode LockMode) error
	// RetainedUntil is when an object's lock ends, zero where it was never locked.
	RetainedUntil(ctx context.Context, key string) (time.Time, error)
	// Shadowed calls fn for every shadowed object below prefix, in order.
	Shadowed(ctx context.Context, prefix string, fn func(Shadow) error) error
}
