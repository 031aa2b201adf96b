package diskcrypt_test

import (
	"bytes"
	"io"
	"math"
	"reflect"
	"testing"
	"testing/iotest"

	"github.com/lockstep-backup/lockstep/disk"
	"github.com/lockstep-backup/lockstep/diskcrypt"
)

func at(offset, length int64) disk.Range { return disk.Range{Offset: offset, Length: length} }

func TestPlaceOf(t *testing.T) {
	m := memory("0123456789abcdefghijklmnopqrstuvwxyz")
	for _, c := range []struct {
		name string
		v    diskcrypt.Volume
		want string
	}{
		{"range", diskcrypt.Volume{Range: at(3, 5)}, "34567"},
		{"empty range", diskcrypt.Volume{Range: at(3, 0)}, ""},
		{"one extent", diskcrypt.Volume{Range: at(3, 5), Extents: []disk.Range{at(3, 5)}}, "34567"},
		{"backwards", diskcrypt.Volume{Range: at(0, 36), Extents: []disk.Range{at(30, 3), at(0, 2), at(10, 4)}}, "uvw01abcd"},
		{"empty ones between", diskcrypt.Volume{Extents: []disk.Range{at(9, 0), at(1, 1), at(9, 0), at(2, 1), at(5, 0)}}, "12"},
		{"stripes", diskcrypt.Volume{Extents: []disk.Range{at(0, 2), at(20, 2), at(2, 2), at(22, 2)}}, "01kl23mn"},
		{"none", diskcrypt.Volume{Range: at(0, 9), Extents: []disk.Range{}}, ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			if err := c.v.CheckPlace(int64(len(m))); err != nil {
				t.Fatal(err)
			}
			size := c.v.Size()
			if size != int64(len(c.want)) {
				t.Fatalf("size %d, want %d", size, len(c.want))
			}
			r := diskcrypt.PlaceOf(m, c.v)
			if err := iotest.TestReader(io.NewSectionReader(r, 0, size), []byte(c.want)); err != nil {
				t.Fatal(err)
			}
			for off := range size + 2 {
				for n := range size + 2 {
					got := make([]byte, n)
					k, err := r.ReadAt(got, off)
					want := c.want[min(off, size):min(off+n, size)]
					if string(got[:k]) != want || (n > 0 && (k < int(n)) != (err == io.EOF)) {
						t.Fatalf("%d bytes at %d: %q %v, want %q", n, off, got[:k], err, want)
					}
					var on []byte
					for _, e := range c.v.OnDisk(at(off, n)) {
						on = append(on, m[e.Offset:e.End()]...)
					}
					if string(on) != want {
						t.Fatalf("%d bytes at %d are on the disk as %q, want %q", n, off, on, want)
					}
				}
			}
			for off := range int64(len(m)) {
				if got, want := c.v.Overlaps(at(off, 1)), bytes.IndexByte([]byte(c.want), m[off]) >= 0; got != want {
					t.Fatalf("has byte %d: %v, want %v", off, got, want)
				}
			}
		})
	}
}

func TestPlaceOfErrors(t *testing.T) {
	m := memory("0123456789")
	p := make([]byte, 4)
	r := diskcrypt.PlaceOf(m, diskcrypt.Volume{Extents: []disk.Range{at(0, 2), at(8, 4)}})
	if n, err := r.ReadAt(p, 1); n != 3 || err != io.ErrUnexpectedEOF {
		t.Fatal("the disk ends inside the volume:", n, err)
	}
	if _, err := r.ReadAt(p, -1); err == nil {
		t.Fatal("negative offset")
	}
	r = diskcrypt.PlaceOf(failing{}, diskcrypt.Volume{Extents: []disk.Range{at(0, 2), at(8, 4)}})
	if _, err := r.ReadAt(p, 0); err != errBadSector {
		t.Fatal(err)
	}
}

func TestCheckPlace(t *testing.T) {
	many := make([]disk.Range, diskcrypt.MaxExtents+1)
	for name, v := range map[string]diskcrypt.Volume{
		"behind the end":        {Range: at(90, 11)},
		"negative":              {Range: at(-1, 2)},
		"negative length":       {Range: at(1, -2)},
		"overflow":              {Range: at(math.MaxInt64, math.MaxInt64)},
		"an extent behind":      {Range: at(0, 10), Extents: []disk.Range{at(0, 1), at(100, 1)}},
		"an extent is negative": {Range: at(0, 10), Extents: []disk.Range{at(0, 1), at(5, -1)}},
		"too many":              {Extents: many},
	} {
		if err := v.CheckPlace(100); err == nil {
			t.Error(name, "is taken")
		}
	}
	huge := diskcrypt.Volume{Extents: []disk.Range{at(0, math.MaxInt64), at(0, math.MaxInt64)}}
	if err := huge.CheckPlace(math.MaxInt64); err == nil {
		t.Error("the sum overflows and is taken")
	}
	if !reflect.DeepEqual((diskcrypt.Volume{Range: at(3, 4)}).OnDisk(at(1, 9)), []disk.Range{at(4, 3)}) {
		t.Error("a part that ends behind the volume")
	}
}
