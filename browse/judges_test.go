package browse_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math/rand/v2"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/lockstep-backup/lockstep/blockstack"
	"github.com/lockstep-backup/lockstep/browse"
	"github.com/lockstep-backup/lockstep/internal/judge"
)

// sample is one file as somebody sees it.
type sample struct {
	kind         browse.Type
	mode         uint32
	uid, gid     uint32
	size         int64
	links        uint32
	ino          uint64
	major, minor uint32
	mtime        time.Time
	xattrs       map[string]string
	content      string // its SHA-256, or a link's target
}

// aspects are what is compared; file systems lack one or the other.
type aspects struct{ owners, links, inodes, xattrs, dirTimes bool }

var posix = aspects{owners: true, links: true, inodes: true, xattrs: true, dirTimes: true}

func image(t *testing.T, size int64, mkfs string, args ...string) string {
	t.Helper()
	file := filepath.Join(t.TempDir(), "image")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(file, size); err != nil {
		t.Fatal(err)
	}
	command(t, judge.Tool(t, mkfs), append(args, file)...)
	return file
}

func command(t *testing.T, name string, args ...string) string {
	t.Helper()
	out, err := exec.Command(name, args...).CombinedOutput()
	if err != nil {
		t.Fatalf("%s %s: %v: %s", name, strings.Join(args, " "), err, out)
	}
	return string(out)
}

// mounted mounts an image by the kernel, or by program if that is not "", and
// returns the folder and what unmounts it before the test ends.
func mounted(t *testing.T, image, program, kind, options string) (dir string, unmount func()) {
	t.Helper()
	if os.Getuid() != 0 {
		judge.Missing(t, "the right to mount")
	}
	dir = t.TempDir()
	var out []byte
	var err error
	if program != "" {
		out, err = exec.Command(judge.Tool(t, program), "-o", options, image, dir).CombinedOutput()
	} else {
		out, err = exec.Command(judge.Tool(t, "mount"), "-t", kind, "-o", strings.TrimSuffix("loop,"+options, ","), image, dir).CombinedOutput()
	}
	if err != nil {
		judge.Missing(t, fmt.Sprintf("mount of %s (%v: %s)", kind, err, out))
	}
	done := false
	unmount = func() {
		if done {
			return
		}
		done = true
		// The helper of a FUSE file system ends after umount returned; the image is whole before.
		if out, err := exec.Command("umount", dir).CombinedOutput(); err != nil {
			t.Errorf("umount: %v: %s", err, out)
		}
	}
	t.Cleanup(unmount)
	return dir, unmount
}

// see walks a folder of this machine.
func see(t *testing.T, dir string) map[string]sample {
	t.Helper()
	all := map[string]sample{}
	err := filepath.WalkDir(dir, func(p string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel, _ := filepath.Rel(dir, p)
		name := path.Join("/", rel)
		if name == "/lost+found" || name == "/" {
			return nil
		}
		var st unix.Stat_t
		if err := unix.Lstat(p, &st); err != nil {
			return err
		}
		s := sample{
			mode: st.Mode & 0o7777, uid: st.Uid, gid: st.Gid, size: st.Size, links: uint32(st.Nlink), ino: st.Ino,
			mtime: time.Unix(st.Mtim.Sec, st.Mtim.Nsec).UTC(), xattrs: xattrs(t, p),
		}
		switch st.Mode & unix.S_IFMT {
		case unix.S_IFREG:
			s.kind = browse.Regular
			f, err := os.Open(p)
			if err != nil {
				return err
			}
			defer f.Close()
			h := sha256.New()
			if _, err := io.Copy(h, f); err != nil {
				return err
			}
			s.content = fmt.Sprintf("%x", h.Sum(nil))
		case unix.S_IFDIR:
			s.kind, s.size, s.links = browse.Dir, 0, 0
		case unix.S_IFLNK:
			s.kind = browse.Symlink
			if s.content, err = os.Readlink(p); err != nil {
				return err
			}
		case unix.S_IFIFO:
			s.kind = browse.Fifo
		case unix.S_IFSOCK:
			s.kind = browse.Socket
		case unix.S_IFCHR, unix.S_IFBLK:
			s.kind = browse.CharDevice
			if st.Mode&unix.S_IFMT == unix.S_IFBLK {
				s.kind = browse.BlockDevice
			}
			s.major, s.minor = unix.Major(uint64(st.Rdev)), unix.Minor(uint64(st.Rdev))
		}
		all[name] = s
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return all
}

func xattrs(t *testing.T, p string) map[string]string {
	t.Helper()
	names := make([]byte, 64<<10)
	n, err := unix.Llistxattr(p, names)
	if err != nil || n == 0 {
		return nil
	}
	found := map[string]string{}
	for name := range strings.SplitSeq(strings.TrimSuffix(string(names[:n]), "\x00"), "\x00") {
		value := make([]byte, 64<<10)
		if n, err := unix.Lgetxattr(p, name, value); err == nil {
			found[name] = string(value[:n])
		}
	}
	return found
}

func open(t *testing.T, image string) *browse.FS {
	t.Helper()
	f, err := os.Open(image)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	st, err := f.Stat()
	if err != nil {
		t.Fatal(err)
	}
	first := make([]byte, 128<<10)
	if _, err := f.ReadAt(first, 0); err != nil {
		t.Fatal(err)
	}
	b, err := browse.Open(f, st.Size(), blockstack.Class(first))
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// read walks a file system by the reader under test.
func read(t *testing.T, f *browse.FS, a aspects) map[string]sample {
	t.Helper()
	all := map[string]sample{}
	err := f.Walk(context.Background(), "/", func(n browse.Node) error {
		if n.Path == "/" || n.Path == "/lost+found" {
			return nil
		}
		i := n.Info
		s := sample{
			kind: i.Type, mode: i.Mode, uid: i.UID, gid: i.GID, size: i.Size, links: i.Links, ino: i.ID,
			major: i.Major, minor: i.Minor, mtime: i.Modified,
		}
		switch i.Type {
		case browse.Regular:
			h := sha256.New()
			if _, err := f.Cat(context.Background(), h, n.Path); err != nil {
				return err
			}
			s.content = fmt.Sprintf("%x", h.Sum(nil))
		case browse.Symlink:
			target, err := f.ReadLink(n.Path)
			if err != nil {
				return err
			}
			s.content = target
		case browse.Dir:
			s.size, s.links = 0, 0
		}
		if a.xattrs {
			list, err := f.Xattrs(n.Path)
			if err != nil {
				return err
			}
			for _, x := range list {
				if s.xattrs == nil {
					s.xattrs = map[string]string{}
				}
				s.xattrs[x.Name] = string(x.Value)
			}
		}
		all[n.Path] = s
		return nil
	}, func(p browse.Problem) { t.Errorf("problem: %v", p) })
	if err != nil {
		t.Fatal(err)
	}
	return all
}

func compare(t *testing.T, by string, want, got map[string]sample, a aspects) {
	t.Helper()
	bad := 0
	complain := func(format string, args ...any) {
		if bad++; bad <= 20 {
			t.Errorf(format, args...)
		}
	}
	for name, w := range want {
		g, ok := got[name]
		if !ok {
			complain("%.60q is missing", name)
			continue
		}
		if !a.owners {
			g.mode, g.uid, g.gid = w.mode, w.uid, w.gid
		}
		if !a.links {
			g.links = w.links
		}
		if !a.inodes {
			g.ino = w.ino
		}
		if !a.dirTimes && w.kind == browse.Dir {
			g.mtime = w.mtime
		}
		if !a.xattrs {
			g.xattrs = w.xattrs
		}
		if gs, ws := fmt.Sprintf("%v", g), fmt.Sprintf("%v", w); gs != ws {
			complain("%.60q:\n got %.400s\nwant %.400s", name, gs, ws)
		}
	}
	for name := range got {
		if _, ok := want[name]; !ok {
			complain("%.60q is too many", name)
		}
	}
	if bad > 20 {
		t.Errorf("and %d more", bad-20)
	}
	if len(want) < 10 {
		t.Errorf("only %d files to compare", len(want))
	}
	judge.Decided(t, by)
}

// what a file system can hold
type abilities struct {
	owners, links, symlinks, xattrs, sparse, devices bool
	names                                            []string // besides the usual ones
	files                                            int      // in one directory
	oldest, newest                                   time.Time
}

var all = abilities{
	owners: true, links: true, symlinks: true, xattrs: true, sparse: true, devices: true, files: 2000,
	oldest: time.Date(1935, 2, 3, 4, 5, 6, 789, time.UTC), newest: time.Date(2107, 2, 3, 4, 5, 6, 123456789, time.UTC),
	names: []string{"new\nline", "tab\tand \x1b[31m", "back\\slash:colon*?", "not utf-8 \xff\xfe", "trailing. ", strings.Repeat("ü", 127) + "x"},
}

// populate makes a tree of everything that a file system can hold.
func populate(t *testing.T, dir string, a abilities) {
	t.Helper()
	random := rand.New(rand.NewPCG(4, 2))
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	content := func(n int) []byte {
		b := make([]byte, n)
		for i := range b {
			b[i] = byte(random.Uint32())
		}
		return b
	}
	put := func(name string, b []byte) string {
		t.Helper()
		p := filepath.Join(dir, name)
		must(os.MkdirAll(filepath.Dir(p), 0o755))
		must(os.WriteFile(p, b, 0o644))
		return p
	}
	for i := range a.files {
		put(fmt.Sprintf("huge/%04d-%s", i, strings.Repeat("n", i%50)), content(i%211))
	}
	for i := range 300 { // sizes around what is inline, a block, a cluster
		put(fmt.Sprintf("sizes/%d", i*i), content(i*i))
	}
	for i, n := range append([]string{"ÄÖÜ ß 漢字 🚀", "a b c", "UPPER lower", strings.Repeat("long name ", 25) + "end", "x.y.z", ".hidden"}, a.names...) {
		put("names/"+n, content(i))
		put("dirs/"+n+"/in", content(i))
	}
	deep := strings.Repeat("deep/", 40)
	put(deep+"file", content(10))
	put("big", content(9<<20+17))
	// Two files that grow in turn are in pieces.
	first, second := put("fragmented/a", nil), put("fragmented/b", nil)
	for range 60 {
		for _, p := range []string{first, second} {
			f, err := os.OpenFile(p, os.O_APPEND|os.O_WRONLY, 0)
			must(err)
			_, err = f.Write(content(9000))
			must(err)
			must(f.Sync())
			must(f.Close())
		}
	}
	if a.sparse {
		p := put("sparse/ends", content(5000))
		f, err := os.OpenFile(p, os.O_RDWR, 0)
		must(err)
		_, err = f.WriteAt(content(5000), 10<<20+333)
		must(err)
		_, err = f.WriteAt(content(100), 90<<20)
		must(err)
		must(f.Truncate(100<<20 + 5))
		must(f.Close())
		p = put("sparse/holes", content(4<<20))
		f, err = os.OpenFile(p, os.O_RDWR, 0)
		must(err)
		for off := int64(0); off < 4<<20; off += 16 << 10 {
			if err := unix.Fallocate(int(f.Fd()), unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, off, 8<<10); err != nil {
				break // ext2 and ext3 have none
			}
		}
		must(f.Close())
		p = put("sparse/allocated", content(100))
		f, err = os.OpenFile(p, os.O_RDWR, 0)
		must(err)
		if unix.Fallocate(int(f.Fd()), 0, 0, 2<<20) == nil {
			_, err = f.WriteAt(content(5000), 1<<20)
			must(err)
		}
		must(f.Close())
		p = put("sparse/nothing", nil)
		must(os.Truncate(p, 3<<20+1))
	}
	if a.links {
		p := put("links/one", content(100))
		for i := range 5 {
			must(os.Link(p, fmt.Sprintf("%s-%d", p, i)))
		}
	}
	if a.symlinks {
		must(os.MkdirAll(filepath.Join(dir, "symlinks"), 0o755))
		for _, n := range []int{1, 20, 58, 59, 60, 61, 100, 200, 500, 900, 1022} {
			must(os.Symlink(strings.Repeat("t", n), filepath.Join(dir, "symlinks", fmt.Sprint(n))))
		}
	}
	if a.devices {
		must(os.MkdirAll(filepath.Join(dir, "devices"), 0o755))
		must(unix.Mkfifo(filepath.Join(dir, "devices/fifo"), 0o640))
		for _, d := range []struct {
			name string
			mode uint32
			dev  uint64
		}{{"null", unix.S_IFCHR, unix.Mkdev(1, 3)}, {"large", unix.S_IFBLK, unix.Mkdev(259, 70000)}, {"socket", unix.S_IFSOCK, 0}} {
			must(unix.Mknod(filepath.Join(dir, "devices", d.name), d.mode|0o600, int(d.dev)))
		}
	}
	if a.owners {
		for i, m := range []uint32{0, 0o777, 0o4755, 0o2711, 0o1777, 0o400} {
			p := put(fmt.Sprintf("owners/%o", m), content(3))
			must(os.Lchown(p, i*50_000, i*60_001))
			must(unix.Chmod(p, m))
		}
	}
	if a.xattrs {
		for i, size := range []int{0, 1, 30, 100, 1000, 3000} {
			p := put(fmt.Sprintf("xattrs/%d", size), content(i*30))
			must(unix.Lsetxattr(p, "user.lockstep", content(size), 0))
		}
		p := put("xattrs/many", content(20))
		for i := range 30 {
			must(unix.Lsetxattr(p, fmt.Sprintf("user.name%d", i), content(i), 0))
		}
		must(unix.Lsetxattr(p, "trusted.overlay", []byte("y"), 0))
		must(unix.Lsetxattr(p, "security.capability", []byte("\x01\x00\x00\x02\x00\x04\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00"), 0))
		acl := "\x02\x00\x00\x00" + "\x01\x00\x06\x00\xff\xff\xff\xff" + "\x02\x00\x04\x00\xe8\x03\x00\x00" + "\x04\x00\x04\x00\xff\xff\xff\xff" +
			"\x08\x00\x04\x00\xe9\x03\x00\x00" + "\x10\x00\x04\x00\xff\xff\xff\xff" + "\x20\x00\x00\x00\xff\xff\xff\xff"
		must(unix.Lsetxattr(p, "system.posix_acl_access", []byte(acl), 0))
		must(os.MkdirAll(filepath.Join(dir, "xattrs/dir"), 0o755))
		must(unix.Lsetxattr(filepath.Join(dir, "xattrs/dir"), "system.posix_acl_default", []byte(acl), 0))
		must(unix.Lsetxattr(filepath.Join(dir, "xattrs/dir"), "user.of-a-directory", []byte("value"), 0))
	}
	for i, when := range []time.Time{a.oldest, a.newest, time.Date(1980, 1, 1, 0, 0, 0, 0, time.UTC), time.Date(2026, 11, 23, 22, 0, 1, 987654321, time.UTC)} {
		if !when.IsZero() {
			must(os.Chtimes(put(fmt.Sprintf("times/%d", i), content(4)), when, when))
		}
	}
}

// duplicate copies an image with its holes.
func duplicate(t *testing.T, image string) string {
	t.Helper()
	to := filepath.Join(t.TempDir(), "copy")
	command(t, "cp", "--sparse=always", image, to)
	return to
}

func syncfs(t *testing.T, dir string) {
	t.Helper()
	d, err := os.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	if _, _, errno := syscall.Syscall(unix.SYS_SYNCFS, d.Fd(), 0, 0); errno != 0 {
		t.Fatal(errno)
	}
}

// checkTar has GNU tar list what Tar writes, and compares the names.
func checkTar(t *testing.T, f *browse.FS, want map[string]sample) {
	t.Helper()
	var stream bytes.Buffer
	report, err := f.Tar(context.Background(), &stream, "/huge")
	if err != nil || len(report.Problems) > 0 {
		t.Fatalf("tar: %v, %v", err, report.Problems)
	}
	cmd := exec.Command("tar", "-tf", "-")
	cmd.Stdin = &stream
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("tar -t: %v", err)
	}
	var names []string
	for n := range want {
		if strings.HasPrefix(n, "/huge/") {
			names = append(names, n[1:])
		}
	}
	slices.Sort(names)
	got := strings.Split(strings.TrimSpace(string(out)), "\n")
	slices.Sort(got)
	if got = slices.DeleteFunc(got, func(n string) bool { return n == "huge/" }); !slices.Equal(got, names) {
		t.Errorf("tar lists %d files, not %d", len(got), len(names))
	}
	judge.Decided(t, "tar -t")
	var none *browse.UnsupportedError
	if _, err := f.Open("/huge"); err == nil || errors.As(err, &none) {
		t.Errorf("opening a directory: %v", err)
	}
}
