// Package sourcetest is what every source.Opener must do. An adapter's own test
// calls Run with a Factory; what the adapter can do beyond the contract it tests itself.
//
// The suite never writes through the adapter, because there is no way to.
package sourcetest

import (
	"bytes"
	"context"
	"errors"
	"io"
	"math/rand/v2"
	"slices"
	"sync"
	"testing"

	"github.com/lockstep-backup/lockstep/disk"
	"github.com/lockstep-backup/lockstep/source"
)

// Source is one place that holds a disk, before it is opened.
type Source struct {
	Opener source.Opener
	Spec   string

	// Exclusive says that a second reader is refused with ErrInUse while the first reads.
	Exclusive bool

	// What follows may be nil or empty where the kind of source has no such thing;
	// the cases that need it are then skipped.

	MissingSpec string                  // names nothing
	Resize      func(size int64)        // of the source, while it is open
	Remove      func()                  // so that the spec names nothing, while it is open
	Replace     func(content []byte)    // another disk of the same size under the same spec, while it is open
	Use         func() (release func()) // makes the source in use by somebody else
}

// Factory makes a source that holds content. The suite asks for sizes that are
// multiples of disk.SectorSize; content may hold long runs of zeroes.
type Factory func(t *testing.T, content []byte) Source

const whole = 3<<20 + disk.SectorSize // not a multiple of the page, nor of the block

// pattern is data with a run of zeroes in the middle.
func pattern(size int) []byte {
	b := make([]byte, size)
	rng := rand.NewChaCha8([32]byte{byte(size), byte(size >> 8), byte(size >> 16)})
	_, _ = rng.Read(b) // never fails
	if size > 2<<20 {
		clear(b[1<<20 : 2<<20])
	}
	return b
}

// Run runs the suite.
func Run(t *testing.T, factory Factory) {
	ctx := t.Context()
	open := func(t *testing.T, s Source) source.Disk {
		t.Helper()
		d, err := s.Opener.Open(ctx, s.Spec, source.Options{})
		if err != nil {
			t.Fatalf("Open: %v", err)
		}
		t.Cleanup(func() { _ = d.Close() })
		return d
	}

	t.Run("reads what is there", func(t *testing.T) {
		for _, size := range []int{disk.SectorSize, disk.PageSize, 1 << 20, whole} {
			content := pattern(size)
			d := open(t, factory(t, content))
			if d.Size() != int64(size) {
				t.Fatalf("Size() = %d, want %d", d.Size(), size)
			}
			for _, p := range [][]byte{disk.AlignedBuffer(size), make([]byte, size)} {
				if n, err := d.ReadAt(p, 0); n != size || err != nil && err != io.EOF || !bytes.Equal(p, content) {
					t.Errorf("%d bytes: n = %d, err %v, content as expected: %v", size, n, err, bytes.Equal(p, content))
				}
			}
			if err := d.Close(); err != nil {
				t.Errorf("Close: %v", err)
			}
		}
	})

	t.Run("reads any range", func(t *testing.T) {
		content := pattern(whole)
		d := open(t, factory(t, content))
		rng := rand.New(rand.NewPCG(1, 2))
		buf := disk.AlignedBuffer(256 << 10)
		for range 400 {
			off, n := rng.IntN(whole), rng.IntN(len(buf))
			switch rng.IntN(3) {
			case 0: // around the page cache, up to and over the end
				off, n = off&^(disk.PageSize-1), (n+disk.PageSize)&^(disk.PageSize-1)
			case 1:
				off, n = off&^(disk.SectorSize-1), n&^(disk.SectorSize-1)
			}
			p := buf[:min(n, len(buf))]
			want := content[off:min(off+len(p), whole)]
			got, err := d.ReadAt(p, int64(off))
			if got != len(want) || !bytes.Equal(p[:got], want) {
				t.Fatalf("ReadAt(%d bytes, %d) = %d, %v; content as expected: %v", len(p), off, got, err, bytes.Equal(p[:got], want[:min(got, len(want))]))
			}
			if len(want) < len(p) && err != io.EOF || len(want) == len(p) && err != nil && !(err == io.EOF && off+len(p) == whole) {
				t.Fatalf("ReadAt(%d bytes, %d): %v", len(p), off, err)
			}
		}
	})

	t.Run("reads at the edges", func(t *testing.T) {
		d := open(t, factory(t, pattern(whole)))
		p := make([]byte, 10)
		for _, off := range []int64{whole, whole + 1, 1 << 62} {
			if n, err := d.ReadAt(p, off); n != 0 || err != io.EOF {
				t.Errorf("ReadAt(%d) = %d, %v, want io.EOF", off, n, err)
			}
		}
		if n, err := d.ReadAt(p, -1); n != 0 || err == nil || err == io.EOF {
			t.Errorf("ReadAt(-1) = %d, %v", n, err)
		}
		if n, err := d.ReadAt(nil, 0); n != 0 || err != nil {
			t.Errorf("ReadAt of nothing = %d, %v", n, err)
		}
	})

	t.Run("reads concurrently", func(t *testing.T) {
		content := pattern(whole)
		d := open(t, factory(t, content))
		var wg sync.WaitGroup
		for worker := range 8 {
			wg.Go(func() {
				p := disk.AlignedBuffer(disk.BlockSize)
				for off := worker * disk.BlockSize; off < whole; off += 8 * disk.BlockSize {
					n, err := d.ReadAt(p, int64(off))
					want := content[off:min(off+len(p), whole)]
					if err != nil && err != io.EOF || !bytes.Equal(p[:n], want) {
						t.Errorf("block at %d: n = %d, %v", off, n, err)
					}
				}
			})
		}
		wg.Wait()
	})

	t.Run("names data", func(t *testing.T) {
		content := pattern(whole)
		d := open(t, factory(t, content))
		var data disk.Ranges
		for off := int64(0); ; {
			r, err := d.NextData(off)
			if err == io.EOF {
				break
			}
			if err != nil {
				t.Fatalf("NextData(%d): %v", off, err)
			}
			if r.Offset < off || r.Length <= 0 || r.End() > whole {
				t.Fatalf("NextData(%d) = %+v", off, r)
			}
			data = data.Add(r)
			off = r.End()
		}
		for _, hole := range (disk.Ranges{{Offset: 0, Length: whole}}).Subtract(data) {
			if slices.ContainsFunc(content[hole.Offset:hole.End()], func(b byte) bool { return b != 0 }) {
				t.Errorf("data in what is said to be a hole: %+v", hole)
			}
		}
		// In the middle of data the range begins where one asks.
		if r, err := d.NextData(100); err != nil || r.Offset != 100 {
			t.Errorf("NextData(100) = %+v, %v", r, err)
		}
		for _, off := range []int64{whole, whole + 1} {
			if r, err := d.NextData(off); err != io.EOF {
				t.Errorf("NextData(%d) = %+v, %v", off, r, err)
			}
		}
		if r, err := d.NextData(-1); err == nil || err == io.EOF {
			t.Errorf("NextData(-1) = %+v, %v", r, err)
		}
	})

	t.Run("tells what changed or why not", func(t *testing.T) {
		d := open(t, factory(t, pattern(whole)))
		changed, known, reason, err := d.Changed(ctx, "no-such-recovery-point")
		if err != nil {
			t.Fatal(err)
		}
		if known || reason == "" || len(changed) != 0 {
			t.Errorf("about an unknown parent: known %v, reason %q, changed %v", known, reason, changed)
		}
	})

	t.Run("finds itself unchanged", func(t *testing.T) {
		d := open(t, factory(t, pattern(whole)))
		if err := d.Check(); err != nil {
			t.Errorf("Check: %v", err)
		}
		switch d.Consistency() {
		case source.ConsistencyCrash, source.ConsistencyFileSystem, source.ConsistencyApplication:
		default:
			t.Errorf("consistency of a quiet source is %q", d.Consistency())
		}
	})

	t.Run("two may read", func(t *testing.T) {
		content := pattern(whole)
		s := factory(t, content)
		a := open(t, s)
		if s.Exclusive {
			if _, err := s.Opener.Open(ctx, s.Spec, source.Options{}); !errors.Is(err, source.ErrInUse) {
				t.Errorf("second reader: %v, want ErrInUse", err)
			}
			_ = a.Close()
		}
		b := open(t, s)
		if s.Exclusive {
			a = b
		}
		p := make([]byte, whole)
		for _, d := range []source.Disk{a, b} {
			if n, _ := d.ReadAt(p, 0); n != whole || !bytes.Equal(p, content) {
				t.Error("content differs")
			}
		}
	})

	t.Run("closed is closed", func(t *testing.T) {
		d := open(t, factory(t, pattern(whole)))
		if err := d.Close(); err != nil {
			t.Fatal(err)
		}
		if n, err := d.ReadAt(make([]byte, 512), 0); n != 0 || err == nil || err == io.EOF {
			t.Errorf("ReadAt after Close = %d, %v", n, err)
		}
		_ = d.Close() // must not panic
	})

	t.Run("not there", func(t *testing.T) {
		s := factory(t, pattern(whole))
		if s.MissingSpec == "" {
			t.Skip("this source has no such thing")
		}
		if _, err := s.Opener.Open(ctx, s.MissingSpec, source.Options{}); !errors.Is(err, source.ErrNotFound) {
			t.Errorf("Open: %v, want ErrNotFound", err)
		}
	})

	t.Run("cancelled", func(t *testing.T) {
		s := factory(t, pattern(whole))
		ctx, cancel := context.WithCancel(ctx)
		cancel()
		if d, err := s.Opener.Open(ctx, s.Spec, source.Options{}); !errors.Is(err, context.Canceled) {
			t.Errorf("Open: %v", err)
			if err == nil {
				_ = d.Close()
			}
		}
	})

	t.Run("shrinks", func(t *testing.T) {
		s := factory(t, pattern(whole))
		if s.Resize == nil {
			t.Skip("this source has no such thing")
		}
		for _, size := range []int64{2<<20 + disk.SectorSize, 1 << 20, disk.SectorSize} {
			s := factory(t, pattern(whole))
			d := open(t, s)
			s.Resize(size)
			if err := d.Check(); !errors.Is(err, source.ErrSizeChanged) {
				t.Errorf("Check: %v, want ErrSizeChanged", err)
			}
			// Never a short read, never zeroes for what is gone.
			for _, p := range [][]byte{disk.AlignedBuffer(whole), make([]byte, whole)} {
				if n, err := d.ReadAt(p, 0); !errors.Is(err, source.ErrSizeChanged) || int64(n) > size {
					t.Errorf("shrunk to %d: ReadAt = %d, %v, want ErrSizeChanged", size, n, err)
				}
			}
			if n, err := d.ReadAt(disk.AlignedBuffer(disk.PageSize), 3<<20-disk.PageSize); n != 0 || !errors.Is(err, source.ErrSizeChanged) {
				t.Errorf("shrunk to %d: ReadAt behind it = %d, %v, want ErrSizeChanged", size, n, err)
			}
			var err error
			for off := int64(0); err == nil; {
				var r disk.Range
				r, err = d.NextData(off)
				off = r.End()
			}
			if !errors.Is(err, source.ErrSizeChanged) {
				t.Errorf("shrunk to %d: NextData ends with %v, want ErrSizeChanged", size, err)
			}
		}
	})

	t.Run("grows", func(t *testing.T) {
		content := pattern(whole)
		s := factory(t, content)
		if s.Resize == nil {
			t.Skip("this source has no such thing")
		}
		d := open(t, s)
		s.Resize(whole + 1<<20)
		if err := d.Check(); !errors.Is(err, source.ErrSizeChanged) {
			t.Errorf("Check: %v, want ErrSizeChanged", err)
		}
		p := disk.AlignedBuffer(4 << 20)
		if n, err := d.ReadAt(p, 0); d.Size() != whole || n != whole || err != io.EOF || !bytes.Equal(p[:n], content) {
			t.Errorf("a source that grew: size %d, ReadAt = %d, %v", d.Size(), n, err)
		}
	})

	t.Run("disappears", func(t *testing.T) {
		s := factory(t, pattern(whole))
		if s.Remove == nil {
			t.Skip("this source has no such thing")
		}
		d := open(t, s)
		s.Remove()
		if err := d.Check(); !errors.Is(err, source.ErrNotFound) {
			t.Errorf("Check: %v, want ErrNotFound", err)
		}
	})

	t.Run("is replaced", func(t *testing.T) {
		content := pattern(whole)
		s := factory(t, content)
		if s.Replace == nil {
			t.Skip("this source has no such thing")
		}
		d := open(t, s)
		other := pattern(whole)
		slices.Reverse(other)
		s.Replace(other)
		if err := d.Check(); !errors.Is(err, source.ErrSizeChanged) {
			t.Errorf("Check: %v, want one that is ErrSizeChanged", err)
		}
		p := make([]byte, whole)
		if n, err := d.ReadAt(p, 0); err == nil && !bytes.Equal(p[:n], content) {
			t.Error("the other disk is read as if it were this one")
		}
	})

	t.Run("in use", func(t *testing.T) {
		content := pattern(whole)
		s := factory(t, content)
		if s.Use == nil {
			t.Skip("this source has no such thing")
		}
		release := s.Use()
		if d, err := s.Opener.Open(ctx, s.Spec, source.Options{}); !errors.Is(err, source.ErrInUse) {
			t.Errorf("Open: %v, want ErrInUse", err)
			if err == nil {
				_ = d.Close()
			}
		}
		d, err := s.Opener.Open(ctx, s.Spec, source.Options{AllowLive: true})
		if err != nil {
			t.Fatalf("Open with AllowLive: %v", err)
		}
		if d.Consistency() != source.ConsistencyNone {
			t.Errorf("consistency of a live source is %q", d.Consistency())
		}
		p := make([]byte, whole)
		if n, err := d.ReadAt(p, 0); n != whole || err != nil && err != io.EOF {
			t.Errorf("ReadAt of a live source = %d, %v", n, err)
		}
		if err := d.Close(); err != nil {
			t.Error(err)
		}
		release()
		_ = open(t, s).Close()
	})
}
