package browse_test

import (
	"bytes"
	"context"
	"encoding/binary"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/lockstep-backup/lockstep/blockstack"
	"github.com/lockstep-backup/lockstep/browse"
)

// sparse is an image of which only some places are not zero: what a seed says.
type sparse struct {
	size  int64
	parts map[int64][]byte
}

func (s sparse) ReadAt(p []byte, off int64) (int, error) {
	if off >= s.size {
		return 0, io.EOF
	}
	clear(p)
	for at, b := range s.parts {
		if at < off+int64(len(p)) && at+int64(len(b)) > off {
			copy(p[max(0, at-off):], b[max(0, off-at):])
		}
	}
	return len(p), nil
}

// pack writes an image as its size and its parts that are not zero; unpack reads it.
func pack(image []byte) []byte {
	const unit = 512
	out := binary.AppendUvarint(nil, uint64(len(image)))
	zero := make([]byte, unit)
	for at := 0; at < len(image); {
		end := at
		for end < len(image) && end-at < 64<<10 && !bytes.Equal(image[end:min(end+unit, len(image))], zero[:min(unit, len(image)-end)]) {
			end += unit
		}
		if end = min(end, len(image)); end > at {
			out = binary.AppendUvarint(out, uint64(at))
			out = binary.AppendUvarint(out, uint64(end-at))
			out = append(out, image[at:end]...)
			at = end
			continue
		}
		at += unit
	}
	return out
}

func unpack(b []byte) (s sparse, ok bool) {
	size, n := binary.Uvarint(b)
	if n <= 0 || size > 1<<40 {
		return s, false
	}
	s, b = sparse{size: int64(size), parts: map[int64][]byte{}}, b[n:]
	for len(b) > 0 && len(s.parts) < 1000 {
		at, n := binary.Uvarint(b)
		if n <= 0 || at > 1<<40 {
			return s, true
		}
		length, m := binary.Uvarint(b[n:])
		if m <= 0 {
			return s, true
		}
		b = b[n+m:]
		length = min(length, uint64(len(b)))
		s.parts[int64(at)] = b[:length]
		b = b[length:]
	}
	return s, true
}

// seed makes a small image by mkfs, filled where that needs no mount.
func seed(f *testing.F, size int64, mkfs string, args ...string) {
	program, err := exec.LookPath(mkfs)
	if err != nil {
		return // the fuzzer starts with the others
	}
	file := filepath.Join(f.TempDir(), "image")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		f.Fatal(err)
	}
	if err := os.Truncate(file, size); err != nil {
		f.Fatal(err)
	}
	if out, err := exec.Command(program, append(args, file)...).CombinedOutput(); err != nil {
		f.Logf("%s: %v: %s", mkfs, err, out)
		return
	}
	b, err := os.ReadFile(file)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(pack(b))
}

// Whatever is in an image: no panic, no endless loop, no memory without bound.
func FuzzBrowse(f *testing.F) {
	dir := f.TempDir()
	for name, b := range map[string][]byte{"short": []byte("content"), "long": bytes.Repeat([]byte("0123456789"), 2000), "sub/file": []byte("x")} {
		if err := os.MkdirAll(filepath.Dir(filepath.Join(dir, name)), 0o700); err != nil {
			f.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, name), b, 0o600); err != nil {
			f.Fatal(err)
		}
	}
	if err := os.Symlink("short", filepath.Join(dir, "link")); err != nil {
		f.Fatal(err)
	}
	seed(f, 512<<10, "mkfs.ext4", "-q", "-F", "-O", "^has_journal,inline_data", "-I", "256", "-d", dir)
	seed(f, 2<<20, "mkfs.ext3", "-q", "-F", "-d", dir, "-J", "size=1")
	seed(f, 256<<10, "mkfs.ext2", "-q", "-F", "-b", "1024", "-d", dir)
	seed(f, 300<<20, "mkfs.xfs", "-q")
	seed(f, 2<<20, "mkntfs", "-q", "-F", "-f")
	seed(f, 1<<20, "mkfs.vfat", "-F", "12")
	seed(f, 36<<20, "mkfs.vfat", "-F", "32", "-s", "1")
	seed(f, 4<<20, "mkfs.exfat")
	f.Fuzz(func(t *testing.T, b []byte) {
		s, ok := unpack(b)
		if !ok {
			return
		}
		first := make([]byte, 128<<10)
		_, _ = s.ReadAt(first, 0)
		classes := []string{blockstack.Class(first)}
		if !browse.Readable(classes[0]) {
			classes = []string{blockstack.Ext4, blockstack.XFS, blockstack.NTFS, blockstack.FAT32, blockstack.ExFAT}
		}
		for _, class := range classes {
			fs, err := browse.Open(s, s.size, class)
			if err != nil {
				continue
			}
			files := 0
			ctx, cancel := context.WithCancel(context.Background())
			_ = fs.Walk(ctx, "/", func(n browse.Node) error {
				if files++; files > 200 {
					cancel()
				}
				_, _ = fs.Xattrs(n.Path)
				_, _ = fs.ReadLink(n.Path)
				if file, err := fs.Open(n.Path); err == nil {
					p := make([]byte, 70000)
					_, _ = file.ReadAt(p, 0)
					_, _ = file.ReadAt(p, max(0, file.Size()-100))
					start, end := file.NextData(0)
					if start < 0 || end < start || end > file.Size() {
						t.Errorf("data from %d to %d of %d", start, end, file.Size())
					}
				}
				return nil
			}, func(browse.Problem) {
				if files++; files > 200 {
					cancel()
				}
			})
			cancel()
		}
	})
}
