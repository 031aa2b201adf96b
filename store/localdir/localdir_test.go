package localdir

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"
	"unsafe"

	"github.com/lockstep-backup/lockstep/internal/judge"
	"github.com/lockstep-backup/lockstep/store"
	"github.com/lockstep-backup/lockstep/store/storetest"
)

func open(t testing.TB, dir string, options Options) *Store {
	t.Helper()
	s, err := Create(dir, options)
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

// shm gives a folder in a tmpfs, or ends the test.
func shm(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("/dev/shm", "lockstep-localdir-")
	if err != nil {
		judge.Missing(t, "tmpfs on /dev/shm")
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	return dir
}

func TestConformance(t *testing.T) {
	for name, root := range map[string]func(*testing.T) string{
		"disk":  func(t *testing.T) string { return t.TempDir() },
		"tmpfs": shm,
	} {
		t.Run(name, func(t *testing.T) {
			storetest.Run(t, func(t *testing.T) store.Store { return open(t, root(t), Options{}) })
			t.Run("reopen", func(t *testing.T) {
				dir := root(t)
				storetest.RunReopen(t, func(t *testing.T) store.Store { return open(t, dir, Options{}) })
			})
		})
	}
	t.Run("buffered", func(t *testing.T) {
		storetest.Run(t, func(t *testing.T) store.Store { return open(t, t.TempDir(), Options{Buffered: true}) })
	})
}

type recorder struct {
	mu  sync.Mutex
	ops []string
}

func (r *recorder) trace(op, name string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	op, _, _ = strings.Cut(op, " direct")
	if strings.HasPrefix(name, tempFolder+"/") {
		name = tempFolder + "/*"
	}
	r.ops = append(r.ops, op+" "+name)
}

func (r *recorder) take() []string {
	r.mu.Lock()
	defer r.mu.Unlock()
	ops := r.ops
	r.ops = nil
	return ops
}

// A removed or moved fsync shows here as a difference.
func TestTraces(t *testing.T) {
	var r recorder
	s := open(t, t.TempDir(), Options{Trace: r.trace})
	want := func(name string, ops ...string) {
		t.Helper()
		if got := r.take(); !slices.Equal(got, ops) {
			t.Errorf("%s:\n got  %s\n want %s", name, strings.Join(got, "\n      "), strings.Join(ops, "\n      "))
		}
	}
	ctx := t.Context()
	if err := s.Put(ctx, "log/m/1", []byte("x")); err != nil {
		t.Fatal(err)
	}
	want("first put",
		"mkdir ~tmp", "sync folder .",
		"create ~tmp/*", "write ~tmp/*", "sync ~tmp/*",
		"mkdir log", "sync folder .", "mkdir log/m", "sync folder log",
		"link log/m/1", "sync folder log/m", "unlink ~tmp/*")
	if err := s.Put(ctx, "log/m/2", []byte("x")); err != nil {
		t.Fatal(err)
	}
	want("second put",
		"create ~tmp/*", "write ~tmp/*", "sync ~tmp/*", "link log/m/2", "sync folder log/m", "unlink ~tmp/*")
	if err := s.Put(ctx, "log/m/2", []byte("x")); !errors.Is(err, store.ErrExist) {
		t.Fatal(err)
	}
	want("put of what exists",
		"create ~tmp/*", "write ~tmp/*", "sync ~tmp/*", "link log/m/2", "unlink ~tmp/*")

	w, err := s.Create(ctx, "log/m/3")
	if err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if _, err := w.Write(alignedBuffer(8192)); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := w.Write(alignedBuffer(4097)); err != nil {
		t.Fatal(err)
	}
	want("writing", "create ~tmp/*", "write ~tmp/*", "write ~tmp/*", "write ~tmp/*", "write ~tmp/*")
	if err := w.Commit(); err != nil {
		t.Fatal(err)
	}
	want("commit", "sync ~tmp/*", "link log/m/3", "sync folder log/m", "unlink ~tmp/*")

	w, err = s.Create(ctx, "log/m/4")
	if err != nil {
		t.Fatal(err)
	}
	if err := w.Abort(); err != nil {
		t.Fatal(err)
	}
	want("abort", "create ~tmp/*", "unlink ~tmp/*")
	if err := s.Delete(ctx, "log/m/3"); err != nil {
		t.Fatal(err)
	}
	want("delete", "unlink log/m/3", "sync folder log/m")

	again := open(t, s.path, Options{Trace: r.trace})
	if err := again.Put(ctx, "log/m/5", nil); err != nil {
		t.Fatal(err)
	}
	want("put by another process, which cannot know whether the folders' names were synced",
		"mkdir ~tmp", "sync folder .", "create ~tmp/*", "sync ~tmp/*",
		"mkdir log", "sync folder .", "mkdir log/m", "sync folder log",
		"link log/m/5", "sync folder log/m", "unlink ~tmp/*")
}

func TestAlignedWritesGoAroundThePageCache(t *testing.T) {
	var direct, buffered int
	s := open(t, t.TempDir(), Options{Trace: func(op, _ string) {
		switch op {
		case "write direct":
			direct++
		case "write":
			buffered++
		}
	}})
	w, err := s.Create(t.Context(), "k")
	if err != nil {
		t.Fatal(err)
	}
	if !w.(*writer).direct {
		judge.Missing(t, "file system with direct I/O")
	}
	for _, size := range []int{1 << 20, 4096, 1<<20 + 5, 3, 4096} {
		if _, err := w.Write(alignedBuffer(size)); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Commit(); err != nil {
		t.Fatal(err)
	}
	if direct != 3 || buffered != 3 {
		t.Errorf("%d writes around the page cache, %d through it; want 3 and 3", direct, buffered)
	}
}

func TestModes(t *testing.T) {
	if runtime.GOOS == "windows" {
		t.Skip("access lists, not modes")
	}
	dir := filepath.Join(t.TempDir(), "new", "store")
	s := open(t, dir, Options{})
	if err := s.Put(t.Context(), "a/b", []byte("x")); err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]fs.FileMode{".": 0o700, "a": 0o700, "a/b": 0o600, tempFolder: 0o700} {
		if st, err := os.Stat(filepath.Join(dir, name)); err != nil || st.Mode().Perm() != want {
			t.Errorf("%s: %v, %v; want %v", name, st.Mode(), err, want)
		}
	}
}

func TestForeignFilesAreNotListed(t *testing.T) {
	dir := t.TempDir()
	outside := t.TempDir()
	s := open(t, dir, Options{})
	if err := s.Put(t.Context(), "a/b", []byte("x")); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(outside, "secret"), []byte("s"), 0o600); err != nil {
		t.Fatal(err)
	}
	for link, to := range map[string]string{
		"link":          filepath.Join(outside, "secret"),
		"up":            outside,
		"a/relative":    "../../" + filepath.Base(outside) + "/secret",
		"dangling":      "nowhere",
		"Upper":         "a",
		"lost+found.ln": "a",
	} {
		if err := os.Symlink(to, filepath.Join(dir, link)); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Mkdir(filepath.Join(dir, "lost+found"), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "README.TXT"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	var keys []string
	if err := s.List(t.Context(), "", func(i store.Info) error { keys = append(keys, i.Key); return nil }); err != nil {
		t.Fatal(err)
	}
	if !slices.Equal(keys, []string{"a/b"}) {
		t.Errorf("listed %q", keys)
	}
	for _, key := range []string{"link", "up/secret", "a/relative", "dangling"} {
		if n, err := s.ReadRange(t.Context(), key, 0, make([]byte, 10)); err == nil || n != 0 {
			t.Errorf("read %s: %d bytes, %v", key, n, err)
		}
		if _, err := s.Stat(t.Context(), key); err == nil {
			t.Errorf("stat %s succeeded", key)
		}
	}
	for _, key := range []string{"up/new", "link"} {
		if err := s.Put(t.Context(), key, []byte("x")); err == nil {
			t.Errorf("put %s succeeded", key)
		}
	}
	if entries, err := os.ReadDir(outside); err != nil || len(entries) != 1 {
		t.Errorf("outside: %v, %v", entries, err)
	}
	if err := s.Put(t.Context(), "a", nil); !errors.Is(err, store.ErrKey) {
		t.Errorf("put over a folder: %v", err)
	}
	if err := s.Put(t.Context(), "a/b/c", nil); !errors.Is(err, store.ErrKey) {
		t.Errorf("put below an object: %v", err)
	}
}

func TestCleanTemp(t *testing.T) {
	s := open(t, t.TempDir(), Options{})
	if n, err := s.CleanTemp(t.Context(), 0); n != 0 || err != nil {
		t.Errorf("without a folder: %d, %v", n, err)
	}
	stale, err := s.Create(t.Context(), "stale")
	if err != nil {
		t.Fatal(err)
	}
	fresh, err := s.Create(t.Context(), "fresh")
	if err != nil {
		t.Fatal(err)
	}
	yesterday := time.Now().Add(-24 * time.Hour)
	if err := os.Chtimes(filepath.Join(s.path, stale.(*writer).temp), yesterday, yesterday); err != nil {
		t.Fatal(err)
	}
	if n, err := s.CleanTemp(t.Context(), time.Hour); n != 1 || err != nil {
		t.Errorf("removed %d, %v; want 1", n, err)
	}
	if err := stale.Commit(); err == nil {
		t.Error("committed what was removed")
	}
	if err := fresh.Commit(); err != nil {
		t.Errorf("commit: %v", err)
	}
	if entries, err := os.ReadDir(filepath.Join(s.path, tempFolder)); err != nil || len(entries) != 0 {
		t.Errorf("left behind: %v, %v", entries, err)
	}
}

func TestFolderRemovedBySomebodyElse(t *testing.T) {
	s := open(t, t.TempDir(), Options{})
	if err := s.Put(t.Context(), "a/b/1", nil); err != nil {
		t.Fatal(err)
	}
	if err := os.RemoveAll(filepath.Join(s.path, "a")); err != nil {
		t.Fatal(err)
	}
	if err := s.Put(t.Context(), "a/b/2", nil); err != nil {
		t.Errorf("put: %v", err)
	}
}

func TestHandleCacheIsBoundedAndSeesOthersDeletes(t *testing.T) {
	dir := t.TempDir()
	s := open(t, dir, Options{})
	other := open(t, dir, Options{})
	data := bytes.Repeat([]byte("x"), minCachedSize)
	read := func(key string) error {
		_, err := s.ReadRange(t.Context(), key, 0, make([]byte, 10))
		return err
	}
	const most = 64
	s.handles.most = most
	for i := range most + 10 {
		key := fmt.Sprintf("s/%d", i)
		if err := s.Put(t.Context(), key, data); err != nil {
			t.Fatal(err)
		}
		if err := read(key); err != nil {
			t.Fatal(err)
		}
	}
	if n := s.handles.order.Len(); n != most || len(s.handles.byKey) != n {
		t.Errorf("%d files open, want %d", n, most)
	}
	last := fmt.Sprintf("s/%d", most+9)
	if runtime.GOOS == "windows" {
		return
	}
	if err := other.Delete(t.Context(), last); err != nil {
		t.Fatal(err)
	}
	if err := read(last); !errors.Is(err, store.ErrNotExist) {
		t.Errorf("read of what another process deleted: %v", err)
	}
}

func TestLocations(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "with space")
	s := open(t, dir, Options{})
	if _, err := Open(s.Location(), Options{}); err != nil {
		t.Errorf("open %s: %v", s.Location(), err)
	}
	if runtime.GOOS != "windows" && s.Location() != "file://"+strings.ReplaceAll(dir, " ", "%20") {
		t.Errorf("location %s", s.Location())
	}
	if _, err := Open(dir+"x", Options{}); !errors.Is(err, store.ErrNotExist) {
		t.Errorf("absent: %v", err)
	}
	for _, bad := range []string{"", "s3://bucket", "file://host/path", "file:///a?b=c"} {
		if _, err := Open(bad, Options{}); err == nil || errors.Is(err, store.ErrNotExist) {
			t.Errorf("%q: %v", bad, err)
		}
	}
	file := filepath.Join(t.TempDir(), "f")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := Create(file, Options{}); err == nil {
		t.Error("created a store on a file")
	}
}

func alignedBuffer(size int) []byte {
	p := make([]byte, size+alignment)
	skip := int(-uintptr(unsafe.Pointer(unsafe.SliceData(p))) % alignment)
	return p[skip : skip+size : skip+size]
}

func BenchmarkWrite(b *testing.B) {
	for _, buffered := range []bool{false, true} {
		b.Run(fmt.Sprintf("buffered=%v", buffered), func(b *testing.B) {
			s := open(b, b.TempDir(), Options{Buffered: buffered})
			const piece, pieces = 4 << 20, 16
			p := alignedBuffer(piece)
			for i := range p {
				p[i] = byte(i * i >> 3)
			}
			b.SetBytes(piece * pieces)
			for i := range b.N {
				w, err := s.Create(b.Context(), fmt.Sprintf("k/%d", i))
				if err != nil {
					b.Fatal(err)
				}
				for range pieces {
					if _, err := w.Write(p); err != nil {
						b.Fatal(err)
					}
				}
				if err := w.Commit(); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

func BenchmarkRead(b *testing.B) {
	s := open(b, b.TempDir(), Options{})
	const piece, size = 1 << 20, 64 << 20
	w, err := s.Create(b.Context(), "k")
	if err != nil {
		b.Fatal(err)
	}
	p := alignedBuffer(piece)
	for range size / piece {
		if _, err := w.Write(p); err != nil {
			b.Fatal(err)
		}
	}
	if err := w.Commit(); err != nil {
		b.Fatal(err)
	}
	b.SetBytes(size)
	for b.Loop() {
		for off := int64(0); off < size; off += piece {
			if _, err := s.ReadRange(b.Context(), "k", off, p); err != nil && !errors.Is(err, io.EOF) {
				b.Fatal(err)
			}
		}
	}
}
