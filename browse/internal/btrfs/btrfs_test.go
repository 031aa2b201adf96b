package btrfs

import (
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/lockstep-backup/lockstep/browse/internal/fsys"
	"github.com/lockstep-backup/lockstep/internal/judge"
)

// sparse is an image of 4 KiB blocks, those that are not in it zero.
type sparse struct {
	size   int64
	blocks map[int64][]byte
}

const blockSize = 4096

func (s sparse) ReadAt(p []byte, off int64) (int, error) {
	if off >= s.size {
		return 0, io.EOF
	}
	clear(p)
	for done := 0; done < len(p); {
		b, at := s.blocks[(off+int64(done))/blockSize], int((off+int64(done))%blockSize)
		n := min(len(p)-done, blockSize-at)
		copy(p[done:done+n], b[min(at, len(b)):])
		done += n
	}
	return len(p), nil
}

// pack writes an image as the numbers of its blocks that are not zero, and these.
func pack(image []byte) (out []byte) {
	for n := 0; (n+1)*blockSize <= len(image); n++ {
		if b := image[n*blockSize : (n+1)*blockSize]; !bytes.Equal(b, make([]byte, blockSize)) {
			out = append(binary.LittleEndian.AppendUint32(out, uint32(n)), b...)
		}
	}
	return out
}

func unpack(b []byte) sparse {
	s := sparse{1 << 30, map[int64][]byte{}}
	for len(b) >= 4 && len(s.blocks) < 4096 {
		n := min(len(b)-4, blockSize)
		s.blocks[int64(binary.LittleEndian.Uint32(b))] = b[4 : 4+n]
		b = b[4+n:]
	}
	return s
}

// small is an image with a few files.
func small(tb testing.TB) []byte {
	tb.Helper()
	program := judge.Tool(tb, "mkfs.btrfs")
	dir := filepath.Join(tb.TempDir(), "files")
	if err := os.MkdirAll(filepath.Join(dir, "sub"), 0o700); err != nil {
		tb.Fatal(err)
	}
	for name, b := range map[string][]byte{"short": []byte("content"), "long": bytes.Repeat([]byte("0123456789"), 2000), "sub/file": []byte("x")} {
		if err := os.WriteFile(filepath.Join(dir, name), b, 0o600); err != nil {
			tb.Fatal(err)
		}
	}
	if err := os.Symlink("short", filepath.Join(dir, "link")); err != nil {
		tb.Fatal(err)
	}
	image := filepath.Join(tb.TempDir(), "image")
	if err := os.WriteFile(image, nil, 0o600); err != nil {
		tb.Fatal(err)
	}
	if err := os.Truncate(image, 128<<20); err != nil {
		tb.Fatal(err)
	}
	if out, err := exec.Command(program, "-q", "-m", "single", "--nodesize", "4096", "--rootdir", dir, image).CombinedOutput(); err != nil {
		tb.Logf("mkfs.btrfs: %v: %s", err, out)
		return nil
	}
	b, err := os.ReadFile(image)
	if err != nil {
		tb.Fatal(err)
	}
	return b
}

// visit reads all it can, up to a number of files.
func visit(t *testing.T, f *FS) (files int) {
	todo, seen := []uint64{f.Root()}, map[uint64]bool{}
	for len(todo) > 0 && files < 100 {
		id := todo[0]
		todo = todo[1:]
		if seen[id] {
			continue
		}
		seen[id] = true
		files++
		_, _ = f.Stat(id)
		_, _ = f.Xattrs(id)
		_, _ = f.ReadLink(id)
		if file, err := f.Open(id); err == nil {
			p := make([]byte, 70000)
			_, _ = file.ReadAt(p, 0)
			_, _ = file.ReadAt(p, max(0, file.Size()-100))
			if start, end := file.NextData(0); start < 0 || end < start || end > file.Size() {
				t.Errorf("data from %d to %d of %d", start, end, file.Size())
			}
		}
		_ = f.List(id, func(e fsys.Entry) bool {
			todo = append(todo, e.ID)
			return len(todo) < 200
		})
	}
	return files
}

// Whatever is in an image: no panic, no endless loop, no memory without bound.
// Checksums are not looked at, so that what lies behind them is.
func FuzzBtrfs(f *testing.F) {
	b := small(f)
	f.Add(pack(b))
	f.Fuzz(func(t *testing.T, b []byte) {
		s := unpack(b)
		if fs, err := open(s, s.size, false); err == nil {
			visit(t, fs)
		}
	})
}

func FuzzLZO(f *testing.F) {
	f.Add([]byte("\x13abc\x40\x00\x11\x00\x00"))
	f.Fuzz(func(_ *testing.T, b []byte) {
		_ = unpackLZO(make([]byte, 9000), b, 4096)
		_ = lzo(make([]byte, 4096), b)
	})
}

func TestWhatIsDamagedIsRefused(t *testing.T) {
	image := small(t)
	opened, err := Open(bytes.NewReader(image), int64(len(image)))
	if err != nil {
		t.Fatal(err)
	}
	if n := visit(t, opened); n != 6 {
		t.Errorf("%d files, not 6", n)
	}
	s, err := opened.subvolume(topLevel)
	if err != nil {
		t.Fatal(err)
	}
	places, _, err := opened.locate(s.at)
	if err != nil {
		t.Fatal(err)
	}
	corrupt, unsupported := new(*fsys.CorruptError), new(*fsys.UnsupportedError)
	for _, k := range []struct {
		name  string
		at    int64
		to    []byte
		check bool
		as    any
	}{
		{"superblock's checksum", superOffset + 300, []byte{'x'}, true, corrupt},
		{"magic", superOffset + 64, []byte{'x'}, false, corrupt},
		{"a kind of checksum", superOffset + 196, []byte{9}, false, unsupported},
		{"zoned", superOffset + 189, []byte{0x10}, false, unsupported},
		{"a feature of the future", superOffset + 193, []byte{1}, false, unsupported},
		{"node size", superOffset + 148, []byte{1}, false, corrupt},
		{"chunks behind the superblock", superOffset + 161, []byte{0xFF}, false, corrupt},
		{"striped chunks", superOffset + sysChunks + 17 + 24, []byte{0x0A}, false, unsupported},
		{"another device", superOffset + sysChunks + 17 + 48, []byte{7}, false, unsupported},
		{"a node's checksum", places[0] + 4000, []byte("x"), true, corrupt},
		{"a node's level", places[0] + 100, []byte{5}, false, corrupt},
		{"a node's generation", places[0] + 85, []byte{5}, false, corrupt},
		{"a node's address", places[0] + 48, []byte{5}, false, corrupt},
		{"a node's items", places[0] + 98, []byte{5}, false, corrupt},
		{"a node's keys", places[0] + nodeHeader, []byte{0, 0xFF}, false, corrupt},
		{"an item behind its node", places[0] + nodeHeader + 17, []byte{0, 0xFF}, false, corrupt},
	} {
		b := bytes.Clone(image)
		copy(b[k.at:], k.to)
		f, err := open(bytes.NewReader(b), int64(len(b)), k.check)
		if err == nil {
			_, err = f.Stat(f.Root())
		}
		if err == nil || !errors.As(err, k.as) {
			t.Errorf("%s: %v", k.name, err)
		}
	}
}
