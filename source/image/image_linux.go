package image

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strconv"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/lockstep-backup/lockstep/disk"
	"github.com/lockstep-backup/lockstep/source"
)

const devicesSupported = true

// claimDevice opens the device exclusively, which the kernel refuses while it
// is mounted, swapped to, or held by device-mapper or md, in any namespace; and
// nobody can begin with that while the claim lasts.
func (d *Disk) claimDevice() error {
	var claimed *os.File
	claimed, err := os.OpenFile(d.path, unix.O_RDONLY|unix.O_EXCL, 0)
	if errors.Is(err, unix.EBUSY) {
		return fmt.Errorf("open source %s: %w: the kernel has it claimed (mounted, swap, or a device on top of it)", d.path, source.ErrInUse)
	}
	if err != nil {
		return openError(d.path, err)
	}
	was, err := d.file.Stat()
	if err == nil {
		var is fs.FileInfo
		if is, err = claimed.Stat(); err == nil && !sameDisk(was, is) {
			err = &ReplacedError{Path: d.path}
		}
	}
	if err != nil {
		return errors.Join(err, claimed.Close())
	}
	old := d.file
	d.file = claimed
	return old.Close()
}

// sameDisk compares devices by number: udev may make the node anew.
func sameDisk(a, b fs.FileInfo) bool {
	sa, okA := a.Sys().(*syscall.Stat_t)
	sb, okB := b.Sys().(*syscall.Stat_t)
	if okA && okB && a.Mode()&b.Mode()&fs.ModeDevice != 0 {
		return sa.Rdev == sb.Rdev
	}
	return os.SameFile(a, b)
}

// isBadSector: buffered reads say EIO; direct reads of devices tell medium,
// target and protection errors apart (blk_status_to_errno), and file systems
// have errors of their own for blocks whose checksum is wrong.
func isBadSector(err error) bool {
	for _, bad := range []error{unix.EIO, unix.ENODATA, unix.EREMOTEIO, unix.EILSEQ, unix.EBADMSG, unix.EUCLEAN} {
		if errors.Is(err, bad) {
			return true
		}
	}
	return false
}

func isRefused(err error) bool { return errors.Is(err, unix.EINVAL) }

func noSuchDevice(err error) bool { return errors.Is(err, unix.ENXIO) || errors.Is(err, unix.ENODEV) }

func (d *Disk) adviseSequential() {
	// Advice only: an error changes nothing.
	_ = unix.Fadvise(int(d.file.Fd()), 0, 0, unix.FADV_SEQUENTIAL)
}

// Samples for mostlyCached: of a larger image one in many is looked at.
const (
	sampleBytes = 1 << 20
	maxSamples  = 64
)

// mostlyCached reports whether more than half of the data is in the page cache.
// Holes do not count. Where that cannot be told, the answer is no.
func (d *Disk) mostlyCached() bool {
	step := max(d.size/maxSamples, sampleBytes)
	var resident, total int64
	for at := int64(0); at < d.size; {
		r, err := disk.NextData(d.file, at, d.size)
		if err != nil {
			break
		}
		end := r.End()
		r.Offset &^= disk.PageSize - 1
		r.Length = min(sampleBytes, end-r.Offset)
		pages, err := d.residentPages(r)
		if err != nil {
			return false
		}
		resident += pages
		total += (r.Length + disk.PageSize - 1) / disk.PageSize
		at = max(at+step, r.Offset+step)
	}
	return resident*2 > total
}

// residentPages asks cachestat (Linux 6.5), or else mincore. Newer
// kernels want the right to write the file for cachestat; mincore without it answers
// "everything", so it is only believed with it.
func (d *Disk) residentPages(r disk.Range) (int64, error) {
	var stat unix.Cachestat_t
	span := unix.CachestatRange{Off: uint64(r.Offset), Len: uint64(r.Length)}
	err := unix.Cachestat(uint(d.file.Fd()), &span, &stat, 0)
	if err == nil {
		return int64(stat.Cache) * int64(os.Getpagesize()) / disk.PageSize, nil
	}
	if !errors.Is(err, unix.ENOSYS) {
		return 0, err
	}
	if err := unix.Faccessat(unix.AT_FDCWD, "/proc/self/fd/"+strconv.Itoa(int(d.file.Fd())), unix.W_OK, unix.AT_EACCESS); err != nil {
		return 0, err
	}
	return d.mincorePages(r)
}
