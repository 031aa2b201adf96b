// Package faultstore puts scripted faults between a repository and its store,
// for tests: errors, a full store, damaged and truncated reads, kill points,
// and a power cut that takes what was acknowledged too early.
//
// It is not random: every fault names the operation it strikes. Its invariant:
// a fault that was never met fails the test (AssertExercised), so that a
// script cannot go stale unnoticed.
package faultstore

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"sync"

	"github.com/lockstep-backup/lockstep/store"
)

// Op is a kind of operation.
type Op string

// The operations that a fault can strike.
const (
	Put    Op = "put"
	Create Op = "create"
	Write  Op = "write"
	Commit Op = "commit"
	Abort  Op = "abort"
	Read   Op = "read"
	Stat   Op = "stat"
	List   Op = "list"
	Delete Op = "delete"
	Any    Op = "" // every one of them
)

// Errors that faults give.
var (
	ErrInjected = errors.New("injected fault")
	ErrKilled   = errors.New("process was killed")
)

// Fault strikes operations of kind Op whose key Match accepts (nil: all): the
// Nth of them (from 1), or every one if Nth is 0. Of the effects, exactly one
// is set; see the functions that make them.
type Fault struct {
	Op    Op
	Nth   int
	Match func(key string) bool

	err      error
	after    bool
	kill     bool
	killFunc func()
	flip     bool
	flipBit  int64
	truncate bool
	keep     int
	lie      bool

	seen, hits int
}

// Fail makes the nth op return err (nil: ErrInjected), without doing anything.
func Fail(op Op, nth int, err error) *Fault {
	return &Fault{Op: op, Nth: nth, err: orInjected(err)}
}

// FailAfter does the nth op, then returns err all the same: the answer was lost.
func FailAfter(op Op, nth int, err error) *Fault {
	return &Fault{Op: op, Nth: nth, err: orInjected(err), after: true}
}

// KillBefore kills the process before the nth op: it and every later operation
// return ErrKilled, and writers still open are lost. kill, if not nil, is
// called first; it may end the goroutine or block.
func KillBefore(op Op, nth int, kill func()) *Fault {
	return &Fault{Op: op, Nth: nth, kill: true, killFunc: kill}
}

// KillAfter is KillBefore, with the op done in the store but not acknowledged.
func KillAfter(op Op, nth int, kill func()) *Fault {
	return &Fault{Op: op, Nth: nth, kill: true, killFunc: kill, after: true}
}

// FlipBit flips one bit of the object in what the nth read returns, if that
// bit is in its range; reads beside it are not counted.
func FlipBit(nth int, bit int64) *Fault {
	return &Fault{Op: Read, Nth: nth, flip: true, flipBit: bit}
}

// Truncate makes objects end after keep bytes for the nth read.
func Truncate(nth, keep int) *Fault {
	return &Fault{Op: Read, Nth: nth, truncate: true, keep: keep}
}

// LoseOnCrash acknowledges the nth put or commit (op), but Crash takes the
// object away again: what a left-out fsync does.
func LoseOnCrash(op Op, nth int) *Fault {
	return &Fault{Op: op, Nth: nth, lie: true}
}

// On limits a fault to keys that match accepts.
func (f *Fault) On(match func(key string) bool) *Fault {
	f.Match = match
	return f
}

func (f *Fault) String() string {
	effect := "fail"
	switch {
	case f.kill:
		effect = "kill"
	case f.flip:
		effect = "flip bit"
	case f.truncate:
		effect = "truncate"
	case f.lie:
		effect = "lose on crash"
	}
	when := "before"
	if f.after {
		when = "after"
	}
	return fmt.Sprintf("%s %s %q #%d", effect, when, string(f.Op), f.Nth)
}

// Event is one operation that reached the store.
type Event struct {
	Op  Op
	Key string
	N   int64 // bytes put, written or asked for
}

func (e Event) String() string { return fmt.Sprintf("%s %s %d", e.Op, e.Key, e.N) }

// Store wraps another store. Use New.
type Store struct {
	under store.Store

	mu       sync.Mutex
	faults   []*Fault
	trace    []Event
	capacity int64 // -1: unbounded
	full     bool  // capacity was met
	limited  bool
	used     int64
	dead     bool
	unsynced []string
}

var _ store.Store = (*Store)(nil)

// New wraps under with a script.
func New(under store.Store, faults ...*Fault) *Store {
	return &Store{under: under, faults: faults, capacity: -1}
}

// Add appends to the script; the fault counts operations from now on.
func (s *Store) Add(faults ...*Fault) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.faults = append(s.faults, faults...)
}

// SetCapacity makes puts and writes fail with store.ErrFull once n more bytes
// were written; -1 lifts the bound. Deleting and aborting give nothing back.
func (s *Store) SetCapacity(n int64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.capacity, s.used = n, 0
	s.limited = s.limited || n >= 0
}

// Crash cuts the power: objects that a LoseOnCrash fault struck are gone,
// everything fails with ErrKilled from now on. It returns the keys lost. The
// store beneath is what the next process finds.
func (s *Store) Crash() ([]string, error) {
	s.mu.Lock()
	s.dead = true
	lost := s.unsynced
	s.unsynced = nil
	s.mu.Unlock()
	for _, key := range lost {
		if err := s.under.Delete(context.Background(), key); err != nil && !errors.Is(err, store.ErrNotExist) {
			return nil, fmt.Errorf("crash: %w", err)
		}
	}
	return lost, nil
}

// Killed tells whether a kill point was reached.
func (s *Store) Killed() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.dead
}

// Trace is what was done so far, in order, struck operations included.
func (s *Store) Trace() []Event {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.trace)
}

// Unexercised lists the faults that never struck.
func (s *Store) Unexercised() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	var out []string
	for _, f := range s.faults {
		if f.hits == 0 {
			out = append(out, f.String())
		}
	}
	if s.limited && !s.full {
		out = append(out, "full store")
	}
	return out
}

// TB is the part of testing.TB that AssertExercised needs.
type TB interface {
	Helper()
	Errorf(format string, args ...any)
}

// AssertExercised fails the test for every fault that never struck.
func (s *Store) AssertExercised(t TB) {
	t.Helper()
	for _, f := range s.Unexercised() {
		t.Errorf("fault never struck: %s", f)
	}
}

// Location implements store.Store.
func (s *Store) Location() string { return s.under.Location() }

// Put implements store.Store.
func (s *Store) Put(ctx context.Context, key string, data []byte) error {
	return s.do(Put, key, int64(len(data)), func() error {
		if err := s.room(len(data)); err != nil {
			return err
		}
		return s.under.Put(ctx, key, data)
	})
}

// Create implements store.Store.
func (s *Store) Create(ctx context.Context, key string) (store.Writer, error) {
	var w store.Writer
	err := s.do(Create, key, 0, func() (err error) {
		w, err = s.under.Create(ctx, key)
		return err
	})
	if err != nil {
		if w != nil {
			_ = w.Abort() // struck after it was made: nobody holds it
		}
		return nil, err
	}
	return &writer{s: s, key: key, under: w}, nil
}

// ReadRange implements store.Store.
func (s *Store) ReadRange(ctx context.Context, key string, off int64, p []byte) (int, error) {
	n := 0
	var readErr error
	err := s.do(Read, key, int64(len(p)), func() error {
		n, readErr = s.under.ReadRange(ctx, key, off, p)
		if readErr != nil && !errors.Is(readErr, io.EOF) {
			return readErr
		}
		n, readErr = s.damage(key, off, p, n, readErr)
		return nil
	})
	if err != nil {
		return 0, err
	}
	return n, readErr
}

// damage applies the faults that alter what was read.
func (s *Store) damage(key string, off int64, p []byte, n int, err error) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, f := range s.faults {
		at := f.flipBit/8 - off
		switch {
		case f.flip && at >= 0 && at < int64(n) && f.strikes(Read, key):
			p[at] ^= 1 << (f.flipBit % 8)
		case f.truncate && off+int64(n) > int64(f.keep) && f.strikes(Read, key):
			n = int(max(int64(f.keep)-off, 0))
			err = io.EOF
		}
	}
	return n, err
}

// Stat implements store.Store.
func (s *Store) Stat(ctx context.Context, key string) (store.Info, error) {
	var info store.Info
	err := s.do(Stat, key, 0, func() (err error) {
		info, err = s.under.Stat(ctx, key)
		return err
	})
	return info, err
}

// List implements store.Store.
func (s *Store) List(ctx context.Context, prefix string, fn func(store.Info) error) error {
	return s.do(List, prefix, 0, func() error { return s.under.List(ctx, prefix, fn) })
}

// Delete implements store.Store.
func (s *Store) Delete(ctx context.Context, key string) error {
	return s.do(Delete, key, 0, func() error { return s.under.Delete(ctx, key) })
}

type writer struct {
	s     *Store
	key   string
	under store.Writer
}

func (w *writer) Write(p []byte) (int, error) {
	n := 0
	err := w.s.do(Write, w.key, int64(len(p)), func() (err error) {
		if err := w.s.room(len(p)); err != nil {
			return err
		}
		n, err = w.under.Write(p)
		return err
	})
	if err != nil {
		return 0, err
	}
	return n, nil
}

func (w *writer) Commit() error { return w.s.do(Commit, w.key, 0, w.under.Commit) }

func (w *writer) Abort() error {
	if w.s.Killed() {
		// The dead do not clean up; but the store beneath is this process's.
		_ = w.under.Abort()
		return ErrKilled
	}
	return w.s.do(Abort, w.key, 0, w.under.Abort)
}

// do runs one operation under the script.
func (s *Store) do(op Op, key string, n int64, act func() error) error {
	s.mu.Lock()
	if s.dead {
		s.mu.Unlock()
		return fmt.Errorf("%s %s: %w", op, key, ErrKilled)
	}
	s.trace = append(s.trace, Event{Op: op, Key: key, N: n})
	var struck *Fault
	lie := false
	for _, f := range s.faults {
		switch {
		case f.flip || f.truncate: // counted in damage
		case f.lie:
			lie = f.strikes(op, key) || lie
		case f.strikes(op, key) && struck == nil:
			struck = f
		}
	}
	if struck != nil && !struck.after {
		return s.strike(struck, op, key)
	}
	s.mu.Unlock()

	err := act()

	s.mu.Lock()
	if lie && err == nil {
		s.unsynced = append(s.unsynced, key)
	}
	if struck != nil {
		return s.strike(struck, op, key)
	}
	s.mu.Unlock()
	return err
}

// strike takes the mutex held and gives it back.
func (s *Store) strike(f *Fault, op Op, key string) error {
	if !f.kill {
		s.mu.Unlock()
		return fmt.Errorf("%s %s: %w", op, key, f.err)
	}
	s.dead = true
	s.mu.Unlock()
	if f.killFunc != nil {
		f.killFunc()
	}
	return fmt.Errorf("%s %s: %w", op, key, ErrKilled)
}

func (s *Store) room(n int) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.used += int64(n)
	if s.capacity >= 0 && s.used > s.capacity {
		s.full = true
		return fmt.Errorf("%w: injected", store.ErrFull)
	}
	return nil
}

// strikes counts an operation and tells whether it is the one.
func (f *Fault) strikes(op Op, key string) bool {
	if f.Op != Any && f.Op != op || f.Match != nil && !f.Match(key) {
		return false
	}
	f.seen++
	if f.Nth != 0 && f.Nth != f.seen {
		return false
	}
	f.hits++
	return true
}

func orInjected(err error) error {
	if err == nil {
		return ErrInjected
	}
	return err
}
