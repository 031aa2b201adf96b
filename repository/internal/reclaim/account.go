package reclaim

import (
	"context"
	"errors"
	"fmt"
	"path"
	"strings"

	"github.com/lockstep-backup/lockstep/repository/format"
	"github.com/lockstep-backup/lockstep/repository/internal/machinelog"
	"github.com/lockstep-backup/lockstep/store"
)

// errRecount says that what was deleted cannot be compared any more.
var errRecount = errors.New("a recovery point that was deleted cannot be compared")

// account counts what is dead: what the ledger has, what the deletions since
// free, and which births later commits leave unclear.
func (r *run) account(ctx context.Context, deleted map[string]bool) error {
	r.dead = bytesOf{}
	if r.recount {
		return nil
	}
	l, ok, err := r.readLedger(ctx)
	if err != nil {
		return err
	}
	if !ok {
		l = format.Ledger{}
		for i := range r.records {
			if r.records[i].Kind == machinelog.Fence { // there was one: what was deleted before may be gone
				r.recount, r.res.Recounted = true, true
				return nil
			}
		}
	}
	for n, e := range l.Objects {
		r.dead[n] = int64(e.Dead) * unit(n)
	}
	through := int64(min(l.Through, 1<<62))
	gone := map[string]bool{}
	var order []string
	for i := range r.records {
		if e := &r.records[i]; e.Kind == machinelog.Delete && e.N >= through && !gone[e.Point] {
			gone[e.Point] = true
			order = append(order, e.Point)
		}
	}
	before := newHistory(r.records, func(c *machinelog.Record) bool { return !deleted[c.Point] || gone[c.Point] })
	if err := r.commits(ctx, before, through); err != nil {
		return err
	}
	for _, point := range order {
		n := before.at[point]
		if n == nil {
			continue
		}
		c, err := r.content(ctx, n)
		if err == nil {
			var kids []*Content
			if kids, err = r.contents(ctx, n.kids); err == nil {
				err = exclusive(ctx, c, kids, n.floor(), r.dead)
			}
		}
		if err != nil {
			if unreadable(err) {
				return fmt.Errorf("%w: %w", errRecount, err)
			}
			return err
		}
		before.remove(n)
	}
	return nil
}

func (r *run) contents(ctx context.Context, ns []*node) (cs []*Content, err error) {
	for _, n := range ns {
		c, err := r.content(ctx, n)
		if err != nil {
			return nil, err
		}
		cs = append(cs, c)
	}
	return cs, nil
}

// commits looks at what came since: where more lies in the births of a commit
// than its writer says to have stored, attempts that failed left something.
func (r *run) commits(ctx context.Context, before *history, through int64) error {
	floor := machinelog.LastBirth(r.records[:min(through, int64(len(r.records)))])
	for i := range r.records {
		e := &r.records[i]
		if e.N < through || e.Kind != machinelog.Commit {
			continue
		}
		b := births{floor, e.Birth()}
		floor = max(floor, b.to)
		n := before.at[e.Point]
		clear := false
		if n != nil && (e.Origin != "" || b.to <= b.floor) { // a copy brings what its ancestors brought elsewhere
			b.floor = n.floor()
		} else if n != nil && b.to-b.floor <= 64 {
			c, err := r.content(ctx, n)
			if err != nil && !unreadable(err) {
				return err
			}
			if err == nil && c.Reused == 0 {
				if clear, err = r.tidy(ctx, c, b); err != nil {
					return err
				}
			}
		}
		if !clear {
			r.unclear = append(r.unclear, b)
		}
	}
	return nil
}

// tidy says whether in these births lies what one writer stored, and no more.
func (r *run) tidy(ctx context.Context, c *Content, b births) (bool, error) {
	var maps, stored int64
	for birth := b.floor + 1; birth <= b.to; birth++ {
		folder := format.BirthPrefix(r.Keys.ID, birth)
		err := r.Store.List(ctx, folder, func(i store.Info) error { stored += i.Size; return nil })
		if err == nil {
			err = r.Store.List(ctx, "map/"+strings.TrimPrefix(folder, "seg/"), func(store.Info) error { maps++; return nil })
		}
		if err != nil {
			return false, fmt.Errorf("list %s: %w", folder, err)
		}
	}
	return stored == c.Stored && (maps == 0 || maps == 1 && c.owns(b)), nil
}

// owns says whether one of the recovery point's maps has its root in these births.
func (c *Content) owns(b births) bool {
	for _, d := range c.Disks {
		if n := d.Tree.Root.Object.Birth(); !d.Tree.Root.Zero() && n > b.floor && n <= b.to {
			return true
		}
	}
	return false
}

// suspect is an object, original and replicas, that it is worth looking at.
type suspect struct {
	name  format.ObjectName
	parts []store.Info
	bytes int64
	dead  bool // no listed recovery point covers its birth
}

func (s *suspect) size() int64 {
	if s.name.Map {
		return s.bytes
	}
	return max(s.bytes-int64(len(s.parts))*format.SegmentHeaderSize, 1)
}

// overhead of a table and a trailer that do not grow with the object.
const overhead = 400

// list goes through the machine's segments and map objects.
func (r *run) list(ctx context.Context) error {
	for _, prefix := range []string{format.SegmentPrefix(r.Keys.ID), format.MapPrefix(r.Keys.ID)} {
		live := &living{run: r}
		var s suspect
		end := func() error {
			if len(s.parts) == 0 {
				return nil
			}
			return r.judge(ctx, s, live)
		}
		err := r.Store.List(ctx, prefix, func(i store.Info) error {
			_, name, _, ok := format.Original(i.Key)
			if !ok {
				return nil // no object of ours
			}
			on := format.ObjectName{Map: prefix[0] == 'm', Name: name}
			if on != s.name || len(s.parts) == 0 {
				if err := end(); err != nil {
					return err
				}
				s = suspect{name: on}
			}
			s.parts = append(s.parts, i)
			s.bytes += i.Size
			return nil
		})
		if err == nil {
			err = end()
		}
		if err != nil {
			return fmt.Errorf("list %s: %w", path.Dir(prefix), err)
		}
	}
	return nil
}

// judge takes an object among the suspects, or notes what is dead of it.
func (r *run) judge(ctx context.Context, s suspect, live *living) error {
	birth := s.name.Birth()
	dead := r.dead[s.name]
	switch covering := r.cover.of(birth); {
	case birth > r.limit:
	case len(covering) == 0:
		s.dead = true
		r.suspects = append(r.suspects, s)
		return nil
	case r.counts(birth):
		n, known, err := live.of(ctx, s.name, covering)
		if err != nil {
			return err
		}
		if known {
			if dead = max(s.size()-n-overhead, 0); n == 0 {
				dead = s.size()
			}
		}
	}
	if dead <= 0 {
		return nil
	}
	r.note(s.name, dead, s.size())
	// The size has tables in it, and the count is no more than a hint: a little early.
	if birth <= r.limit && float64(dead) >= 0.9*min(r.o.MaxDead, 1)*float64(s.size()-overhead) {
		r.suspects = append(r.suspects, s)
	}
	return nil
}

func (r *run) note(n format.ObjectName, dead, size int64) {
	u := unit(n)
	if dead < u {
		delete(r.next.Objects, n)
		return
	}
	r.next.Objects[n] = format.LedgerEntry{Dead: uint32(dead / u), Size: uint32((size + u - 1) / u)}
}

// counts says whether what is alive in a birth is counted, instead of what died.
func (r *run) counts(birth int64) bool {
	if r.recount {
		return true
	}
	for _, b := range r.unclear {
		if birth > b.floor && birth <= b.to {
			return true
		}
	}
	return false
}

// living counts what recovery points need of the births they cover. Births
// come in order, so that what is behind can be forgotten.
type living struct {
	*run
	by []struct {
		n     *node
		bytes bytesOf // nil: it cannot be read
	}
}

func (l *living) of(ctx context.Context, name format.ObjectName, covering []*node) (bytes int64, known bool, err error) {
	keep := l.by[:0]
	for _, e := range l.by {
		if e.n.Birth() >= name.Birth() {
			keep = append(keep, e)
		}
	}
	l.by = keep
next:
	for _, n := range covering {
		for _, e := range l.by {
			if e.n == n {
				if e.bytes == nil {
					return 0, false, nil
				}
				bytes += e.bytes[name]
				continue next
			}
		}
		counted := bytesOf{}
		c, err := l.content(ctx, n)
		if err == nil {
			err = exclusive(ctx, c, nil, n.floor(), counted)
		}
		if err != nil {
			if !unreadable(err) {
				return 0, false, err
			}
			l.Logger.Warn("a recovery point cannot be read as a whole: what it may need stays", "point", n.Point, "error", err)
			counted = nil
		}
		l.by = append(l.by, struct {
			n     *node
			bytes bytesOf
		}{n, counted})
		if counted == nil {
			return 0, false, nil
		}
		bytes += counted[name]
	}
	return bytes, true, nil
}
