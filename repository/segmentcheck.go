package repository

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/lockstep-backup/lockstep/repository/format"
	"github.com/lockstep-backup/lockstep/repository/internal/replica"
	"github.com/lockstep-backup/lockstep/repository/internal/segment"
	"github.com/lockstep-backup/lockstep/store"
)

// Segment is what is stored of a segment, by header and table of contents:
// the original, or what replicas have of it.
type Segment struct {
	key, machine string
	held         *replica.Held // nil: the original is there, with all
}

// Has says whether an extent is stored; a *DamageError where it is not.
func (s *Segment) Has(e format.Extent) error {
	if s.held == nil || s.held.Has(e.Position, format.Pages(e.Stored)) {
		return nil
	}
	return &DamageError{Object: s.key, Machine: s.machine, Err: fmt.Errorf("its replicas do not have this part of it: %w", ErrNotFound)}
}

// CheckSegment checks a segment as a reader finds it, by the key of its
// original: that, as CheckObject does, or its replicas where it is gone.
func (r *Repository) CheckSegment(ctx context.Context, key string) (*Segment, error) {
	original, name, isReplica, ok := format.Original(key)
	mid := ""
	if part := strings.Split(key, "/"); ok && !isReplica {
		mid = part[1]
	}
	if original != format.SegmentKey(mid, name) {
		return nil, &DamageError{Object: key, Err: fmt.Errorf("no segment has this name: %w", format.ErrCorrupt)}
	}
	s := &Segment{key: key, machine: mid}
	err := r.CheckObject(ctx, key)
	if err == nil || !errors.Is(err, ErrNotFound) {
		return s, err
	}
	ctx = store.Uncached(ctx)
	m, err := r.machine(ctx, mid)
	if err != nil {
		return nil, err
	}
	view := replica.New(r.st, m.Keys) // what others remember may be gone
	if s.held, err = view.Held(ctx, key); err != nil {
		return nil, err
	}
	if _, err := segment.NewCache(m.Keys, view, r.cfg.Sealing == SealingAESGCM).Get(ctx, name); err != nil {
		return nil, err
	}
	return s, nil
}
