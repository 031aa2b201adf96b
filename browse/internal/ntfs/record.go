package ntfs

import (
	"cmp"
	"fmt"
	"slices"
	"unicode/utf16"

	"github.com/lockstep-backup/lockstep/browse/internal/fsys"
)

// Types of attributes.
const (
	typeStandard   = 0x10
	typeList       = 0x20
	typeFileName   = 0x30
	typeVolumeName = 0x60
	typeVolume     = 0x70
	typeData       = 0x80
	typeIndexRoot  = 0x90
	typeIndex      = 0xA0
	typeBitmap     = 0xB0
	typeReparse    = 0xC0
)

const (
	maxPieces  = 1 << 14 // records of one file
	maxList    = 1 << 20 // bytes of a list of attributes; Windows stops at a quarter of that
	compressed = 0x00FF
	encrypted  = 0x4000
)

// attribute is one attribute, or a piece of one.
type attribute struct {
	kind     uint32
	name     string
	flags    uint16
	resident bool
	value    []byte // resident

	first             int64 // cluster of the attribute that the piece begins with
	unit              uint
	size, initialised int64
	runs              []byte
}

// record is a file's record of the MFT with all its attributes.
type record struct {
	id    uint64
	dir   bool
	links int
	attrs []attribute
}

// fixup puts the ends of sectors back into their place.
func fixup(b []byte, magic string) error {
	if len(b) < 48 || string(b[:4]) != magic {
		return fsys.Corrupt("no %s record", magic)
	}
	at, count := int(le.Uint16(b[4:])), int(le.Uint16(b[6:]))
	if count < 1 || at+2*count > len(b) || (count-1)*512 > len(b) {
		return fsys.Corrupt("%d fixups at %d", count, at)
	}
	for k := 1; k < count; k++ {
		end := b[k*512-2 : k*512]
		if end[0] != b[at] || end[1] != b[at+1] {
			return fsys.Corrupt("a %s record was not written to its end", magic)
		}
		copy(end, b[at+2*k:at+2*k+2])
	}
	return nil
}

// one reads one record of the MFT.
func (f *FS) one(id uint64) ([]byte, error) {
	at := int64(id) * f.recordSize
	if id >= 1<<40 || at+f.recordSize > f.mft.Size() {
		return nil, fsys.Corrupt("record %d of an MFT of %d bytes", id, f.mft.Size())
	}
	b := make([]byte, f.recordSize)
	if _, err := f.mft.ReadAt(b, at); err != nil {
		return nil, err
	}
	if err := fixup(b, "FILE"); err != nil {
		return nil, fmt.Errorf("record %d: %w", id, err)
	}
	if le.Uint16(b[0x16:])&1 == 0 {
		return nil, fsys.Corrupt("record %d is not in use", id)
	}
	return b, nil
}

// parse adds the attributes of one record.
func parse(b []byte, attrs []attribute) ([]attribute, error) {
	at := int(le.Uint16(b[0x14:]))
	for {
		if at+4 > len(b) {
			return nil, fsys.Corrupt("attributes without an end")
		}
		if le.Uint32(b[at:]) == 0xFFFFFFFF {
			return attrs, nil
		}
		if at+24 > len(b) {
			return nil, fsys.Corrupt("an attribute is cut short")
		}
		n := int64(le.Uint32(b[at+4:]))
		if n < 24 || n > int64(len(b)-at) {
			return nil, fsys.Corrupt("an attribute of %d bytes", n)
		}
		p := b[at : at+int(n)]
		a := attribute{kind: le.Uint32(p), flags: le.Uint16(p[12:]), resident: p[8] == 0}
		if nameAt, nameEnd := int(le.Uint16(p[10:])), int(le.Uint16(p[10:]))+2*int(p[9]); p[9] > 0 {
			if nameEnd > len(p) {
				return nil, fsys.Corrupt("the name of an attribute is cut short")
			}
			a.name = text(p[nameAt:nameEnd])
		}
		if a.resident {
			from, size := int64(le.Uint16(p[20:])), int64(le.Uint32(p[16:]))
			if from+size > n {
				return nil, fsys.Corrupt("a value of %d bytes at %d", size, from)
			}
			a.value = p[from : from+size]
		} else {
			from := int64(0)
			if n >= 64 {
				from = int64(le.Uint16(p[32:]))
			}
			if from < 64 || from > n {
				return nil, fsys.Corrupt("an attribute has its runs at %d", from)
			}
			a.first, a.unit = int64(le.Uint64(p[16:])), uint(le.Uint16(p[34:]))
			a.size, a.initialised = int64(le.Uint64(p[48:])), int64(le.Uint64(p[56:]))
			a.runs = p[from:]
			if a.first < 0 || a.size < 0 || a.initialised < 0 || a.unit > 8 {
				return nil, fsys.Corrupt("an attribute of %d bytes", a.size)
			}
		}
		if len(attrs) >= 1<<16 {
			return nil, fsys.Corrupt("a file with more than %d attributes", len(attrs))
		}
		attrs = append(attrs, a)
		at += int(n)
	}
}

// record is a file with the attributes of all its records.
func (f *FS) record(id uint64) (*record, error) {
	b, err := f.one(id)
	if err != nil {
		return nil, err
	}
	if le.Uint64(b[0x20:]) != 0 {
		return nil, fsys.Corrupt("record %d is a piece of another file", id)
	}
	r := &record{id: id, dir: le.Uint16(b[0x16:])&2 != 0}
	if r.attrs, err = parse(b, nil); err != nil {
		return nil, fmt.Errorf("record %d: %w", id, err)
	}
	if list, ok := r.find(typeList, ""); ok {
		if err := f.pieces(r, list); err != nil {
			return nil, fmt.Errorf("record %d: %w", id, err)
		}
	}
	for _, a := range r.attrs {
		if a.kind == typeFileName && len(a.value) >= 66 && a.value[65] != 2 {
			r.links++
		}
	}
	return r, nil
}

// pieces adds the attributes of the other records of a file.
func (f *FS) pieces(r *record, list attribute) error {
	if list.size > maxList {
		return fsys.Corrupt("list of attributes of %d bytes", list.size)
	}
	b, err := f.value(r, list)
	if err != nil {
		return fmt.Errorf("list of attributes: %w", err)
	}
	seen := map[uint64]bool{r.id: true}
	for len(b) >= 26 {
		n := int(le.Uint16(b[4:]))
		if n < 26 || n > len(b) {
			return fsys.Corrupt("list of attributes with an entry of %d bytes", n)
		}
		if id := le.Uint64(b[16:]) & (1<<48 - 1); !seen[id] {
			if len(seen) > maxPieces {
				return fsys.Unsupported("a file of more than %d records", maxPieces)
			}
			seen[id] = true
			p, err := f.one(id)
			if err != nil {
				return err
			}
			if le.Uint64(p[0x20:])&(1<<48-1) != r.id {
				return fsys.Corrupt("record %d is no piece of it", id)
			}
			if r.attrs, err = parse(p, r.attrs); err != nil {
				return err
			}
		}
		b = b[n:]
	}
	return nil
}

// find is the first piece of an attribute.
func (r *record) find(kind uint32, name string) (attribute, bool) {
	for _, a := range r.attrs {
		if a.kind == kind && a.name == name && (a.resident || a.first == 0) {
			return a, true
		}
	}
	return attribute{}, false
}

// place is where an attribute that is not resident lies, all its pieces.
func (f *FS) place(r *record, a attribute) (fsys.Runs, error) {
	var pieces []attribute
	for _, p := range r.attrs {
		if p.kind == a.kind && p.name == a.name && !p.resident {
			pieces = append(pieces, p)
		}
	}
	slices.SortStableFunc(pieces, func(a, b attribute) int { return cmp.Compare(a.first, b.first) })
	var runs fsys.Runs
	for _, p := range pieces {
		if err := f.decode(p, &runs); err != nil {
			return nil, err
		}
	}
	return runs, nil
}

// decode reads a run list.
func (f *FS) decode(a attribute, runs *fsys.Runs) error {
	at, from := a.first, int64(0)
	for b := a.runs; len(b) > 0 && b[0] != 0; {
		n, m := int(b[0]&0xF), int(b[0]>>4)
		if n == 0 || n > 8 || m > 8 || 1+n+m > len(b) {
			return fsys.Corrupt("a run list is cut short")
		}
		count := signed(b[1 : 1+n])
		if count <= 0 || count > 1<<48 || at > (1<<62)/f.cluster-count {
			return fsys.Corrupt("a run of %d clusters", count)
		}
		if m > 0 {
			from += signed(b[1+n : 1+n+m])
			if from < 0 || from > f.clusters || count > f.clusters-from {
				return fsys.Corrupt("%d clusters at %d of %d", count, from, f.clusters)
			}
			if err := runs.Add(fsys.Run{At: at * f.cluster, Length: count * f.cluster, From: from * f.cluster}); err != nil {
				return err
			}
		}
		at += count
		b = b[1+n+m:]
	}
	return nil
}

// signed is a little-endian number of 1 to 8 bytes.
func signed(b []byte) int64 {
	n := int64(int8(b[len(b)-1]))
	for k := len(b) - 2; k >= 0; k-- {
		n = n<<8 | int64(b[k])
	}
	return n
}

// file is an attribute as a file.
func (f *FS) file(r *record, a attribute) (fsys.File, error) {
	if a.flags&encrypted != 0 {
		return nil, fsys.Unsupported("a file encrypted by Windows (EFS)")
	}
	if a.resident {
		return fsys.BytesFile(a.value, int64(len(a.value)))
	}
	runs, err := f.place(r, a)
	if err != nil {
		return nil, err
	}
	if a.flags&compressed != 0 && a.unit > 0 {
		unit := f.cluster << a.unit
		if unit > 1<<20 {
			return nil, fsys.Corrupt("compressed in units of %d bytes", unit)
		}
		return &compressedFile{vol: f.vol, unit: unit, size: a.size, valid: a.initialised, runs: runs, last: -1}, nil
	}
	return fsys.NewFile(f.vol, a.size, runs.Clip(a.initialised)), nil
}

// value is all of a small attribute.
func (f *FS) value(r *record, a attribute) ([]byte, error) {
	if a.resident {
		return a.value, nil
	}
	if a.size > fsys.MaxRead {
		return nil, fsys.Corrupt("an attribute of %d bytes", a.size)
	}
	file, err := f.file(r, a)
	if err != nil {
		return nil, err
	}
	b := make([]byte, a.size)
	if len(b) > 0 {
		if _, err := file.ReadAt(b, 0); err != nil {
			return nil, err
		}
	}
	return b, nil
}

// text is UTF-16.
func text(b []byte) string {
	u := make([]uint16, len(b)/2)
	for i := range u {
		u[i] = le.Uint16(b[2*i:])
	}
	return string(utf16.Decode(u))
}
