package diskcrypt

import (
	"cmp"
	"errors"
	"fmt"
	"io"
	"math"
	"slices"

	"github.com/lockstep-backup/lockstep/disk"
)

// MaxExtents bounds the extents of one volume: more are not mapped.
const MaxExtents = 16 << 10

// Size is the volume's length in bytes.
func (v Volume) Size() int64 {
	if v.Extents == nil {
		return v.Range.Length
	}
	size := int64(0)
	for _, e := range v.Extents {
		size += e.Length
	}
	return size
}

// extents are the volume's bytes on the disk, in its order.
func (v Volume) extents() []disk.Range {
	if v.Extents == nil {
		return []disk.Range{v.Range}
	}
	return v.Extents
}

// CheckPlace says what is wrong with the volume's place on a disk of size
// bytes: nothing that PlaceOf then reads is outside.
func (v Volume) CheckPlace(size int64) error {
	if len(v.Extents) > MaxExtents {
		return fmt.Errorf("volume %s: %d extents, more than %d", v.ID, len(v.Extents), MaxExtents)
	}
	total := int64(0)
	for _, e := range v.extents() {
		if e.Offset < 0 || e.Length < 0 || e.Length > size || e.Offset > size-e.Length || e.Length > math.MaxInt64-total {
			return fmt.Errorf("volume %s: %d bytes at %d of a disk of %d", v.ID, e.Length, e.Offset, size)
		}
		total += e.Length
	}
	return nil
}

// OnDisk are the disk's bytes of a part of the volume, in the part's order;
// what is behind the volume's end is left out.
func (v Volume) OnDisk(part disk.Range) []disk.Range {
	var out []disk.Range
	start := int64(0)
	for _, e := range v.extents() {
		from, to := max(start, part.Offset), min(start+e.Length, part.End())
		if from < to {
			out = append(out, disk.Range{Offset: e.Offset + from - start, Length: to - from})
		}
		start += e.Length
	}
	return out
}

// Overlaps reports whether the volume has a byte of r.
func (v Volume) Overlaps(r disk.Range) bool {
	return slices.ContainsFunc(v.extents(), func(e disk.Range) bool { return e.Offset < r.End() && r.Offset < e.End() })
}

// Shares reports whether two volumes of a disk have a byte in common.
func (v Volume) Shares(o Volume) bool {
	if v.Extents == nil {
		return o.Overlaps(v.Range)
	}
	if o.Extents == nil {
		return v.Overlaps(o.Range)
	}
	if v.Range.Offset >= o.Range.End() || o.Range.Offset >= v.Range.End() {
		return false
	}
	a, b := byOffset(v.Extents), byOffset(o.Extents)
	for len(a) > 0 && len(b) > 0 {
		if a[0].Offset < b[0].End() && b[0].Offset < a[0].End() {
			return true
		}
		if a[0].End() <= b[0].End() {
			a = a[1:]
		} else {
			b = b[1:]
		}
	}
	return false
}

func byOffset(extents []disk.Range) []disk.Range {
	return slices.SortedFunc(slices.Values(extents), func(a, b disk.Range) int { return cmp.Compare(a.Offset, b.Offset) })
}

// PlaceOf is a volume's bytes on the disk that r reads: offset 0 = the volume's
// first byte. It reads wherever the volume says: CheckPlace before, where the
// volume comes from elsewhere.
func PlaceOf(r io.ReaderAt, v Volume) io.ReaderAt {
	if v.Extents == nil {
		return io.NewSectionReader(r, v.Range.Offset, v.Range.Length)
	}
	m := mapped{r: r, extents: v.Extents, starts: make([]int64, 0, len(v.Extents))}
	for _, e := range v.Extents {
		m.starts = append(m.starts, m.size)
		m.size += e.Length
	}
	return &m
}

// mapped reads extents one after the other.
type mapped struct {
	r       io.ReaderAt
	extents []disk.Range
	starts  []int64 // of each extent in the volume
	size    int64
}

func (m *mapped) Size() int64 { return m.size }

var errNegativeOffset = errors.New("read volume: negative offset")

func (m *mapped) ReadAt(p []byte, off int64) (n int, err error) {
	if off < 0 {
		return 0, errNegativeOffset
	}
	i, found := slices.BinarySearch(m.starts, off)
	if !found {
		i = max(i-1, 0)
	}
	for ; n < len(p) && i < len(m.extents); i++ {
		in := off + int64(n) - m.starts[i]
		if in >= m.extents[i].Length {
			continue // empty, or the end of the last
		}
		part := p[n:min(int64(len(p)), int64(n)+m.extents[i].Length-in)]
		got, err := m.r.ReadAt(part, m.extents[i].Offset+in)
		n += got
		if got < len(part) {
			if err == io.EOF || err == nil {
				err = io.ErrUnexpectedEOF // the disk ends inside the volume
			}
			return n, err
		}
	}
	if n < len(p) {
		return n, io.EOF
	}
	return n, nil
}
