package drill_test

import (
	"bytes"
	"errors"
	"io"
	"math/rand/v2"
	"testing"

	"pgregory.net/rapid"

	"github.com/lockstep-backup/lockstep/drill"
)

// A scratch disk behaves as a copy of what lies below would, and what lies
// below stays.
func TestScratchIsACopy(t *testing.T) {
	below := make([]byte, 5*4096+777)
	_, _ = rand.NewChaCha8([32]byte{3}).Read(below)
	original := bytes.Clone(below)
	rapid.Check(t, func(t *rapid.T) {
		s := drill.NewScratch(bytes.NewReader(below), int64(len(below)), 1<<20)
		model := bytes.Clone(below)
		for range rapid.IntRange(1, 20).Draw(t, "operations") {
			off := rapid.IntRange(0, len(below)).Draw(t, "offset")
			n := rapid.IntRange(0, len(below)-off).Draw(t, "length")
			switch rapid.IntRange(0, 2).Draw(t, "operation") {
			case 0:
				p := rapid.SliceOfN(rapid.Byte(), n, n).Draw(t, "bytes")
				if m, err := s.WriteAt(p, int64(off)); m != n || err != nil {
					t.Fatalf("write: %d, %v", m, err)
				}
				copy(model[off:], p)
			case 1:
				if err := s.Zero(int64(off), int64(n)); err != nil {
					t.Fatal(err)
				}
				clear(model[off : off+n])
			default:
				got := make([]byte, n+rapid.IntRange(0, 10).Draw(t, "beyond"))
				m, err := s.ReadAt(got, int64(off))
				want := min(len(got), len(model)-off)
				if m != want || !bytes.Equal(got[:m], model[off:off+m]) || m < len(got) && !errors.Is(err, io.EOF) {
					t.Fatalf("read %d at %d: %d, %v", len(got), off, m, err)
				}
			}
		}
		if !bytes.Equal(below, original) {
			t.Fatal("the disk below was written")
		}
	})
}

func TestScratchIsBounded(t *testing.T) {
	below := make([]byte, 1<<20)
	s := drill.NewScratch(bytes.NewReader(below), int64(len(below)), 3*4096)
	if n, err := s.WriteAt(make([]byte, 5*4096), 4096); n != 3*4096 || !errors.Is(err, drill.ErrScratchFull) || !errors.Is(s.Full(), drill.ErrScratchFull) {
		t.Errorf("%d, %v", n, err)
	}
	if n, err := s.WriteAt([]byte("again"), 4096); n != 5 || err != nil {
		t.Errorf("what has its page: %d, %v", n, err)
	}
	for _, k := range []struct{ off, n int64 }{{-1, 1}, {1 << 20, 1}, {1<<20 - 1, 2}} {
		if _, err := s.WriteAt(make([]byte, k.n), k.off); err == nil {
			t.Errorf("written outside: %d+%d", k.off, k.n)
		}
	}
	s.Close()
	if _, err := s.ReadAt(make([]byte, 1), 4096); err == nil {
		t.Error("read after it was closed")
	}
}
