// Package storetest is the conformance suite of store.Store as tests: package
// storecheck, which operators run as well, and what takes a second process or
// somebody who tampers.
package storetest

import (
	"bytes"
	"errors"
	"io"
	"slices"
	"testing"

	"github.com/lockstep-backup/lockstep/store"
	"github.com/lockstep-backup/lockstep/store/storecheck"
)

// Run runs the suite. empty makes an empty store for each test, and registers
// its own cleaning up.
func Run(t *testing.T, empty func(t *testing.T) store.Store) {
	for _, c := range storecheck.Contract() {
		t.Run(c.Name, func(t *testing.T) {
			for _, failure := range c.Run(t.Context(), empty(t)).Failures() {
				t.Error(failure)
			}
		})
	}
}

// RunReopen tests what must outlive the process: open opens the same,
// initially empty place again and again, without the earlier store having been
// closed.
func RunReopen(t *testing.T, open func(t *testing.T) store.Store) {
	first := open(t)
	put(t, first, "a/put", pattern(5000, 1))
	w := create(t, first, "a/committed", pattern(9000, 2))
	if err := w.Commit(); err != nil {
		t.Fatalf("commit: %v", err)
	}
	pending := create(t, first, "a/pending", pattern(100_000, 3))
	put(t, first, "a/deleted", nil)
	if err := first.Delete(t.Context(), "a/deleted"); err != nil {
		t.Fatalf("delete: %v", err)
	}

	second := open(t)
	wantObject(t, second, "a/put", pattern(5000, 1))
	wantObject(t, second, "a/committed", pattern(9000, 2))
	wantKeys(t, second, "a/committed", "a/put")
	if err := second.Put(t.Context(), "a/put", nil); !errors.Is(err, store.ErrExist) {
		t.Errorf("put over an object of before: %v, want ErrExist", err)
	}
	if err := pending.Abort(); err != nil {
		t.Errorf("abort: %v", err)
	}
	wantKeys(t, open(t), "a/committed", "a/put")
}

func put(t *testing.T, s store.Store, key string, data []byte) {
	t.Helper()
	if err := s.Put(t.Context(), key, data); err != nil {
		t.Fatalf("put %s: %v", key, err)
	}
}

func create(t *testing.T, s store.Store, key string, data []byte) store.Writer {
	t.Helper()
	w, err := s.Create(t.Context(), key)
	if err != nil {
		t.Fatalf("create %s: %v", key, err)
	}
	if n, err := w.Write(data); n != len(data) || err != nil {
		t.Fatalf("write: %d of %d, %v", n, len(data), err)
	}
	return w
}

func wantObject(t *testing.T, s store.Store, key string, want []byte) {
	t.Helper()
	info, err := s.Stat(t.Context(), key)
	if err != nil || info.Size != int64(len(want)) {
		t.Errorf("stat %s: %+v, %v; want size %d", key, info, err, len(want))
		return
	}
	got := make([]byte, len(want)+1)
	n, err := s.ReadRange(t.Context(), key, 0, got)
	if n != len(want) || !errors.Is(err, io.EOF) || !bytes.Equal(got[:n], want) {
		t.Errorf("read %s: %d bytes, %v; want %d, the same", key, n, err, len(want))
	}
}

func wantKeys(t *testing.T, s store.Store, want ...string) {
	t.Helper()
	var got []string
	if err := s.List(t.Context(), "", func(i store.Info) error { got = append(got, i.Key); return nil }); err != nil {
		t.Errorf("list: %v", err)
	}
	if !slices.Equal(got, want) {
		t.Errorf("list: %q, want %q", got, want)
	}
}

// pattern is bytes that differ from seed to seed.
func pattern(size int, seed byte) []byte {
	p := make([]byte, size)
	for i := range p {
		p[i] = byte(i) ^ byte(i>>8)*3 ^ seed*17
	}
	return p
}
