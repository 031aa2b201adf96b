package browse_test

import (
	"bytes"
	"crypto/sha256"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/lockstep-backup/lockstep/browse"
)

func TestXFSAsTheKernelSeesIt(t *testing.T) {
	t.Parallel()
	for _, k := range []struct {
		name string
		args []string
	}{
		{"version 5", nil},
		{"bigtime, nrext64, 64 KiB directories", []string{"-m", "bigtime=1", "-i", "nrext64=1,size=1024", "-n", "size=65536"}},
		{"1 KiB blocks", []string{"-b", "size=1024"}},
	} {
		t.Run(k.name, func(t *testing.T) {
			t.Parallel()
			a := all
			if k.args != nil {
				a.files = 500
			}
			if k.args == nil {
				a.newest = time.Time{}
			}
			img := image(t, 512<<20, "mkfs.xfs", append([]string{"-q", "-L", "browse"}, k.args...)...)
			dir, unmount := mounted(t, img, "", "xfs", "")
			populate(t, dir, a)
			want := see(t, dir)
			unmount()
			for _, s := range want { // shown twice by the kernel, the second time raw
				maps.DeleteFunc(s.xattrs, func(n, _ string) bool { return n == "trusted.SGI_ACL_FILE" || n == "trusted.SGI_ACL_DEFAULT" })
			}
			f := open(t, img)
			if facts := f.Facts(); facts.Dirty || facts.Label != "browse" || len(facts.Warnings) > 0 || len(facts.UUID) != 36 {
				t.Errorf("facts %+v", facts)
			}
			compare(t, "kernel xfs", want, read(t, f, posix), posix)
			checkTar(t, f, want)
		})
	}
}

func TestXFSDirtyLogIsReported(t *testing.T) {
	t.Parallel()
	img := image(t, 320<<20, "mkfs.xfs", "-q")
	dir, unmount := mounted(t, img, "", "xfs", "")
	a := all
	a.files, a.newest, a.xattrs = 100, time.Time{}, false
	populate(t, dir, a)
	syncfs(t, dir)
	taken := duplicate(t, img)
	unmount()
	if facts := open(t, taken).Facts(); !facts.Dirty || facts.Replayed || len(facts.Warnings) != 1 {
		t.Errorf("facts of a mounted one: %+v", facts)
	}
	if facts := open(t, img).Facts(); facts.Dirty {
		t.Errorf("facts after unmount: %+v", facts)
	}
}

// Version 4, which kernels leave behind, is filled by mkfs from a list.
func TestXFSVersion4AsItWasFilled(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	var proto strings.Builder
	proto.WriteString("nothing\n0 0\nd--755 7 8\n")
	want := map[string]sample{"/dir": {kind: browse.Dir, mode: 0o750, uid: 5, gid: 6}, "/link": {kind: browse.Symlink, mode: 0o777, size: 7, links: 1, content: "dir/f33"}}
	proto.WriteString("link l--777 0 0 dir/f33\ndir d--750 5 6\n")
	for i := range 900 {
		content := bytes.Repeat([]byte{byte(i)}, i*i%50021)
		p := filepath.Join(dir, fmt.Sprint(i))
		if err := os.WriteFile(p, content, 0o600); err != nil {
			t.Fatal(err)
		}
		fmt.Fprintf(&proto, "f%d -u-644 %d 70000 %s\n", i, i, p)
		want[fmt.Sprintf("/dir/f%d", i)] = sample{
			kind: browse.Regular, mode: 0o4644, uid: uint32(i), gid: 70000, size: int64(len(content)), links: 1,
			content: fmt.Sprintf("%x", sha256.Sum256(content)),
		}
	}
	proto.WriteString("$\n$\n")
	list := filepath.Join(dir, "proto")
	if err := os.WriteFile(list, []byte(proto.String()), 0o600); err != nil {
		t.Fatal(err)
	}
	img := image(t, 320<<20, "mkfs.xfs", "-q", "-m", "crc=0", "-n", "ftype=0", "-p", list)
	got := read(t, open(t, img), posix)
	for name, s := range got {
		s.mtime, s.ino = time.Time{}, 0
		got[name] = s
	}
	compare(t, "mkfs.xfs -p", want, got, posix)
}
