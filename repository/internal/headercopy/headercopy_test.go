package headercopy

import (
	"bytes"
	"errors"
	"io"
	"testing"

	"github.com/lockstep-backup/lockstep/disk"
	"github.com/lockstep-backup/lockstep/repository/format"
)

func sample() []byte {
	ranges := []disk.Range{{Offset: 0, Length: 3}, {Offset: 4096, Length: 2}, {Offset: 8190, Length: 0}}
	return append(Body(ranges, 8192, 5), "abcde"...)
}

func TestParse(t *testing.T) {
	h, err := Parse(sample())
	if err != nil {
		t.Fatal(err)
	}
	want := make([]byte, 8192)
	copy(want, "abc")
	copy(want[4096:], "de")
	got := make([]byte, 9000)
	if n, err := h.ReadAt(got, 0); n != 8192 || !errors.Is(err, io.EOF) || !bytes.Equal(got[:n], want) {
		t.Errorf("%d bytes, %v", n, err)
	}
	for off := int64(0); off < 8192; off += 1365 {
		p := bytes.Repeat([]byte{0xee}, 10)
		n, _ := h.ReadAt(p, off)
		if !bytes.Equal(p[:n], want[off:off+int64(n)]) {
			t.Errorf("at %d: %x", off, p[:n])
		}
	}
	if _, err := h.ReadAt(got, 8192); !errors.Is(err, io.EOF) {
		t.Errorf("at the end: %v", err)
	}
	if _, err := h.ReadAt(got, -1); err == nil {
		t.Error("before the beginning")
	}
}

func TestDefects(t *testing.T) {
	for name, change := range map[string]func(p []byte) []byte{
		"trailing byte":          func(p []byte) []byte { return append(p, 0) },
		"more ranges than bytes": func(p []byte) []byte { p[3] = 0xff; return p },
		"a range more":           func(p []byte) []byte { p[0]++; return p },
		"a range fewer":          func(p []byte) []byte { p[0]--; return p },
		"size without bound":     func(p []byte) []byte { p[11] = 0xff; return p },
		"range outside":          func(p []byte) []byte { p[12+12+1] = 0x20; return p },
		"negative offset":        func(p []byte) []byte { p[12+12+7] = 0x80; return p },
		"longer than the data":   func(p []byte) []byte { p[12+8] = 6; return p },
	} {
		if _, err := Parse(change(sample())); !errors.Is(err, format.ErrCorrupt) {
			t.Errorf("%s: %v", name, err)
		}
	}
	p := sample()
	for n := range p {
		if _, err := Parse(p[:n:n]); !errors.Is(err, format.ErrCorrupt) {
			t.Errorf("the first %d bytes parse: %v", n, err)
		}
	}
}

func FuzzHeaderCopy(f *testing.F) {
	f.Add(sample())
	f.Add(Body(nil, 0, 0))
	f.Fuzz(func(t *testing.T, p []byte) {
		h, err := Parse(p)
		if err != nil {
			if !errors.Is(err, format.ErrCorrupt) {
				t.Fatal(err)
			}
			return
		}
		var total int64
		for _, g := range h.Ranges() {
			if g.Offset < 0 || g.End() > h.Size {
				t.Fatalf("range %v of %d bytes", g, h.Size)
			}
			total += g.Length
		}
		if total > int64(len(p)) {
			t.Fatal("more data than bytes")
		}
		q := make([]byte, 100)
		_, _ = h.ReadAt(q, max(0, h.Size-50))
	})
}
