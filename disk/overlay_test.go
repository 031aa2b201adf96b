package disk_test

import (
	"bytes"
	"errors"
	"io"
	"testing"

	"pgregory.net/rapid"

	"github.com/lockstep-backup/lockstep/disk"
)

// An overlay is what copying the ranges over the bytes below would make.
func TestOverlay(t *testing.T) {
	const size = 64
	below, top := bytes.Repeat([]byte{'.'}, size), make([]byte, size)
	for i := range top {
		top[i] = byte('A' + i%26)
	}
	rapid.Check(t, func(t *rapid.T) {
		want := bytes.Clone(below)
		var ranges []disk.Range
		for at := int64(0); at < size; {
			gap, n := rapid.Int64Range(0, 12).Draw(t, "gap"), rapid.Int64Range(0, 12).Draw(t, "length")
			if at += gap; at+n > size {
				break
			}
			ranges = append(ranges, disk.Range{Offset: at, Length: n})
			copy(want[at:at+n], top[at:])
			at += n
		}
		o := disk.Overlay{Below: bytes.NewReader(below), Ranges: ranges, Top: bytes.NewReader(top)}
		off := rapid.IntRange(0, size).Draw(t, "offset")
		got := make([]byte, rapid.IntRange(0, size+8).Draw(t, "read"))
		n, err := o.ReadAt(got, int64(off))
		if n != min(len(got), size-off) || !bytes.Equal(got[:n], want[off:off+n]) || (n < len(got)) != errors.Is(err, io.EOF) {
			t.Fatalf("%d bytes at %d over %v: %d, %v: %q, want %q", len(got), off, ranges, n, err, got[:n], want[off:])
		}
	})
}
