// Package replica reads segments and map objects by the offsets they had when
// they were written, wherever their bytes lie now: in the original or in
// replicas. docs/spec/repository.md, section 12.
package replica

import (
	"context"
	"errors"
	"fmt"
	"io"
	"path"
	"sort"
	"strings"
	"sync"

	"github.com/lockstep-backup/lockstep/repository/format"
	"github.com/lockstep-backup/lockstep/repository/internal/blockmap"
	"github.com/lockstep-backup/lockstep/repository/internal/damage"
	"github.com/lockstep-backup/lockstep/repository/internal/machinekey"
	"github.com/lockstep-backup/lockstep/repository/internal/segment"
	"github.com/lockstep-backup/lockstep/store"
)

// View reads one machine's objects. Ranges that no replica has read as zeroes:
// they were dead when the replicas were made, and whoever needs them all the
// same finds that by the tag. Safe for concurrent use.
type View struct {
	st store.Store
	m  *machinekey.Keys

	mu   sync.RWMutex
	by   map[string][]part // by the original's key: objects whose original is gone, or in doubt
	runs int               // in all of them
	// doubt are originals of which something could not be authenticated: what
	// replicas have is read from those first.
	doubt map[string]bool
}

// part is one replica.
type part struct {
	key  string
	unit int64 // of runs, in bytes
	head int64 // size of the header
	runs []format.Run
}

const (
	maxRuns  = 1 << 20 // 12 MiB
	maxParts = 1 << 14
	maxTries = 8 // lookups of an object whose replicas go while they are read
)

// New makes a view of a store.
func New(st store.Store, m *machinekey.Keys) *View {
	return &View{st: st, m: m, by: map[string][]part{}, doubt: map[string]bool{}}
}

// ReadRange reads as store.Store does; key is the original's.
func (v *View) ReadRange(ctx context.Context, key string, off int64, p []byte) (int, error) {
	for try := 1; ; try++ {
		v.mu.RLock()
		parts, doubted := v.by[key], v.doubt[key]
		v.mu.RUnlock()
		if doubted {
			n, err := v.readDoubted(ctx, key, parts, off, p)
			if errors.Is(err, store.ErrNotExist) && try < maxTries {
				v.trust(key) // what is gone is in no doubt
				continue
			}
			return n, err
		}
		if parts == nil {
			n, err := v.st.ReadRange(ctx, key, off, p)
			if !errors.Is(err, store.ErrNotExist) {
				return n, err
			}
			if parts, err = v.find(ctx, key, err); err != nil {
				return 0, err
			}
		}
		n, err := v.read(ctx, parts, off, p)
		if errors.Is(err, store.ErrNotExist) && try < maxTries {
			v.forget(key) // it was replaced by another one
			continue
		}
		return n, err
	}
}

// Keys lists the keys of an object's replicas.
func Keys(ctx context.Context, st store.Store, original string) (keys []string, err error) {
	err = st.List(ctx, path.Dir(original)+"/", func(i store.Info) error {
		if strings.HasPrefix(i.Key, original+"-") && len(keys) < maxParts {
			keys = append(keys, i.Key)
		}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("look for replicas of %s: %w", original, err)
	}
	return keys, nil
}

// find looks for replicas of an object whose original is gone, as missing says.
func (v *View) find(ctx context.Context, key string, missing error) ([]part, error) {
	keys, err := Keys(ctx, v.st, key)
	if err != nil {
		return nil, err
	}
	if len(keys) == 0 {
		return nil, missing
	}
	var parts []part
	var bad error
	n := 0
	for _, k := range keys {
		p := part{key: k, unit: format.PageSize, head: format.SegmentHeaderSize}
		if strings.HasPrefix(k, "seg/") {
			var t format.ReplicaTOC
			t, err = segment.ReadReplicaTOC(ctx, v.st, v.m, k)
			p.runs = t.Runs
		} else {
			var t format.PageTable
			t, err = blockmap.ReadPages(ctx, v.st, v.m, k)
			p.unit, p.head, p.runs = 1, format.MapHeaderSize, t.Runs
		}
		if err != nil {
			if !errors.Is(err, damage.ErrDamaged) && !errors.Is(err, damage.ErrNotFound) {
				return nil, err
			}
			bad = err
			continue // another one may have what is wanted
		}
		parts = append(parts, p)
		n += len(p.runs)
	}
	if len(parts) == 0 {
		return nil, bad
	}
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.runs+n > maxRuns || len(v.by) >= maxParts {
		clear(v.by)
		v.runs = 0
	}
	v.by[key] = parts
	v.runs += n
	return parts, nil
}

// Forget drops what is known of an object's replicas, for new ones may have
// come, also where the original is there but damaged, and what a cache before the store keeps of it: what a reader does who
// cannot authenticate what he read, before he reads once more.
func (v *View) Forget(key string) {
	v.mu.RLock()
	parts := v.by[key]
	v.mu.RUnlock()
	for i := range parts {
		store.Forget(v.st, parts[i].key)
	}
	store.Forget(v.st, key)
	v.forget(key)
	v.mu.Lock()
	defer v.mu.Unlock()
	if len(v.doubt) >= maxParts {
		clear(v.doubt)
	}
	v.doubt[key] = true
}

// trust ends a doubt.
func (v *View) trust(key string) {
	v.forget(key)
	v.mu.Lock()
	defer v.mu.Unlock()
	delete(v.doubt, key)
}

// readDoubted reads what replicas have, and the rest from the original.
func (v *View) readDoubted(ctx context.Context, key string, parts []part, off int64, p []byte) (int, error) {
	if parts == nil {
		var err error
		parts, err = v.find(ctx, key, store.ErrNotExist)
		if errors.Is(err, store.ErrNotExist) || errors.Is(err, damage.ErrDamaged) || errors.Is(err, damage.ErrNotFound) {
			v.trust(key) // nothing else has it
			return v.st.ReadRange(ctx, key, off, p)
		}
		if err != nil {
			return 0, err
		}
	}
	end := off + int64(len(p))
	gaps, err := v.cover(ctx, parts, []span{{off, end}}, off, p)
	if err != nil {
		return 0, err
	}
	for _, g := range gaps {
		gap := p[g.from-off : g.to-off]
		n, err := v.st.ReadRange(ctx, key, g.from, gap)
		if n == len(gap) {
			continue
		}
		if g.to == end || !errors.Is(err, io.EOF) {
			return int(g.from-off) + n, err
		}
		clear(gap[n:]) // it ends before its time
	}
	return len(p), nil
}

func (v *View) forget(key string) {
	v.mu.Lock()
	defer v.mu.Unlock()
	for _, p := range v.by[key] {
		v.runs -= len(p.runs)
	}
	delete(v.by, key)
}

type span struct{ from, to int64 }

// read puts together what parts have of [off, off+len(p)).
func (v *View) read(ctx context.Context, parts []part, off int64, p []byte) (int, error) {
	limit := int64(0) // the end of the object, as far as can be seen
	for i := range parts {
		limit = max(limit, parts[i].head)
		if n := len(parts[i].runs); n > 0 {
			limit = max(limit, (int64(parts[i].runs[n-1].From)+int64(parts[i].runs[n-1].Count))*parts[i].unit)
		}
	}
	n := max(min(int64(len(p)), limit-off), 0)
	clear(p[:n])
	if _, err := v.cover(ctx, parts, []span{{off, off + n}}, off, p); err != nil {
		return 0, err
	}
	if n < int64(len(p)) {
		return int(n), io.EOF
	}
	return int(n), nil
}

// cover reads what parts have of the gaps, and returns those that stay. off is
// where p begins.
func (v *View) cover(ctx context.Context, parts []part, gaps []span, off int64, p []byte) ([]span, error) {
	for i := 0; i < len(parts) && len(gaps) > 0; i++ {
		var left []span
		for _, g := range gaps {
			rest, err := v.fill(ctx, &parts[i], g, off, p)
			if err != nil {
				return nil, err
			}
			left = append(left, rest...)
		}
		gaps = left
	}
	return gaps, nil
}

// fill reads what one part has of a gap, and returns the gaps that stay. off
// is where p begins.
func (v *View) fill(ctx context.Context, t *part, g span, off int64, p []byte) (left []span, err error) {
	at := g.from
	if head := min(t.head, g.to); at < head {
		if err := damage.ReadFull(ctx, v.st, t.key, at, p[at-off:head-off]); err != nil {
			return nil, err
		}
		at = head
	}
	i := sort.Search(len(t.runs), func(i int) bool { return (int64(t.runs[i].From)+int64(t.runs[i].Count))*t.unit > at })
	for i < len(t.runs) && at < g.to {
		// Runs that lie behind each other in the replica are read at once.
		pieces, here := []span{}, int64(0)
		size := int64(0)
		for ; i < len(t.runs); i++ {
			r := &t.runs[i]
			from, lies := int64(r.From)*t.unit, int64(r.Here)*t.unit
			start, stop := max(from, at), min(from+int64(r.Count)*t.unit, g.to)
			if start >= stop || len(pieces) > 0 && lies != here+size {
				break
			}
			if len(pieces) == 0 {
				here = lies + start - from
			}
			pieces = append(pieces, span{start, stop})
			size += stop - start
		}
		if len(pieces) == 0 {
			break
		}
		if err := v.spread(ctx, t.key, here, size, pieces, off, p); err != nil {
			return nil, err
		}
		for _, s := range pieces {
			if s.from > at {
				left = append(left, span{at, s.from})
			}
			at = s.to
		}
	}
	if at < g.to {
		left = append(left, span{at, g.to})
	}
	return left, nil
}

// spread reads size bytes of pieces and puts each where it belongs; between
// them it leaves zeroes.
func (v *View) spread(ctx context.Context, key string, here, size int64, pieces []span, off int64, p []byte) error {
	first := pieces[0].from - off
	if err := damage.ReadFull(ctx, v.st, key, here, p[first:first+size]); err != nil {
		return err
	}
	for i := len(pieces) - 1; i > 0; i-- { // they only move up: from the last one on nothing is overwritten
		n := pieces[i].to - pieces[i].from
		size -= n
		copy(p[pieces[i].from-off:pieces[i].to-off], p[first+size:first+size+n])
	}
	for i := 1; i < len(pieces); i++ {
		clear(p[pieces[i-1].to-off : pieces[i].from-off])
	}
	return nil
}
