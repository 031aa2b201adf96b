// Package memstore keeps a store's objects in memory, for tests.
//
// It is not bounded and not durable. Its invariant: it behaves as store.Store
// asks in everything that can be seen without a power cut.
package memstore

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/lockstep-backup/lockstep/store"
)

// Store is a store in memory. Use New.
type Store struct {
	mu      sync.RWMutex
	objects map[string][]byte

	now   func() time.Time // nil: objects cannot be locked
	locks map[string]*lock
}

var _ store.Store = (*Store)(nil)

// New makes an empty store.
func New() *Store { return &Store{objects: map[string][]byte{}} }

// Location implements store.Store.
func (s *Store) Location() string { return "memory:" }

// Put implements store.Store.
func (s *Store) Put(ctx context.Context, key string, data []byte) error {
	if err := check(ctx, key); err != nil {
		return fmt.Errorf("put %s: %w", key, err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.settle()
	if _, ok := s.objects[key]; ok {
		return fmt.Errorf("put %s: %w", key, store.ErrExist)
	}
	s.objects[key] = append([]byte{}, data...)
	return nil
}

// Create implements store.Store.
func (s *Store) Create(ctx context.Context, key string) (store.Writer, error) {
	if err := check(ctx, key); err != nil {
		return nil, fmt.Errorf("create %s: %w", key, err)
	}
	return &writer{s: s, ctx: ctx, key: key}, nil
}

// ReadRange implements store.Store.
func (s *Store) ReadRange(ctx context.Context, key string, off int64, p []byte) (int, error) {
	if err := check(ctx, key); err != nil {
		return 0, fmt.Errorf("read %s: %w", key, err)
	}
	if off < 0 {
		return 0, fmt.Errorf("read %s: negative offset %d", key, off)
	}
	s.rlock()
	defer s.mu.RUnlock()
	data, ok := s.objects[key]
	if !ok {
		return 0, fmt.Errorf("read %s: %w", key, store.ErrNotExist)
	}
	n := copy(p, data[min(off, int64(len(data))):])
	if n < len(p) {
		return n, io.EOF
	}
	return n, nil
}

// Stat implements store.Store.
func (s *Store) Stat(ctx context.Context, key string) (store.Info, error) {
	if err := check(ctx, key); err != nil {
		return store.Info{}, fmt.Errorf("stat %s: %w", key, err)
	}
	s.rlock()
	defer s.mu.RUnlock()
	data, ok := s.objects[key]
	if !ok {
		return store.Info{}, fmt.Errorf("stat %s: %w", key, store.ErrNotExist)
	}
	return store.Info{Key: key, Size: int64(len(data))}, nil
}

// List implements store.Store. It shows the objects of the moment it is called.
func (s *Store) List(ctx context.Context, prefix string, fn func(store.Info) error) error {
	if err := store.CheckPrefix(prefix); err != nil {
		return fmt.Errorf("list: %w", err)
	}
	s.rlock()
	var found []store.Info
	for key, data := range s.objects {
		if strings.HasPrefix(key, prefix) {
			found = append(found, store.Info{Key: key, Size: int64(len(data))})
		}
	}
	s.mu.RUnlock()
	slices.SortFunc(found, func(a, b store.Info) int { return strings.Compare(a.Key, b.Key) })
	for _, info := range found {
		if err := ctx.Err(); err != nil {
			return fmt.Errorf("list %s: %w", prefix, err)
		}
		if err := fn(info); err != nil {
			return err
		}
	}
	return nil
}

// Delete implements store.Store.
func (s *Store) Delete(ctx context.Context, key string) error {
	if err := check(ctx, key); err != nil {
		return fmt.Errorf("delete %s: %w", key, err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.settle()
	if _, ok := s.objects[key]; !ok {
		return fmt.Errorf("delete %s: %w", key, store.ErrNotExist)
	}
	if s.locked(key) {
		return fmt.Errorf("delete %s: %w", key, store.ErrLocked)
	}
	delete(s.objects, key)
	delete(s.locks, key)
	return nil
}

// rlock takes the mutex for reading, after locks that have ended gave way.
func (s *Store) rlock() {
	if s.now != nil {
		s.mu.Lock()
		s.settle()
		s.mu.Unlock()
	}
	s.mu.RLock()
}

// Corrupt lets change alter an object's bytes in place, or return others: what
// an untrusted store may do at any time.
func (s *Store) Corrupt(key string, change func([]byte) []byte) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	data, ok := s.objects[key]
	if !ok {
		return fmt.Errorf("corrupt %s: %w", key, store.ErrNotExist)
	}
	s.objects[key] = change(bytes.Clone(data))
	return nil
}

// Clone is a store with the same objects, which goes its own way afterwards.
func (s *Store) Clone() *Store {
	s.mu.RLock()
	defer s.mu.RUnlock()
	c := New()
	for key, data := range s.objects {
		c.objects[key] = bytes.Clone(data) // Replace writes into them
	}
	if c.now = s.now; s.locks != nil {
		c.locks = map[string]*lock{}
		for key, l := range s.locks {
			c.locks[key] = &lock{until: l.until, mode: l.mode, above: slices.Clone(l.above)}
		}
	}
	return c
}

var errDone = errors.New("writer was committed or aborted")

type writer struct {
	s    *Store
	ctx  context.Context
	key  string
	data bytes.Buffer
	done bool
}

func (w *writer) Write(p []byte) (int, error) {
	if w.done {
		return 0, fmt.Errorf("write %s: %w", w.key, errDone)
	}
	if err := w.ctx.Err(); err != nil {
		return 0, fmt.Errorf("write %s: %w", w.key, err)
	}
	return w.data.Write(p)
}

func (w *writer) Commit() error {
	if w.done {
		return fmt.Errorf("commit %s: %w", w.key, errDone)
	}
	w.done = true
	return w.s.Put(w.ctx, w.key, w.data.Bytes())
}

func (w *writer) Abort() error {
	w.done = true
	return nil
}

func check(ctx context.Context, key string) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	return store.CheckKey(key)
}
