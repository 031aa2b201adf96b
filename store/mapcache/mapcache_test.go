package mapcache

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/lockstep-backup/lockstep/store"
	"github.com/lockstep-backup/lockstep/store/faultstore"
	"github.com/lockstep-backup/lockstep/store/memstore"
	"github.com/lockstep-backup/lockstep/store/storetest"
)

func open(t testing.TB, under store.Store, dir string, o Options) *Store {
	t.Helper()
	s, err := Open(under, dir, o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Errorf("close: %v", err)
		}
	})
	return s
}

// newDir names a folder that is not there yet: a test's own may be read by others.
func newDir(t *testing.T) string { return filepath.Join(t.TempDir(), "cache") }

// below puts the suite's keys where they are kept.
type below struct {
	store.Store
	folder string
}

func (b below) key(key string) string {
	if len(key)+len(b.folder) > store.MaxKey {
		return key // the longest key there is has no room
	}
	return b.folder + key
}

func (b below) Put(ctx context.Context, key string, data []byte) error {
	return b.Store.Put(ctx, b.key(key), data)
}

func (b below) Create(ctx context.Context, key string) (store.Writer, error) {
	return b.Store.Create(ctx, b.key(key))
}

func (b below) ReadRange(ctx context.Context, key string, off int64, p []byte) (int, error) {
	return b.Store.ReadRange(ctx, b.key(key), off, p)
}

func (b below) Delete(ctx context.Context, key string) error {
	return b.Store.Delete(ctx, b.key(key))
}

func (b below) Stat(ctx context.Context, key string) (store.Info, error) {
	info, err := b.Store.Stat(ctx, b.key(key))
	info.Key = strings.TrimPrefix(info.Key, b.folder)
	return info, err
}

func (b below) List(ctx context.Context, prefix string, fn func(store.Info) error) error {
	strip := func(info store.Info) error {
		info.Key = strings.TrimPrefix(info.Key, b.folder)
		return fn(info)
	}
	if err := b.Store.List(ctx, b.folder+prefix, strip); err != nil || prefix != "" {
		return err
	}
	return b.Store.List(ctx, "", func(info store.Info) error {
		if strings.HasPrefix(info.Key, b.folder) {
			return nil
		}
		return fn(info)
	})
}

func TestConformance(t *testing.T) {
	for _, folder := range []string{"", "map/", "seg/", "log/"} {
		t.Run(folder, func(t *testing.T) {
			storetest.Run(t, func(t *testing.T) store.Store {
				return below{open(t, memstore.New(), newDir(t), Options{}), folder}
			})
			t.Run("reopen", func(t *testing.T) {
				under, dir := memstore.New(), newDir(t)
				storetest.RunReopen(t, func(t *testing.T) store.Store { return below{open(t, under, dir, Options{}), folder} })
			})
		})
	}
}

// bytesOf gives content that differs between positions and seeds.
func bytesOf(n int, seed byte) []byte {
	p := make([]byte, n)
	for i := range p {
		p[i] = byte(i) ^ byte(i>>8)*3 ^ byte(i>>16)*7 ^ seed*17
	}
	return p
}

func put(t *testing.T, s store.Store, key string, data []byte) {
	t.Helper()
	if err := s.Put(t.Context(), key, data); err != nil {
		t.Fatal(err)
	}
}

// wantRead reads and compares with what is in the object.
func wantRead(t *testing.T, s store.Store, key string, off int64, n int, object []byte) {
	t.Helper()
	p := make([]byte, n)
	got, err := s.ReadRange(t.Context(), key, off, p)
	want := object[min(off, int64(len(object))):min(off+int64(n), int64(len(object)))]
	if err != nil && !errors.Is(err, io.EOF) || !bytes.Equal(p[:got], want) {
		t.Fatalf("read %s, %d at %d: %d bytes, %v; want %d of the object", key, n, off, got, err, len(want))
	}
	if got < n && !errors.Is(err, io.EOF) {
		t.Fatalf("read %s, %d at %d: no EOF behind %d bytes", key, n, off, got)
	}
}

// counting gives a store and a function that says which reads came since.
func counting(under store.Store) (*faultstore.Store, func() []string) {
	s := faultstore.New(under)
	seen := 0
	return s, func() (reads []string) {
		trace := s.Trace()
		for _, e := range trace[seen:] {
			if e.Op == faultstore.Read {
				reads = append(reads, fmt.Sprintf("%s %d", e.Key, e.N))
			}
		}
		seen = len(trace)
		return reads
	}
}

func TestWhatIsKept(t *testing.T) {
	const w = Window
	type read struct {
		off int64
		n   int
	}
	for _, c := range []struct {
		name, key string
		size      int
		reads     []read
		below     []string // reads that reach the store
	}{
		{"windows of a map", "map/m/1", 3*w + 10, []read{{0, w}, {w, w}, {w, w}, {3 * w, w}, {3 * w, w}, {0, w}}, []string{"262144", "262144", "262144"}},
		{"a map's header brings its first window", "map/m/1", 3 * w, []read{{0, 64}, {0, w}, {0, 4096}, {0, 64}}, []string{"262144"}},
		{"a map shorter than a window", "map/m/1", 5000, []read{{0, 64}, {0, w}, {0, w}}, []string{"262144"}},
		{"an empty map", "map/m/1", 0, []read{{0, 64}, {0, w}}, []string{"262144"}},
		{"behind the end of a map there is nothing to keep", "map/m/1", w, []read{{w, w}, {w, w}}, []string{"262144", "262144"}},
		{"reads of other shapes go through", "map/m/1", 3 * w, []read{{0, 4 * w}, {0, 4 * w}, {w, 10}, {w, 10}, {10, w}}, []string{"1048576", "1048576", "10", "10", "262144"}},
		{"a segment's header", "seg/m/1", 3 * w, []read{{0, 4096}, {0, 4096}, {0, 100}}, []string{"4096"}},
		{"a segment's extents are not kept", "seg/m/1", 3 * w, []read{{4096, 4096}, {4096, 4096}, {0, w}, {0, w}}, []string{"4096", "4096", "262144", "262144"}},
		{"a log entry", "log/m/0", 900, []read{{0, 900}, {0, 900}, {0, 100}}, []string{"900"}},
		{"a log entry of which more is wanted than was kept", "log/m/0", 900, []read{{0, 100}, {0, 900}, {0, 2000}, {0, 3000}}, []string{"100", "900", "2000"}},
		{"a manifest", "points/m/p", 70_000, []read{{0, 70_000}, {0, 70_000}}, []string{"70000"}},
		{"a manifest larger than a window", "points/m/p", w + 1, []read{{0, w + 1}, {0, w + 1}}, []string{"262145", "262145"}},
		{"the configuration", "config", 900, []read{{0, 900}, {0, 900}}, []string{"900", "900"}},
		{"wrapped keys", "keys/recovery", 900, []read{{0, 900}, {0, 900}}, []string{"900", "900"}},
		{"trust", "trust/0", 900, []read{{0, 900}, {0, 900}}, []string{"900", "900"}},
		{"machine keys", "machines/m/key", 900, []read{{0, 900}, {0, 900}}, []string{"900", "900"}},
		{"header copies", "headers-a/m/h", 900, []read{{0, 900}, {0, 900}}, []string{"900", "900"}},
		{"key packages", "side/m/p/keypackage-1", 900, []read{{0, 900}, {0, 900}}, []string{"900", "900"}},
		{"second copies", "copies/config", 900, []read{{0, 900}, {0, 900}}, []string{"900", "900"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			under, reads := counting(memstore.New())
			data := bytesOf(c.size, 1)
			put(t, under, c.key, data)
			s := open(t, under, newDir(t), Options{})
			for _, r := range c.reads {
				wantRead(t, s, c.key, r.off, r.n, data)
			}
			want := slices.Clone(c.below)
			for i := range want {
				want[i] = c.key + " " + want[i]
			}
			if got := reads(); !slices.Equal(got, want) {
				t.Errorf("below: %q, want %q", got, want)
			}
			if n := s.Counts(); int(n.Hits) > len(c.reads)-len(c.below) {
				t.Errorf("%+v for %d reads, %d below", n, len(c.reads), len(c.below))
			}
		})
	}
}

func TestWhatIsWrittenIsKept(t *testing.T) {
	under, reads := counting(memstore.New())
	s := open(t, under, newDir(t), Options{})
	data := bytesOf(2*Window+100, 1)
	w, err := s.Create(t.Context(), "map/m/1")
	if err != nil {
		t.Fatal(err)
	}
	for i, rest := 0, data; len(rest) > 0; i++ {
		n := min(len(rest), 1000*(i+1))
		if _, err := w.Write(rest[:n]); err != nil {
			t.Fatal(err)
		}
		rest = rest[n:]
	}
	wantEntries(t, s, 0) // not before it is there
	if err := w.Commit(); err != nil {
		t.Fatal(err)
	}
	put(t, s, "log/m/0", data[:500])
	put(t, s, "map/m/2", data[:2*Window])
	wantEntries(t, s, 3+1+2)
	for off := int64(0); off < 3*Window; off += Window {
		wantRead(t, s, "map/m/1", off, Window, data)
	}
	wantRead(t, s, "log/m/0", 0, 500, data[:500])
	wantRead(t, s, "map/m/2", 0, 64, data)
	wantRead(t, s, "map/m/2", Window, Window, data[:2*Window])
	if got := reads(); len(got) > 0 {
		t.Errorf("below: %q", got)
	}
}

func TestWhatWasNotStoredIsNotKept(t *testing.T) {
	data := bytesOf(2*Window, 1)
	for _, c := range []struct {
		name   string
		faults []*faultstore.Fault
		do     func(s *Store) error
	}{
		{"put fails", []*faultstore.Fault{faultstore.Fail(faultstore.Put, 1, nil)}, func(s *Store) error { return s.Put(t.Context(), "map/m/1", data) }},
		{"commit fails", []*faultstore.Fault{faultstore.Fail(faultstore.Commit, 1, nil)}, func(s *Store) error { return write(t, s, data, store.Writer.Commit) }},
		{"write fails", []*faultstore.Fault{faultstore.Fail(faultstore.Write, 1, nil)}, func(s *Store) error { return write(t, s, data, store.Writer.Commit) }},
		{"abort", nil, func(s *Store) error { return errors.Join(write(t, s, data, store.Writer.Abort), io.EOF) }},
	} {
		t.Run(c.name, func(t *testing.T) {
			under := faultstore.New(memstore.New(), c.faults...)
			s := open(t, under, newDir(t), Options{})
			if err := c.do(s); err == nil {
				t.Fatal("no error")
			}
			wantEntries(t, s, 0)
			under.AssertExercised(t)
		})
	}
	t.Run("another's object", func(t *testing.T) {
		s := open(t, memstore.New(), newDir(t), Options{})
		theirs := bytesOf(2*Window, 2)
		put(t, s.Under(), "map/m/1", theirs)
		if err := s.Put(t.Context(), "map/m/1", data); !errors.Is(err, store.ErrExist) {
			t.Errorf("put: %v", err)
		}
		if err := write(t, s, data, store.Writer.Commit); !errors.Is(err, store.ErrExist) {
			t.Errorf("commit: %v", err)
		}
		wantRead(t, s, "map/m/1", 0, Window, theirs)
	})
}

func write(t *testing.T, s *Store, data []byte, end func(store.Writer) error) error {
	w, err := s.Create(t.Context(), "map/m/1")
	if err != nil {
		return err
	}
	if _, err := w.Write(data); err != nil {
		return errors.Join(err, w.Abort())
	}
	return end(w)
}

// entries lists what is kept, temporary files too.
func entries(t *testing.T, s *Store) (names []string) {
	t.Helper()
	if err := filepath.WalkDir(s.folder.root.Name(), func(p string, d os.DirEntry, err error) error {
		if err == nil && !d.IsDir() {
			names = append(names, p)
		}
		return err
	}); err != nil {
		t.Fatal(err)
	}
	return names
}

func wantEntries(t *testing.T, s *Store, want int) {
	t.Helper()
	n := 0
	for _, name := range entries(t, s) {
		if !strings.HasPrefix(filepath.Base(name), tempPrefix) {
			n++
		}
	}
	if n != want {
		t.Errorf("%d entries, want %d", n, want)
	}
}

// An absent object is asked for again each time: somebody may have made it.
func TestAbsenceIsNotKept(t *testing.T) {
	under, reads := counting(memstore.New())
	s := open(t, under, newDir(t), Options{})
	for range 2 {
		if _, err := s.ReadRange(t.Context(), "log/m/0", 0, make([]byte, 100)); !errors.Is(err, store.ErrNotExist) {
			t.Fatal(err)
		}
	}
	if got := reads(); len(got) != 2 {
		t.Errorf("below: %q, want two reads", got)
	}
	data := bytesOf(100, 1)
	put(t, under, "log/m/0", data) // by another process
	wantRead(t, s, "log/m/0", 0, 100, data)
}

func TestStatAndListAreTheStoresOwn(t *testing.T) {
	under := memstore.New()
	s := open(t, under, newDir(t), Options{})
	data := bytesOf(100, 1)
	put(t, s, "log/m/0", data)
	if err := under.Delete(t.Context(), "log/m/0"); err != nil { // by another process
		t.Fatal(err)
	}
	wantRead(t, s, "log/m/0", 0, 100, data) // the entry outlives it
	if _, err := s.Stat(t.Context(), "log/m/0"); !errors.Is(err, store.ErrNotExist) {
		t.Errorf("stat: %v", err)
	}
	if err := s.List(t.Context(), "", func(i store.Info) error { return errors.New(i.Key) }); err != nil {
		t.Errorf("list shows %v", err)
	}
	if err := s.Delete(t.Context(), "log/m/0"); !errors.Is(err, store.ErrNotExist) {
		t.Errorf("delete: %v", err)
	}
	if _, err := s.ReadRange(t.Context(), "log/m/0", 0, make([]byte, 1)); !errors.Is(err, store.ErrNotExist) {
		t.Errorf("read after delete: %v", err)
	}
}

func TestUncachedReadsSeeTheStore(t *testing.T) {
	under := memstore.New()
	s := open(t, under, newDir(t), Options{})
	put(t, s, "map/m/1", bytesOf(Window, 1))
	if err := under.Corrupt("map/m/1", func(p []byte) []byte { p[5] ^= 1; return p }); err != nil {
		t.Fatal(err)
	}
	wantRead(t, s, "map/m/1", 0, Window, bytesOf(Window, 1))
	p := make([]byte, Window)
	if _, err := s.ReadRange(store.Uncached(t.Context()), "map/m/1", 0, p); err != nil && !errors.Is(err, io.EOF) {
		t.Fatal(err)
	}
	if bytes.Equal(p, bytesOf(Window, 1)) {
		t.Error("a check of the store did not see its damage")
	}
}

// What was read damaged once must not stay so.
func TestForget(t *testing.T) {
	faults := faultstore.New(memstore.New(), faultstore.FlipBit(1, 8))
	s := open(t, faults, newDir(t), Options{})
	data := bytesOf(3*Window, 1)
	put(t, faults, "map/m/1", data)
	p := make([]byte, Window)
	if _, err := s.ReadRange(t.Context(), "map/m/1", 0, p); err != nil || bytes.Equal(p, data[:Window]) {
		t.Fatalf("the read was to be damaged: %v", err)
	}
	wantRead(t, s, "map/m/1", Window, Window, data)
	s.Forget("map/m/1")
	wantEntries(t, s, 0)
	wantRead(t, s, "map/m/1", 0, Window, data)
	faults.AssertExercised(t)
}

// A bad entry is a miss, and gives way to a good one.
func TestBadEntries(t *testing.T) {
	data, other := bytesOf(Window, 1), bytesOf(Window, 2)
	object := func(key string) string { return memstore.New().Location() + "\x00" + key }
	good := encodeEntry(object("map/m/1"), data, true)
	for name, bad := range map[string][]byte{
		"empty":                      {},
		"cut off":                    good[:len(good)-1],
		"longer":                     append(slices.Clone(good), 0),
		"zeroes":                     make([]byte, len(good)),
		"a flipped bit in the data":  flip(good, len(good)-100),
		"a flipped bit in the sum":   flip(good, len(good)-1),
		"a flipped end":              flip(good, len(magic)),
		"another version":            flip(good, 7),
		"another object's":           encodeEntry(object("map/m/2"), other, true),
		"another store's":            encodeEntry("s3://bucket\x00map/m/1", other, true),
		"data length beyond the end": append(append(slices.Clone(good[:len(magic)+3]), 0xff, 0xff, 0xff, 0xff), good[entryHead:]...),
		"name length beyond the end": append(append(slices.Clone(good[:len(magic)+1]), 0xff, 0xff), good[len(magic)+3:]...),
		"as large as a disk":         make([]byte, maxEntry+1),
	} {
		t.Run(name, func(t *testing.T) {
			under, reads := counting(memstore.New())
			put(t, under, "map/m/1", data)
			s := open(t, under, newDir(t), Options{})
			wantRead(t, s, "map/m/1", 0, Window, data)
			if err := os.WriteFile(entries(t, s)[0], bad, 0o600); err != nil {
				t.Fatal(err)
			}
			reads()
			wantRead(t, s, "map/m/1", 0, Window, data)
			wantRead(t, s, "map/m/1", 0, Window, data)
			if got := reads(); len(got) != 1 {
				t.Errorf("below: %q, want one read", got)
			}
		})
	}
	t.Run("a folder", func(t *testing.T) {
		s := open(t, memstore.New(), newDir(t), Options{})
		put(t, s, "map/m/1", data)
		name := entries(t, s)[0]
		if err := errors.Join(os.Remove(name), os.MkdirAll(filepath.Join(name, "x"), 0o700)); err != nil {
			t.Fatal(err)
		}
		wantRead(t, s, "map/m/1", 0, Window, data)
	})
}

func flip(p []byte, at int) []byte {
	p = slices.Clone(p)
	p[at] ^= 1
	return p
}

func TestLeastRecentlyUsedGoFirst(t *testing.T) {
	under, reads := counting(memstore.New())
	dir := newDir(t)
	s := open(t, under, dir, Options{MaxBytes: minBytes})
	const fits = minBytes / (Window + diskBlock)
	data := bytesOf(Window, 1)
	key := func(i int) string { return fmt.Sprintf("map/m/%04d", i) }
	for i := range fits {
		put(t, s, key(i), data)
	}
	wantRead(t, s, key(0), 0, Window, data) // used again
	for i := range 4 {
		put(t, s, key(fits+i), data)
	}
	reads()
	wantRead(t, s, key(0), 0, Window, data)
	wantRead(t, s, key(fits+3), 0, Window, data)
	if got := reads(); len(got) > 0 {
		t.Errorf("what was used last is gone: %q", got)
	}
	wantRead(t, s, key(1), 0, Window, data)
	if got := reads(); len(got) != 1 {
		t.Errorf("what was not used for longest is still there")
	}
	if size := sizeOf(t, s); size > minBytes {
		t.Errorf("%d bytes kept, more than %d", size, minBytes)
	}
	// Another process's entries count, and so do those of before.
	again := open(t, under, dir, Options{MaxBytes: minBytes})
	for i := range 3 * fits {
		put(t, []*Store{s, again}[i%2], key(1000+i), data)
	}
	if size := sizeOf(t, s); size > minBytes+2*minBytes/16+Window {
		t.Errorf("%d bytes kept by two processes, more than %d and two sixteenths", size, minBytes)
	}
}

func sizeOf(t *testing.T, s *Store) (size int64) {
	t.Helper()
	for _, name := range entries(t, s) {
		st, err := os.Stat(name)
		if err != nil {
			t.Fatal(err)
		}
		size += st.Size()
	}
	return size
}

// An object larger than the cache passes it by.
func TestHugeObjectIsNotKept(t *testing.T) {
	s := open(t, memstore.New(), newDir(t), Options{MaxBytes: minBytes})
	put(t, s, "map/m/2", bytesOf(Window, 2))
	if err := write(t, s, bytesOf(minBytes, 1), store.Writer.Commit); err != nil {
		t.Fatal(err)
	}
	wantEntries(t, s, 1)
	if n := len(entries(t, s)); n != 1 {
		t.Errorf("%d files left", n)
	}
}

func TestTempsOfTheDeadGo(t *testing.T) {
	dir := newDir(t)
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	for name, age := range map[string]time.Duration{tempPrefix + "old": 2 * staleTemp, tempPrefix + "new": 0, "foreign": 2 * staleTemp} {
		at := time.Now().Add(-age)
		if err := errors.Join(os.WriteFile(filepath.Join(dir, name), nil, 0o600), os.Chtimes(filepath.Join(dir, name), at, at)); err != nil {
			t.Fatal(err)
		}
	}
	s := open(t, memstore.New(), dir, Options{})
	var left []string
	for _, name := range entries(t, s) {
		left = append(left, filepath.Base(name))
	}
	if !slices.Equal(left, []string{"foreign", tempPrefix + "new"}) {
		t.Errorf("left: %q", left)
	}
}

// A cache that cannot be written costs speed, nothing else.
func TestUnwritableFolder(t *testing.T) {
	s := open(t, memstore.New(), newDir(t), Options{})
	if err := os.RemoveAll(s.folder.root.Name()); err != nil {
		t.Fatal(err)
	}
	data := bytesOf(2*Window, 1)
	if err := write(t, s, data, store.Writer.Commit); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		wantRead(t, s, "map/m/1", 0, Window, data)
	}
}

func TestOpenRefuses(t *testing.T) {
	base := t.TempDir()
	file := filepath.Join(base, "file")
	public := filepath.Join(base, "public")
	link := filepath.Join(base, "link")
	if err := errors.Join(os.WriteFile(file, nil, 0o600), os.Mkdir(public, 0o700), os.Chmod(public, 0o755), os.Symlink(t.TempDir(), link)); err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		dir string
		o   Options
	}{
		"a file":          {file, Options{}},
		"others may read": {public, Options{}},
		"a symbolic link": {link, Options{}},
		"too small":       {filepath.Join(base, "small"), Options{MaxBytes: 1}},
	} {
		if name == "others may read" && runtime.GOOS == "windows" {
			continue
		}
		if s, err := Open(memstore.New(), c.dir, c.o); err == nil {
			_ = s.Close()
			t.Errorf("%s: taken", name)
		}
	}
	s := open(t, memstore.New(), filepath.Join(base, "a", "new"), Options{})
	put(t, s, "log/m/0", []byte("x"))
	if st, err := os.Stat(s.folder.root.Name()); err != nil || runtime.GOOS != "windows" && st.Mode().Perm() != 0o700 {
		t.Errorf("mode %v, %v", st.Mode(), err)
	}
	if st, err := os.Stat(entries(t, s)[0]); err != nil || runtime.GOOS != "windows" && st.Mode().Perm() != 0o600 {
		t.Errorf("mode of an entry %v, %v", st.Mode(), err)
	}
}

func TestConcurrentUse(t *testing.T) {
	under, dir := memstore.New(), newDir(t)
	data := bytesOf(Window, 1)
	for i := range 40 {
		put(t, under, fmt.Sprintf("map/m/%d", i), data)
	}
	stores := []*Store{open(t, under, dir, Options{MaxBytes: minBytes}), open(t, under, dir, Options{MaxBytes: minBytes})}
	var wg sync.WaitGroup
	for g := range 4 {
		wg.Go(func() {
			s := stores[g%2]
			p := make([]byte, Window)
			for i := range 80 {
				key := fmt.Sprintf("map/m/%d", (i*7+g)%40)
				if n, err := s.ReadRange(t.Context(), key, 0, p); n != Window || err != nil && !errors.Is(err, io.EOF) || !bytes.Equal(p, data) {
					t.Errorf("read %s: %d, %v", key, n, err)
				}
				if i%10 == 0 {
					s.Forget(key)
				}
			}
		})
	}
	wg.Wait()
}

func FuzzEntry(f *testing.F) {
	good := encodeEntry("o", []byte("data"), true)
	f.Add(good)
	f.Add(good[:len(good)-1])
	f.Add(encodeEntry("o", nil, false))
	f.Add([]byte(magic))
	f.Fuzz(func(t *testing.T, raw []byte) {
		data, end, ok := parseEntry(raw, "o")
		if !ok {
			return
		}
		if again, endAgain, ok := parseEntry(encodeEntry("o", data, end), "o"); !ok || endAgain != end || !bytes.Equal(again, data) {
			t.Error("an entry that is taken does not survive being written again")
		}
	})
}
