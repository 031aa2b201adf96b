package blockstack

import (
	"bytes"
	"fmt"
	"hash/crc32"
)

// BitLocker's GUIDs as they lie in boot sectors.
var (
	guidBitLocker    = []byte{0x3b, 0xd6, 0x67, 0x49, 0x29, 0x2e, 0xd8, 0x4a, 0x83, 0x99, 0xf6, 0xa3, 0x39, 0xe3, 0xd0, 0x01}
	guidBitLockerEOW = []byte{0x3b, 0x4d, 0xa8, 0x92, 0x80, 0xdd, 0x0e, 0x4d, 0x9e, 0x4e, 0xb1, 0xe3, 0x28, 0x4e, 0xae, 0xd8}
)

// encryption recognises the headers of encrypted volumes by their magic.
func encryption(d *device) []Signature {
	b := d.at(0, 512)
	if b == nil {
		return nil
	}
	switch {
	case string(b[:6]) == "LUKS\xba\xbe" && be.Uint16(b[6:]) == 1:
		return one(Signature{Class: LUKS1, UUID: text(b[168:208])})
	case string(b[:6]) == "LUKS\xba\xbe" && be.Uint16(b[6:]) == 2:
		return one(Signature{Class: LUKS2, UUID: text(b[168:208]), Label: text(b[24:72])})
	case string(b[:3]) == "\xeb\x52\x90" && string(b[3:11]) == "-FVE-FS-":
		return one(Signature{Class: BitLocker, Version: "vista"})
	case string(b[3:11]) == "-FVE-FS-":
		s := Signature{Class: BitLocker}
		if bytes.Contains(b, guidBitLockerEOW) {
			s.Version = "encrypt-on-write"
		} else if !bytes.Contains(b, guidBitLocker) {
			s.Version = "no metadata guid"
		}
		return one(s)
	case bytes.Equal(b[424:440], guidBitLocker), bytes.Equal(b[424:440], guidBitLockerEOW):
		// The boot sector is that of an ordinary FAT32, so that old Windows shows a reader.
		return one(Signature{Class: ToGo})
	case string(b[88:90]) == "CS" && le.Uint16(b[10:]) == 0x10:
		s := Signature{Class: CoreStore, UUID: uuid(b[304:320])}
		return one(s.certain(^crc32.Checksum(b[8:], castagnoli) == le.Uint32(b)))
	case string(b[32:36]) == "NXSB":
		s := Signature{Class: APFS, UUID: uuid(b[72:88])}
		if size := int(le.Uint32(b[36:])); size >= 4096 && size <= 64<<10 {
			if block := d.at(0, size); block != nil {
				return one(s.certain(fletcher64(block[8:]) == le.Uint64(block)))
			}
		}
		return one(s)
	}
	return nil
}

// fletcher64 is the checksum of APFS objects (Apple File System Reference, "Objects").
func fletcher64(b []byte) uint64 {
	const mod = 0xFFFFFFFF
	var lo, hi uint64
	for i := 0; i+4 <= len(b); i += 4 {
		lo = (lo + uint64(le.Uint32(b[i:]))) % mod
		hi = (hi + lo) % mod
	}
	c1 := mod - (lo+hi)%mod
	c2 := mod - (lo+c1)%mod
	return c2<<32 | c1
}

func integrity(d *device) []Signature {
	if d.has(0, "integrt\x00") {
		return one(Signature{Class: Integrity})
	}
	return nil
}

// lvm2 looks for the label in the first four sectors; its CRC has a starting
// value of its own and no final inversion.
func lvm2(d *device) []Signature {
	for sector := int64(0); sector < 4; sector++ {
		b := d.at(sector*512, 512)
		if b == nil || string(b[:8]) != "LABELONE" || string(b[24:32]) != "LVM2 001" {
			continue
		}
		s := Signature{Class: LVM2, Offset: sector * 512}
		if header := le.Uint32(b[20:]); header <= 512-32 {
			s.UUID = lvmUUID(b[header : header+32])
		}
		right := le.Uint64(b[8:]) == uint64(sector) && lvmCRC(b[20:]) == le.Uint32(b[16:])
		return one(s.certain(right))
	}
	return nil
}

func lvmCRC(b []byte) uint32 { return ^crc32.Update(^uint32(0xF597A6CF), crc32.IEEETable, b) }

// lvmUUID groups 32 characters the way LVM prints them.
func lvmUUID(b []byte) string {
	s := printable(string(b))
	if len(s) != 32 {
		return ""
	}
	return s[:6] + "-" + s[6:10] + "-" + s[10:14] + "-" + s[14:18] + "-" + s[18:22] + "-" + s[22:26] + "-" + s[26:]
}

// mdRaid looks where the kernel's md keeps its superblock: at the start or
// 4 KiB into it (1.1, 1.2), or at the end (1.0, 0.90), where the start is what
// the array holds and must not be taken for the device itself.
func mdRaid(d *device) []Signature {
	const magic = 0xA92B4EFC
	sectors := d.size / 512
	places := []struct {
		version string
		offset  int64
	}{{"1.1", 0}, {"1.2", 4096}, {"1.0", ((sectors - 16) &^ 7) * 512}, {"0.90", d.size&^0xffff - 0x10000}}
	var found []Signature
	for i, p := range places {
		if d.r == nil && i > 1 {
			break
		}
		b := d.at(p.offset, 4096)
		if b == nil || le.Uint32(b) != magic {
			continue
		}
		s := Signature{Class: MDRaid, Version: p.version, Offset: p.offset}
		switch major := le.Uint32(b[4:]); {
		case p.version == "0.90" && major == 0:
			s.UUID = uuid(append(append([]byte{}, b[20:24]...), b[52:64]...))
			found = append(found, s.certain(mdOldSum(b)))
		case p.version != "0.90" && major == 1:
			s.UUID, s.Label = uuid(b[16:32]), text(b[32:64])
			found = append(found, s.certain(mdSum(b)))
		}
	}
	return found
}

// mdSum is the checksum of a version-1 superblock: 32-bit words added, the
// carries folded, the field itself as zero.
func mdSum(b []byte) bool {
	devices := int(le.Uint32(b[220:]))
	if devices > (len(b)-256)/2 {
		return false
	}
	b = bytes.Clone(b[:256+2*devices])
	want := le.Uint32(b[216:])
	clear(b[216:220])
	var sum uint64
	for ; len(b) >= 4; b = b[4:] {
		sum += uint64(le.Uint32(b))
	}
	if len(b) == 2 {
		sum += uint64(le.Uint16(b))
	}
	return uint32(sum)+uint32(sum>>32) == want
}

// mdOldSum is that of the 0.90 superblock, whose sum is at word 38.
func mdOldSum(b []byte) bool {
	b = bytes.Clone(b)
	want := le.Uint32(b[152:])
	clear(b[152:156])
	var sum uint64
	for ; len(b) >= 4; b = b[4:] {
		sum += uint64(le.Uint32(b))
	}
	return uint32(sum)+uint32(sum>>32) == want
}

// String is for logs and messages: "md-raid 1.2".
func (s Signature) String() string {
	if s.Version == "" {
		return s.Class
	}
	return fmt.Sprintf("%s %s", s.Class, s.Version)
}
