// Package fat reads FAT12, FAT16 and FAT32 with long names, without a kernel,
// read-only. A file's number is where its directory entry lies.
package fat

import (
	"encoding/binary"
	"fmt"
	"io"
	"strings"
	"time"
	"unicode/utf16"

	"golang.org/x/text/encoding/charmap"

	"github.com/lockstep-backup/lockstep/browse/internal/fsys"
)

var le = binary.LittleEndian

const (
	rootID = 1 // no entry lies there

	attrReadOnly = 0x01
	attrHidden   = 0x02
	attrSystem   = 0x04
	attrLabel    = 0x08
	attrDir      = 0x10
	attrLong     = 0x0F
)

// FS is an open file system.
type FS struct {
	vol   *fsys.Volume
	facts fsys.Facts

	bits             int   // of an entry of the table: 12, 16, 32
	cluster          int64 // bytes
	table, tableSize int64 // bytes
	data             int64 // where cluster 2 lies
	clusters         int64
	root             fsys.Run // of FAT12 and FAT16
	rootCluster      uint32
}

// Open reads the boot sector of a volume of size bytes.
func Open(r io.ReaderAt, size int64) (*FS, error) {
	vol := fsys.NewVolume(r, size)
	b, err := vol.Bytes(0, 512)
	if err != nil {
		return nil, fmt.Errorf("read boot sector: %w", err)
	}
	sector, per := int64(le.Uint16(b[11:])), int64(b[13])
	reserved, tables, rootEntries := int64(le.Uint16(b[14:])), int64(b[16]), int64(le.Uint16(b[17:]))
	total, tableSectors := int64(le.Uint16(b[19:])), int64(le.Uint16(b[22:]))
	if total == 0 {
		total = int64(le.Uint32(b[32:]))
	}
	wide := tableSectors == 0
	if wide {
		tableSectors = int64(le.Uint32(b[36:]))
	}
	if sector < 512 || sector > 4096 || sector&(sector-1) != 0 || per == 0 || per&(per-1) != 0 || reserved == 0 || tables == 0 || tables > 4 || tableSectors == 0 {
		return nil, fsys.Corrupt("FAT with clusters of %d sectors of %d bytes and %d tables", per, sector, tables)
	}
	f := &FS{vol: vol, cluster: sector * per, table: reserved * sector, tableSize: tableSectors * sector}
	rootAt := (reserved + tables*tableSectors) * sector
	rootSectors := (rootEntries*32 + sector - 1) / sector
	f.data = rootAt + rootSectors*sector
	if f.data > total*sector {
		return nil, fsys.Corrupt("FAT of %d sectors, with data from byte %d on", total, f.data)
	}
	f.clusters = (total*sector - f.data) / f.cluster
	serial, label, state := 39, 43, 37
	f.facts = fsys.Facts{FoldCase: true}
	switch {
	case wide:
		f.bits, f.facts.Class = 32, "fat32"
		serial, label, state = 67, 71, 65
		f.rootCluster = le.Uint32(b[44:]) & 0x0FFFFFFF
		if flags := le.Uint16(b[40:]); flags&0x80 != 0 { // only one table is kept
			f.table += int64(flags&0xF) * f.tableSize
		}
	case f.clusters < 4085:
		f.bits, f.facts.Class = 12, "fat12"
	default:
		f.bits, f.facts.Class = 16, "fat16"
	}
	if !wide {
		f.root = fsys.Run{Length: rootSectors * sector, From: rootAt}
	}
	if most := f.tableSize * 8 / int64(f.bits); f.clusters > most-2 {
		f.clusters = max(most-2, 0)
	}
	id := le.Uint32(b[serial:])
	f.facts.UUID = fmt.Sprintf("%04X-%04X", id>>16, id&0xFFFF)
	if f.facts.Label = strings.TrimRight(oem(b[label:label+11]), " \x00"); f.facts.Label == "NO NAME" {
		f.facts.Label = ""
	}
	if b[state]&1 != 0 {
		f.facts.Dirty = true
	}
	if f.bits > 12 && !f.facts.Dirty {
		if n, err := (&chain{f: f}).entry(1); err == nil {
			f.facts.Dirty = n&(1<<(min(f.bits, 28)-1)) == 0
		}
	}
	if f.facts.Dirty {
		f.facts.Warnings = append(f.facts.Warnings, "it was in use when the image was taken, and has no journal: files that were being written may be incomplete")
	}
	err = f.raw(rootID, func(_ int64, e []byte, _ string) bool {
		if e[11]&attrLabel == 0 {
			return true
		}
		f.facts.Label = strings.TrimRight(oem(e[:11]), " ")
		return false
	})
	if err != nil {
		f.facts.Warnings = append(f.facts.Warnings, "the root directory: "+err.Error())
	}
	return f, nil
}

// oem is text in the code page of DOS and of Linux's vfat.
func oem(b []byte) string {
	s, _ := charmap.CodePage437.NewDecoder().Bytes(b) // every byte has a meaning
	return string(s)
}

// Facts is what the file system says of itself.
func (f *FS) Facts() fsys.Facts { return f.facts }

// Root is the root directory's number.
func (f *FS) Root() uint64 { return rootID }

// chain follows the table, of which it keeps a piece.
type chain struct {
	f  *FS
	at int64
	b  []byte
}

// entry is an entry of the table.
func (c *chain) entry(n uint32) (uint32, error) {
	at, size := int64(n)*int64(c.f.bits)/8, int64(4)
	if c.f.bits != 32 {
		size = 2
	}
	if at+size > c.f.tableSize {
		return 0, fsys.Corrupt("cluster %d is not in the table", n)
	}
	if c.b == nil || at < c.at || at+size > c.at+int64(len(c.b)) {
		b, err := c.f.vol.Bytes(c.f.table+at, min(4096, c.f.tableSize-at))
		if err != nil {
			return 0, err
		}
		c.at, c.b = at, b
	}
	b := c.b[at-c.at:]
	switch c.f.bits {
	case 12:
		return uint32(le.Uint16(b)) >> (n & 1 * 4) & 0xFFF, nil
	case 16:
		return uint32(le.Uint16(b)), nil
	}
	return le.Uint32(b) & 0x0FFFFFFF, nil
}

// runs is where a chain of clusters lies, up to size bytes; whole says that a
// shorter one is damage.
func (f *FS) runs(first uint32, size int64, whole bool) (fsys.Runs, error) {
	var runs fsys.Runs
	c := chain{f: f}
	var circle fsys.Circle
	at := int64(0)
	for n := first; at < size; at += f.cluster {
		if n < 2 || int64(n) >= f.clusters+2 {
			if whole || n == 1 || n >= 2 && n < 1<<min(f.bits, 28)-8 {
				return nil, fsys.Corrupt("a file of %d bytes ends with cluster %#x after %d", size, n, at)
			}
			break
		}
		if circle.Closed(n) {
			return nil, fsys.Corrupt("clusters in a circle")
		}
		if err := runs.Add(fsys.Run{At: at, Length: f.cluster, From: f.data + int64(n-2)*f.cluster}); err != nil {
			return nil, err
		}
		next, err := c.entry(n)
		if err != nil {
			return nil, err
		}
		n = next
	}
	return runs, nil
}

// at is the entry of a file.
func (f *FS) at(id uint64) ([]byte, error) {
	if id%32 != 0 || id == 0 || id > 1<<62 {
		return nil, fsys.Corrupt("no directory entry at %d", id)
	}
	return f.vol.Bytes(int64(id), 32)
}

func first(e []byte) uint32 {
	return uint32(le.Uint16(e[26:])) | uint32(le.Uint16(e[20:]))<<16
}

func (f *FS) first(e []byte) uint32 {
	if f.bits == 32 {
		return first(e) & 0x0FFFFFFF
	}
	return first(e) & 0xFFFF
}

// when is a local time without a zone, taken as UTC.
func when(date, clock uint16) time.Time {
	if date == 0 {
		return time.Time{}
	}
	return time.Date(1980+int(date>>9), time.Month(date>>5&0xF), int(date&0x1F), int(clock>>11), int(clock>>5&0x3F), int(clock&0x1F)*2, 0, time.UTC)
}

// Stat is what a file's entry says. Modes are made up.
func (f *FS) Stat(id uint64) (fsys.Info, error) {
	if id == rootID {
		return fsys.Info{ID: id, Type: fsys.Dir, Mode: 0o755, Links: 1}, nil
	}
	e, err := f.at(id)
	if err != nil {
		return fsys.Info{}, err
	}
	info := fsys.Info{
		ID: id, Type: fsys.Regular, Mode: 0o644, Links: 1, Size: int64(le.Uint32(e[28:])),
		Modified: when(le.Uint16(e[24:]), le.Uint16(e[22:])), Accessed: when(le.Uint16(e[18:]), 0),
		Born: when(le.Uint16(e[16:]), le.Uint16(e[14:])),
	}
	if e[11]&attrDir != 0 {
		info.Type, info.Mode, info.Size = fsys.Dir, 0o755, 0
	} else if e[11]&attrReadOnly != 0 {
		info.Mode = 0o444
	}
	for _, x := range []struct {
		bit  byte
		name string
	}{{attrReadOnly, "read-only"}, {attrHidden, "hidden"}, {attrSystem, "system"}, {0x20, "archive"}} {
		if e[11]&x.bit != 0 {
			info.Flags = append(info.Flags, x.name)
		}
	}
	return info, nil
}

// Open is the content of a file.
func (f *FS) Open(id uint64) (fsys.File, error) {
	if id == rootID {
		return nil, fmt.Errorf("the root is not a regular file")
	}
	e, err := f.at(id)
	if err != nil {
		return nil, err
	}
	if e[11]&attrDir != 0 {
		return nil, fmt.Errorf("entry %d is not a regular file", id)
	}
	size := int64(le.Uint32(e[28:]))
	runs, err := f.runs(f.first(e), size, true)
	if err != nil {
		return nil, err
	}
	return fsys.NewFile(f.vol, size, runs), nil
}

// ReadLink fails: there are no links.
func (f *FS) ReadLink(uint64) (string, error) { return "", fmt.Errorf("FAT has no symbolic links") }

// Xattrs are none.
func (f *FS) Xattrs(uint64) ([]fsys.Xattr, error) { return nil, nil }

// List reads a directory.
func (f *FS) List(dir uint64, yield func(fsys.Entry) bool) error {
	return f.raw(dir, func(at int64, e []byte, name string) bool {
		if e[11]&attrLabel != 0 {
			return true
		}
		x := fsys.Entry{Name: name, ID: uint64(at), Type: fsys.Regular}
		if e[11]&attrDir != 0 {
			x.Type = fsys.Dir
		}
		return x.Name == "." || x.Name == ".." || yield(x)
	})
}

// A directory has 65536 entries at most.
const maxDir = 65536 * 32

// raw calls yield with each entry in use, where it lies, and its name.
func (f *FS) raw(dir uint64, yield func(at int64, e []byte, name string) bool) error {
	var runs fsys.Runs
	n := f.rootCluster
	if dir != rootID {
		e, err := f.at(dir)
		if err != nil {
			return err
		}
		if e[11]&attrDir == 0 {
			return fmt.Errorf("entry %d is not a directory", dir)
		}
		n = f.first(e)
	}
	if dir == rootID && f.bits != 32 {
		runs = fsys.Runs{f.root}
	} else {
		var err error
		if runs, err = f.runs(n, maxDir, false); err != nil {
			return err
		}
	}
	var long longName
	for _, r := range runs {
		b, err := f.vol.Bytes(r.From, r.Length)
		if err != nil {
			return err
		}
		for k := 0; k+32 <= len(b); k += 32 {
			e := b[k : k+32]
			switch {
			case e[0] == 0:
				return nil
			case e[0] == 0xE5:
				long = longName{}
			case e[11]&0x3F == attrLong:
				long.add(e)
			default:
				name, ok := long.name(e)
				if !ok {
					name = shortName(e)
				}
				long = longName{}
				if !yield(r.From+int64(k), e, name) {
					return nil
				}
			}
		}
	}
	return nil
}

// longName collects the entries that precede a short one, the last first.
type longName struct {
	units []uint16
	next  byte // the number that the next must have
	sum   byte
}

func (l *longName) add(e []byte) {
	number := e[0] & 0x3F
	if e[0]&0x40 != 0 && number >= 1 && number <= 20 {
		*l = longName{units: make([]uint16, int(number)*13), next: number, sum: e[13]}
	}
	if l.next == 0 || number != l.next || e[13] != l.sum {
		*l = longName{}
		return
	}
	to := l.units[int(number-1)*13:]
	for k, at := range [13]int{1, 3, 5, 7, 9, 14, 16, 18, 20, 22, 24, 28, 30} {
		to[k] = le.Uint16(e[at:])
	}
	l.next--
}

func (l *longName) name(e []byte) (string, bool) {
	sum := byte(0)
	for _, c := range e[:11] {
		sum = sum>>1 | sum<<7
		sum += c
	}
	if l.units == nil || l.next != 0 || sum != l.sum {
		return "", false
	}
	u := l.units
	for k, c := range u {
		if c == 0 {
			u = u[:k]
			break
		}
	}
	return string(utf16.Decode(u)), len(u) > 0
}

func shortName(e []byte) string {
	c := append([]byte(nil), e[:11]...)
	if c[0] == 5 {
		c[0] = 0xE5
	}
	base, extension := strings.TrimRight(oem(c[:8]), " "), strings.TrimRight(oem(c[8:]), " ")
	if e[12]&0x08 != 0 {
		base = strings.ToLower(base)
	}
	if e[12]&0x10 != 0 {
		extension = strings.ToLower(extension)
	}
	if extension != "" {
		return base + "." + extension
	}
	return base
}
