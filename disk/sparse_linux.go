package disk

import (
	"errors"
	"fmt"
	"io"
	"os"

	"golang.org/x/sys/unix"
)

// onFD calls do with the descriptor of f, which stays open meanwhile.
func onFD(f *os.File, do func(fd int) error) error {
	conn, err := f.SyscallConn()
	if err != nil {
		return err
	}
	var inner error
	if err := conn.Control(func(fd uintptr) { inner = do(int(fd)) }); err != nil {
		return err
	}
	return inner
}

// retry repeats a system call that a signal interrupted.
func retry(call func() error) error {
	for {
		if err := call(); !errors.Is(err, unix.EINTR) {
			return err
		}
	}
}

// nextData moves the file offset of f, which nothing here reads by.
func nextData(f *os.File, off, size int64) (Range, error) {
	var r Range
	err := onFD(f, func(fd int) error {
		from, err := unix.Seek(fd, off, unix.SEEK_DATA)
		if errors.Is(err, unix.ENXIO) {
			return io.EOF
		}
		if err != nil {
			return seekError(err)
		}
		if from >= size {
			return io.EOF
		}
		to, err := unix.Seek(fd, from, unix.SEEK_HOLE)
		if errors.Is(err, unix.ENXIO) || err == nil && to <= from {
			// Somebody punched the hole between the two calls.
			to, err = size, nil
		}
		if err != nil {
			return seekError(err)
		}
		r = Range{Offset: from, Length: min(to, size) - from}
		return nil
	})
	return r, err
}

func seekError(err error) error {
	if errors.Is(err, unix.EINVAL) || errors.Is(err, unix.EOPNOTSUPP) || errors.Is(err, unix.ENOSYS) || errors.Is(err, unix.ESPIPE) {
		return ErrUnsupported
	}
	return err
}

// PunchHole makes a range of a regular file read as zeroes and gives its space
// back; the size stays. ErrUnsupported where the file system knows no holes.
func PunchHole(f *os.File, off, length int64) error {
	return deallocate("punch hole", f, off, length)
}

// Discard makes a range of a block device read as zeroes; off and length are
// multiples of its sector size. Space is given back where the device promises
// zeroes afterwards; BLKDISCARD alone promises nothing about the content, so it
// is never used (the kernel has answered BLKDISCARDZEROES with "no" since 4.12).
// ErrUnsupported where the kernel can do neither.
func Discard(f *os.File, off, length int64) error {
	// On a block device this is "write zeroes, unmapping, only if offloaded".
	err := deallocate("discard", f, off, length)
	if !errors.Is(err, ErrUnsupported) {
		return err
	}
	err = onFD(f, func(fd int) error { return zeroOut(fd, off, length) })
	if errors.Is(err, unix.ENOTTY) || errors.Is(err, unix.EOPNOTSUPP) {
		err = ErrUnsupported
	}
	if err != nil {
		return fmt.Errorf("zero range of device: %w", err)
	}
	return nil
}

func deallocate(what string, f *os.File, off, length int64) error {
	err := onFD(f, func(fd int) error {
		return retry(func() error {
			return unix.Fallocate(fd, unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, off, length)
		})
	})
	if errors.Is(err, unix.EOPNOTSUPP) || errors.Is(err, unix.ENOSYS) {
		err = ErrUnsupported
	}
	if err != nil {
		return fmt.Errorf("%s: %w", what, err)
	}
	return nil
}
