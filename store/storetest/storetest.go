// Package storetest is the conformance suite of store.Store. Every adapter
// runs it; an operator may run it against a store of his own.
//
// It is not a test of durability under power loss: it shows what can be seen
// without cutting the power. Its invariant: what passes here may hold a
// repository.
package storetest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"testing"
	"unsafe"

	"github.com/lockstep-backup/lockstep/store"
)

// Run runs the suite. empty makes an empty store for each test, and registers
// its own cleaning up.
func Run(t *testing.T, empty func(t *testing.T) store.Store) {
	for _, c := range []struct {
		name string
		test func(*testing.T, store.Store)
	}{
		{"put gives back what was put", testPut},
		{"put keeps no reference to its argument", testPutCopies},
		{"put never overwrites", testPutExisting},
		{"create is visible from commit on", testCreate},
		{"create with writes of all sizes", testWriteSizes},
		{"abort leaves nothing", testAbort},
		{"commit never overwrites", testCommitExisting},
		{"one of 16 puts wins", testPutRace},
		{"one of 16 commits wins", testCommitRace},
		{"ranges", testRanges},
		{"a large object", testLargeObject},
		{"listing in the order of keys", testListOrder},
		{"listing below a prefix", testListPrefix},
		{"listing calls back without a lock held", testListCallback},
		{"keys that are none", testBadKeys},
		{"longest key", testLongestKey},
		{"absent objects", testAbsent},
		{"delete", testDelete},
		{"cancelled context", testCancelled},
		{"concurrent use", testConcurrent},
		{"whole objects within a bound", testGetAll},
		{"location", testLocation},
	} {
		t.Run(c.name, func(t *testing.T) { c.test(t, empty(t)) })
	}
}

// RunReopen tests what must outlive the process: open opens the same,
// initially empty place again and again, without the earlier store having been
// closed.
func RunReopen(t *testing.T, open func(t *testing.T) store.Store) {
	first := open(t)
	put(t, first, "a/put", pattern(5000, 1))
	w := create(t, first, "a/committed")
	write(t, w, pattern(9000, 2))
	if err := w.Commit(); err != nil {
		t.Fatalf("commit: %v", err)
	}
	pending := create(t, first, "a/pending")
	write(t, pending, pattern(100_000, 3))
	put(t, first, "a/deleted", nil)
	if err := first.Delete(t.Context(), "a/deleted"); err != nil {
		t.Fatalf("delete: %v", err)
	}

	second := open(t)
	wantObject(t, second, "a/put", pattern(5000, 1))
	wantObject(t, second, "a/committed", pattern(9000, 2))
	wantKeys(t, second, "", "a/committed", "a/put")
	if err := second.Put(t.Context(), "a/put", nil); !errors.Is(err, store.ErrExist) {
		t.Errorf("put over an object of before: %v, want ErrExist", err)
	}
	if err := pending.Abort(); err != nil {
		t.Errorf("abort: %v", err)
	}
	wantKeys(t, open(t), "", "a/committed", "a/put")
}

func testPut(t *testing.T, s store.Store) {
	for i, size := range []int{0, 1, 4095, 4096, 4097, 65536, 1<<20 + 3} {
		key := fmt.Sprintf("objects/%02d", i)
		data := pattern(size, byte(i))
		put(t, s, key, data)
		wantObject(t, s, key, data)
	}
	for i, size := range []int{4096, 1 << 20, 1<<20 + 1} {
		key := fmt.Sprintf("aligned/%02d", i)
		data := aligned(size)
		copy(data, pattern(size, byte(i)))
		put(t, s, key, data)
		wantObject(t, s, key, data)
	}
}

func testPutCopies(t *testing.T, s store.Store) {
	data := pattern(4096, 1)
	put(t, s, "k", data)
	clear(data)
	wantObject(t, s, "k", pattern(4096, 1))
	w := create(t, s, "w")
	data = pattern(4096, 2)
	write(t, w, data)
	clear(data)
	if err := w.Commit(); err != nil {
		t.Fatal(err)
	}
	wantObject(t, s, "w", pattern(4096, 2))
}

func testPutExisting(t *testing.T, s store.Store) {
	put(t, s, "a/b", []byte("first"))
	for _, data := range [][]byte{[]byte("second"), []byte("first"), nil} {
		if err := s.Put(t.Context(), "a/b", data); !errors.Is(err, store.ErrExist) {
			t.Errorf("put again: %v, want ErrExist", err)
		}
	}
	wantObject(t, s, "a/b", []byte("first"))
	wantKeys(t, s, "", "a/b")
}

func testCreate(t *testing.T, s store.Store) {
	w := create(t, s, "new/object")
	write(t, w, []byte("hello "))
	wantAbsent(t, s, "new/object")
	wantKeys(t, s, "")
	write(t, w, []byte("world"))
	if err := w.Commit(); err != nil {
		t.Fatalf("commit: %v", err)
	}
	wantObject(t, s, "new/object", []byte("hello world"))
	if err := w.Abort(); err != nil {
		t.Errorf("abort after commit: %v", err)
	}
	wantObject(t, s, "new/object", []byte("hello world"))
	if err := w.Commit(); err == nil {
		t.Error("second commit succeeded")
	}
	if _, err := w.Write([]byte("x")); err == nil {
		t.Error("write after commit succeeded")
	}
	wantObject(t, s, "new/object", []byte("hello world"))

	empty := create(t, s, "new/empty")
	if err := empty.Commit(); err != nil {
		t.Fatalf("commit of nothing: %v", err)
	}
	wantObject(t, s, "new/empty", nil)
}

func testWriteSizes(t *testing.T, s store.Store) {
	for i, sizes := range [][]int{
		{4096, 4096, 4096},
		{1 << 20, 100},
		{1 << 20, 4095, 4096, 1 << 20},
		{1, 4096, 1 << 20},
		{1<<20 + 4097, 0, 4095},
	} {
		key := fmt.Sprintf("k%d", i)
		w := create(t, s, key)
		var all []byte
		for j, size := range sizes {
			p := aligned(size)
			copy(p, pattern(size, byte(j)))
			write(t, w, p)
			all = append(all, p...)
		}
		if err := w.Commit(); err != nil {
			t.Fatalf("commit: %v", err)
		}
		wantObject(t, s, key, all)
	}
}

func testAbort(t *testing.T, s store.Store) {
	w := create(t, s, "a/b/c")
	write(t, w, pattern(100_000, 1))
	if err := w.Abort(); err != nil {
		t.Fatalf("abort: %v", err)
	}
	if err := w.Abort(); err != nil {
		t.Errorf("second abort: %v", err)
	}
	if err := w.Commit(); err == nil {
		t.Error("commit after abort succeeded")
	}
	if _, err := w.Write([]byte("x")); err == nil {
		t.Error("write after abort succeeded")
	}
	wantAbsent(t, s, "a/b/c")
	wantKeys(t, s, "")
	put(t, s, "a/b/c", []byte("later"))
	wantObject(t, s, "a/b/c", []byte("later"))
}

func testCommitExisting(t *testing.T, s store.Store) {
	early := create(t, s, "k")
	write(t, early, []byte("early"))
	put(t, s, "k", []byte("put"))
	if err := early.Commit(); !errors.Is(err, store.ErrExist) {
		t.Errorf("commit: %v, want ErrExist", err)
	}
	wantObject(t, s, "k", []byte("put"))
	wantKeys(t, s, "", "k")
}

func testPutRace(t *testing.T, s store.Store) {
	race(t, s, func(key string, data []byte) error { return s.Put(t.Context(), key, data) })
}

func testCommitRace(t *testing.T, s store.Store) {
	race(t, s, func(key string, data []byte) error {
		w, err := s.Create(t.Context(), key)
		if err != nil {
			return err
		}
		if _, err := w.Write(data); err != nil {
			return err
		}
		return w.Commit()
	})
}

func race(t *testing.T, s store.Store, attempt func(key string, data []byte) error) {
	const writers = 16
	for round := range 5 {
		key := fmt.Sprintf("log/machine/%d", round)
		errs := make([]error, writers)
		start := make(chan struct{})
		var wg sync.WaitGroup
		for i := range writers {
			wg.Go(func() {
				<-start
				errs[i] = attempt(key, pattern(5000+i, byte(i)))
			})
		}
		close(start)
		wg.Wait()
		winner := -1
		for i, err := range errs {
			switch {
			case err == nil && winner >= 0:
				t.Errorf("writers %d and %d both won", winner, i)
			case err == nil:
				winner = i
			case !errors.Is(err, store.ErrExist):
				t.Errorf("writer %d: %v, want ErrExist", i, err)
			}
		}
		if winner < 0 {
			t.Fatal("nobody won")
		}
		wantObject(t, s, key, pattern(5000+winner, byte(winner)))
	}
}

func testRanges(t *testing.T, s store.Store) {
	// Sizes around pages and around the sizes from which adapters read otherwise.
	for i, size := range []int64{0, 1, 4096, 1<<20 - 1, 1 << 20, 1<<20 + 1, 2<<20 + 4096, 2<<20 + 8191} {
		key := fmt.Sprintf("r%d", i)
		data := pattern(int(size), byte(i))
		put(t, s, key, data)
		for _, off := range []int64{0, 1, 4095, 4096, 1 << 19, 1 << 20, size - 1, size, size + 1, size + 4096, 1 << 40} {
			for _, length := range []int{0, 1, 511, 4096, 256 << 10, 256<<10 + 1, 1 << 20, 4 << 20} {
				if off < 0 {
					continue
				}
				p := aligned(length)
				for j := range p {
					p[j] = 0xee
				}
				n, err := s.ReadRange(t.Context(), key, off, p)
				want := data[min(off, size):min(off+int64(length), size)]
				if n != len(want) || !bytes.Equal(p[:n], want) {
					t.Errorf("size %d, read %d at %d: %d bytes, want %d of the object", size, length, off, n, len(want))
				}
				switch {
				case n < length && !errors.Is(err, io.EOF):
					t.Errorf("size %d, read %d at %d: %v, want EOF", size, length, off, err)
				case n == length && err != nil && !errors.Is(err, io.EOF):
					t.Errorf("size %d, read %d at %d: %v", size, length, off, err)
				case n == length && errors.Is(err, io.EOF) && off+int64(length) < size:
					t.Errorf("size %d, read %d at %d: EOF before the end", size, length, off)
				}
			}
		}
		if _, err := s.ReadRange(t.Context(), key, -1, make([]byte, 1)); err == nil || errors.Is(err, io.EOF) {
			t.Errorf("negative offset: %v", err)
		}
	}
}

func testLargeObject(t *testing.T, s store.Store) {
	const piece, pieces = 4 << 20, 9
	w := create(t, s, "segments/large")
	p := aligned(piece)
	for i := range pieces {
		fill(p, byte(i))
		write(t, w, p)
	}
	write(t, w, []byte("tail"))
	if err := w.Commit(); err != nil {
		t.Fatalf("commit: %v", err)
	}
	info, err := s.Stat(t.Context(), "segments/large")
	if err != nil || info.Size != piece*pieces+4 || info.Key != "segments/large" {
		t.Fatalf("stat: %+v, %v", info, err)
	}
	got, want := aligned(piece), aligned(piece)
	for i := range pieces {
		n, err := s.ReadRange(t.Context(), "segments/large", int64(i)*piece, got)
		if n != piece || err != nil {
			t.Fatalf("read piece %d: %d, %v", i, n, err)
		}
		if fill(want, byte(i)); !bytes.Equal(got, want) {
			t.Errorf("piece %d differs", i)
		}
	}
	n, err := s.ReadRange(t.Context(), "segments/large", piece*pieces, got)
	if n != 4 || !errors.Is(err, io.EOF) || string(got[:4]) != "tail" {
		t.Errorf("tail: %q, %v", got[:min(n, 8)], err)
	}
}

func testListOrder(t *testing.T, s store.Store) {
	// "-" and "." sort before "/", digits and letters after it.
	keys := []string{
		"a-b", "a.b", "a.b.c/x", "a/b", "a/b-", "a/b.c", "a0", "a0/b", "aa", "b/10", "b/9", "b/a/0", "b/a/b/c", "b_", "z",
	}
	shuffled := slices.Clone(keys)
	rand.New(rand.NewPCG(1, 2)).Shuffle(len(keys), func(i, j int) { shuffled[i], shuffled[j] = shuffled[j], shuffled[i] })
	for _, k := range shuffled {
		if slices.ContainsFunc(keys, func(other string) bool { return strings.HasPrefix(other, k+"/") }) {
			continue // a key that is another's folder is nothing a repository makes
		}
		put(t, s, k, []byte(k))
	}
	want := slices.DeleteFunc(slices.Clone(keys), func(k string) bool {
		return slices.ContainsFunc(keys, func(other string) bool { return strings.HasPrefix(other, k+"/") })
	})
	slices.Sort(want)
	wantKeys(t, s, "", want...)
	if err := s.List(t.Context(), "", func(i store.Info) error {
		if i.Size != int64(len(i.Key)) {
			t.Errorf("%s: size %d, want %d", i.Key, i.Size, len(i.Key))
		}
		return nil
	}); err != nil {
		t.Error(err)
	}
}

func testListPrefix(t *testing.T, s store.Store) {
	for _, k := range []string{"log/a/1", "log/a/2", "log/ab/1", "logs", "tmp/x", "z/tmp/y"} {
		put(t, s, k, nil)
	}
	wantKeys(t, s, "log/", "log/a/1", "log/a/2", "log/ab/1")
	wantKeys(t, s, "log/a/", "log/a/1", "log/a/2")
	wantKeys(t, s, "absent/")
	wantKeys(t, s, "log/a/1/")
	wantKeys(t, s, "", "log/a/1", "log/a/2", "log/ab/1", "logs", "tmp/x", "z/tmp/y")
	for _, prefix := range []string{"log", "/", "../", "log//", "LOG/", "log/./"} {
		err := s.List(t.Context(), prefix, func(store.Info) error { return nil })
		if !errors.Is(err, store.ErrKey) {
			t.Errorf("prefix %q: %v, want ErrKey", prefix, err)
		}
	}
	stop := errors.New("enough")
	calls := 0
	err := s.List(t.Context(), "", func(store.Info) error { calls++; return stop })
	if !errors.Is(err, stop) || calls != 1 {
		t.Errorf("callback's error: %v after %d calls", err, calls)
	}
}

func testListCallback(t *testing.T, s store.Store) {
	for _, k := range []string{"a/1", "a/2", "b/1"} {
		put(t, s, k, []byte(k))
	}
	if err := s.List(t.Context(), "", func(i store.Info) error {
		if i.Key == "a/1" {
			put(t, s, "c/1", nil)
		}
		if i.Key != "c/1" { // may or may not be seen
			wantObject(t, s, i.Key, []byte(i.Key))
		}
		return s.Delete(t.Context(), i.Key)
	}); err != nil {
		t.Errorf("list: %v", err)
	}
}

// BadKeys are not keys, each for one reason.
var BadKeys = []string{
	"", "/", "/a", "a/", "a//b", ".", "..", "a/.", "a/..", "../a", "a/../b", "./a", "A", "a b", "a\\b", "a\x00b", "a:b", "ä", "a\n", "~tmp/a", "a+b",
	strings.Repeat("a/", store.MaxKey/2) + "b",
}

func testBadKeys(t *testing.T, s store.Store) {
	for _, key := range BadKeys {
		want := func(op string, err error) {
			t.Helper()
			if !errors.Is(err, store.ErrKey) {
				t.Errorf("%s %q: %v, want ErrKey", op, key, err)
			}
		}
		want("put", s.Put(t.Context(), key, nil))
		_, err := s.Create(t.Context(), key)
		want("create", err)
		_, err = s.ReadRange(t.Context(), key, 0, make([]byte, 1))
		want("read", err)
		_, err = s.Stat(t.Context(), key)
		want("stat", err)
		want("delete", s.Delete(t.Context(), key))
	}
	wantKeys(t, s, "")
}

func testLongestKey(t *testing.T, s store.Store) {
	segment := strings.Repeat("0123456789abcdef", 8)
	key := strings.Join([]string{segment, segment, segment, segment[:store.MaxKey-3*len(segment)-3]}, "/")
	if len(key) != store.MaxKey {
		t.Fatalf("key of %d bytes", len(key))
	}
	put(t, s, key, []byte("x"))
	wantObject(t, s, key, []byte("x"))
	wantKeys(t, s, "", key)
}

func testAbsent(t *testing.T, s store.Store) {
	put(t, s, "folder/object", nil)
	for _, key := range []string{"absent", "folder/absent", "no/such/folder", "folder", "folder/object/below"} {
		wantAbsent(t, s, key)
	}
}

func testDelete(t *testing.T, s store.Store) {
	for _, size := range []int{10, 3 << 20} {
		key := fmt.Sprintf("d/%d", size)
		put(t, s, key, pattern(size, 1))
		wantObject(t, s, key, pattern(size, 1)) // so that a cache holds it
		if err := s.Delete(t.Context(), key); err != nil {
			t.Fatalf("delete: %v", err)
		}
		wantAbsent(t, s, key)
		put(t, s, key, pattern(size+1, 2))
		wantObject(t, s, key, pattern(size+1, 2))
	}
}

func testCancelled(t *testing.T, s store.Store) {
	put(t, s, "k", []byte("x"))
	ctx, cancel := context.WithCancel(t.Context())
	w, err := s.Create(ctx, "w")
	if err != nil {
		t.Fatal(err)
	}
	write(t, w, []byte("x"))
	cancel()
	want := func(op string, err error) {
		t.Helper()
		if !errors.Is(err, context.Canceled) {
			t.Errorf("%s: %v, want context.Canceled", op, err)
		}
	}
	want("put", s.Put(ctx, "new", nil))
	_, err = s.Create(ctx, "new")
	want("create", err)
	_, err = s.ReadRange(ctx, "k", 0, make([]byte, 1))
	want("read", err)
	_, err = s.Stat(ctx, "k")
	want("stat", err)
	want("list", s.List(ctx, "", func(store.Info) error { return nil }))
	want("delete", s.Delete(ctx, "k"))
	want("commit", w.Commit())
	wantKeys(t, s, "", "k")
}

func testConcurrent(t *testing.T, s store.Store) {
	put(t, s, "shared", pattern(3<<20, 9))
	var wg sync.WaitGroup
	for g := range 8 {
		wg.Go(func() {
			for i := range 10 {
				key := fmt.Sprintf("c/%d/%d", g, i)
				data := pattern(1000*(i+1), byte(g))
				put(t, s, key, data)
				wantObject(t, s, key, data)
				p := aligned(512 << 10)
				off := int64(i%4) * 4096
				if n, err := s.ReadRange(t.Context(), "shared", off, p); n != len(p) || err != nil || !bytes.Equal(p, pattern(3<<20, 9)[off:off+int64(n)]) {
					t.Errorf("read shared: %d, %v", n, err)
				}
				if err := s.List(t.Context(), fmt.Sprintf("c/%d/", g), func(store.Info) error { return nil }); err != nil {
					t.Errorf("list: %v", err)
				}
				if i%2 == 1 {
					if err := s.Delete(t.Context(), key); err != nil {
						t.Errorf("delete: %v", err)
					}
				}
			}
		})
	}
	wg.Wait()
	count := 0
	if err := s.List(t.Context(), "c/", func(store.Info) error { count++; return nil }); err != nil || count != 8*5 {
		t.Errorf("%d objects, want 40, %v", count, err)
	}
}

func testGetAll(t *testing.T, s store.Store) {
	put(t, s, "k", pattern(5000, 1))
	if got, err := store.GetAll(t.Context(), s, "k", 5000); err != nil || !bytes.Equal(got, pattern(5000, 1)) {
		t.Errorf("%d bytes, %v", len(got), err)
	}
	if _, err := store.GetAll(t.Context(), s, "k", 4999); func() bool { _, ok := errors.AsType[*store.TooLargeError](err); return !ok }() {
		t.Errorf("over the bound: %v, want TooLargeError", err)
	}
}

func testLocation(t *testing.T, s store.Store) {
	if l := s.Location(); l == "" || strings.Contains(l, "@") {
		t.Errorf("location %q", l)
	}
}

func put(t *testing.T, s store.Store, key string, data []byte) {
	t.Helper()
	if err := s.Put(t.Context(), key, data); err != nil {
		t.Errorf("put %s: %v", key, err)
	}
}

func create(t *testing.T, s store.Store, key string) store.Writer {
	t.Helper()
	w, err := s.Create(t.Context(), key)
	if err != nil {
		t.Fatalf("create %s: %v", key, err)
	}
	return w
}

func write(t *testing.T, w store.Writer, p []byte) {
	t.Helper()
	if n, err := w.Write(p); n != len(p) || err != nil {
		t.Fatalf("write: %d of %d, %v", n, len(p), err)
	}
}

func wantObject(t *testing.T, s store.Store, key string, want []byte) {
	t.Helper()
	info, err := s.Stat(t.Context(), key)
	if err != nil || info.Size != int64(len(want)) || info.Key != key {
		t.Errorf("stat %s: %+v, %v; want size %d", key, info, err, len(want))
		return
	}
	got := make([]byte, len(want))
	n, err := s.ReadRange(t.Context(), key, 0, got)
	if n != len(want) || err != nil && !errors.Is(err, io.EOF) || !bytes.Equal(got, want) {
		t.Errorf("read %s: %d bytes, %v; want %d, the same", key, n, err, len(want))
	}
}

func wantAbsent(t *testing.T, s store.Store, key string) {
	t.Helper()
	if _, err := s.Stat(t.Context(), key); !errors.Is(err, store.ErrNotExist) {
		t.Errorf("stat %s: %v, want ErrNotExist", key, err)
	}
	if _, err := s.ReadRange(t.Context(), key, 0, make([]byte, 1)); !errors.Is(err, store.ErrNotExist) {
		t.Errorf("read %s: %v, want ErrNotExist", key, err)
	}
	if err := s.Delete(t.Context(), key); !errors.Is(err, store.ErrNotExist) {
		t.Errorf("delete %s: %v, want ErrNotExist", key, err)
	}
}

func wantKeys(t *testing.T, s store.Store, prefix string, want ...string) {
	t.Helper()
	var got []string
	if err := s.List(t.Context(), prefix, func(i store.Info) error { got = append(got, i.Key); return nil }); err != nil {
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
