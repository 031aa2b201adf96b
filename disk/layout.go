package disk

import (
	"cmp"
	"errors"
	"fmt"
	"io"
	"slices"
)

// Kinds of partition table.
const (
	TableGPT  = "gpt"
	TableMBR  = "mbr"
	TableNone = "none" // the whole disk is the volume, or nobody can tell
)

// Layout is how a disk is divided.
type Layout struct {
	Table      string      `json:"table"`
	SectorSize int         `json:"sector_size"`    // bytes per logical block address; 512 without a table
	GUID       string      `json:"guid,omitempty"` // of the disk; MBR: "0x" and its signature in hex
	Partitions []Partition `json:"partitions,omitempty"`
	Warnings   []string    `json:"warnings,omitempty"` // damage, contradictions, what was dropped; at most 64
}

// Partition is one that holds data: MBR extended partitions, which only contain
// others, are not listed.
type Partition struct {
	Number  int    `json:"number"` // from 1; MBR: 1…4 primary, from 5 logical
	Range   Range  `json:"range"`
	Type    string `json:"type"`           // GPT: GUID in upper case; MBR: "0x83"
	GUID    string `json:"guid,omitempty"` // of this partition; MBR: as Linux's PARTUUID, "1a2b3c4d-01"
	Name    string `json:"name,omitempty"` // GPT only; unprintable characters replaced
	Logical bool   `json:"logical,omitempty"`
}

// What a hostile table can make ReadLayout do is bounded by these.
const (
	maxWarnings   = 64
	maxLogical    = 256     // partitions in extended ones; Linux stops at 256 as well
	maxEntryBytes = 1 << 20 // GPT entry array: 8192 entries of 128 bytes
	maxEntrySize  = 4096
)

// ReadLayout reads the partition table of a disk of size bytes: GPT (UEFI
// specification 2.10, chapter 5) in sectors of 512 or 4096 bytes, from either
// copy, or MBR with logical partitions. Damaged and hostile tables give
// warnings, never an error; an error means that r could not be read.
//
// Partitions never overlap and never reach behind the disk: what does is cut or
// dropped with a warning; of two that overlap, the one that starts later is dropped.
func ReadLayout(r io.ReaderAt, size int64) (Layout, error) {
	l := reader{r: r, size: size, layout: Layout{Table: TableNone, SectorSize: SectorSize}}
	if size < SectorSize {
		return l.layout, nil
	}
	first := make([]byte, SectorSize)
	if err := l.read(first, 0); err != nil {
		return Layout{}, err
	}
	mbr := parseMBR(first)
	found, err := l.readGPT(first, mbr)
	if err == nil && !found {
		err = l.readMBR(mbr)
	}
	if err != nil {
		return Layout{}, err
	}
	l.dropOverlaps()
	return l.layout, nil
}

type reader struct {
	r      io.ReaderAt
	size   int64
	layout Layout
	muted  bool
}

// read fills p. A disk shorter than promised is an error of the reader, not of the table.
func (l *reader) read(p []byte, off int64) error {
	n, err := l.r.ReadAt(p, off)
	if n == len(p) {
		return nil
	}
	if err == nil || errors.Is(err, io.EOF) {
		err = io.ErrUnexpectedEOF
	}
	return fmt.Errorf("read partition table at offset %d: %w", off, err)
}

func (l *reader) warn(format string, args ...any) {
	switch {
	case len(l.layout.Warnings) < maxWarnings-1:
		l.layout.Warnings = append(l.layout.Warnings, fmt.Sprintf(format, args...))
	case !l.muted:
		l.muted = true
		l.layout.Warnings = append(l.layout.Warnings, "further warnings are left out")
	}
}

// add takes a partition from sectors first to last, both included. Numbers from
// the disk are compared before they are multiplied, so that nothing overflows.
func (l *reader) add(p Partition, first, last uint64) {
	sector := uint64(l.layout.SectorSize)
	sectors := uint64(l.size) / sector
	switch {
	case last < first:
		l.warn("partition %d ends before it starts: dropped", p.Number)
		return
	case first == 0:
		l.warn("partition %d starts where the partition table is: dropped", p.Number)
		return
	case first >= sectors:
		l.warn("partition %d starts behind the end of the disk: dropped", p.Number)
		return
	case last >= sectors:
		l.warn("partition %d reaches behind the end of the disk: cut", p.Number)
		last = sectors - 1
	}
	p.Range = Range{Offset: int64(first * sector), Length: int64((last - first + 1) * sector)}
	l.layout.Partitions = append(l.layout.Partitions, p)
}

func (l *reader) dropOverlaps() {
	parts := l.layout.Partitions
	slices.SortStableFunc(parts, func(a, b Partition) int {
		return cmp.Or(cmp.Compare(a.Range.Offset, b.Range.Offset), cmp.Compare(a.Number, b.Number))
	})
	kept := parts[:0]
	for _, p := range parts {
		if n := len(kept); n > 0 && p.Range.Offset < kept[n-1].Range.End() {
			l.warn("partition %d overlaps partition %d: dropped", p.Number, kept[n-1].Number)
			continue
		}
		kept = append(kept, p)
	}
	slices.SortFunc(kept, func(a, b Partition) int { return cmp.Compare(a.Number, b.Number) })
	l.layout.Partitions = kept
}
