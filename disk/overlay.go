package disk

import "io"

// Overlay reads Ranges, which ascend, from Top, at the same offsets, and the
// rest from Below.
type Overlay struct {
	Below  io.ReaderAt
	Ranges []Range
	Top    io.ReaderAt
}

// ReadAt reads from both, and ends where one of them does.
func (o Overlay) ReadAt(p []byte, off int64) (n int, err error) {
	for n < len(p) {
		at, want := off+int64(n), int64(len(p)-n)
		from := o.Below
		for _, g := range o.Ranges {
			if at >= g.Offset && at < g.End() {
				from, want = o.Top, min(want, g.End()-at)
				break
			}
			if g.Offset > at {
				want = min(want, g.Offset-at)
				break
			}
		}
		m, err := from.ReadAt(p[n:n+int(want)], at)
		n += m
		if int64(m) < want {
			if err == nil {
				err = io.ErrUnexpectedEOF
			}
			return n, err
		}
	}
	return n, nil
}
