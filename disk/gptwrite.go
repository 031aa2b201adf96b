package disk

import (
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"io"
	"math"
	"unicode/utf16"
)

// Partition types that Lockstep itself writes or has to know.
const (
	TypeEFISystem = "C12A7328-F81F-11D2-BA4B-00A0C93EC93B"
	TypeLinux     = "0FC63DAF-8483-4772-8E79-3D69D8477DE4"
	TypeLUKS      = "CA7D7CCB-63ED-4C53-861C-1742536059CC"
)

// UsableGPT is the range that partitions may take on a disk of size bytes with
// a GPT of 128 entries; empty when the disk is too small for one.
func UsableGPT(size int64, sectorSize int) Range {
	if sectorSize <= 0 {
		return Range{}
	}
	sector := int64(sectorSize)
	table := (gptEntryCount*gptEntrySize + sector - 1) / sector
	first, behind := 2+table, size/sector-1-table
	if behind <= first {
		return Range{}
	}
	return Range{Offset: first * sector, Length: (behind - first) * sector}
}

// WriteGPT writes a protective MBR and both copies of a GPT with 128 entries to
// a disk of size bytes in sectors of 512 or 4096. guid is the disk's. Of each
// partition Range, Type and GUID are used and must be given, Name may be, and
// Number 0 means "the next one". Nothing is written when the request is wrong.
func WriteGPT(w io.WriterAt, size int64, sectorSize int, guid string, parts []Partition) error {
	if sectorSize != 512 && sectorSize != 4096 {
		return fmt.Errorf("%w: sector size %d", errGPT, sectorSize)
	}
	usable := UsableGPT(size, sectorSize)
	if usable.Length == 0 {
		return fmt.Errorf("%w: a disk of %d bytes is too small", errGPT, size)
	}
	diskGUID, err := parseGUID(guid)
	if err != nil {
		return fmt.Errorf("%w: disk: %w", errGPT, err)
	}
	entries, err := gptEntries(usable, int64(sectorSize), parts)
	if err != nil {
		return err
	}
	sector := int64(sectorSize)
	sectors := uint64(size / sector)
	header := func(at, other, entriesAt uint64) []byte {
		b := make([]byte, sectorSize)
		le := binary.LittleEndian
		copy(b, gptSignature)
		le.PutUint32(b[8:], gptRevision)
		le.PutUint32(b[12:], gptHeaderSize)
		le.PutUint64(b[24:], at)
		le.PutUint64(b[32:], other)
		le.PutUint64(b[40:], uint64(usable.Offset/sector))
		le.PutUint64(b[48:], uint64(usable.End()/sector)-1)
		copy(b[56:], diskGUID[:])
		le.PutUint64(b[72:], entriesAt)
		le.PutUint32(b[80:], gptEntryCount)
		le.PutUint32(b[84:], gptEntrySize)
		le.PutUint32(b[88:], crc32.ChecksumIEEE(entries))
		le.PutUint32(b[16:], crc32.ChecksumIEEE(b[:gptHeaderSize]))
		return b
	}
	table := uint64(int64(len(entries)) / sector)
	for _, piece := range []struct {
		at   uint64
		data []byte
	}{ // the backup first: a torn write leaves one good copy
		{sectors - 1 - table, entries},
		{sectors - 1, header(sectors-1, 1, sectors-1-table)},
		{2, entries},
		{1, header(1, sectors-1, 2)},
		{0, protectiveMBR(sectors, sectorSize)},
	} {
		if _, err := w.WriteAt(piece.data, int64(piece.at)*sector); err != nil {
			return fmt.Errorf("%w: sector %d: %w", errGPT, piece.at, err)
		}
	}
	return nil
}

// gptEntries is the entry array, padded to whole sectors.
func gptEntries(usable Range, sector int64, parts []Partition) ([]byte, error) {
	entries := make([]byte, gptEntryCount*gptEntrySize)
	var taken Ranges
	next := 1
	used := map[int]bool{}
	for _, p := range parts {
		number := p.Number
		if number == 0 {
			number = next
		}
		if number < 1 || number > gptEntryCount || used[number] {
			return nil, fmt.Errorf("%w: partition number %d is out of range or taken", errGPT, number)
		}
		used[number], next = true, number+1
		here := Ranges{p.Range}
		switch {
		case p.Range.Length <= 0 || p.Range.Offset%sector != 0 || p.Range.Length%sector != 0:
			return nil, fmt.Errorf("%w: partition %d is not made of whole sectors", errGPT, number)
		case p.Range.Offset < usable.Offset || p.Range.Length > usable.Length || p.Range.End() > usable.End():
			return nil, fmt.Errorf("%w: partition %d lies outside of the usable area", errGPT, number)
		case len(taken.Intersect(here)) > 0:
			return nil, fmt.Errorf("%w: partition %d overlaps another", errGPT, number)
		}
		taken = taken.Add(p.Range)
		kind, err := parseGUID(p.Type)
		if err != nil {
			return nil, fmt.Errorf("%w: type of partition %d: %w", errGPT, number, err)
		}
		guid, err := parseGUID(p.GUID)
		if err != nil {
			return nil, fmt.Errorf("%w: partition %d: %w", errGPT, number, err)
		}
		name := utf16.Encode([]rune(p.Name))
		if len(name) > gptNameUnits {
			return nil, fmt.Errorf("%w: the name of partition %d is longer than %d UTF-16 units", errGPT, number, gptNameUnits)
		}
		e := entries[(number-1)*gptEntrySize:]
		copy(e, kind[:])
		copy(e[16:], guid[:])
		binary.LittleEndian.PutUint64(e[32:], uint64(p.Range.Offset/sector))
		binary.LittleEndian.PutUint64(e[40:], uint64(p.Range.End()/sector)-1)
		for i, u := range name {
			binary.LittleEndian.PutUint16(e[56+2*i:], u)
		}
	}
	return entries, nil
}

func protectiveMBR(sectors uint64, sectorSize int) []byte {
	b := make([]byte, sectorSize)
	e := b[mbrTableAt:]
	copy(e[1:], []byte{0x00, 0x02, 0x00}) // CHS of sector 1
	e[4] = mbrTypeProtective
	copy(e[5:], []byte{0xFF, 0xFF, 0xFF})
	binary.LittleEndian.PutUint32(e[8:], 1)
	binary.LittleEndian.PutUint32(e[12:], uint32(min(sectors-1, math.MaxUint32)))
	b[mbrSignatureAt], b[mbrSignatureAt+1] = 0x55, 0xAA
	return b
}
