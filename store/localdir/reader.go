package localdir

import (
	"container/list"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"sync"

	"github.com/lockstep-backup/lockstep/store"
)

const (
	// maxHandles bounds how many objects are kept open, two files each; it is
	// less where the system allows a process few. Opening one walks a path of
	// four folders, which random reads of a large disk pay each time beyond it.
	maxHandles = 1024
	// handleShare is the share of the files a process may open that one store keeps.
	handleShare = 8
	// minCachedSize keeps small objects, which are read once and whole, from
	// pushing segments out of the handle cache.
	minCachedSize = 1 << 20
	// minDirectRead is where going around the page cache begins to pay: a block
	// of a disk. Through it, the kernel copies, and reads ahead what nobody wants.
	minDirectRead = 64 << 10
)

// ReadRange implements store.Store.
func (s *Store) ReadRange(ctx context.Context, key string, off int64, p []byte) (int, error) {
	if err := check(ctx, key); err != nil {
		return 0, fmt.Errorf("read %s: %w", key, err)
	}
	if off < 0 {
		return 0, fmt.Errorf("read %s: negative offset %d", key, off)
	}
	h, err := s.handles.acquire(key)
	if err != nil {
		return 0, fmt.Errorf("read %s: %w", key, classify(err))
	}
	defer s.handles.release(h)
	n, err := s.readHandle(h, off, p)
	if err != nil && !errors.Is(err, io.EOF) {
		return n, fmt.Errorf("read %s at %d: %w", key, off, err)
	}
	return n, err
}

func (s *Store) readHandle(h *handle, off int64, p []byte) (int, error) {
	want := len(p)
	if left := h.size - off; int64(want) > max(left, 0) {
		want = int(max(left, 0))
	}
	n := 0
	if len(p) >= minDirectRead && isAligned(p, off) {
		if f := h.directFile(s); f != nil {
			n = readDirect(f, off, p, want)
		}
	}
	if n < want {
		m, err := h.f.ReadAt(p[n:want], off+int64(n))
		n += m
		if err != nil {
			if errors.Is(err, io.EOF) { // an object never shrinks
				err = io.ErrUnexpectedEOF
			}
			return n, err
		}
	}
	if n < len(p) {
		return n, io.EOF
	}
	return n, nil
}

// readDirect reads what can be read around the page cache. It asks for all of
// p, since the length must be aligned; the kernel stops at the end of the
// file. Whatever goes wrong, the buffered read after it finds again.
func readDirect(f *os.File, off int64, p []byte, want int) int {
	n := 0
	for n < want && n%alignment == 0 {
		m, err := f.ReadAt(p[n:], off+int64(n))
		n += m
		if err != nil {
			break
		}
	}
	return min(n, want)
}

func (s *Store) openForReading(key string) (*handle, error) {
	f, err := s.root.OpenFile(filepath.FromSlash(key), os.O_RDONLY|nonblockFlag, 0)
	if err != nil {
		return nil, err
	}
	st, err := f.Stat()
	if err == nil && !st.Mode().IsRegular() {
		err = store.ErrNotExist
	}
	if err != nil {
		f.Close()
		return nil, err
	}
	return &handle{key: key, f: f, size: st.Size(), refs: 1}, nil
}

// handle is an open object. f reads through the page cache, direct around it.
type handle struct {
	key  string
	f    *os.File
	size int64

	directOnce sync.Once
	direct     *os.File

	// Guarded by the cache's mutex.
	refs    int
	cached  bool
	element *list.Element
}

// directFile is the file opened around the page cache, or nil where the file
// system refuses. Reopening could meet another object of the same key, hence
// the comparison.
func (h *handle) directFile(s *Store) *os.File {
	if directFlag == 0 || s.options.Buffered {
		return nil
	}
	h.directOnce.Do(func() {
		f, err := s.root.OpenFile(filepath.FromSlash(h.key), os.O_RDONLY|nonblockFlag|directFlag, 0)
		if err != nil {
			return
		}
		ours, err1 := h.f.Stat()
		again, err2 := f.Stat()
		if err1 != nil || err2 != nil || !os.SameFile(ours, again) {
			f.Close()
			return
		}
		h.direct = f
	})
	return h.direct
}

func (h *handle) close() {
	h.f.Close()
	h.directOnce.Do(func() {})
	if h.direct != nil {
		h.direct.Close()
	}
}

// handleCache keeps the most recently used objects open: a restore reads
// thousands of ranges from a few segments.
type handleCache struct {
	open func(key string) (*handle, error)
	most int // handles

	mu    sync.Mutex
	byKey map[string]*handle
	order *list.List // front: most recently used
}

func (c *handleCache) init(open func(key string) (*handle, error)) {
	c.open, c.byKey, c.order = open, map[string]*handle{}, list.New()
	c.most = min(maxHandles, maxOpenFiles()/2/handleShare)
}

// acquire gives an open object; the caller must release it.
func (c *handleCache) acquire(key string) (*handle, error) {
	c.mu.Lock()
	h := c.byKey[key]
	if h != nil {
		h.refs++
		c.order.MoveToFront(h.element)
	}
	c.mu.Unlock()
	if h != nil {
		if !isDeleted(h.f) {
			return h, nil
		}
		c.mu.Lock()
		c.forget(h)
		c.mu.Unlock()
		c.release(h)
	}

	h, err := c.open(key)
	if err != nil || h.size < minCachedSize {
		return h, err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.byKey[key] != nil {
		return h, nil // another reader was quicker; this handle serves one read
	}
	for c.order.Len() > 0 && c.order.Len() >= c.most {
		c.forget(c.order.Back().Value.(*handle))
	}
	c.byKey[key] = h
	h.cached = true
	h.element = c.order.PushFront(h)
	return h, nil
}

func (c *handleCache) release(h *handle) {
	c.mu.Lock()
	h.refs--
	last := h.refs == 0 && !h.cached
	c.mu.Unlock()
	if last {
		h.close()
	}
}

// forget takes h out of the cache, and closes it if nobody reads from it. The
// mutex is held.
func (c *handleCache) forget(h *handle) {
	if !h.cached {
		return
	}
	h.cached = false
	delete(c.byKey, h.key)
	c.order.Remove(h.element)
	if h.refs == 0 {
		h.close()
	}
}

func (c *handleCache) drop(key string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if h := c.byKey[key]; h != nil {
		c.forget(h)
	}
}

func (c *handleCache) closeAll() {
	c.mu.Lock()
	defer c.mu.Unlock()
	for c.order.Len() > 0 {
		c.forget(c.order.Back().Value.(*handle))
	}
}
