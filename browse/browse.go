// Package browse reads files out of a file system that is there as bytes only:
// in user space, without a mount, without rights. It knows nothing of
// encryption, and nothing of where the bytes come from.
//
// One reader per file system lies below internal/; all of them take what they
// read for hostile. Paths here use "/", begin at the root of the file system,
// and never leave it, whatever symbolic links say.
package browse

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"iter"
	"path"
	"strings"
	"sync"

	"github.com/lockstep-backup/lockstep/blockstack"
	"github.com/lockstep-backup/lockstep/browse/internal/btrfs"
	"github.com/lockstep-backup/lockstep/browse/internal/exfat"
	"github.com/lockstep-backup/lockstep/browse/internal/extfs"
	"github.com/lockstep-backup/lockstep/browse/internal/fat"
	"github.com/lockstep-backup/lockstep/browse/internal/fsys"
	"github.com/lockstep-backup/lockstep/browse/internal/ntfs"
	"github.com/lockstep-backup/lockstep/browse/internal/xfs"
)

// What the readers say.
type (
	// Info is what is known of a file.
	Info = fsys.Info
	// Entry is one name of a directory.
	Entry = fsys.Entry
	// Xattr is an extended attribute.
	Xattr = fsys.Xattr
	// Facts is what a file system says of itself.
	Facts = fsys.Facts
	// File is the content of a regular file; its holes are known.
	File = fsys.File
	// Type of a file.
	Type = fsys.Type
	// CorruptError says that what is on disk contradicts itself.
	CorruptError = fsys.CorruptError
	// UnsupportedError names a feature that is not read in user space.
	UnsupportedError = fsys.UnsupportedError
)

// Types.
const (
	Unknown     = fsys.Unknown
	Regular     = fsys.Regular
	Dir         = fsys.Dir
	Symlink     = fsys.Symlink
	Fifo        = fsys.Fifo
	Socket      = fsys.Socket
	CharDevice  = fsys.CharDevice
	BlockDevice = fsys.BlockDevice
	Other       = fsys.Other
)

// Limits of a path.
const (
	maxLinks = 40 // followed
	maxDepth = 256
)

// FS is an open file system. Safe for concurrent use.
type FS struct {
	fs fsys.FS

	mu     sync.Mutex
	dirs   map[uint64]map[string]uint64 // names of the directories looked into
	cached int                          // names in dirs
}

// Open opens the file system of the given class (of package blockstack) in r,
// which has size bytes. What is no file system, or not read here, is refused
// by UnsupportedError.
func Open(r io.ReaderAt, size int64, class string) (*FS, error) {
	f, err := open(r, size, class)
	if err != nil {
		return nil, fmt.Errorf("open %s: %w", class, err)
	}
	return &FS{fs: f, dirs: map[uint64]map[string]uint64{}}, nil
}

func open(r io.ReaderAt, size int64, class string) (fsys.FS, error) {
	switch class {
	case blockstack.Ext2, blockstack.Ext3, blockstack.Ext4:
		return extfs.Open(r, size)
	case blockstack.XFS:
		return xfs.Open(r, size)
	case blockstack.Btrfs:
		return btrfs.Open(r, size)
	case blockstack.NTFS:
		return ntfs.Open(r, size)
	case blockstack.FAT12, blockstack.FAT16, blockstack.FAT32:
		return fat.Open(r, size)
	case blockstack.ExFAT:
		return exfat.Open(r, size)
	}
	return nil, fsys.Unsupported("%q", class)
}

// Readable says whether Open knows file systems of a class.
func Readable(class string) bool {
	_, err := open(nothing{}, 0, class)
	return !errors.As(err, new(*UnsupportedError))
}

type nothing struct{}

func (nothing) ReadAt([]byte, int64) (int, error) { return 0, io.EOF }

// Facts is what the file system says of itself.
func (f *FS) Facts() Facts { return f.fs.Facts() }

// place is a file and how it is reached: each of its parents, the root first.
type place struct {
	names []string
	ids   []uint64 // one more than names: the root
}

func (p place) id() uint64   { return p.ids[len(p.ids)-1] }
func (p place) path() string { return "/" + strings.Join(p.names, "/") }

// find resolves a path. Symbolic links on the way are followed, and the last
// one if follow is set.
func (f *FS) find(name string, follow bool) (place, error) {
	at := place{ids: []uint64{f.fs.Root()}}
	todo := strings.Split(name, "/")
	links := 0
	fail := func(err error) (place, error) { return place{}, &fs.PathError{Op: "find", Path: name, Err: err} }
	for len(todo) > 0 {
		n := todo[0]
		todo = todo[1:]
		switch n {
		case "", ".":
			continue
		case "..":
			if len(at.names) > 0 {
				at.names, at.ids = at.names[:len(at.names)-1], at.ids[:len(at.ids)-1]
			}
			continue
		}
		id, real, err := f.lookup(at.id(), n)
		if err != nil {
			return fail(err)
		}
		info, err := f.fs.Stat(id)
		if err != nil {
			return fail(err)
		}
		if info.Type == Symlink && (follow || len(todo) > 0) {
			if links++; links > maxLinks {
				return fail(errors.New("too many symbolic links"))
			}
			target, err := f.fs.ReadLink(id)
			if err != nil {
				return fail(err)
			}
			if f.fs.Facts().Class == blockstack.NTFS {
				if len(target) > 1 && target[1] == ':' {
					target = target[2:] // of whichever drive: this one is all there is
				}
				target = strings.ReplaceAll(target, `\`, "/")
			}
			if strings.HasPrefix(target, "/") {
				at = place{ids: at.ids[:1]}
			}
			if todo = append(strings.Split(target, "/"), todo...); len(todo) > 1<<16 {
				return fail(errors.New("path too long"))
			}
			continue
		}
		if info.Type != Dir && len(todo) > 0 {
			return fail(errors.New("not a directory"))
		}
		if len(at.names) >= 4*maxDepth {
			return fail(errors.New("path too long"))
		}
		at.names, at.ids = append(at.names, real), append(at.ids, id)
	}
	return at, nil
}

// The names of directories that were looked into are kept, to this number.
const maxNames = 200_000

// lookup finds a name in a directory, and how it is written there.
func (f *FS) lookup(dir uint64, name string) (uint64, string, error) {
	f.mu.Lock()
	names, ok := f.dirs[dir]
	f.mu.Unlock()
	if !ok {
		names = map[string]uint64{}
		var found uint64
		err := f.list(dir, func(e Entry) bool {
			if e.Name == name {
				found = e.ID
			}
			if len(names) < maxNames {
				names[e.Name] = e.ID
			}
			return found == 0 || len(names) < maxNames
		})
		// What can be read of a damaged directory is there.
		if err != nil && found == 0 {
			return 0, "", err
		}
		f.mu.Lock()
		if len(names) < maxNames {
			if f.cached+len(names) > maxNames {
				clear(f.dirs)
				f.cached = 0
			}
			if _, ok := f.dirs[dir]; !ok {
				f.dirs[dir] = names
				f.cached += len(names)
			}
		}
		f.mu.Unlock()
		if found != 0 {
			return found, name, nil
		}
	}
	if id, ok := names[name]; ok {
		return id, name, nil
	}
	if f.fs.Facts().FoldCase {
		for n, id := range names {
			if strings.EqualFold(n, name) {
				return id, n, nil
			}
		}
	}
	return 0, "", fs.ErrNotExist
}

// list is List without the names that no file can have.
func (f *FS) list(dir uint64, yield func(Entry) bool) error {
	var bad error
	err := f.fs.List(dir, func(e Entry) bool {
		if e.Name == "" || e.Name == "." || e.Name == ".." || strings.ContainsAny(e.Name, "/\x00") {
			bad = fsys.Corrupt("a directory has the name %q", e.Name)
			return true
		}
		return yield(e)
	})
	if err == nil {
		err = bad
	}
	return err
}

// Lstat is what is known of a file; a symbolic link as the last element is not
// followed.
func (f *FS) Lstat(name string) (Info, error) {
	at, err := f.find(name, false)
	if err != nil {
		return Info{}, err
	}
	return f.fs.Stat(at.id())
}

// Resolve follows all symbolic links of a path and returns the path behind
// them as the file system writes it.
func (f *FS) Resolve(name string) (string, Info, error) {
	at, err := f.find(name, true)
	if err != nil {
		return "", Info{}, err
	}
	info, err := f.fs.Stat(at.id())
	return at.path(), info, err
}

// ReadDir is the entries of a directory in the order on disk, as they are
// read: a directory may be larger than memory. An error ends it.
func (f *FS) ReadDir(name string) iter.Seq2[Entry, error] {
	return func(yield func(Entry, error) bool) {
		at, err := f.find(name, true)
		if err == nil {
			stopped := false
			err = f.list(at.id(), func(e Entry) bool {
				stopped = !yield(e, nil)
				return !stopped
			})
			if stopped {
				return
			}
		}
		if err != nil {
			yield(Entry{}, fmt.Errorf("read directory %s: %w", name, err))
		}
	}
}

// Stat is what is known of the file with an entry's ID.
func (f *FS) Stat(id uint64) (Info, error) { return f.fs.Stat(id) }

// ReadLink is the target of a symbolic link, as it is written.
func (f *FS) ReadLink(name string) (string, error) {
	at, err := f.find(name, false)
	if err != nil {
		return "", err
	}
	return f.fs.ReadLink(at.id())
}

// Open is the content of a regular file; symbolic links are followed. On NTFS,
// "name:stream" is a named stream.
func (f *FS) Open(name string) (File, error) {
	at, err := f.find(name, true)
	streams, ok := f.fs.(fsys.Streams)
	if errors.Is(err, fs.ErrNotExist) && ok {
		dir, last := path.Split(name)
		if file, stream, ok := strings.Cut(last, ":"); ok && stream != "" {
			if at, err = f.find(dir+file, true); err == nil {
				return streams.OpenStream(at.id(), stream)
			}
		}
	}
	if err != nil {
		return nil, err
	}
	info, err := f.fs.Stat(at.id())
	if err != nil {
		return nil, err
	}
	if info.Type != Regular {
		return nil, &fs.PathError{Op: "read", Path: name, Err: errors.New("not a regular file")}
	}
	return f.fs.Open(at.id())
}

// Xattrs are the extended attributes of a file; a symbolic link as the last
// element is not followed.
func (f *FS) Xattrs(name string) ([]Xattr, error) {
	at, err := f.find(name, false)
	if err != nil {
		return nil, err
	}
	return f.fs.Xattrs(at.id())
}
