package browse_test

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/lockstep-backup/lockstep/internal/judge"
)

func TestBtrfsAsTheKernelSeesIt(t *testing.T) {
	for _, k := range []struct {
		name, options string
		args          []string
		full          bool
	}{
		{"zstd, crc32c, DUP", "compress-force=zstd", []string{"-m", "dup"}, true},
		{"zlib, xxhash, 4 KiB nodes, DUP", "compress-force=zlib", []string{"-m", "dup", "-d", "dup", "--csum", "xxhash", "--nodesize", "4096"}, false},
		{"lzo, sha256, 64 KiB nodes", "compress-force=lzo", []string{"-m", "single", "--csum", "sha256", "--nodesize", "65536"}, false},
		{"plain, blake2, mixed", "", []string{"--mixed", "--csum", "blake2", "-O", "^no-holes"}, false},
	} {
		t.Run(k.name, func(t *testing.T) {
			a := all
			if a.files = 200; k.full {
				a.files = 1500
			}
			img := image(t, 512<<20, "mkfs.btrfs", append([]string{"-q", "-L", "browse"}, k.args...)...)
			dir, unmount := mounted(t, img, "", "btrfs", k.options)
			populate(t, dir, a)
			for i, s := range []string{"one line, again and again\n", "\x00\x01\x02\x03abc", "x"} {
				text := []byte(strings.Repeat(s, 2000*(i*i*300+1)/len(s)))
				for at := 0; at < len(text); at += 5000 + at/7 { // neither constant nor random
					copy(text[at:], fmt.Sprint(at*at))
				}
				if err := os.WriteFile(filepath.Join(dir, fmt.Sprintf("text-%d", i)), text, 0o600); err != nil {
					t.Fatal(err)
				}
			}
			syncfs(t, dir)
			overwrite(t, filepath.Join(dir, "text-2")) // parts of compressed extents stay in use
			btrfs := judge.Tool(t, "btrfs")
			command(t, btrfs, "subvolume", "create", filepath.Join(dir, "volume"))
			command(t, btrfs, "subvolume", "create", filepath.Join(dir, "volume", "inner"))
			if err := os.WriteFile(filepath.Join(dir, "volume", "inner", "file"), bytes.Repeat([]byte("inner"), 9000), 0o640); err != nil {
				t.Fatal(err)
			}
			command(t, btrfs, "subvolume", "snapshot", "-r", filepath.Join(dir, "volume"), filepath.Join(dir, "snapshot"))
			want := see(t, dir)
			unmount()
			f := open(t, img)
			if facts := f.Facts(); facts.Dirty || facts.Label != "browse" || len(facts.Warnings) > 0 || len(facts.UUID) != 36 {
				t.Errorf("facts %+v", facts)
			}
			got := read(t, f, posix)
			for name, s := range got { // the kernel numbers each subvolume from the same number, and its places anew
				if strings.HasPrefix(name, "/volume") || strings.HasPrefix(name, "/snapshot") {
					if s.ino = s.ino & (1<<40 - 1); name == "/snapshot/inner" {
						s.ino, s.mtime = want[name].ino, want[name].mtime
					}
					got[name] = s
				}
			}
			compare(t, "kernel btrfs", want, got, posix)
			checkTar(t, f, want)
		})
	}
}

func overwrite(t *testing.T, name string) {
	t.Helper()
	f, err := os.OpenFile(name, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	for at := int64(5000); at < 2<<20; at += 70_001 {
		if _, err := f.WriteAt([]byte("changed"), at); err != nil {
			t.Fatal(err)
		}
	}
}

// What mkfs fills is compared with what the kernel sees in it.
func TestBtrfsAsMkfsFillsIt(t *testing.T) {
	from := t.TempDir()
	a := all
	a.files, a.devices = 1500, false
	populate(t, from, a)
	img := image(t, 512<<20, "mkfs.btrfs", "-q", "--rootdir", from)
	f := open(t, img)
	got := read(t, f, posix)
	dir, unmount := mounted(t, img, "", "btrfs", "ro")
	want := see(t, dir)
	unmount()
	compare(t, "kernel btrfs", want, got, posix)
	filled := see(t, from)
	for name, w := range filled {
		if g := got[name]; g.content != w.content || g.mode != w.mode || g.uid != w.uid || g.kind != w.kind {
			t.Errorf("%.60q is not what was put in", name)
		}
	}
}

func TestBtrfsDefaultSubvolumeAndTreeLog(t *testing.T) {
	img := image(t, 256<<20, "mkfs.btrfs", "-q")
	dir, unmount := mounted(t, img, "", "btrfs", "commit=300")
	btrfs := judge.Tool(t, "btrfs")
	command(t, btrfs, "subvolume", "create", filepath.Join(dir, "system"))
	for i := range 20 {
		if err := os.WriteFile(filepath.Join(dir, "system", fmt.Sprint(i)), bytes.Repeat([]byte{byte(i)}, 3000*i), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	command(t, btrfs, "subvolume", "set-default", filepath.Join(dir, "system"))
	want := see(t, filepath.Join(dir, "system"))
	syncfs(t, dir)
	synced, err := os.Create(filepath.Join(dir, "system", "synced"))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := synced.WriteString("after the commit"); err != nil {
		t.Fatal(err)
	}
	if err := unix.Fsync(int(synced.Fd())); err != nil {
		t.Fatal(err)
	}
	synced.Close()
	taken := duplicate(t, img)
	unmount()
	f := open(t, taken)
	if facts := f.Facts(); !facts.Dirty || facts.Replayed || len(facts.Warnings) != 2 {
		t.Errorf("facts of one with a tree log: %+v", facts)
	}
	compare(t, "kernel btrfs", want, read(t, f, posix), posix)
	if facts := open(t, img).Facts(); facts.Dirty || len(facts.Warnings) != 1 {
		t.Errorf("facts after unmount: %+v", facts)
	}
}
