package repository

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"sort"
	"sync"

	"golang.org/x/sync/errgroup"

	"github.com/lockstep-backup/lockstep/disk"
	"github.com/lockstep-backup/lockstep/repository/format"
	"github.com/lockstep-backup/lockstep/repository/internal/badrange"
	"github.com/lockstep-backup/lockstep/repository/internal/blockmap"
	"github.com/lockstep-backup/lockstep/repository/internal/extents"
	"github.com/lockstep-backup/lockstep/repository/internal/segment"
)

// ballast is how many times more an extent holds than is live in it when the
// live pages are stored anew with the next change of their block: an extent is
// sealed whole, and a single live page would keep all of it. Otherwise extents
// are not merged: a block has at most 16, for their live pages are disjoint, and
// merging them earlier makes incrementals grow. See docs/performance.md.
const ballast = 8

// diskWriter carries one disk through the pipeline: a dispatcher cuts it in
// units (one map leaf each), workers read, compare, seal and store them, the
// tree takes their leaves in order.
type diskWriter struct {
	*PointWriter
	in     DiskInput
	size   int64
	parent *blockmap.Tree
	tree   *blockmap.Builder
	outer  context.Context // of the whole write: segments outlive the pipeline that fills them
	// changes are the ranges that may differ from the parent, where the change source is trusted.
	changes disk.Ranges

	mu     sync.Mutex
	free   []*segment.Writer // open segments that nobody writes to now
	stats  Stats
	unread []disk.Range
}

// unitResult is what a worker found out about one unit.
type unitResult struct {
	same   bool // as the parent's
	ref    format.Ref
	leaf   *format.Leaf // where it is new
	digest format.Digest
	unread []disk.Range
	err    error
}

// unitItem is a unit on its way to the tree.
type unitItem struct {
	index int64
	zeros int64           // so many units of zeroes instead
	done  chan unitResult // one value
}

func (w *diskWriter) run(ctx context.Context) error {
	w.outer = ctx
	w.changes = w.changed()
	group, ctx := errgroup.WithContext(ctx)
	n := workersFor(w.size)
	// Workers in a system call keep their processor for a while, so whoever must
	// hand on the next unit gets its turn late: let there be enough of them.
	work := make(chan unitItem, 4*n)
	ordered := make(chan unitItem, 64*n)
	group.Go(func() error {
		defer close(work)
		defer close(ordered)
		return w.dispatch(ctx, work, ordered)
	})
	for range n {
		group.Go(func() error {
			u := newUnitWorker(w)
			defer w.m.Release(u.g)
			for item := range work {
				res := u.process(ctx, item.index)
				item.done <- res
				if res.err != nil {
					return res.err
				}
			}
			return nil
		})
	}
	group.Go(func() error { return w.collect(ctx, ordered) })
	err := group.Wait()
	for _, s := range w.free {
		if err != nil {
			// What was stored serves the next attempt, if the store takes it still.
			if _, ferr := s.Finish(); ferr != nil {
				w.r.log.Debug("segment of a failed attempt is lost", "error", ferr)
			}
			continue
		}
		var size int64
		if size, err = s.Finish(); err == nil {
			w.stats.Stored += size
			w.m.segments.Add(s.Segment)
		}
	}
	w.free = nil
	if err == nil && w.parent != nil { // the disk shrank
		for i := format.LeafCount(w.size); i < format.LeafCount(w.parent.Size); i++ {
			w.countDropped(w.outer, i)
		}
	}
	return err
}

// dispatch cuts the disk in units. What the source says is a hole is not read.
func (w *diskWriter) dispatch(ctx context.Context, work, ordered chan<- unitItem) error {
	leaves := format.LeafCount(w.size)
	data := disk.Range{} // the range of data at or behind the current unit
	more := w.size > 0
	send := func(ch chan<- unitItem, item unitItem) error {
		select {
		case ch <- item:
			return nil
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	for i := int64(0); i < leaves; {
		start := i * format.LeafSize
		for more && data.End() <= start {
			var err error
			data, err = w.in.Source.NextData(start)
			if errors.Is(err, io.EOF) {
				more = false
				data = disk.Range{Offset: leaves * format.LeafSize, Length: 1}
			} else if err != nil {
				return err
			} else if data.Length <= 0 || data.End() <= start {
				return fmt.Errorf("source names data %d+%d behind %d", data.Offset, data.Length, start)
			}
		}
		if w.size == 0 {
			data.Offset = format.LeafSize
		}
		if hole := data.Offset/format.LeafSize - i; hole > 0 {
			hole = min(hole, leaves-i)
			if err := send(ordered, unitItem{index: i, zeros: hole}); err != nil {
				return err
			}
			i += hole
			continue
		}
		item := unitItem{index: i, done: make(chan unitResult, 1)}
		if err := send(ordered, item); err != nil {
			return err
		}
		if w.known() && !overlaps(w.changes, start, start+format.LeafSize) {
			ref, known, err := w.parent.Ref(ctx, 0, i)
			if err == nil && known {
				item.done <- unitResult{same: true, ref: ref}
				i++
				continue
			}
		}
		if err := send(work, item); err != nil {
			return err
		}
		i++
	}
	return nil
}

// changed is what must be read although the change source is trusted: what it
// names, what the parent could not read, and everything from the end of the
// smaller of the two disks on.
func (w *diskWriter) changed() disk.Ranges {
	all := append([]disk.Range(nil), w.in.Changed...)
	if pd := w.parentDisk(w.in.ID); pd != nil {
		all = append(all, pd.Unread...)
		if pd.Size != w.size {
			end := min(pd.Size, w.size)
			all = append(all, disk.Range{Offset: end, Length: max(pd.Size, w.size) - end})
		}
	}
	return disk.Normalize(all...)
}

// collect takes the leaves in order.
func (w *diskWriter) collect(ctx context.Context, ordered <-chan unitItem) error {
	var done int64
	progress := func(units int64) {
		done = min(done+units*format.LeafSize, w.size)
		if w.in.Progress != nil {
			w.in.Progress(done, w.size)
		}
	}
	for item := range ordered {
		if item.zeros > 0 {
			if err := w.zeros(ctx, item); err != nil {
				return err
			}
			progress(item.zeros)
			continue
		}
		var res unitResult
		select {
		case res = <-item.done:
		case <-ctx.Done():
			return ctx.Err()
		}
		if res.err != nil {
			return res.err
		}
		w.unread = append(w.unread, res.unread...)
		ref := res.ref
		if !res.same && res.leaf != nil {
			var err error
			if ref, err = w.tree.Leaf(res.leaf, res.digest); err != nil {
				return err
			}
		}
		if err := w.tree.Add(ctx, ref); err != nil {
			return err
		}
		progress(1)
	}
	return ctx.Err()
}

// zeros adds units of zeroes and counts what the parent had there as changed.
func (w *diskWriter) zeros(ctx context.Context, item unitItem) error {
	for i := item.index; i < item.index+item.zeros; i++ {
		if w.parent != nil {
			w.countDropped(ctx, i)
		}
		if err := w.tree.Add(ctx, format.Ref{}); err != nil {
			return err
		}
	}
	return nil
}

// countDropped counts the blocks of the parent's leaf as changed. A damaged map
// of the parent is found by whoever reads it; here it only costs the count.
func (w *diskWriter) countDropped(ctx context.Context, index int64) {
	old, _, err := w.parent.Leaf(ctx, index)
	if err != nil {
		return
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	for b := range old {
		if !old[b].Zero() {
			w.stats.Changed += format.BlockSize
		}
	}
}

// takeSegment hands out an open segment with room for pages, for one worker.
func (w *diskWriter) takeSegment(pages int) (*segment.Writer, error) {
	w.mu.Lock()
	var s *segment.Writer
	if n := len(w.free); n > 0 {
		s, w.free = w.free[n-1], w.free[:n-1]
	}
	w.mu.Unlock()
	if s != nil && s.Room() < pages {
		size, err := s.Finish()
		if err != nil {
			return nil, err
		}
		w.m.segments.Add(s.Segment)
		w.mu.Lock()
		w.stats.Stored += size
		w.mu.Unlock()
		s = nil
	}
	if s != nil {
		return s, nil
	}
	return segment.Create(w.outer, w.r.st, w.m.Keys, w.r.cfg.Sealing == SealingAESGCM, w.birth, []string{w.in.ID})
}

func (w *diskWriter) giveSegment(s *segment.Writer) {
	w.mu.Lock()
	w.free = append(w.free, s)
	w.mu.Unlock()
}

// unitWorker has one worker's buffers.
type unitWorker struct {
	*diskWriter
	g       *format.Digester
	x       segment.Scratch
	in, out []byte // a unit each, aligned, TagSize more behind
	old     []byte // a block of the parent's content
	page    []byte // masked pages
	reader  *extents.Reader
	plan    []planned
}

// planned is an extent to be stored.
type planned struct {
	block int
	mask  uint16
}

func newUnitWorker(w *diskWriter) *unitWorker {
	return &unitWorker{
		diskWriter: w, g: w.m.Digester(),
		in: disk.AlignedBuffer(format.LeafSize), out: disk.AlignedBuffer(format.LeafSize + format.PageSize),
		old: make([]byte, format.BlockSize), page: make([]byte, format.BlockSize),
		reader: newReader(w.m),
	}
}

func (u *unitWorker) process(ctx context.Context, index int64) (res unitResult) {
	if res.err = ctx.Err(); res.err != nil {
		return res
	}
	start := index * format.LeafSize
	n := min(format.LeafSize, u.size-start)
	var parent format.Ref
	if u.parent != nil {
		var err error
		if parent, _, err = u.parent.Ref(ctx, 0, index); err != nil {
			if res.err = ctx.Err(); res.err != nil {
				return res
			}
			parent = format.Ref{}
			u.r.log.Error("parent's map is damaged here, the unit is stored anew", "disk", u.diskID(), "unit", index, "error", err)
		}
	}
	old := new(format.Leaf)
	loaded := parent.Zero()
	load := func() {
		l, err := u.m.maps.Leaf(ctx, parent)
		if loaded = err == nil; loaded {
			old = l
		} else if ctx.Err() == nil {
			u.r.log.Error("parent's map is damaged here, the unit is stored anew", "disk", u.diskID(), "unit", index, "error", err)
		}
	}
	look := ^uint32(0) // blocks to be read: where the change source is trusted, those it names
	if u.known() {
		if !loaded {
			load()
		}
		if loaded {
			look = u.named(start)
		}
	}
	var unread [format.LeafBlocks]uint16
	var count Stats
	if count.Read, res.err = u.readBlocks(start, n, look, &unread); res.err != nil {
		return res
	}
	var digests, nodes [format.LeafBlocks]format.Digest
	for b := range digests {
		p := u.in[b*format.BlockSize : (b+1)*format.BlockSize]
		switch {
		case look&(1<<b) == 0:
			digests[b] = old[b].Digest
		case unread[b] != 0:
			digests[b] = u.g.UnreadBlock(p, unread[b])
			res.unread = append(res.unread, badrange.Ranges(start+int64(b)*format.BlockSize, unread[b], u.size)...)
		case !extents.IsZero(p):
			digests[b] = u.g.Block(p)
		}
	}
	nodes = digests
	res.digest = u.g.Join32(&nodes)
	if parent.Node == res.digest {
		res.same, res.ref = true, parent
		u.mu.Lock()
		u.stats.Add(count)
		u.mu.Unlock()
		return res
	}
	if !loaded {
		load()
		if res.err = ctx.Err(); res.err != nil {
			return res
		}
	}
	leaf := new(format.Leaf)
	u.plan = u.plan[:0]
	for b := range leaf {
		if digests[b] == old[b].Digest {
			leaf[b] = old[b]
			continue
		}
		leaf[b] = format.Block{Digest: digests[b], Unread: unread[b]}
		count.Changed += u.compare(ctx, b, &leaf[b], &old[b])
	}
	if res.err = u.storePlan(ctx, index, leaf, &count); res.err != nil {
		return res
	}
	u.mu.Lock()
	u.stats.Add(count)
	u.mu.Unlock()
	if !leaf.Zero() {
		res.leaf = leaf
	}
	return res
}

// known says whether blocks that the change source does not name are the parent's.
func (w *diskWriter) known() bool { return w.in.Known && w.parent != nil }

// named are the blocks of the unit at start that the change source names.
func (u *unitWorker) named(start int64) (mask uint32) {
	for b := range int64(format.LeafBlocks) {
		if overlaps(u.changes, start+b*format.BlockSize, start+(b+1)*format.BlockSize) {
			mask |= 1 << b
		}
	}
	return mask
}

// readBlocks reads the blocks of mask of the unit at start, of which the disk
// has n bytes, each run of blocks at once, and clears what lies behind the disk.
func (u *unitWorker) readBlocks(start, n int64, mask uint32, unread *[format.LeafBlocks]uint16) (read int64, err error) {
	clear(u.in[n:])
	for b := 0; b < format.LeafBlocks; b++ {
		if mask&(1<<b) == 0 {
			continue
		}
		first := b
		for b+1 < format.LeafBlocks && mask&(1<<(b+1)) != 0 {
			b++
		}
		from, to := int64(first)*format.BlockSize, min(int64(b+1)*format.BlockSize, n)
		if from >= to {
			break
		}
		bad, err := badrange.Read(u.diskWriter.in.Source, u.in[from:to], start+from, u.diskWriter.in.Unreadable, u.opts.Unread)
		if err != nil {
			return read, err
		}
		copy(unread[first:b+1], bad[:])
		read += to - from
	}
	return read, nil
}

func (u *unitWorker) diskID() string { return u.diskWriter.in.ID }

// compare decides which pages of block b must be stored, keeps what is
// unchanged of the old extents, and returns how many bytes differ.
func (u *unitWorker) compare(ctx context.Context, b int, now, old *format.Block) (changed int64) {
	p := u.in[b*format.BlockSize : (b+1)*format.BlockSize]
	var nonzero uint16
	for i := range format.PagesPerBlock {
		if !extents.IsZero(p[i*format.PageSize : (i+1)*format.PageSize]) {
			nonzero |= 1 << i
		}
	}
	nonzero &^= now.Unread
	differ := uint16(0xffff)
	if !old.Zero() {
		if err := u.reader.Block(ctx, old, u.old); err != nil {
			// The stored content is damaged: the block is stored anew and thereby healed for this and later recovery points.
			u.r.log.Error("stored block of the parent is damaged, it is stored anew", "disk", u.diskID(), "error", err)
			old = &format.Block{}
		} else {
			differ = old.Unread | now.Unread
			for i := range format.PagesPerBlock {
				if !bytes.Equal(p[i*format.PageSize:(i+1)*format.PageSize], u.old[i*format.PageSize:(i+1)*format.PageSize]) {
					differ |= 1 << i
				}
			}
		}
	}
	store := differ & nonzero
	for _, e := range old.Extents {
		e.Live &^= differ
		switch live := format.Pages(e.Live); {
		case live == 0:
		case live*ballast <= format.Pages(e.Stored):
			store |= e.Live
		default:
			now.Extents = append(now.Extents, e)
		}
	}
	if store != 0 {
		u.plan = append(u.plan, planned{b, store})
	}
	if old.Zero() {
		return int64(format.Pages(nonzero)) * format.PageSize
	}
	return int64(format.Pages(differ)) * format.PageSize
}

// storePlan stores the planned extents in one run of one segment (or more,
// where it is full), after looking for them among an earlier attempt's.
func (u *unitWorker) storePlan(ctx context.Context, index int64, leaf *format.Leaf, count *Stats) error {
	pages := 0
	plan := u.plan[:0]
	for _, pl := range u.plan {
		b := &leaf[pl.block]
		if e, ok := u.resume.Extent(ctx, u.diskID(), index*format.LeafBlocks+int64(pl.block), pl.mask, b.Digest); ok {
			b.Extents = append(b.Extents, e)
			count.Reused += int64(format.Pages(pl.mask)) * format.PageSize
			continue
		}
		plan = append(plan, pl)
		pages += format.Pages(pl.mask)
	}
	if len(plan) == 0 {
		return nil
	}
	s, err := u.takeSegment(pages)
	if err != nil {
		return err
	}
	at := 0
	position := s.Position
	for _, pl := range plan {
		b := &leaf[pl.block]
		p := u.in[pl.block*format.BlockSize : (pl.block+1)*format.BlockSize]
		if pl.mask != 0xffff {
			p = gather(u.page, p, pl.mask)
		}
		tag := s.Seal(u.g, &u.x, u.out[at:at+len(p)+format.TagSize], p, position, pl.mask)
		b.Extents = append(b.Extents, format.Extent{Segment: s.Name, Position: position, Stored: pl.mask, Live: pl.mask, Tag: tag})
		s.TOC.Extents = append(s.TOC.Extents, format.TOCExtent{
			Block: index*format.LeafBlocks + int64(pl.block), Position: position, Mask: pl.mask, Tag: tag, Digest: [16]byte(b.Digest[:16]),
		})
		at += len(p)
		position += uint32(len(p) / format.PageSize)
	}
	if err := s.Append(u.out[:at]); err != nil {
		return errors.Join(err, s.Abort())
	}
	u.giveSegment(s)
	return nil
}

// gather copies the pages of mask behind each other.
func gather(dst, block []byte, mask uint16) []byte {
	n := 0
	for i := range format.PagesPerBlock {
		if mask&(1<<i) != 0 {
			n += copy(dst[n:n+format.PageSize], block[i*format.PageSize:])
		}
	}
	return dst[:n]
}

// overlaps reports whether one of rs meets [start, end).
func overlaps(rs disk.Ranges, start, end int64) bool {
	i := sort.Search(len(rs), func(i int) bool { return rs[i].End() > start })
	return i < len(rs) && rs[i].Offset < end
}
