package unlock_test

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"testing"

	"github.com/lockstep-backup/lockstep/internal/judge"
)

// A disk that a Linux guest made: the files in its logical volumes have the sums
// that it noted, as e2fsprogs reads them from what we open.
func TestFixtureDisk(t *testing.T) {
	name := filepath.Join(judge.Fixtures(t), "disk", "disk-gpt-esp-boot-luks2-lvm")
	image, err := exec.Command(judge.Tool(t, "xz"), "-dc", name+".img.xz").Output()
	if err != nil {
		t.Fatal(err)
	}
	notes, err := os.ReadFile(name + ".txt")
	if err != nil {
		t.Fatal(err)
	}
	debugfs := judge.Tool(t, "debugfs")
	tree := open(t, passphrases("wrong", "fixture-pass"), vda(image))
	want(t, tree, "vda/disk disk partition-table", "vda/p1 partition fat16", "vda/p2 partition ext4",
		"vda/p3 partition luks2", "vda/p3+ luks2 lvm2-pv", "vda/vgroot-home+ lv ext4", "vda/vgroot-root+ lv ext4")
	root := filepath.Join(t.TempDir(), "root")
	d := tree.Find("vda", "vgroot-root")
	content, err := io.ReadAll(d.Read())
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(root, content, 0o600); err != nil {
		t.Fatal(err)
	}
	// dmsetup's table in the notes says where it lies in the plaintext.
	below := make([]byte, 1<<20)
	if _, err := tree.Find("vda", "p3").R.ReadAt(below, 2048*512); err != nil || !bytes.Equal(below, content[:1<<20]) {
		t.Errorf("the logical volume is not where dmsetup says, %v", err)
	}
	sums := regexp.MustCompile(`(?m)^([0-9a-f]{64})  (\S+)$`).FindAllStringSubmatch(string(notes), -1)
	if len(sums) != 4 {
		t.Fatalf("%d sums in the notes", len(sums))
	}
	for _, s := range sums {
		out, err := exec.Command(debugfs, "-R", "cat /d/"+s[2], root).Output()
		if err != nil {
			t.Fatal(err)
		}
		if sum := sha256.Sum256(out); hex.EncodeToString(sum[:]) != s[1] {
			t.Errorf("%s has another sum", s[2])
		}
		judge.Decided(t, "debugfs cat")
	}
	if out, err := exec.Command(judge.Tool(t, "e2fsck"), "-fn", root).CombinedOutput(); err != nil {
		t.Errorf("e2fsck: %v\n%s", err, out)
	}
	judge.Decided(t, "e2fsck -fn")
}
