package disk

import (
	"errors"
	"fmt"
	"io"
	"os"
)

var (
	// ErrUnsupported is what Discard, PunchHole, OpenDirect and the device calls
	// wrap where the platform, the file system or the device does not offer them.
	ErrUnsupported = errors.ErrUnsupported
	// ErrLocked is what LockForReading and LockForWriting wrap.
	ErrLocked = errors.New("another process has locked it")
)

// NextData returns the next range of f at or behind off, up to size, that may
// hold data; what lies between reads as zeroes. io.EOF means that nothing
// follows. Where holes cannot be asked for, the whole rest is data. A file that
// shrank looks like a hole at its end: the caller compares sizes.
func NextData(f *os.File, off, size int64) (Range, error) {
	if off < 0 {
		return Range{}, fmt.Errorf("find data: offset %d is negative", off)
	}
	if off >= size {
		return Range{}, io.EOF
	}
	r, err := nextData(f, off, size)
	if errors.Is(err, ErrUnsupported) {
		return Range{Offset: off, Length: size - off}, nil
	}
	if err != nil && !errors.Is(err, io.EOF) {
		return Range{}, fmt.Errorf("find data: %w", err)
	}
	return r, err
}
