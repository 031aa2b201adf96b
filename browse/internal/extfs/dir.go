package extfs

import (
	"errors"
	"fmt"
	"io"

	"github.com/lockstep-backup/lockstep/browse/internal/fsys"
)

var entryTypes = [...]fsys.Type{
	fsys.Unknown, fsys.Regular, fsys.Dir, fsys.CharDevice, fsys.BlockDevice, fsys.Fifo, fsys.Socket, fsys.Symlink,
}

// List reads a directory. The index of a large one (htree) looks like deleted
// entries to a reader that goes through its blocks in turn, by design.
func (f *FS) List(dir uint64, yield func(fsys.Entry) bool) error {
	i, err := f.inode(dir)
	switch {
	case err != nil:
		return err
	case i.format() != 0x4000:
		return fmt.Errorf("inode %d is not a directory", dir)
	}
	if i.flags()&flagInline != 0 {
		b, err := f.inline(i)
		if err != nil {
			return err
		}
		// The first four bytes are the parent; what did not fit is a block of its own.
		first := min(60, len(b))
		if more, err := f.entries(b[min(4, first):first], yield); err != nil || !more {
			return err
		}
		_, err = f.entries(b[first:], yield)
		return err
	}
	runs, err := f.runs(i)
	if err != nil {
		return fmt.Errorf("inode %d: %w", dir, err)
	}
	size := i.size()
	if size > f.vol.Size() {
		return fsys.Corrupt("directory %d of %d bytes", dir, size)
	}
	file := fsys.NewFile(f.vol, size, runs)
	for off := int64(0); off < size; off += f.bs {
		start, _ := file.NextData(off)
		if off = start / f.bs * f.bs; off >= size {
			break
		}
		b := make([]byte, min(f.bs, size-off))
		if _, err := file.ReadAt(b, off); err != nil && !errors.Is(err, io.EOF) {
			return err
		}
		if more, err := f.entries(b, yield); err != nil || !more {
			return err
		}
	}
	return nil
}

// entries reads one block of a directory.
func (f *FS) entries(b []byte, yield func(fsys.Entry) bool) (more bool, err error) {
	for len(b) >= 8 {
		n := int(le.Uint16(b[4:]))
		if f.bs == 64<<10 && (n == 0xFFFF || n == 0) || n == 0xFFFC && f.bs > 32<<10 {
			n = int(f.bs)
		}
		id, length := le.Uint32(b), int(b[6])
		if n < 8 || n > len(b) || 8+length > n {
			if id == 0 && n == 0 {
				return true, nil // the unused rest of an inline directory
			}
			return false, fsys.Corrupt("directory entry of %d bytes with a name of %d", n, length)
		}
		name := string(b[8 : 8+length])
		if id != 0 && name != "." && name != ".." && name != "" {
			e := fsys.Entry{Name: name, ID: uint64(id)}
			if f.incompat&2 != 0 && int(b[7]) < len(entryTypes) {
				e.Type = entryTypes[b[7]]
			}
			if !yield(e) {
				return false, nil
			}
		}
		b = b[n:]
	}
	return true, nil
}
