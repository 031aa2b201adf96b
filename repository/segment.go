package repository

import (
	"context"
	"crypto/aes"
	"crypto/cipher"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"sync"

	"github.com/lockstep-backup/lockstep/disk"
	"github.com/lockstep-backup/lockstep/envelope"
	"github.com/lockstep-backup/lockstep/repository/format"
	"github.com/lockstep-backup/lockstep/store"
)

// segmentSize is how large a segment grows before the next one is begun.
const segmentSize = 64 << 20

// segment is what is needed to seal or open extents of one segment.
type segment struct {
	name    format.Name
	key     string // in the store
	id      [format.IDSize]byte
	machine [16]byte
	aead    cipher.AEAD // nil: not sealed
}

func newSegment(m *machine, name format.Name, id [format.IDSize]byte, sealed bool) (*segment, error) {
	s := &segment{name: name, key: format.SegmentKey(m.ID, name), id: id, machine: m.raw}
	if !sealed {
		return s, nil
	}
	aead, err := newGCM(envelope.DeriveKey(m.content, keyPurpose+"segment", m.raw[:], id[:]))
	s.aead = aead
	return s, err
}

func newGCM(key envelope.Secret) (cipher.AEAD, error) {
	defer key.Wipe()
	b, err := aes.NewCipher(key.Expose())
	if err != nil {
		return nil, err
	}
	return cipher.NewGCM(b)
}

// extentScratch holds what sealing and opening need, so that they do not allocate.
type extentScratch struct {
	nonce [12]byte
	aad   [16 + format.IDSize + 10]byte
}

func (x *extentScratch) set(s *segment, position uint32, mask uint16) {
	binary.LittleEndian.PutUint64(x.nonce[4:], uint64(position))
	copy(x.aad[:], s.machine[:])
	copy(x.aad[16:], s.id[:])
	binary.LittleEndian.PutUint64(x.aad[16+format.IDSize:], uint64(position))
	binary.LittleEndian.PutUint16(x.aad[24+format.IDSize:], mask)
}

// seal puts plain, sealed for its place, at dst, which has len(plain)+TagSize
// bytes: the tag's bytes behind the extent are scratch.
func (s *segment) seal(g *format.Digester, x *extentScratch, dst, plain []byte, position uint32, mask uint16) (tag [format.TagSize]byte) {
	x.set(s, position, mask)
	if s.aead == nil {
		copy(dst, plain)
		d := g.Keyed(plain, x.aad[:])
		copy(tag[:], d[:])
		return tag
	}
	out := s.aead.Seal(dst[:0], x.nonce[:], plain, x.aad[:])
	copy(tag[:], out[len(plain):])
	return tag
}

// open checks the stored extent p[:n] and makes it plain in place. p has
// TagSize bytes more, whose content is kept.
func (s *segment) open(g *format.Digester, x *extentScratch, p []byte, n int, position uint32, mask uint16, tag [format.TagSize]byte) error {
	x.set(s, position, mask)
	if s.aead == nil {
		d := g.Keyed(p[:n], x.aad[:])
		if [format.TagSize]byte(d[:format.TagSize]) != tag {
			return errTag
		}
		return nil
	}
	var behind [format.TagSize]byte
	copy(behind[:], p[n:])
	copy(p[n:], tag[:])
	_, err := s.aead.Open(p[:0], x.nonce[:], p[:n+format.TagSize], x.aad[:])
	copy(p[n:n+format.TagSize], behind[:])
	if err != nil {
		return errTag
	}
	return nil
}

var errTag = errors.New("extent is not what was stored")

// segmentCache keeps the keys of segments that were read lately.
type segmentCache struct {
	m      *machine
	st     store.Store
	sealed bool

	mu sync.Mutex
	by map[format.Name]*segment
}

const maxCachedSegments = 4096

func newSegmentCache(m *machine, st store.Store, sealed bool) *segmentCache {
	return &segmentCache{m: m, st: st, sealed: sealed, by: map[format.Name]*segment{}}
}

func (c *segmentCache) add(s *segment) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if len(c.by) >= maxCachedSegments {
		clear(c.by) // they come back at a page each
	}
	c.by[s.name] = s
}

func (c *segmentCache) get(ctx context.Context, name format.Name) (*segment, error) {
	c.mu.Lock()
	s := c.by[name]
	c.mu.Unlock()
	if s != nil {
		return s, nil
	}
	key := format.SegmentKey(c.m.ID, name)
	p := make([]byte, format.SegmentHeaderSize)
	if err := readFull(ctx, c.st, key, 0, p); err != nil {
		return nil, err
	}
	h, err := format.ParseSegmentHeader(p)
	if err == nil && (h.Machine != c.m.raw || h.Sealed != c.sealed) {
		err = fmt.Errorf("segment of another machine or sealing: %w", format.ErrCorrupt)
	}
	if err == nil {
		s, err = newSegment(c.m, name, h.ID, h.Sealed)
	}
	if err != nil {
		return nil, &DamageError{Object: key, Machine: c.m.ID, Err: err}
	}
	c.add(s)
	return s, nil
}

// segmentWriter fills one segment. One goroutine at a time.
type segmentWriter struct {
	*segment
	w      store.Writer
	crcs   format.CRCs
	toc    format.TOC
	mapKey *[32]byte

	chunk    []byte // aligned; small appends gather here
	fill     int
	position uint32 // next free page
}

const chunkSize = 1 << 20

// openSegment begins a segment under a new name for log entry n.
func (r *Repository) openSegment(ctx context.Context, m *machine, n int64, disks []string) (*segmentWriter, error) {
	var id [format.IDSize]byte
	var random [4]byte
	_, _ = rand.Read(id[:])
	_, _ = rand.Read(random[:])
	s, err := newSegment(m, format.NewName(n, binary.LittleEndian.Uint32(random[:])), id, r.cfg.Sealing == SealingAESGCM)
	if err != nil {
		return nil, err
	}
	w, err := r.st.Create(ctx, s.key)
	if err != nil {
		return nil, fmt.Errorf("write segment: %w", err)
	}
	sw := &segmentWriter{segment: s, w: w, mapKey: m.mapKey, chunk: disk.AlignedBuffer(chunkSize), position: 1}
	sw.toc.Disks = disks
	format.SegmentHeader{Sealed: s.aead != nil, ID: id, Machine: m.raw}.Encode(sw.chunk)
	sw.fill = format.SegmentHeaderSize
	return sw, nil
}

// room says how many pages fit still.
func (w *segmentWriter) room() int { return segmentSize/format.PageSize - int(w.position) }

// append takes whole pages for the next position.
func (w *segmentWriter) append(p []byte) error {
	w.position += uint32(len(p) / format.PageSize)
	if len(p) >= chunkSize/4 {
		if err := w.flush(); err != nil {
			return err
		}
		return w.write(p)
	}
	for len(p) > 0 {
		n := copy(w.chunk[w.fill:], p)
		w.fill += n
		p = p[n:]
		if w.fill == len(w.chunk) {
			if err := w.flush(); err != nil {
				return err
			}
		}
	}
	return nil
}

func (w *segmentWriter) flush() error {
	if w.fill == 0 {
		return nil
	}
	err := w.write(w.chunk[:w.fill])
	w.fill = 0
	return err
}

func (w *segmentWriter) write(p []byte) error {
	_, _ = w.crcs.Write(p)
	if _, err := w.w.Write(p); err != nil {
		return fmt.Errorf("write segment: %w", err)
	}
	return nil
}

// finish writes the table of contents and makes the segment durable; it
// returns the object's size.
func (w *segmentWriter) finish() (int64, error) {
	if err := w.flush(); err != nil {
		return 0, errors.Join(err, w.w.Abort())
	}
	toc, err := envelope.SealFrame(format.KindTOC, w.mapKey, []byte(w.key), w.toc.Encode())
	if err != nil {
		return 0, errors.Join(err, w.w.Abort())
	}
	end := w.crcs.Size()
	tail := append(toc, format.SegmentTrailer(end, int64(len(toc)), w.crcs.Finish())...)
	if _, err := w.w.Write(tail); err != nil {
		return 0, errors.Join(fmt.Errorf("write segment: %w", err), w.w.Abort())
	}
	if err := w.w.Commit(); err != nil {
		return 0, fmt.Errorf("write segment: %w", err)
	}
	return end + int64(len(tail)), nil
}

// readFull fills p from an object; an object that ends before is damaged.
func readFull(ctx context.Context, st store.Store, key string, off int64, p []byte) error {
	n, err := st.ReadRange(ctx, key, off, p)
	if n == len(p) {
		return nil
	}
	if err == nil {
		err = io.ErrUnexpectedEOF
	}
	return readError(key, err)
}

// readTrailer reads the checksums and footer at the end of a segment or map object.
func readTrailer(ctx context.Context, st store.Store, key string, segment bool) (f format.Footer, size int64, err error) {
	info, err := st.Stat(ctx, key)
	if err != nil {
		return f, 0, readError(key, err)
	}
	last := make([]byte, min(info.Size, format.FooterSize))
	if err := readFull(ctx, st, key, info.Size-int64(len(last)), last); err != nil {
		return f, 0, err
	}
	n, err := format.TrailerSize(last, info.Size, segment)
	if err != nil {
		return f, 0, &DamageError{Object: key, Err: err}
	}
	if n > info.Size {
		return f, 0, &DamageError{Object: key, Err: format.ErrCorrupt}
	}
	p := make([]byte, n)
	if err := readFull(ctx, st, key, info.Size-n, p); err != nil {
		return f, 0, err
	}
	if f, err = format.ParseTrailer(p, info.Size, segment); err != nil {
		return f, 0, &DamageError{Object: key, Err: err}
	}
	return f, info.Size, nil
}

// readTOC reads a segment's table of contents.
func readTOC(ctx context.Context, st store.Store, m *machine, key string) (t format.TOC, err error) {
	f, _, err := readTrailer(ctx, st, key, true)
	if err != nil {
		return t, err
	}
	if f.TOCLen > store.MaxSmallObject {
		return t, &DamageError{Object: key, Machine: m.ID, Err: format.ErrCorrupt}
	}
	p := make([]byte, f.TOCLen)
	if err := readFull(ctx, st, key, f.DataEnd, p); err != nil {
		return t, err
	}
	body, err := envelope.OpenFrame(p, format.KindTOC, m.mapKey, []byte(key))
	if err == nil {
		t, err = format.ParseTOC(body, f.DataEnd)
	}
	if err != nil {
		return t, &DamageError{Object: key, Machine: m.ID, Err: err}
	}
	return t, nil
}
