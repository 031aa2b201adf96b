package disk

import (
	"fmt"
	"os"
	"strconv"
	"unsafe"

	"golang.org/x/sys/unix"
)

func zeroOut(fd int, off, length int64) error {
	span := [2]uint64{uint64(off), uint64(length)}
	return retry(func() error { return ioctl(fd, unix.BLKZEROOUT, unsafe.Pointer(&span)) })
}

func ioctl(fd int, request uint, arg unsafe.Pointer) error {
	if _, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), uintptr(request), uintptr(arg)); errno != 0 {
		return errno
	}
	return nil
}

// DeviceSize is the size of the block device f in bytes.
func DeviceSize(f *os.File) (int64, error) {
	var n uint64
	if err := onFD(f, func(fd int) error { return ioctl(fd, unix.BLKGETSIZE64, unsafe.Pointer(&n)) }); err != nil {
		return 0, fmt.Errorf("read size of device: %w", err)
	}
	if int64(n) < 0 {
		return 0, fmt.Errorf("read size of device: %d bytes is out of range", n)
	}
	return int64(n), nil
}

// DeviceSectorSize is the logical sector size of the block device f in bytes.
func DeviceSectorSize(f *os.File) (int, error) {
	var n uint32
	err := onFD(f, func(fd int) (err error) {
		n, err = unix.IoctlGetUint32(fd, unix.BLKSSZGET)
		return err
	})
	if err != nil {
		return 0, fmt.Errorf("read sector size of device: %w", err)
	}
	return int(n), nil
}

// OpenDirect opens what f has open once more, with O_DIRECT. flag is
// os.O_RDONLY or os.O_RDWR. It goes through /proc, so that it cannot be another
// file than f whatever happened to the path. ErrUnsupported where the file
// system refuses.
func OpenDirect(f *os.File, flag int) (*os.File, error) {
	var direct *os.File
	err := onFD(f, func(fd int) error {
		return retry(func() error {
			n, err := unix.Open("/proc/self/fd/"+strconv.Itoa(fd), flag|unix.O_DIRECT|unix.O_CLOEXEC, 0)
			if err == nil {
				direct = os.NewFile(uintptr(n), f.Name())
			}
			return err
		})
	})
	if err == unix.EINVAL || err == unix.EOPNOTSUPP || err == unix.ENOENT {
		err = ErrUnsupported
	}
	if err != nil {
		return nil, fmt.Errorf("open for direct I/O: %w", err)
	}
	return direct, nil
}
