package browse_test

import (
	"context"
	"encoding/binary"
	"errors"
	"io"
	"testing"

	"github.com/lockstep-backup/lockstep/blockstack"
	"github.com/lockstep-backup/lockstep/browse"
)

// patched is a seed some bytes of which are others. It counts what is asked of
// it: a reader that goes round in circles asks without end.
type patched struct {
	*seed
	patches []part
	asked   int64
}

func (p *patched) ReadAt(b []byte, off int64) (int, error) {
	p.asked += int64(len(b))
	n, err := p.seed.ReadAt(b, off)
	for _, x := range p.patches {
		if x.at < off+int64(n) && x.at+int64(len(x.b)) > off {
			copy(b[max(0, x.at-off):n], x.b[max(0, off-x.at):])
		}
	}
	return n, err
}

const patchHead = 5

// patches reads what a fuzzer writes: where (4 bytes: the number of a byte that
// is not in a hole of the seed; the upper half of them: a sector of the whole
// image), how much (1 byte), and the bytes.
func (s *seed) patches(b []byte) []part {
	var list []part
	for len(b) > patchHead && len(list) < 64 {
		where, n := binary.LittleEndian.Uint32(b), int(b[4])&63+1
		b = b[patchHead:]
		n = min(n, len(b))
		at := s.place(int(where &^ (1 << 31)))
		if where>>31 != 0 {
			at = int64(where&^(1<<31)) * seedUnit % s.size
		}
		list = append(list, part{at, b[:n]})
		b = b[n:]
	}
	return list
}

// Bounds of one execution.
const (
	fuzzFiles = 150
	fuzzRead  = 1 << 20   // bytes of content read
	fuzzAsked = 256 << 20 // bytes that a reader may ask for; a walk of a seed asks for a few MiB
)

var errEnough = errors.New("enough")

func fuzz(f *testing.F, class, pattern string) {
	all := seeds(f, pattern)
	for i, s := range all {
		f.Add([]byte{byte(i)})
		// Bytes all over the image, as a start.
		for k := range 24 {
			b := binary.LittleEndian.AppendUint32([]byte{byte(i)}, uint32(k*s.solid/24+k*37))
			f.Add(append(b, 3, 0xFF, 0x7F, 0, byte(k)))
		}
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		if len(b) == 0 || len(b) > 4096 {
			return
		}
		s := all[int(b[0])%len(all)]
		image := &patched{seed: s, patches: s.patches(b[1:])}
		visit(t, image, class)
		if image.asked > fuzzAsked {
			t.Errorf("%s: %d bytes asked for", s.name, image.asked)
		}
	})
}

// visit opens an image and goes through what is there. Whatever that is: no
// panic, no endless loop, no memory without bound.
func visit(t *testing.T, image *patched, class string) {
	fs, err := browse.Open(image, image.size, class)
	if err != nil {
		return
	}
	files, budget := 0, int64(fuzzRead)
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	count := func() bool {
		files++
		if files > fuzzFiles || budget <= 0 {
			cancel()
			return false
		}
		return true
	}
	p := make([]byte, 64<<10)
	_ = fs.Walk(ctx, "/", func(n browse.Node) error {
		if !count() {
			return errEnough
		}
		_, _ = fs.Xattrs(n.Path)
		_, _ = fs.ReadLink(n.Path)
		file, err := fs.Open(n.Path)
		if err != nil {
			return nil
		}
		for off, k := int64(0), 0; off < file.Size() && k < 8 && budget > 0; k++ {
			start, end := file.NextData(off)
			if start < off || end < start || end > file.Size() {
				t.Errorf("%s: data from %d to %d of %d behind %d", n.Path, start, end, file.Size(), off)
				return errEnough
			}
			if start == end {
				break
			}
			m, err := file.ReadAt(p[:min(int64(len(p)), end-start)], start)
			if budget -= int64(m); err != nil && !errors.Is(err, io.EOF) {
				break
			}
			off = start + max(1, int64(m))
		}
		_, _ = file.ReadAt(p[:1000], max(0, file.Size()-500))
		return nil
	}, func(browse.Problem) { count() })
}

func FuzzExt(f *testing.F)   { fuzz(f, blockstack.Ext4, "ext-") }
func FuzzXFS(f *testing.F)   { fuzz(f, blockstack.XFS, "xfs-") }
func FuzzNTFS(f *testing.F)  { fuzz(f, blockstack.NTFS, "ntfs") }
func FuzzFAT(f *testing.F)   { fuzz(f, blockstack.FAT32, "fat-") }
func FuzzExFAT(f *testing.F) { fuzz(f, blockstack.ExFAT, "exfat") }
