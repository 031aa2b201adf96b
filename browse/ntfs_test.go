package browse_test

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/lockstep-backup/lockstep/internal/judge"
)

func TestNTFSAsNTFS3GSeesIt(t *testing.T) {
	t.Parallel()
	for _, k := range []struct {
		name, options string
		args          []string
	}{
		{"4 KiB clusters", "", nil},
		{"512 byte clusters", "", []string{"-c", "512"}},
		{"compressed", "compression", []string{"-C"}},
	} {
		t.Run(k.name, func(t *testing.T) {
			t.Parallel()
			img := image(t, 256<<20, "mkntfs", append([]string{"-q", "-F", "-f", "-L", "browse"}, k.args...)...)
			options := strings.Trim("big_writes,"+k.options, ",")
			dir, unmount := mounted(t, img, "ntfs-3g", "ntfs", options)
			a := all
			a.files = 1000
			if k.args != nil {
				a.files = 500
			}
			a.owners, a.xattrs, a.devices = false, false, false
			a.oldest, a.newest = time.Date(1935, 2, 3, 4, 5, 6, 0, time.UTC), time.Date(2107, 2, 3, 4, 5, 6, 123456700, time.UTC)
			a.names = []string{"back|slash?*", strings.Repeat("ü", 127)}
			populate(t, dir, a)
			for i := range 20 { // what compresses, and a little that does not
				text := bytes.Repeat([]byte("all work and no play makes a dull file; "), 1+i*700)
				copy(text[len(text)/2:], []byte{1, 2, 3, byte(i)})
				p := filepath.Join(dir, "text", strings.Repeat("x", i+1))
				if err := os.MkdirAll(filepath.Dir(p), 0o755); err != nil {
					t.Fatal(err)
				}
				if err := os.WriteFile(p, text, 0o600); err != nil {
					t.Fatal(err)
				}
			}
			for i, size := range []int{1, 500, 5000, 60000} {
				p := filepath.Join(dir, "names", "UPPER lower")
				if err := unix.Lsetxattr(p, "user.stream"+strings.Repeat("m", i), bytes.Repeat([]byte{'s'}, size), 0); err != nil {
					t.Fatal(err)
				}
			}
			if err := os.Chtimes(filepath.Join(dir, "big"), time.Unix(1, 0), time.Unix(1e9, 100)); err != nil {
				t.Fatal(err)
			}
			unmount()
			unlocked(t, img)
			dir, unmount = mounted(t, img, "ntfs-3g", "ntfs", "ro")
			want := see(t, dir)
			unmount()
			for _, s := range want {
				delete(s.xattrs, "system.ntfs_attrib")
			}
			f := open(t, img)
			if facts := f.Facts(); facts.Dirty || facts.Label != "browse" || len(facts.Warnings) > 0 || facts.Owners {
				t.Errorf("facts %+v", facts)
			}
			as := aspects{links: true, inodes: true, xattrs: true, dirTimes: true}
			compare(t, "ntfs-3g", want, read(t, f, as), as)
			checkTar(t, f, want)
			stream, err := f.Open("/NAMES/upper LOWER:stream")
			if err != nil || stream.Size() != 1 {
				t.Errorf("a stream, in other case: %v", err)
			}
		})
	}
}

// unlocked waits until the program that served a FUSE mount let go of the image.
func unlocked(t *testing.T, image string) {
	t.Helper()
	f, err := os.OpenFile(image, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	lock := unix.Flock_t{Type: unix.F_WRLCK}
	if err := unix.FcntlFlock(f.Fd(), unix.F_SETLKW, &lock); err != nil {
		judge.Missing(t, "locks of files")
	}
}
