// Package btrfs reads btrfs on one device, without a kernel, read-only. What
// was synced after the last commit, which is in the tree log, is reported as
// missing, not replayed.
package btrfs

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"io"
	"sync"
	"time"

	"github.com/lockstep-backup/lockstep/browse/internal/fsys"
)

var le = binary.LittleEndian

// Kinds of items, and trees and directories with fixed numbers.
const (
	typeInode     = 1
	typeXattr     = 24
	typeDirItem   = 84
	typeDirIndex  = 96
	typeExtent    = 108
	typeRoot      = 132
	typeRootRef   = 156
	typeChunk     = 228
	chunkObject   = 256
	topLevel      = 5
	rootDirectory = 6
	firstTree     = 256
)

const (
	superOffset  = 64 << 10
	superSize    = 4096
	sysChunks    = 811
	maxSysChunks = 2048

	incompatMetadataUUID = 0x400
	incompatKnown        = 0x10FFF
)

var incompatNames = map[uint64]string{0x1000: "zoned", 0x2000: "extent tree v2", 0x4000: "RAID stripe tree"}

// A file is known by its inode's number, with that of its subvolume above it
// unless that is the default one. A subvolume that a snapshot does not hold is
// an empty directory there; such a place has the highest bit.
const (
	inodeBits = 40
	treeBits  = 23
	placeBit  = 1 << 63
)

// FS is an open file system.
type FS struct {
	vol   *fsys.Volume
	facts fsys.Facts
	check func(b []byte) error // the checksum of what begins with it

	sector, nodeSize int64
	device           uint64
	owner            [16]byte // who all nodes say they belong to
	chunks           []chunk
	roots            tree
	def              uint64 // number of the default subvolume's tree

	mu    sync.Mutex
	trees map[uint64]subvolume
}

type subvolume struct {
	tree
	dir uint64 // its root directory
}

// Open reads the superblock of a volume of size bytes, and where its chunks
// and trees lie. Features that are not read here are refused by
// UnsupportedError.
func Open(r io.ReaderAt, size int64) (*FS, error) { return open(r, size, true) }

func open(r io.ReaderAt, size int64, check bool) (*FS, error) {
	f := &FS{vol: fsys.NewVolume(r, size), trees: map[uint64]subvolume{}}
	sb, err := f.vol.Bytes(superOffset, superSize)
	if err != nil {
		return nil, fmt.Errorf("read superblock: %w", err)
	}
	if string(sb[64:72]) != "_BHRfS_M" {
		return nil, fsys.Corrupt("no btrfs superblock")
	}
	if f.check, err = checksum(le.Uint16(sb[196:])); err != nil {
		return nil, err
	}
	if !check {
		f.check = func([]byte) error { return nil }
	}
	if err := f.check(sb); err != nil {
		return nil, fmt.Errorf("superblock: %w", err)
	}
	incompat := le.Uint64(sb[188:])
	for bit := uint64(1); bit != 0; bit <<= 1 {
		if name := incompatNames[bit]; incompat&bit != 0 && name != "" {
			return nil, fsys.Unsupported("btrfs feature %s", name)
		}
	}
	if incompat&^incompatKnown != 0 {
		return nil, fsys.Unsupported("btrfs features %#x", incompat&^incompatKnown)
	}
	f.sector, f.nodeSize, f.device = int64(le.Uint32(sb[144:])), int64(le.Uint32(sb[148:])), le.Uint64(sb[201:])
	if !size2(f.sector, 512) || !size2(f.nodeSize, 4096) || f.sector > f.nodeSize {
		return nil, fsys.Corrupt("sectors of %d bytes, nodes of %d", f.sector, f.nodeSize)
	}
	copy(f.owner[:], sb[32:48])
	if incompat&incompatMetadataUUID != 0 {
		copy(f.owner[:], sb[571:587])
	}
	f.facts = fsys.Facts{Class: "btrfs", Label: fsys.Text(sb[299:555]), UUID: formatUUID(sb[32:48]), Owners: true}
	if err := f.readChunks(sb); err != nil {
		return nil, fmt.Errorf("chunks: %w", err)
	}
	f.roots = tree{at: le.Uint64(sb[80:]), level: sb[198], generation: le.Uint64(sb[72:])}
	if f.def, err = f.defaultTree(); err != nil {
		return nil, fmt.Errorf("default subvolume: %w", err)
	}
	if _, err := f.subvolume(f.def); err != nil {
		return nil, err
	}
	f.warn(sb)
	return f, nil
}

func size2(n, least int64) bool { return n >= least && n <= 64<<10 && n&(n-1) == 0 }

func formatUUID(b []byte) string {
	return fmt.Sprintf("%x-%x-%x-%x-%x", b[:4], b[4:6], b[6:8], b[8:10], b[10:16])
}

func (f *FS) warn(sb []byte) {
	add := func(format string, args ...any) {
		f.facts.Warnings = append(f.facts.Warnings, fmt.Sprintf(format, args...))
	}
	if n := le.Uint64(sb[209:]); n > uint64(f.vol.Size()) {
		add("the volume is shorter than its file system: %d of %d bytes", f.vol.Size(), n)
	}
	if n := le.Uint64(sb[136:]); n > 1 {
		add("it lies on %d devices, of which this is one: files that lie elsewhere are unreadable", n)
	}
	if f.def != topLevel {
		add("its default subvolume is number %d: what is not below that is not shown", f.def)
	}
	if le.Uint64(sb[96:]) != 0 {
		f.facts.Dirty = true
		add("it was in use when the image was taken, and its tree log is not replayed here: what was synced after the last commit is missing")
	}
}

// defaultTree is the number of the subvolume that is mounted unless another is
// asked for.
func (f *FS) defaultTree() (uint64, error) {
	found := uint64(topLevel)
	err := f.items(f.roots, rootDirectory, typeDirItem, func(_ key, b []byte) (bool, error) {
		return eachName(b, func(n name) (bool, error) {
			if string(n.name) == "default" {
				found = n.to.object
				return false, nil
			}
			return true, nil
		})
	})
	return found, err
}

const maxTrees = 4096 // remembered

// subvolume finds a tree of files by its number.
func (f *FS) subvolume(number uint64) (subvolume, error) {
	f.mu.Lock()
	s, ok := f.trees[number]
	f.mu.Unlock()
	if ok {
		return s, nil
	}
	if number != topLevel && (number < firstTree || number >= 1<<treeBits) {
		return s, fsys.Unsupported("subvolume %d", number)
	}
	err := f.items(f.roots, number, typeRoot, func(_ key, b []byte) (bool, error) {
		if len(b) < 239 {
			return false, fsys.Corrupt("a root of %d bytes", len(b))
		}
		ok = true
		s = subvolume{tree{at: le.Uint64(b[176:]), level: b[238], generation: le.Uint64(b[160:])}, le.Uint64(b[168:])}
		return true, nil // the last one counts
	})
	if err == nil && !ok {
		err = fsys.Corrupt("it is not there")
	}
	if err != nil {
		return s, fmt.Errorf("subvolume %d: %w", number, err)
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if len(f.trees) >= maxTrees {
		clear(f.trees)
	}
	f.trees[number] = s
	return s, nil
}

// Facts is what the file system says of itself.
func (f *FS) Facts() fsys.Facts { return f.facts }

// Root is the root directory of the default subvolume.
func (f *FS) Root() uint64 { return f.trees0().dir }

func (f *FS) trees0() subvolume {
	s, _ := f.subvolume(f.def) // Open found it
	return s
}

// id is what a file of a subvolume is known by.
func (f *FS) id(tree, inode uint64) (uint64, error) {
	if inode >= 1<<inodeBits {
		return 0, fsys.Unsupported("inode %d", inode)
	}
	if tree == f.def {
		return inode, nil
	}
	return tree<<inodeBits | inode, nil
}

func (f *FS) split(id uint64) (tree, inode uint64) {
	tree, inode = id>>inodeBits, id&(1<<inodeBits-1)
	if tree == 0 {
		tree = f.def
	}
	return tree, inode
}

type inode struct {
	subvolume
	number uint64
	raw    []byte
}

func (i inode) format() uint32 { return le.Uint32(i.raw[52:]) & 0xF000 }
func (i inode) size() int64    { return int64(le.Uint64(i.raw[16:]) & (1<<63 - 1)) }
func (i inode) time(at int) time.Time {
	return time.Unix(int64(le.Uint64(i.raw[at:])), int64(le.Uint32(i.raw[at+8:]))).UTC()
}

func (f *FS) inode(id uint64) (i inode, err error) {
	number, n := f.split(id)
	if i.subvolume, err = f.subvolume(number); err != nil {
		return i, err
	}
	i.number = n
	err = f.items(i.tree, n, typeInode, func(_ key, b []byte) (bool, error) {
		if len(b) < 160 {
			return false, fsys.Corrupt("%d bytes", len(b))
		}
		i.raw = bytes.Clone(b)
		return false, nil
	})
	if err == nil && i.raw == nil {
		err = fsys.Corrupt("it is not there")
	}
	if err != nil {
		return i, fmt.Errorf("inode %d of subvolume %d: %w", n, number, err)
	}
	return i, nil
}

var types = map[uint32]fsys.Type{
	0x1000: fsys.Fifo, 0x2000: fsys.CharDevice, 0x4000: fsys.Dir, 0x6000: fsys.BlockDevice,
	0x8000: fsys.Regular, 0xA000: fsys.Symlink, 0xC000: fsys.Socket,
}

var flags = []struct {
	bit  uint64
	name string
}{{0x40, "immutable"}, {0x80, "append-only"}, {0x800, "compressed"}}

// Stat is what the inode says.
func (f *FS) Stat(id uint64) (fsys.Info, error) {
	if id&placeBit != 0 {
		return fsys.Info{ID: id, Type: fsys.Dir, Mode: 0o755, Links: 1}, nil
	}
	i, err := f.inode(id)
	if err != nil {
		return fsys.Info{}, err
	}
	info := fsys.Info{
		ID: id, Type: types[i.format()], Mode: le.Uint32(i.raw[52:]) & 0o7777, Size: i.size(),
		Links: le.Uint32(i.raw[40:]), UID: le.Uint32(i.raw[44:]), GID: le.Uint32(i.raw[48:]),
		Accessed: i.time(112), Changed: i.time(124), Modified: i.time(136), Born: i.time(148),
	}
	if info.Type == fsys.CharDevice || info.Type == fsys.BlockDevice {
		n := le.Uint64(i.raw[56:])
		info.Major, info.Minor = uint32(n>>20), uint32(n&0xFFFFF)
	}
	for _, k := range flags {
		if le.Uint64(i.raw[64:])&k.bit != 0 {
			info.Flags = append(info.Flags, k.name)
		}
	}
	return info, nil
}

// name is one name of a directory, or one attribute.
type name struct {
	to          key
	kind        byte
	name, value []byte
}

// eachName reads an item that holds names; those of one hash lie in one.
func eachName(b []byte, fn func(name) (bool, error)) (bool, error) {
	for len(b) > 0 {
		if len(b) < 30 {
			return false, fsys.Corrupt("a name is cut short")
		}
		v, n := int(le.Uint16(b[25:])), int(le.Uint16(b[27:]))
		if len(b) < 30+n+v {
			return false, fsys.Corrupt("a name is cut short")
		}
		more, err := fn(name{to: keyOf(b), kind: b[29] & 0x7F, name: b[30 : 30+n], value: b[30+n : 30+n+v]})
		if err != nil || !more {
			return false, err
		}
		b = b[30+n+v:]
	}
	return true, nil
}

var entryTypes = [...]fsys.Type{
	fsys.Unknown, fsys.Regular, fsys.Dir, fsys.CharDevice, fsys.BlockDevice, fsys.Fifo, fsys.Socket, fsys.Symlink,
}

// List reads a directory in the order in which its names came.
func (f *FS) List(dir uint64, yield func(fsys.Entry) bool) error {
	if dir&placeBit != 0 {
		return nil
	}
	i, err := f.inode(dir)
	switch {
	case err != nil:
		return err
	case i.format() != 0x4000:
		return fmt.Errorf("inode %d is not a directory", i.number)
	}
	number, _ := f.split(dir)
	return f.items(i.tree, i.number, typeDirIndex, func(_ key, b []byte) (bool, error) {
		return eachName(b, func(n name) (bool, error) {
			e := fsys.Entry{Name: string(n.name)}
			if int(n.kind) < len(entryTypes) {
				e.Type = entryTypes[n.kind]
			}
			var err error
			switch n.to.kind {
			case typeInode:
				e.ID, err = f.id(number, n.to.object)
			case typeRoot:
				e.ID, err = f.child(number, i.number, n)
			default:
				err = fsys.Corrupt("%.40q leads to an item of type %d", e.Name, n.to.kind)
			}
			if err != nil {
				return false, err
			}
			return yield(e), nil
		})
	})
}

// child is the root of a subvolume that has its place in a directory. It is
// there if its tree says so too: in a snapshot of that place it is not.
func (f *FS) child(parent, dir uint64, n name) (uint64, error) {
	number, there := n.to.object, false
	if number != topLevel && (number < firstTree || number >= 1<<treeBits) {
		return 0, fsys.Unsupported("subvolume %d", number)
	}
	at := key{parent, typeRootRef, number}
	err := f.each(f.roots, at, at, func(_ key, b []byte) (bool, error) {
		if len(b) >= 18 && len(b) >= 18+int(le.Uint16(b[16:])) {
			there = le.Uint64(b) == dir && bytes.Equal(b[18:18+int(le.Uint16(b[16:]))], n.name)
		}
		return false, nil
	})
	if err != nil {
		return 0, err
	}
	if !there {
		return placeBit | parent<<inodeBits | number, nil
	}
	s, err := f.subvolume(number)
	if err != nil {
		return 0, err
	}
	return f.id(number, s.dir)
}

// ReadLink is the target of a symbolic link.
func (f *FS) ReadLink(id uint64) (string, error) {
	i, err := f.inode(id)
	switch {
	case err != nil:
		return "", err
	case i.format() != 0xA000:
		return "", fmt.Errorf("inode %d is not a symbolic link", i.number)
	case i.size() > fsys.MaxSymlink:
		return "", fsys.Corrupt("the target of link %d has %d bytes", i.number, i.size())
	}
	file, err := f.content(i)
	if err != nil {
		return "", err
	}
	b := make([]byte, i.size())
	if len(b) > 0 {
		if _, err := file.ReadAt(b, 0); err != nil {
			return "", err
		}
	}
	return string(b), nil
}

// Open is the content of a regular file.
func (f *FS) Open(id uint64) (fsys.File, error) {
	i, err := f.inode(id)
	switch {
	case err != nil:
		return nil, err
	case i.format() != 0x8000:
		return nil, fmt.Errorf("inode %d is not a regular file", i.number)
	}
	return f.content(i)
}

// Xattrs are the extended attributes, access lists among them.
func (f *FS) Xattrs(id uint64) ([]fsys.Xattr, error) {
	if id&placeBit != 0 {
		return nil, nil
	}
	i, err := f.inode(id)
	if err != nil {
		return nil, err
	}
	var found []fsys.Xattr
	err = f.items(i.tree, i.number, typeXattr, func(_ key, b []byte) (bool, error) {
		return eachName(b, func(n name) (bool, error) {
			if len(found) >= fsys.MaxXattrs {
				return false, fsys.Unsupported("more than %d attributes of one file", fsys.MaxXattrs)
			}
			found = append(found, fsys.Xattr{Name: string(n.name), Value: bytes.Clone(n.value)})
			return true, nil
		})
	})
	if err != nil {
		return nil, fmt.Errorf("attributes of inode %d: %w", i.number, err)
	}
	return found, nil
}
