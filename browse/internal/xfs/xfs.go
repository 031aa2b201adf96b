// Package xfs reads XFS, versions 4 and 5, without a kernel, read-only. A
// dirty log is reported, not replayed.
package xfs

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/lockstep-backup/lockstep/browse/internal/fsys"
)

var be = binary.BigEndian

const (
	incompatFtype       = 0x1
	incompatBigtime     = 0x8
	incompatNeedsRepair = 0x10
	incompatKnown       = 0x1FF

	formatDev     = 0
	formatLocal   = 1
	formatExtents = 2
	formatBtree   = 3
)

// FS is an open file system.
type FS struct {
	vol   *fsys.Volume
	facts fsys.Facts

	bs, inodeSize, dirSize int64
	blocks, agBlocks       uint64
	agCount                uint64
	agBlockLog, inopLog    uint
	root                   uint64
	v5, ftype              bool
}

// Open reads the superblock of a volume of size bytes and looks where its log
// ends. Features that are not read here are refused by UnsupportedError.
func Open(r io.ReaderAt, size int64) (*FS, error) {
	vol := fsys.NewVolume(r, size)
	sb, err := vol.Bytes(0, 512)
	if err != nil {
		return nil, fmt.Errorf("read superblock: %w", err)
	}
	if string(sb[:4]) != "XFSB" {
		return nil, fsys.Corrupt("no XFS superblock")
	}
	f := &FS{
		vol: vol, bs: int64(be.Uint32(sb[4:])), blocks: be.Uint64(sb[8:]), root: be.Uint64(sb[56:]),
		agBlocks: uint64(be.Uint32(sb[84:])), agCount: uint64(be.Uint32(sb[88:])), inodeSize: int64(be.Uint16(sb[104:])),
		inopLog: uint(sb[123]), agBlockLog: uint(sb[124]),
	}
	version := be.Uint16(sb[100:]) & 0xF
	f.v5 = version == 5
	f.ftype = be.Uint32(sb[200:])&0x200 != 0
	dirLog := uint(sb[192])
	switch {
	case version != 4 && version != 5:
		return nil, fsys.Unsupported("XFS version %d", version)
	case f.bs < 512 || f.bs > 64<<10 || f.bs&(f.bs-1) != 0 || dirLog > 7 || f.bs<<dirLog > 64<<10:
		return nil, fsys.Corrupt("blocks of %d bytes, of directories 2^%d times that", f.bs, dirLog)
	case f.inodeSize < 256 || f.inodeSize > 2048 || f.inodeSize > f.bs || f.inodeSize&(f.inodeSize-1) != 0 || f.inodeSize<<f.inopLog != f.bs:
		return nil, fsys.Corrupt("inodes of %d bytes", f.inodeSize)
	case f.agBlocks == 0 || f.agCount == 0 || f.agBlockLog > 31 || f.agBlocks > 1<<f.agBlockLog || f.blocks > 1<<54 || f.blocks > f.agBlocks*f.agCount:
		return nil, fsys.Corrupt("%d allocation groups of %d blocks", f.agCount, f.agBlocks)
	}
	f.dirSize = f.bs << dirLog
	f.facts = fsys.Facts{Class: "xfs", Label: fsys.Text(sb[108:120]), UUID: formatUUID(sb[32:48]), Owners: true}
	if f.v5 {
		incompat := be.Uint32(sb[216:])
		if incompat&^incompatKnown != 0 {
			return nil, fsys.Unsupported("XFS features %#x", incompat&^incompatKnown)
		}
		f.ftype = incompat&incompatFtype != 0
		if incompat&incompatNeedsRepair != 0 {
			f.facts.Warnings = append(f.facts.Warnings, "it is marked as in need of xfs_repair")
		}
	}
	if uint64(size)/uint64(f.bs) < f.blocks {
		f.facts.Warnings = append(f.facts.Warnings, fmt.Sprintf("the volume is shorter than its file system: %d of %d blocks", size/f.bs, f.blocks))
	}
	if start := be.Uint64(sb[48:]); start == 0 {
		f.facts.Warnings = append(f.facts.Warnings, "its log is on another device: whether it was clean is not known")
	} else if clean, err := f.logClean(start, int64(be.Uint32(sb[96:]))); err != nil {
		f.facts.Warnings = append(f.facts.Warnings, "its log cannot be read: "+err.Error())
	} else if !clean {
		f.facts.Dirty = true
		f.facts.Warnings = append(f.facts.Warnings,
			"it was in use when the image was taken, and its log is not replayed here: the last changes may be missing, and files changed then may be unreadable")
	}
	return f, nil
}

func formatUUID(b []byte) string {
	return fmt.Sprintf("%x-%x-%x-%x-%x", b[:4], b[4:6], b[6:8], b[8:10], b[10:16])
}

// Facts is what the file system says of itself.
func (f *FS) Facts() fsys.Facts { return f.facts }

// Root is the root's inode.
func (f *FS) Root() uint64 { return f.root }

// at is where a block with a number of the form (group, block in it) lies.
func (f *FS) at(n uint64) (int64, error) {
	group, block := n>>f.agBlockLog, n&(1<<f.agBlockLog-1)
	if group >= f.agCount || block >= f.agBlocks || group*f.agBlocks+block >= f.blocks {
		return 0, fsys.Corrupt("block %d of group %d", block, group)
	}
	return int64(group*f.agBlocks+block) * f.bs, nil
}

// logClean says whether the last record of the log is that of an unmount.
func (f *FS) logClean(start uint64, blocks int64) (bool, error) {
	base, err := f.at(start)
	if err != nil {
		return false, err
	}
	sectors := blocks * f.bs / 512
	if sectors < 2 || base+sectors*512 > f.vol.Size() {
		return false, fsys.Corrupt("log of %d blocks", blocks)
	}
	sector := func(n int64) ([]byte, error) { return f.vol.Bytes(base+n*512, 512) }
	cycle := func(n int64) (uint32, error) {
		b, err := sector(n)
		if err != nil {
			return 0, err
		}
		if be.Uint32(b) == 0xFEEDBABE {
			return be.Uint32(b[4:]), nil
		}
		return be.Uint32(b), nil
	}
	first, err := cycle(0)
	if err != nil {
		return false, err
	}
	last, err := cycle(sectors - 1)
	if err != nil {
		return false, err
	}
	if first == 0 {
		return true, nil // never written
	}
	head := sectors
	if first != last {
		low, high := int64(0), sectors-1 // low has the first cycle, high has not
		for high-low > 1 {
			mid := (low + high) / 2
			c, err := cycle(mid)
			if err != nil {
				return false, err
			}
			if c == first {
				low = mid
			} else {
				high = mid
			}
		}
		head = high
	}
	// A record has 256 KiB at most; the one of an unmount two sectors.
	for n := head - 1; n >= 0 && n > head-1-1024; n-- {
		b, err := sector(n)
		if err != nil {
			return false, err
		}
		if be.Uint32(b) != 0xFEEDBABE {
			continue
		}
		if be.Uint32(b[40:]) != 1 { // operations
			return false, nil
		}
		headers := int64(1)
		if size := int64(be.Uint32(b[320:])); be.Uint32(b[8:])&2 != 0 && size > 32<<10 && size <= 256<<10 {
			headers = (size + 32<<10 - 1) / (32 << 10)
		}
		op, err := sector((n + headers) % sectors)
		if err != nil {
			return false, err
		}
		return op[9]&0x20 != 0, nil
	}
	return false, nil
}

type inode struct {
	id  uint64
	raw []byte
	v3  bool
}

func (f *FS) inode(id uint64) (inode, error) {
	at, err := f.at(id >> f.inopLog)
	if err != nil {
		return inode{}, fmt.Errorf("inode %d: %w", id, err)
	}
	b, err := f.vol.Bytes(at+int64(id&(1<<f.inopLog-1))*f.inodeSize, f.inodeSize)
	if err != nil {
		return inode{}, fmt.Errorf("inode %d: %w", id, err)
	}
	i := inode{id: id, raw: b, v3: b[4] == 3}
	switch {
	case be.Uint16(b) != 0x494E || b[4] == 0 || b[4] > 3:
		return inode{}, fsys.Corrupt("inode %d is none", id)
	case i.v3 && be.Uint64(b[152:]) != id:
		return inode{}, fsys.Corrupt("inode %d says it is %d", id, be.Uint64(b[152:]))
	case be.Uint16(b[2:]) == 0:
		return inode{}, fsys.Corrupt("inode %d is not in use", id)
	case i.coreSize()+i.forkOffset() > len(b):
		return inode{}, fsys.Corrupt("inode %d has its attributes at %d", id, i.forkOffset())
	}
	return i, nil
}

func (i inode) format() uint16  { return be.Uint16(i.raw[2:]) & 0xF000 }
func (i inode) forkOffset() int { return int(i.raw[82]) * 8 }
func (i inode) flags() uint16   { return be.Uint16(i.raw[90:]) }
func (i inode) size() int64     { return int64(be.Uint64(i.raw[56:]) & (1<<63 - 1)) }

func (i inode) coreSize() int {
	if i.v3 {
		return 176
	}
	return 100
}

func (i inode) flags2() uint64 {
	if i.v3 {
		return be.Uint64(i.raw[120:])
	}
	return 0
}

// fork is what is behind the core: the data's part, or the attributes'.
type fork struct {
	format byte
	raw    []byte
	count  uint64 // extents
}

func (i inode) data() fork {
	k := fork{format: i.raw[5], raw: i.raw[i.coreSize():], count: uint64(be.Uint32(i.raw[76:]))}
	if i.flags2()&0x10 != 0 {
		k.count = be.Uint64(i.raw[24:])
	}
	if n := i.forkOffset(); n != 0 {
		k.raw = k.raw[:n]
	}
	return k
}

func (i inode) attributes() (fork, bool) {
	if i.forkOffset() == 0 {
		return fork{}, false
	}
	k := fork{format: i.raw[83], raw: i.raw[i.coreSize()+i.forkOffset():], count: uint64(be.Uint16(i.raw[80:]))}
	if i.flags2()&0x10 != 0 {
		k.count = uint64(be.Uint32(i.raw[76:]))
	}
	return k, true
}

func (i inode) time(at int) time.Time {
	if i.flags2()&0x8 != 0 {
		n := be.Uint64(i.raw[at:])
		return time.Unix(int64(n/1e9)-1<<31, int64(n%1e9)).UTC()
	}
	return time.Unix(int64(int32(be.Uint32(i.raw[at:]))), int64(be.Uint32(i.raw[at+4:]))).UTC()
}

var types = map[uint16]fsys.Type{
	0x1000: fsys.Fifo, 0x2000: fsys.CharDevice, 0x4000: fsys.Dir, 0x6000: fsys.BlockDevice,
	0x8000: fsys.Regular, 0xA000: fsys.Symlink, 0xC000: fsys.Socket,
}

// Stat is what the inode says.
func (f *FS) Stat(id uint64) (fsys.Info, error) {
	i, err := f.inode(id)
	if err != nil {
		return fsys.Info{}, err
	}
	info := fsys.Info{
		ID: id, Type: types[i.format()], Mode: uint32(be.Uint16(i.raw[2:]) & 0o7777), Size: i.size(),
		UID: be.Uint32(i.raw[8:]), GID: be.Uint32(i.raw[12:]), Links: be.Uint32(i.raw[16:]),
		Accessed: i.time(32), Modified: i.time(40), Changed: i.time(48),
	}
	if i.raw[4] == 1 {
		info.Links = uint32(be.Uint16(i.raw[6:]))
	}
	if i.v3 {
		info.Born = i.time(144)
	}
	if k := i.data(); k.format == formatDev && len(k.raw) >= 4 {
		n := be.Uint32(k.raw)
		info.Major, info.Minor = n>>18, n&0x3FFFF
	}
	if i.flags()&0x8 != 0 {
		info.Flags = append(info.Flags, "immutable")
	}
	if i.flags()&0x10 != 0 {
		info.Flags = append(info.Flags, "append-only")
	}
	return info, nil
}

// Open is the content of a regular file.
func (f *FS) Open(id uint64) (fsys.File, error) {
	i, err := f.inode(id)
	switch {
	case err != nil:
		return nil, err
	case i.format() != 0x8000:
		return nil, fmt.Errorf("inode %d is not a regular file", id)
	case i.flags()&1 != 0:
		return nil, fsys.Unsupported("a file on a realtime device")
	}
	runs, err := f.runs(i.data())
	if err != nil {
		return nil, fmt.Errorf("inode %d: %w", id, err)
	}
	return fsys.NewFile(f.vol, i.size(), runs), nil
}

// ReadLink is the target of a symbolic link.
func (f *FS) ReadLink(id uint64) (string, error) {
	i, err := f.inode(id)
	switch {
	case err != nil:
		return "", err
	case i.format() != 0xA000:
		return "", fmt.Errorf("inode %d is not a symbolic link", id)
	}
	size, k := i.size(), i.data()
	if size > 1024 {
		return "", fsys.Corrupt("the target of link %d has %d bytes", id, size)
	}
	if k.format == formatLocal {
		if size > int64(len(k.raw)) {
			return "", fsys.Corrupt("the target of link %d has %d bytes", id, size)
		}
		return string(k.raw[:size]), nil
	}
	runs, err := f.runs(k)
	if err != nil {
		return "", err
	}
	var target []byte
	for _, r := range runs {
		b, err := f.vol.Bytes(r.From, min(r.Length, 4096))
		if err != nil {
			return "", err
		}
		if f.v5 {
			if len(b) < 56 || string(b[:4]) != "XSLM" {
				return "", fsys.Corrupt("the target of link %d is not where it should be", id)
			}
			b = b[56:]
		}
		target = append(target, b[:min(int64(len(b)), size-int64(len(target)))]...)
	}
	if int64(len(target)) < size {
		return "", fsys.Corrupt("the target of link %d is cut short", id)
	}
	return string(target), nil
}

// runs is where a fork's content lies. What is allocated and not yet written
// is a hole.
func (f *FS) runs(k fork) (fsys.Runs, error) {
	m := mapping{f: f}
	var err error
	switch k.format {
	case formatExtents:
		if k.count > uint64(len(k.raw)/16) {
			return nil, fsys.Corrupt("%d extents in %d bytes", k.count, len(k.raw))
		}
		err = m.records(k.raw[:k.count*16])
	case formatBtree:
		err = m.root(k.raw)
	default:
		err = fsys.Corrupt("content of format %d", k.format)
	}
	return m.runs, err
}

type mapping struct {
	f     *FS
	runs  fsys.Runs
	nodes int64
}

func (m *mapping) records(b []byte) error {
	for ; len(b) >= 16; b = b[16:] {
		hi, lo := be.Uint64(b), be.Uint64(b[8:])
		offset, count := hi&(1<<63-1)>>9, lo&(1<<21-1)
		start := hi&0x1FF<<43 | lo>>21
		if hi>>63 != 0 {
			continue // allocated ahead
		}
		from, err := m.f.at(start)
		if err != nil {
			return err
		}
		if count > m.f.agBlocks || offset > 1<<54/uint64(m.f.bs)*64 {
			return fsys.Corrupt("%d blocks of a file at %d", count, offset)
		}
		if err := m.runs.Add(fsys.Run{At: int64(offset) * m.f.bs, Length: int64(count) * m.f.bs, From: from}); err != nil {
			return err
		}
	}
	return nil
}

func (m *mapping) root(b []byte) error {
	if len(b) < 4 {
		return fsys.Corrupt("no room for a tree")
	}
	level, count := int(be.Uint16(b)), int(be.Uint16(b[2:]))
	most := (len(b) - 4) / 16
	if level == 0 || level > 8 || count > most {
		return fsys.Corrupt("tree of level %d with %d records at its root", level, count)
	}
	return m.children(b[4+8*most:], count, level-1)
}

func (m *mapping) children(pointers []byte, count, level int) error {
	for k := range count {
		if err := m.node(be.Uint64(pointers[8*k:]), level); err != nil {
			return err
		}
	}
	return nil
}

func (m *mapping) node(n uint64, level int) error {
	// Each is a block of its own: more than the volume has are some again and again.
	if most := min(fsys.MaxNodes, m.f.vol.Size()/m.f.bs); m.nodes >= most {
		return fsys.Corrupt("more than %d blocks say where one file lies", most)
	}
	m.nodes++
	at, err := m.f.at(n)
	if err != nil {
		return err
	}
	b, err := m.f.vol.Bytes(at, m.f.bs)
	if err != nil {
		return err
	}
	magic, head := "BMAP", 24
	if m.f.v5 {
		magic, head = "BMA3", 72
	}
	count := int(be.Uint16(b[6:]))
	if string(b[:4]) != magic || int(be.Uint16(b[4:])) != level || count > (len(b)-head)/16 {
		return fsys.Corrupt("block %d is no tree of level %d", n, level)
	}
	if level == 0 {
		return m.records(b[head : head+16*count])
	}
	return m.children(b[head+8*((len(b)-head)/16):], count, level-1)
}

var entryTypes = [...]fsys.Type{
	fsys.Unknown, fsys.Regular, fsys.Dir, fsys.CharDevice, fsys.BlockDevice, fsys.Fifo, fsys.Socket, fsys.Symlink,
}

// Directories' names end here; behind it is what finds them by hash.
const leafOffset = 1 << 35

// List reads a directory: its data, not its index.
func (f *FS) List(dir uint64, yield func(fsys.Entry) bool) error {
	i, err := f.inode(dir)
	switch {
	case err != nil:
		return err
	case i.format() != 0x4000:
		return fmt.Errorf("inode %d is not a directory", dir)
	}
	k := i.data()
	if k.format == formatLocal {
		return f.shortEntries(k.raw, yield)
	}
	runs, err := f.runs(k)
	if err != nil {
		return fmt.Errorf("inode %d: %w", dir, err)
	}
	file := fsys.NewFile(f.vol, leafOffset, runs)
	for off, listed := int64(0), int64(0); ; off += f.dirSize {
		start, _ := file.NextData(off)
		if off = start / f.dirSize * f.dirSize; off >= leafOffset {
			return nil
		}
		if listed += f.dirSize; listed > f.vol.Size() {
			return fsys.Corrupt("directory %d is larger than the volume", dir)
		}
		b := make([]byte, f.dirSize)
		if _, err := file.ReadAt(b, off); err != nil && !errors.Is(err, io.EOF) {
			return err
		}
		if more, err := f.entries(b, yield); err != nil || !more {
			return err
		}
	}
}

func (f *FS) entry(id uint64, name, kind []byte) fsys.Entry {
	e := fsys.Entry{Name: string(name), ID: id}
	if f.ftype && len(kind) > 0 && int(kind[0]) < len(entryTypes) {
		e.Type = entryTypes[kind[0]]
	}
	return e
}

// shortEntries reads a directory that lies in its inode.
func (f *FS) shortEntries(b []byte, yield func(fsys.Entry) bool) error {
	cut := fsys.Corrupt("a directory in an inode is cut short")
	if len(b) < 6 {
		return cut
	}
	count, size := int(b[0]), 4
	if b[1] > 0 {
		size = 8
	}
	if len(b) < 2+size {
		return cut
	}
	b = b[2+size:]
	kind := 0
	if f.ftype {
		kind = 1
	}
	for range count {
		if len(b) < 3 || len(b) < 3+int(b[0])+kind+size {
			return cut
		}
		n := int(b[0])
		name, rest := b[3:3+n], b[3+n:]
		id := uint64(0)
		for _, x := range rest[kind : kind+size] {
			id = id<<8 | uint64(x)
		}
		if !yield(f.entry(id, name, rest[:kind])) {
			return nil
		}
		b = rest[kind+size:]
	}
	return nil
}

// entries reads one block of a directory.
func (f *FS) entries(b []byte, yield func(fsys.Entry) bool) (more bool, err error) {
	head, end, tail := 16, len(b), 2
	switch string(b[:4]) {
	case "XD2D":
	case "XD2B":
		end = -1
	case "XDD3":
		head = 64
	case "XDB3":
		head, end = 64, -1
	default:
		return false, fsys.Corrupt("no block of a directory")
	}
	if end < 0 { // the index follows in the same block
		count := int64(be.Uint32(b[len(b)-8:]))
		if count > int64(len(b)-8-head)/8 {
			return false, fsys.Corrupt("an index of %d entries in a block of %d bytes", count, len(b))
		}
		end = len(b) - 8 - int(count)*8
	}
	if f.ftype {
		tail = 3
	}
	for b = b[head:end]; len(b) >= 8; {
		if be.Uint16(b) == 0xFFFF {
			n := int(be.Uint16(b[2:]))
			if n < 8 || n > len(b) {
				return false, fsys.Corrupt("free space of %d bytes in a directory", n)
			}
			b = b[n:]
			continue
		}
		if len(b) < 12 {
			return false, fsys.Corrupt("a directory entry is cut short")
		}
		length := int(b[8])
		n := (9 + length + tail + 7) &^ 7
		if n > len(b) {
			return false, fsys.Corrupt("a directory entry has a name of %d bytes", length)
		}
		name := b[9 : 9+length]
		if string(name) != "." && string(name) != ".." {
			if !yield(f.entry(be.Uint64(b), name, b[9+length:])) {
				return false, nil
			}
		}
		b = b[n:]
	}
	return true, nil
}
