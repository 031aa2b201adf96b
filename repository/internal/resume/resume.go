// Package resume finds what an interrupted backup stored, so that the next one
// refers to it instead of storing it again. docs/spec/repository.md, section 10.
package resume

import (
	"context"
	"fmt"
	"log/slog"
	"sync"

	"github.com/lockstep-backup/lockstep/repository/format"
	"github.com/lockstep-backup/lockstep/repository/internal/machinekey"
	"github.com/lockstep-backup/lockstep/repository/internal/segment"
	"github.com/lockstep-backup/lockstep/store"
)

// Leftovers finds what interrupted attempts stored.
// Of each segment it keeps which blocks it may hold; tables of contents come
// when wanted and are kept in a bounded cache.
type Leftovers struct {
	st   store.Store
	m    *machinekey.Keys
	log  *slog.Logger
	mu   sync.Mutex
	segs []leftover
	near map[leftoverKey][]int // segments by disk and block / leftoverSpan
	hot  []*leftoverTOC        // most recent last
}

type leftover struct {
	name format.Name
	key  string
}

type leftoverTOC struct {
	seg int
	by  map[leftoverKey][]format.TOCExtent
}

type leftoverKey struct {
	disk  string
	block int64
}

const (
	maxLeftovers = 1 << 14 // segments looked at: 1 TiB
	leftoverSpan = 1 << 9  // blocks: 32 MiB
	maxHotTOCs   = 16
	maxBirths    = 64
)

// Find lists what attempts of the births from..to left. Of very many births it
// looks at the last ones.
func Find(ctx context.Context, st store.Store, m *machinekey.Keys, from, to int64, log *slog.Logger) (*Leftovers, error) {
	l := &Leftovers{st: st, m: m, log: log}
	for birth := to; birth >= max(from, to-maxBirths+1); birth-- {
		prefix := format.BirthPrefix(m.ID, birth)
		err := st.List(ctx, prefix, func(i store.Info) error {
			name, err := format.ParseName(format.NewName(birth, 0).String()[:8] + i.Key[len(prefix):])
			if err == nil && len(l.segs) < maxLeftovers { // replicas have longer names
				l.segs = append(l.segs, leftover{name: name, key: i.Key})
			}
			return nil
		})
		if err != nil {
			return nil, fmt.Errorf("look for an interrupted attempt: %w", err)
		}
	}
	return l, nil
}

// index reads every table of contents once. l.mu is held.
func (l *Leftovers) index(ctx context.Context) {
	l.near = map[leftoverKey][]int{}
	for i := range l.segs {
		t := l.load(ctx, i)
		if t == nil {
			continue
		}
		for k := range t.by {
			k.block /= leftoverSpan
			if at := l.near[k]; len(at) == 0 || at[len(at)-1] != i {
				l.near[k] = append(at, i)
			}
		}
	}
}

// load gives a segment's table of contents, nil where it cannot be read.
func (l *Leftovers) load(ctx context.Context, i int) *leftoverTOC {
	for k, t := range l.hot {
		if t.seg == i {
			l.hot = append(append(l.hot[:k:k], l.hot[k+1:]...), t)
			return t
		}
	}
	s := &l.segs[i]
	toc, err := segment.ReadTOC(ctx, l.st, l.m, s.key)
	if err != nil {
		l.log.Warn("segment of an interrupted attempt is not used", "object", s.key, "error", err)
		return nil
	}
	t := &leftoverTOC{seg: i, by: map[leftoverKey][]format.TOCExtent{}}
	for _, e := range toc.Extents {
		k := leftoverKey{toc.Disks[e.Disk], e.Block}
		t.by[k] = append(t.by[k], e)
	}
	if len(l.hot) >= maxHotTOCs {
		l.hot = l.hot[1:]
	}
	l.hot = append(l.hot, t)
	return t
}

// Extent looks for an extent of exactly these pages and content.
func (l *Leftovers) Extent(ctx context.Context, diskID string, block int64, mask uint16, digest format.Digest) (format.Extent, bool) {
	if len(l.segs) == 0 {
		return format.Extent{}, false
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.near == nil {
		l.index(ctx)
	}
	for _, i := range l.near[leftoverKey{diskID, block / leftoverSpan}] {
		t := l.load(ctx, i)
		if t == nil {
			continue
		}
		for _, e := range t.by[leftoverKey{diskID, block}] {
			if e.Mask == mask && e.Digest == [16]byte(digest[:16]) {
				return format.Extent{Segment: l.segs[i].name, Position: e.Position, Stored: e.Mask, Live: e.Mask, Tag: e.Tag}, true
			}
		}
	}
	return format.Extent{}, false
}
