// Package image reads raw disk images and block devices as sources.
//
// It is not a reader of container formats: a qcow2, VMDK or VHD file is refused,
// never copied as if it were the disk. It opens for reading only, and what it
// returns is either the content or an error: a file that shrinks while it is
// read is source.ErrSizeChanged, never zeroes.
//
// On Linux it reads around the page cache unless the image is in it already,
// and refuses a disk that somebody uses (see disk.InUse for what is seen). On
// other systems it reads image files through the page cache and cannot tell
// whether they are in use.
package image

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"sync/atomic"

	"github.com/lockstep-backup/lockstep/disk"
	"github.com/lockstep-backup/lockstep/source"
)

// Opener opens image files and block devices. Its specs are paths and file
// URLs; "?format=raw" says that a disk is raw although it begins or ends like
// another format.
type Opener struct{}

var _ source.Opener = Opener{}

// Open fails with source.ErrNotFound, source.ErrInUse (unless opts.AllowLive),
// source.ErrUnsupported for whatever is not a raw disk; the error says what it is.
func (Opener) Open(ctx context.Context, spec string, opts source.Options) (source.Disk, error) {
	if err := ctx.Err(); err != nil {
		return nil, fmt.Errorf("open source: %w", err)
	}
	path, query, err := disk.LocalPath(spec)
	if err != nil {
		return nil, fmt.Errorf("open source: %w: %w", source.ErrUnsupported, err)
	}
	format := query.Get("format")
	if format != "" && format != "raw" {
		return nil, fmt.Errorf("open source: %w: format %q (raw is all that is read directly)", source.ErrUnsupported, format)
	}
	d, err := open(path, opts)
	if err != nil {
		return nil, err
	}
	if format == "" {
		err = refuseContainer(d)
	}
	if err == nil {
		err = d.chooseReading()
	}
	if err != nil {
		_ = d.Close()
		return nil, err
	}
	return d, nil
}

// Disk is an open image or device.
type Disk struct {
	path        string
	size        int64
	device      bool
	consistency source.Consistency
	file        *os.File // through the page cache
	direct      *os.File // around it; nil where that is impossible or slower
	refused     atomic.Bool
}

func open(path string, opts source.Options) (*Disk, error) {
	// A look before the open: opening a FIFO waits for its other end.
	before, err := os.Stat(path)
	if err != nil {
		return nil, openError(path, err)
	}
	if err := refuseKind(path, before.Mode()); err != nil {
		return nil, err
	}
	f, err := os.Open(path)
	if err != nil {
		return nil, openError(path, err)
	}
	d := &Disk{path: path, file: f, consistency: source.ConsistencyCrash}
	if opts.AllowLive {
		d.consistency = source.ConsistencyNone
	}
	if err := d.prepare(before, opts); err != nil {
		_ = d.Close()
		return nil, err
	}
	return d, nil
}

func (d *Disk) prepare(before fs.FileInfo, opts source.Options) error {
	now, err := d.file.Stat()
	if err != nil {
		return openError(d.path, err)
	}
	if !os.SameFile(before, now) {
		return &ReplacedError{Path: d.path}
	}
	d.device = now.Mode()&fs.ModeDevice != 0
	if d.size, err = d.sizeNow(); err != nil {
		return fmt.Errorf("open source %s: %w", d.path, err)
	}
	if d.size == 0 {
		return fmt.Errorf("open source %s: %w: it is empty (0 bytes)", d.path, source.ErrUnsupported)
	}
	if opts.AllowLive {
		return nil
	}
	by, err := disk.InUse(d.file, false)
	if err != nil {
		return fmt.Errorf("open source %s: %w", d.path, err)
	}
	if by != "" {
		return fmt.Errorf("open source %s: %w: %s", d.path, source.ErrInUse, by)
	}
	if d.device {
		if err := d.claimDevice(); err != nil {
			return err
		}
	}
	err = disk.LockForReading(d.file)
	if errors.Is(err, disk.ErrLocked) {
		return fmt.Errorf("open source %s: %w: %w", d.path, source.ErrInUse, err)
	}
	if err != nil {
		return fmt.Errorf("open source %s: %w", d.path, err)
	}
	return nil
}

func refuseKind(path string, mode fs.FileMode) error {
	if what := disk.NotADisk(mode, devicesSupported); what != "" {
		return fmt.Errorf("open source %s: %w: it is %s", path, source.ErrUnsupported, what)
	}
	return nil
}

func openError(path string, err error) error {
	if errors.Is(err, fs.ErrNotExist) || noSuchDevice(err) {
		return fmt.Errorf("open source %s: %w", path, source.ErrNotFound)
	}
	var p *fs.PathError
	if errors.As(err, &p) {
		err = p.Err
	}
	return fmt.Errorf("open source %s: %w", path, err)
}

// chooseReading decides once how to read: direct I/O does not push out what
// others have in the page cache and is faster, unless most of the image is
// there already.
func (d *Disk) chooseReading() error {
	if d.mostlyCached() {
		d.adviseSequential()
		return nil
	}
	direct, err := disk.OpenDirect(d.file, os.O_RDONLY)
	if errors.Is(err, disk.ErrUnsupported) || errors.Is(err, fs.ErrPermission) {
		d.adviseSequential()
		return nil
	}
	if err != nil {
		return fmt.Errorf("open source %s: %w", d.path, err)
	}
	d.direct = direct
	return nil
}

// Size in bytes when opened.
func (d *Disk) Size() int64 { return d.size }

// Consistency is None where live reading was allowed; then nobody was asked.
func (d *Disk) Consistency() source.Consistency { return d.consistency }

// Direct reports whether aligned reads go around the page cache.
func (d *Disk) Direct() bool { return d.direct != nil && !d.refused.Load() }

// ReadAt reads as io.ReaderAt says. Where the file ends before Size it returns
// source.ErrSizeChanged, for a bad sector a *source.UnreadableError.
func (d *Disk) ReadAt(p []byte, off int64) (int, error) {
	if off < 0 {
		return 0, fmt.Errorf("read source: offset %d is negative", off)
	}
	if len(p) == 0 {
		return 0, nil
	}
	if off >= d.size {
		return 0, io.EOF
	}
	var atEnd error
	if int64(len(p)) > d.size-off {
		p, atEnd = p[:d.size-off], io.EOF
	}
	n := 0
	// The tail of a file whose size is not a multiple of the page goes through the cache.
	if whole := len(p) &^ (disk.PageSize - 1); whole > 0 && d.Direct() && disk.IsAligned(p[:whole], off) {
		var err error
		if n, err = d.direct.ReadAt(p[:whole], off); err != nil {
			if isBadSector(err) {
				return n, d.unreadable(off+int64(n), int64(len(p)-n), err)
			}
			if isRefused(err) && n == 0 {
				d.refused.Store(true)
			}
			// Whatever else it is (the end came early, the alignment is not
			// enough for this device), the page cache knows better.
		}
	}
	if n < len(p) {
		m, err := d.file.ReadAt(p[n:], off+int64(n))
		n += m
		if err != nil {
			return n, d.readError(off+int64(n), int64(len(p)-n), err)
		}
	}
	return n, atEnd
}

func (d *Disk) readError(off, length int64, err error) error {
	switch {
	case errors.Is(err, io.EOF):
		return fmt.Errorf("read source %s: it ends at or before offset %d of %d: %w", d.path, off, d.size, source.ErrSizeChanged)
	case isBadSector(err):
		return d.unreadable(off, length, err)
	case noSuchDevice(err):
		return fmt.Errorf("read source %s: the device is gone: %w", d.path, source.ErrNotFound)
	default:
		return fmt.Errorf("read source at offset %d: %w", off, err)
	}
}

func (d *Disk) unreadable(off, length int64, err error) error {
	return &source.UnreadableError{Range: disk.Range{Offset: off, Length: length}, Err: err}
}

// NextData is sparse-aware where the file system is.
func (d *Disk) NextData(off int64) (disk.Range, error) {
	r, err := disk.NextData(d.file, off, d.size)
	if err != nil && !errors.Is(err, io.EOF) {
		return disk.Range{}, fmt.Errorf("read source %s: %w", d.path, err)
	}
	if off < d.size {
		// A file that was cut looks like one with a hole at its end.
		if sizeErr := d.checkSize(); sizeErr != nil {
			return disk.Range{}, sizeErr
		}
	}
	return r, err
}

// Check compares what the path names, and its size, with what was opened.
// Another file in the place of the first is a *ReplacedError, which counts as
// source.ErrSizeChanged.
func (d *Disk) Check() error {
	opened, err := d.file.Stat()
	if err != nil {
		return fmt.Errorf("check source %s: %w", d.path, err)
	}
	named, err := os.Stat(d.path)
	if errors.Is(err, fs.ErrNotExist) || err != nil && noSuchDevice(err) {
		return fmt.Errorf("check source %s: %w", d.path, source.ErrNotFound)
	}
	if err != nil {
		return fmt.Errorf("check source: %w", err)
	}
	if !sameDisk(opened, named) {
		return &ReplacedError{Path: d.path}
	}
	return d.checkSize()
}

func (d *Disk) checkSize() error {
	size, err := d.sizeNow()
	if err != nil {
		if noSuchDevice(err) {
			err = source.ErrNotFound
		}
		return fmt.Errorf("check source %s: %w", d.path, err)
	}
	if size != d.size {
		return fmt.Errorf("check source %s: %d bytes when opened, %d now: %w", d.path, d.size, size, source.ErrSizeChanged)
	}
	return nil
}

func (d *Disk) sizeNow() (int64, error) {
	if d.device {
		return disk.DeviceSize(d.file)
	}
	st, err := d.file.Stat()
	if err != nil {
		return 0, err
	}
	return st.Size(), nil
}

// Changed never knows.
func (d *Disk) Changed(context.Context, string) ([]disk.Range, bool, string, error) {
	if d.device {
		return nil, false, "block devices have no changed-block tracking", nil
	}
	return nil, false, "image files have no changed-block tracking", nil
}

// Close gives up the claims on the disk as well.
func (d *Disk) Close() error {
	err := d.file.Close()
	if d.direct != nil {
		err = errors.Join(err, d.direct.Close())
	}
	if err != nil {
		return fmt.Errorf("close source %s: %w", d.path, err)
	}
	return nil
}

// ReplacedError says that the path names another file or device than when it
// was opened. It is source.ErrSizeChanged for errors.Is: the recovery point
// must not be committed, for the same reason.
type ReplacedError struct{ Path string }

func (e *ReplacedError) Error() string {
	return "check source " + e.Path + ": it was replaced by another file or device meanwhile"
}

// Is makes errors.Is(err, source.ErrSizeChanged) true.
func (e *ReplacedError) Is(target error) bool { return target == source.ErrSizeChanged }
