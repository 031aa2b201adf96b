package browse_test

import (
	"bytes"
	"compress/gzip"
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"sort"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/lockstep-backup/lockstep/blockstack"
	"github.com/lockstep-backup/lockstep/browse"
	"github.com/lockstep-backup/lockstep/internal/judge"
)

// seed is an image of which only the parts that are not zero are kept, so that
// one of hundreds of MiB is small. It is read where it is, not copied.
type seed struct {
	name  string
	size  int64
	parts []part // by offset
	solid int    // bytes of all parts
}

type part struct {
	at int64
	b  []byte
}

func (s *seed) ReadAt(p []byte, off int64) (int, error) {
	if off < 0 || off >= s.size {
		return 0, io.EOF
	}
	n := int(min(int64(len(p)), s.size-off))
	clear(p[:n])
	i := sort.Search(len(s.parts), func(i int) bool { return s.parts[i].at+int64(len(s.parts[i].b)) > off })
	for ; i < len(s.parts) && s.parts[i].at < off+int64(n); i++ {
		copy(p[max(0, s.parts[i].at-off):n], s.parts[i].b[max(0, off-s.parts[i].at):])
	}
	if n < len(p) {
		return n, io.EOF
	}
	return n, nil
}

// place is where a byte of the parts lies in the image.
func (s *seed) place(n int) int64 {
	n %= s.solid
	for _, p := range s.parts {
		if n < len(p.b) {
			return p.at + int64(n)
		}
		n -= len(p.b)
	}
	return 0
}

const seedUnit = 512

// pack writes an image as its size and its parts that are not zero, compressed.
func pack(t *testing.T, image io.ReaderAt, size int64) []byte {
	t.Helper()
	var out bytes.Buffer
	z, err := gzip.NewWriterLevel(&out, gzip.BestCompression)
	if err != nil {
		t.Fatal(err)
	}
	put := func(b []byte) {
		if _, err := z.Write(b); err != nil {
			t.Fatal(err)
		}
	}
	put(binary.AppendUvarint(nil, uint64(size)))
	var at int64
	var b []byte
	flush := func() {
		if len(b) > 0 {
			put(binary.AppendUvarint(binary.AppendUvarint(nil, uint64(at)), uint64(len(b))))
			put(b)
			b = nil
		}
	}
	zero, big := make([]byte, 1<<20), make([]byte, 1<<20)
	for off := int64(0); off < size; off += int64(len(big)) {
		n, err := image.ReadAt(big, off)
		if err != nil && err != io.EOF {
			t.Fatal(err)
		}
		if bytes.Equal(big[:n], zero[:n]) {
			flush()
			continue
		}
		for k := 0; k < n; k += seedUnit {
			unit := big[k:min(k+seedUnit, n)]
			if bytes.Equal(unit, zero[:len(unit)]) {
				flush()
				continue
			}
			if len(b) == 0 {
				at = off + int64(k)
			}
			b = append(b, unit...)
		}
	}
	flush()
	if err := z.Close(); err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}

// seeds are the images of a kind that are kept in testdata.
func seeds(t testing.TB, pattern string) []*seed {
	t.Helper()
	files, err := filepath.Glob(filepath.Join("testdata/seeds", pattern+"*.gz"))
	if err != nil || len(files) == 0 {
		t.Fatalf("no seeds %s: %v", pattern, err)
	}
	slices.Sort(files)
	var all []*seed
	for _, name := range files {
		b, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		z, err := gzip.NewReader(bytes.NewReader(b))
		if err != nil {
			t.Fatal(err)
		}
		if b, err = io.ReadAll(z); err != nil {
			t.Fatal(err)
		}
		next := func() int64 {
			n, k := binary.Uvarint(b)
			if k <= 0 {
				t.Fatalf("%s is cut short", name)
			}
			b = b[k:]
			return int64(n)
		}
		s := &seed{name: filepath.Base(name), size: next()}
		for len(b) > 0 {
			at, n := next(), next()
			s.parts = append(s.parts, part{at, b[:n:n]})
			b, s.solid = b[n:], s.solid+int(n)
		}
		all = append(all, s)
	}
	return all
}

// small fills a folder with a little of everything.
func small(t *testing.T, dir string, links bool) {
	t.Helper()
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	put := func(name string, b []byte) string {
		p := filepath.Join(dir, name)
		must(os.MkdirAll(filepath.Dir(p), 0o755))
		must(os.WriteFile(p, b, 0o644))
		return p
	}
	put("short", []byte("content"))
	put("text", bytes.Repeat([]byte("0123456789"), 2000))
	put("sub/deeper/file", []byte("x"))
	for i := range 40 {
		put(fmt.Sprintf("many/%02d %s", i, strings.Repeat("name", 1+i%12)), nil)
	}
	for i := range 6 { // in pieces
		for _, n := range []string{"a", "b"} {
			f, err := os.OpenFile(filepath.Join(dir, n), os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o644)
			must(err)
			_, err = f.Write(bytes.Repeat([]byte{byte('a' + i)}, 5000))
			must(err)
			must(f.Sync())
			must(f.Close())
		}
	}
	if !links {
		return
	}
	must(os.Truncate(put("sparse", []byte("begin")), 200_000))
	f, err := os.OpenFile(filepath.Join(dir, "sparse"), os.O_WRONLY, 0)
	must(err)
	for _, off := range []int64{50_000, 90_000, 130_000, 170_000, 199_000} {
		_, err = f.WriteAt([]byte("island"), off)
		must(err)
	}
	must(f.Close())
	must(os.Symlink("short", filepath.Join(dir, "link")))
	must(os.Symlink(strings.Repeat("long/", 30), filepath.Join(dir, "long link")))
	must(os.Link(filepath.Join(dir, "short"), filepath.Join(dir, "sub/hard")))
	for _, n := range []int{10, 300} {
		if err := unix.Lsetxattr(filepath.Join(dir, "short"), fmt.Sprintf("user.x%d", n), bytes.Repeat([]byte{'v'}, n), 0); err != nil {
			break // not everywhere
		}
	}
}

// TestMakeSeeds makes the images of testdata/seeds in the folder that
// LOCKSTEP_SEEDS names, as root, and does nothing without it.
func TestMakeSeeds(t *testing.T) {
	to := os.Getenv("LOCKSTEP_SEEDS")
	if to == "" {
		t.Skip("LOCKSTEP_SEEDS names no folder")
	}
	keep := func(name, image string) {
		t.Helper()
		f, err := os.Open(image)
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		st, err := f.Stat()
		if err != nil {
			t.Fatal(err)
		}
		b := pack(t, f, st.Size())
		if err := os.WriteFile(filepath.Join(to, name+".gz"), b, 0o644); err != nil {
			t.Fatal(err)
		}
		t.Logf("%s: %d bytes", name, len(b))
	}
	filled := func(image, program, kind, options string) (dir string, unmount func()) {
		t.Helper()
		dir, unmount = mounted(t, image, program, kind, options)
		small(t, dir, kind != "exfat")
		syncfs(t, dir)
		return dir, unmount
	}
	const mib = 1 << 20
	for _, k := range []struct {
		name, mkfs, kind, options string
		size                      int64
		dirty                     bool
		args                      []string
	}{
		{"ext-4", "mkfs.ext4", "ext4", "", 2 * mib, false, []string{"-q", "-F", "-b", "1024", "-N", "128", "-O", "^has_journal,^resize_inode,inline_data", "-I", "256"}},
		{"ext-2", "mkfs.ext2", "ext4", "", 1 * mib, false, []string{"-q", "-F", "-b", "1024", "-N", "128", "-O", "^resize_inode", "-I", "128"}},
		{"ext-3-dirty", "mkfs.ext3", "ext4", "commit=1000", 4 * mib, true, []string{"-q", "-F", "-b", "1024", "-N", "128", "-O", "^resize_inode", "-J", "size=1"}},
		{"ext-4-dirty", "mkfs.ext4", "ext4", "commit=1000", 4 * mib, true, []string{"-q", "-F", "-b", "1024", "-N", "128", "-O", "^resize_inode", "-J", "size=1"}},
		{"ext-4-dirty-data", "mkfs.ext4", "ext4", "commit=1000,data=journal", 4 * mib, true, []string{"-q", "-F", "-b", "1024", "-N", "128", "-O", "^resize_inode,^metadata_csum,^64bit", "-J", "size=1"}},
		{"xfs-5", "mkfs.xfs", "xfs", "", 300 * mib, false, []string{"-q", "-d", "agcount=2"}},
		{"xfs-1k", "mkfs.xfs", "xfs", "", 300 * mib, false, []string{"-q", "-d", "agcount=2", "-b", "size=1024", "-n", "size=4096"}},
		{"ntfs", "mkntfs", "ntfs", "", 2 * mib, false, []string{"-q", "-F", "-f"}},
		{"ntfs-compressed", "mkntfs", "ntfs", "compression", 2 * mib, false, []string{"-q", "-F", "-f", "-C", "-c", "512"}},
		{"exfat", "mkfs.exfat", "exfat", "rw", 4 * mib, false, []string{"-c", "512", "-b", "512k"}},
	} {
		img := image(t, k.size, k.mkfs, k.args...)
		program, device := "", img
		switch k.kind {
		case "ntfs":
			program = "ntfs-3g"
		case "exfat":
			program, device = "mount.exfat-fuse", judge.Loop(t, img, 512)
		}
		dir, unmount := filled(device, program, k.kind, k.options)
		if k.dirty {
			// What is revoked, and content that looks like a journal's.
			for i := range 10 {
				p := filepath.Join(dir, fmt.Sprintf("later-%d", i))
				if err := os.Mkdir(p, 0o700); err != nil {
					t.Fatal(err)
				}
			}
			syncfs(t, dir)
			for i := range 10 {
				p := filepath.Join(dir, fmt.Sprintf("later-%d", i))
				if err := syscall.Rmdir(p); err != nil {
					t.Fatal(err)
				}
				if err := os.WriteFile(p, []byte("\xc0\x3b\x39\x98 looks like a journal"), 0o600); err != nil {
					t.Fatal(err)
				}
			}
			syncfs(t, dir)
			img = duplicate(t, img)
		}
		unmount()
		if k.kind == "ntfs" {
			unlocked(t, img)
		}
		keep(k.name, img)
	}
	from := t.TempDir()
	small(t, from, false)
	entries, err := filepath.Glob(filepath.Join(from, "*"))
	if err != nil {
		t.Fatal(err)
	}
	for _, bits := range []string{"12", "16", "32"} {
		size := map[string]int64{"12": mib, "16": 3 * mib, "32": 36 * mib}[bits]
		img := image(t, size, "mkfs.vfat", "-F", bits, "-s", "1")
		cmd := exec.Command(judge.Tool(t, "mcopy"), append([]string{"-s", "-m", "-Q", "-i", img}, append(entries, "::")...)...)
		cmd.Env = append(os.Environ(), "LC_ALL=C.UTF-8", "TZ=UTC")
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("mcopy: %v: %s", err, out)
		}
		keep("fat-"+bits, img)
	}
}

// openSeed opens a seed, whole.
func openSeed(t testing.TB, s *seed) (*browse.FS, error) {
	t.Helper()
	first := make([]byte, 128<<10)
	if _, err := s.ReadAt(first, 0); err != nil {
		t.Fatal(err)
	}
	return browse.Open(s, s.size, blockstack.Class(first))
}

// Seeds that could not be read would fuzz nothing.
func TestSeedsAreRead(t *testing.T) {
	text := fmt.Sprintf("%x", sha256.Sum256(bytes.Repeat([]byte("0123456789"), 2000)))
	for _, s := range seeds(t, "") {
		f, err := openSeed(t, s)
		if err != nil {
			t.Fatalf("%s: %v", s.name, err)
		}
		if want := strings.Contains(s.name, "ext-") && strings.Contains(s.name, "dirty"); f.Facts().Replayed != want {
			t.Errorf("%s: %+v", s.name, f.Facts())
		}
		got := read(t, f, posix)
		if len(got) < 45 {
			t.Errorf("%s: %d files", s.name, len(got))
		}
		if g := got["/text"]; g.size != 20000 || g.content != text {
			t.Errorf("%s: %+v", s.name, g)
		}
	}
}
