package blockstack

import (
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"hash/crc32"
	"strings"
)

var (
	le         = binary.LittleEndian
	be         = binary.BigEndian
	castagnoli = crc32.MakeTable(crc32.Castagnoli)
)

func one(s Signature) []Signature { return []Signature{s} }

// certain sets Confirmed or Broken by a checksum.
func (s Signature) certain(right bool) Signature {
	s.Confirmed, s.Broken = right, !right
	return s
}

func text(b []byte) string {
	b, _, _ = bytes.Cut(b, []byte{0})
	return printable(strings.TrimRight(string(b), " "))
}

func printable(s string) string {
	return strings.Map(func(r rune) rune {
		if r < 0x20 || r == 0x7f || r == 0xfffd || r >= 0x80 && r < 0xa0 {
			return '?'
		}
		return r
	}, s)
}

// uuid is the text form of 16 bytes in network order.
func uuid(b []byte) string {
	if isZero(b) {
		return ""
	}
	h := hex.EncodeToString(b)
	return h[:8] + "-" + h[8:12] + "-" + h[12:16] + "-" + h[16:20] + "-" + h[20:]
}

// guid is the text form of a Microsoft GUID: its first three fields are little-endian.
func guid(b []byte) string {
	return uuid([]byte{b[3], b[2], b[1], b[0], b[5], b[4], b[7], b[6], b[8], b[9], b[10], b[11], b[12], b[13], b[14], b[15]})
}

// ext tells ext2, 3 and 4 apart as blkid does: ext4 is what has a feature that
// the ext3 driver does not know, ext3 is ext2 with a journal.
// Linux Documentation/filesystems/ext4/super.rst.
func ext(d *device) []Signature {
	sb := d.at(1024, 1024)
	if sb == nil || le.Uint16(sb[56:]) != 0xEF53 {
		return nil
	}
	compat, incompat, roCompat := le.Uint32(sb[92:]), le.Uint32(sb[96:]), le.Uint32(sb[100:])
	if le.Uint32(sb[24:]) > 6 { // log block size
		return nil
	}
	s := Signature{Class: Ext2, Offset: 1024, UUID: uuid(sb[104:120]), Label: text(sb[120:136])}
	const (
		journal        = 0x4
		journalDevice  = 0x8
		ext3Incompat   = 0x2 | 0x4 | 0x10 // filetype, recover, meta_bg
		ext3ROCompat   = 0x1 | 0x2 | 0x4  // sparse_super, large_file, btree_dir
		metadataCsum   = 0x400            // ro_compat
		checksumOffset = 0x3FC            // crc32c of all before it
	)
	switch {
	case incompat&journalDevice != 0:
		s.Class = ExtLog
	case incompat&^ext3Incompat != 0 || roCompat&^ext3ROCompat != 0:
		s.Class = Ext4
	case compat&journal != 0:
		s.Class = Ext3
	}
	if roCompat&metadataCsum != 0 {
		return one(s.certain(^crc32.Checksum(sb[:checksumOffset], castagnoli) == le.Uint32(sb[checksumOffset:])))
	}
	return one(s)
}

// xfs: version 5 has a CRC-32C over the superblock's sector.
func xfs(d *device) []Signature {
	if !d.has(0, "XFSB") {
		return nil
	}
	sb := d.at(0, 512)
	if sb == nil {
		return nil
	}
	s := Signature{Class: XFS, UUID: uuid(sb[32:48]), Label: text(sb[108:120])}
	sector := int(be.Uint16(sb[102:]))
	if be.Uint16(sb[100:])&0xf == 5 && sector >= 512 && sector <= 32<<10 {
		if sb = bytes.Clone(d.at(0, sector)); sb != nil {
			want := le.Uint32(sb[224:])
			clear(sb[224:228])
			return one(s.certain(crc32.Checksum(sb, castagnoli) == want))
		}
	}
	return one(s)
}

func btrfs(d *device) []Signature {
	const offset = 0x10000
	if !d.has(offset+0x40, "_BHRfS_M") {
		return nil
	}
	sb := d.at(offset, 4096)
	if sb == nil {
		return nil
	}
	s := Signature{Class: Btrfs, Offset: offset, UUID: uuid(sb[0x20:0x30]), Label: text(sb[0x12b : 0x12b+256])}
	if le.Uint16(sb[0xc4:]) == 0 { // CRC-32C; other kinds are left unconfirmed
		return one(s.certain(crc32.Checksum(sb[0x20:], castagnoli) == le.Uint32(sb)))
	}
	return one(s)
}

// bootSectors recognises the file systems that start with a BIOS parameter
// block: NTFS, exFAT, FAT, ReFS.
func bootSectors(d *device) []Signature {
	b := d.at(0, 512)
	if b == nil {
		return nil
	}
	switch string(b[3:11]) {
	case "NTFS    ":
		if sane := powerOfTwo(uint64(le.Uint16(b[11:]))); sane && le.Uint64(b[40:]) > 0 {
			return one(Signature{Class: NTFS, UUID: strings.ToUpper(hex.EncodeToString(reversed(b[72:80])))})
		}
		return nil
	case "EXFAT   ":
		s := Signature{Class: ExFAT, UUID: volumeSerial(b[100:104])}
		shift := uint(b[108])
		if shift < 9 || shift > 12 {
			return one(s)
		}
		if region := d.at(0, 12<<shift); region != nil {
			return one(s.certain(exFATChecksum(region[:11<<shift]) == le.Uint32(region[11<<shift:])))
		}
		return one(s)
	case "ReFS\x00\x00\x00\x00":
		return one(Signature{Class: ReFS})
	}
	return fat(b)
}

// exFATChecksum is the boot checksum of the exFAT specification, 3.4: over the
// first eleven sectors without VolumeFlags and PercentInUse.
func exFATChecksum(b []byte) (sum uint32) {
	for i, c := range b {
		if i == 106 || i == 107 || i == 112 {
			continue
		}
		sum = sum<<31 | sum>>1
		sum += uint32(c)
	}
	return sum
}

// fat tells the widths apart by the number of clusters, as Microsoft's
// specification has it, and not by the text in the boot sector.
func fat(b []byte) []Signature {
	sector := uint64(le.Uint16(b[11:]))
	perCluster := uint64(b[13])
	reserved := uint64(le.Uint16(b[14:]))
	tables := uint64(b[16])
	rootEntries := uint64(le.Uint16(b[17:]))
	if b[510] != 0x55 || b[511] != 0xaa || b[0] != 0xeb && b[0] != 0xe9 ||
		sector < 512 || sector > 4096 || !powerOfTwo(sector) || perCluster == 0 || !powerOfTwo(perCluster) ||
		reserved == 0 || tables == 0 || tables > 4 || b[21] < 0xf0 && b[21] != 0 {
		return nil
	}
	total := uint64(le.Uint16(b[19:]))
	if total == 0 {
		total = uint64(le.Uint32(b[32:]))
	}
	tableSize, at := uint64(le.Uint16(b[22:])), 39
	if tableSize == 0 {
		tableSize, at = uint64(le.Uint32(b[36:])), 67
	}
	used := reserved + tables*tableSize + (rootEntries*32+sector-1)/sector
	if total <= used || tableSize == 0 {
		return nil
	}
	s := Signature{Class: FAT32}
	switch clusters := (total - used) / perCluster; {
	case at == 67 && rootEntries == 0:
	case clusters < 4085:
		s.Class = FAT12
	default:
		s.Class = FAT16
	}
	if b[at-1] == 0x29 || b[at-1] == 0x28 {
		s.UUID, s.Label = volumeSerial(b[at:at+4]), text(b[at+4:at+15])
		if s.Label == "NO NAME" {
			s.Label = ""
		}
	}
	return one(s)
}

func volumeSerial(b []byte) string {
	h := strings.ToUpper(hex.EncodeToString(reversed(b)))
	return h[:4] + "-" + h[4:]
}

func reversed(b []byte) []byte {
	out := make([]byte, len(b))
	for i, c := range b {
		out[len(b)-1-i] = c
	}
	return out
}

func powerOfTwo(n uint64) bool { return n > 0 && n&(n-1) == 0 }

// swap: the magic lies at the end of the first page, of whatever size that is.
func swap(d *device) []Signature {
	for page := int64(4096); page <= 64<<10; page *= 2 {
		if d.has(page-10, "SWAPSPACE2") {
			b := d.at(1024, 1024)
			return one(Signature{Class: Swap, Version: "2", Offset: page - 10, UUID: uuid(b[12:28]), Label: text(b[28:44])})
		}
		if d.has(page-10, "SWAP-SPACE") {
			return one(Signature{Class: Swap, Version: "1", Offset: page - 10})
		}
	}
	return nil
}

func squashFS(d *device) []Signature {
	b := d.at(0, 96)
	if b == nil || string(b[:4]) != "hsqs" || le.Uint16(b[28:]) != 4 || !powerOfTwo(uint64(le.Uint32(b[12:]))) {
		return nil
	}
	return one(Signature{Class: SquashFS, Version: "4"})
}

// iso9660: ECMA-119, primary volume descriptor in sector 16.
func iso9660(d *device) []Signature {
	const offset = 32 << 10
	if !d.has(offset, "\x01CD001") {
		return nil
	}
	b := d.at(offset, 2048)
	if b == nil {
		return nil
	}
	return one(Signature{Class: ISO9660, Offset: offset, Label: text(b[40:72])})
}

// partitionTables recognises a table without reading it (disk.ReadLayout does).
func partitionTables(d *device) []Signature {
	for _, lba := range []int64{512, 4096} {
		b := d.at(lba, 512)
		if b == nil || string(b[:8]) != "EFI PART" {
			continue
		}
		size := le.Uint32(b[12:])
		if size < 92 || size > 512 {
			return one(Signature{Class: GPT, Offset: lba, Broken: true})
		}
		h := bytes.Clone(b[:size])
		want := le.Uint32(h[16:])
		clear(h[16:20])
		return one(Signature{Class: GPT, Offset: lba, UUID: guid(b[56:72])}.certain(crc32.ChecksumIEEE(h) == want))
	}
	b := d.at(0, 512)
	if b == nil || b[510] != 0x55 || b[511] != 0xaa {
		return nil
	}
	used := 0
	for i := range 4 {
		e := b[446+16*i:][:16]
		if e[0] != 0 && e[0] != 0x80 {
			return nil
		}
		if e[4] != 0 && le.Uint32(e[12:]) > 0 {
			used++
		}
	}
	if used == 0 {
		return nil
	}
	return one(Signature{Class: MBR})
}
