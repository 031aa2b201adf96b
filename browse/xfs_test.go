package browse_test

import (
	"maps"
	"testing"
	"time"
)

func TestXFSAsTheKernelSeesIt(t *testing.T) {
	for _, k := range []struct {
		name   string
		args   []string
		change func(*abilities)
	}{
		{"version 5", nil, nil},
		{"bigtime, nrext64, 64 KiB directories", []string{"-m", "bigtime=1", "-i", "nrext64=1,size=1024", "-n", "size=65536"}, nil},
		{"1 KiB blocks", []string{"-b", "size=1024"}, nil},
		{"version 4", []string{"-m", "crc=0", "-n", "ftype=0"}, func(a *abilities) {
			a.oldest, a.newest = time.Date(1935, 2, 3, 4, 5, 6, 789, time.UTC), time.Time{}
		}},
	} {
		t.Run(k.name, func(t *testing.T) {
			a := all
			if k.change != nil {
				k.change(&a)
			}
			if k.args != nil {
				a.files = 800
			}
			if a.newest.After(time.Date(2038, 1, 1, 0, 0, 0, 0, time.UTC)) && k.args == nil {
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
