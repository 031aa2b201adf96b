package limit

import (
	"context"

	"github.com/lockstep-backup/lockstep/source"
	"github.com/lockstep-backup/lockstep/store"
	"github.com/lockstep-backup/lockstep/target"
)

// Source limits the reading of a disk by the limits of ctx, which also ends the
// waiting; without limits it is d itself. Where data is and what changed is
// asked of d, so holes cost nothing, and buffers go through as they are.
func Source(ctx context.Context, d source.Disk) source.Disk {
	l := From(ctx)
	if l == nil {
		return d
	}
	return &limitedSource{d, ctx, l}
}

type limitedSource struct {
	source.Disk
	ctx context.Context
	l   *Limits
}

func (s *limitedSource) ReadAt(p []byte, off int64) (int, error) {
	if err := s.l.Read(s.ctx, len(p)); err != nil {
		return 0, err
	}
	return s.Disk.ReadAt(p, off)
}

// Target limits the writing of a disk like Source; zeroes made without writing
// them are free.
func Target(ctx context.Context, d target.Disk) target.Disk {
	l := From(ctx)
	if l == nil {
		return d
	}
	return &limitedTarget{d, ctx, l}
}

type limitedTarget struct {
	target.Disk
	ctx context.Context
	l   *Limits
}

func (t *limitedTarget) WriteAt(p []byte, off int64) (int, error) {
	if err := t.l.Write(t.ctx, len(p)); err != nil {
		return 0, err
	}
	return t.Disk.WriteAt(p, off)
}

// ReadAt compares what was written; that counts as reading.
func (t *limitedTarget) ReadAt(p []byte, off int64) (int, error) {
	if err := t.l.Read(t.ctx, len(p)); err != nil {
		return 0, err
	}
	return t.Disk.ReadAt(p, off)
}

// Store limits each request by the limits of its own context; requests without
// pass as they are. What the store can do beyond the contract is asked of the
// store itself, see Unwrap.
func Store(s store.Store) store.Store {
	if l, ok := s.(store.Locker); ok {
		return &lockingStore{limitedStore{s}, l}
	}
	return &limitedStore{s}
}

// lockingStore is a limited store that can lock objects.
type lockingStore struct {
	limitedStore
	store.Locker
}

type limitedStore struct{ store.Store }

// Unwrap gives the store itself.
func (s *limitedStore) Unwrap() store.Store { return s.Store }

func (s *limitedStore) Put(ctx context.Context, key string, data []byte) error {
	if err := From(ctx).Write(ctx, len(data)); err != nil {
		return err
	}
	return s.Store.Put(ctx, key, data)
}

func (s *limitedStore) Create(ctx context.Context, key string) (store.Writer, error) {
	w, err := s.Store.Create(ctx, key)
	if l := From(ctx); l != nil && err == nil {
		w = &limitedWriter{w, ctx, l}
	}
	return w, err
}

func (s *limitedStore) ReadRange(ctx context.Context, key string, off int64, p []byte) (int, error) {
	if err := From(ctx).Read(ctx, len(p)); err != nil {
		return 0, err
	}
	return s.Store.ReadRange(ctx, key, off, p)
}

type limitedWriter struct {
	store.Writer
	ctx context.Context
	l   *Limits
}

func (w *limitedWriter) Write(p []byte) (int, error) {
	if err := w.l.Write(w.ctx, len(p)); err != nil {
		return 0, err
	}
	return w.Writer.Write(p)
}
