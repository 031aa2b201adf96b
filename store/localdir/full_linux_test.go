package localdir

import (
	"errors"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/lockstep-backup/lockstep/internal/judge"
	"github.com/lockstep-backup/lockstep/store"
)

func TestFullStore(t *testing.T) {
	dir := t.TempDir()
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, "size=1m,mode=0700"); err != nil {
		judge.Missing(t, "right to mount a small tmpfs: "+err.Error())
	}
	t.Cleanup(func() { _ = unix.Unmount(dir, unix.MNT_DETACH) })
	s := open(t, dir, Options{})
	if err := s.Put(t.Context(), "kept", make([]byte, 1000)); err != nil {
		t.Fatal(err)
	}
	if err := s.Put(t.Context(), "large", make([]byte, 2<<20)); !errors.Is(err, store.ErrFull) {
		t.Errorf("put: %v, want ErrFull", err)
	}
	w, err := s.Create(t.Context(), "large")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := w.Write(make([]byte, 2<<20)); !errors.Is(err, store.ErrFull) {
		t.Errorf("write: %v, want ErrFull", err)
	}
	if err := w.Commit(); !errors.Is(err, store.ErrFull) {
		t.Errorf("commit after a failed write: %v, want ErrFull", err)
	}
	if entries, err := os.ReadDir(filepath.Join(dir, tempFolder)); err != nil || len(entries) != 0 {
		t.Errorf("left behind: %v, %v", entries, err)
	}
	if err := s.Put(t.Context(), "small", make([]byte, 1000)); err != nil {
		t.Errorf("put after a full one: %v", err)
	}
	var keys int
	if err := s.List(t.Context(), "", func(store.Info) error { keys++; return nil }); err != nil || keys != 2 {
		t.Errorf("%d keys, %v", keys, err)
	}
}

func TestRenameWhereThereAreNoHardLinks(t *testing.T) {
	s := open(t, t.TempDir(), Options{})
	for i, want := range []error{nil, store.ErrExist} {
		w, err := s.create(t.Context(), "a/k")
		if err != nil {
			t.Fatal(err)
		}
		if err := s.makeFolder("a"); err != nil {
			t.Fatal(err)
		}
		if err := w.rename("a"); (err == nil) != (want == nil) || want != nil && !errors.Is(err, os.ErrExist) {
			t.Errorf("rename %d: %v", i, err)
		}
		_ = w.Abort()
	}
	if _, err := s.Stat(t.Context(), "a/k"); err != nil {
		t.Error(err)
	}
}
