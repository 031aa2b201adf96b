package image

import (
	"bytes"
	"errors"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"testing"

	"github.com/lockstep-backup/lockstep/disk"
	"github.com/lockstep-backup/lockstep/target"
	"github.com/lockstep-backup/lockstep/target/targettest"
)

func readFile(t *testing.T, path string) []byte {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		t.Fatal(err)
	}
	return b
}

func fill(t *testing.T, path string, content []byte) {
	t.Helper()
	if err := os.WriteFile(path, content, 0o600); err != nil {
		t.Fatal(err)
	}
}

func fileTarget(t *testing.T, dir string) targettest.Target {
	path := filepath.Join(dir, "restored disk.img")
	dangling := filepath.Join(dir, "dangling")
	not := []string{dir, dir + string(filepath.Separator), filepath.Join(dir, "no", "such", "folder"), "", "nbd://host/disk"}
	if runtime.GOOS != "windows" {
		if err := os.Symlink(filepath.Join(dir, "nowhere"), dangling); err != nil {
			t.Fatal(err)
		}
		socket := filepath.Join(dir, "s")
		l, err := net.Listen("unix", socket)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = l.Close() })
		not = append(not, dangling, socket, "/dev/zero")
	}
	return targettest.Target{
		Opener: Opener{},
		Spec:   path,
		Read:   func(int64) []byte { return readFile(t, path) },
		Fill:   func(content []byte) { fill(t, path, content) },
		Not:    not,
	}
}

func TestNewFilesAreTargets(t *testing.T) {
	targettest.Run(t, func(t *testing.T) targettest.Target { return fileTarget(t, t.TempDir()) })
}

func TestEmptyFile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "d")
	fill(t, path, nil)
	d, err := Opener{}.Open(t.Context(), path, 1000, target.Options{})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := d.WriteAt([]byte("x"), 999); err != nil {
		t.Fatal(err)
	}
	if err := d.Abort(); err != nil {
		t.Fatal(err)
	}
	if b, err := os.ReadFile(path); err != nil || len(b) != 0 {
		t.Errorf("after Abort: %d bytes, %v; it was there, empty, before", len(b), err)
	}
}

func TestForcedAbortLeavesNoHalfDisk(t *testing.T) {
	path := filepath.Join(t.TempDir(), "d")
	fill(t, path, []byte("old"))
	d, err := Opener{}.Open(t.Context(), path, 1000, target.Options{Force: true})
	if err != nil {
		t.Fatal(err)
	}
	if err := d.Abort(); err != nil {
		t.Fatal(err)
	}
	if b, err := os.ReadFile(path); err != nil || len(b) != 0 {
		t.Errorf("%d bytes, %v", len(b), err)
	}
}

func TestFormats(t *testing.T) {
	path := filepath.Join(t.TempDir(), "d")
	for _, format := range []string{"qcow2", "vhd", "RAW"} {
		if _, err := (Opener{}).Open(t.Context(), path, 1000, target.Options{Format: format}); !errors.Is(err, ErrFormat) {
			t.Errorf("%s: %v", format, err)
		}
	}
	if _, err := os.Lstat(path); !errors.Is(err, fs.ErrNotExist) {
		t.Error("a file was made")
	}
}

func TestAbortSparesWhatIsNotOurs(t *testing.T) {
	if runtime.GOOS == "windows" {
		t.Skip("an open file cannot be renamed there")
	}
	dir := t.TempDir()
	path := filepath.Join(dir, "d")
	d, err := Opener{}.Open(t.Context(), path, 1000, target.Options{})
	if err != nil {
		t.Fatal(err)
	}
	fill(t, path+".new", []byte("somebody else's"))
	if err := os.Rename(path+".new", path); err != nil {
		t.Fatal(err)
	}
	if err := d.Abort(); err != nil {
		t.Fatal(err)
	}
	if b := readFile(t, path); string(b) != "somebody else's" {
		t.Errorf("%q is left", b)
	}
}

func TestCommitNoticesACut(t *testing.T) {
	path := filepath.Join(t.TempDir(), "d")
	d, err := Opener{}.Open(t.Context(), path, 100_000, target.Options{})
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(path, 5000); err != nil {
		t.Fatal(err)
	}
	if n, err := d.ReadAt(make([]byte, 10_000), 0); err == nil || n > 5000 {
		t.Errorf("ReadAt = %d, %v", n, err)
	}
	if err := d.Commit(); err == nil {
		t.Error("Commit: no error")
	}
	if err := d.Abort(); err != nil {
		t.Error(err)
	}
}

func TestWriteAllocatesNothing(t *testing.T) {
	d, err := Opener{}.Open(t.Context(), filepath.Join(t.TempDir(), "d"), 8<<20, target.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = d.Abort() }()
	p := disk.AlignedBuffer(disk.BlockSize)
	copy(p, bytes.Repeat([]byte{1}, len(p)))
	off := int64(0)
	if n := testing.AllocsPerRun(50, func() {
		if _, err := d.WriteAt(p, off); err != nil {
			t.Fatal(err)
		}
		off += disk.BlockSize
	}); n != 0 {
		t.Errorf("%v allocations a write", n)
	}
}

// TestInPlace: what is there stays but for what is written.
func TestInPlace(t *testing.T) {
	path := filepath.Join(t.TempDir(), "disk")
	open := func(size int64) (target.Disk, error) {
		return Opener{}.Open(t.Context(), path, size, target.Options{InPlace: true})
	}
	if _, err := open(0); !errors.Is(err, target.ErrNotNamed) {
		t.Fatalf("nothing there: %v", err)
	}
	want := bytes.Repeat([]byte("old "), 3000)
	if err := os.WriteFile(path, want, 0o640); err != nil {
		t.Fatal(err)
	}
	if _, err := open(12001); !errors.Is(err, target.ErrTooSmall) {
		t.Fatalf("too small: %v", err)
	}
	for _, end := range []func(target.Disk) error{target.Disk.Commit, target.Disk.Abort} {
		d, err := open(5000)
		if err != nil {
			t.Fatal(err)
		}
		if d.Capacity() != 12000 {
			t.Fatal(d.Capacity())
		}
		if _, err := d.WriteAt([]byte("x"), 12000); err == nil {
			t.Fatal("wrote behind the end")
		}
		if _, err := d.WriteAt([]byte("new"), 8191); err != nil {
			t.Fatal(err)
		}
		if err := end(d); err != nil {
			t.Fatal(err)
		}
		copy(want[8191:], "new")
		if got, err := os.ReadFile(path); err != nil || !bytes.Equal(got, want) {
			t.Fatalf("content: %v", err)
		}
	}
}
