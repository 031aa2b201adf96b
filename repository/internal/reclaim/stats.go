package reclaim

import (
	"context"
	"fmt"
	"strings"

	"github.com/lockstep-backup/lockstep/repository/format"
	"github.com/lockstep-backup/lockstep/repository/internal/machinelog"
	"github.com/lockstep-backup/lockstep/store"
)

// PointStats is about one listed recovery point.
type PointStats struct {
	Point   string
	Logical int64 // bytes of its disks
	Alone   int64 // bytes that nothing else needs: deleting it alone frees them
}

// Stats is about one machine. Bytes.
type Stats struct {
	Logical int64 // of the disks of all listed recovery points
	Stored  int64 // in the store, all objects of the machine
	Needed  int64 // extents and map pages that listed recovery points need
	Dead    int64 // of segments and map objects, what is not needed; tables included
	Objects int64
	Points  []PointStats
}

// Measure counts over all maps. Recovery points that cannot be read end it.
func Measure(ctx context.Context, s *Source) (st Stats, err error) {
	records, err := s.History.Read(ctx)
	if err != nil {
		return st, err
	}
	deleted := machinelog.Deleted(records)
	h := newHistory(records, func(c *machinelog.Record) bool { return !deleted[c.Point] })
	r := &run{Source: s, loaded: map[string]*Content{}}
	sum := func(b bytesOf) (n int64) {
		for _, v := range b {
			n += v
		}
		return n
	}
	for _, n := range h.list {
		c, err := r.content(ctx, n)
		if err != nil {
			return st, err
		}
		kids, err := r.contents(ctx, n.kids)
		if err != nil {
			return st, err
		}
		alone, needed := bytesOf{}, bytesOf{}
		if err := exclusive(ctx, c, kids, n.floor(), alone); err != nil {
			return st, fmt.Errorf("compare %s: %w", n.Point, err)
		}
		if err := exclusive(ctx, c, nil, n.floor(), needed); err != nil {
			return st, fmt.Errorf("compare %s: %w", n.Point, err)
		}
		st.Logical += c.Logical
		st.Needed += sum(needed)
		st.Points = append(st.Points, PointStats{Point: n.Point, Logical: c.Logical, Alone: sum(alone)})
	}
	mid := s.Keys.ID
	large := int64(0)
	for _, prefix := range []string{
		format.SegmentPrefix(mid), format.MapPrefix(mid), format.ManifestKey(mid, ""), format.LogPrefix(mid),
		format.LedgerPrefix(mid), format.HeaderPrefixA + mid + "/", format.HeaderPrefixB + mid + "/", "side/" + mid + "/",
	} {
		err := s.Store.List(ctx, prefix, func(i store.Info) error {
			st.Objects++
			st.Stored += i.Size
			if strings.HasPrefix(i.Key, "seg/") || strings.HasPrefix(i.Key, "map/") {
				large += i.Size
			}
			return nil
		})
		if err != nil {
			return st, fmt.Errorf("list %s: %w", prefix, err)
		}
	}
	st.Dead = max(large-st.Needed, 0)
	return st, nil
}
