package image

import (
	"os"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/lockstep-backup/lockstep/disk"
)

// mincorePages counts pages of r in the page cache the way that works before Linux 6.5.
func (d *Disk) mincorePages(r disk.Range) (int64, error) {
	page := int64(os.Getpagesize())
	off := r.Offset &^ (page - 1)
	length := int(r.End() - off)
	mapped, err := unix.Mmap(int(d.file.Fd()), off, length, unix.PROT_NONE, unix.MAP_SHARED)
	if err != nil {
		return 0, err
	}
	defer func() { _ = unix.Munmap(mapped) }()
	flags := make([]byte, (int64(length)+page-1)/page)
	_, _, errno := unix.Syscall(unix.SYS_MINCORE, uintptr(unsafe.Pointer(unsafe.SliceData(mapped))), uintptr(length), uintptr(unsafe.Pointer(unsafe.SliceData(flags))))
	if errno != 0 {
		return 0, errno
	}
	var n int64
	for _, flag := range flags {
		n += int64(flag & 1)
	}
	return n * page / disk.PageSize, nil
}
