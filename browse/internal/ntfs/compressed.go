package ntfs

import (
	"sort"
	"sync"

	"github.com/lockstep-backup/lockstep/browse/internal/fsys"
)

// compressedFile is a file compressed unit by unit (16 clusters as a rule): one
// that lies there whole is not compressed, one that is not there is zeros.
type compressedFile struct {
	vol               *fsys.Volume
	unit, size, valid int64
	runs              fsys.Runs

	mu    sync.Mutex
	last  int64 // the unit in plain, -1 none
	plain []byte
}

func (f *compressedFile) Size() int64 { return f.size }

func (f *compressedFile) NextData(off int64) (int64, int64) {
	off = max(off, 0)
	i := sort.Search(len(f.runs), func(i int) bool { return f.runs[i].At+f.runs[i].Length > off/f.unit*f.unit })
	if i == len(f.runs) || off >= min(f.size, f.valid) {
		return f.size, f.size
	}
	start := max(off, f.runs[i].At/f.unit*f.unit)
	if start >= f.size {
		return f.size, f.size
	}
	return start, min(f.size, start/f.unit*f.unit+f.unit)
}

func (f *compressedFile) ReadAt(p []byte, off int64) (int, error) {
	return fsys.ReadPieces(p, off, f.size, func(p []byte, off int64) (int, error) {
		f.mu.Lock()
		defer f.mu.Unlock()
		if n := off / f.unit; n != f.last {
			f.last = -1
			b, err := f.read(n * f.unit)
			if err != nil {
				return 0, err
			}
			f.plain, f.last = b, n
		}
		n := copy(p, f.plain[off%f.unit:])
		if off+int64(n) > f.valid {
			clear(p[min(int64(n), max(0, f.valid-off)):n])
		}
		return n, nil
	})
}

// read is the unit that begins at off, in plain.
func (f *compressedFile) read(off int64) ([]byte, error) {
	raw := make([]byte, 0, f.unit)
	i := sort.Search(len(f.runs), func(i int) bool { return f.runs[i].At+f.runs[i].Length > off })
	for ; i < len(f.runs) && f.runs[i].At < off+f.unit; i++ {
		r := f.runs[i]
		start, end := max(off, r.At), min(off+f.unit, r.At+r.Length)
		n := len(raw)
		raw = raw[:n+int(end-start)]
		if _, err := f.vol.ReadAt(raw[n:], r.From+start-r.At); err != nil {
			return nil, err
		}
	}
	if int64(len(raw)) == f.unit {
		return raw, nil
	}
	return decompress(raw, f.unit)
}

// decompress undoes LZNT1: chunks that hold 4096 bytes each.
func decompress(b []byte, size int64) ([]byte, error) {
	const chunk = 4096
	out := make([]byte, size)
	for start := int64(0); start < size && len(b) >= 2; start += chunk {
		head := le.Uint16(b)
		if head == 0 {
			break
		}
		n := int(head&0xFFF) + 1
		if 2+n > len(b) {
			return nil, fsys.Corrupt("compressed data is cut short")
		}
		to := out[start:min(size, start+chunk)]
		if head&0x8000 == 0 {
			copy(to, b[2:2+n])
		} else if err := expand(to, b[2:2+n]); err != nil {
			return nil, err
		}
		b = b[2+n:]
	}
	return out, nil
}

// expand undoes one chunk.
func expand(to, b []byte) error {
	at := 0
	for len(b) > 0 {
		flags := b[0]
		b = b[1:]
		for bit := 0; bit < 8 && len(b) > 0; bit++ {
			if at == len(to) {
				return nil
			}
			if flags>>bit&1 == 0 {
				to[at] = b[0]
				at++
				b = b[1:]
				continue
			}
			if len(b) < 2 || at == 0 {
				return fsys.Corrupt("compressed data is cut short")
			}
			token := int(le.Uint16(b))
			b = b[2:]
			shift := 12
			for n := at - 1; n >= 0x10; n >>= 1 {
				shift--
			}
			back, length := token>>shift+1, token&(1<<shift-1)+3
			if back > at {
				return fsys.Corrupt("compressed data refers to what precedes it")
			}
			for ; length > 0 && at < len(to); length-- {
				to[at] = to[at-back]
				at++
			}
		}
	}
	return nil
}
