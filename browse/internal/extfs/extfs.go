// Package extfs reads ext2, ext3 and ext4 without a kernel, read-only. What a
// dirty journal holds is applied in memory, so that a crash-consistent image
// shows what a mount of it would show.
package extfs

import (
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"io"
	"time"

	"github.com/lockstep-backup/lockstep/browse/internal/fsys"
)

var le = binary.LittleEndian

const (
	featRecover    = 0x4
	featJournalDev = 0x8
	featMetaBG     = 0x10
	feat64bit      = 0x80
	featCsumSeed   = 0x2000
	featEncrypt    = 0x10000

	// what is read here, of s_feature_incompat
	supported = 0x2 | featRecover | featMetaBG | 0x40 | feat64bit | 0x100 | 0x200 | 0x400 | featCsumSeed | 0x4000 | 0x8000 | featEncrypt | 0x20000

	roSparseSuper = 0x1
	roHugeFile    = 0x8
	compatSparse2 = 0x200

	rootInode = 2
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// crc32c continues a checksum as ext4 and jbd2 do: no inversion at either end.
func crc32c(seed uint32, b []byte) uint32 { return ^crc32.Update(^seed, castagnoli, b) }

// FS is an open file system.
type FS struct {
	vol    *fsys.Volume
	facts  fsys.Facts
	blocks uint64 // of the file system
	bs     int64  // block size, bytes

	firstData, perGroup    uint64
	inodes, inodesPerGroup uint32
	inodeSize, descSize    int64
	incompat, roCompat     uint32
	compat, firstMetaBG    uint32
	journal                uint32
	backupGroups           [2]uint32
	groups                 uint64
	oneKClusters           bool
}

// Open reads the superblock of a volume of size bytes and applies its journal
// in memory. A file system with features that are not read here is refused by
// UnsupportedError.
func Open(r io.ReaderAt, size int64) (*FS, error) {
	vol := fsys.NewVolume(r, size)
	f, err := parse(vol)
	if err != nil {
		return nil, err
	}
	if f.incompat&featRecover == 0 || f.journal == 0 {
		return f, nil
	}
	facts := f.facts
	overlay, err := f.replay()
	if err != nil {
		f.facts.Warnings = append(f.facts.Warnings, "the journal is not applied: "+err.Error())
		return f, nil
	}
	if len(overlay.blocks) > 0 {
		overlay.r = vol
		// The journal may hold the superblock too.
		if f, err = parse(fsys.NewVolume(overlay, size)); err != nil {
			return nil, fmt.Errorf("after its journal was applied: %w", err)
		}
		facts.Label, facts.Warnings = f.facts.Label, f.facts.Warnings
	}
	f.facts = facts
	f.facts.Warnings = append(f.facts.Warnings, overlay.warnings...)
	f.facts.Replayed = true
	f.facts.Checkpoint = fmt.Sprintf("%d transactions, %d blocks", overlay.transactions, len(overlay.blocks))
	return f, nil
}

func parse(vol *fsys.Volume) (*FS, error) {
	sb, err := vol.Bytes(1024, 1024)
	if err != nil {
		return nil, fmt.Errorf("read superblock: %w", err)
	}
	if le.Uint16(sb[0x38:]) != 0xEF53 {
		return nil, fsys.Corrupt("no ext superblock")
	}
	f := &FS{
		vol: vol, blocks: uint64(le.Uint32(sb[4:])), firstData: uint64(le.Uint32(sb[0x14:])),
		perGroup: uint64(le.Uint32(sb[0x20:])), inodes: le.Uint32(sb), inodesPerGroup: le.Uint32(sb[0x28:]),
		inodeSize: 128, descSize: 32, journal: le.Uint32(sb[0xE0:]),
	}
	f.backupGroups = [2]uint32{le.Uint32(sb[0x24C:]), le.Uint32(sb[0x250:])}
	logBS, logCS := le.Uint32(sb[0x18:]), le.Uint32(sb[0x1C:])
	if logBS > 6 {
		return nil, fsys.Corrupt("blocks of 2^%d KiB", logBS)
	}
	f.bs = 1024 << logBS
	if le.Uint32(sb[0x4C:]) > 0 {
		f.compat, f.incompat, f.roCompat = le.Uint32(sb[0x5C:]), le.Uint32(sb[0x60:]), le.Uint32(sb[0x64:])
		f.inodeSize = int64(le.Uint16(sb[0x58:]))
	}
	if f.incompat&feat64bit != 0 {
		f.blocks |= uint64(le.Uint32(sb[0x150:])) << 32
		if n := int64(le.Uint16(sb[0xFE:])); n != 0 {
			f.descSize = n
		}
	}
	f.firstMetaBG = le.Uint32(sb[0x104:])
	f.oneKClusters = f.bs == 1024 && logCS > logBS && logCS < 32
	switch {
	case f.incompat&featJournalDev != 0:
		return nil, fsys.Unsupported("a journal of another ext file system")
	case f.incompat&^supported != 0:
		return nil, fsys.Unsupported("ext features %#x", f.incompat&^supported)
	case f.inodeSize < 128 || f.inodeSize > f.bs || f.inodeSize&(f.inodeSize-1) != 0:
		return nil, fsys.Corrupt("inodes of %d bytes", f.inodeSize)
	case f.descSize < 32 || f.descSize > f.bs || f.descSize&(f.descSize-1) != 0:
		return nil, fsys.Corrupt("group descriptors of %d bytes", f.descSize)
	case f.blocks > 1<<48:
		return nil, fsys.Corrupt("%d blocks", f.blocks)
	case f.perGroup == 0 || f.inodesPerGroup == 0 || f.firstData >= f.blocks:
		return nil, fsys.Corrupt("empty block groups")
	}
	f.groups = (f.blocks - f.firstData + f.perGroup - 1) / f.perGroup
	f.facts = fsys.Facts{
		Class: "ext2", Label: fsys.Text(sb[0x78 : 0x78+16]), UUID: formatUUID(sb[0x68 : 0x68+16]), Owners: true,
		Dirty: f.incompat&featRecover != 0,
	}
	if f.compat&4 != 0 {
		f.facts.Class = "ext3"
	}
	if f.incompat&(0x40|feat64bit|0x200|0x8000) != 0 {
		f.facts.Class = "ext4"
	}
	state := le.Uint16(sb[0x3A:])
	if f.facts.Class == "ext2" && state&1 == 0 {
		f.facts.Dirty = true
		f.facts.Warnings = append(f.facts.Warnings, "it was mounted when the image was taken and has no journal: files that were being written may be incomplete")
	}
	if state&2 != 0 {
		f.facts.Warnings = append(f.facts.Warnings, "the kernel had noted errors in it: run e2fsck after a restore")
	}
	if f.incompat&featRecover != 0 && f.journal == 0 {
		f.facts.Warnings = append(f.facts.Warnings, "its journal is on another device and is not applied")
	}
	if uint64(vol.Size()) < f.blocks*uint64(f.bs) {
		f.facts.Warnings = append(f.facts.Warnings, fmt.Sprintf("the volume is shorter than its file system: %d of %d bytes", vol.Size(), f.blocks*uint64(f.bs)))
	}
	return f, nil
}

func formatUUID(b []byte) string {
	return fmt.Sprintf("%x-%x-%x-%x-%x", b[:4], b[4:6], b[6:8], b[8:10], b[10:16])
}

// Facts is what the file system says of itself.
func (f *FS) Facts() fsys.Facts { return f.facts }

// Root is the root's inode.
func (f *FS) Root() uint64 { return rootInode }

// block is one block of metadata.
func (f *FS) block(n uint64) ([]byte, error) {
	if n == 0 || n >= f.blocks {
		return nil, fsys.Corrupt("block %d of %d", n, f.blocks)
	}
	return f.vol.Bytes(int64(n)*f.bs, f.bs)
}

// hasSuper says whether a block group begins with a copy of the superblock.
func (f *FS) hasSuper(g uint64) bool {
	switch {
	case g == 0:
		return true
	case f.compat&compatSparse2 != 0:
		return g == uint64(f.backupGroups[0]) || g == uint64(f.backupGroups[1])
	case g == 1 || f.roCompat&roSparseSuper == 0:
		return true
	}
	for _, p := range []uint64{3, 5, 7} {
		n := p
		for n < g {
			n *= p
		}
		if n == g {
			return true
		}
	}
	return false
}

// inodeTable is the block where the inodes of a group begin.
func (f *FS) inodeTable(g uint64) (uint64, error) {
	if g >= f.groups {
		return 0, fsys.Corrupt("block group %d of %d", g, f.groups)
	}
	perBlock := uint64(f.bs / f.descSize)
	d := g / perBlock
	var at uint64
	if f.incompat&featMetaBG == 0 || d < uint64(f.firstMetaBG) {
		at = f.firstData + 1 + d
		if f.oneKClusters && f.firstData == 0 {
			at++
		}
	} else {
		first := d * perBlock
		at = f.firstData + first*f.perGroup
		if f.hasSuper(first) {
			at++
		}
	}
	b, err := f.block(at)
	if err != nil {
		return 0, fmt.Errorf("read group descriptor: %w", err)
	}
	b = b[int64(g%perBlock)*f.descSize:]
	table := uint64(le.Uint32(b[8:]))
	if f.descSize >= 64 {
		table |= uint64(le.Uint32(b[0x28:])) << 32
	}
	return table, nil
}

// inode is an inode as it lies on disk, at least 128 bytes.
type inode struct {
	id  uint64
	raw []byte
}

func (i inode) mode() uint16   { return le.Uint16(i.raw) }
func (i inode) flags() uint32  { return le.Uint32(i.raw[0x20:]) }
func (i inode) body() []byte   { return i.raw[0x28 : 0x28+60] }
func (i inode) format() uint16 { return i.mode() & 0xF000 }

func (i inode) size() int64 {
	n := uint64(le.Uint32(i.raw[4:]))
	if i.format() == 0x8000 { // of directories of ext2 the upper half was something else
		n |= uint64(le.Uint32(i.raw[0x6C:])) << 32
	}
	return int64(n & (1<<63 - 1))
}

const (
	flagImmutable = 0x10
	flagAppend    = 0x20
	flagEncrypt   = 0x800
	flagHugeFile  = 0x40000
	flagExtents   = 0x80000
	flagVerity    = 0x100000
	flagInline    = 0x10000000
)

func (f *FS) inode(id uint64) (inode, error) {
	if id == 0 || id > uint64(f.inodes) {
		return inode{}, fsys.Corrupt("inode %d of %d", id, f.inodes)
	}
	table, err := f.inodeTable((id - 1) / uint64(f.inodesPerGroup))
	if err != nil {
		return inode{}, err
	}
	if table == 0 || table >= f.blocks {
		return inode{}, fsys.Corrupt("inode table at block %d of %d", table, f.blocks)
	}
	at := int64(table)*f.bs + int64((id-1)%uint64(f.inodesPerGroup))*f.inodeSize
	b, err := f.vol.Bytes(at, f.inodeSize)
	if err != nil {
		return inode{}, fmt.Errorf("read inode %d: %w", id, err)
	}
	i := inode{id: id, raw: b}
	if i.mode() == 0 {
		return inode{}, fsys.Corrupt("inode %d is not in use", id)
	}
	return i, nil
}

// extra is how much of the inode behind its first 128 bytes is in use.
func (i inode) extra() int {
	if len(i.raw) < 0x84 {
		return 0
	}
	n := int(le.Uint16(i.raw[0x80:]))
	if n < 4 || n > len(i.raw)-0x80 {
		return 0
	}
	return n
}

func (i inode) time(at, extraAt int) time.Time {
	sec := int64(int32(le.Uint32(i.raw[at:])))
	var nsec int64
	if 0x80+i.extra() >= extraAt+4 {
		x := le.Uint32(i.raw[extraAt:])
		sec += int64(x&3) << 32
		nsec = int64(x >> 2)
	}
	return time.Unix(sec, nsec).UTC()
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
	b := i.raw
	info := fsys.Info{
		ID: id, Type: types[i.format()], Mode: uint32(i.mode() & 0o7777), Size: i.size(), Links: uint32(le.Uint16(b[0x1A:])),
		UID:      uint32(le.Uint16(b[2:])) | uint32(le.Uint16(b[0x78:]))<<16,
		GID:      uint32(le.Uint16(b[0x18:])) | uint32(le.Uint16(b[0x7A:]))<<16,
		Accessed: i.time(8, 0x8C), Changed: i.time(0xC, 0x84), Modified: i.time(0x10, 0x88),
	}
	if 0x80+i.extra() >= 0x94 {
		info.Born = i.time(0x90, 0x94)
	}
	if info.Type == fsys.CharDevice || info.Type == fsys.BlockDevice {
		if old := le.Uint32(i.body()); old != 0 {
			info.Major, info.Minor = old>>8&0xFF, old&0xFF
		} else {
			n := le.Uint32(i.body()[4:])
			info.Major, info.Minor = n>>8&0xFFF, n&0xFF|n>>12&0xFFF00
		}
	}
	for _, x := range []struct {
		bit  uint32
		name string
	}{{flagImmutable, "immutable"}, {flagAppend, "append-only"}, {flagEncrypt, "encrypted"}, {flagVerity, "verity"}} {
		if i.flags()&x.bit != 0 {
			info.Flags = append(info.Flags, x.name)
		}
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
	case i.flags()&flagEncrypt != 0:
		return nil, fsys.Unsupported("a file encrypted by the file system (fscrypt)")
	}
	return f.content(i)
}

func (f *FS) content(i inode) (fsys.File, error) {
	if i.flags()&flagInline != 0 {
		b, err := f.inline(i)
		if err != nil {
			return nil, err
		}
		return fsys.BytesFile(b, i.size())
	}
	runs, err := f.runs(i)
	if err != nil {
		return nil, fmt.Errorf("inode %d: %w", i.id, err)
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
	case i.flags()&flagEncrypt != 0:
		return "", fsys.Unsupported("a link encrypted by the file system (fscrypt)")
	}
	size := i.size()
	if size > f.bs {
		return "", fsys.Corrupt("the target of link %d has %d bytes", id, size)
	}
	if i.flags()&flagInline == 0 && size < 60 && !f.hasBlocks(i) {
		return string(i.body()[:size]), nil
	}
	file, err := f.content(i)
	if err != nil {
		return "", err
	}
	b := make([]byte, size)
	if _, err := file.ReadAt(b, 0); err != nil && err != io.EOF {
		return "", err
	}
	return fsys.Text(b), nil // inline ones are counted with their zero byte by some kernels
}

// hasBlocks says whether the inode owns blocks besides that of its attributes.
func (f *FS) hasBlocks(i inode) bool {
	n := uint64(le.Uint32(i.raw[0x1C:])) | uint64(le.Uint16(i.raw[0x74:]))<<32
	if f.roCompat&roHugeFile == 0 {
		n &= 1<<32 - 1
	}
	own := uint64(0)
	if le.Uint32(i.raw[0x68:]) != 0 {
		own = uint64(f.bs) >> 9
		if f.oneKClusters || f.roCompat&0x200 != 0 {
			return n > own && i.flags()&flagExtents != 0 // a cluster, not a block
		}
	}
	return n > own
}
