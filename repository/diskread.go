package repository

import (
	"context"
	"errors"
	"fmt"
	"io"

	"github.com/lockstep-backup/lockstep/disk"
	"github.com/lockstep-backup/lockstep/repository/format"
	"github.com/lockstep-backup/lockstep/repository/internal/blockmap"
	"github.com/lockstep-backup/lockstep/repository/internal/extents"
)

// DiskReader reads a disk of a recovery point. Every byte it hands on was
// authenticated. It is safe for concurrent use.
type DiskReader struct {
	ctx    context.Context
	m      *machine
	disk   Disk
	tree   *blockmap.Tree
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
	return &DiskReader{ctx: ctx, m: m, disk: d, tree: t, blocks: format.BlockCount(d.Size)}, nil
}

type readBuffers struct {
	r   *extents.Reader
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
	b, ok := d.m.buffers.Get().(*readBuffers)
	if !ok {
		b = &readBuffers{r: newReader(d.m)}
	}
	defer d.m.buffers.Put(b)
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
		dst := p[n : n+int(want)]
		whole := len(dst) == (last-first)*format.BlockSize
		if !whole {
			if len(b.buf) < (last-first)*format.BlockSize {
				b.buf = make([]byte, (last-first)*format.BlockSize)
			}
			dst = b.buf[:(last-first)*format.BlockSize]
		}
		err = b.r.Unit(d.ctx, l, first, last, dst, func(err error, block int) error {
			return d.locate(err, index*format.LeafSize+int64(block)*format.BlockSize, format.BlockSize)
		})
		if err != nil {
			return n, err
		}
		if !whole {
			copy(p[n:n+int(want)], dst[in-int64(first)*format.BlockSize:])
		}
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
