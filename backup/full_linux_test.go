package backup_test

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"syscall"
	"testing"

	"github.com/lockstep-backup/lockstep/backup"
	"github.com/lockstep-backup/lockstep/internal/judge"
	"github.com/lockstep-backup/lockstep/store"
	"github.com/lockstep-backup/lockstep/store/localdir"
	"github.com/lockstep-backup/lockstep/verify"
)

// TestStoreFull fills a real file system, makes room, and goes on with what
// was stored before.
func TestStoreFull(t *testing.T) {
	dir := t.TempDir()
	if err := syscall.Mount("tmpfs", dir, "tmpfs", 0, "size=100m"); err != nil {
		judge.Missing(t, "mounting a tmpfs ("+err.Error()+")")
	}
	t.Cleanup(func() {
		if err := syscall.Unmount(dir, 0); err != nil {
			t.Error(err)
		}
	})
	st, err := localdir.Create(filepath.Join(dir, "repo"), localdir.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer st.Close()
	b := newBench(t, st, "vda")
	small := noise(1, 10<<20)
	b.write(t, "vda", small)
	before, err := b.run(backup.Request{})
	if err != nil {
		t.Fatal(err)
	}
	large := append(bytes.Clone(small), noise(2, 120<<20)...)
	b.write(t, "vda", large)
	for range 2 { // not only the first time
		if _, err := b.run(backup.Request{}); !errors.Is(err, store.ErrFull) {
			t.Fatalf("a full store gives %v", err)
		}
		if n := len(b.points(t)); n != 1 {
			t.Fatalf("%d points are listed", n)
		}
	}
	if left, err := os.ReadDir(filepath.Join(dir, "repo", "~tmp")); err != nil || len(left) != 0 {
		t.Errorf("%d temporary files were left, %v", len(left), err)
	}
	if !bytes.Equal(b.restored(t, before.ID, "vda")[0], small) {
		t.Error("the recovery point before differs")
	}
	if err := syscall.Mount("tmpfs", dir, "tmpfs", syscall.MS_REMOUNT, "size=400m"); err != nil {
		t.Fatal(err)
	}
	b.reopen(t)
	p, err := b.run(backup.Request{})
	if err != nil {
		t.Fatal(err)
	}
	m, err := b.Repository.Manifest(t.Context(), b.points(t)[1])
	if err != nil {
		t.Fatal(err)
	}
	if got := m.Disks[0].Stats.Reused; got == 0 {
		t.Error("nothing of the attempts that met the full store was used")
	} else {
		t.Logf("%d MiB of the attempts before were used", got>>20)
	}
	if !bytes.Equal(b.restored(t, p.ID, "vda")[0], large) {
		t.Error("content differs")
	}
	res, err := verify.Run(t.Context(), verify.Request{Repository: b.Repository})
	if err != nil || len(res.Damage) != 0 {
		t.Errorf("verify says %v, %v", res.Damage, err)
	}
}
