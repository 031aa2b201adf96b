package format

import (
	"bytes"
	"errors"
	"reflect"
	"testing"
)

// Whatever a parser takes must be what an encoder could have made: encoding
// it again and parsing that gives the same. Whatever it refuses is ErrCorrupt or ErrVersion.
func refused(t *testing.T, err error) bool {
	t.Helper()
	if err != nil && !errors.Is(err, ErrCorrupt) && !errors.Is(err, ErrVersion) {
		t.Fatalf("refused with %v", err)
	}
	return err != nil
}

func FuzzLeaf(f *testing.F) {
	f.Add(sampleLeaf().Encode(nil))
	f.Add(new(Leaf).Encode(nil))
	f.Fuzz(func(t *testing.T, p []byte) {
		l, err := ParseLeaf(p)
		if refused(t, err) {
			return
		}
		for i := range l {
			var seen uint16
			for _, e := range l[i].Extents {
				if e.Live == 0 || e.Live&^e.Stored != 0 || e.Live&(seen|l[i].Unread) != 0 || e.Position == 0 {
					t.Fatalf("block %d: %+v", i, l[i])
				}
				seen |= e.Live
			}
		}
		again, err := ParseLeaf(l.Encode(nil))
		if err != nil || !reflect.DeepEqual(again, l) {
			t.Fatalf("%+v came back as %+v, %v", l, again, err)
		}
	})
}

func FuzzNode(f *testing.F) {
	f.Add(sampleNode().Encode(nil), 2)
	f.Add((&Node{Level: 1}).Encode(nil), 1)
	f.Fuzz(func(t *testing.T, p []byte, level int) {
		n, err := ParseNode(p, level)
		if refused(t, err) {
			return
		}
		if got := n.Encode(nil); !bytes.Equal(got, p) {
			t.Fatalf("%x was taken, %x is what a writer makes", p, got)
		}
	})
}

func FuzzTOC(f *testing.F) {
	f.Add(sampleTOC().Encode(), int64(sampleTOCEnd))
	f.Add(TOC{}.Encode(), int64(0))
	f.Fuzz(func(t *testing.T, p []byte, end int64) {
		toc, err := ParseTOC(p, end)
		if refused(t, err) {
			return
		}
		for _, e := range toc.Extents {
			if (int64(e.Position)+int64(Pages(e.Mask)))*PageSize > end || int(e.Disk) >= len(toc.Disks) {
				t.Fatalf("%+v lies outside of %d", e, end)
			}
		}
		if got := toc.Encode(); !bytes.Equal(got, p) {
			t.Fatalf("%x was taken, %x is what a writer makes", p, got)
		}
	})
}

func FuzzTrailer(f *testing.F) {
	s, m := SegmentTrailer(3*PageSize, 100, []uint32{7}), MapTrailer1(5000, []uint32{9})
	f.Add(s, int64(3*PageSize+100+len(s)), true)
	f.Add(m, int64(5000+len(m)), false)
	m2 := MapTrailer(5000, 50, []uint32{9})
	f.Add(m2, int64(5050+len(m2)), false)
	f.Fuzz(func(t *testing.T, p []byte, size int64, segment bool) {
		n, err := TrailerSize(p[max(0, len(p)-FooterSize):], max(size, 0), segment)
		if refused(t, err) {
			return
		}
		if n > max(size, 0)/CRCChunk*4+4+FooterSize {
			t.Fatalf("a trailer of %d bytes for an object of %d", n, size)
		}
		tr, err := ParseTrailer(p, size, segment)
		if refused(t, err) {
			return
		}
		if tr.DataEnd+tr.TOCLen+int64(len(p)) != size || int64(len(tr.CRCs)) != (tr.DataEnd+CRCChunk-1)/CRCChunk {
			t.Fatalf("%+v of %d bytes", tr, size)
		}
	})
}

func FuzzSegmentHeader(f *testing.F) {
	p := make([]byte, SegmentHeaderSize)
	SegmentHeader{Sealed: true, ID: digest(5), Machine: tag(6)}.Encode(p)
	f.Add(p)
	f.Fuzz(func(t *testing.T, p []byte) {
		h, err := ParseSegmentHeader(p)
		if refused(t, err) {
			return
		}
		q := make([]byte, SegmentHeaderSize)
		h.Encode(q)
		if again, err := ParseSegmentHeader(q); err != nil || again != h {
			t.Fatalf("%+v came back as %+v, %v", h, again, err)
		}
	})
}

func FuzzMapHeader(f *testing.F) {
	f.Add(MapHeader{Version: 2, ID: digest(5), Machine: tag(6)}.Encode())
	f.Fuzz(func(t *testing.T, p []byte) {
		h, err := ParseMapHeader(p)
		if refused(t, err) {
			return
		}
		if again := h.Encode(); !bytes.Equal(again, p[:MapHeaderSize]) {
			t.Fatalf("%x was taken, %x is what a writer makes", p[:MapHeaderSize], again)
		}
	})
}
