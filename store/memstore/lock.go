package memstore

import (
	"bytes"
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/lockstep-backup/lockstep/store"
)

// NewLocking makes an empty store that can lock objects, until times of the
// clock now. Hide and Cover do to it what somebody with rights on a bucket does.
func NewLocking(now func() time.Time) *Store {
	s := New()
	s.now = now
	s.locks = map[string]*lock{}
	return s
}

// lock is an object's lock and what lies above the object.
type lock struct {
	until time.Time
	mode  store.LockMode
	above []above
}

// above is a newer version, or a delete marker.
type above struct {
	data    []byte
	deleted bool
}

var _ store.Locker = (*Store)(nil)

// settle gives way to what lies above objects whose lock has ended. The mutex
// must be held for writing.
func (s *Store) settle() {
	for key, l := range s.locks {
		if s.now().Before(l.until) || len(l.above) == 0 {
			continue
		}
		if newest := l.above[len(l.above)-1]; newest.deleted {
			delete(s.objects, key)
		} else {
			s.objects[key] = newest.data
		}
		delete(s.locks, key)
	}
}

func (s *Store) locked(key string) bool {
	l := s.locks[key]
	return l != nil && s.now().Before(l.until)
}

// Hide puts a delete marker on an object, as a deletion by its name does.
func (s *Store) Hide(key string) error { return s.lay(key, above{deleted: true}) }

// Cover puts a newer version over an object, without the condition of Put.
func (s *Store) Cover(key string, data []byte) error {
	return s.lay(key, above{data: bytes.Clone(data)})
}

func (s *Store) lay(key string, a above) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.settle()
	switch {
	case s.objects[key] == nil:
		return fmt.Errorf("hide %s: %w", key, store.ErrNotExist)
	case s.locked(key):
		s.locks[key].above = append(s.locks[key].above, a)
	case a.deleted:
		delete(s.objects, key)
		delete(s.locks, key)
	default:
		s.objects[key] = a.data
		delete(s.locks, key)
	}
	return nil
}

// LockStatus implements store.Locker.
func (s *Store) LockStatus(ctx context.Context) (store.LockStatus, error) {
	if err := ctx.Err(); err != nil || s.now == nil {
		return store.LockStatus{}, err
	}
	return store.LockStatus{Enabled: true, Now: s.now()}, nil
}

// Retain implements store.Locker.
func (s *Store) Retain(ctx context.Context, key string, until time.Time, mode store.LockMode) error {
	return s.withLock(ctx, "retain", key, func() {
		l := s.locks[key]
		if l == nil {
			l = &lock{}
			s.locks[key] = l
		}
		if rounded := until.Truncate(time.Second); rounded.Before(until) {
			until = rounded.Add(time.Second)
		}
		if until.After(l.until) {
			l.until = until
		}
		if l.mode != store.Compliance {
			l.mode = mode
		}
	})
}

// RetainedUntil implements store.Locker.
func (s *Store) RetainedUntil(ctx context.Context, key string) (until time.Time, err error) {
	err = s.withLock(ctx, "look at the lock of", key, func() {
		if l := s.locks[key]; l != nil {
			until = l.until
		}
	})
	return until, err
}

func (s *Store) withLock(ctx context.Context, op, key string, fn func()) error {
	err := check(ctx, key)
	if err == nil && s.now == nil {
		err = store.ErrNoLock
	}
	if err == nil {
		s.mu.Lock()
		defer s.mu.Unlock()
		s.settle()
		if _, ok := s.objects[key]; !ok {
			err = store.ErrNotExist
		}
	}
	if err != nil {
		return fmt.Errorf("%s %s: %w", op, key, err)
	}
	fn()
	return nil
}

// Shadowed implements store.Locker.
func (s *Store) Shadowed(ctx context.Context, prefix string, fn func(store.Shadow) error) error {
	err := store.CheckPrefix(prefix)
	if err == nil && s.now == nil {
		err = store.ErrNoLock
	}
	if err != nil {
		return fmt.Errorf("list %s: %w", prefix, err)
	}
	s.mu.Lock()
	s.settle()
	var found []store.Shadow
	for key, l := range s.locks {
		if n := len(l.above); n > 0 && strings.HasPrefix(key, prefix) {
			found = append(found, store.Shadow{Key: key, Deleted: l.above[n-1].deleted, Newer: n})
		}
	}
	s.mu.Unlock()
	slices.SortFunc(found, func(a, b store.Shadow) int { return strings.Compare(a.Key, b.Key) })
	for _, f := range found {
		if err := ctx.Err(); err != nil {
			return fmt.Errorf("list %s: %w", prefix, err)
		}
		if err := fn(f); err != nil {
			return err
		}
	}
	return nil
}
