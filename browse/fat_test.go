package browse_test

import (
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"github.com/lockstep-backup/lockstep/internal/judge"
)

func TestFATAsMtoolsFillsIt(t *testing.T) {
	t.Parallel()
	for _, k := range []struct {
		name  string
		size  int64
		args  []string
		files int
	}{
		{"FAT12", 16 << 20, []string{"-F", "12", "-s", "16"}, 100},
		{"FAT16", 200 << 20, []string{"-F", "16"}, 400},
		{"FAT32", 300 << 20, []string{"-F", "32", "-s", "1"}, 800},
	} {
		t.Run(k.name, func(t *testing.T) {
			t.Parallel()
			from := t.TempDir()
			if k.name == "FAT12" {
				for i := range k.files {
					p := filepath.Join(from, "dir", string(rune('a'+i%26)), time.Duration(i).String()+" Long Name")
					if err := os.MkdirAll(filepath.Dir(p), 0o755); err != nil {
						t.Fatal(err)
					}
					if err := os.WriteFile(p, make([]byte, i*117), 0o600); err != nil {
						t.Fatal(err)
					}
				}
			} else {
				populate(t, from, abilities{files: k.files, names: []string{"ÜMLAUT.TXT", "short.txt"}})
			}
			if err := os.Remove(filepath.Join(from, "names/ÄÖÜ ß 漢字 🚀")); err == nil { // not in mtools
				if err := os.RemoveAll(filepath.Join(from, "dirs/ÄÖÜ ß 漢字 🚀")); err != nil {
					t.Fatal(err)
				}
			}
			img := image(t, k.size, "mkfs.vfat", append([]string{"-n", "BROWSE"}, k.args...)...)
			entries, err := filepath.Glob(filepath.Join(from, "*"))
			if err != nil {
				t.Fatal(err)
			}
			cmd := exec.Command(judge.Tool(t, "mcopy"), append([]string{"-s", "-m", "-Q", "-i", img}, append(entries, "::")...)...)
			cmd.Env = append(os.Environ(), "LC_ALL=C.UTF-8", "TZ=UTC")
			if out, err := cmd.CombinedOutput(); err != nil {
				t.Fatalf("mcopy: %v: %s", err, out)
			}
			f := open(t, img)
			if facts := f.Facts(); facts.Dirty || facts.Label != "BROWSE" || len(facts.Warnings) > 0 || len(facts.UUID) != 9 {
				t.Errorf("facts %+v", facts)
			}
			want := see(t, from)
			for n, s := range want {
				s.mtime = s.mtime.Truncate(2 * time.Second)
				want[n] = s
			}
			compare(t, "mcopy", want, read(t, f, aspects{}), aspects{})
		})
	}
}

func TestExFATAsExfatFuseSeesIt(t *testing.T) {
	t.Parallel()
	img := image(t, 300<<20, "mkfs.exfat", "-L", "browse", "-c", "4096")
	// The program takes block devices only.
	dir, unmount := mounted(t, judge.Loop(t, img, 512), "mount.exfat-fuse", "exfat", "rw")
	// Not later: exfat-fuse takes 2100 for a leap year, and writes dates behind its February a day early.
	a := abilities{files: 1000, names: []string{"ÜMLAUT.TXT"}, newest: time.Date(2099, 12, 31, 4, 5, 6, 0, time.UTC)}
	populate(t, dir, a)
	if err := os.Truncate(filepath.Join(dir, "big"), 20<<20); err != nil { // valid to a part
		t.Fatal(err)
	}
	want := see(t, dir)
	syncfs(t, dir)
	unmount()
	f := open(t, img)
	if facts := f.Facts(); facts.Label != "browse" || len(facts.UUID) != 9 {
		t.Errorf("facts %+v", facts)
	}
	for n, s := range want {
		s.mtime = s.mtime.Truncate(2 * time.Second)
		want[n] = s
	}
	got := read(t, f, aspects{})
	for n, s := range got {
		s.mtime = s.mtime.Truncate(2 * time.Second)
		got[n] = s
	}
	compare(t, "exfat-fuse", want, got, aspects{})
	checkTar(t, f, want)
}
