package storecheck

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"sync"

	"github.com/lockstep-backup/lockstep/store"
)

func checkPut(t *run, s store.Store) {
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

func checkPutCopies(t *run, s store.Store) {
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

func checkPutExisting(t *run, s store.Store) {
	put(t, s, "a/b", []byte("first"))
	for _, data := range [][]byte{[]byte("second"), []byte("first"), nil} {
		if err := s.Put(t.ctx, "a/b", data); !errors.Is(err, store.ErrExist) {
			t.Errorf("put again: %v, want ErrExist", err)
		}
	}
	wantObject(t, s, "a/b", []byte("first"))
	wantKeys(t, s, "", "a/b")
}

func checkCreate(t *run, s store.Store) {
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

func checkWriteSizes(t *run, s store.Store) {
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

func checkAbort(t *run, s store.Store) {
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

func checkCommitExisting(t *run, s store.Store) {
	early := create(t, s, "k")
	write(t, early, []byte("early"))
	put(t, s, "k", []byte("put"))
	if err := early.Commit(); !errors.Is(err, store.ErrExist) {
		t.Errorf("commit: %v, want ErrExist", err)
	}
	wantObject(t, s, "k", []byte("put"))
	wantKeys(t, s, "", "k")
}

func checkPutRace(t *run, s store.Store) {
	race(t, s, func(key string, data []byte) error { return s.Put(t.ctx, key, data) })
}

func checkCommitRace(t *run, s store.Store) {
	race(t, s, func(key string, data []byte) error {
		w, err := s.Create(t.ctx, key)
		if err != nil {
			return err
		}
		if _, err := w.Write(data); err != nil {
			return err
		}
		return w.Commit()
	})
}

func race(t *run, s store.Store, attempt func(key string, data []byte) error) {
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

func checkRanges(t *run, s store.Store) {
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
				n, err := s.ReadRange(t.ctx, key, off, p)
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
		if _, err := s.ReadRange(t.ctx, key, -1, make([]byte, 1)); err == nil || errors.Is(err, io.EOF) {
			t.Errorf("negative offset: %v", err)
		}
	}
}

func checkLargeObject(t *run, s store.Store) {
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
	info, err := s.Stat(t.ctx, "segments/large")
	if err != nil || info.Size != piece*pieces+4 || info.Key != "segments/large" {
		t.Fatalf("stat: %+v, %v", info, err)
	}
	got, want := aligned(piece), aligned(piece)
	for i := range pieces {
		n, err := s.ReadRange(t.ctx, "segments/large", int64(i)*piece, got)
		if n != piece || err != nil {
			t.Fatalf("read piece %d: %d, %v", i, n, err)
		}
		if fill(want, byte(i)); !bytes.Equal(got, want) {
			t.Errorf("piece %d differs", i)
		}
	}
	n, err := s.ReadRange(t.ctx, "segments/large", piece*pieces, got)
	if n != 4 || !errors.Is(err, io.EOF) || string(got[:4]) != "tail" {
		t.Errorf("tail: %q, %v", got[:min(n, 8)], err)
	}
}

func checkListOrder(t *run, s store.Store) {
	// "-" and "." sort before "/", digits and letters after it.
	keys := []string{
		"a-b", "a.b", "a.b.c/x", "a/b", "a/b-", "a/b.c", "a0", "a0/b", "aa", "b/10", "b/9", "b/a/0", "b/a/b/c", "b_", "z",
	}
	for i := range keys {
		k := keys[(i*7+3)%len(keys)] // in no order
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
	if err := s.List(t.ctx, "", func(i store.Info) error {
		if i.Size != int64(len(i.Key)) {
			t.Errorf("%s: size %d, want %d", i.Key, i.Size, len(i.Key))
		}
		return nil
	}); err != nil {
		t.Error(err)
	}
}

func checkListPrefix(t *run, s store.Store) {
	for _, k := range []string{"log/a/1", "log/a/2", "log/ab/1", "logs", "tmp/x", "z/tmp/y"} {
		put(t, s, k, nil)
	}
	wantKeys(t, s, "log/", "log/a/1", "log/a/2", "log/ab/1")
	wantKeys(t, s, "log/a/", "log/a/1", "log/a/2")
	wantKeys(t, s, "absent/")
	wantKeys(t, s, "log/a/1/")
	wantKeys(t, s, "", "log/a/1", "log/a/2", "log/ab/1", "logs", "tmp/x", "z/tmp/y")
	for _, prefix := range []string{"log", "/", "../", "log//", "LOG/", "log/./"} {
		err := s.List(t.ctx, prefix, func(store.Info) error { return nil })
		if !errors.Is(err, store.ErrKey) {
			t.Errorf("prefix %q: %v, want ErrKey", prefix, err)
		}
	}
	stop := errors.New("enough")
	calls := 0
	err := s.List(t.ctx, "", func(store.Info) error { calls++; return stop })
	if !errors.Is(err, stop) || calls != 1 {
		t.Errorf("callback's error: %v after %d calls", err, calls)
	}
}

func checkListCallback(t *run, s store.Store) {
	for _, k := range []string{"a/1", "a/2", "b/1"} {
		put(t, s, k, []byte(k))
	}
	if err := s.List(t.ctx, "", func(i store.Info) error {
		if i.Key == "a/1" {
			put(t, s, "c/1", nil)
		}
		if i.Key != "c/1" { // may or may not be seen
			wantObject(t, s, i.Key, []byte(i.Key))
		}
		return s.Delete(t.ctx, i.Key)
	}); err != nil {
		t.Errorf("list: %v", err)
	}
}

// badKeys are not keys, each for one reason.
var badKeys = []string{
	"", "/", "/a", "a/", "a//b", ".", "..", "a/.", "a/..", "../a", "a/../b", "./a", "A", "a b", "a\\b", "a\x00b", "a:b", "ä", "a\n", "~tmp/a", "a+b",
	strings.Repeat("a/", store.MaxKey/2) + "b",
}

func checkBadKeys(t *run, s store.Store) {
	for _, key := range badKeys {
		want := func(op string, err error) {
			if !errors.Is(err, store.ErrKey) {
				t.Errorf("%s %q: %v, want ErrKey", op, key, err)
			}
		}
		want("put", s.Put(t.ctx, key, nil))
		_, err := s.Create(t.ctx, key)
		want("create", err)
		_, err = s.ReadRange(t.ctx, key, 0, make([]byte, 1))
		want("read", err)
		_, err = s.Stat(t.ctx, key)
		want("stat", err)
		want("delete", s.Delete(t.ctx, key))
	}
	wantKeys(t, s, "")
}

func checkLongestKey(t *run, s store.Store) {
	segment := strings.Repeat("0123456789abcdef", 8)
	key := strings.Join([]string{segment, segment, segment, segment}, "/")[:store.MaxKey-t.folder]
	put(t, s, key, []byte("x"))
	wantObject(t, s, key, []byte("x"))
	wantKeys(t, s, "", key)
}

func checkAbsent(t *run, s store.Store) {
	put(t, s, "folder/object", nil)
	for _, key := range []string{"absent", "folder/absent", "no/such/folder", "folder", "folder/object/below"} {
		wantAbsent(t, s, key)
	}
}

func checkDelete(t *run, s store.Store) {
	for _, size := range []int{10, 3 << 20} {
		key := fmt.Sprintf("d/%d", size)
		put(t, s, key, pattern(size, 1))
		wantObject(t, s, key, pattern(size, 1)) // so that a cache holds it
		if err := s.Delete(t.ctx, key); err != nil {
			t.Fatalf("delete: %v", err)
		}
		wantAbsent(t, s, key)
		put(t, s, key, pattern(size+1, 2))
		wantObject(t, s, key, pattern(size+1, 2))
	}
}

func checkCancelled(t *run, s store.Store) {
	put(t, s, "k", []byte("x"))
	ctx, cancel := context.WithCancel(t.ctx)
	w, err := s.Create(ctx, "w")
	if err != nil {
		t.Fatal(err)
	}
	write(t, w, []byte("x"))
	cancel()
	want := func(op string, err error) {
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

func checkConcurrent(t *run, s store.Store) {
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
				if n, err := s.ReadRange(t.ctx, "shared", off, p); n != len(p) || err != nil || !bytes.Equal(p, pattern(3<<20, 9)[off:off+int64(n)]) {
					t.Errorf("read shared: %d, %v", n, err)
				}
				if err := s.List(t.ctx, fmt.Sprintf("c/%d/", g), func(store.Info) error { return nil }); err != nil {
					t.Errorf("list: %v", err)
				}
				if i%2 == 1 {
					if err := s.Delete(t.ctx, key); err != nil {
						t.Errorf("delete: %v", err)
					}
				}
			}
		})
	}
	wg.Wait()
	count := 0
	if err := s.List(t.ctx, "c/", func(store.Info) error { count++; return nil }); err != nil || count != 8*5 {
		t.Errorf("%d objects, want 40, %v", count, err)
	}
}

func checkGetAll(t *run, s store.Store) {
	put(t, s, "k", pattern(5000, 1))
	if got, err := store.GetAll(t.ctx, s, "k", 5000); err != nil || !bytes.Equal(got, pattern(5000, 1)) {
		t.Errorf("%d bytes, %v", len(got), err)
	}
	if _, err := store.GetAll(t.ctx, s, "k", 4999); func() bool { _, ok := errors.AsType[*store.TooLargeError](err); return !ok }() {
		t.Errorf("over the bound: %v, want TooLargeError", err)
	}
}

func checkLocation(t *run, s store.Store) {
	if l := s.Location(); l == "" || strings.Contains(l, "@") {
		t.Errorf("location %q", l)
	}
}
