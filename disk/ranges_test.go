package disk

import (
	"math"
	"reflect"
	"testing"

	"pgregory.net/rapid"
)

const modelSize = 96

// model is the slow truth: one flag per byte.
type model [modelSize]bool

func modelOf(ranges ...Range) (m model) {
	for _, r := range ranges {
		for i := max(r.Offset, 0); i < r.End(); i++ {
			m[i] = true
		}
	}
	return m
}

func (m model) ranges() Ranges {
	out := Ranges{}
	for i := 0; i < modelSize; i++ {
		if !m[i] {
			continue
		}
		from := i
		for i < modelSize && m[i] {
			i++
		}
		out = append(out, Range{Offset: int64(from), Length: int64(i - from)})
	}
	return out
}

func drawRanges(t *rapid.T, label string) []Range {
	one := rapid.Custom(func(t *rapid.T) Range {
		off := rapid.Int64Range(-4, modelSize-1).Draw(t, "offset")
		return Range{Offset: off, Length: rapid.Int64Range(-2, min(24, modelSize-off)).Draw(t, "length")}
	})
	return rapid.SliceOfN(one, 0, 12).Draw(t, label)
}

func mustBe(t *rapid.T, what string, got Ranges, want model) {
	if len(got) == 0 && want == (model{}) {
		return
	}
	if !reflect.DeepEqual(got, want.ranges()) {
		t.Fatalf("%s = %v, want %v", what, got, want.ranges())
	}
}

func TestRangesAgreeWithBitmap(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		rawA, rawB := drawRanges(t, "a"), drawRanges(t, "b")
		a, b := Normalize(rawA...), Normalize(rawB...)
		ma, mb := modelOf(rawA...), modelOf(rawB...)
		mustBe(t, "normalize", a, ma)
		var added Ranges
		for _, r := range rawA {
			added = added.Add(r)
		}
		mustBe(t, "add", added, ma)

		var union, both, only model
		var total int64
		for i := range union {
			union[i], both[i], only[i] = ma[i] || mb[i], ma[i] && mb[i], ma[i] && !mb[i]
			if ma[i] {
				total++
			}
		}
		mustBe(t, "union", a.Union(b), union)
		mustBe(t, "intersect", a.Intersect(b), both)
		mustBe(t, "subtract", a.Subtract(b), only)
		mustBe(t, "a afterwards", a, ma)
		mustBe(t, "b afterwards", b, mb)
		if a.Total() != total {
			t.Fatalf("total = %d, want %d", a.Total(), total)
		}
	})
}

func TestRangesAtTheEndOfNumbers(t *testing.T) {
	for _, c := range []struct {
		name string
		in   []Range
		want Ranges
	}{
		{"end overflows", []Range{{math.MaxInt64 - 1, math.MaxInt64}}, Ranges{{math.MaxInt64 - 1, 1}}},
		{"nothing left", []Range{{math.MaxInt64, 5}}, Ranges{}},
		{"all", []Range{{math.MinInt64, math.MaxInt64}, {0, math.MaxInt64}}, Ranges{{0, math.MaxInt64}}},
		{"negative length", []Range{{5, math.MinInt64}}, Ranges{}},
	} {
		if got := Normalize(c.in...); !reflect.DeepEqual(got, c.want) {
			t.Errorf("%s: %v, want %v", c.name, got, c.want)
		}
	}
}

func TestAlignedBuffer(t *testing.T) {
	for _, n := range []int{1, 511, PageSize, BlockSize + 1, 1 << 20} {
		b := AlignedBuffer(n)
		if len(b) != n || cap(b) != n {
			t.Fatalf("AlignedBuffer(%d): len %d, cap %d", n, len(b), cap(b))
		}
		if !IsAligned(b[:n/PageSize*PageSize], 0) {
			t.Errorf("AlignedBuffer(%d) is not aligned", n)
		}
	}
	b := AlignedBuffer(2 * PageSize)
	for name, unaligned := range map[string]bool{
		"offset":  IsAligned(b, SectorSize),
		"length":  IsAligned(b[:PageSize+1], 0),
		"address": IsAligned(b[SectorSize:SectorSize+PageSize], 0),
	} {
		if unaligned {
			t.Errorf("unaligned %s passes", name)
		}
	}
	if AlignedBuffer(0) != nil || AlignedBuffer(-1) != nil {
		t.Error("a buffer of nothing is something")
	}
}
