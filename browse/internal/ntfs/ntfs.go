// Package ntfs reads NTFS without a kernel, read-only: attribute lists, sparse
// and compressed files, reparse points, named streams. $LogFile is not
// replayed; Windows' own way to do that is not published.
package ntfs

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/lockstep-backup/lockstep/browse/internal/fsys"
)

var le = binary.LittleEndian

const (
	logRecord    = 2
	volumeRecord = 3
	rootRecord   = 5
	firstUser    = 16 // records below are the file system's own

	attrReadOnly = 0x1
	attrHidden   = 0x2
	attrSystem   = 0x4

	reparseMount   = 0xA0000003
	reparseSymlink = 0xA000000C
	reparseLinux   = 0xA000001D
	reparseWOF     = 0x80000017
	reparseDedup   = 0x80000013
	reparseSocket  = 0x80000023
	maxStreamXattr = 64 << 10
)

// FS is an open file system.
type FS struct {
	vol        *fsys.Volume
	facts      fsys.Facts
	cluster    int64
	clusters   int64
	recordSize int64
	mft        fsys.File
}

// Open reads the boot sector of a volume of size bytes, the MFT's own record
// and $Volume.
func Open(r io.ReaderAt, size int64) (*FS, error) {
	vol := fsys.NewVolume(r, size)
	b, err := vol.Bytes(0, 512)
	if err != nil {
		return nil, fmt.Errorf("read boot sector: %w", err)
	}
	if string(b[3:11]) != "NTFS    " {
		return nil, fsys.Corrupt("no NTFS boot sector")
	}
	sector, per := int64(le.Uint16(b[0x0B:])), int64(b[0x0D])
	if per > 0x80 {
		per = 1 << min(256-per, 31)
	}
	f := &FS{vol: vol, cluster: sector * per}
	if sector < 256 || sector > 4096 || sector&(sector-1) != 0 || f.cluster == 0 || f.cluster > 2<<20 || f.cluster&(f.cluster-1) != 0 {
		return nil, fsys.Corrupt("clusters of %d sectors of %d bytes", per, sector)
	}
	f.clusters = int64(le.Uint64(b[0x28:])&(1<<48-1)) * sector / f.cluster
	if n := int8(b[0x40]); n < 0 {
		f.recordSize = 1 << min(-int(n), 30)
	} else {
		f.recordSize = int64(n) * f.cluster
	}
	if f.recordSize < 512 || f.recordSize > 64<<10 || f.recordSize&(f.recordSize-1) != 0 {
		return nil, fsys.Corrupt("records of %d bytes", f.recordSize)
	}
	serial := le.Uint64(b[0x48:])
	f.facts = fsys.Facts{Class: "ntfs", UUID: fmt.Sprintf("%016X", serial), FoldCase: true}
	if f.clusters*f.cluster > size {
		f.facts.Warnings = append(f.facts.Warnings, fmt.Sprintf("the volume is shorter than its file system: %d of %d bytes", size, f.clusters*f.cluster))
	}
	at := le.Uint64(b[0x30:])
	if at >= uint64(f.clusters) {
		return nil, fsys.Corrupt("MFT at cluster %d of %d", at, f.clusters)
	}
	// The MFT's record says where the MFT is; its first run says where that record is.
	var first fsys.Runs
	if err := first.Add(fsys.Run{Length: f.recordSize, From: int64(at) * f.cluster}); err != nil {
		return nil, err
	}
	f.mft = fsys.NewFile(metadata{vol}, f.recordSize, first)
	if err := f.openMFT(); err != nil {
		return nil, fmt.Errorf("open MFT: %w", err)
	}
	f.volume()
	f.log()
	return f, nil
}

// metadata reads by way of the volume's cache.
type metadata struct{ vol *fsys.Volume }

func (m metadata) ReadAt(p []byte, off int64) (int, error) {
	b, err := m.vol.Bytes(off, int64(len(p)))
	return copy(p, b), err
}

func (f *FS) openMFT() error {
	b, err := f.one(0)
	if err != nil {
		return err
	}
	r := &record{}
	if r.attrs, err = parse(b, nil); err != nil {
		return err
	}
	// Twice: where the MFT is in many pieces, those that its first pieces name.
	for range 2 {
		data, ok := r.find(typeData, "")
		if !ok || data.resident || data.flags&(compressed|encrypted) != 0 {
			return fsys.Corrupt("the MFT has no content")
		}
		runs, err := f.place(r, data)
		if err != nil {
			return err
		}
		f.mft = fsys.NewFile(metadata{f.vol}, data.size, runs)
		if r, err = f.record(0); err != nil {
			return err
		}
	}
	return nil
}

func (f *FS) volume() {
	r, err := f.record(volumeRecord)
	if err != nil {
		f.facts.Warnings = append(f.facts.Warnings, "$Volume cannot be read: "+err.Error())
		return
	}
	if a, ok := r.find(typeVolumeName, ""); ok && a.resident {
		f.facts.Label = text(a.value)
	}
	if a, ok := r.find(typeVolume, ""); ok && len(a.value) >= 12 && le.Uint16(a.value[10:])&1 != 0 {
		f.facts.Dirty = true
		f.facts.Warnings = append(f.facts.Warnings, "Windows marked it for chkdsk")
	}
}

// log looks whether $LogFile was closed.
func (f *FS) log() {
	r, err := f.record(logRecord)
	if err != nil {
		return
	}
	a, ok := r.find(typeData, "")
	if !ok || a.resident {
		return
	}
	file, err := f.file(r, a)
	if err != nil {
		return
	}
	page := int64(4096)
	newest, clean, found := uint64(0), true, false
	for k := range int64(2) {
		b := make([]byte, 4096)
		if _, err := file.ReadAt(b, k*page); err != nil || fixup(b, "RSTR") != nil {
			continue
		}
		if n := int64(le.Uint32(b[16:])); k == 0 && n >= 4096 && n <= 64<<10 {
			page = n
		}
		area := int(le.Uint16(b[24:]))
		if area+16 > len(b) {
			continue
		}
		if lsn := le.Uint64(b[area:]); !found || lsn > newest {
			newest, found = lsn, true
			clean = le.Uint16(b[area+12:]) == 0xFFFF || le.Uint16(b[area+14:])&2 != 0
		}
	}
	if !clean {
		f.facts.Dirty = true
		f.facts.Warnings = append(f.facts.Warnings,
			"it was in use when the image was taken, and its log is not replayed here: the last changes may be missing")
	}
}

// Facts is what the file system says of itself.
func (f *FS) Facts() fsys.Facts { return f.facts }

// Root is the root's record.
func (f *FS) Root() uint64 { return rootRecord }

func filetime(b []byte) time.Time {
	n := int64(le.Uint64(b)) - 116444736000000000 // 1601 to 1970, in 100 ns
	return time.Unix(n/1e7, n%1e7*100).UTC()
}

// Stat is what a file's record says. Modes are made up.
func (f *FS) Stat(id uint64) (fsys.Info, error) {
	r, err := f.record(id)
	if err != nil {
		return fsys.Info{}, err
	}
	info := fsys.Info{ID: id, Type: fsys.Regular, Mode: 0o644, Links: uint32(max(r.links, 1))}
	if r.dir {
		info.Type, info.Mode = fsys.Dir, 0o755
	}
	var flags uint32
	if a, ok := r.find(typeStandard, ""); ok && len(a.value) >= 36 {
		v := a.value
		info.Born, info.Modified, info.Changed, info.Accessed = filetime(v), filetime(v[8:]), filetime(v[16:]), filetime(v[24:])
		flags = le.Uint32(v[32:])
		for _, x := range []struct {
			bit  uint32
			name string
		}{{attrReadOnly, "read-only"}, {attrHidden, "hidden"}, {attrSystem, "system"}, {0x20, "archive"}, {0x200, "sparse"}, {0x400, "reparse"}, {0x800, "compressed"}, {0x4000, "encrypted"}} {
			if flags&x.bit != 0 {
				info.Flags = append(info.Flags, x.name)
			}
		}
		if flags&attrReadOnly != 0 && !r.dir {
			info.Mode = 0o444
		}
	}
	if a, ok := r.find(typeData, ""); ok && !r.dir {
		if info.Size = a.size; a.resident {
			info.Size = int64(len(a.value))
		}
		if flags&attrSystem != 0 {
			f.interix(r, a, &info)
		}
	}
	if tag, _, err := f.reparse(r); err == nil {
		switch tag {
		case reparseMount, reparseSymlink, reparseLinux:
			info.Type, info.Mode = fsys.Symlink, 0o777
		case reparseSocket:
			info.Type = fsys.Socket
		}
	}
	return info, nil
}

// interix recognises links and devices as ntfs-3g and Services for UNIX write
// them.
func (f *FS) interix(r *record, a attribute, info *fsys.Info) {
	if info.Size < 10 || info.Size > fsys.MaxSymlink {
		return
	}
	b, err := f.value(r, a)
	if err != nil {
		return
	}
	switch {
	case bytes.HasPrefix(b, []byte("IntxLNK\x01")):
		info.Type, info.Mode = fsys.Symlink, 0o777
		info.Size = int64(len(text(b[8:])))
	case len(b) == 24 && (bytes.HasPrefix(b, []byte("IntxCHR\x00")) || bytes.HasPrefix(b, []byte("IntxBLK\x00"))):
		info.Type = fsys.CharDevice
		if b[4] == 'B' {
			info.Type = fsys.BlockDevice
		}
		info.Major, info.Minor, info.Size = le.Uint32(b[8:]), le.Uint32(b[16:]), 0
	}
}

// reparse is the tag and the data of a reparse point, 0 where there is none.
func (f *FS) reparse(r *record) (uint32, []byte, error) {
	a, ok := r.find(typeReparse, "")
	if !ok {
		return 0, nil, nil
	}
	if !a.resident && a.size > fsys.MaxSymlink {
		return 0, nil, fsys.Corrupt("a reparse point of %d bytes", a.size)
	}
	b, err := f.value(r, a)
	if err != nil {
		return 0, nil, err
	}
	if len(b) < 8 {
		return 0, nil, fsys.Corrupt("a reparse point of %d bytes", len(b))
	}
	return le.Uint32(b), b[8:], nil
}

// ReadLink is the target of a link: as Windows writes it, with backslashes, for
// those that Windows made.
func (f *FS) ReadLink(id uint64) (string, error) {
	r, err := f.record(id)
	if err != nil {
		return "", err
	}
	tag, b, err := f.reparse(r)
	if err != nil {
		return "", err
	}
	head := 8
	switch tag {
	case 0:
		if a, ok := r.find(typeData, ""); ok && a.size <= fsys.MaxSymlink {
			if b, err := f.value(r, a); err == nil && bytes.HasPrefix(b, []byte("IntxLNK\x01")) {
				return text(b[8:]), nil
			}
		}
		return "", fmt.Errorf("record %d is not a link", id)
	case reparseLinux:
		if len(b) < 4 {
			return "", fsys.Corrupt("a link of %d bytes", len(b))
		}
		return string(b[4:]), nil
	case reparseSymlink:
		head = 12
	case reparseMount:
	default:
		return "", fmt.Errorf("record %d is not a link", id)
	}
	if len(b) < head {
		return "", fsys.Corrupt("a link of %d bytes", len(b))
	}
	for _, k := range []int{4, 0} { // what is shown, else what is meant
		at, n := head+int(le.Uint16(b[k:])), int(le.Uint16(b[k+2:]))
		if at+n > len(b) {
			return "", fsys.Corrupt("a link of %d bytes", len(b))
		}
		if n > 0 {
			return strings.TrimPrefix(text(b[at:at+n]), `\??\`), nil
		}
	}
	return "", fsys.Corrupt("a link without a target")
}

// Open is the content of a regular file.
func (f *FS) Open(id uint64) (fsys.File, error) { return f.OpenStream(id, "") }

// OpenStream is the content of a named stream of a file or directory.
func (f *FS) OpenStream(id uint64, name string) (fsys.File, error) {
	r, err := f.record(id)
	if err != nil {
		return nil, err
	}
	a, ok := r.find(typeData, name)
	if !ok && name != "" {
		return nil, fmt.Errorf("record %d has no stream %q", id, name)
	}
	if name == "" {
		if tag, _, err := f.reparse(r); err == nil {
			switch tag {
			case reparseWOF:
				return nil, fsys.Unsupported("a file compressed by the Windows Overlay Filter (compact)")
			case reparseDedup:
				return nil, fsys.Unsupported("a deduplicated file of Windows Server")
			}
		}
		if !ok {
			if r.dir {
				return nil, fmt.Errorf("record %d is not a regular file", id)
			}
			return fsys.BytesFile(nil, 0)
		}
	}
	file, err := f.file(r, a)
	if err != nil {
		return nil, fmt.Errorf("record %d: %w", id, err)
	}
	return file, nil
}

// Xattrs are the named streams of up to 64 KiB, as ntfs-3g shows them.
func (f *FS) Xattrs(id uint64) ([]fsys.Xattr, error) {
	r, err := f.record(id)
	if err != nil {
		return nil, err
	}
	var found []fsys.Xattr
	total := 0
	for _, a := range r.attrs {
		if a.kind != typeData || a.name == "" || !a.resident && (a.first != 0 || a.size > maxStreamXattr || a.flags&encrypted != 0) {
			continue
		}
		if r.id != rootRecord && a.name == "WofCompressedData" {
			continue
		}
		if len(found) >= fsys.MaxXattrs {
			break
		}
		v, err := f.value(r, a)
		if err != nil {
			return nil, err
		}
		if total += len(v); total > fsys.AllXattrs {
			return nil, fsys.Unsupported("attributes of more than %d bytes", fsys.AllXattrs)
		}
		found = append(found, fsys.Xattr{Name: "user." + a.name, Value: v})
	}
	return found, nil
}

// List reads a directory: the root of its index, and the blocks in use.
func (f *FS) List(dir uint64, yield func(fsys.Entry) bool) error {
	r, err := f.record(dir)
	if err != nil {
		return err
	}
	root, ok := r.find(typeIndexRoot, "$I30")
	if !r.dir || !ok || len(root.value) < 32 {
		return fmt.Errorf("record %d is not a directory", dir)
	}
	size := int64(le.Uint32(root.value[8:]))
	if more, err := entries(root.value[16:], yield); err != nil || !more {
		return err
	}
	index, ok := r.find(typeIndex, "$I30")
	if !ok {
		return nil
	}
	if size < 512 || size > 64<<10 || size&(size-1) != 0 {
		return fsys.Corrupt("directory %d has blocks of %d bytes", dir, size)
	}
	bits, ok := r.find(typeBitmap, "$I30")
	if !ok {
		return fsys.Corrupt("directory %d has no bitmap", dir)
	}
	used, err := f.value(r, bits)
	if err != nil {
		return err
	}
	file, err := f.file(r, index)
	if err != nil {
		return err
	}
	listed := int64(0)
	for n := int64(0); n < file.Size()/size && n/8 < int64(len(used)); n++ {
		if used[n/8]>>(n%8)&1 == 0 {
			continue
		}
		if listed += size; listed > f.vol.Size() {
			return fsys.Corrupt("directory %d is larger than the volume", dir)
		}
		b := make([]byte, size)
		if _, err := file.ReadAt(b, n*size); err != nil {
			return err
		}
		if err := fixup(b, "INDX"); err != nil {
			return fmt.Errorf("directory %d: %w", dir, err)
		}
		if more, err := entries(b[24:], yield); err != nil || !more {
			return err
		}
	}
	return nil
}

// entries reads a node of an index, from its header on.
func entries(b []byte, yield func(fsys.Entry) bool) (more bool, err error) {
	if len(b) < 16 {
		return false, fsys.Corrupt("a node of a directory is cut short")
	}
	at, end := int64(le.Uint32(b)), int64(le.Uint32(b[4:]))
	if at < 16 || end > int64(len(b)) || at > end {
		return false, fsys.Corrupt("a node of a directory from %d to %d", at, end)
	}
	for b = b[at:end]; len(b) >= 16; {
		n, key, flags := int(le.Uint16(b[8:])), int(le.Uint16(b[10:])), le.Uint16(b[12:])
		if n < 16 || n > len(b) || key > n-16 {
			return false, fsys.Corrupt("a directory entry of %d bytes", n)
		}
		if flags&2 != 0 {
			break
		}
		id := le.Uint64(b) & (1<<48 - 1)
		if k := b[16 : 16+key]; key >= 66 && k[65] != 2 && id >= firstUser {
			if 66+2*int(k[64]) > len(k) {
				return false, fsys.Corrupt("a name of %d characters", k[64])
			}
			e := fsys.Entry{Name: text(k[66 : 66+2*int(k[64])]), ID: id}
			if !yield(e) {
				return false, nil
			}
		}
		b = b[n:]
	}
	return true, nil
}
