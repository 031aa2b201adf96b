package format

import (
	"encoding/binary"
	"fmt"
)

const (
	segMagic = "LSSEGM01"
	segEnd   = "LSSEGEND"
	mapMagic = "LSMAPO01"
	mapEnd   = "LSMAPEND"
	mapEnd2  = "LSMAPEN2"

	// SegmentHeaderSize is the size of a segment's header: one page, so that extents are aligned.
	SegmentHeaderSize = 4096
	// MapHeaderSize is the size of a map object's header.
	MapHeaderSize = 64
	// FooterSize is the size of both footers.
	FooterSize = 40

	flagSealed     = 1
	flagReplica    = 2
	flagMapReplica = 1

	maxTOCExtents = 1 << 20
	maxTOCDisks   = 4096
	tocExtentSize = 48
)

// SegmentHeader is the first page of a segment or of a replica of one.
type SegmentHeader struct {
	Sealed  bool
	Replica bool
	ID      [IDSize]byte
	Machine [16]byte
}

// Encode gives SegmentHeaderSize bytes.
func (h SegmentHeader) Encode(p []byte) {
	p = p[:SegmentHeaderSize]
	clear(p)
	copy(p, segMagic)
	binary.LittleEndian.PutUint16(p[8:], 1)
	flags := uint16(0)
	if h.Sealed {
		flags |= flagSealed
	}
	if h.Replica {
		flags |= flagReplica
	}
	binary.LittleEndian.PutUint16(p[10:], flags)
	copy(p[16:], h.ID[:])
	copy(p[48:], h.Machine[:])
	binary.LittleEndian.PutUint32(p[4092:], CRC(p[:4092]))
}

// ParseSegmentHeader reads it.
func ParseSegmentHeader(p []byte) (h SegmentHeader, err error) {
	if len(p) < SegmentHeaderSize {
		return h, fmt.Errorf("segment header: %d bytes: %w", len(p), ErrCorrupt)
	}
	p = p[:SegmentHeaderSize]
	if string(p[:8]) != segMagic {
		return h, fmt.Errorf("segment header: no magic: %w", ErrCorrupt)
	}
	if binary.LittleEndian.Uint32(p[4092:]) != CRC(p[:4092]) {
		return h, fmt.Errorf("segment header: checksum: %w", ErrCorrupt)
	}
	if v := binary.LittleEndian.Uint16(p[8:]); v != 1 {
		return h, fmt.Errorf("segment header: version %d is %w", v, ErrVersion)
	}
	flags := binary.LittleEndian.Uint16(p[10:])
	if flags&^(flagSealed|flagReplica) != 0 {
		return h, fmt.Errorf("segment header: flags %#x are %w", flags, ErrVersion)
	}
	h.Sealed, h.Replica = flags&flagSealed != 0, flags&flagReplica != 0
	copy(h.ID[:], p[16:])
	copy(h.Machine[:], p[48:])
	return h, nil
}

// MapHeader is the head of a map object or of a replica of one.
type MapHeader struct {
	Version int // 1: without a page table, 2
	Replica bool
	ID      [IDSize]byte
	Machine [16]byte
}

// Encode gives MapHeaderSize bytes.
func (h MapHeader) Encode() []byte {
	p := make([]byte, MapHeaderSize)
	copy(p, mapMagic)
	binary.LittleEndian.PutUint16(p[8:], uint16(h.Version))
	if h.Replica {
		binary.LittleEndian.PutUint16(p[10:], flagMapReplica)
	}
	copy(p[12:], h.ID[:])
	copy(p[44:], h.Machine[:])
	binary.LittleEndian.PutUint32(p[60:], CRC(p[:60]))
	return p
}

// ParseMapHeader reads it.
func ParseMapHeader(p []byte) (h MapHeader, err error) {
	if len(p) < MapHeaderSize {
		return h, fmt.Errorf("map header: %d bytes: %w", len(p), ErrCorrupt)
	}
	p = p[:MapHeaderSize]
	if string(p[:8]) != mapMagic {
		return h, fmt.Errorf("map header: no magic: %w", ErrCorrupt)
	}
	if binary.LittleEndian.Uint32(p[60:]) != CRC(p[:60]) {
		return h, fmt.Errorf("map header: checksum: %w", ErrCorrupt)
	}
	v, f := binary.LittleEndian.Uint16(p[8:]), binary.LittleEndian.Uint16(p[10:])
	if v != 1 && v != 2 || f > flagMapReplica || v == 1 && f != 0 {
		return h, fmt.Errorf("map header: version %d, flags %#x are %w", v, f, ErrVersion)
	}
	h.Version, h.Replica = int(v), f != 0
	copy(h.ID[:], p[12:])
	copy(h.Machine[:], p[44:])
	return h, nil
}

// CRCs gathers the CRC table of a segment or map object as it is written.
type CRCs struct {
	Table []uint32
	size  int64 // bytes seen
	part  uint32
}

// Write takes the next bytes of the object.
func (c *CRCs) Write(p []byte) (int, error) {
	n := len(p)
	for len(p) > 0 {
		room := CRCChunk - int(c.size%CRCChunk)
		k := min(room, len(p))
		c.part = crcUpdate(c.part, p[:k])
		c.size += int64(k)
		p = p[k:]
		if c.size%CRCChunk == 0 {
			c.Table = append(c.Table, c.part)
			c.part = 0
		}
	}
	return n, nil
}

// Size is the number of bytes taken.
func (c *CRCs) Size() int64 { return c.size }

// Finish ends the last, shorter chunk and returns the table.
func (c *CRCs) Finish() []uint32 {
	if c.size%CRCChunk != 0 {
		c.Table = append(c.Table, c.part)
		c.part = 0
	}
	return c.Table
}

// Trailer is what follows the data of a segment (after its table of contents)
// or of a map object: the CRC table and the footer.
func trailer(magic string, first, second uint64, crcs []uint32) []byte {
	p := make([]byte, 0, len(crcs)*4+FooterSize)
	for _, c := range crcs {
		p = binary.LittleEndian.AppendUint32(p, c)
	}
	p = binary.LittleEndian.AppendUint64(p, first)
	if magic != mapEnd {
		p = binary.LittleEndian.AppendUint64(p, second)
	}
	p = binary.LittleEndian.AppendUint64(p, uint64(len(crcs)))
	p = append(p, magic...)
	p = binary.LittleEndian.AppendUint32(p, 0)
	return binary.LittleEndian.AppendUint32(p, CRC(p))
}

// SegmentTrailer is the CRC table and footer of a segment: data ends at toc
// (a multiple of PageSize), its table of contents is tocLen bytes.
func SegmentTrailer(toc, tocLen int64, crcs []uint32) []byte {
	return trailer(segEnd, uint64(toc), uint64(tocLen), crcs)
}

// MapTrailer is the CRC table and footer of a map object whose pages end at
// end and whose page table has tableLen bytes.
func MapTrailer(end, tableLen int64, crcs []uint32) []byte {
	return trailer(mapEnd2, uint64(end), uint64(tableLen), crcs)
}

// MapTrailer1 is that of a map object of version 1, which has no page table.
func MapTrailer1(end int64, crcs []uint32) []byte {
	return trailer(mapEnd, uint64(end), 0, crcs)
}

// mapFooterSize1 is the size of the footer of a map object of version 1.
const mapFooterSize1 = FooterSize - 8

// Footer is the parsed trailer.
type Footer struct {
	DataEnd int64 // segments: where the table of contents begins; maps: end of the pages
	TOCLen  int64 // of the table's frame; map objects of version 1: 0
	CRCs    []uint32
}

// footer finds out which footer the last bytes of an object are, and its size.
func footer(last []byte, segment bool) (size int, table bool, err error) {
	magic := ""
	if len(last) >= mapFooterSize1 {
		magic = string(last[len(last)-16 : len(last)-8])
	}
	switch {
	case magic == mapEnd && !segment:
		return mapFooterSize1, false, nil
	case magic != segEnd && segment || magic != mapEnd2 && !segment:
		return 0, false, fmt.Errorf("footer: no magic: %w", ErrCorrupt)
	case len(last) < FooterSize:
		return 0, false, fmt.Errorf("footer: object is too short: %w", ErrCorrupt)
	}
	return FooterSize, true, nil
}

// TrailerSize says how many bytes at the end of an object hold its trailer,
// given its last FooterSize bytes (or all if shorter).
func TrailerSize(last []byte, size int64, segment bool) (int64, error) {
	fs, _, err := footer(last, segment)
	if err != nil {
		return 0, err
	}
	n := binary.LittleEndian.Uint64(last[len(last)-24:])
	if n > uint64(size)/CRCChunk+1 {
		return 0, fmt.Errorf("footer: %d checksums: %w", n, ErrCorrupt)
	}
	return int64(n)*4 + int64(fs), nil
}

// ParseTrailer reads the trailer, whose size TrailerSize gave, of an object of size bytes.
func ParseTrailer(p []byte, size int64, segment bool) (f Footer, err error) {
	fs, table, err := footer(p, segment)
	if err != nil {
		return f, err
	}
	if binary.LittleEndian.Uint32(p[len(p)-4:]) != CRC(p[:len(p)-4]) {
		return f, fmt.Errorf("footer: checksum: %w", ErrCorrupt)
	}
	t := p[len(p)-fs:]
	dataEnd := binary.LittleEndian.Uint64(t)
	if table {
		tl := binary.LittleEndian.Uint64(t[8:])
		if tl > uint64(size) || tl == 0 && !segment {
			return f, fmt.Errorf("footer: table of contents: %w", ErrCorrupt)
		}
		f.TOCLen = int64(tl)
	}
	if dataEnd > uint64(size) || int64(dataEnd)+f.TOCLen+int64(len(p)) != size {
		return f, fmt.Errorf("footer: sizes do not add up: %w", ErrCorrupt)
	}
	f.DataEnd = int64(dataEnd)
	if segment && (f.DataEnd%PageSize != 0 || f.DataEnd < SegmentHeaderSize) || !segment && f.DataEnd < MapHeaderSize {
		return f, fmt.Errorf("footer: data ends at %d: %w", f.DataEnd, ErrCorrupt)
	}
	n := (len(p) - fs) / 4
	if int64(n) != (f.DataEnd+CRCChunk-1)/CRCChunk {
		return f, fmt.Errorf("footer: %d checksums: %w", n, ErrCorrupt)
	}
	f.CRCs = make([]uint32, n)
	for i := range f.CRCs {
		f.CRCs[i] = binary.LittleEndian.Uint32(p[i*4:])
	}
	return f, nil
}

// TOC is a segment's table of contents.
type TOC struct {
	Disks   []string
	Extents []TOCExtent
}

// TOCExtent is one extent of a segment.
type TOCExtent struct {
	Disk     uint16 // index into Disks
	Block    int64
	Position uint32 // in pages from the start of the segment
	Mask     uint16
	Tag      [TagSize]byte
	Digest   [16]byte // first half of the whole block's digest when it was written
}

// Encode gives the body of the table's frame.
func (t TOC) Encode() []byte {
	p := binary.LittleEndian.AppendUint32(nil, uint32(len(t.Disks)))
	for _, d := range t.Disks {
		p = binary.LittleEndian.AppendUint16(p, uint16(len(d)))
		p = append(p, d...)
	}
	p = binary.LittleEndian.AppendUint32(p, uint32(len(t.Extents)))
	for _, e := range t.Extents {
		p = binary.LittleEndian.AppendUint64(p, uint64(e.Disk)|uint64(e.Block)<<16)
		p = binary.LittleEndian.AppendUint32(p, e.Position)
		p = binary.LittleEndian.AppendUint16(p, e.Mask)
		p = append(p, 0, 0)
		p = append(p, e.Tag[:]...)
		p = append(p, e.Digest[:]...)
	}
	return p
}

// ParseTOC reads it and checks that extents lie between the header and end.
func ParseTOC(p []byte, end int64) (TOC, error) {
	t, rest, err := parseTOC(p, end)
	if err == nil && len(rest) != 0 {
		return TOC{}, fmt.Errorf("table of contents: number of extents: %w", ErrCorrupt)
	}
	return t, err
}

// parseTOC gives what is behind the extents as well.
func parseTOC(p []byte, end int64) (t TOC, rest []byte, err error) {
	bad := func(what string) (TOC, []byte, error) {
		return TOC{}, nil, fmt.Errorf("table of contents: %s: %w", what, ErrCorrupt)
	}
	if len(p) < 4 {
		return bad("too short")
	}
	nd := binary.LittleEndian.Uint32(p)
	p = p[4:]
	if nd > maxTOCDisks {
		return bad("too many disks")
	}
	for range nd {
		if len(p) < 2 {
			return bad("too short")
		}
		n := int(binary.LittleEndian.Uint16(p))
		if len(p) < 2+n {
			return bad("too short")
		}
		t.Disks = append(t.Disks, string(p[2:2+n]))
		p = p[2+n:]
	}
	if len(p) < 4 {
		return bad("too short")
	}
	ne := binary.LittleEndian.Uint32(p)
	p = p[4:]
	if ne > maxTOCExtents || int(ne)*tocExtentSize > len(p) {
		return bad("number of extents")
	}
	t.Extents = make([]TOCExtent, ne)
	for i := range t.Extents {
		e := &t.Extents[i]
		w := binary.LittleEndian.Uint64(p)
		e.Disk, e.Block = uint16(w), int64(w>>16)
		e.Position = binary.LittleEndian.Uint32(p[8:])
		e.Mask = binary.LittleEndian.Uint16(p[12:])
		if p[14] != 0 || p[15] != 0 {
			return bad("reserved bytes")
		}
		copy(e.Tag[:], p[16:])
		copy(e.Digest[:], p[32:])
		p = p[tocExtentSize:]
		if int(e.Disk) >= len(t.Disks) || e.Mask == 0 || e.Position == 0 ||
			(int64(e.Position)+int64(Pages(e.Mask)))*PageSize > end {
			return bad("an extent lies outside")
		}
	}
	return t, p, nil
}
