package repository

import (
	"encoding/binary"
	"fmt"

	"github.com/lockstep-backup/lockstep/disk"
	"github.com/lockstep-backup/lockstep/repository/format"
)

// headerBody begins the body of a header copy: number of ranges, file size, ranges.
func headerBody(ranges []disk.Range, size, total int64) []byte {
	body := make([]byte, 0, 12+12*len(ranges)+int(total))
	body = binary.LittleEndian.AppendUint32(body, uint32(len(ranges)))
	body = binary.LittleEndian.AppendUint64(body, uint64(size))
	for _, g := range ranges {
		body = binary.LittleEndian.AppendUint64(body, uint64(g.Offset))
		body = binary.LittleEndian.AppendUint32(body, uint32(g.Length))
	}
	return body
}

// parseHeader reads a header copy's body; it takes every number as hostile.
func parseHeader(p []byte) (*Header, error) {
	bad := func(what string) (*Header, error) {
		return nil, fmt.Errorf("header copy: %s: %w", what, format.ErrCorrupt)
	}
	if len(p) < 12 {
		return bad("too short")
	}
	n := binary.LittleEndian.Uint32(p)
	size := binary.LittleEndian.Uint64(p[4:])
	p = p[12:]
	if size > 1<<40 || uint64(n)*12 > uint64(len(p)) {
		return bad("sizes")
	}
	h := &Header{Size: int64(size)}
	data := p[n*12:]
	for range n {
		g := disk.Range{Offset: int64(binary.LittleEndian.Uint64(p)), Length: int64(binary.LittleEndian.Uint32(p[8:]))}
		p = p[12:]
		if g.Offset < 0 || g.Offset > h.Size-g.Length || g.Length > int64(len(data)) {
			return bad("a range lies outside")
		}
		h.ranges = append(h.ranges, g)
		h.data = append(h.data, data[:g.Length])
		data = data[g.Length:]
	}
	if len(data) != 0 {
		return bad("trailing bytes")
	}
	return h, nil
}
