// Package extents reads what blocks are made of: extents of segments, in the
// order in which they are stored, each checked by its tag.
package extents

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/bits"
	"sort"
	"sync"
	"sync/atomic"

	"golang.org/x/sync/errgroup"

	"github.com/lockstep-backup/lockstep/disk"
	"github.com/lockstep-backup/lockstep/repository/format"
	"github.com/lockstep-backup/lockstep/repository/internal/damage"
	"github.com/lockstep-backup/lockstep/repository/internal/machinekey"
	"github.com/lockstep-backup/lockstep/repository/internal/replica"
	"github.com/lockstep-backup/lockstep/repository/internal/segment"
)

// Reader reads stored extents. It has buffers and is for one goroutine.
type Reader struct {
	m    *machinekey.Keys
	segs *segment.Cache
	view *replica.View
	x    segment.Scratch
	buf  []byte // aligned; see room
	plan []wanted
	runs []piece

	lanes []*Reader // that read side by side; they have no lanes of their own
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
	// smallRun is what the buffer holds until more is wanted.
	smallRun = 2 * format.BlockSize
)

// NewReader reads a machine's segments through view.
func NewReader(m *machinekey.Keys, segs *segment.Cache, view *replica.View) *Reader {
	return &Reader{m: m, segs: segs, view: view}
}

// Block reads one block's content into dst (BlockSize bytes) and compares it
// with the block's digest. Unread pages come as zeroes.
func (r *Reader) Block(ctx context.Context, b *format.Block, dst []byte) error {
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
func (r *Reader) check(b *format.Block, p []byte) error {
	g := r.m.Digester()
	defer r.m.Release(g)
	var d format.Digest
	switch {
	case b.Unread != 0:
		d = g.UnreadBlock(p, b.Unread)
	case !IsZero(p):
		d = g.Block(p)
	}
	if d != b.Digest {
		return fmt.Errorf("content does not have its digest: %w", damage.ErrDamaged)
	}
	return nil
}

// Unit reads the blocks [first, last) of a leaf into dst, which begins at
// block first and has (last-first)*BlockSize bytes.
// A block whose extents are damaged is reported to bad, which may return nil
// to go on; the block's content is zeroes then.
func (r *Reader) Unit(ctx context.Context, l *format.Leaf, first, last int, dst []byte, bad func(err error, block int) error) error {
	n := (last - first) * format.BlockSize
	r.plan = r.plan[:0]
	straight := len(l[first].Extents) == 1 // one run of whole blocks in order
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

// room gives n bytes, aligned, and TagSize more behind. It begins small: who
// reads at random reads single blocks, and many readers do so at once.
func (r *Reader) room(n int) []byte {
	if len(r.buf) < n+format.PageSize {
		size := readRun
		if n <= smallRun {
			size = smallRun
		}
		r.buf = disk.AlignedBuffer(size + format.PageSize)
	}
	return r.buf[:n+format.TagSize]
}

// straight reads whole blocks that lie behind each other and opens each right
// into dst.
func (r *Reader) straight(ctx context.Context, dst []byte, bad func(error, int) error) error {
	n := len(r.plan) * format.BlockSize
	buf := r.room(n)
	seg, err := r.segs.Get(ctx, r.plan[0].Segment)
	if err == nil {
		err = damage.ReadFull(ctx, r.view, seg.Key, int64(r.plan[0].Position)*format.PageSize, buf[:n])
	}
	g := r.m.Digester()
	defer r.m.Release(g)
	again := false
	for i := 0; i < len(r.plan); i++ {
		w := &r.plan[i]
		p := dst[i*format.BlockSize : (i+1)*format.BlockSize]
		e := err
		if e == nil {
			if e = seg.OpenTo(g, &r.x, p, buf[i*format.BlockSize:], w.Position, w.Stored, w.Tag); e != nil {
				e = &damage.Error{Object: seg.Key, Machine: r.m.ID, Err: e}
				if !again {
					again = true
					err = r.again(ctx, seg.Key, int64(r.plan[0].Position)*format.PageSize, buf[:n])
					i = -1
					continue
				}
			}
		}
		if e != nil {
			clear(p)
			if e = bad(e, w.block); e != nil {
				return e
			}
		}
	}
	return nil
}

// again reads once more what was not as it was stored: a bit may have flipped
// on the way, or another replica may have come that has it.
func (r *Reader) again(ctx context.Context, key string, off int64, p []byte) error {
	r.view.Forget(key)
	return damage.ReadFull(ctx, r.view, key, off, p)
}

// read reads the planned extents in the order in which they are stored,
// neighbours at once, and puts their live pages where they belong.
func (r *Reader) read(ctx context.Context, dst []byte, bad func(error, int) error) error {
	sort.Slice(r.plan, func(i, j int) bool {
		a, b := &r.plan[i], &r.plan[j]
		if a.Segment != b.Segment {
			return string(a.Segment[:]) < string(b.Segment[:])
		}
		return a.Position < b.Position
	})
	r.runs = r.runs[:0]
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
		r.runs = append(r.runs, piece{r.plan[i:j], start, end})
		i = j
	}
	if len(r.runs) < minParallel {
		for _, p := range r.runs {
			if err := r.run(ctx, dst, p.extents, p.start, p.end, bad); err != nil {
				return err
			}
		}
		return nil
	}
	return r.parallel(ctx, dst, bad)
}

// piece is a range of one segment that is read at once, and the extents in it.
type piece struct {
	extents    []wanted
	start, end int64
}

// A unit of a disk with a long history of small writes lies in hundreds of
// places. One after the other they cost their latencies; lanes read them side
// by side, each with a small buffer.
const (
	minParallel = 4
	lanes       = 8
)

// parallel reads the pieces side by side; those that want a large buffer, and
// are few, one after the other. What they put into dst does not overlap.
func (r *Reader) parallel(ctx context.Context, dst []byte, bad func(error, int) error) error {
	var mu sync.Mutex
	one := func(err error, block int) error {
		mu.Lock()
		defer mu.Unlock()
		return bad(err, block)
	}
	for len(r.lanes) < lanes {
		r.lanes = append(r.lanes, NewReader(r.m, r.segs, r.view))
	}
	group, ctx := errgroup.WithContext(ctx)
	var next atomic.Int64
	for _, lane := range r.lanes[:min(lanes, len(r.runs))] {
		group.Go(func() error {
			for {
				i := int(next.Add(1)) - 1
				if i >= len(r.runs) {
					return nil
				}
				p := r.runs[i]
				if p.end-p.start > smallRun {
					continue
				}
				if err := lane.run(ctx, dst, p.extents, p.start, p.end, one); err != nil {
					return err
				}
			}
		})
	}
	for _, p := range r.runs {
		if p.end-p.start <= smallRun {
			continue
		}
		if err := r.run(ctx, dst, p.extents, p.start, p.end, one); err != nil {
			return errors.Join(err, group.Wait())
		}
	}
	return group.Wait()
}

// run reads [start, end) of one segment and places the extents in it.
func (r *Reader) run(ctx context.Context, dst []byte, ws []wanted, start, end int64, bad func(error, int) error) error {
	buf := r.room(int(end - start))
	seg, err := r.segs.Get(ctx, ws[0].Segment)
	if err == nil {
		err = damage.ReadFull(ctx, r.view, seg.Key, start, buf[:end-start])
		if err != nil && ctx.Err() != nil {
			return ctx.Err()
		}
	}
	g := r.m.Digester()
	defer r.m.Release(g)
	again := false
	for i := 0; i < len(ws); i++ {
		w := &ws[i]
		size := format.Pages(w.Stored) * format.PageSize
		e := err
		var p []byte
		if e == nil {
			p = buf[int64(w.Position)*format.PageSize-start:]
			if e = seg.Open(g, &r.x, p, size, w.Position, w.Stored, w.Tag); e != nil {
				e = &damage.Error{Object: seg.Key, Machine: r.m.ID, Err: e}
				if !again {
					again = true
					err = r.again(ctx, seg.Key, start, buf[:end-start])
					i = -1
					continue
				}
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

var zeroPage [format.PageSize]byte

// IsZero says whether p is zeroes.
func IsZero(p []byte) bool {
	for len(p) >= format.PageSize {
		if p[0] != 0 || !bytes.Equal(p[:format.PageSize], zeroPage[:]) {
			return false
		}
		p = p[format.PageSize:]
	}
	return bytes.Equal(p, zeroPage[:len(p)])
}
