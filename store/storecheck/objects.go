package storecheck

import (
	"bytes"
	"errors"
	"io"
	"slices"
	"unsafe"

	"github.com/lockstep-backup/lockstep/store"
)

func put(t *run, s store.Store, key string, data []byte) {
	if err := s.Put(t.ctx, key, data); err != nil {
		t.Errorf("put %s: %v", key, err)
	}
}

func create(t *run, s store.Store, key string) store.Writer {
	w, err := s.Create(t.ctx, key)
	if err != nil {
		t.Fatalf("create %s: %v", key, err)
	}
	return w
}

func write(t *run, w store.Writer, p []byte) {
	if n, err := w.Write(p); n != len(p) || err != nil {
		t.Fatalf("write: %d of %d, %v", n, len(p), err)
	}
}

func wantObject(t *run, s store.Store, key string, want []byte) {
	info, err := s.Stat(t.ctx, key)
	if err != nil || info.Size != int64(len(want)) || info.Key != key {
		t.Errorf("stat %s: %+v, %v; want size %d", key, info, err, len(want))
		return
	}
	got := make([]byte, len(want))
	n, err := s.ReadRange(t.ctx, key, 0, got)
	if n != len(want) || err != nil && !errors.Is(err, io.EOF) || !bytes.Equal(got, want) {
		t.Errorf("read %s: %d bytes, %v; want %d, the same", key, n, err, len(want))
	}
}

func wantAbsent(t *run, s store.Store, key string) {
	if _, err := s.Stat(t.ctx, key); !errors.Is(err, store.ErrNotExist) {
		t.Errorf("stat %s: %v, want ErrNotExist", key, err)
	}
	if _, err := s.ReadRange(t.ctx, key, 0, make([]byte, 1)); !errors.Is(err, store.ErrNotExist) {
		t.Errorf("read %s: %v, want ErrNotExist", key, err)
	}
	if err := s.Delete(t.ctx, key); !errors.Is(err, store.ErrNotExist) {
		t.Errorf("delete %s: %v, want ErrNotExist", key, err)
	}
}

func wantKeys(t *run, s store.Store, prefix string, want ...string) {
	var got []string
	if err := s.List(t.ctx, prefix, func(i store.Info) error { got = append(got, i.Key); return nil }); err != nil {
		t.Errorf("list %q: %v", prefix, err)
	}
	if !slices.Equal(got, want) {
		t.Errorf("list %q: %q, want %q", prefix, got, want)
	}
}

func pattern(size int, seed byte) []byte {
	p := make([]byte, size)
	fill(p, seed)
	return p
}

// fill writes bytes that differ from page to page and from seed to seed.
func fill(p []byte, seed byte) {
	for i := range p {
		p[i] = byte(i) ^ byte(i>>8)*3 ^ byte(i>>12)*7 ^ byte(i>>20)*11 ^ seed*17
	}
}

// aligned gives a buffer as local stores like it (store.Writer, store.Store.ReadRange).
func aligned(size int) []byte {
	const page = 4096
	p := make([]byte, size+page)
	skip := int(-uintptr(unsafe.Pointer(unsafe.SliceData(p))) % page)
	return p[skip : skip+size : skip+size]
}
