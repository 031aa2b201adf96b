// Package targettest is what every target.Opener must do. An adapter's own test
// calls Run with a Factory; what the adapter can do beyond the contract it tests itself.
package targettest

import (
	"bytes"
	"context"
	"errors"
	"io"
	"math/rand/v2"
	"sync"
	"testing"

	"github.com/lockstep-backup/lockstep/disk"
	"github.com/lockstep-backup/lockstep/target"
)

// Target is one place that a disk can be written to.
type Target struct {
	Opener target.Opener
	Spec   string // names nothing yet, or something blank

	// Read returns the first size bytes of what is there now; nil when nothing
	// is. More bytes than that must be an error of the test unless Capacity is set.
	Read func(size int64) []byte

	// Capacity is the fixed size of a device; 0 for what is made as large as the disk.
	Capacity int64

	// What follows may be nil where the kind of target has no such thing; the
	// cases that need it are then skipped.

	Fill func(content []byte)    // puts something there, before it is opened
	Use  func() (release func()) // makes the target, which exists, in use by somebody else
	Not  []string                // specs that name something that is no target
}

// Factory makes a blank target for disks of up to 8 MiB.
type Factory func(t *testing.T) Target

const whole = 3<<20 + disk.SectorSize // not a multiple of the page, nor of the block

func pattern(size int, seed byte) []byte {
	b := make([]byte, size)
	_, _ = rand.NewChaCha8([32]byte{seed}).Read(b) // never fails
	return b
}

// Run runs the suite.
func Run(t *testing.T, factory Factory) {
	ctx := t.Context()
	open := func(t *testing.T, g Target, size int64, opts target.Options) target.Disk {
		t.Helper()
		opts.Larger = g.Capacity > 0
		d, err := g.Opener.Open(ctx, g.Spec, size, opts)
		if err != nil {
			t.Fatalf("Open: %v", err)
		}
		t.Cleanup(func() { _ = d.Abort() })
		return d
	}
	write := func(t *testing.T, d target.Disk, p []byte, off int64) {
		t.Helper()
		if n, err := d.WriteAt(p, off); n != len(p) || err != nil {
			t.Fatalf("WriteAt(%d bytes, %d) = %d, %v", len(p), off, n, err)
		}
	}
	commit := func(t *testing.T, d target.Disk) {
		t.Helper()
		if err := d.Commit(); err != nil {
			t.Fatalf("Commit: %v", err)
		}
	}
	same := func(t *testing.T, got, want []byte) {
		t.Helper()
		if len(got) != len(want) {
			t.Fatalf("%d bytes are there, want %d", len(got), len(want))
		}
		for i := range got {
			if got[i] != want[i] {
				t.Fatalf("byte %d is %#x, want %#x", i, got[i], want[i])
			}
		}
	}
	refused := func(t *testing.T, g Target, spec string, size int64, opts target.Options, want error) {
		t.Helper()
		opts.Larger = true
		d, err := g.Opener.Open(ctx, spec, size, opts)
		if err == nil {
			_ = d.Abort()
			t.Errorf("Open %q: no error", spec)
		} else if want != nil && !errors.Is(err, want) {
			t.Errorf("Open %q: %v, want %v", spec, err, want)
		}
	}

	t.Run("keeps what is written", func(t *testing.T) {
		for _, size := range []int{disk.SectorSize, disk.PageSize, 1 << 20, whole} {
			g := factory(t)
			content := pattern(size, 1)
			aligned := disk.AlignedBuffer(size)
			copy(aligned, content)
			d := open(t, g, int64(size), target.Options{})
			write(t, d, aligned, 0)
			got := disk.AlignedBuffer(size)
			if n, err := d.ReadAt(got, 0); n != size || err != nil && err != io.EOF {
				t.Fatalf("ReadAt = %d, %v", n, err)
			}
			same(t, got, content)
			commit(t, d)
			same(t, g.Read(int64(size)), content)
		}
	})

	t.Run("pieces, zeroes and what is never written", func(t *testing.T) {
		g := factory(t)
		d := open(t, g, whole, target.Options{Format: "raw"})
		want := make([]byte, whole)
		rng := rand.New(rand.NewPCG(3, 4))
		buf := disk.AlignedBuffer(128 << 10)
		copy(buf, pattern(len(buf), 2))
		for range 300 {
			off, n := rng.IntN(whole), rng.IntN(len(buf))
			if rng.IntN(2) == 0 {
				off, n = off&^(disk.PageSize-1), n&^(disk.PageSize-1)
			}
			n = min(n, whole-off)
			if rng.IntN(4) == 0 {
				if err := d.Zero(int64(off), int64(n)); err != nil {
					t.Fatalf("Zero(%d, %d): %v", off, n, err)
				}
				clear(want[off : off+n])
			} else if off < 1<<20 || off+n > 2<<20 {
				write(t, d, buf[:n], int64(off))
				copy(want[off:], buf[:n])
			}
			if n > 0 {
				got := make([]byte, n)
				if _, err := d.ReadAt(got, int64(off)); err != nil && err != io.EOF {
					t.Fatal(err)
				}
				if !(off >= 1<<20 && off+n <= 2<<20) {
					same(t, got, want[off:off+n])
				}
			}
		}
		commit(t, d)
		same(t, g.Read(whole), want)
	})

	t.Run("nothing written", func(t *testing.T) {
		g := factory(t)
		d := open(t, g, whole, target.Options{})
		if err := d.Zero(0, whole); err != nil {
			t.Fatal(err)
		}
		commit(t, d)
		same(t, g.Read(whole), make([]byte, whole))
	})

	t.Run("concurrent writers", func(t *testing.T) {
		g := factory(t)
		content := pattern(whole, 5)
		d := open(t, g, whole, target.Options{})
		var wg sync.WaitGroup
		for worker := range 4 {
			wg.Go(func() {
				p := disk.AlignedBuffer(disk.BlockSize)
				for off := worker * disk.BlockSize; off < whole; off += 4 * disk.BlockSize {
					n := copy(p, content[off:])
					if _, err := d.WriteAt(p[:n], int64(off)); err != nil {
						t.Errorf("block at %d: %v", off, err)
					}
				}
			})
		}
		wg.Wait()
		commit(t, d)
		same(t, g.Read(whole), content)
	})

	t.Run("keeps inside", func(t *testing.T) {
		g := factory(t)
		d := open(t, g, whole, target.Options{})
		p := disk.AlignedBuffer(disk.PageSize)
		for _, off := range []int64{-1, -disk.PageSize, whole - 1, whole, 1 << 62} {
			if n, err := d.WriteAt(p, off); err == nil || n != 0 {
				t.Errorf("WriteAt(%d) = %d, %v", off, n, err)
			}
			if err := d.Zero(off, disk.PageSize); err == nil {
				t.Errorf("Zero(%d): no error", off)
			}
		}
		for _, length := range []int64{-1, 1 << 62} {
			if err := d.Zero(disk.PageSize, length); err == nil {
				t.Errorf("Zero of %d bytes: no error", length)
			}
		}
		if n, err := d.ReadAt(p, whole); n != 0 || err != io.EOF {
			t.Errorf("ReadAt the end = %d, %v", n, err)
		}
		if n, err := d.ReadAt(p, -1); n != 0 || err == nil || err == io.EOF {
			t.Errorf("ReadAt(-1) = %d, %v", n, err)
		}
		commit(t, d)
		same(t, g.Read(whole), make([]byte, whole))
	})

	t.Run("after the end", func(t *testing.T) {
		g := factory(t)
		d := open(t, g, whole, target.Options{})
		content := pattern(whole, 6)
		write(t, d, content, 0)
		commit(t, d)
		if err := d.Abort(); err != nil {
			t.Errorf("Abort after Commit: %v", err)
		}
		if err := d.Commit(); err == nil {
			t.Error("second Commit: no error")
		}
		if _, err := d.WriteAt(make([]byte, 512), 0); err == nil {
			t.Error("WriteAt after Commit: no error")
		}
		same(t, g.Read(whole), content)

		g = factory(t)
		d = open(t, g, whole, target.Options{})
		write(t, d, content, 0)
		for range 2 {
			if err := d.Abort(); err != nil {
				t.Errorf("Abort: %v", err)
			}
		}
		if err := d.Commit(); err == nil {
			t.Error("Commit after Abort: no error")
		}
		if g.Capacity == 0 && g.Read(whole) != nil {
			t.Error("Abort leaves a half-written target behind")
		}
	})

	t.Run("not empty", func(t *testing.T) {
		g := factory(t)
		if g.Fill == nil {
			t.Skip("this target has no such thing")
		}
		old := pattern(whole+1<<20, 7)
		g.Fill(old)
		refused(t, g, g.Spec, whole, target.Options{}, target.ErrNotEmpty)
		same(t, g.Read(int64(len(old))), old)

		// Forced, nothing of the old content is left within the disk.
		d := open(t, g, whole, target.Options{Force: true})
		want := make([]byte, whole)
		copy(want[disk.BlockSize+7:], "hello")
		write(t, d, []byte("hello"), disk.BlockSize+7)
		commit(t, d)
		same(t, g.Read(whole), want)
	})

	t.Run("wrong format", func(t *testing.T) {
		g := factory(t)
		before := g.Read(whole)
		refused(t, g, g.Spec, whole, target.Options{Format: "no-such-format"}, nil)
		refused(t, g, g.Spec, -1, target.Options{}, nil)
		if !bytes.Equal(g.Read(whole), before) {
			t.Error("something was written")
		}
	})

	t.Run("cancelled", func(t *testing.T) {
		g := factory(t)
		before := g.Read(whole)
		ctx, cancel := context.WithCancel(ctx)
		cancel()
		if _, err := g.Opener.Open(ctx, g.Spec, whole, target.Options{}); !errors.Is(err, context.Canceled) {
			t.Errorf("Open: %v", err)
		}
		if !bytes.Equal(g.Read(whole), before) {
			t.Error("something was written")
		}
	})

	t.Run("too small", func(t *testing.T) {
		g := factory(t)
		if g.Capacity == 0 {
			t.Skip("this target has no such thing")
		}
		for _, force := range []bool{false, true} {
			refused(t, g, g.Spec, g.Capacity+disk.SectorSize, target.Options{Force: force}, target.ErrTooSmall)
		}
		d := open(t, g, g.Capacity, target.Options{})
		commit(t, d)
	})

	t.Run("larger", func(t *testing.T) {
		g := factory(t)
		if g.Capacity == 0 || g.Fill == nil {
			t.Skip("this target has no such thing")
		}
		old := pattern(int(g.Capacity), 9)
		g.Fill(old)
		for _, force := range []bool{false, true} {
			if _, err := g.Opener.Open(ctx, g.Spec, whole, target.Options{Force: force}); !errors.Is(err, target.ErrLarger) {
				t.Errorf("force %v: %v, want ErrLarger", force, err)
			}
		}
		same(t, g.Read(g.Capacity), old)
		d := open(t, g, whole, target.Options{Force: true})
		if d.Capacity() != g.Capacity {
			t.Errorf("capacity %d, want %d", d.Capacity(), g.Capacity)
		}
		write(t, d, []byte("new"), 0)
		commit(t, d)
		want := append(make([]byte, whole), old[whole:]...)
		copy(want, "new")
		same(t, g.Read(g.Capacity), want)
		if d.Capacity() != g.Capacity {
			t.Errorf("capacity %d after Commit, want %d", d.Capacity(), g.Capacity)
		}
	})

	t.Run("in use", func(t *testing.T) {
		g := factory(t)
		if g.Use == nil {
			t.Skip("this target has no such thing")
		}
		release := g.Use()
		before := g.Read(whole)
		for _, force := range []bool{false, true} {
			refused(t, g, g.Spec, whole, target.Options{Force: force}, target.ErrInUse)
		}
		if !bytes.Equal(g.Read(whole), before) {
			t.Error("something was written")
		}
		release()
	})

	t.Run("twice at once", func(t *testing.T) {
		g := factory(t)
		d := open(t, g, whole, target.Options{})
		refused(t, g, g.Spec, whole, target.Options{}, nil)
		refused(t, g, g.Spec, whole, target.Options{Force: true}, target.ErrInUse)
		write(t, d, []byte("mine"), 0)
		commit(t, d)
		want := make([]byte, whole)
		copy(want, "mine")
		same(t, g.Read(whole), want)
	})

	t.Run("not what was named", func(t *testing.T) {
		g := factory(t)
		for _, spec := range g.Not {
			for _, force := range []bool{false, true} {
				refused(t, g, spec, whole, target.Options{Force: force}, target.ErrNotNamed)
			}
		}
	})
}
