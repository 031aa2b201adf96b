// Package target is the contract for writing a disk back.
package target

import (
	"context"
	"errors"
	"io"
)

// Errors that callers act on; adapters wrap them.
var (
	ErrNotEmpty = errors.New("target exists and is not empty")
	ErrTooSmall = errors.New("target is smaller than the disk")
	ErrLarger   = errors.New("target is larger than the disk") // refused without Larger
	ErrNotNamed = errors.New("target is not what was named")   // a folder, a symlink to nowhere, a socket, …
	ErrInUse    = errors.New("target is in use")
)

// Options for opening.
type Options struct {
	Force  bool   // overwrite what is there
	Larger bool   // take a device that is larger than the disk; what lies behind the disk stays as it is
	Format string // "raw" (default) or another that the adapter knows
	// InPlace changes what is there: it must exist, its size is its own and size, if
	// not 0, the least it must have; what is never written stays, also after Abort.
	InPlace bool
}

// Disk is a disk being written. WriteAt is safe for concurrent use on disjoint
// ranges; buffers, offsets and lengths aligned to disk.PageSize may go around
// the page cache. What is never written reads as zeroes afterwards.
type Disk interface {
	io.WriterAt
	io.ReaderAt // for comparing after writing
	// Zero makes a range read as zeroes, by a hole or a discard where possible.
	Zero(off, length int64) error
	// Commit makes everything durable; the target is complete.
	Commit() error
	// Capacity is how many bytes the target has: of a device those behind the disk
	// count. It may be asked after Commit.
	Capacity() int64
	// Abort leaves no half-written new file behind; a block device keeps what was written.
	Abort() error
}

// Opener opens targets of one kind.
type Opener interface {
	// Open prepares spec to take size bytes. Nothing is written before every check has passed.
	Open(ctx context.Context, spec string, size int64, opts Options) (Disk, error)
}
