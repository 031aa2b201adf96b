package fsys

import (
	"errors"
	"io"
	"sync"
)

const (
	pageSize = 64 << 10 // the repository's blocks: each costs the same, however little of it is read
	maxPages = 256
)

// Volume is a volume with a cache for metadata: 16 MiB of it at most. Safe for
// concurrent use.
type Volume struct {
	r    io.ReaderAt
	size int64

	mu    sync.Mutex
	pages map[int64][]byte
	order []int64 // in which pages came; the oldest goes first
}

// NewVolume reads size bytes of r.
func NewVolume(r io.ReaderAt, size int64) *Volume {
	return &Volume{r: r, size: size, pages: map[int64][]byte{}}
}

// Size in bytes.
func (v *Volume) Size() int64 { return v.size }

// ReadAt reads past the cache: it is for content.
func (v *Volume) ReadAt(p []byte, off int64) (int, error) {
	if off < 0 || off > v.size || int64(len(p)) > v.size-off {
		return 0, Corrupt("%d bytes at %d of a volume of %d bytes", len(p), off, v.size)
	}
	n, err := v.r.ReadAt(p, off)
	if n == len(p) {
		return n, nil
	}
	if err == nil || errors.Is(err, io.EOF) {
		err = io.ErrUnexpectedEOF
	}
	return n, err
}

// Bytes are n bytes of metadata at off, which the caller may keep and change.
func (v *Volume) Bytes(off, n int64) ([]byte, error) {
	if off < 0 || n < 0 || n > MaxRead || off > v.size || n > v.size-off {
		return nil, Corrupt("%d bytes at %d of a volume of %d bytes", n, off, v.size)
	}
	b := make([]byte, n)
	for done := int64(0); done < n; {
		page, err := v.page((off + done) / pageSize)
		if err != nil {
			return nil, err
		}
		done += int64(copy(b[done:], page[(off+done)%pageSize:]))
	}
	return b, nil
}

func (v *Volume) page(i int64) ([]byte, error) {
	v.mu.Lock()
	p, ok := v.pages[i]
	v.mu.Unlock()
	if ok {
		return p, nil
	}
	p = make([]byte, min(pageSize, v.size-i*pageSize))
	if _, err := v.ReadAt(p, i*pageSize); err != nil {
		return nil, err
	}
	v.mu.Lock()
	defer v.mu.Unlock()
	if _, ok := v.pages[i]; !ok {
		if len(v.order) >= maxPages {
			delete(v.pages, v.order[0])
			v.order = v.order[1:]
		}
		v.pages[i] = p
		v.order = append(v.order, i)
	}
	return p, nil
}
