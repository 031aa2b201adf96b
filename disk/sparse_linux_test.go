package disk

import (
	"bytes"
	"errors"
	"io"
	"os"
	"path/filepath"
	"testing"

	"github.com/lockstep-backup/lockstep/internal/judge"
)

func dataOf(tb testing.TB, f *os.File, size int64) Ranges {
	tb.Helper()
	var data Ranges
	for off := int64(0); ; {
		r, err := NextData(f, off, size)
		if err == io.EOF {
			return data
		}
		if err != nil {
			tb.Fatal(err)
		}
		data = data.Add(r)
		off = r.End()
	}
}

func TestHoles(t *testing.T) {
	f, err := os.Create(filepath.Join(t.TempDir(), "sparse"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	const size = 4 << 20
	if err := f.Truncate(size); err != nil {
		t.Fatal(err)
	}
	for _, off := range []int64{1 << 20, 3 << 20} {
		if _, err := f.WriteAt(bytes.Repeat([]byte{1}, 64<<10), off); err != nil {
			t.Fatal(err)
		}
	}
	want := Ranges{{1 << 20, 64 << 10}, {3 << 20, 64 << 10}}
	got := dataOf(t, f, size)
	if got.Total() == size {
		judge.Missing(t, "a file system with holes")
	}
	if len(want.Subtract(got)) != 0 || got.Total() > 1<<20 {
		t.Errorf("data %v, want %v", got, want)
	}
	if err := PunchHole(f, 1<<20, 64<<10); err != nil {
		t.Fatal(err)
	}
	if got := dataOf(t, f, size); len(got.Intersect(want[:1])) != 0 || len(want[1:].Subtract(got)) != 0 {
		t.Errorf("after punching: %v", got)
	}
	if got := dataOf(t, f, 3<<20+100); got.Total() != 100 {
		t.Errorf("with a smaller size: %v", got)
	}
	if _, err := NextData(f, -1, size); err == nil || err == io.EOF {
		t.Errorf("offset -1: %v", err)
	}
}

func TestBlockDevice(t *testing.T) {
	for _, sectorSize := range []int{512, 4096} {
		path := filepath.Join(t.TempDir(), "backing")
		if err := os.WriteFile(path, bytes.Repeat([]byte{7}, 1<<20), 0o600); err != nil {
			t.Fatal(err)
		}
		f, err := os.OpenFile(judge.Loop(t, path, sectorSize), os.O_RDWR, 0)
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		if n, err := DeviceSize(f); n != 1<<20 || err != nil {
			t.Errorf("size %d, %v", n, err)
		}
		if n, err := DeviceSectorSize(f); n != sectorSize || err != nil {
			t.Errorf("sector size %d, %v", n, err)
		}
		if got := dataOf(t, f, 1<<20); got.Total() != 1<<20 {
			t.Errorf("data %v", got)
		}
		if err := Discard(f, 4096, 8192); err != nil {
			t.Fatal(err)
		}
		if err := onFD(f, func(fd int) error { return zeroOut(fd, 65536, 4096) }); err != nil {
			t.Fatal(err)
		}
		got, want := make([]byte, 1<<20), bytes.Repeat([]byte{7}, 1<<20)
		clear(want[4096:12288])
		clear(want[65536 : 65536+4096])
		if _, err := f.ReadAt(got, 0); err != nil || !bytes.Equal(got, want) {
			t.Errorf("content differs (%v)", err)
		}
		if err := Discard(f, 100, 8192); err == nil {
			t.Error("half a sector was discarded")
		}
	}
}

func TestNoDevice(t *testing.T) {
	f, err := os.Create(filepath.Join(t.TempDir(), "file"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if n, err := DeviceSize(f); err == nil {
		t.Errorf("a file is a device of %d bytes", n)
	}
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	defer w.Close()
	if err := PunchHole(w, 0, 10); err == nil {
		t.Error("a hole in a pipe")
	}
	if got, err := NextData(r, 5, 10); err != nil || got != (Range{5, 5}) {
		t.Errorf("where holes cannot be asked for: %v, %v", got, err)
	}
	if _, err := OpenDirect(r, os.O_RDONLY); err != nil && !errors.Is(err, ErrUnsupported) {
		t.Errorf("direct I/O on a pipe: %v", err)
	}
}
