package image

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/lockstep-backup/lockstep/disk"
	"github.com/lockstep-backup/lockstep/internal/judge"
	"github.com/lockstep-backup/lockstep/source"
	"github.com/lockstep-backup/lockstep/source/sourcetest"
)

func openImage(tb testing.TB, spec string, opts source.Options) *Disk {
	tb.Helper()
	d, err := Opener{}.Open(tb.Context(), spec, opts)
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() { _ = d.Close() })
	return d.(*Disk)
}

func mustBeInUse(tb testing.TB, spec, word string) {
	tb.Helper()
	d, err := Opener{}.Open(tb.Context(), spec, source.Options{})
	if err == nil {
		_ = d.Close()
	}
	if !errors.Is(err, source.ErrInUse) || !strings.Contains(err.Error(), word) {
		tb.Errorf("Open: %v, want ErrInUse because of %q", err, word)
	}
	live := openImage(tb, spec, source.Options{AllowLive: true})
	if live.Consistency() != source.ConsistencyNone {
		tb.Errorf("consistency %q", live.Consistency())
	}
	_ = live.Close()
}

// forget drops a file from the page cache.
func forget(tb testing.TB, path string) {
	tb.Helper()
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		tb.Fatal(err)
	}
	defer f.Close()
	if err := f.Sync(); err != nil {
		tb.Fatal(err)
	}
	if err := unix.Fadvise(int(f.Fd()), 0, 0, unix.FADV_DONTNEED); err != nil {
		tb.Fatal(err)
	}
}

// command runs another process that says "ready" and ends when the test releases it.
func command(tb testing.TB, name string, args ...string) (release func()) {
	tb.Helper()
	cmd := exec.Command(judge.Tool(tb, name), args...)
	stdin, err := cmd.StdinPipe()
	if err != nil {
		tb.Fatal(err)
	}
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		tb.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		tb.Fatal(err)
	}
	said := make([]byte, 0, 64)
	for !bytes.Contains(said, []byte("ready")) {
		b := make([]byte, 64)
		n, err := stdout.Read(b)
		if said = append(said, b[:n]...); err != nil {
			tb.Fatalf("%s said %q: %v", name, said, err)
		}
	}
	done := false
	release = func() {
		if !done {
			done = true
			_ = stdin.Close()
			_, _ = io.Copy(io.Discard, stdout)
			_ = cmd.Wait()
		}
	}
	tb.Cleanup(release)
	return release
}

func TestFilesWithoutCacheAreSources(t *testing.T) {
	sourcetest.Run(t, func(t *testing.T, content []byte) sourcetest.Source {
		s := fileSource(t, content)
		// Zeroes become a hole, and the rest is read from the disk.
		f, err := os.OpenFile(s.Spec, os.O_RDWR, 0)
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		if len(content) > 2<<20 {
			if err := disk.PunchHole(f, 1<<20, 1<<20); err != nil && !errors.Is(err, disk.ErrUnsupported) {
				t.Fatal(err)
			}
		}
		forget(t, s.Spec)
		s.Use = func() func() {
			return command(t, "sh", "-c", `exec 3<>"$1"; echo ready; read x`, "sh", s.Spec)
		}
		return s
	})
}

func TestFilesOnTmpfsAreSources(t *testing.T) {
	dir, err := os.MkdirTemp("/dev/shm", "lockstep-test")
	if err != nil {
		judge.Missing(t, "tmpfs at /dev/shm")
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	number := 0
	sourcetest.Run(t, func(t *testing.T, content []byte) sourcetest.Source {
		number++
		path := filepath.Join(dir, fmt.Sprint(number))
		if err := os.WriteFile(path, content, 0o600); err != nil {
			t.Fatal(err)
		}
		if d := openImage(t, path, source.Options{}); d.Direct() {
			t.Error("tmpfs is read around the page cache that it is")
		}
		return sourcetest.Source{Opener: Opener{}, Spec: path}
	})
}

func TestLoopDevicesAreSources(t *testing.T) {
	sourcetest.Run(t, func(t *testing.T, content []byte) sourcetest.Source {
		path := write(t, content)
		dev := judge.Loop(t, path, 512)
		return sourcetest.Source{
			Opener:      Opener{},
			Spec:        dev,
			Exclusive:   true,
			MissingSpec: "/dev/no-such-device",
			Resize: func(size int64) {
				if err := os.Truncate(path, size); err != nil {
					t.Fatal(err)
				}
				if out, err := exec.Command(judge.Tool(t, "losetup"), "--set-capacity", dev).CombinedOutput(); err != nil {
					t.Fatalf("%v: %s", err, out)
				}
			},
			Use: func() func() {
				f, err := os.OpenFile(dev, os.O_RDWR|unix.O_EXCL, 0)
				if err != nil {
					t.Fatal(err)
				}
				return func() { _ = f.Close() }
			},
		}
	})
}

func TestDirect(t *testing.T) {
	content := bytes.Repeat([]byte{1, 2, 3, 4, 5}, 1<<20)
	path := write(t, content)
	forget(t, path)
	d := openImage(t, path, source.Options{})
	if !d.Direct() {
		judge.Missing(t, "direct I/O in "+filepath.Dir(path))
	}
	p := disk.AlignedBuffer(len(content)&^4095 + 4096)
	if n, err := d.ReadAt(p, 0); n != len(content) || err != io.EOF || !bytes.Equal(p[:n], content) {
		t.Errorf("ReadAt = %d, %v", n, err)
	}
	if n, err := d.residentPages(disk.Range{Offset: 0, Length: 4 << 20}); err != nil || n > 4 {
		t.Errorf("%d pages came into the cache by reading around it (%v)", n, err)
	}
	if n, err := d.mincorePages(disk.Range{Offset: 0, Length: 4 << 20}); err != nil || n > 4 {
		t.Errorf("mincore: %d pages came into the cache (%v)", n, err)
	}
	if _, err := os.ReadFile(path); err != nil {
		t.Fatal(err)
	}
	if n, err := d.mincorePages(disk.Range{Offset: 0, Length: 4 << 20}); err != nil || n != 1024 {
		t.Errorf("mincore: %d pages of a cached file (%v)", n, err)
	}
	if cached := openImage(t, path, source.Options{}); cached.Direct() {
		t.Error("an image in the page cache is read around it")
	}
	// A refusal in the middle turns it off for good.
	d.refused.Store(true)
	if n, err := d.ReadAt(p, 0); d.Direct() || n != len(content) || err != io.EOF || !bytes.Equal(p[:n], content) {
		t.Errorf("after a refusal: %d, %v", n, err)
	}
}

// TestTruncatedAtOddSize: direct reads end in the middle of a sector, and go on unaligned.
func TestTruncatedAtOddSize(t *testing.T) {
	for _, size := range []int64{0, 1, 2<<20 + 100} {
		path := write(t, bytes.Repeat([]byte{1}, 3<<20+77))
		forget(t, path)
		d := openImage(t, path, source.Options{})
		if err := os.Truncate(path, size); err != nil {
			t.Fatal(err)
		}
		if n, err := d.ReadAt(disk.AlignedBuffer(3<<20), 0); int64(n) != size || !errors.Is(err, source.ErrSizeChanged) {
			t.Errorf("cut to %d: ReadAt = %d, %v", size, n, err)
		}
	}
}

func TestHolesDoNotCountAsUncached(t *testing.T) {
	path := write(t, nil)
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := f.Truncate(1 << 30); err != nil {
		t.Fatal(err)
	}
	if _, err := f.WriteAt(bytes.Repeat([]byte{1}, 1<<20), 512<<20); err != nil {
		t.Fatal(err)
	}
	if d := openImage(t, path, source.Options{AllowLive: true}); d.Direct() {
		t.Error("all data is in the page cache, and yet it is read around it")
	}
}

func TestReadAtAllocatesNothing(t *testing.T) {
	path := write(t, make([]byte, 4<<20))
	for _, cached := range []bool{false, true} {
		if !cached {
			forget(t, path)
		} else if _, err := os.ReadFile(path); err != nil {
			t.Fatal(err)
		}
		d := openImage(t, path, source.Options{})
		p := disk.AlignedBuffer(disk.BlockSize)
		off := int64(0)
		n := testing.AllocsPerRun(50, func() {
			if _, err := d.ReadAt(p, off); err != nil {
				t.Fatal(err)
			}
			off += disk.BlockSize
		})
		if n != 0 {
			t.Errorf("cached %v (direct %v): %v allocations a read", cached, d.Direct(), n)
		}
	}
}

// TestBadSector: a loop device answers EIO where its file has been cut behind its back.
func TestBadSector(t *testing.T) {
	const size, good = 4 << 20, 1 << 20
	path := write(t, bytes.Repeat([]byte{9}, size))
	dev := judge.Loop(t, path, 512, "--direct-io=on")
	d := openImage(t, dev, source.Options{})
	if !d.Direct() {
		t.Error("the device is read through the page cache")
	}
	if err := os.Truncate(path, good); err != nil {
		t.Fatal(err)
	}
	for _, p := range [][]byte{disk.AlignedBuffer(disk.BlockSize), make([]byte, 5000)} {
		n, err := d.ReadAt(p, 2<<20)
		var bad *source.UnreadableError
		if n != 0 || !errors.As(err, &bad) || bad.Range != (disk.Range{Offset: 2 << 20, Length: int64(len(p))}) {
			t.Errorf("ReadAt = %d, %v", n, err)
		}
		if n, err := d.ReadAt(p, 0); n != len(p) || err != nil {
			t.Errorf("before it: %d, %v", n, err)
		}
	}
	judge.Decided(t, "loop driver: EIO")
}

// TestUnreadableThroughCache: /proc/self/mem answers EIO where nothing is mapped.
func TestUnreadableThroughCache(t *testing.T) {
	f, err := os.Open("/proc/self/mem")
	if err != nil {
		judge.Missing(t, "/proc/self/mem")
	}
	d := &Disk{path: "x", size: 1 << 20, file: f}
	defer d.Close()
	if n, err := d.ReadAt(make([]byte, 8192), 0); n != 0 || !source.IsUnreadable(err) {
		t.Errorf("ReadAt = %d, %v", n, err)
	}
}

func TestFileUsedByLoopDevice(t *testing.T) {
	path := write(t, make([]byte, 1<<20))
	dev := judge.Loop(t, path, 512)
	mustBeInUse(t, path, dev)
}

func TestMountedDevice(t *testing.T) {
	path := write(t, make([]byte, 16<<20))
	if out, err := exec.Command(judge.Tool(t, "mkfs.ext4"), "-q", path).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	dev := judge.Loop(t, path, 512)
	at := filepath.Join(t.TempDir(), "mount point")
	if err := os.Mkdir(at, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mount(dev, at, "ext4", unix.MS_RDONLY, ""); err != nil {
		judge.Missing(t, "mounting ext4")
	}
	mustBeInUse(t, dev, "mounted at "+at)
	if err := unix.Unmount(at, 0); err != nil {
		t.Fatal(err)
	}
	d := openImage(t, dev, source.Options{})
	if err := unix.Mount(dev, at, "ext4", unix.MS_RDONLY, ""); !errors.Is(err, unix.EBUSY) {
		t.Errorf("mounted while it is read: %v", err)
		_ = unix.Unmount(at, 0)
	}
	_ = d.Close()
	judge.Decided(t, "mount")
}

func TestMountedPartition(t *testing.T) {
	dev := judge.Loop(t, write(t, make([]byte, 32<<20)), 512, "--partscan")
	// addpart needs no partition table, and no kernel that reads the one of ours.
	if out, err := exec.Command(judge.Tool(t, "addpart"), dev, "1", "2048", "32768").CombinedOutput(); err != nil {
		judge.Missing(t, "partitions of loop devices: "+string(out))
	}
	if out, err := exec.Command(judge.Tool(t, "mkfs.ext4"), "-q", dev+"p1").CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	at := t.TempDir()
	if err := unix.Mount(dev+"p1", at, "ext4", 0, ""); err != nil {
		judge.Missing(t, "mounting ext4")
	}
	defer func() {
		if err := unix.Unmount(at, 0); err != nil {
			t.Error(err)
		}
	}()
	mustBeInUse(t, dev, filepath.Base(dev)+"p1 is mounted at "+at)
	mustBeInUse(t, dev+"p1", "mounted at "+at)
}

func TestLocks(t *testing.T) {
	python := `import fcntl, os, struct, sys
f = open(sys.argv[1], "r+b")
kind = sys.argv[2]
if kind == "flock": fcntl.flock(f, fcntl.LOCK_EX)
if kind == "posix": fcntl.lockf(f, fcntl.LOCK_EX, 10, 0)
g = os.open(sys.argv[1], os.O_RDONLY) # only readers are left in the case of OFD and flock
print("ready", flush=True)
sys.stdin.read()
`
	for _, kind := range []string{"flock", "posix"} {
		path := write(t, make([]byte, 1<<20))
		release := command(t, "python3", "-c", python, path, kind)
		f, err := os.Open(path)
		if err != nil {
			t.Fatal(err)
		}
		by, err := disk.InUse(f, false)
		if err != nil || !strings.Contains(by, "lock") {
			t.Errorf("%s: in use by %q, %v", kind, by, err)
		}
		mustBeInUse(t, path, "lock")
		release()
		if by, err := disk.InUse(f, false); by != "" || err != nil {
			t.Errorf("%s: after release in use by %q, %v", kind, by, err)
		}
		_ = f.Close()
	}
}

// TestQEMU: a writer of QEMU's excludes us, a reader does not, and we exclude a writer.
func TestQEMU(t *testing.T) {
	qemuIO := judge.Tool(t, "qemu-io")
	path := write(t, make([]byte, 1<<20))
	attach := func(flags ...string) (release func()) {
		script := `(echo "read 0 512"; cat) | stdbuf -oL "$@" | sed -u "s/.*512 bytes at offset.*/ready/"`
		return command(t, "sh", append([]string{"-c", script, "sh", qemuIO, "-f", "raw", path}, flags...)...)
	}
	release := attach()
	mustBeInUse(t, path, "QEMU")
	release()
	judge.Decided(t, "qemu-io: writer's lock")

	release = attach("-r")
	d := openImage(t, path, source.Options{})
	release()
	judge.Decided(t, "qemu-io: reader's lock")

	if out, err := exec.Command(qemuIO, "-r", "-f", "raw", "-c", "read 0 512", path).CombinedOutput(); err != nil {
		t.Errorf("QEMU cannot read beside us: %v: %s", err, out)
	}
	out, err := exec.Command(qemuIO, "-f", "raw", "-c", "write 0 512", path).CombinedOutput()
	if !bytes.Contains(out, []byte("lock")) {
		t.Errorf("QEMU may write while we read: %v: %s", err, out)
	}
	_ = d.Close()
	if out, err := exec.Command(qemuIO, "-f", "raw", "-c", "write 0 512", path).CombinedOutput(); err != nil || bytes.Contains(out, []byte("lock")) {
		t.Errorf("afterwards: %v: %s", err, out)
	}
	judge.Decided(t, "qemu-io: our lock")
}

func TestContainersOfQEMUAreRefused(t *testing.T) {
	qemuImg := judge.Tool(t, "qemu-img")
	for _, format := range []string{"qcow2", "qed", "vmdk", "vdi", "vhdx", "vpc", "vpc,fixed", "raw"} {
		path := filepath.Join(t.TempDir(), "disk")
		args := []string{"create", "-q", "-f", strings.TrimSuffix(format, ",fixed")}
		if strings.HasSuffix(format, ",fixed") {
			args = append(args, "-o", "subformat=fixed")
		}
		if out, err := exec.Command(qemuImg, append(args, path, "8M")...).CombinedOutput(); err != nil {
			t.Fatalf("%s: %v: %s", format, err, out)
		}
		d, err := Opener{}.Open(t.Context(), path, source.Options{})
		if err == nil {
			_ = d.Close()
		}
		if format == "raw" && err != nil || format != "raw" && !errors.Is(err, source.ErrUnsupported) {
			t.Errorf("%s: %v", format, err)
		}
		judge.Decided(t, "qemu-img create")
	}
}

func TestSourceIsNeverWritten(t *testing.T) {
	path := write(t, bytes.Repeat([]byte{3}, 1<<20))
	d := openImage(t, path, source.Options{})
	for _, f := range []*os.File{d.file, d.direct} {
		if f == nil {
			continue
		}
		if _, err := f.WriteAt([]byte{1}, 0); !errors.Is(err, unix.EBADF) {
			t.Errorf("write to the source: %v", err)
		}
	}
}

func TestFIFO(t *testing.T) {
	path := filepath.Join(t.TempDir(), "fifo")
	if err := unix.Mkfifo(path, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := (Opener{}).Open(t.Context(), path, source.Options{}); !errors.Is(err, source.ErrUnsupported) {
		t.Errorf("Open: %v", err) // and it does not wait for a writer
	}
}

// TestLocksThatForbid: byte by byte, what QEMU's locks mean for a reader.
func TestLocksThatForbid(t *testing.T) {
	for at, inUse := range map[int64]bool{
		100: false, // reads
		101: true,  // writes
		103: true,  // resizes
		200: true,  // forbids reading
		201: false, // forbids writing
		500: false, // not QEMU's, and shared
	} {
		path := write(t, make([]byte, 1<<20))
		f, err := os.Open(path)
		if err != nil {
			t.Fatal(err)
		}
		lock := unix.Flock_t{Type: unix.F_RDLCK, Start: at, Len: 1}
		if err := unix.FcntlFlock(f.Fd(), unix.F_OFD_SETLK, &lock); err != nil {
			judge.Missing(t, "OFD locks")
		}
		if inUse {
			mustBeInUse(t, path, "QEMU")
		} else {
			_ = openImage(t, path, source.Options{}).Close()
		}
		_ = f.Close()
	}
}
