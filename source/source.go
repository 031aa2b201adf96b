// Package source is the contract for reading a disk at a point in time.
// Sources are only ever read.
package source

import (
	"context"
	"errors"
	"io"

	"github.com/lockstep-backup/lockstep/disk"
)

// Errors that callers act on; adapters wrap them.
var (
	ErrInUse       = errors.New("device is in use")                  // refused without AllowLive
	ErrSizeChanged = errors.New("source changed its size meanwhile") // never a silently short recovery point
	ErrNotFound    = errors.New("source does not exist")
	ErrUnsupported = errors.New("source cannot be read")
	ErrDamaged     = errors.New("image is damaged") // cut short, or at odds with itself: what is lost would read as zeroes
)

// Consistency says how quiet the guest was.
type Consistency string

// The levels; None is recorded where a device in use was read on request.
const (
	ConsistencyNone        Consistency = "none"
	ConsistencyCrash       Consistency = "crash-consistent"
	ConsistencyFileSystem  Consistency = "file-system-consistent"
	ConsistencyApplication Consistency = "application-consistent"
)

// Options for opening.
type Options struct {
	AllowLive bool // read a device in use; Consistency is then None
}

// Disk is one disk at a point in time. ReadAt is safe for concurrent use;
// adapters may read around the page cache when offset, length and address of
// the buffer are multiples of disk.PageSize. A read of a bad sector returns an
// error for which IsUnreadable is true and may be repeated in smaller pieces.
type Disk interface {
	io.ReaderAt
	io.Closer
	// Size in bytes when opened.
	Size() int64
	// Check says whether the source is still what was opened: ErrSizeChanged, ErrNotFound.
	Check() error
	// NextData returns the next range at or behind off that may hold data; what
	// lies between reads as zeroes. io.EOF when nothing follows.
	NextData(off int64) (disk.Range, error)
	Consistency() Consistency
	// Changed returns what may have changed since the recovery point named
	// parent, or a reason why that is not known (tracking lost): then everything is compared.
	Changed(ctx context.Context, parent string) (changed []disk.Range, known bool, reason string, err error)
}

// Opener opens disks of one kind of source.
type Opener interface {
	// Open opens spec, which is what the user wrote as SOURCE.
	Open(ctx context.Context, spec string, opts Options) (Disk, error)
}

// UnreadableError says that a range of the source could not be read (bad sector).
type UnreadableError struct {
	Range disk.Range
	Err   error
}

func (e *UnreadableError) Error() string { return "read source: bad range: " + e.Err.Error() }
func (e *UnreadableError) Unwrap() error { return e.Err }

// IsUnreadable reports whether err is about a bad range of a source that is otherwise there.
func IsUnreadable(err error) bool {
	var u *UnreadableError
	return errors.As(err, &u)
}
