package disk

import (
	"bytes"
	"encoding/binary"
	"fmt"
)

const (
	mbrTableAt     = 446
	mbrEntrySize   = 16
	mbrSignatureAt = 510
	mbrDiskIDAt    = 440

	mbrTypeProtective = 0xEE
)

type mbrEntry struct {
	boot, kind     byte
	start, sectors uint32
}

func (e mbrEntry) empty() bool    { return e.kind == 0 || e.sectors == 0 }
func (e mbrEntry) extended() bool { return e.kind == 0x05 || e.kind == 0x0F || e.kind == 0x85 }

func parseEntries(sector []byte) (entries [4]mbrEntry) {
	for i := range entries {
		b := sector[mbrTableAt+i*mbrEntrySize:]
		entries[i] = mbrEntry{boot: b[0], kind: b[4], start: binary.LittleEndian.Uint32(b[8:]), sectors: binary.LittleEndian.Uint32(b[12:])}
	}
	return entries
}

// masterBoot is what sector 0 says.
type masterBoot struct {
	entries    [4]mbrEntry
	diskID     uint32
	sane       bool // signature, boot flags, no file system's boot sector
	protective bool // sane, and names a GPT
}

func parseMBR(sector []byte) masterBoot {
	m := masterBoot{entries: parseEntries(sector), diskID: binary.LittleEndian.Uint32(sector[mbrDiskIDAt:])}
	if !hasBootSignature(sector) || bytes.HasPrefix(sector, []byte("LUKS\xba\xbe")) {
		return m
	}
	m.sane = true
	used := 0
	for _, e := range m.entries {
		if e.boot != 0 && e.boot != 0x80 {
			m.sane = false // text or code of a file system's boot sector
		}
		if !e.empty() {
			used++
			m.sane = m.sane && e.start != 0
			m.protective = m.protective || e.kind == mbrTypeProtective
		}
	}
	// Boot loaders keep the FAT parameters that they find, so those alone do not
	// disprove a table; those and no table at all do.
	m.sane = m.sane && (used > 0 || !isFileSystemBoot(sector))
	m.protective = m.protective && m.sane
	return m
}

func hasBootSignature(sector []byte) bool {
	return sector[mbrSignatureAt] == 0x55 && sector[mbrSignatureAt+1] == 0xAA
}

// isFileSystemBoot knows boot sectors of FAT, exFAT, NTFS and BitLocker by their names.
func isFileSystemBoot(sector []byte) bool {
	for _, at := range []int{3, 0x36, 0x52} {
		for _, name := range []string{"NTFS    ", "EXFAT   ", "-FVE-FS-", "FAT12   ", "FAT16   ", "FAT32   ", "FAT     "} {
			if bytes.HasPrefix(sector[at:], []byte(name)) {
				return true
			}
		}
	}
	return false
}

func (l *reader) readMBR(m masterBoot) error {
	if !m.sane {
		return nil
	}
	if err := l.guessMBRSectorSize(m); err != nil {
		return err
	}
	inDisk := 0
	for _, e := range m.entries {
		if !e.empty() && e.kind != mbrTypeProtective && int64(e.start) < l.size/int64(l.layout.SectorSize) {
			inDisk++
		}
	}
	if inDisk == 0 {
		for _, e := range m.entries {
			if !e.empty() && e.kind != mbrTypeProtective {
				l.warn("sector 0 looks like an MBR, but none of its partitions lies on the disk")
				break
			}
		}
		l.layout.SectorSize = SectorSize
		return nil
	}
	l.layout.Table = TableMBR
	l.layout.GUID = fmt.Sprintf("0x%08x", m.diskID)
	for i, e := range m.entries {
		if !e.empty() && !e.extended() && e.kind != mbrTypeProtective {
			l.addMBR(m, i+1, e, uint64(e.start))
		}
	}
	number := 5
	for i, e := range m.entries {
		if !e.empty() && e.extended() {
			if err := l.readExtended(m, i+1, e, &number); err != nil {
				return err
			}
		}
	}
	return nil
}

// guessMBRSectorSize: an MBR does not say which sectors it counts in, but the
// head of an extended partition is where only one size puts it.
func (l *reader) guessMBRSectorSize(m masterBoot) error {
	for _, e := range m.entries {
		if e.empty() || !e.extended() {
			continue
		}
		for _, size := range []int64{512, 4096} {
			at := int64(e.start) * size
			if at > l.size-SectorSize {
				continue
			}
			sector := make([]byte, SectorSize)
			if err := l.read(sector, at); err != nil {
				return err
			}
			if hasBootSignature(sector) {
				l.layout.SectorSize = int(size)
				return nil
			}
		}
	}
	return nil
}

func (l *reader) addMBR(m masterBoot, number int, e mbrEntry, first uint64) {
	l.add(Partition{
		Number:  number,
		Type:    fmt.Sprintf("0x%02x", e.kind),
		GUID:    fmt.Sprintf("%08x-%02x", m.diskID, number),
		Logical: number > 4,
	}, first, first+uint64(e.sectors)-1)
}

// readExtended follows the chain of extended boot records: in each, one entry
// is a logical partition, relative to the record, and one is the next record,
// relative to the whole extended partition.
func (l *reader) readExtended(m masterBoot, number int, whole mbrEntry, next *int) error {
	sectorSize := uint64(l.layout.SectorSize)
	begin, end := uint64(whole.start), uint64(whole.start)+uint64(whole.sectors)
	if sectors := uint64(l.size) / sectorSize; end > sectors {
		l.warn("extended partition %d reaches behind the end of the disk: cut", number)
		end = sectors
	}
	seen := map[uint64]bool{}
	sector := make([]byte, SectorSize)
	for at := begin; ; {
		if at < begin || at >= end {
			l.warn("extended partition %d: a boot record lies outside: the rest is dropped", number)
			return nil
		}
		if seen[at] {
			l.warn("extended partition %d: its boot records go in a circle: the rest is dropped", number)
			return nil
		}
		if len(seen) == maxLogical {
			l.warn("extended partition %d: more than %d boot records: the rest is dropped", number, maxLogical)
			return nil
		}
		seen[at] = true
		if err := l.read(sector, int64(at*sectorSize)); err != nil {
			return err
		}
		if !hasBootSignature(sector) {
			l.warn("extended partition %d: the boot record at sector %d has no signature: the rest is dropped", number, at)
			return nil
		}
		var link *mbrEntry
		logical := false
		for _, e := range parseEntries(sector) {
			switch {
			case e.empty():
			case e.extended():
				if link == nil {
					link = &e
				}
			case logical:
				l.warn("extended partition %d: the boot record at sector %d names a second partition: dropped", number, at)
			default:
				logical = true
				first := at + uint64(e.start)
				if e.start == 0 || first+uint64(e.sectors) > end {
					l.warn("logical partition %d lies not wholly inside extended partition %d", *next, number)
				}
				l.addMBR(m, *next, e, first)
				*next++
			}
		}
		if link == nil {
			return nil
		}
		at = begin + uint64(link.start)
	}
}
