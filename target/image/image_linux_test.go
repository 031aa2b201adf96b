package image

import (
	"bytes"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/lockstep-backup/lockstep/disk"
	"github.com/lockstep-backup/lockstep/internal/judge"
	"github.com/lockstep-backup/lockstep/target"
	"github.com/lockstep-backup/lockstep/target/targettest"
)

func TestFilesOnTmpfsAreTargets(t *testing.T) {
	if st, err := os.Stat("/dev/shm"); err != nil || !st.IsDir() {
		judge.Missing(t, "tmpfs at /dev/shm")
	}
	targettest.Run(t, func(t *testing.T) targettest.Target {
		dir, err := os.MkdirTemp("/dev/shm", "lockstep-test")
		if err != nil {
			judge.Missing(t, "tmpfs at /dev/shm")
		}
		t.Cleanup(func() { _ = os.RemoveAll(dir) })
		return fileTarget(t, dir)
	})
}

// loopTarget is a blank device of 8 MiB.
func loopTarget(t *testing.T, sectorSize int) targettest.Target {
	const capacity = 8 << 20
	path := filepath.Join(t.TempDir(), "backing")
	fill(t, path, make([]byte, capacity))
	dev := judge.Loop(t, path, sectorSize)
	link := filepath.Join(t.TempDir(), "by-id")
	if err := os.Symlink(dev, link); err != nil {
		t.Fatal(err)
	}
	return targettest.Target{
		Opener:   Opener{},
		Spec:     link,
		Capacity: capacity,
		Read: func(size int64) []byte {
			f, err := os.Open(dev)
			if err != nil {
				t.Fatal(err)
			}
			defer f.Close()
			b := make([]byte, size)
			if _, err := io.ReadFull(f, b); err != nil {
				t.Fatal(err)
			}
			return b
		},
		Fill: func(content []byte) {
			f, err := os.OpenFile(dev, os.O_WRONLY, 0)
			if err != nil {
				t.Fatal(err)
			}
			defer f.Close()
			if _, err := f.Write(content); err != nil {
				t.Fatal(err)
			}
		},
		Use: func() func() {
			f, err := os.OpenFile(dev, os.O_RDONLY|unix.O_EXCL, 0)
			if err != nil {
				t.Fatal(err)
			}
			return func() { _ = f.Close() }
		},
	}
}

func TestLoopDevicesAreTargets(t *testing.T) {
	targettest.Run(t, func(t *testing.T) targettest.Target { return loopTarget(t, 512) })
}

// TestDeviceKeepsWhatIsBehindTheDisk and what it never said to be blank in between.
func TestDeviceKeepsWhatIsBehindTheDisk(t *testing.T) {
	for _, sectorSize := range []int{512, 4096} {
		g := loopTarget(t, sectorSize)
		old := bytes.Repeat([]byte{0xEE}, 8<<20)
		clear(old[:1<<20])
		clear(old[7<<20:])
		g.Fill(old)
		const size = 3<<20 + 4096
		d, err := g.Opener.Open(t.Context(), g.Spec, size, target.Options{Larger: true})
		if err != nil {
			t.Fatal(err)
		}
		if !d.(*Disk).Direct() {
			t.Error("the device is written through the page cache")
		}
		p := disk.AlignedBuffer(4096)
		copy(p, "hello")
		if _, err := d.WriteAt(p, 2<<20); err != nil {
			t.Fatal(err)
		}
		if err := d.Commit(); err != nil {
			t.Fatal(err)
		}
		clear(old[:size])
		copy(old[2<<20:], "hello")
		if !bytes.Equal(g.Read(8<<20), old) {
			t.Errorf("sectors of %d: what is there differs", sectorSize)
		}
	}
}

func TestMarkAtTheEndOfADevice(t *testing.T) {
	g := loopTarget(t, 512)
	old := make([]byte, 8<<20)
	old[len(old)-512] = 'E' // a backup GPT, or the mark of a RAID
	g.Fill(old)
	if _, err := g.Opener.Open(t.Context(), g.Spec, 1<<20, target.Options{Larger: true}); !errors.Is(err, target.ErrNotEmpty) {
		t.Errorf("Open: %v", err)
	}
}

func TestMountedDeviceIsRefused(t *testing.T) {
	g := loopTarget(t, 512)
	dev, err := filepath.EvalSymlinks(g.Spec)
	if err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command(judge.Tool(t, "mkfs.ext4"), "-q", dev).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	at := t.TempDir()
	if err := unix.Mount(dev, at, "ext4", 0, ""); err != nil {
		judge.Missing(t, "mounting ext4")
	}
	defer func() {
		if err := unix.Unmount(at, 0); err != nil {
			t.Error(err)
		}
	}()
	_, err = g.Opener.Open(t.Context(), g.Spec, 1<<20, target.Options{Force: true})
	if !errors.Is(err, target.ErrInUse) {
		t.Errorf("Open: %v", err)
	}
	judge.Decided(t, "mount")
}

func TestUsedFilesAreRefused(t *testing.T) {
	path := filepath.Join(t.TempDir(), "d")
	content := bytes.Repeat([]byte{1}, 1<<20)
	fill(t, path, content)
	refuse := func(word string) {
		t.Helper()
		_, err := Opener{}.Open(t.Context(), path, 1<<20, target.Options{Force: true})
		if !errors.Is(err, target.ErrInUse) || !strings.Contains(err.Error(), word) {
			t.Errorf("Open: %v, want ErrInUse because of %q", err, word)
		}
		if !bytes.Equal(readFile(t, path), content) {
			t.Error("something was written")
		}
	}
	reader, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	if err := disk.LockForReading(reader); err != nil {
		t.Fatal(err)
	}
	refuse("QEMU") // a backup of it runs, or an image tool reads it
	if err := reader.Close(); err != nil {
		t.Fatal(err)
	}
	dev := judge.Loop(t, path, 512)
	refuse(dev)
}

func TestQEMUKeepsOut(t *testing.T) {
	qemuIO := judge.Tool(t, "qemu-io")
	path := filepath.Join(t.TempDir(), "d")
	d, err := Opener{}.Open(t.Context(), path, 1<<20, target.Options{})
	if err != nil {
		t.Fatal(err)
	}
	for _, flags := range [][]string{{"-r"}, nil} {
		out, _ := exec.Command(qemuIO, append(flags, "-f", "raw", "-c", "read 0 512", path)...).CombinedOutput()
		if !bytes.Contains(out, []byte("lock")) {
			t.Errorf("QEMU opens a half-written disk: %s", out)
		}
	}
	if err := d.Commit(); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command(qemuIO, "-f", "raw", "-c", "read 0 512", path).CombinedOutput(); err != nil || bytes.Contains(out, []byte("lock")) {
		t.Errorf("afterwards: %v: %s", err, out)
	}
	judge.Decided(t, "qemu-io: our lock")
}

func TestNewFileIsSparse(t *testing.T) {
	path := filepath.Join(t.TempDir(), "d")
	d, err := Opener{}.Open(t.Context(), path, 1<<30, target.Options{})
	if err != nil {
		t.Fatal(err)
	}
	p := disk.AlignedBuffer(1 << 20)
	copy(p, "x")
	for _, off := range []int64{0, 512 << 20} {
		if _, err := d.WriteAt(p, off); err != nil {
			t.Fatal(err)
		}
	}
	if err := d.Zero(512<<20, 512<<20); err != nil {
		t.Fatal(err)
	}
	if err := d.Commit(); err != nil {
		t.Fatal(err)
	}
	var st unix.Stat_t
	if err := unix.Stat(path, &st); err != nil {
		t.Fatal(err)
	}
	if st.Size != 1<<30 || st.Blocks*512 > 2<<20 {
		t.Errorf("size %d, %d bytes on the disk", st.Size, st.Blocks*512)
	}
}

func TestRefusedDirectWritesGoThroughTheCache(t *testing.T) {
	path := filepath.Join(t.TempDir(), "d")
	opened, err := Opener{}.Open(t.Context(), path, 1<<20, target.Options{})
	if err != nil {
		t.Fatal(err)
	}
	d := opened.(*Disk)
	d.refused.Store(true)
	p := disk.AlignedBuffer(1 << 20)
	copy(p[4096:], "hello")
	if _, err := d.WriteAt(p, 0); err != nil || d.Direct() {
		t.Fatal(err)
	}
	if err := d.Commit(); err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(readFile(t, path), p) {
		t.Error("content differs")
	}
}

// TestFullDisk: a file system without space says so, and Abort cleans up.
func TestFullDisk(t *testing.T) {
	dir := t.TempDir()
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, "size=1m"); err != nil {
		judge.Missing(t, "mounting tmpfs")
	}
	defer func() {
		if err := unix.Unmount(dir, 0); err != nil {
			t.Error(err)
		}
	}()
	path := filepath.Join(dir, "d")
	d, err := Opener{}.Open(t.Context(), path, 4<<20, target.Options{})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := d.WriteAt(bytes.Repeat([]byte{1}, 4<<20), 0); !errors.Is(err, unix.ENOSPC) {
		t.Errorf("WriteAt: %v", err)
	}
	if err := d.Abort(); err != nil {
		t.Error(err)
	}
	if _, err := os.Lstat(path); !errors.Is(err, os.ErrNotExist) {
		t.Error("a half-written file is left")
	}
}
