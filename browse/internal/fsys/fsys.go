// Package fsys is what the readers of file systems share: what a file is to
// them, files made of runs, bounded reads of a volume. Files are known by a
// number here, as inodes are; paths are the business of package browse.
//
// Everything that a reader is given is hostile: it bounds before it allocates,
// and answers a CorruptError instead of following a loop.
package fsys

import (
	"fmt"
	"io"
	"time"
)

// Type of a file.
type Type uint8

// Types.
const (
	Unknown Type = iota // the directory does not say; Stat does
	Regular
	Dir
	Symlink
	Fifo
	Socket
	CharDevice
	BlockDevice
	Other // of this system only, e.g. a reparse point that is no link
)

// String is the letter that ls shows.
func (t Type) String() string { return string("?-dlpscb?"[min(int(t), 8)]) }

// Info is what is known of a file. Times that a file system does not keep are
// zero.
type Info struct {
	ID           uint64 // inode number, or what serves as one
	Type         Type
	Mode         uint32 // permission bits, set-uid, set-gid, sticky: 07777
	UID, GID     uint32
	Size         int64 // bytes
	Links        uint32
	Major, Minor uint32 // of devices
	Modified     time.Time
	Accessed     time.Time
	Changed      time.Time
	Born         time.Time
	Flags        []string // "compressed", "encrypted", "hidden", "system", "immutable", …
}

// Entry is one name of a directory, neither "." nor "..".
type Entry struct {
	Name string
	ID   uint64
	Type Type // Unknown where the directory does not say
}

// Xattr is an extended attribute with the name that Linux shows, e.g.
// "user.origin".
type Xattr struct {
	Name  string
	Value []byte
}

// Facts is what a file system says of itself.
type Facts struct {
	Class      string // of package blockstack
	Label      string
	UUID       string
	Owners     bool     // owners and modes are the file system's, not made up
	FoldCase   bool     // names that differ in case alone are one
	Dirty      bool     // was in use when the image was taken
	Replayed   bool     // its journal is applied to what is read here, in memory
	Checkpoint string   // what of the journal was applied, for people
	Warnings   []string // what a reader of the files should know
}

// FS reads one file system. Safe for concurrent use.
type FS interface {
	Facts() Facts
	Root() uint64
	Stat(id uint64) (Info, error)
	// List calls yield with each entry of a directory, in the order on disk,
	// until it is false.
	List(dir uint64, yield func(Entry) bool) error
	ReadLink(id uint64) (string, error)
	Open(id uint64) (File, error)
	Xattrs(id uint64) ([]Xattr, error)
}

// Streams is implemented by file systems whose files have named streams.
type Streams interface {
	OpenStream(id uint64, name string) (File, error)
}

// File is the content of a regular file.
type File interface {
	io.ReaderAt
	Size() int64
	// NextData is the next stretch at or after off that is not a hole, both
	// Size where there is none. Holes read as zeros.
	NextData(off int64) (start, end int64)
}

// CorruptError says that what is on disk contradicts itself.
type CorruptError struct{ What string }

func (e *CorruptError) Error() string { return "damaged file system: " + e.What }

// Corrupt makes one.
func Corrupt(format string, args ...any) error { return &CorruptError{fmt.Sprintf(format, args...)} }

// UnsupportedError names a feature that is not read here.
type UnsupportedError struct{ Feature string }

func (e *UnsupportedError) Error() string { return "not read in user space: " + e.Feature }

// Hint says what helps.
func (e *UnsupportedError) Hint() string {
	return "export the recovery point with --unlock and read it with the system that wrote it"
}

// Unsupported makes one.
func Unsupported(format string, args ...any) error {
	return &UnsupportedError{fmt.Sprintf(format, args...)}
}

// Bounds of what one object may cost.
const (
	MaxRuns    = 1 << 22  // stretches of one file
	MaxNodes   = 1 << 20  // blocks of metadata read for one object
	MaxRead    = 16 << 20 // bytes of one piece of metadata
	MaxXattrs  = 4096     // of one file
	MaxXattr   = 1 << 20  // bytes of one value
	AllXattrs  = 16 << 20 // bytes of all values of one file
	MaxSymlink = 64 << 10 // bytes of a target
)
