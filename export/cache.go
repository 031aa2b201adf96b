package export

import (
	"container/list"
	"errors"
	"io"
	"sync"

	"github.com/lockstep-backup/lockstep/disk"
)

// What reading takes, for all disks of a recovery point together.
const (
	cacheBytes = 32 << 20
	shards     = 16
	shardSlots = cacheBytes / shards / disk.BlockSize
	// maxReads is how many reads of the repository are under way at once; each
	// has up to 4 MiB of buffers there.
	maxReads = 16
	// maxAhead is how many of them may be for what nobody has asked for yet.
	maxAhead  = 4
	aheadRun  = 1 << 20
	aheadMost = 4 << 20 // how far ahead of a sequential reader
	// largeRead is what is read past the cache: it would only push out others.
	largeRead = 4 * disk.BlockSize
)

// content is a disk as the repository reads it; repository.DiskReader is one.
type content interface {
	io.ReaderAt
	Size() int64
	NextData(off int64) (disk.Range, error)
}

// cache keeps blocks that were read and verified lately, of several disks.
type cache struct {
	shards [shards]shard
	reads  chan struct{}
	ahead  chan struct{}
	runs   sync.Pool // *[]byte of aheadRun bytes
	ending chan struct{}
	tasks  sync.WaitGroup
}

type shard struct {
	mu  sync.Mutex
	by  map[blockKey]*slot
	lru list.List // of *slot, the most recently used in front; not those being read
	all int
}

type blockKey struct {
	disk  int
	block int64
}

// slot holds one block. While ready is not nil, somebody reads it; its bytes
// are used by others only under the shard's lock, so that it can be used again.
type slot struct {
	key   blockKey
	buf   []byte
	n     int
	at    *list.Element
	ready chan struct{}
	err   error
}

func newCache() *cache {
	c := &cache{reads: make(chan struct{}, maxReads), ahead: make(chan struct{}, maxAhead), ending: make(chan struct{})}
	for i := range c.shards {
		c.shards[i].by = map[blockKey]*slot{}
	}
	c.runs.New = func() any { p := make([]byte, aheadRun); return &p }
	return c
}

// close waits for what is read ahead.
func (c *cache) close() {
	close(c.ending)
	c.tasks.Wait()
}

func (c *cache) shard(k blockKey) *shard {
	return &c.shards[(uint64(k.block)+uint64(k.disk)*7)%shards]
}

// claim makes a slot for a block that its caller will read, nil where there is
// no room: every slot of the shard is being read.
func (s *shard) claim(k blockKey) *slot {
	var x *slot
	if s.all < shardSlots {
		x = &slot{buf: make([]byte, disk.BlockSize)}
		s.all++
	} else {
		last := s.lru.Back()
		if last == nil {
			return nil
		}
		x = s.lru.Remove(last).(*slot)
		delete(s.by, x.key)
		x = &slot{buf: x.buf} // whoever waited for the old one still has it
	}
	x.key, x.ready = k, make(chan struct{})
	s.by[k] = x
	return x
}

// fill ends a claim: with a block's bytes, or with the reason why not.
func (s *shard) fill(x *slot, p []byte, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if err != nil {
		x.err = err
		delete(s.by, x.key)
		s.all--
	} else {
		x.n = copy(x.buf, p)
		x.at = s.lru.PushFront(x)
	}
	close(x.ready)
	x.ready = nil
}

// diskReader reads one disk through the cache.
type diskReader struct {
	content
	c  *cache
	id int

	mu      sync.Mutex
	streams [8]stream
	turn    int
}

// stream is a reader that goes through the disk in order.
type stream struct {
	next  int64 // where it would go on
	ahead int64 // up to where was read for it
	run   int64 // how much it read in order
}

// readContent reads from the repository; short is an error.
func (d *diskReader) readContent(p []byte, off int64) error {
	d.c.reads <- struct{}{}
	defer func() { <-d.c.reads }()
	n, err := d.content.ReadAt(p, off)
	if n == len(p) {
		return nil
	}
	if err == nil || errors.Is(err, io.EOF) {
		err = io.ErrUnexpectedEOF
	}
	return err
}

// ReadAt reads verified content.
func (d *diskReader) ReadAt(p []byte, off int64) (int, error) {
	if off < 0 {
		return 0, errors.New("read exported disk: negative offset")
	}
	if off >= d.Size() {
		return 0, io.EOF
	}
	var short error
	if left := d.Size() - off; int64(len(p)) > left {
		p, short = p[:left], io.EOF
	}
	d.follow(off, int64(len(p)))
	for n := 0; n < len(p); {
		at := off + int64(n)
		in := int(at % disk.BlockSize)
		want := min(len(p)-n, disk.BlockSize-in)
		k := blockKey{d.id, at / disk.BlockSize}
		if in == 0 && len(p)-n >= largeRead && !d.c.has(k) {
			run := d.missing(p[n:], k)
			if err := d.readContent(p[n:n+run], at); err != nil {
				return n, err
			}
			n += run
			continue
		}
		if err := d.readBlock(p[n:n+want], k, in); err != nil {
			return n, err
		}
		n += want
	}
	return len(p), short
}

// missing is how much of p, which begins at block k, is to be read past the
// cache: up to the next block that is there or on its way.
func (d *diskReader) missing(p []byte, k blockKey) int {
	run := disk.BlockSize
	for run+disk.BlockSize <= len(p) {
		k.block++
		if d.c.has(k) {
			return run
		}
		run += disk.BlockSize
	}
	return run
}

func (c *cache) has(k blockKey) bool {
	s := c.shard(k)
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.by[k] != nil
}

// readBlock reads part of one block, which it keeps.
func (d *diskReader) readBlock(p []byte, k blockKey, in int) error {
	s := d.c.shard(k)
	for {
		s.mu.Lock()
		x := s.by[k]
		if x != nil && x.ready == nil {
			copy(p, x.buf[in:x.n])
			s.lru.MoveToFront(x.at)
			s.mu.Unlock()
			return nil
		}
		if x != nil {
			ready := x.ready
			s.mu.Unlock()
			<-ready
			if x.err != nil {
				return x.err
			}
			continue
		}
		x = s.claim(k)
		s.mu.Unlock()
		off := k.block * disk.BlockSize
		if x == nil {
			return d.readContent(p, off+int64(in))
		}
		// Nobody else looks at buf before it is filled.
		b := x.buf[:min(disk.BlockSize, d.Size()-off)]
		err := d.readContent(b, off)
		if err == nil {
			copy(p, b[in:])
		}
		s.fill(x, b, err)
		return err
	}
}

// follow notes where readers are, and reads ahead of those who go in order.
func (d *diskReader) follow(off, n int64) {
	d.mu.Lock()
	defer d.mu.Unlock()
	for i := range d.streams {
		s := &d.streams[i]
		// Requests of one reader that are in flight together come a little out of order.
		if s.run == 0 || off > s.next+aheadRun || off+aheadRun < s.next {
			continue
		}
		s.next = max(s.next, off+n)
		s.run += n
		if s.run < 4*disk.BlockSize {
			return
		}
		far := min(s.next+min(aheadMost, s.run), d.Size())
		for from := max(s.ahead, (s.next+disk.BlockSize-1)/disk.BlockSize*disk.BlockSize); from < far; {
			to := min(from-from%aheadRun+aheadRun, d.Size())
			if !d.prefetch(from, to) {
				return // enough is under way
			}
			s.ahead, from = to, to
		}
		return
	}
	d.streams[d.turn] = stream{next: off + n, run: n}
	d.turn = (d.turn + 1) % len(d.streams)
}

// prefetch reads [from, to), block-aligned and at most aheadRun, into the cache
// by and by. false: not now.
func (d *diskReader) prefetch(from, to int64) bool {
	select {
	case <-d.c.ending:
		return false
	default:
	}
	select {
	case d.c.ahead <- struct{}{}:
	default:
		return false
	}
	d.c.tasks.Go(func() {
		defer func() { <-d.c.ahead }()
		d.load(from, to)
	})
	return true
}

// load reads what is not there yet of [from, to). Errors are found again by
// whoever asks for the bytes.
func (d *diskReader) load(from, to int64) {
	run := d.c.runs.Get().(*[]byte)
	defer d.c.runs.Put(run)
	var claimed [aheadRun / disk.BlockSize]*slot
	for at := from; at < to; {
		n := 0
		begin := at
		for ; at < to; at += disk.BlockSize {
			k := blockKey{d.id, at / disk.BlockSize}
			s := d.c.shard(k)
			s.mu.Lock()
			var x *slot
			if s.by[k] == nil {
				x = s.claim(k)
			}
			s.mu.Unlock()
			if x == nil {
				break
			}
			claimed[n] = x
			n++
		}
		if n == 0 {
			at += disk.BlockSize
			continue
		}
		p := (*run)[:min(int64(n)*disk.BlockSize, d.Size()-begin)]
		err := d.readContent(p, begin)
		for i, x := range claimed[:n] {
			b := p[i*disk.BlockSize:]
			d.c.shard(x.key).fill(x, b[:min(len(b), disk.BlockSize)], err)
		}
	}
}

// Prefetch reads a range into the cache as far as it has room for it; the rest
// of a large range is not read.
func (d *diskReader) Prefetch(off, length int64) error {
	end := min(off+min(length, cacheBytes/2), d.Size())
	for at := off / disk.BlockSize * disk.BlockSize; at < end; {
		to := min(at-at%aheadRun+aheadRun, d.Size())
		if !d.prefetch(at, to) {
			return nil
		}
		at = to
	}
	return nil
}
