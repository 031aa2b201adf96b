package e2e

import (
	"crypto/rand"
	"encoding/base64"
	"os"
	"testing"

	"github.com/lockstep-backup/lockstep/internal/judge"
)

// TestBEKVolume is docs/azure.md: the key of a Linux data disk lies on the BEK
// volume, from where it is taken into custody without touching a disk.
func TestBEKVolume(t *testing.T) {
	t.Parallel()
	h := initialised(t)
	random := make([]byte, 127)
	_, _ = rand.Read(random)
	key := h.write("LinuxPassPhraseFileName", base64.StdEncoding.EncodeToString(random))
	bek, data := h.write("bek.img", ""), h.write("data.img", "")
	for image, size := range map[string]int64{bek: 48 << 20, data: 24 << 20} {
		if err := os.Truncate(image, size); err != nil {
			t.Fatal(err)
		}
	}
	judge.Tool(t, "mcopy")
	judge.Tool(t, "cryptsetup")
	tool(t, "2048,,c\n", "sfdisk", "-q", bek)
	tool(t, "", "mkfs.vfat", "--offset", "2048", "-n", "BEK VOLUME", bek)
	tool(t, "", "mcopy", "-i", bek+"@@1M", key, "::LinuxPassPhraseFileName")
	tool(t, "", "cryptsetup", "luksFormat", "-q", "--pbkdf", "pbkdf2", "--pbkdf-force-iterations", "1000", "--key-file", key, data)

	h.do(0, "machine", "add", "web01", "--disk", "vda="+data, "--disk", "bek="+bek)
	h.do(3, "backup", "web01")
	if err := os.Remove(bek); err != nil {
		t.Fatal(err)
	}
	read := h.do(0, "browse", "cat", "web01@latest/bek/p1:/LinuxPassPhraseFileName")
	if len(read.stdout) != 172 {
		t.Fatalf("%d bytes on the BEK volume, want the 172 of the documentation", len(read.stdout))
	}
	if r := h.run(read.stdout, "secret", "add", "web01", "--kind", "key-file", "--file", "-"); r.exit != 0 {
		t.Fatal(r)
	}
	h.do(0, "status", "web01")
	judge.Decided(t, "cryptsetup, mkfs.vfat and mcopy: a BEK volume")
}
