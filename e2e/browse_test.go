package e2e

import (
	"archive/tar"
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/lockstep-backup/lockstep/disk"
	"github.com/lockstep-backup/lockstep/diskcrypt/bitlocker/bitlockerformat"
	"github.com/lockstep-backup/lockstep/internal/judge"
)

// thousands fills a folder with n files and returns their sums by path.
func thousands(t *testing.T, dir string, n int) map[string]string {
	t.Helper()
	want := map[string]string{}
	all := noise(uint64(n), 1<<20)
	for i := range n {
		name := fmt.Sprintf("huge/%04d %s", i, strings.Repeat("name ", i%30)+"x")
		switch {
		case i%10 == 1:
			name = fmt.Sprintf("ünï/漢字 %d/🚀 %d", i%7, i)
		case i%10 == 2:
			name = fmt.Sprintf("%s%d", strings.Repeat("deep/", i%40), i)
		}
		size := i * 37 % 9001
		if i%400 == 3 {
			size = 300_000 + i
		}
		content := all[i : i+size]
		p := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(p), 0o755); err != nil {
			t.Fatal(err)
		}
		if i%100 == 5 { // with a hole before its content
			f, err := os.Create(p)
			if err != nil {
				t.Fatal(err)
			}
			_, err = f.WriteAt(content, 500_000)
			if err := errors.Join(err, f.Close()); err != nil {
				t.Fatal(err)
			}
			content = append(make([]byte, 500_000), content...)
		} else if err := os.WriteFile(p, content, 0o644); err != nil {
			t.Fatal(err)
		}
		want[name] = fmt.Sprintf("%x", sha256.Sum256(content))
	}
	return want
}

// browsedTar reads all files of a volume out of its recovery point, as a stream.
func (h *host) browsedTar(what string) map[string]string {
	h.tb.Helper()
	cmd := h.command("browse", "tar", what, "--reason", "a test")
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.StdoutPipe()
	if err != nil {
		h.tb.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		h.tb.Fatal(err)
	}
	got := map[string]string{}
	r := tar.NewReader(out)
	for {
		head, err := r.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			h.tb.Errorf("tar: %v", err)
			break
		}
		if head.Typeflag != tar.TypeReg {
			continue
		}
		sum := sha256.New()
		if _, err := io.Copy(sum, r); err != nil {
			h.tb.Errorf("tar: %s: %v", head.Name, err)
			break
		}
		got[head.Name] = fmt.Sprintf("%x", sum.Sum(nil))
	}
	_, _ = io.Copy(io.Discard, out)
	if err := cmd.Wait(); err != nil {
		h.tb.Errorf("browse tar: %v: %s", err, stderr.String())
	}
	return got
}

func (h *host) compareFiles(want, got map[string]string) {
	h.tb.Helper()
	bad := 0
	for name, sum := range want {
		if got[name] != sum {
			if bad++; bad < 10 {
				h.tb.Errorf("%q: %s, was %s", name, got[name], sum)
			}
		}
	}
	if bad > 0 || len(got) != len(want) {
		h.tb.Errorf("%d of %d files differ, %d were read", bad, len(want), len(got))
	}
}

// TestThousandsOfFiles: every file of a fresh file system comes out of its
// encrypted recovery point as it went in.
func TestThousandsOfFiles(t *testing.T) {
	t.Parallel()
	t.Run("ext4 in LUKS2", func(t *testing.T) {
		t.Parallel()
		h := initialised(t)
		dir, plain, image := h.path("files"), h.path("ext4"), h.path("vda.img")
		want := thousands(t, dir, 2000)
		tool(t, "", judge.Tool(t, "mkfs.ext4"), "-q", "-O", "inline_data", "-I", "256", "-d", dir, plain, "64M")
		b, err := os.ReadFile(plain)
		if err != nil {
			t.Fatal(err)
		}
		makeSparse(t, image, 72*mib)
		on(t, image, []disk.Range{{Length: 72 * mib}}, func(p pieces) error { return luksOn(p, "a passphrase", b) })
		h.do(0, "machine", "add", "vm", "--disk", "vda="+image)
		h.do(0, "secret", "add", "vm", "--kind", "passphrase", "--file", h.write("pass", "a passphrase"))
		h.do(0, "backup", "vm")
		h.compareFiles(want, h.browsedTar("vm@latest/vda/disk:/"))
		judge.Decided(t, "mke2fs -d")
	})
	t.Run("NTFS in BitLocker", func(t *testing.T) {
		t.Parallel()
		if os.Getuid() != 0 {
			judge.Missing(t, "the right to mount")
		}
		h := initialised(t)
		plain, image, dir := h.path("ntfs"), h.path("vda.img"), h.path("mounted")
		makeSparse(t, plain, 128*mib)
		// What BitLocker keeps for itself, from each quarter on, no file may have.
		tool(t, "", judge.Tool(t, "mkntfs"), "-q", "-F", "-f", plain)
		if err := os.Mkdir(dir, 0o700); err != nil {
			t.Fatal(err)
		}
		if out, err := exec.Command(judge.Tool(t, "ntfs-3g"), plain, dir).CombinedOutput(); err != nil {
			judge.Missing(t, fmt.Sprintf("mount of NTFS (%v: %s)", err, out))
		}
		want := func() map[string]string {
			defer func() { tool(t, "", "umount", dir) }()
			return thousands(t, dir, 1000)
		}()
		f, err := os.OpenFile(plain, os.O_RDWR, 0)
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		// The program lets go of the image after umount returned.
		if err := unix.FcntlFlock(f.Fd(), unix.F_SETLKW, &unix.Flock_t{Type: unix.F_WRLCK}); err != nil {
			t.Fatal(err)
		}
		b, err := io.ReadAll(f)
		if err != nil {
			t.Fatal(err)
		}
		w, err := os.Create(image)
		if err != nil {
			t.Fatal(err)
		}
		v, err := bitlockerformat.Format(context.Background(), w, b, bitlockerformat.Options{Protectors: []bitlockerformat.Protector{{Kind: bitlockerformat.Recovery}}})
		if err := errors.Join(err, w.Close()); err != nil {
			t.Fatal(err)
		}
		h.do(0, "machine", "add", "vm", "--disk", "vda="+image)
		h.do(0, "secret", "add", "vm", "--kind", "recovery-password", "--file", h.write("recovery", string(v.Protectors[0].Secret)))
		if r := h.run("", "backup", "vm"); r.exit != 0 && r.exit != 3 {
			t.Fatalf("%v", r)
		}
		h.compareFiles(want, h.browsedTar("vm@latest/vda/disk:/"))
		judge.Decided(t, "ntfs-3g")
	})
}
