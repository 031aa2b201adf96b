// Package image writes disks to raw image files and block devices.
//
// It is not a writer of container formats. Its invariant: nothing is written or
// made before every check has passed, and after Commit every byte of the disk is
// what was written to it, or zero.
//
// On Linux it writes around the page cache where it can and refuses a target
// that somebody uses (see disk.InUse). On other systems it writes image files
// through the page cache, cannot tell whether they are in use, and refuses
// block devices.
package image

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"

	"github.com/lockstep-backup/lockstep/disk"
	"github.com/lockstep-backup/lockstep/target"
)

// ErrFormat says that a disk cannot be written in the format asked for.
var ErrFormat = errors.New("format is not available in this version (raw is)")

// Opener opens image files, new or existing, and block devices. Its specs are
// paths and file URLs.
type Opener struct{}

var _ target.Opener = Opener{}

// Open makes a new sparse file, takes an empty one, or takes a block device
// of the disk's size, or with opts.Larger a larger one, whose first and last MiB
// are zero; with opts.Force also what has content, all of which, as far as the
// disk reaches, is then replaced. A new file belongs to its owner only (mode 0600).
// It fails with target.ErrNotEmpty, ErrTooSmall, ErrLarger, ErrNotNamed, ErrInUse, or
// ErrFormat; nothing has been written then. With opts.InPlace what is there is
// opened as it is.
func (Opener) Open(ctx context.Context, spec string, size int64, opts target.Options) (target.Disk, error) {
	if err := ctx.Err(); err != nil {
		return nil, fmt.Errorf("open target: %w", err)
	}
	if opts.Format != "" && opts.Format != "raw" {
		return nil, fmt.Errorf("open target: %q: %w", opts.Format, ErrFormat)
	}
	if size < 0 || size == 0 && !opts.InPlace {
		return nil, fmt.Errorf("open target: a disk of %d bytes cannot be written", size)
	}
	path, query, err := disk.LocalPath(spec)
	if err != nil {
		return nil, fmt.Errorf("open target: %w: %w", target.ErrNotNamed, err)
	}
	if format := query.Get("format"); format != "" && format != "raw" {
		return nil, fmt.Errorf("open target: %q: %w", format, ErrFormat)
	}
	if os.IsPathSeparator(path[len(path)-1]) {
		return nil, fmt.Errorf("open target %s: %w: it is written like a folder", path, target.ErrNotNamed)
	}
	st, err := os.Stat(path)
	if errors.Is(err, fs.ErrNotExist) && !opts.InPlace {
		return create(path, size)
	}
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("open target %s: %w: it does not exist", path, target.ErrNotNamed)
	}
	if err != nil {
		return nil, openError(path, err)
	}
	if err := refuseKind(path, st.Mode()); err != nil {
		return nil, err
	}
	return takeExisting(path, st, size, opts)
}

func openError(path string, err error) error {
	var p *fs.PathError
	if errors.As(err, &p) {
		err = p.Err
	}
	return fmt.Errorf("open target %s: %w", path, err)
}

func refuseKind(path string, mode fs.FileMode) error {
	if what := disk.NotADisk(mode, devicesSupported); what != "" {
		return fmt.Errorf("open target %s: %w: it is %s", path, target.ErrNotNamed, what)
	}
	return nil
}

// create makes a new file of holes.
func create(path string, size int64) (target.Disk, error) {
	// O_EXCL does not follow a symlink, so what was not there is not made elsewhere.
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
	switch {
	case errors.Is(err, fs.ErrExist):
		if st, statErr := os.Lstat(path); statErr == nil && st.Mode()&fs.ModeSymlink != 0 {
			return nil, fmt.Errorf("open target %s: %w: it is a symlink to nowhere", path, target.ErrNotNamed)
		}
		return nil, fmt.Errorf("open target %s: %w: it appeared meanwhile", path, target.ErrNotEmpty)
	case errors.Is(err, fs.ErrNotExist):
		return nil, fmt.Errorf("open target %s: %w: its folder does not exist", path, target.ErrNotNamed)
	case err != nil:
		return nil, openError(path, err)
	}
	d := &Disk{path: path, size: size, file: f, made: true}
	if err := d.prepareFile(); err != nil {
		return nil, errors.Join(err, d.Abort())
	}
	return d, nil
}

func takeExisting(path string, before fs.FileInfo, size int64, opts target.Options) (target.Disk, error) {
	f, err := os.OpenFile(path, os.O_RDWR|exclusive(before), 0)
	if isBusy(err) {
		return nil, fmt.Errorf("open target %s: %w: the kernel has it claimed (mounted, swap, or a device on top of it)", path, target.ErrInUse)
	}
	if err != nil {
		return nil, openError(path, err)
	}
	d := &Disk{path: path, size: size, file: f, device: before.Mode()&fs.ModeDevice != 0}
	err = d.check(before, opts)
	if err == nil && opts.InPlace {
		err = d.lock()
	} else if err == nil && d.device {
		err = d.openDirect()
	} else if err == nil {
		err = d.prepareFile()
	}
	if err != nil {
		return nil, errors.Join(err, d.close())
	}
	return d, nil
}

// check writes nothing.
func (d *Disk) check(before fs.FileInfo, opts target.Options) error {
	now, err := d.file.Stat()
	if err != nil {
		return openError(d.path, err)
	}
	if !os.SameFile(before, now) {
		return fmt.Errorf("open target %s: %w: it was replaced meanwhile", d.path, target.ErrNotNamed)
	}
	by, err := disk.InUse(d.file, true)
	if err != nil {
		return openError(d.path, err)
	}
	if by != "" {
		return fmt.Errorf("open target %s: %w: %s", d.path, target.ErrInUse, by)
	}
	if opts.InPlace {
		return d.takeSize(now.Size())
	}
	if !d.device {
		if now.Size() > 0 && !opts.Force {
			return fmt.Errorf("open target %s: %w: it has %d bytes", d.path, target.ErrNotEmpty, now.Size())
		}
		return nil
	}
	capacity, err := disk.DeviceSize(d.file)
	if err != nil {
		return openError(d.path, err)
	}
	if capacity < d.size {
		return fmt.Errorf("open target %s: %w: the device has %d bytes, the disk %d", d.path, target.ErrTooSmall, capacity, d.size)
	}
	if capacity > d.size && !opts.Larger {
		return fmt.Errorf("open target %s: %w: the device has %d bytes, the disk %d", d.path, target.ErrLarger, capacity, d.size)
	}
	d.capacity = capacity
	if opts.Force {
		return nil
	}
	return d.checkBlank(capacity)
}

// takeSize makes the disk as large as what is there.
func (d *Disk) takeSize(size int64) error {
	if d.device {
		var err error
		if size, err = disk.DeviceSize(d.file); err != nil {
			return openError(d.path, err)
		}
	}
	if size < d.size || size == 0 {
		return fmt.Errorf("open target %s: %w: it has %d bytes of %d", d.path, target.ErrTooSmall, size, d.size)
	}
	d.inPlace, d.size, d.capacity = true, size, size
	return nil
}

// checkBlank looks where every partition table, file system and container has a mark.
func (d *Disk) checkBlank(capacity int64) error {
	edge := make([]byte, min(1<<20, capacity))
	for _, off := range []int64{0, capacity - int64(len(edge))} {
		if _, err := d.file.ReadAt(edge, off); err != nil {
			return openError(d.path, err)
		}
		if bytes.Count(edge, []byte{0}) != len(edge) {
			return fmt.Errorf("open target %s: %w: there is data in its first or last MiB", d.path, target.ErrNotEmpty)
		}
	}
	return nil
}

// prepareFile makes the file one hole: what is never written reads as zeroes,
// and nothing of an old content is left. It is locked first, so that nobody who
// asks for locks sees it half-written.
func (d *Disk) prepareFile() error {
	if err := d.lock(); err != nil {
		return err
	}
	for _, size := range []int64{0, d.size} {
		if err := d.file.Truncate(size); err != nil {
			return openError(d.path, err)
		}
	}
	return d.openDirect()
}

func (d *Disk) lock() error {
	if d.device {
		return nil // O_EXCL claims it
	}
	err := disk.LockForWriting(d.file)
	switch {
	case errors.Is(err, disk.ErrLocked):
		return openError(d.path, fmt.Errorf("%w: %w", target.ErrInUse, err))
	case err != nil:
		return openError(d.path, err)
	}
	return nil
}

func (d *Disk) openDirect() error {
	direct, err := disk.OpenDirect(d.file, os.O_RDWR)
	if errors.Is(err, disk.ErrUnsupported) || errors.Is(err, fs.ErrPermission) {
		return nil
	}
	if err != nil {
		return openError(d.path, err)
	}
	d.direct = direct
	return nil
}

// Disk is an image file or device being written.
type Disk struct {
	path   string
	size   int64
	device bool
	made   bool // by Open
	// inPlace: what is never written stays
	inPlace bool
	// capacity of a device, 0 of a file, which is made as large as the disk
	capacity int64
	file     *os.File
	direct   *os.File // nil where direct I/O is refused
	refused  atomic.Bool

	mu      sync.Mutex
	written disk.Ranges // of a device: what need not be zeroed at the end
	done    bool
}

// Direct reports whether aligned writes go around the page cache.
func (d *Disk) Direct() bool { return d.direct != nil && !d.refused.Load() }

// Capacity is how large the device is, or the file, which is as large as the disk.
func (d *Disk) Capacity() int64 { return max(d.capacity, d.size) }

// inside refuses what would reach over the end: the size is the disk's.
func (d *Disk) inside(what string, off, length int64) error {
	if off < 0 || length < 0 || off > d.size || length > d.size-off {
		return fmt.Errorf("%s target: %d bytes at offset %d are outside of the disk of %d bytes", what, length, off, d.size)
	}
	return nil
}

// WriteAt writes all of p or returns an error.
func (d *Disk) WriteAt(p []byte, off int64) (int, error) {
	if err := d.inside("write", off, int64(len(p))); err != nil {
		return 0, err
	}
	n, err := d.writeAt(p, off)
	if err != nil {
		return n, fmt.Errorf("write target %s: %w", d.path, err)
	}
	d.note(off, int64(n))
	return n, nil
}

func (d *Disk) writeAt(p []byte, off int64) (n int, err error) {
	// The tail of a disk whose size is not a multiple of the page goes through
	// the cache, in a page of its own that no direct write touches.
	if whole := len(p) &^ (disk.PageSize - 1); whole > 0 && d.Direct() && disk.IsAligned(p[:whole], off) {
		n, err = d.direct.WriteAt(p[:whole], off)
		if isRefused(err) && n == 0 {
			d.refused.Store(true)
			err = nil
		}
		if err != nil {
			return n, err
		}
	}
	if n < len(p) {
		m, err := d.file.WriteAt(p[n:], off+int64(n))
		return n + m, err
	}
	return n, nil
}

func (d *Disk) note(off, length int64) {
	if d.device {
		d.mu.Lock()
		d.written = d.written.Add(disk.Range{Offset: off, Length: length})
		d.mu.Unlock()
	}
}

// ReadAt reads what was written; what was not, of a device, is zero only after Commit.
func (d *Disk) ReadAt(p []byte, off int64) (int, error) {
	if off < 0 {
		return 0, fmt.Errorf("read target: offset %d is negative", off)
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
	if whole := len(p) &^ (disk.PageSize - 1); whole > 0 && d.Direct() && disk.IsAligned(p[:whole], off) {
		// An error is found again, and named, through the page cache.
		n, _ = d.direct.ReadAt(p[:whole], off)
	}
	if n < len(p) {
		m, err := d.file.ReadAt(p[n:], off+int64(n))
		n += m
		if errors.Is(err, io.EOF) {
			err = io.ErrUnexpectedEOF // somebody cut the file
		}
		if err != nil {
			return n, fmt.Errorf("read target %s: %w", d.path, err)
		}
	}
	return n, atEnd
}

// Zero leaves or makes a hole in a file; on a device the space is given back
// where zeroes are promised afterwards (see disk.Discard).
func (d *Disk) Zero(off, length int64) error {
	if err := d.inside("zero", off, length); err != nil {
		return err
	}
	if length == 0 {
		return nil
	}
	if err := d.zero(off, length); err != nil {
		return fmt.Errorf("zero range of target %s: %w", d.path, err)
	}
	d.note(off, length)
	return nil
}

func (d *Disk) zero(off, length int64) error {
	if !d.device {
		// A look is much cheaper than punching, which excludes all other writers.
		if r, err := disk.NextData(d.file, off, d.size); err == io.EOF || err == nil && r.Offset >= off+length {
			return nil
		}
		err := disk.PunchHole(d.file, off, length)
		if errors.Is(err, disk.ErrUnsupported) {
			err = d.writeZeroes(off, length)
		}
		return err
	}
	// Devices zero whole sectors only; a page is a multiple of every one in use.
	from := min((off+disk.PageSize-1)&^(disk.PageSize-1), off+length)
	to := max((off+length)&^(disk.PageSize-1), from)
	if err := d.writeZeroes(off, from-off); err != nil {
		return err
	}
	if to > from {
		err := disk.Discard(d.file, from, to-from)
		if errors.Is(err, disk.ErrUnsupported) {
			err = d.writeZeroes(from, to-from)
		}
		if err != nil {
			return err
		}
	}
	return d.writeZeroes(to, off+length-to)
}

var zeroes = sync.OnceValue(func() []byte { return disk.AlignedBuffer(1 << 20) })

func (d *Disk) writeZeroes(off, length int64) error {
	for length > 0 {
		n, err := d.writeAt(zeroes()[:min(length, int64(len(zeroes())))], off)
		if err != nil {
			return err
		}
		off, length = off+int64(n), length-int64(n)
	}
	return nil
}

// Commit zeroes what was never written to a device, makes everything durable,
// the name of a new file included, and closes the target: nothing can be read
// or written afterwards. After an error the target is as before Commit, and
// Abort is next.
func (d *Disk) Commit() error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.done {
		return fmt.Errorf("commit target: %w", os.ErrClosed)
	}
	if d.device && !d.inPlace {
		for _, r := range (disk.Ranges{{Offset: 0, Length: d.size}}).Subtract(d.written) {
			if err := d.zero(r.Offset, r.Length); err != nil {
				return fmt.Errorf("commit target %s: zero what was never written: %w", d.path, err)
			}
		}
	} else if st, err := d.file.Stat(); err != nil || st.Size() != d.size {
		return errors.Join(fmt.Errorf("commit target %s: somebody changed its size meanwhile", d.path), err)
	}
	if err := d.file.Sync(); err != nil {
		return fmt.Errorf("commit target %s: %w", d.path, err)
	}
	if d.made {
		if err := syncFolder(filepath.Dir(d.path)); err != nil {
			return fmt.Errorf("commit target %s: %w", d.path, err)
		}
	}
	d.done = true
	if err := d.close(); err != nil {
		return fmt.Errorf("commit target %s: %w", d.path, err)
	}
	return nil
}

// Abort removes a new file, and empties one that was there, so that nobody
// takes it for a disk; a device, and what was opened in place, keeps what was written. After Commit, or a
// second time, it does nothing.
func (d *Disk) Abort() error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.done {
		return nil
	}
	d.done = true
	var err error
	switch {
	case d.made:
		err = d.removeOwn()
	case !d.device && !d.inPlace:
		err = d.file.Truncate(0)
	}
	if err = errors.Join(err, d.close()); err != nil {
		return fmt.Errorf("abort target %s: %w", d.path, err)
	}
	return nil
}

// removeOwn leaves alone what somebody has put in the place of our file.
func (d *Disk) removeOwn() error {
	own, err := d.file.Stat()
	if err != nil {
		return err
	}
	named, err := os.Lstat(d.path)
	if errors.Is(err, fs.ErrNotExist) || err == nil && !os.SameFile(own, named) {
		return nil
	}
	if err != nil {
		return err
	}
	if !removeWhileOpen {
		if err := d.close(); err != nil {
			return err
		}
	}
	return os.Remove(d.path)
}

func (d *Disk) close() error {
	var err error
	for _, f := range []*os.File{d.direct, d.file} {
		if f != nil {
			if closeErr := f.Close(); closeErr != nil && !errors.Is(closeErr, os.ErrClosed) {
				err = errors.Join(err, closeErr)
			}
		}
	}
	return err
}
