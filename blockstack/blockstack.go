// Package blockstack names what lies on a device: file systems, swap, LVM and
// RAID members, partition tables, encryption headers, by their signatures. It
// opens and mounts nothing. Its invariant: it reads a fixed, small part of a
// device and believes no size that it finds there.
package blockstack

import (
	"bytes"
	"errors"
	"io"
	"slices"
)

// Classes. Encryption headers are named here only; diskcrypt reads them.
const (
	Ext2      = "ext2"
	Ext3      = "ext3"
	Ext4      = "ext4"
	ExtLog    = "ext-journal"
	XFS       = "xfs"
	Btrfs     = "btrfs"
	NTFS      = "ntfs"
	ExFAT     = "exfat"
	FAT12     = "fat12"
	FAT16     = "fat16"
	FAT32     = "fat32"
	ReFS      = "refs"
	Swap      = "swap"
	LVM2      = "lvm2-pv"
	MDRaid    = "md-raid"
	ISO9660   = "iso9660"
	SquashFS  = "squashfs"
	GPT       = "gpt"
	MBR       = "mbr"
	Empty     = "empty"
	LUKS1     = "luks1"
	LUKS2     = "luks2"
	BitLocker = "bitlocker"
	ToGo      = "bitlocker-to-go"
	CoreStore = "corestorage"
	APFS      = "apfs"
	Integrity = "dm-integrity"
)

// Signature is one thing recognised.
type Signature struct {
	Class string
	// Version tells variants apart: "1.2" of an md superblock, "vista" of BitLocker.
	Version string
	// Offset of the signature's structure on the device.
	Offset int64
	// Confirmed: a checksum over the structure was there and right. Without it
	// only the magic and the plausible fields speak for the class.
	Confirmed bool
	// Broken: the structure has a checksum and it is wrong.
	Broken bool
	UUID   string
	Label  string
}

// Sizes of what is read.
const (
	headBytes    = 128 << 10
	emptyBytes   = 1 << 20 // from the start
	emptySamples = 64      // pages over the rest
	pageBytes    = 4 << 10
	tailBytes    = 128 << 10
)

// device is what the recognisers look at: the first bytes, and the rest where
// the whole device is at hand.
type device struct {
	head []byte
	r    io.ReaderAt // nil: only head is known
	size int64       // of the device; len(head) where r is nil
}

// at returns n bytes at off, nil where the device does not have them.
func (d *device) at(off int64, n int) []byte {
	if off < 0 || off > d.size-int64(n) {
		return nil
	}
	if off+int64(n) <= int64(len(d.head)) {
		return d.head[off : off+int64(n)]
	}
	if d.r == nil || n > tailBytes {
		return nil
	}
	b := make([]byte, n)
	if m, err := d.r.ReadAt(b, off); m < n && err != nil {
		return nil
	}
	return b
}

// has reports whether magic lies at off.
func (d *device) has(off int64, magic string) bool {
	b := d.at(off, len(magic))
	return b != nil && string(b) == magic
}

type recogniser func(*device) []Signature

// recognisers are in the order of rank among equally certain signatures: what
// contains others comes before what it contains.
var recognisers = []recogniser{
	encryption, lvm2, mdRaid, integrity, ext, xfs, btrfs, bootSectors, swap, squashFS, iso9660, partitionTables,
}

// Identify names everything that a device of size bytes carries the signature
// of, the most credible first: stale signatures survive under newer ones. An
// empty result means that nothing was recognised. Empty is said of a device that
// is zero at its start, at its end and in samples between. It reads less than 2 MiB;
// the error is that of reading the first of them.
func Identify(r io.ReaderAt, size int64) ([]Signature, error) {
	d := &device{r: r, size: size, head: make([]byte, min(headBytes, max(size, 0)))}
	n, err := r.ReadAt(d.head, 0)
	if err != nil && !errors.Is(err, io.EOF) {
		return nil, err
	}
	d.head = d.head[:n]
	found := d.recognise()
	if len(found) == 0 && size > 0 && isZero(d.head) && d.emptyBehindHead() {
		found = append(found, Signature{Class: Empty})
	}
	return found, nil
}

// Class names what a device starts with, from its first bytes alone: "" for
// what is not recognised, Empty for zeroes. 128 KiB suffice for every class
// that does not keep its signature at the end.
func Class(first []byte) string {
	d := &device{head: first, size: int64(len(first))}
	if found := d.recognise(); len(found) > 0 {
		return found[0].Class
	}
	if len(first) > 0 && isZero(first) {
		return Empty
	}
	return ""
}

func (d *device) recognise() []Signature {
	var found []Signature
	for _, f := range recognisers {
		found = append(found, f(d)...)
	}
	slices.SortStableFunc(found, func(a, b Signature) int { return rank(a) - rank(b) })
	return found
}

// rank orders by certainty. A partition table is the last resort: boot sectors
// of file systems look like one, and what is in it is found by reading it.
func rank(s Signature) int {
	switch {
	case s.Broken:
		return 3
	case s.Class == MBR || s.Class == GPT:
		return 2
	case s.Confirmed:
		return 0
	}
	return 1
}

func (d *device) emptyBehindHead() bool {
	buf := make([]byte, 64<<10)
	for off := int64(len(d.head)); off < min(d.size, emptyBytes); off += int64(len(buf)) {
		b := d.at(off, int(min(int64(len(buf)), d.size-off)))
		if b == nil || !isZero(b) {
			return false
		}
	}
	for i := range int64(emptySamples) {
		off := (d.size - min(d.size, pageBytes)) / (emptySamples - 1) * i
		if i == emptySamples-1 {
			off = d.size - min(d.size, pageBytes)
		}
		if b := d.at(off, int(min(d.size, pageBytes))); b == nil || !isZero(b) {
			return false
		}
	}
	return true
}

func isZero(b []byte) bool { return len(bytes.TrimLeft(b, "\x00")) == 0 }
