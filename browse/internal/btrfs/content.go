package btrfs

import (
	"bytes"
	"compress/zlib"
	"errors"
	"fmt"
	"io"
	"math"
	"sort"
	"sync"

	"github.com/klauspost/compress/zstd"

	"github.com/lockstep-backup/lockstep/browse/internal/fsys"
)

const (
	extentInline   = 0
	extentRegular  = 1
	extentPrealloc = 2

	packedZlib = 1
	packedLZO  = 2
	packedZstd = 3

	maxPacked = 128 << 10 // content of a compressed extent
	maxWindow = 128 << 10 // of zstd
)

// extent is a stretch of a file that is not a hole.
type extent struct {
	at, length int64
	logical    uint64 // where it lies; for a compressed one, where its whole lies
	stored     int64  // bytes there, compressed
	inline     []byte // instead of a place
	packed     byte
	plain      int64 // bytes of the whole, unpacked
	skip       int64 // of these, before at
}

type file struct {
	f       *FS
	size    int64
	extents []extent

	mu   sync.Mutex
	last int // what whole is of, if that is not nil
	mem  []byte
	zstd *zstd.Decoder
}

// content is where a file's bytes lie. What is allocated and not yet written
// is a hole.
func (f *FS) content(i inode) (*file, error) {
	c := &file{f: f, size: i.size()}
	end := int64(0)
	err := f.items(i.tree, i.number, typeExtent, func(k key, b []byte) (bool, error) {
		e, hole, err := extentOf(k, b)
		switch {
		case err != nil:
			return false, err
		case e.at < end:
			return false, fsys.Corrupt("two extents overlap at %d", e.at)
		}
		end = e.at + e.length
		if hole || e.at >= c.size {
			return true, nil
		}
		if len(c.extents) >= fsys.MaxRuns {
			return false, fsys.Unsupported("a file in more than %d pieces", fsys.MaxRuns)
		}
		e.length = min(e.length, c.size-e.at)
		c.extents = append(c.extents, e)
		return true, nil
	})
	if err != nil {
		return nil, fmt.Errorf("content of inode %d: %w", i.number, err)
	}
	return c, nil
}

func extentOf(k key, b []byte) (e extent, hole bool, err error) {
	if len(b) < 21 {
		return e, false, fsys.Corrupt("an extent of %d bytes", len(b))
	}
	plain, kind := le.Uint64(b[8:]), b[20]
	e.packed = b[16]
	if b[17] != 0 || le.Uint16(b[18:]) != 0 {
		return e, false, fsys.Unsupported("an encrypted or encoded extent")
	}
	const most = 1 << 62
	if k.offset > most || plain > most || e.packed != 0 && plain > maxPacked {
		return e, false, fsys.Corrupt("an extent of %d bytes at %d, compressed in way %d", plain, k.offset, e.packed)
	}
	e.at, e.plain = int64(k.offset), int64(plain)
	switch kind {
	case extentInline:
		if e.at != 0 || e.packed == 0 && e.plain > int64(len(b)-21) {
			return e, false, fsys.Corrupt("%d bytes of content in an item of %d, at %d", e.plain, len(b), e.at)
		}
		e.length, e.inline = e.plain, bytes.Clone(b[21:])
		return e, e.length == 0, nil
	case extentRegular, extentPrealloc:
	default:
		return e, false, fsys.Unsupported("an extent of type %d", kind)
	}
	if len(b) < 53 {
		return e, false, fsys.Corrupt("an extent of %d bytes", len(b))
	}
	stored, skip, length := le.Uint64(b[29:]), le.Uint64(b[37:]), le.Uint64(b[45:])
	e.logical = le.Uint64(b[21:])
	hole = e.logical == 0 || kind == extentPrealloc
	switch {
	case length == 0 || length > most || skip > most || stored > most:
		return e, false, fsys.Corrupt("%d bytes of an extent of %d, from %d", length, stored, skip)
	case hole:
	case e.packed == 0 && (skip+length > stored || e.logical > math.MaxInt64),
		e.packed != 0 && (skip+length > plain || stored > maxPacked):
		return e, false, fsys.Corrupt("%d bytes of an extent of %d, from %d", length, stored, skip)
	}
	e.length, e.stored, e.skip = int64(length), int64(stored), int64(skip)
	return e, hole, nil
}

func (c *file) Size() int64 { return c.size }

// from is the first extent that ends behind off.
func (c *file) from(off int64) int {
	return sort.Search(len(c.extents), func(i int) bool { return c.extents[i].at+c.extents[i].length > off })
}

func (c *file) NextData(off int64) (int64, int64) {
	off = max(off, 0)
	i := c.from(off)
	if i == len(c.extents) {
		return c.size, c.size
	}
	start, end := max(off, c.extents[i].at), c.extents[i].at+c.extents[i].length
	for i++; i < len(c.extents) && c.extents[i].at == end; i++ {
		end += c.extents[i].length
	}
	return start, end
}

func (c *file) ReadAt(p []byte, off int64) (int, error) {
	return fsys.ReadPieces(p, off, c.size, func(p []byte, off int64) (int, error) {
		i := c.from(off)
		if i == len(c.extents) {
			clear(p)
			return len(p), nil
		}
		e := c.extents[i]
		if off < e.at {
			n := min(int64(len(p)), e.at-off)
			clear(p[:n])
			return int(n), nil
		}
		p = p[:min(int64(len(p)), e.at+e.length-off)]
		off += e.skip - e.at
		if e.packed != 0 {
			return c.unpacked(p, i, off)
		}
		if e.inline != nil {
			return copy(p, e.inline[off:]), nil
		}
		return c.f.read(p, e.logical+uint64(off))
	})
}

// read reads the beginning of p at an address.
func (f *FS) read(p []byte, logical uint64) (int, error) {
	copies, length, err := f.locate(logical)
	if err != nil {
		return 0, err
	}
	return f.vol.ReadAt(p[:min(int64(len(p)), length)], copies[0])
}

// unpacked copies from a compressed extent, and remembers its content: it is
// read in pieces.
func (c *file) unpacked(p []byte, i int, off int64) (int, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.mem == nil || c.last != i {
		b, err := c.unpack(c.extents[i])
		if err != nil {
			return 0, fmt.Errorf("compressed extent at %d: %w", c.extents[i].at, err)
		}
		c.mem, c.last = b, i
	}
	return copy(p, c.mem[off:]), nil
}

// unpack is the whole of a compressed extent; what it lacks is zeros.
func (c *file) unpack(e extent) ([]byte, error) {
	stored := e.inline
	if stored == nil {
		stored = make([]byte, e.stored)
		for done := 0; done < len(stored); {
			n, err := c.f.read(stored[done:], e.logical+uint64(done))
			if err != nil {
				return nil, err
			}
			done += n
		}
	}
	plain := make([]byte, e.plain)
	switch e.packed {
	case packedZlib:
		r, err := zlib.NewReader(bytes.NewReader(stored))
		if err != nil {
			return nil, fsys.Corrupt("%v", err)
		}
		return plain, ended(io.ReadFull(r, plain))
	case packedLZO:
		return plain, unpackLZO(plain, stored, int(c.f.sector))
	case packedZstd:
		if c.zstd == nil {
			var err error
			if c.zstd, err = zstd.NewReader(nil, zstd.WithDecoderConcurrency(1), zstd.WithDecoderLowmem(true), zstd.WithDecoderMaxWindow(maxWindow)); err != nil {
				return nil, err
			}
		}
		if err := c.zstd.Reset(bytes.NewReader(stored)); err != nil {
			return nil, fsys.Corrupt("%v", err)
		}
		n, err := io.ReadFull(c.zstd, plain)
		if n > 0 && errors.Is(err, zstd.ErrMagicMismatch) { // what follows the frame fills the sector
			err = nil
		}
		return plain, ended(n, err)
	}
	return nil, fsys.Unsupported("btrfs compression of type %d", e.packed)
}

func ended(_ int, err error) error {
	if err == nil || errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		return nil
	}
	return fsys.Corrupt("%v", err)
}
