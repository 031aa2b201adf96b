package drill

import (
	"errors"
	"fmt"
	"io"
	"sync"

	"github.com/lockstep-backup/lockstep/envelope"
)

// ErrScratchFull says that a scratch disk has taken all the writes that it may.
var ErrScratchFull = errors.New("scratch disk is full")

const pageSize = 4096

// Scratch is a disk that can be written: what is written is kept in memory, up
// to a limit, and gone with Close; what lies below never changes. Its methods
// are safe for concurrent use.
type Scratch struct {
	below io.ReaderAt
	size  int64
	most  int // pages

	mu    sync.RWMutex
	pages map[int64]*[pageSize]byte
	err   error // set by Close
	full  error // ErrScratchFull once it was
}

// NewScratch lays a scratch disk over size bytes of below. It takes writes to
// at most limit bytes of it, in pages of 4 KiB.
func NewScratch(below io.ReaderAt, size, limit int64) *Scratch {
	return &Scratch{below: below, size: size, most: int(limit / pageSize), pages: map[int64]*[pageSize]byte{}}
}

// Size is the disk's length in bytes.
func (s *Scratch) Size() int64 { return s.size }

// ReadAt reads what was written, and what lies below elsewhere.
func (s *Scratch) ReadAt(p []byte, off int64) (int, error) {
	s.mu.RLock()
	defer s.mu.RUnlock()
	if s.err != nil {
		return 0, s.err
	}
	if off < 0 {
		return 0, fmt.Errorf("read scratch disk: negative offset %d", off)
	}
	want := len(p)
	if left := s.size - off; int64(want) > max(left, 0) {
		want = int(max(left, 0))
	}
	p = p[:want]
	for done := 0; done < want; {
		at := off + int64(done)
		n := s.run(at, want-done)
		if page := s.pages[at/pageSize]; page != nil {
			copy(p[done:done+n], page[at%pageSize:])
		} else if m, err := s.below.ReadAt(p[done:done+n], at); m < n {
			if err == nil || errors.Is(err, io.EOF) {
				err = io.ErrUnexpectedEOF
			}
			return done + m, err
		}
		done += n
	}
	if int64(want) == s.size-off || want == 0 {
		return want, io.EOF
	}
	return want, nil
}

// run is how many of n bytes from at on are in one page, or all below.
func (s *Scratch) run(at int64, n int) int {
	end := min(pageSize-int(at%pageSize), n)
	if s.pages[at/pageSize] != nil {
		return end
	}
	for end < n && s.pages[(at+int64(end))/pageSize] == nil {
		end = min(end+pageSize, n)
	}
	return end
}

// WriteAt writes to memory. ErrScratchFull leaves what was written before it.
func (s *Scratch) WriteAt(p []byte, off int64) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.err != nil {
		return 0, s.err
	}
	if off < 0 || off > s.size || int64(len(p)) > s.size-off {
		return 0, fmt.Errorf("write scratch disk: %d bytes at %d of %d", len(p), off, s.size)
	}
	for done := 0; done < len(p); {
		at := off + int64(done)
		page, err := s.page(at / pageSize)
		if err != nil {
			return done, err
		}
		done += copy(page[at%pageSize:], p[done:])
	}
	return len(p), nil
}

// page is a page to be written, with what is in it now.
func (s *Scratch) page(k int64) (*[pageSize]byte, error) {
	if page := s.pages[k]; page != nil {
		return page, nil
	}
	if len(s.pages) >= s.most {
		s.full = ErrScratchFull
		return nil, ErrScratchFull
	}
	page := new([pageSize]byte)
	n := min(int64(pageSize), s.size-k*pageSize)
	if m, err := s.below.ReadAt(page[:n], k*pageSize); int64(m) < n {
		if err == nil || errors.Is(err, io.EOF) {
			err = io.ErrUnexpectedEOF
		}
		return nil, err
	}
	s.pages[k] = page
	return page, nil
}

// Zero makes a range read as zeroes.
func (s *Scratch) Zero(off, length int64) error {
	zeroes := make([]byte, min(length, 1<<20))
	for done := int64(0); done < length; {
		n, err := s.WriteAt(zeroes[:min(length-done, int64(len(zeroes)))], off+done)
		if err != nil {
			return err
		}
		done += int64(n)
	}
	return nil
}

// Sync does nothing: nothing is to outlive anything.
func (s *Scratch) Sync() error { return nil }

// NextData finds data everywhere.
func (s *Scratch) NextData(off int64) (offset, length int64, err error) {
	if off >= s.size {
		return 0, 0, io.EOF
	}
	return off, s.size - off, nil
}

// Full is ErrScratchFull if a write was refused for it.
func (s *Scratch) Full() error {
	s.mu.RLock()
	defer s.mu.RUnlock()
	return s.full
}

// Written is how many bytes of memory the writes take.
func (s *Scratch) Written() int64 {
	s.mu.RLock()
	defer s.mu.RUnlock()
	return int64(len(s.pages)) * pageSize
}

// Close forgets and wipes what was written.
func (s *Scratch) Close() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, page := range s.pages {
		envelope.Wipe(page[:])
	}
	s.pages, s.err = nil, errors.New("scratch disk is closed")
}
