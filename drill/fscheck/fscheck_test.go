package fscheck_test

import (
	"bytes"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/lockstep-backup/lockstep/blockstack"
	"github.com/lockstep-backup/lockstep/custody"
	"github.com/lockstep-backup/lockstep/drill"
	"github.com/lockstep-backup/lockstep/drill/fscheck"
	"github.com/lockstep-backup/lockstep/internal/judge"
)

// made is a fresh file system with some files where the tool can put them there.
func made(t *testing.T, size int64, tool string, args ...string) []byte {
	t.Helper()
	file := filepath.Join(t.TempDir(), "fs")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(file, size); err != nil {
		t.Fatal(err)
	}
	out, err := exec.Command(judge.Tool(t, tool), append(args, file)...).CombinedOutput()
	if err != nil {
		t.Fatalf("%s: %v\n%s", tool, err, out)
	}
	b, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func check(t *testing.T, class string, image []byte) drill.Finding {
	t.Helper()
	if f, err := os.OpenFile("/dev/fuse", os.O_RDWR, 0); err != nil {
		judge.Missing(t, "/dev/fuse")
	} else {
		_ = f.Close()
	}
	before := bytes.Clone(image)
	s := drill.NewScratch(bytes.NewReader(image), int64(len(image)), 64<<20)
	defer s.Close()
	var said strings.Builder
	f, err := fscheck.Checker{Tell: func(format string, args ...any) {
		for _, a := range args {
			if text, ok := a.(string); ok {
				said.WriteString(text)
			}
		}
	}}.Check(t.Context(), class, s)
	if err != nil {
		t.Fatalf("%s: %v", class, err)
	}
	if !bytes.Equal(before, image) {
		t.Errorf("%s: what lies below was written", class)
	}
	t.Logf("%s: %+v", class, f)
	if len(f.Tools) != 1 || f.Tools[0].Version == "unknown" {
		t.Errorf("%s: tools %+v\n%s", class, f.Tools, said.String())
	}
	return f
}

func TestTools(t *testing.T) {
	tree := t.TempDir()
	for _, name := range []string{"a", "b", "c"} {
		if err := os.WriteFile(filepath.Join(tree, name), bytes.Repeat([]byte(name), 10000), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	wipe := func(from, n int) func([]byte) {
		return func(b []byte) {
			for i := range n {
				b[from+i] = 0xff
			}
		}
	}
	for _, k := range []struct {
		class  string
		judge  string
		image  func() []byte
		damage func([]byte)
	}{
		{blockstack.Ext4, "e2fsck", func() []byte { return made(t, 16<<20, "mkfs.ext4", "-q", "-b", "4096", "-d", tree) }, func(b []byte) {
			// The first inode table, behind the reserved inodes: what the group descriptor says.
			at := int(uint32(b[4096+8])|uint32(b[4096+9])<<8|uint32(b[4096+10])<<16) * 4096
			wipe(at+256, 2048)(b)
		}},
		{blockstack.XFS, "xfs_repair", func() []byte { return made(t, 320<<20, "mkfs.xfs", "-q", "-f") }, wipe(4096*2+16, 3000)},
		{blockstack.FAT32, "fsck.fat", func() []byte { return made(t, 40<<20, "mkfs.fat", "-F", "32") }, wipe(32*512, 64)},
		{blockstack.NTFS, "ntfsfix", func() []byte { return made(t, 16<<20, "mkntfs", "-q", "-F", "-Q") }, func(b []byte) {
			at := int(b[13]) * 512 * int(b[48])
			wipe(at, 1024)(b)
		}},
	} {
		t.Run(k.class, func(t *testing.T) {
			judge.Tool(t, k.judge)
			image := k.image()
			if f := check(t, k.class, image); f.Outcome != custody.DrillPassed {
				t.Errorf("sound: %+v", f)
			}
			k.damage(image)
			if f := check(t, k.class, image); f.Outcome != custody.DrillFailed {
				t.Errorf("damaged: %+v", f)
			}
			judge.Decided(t, k.judge)
		})
	}
}

// A journal that was not applied is no damage: it is applied to the scratch disk.
func TestJournalIsApplied(t *testing.T) {
	tool := judge.Tool(t, "debugfs")
	file := filepath.Join(t.TempDir(), "fs")
	if err := os.WriteFile(file, made(t, 16<<20, "mkfs.ext4", "-q"), 0o600); err != nil {
		t.Fatal(err)
	}
	// A transaction that gives the root folder's block anew, and that is committed in the journal alone.
	content := filepath.Join(t.TempDir(), "block")
	if err := os.WriteFile(content, make([]byte, 1024), 0o600); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(tool, "-w", "-f", "-", file)
	cmd.Stdin = strings.NewReader("journal_open\njournal_write -b 15000 " + content + "\njournal_close\nset_super_value state 0\n")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("debugfs: %v\n%s", err, out)
	}
	image, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if image[1024+0x60]&4 == 0 {
		t.Fatal("the journal is not to be applied: the test tests nothing")
	}
	if f := check(t, blockstack.Ext4, image); f.Outcome != custody.DrillPassed {
		t.Errorf("%+v", f)
	}
}

func TestNoTool(t *testing.T) {
	s := drill.NewScratch(bytes.NewReader(nil), 0, 0)
	if _, err := (fscheck.Checker{}).Check(t.Context(), blockstack.Swap, s); !errors.Is(err, drill.ErrNoTool) {
		t.Errorf("%v", err)
	}
}
