package copies

import (
	"context"
	"errors"
	"sync"

	"github.com/lockstep-backup/lockstep/repository"
	"github.com/lockstep-backup/lockstep/repository/format"
	"github.com/lockstep-backup/lockstep/repository/internal/machinekey"
	"github.com/lockstep-backup/lockstep/repository/internal/replica"
	"github.com/lockstep-backup/lockstep/repository/internal/transfer"
)

// replaced says whether a segment or map object that is gone is not missed:
// what lies in its place, the original or replicas, is whole and has what
// listed recovery points need of it.
func (x *repairing) replaced(ctx context.Context, m *machinekey.Keys, key string) (bool, error) {
	original, _, isReplica, ok := format.Original(key)
	if !ok {
		return false, nil
	}
	damaged := func(err error) bool {
		return errors.Is(err, repository.ErrDamaged) || errors.Is(err, repository.ErrNotFound)
	}
	if isReplica {
		if err := transfer.CheckLarge(ctx, x.in.Store, m, x.in.Sealed, original); err == nil || !errors.Is(err, repository.ErrNotFound) {
			if damaged(err) {
				return false, nil
			}
			return err == nil, err
		}
	}
	keys, err := replica.Keys(ctx, x.in.Store, original)
	if err != nil || len(keys) == 0 {
		return false, err
	}
	for _, k := range keys {
		if err := transfer.CheckLarge(ctx, x.in.Store, m, x.in.Sealed, k); err != nil {
			if damaged(err) {
				return false, nil
			}
			return false, err
		}
	}
	if x.short[m.ID] == nil {
		if x.short[m.ID], err = x.lacking(ctx, m.ID); err != nil {
			delete(x.short, m.ID)
			if damaged(err) {
				return false, nil // nobody can tell what is needed
			}
			return false, err
		}
	}
	return !x.short[m.ID][original], nil
}

// lacking goes through the maps of a machine's listed recovery points, and
// says which of the objects that are to be repaired lack something for them.
func (x *repairing) lacking(ctx context.Context, mid string) (map[string]bool, error) {
	type checked struct {
		*repository.Segment
		err error
	}
	segments := map[string]*checked{} // nil: not looked at yet
	for _, key := range x.keys {
		if original, _, _, ok := format.Original(key); ok {
			segments[original] = nil
		}
	}
	found := &findings{objects: map[string]bool{}}
	stored := func(key string, e format.Extent) error {
		found.mu.Lock()
		defer found.mu.Unlock()
		s, asked := segments[key]
		if !asked {
			return nil
		}
		if s == nil {
			s = &checked{}
			s.Segment, s.err = x.r.CheckSegment(ctx, key)
			segments[key] = s
		}
		if s.err != nil {
			return s.err
		}
		return s.Has(e)
	}
	points, err := x.r.Points(ctx, mid)
	if err != nil {
		return nil, err
	}
	last := map[string]*repository.DiskReader{}
	for _, p := range points {
		mf, err := x.r.Manifest(ctx, p)
		if err != nil {
			return nil, err
		}
		for _, d := range mf.Disks {
			reader, err := x.r.OpenDisk(ctx, mid, d)
			if err != nil {
				return nil, err
			}
			if _, err := reader.Scan(ctx, repository.ScanOptions{
				Pick: func(int64, []string) bool { return false }, Stored: stored, Damaged: found.add, Since: last[d.ID],
			}); err != nil {
				return nil, err
			}
			last[d.ID] = reader
		}
	}
	return found.objects, nil
}

// findings are the objects in which damage was found.
type findings struct {
	mu      sync.Mutex
	objects map[string]bool
}

func (f *findings) add(de *repository.DamageError) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.objects[de.Object] = true
	return nil
}
