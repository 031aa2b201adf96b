package disk

import (
	"cmp"
	"math"
	"slices"
)

// Ranges is a set of bytes: sorted by offset, no range empty, none overlapping
// or touching the next. The methods expect and return this form; Normalize
// makes it from anything. They do not change their arguments, except Add.
type Ranges []Range

// Normalize makes a set of any ranges. Empty and negative lengths name nothing;
// what lies before 0 or behind math.MaxInt64 is cut off.
func Normalize(ranges ...Range) Ranges {
	set := make(Ranges, 0, len(ranges))
	for _, r := range ranges {
		if r, ok := r.sane(); ok {
			set = append(set, r)
		}
	}
	slices.SortFunc(set, func(a, b Range) int { return cmp.Compare(a.Offset, b.Offset) })
	out := set[:0]
	for _, r := range set {
		out = out.push(r)
	}
	return out
}

// sane cuts r to 0…math.MaxInt64, so that End cannot overflow.
func (r Range) sane() (Range, bool) {
	if r.Length <= 0 {
		return r, false
	}
	if r.Offset < 0 {
		r.Length += r.Offset // cannot overflow: signs differ
		r.Offset = 0
	}
	r.Length = min(r.Length, math.MaxInt64-r.Offset)
	return r, r.Length > 0
}

// push appends a sane range that starts at or behind the start of the last one.
func (rs Ranges) push(r Range) Ranges {
	if n := len(rs); n > 0 && r.Offset <= rs[n-1].End() {
		last := &rs[n-1]
		last.Length = max(last.End(), r.End()) - last.Offset
		return rs
	}
	return append(rs, r)
}

// Add puts r into the set and returns it, like append: the old value of rs must
// not be used afterwards. At the end of the set it costs O(1), within it a
// binary search and a move.
func (rs Ranges) Add(r Range) Ranges {
	r, ok := r.sane()
	if !ok {
		return rs
	}
	if n := len(rs); n == 0 || r.Offset >= rs[n-1].Offset {
		return rs.push(r)
	}
	// from is the first range that reaches r, to the first that lies wholly behind it.
	from, _ := slices.BinarySearchFunc(rs, r.Offset, func(x Range, at int64) int { return cmp.Compare(x.End(), at) })
	to := from
	for to < len(rs) && rs[to].Offset <= r.End() {
		to++
	}
	if from < to {
		end := max(r.End(), rs[to-1].End())
		r.Offset = min(r.Offset, rs[from].Offset)
		r.Length = end - r.Offset
	}
	return slices.Replace(rs, from, to, r)
}

// Union returns what is in rs or in other.
func (rs Ranges) Union(other Ranges) Ranges {
	out := make(Ranges, 0, len(rs)+len(other))
	for len(rs) > 0 || len(other) > 0 {
		if len(other) == 0 || len(rs) > 0 && rs[0].Offset <= other[0].Offset {
			out, rs = out.push(rs[0]), rs[1:]
		} else {
			out, other = out.push(other[0]), other[1:]
		}
	}
	return out
}

// Intersect returns what is in rs and in other.
func (rs Ranges) Intersect(other Ranges) Ranges {
	var out Ranges
	for len(rs) > 0 && len(other) > 0 {
		from, to := max(rs[0].Offset, other[0].Offset), min(rs[0].End(), other[0].End())
		if from < to {
			out = append(out, Range{Offset: from, Length: to - from})
		}
		if rs[0].End() < other[0].End() {
			rs = rs[1:]
		} else {
			other = other[1:]
		}
	}
	return out
}

// Subtract returns what is in rs and not in other.
func (rs Ranges) Subtract(other Ranges) Ranges {
	var out Ranges
	for _, r := range rs {
		for len(other) > 0 && other[0].End() <= r.Offset {
			other = other[1:]
		}
		at := r.Offset
		for _, o := range other {
			if o.Offset >= r.End() {
				break
			}
			if o.Offset > at {
				out = append(out, Range{Offset: at, Length: o.Offset - at})
			}
			at = o.End()
		}
		if at < r.End() {
			out = append(out, Range{Offset: at, Length: r.End() - at})
		}
	}
	return out
}

// Total is the number of bytes in the set.
func (rs Ranges) Total() int64 {
	var n int64
	for _, r := range rs {
		n += r.Length
	}
	return n
}
