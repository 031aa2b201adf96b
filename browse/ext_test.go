package browse_test

import (
	"fmt"
	"os"
	"path/filepath"
	"testing"
)

func TestExtAsTheKernelSeesIt(t *testing.T) {
	t.Parallel()
	for _, k := range []struct {
		name, mkfs string
		args       []string
		change     func(*abilities)
	}{
		{"ext4", "mkfs.ext4", nil, nil},
		{"ext4, inline data", "mkfs.ext4", []string{"-O", "inline_data", "-I", "256"}, nil},
		{"ext4, 1 KiB blocks, 32 bit", "mkfs.ext4", []string{"-b", "1024", "-O", "^64bit,^metadata_csum"}, func(a *abilities) { a.xattrs = false }},
		{"ext4, meta_bg, ea_inode", "mkfs.ext4", []string{"-O", "meta_bg,^resize_inode,ea_inode"}, nil},
		{"ext4, bigalloc", "mkfs.ext4", []string{"-O", "bigalloc", "-C", "16384"}, nil},
		{"ext3", "mkfs.ext3", []string{"-I", "256"}, nil},
		{"ext2", "mkfs.ext2", []string{"-b", "1024", "-I", "128"}, func(a *abilities) { a.xattrs = false }},
	} {
		t.Run(k.name, func(t *testing.T) {
			t.Parallel()
			a := all
			if k.change != nil {
				k.change(&a)
			}
			if k.args != nil {
				a.files = 500
			}
			img := image(t, 512<<20, k.mkfs, append([]string{"-q", "-F", "-L", "browse"}, k.args...)...)
			dir, unmount := mounted(t, img, "", "ext4", "")
			populate(t, dir, a)
			want := see(t, dir)
			unmount()
			f := open(t, img)
			if facts := f.Facts(); facts.Dirty || facts.Label != "browse" || len(facts.Warnings) > 0 || len(facts.UUID) != 36 {
				t.Errorf("facts %+v", facts)
			}
			compare(t, "kernel ext4", want, read(t, f, posix), posix)
			checkTar(t, f, want)
		})
	}
}

// An image of a mounted file system, as a snapshot of a running machine is.
func TestExtJournalIsApplied(t *testing.T) {
	t.Parallel()
	for _, k := range []struct {
		name, mkfs, options string
		args                []string
	}{
		{"ext4", "mkfs.ext4", "commit=1000", nil},
		{"without checksums, 1 KiB", "mkfs.ext4", "commit=1000", []string{"-b", "1024", "-O", "^metadata_csum,^64bit"}},
		{"data in the journal", "mkfs.ext4", "commit=1000,data=journal", nil},
		{"ext3", "mkfs.ext3", "commit=1000", nil},
	} {
		t.Run(k.name, func(t *testing.T) {
			t.Parallel()
			img := image(t, 256<<20, k.mkfs, append([]string{"-q", "-F", "-J", "size=16"}, k.args...)...)
			dir, unmount := mounted(t, img, "", "ext4", k.options)
			a := all
			a.files, a.xattrs = 300, false
			populate(t, dir, a)
			syncfs(t, dir)
			// Blocks that were directories become content: revoked. And content that looks like a journal's.
			for i := range 50 {
				p := filepath.Join(dir, fmt.Sprintf("later-%d", i))
				if err := os.MkdirAll(filepath.Join(p, "sub"), 0o700); err != nil {
					t.Fatal(err)
				}
			}
			syncfs(t, dir)
			if err := os.RemoveAll(filepath.Join(dir, "huge")); err != nil {
				t.Fatal(err)
			}
			for i := range 50 {
				p := filepath.Join(dir, fmt.Sprintf("later-%d", i))
				if err := os.RemoveAll(p); err != nil {
					t.Fatal(err)
				}
				if err := os.WriteFile(p, []byte("\xc0\x3b\x39\x98 looks like a journal"), 0o600); err != nil {
					t.Fatal(err)
				}
			}
			syncfs(t, dir)
			taken := duplicate(t, img)
			unmount()

			f := open(t, taken)
			if facts := f.Facts(); !facts.Dirty || !facts.Replayed || len(facts.Warnings) > 0 {
				t.Errorf("facts %+v", facts)
			}
			t.Log(f.Facts().Checkpoint)
			replayed := duplicate(t, taken)
			dir, _ = mounted(t, replayed, "", "ext4", "")
			compare(t, "kernel ext4 after its replay", see(t, dir), read(t, f, posix), posix)
		})
	}
}
