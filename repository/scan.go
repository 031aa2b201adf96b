package repository

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"slices"
	"sync"

	"golang.org/x/sync/errgroup"

	"github.com/lockstep-backup/lockstep/disk"
	"github.com/lockstep-backup/lockstep/repository/format"
	"github.com/lockstep-backup/lockstep/repository/internal/extents"
)

// ScanOptions say what to do with a disk's content. All functions are called
// concurrently, for disjoint ranges.
type ScanOptions struct {
	// Data gets verified content, one call a unit of at most 2 MiB; p is aligned
	// and the callee may not keep it. nil only verifies.
	Data func(off int64, p []byte) error
	// Zero gets ranges that are zeroes, of any length.
	Zero func(off, length int64) error
	// Damaged gets what cannot be read and says whether to go on (nil): Data and
	// Zero get zeroes in its place then. nil ends the scan.
	Damaged func(*DamageError) error
	// Pick, for verifying, says of a unit that is not all zeroes whether its
	// content is read, by its offset and the keys of the segments that hold it;
	// nil: all is. Of other units only the map is read, and Data and Zero are not
	// called. The content root is compared all the same.
	Pick func(off int64, segments []string) bool
	// Stored is asked about the extents of units whose content is not read, by
	// the keys of their segments; its error is damage of the block that needs it.
	// Pick needs it.
	Stored func(key string, e format.Extent) error
	// Progress is called with the bytes done so far.
	Progress func(done, total int64)
	// Only limits the scan to the units that hold bytes of this range, where it
	// is not empty: content is verified all the same, the content root is not
	// compared. Data and Zero get whole units, also what is beside the range.
	Only disk.Range
	// Ordered has Data and Zero called one at a time, by ascending offset.
	Ordered bool
	// Elsewhere gives readers of the same disk of the same recovery point in other
	// repositories, when something cannot be read here: it is taken from the first
	// that has it, verified in the same way. Borrowed is told of it, and why.
	Elsewhere func() []*DiskReader
	Borrowed  func(why error, off, length int64)
	// Since is the same disk of another recovery point that was scanned already:
	// what both share is left out, and so is the comparison of the content root,
	// whose chain of hashes the map's pages carry.
	Since *DiskReader
}

// Scan reads a whole disk, verifies tags and digests, hands on the content and
// compares the content root at the end. With Damaged set it returns nil
// although ranges were damaged; whole is false then.
func (d *DiskReader) Scan(ctx context.Context, o ScanOptions) (whole bool, err error) {
	s := &scan{DiskReader: d, o: o, leaves: format.LeafCount(d.disk.Size), pending: map[int64]format.Digest{}, whole: true}
	s.hash.Level = d.tree.Level
	if o.Only.Length > 0 {
		s.next, s.leaves = o.Only.Offset/format.LeafSize, min(format.LeafCount(o.Only.End()), s.leaves)
	}
	s.moved.L = &s.mu
	group, ctx := errgroup.WithContext(ctx)
	// Who waits for the turn of its unit must hear of the end.
	stop := context.AfterFunc(ctx, func() { s.mu.Lock(); s.moved.Broadcast(); s.mu.Unlock() })
	defer stop()
	n := workersFor(s.disk.Size)
	units := make(chan int64, n)
	group.Go(func() error {
		defer close(units)
		return s.dispatch(ctx, units)
	})
	for range n {
		group.Go(func() error {
			g := d.m.Digester()
			defer d.m.Release(g)
			r := newReader(d.m)
			buf := disk.AlignedBuffer(format.LeafSize + format.PageSize)
			for i := range units {
				if err := s.unit(ctx, g, r, buf, i); err != nil {
					return err
				}
			}
			return nil
		})
	}
	if err := group.Wait(); err != nil {
		return false, err
	}
	if !s.whole || o.Since != nil || o.Only.Length > 0 {
		return s.whole, nil
	}
	g := d.m.Digester()
	defer d.m.Release(g)
	root := g.Root(d.disk.Size, s.hash.Root(g))
	if got := hex.EncodeToString(root[:]); got != d.disk.ContentRoot {
		return false, &DamageError{Object: "manifest", Machine: d.m.Machine.ID, Disk: d.disk.ID, Err: errors.New("content root of what was read is not the recovery point's")}
	}
	return true, nil
}

type scan struct {
	*DiskReader
	o      ScanOptions
	leaves int64

	mu      sync.Mutex
	hash    format.TreeHash
	next    int64                   // leaf whose node comes next
	moved   sync.Cond               // next did
	pending map[int64]format.Digest // nodes of leaves that finished early; bounded by what is in flight
	zeros   map[int64]int64
	done    int64
	whole   bool
}

func (s *scan) dispatch(ctx context.Context, units chan<- int64) error {
	for i := s.next; i < s.leaves; {
		same, err := s.same(ctx, i)
		if err == nil && same > 0 {
			same = min(same, s.leaves-i)
			s.finish(i, same, format.Digest{}, min(same*format.LeafSize, s.disk.Size-i*format.LeafSize))
			i += same
			continue
		}
		skip, err := s.skip(i)
		if err != nil {
			// Below here the map is damaged: the unit's worker finds and reports it.
			if ctx.Err() != nil {
				return ctx.Err()
			}
			skip = 0
		}
		if skip = min(skip, s.leaves-i); skip > 0 {
			off := i * format.LeafSize
			length := min(skip*format.LeafSize, s.disk.Size-off)
			if s.o.Zero != nil && length > 0 && s.o.Pick == nil {
				if err := s.turn(ctx, i); err != nil {
					return err
				}
				if err := s.o.Zero(off, length); err != nil {
					return err
				}
			}
			s.finish(i, skip, format.Digest{}, length)
			i += skip
			continue
		}
		select {
		case units <- i:
		case <-ctx.Done():
			return ctx.Err()
		}
		i++
	}
	return nil
}

// same says how many leaves from index on are the very pages of Since, at the
// coarsest level at which that shows.
func (s *scan) same(ctx context.Context, index int64) (int64, error) {
	if s.o.Since == nil {
		return 0, nil
	}
	for level := s.tree.Level; level >= 0; level-- {
		span := int64(1) << (5 * level)
		if index%span != 0 {
			continue
		}
		now, _, err := s.tree.Ref(ctx, level, index/span)
		if err != nil {
			return 0, err
		}
		old, known, err := s.o.Since.tree.Ref(ctx, level, index/span)
		if err != nil {
			return 0, err
		}
		if known && now == old {
			return span, nil
		}
	}
	return 0, nil
}

// sharedBlocks says which blocks of a leaf are, extent by extent, those of Since.
func (s *scan) sharedBlocks(ctx context.Context, index int64, l *format.Leaf) (mask uint32) {
	if s.o.Since == nil {
		return 0
	}
	old, _, err := s.o.Since.tree.Leaf(ctx, index)
	if err != nil {
		return 0
	}
	for b := range l {
		if l[b].Digest == old[b].Digest && slices.Equal(l[b].Extents, old[b].Extents) {
			mask |= 1 << b
		}
	}
	return mask
}

// finish takes the nodes of n leaves from i on (n > 1: zeroes).
func (s *scan) finish(i, n int64, node format.Digest, length int64) {
	g := s.m.Digester()
	defer s.m.Release(g)
	s.mu.Lock()
	defer s.mu.Unlock()
	s.done += length
	if n > 1 || node.Zero() {
		if s.zeros == nil {
			s.zeros = map[int64]int64{}
		}
		s.zeros[i] = n
	} else {
		s.pending[i] = node
	}
	for {
		if n, ok := s.zeros[s.next]; ok {
			delete(s.zeros, s.next)
			s.hash.Zeros(g, n)
			s.next += n
		} else if d, ok := s.pending[s.next]; ok {
			delete(s.pending, s.next)
			s.hash.Add(g, d)
			s.next++
		} else {
			break
		}
	}
	s.moved.Broadcast()
	if s.o.Progress != nil {
		s.o.Progress(s.done, s.disk.Size)
	}
}

// turn waits until all leaves before i are done, where order matters. The
// leaves before are with workers already: they were dispatched in order.
func (s *scan) turn(ctx context.Context, i int64) error {
	if !s.o.Ordered {
		return nil
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for s.next < i && ctx.Err() == nil {
		s.moved.Wait()
	}
	return ctx.Err()
}

func (s *scan) unit(ctx context.Context, g *format.Digester, r *extents.Reader, buf []byte, index int64) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	off := index * format.LeafSize
	length := min(format.LeafSize, s.disk.Size-off)
	bad := func(err error, at, n int64) error {
		err = s.locate(err, at, n)
		var de *DamageError
		if !errors.As(err, &de) || s.o.Damaged == nil {
			return err
		}
		s.mu.Lock()
		s.whole = false
		s.mu.Unlock()
		return s.o.Damaged(de)
	}
	l, err := s.leaf(ctx, index)
	if err != nil {
		if err := bad(err, off, length); err != nil {
			return err
		}
		if err := s.turn(ctx, index); err != nil {
			return err
		}
		if s.o.Zero != nil && s.o.Pick == nil {
			if err := s.o.Zero(off, length); err != nil {
				return err
			}
		}
		s.finish(index, 1, format.Digest{}, length)
		return nil
	}
	shared := s.sharedBlocks(ctx, index, l)
	if shared != 0 {
		part := *l
		for b := range part {
			if shared&(1<<b) != 0 {
				part[b] = format.Block{}
			}
		}
		l = &part
	}
	if s.o.Pick != nil {
		names := segmentsOf(l)
		keys := make([]string, len(names))
		for i, n := range names {
			keys[i] = format.SegmentKey(s.m.Machine.ID, n)
		}
		if !s.o.Pick(off, keys) {
			if err := s.passed(l, names, keys, func(err error, block int) error {
				return bad(err, off+int64(block)*format.BlockSize, format.BlockSize)
			}); err != nil {
				return err
			}
			var digests [format.LeafBlocks]format.Digest
			for b := range l {
				digests[b] = l[b].Digest
			}
			s.finish(index, 1, g.Join32(&digests), length)
			return nil
		}
	}
	broken := [format.LeafBlocks]bool{}
	report := func(err error, block int) error {
		if broken[block] {
			return nil
		}
		broken[block] = true
		return bad(err, off+int64(block)*format.BlockSize, format.BlockSize)
	}
	var why [format.LeafBlocks]error // of blocks that may be had elsewhere
	err = r.Unit(ctx, l, 0, format.LeafBlocks, buf, func(err error, block int) error {
		if s.o.Elsewhere == nil || ctx.Err() != nil {
			return report(err, block)
		}
		why[block] = err
		return nil
	})
	for b, cause := range why {
		if err == nil && cause != nil && !s.borrow(cause, buf[b*format.BlockSize:(b+1)*format.BlockSize], off+int64(b)*format.BlockSize) {
			err = report(cause, b)
		}
	}
	if err != nil {
		return err
	}
	var digests [format.LeafBlocks]format.Digest
	for b := range l {
		p := buf[b*format.BlockSize : (b+1)*format.BlockSize]
		if digests[b] = blockDigest(g, &l[b], p); digests[b] == l[b].Digest || broken[b] {
			continue
		}
		err := &DamageError{Object: "segment", Err: fmt.Errorf("content does not have its digest: %w", format.ErrCorrupt)}
		if why[b] == nil && s.borrow(err, p, off+int64(b)*format.BlockSize) {
			if digests[b] = blockDigest(g, &l[b], p); digests[b] == l[b].Digest {
				continue
			}
		}
		clear(p)
		if err := bad(err, off+int64(b)*format.BlockSize, format.BlockSize); err != nil {
			return err
		}
	}
	if err := s.turn(ctx, index); err != nil {
		return err
	}
	if err := s.emit(buf[:length], off, l); err != nil {
		return err
	}
	s.finish(index, 1, g.Join32(&digests), length)
	return nil
}

func blockDigest(g *format.Digester, b *format.Block, p []byte) format.Digest {
	switch {
	case b.Unread != 0:
		return g.UnreadBlock(p, b.Unread)
	case !extents.IsZero(p):
		return g.Block(p)
	}
	return format.Digest{}
}

// segmentsOf are the segments that hold a unit.
func segmentsOf(l *format.Leaf) (names []format.Name) {
	for b := range l {
		for _, e := range l[b].Extents {
			if !slices.Contains(names, e.Segment) {
				names = append(names, e.Segment)
			}
		}
	}
	return names
}

// passed looks after the extents of a unit whose content is not read.
func (s *scan) passed(l *format.Leaf, names []format.Name, keys []string, bad func(err error, block int) error) error {
	for b := range l {
		for _, e := range l[b].Extents {
			err := s.o.Stored(keys[slices.Index(names, e.Segment)], e)
			if err == nil {
				continue
			}
			if err := bad(err, b); err != nil {
				return err
			}
			break // the block is damaged, whatever else is
		}
	}
	return nil
}

// leaf reads a leaf of the map: here, or elsewhere, where it is the same.
func (s *scan) leaf(ctx context.Context, index int64) (*format.Leaf, error) {
	l, _, err := s.tree.Leaf(ctx, index)
	if err == nil || ctx.Err() != nil || s.o.Elsewhere == nil {
		return l, err
	}
	for _, d := range s.o.Elsewhere() {
		other, _, oerr := d.tree.Leaf(ctx, index)
		if oerr == nil {
			s.noteBorrowed(err, index*format.LeafSize, format.LeafSize)
			return other, nil
		}
	}
	return l, err
}

// borrow reads a block elsewhere.
func (s *scan) borrow(why error, p []byte, off int64) bool {
	if s.o.Elsewhere == nil {
		return false
	}
	n := min(int64(len(p)), s.disk.Size-off)
	for _, d := range s.o.Elsewhere() {
		if got, err := d.ReadAt(p[:n], off); int64(got) == n && (err == nil || errors.Is(err, io.EOF)) {
			clear(p[n:])
			s.noteBorrowed(why, off, n)
			return true
		}
	}
	return false
}

func (s *scan) noteBorrowed(why error, off, length int64) {
	if s.o.Borrowed != nil {
		s.o.Borrowed(s.locate(why, off, length), off, length)
	}
}

// emit hands on a unit: zero blocks as zeroes, what lies between as data.
func (s *scan) emit(p []byte, off int64, l *format.Leaf) error {
	for b := 0; b*format.BlockSize < len(p); {
		e := b + 1
		for e < format.LeafBlocks && l[e].Zero() == l[b].Zero() {
			e++
		}
		from, to := b*format.BlockSize, min(e*format.BlockSize, len(p))
		var err error
		if l[b].Zero() {
			if s.o.Zero != nil {
				err = s.o.Zero(off+int64(from), int64(to-from))
			}
		} else if s.o.Data != nil {
			err = s.o.Data(off+int64(from), p[from:to])
		}
		if err != nil {
			return err
		}
		b = e
	}
	return nil
}

// SameStored reports whether the block at offset off is stored in the very
// extents of other's, so that damage of one is damage of both.
func (d *DiskReader) SameStored(other *DiskReader, off int64) bool {
	index, b := off/format.LeafSize, off%format.LeafSize/format.BlockSize
	mine, mref, err := d.tree.Leaf(d.ctx, index)
	if err != nil {
		// Not readable here: the same page of the map counts as the same.
		oref, _, oerr := other.tree.Ref(d.ctx, 0, index)
		return oerr == nil && oref == mref && !mref.Zero()
	}
	theirs, _, err := other.tree.Leaf(d.ctx, index)
	return err == nil && !mine[b].Zero() && slices.Equal(mine[b].Extents, theirs[b].Extents)
}
