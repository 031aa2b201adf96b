package transfer

import (
	"context"
	"errors"
	"fmt"
	"math"

	"github.com/lockstep-backup/lockstep/repository/format"
	"github.com/lockstep-backup/lockstep/repository/internal/blockmap"
	"github.com/lockstep-backup/lockstep/repository/internal/damage"
	"github.com/lockstep-backup/lockstep/repository/internal/machinelog"
)

// Plan is what the destination's log says about a recovery point that is to be
// copied there. docs/spec/repository.md, section 14.
type Plan struct {
	Present bool // it is listed there
	Deleted bool // it was deleted there, and must not come back
	// Parent is the nearest ancestor, by the source's log, that is listed in the
	// destination. What is not younger than Covered, its birth, is there: whoever
	// made the recovery point took it over from that one, or has it not. -1: nothing is.
	Parent  string
	Covered int64
	// Fence is the greatest birth of which a reclaim there may have deleted, or
	// may still: a name of that birth may have been in use. -1: none was.
	Fence int64
}

// NewPlan compares the two logs for one recovery point of the source.
func NewPlan(source, there []machinelog.Record, p machinelog.Record) (Plan, error) {
	d := Plan{Covered: -1, Fence: -1}
	damaged := int64(-1)
	for _, rec := range there {
		switch {
		case errors.Is(rec.Err, damage.ErrFormat):
			return d, rec.Err
		case rec.Err != nil: // it may have been any deletion, and any fence
			damaged, d.Fence = rec.N, math.MaxInt64
		case rec.Kind == machinelog.Fence && rec.Leftovers != nil:
			d.Fence = max(d.Fence, *rec.Leftovers)
		case rec.Kind == machinelog.Fence: // of an early version, which deletes nothing
			d.Fence = max(d.Fence, rec.N)
		}
	}
	d.Deleted = machinelog.Deleted(there)[p.Point]
	births := map[string]int64{}
	for _, q := range machinelog.Listed(there) {
		d.Present = d.Present || q.Point == p.Point
		if q.N > damaged {
			births[q.Point] = q.Birth()
		}
	}
	parents := map[string]string{}
	for _, rec := range source {
		if rec.Err == nil && rec.Kind == machinelog.Commit {
			parents[rec.Point] = rec.Parent
		}
	}
	seen := map[string]bool{}
	for id := p.Parent; id != "" && !seen[id]; id = parents[id] {
		if b, ok := births[id]; ok && b < p.Birth() {
			d.Parent, d.Covered = id, b
			break
		}
		seen[id] = true
	}
	return d, nil
}

// References are the objects that maps refer to, but for those which are not
// younger than After.
type References struct {
	After    int64
	Maps     map[format.Name]bool
	Segments map[format.Name]bool
}

// NewReferences begins with none.
func NewReferences(after int64) *References {
	return &References{After: after, Maps: map[format.Name]bool{}, Segments: map[format.Name]bool{}}
}

// Add walks a disk's map. Its cost follows what is younger than After.
func (r *References) Add(ctx context.Context, t *blockmap.Tree) error {
	return r.walk(ctx, t, t.Level, 0)
}

func (r *References) walk(ctx context.Context, t *blockmap.Tree, level int, index int64) error {
	ref, _, err := t.Ref(ctx, level, index)
	// A page is as old as its object, and what it refers to is not younger.
	if err != nil || ref.Zero() || ref.Object.Birth() <= r.After {
		return err
	}
	r.Maps[ref.Object] = true
	if level == 0 {
		return r.leaf(ctx, t, index)
	}
	for i := range int64(format.Fanout) {
		if err := r.walk(ctx, t, level-1, index*format.Fanout+i); err != nil {
			return err
		}
	}
	return ctx.Err()
}

func (r *References) leaf(ctx context.Context, t *blockmap.Tree, index int64) error {
	l, _, err := t.Leaf(ctx, index)
	if err != nil {
		return err
	}
	for b := range l {
		for _, e := range l[b].Extents {
			if e.Segment.Birth() > r.After {
				r.Segments[e.Segment] = true
			}
		}
	}
	return nil
}

// Keys gives them as keys in the store, segments first, with their births.
func (r *References) Keys(mid string, fn func(key string, birth int64)) {
	for _, x := range []struct {
		names map[format.Name]bool
		key   func(string, format.Name) string
	}{{r.Segments, format.SegmentKey}, {r.Maps, format.MapKey}} {
		for n := range x.names {
			fn(x.key(mid, n), n.Birth())
		}
	}
}

// errSize says that an object of this name is not the source's.
func errSize(key string, have, want int64) error {
	return &damage.Error{Object: key, Err: fmt.Errorf("it has %d bytes and not %d: %w", have, want, format.ErrCorrupt)}
}
