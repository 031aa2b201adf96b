package reclaim

import (
	"context"
	"errors"
	"fmt"
	"sort"

	"github.com/lockstep-backup/lockstep/repository/format"
	"github.com/lockstep-backup/lockstep/repository/internal/blockmap"
	"github.com/lockstep-backup/lockstep/repository/internal/retainlock"
	"github.com/lockstep-backup/lockstep/repository/internal/segment"
	"github.com/lockstep-backup/lockstep/store"
)

// batch is how many extents and pages are looked up at once: 2^18 of them take
// some 30 MiB.
const batch = 1 << 18

// minFreed: what frees less of a map object is not worth an object written and
// one deleted.
const minFreed = 4096

// opened is a suspect with what it holds.
type opened struct {
	suspect
	items  []item
	bytes  int64 // in all parts, tables and headers aside
	needed int64
	unsure bool // it cannot be read as a whole: it stays
}

// item is one extent or page.
type item struct {
	disk   string
	extent format.TOCExtent // segments
	page   format.PageEntry // maps
	needed bool
}

func (i *item) size(isMap bool) int64 {
	if isMap {
		return int64(i.page.Length)
	}
	return int64(format.Pages(i.extent.Mask)) * format.PageSize
}

// want is an item to be looked up in the maps of those that may need it.
type want struct {
	disk  string
	leaf  int64 // where in the map, for order
	o     *opened
	which int
}

// sweep compares suspects with the maps and does away with what is dead.
func (r *run) sweep(ctx context.Context) error {
	var os []*opened
	items := 0
	flush := func() error {
		if err := r.lookUp(ctx, os); err != nil {
			return err
		}
		if err := r.settle(ctx, os); err != nil {
			return err
		}
		os, items = nil, 0
		return nil
	}
	for i, s := range r.suspects {
		if r.o.Progress != nil {
			r.o.Progress(int64(i), int64(len(r.suspects)))
		}
		o := &opened{suspect: s}
		if !s.dead {
			if err := r.open(ctx, o); err != nil {
				return err
			}
		}
		os = append(os, o)
		if items += len(o.items); items >= batch || len(os) >= 4096 {
			if err := flush(); err != nil {
				return err
			}
		}
	}
	if r.o.Progress != nil {
		r.o.Progress(int64(len(r.suspects)), int64(len(r.suspects)))
	}
	return flush()
}

// open reads the tables of a suspect's parts.
func (r *run) open(ctx context.Context, o *opened) error {
	seen := map[uint32]bool{}
	for _, p := range o.parts {
		_, _, isReplica, _ := format.Original(p.Key)
		var err error
		switch {
		case o.name.Map:
			var t format.PageTable
			if t, err = blockmap.ReadPages(ctx, r.Store, r.Keys, p.Key); err == nil {
				for _, e := range t.Pages {
					o.bytes += int64(e.Length)
					if !seen[e.Offset] {
						seen[e.Offset] = true
						o.items = append(o.items, item{disk: t.Disks[e.Disk], page: e})
					}
				}
			}
		default:
			var t format.ReplicaTOC
			if isReplica {
				t, err = segment.ReadReplicaTOC(ctx, r.Store, r.Keys, p.Key)
			} else {
				t.TOC, err = segment.ReadTOC(ctx, r.Store, r.Keys, p.Key)
			}
			for _, e := range t.Extents {
				o.bytes += int64(format.Pages(e.Mask)) * format.PageSize
				if !seen[e.Position] {
					seen[e.Position] = true
					o.items = append(o.items, item{disk: t.Disks[e.Disk], extent: e})
				}
			}
		}
		switch {
		case err == nil, errors.Is(err, store.ErrNotExist): // deleted meanwhile: by another reclaim
		case errors.Is(err, segment.ErrNoTable): // version 1: it says nothing of itself
			o.unsure = true
		case unreadable(err):
			r.Logger.Warn("an object that may be dead cannot be read and stays", "object", p.Key, "error", err)
			o.unsure = true
		default:
			return err
		}
	}
	return nil
}

// lookUp finds out what of a batch is needed.
func (r *run) lookUp(ctx context.Context, os []*opened) error {
	by := map[*node][]want{}
	for _, o := range os {
		if o.dead || o.unsure {
			continue
		}
		for _, n := range r.cover.of(o.name.Birth()) {
			for i := range o.items {
				it := &o.items[i]
				w := want{disk: it.disk, o: o, which: i, leaf: it.extent.Block / format.LeafBlocks}
				if o.name.Map {
					w.leaf = it.page.Index << (5 * it.page.Level)
				}
				by[n] = append(by[n], w)
			}
		}
	}
	for n, ws := range by {
		c, err := r.content(ctx, n)
		if err != nil {
			if !unreadable(err) {
				return err
			}
			r.Logger.Warn("a recovery point cannot be read: what it may need stays", "point", n.Point, "error", err)
			for _, w := range ws {
				w.o.items[w.which].needed = true
			}
			continue
		}
		sort.Slice(ws, func(i, j int) bool {
			if ws[i].disk != ws[j].disk {
				return ws[i].disk < ws[j].disk
			}
			return ws[i].leaf < ws[j].leaf
		})
		for _, w := range ws {
			it := &w.o.items[w.which]
			for _, d := range c.Disks {
				if it.needed || d.ID != w.disk {
					continue
				}
				if it.needed, err = references(ctx, d.Tree, w.o.name, it); err != nil {
					return err
				}
			}
		}
	}
	return nil
}

// references says whether a map references the item; a map that cannot be read does.
func references(ctx context.Context, t *blockmap.Tree, name format.ObjectName, it *item) (bool, error) {
	if name.Map {
		ref, known, err := t.Ref(ctx, it.page.Level, it.page.Index)
		if err != nil {
			return true, readable(err)
		}
		return known && !ref.Zero() && ref.Object == name.Name && ref.Offset == it.page.Offset, nil
	}
	l, _, err := t.Leaf(ctx, it.extent.Block/format.LeafBlocks)
	if err != nil {
		return true, readable(err)
	}
	return has(&l[it.extent.Block%format.LeafBlocks], name.Name, it.extent.Position), nil
}

// readable drops an error that says that a map is damaged.
func readable(err error) error {
	if unreadable(err) {
		return nil
	}
	return err
}

// settle deletes what is wholly dead, then rewrites or keeps the others.
func (r *run) settle(ctx context.Context, os []*opened) error {
	var gone []store.Info
	for _, o := range os {
		for i := range o.items {
			if o.items[i].needed {
				o.needed += o.items[i].size(o.name.Map)
			}
		}
		if o.needed == 0 && !o.unsure {
			gone = append(gone, o.parts...)
		}
	}
	held, err := r.remove(ctx, gone)
	if err != nil {
		return err
	}
	for _, o := range os {
		dead := o.bytes - o.needed
		switch {
		case o.unsure:
		case o.needed == 0:
			delete(r.next.Objects, o.name)
			for _, p := range o.parts {
				if held[p.Key] {
					r.note(o.name, o.size(), o.size())
				}
			}
		case float64(dead) < r.o.MaxDead*float64(o.bytes), o.name.Map && dead < minFreed, r.res.Locked.Objects > 0:
			r.note(o.name, dead, o.bytes)
		case r.allHeld(ctx, o.parts): // a replica would only cost
			for _, p := range o.parts {
				r.res.Locked.add(p.Size)
			}
			r.note(o.name, dead, o.bytes)
		default:
			if err := r.rewrite(ctx, o); err != nil {
				return err
			}
		}
	}
	return nil
}

// allHeld says whether the store holds every part. Where it does not say, it
// tells when they are deleted.
func (r *run) allHeld(ctx context.Context, parts []store.Info) bool {
	for _, p := range parts {
		held, err := retainlock.Held(ctx, r.Store, p.Key)
		if err != nil {
			r.Logger.Debug("the store does not say whether it holds an object", "object", p.Key, "error", err)
		}
		if !held {
			return false
		}
	}
	return true
}

// rewrite replaces all parts of an object by a replica of what is needed. The
// replica is always a new one: a part that was there may be about to be deleted
// by another reclaim, in favour of one that it wrote.
func (r *run) rewrite(ctx context.Context, o *opened) error {
	if err := r.fence(ctx); err != nil {
		return err
	}
	written := store.Info{Size: o.needed + format.SegmentHeaderSize}
	if !r.o.DryRun {
		var err error
		if o.name.Map {
			written, err = r.Maps.WriteReplica(ctx, r.Store, o.name.Name, o.pages())
		} else {
			var seg *segment.Segment
			if seg, err = r.Segments.Get(ctx, o.name.Name); err == nil {
				written, err = segment.WriteReplica(ctx, r.Store, r.View, r.Keys, seg, o.toc())
			}
		}
		if unreadable(err) {
			r.Logger.Warn("an object that is mostly dead is damaged and stays", "object", o.parts[0].Key, "error", err)
			return nil
		}
		if err != nil {
			return err
		}
	}
	held, err := r.remove(ctx, o.parts)
	if err != nil {
		return err
	}
	if len(held) == len(o.parts) && len(held) > 0 {
		// The store holds what was to be replaced: then the replica only costs.
		// Where a part is gone, the replica stands for it.
		delete(r.next.Objects, o.name)
		if err := r.Store.Delete(ctx, written.Key); err == nil {
			return nil
		} else if !errors.Is(err, store.ErrLocked) && !errors.Is(err, store.ErrNotExist) {
			return fmt.Errorf("delete %s: %w", written.Key, err)
		}
	}
	r.res.Rewritten.add(written.Size)
	r.res.Freed -= written.Size
	r.note(o.name, 0, o.needed)
	return nil
}

// toc is the table of contents of what is needed.
func (o *opened) toc() (t format.TOC) {
	index := map[string]uint16{}
	for i := range o.items {
		it := &o.items[i]
		if !it.needed {
			continue
		}
		k, ok := index[it.disk]
		if !ok {
			k = uint16(len(t.Disks))
			index[it.disk] = k
			t.Disks = append(t.Disks, it.disk)
		}
		e := it.extent
		e.Disk = k
		t.Extents = append(t.Extents, e)
	}
	return t
}

// pages is the page table of what is needed, in the order of offsets.
func (o *opened) pages() (t format.PageTable) {
	index := map[string]int{}
	for i := range o.items {
		it := &o.items[i]
		if !it.needed {
			continue
		}
		k, ok := index[it.disk]
		if !ok {
			k = len(t.Disks)
			index[it.disk] = k
			t.Disks = append(t.Disks, it.disk)
		}
		e := it.page
		e.Disk = k
		t.Pages = append(t.Pages, e)
	}
	sort.Slice(t.Pages, func(i, j int) bool { return t.Pages[i].Offset < t.Pages[j].Offset })
	return t
}
