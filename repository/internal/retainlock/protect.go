package retainlock

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/lockstep-backup/lockstep/repository/format"
	"github.com/lockstep-backup/lockstep/repository/internal/blockmap"
	"github.com/lockstep-backup/lockstep/repository/internal/damage"
	"github.com/lockstep-backup/lockstep/repository/internal/replica"
	"github.com/lockstep-backup/lockstep/repository/internal/twin"
	"github.com/lockstep-backup/lockstep/store"
)

// Needs are what a recovery point needs that is about to be committed.
type Needs struct {
	Machine string
	Trees   []*blockmap.Tree
	Headers []string // ids of header copies
	Entries int64    // of the machine's log, so far
	Also    []string // keys

	// What the parent references is locked already where ParentUntil, which is
	// zero for one that was made in another repository, is late enough.
	Parent      string // "": none
	ParentUntil time.Time
	ParentBirth int64
	ParentEntry int64
}

const (
	parallel = 8       // requests under way: a store far away takes its time for each
	maxNames = 1 << 19 // objects remembered, some 30 MiB; of more, some may be locked twice
)

// Protect locks all that a recovery point needs and says until when. The zero
// time: nothing is locked here.
func (s *Store) Protect(ctx context.Context, n Needs) (until time.Time, err error) {
	if s == nil {
		return until, nil
	}
	l, err := s.ready(ctx, true)
	if err != nil {
		return until, err
	}
	until = s.policy.Until(s.clock())
	p := &protection{Store: s, locker: l, machine: n.Machine, until: until, floor: -1, old: -1, names: map[format.ObjectName]struct{}{}}
	spared := n.Parent != "" && !n.ParentUntil.Before(until)
	if n.Parent != "" {
		p.old = n.ParentBirth
	}
	if spared {
		p.floor = n.ParentBirth
	}
	for _, t := range n.Trees {
		if err := p.page(ctx, t, t.Level, t.Root); err != nil {
			return until, fmt.Errorf("lock what the recovery point needs: %w", err)
		}
	}
	if err := p.flush(ctx); err != nil {
		return until, fmt.Errorf("lock what the recovery point needs: %w", err)
	}
	if err := p.headers(ctx, n.Headers); err != nil {
		return until, fmt.Errorf("lock header copies: %w", err)
	}
	if err := p.small(ctx, n, spared); err != nil {
		return until, fmt.Errorf("lock what is needed beside the maps: %w", err)
	}
	return until, nil
}

type protection struct {
	*Store
	locker  store.Locker
	machine string
	until   time.Time
	floor   int64 // objects of this birth and before are locked already
	old     int64 // those of this birth and before are the parent's
	names   map[format.ObjectName]struct{}
}

// page collects the objects that a page and what is below it references. A page
// references nothing younger than itself. What an unreadable page references
// cannot be had either: that is no reason for being without a backup.
func (p *protection) page(ctx context.Context, t *blockmap.Tree, level int, ref format.Ref) error {
	if ref.Zero() || ref.Object.Birth() <= p.floor {
		return nil
	}
	if err := p.add(ctx, format.ObjectName{Map: true, Name: ref.Object}); err != nil {
		return err
	}
	if level == 0 {
		leaf, err := t.Cache.Leaf(ctx, ref)
		if err != nil {
			return p.unreadable(err)
		}
		for b := range leaf {
			for _, e := range leaf[b].Extents {
				if e.Segment.Birth() <= p.floor {
					continue
				}
				if err := p.add(ctx, format.ObjectName{Name: e.Segment}); err != nil {
					return err
				}
			}
		}
		return nil
	}
	n, err := t.Cache.Node(ctx, ref, level)
	if err != nil {
		return p.unreadable(err)
	}
	for _, child := range n.Children {
		if err := p.page(ctx, t, level-1, child); err != nil {
			return err
		}
	}
	return nil
}

func (p *protection) unreadable(err error) error {
	if errors.Is(err, damage.ErrDamaged) || errors.Is(err, damage.ErrNotFound) {
		p.log.Error("a page of the map cannot be read: what it references is not locked", "error", err)
		return nil
	}
	return err
}

func (p *protection) add(ctx context.Context, n format.ObjectName) error {
	p.names[n] = struct{}{}
	if len(p.names) < maxNames {
		return nil
	}
	return p.flush(ctx)
}

// flush locks what was collected.
func (p *protection) flush(ctx context.Context) error {
	names := slices.Collect(maps.Keys(p.names))
	clear(p.names)
	return each(ctx, names, p.object)
}

// each calls fn for all, some at a time, until one fails.
func each[T any](ctx context.Context, all []T, fn func(context.Context, T) error) error {
	group, within := errgroup.WithContext(ctx)
	group.SetLimit(parallel)
	for _, v := range all {
		if within.Err() != nil {
			break
		}
		group.Go(func() error { return fn(within, v) })
	}
	if err := group.Wait(); err != nil {
		return err
	}
	return ctx.Err()
}

// object locks a segment or map object, or all replicas of one that is gone.
func (p *protection) object(ctx context.Context, n format.ObjectName) error {
	key := format.SegmentKey(p.machine, n.Name)
	if n.Map {
		key = format.MapKey(p.machine, n.Name)
	}
	err := p.retain(ctx, key)
	if !errors.Is(err, store.ErrNotExist) {
		return err
	}
	keys, lerr := replica.Keys(ctx, p.Store, key)
	if lerr != nil {
		return lerr
	}
	if len(keys) == 0 {
		if n.Birth() <= p.old {
			// It is damage of the parent too, which must not end all backups.
			p.log.Error("an object of earlier recovery points is missing and cannot be locked", "object", key)
			return nil
		}
		return err
	}
	for _, k := range keys {
		if err := p.retain(ctx, k); err != nil {
			return err
		}
	}
	return nil
}

func (p *protection) retain(ctx context.Context, key string) error {
	return p.locker.Retain(ctx, key, p.until, p.policy.mode())
}

func (p *protection) headers(ctx context.Context, ids []string) error {
	for _, id := range ids {
		if !format.ValidID(id) {
			continue
		}
		if birth, err := strconv.ParseInt(id[:8], 16, 64); err == nil && birth <= p.floor {
			continue
		}
		for _, key := range format.HeaderKeys(p.machine, id) {
			if err := p.retain(ctx, key); err != nil {
				return err
			}
		}
	}
	return nil
}

// small locks the objects of one frame each. One that is missing is damage
// that others report.
func (p *protection) small(ctx context.Context, n Needs, spared bool) error {
	keys := slices.Clone(n.Also)
	list := func(prefix string) error {
		return p.List(ctx, prefix, func(i store.Info) error {
			keys = append(keys, i.Key)
			return nil
		})
	}
	from := int64(0)
	folders := []string{format.SidecarPrefix(p.machine, machineSidecars)}
	if spared {
		from, folders = n.ParentEntry, nil
	} else {
		for _, key := range []string{format.ConfigKey, format.MachineKey(p.machine)} {
			keys = append(keys, key, twin.Prefix+key)
		}
		folders = append(folders, shared...)
	}
	if n.Parent != "" {
		folders = append(folders, format.SidecarPrefix(p.machine, n.Parent))
	}
	for _, f := range folders {
		if err := list(f); err != nil {
			return fmt.Errorf("list %s: %w", f, err)
		}
	}
	for i := from; i < n.Entries; i++ {
		keys = append(keys, format.LogKey(p.machine, i))
	}
	return each(ctx, keys, func(ctx context.Context, key string) error {
		err := p.retain(ctx, key)
		if errors.Is(err, store.ErrNotExist) {
			p.log.Warn("an object that the recovery point needs is missing and is not locked", "object", key)
			return nil
		}
		return err
	})
}

// machineSidecars stands for the point id of statements about a machine.
const machineSidecars = "00000000000000000000000000000000"
