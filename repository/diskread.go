package repository

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/bits"
	"sort"
	"sync"

	"github.com/lockstep-backup/lockstep/disk"
	"github.com/lockstep-backup/lockstep/repository/format"
	"github.com/lockstep-backup/lockstep/repository/internal/blockmap"
	"github.com/lockstep-backup/lockstep/repository/internal/damage"
	"github.com/lockstep-backup/lockstep/repository/internal/segment"
)

// unitReader reads stored extents. It has buffers and is for one goroutine.
type unitReader struct {
	m    *machine
	x    segment.Scratch
	buf  []byte // aligned, readRun bytes and a page more
	plan []wanted
}

// wanted is an extent to be read for a block of the unit.
type wanted struct {
	format.Extent
	block int
}

// readRun is how much is read at once where extents are scattered; gaps of up
// to readGap bytes are read over.
const (
	readRun = format.LeafSize
	readGap = 64 << 10
)

func newUnitReader(m *machine) *unitReader {
	return &unitReader{m: m}
}

// block reads one block's content into dst (BlockSize bytes) and compares it
// with the block's digest. Unread pages come as zeroes.
func (r *unitReader) block(ctx context.Context, b *format.Block, dst []byte) error {
	r.plan = r.plan[:0]
	for _, e := range b.Extents {
		r.plan = append(r.plan, wanted{e, 0})
	}
	clear(dst)
	if err := r.read(ctx, dst, func(err error, _ int) error { return err }); err != nil {
		return err
	}
	return r.check(b, dst)
}

// check compares a block's content with its digest.
func (r *unitReader) check(b *format.Block, p []byte) error {
	g := r.m.Digester()
	defer r.m.Release(g)
	var d format.Digest
	switch {
	case b.Unread != 0:
		d = g.UnreadBlock(p, b.Unread)
	case !isZero(p):
		d = g.Block(p)
	}
	if d != b.Digest {
		return fmt.Errorf("content does not have its digest: %w", ErrDamaged)
	}
	return nil
}

// unit reads the blocks [first, last) of a leaf into dst, which begins at
// block first and has (last-first)*BlockSize bytes and TagSize more behind.
// A block whose extents are damaged is reported to bad, which may return nil
// to go on; the block's content is zeroes then.
func (r *unitReader) unit(ctx context.Context, l *format.Leaf, first, last int, dst []byte, bad func(err error, block int) error) error {
	n := (last - first) * format.BlockSize
	r.plan = r.plan[:0]
	straight := len(l[first].Extents) == 1 // one run of whole blocks in order: read in place
	for i := first; i < last; i++ {
		es := l[i].Extents
		for _, e := range es {
			r.plan = append(r.plan, wanted{e, i - first})
		}
		straight = straight && len(es) == 1 && es[0].Live == 0xffff && es[0].Segment == r.plan[0].Segment &&
			es[0].Position == r.plan[0].Position+uint32((i-first)*format.PagesPerBlock)
	}
	var broken uint32
	report := func(err error, block int) error {
		broken |= 1 << block
		return bad(err, block+first)
	}
	if straight {
		return r.straight(ctx, dst, report)
	}
	clear(dst[:n])
	err := r.read(ctx, dst, report)
	for i := 0; broken != 0 && i < last-first; i++ {
		if broken&(1<<i) != 0 {
			clear(dst[i*format.BlockSize : (i+1)*format.BlockSize])
		}
	}
	return err
}

// straight reads whole blocks that lie behind each other right into dst.
func (r *unitReader) straight(ctx context.Context, dst []byte, bad func(error, int) error) error {
	n := len(r.plan) * format.BlockSize
	seg, err := r.m.segments.Get(ctx, r.plan[0].Segment)
	if err == nil {
		err = damage.ReadFull(ctx, r.m.view, seg.Key, int64(r.plan[0].Position)*format.PageSize, dst[:n])
	}
	g := r.m.Digester()
	defer r.m.Release(g)
	for i := range r.plan {
		w := &r.plan[i]
		p := dst[i*format.BlockSize:]
		e := err
		if e == nil {
			if e = seg.Open(g, &r.x, p, format.BlockSize, w.Position, w.Stored, w.Tag); e != nil {
				e = &DamageError{Object: seg.Key, Machine: r.m.Machine.ID, Err: e}
			}
		}
		if e != nil {
			clear(p[:format.BlockSize])
			if e = bad(e, w.block); e != nil {
				return e
			}
		}
	}
	return nil
}

// read reads the planned extents in the order in which they are stored,
// neighbours at once, and puts their live pages where they belong.
func (r *unitReader) read(ctx context.Context, dst []byte, bad func(error, int) error) error {
	sort.Slice(r.plan, func(i, j int) bool {
		a, b := &r.plan[i], &r.plan[j]
		if a.Segment != b.Segment {
			return string(a.Segment[:]) < string(b.Segment[:])
		}
		return a.Position < b.Position
	})
	if r.buf == nil {
		r.buf = disk.AlignedBuffer(readRun + format.PageSize)
	}
	for i := 0; i < len(r.plan); {
		start := int64(r.plan[i].Position) * format.PageSize
		end := start
		j := i
		for ; j < len(r.plan) && r.plan[j].Segment == r.plan[i].Segment; j++ {
			at := int64(r.plan[j].Position) * format.PageSize
			stop := at + int64(format.Pages(r.plan[j].Stored))*format.PageSize
			if at > end+readGap || stop-start > readRun {
				break
			}
			end = max(end, stop)
		}
		if err := r.run(ctx, dst, r.plan[i:j], start, end, bad); err != nil {
			return err
		}
		i = j
	}
	return nil
}

// run reads [start, end) of one segment and places the extents in it.
func (r *unitReader) run(ctx context.Context, dst []byte, ws []wanted, start, end int64, bad func(error, int) error) error {
	seg, err := r.m.segments.Get(ctx, ws[0].Segment)
	if err == nil {
		err = damage.ReadFull(ctx, r.m.view, seg.Key, start, r.buf[:end-start])
		if err != nil && ctx.Err() != nil {
			return ctx.Err()
		}
	}
	g := r.m.Digester()
	defer r.m.Release(g)
	for i := range ws {
		w := &ws[i]
		size := format.Pages(w.Stored) * format.PageSize
		e := err
		var p []byte
		if e == nil {
			p = r.buf[int64(w.Position)*format.PageSize-start:]
			if e = seg.Open(g, &r.x, p, size, w.Position, w.Stored, w.Tag); e != nil {
				e = &DamageError{Object: seg.Key, Machine: r.m.Machine.ID, Err: e}
			}
		}
		if e != nil {
			if be := bad(e, w.block); be != nil {
				return be
			}
			continue
		}
		scatter(dst[w.block*format.BlockSize:(w.block+1)*format.BlockSize], p[:size], w.Stored, w.Live)
	}
	return nil
}

// scatter puts the live ones of the stored pages in p where they belong in a block.
func scatter(block, p []byte, stored, live uint16) {
	if live == 0xffff {
		copy(block, p)
		return
	}
	for m := stored; m != 0; m &= m - 1 {
		i := bits.TrailingZeros16(m)
		if live&(1<<i) != 0 {
			copy(block[i*format.PageSize:(i+1)*format.PageSize], p)
		}
		p = p[format.PageSize:]
	}
}

// DiskReader reads a disk of a recovery point. Every byte it hands on was
// authenticated. It is safe for concurrent use.
type DiskReader struct {
	ctx    context.Context
	m      *machine
	disk   Disk
	tree   *blockmap.Tree
	pool   sync.Pool
	blocks int64
}

// OpenDisk opens a disk of a manifest. ctx bounds the reader's life.
func (r *Repository) OpenDisk(ctx context.Context, mid string, d Disk) (*DiskReader, error) {
	m, err := r.machine(ctx, mid)
	if err != nil {
		return nil, err
	}
	t, err := m.openTree(d)
	if err != nil {
		return nil, fmt.Errorf("open disk %s: %w", d.ID, err)
	}
	dr := &DiskReader{ctx: ctx, m: m, disk: d, tree: t, blocks: format.BlockCount(d.Size)}
	dr.pool.New = func() any { return &readBuffers{r: newUnitReader(m)} }
	return dr, nil
}

type readBuffers struct {
	r   *unitReader
	buf []byte
}

// Size of the disk in bytes.
func (d *DiskReader) Size() int64 { return d.disk.Size }

// Close does nothing yet but belongs to the contract of disks.
func (d *DiskReader) Close() error { return nil }

// ReadAt reads verified content. Unread ranges read as zeroes; see Disk.Unread.
func (d *DiskReader) ReadAt(p []byte, off int64) (int, error) {
	if off < 0 {
		return 0, errors.New("read disk: negative offset")
	}
	b := d.pool.Get().(*readBuffers)
	defer d.pool.Put(b)
	if b.buf == nil {
		b.buf = disk.AlignedBuffer(format.LeafSize + format.PageSize)
	}
	n := 0
	for n < len(p) && off+int64(n) < d.disk.Size {
		at := off + int64(n)
		index := at / format.LeafSize
		in := at % format.LeafSize
		want := min(int64(len(p)-n), format.LeafSize-in, d.disk.Size-at)
		l, _, err := d.tree.Leaf(d.ctx, index)
		if err != nil {
			return n, d.locate(err, index*format.LeafSize, format.LeafSize)
		}
		first, last := int(in/format.BlockSize), int((in+want+format.BlockSize-1)/format.BlockSize)
		err = b.r.unit(d.ctx, l, first, last, b.buf, func(err error, block int) error {
			return d.locate(err, index*format.LeafSize+int64(block)*format.BlockSize, format.BlockSize)
		})
		if err != nil {
			return n, err
		}
		from := in - int64(first)*format.BlockSize
		copy(p[n:n+int(want)], b.buf[from:])
		n += int(want)
	}
	if n < len(p) {
		return n, io.EOF
	}
	return n, nil
}

// locate says in a damage error which range of which disk it touches.
func (d *DiskReader) locate(err error, off, length int64) error {
	var de *DamageError
	if errors.As(err, &de) {
		return &DamageError{
			Object: de.Object, Machine: d.m.Machine.ID, Disk: d.disk.ID,
			Range: disk.Range{Offset: off, Length: min(length, d.disk.Size-off)}, Err: de.Err,
		}
	}
	if errors.Is(err, ErrNotFound) {
		return &DamageError{
			Object: "segment or map", Machine: d.m.Machine.ID, Disk: d.disk.ID,
			Range: disk.Range{Offset: off, Length: min(length, d.disk.Size-off)}, Err: err,
		}
	}
	return fmt.Errorf("read disk %s at %d: %w", d.disk.ID, off, err)
}

// NextData returns the next range at or behind off, in whole blocks, that is
// not zeroes. io.EOF when nothing follows.
func (d *DiskReader) NextData(off int64) (disk.Range, error) {
	if off >= d.disk.Size { // inside the last block it may still be
		return disk.Range{}, io.EOF
	}
	start := max(off, 0) / format.BlockSize
	for b := start; b < d.blocks; {
		index := b / format.LeafBlocks
		skip, err := d.skip(index)
		if err != nil {
			return disk.Range{}, err
		}
		if skip > 0 {
			b = (index + skip) * format.LeafBlocks
			continue
		}
		l, _, err := d.tree.Leaf(d.ctx, index)
		if err != nil {
			return disk.Range{}, d.locate(err, index*format.LeafSize, format.LeafSize)
		}
		for i := int(b % format.LeafBlocks); i < format.LeafBlocks; i++ {
			if l[i].Zero() {
				continue
			}
			j := i
			for j < format.LeafBlocks && !l[j].Zero() {
				j++
			}
			from := max((index*format.LeafBlocks+int64(i))*format.BlockSize, off)
			to := min((index*format.LeafBlocks+int64(j))*format.BlockSize, d.disk.Size)
			return disk.Range{Offset: from, Length: to - from}, nil
		}
		b = (index + 1) * format.LeafBlocks
	}
	return disk.Range{}, io.EOF
}

// skip says how many leaves from index on are zeroes as a whole, at the
// coarsest level at which that shows.
func (d *DiskReader) skip(index int64) (int64, error) {
	for level := d.tree.Level; level >= 0; level-- {
		span := int64(1) << (5 * level)
		ref, known, err := d.tree.Ref(d.ctx, level, index/span)
		if err != nil {
			return 0, d.locate(err, index*format.LeafSize, format.LeafSize)
		}
		if known && ref.Zero() {
			return span - index%span, nil
		}
	}
	return 0, nil
}
