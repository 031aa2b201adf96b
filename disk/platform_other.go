//go:build !linux

package disk

import (
	"fmt"
	"os"
)

func nextData(*os.File, int64, int64) (Range, error) { return Range{}, ErrUnsupported }

// PunchHole is for Linux only: ErrUnsupported.
func PunchHole(*os.File, int64, int64) error { return fmt.Errorf("punch hole: %w", ErrUnsupported) }

// Discard is for Linux only: ErrUnsupported.
func Discard(*os.File, int64, int64) error { return fmt.Errorf("discard: %w", ErrUnsupported) }

// DeviceSize is for Linux only: ErrUnsupported.
func DeviceSize(*os.File) (int64, error) {
	return 0, fmt.Errorf("read size of device: %w", ErrUnsupported)
}

// DeviceSectorSize is for Linux only: ErrUnsupported.
func DeviceSectorSize(*os.File) (int, error) {
	return 0, fmt.Errorf("read sector size of device: %w", ErrUnsupported)
}

// OpenDirect is for Linux only: ErrUnsupported.
func OpenDirect(*os.File, int) (*os.File, error) {
	return nil, fmt.Errorf("open for direct I/O: %w", ErrUnsupported)
}

// InUse cannot be told on this platform: it never names a user.
func InUse(*os.File, bool) (string, error) { return "", nil }

// LockForReading takes no lock on this platform.
func LockForReading(*os.File) error { return nil }

// LockForWriting takes no lock on this platform.
func LockForWriting(*os.File) error { return nil }
