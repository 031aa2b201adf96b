package fusefs

import (
	"bytes"
	"encoding/json"
	"errors"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/lockstep-backup/lockstep/export/exporttest"
	"github.com/lockstep-backup/lockstep/internal/judge"
)

// content is noise with a hole of 4 MiB.
func content(size int) []byte {
	p := make([]byte, size)
	_, _ = rand.NewChaCha8([32]byte{9}).Read(p)
	clear(p[4<<20 : 8<<20])
	return p
}

// mount shows disks in a folder, or skips where this host cannot mount.
func mount(t *testing.T, disks ...exporttest.Disk) string {
	t.Helper()
	if f, err := os.OpenFile("/dev/fuse", os.O_RDWR, 0); err != nil {
		judge.Missing(t, "/dev/fuse")
	} else {
		_ = f.Close()
	}
	if os.Geteuid() != 0 {
		judge.Tool(t, "fusermount3")
	}
	dir := t.TempDir()
	m, err := New(exporttest.Point(t, disks...), dir, Options{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if lazy, err := m.Unmount(); lazy || err != nil {
			t.Errorf("unmount: lazy %v, %v", lazy, err)
		}
		if _, err := os.Stat(filepath.Join(dir, "point.json")); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("still mounted: %v", err)
		}
	})
	return dir
}

func TestFilesAreTheDisks(t *testing.T) {
	want := content(13<<20 + 512)
	dir := mount(t, exporttest.Disk{ID: "vda", Content: want}, exporttest.Disk{ID: "vdb", Content: make([]byte, 1<<20)})
	path := filepath.Join(dir, "vda.raw")
	original := filepath.Join(t.TempDir(), "original")
	if err := os.WriteFile(original, want, 0o600); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command(judge.Tool(t, "cmp"), original, path).CombinedOutput(); err != nil {
		t.Errorf("cmp: %v\n%s", err, out)
	}
	judge.Decided(t, "cmp")
	sum := func(p string) string {
		out, err := exec.Command(judge.Tool(t, "sha256sum"), p).Output()
		if err != nil {
			t.Fatal(err)
		}
		return strings.Fields(string(out))[0]
	}
	if sum(path) != sum(original) {
		t.Error("sha256sum differs")
	}
	judge.Decided(t, "sha256sum")
	st, err := os.Stat(path)
	if err != nil || st.Size() != int64(len(want)) || st.Mode() != 0o400 {
		t.Errorf("%v, %v", st, err)
	}
	if entries, err := os.ReadDir(dir); err != nil || len(entries) != 3 {
		t.Errorf("%v, %v", entries, err)
	}
	text, err := os.ReadFile(filepath.Join(dir, "point.json"))
	var about struct{ Machine string }
	if err != nil || json.Unmarshal(text, &about) != nil || about.Machine != "web01" {
		t.Errorf("%s, %v", text, err)
	}
	for _, do := range []func() error{
		func() error { return os.WriteFile(path, []byte("x"), 0) },
		func() error { return os.Remove(path) },
		func() error { return os.WriteFile(filepath.Join(dir, "new"), nil, 0o600) },
	} {
		if err := do(); !errors.Is(err, syscall.EROFS) && !errors.Is(err, os.ErrPermission) {
			t.Errorf("something was written: %v", err)
		}
	}
}

func TestHoles(t *testing.T) {
	dir := mount(t, exporttest.Disk{ID: "vda", Content: content(12 << 20)})
	path := filepath.Join(dir, "vda.raw")
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	for _, k := range []struct {
		at     int64
		whence int
		want   int64
	}{{0, unix.SEEK_HOLE, 4 << 20}, {5 << 20, unix.SEEK_DATA, 8 << 20}, {5 << 20, unix.SEEK_HOLE, 5 << 20}, {9 << 20, unix.SEEK_HOLE, 12 << 20}, {1, unix.SEEK_DATA, 1}} {
		if got, err := f.Seek(k.at, k.whence); err != nil || got != k.want {
			t.Errorf("seek %d from %d: %d, %v, want %d", k.whence, k.at, got, err, k.want)
		}
	}
	// GNU cp makes a sparse copy by asking for holes.
	to := filepath.Join(t.TempDir(), "copy")
	if out, err := exec.Command(judge.Tool(t, "cp"), "--sparse=always", path, to).CombinedOutput(); err != nil {
		t.Fatalf("cp: %v\n%s", err, out)
	}
	got, err := os.ReadFile(to)
	if err != nil || !bytes.Equal(got, content(12<<20)) {
		t.Errorf("copy differs, %v", err)
	}
	judge.Decided(t, "cp --sparse")
}

func TestCryptsetupReadsThroughIt(t *testing.T) {
	cryptsetup := judge.Tool(t, "cryptsetup")
	img := filepath.Join(t.TempDir(), "luks")
	if err := os.WriteFile(img, make([]byte, 20<<20), 0o600); err != nil {
		t.Fatal(err)
	}
	format := exec.Command(cryptsetup, "luksFormat", "-q", "--type", "luks2", "--pbkdf", "pbkdf2", "--pbkdf-force-iterations", "1000", img, "-")
	format.Stdin = strings.NewReader("correct horse")
	if out, err := format.CombinedOutput(); err != nil {
		t.Fatalf("luksFormat: %v\n%s", err, out)
	}
	p, err := os.ReadFile(img)
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(mount(t, exporttest.Disk{ID: "vda", Content: p}), "vda.raw")
	dump := func(p string) string {
		out, err := exec.Command(cryptsetup, "luksDump", "--debug", p).CombinedOutput()
		if err != nil {
			t.Fatalf("luksDump %s: %v\n%s", p, err, out)
		}
		return strings.ReplaceAll(string(out), p, "")
	}
	if dump(path) != dump(img) {
		t.Error("luksDump differs")
	}
	judge.Decided(t, "cryptsetup luksDump")
	open := exec.Command(cryptsetup, "open", "--test-passphrase", "--readonly", "--type", "luks", path)
	open.Stdin = strings.NewReader("correct horse")
	if out, err := open.CombinedOutput(); err != nil {
		t.Errorf("open --test-passphrase: %v\n%s", err, out)
	}
	judge.Decided(t, "cryptsetup open --test-passphrase")
}

func TestRefusesFoldersInUse(t *testing.T) {
	p := exporttest.Point(t, exporttest.Disk{ID: "vda", Content: make([]byte, 4096)})
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "mine"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, d := range []string{dir, filepath.Join(dir, "mine"), filepath.Join(dir, "none")} {
		if m, err := New(p, d, Options{}); err == nil {
			_, _ = m.Unmount()
			t.Errorf("mounted on %s", d)
		}
	}
}

// Programs with open files do not keep the folder.
func TestUnmountWhileInUse(t *testing.T) {
	if os.Geteuid() != 0 {
		judge.Missing(t, "root, to unmount lazily")
	}
	if _, err := os.Stat("/dev/fuse"); err != nil {
		judge.Missing(t, "/dev/fuse")
	}
	dir := t.TempDir()
	m, err := New(exporttest.Point(t, exporttest.Disk{ID: "vda", Content: content(9 << 20)}), dir, Options{})
	if err != nil {
		t.Fatal(err)
	}
	f, err := os.Open(filepath.Join(dir, "vda.raw"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if lazy, err := m.Unmount(); !lazy || err != nil {
		t.Errorf("unmount: lazy %v, %v", lazy, err)
	}
	if entries, err := os.ReadDir(dir); err != nil || len(entries) != 0 {
		t.Errorf("the folder still has %v, %v", entries, err)
	}
}
