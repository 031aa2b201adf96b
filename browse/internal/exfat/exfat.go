// Package exfat reads exFAT without a kernel, read-only. A file's number is
// where its directory entry lies.
package exfat

import (
	"encoding/binary"
	"fmt"
	"io"
	"time"
	"unicode/utf16"

	"github.com/lockstep-backup/lockstep/browse/internal/fsys"
)

var le = binary.LittleEndian

const (
	rootID     = 1       // no entry lies there
	contiguous = 1 << 62 // bit of a number: the directory that holds the entry is not in the table

	entryLabel  = 0x83
	entryFile   = 0x85
	entryStream = 0xC0
	entryName   = 0xC1

	attrDir = 0x10
	maxDir  = 256 << 20
)

// FS is an open file system.
type FS struct {
	vol   *fsys.Volume
	facts fsys.Facts

	cluster          int64
	clusters         int64
	table, tableSize int64
	data             int64
	root             uint32
}

// Open reads the boot sector of a volume of size bytes.
func Open(r io.ReaderAt, size int64) (*FS, error) {
	vol := fsys.NewVolume(r, size)
	b, err := vol.Bytes(0, 512)
	if err != nil {
		return nil, fmt.Errorf("read boot sector: %w", err)
	}
	sectorLog, clusterLog := b[108], b[109]
	if string(b[3:11]) != "EXFAT   " || sectorLog < 9 || sectorLog > 12 || clusterLog > 25-sectorLog || b[110] == 0 || b[110] > 2 {
		return nil, fsys.Corrupt("no exFAT boot sector")
	}
	sector := int64(1) << sectorLog
	flags := le.Uint16(b[106:])
	f := &FS{
		vol: vol, cluster: sector << clusterLog, clusters: int64(le.Uint32(b[92:])), table: int64(le.Uint32(b[80:])) * sector,
		tableSize: int64(le.Uint32(b[84:])) * sector, data: int64(le.Uint32(b[88:])) * sector, root: le.Uint32(b[96:]),
	}
	if flags&1 != 0 && b[110] == 2 {
		f.table += f.tableSize
	}
	if f.clusters > f.tableSize/4-2 {
		return nil, fsys.Corrupt("%d clusters in a table of %d bytes", f.clusters, f.tableSize)
	}
	serial := le.Uint32(b[100:])
	f.facts = fsys.Facts{Class: "exfat", UUID: fmt.Sprintf("%04X-%04X", serial>>16, serial&0xFFFF), FoldCase: true, Dirty: flags&2 != 0}
	if f.facts.Dirty {
		f.facts.Warnings = append(f.facts.Warnings, "it was in use when the image was taken, and has no journal: files that were being written may be incomplete")
	}
	if n := f.data + f.clusters*f.cluster; n > size {
		f.facts.Warnings = append(f.facts.Warnings, fmt.Sprintf("the volume is shorter than its file system: %d of %d bytes", size, n))
	}
	err = f.walk(rootID, func(_ int64, e []byte, _ *cursor) (bool, error) {
		if e[0] == entryLabel {
			f.facts.Label = text(e[2:24], int(e[1]))
		}
		return e[0] != entryLabel, nil
	})
	if err != nil {
		f.facts.Warnings = append(f.facts.Warnings, "the root directory: "+err.Error())
	}
	return f, nil
}

func text(b []byte, n int) string {
	u := make([]uint16, min(n, len(b)/2))
	for k := range u {
		u[k] = le.Uint16(b[2*k:])
	}
	return string(utf16.Decode(u))
}

// Facts is what the file system says of itself.
func (f *FS) Facts() fsys.Facts { return f.facts }

// Root is the root directory's number.
func (f *FS) Root() uint64 { return rootID }

// next is the entry of the table for a cluster.
func (f *FS) next(n uint32) (uint32, error) {
	if n < 2 || int64(n) >= f.clusters+2 {
		return 0, fsys.Corrupt("cluster %#x of %d", n, f.clusters)
	}
	b, err := f.vol.Bytes(f.table+int64(n)*4, 4)
	if err != nil {
		return 0, err
	}
	return le.Uint32(b), nil
}

// stream is what a stream entry says of a file.
type stream struct {
	first       uint32
	whole       bool // contiguous, not in the table
	size, valid int64
}

// runs is where a stream lies.
func (f *FS) runs(s stream, whole bool) (fsys.Runs, error) {
	var runs fsys.Runs
	if s.size == 0 {
		return nil, nil
	}
	if s.whole {
		count := (s.size + f.cluster - 1) / f.cluster
		if s.first < 2 || int64(s.first) >= f.clusters+2 || count > f.clusters+2-int64(s.first) {
			return nil, fsys.Corrupt("%d clusters at %d of %d", count, s.first, f.clusters)
		}
		return runs, runs.Add(fsys.Run{Length: count * f.cluster, From: f.data + int64(s.first-2)*f.cluster})
	}
	var circle fsys.Circle
	at := int64(0)
	for n := s.first; at < s.size; at += f.cluster {
		if n == 0xFFFFFFFF && !whole {
			break
		}
		if circle.Closed(n) {
			return nil, fsys.Corrupt("clusters in a circle")
		}
		next, err := f.next(n)
		if err != nil {
			return nil, err
		}
		if err := runs.Add(fsys.Run{At: at, Length: f.cluster, From: f.data + int64(n-2)*f.cluster}); err != nil {
			return nil, err
		}
		n = next
	}
	return runs, nil
}

// cursor goes through the entries of a directory.
type cursor struct {
	f     *FS
	at    int64 // of the next entry, in the volume
	whole bool
	steps int64

	circle fsys.Circle
}

// read is the next entry, and where it lies; nil at the end.
func (c *cursor) read() (int64, []byte, error) {
	if c.steps++; c.steps > maxDir/32 {
		return 0, nil, fsys.Corrupt("a directory of more than %d bytes", maxDir)
	}
	at := c.at
	if at < c.f.data {
		return 0, nil, fsys.Corrupt("a directory at %d", at)
	}
	b, err := c.f.vol.Bytes(at, 32)
	if err != nil {
		return 0, nil, err
	}
	c.at += 32
	if (c.at-c.f.data)%c.f.cluster == 0 {
		n := uint32((at - c.f.data) / c.f.cluster)
		if !c.whole {
			next, err := c.f.next(n + 2)
			if err != nil {
				return 0, nil, err
			}
			if next < 2 || int64(next) >= c.f.clusters+2 {
				c.steps = maxDir // what follows is not there
			} else if c.circle.Closed(next) {
				return 0, nil, fsys.Corrupt("clusters of a directory in a circle")
			} else {
				c.at = c.f.data + int64(next-2)*c.f.cluster
			}
		}
	}
	return at, b, nil
}

// file reads the entry at a number, and the stream entry behind it.
func (f *FS) file(id uint64) (entry []byte, s stream, err error) {
	if id == rootID {
		return nil, stream{}, fmt.Errorf("the root has no entry")
	}
	c := cursor{f: f, at: int64(id &^ contiguous), whole: id&contiguous != 0}
	_, e, err := c.read()
	if err != nil {
		return nil, s, err
	}
	_, x, err := c.read()
	if err != nil {
		return nil, s, err
	}
	if e[0] != entryFile || x[0] != entryStream {
		return nil, s, fsys.Corrupt("no directory entry at %d", id)
	}
	s = stream{
		first: le.Uint32(x[20:]), whole: x[1]&2 != 0,
		size: int64(le.Uint64(x[24:]) & (1<<63 - 1)), valid: int64(le.Uint64(x[8:]) & (1<<63 - 1)),
	}
	if s.size > f.clusters*f.cluster {
		return nil, s, fsys.Corrupt("a file of %d bytes", s.size)
	}
	return e, s, nil
}

// when is a local time; without a zone it is taken as UTC.
func when(b []byte, ms, zone byte) time.Time {
	n := le.Uint32(b)
	if n == 0 {
		return time.Time{}
	}
	t := time.Date(1980+int(n>>25), time.Month(n>>21&0xF), int(n>>16&0x1F), int(n>>11&0x1F), int(n>>5&0x3F), int(n&0x1F)*2, int(ms)*1e7, time.UTC)
	if zone&0x80 != 0 {
		t = t.Add(-15 * time.Minute * time.Duration(int8(zone<<1)>>1))
	}
	return t
}

// Stat is what a file's entry says. Modes are made up.
func (f *FS) Stat(id uint64) (fsys.Info, error) {
	if id == rootID {
		return fsys.Info{ID: id, Type: fsys.Dir, Mode: 0o755, Links: 1}, nil
	}
	e, s, err := f.file(id)
	if err != nil {
		return fsys.Info{}, err
	}
	info := fsys.Info{
		ID: id, Type: fsys.Regular, Mode: 0o644, Links: 1, Size: s.size,
		Born: when(e[8:], e[20], e[22]), Modified: when(e[12:], e[21], e[23]), Accessed: when(e[16:], 0, e[24]),
	}
	attrs := le.Uint16(e[4:])
	if attrs&attrDir != 0 {
		info.Type, info.Mode, info.Size = fsys.Dir, 0o755, 0
	} else if attrs&1 != 0 {
		info.Mode = 0o444
	}
	for _, x := range []struct {
		bit  uint16
		name string
	}{{1, "read-only"}, {2, "hidden"}, {4, "system"}, {0x20, "archive"}} {
		if attrs&x.bit != 0 {
			info.Flags = append(info.Flags, x.name)
		}
	}
	return info, nil
}

// Open is the content of a file.
func (f *FS) Open(id uint64) (fsys.File, error) {
	e, s, err := f.file(id)
	if err != nil {
		return nil, err
	}
	if le.Uint16(e[4:])&attrDir != 0 {
		return nil, fmt.Errorf("entry %d is not a regular file", id)
	}
	runs, err := f.runs(s, true)
	if err != nil {
		return nil, err
	}
	return fsys.NewFile(f.vol, s.size, runs.Clip(s.valid)), nil
}

// ReadLink fails: there are no links.
func (f *FS) ReadLink(uint64) (string, error) { return "", fmt.Errorf("exFAT has no symbolic links") }

// Xattrs are none.
func (f *FS) Xattrs(uint64) ([]fsys.Xattr, error) { return nil, nil }

// List reads a directory.
func (f *FS) List(dir uint64, yield func(fsys.Entry) bool) error {
	return f.walk(dir, func(at int64, e []byte, c *cursor) (bool, error) {
		if e[0] != entryFile {
			return true, nil
		}
		x := fsys.Entry{ID: uint64(at), Type: fsys.Regular}
		if c.whole {
			x.ID |= contiguous
		}
		if le.Uint16(e[4:])&attrDir != 0 {
			x.Type = fsys.Dir
		}
		var name []byte
		length := 0
		for k := range int(e[1]) {
			_, s, err := c.read()
			if err != nil {
				return false, err
			}
			switch {
			case k == 0 && s[0] == entryStream:
				length = int(s[3])
			case k > 0 && s[0] == entryName:
				name = append(name, s[2:]...)
			case k == 0 || s[0]&0x40 == 0:
				return false, fsys.Corrupt("directory entry of type %#x in a file's", s[0])
			}
		}
		if x.Name = text(name, length); x.Name == "" {
			return false, fsys.Corrupt("a file without a name")
		}
		return yield(x), nil
	})
}

// walk calls fn with each entry of a directory, and where it lies.
func (f *FS) walk(dir uint64, fn func(at int64, e []byte, c *cursor) (bool, error)) error {
	c := cursor{f: f}
	n, end := f.root, int64(maxDir)
	if dir != rootID {
		e, s, err := f.file(dir)
		if err != nil {
			return err
		}
		if le.Uint16(e[4:])&attrDir == 0 {
			return fmt.Errorf("entry %d is not a directory", dir)
		}
		n, c.whole, end = s.first, s.whole, min(s.size, maxDir)
	}
	if end == 0 {
		return nil
	}
	if n < 2 || int64(n) >= f.clusters+2 {
		return fsys.Corrupt("a directory at cluster %#x", n)
	}
	c.at = f.data + int64(n-2)*f.cluster
	for c.steps < end/32 {
		at, e, err := c.read()
		if err != nil {
			return err
		}
		if e[0] == 0 {
			return nil
		}
		if more, err := fn(at, e, &c); err != nil || !more {
			return err
		}
	}
	return nil
}
