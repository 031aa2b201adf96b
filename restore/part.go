package restore

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strconv"
	"time"

	"github.com/lockstep-backup/lockstep/disk"
	"github.com/lockstep-backup/lockstep/repository"
)

// ErrNoPart says that a disk has no such partition, or ends before the range
// that was asked for.
var ErrNoPart = errors.New("disk has no such part")

// Partition finds a partition of a disk by its number, 1 for the first. The
// layout is what was found when the recovery point was made.
func Partition(l disk.Layout, number string) (disk.Range, error) {
	n, err := strconv.Atoi(number)
	for _, p := range l.Partitions {
		if err == nil && p.Number == n {
			return p.Range, nil
		}
	}
	return disk.Range{}, fmt.Errorf("partition %q: %w", number, ErrNoPart)
}

// partOf checks a part; no part is the whole disk.
func partOf(d repository.Disk, part disk.Range) (disk.Range, error) {
	if part == (disk.Range{}) {
		return disk.Range{Length: d.Size}, nil
	}
	if part.Offset < 0 || part.Length <= 0 || part.Offset > d.Size || part.Length > d.Size-part.Offset {
		return part, fmt.Errorf("disk %s: %d bytes at offset %d of %d: %w", d.ID, part.Length, part.Offset, d.Size, ErrNoPart)
	}
	return part, nil
}

// only has a scan hand on one part, at offsets within it.
func only(o *repository.ScanOptions, part disk.Range) {
	o.Only = part
	data, zero := o.Data, o.Zero
	o.Data = func(off int64, p []byte) error {
		from, to := max(part.Offset-off, 0), min(part.End()-off, int64(len(p)))
		if from >= to {
			return nil
		}
		return data(off+from-part.Offset, p[from:to])
	}
	o.Zero = func(off, length int64) error {
		from, to := max(part.Offset, off), min(part.End(), off+length)
		if from >= to {
			return nil
		}
		return zero(from-part.Offset, to-from)
	}
}

// pieces are a part's ranges of the disk in its order: the extents, where it has
// some, which are checked.
func pieces(d repository.Disk, part disk.Range, extents []disk.Range) (list []disk.Range, size int64, err error) {
	if extents == nil {
		part, err = partOf(d, part)
		return []disk.Range{part}, part.Length, err
	}
	for _, e := range extents {
		if _, err := partOf(d, e); err != nil || e == (disk.Range{}) || size > d.Size {
			return nil, 0, fmt.Errorf("disk %s: a piece of %d bytes at offset %d of %d: %w", d.ID, e.Length, e.Offset, d.Size, ErrNoPart)
		}
		size += e.Length
	}
	return extents, size, nil
}

// scan hands on pieces of a disk one after the other, at offsets within them all.
func scan(ctx context.Context, r *repository.DiskReader, d repository.Disk, o repository.ScanOptions, list []disk.Range, lost *losses) error {
	before := int64(0)
	for _, p := range list {
		lost.from(p)
		here, at := o, before
		here.Data = func(off int64, b []byte) error { return o.Data(off+at, b) }
		here.Zero = func(off, length int64) error { return o.Zero(off+at, length) }
		here.Progress = func(n, total int64) { o.Progress(at+min(n, p.Length), total) }
		if p.Length != d.Size {
			only(&here, p)
		}
		if _, err := r.Scan(ctx, here); err != nil {
			return err
		}
		before += p.Length
	}
	return nil
}

// unread is what of a part never was in the recovery point, by offsets of the disk.
func unread(d repository.Disk, list []disk.Range) []disk.Range {
	return disk.Normalize(d.Unread...).Intersect(disk.Normalize(list...))
}

// StreamRequest asks for the bytes of a disk, or of a part of it, in order.
type StreamRequest struct {
	Repository *repository.Repository
	Manifest   *repository.Manifest
	Disk       string
	Part       disk.Range   // zero length: all of it
	Extents    []disk.Range // the part's bytes in its order, where they are not just Part: a logical volume's
	To         io.Writer
	// Sized is called once, before the first byte, with the number of bytes.
	Sized func(size int64)
	// KeepGoing writes zeroes where stored data is damaged; Disk.Damaged says where.
	KeepGoing bool
	Progress  func(phase string, done, total int64)
	// Elsewhere is Request's.
	Elsewhere func() []*repository.Repository
}

var zeroes [64 << 10]byte

// Stream writes a disk to where it cannot be taken back: in order, zeroes
// included. Each byte is verified before it is written; only where the error is
// nil is it all of it.
func Stream(ctx context.Context, req StreamRequest) (Disk, error) {
	fail := func(err error) (Disk, error) {
		return Disk{}, fmt.Errorf("restore disk %s of %s: %w", req.Disk, req.Manifest.Point, err)
	}
	d, ok := find(req.Manifest, req.Disk)
	if !ok {
		return fail(ErrNoDisk)
	}
	list, size, err := pieces(d, req.Part, req.Extents)
	if err != nil {
		return fail(err)
	}
	r, err := req.Repository.OpenDisk(ctx, req.Manifest.Machine, d)
	if err != nil {
		return fail(err)
	}
	if req.Sized != nil {
		req.Sized(size)
	}
	start := time.Now()
	var at, data int64
	next := func(off int64, n int) error {
		if off != at {
			return fmt.Errorf("offset %d comes where %d is due", off, at)
		}
		at += int64(n)
		return nil
	}
	o := repository.ScanOptions{
		Ordered: true,
		Data: func(off int64, p []byte) error {
			if err := next(off, len(p)); err != nil {
				return err
			}
			data += int64(len(p))
			_, err := req.To.Write(p)
			return err
		},
		Zero: func(off, length int64) error {
			for length > 0 {
				p := zeroes[:min(length, int64(len(zeroes)))]
				if err := errors.Join(ctx.Err(), next(off, len(p))); err != nil {
					return err
				}
				if _, err := req.To.Write(p); err != nil {
					return err
				}
				off, length = off+int64(len(p)), length-int64(len(p))
			}
			return nil
		},
		Progress: func(n, _ int64) {
			if req.Progress != nil {
				req.Progress("write", min(n, size), size)
			}
		},
	}
	gone := deletions{repo: req.Repository, manifest: req.Manifest}
	var lost losses
	if req.KeepGoing {
		o.Damaged = gone.goOn(ctx, &lost)
	}
	var from borrowed
	from.lend(ctx, &o, req.Elsewhere, req.Manifest, d)
	if err := scan(ctx, r, d, o, list, &lost); err != nil {
		return fail(gone.explain(ctx, err))
	}
	if at != size {
		return fail(io.ErrUnexpectedEOF)
	}
	return Disk{
		ID: d.ID, Part: req.Part, Target: "-", Size: size, Written: data, ContentRoot: d.ContentRoot,
		Unread: unread(d, list), Damaged: lost.damaged(), Borrowed: from.bytes, BorrowedFor: from.why, Seconds: time.Since(start).Seconds(),
	}, nil
}
