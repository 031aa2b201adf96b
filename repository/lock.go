package repository

import (
	"context"

	"github.com/lockstep-backup/lockstep/repository/internal/retainlock"
	"github.com/lockstep-backup/lockstep/store"
)

// LockPolicy says for how long the store locks what is written.
type LockPolicy = retainlock.Policy

// Shadowed calls fn for each object of the repository that something newer
// hides in a store that locks objects.
func (r *Repository) Shadowed(ctx context.Context, fn func(store.Shadow) error) error {
	return retainlock.Shadowed(ctx, r.st, fn)
}

// protect locks all that the recovery point needs, before its manifest says so.
func (w *PointWriter) protect(ctx context.Context, mf *Manifest) error {
	mf.LockedUntil = nil
	if w.r.lock == nil {
		return nil
	}
	c, err := w.m.content(mf)
	if err != nil {
		return err
	}
	n := retainlock.Needs{Machine: w.m.Machine.ID, Headers: c.Headers, Entries: int64(len(w.seen))}
	for _, d := range c.Disks {
		n.Trees = append(n.Trees, d.Tree)
	}
	if w.parent != nil {
		n.Parent, n.ParentBirth, n.ParentEntry = w.on.ID, w.on.Birth, w.on.Sequence
		if w.parent.Repository == w.r.cfg.ID && w.parent.LockedUntil != nil {
			n.ParentUntil = *w.parent.LockedUntil
		}
	}
	until, err := w.r.lock.Protect(ctx, n)
	mf.LockedUntil = &until
	return err
}
