// Package headercopy is the stored form of an encryption header's copy.
// docs/spec/repository.md, section 7.
package headercopy

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"

	"github.com/lockstep-backup/lockstep/disk"
	"github.com/lockstep-backup/lockstep/repository/format"
)

// Body begins the body of a header copy: number of ranges, file size, ranges.
func Body(ranges []disk.Range, size, total int64) []byte {
	body := make([]byte, 0, 12+12*len(ranges)+int(total))
	body = binary.LittleEndian.AppendUint32(body, uint32(len(ranges)))
	body = binary.LittleEndian.AppendUint64(body, uint64(size))
	for _, g := range ranges {
		body = binary.LittleEndian.AppendUint64(body, uint64(g.Offset))
		body = binary.LittleEndian.AppendUint32(body, uint32(g.Length))
	}
	return body
}

// Parse reads a header copy's body; it takes every number as hostile.
func Parse(p []byte) (*Header, error) {
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

// Header is a stored copy of a volume's encryption header: what of it matters,
// at its offsets; the rest reads as zeroes.
type Header struct {
	Size   int64
	ranges []disk.Range
	data   [][]byte
}

// ReadAt reads the header as the file of Size bytes that the usual tools know.
func (h *Header) ReadAt(p []byte, off int64) (int, error) {
	if off < 0 {
		return 0, errors.New("read header: negative offset")
	}
	if off >= h.Size {
		return 0, io.EOF
	}
	n := int(min(int64(len(p)), h.Size-off))
	clear(p[:n])
	for i, g := range h.ranges {
		lo, hi := max(g.Offset, off), min(g.End(), off+int64(n))
		if lo < hi {
			copy(p[lo-off:hi-off], h.data[i][lo-g.Offset:])
		}
	}
	if n < len(p) {
		return n, io.EOF
	}
	return n, nil
}

// Ranges are the ranges that were stored.
func (h *Header) Ranges() []disk.Range { return h.ranges }
