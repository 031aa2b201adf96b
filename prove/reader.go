package prove

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"

	"github.com/lockstep-backup/lockstep/disk"
	"github.com/lockstep-backup/lockstep/repository"
)

// pointReader serves the prover's reads from the repository; it implements
// custody.PointReader.
type pointReader struct {
	ctx     context.Context
	repo    *repository.Repository
	mf      *repository.Manifest
	open    map[string]*repository.DiskReader
	headers map[string]*repository.Header
	damage  []error // of what is stored, as reading it found; each once
}

func newPointReader(ctx context.Context, repo *repository.Repository, mf *repository.Manifest) *pointReader {
	return &pointReader{
		ctx: ctx, repo: repo, mf: mf,
		open: map[string]*repository.DiskReader{}, headers: map[string]*repository.Header{},
	}
}

// Close closes the disks that were opened.
func (r *pointReader) Close() {
	for _, d := range r.open {
		_ = d.Close()
	}
}

var errUnread = errors.New("this range could not be read when the recovery point was made")

// maxDamage bounds what one recovery point's proof remembers of damage.
const maxDamage = 16

// note keeps what is damage: to the prover every failed read is alike.
func (r *pointReader) note(err error) {
	if !isDamage(err) || len(r.damage) >= maxDamage {
		return
	}
	if !slices.ContainsFunc(r.damage, func(e error) bool { return e.Error() == err.Error() }) {
		r.damage = append(r.damage, err)
	}
}

// isDamage says whether an error is about what the repository stores, not
// about getting at it.
func isDamage(err error) bool {
	return errors.Is(err, repository.ErrDamaged) || errors.Is(err, repository.ErrNotFound) || errors.Is(err, repository.ErrUntrusted)
}

// ReadAt implements custody.PointReader.
func (r *pointReader) ReadAt(id, volume string, header bool, p []byte, off int64) (int, error) {
	n, err := r.readAt(id, volume, header, p, off)
	r.note(err)
	return n, err
}

func (r *pointReader) readAt(id, volume string, header bool, p []byte, off int64) (int, error) {
	i := slices.IndexFunc(r.mf.Disks, func(d repository.Disk) bool { return d.ID == id })
	if i < 0 {
		return 0, fmt.Errorf("read recovery point: there is no disk %q", id)
	}
	d := r.mf.Disks[i]
	if header {
		h, err := r.header(d, volume)
		if err != nil {
			return 0, err
		}
		return h.ReadAt(p, off)
	}
	// Unread ranges read as zeroes; a proof must not rest on them.
	for _, u := range d.Unread {
		if u.Offset < off+int64(len(p)) && off < u.End() {
			return 0, fmt.Errorf("read disk %s at %d: %w", id, off, errUnread)
		}
	}
	reader := r.open[id]
	if reader == nil {
		var err error
		if reader, err = r.repo.OpenDisk(r.ctx, r.mf.Machine, d); err != nil {
			return 0, err
		}
		r.open[id] = reader
	}
	return reader.ReadAt(p, off)
}

// header opens the stored copy of a detached header.
func (r *pointReader) header(d repository.Disk, volume string) (*repository.Header, error) {
	key := d.ID + "/" + volume
	if h := r.headers[key]; h != nil {
		return h, nil
	}
	i := slices.IndexFunc(d.Headers, func(h repository.HeaderRef) bool { return h.Volume == volume })
	if i < 0 {
		return nil, fmt.Errorf("read detached header of %s: %w", key, repository.ErrNotFound)
	}
	h, err := r.repo.Header(r.ctx, r.mf.Machine, d.Headers[i].ID)
	if err != nil {
		return nil, err
	}
	r.headers[key] = h
	return h, nil
}

// LiveDisk is a disk as it is now, for reading only.
type LiveDisk struct {
	ID     string
	Size   int64
	Disk   io.ReaderAt
	Header io.ReaderAt // detached, nil = none
	// HeaderSize of the detached header, in bytes.
	HeaderSize int64
	// Declared is what the user declared of its volumes, by their id.
	Declared map[string]map[string]string
	Close    func()
}

// liveReader serves the prover's reads from live disks.
type liveReader map[string]LiveDisk

func (r liveReader) ReadAt(id, _ string, header bool, p []byte, off int64) (int, error) {
	d, ok := r[id]
	if !ok || header && d.Header == nil {
		return 0, fmt.Errorf("read live disk: there is no disk %q", id)
	}
	if header {
		return readWithin(d.Header, d.HeaderSize, p, off)
	}
	return readWithin(d.Disk, d.Size, p, off)
}

// readWithin reads through an aligned buffer: live disks may be read around
// the page cache.
func readWithin(r io.ReaderAt, size int64, p []byte, off int64) (int, error) {
	if off < 0 || off >= size {
		return 0, io.EOF
	}
	want := min(int64(len(p)), size-off)
	from := off / disk.PageSize * disk.PageSize
	to := min((off+want+disk.PageSize-1)/disk.PageSize*disk.PageSize, size)
	buf := disk.AlignedBuffer(int(to - from))
	n, err := r.ReadAt(buf, from)
	if int64(n) < to-from {
		if err == nil || errors.Is(err, io.EOF) {
			err = io.ErrUnexpectedEOF
		}
		return 0, err
	}
	copy(p, buf[off-from:off-from+want])
	if want < int64(len(p)) {
		return int(want), io.EOF
	}
	return int(want), nil
}
