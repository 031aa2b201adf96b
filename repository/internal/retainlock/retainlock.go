// Package retainlock keeps a repository's objects locked in a store that can
// (object lock, WORM): what is created is locked, and before a recovery point
// is committed, all that it needs. docs/spec/repository.md, section 16.
package retainlock

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"time"

	"github.com/lockstep-backup/lockstep/repository/format"
	"github.com/lockstep-backup/lockstep/repository/internal/twin"
	"github.com/lockstep-backup/lockstep/store"
)

// Policy says for how long objects are locked. The zero value: not at all.
type Policy struct {
	For     time.Duration  // from the commit on, at least
	Quantum time.Duration  // an object is extended at most once in it; 0: a seventh of For, at least a day
	Mode    store.LockMode // "": Governance
}

// maxFor keeps dates in what stores accept.
const maxFor = 100 * 365 * 24 * time.Hour

// Check refuses what cannot be meant.
func (p Policy) Check() error {
	switch {
	case p.For < 0 || p.For > maxFor:
		return fmt.Errorf("lock policy: a period of %s is not between 0 and 100 years", p.For)
	case p.Quantum < 0 || p.Quantum > maxFor || p.Quantum > 0 && p.Quantum < time.Second:
		return fmt.Errorf("lock policy: a quantum of %s is not between a second and 100 years", p.Quantum)
	case p.Mode != "" && p.Mode != store.Governance && p.Mode != store.Compliance:
		return fmt.Errorf("lock policy: mode %q is neither %s nor %s", p.Mode, store.Governance, store.Compliance)
	}
	return nil
}

func (p Policy) quantum() time.Duration {
	if p.Quantum > 0 {
		return p.Quantum.Truncate(time.Second)
	}
	return max(p.For/7, 24*time.Hour).Truncate(time.Second)
}

func (p Policy) mode() store.LockMode {
	if p.Mode == "" {
		return store.Governance
	}
	return p.Mode
}

// Until is when the lock of what is committed now ends.
func (p Policy) Until(now time.Time) time.Time {
	q := int64(p.quantum() / time.Second)
	end := now.Add(p.For)
	s := end.Unix()
	if end.Nanosecond() > 0 {
		s++
	}
	if rest := s % q; rest != 0 {
		s += q - rest
	}
	return time.Unix(s, 0).UTC()
}

// Locker finds what locks objects beneath a store, also behind a cache or a limit.
func Locker(s store.Store) (store.Locker, bool) {
	for {
		if l, ok := s.(store.Locker); ok {
			return l, true
		}
		u, ok := s.(interface{ Unwrap() store.Store })
		if !ok {
			return nil, false
		}
		s = u.Unwrap()
	}
}

// Store is a store whose new objects are locked. A nil *Store locks nothing.
type Store struct {
	store.Store
	policy Policy
	now    func() time.Time
	log    *slog.Logger

	mu     sync.Mutex
	locker store.Locker // nil: not asked yet
	ahead  time.Duration
}

// New locks what is created in st. That st cannot lock shows when something is
// written: reading must be possible whatever became of a bucket.
func New(st store.Store, p Policy, now func() time.Time, log *slog.Logger) *Store {
	return &Store{Store: st, policy: p, now: now, log: log}
}

// Unwrap gives the store beneath.
func (s *Store) Unwrap() store.Store { return s.Store }

// ready asks the store whether it locks objects, and for its clock: once, or again.
func (s *Store) ready(ctx context.Context, again bool) (store.Locker, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.locker != nil && !again {
		return s.locker, nil
	}
	l, ok := Locker(s.Store)
	if !ok {
		return nil, noLock(s.Location())
	}
	status, err := l.LockStatus(ctx)
	if err != nil {
		return nil, fmt.Errorf("ask the store for its locks: %w", err)
	}
	if !status.Enabled {
		return nil, noLock(s.Location())
	}
	s.locker, s.ahead = l, status.Now.Sub(s.now())
	return l, nil
}

// clock is the store's.
func (s *Store) clock() time.Time {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.now().Add(s.ahead)
}

// noLockError is store.ErrNoLock with a hint.
type noLockError struct{ location string }

func noLock(location string) error { return &noLockError{location} }

func (e *noLockError) Error() string {
	return fmt.Sprintf("retention locks are asked for in %s: %v", e.location, store.ErrNoLock)
}

// Unwrap gives store.ErrNoLock.
func (e *noLockError) Unwrap() error { return store.ErrNoLock }

// Hint says what to do, in one sentence.
func (e *noLockError) Hint() string {
	return "enable object lock on the bucket, or take the locks back with 'lockstep repository lock NAME --off'"
}

// class of an object: how it is locked when it is made.
type class int

const (
	full      class = iota // until the end of the period
	tentative              // for a quantum: an attempt that fails leaves it behind
	committed              // like full; that it could not be is no failure of the operation
	never
)

func classOf(key string) class {
	first, _, _ := strings.Cut(key, "/")
	switch first {
	case "seg", "map", "headers-a", "headers-b":
		return tentative
	case "log", "side":
		return committed
	case "ledger":
		return never
	}
	return full
}

// fresh locks an object that was just created.
func (s *Store) fresh(ctx context.Context, l store.Locker, key string) error {
	until := s.policy.Until(s.clock())
	kind := classOf(key)
	switch kind {
	case never:
		return nil
	case tentative:
		if soon := s.clock().Add(s.policy.quantum()); soon.Before(until) {
			until = soon
		}
	case committed:
		ctx = context.WithoutCancel(ctx) // it is there, whoever hangs up
	}
	err := l.Retain(ctx, key, until, s.policy.mode())
	if err != nil && kind == committed {
		s.log.Warn("a new object is not locked yet; the next backup does it", "object", key, "error", err)
		return nil
	}
	if err != nil {
		return fmt.Errorf("lock %s: %w", key, err)
	}
	return nil
}

// Put creates an object and locks it.
func (s *Store) Put(ctx context.Context, key string, data []byte) error {
	l, err := s.ready(ctx, false)
	if err != nil {
		return fmt.Errorf("put %s: %w", key, err)
	}
	if err := s.Store.Put(ctx, key, data); err != nil {
		return err
	}
	return s.fresh(ctx, l, key)
}

// Create starts an object that is locked when it is committed.
func (s *Store) Create(ctx context.Context, key string) (store.Writer, error) {
	l, err := s.ready(ctx, false)
	if err != nil {
		return nil, fmt.Errorf("create %s: %w", key, err)
	}
	w, err := s.Store.Create(ctx, key)
	if err != nil {
		return nil, err
	}
	return &writer{w, func() error { return s.fresh(ctx, l, key) }}, nil
}

type writer struct {
	store.Writer
	fresh func() error
}

// Commit makes the object durable, and locks it.
func (w *writer) Commit() error {
	if err := w.Writer.Commit(); err != nil {
		return err
	}
	return w.fresh()
}

// Held says whether the store holds an object by a lock.
func Held(ctx context.Context, st store.Store, key string) (bool, error) {
	l, ok := Locker(st)
	if !ok {
		return false, nil
	}
	until, err := l.RetainedUntil(ctx, key)
	switch {
	case errors.Is(err, store.ErrNoLock), errors.Is(err, store.ErrNotExist):
		return false, nil
	case err != nil || until.IsZero():
		return false, err
	}
	status, err := l.LockStatus(ctx)
	return until.After(status.Now), err
}

// Shadowed calls fn for each object that something newer hides, in the order
// of the keys. Where the store locks nothing there is none.
func Shadowed(ctx context.Context, st store.Store, fn func(store.Shadow) error) error {
	l, ok := Locker(st)
	if !ok {
		return nil
	}
	if status, err := l.LockStatus(ctx); err != nil || !status.Enabled {
		if errors.Is(err, store.ErrNoLock) {
			err = nil
		}
		return err
	}
	return l.Shadowed(ctx, "", fn)
}

// shared are the folders that all machines need, and the keys twice.
var shared = []string{format.HolderPrefix, format.TrustPrefix, twin.Prefix + format.HolderPrefix, twin.Prefix + format.TrustPrefix}
