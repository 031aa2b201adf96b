// Package segment seals extents into segments and opens them again: the
// content of disks at rest. docs/spec/repository.md, section 4.
package segment

import (
	"context"
	"crypto/cipher"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"strings"
	"sync"

	"github.com/lockstep-backup/lockstep/disk"
	"github.com/lockstep-backup/lockstep/envelope"
	"github.com/lockstep-backup/lockstep/repository/format"
	"github.com/lockstep-backup/lockstep/repository/internal/damage"
	"github.com/lockstep-backup/lockstep/repository/internal/machinekey"
	"github.com/lockstep-backup/lockstep/store"
)

// maxSize is how large a segment grows before the next one is begun.
const maxSize = 64 << 20

// Segment is what is needed to seal or open extents of one segment.
type Segment struct {
	Name    format.Name
	Key     string // in the store
	id      [format.IDSize]byte
	machine [16]byte
	aead    cipher.AEAD // nil: not sealed
}

func newSegment(m *machinekey.Keys, name format.Name, id [format.IDSize]byte, sealed bool) (*Segment, error) {
	s := &Segment{Name: name, Key: format.SegmentKey(m.ID, name), id: id, machine: m.Raw}
	if !sealed {
		return s, nil
	}
	aead, err := m.Segment(id)
	s.aead = aead
	return s, err
}

// Scratch holds what sealing and opening need, so that they do not allocate.
type Scratch struct {
	nonce [12]byte
	aad   [16 + format.IDSize + 10]byte
}

func (x *Scratch) set(s *Segment, position uint32, mask uint16) {
	binary.LittleEndian.PutUint64(x.nonce[4:], uint64(position))
	copy(x.aad[:], s.machine[:])
	copy(x.aad[16:], s.id[:])
	binary.LittleEndian.PutUint64(x.aad[16+format.IDSize:], uint64(position))
	binary.LittleEndian.PutUint16(x.aad[24+format.IDSize:], mask)
}

// Seal puts plain, sealed for its place, at dst, which has len(plain)+TagSize
// bytes: the tag's bytes behind the extent are scratch.
func (s *Segment) Seal(g *format.Digester, x *Scratch, dst, plain []byte, position uint32, mask uint16) (tag [format.TagSize]byte) {
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

// Open checks the stored extent p[:n] and makes it plain in place. p has
// TagSize bytes more, whose content is kept.
//
// The tag is all that authenticates the content: it comes from a map page or a
// table, which are authenticated themselves, and binds machine, segment,
// position and mask. Block digests are not needed on top of it.
func (s *Segment) Open(g *format.Digester, x *Scratch, p []byte, n int, position uint32, mask uint16, tag [format.TagSize]byte) error {
	return s.OpenTo(g, x, p[:n], p, position, mask, tag)
}

// OpenTo is Open with the plain content at dst, which has the extent's size and
// is p[:len(dst)] or does not overlap p. Where it fails, dst holds nothing of use.
func (s *Segment) OpenTo(g *format.Digester, x *Scratch, dst, p []byte, position uint32, mask uint16, tag [format.TagSize]byte) error {
	x.set(s, position, mask)
	n := len(dst)
	if s.aead == nil {
		d := g.Keyed(p[:n], x.aad[:])
		if [format.TagSize]byte(d[:format.TagSize]) != tag {
			return ErrTag
		}
		copy(dst, p)
		return nil
	}
	var behind [format.TagSize]byte
	copy(behind[:], p[n:])
	copy(p[n:], tag[:])
	_, err := s.aead.Open(dst[:0], x.nonce[:], p[:n+format.TagSize], x.aad[:])
	copy(p[n:n+format.TagSize], behind[:])
	if err != nil {
		return ErrTag
	}
	return nil
}

// ErrTag says that stored bytes are not what was sealed.
var ErrTag = errors.New("extent is not what was stored")

// Cache keeps the keys of segments that were read lately.
type Cache struct {
	m      *machinekey.Keys
	st     damage.Reader
	sealed bool

	mu sync.Mutex
	by map[format.Name]*Segment
}

const maxCachedSegments = 4096

// NewCache reads through st.
func NewCache(m *machinekey.Keys, st damage.Reader, sealed bool) *Cache {
	return &Cache{m: m, st: st, sealed: sealed, by: map[format.Name]*Segment{}}
}

// Add keeps a segment that was just written.
func (c *Cache) Add(s *Segment) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if len(c.by) >= maxCachedSegments {
		clear(c.by) // they come back at a page each
	}
	c.by[s.Name] = s
}

// Get finds a segment by its name, reading its header where it is not kept.
func (c *Cache) Get(ctx context.Context, name format.Name) (*Segment, error) {
	c.mu.Lock()
	s := c.by[name]
	c.mu.Unlock()
	if s != nil {
		return s, nil
	}
	key := format.SegmentKey(c.m.ID, name)
	var h format.SegmentHeader
	err := damage.ReadChecked(ctx, c.st, key, 0, make([]byte, format.SegmentHeaderSize), func(p []byte) (err error) {
		if h, err = format.ParseSegmentHeader(p); err == nil && (h.Machine != c.m.Raw || h.Sealed != c.sealed) {
			err = fmt.Errorf("segment of another machine or sealing: %w", format.ErrCorrupt)
		}
		return err
	})
	if err != nil {
		return nil, err
	}
	if s, err = newSegment(c.m, name, h.ID, h.Sealed); err != nil {
		return nil, &damage.Error{Object: key, Machine: c.m.ID, Err: err}
	}
	c.Add(s)
	return s, nil
}

// Writer fills one segment. One goroutine at a time.
type Writer struct {
	*Segment
	w      store.Writer
	crcs   format.CRCs
	TOC    format.TOC // what was appended, kept by the caller
	runs   []format.Run
	mapKey *[32]byte

	chunk    []byte // aligned; small appends gather here
	fill     int
	Position uint32 // next free page
}

const chunkSize = 1 << 20

// Create begins a segment under a new name of that birth.
func Create(ctx context.Context, st store.Store, m *machinekey.Keys, sealed bool, birth int64, disks []string) (*Writer, error) {
	var id [format.IDSize]byte
	var random [4]byte
	_, _ = rand.Read(id[:])
	_, _ = rand.Read(random[:])
	s, err := newSegment(m, format.NewName(birth, binary.LittleEndian.Uint32(random[:])), id, sealed)
	if err != nil {
		return nil, err
	}
	w, err := st.Create(ctx, s.Key)
	if err != nil {
		return nil, fmt.Errorf("write segment: %w", err)
	}
	return newWriter(s, m, w, disks, false), nil
}

func newWriter(s *Segment, m *machinekey.Keys, w store.Writer, disks []string, replica bool) *Writer {
	sw := &Writer{Segment: s, w: w, mapKey: m.Map, chunk: disk.AlignedBuffer(chunkSize), Position: 1}
	sw.TOC.Disks = disks
	format.SegmentHeader{Sealed: s.aead != nil, Replica: replica, ID: s.id, Machine: m.Raw}.Encode(sw.chunk)
	sw.fill = format.SegmentHeaderSize
	return sw
}

// Room says how many pages fit still.
func (w *Writer) Room() int { return maxSize/format.PageSize - int(w.Position) }

// Append takes whole pages for the next position.
func (w *Writer) Append(p []byte) error {
	w.Position += uint32(len(p) / format.PageSize)
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

func (w *Writer) flush() error {
	if w.fill == 0 {
		return nil
	}
	err := w.write(w.chunk[:w.fill])
	w.fill = 0
	return err
}

func (w *Writer) write(p []byte) error {
	_, _ = w.crcs.Write(p)
	if _, err := w.w.Write(p); err != nil {
		return fmt.Errorf("write segment: %w", err)
	}
	return nil
}

// Finish writes the table of contents and makes the segment durable; it
// returns the object's size.
func (w *Writer) Finish() (int64, error) {
	if err := w.flush(); err != nil {
		return 0, errors.Join(err, w.w.Abort())
	}
	body := w.TOC.Encode()
	if w.runs != nil {
		body = format.ReplicaTOC{TOC: w.TOC, Runs: w.runs}.Encode()
	}
	toc, err := envelope.SealFrame(format.KindTOC, w.mapKey, []byte(w.Key), body)
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

// ReadTrailer reads the checksums and footer at the end of a segment or map object.
func ReadTrailer(ctx context.Context, st store.Store, key string, segment bool) (f format.Footer, size int64, err error) {
	info, err := st.Stat(ctx, key)
	if err != nil {
		return f, 0, damage.FromStore(key, err)
	}
	last := make([]byte, min(info.Size, format.FooterSize))
	if err := damage.ReadFull(ctx, st, key, info.Size-int64(len(last)), last); err != nil {
		return f, 0, err
	}
	n, err := format.TrailerSize(last, info.Size, segment)
	if err != nil {
		return f, 0, &damage.Error{Object: key, Err: err}
	}
	if n > info.Size {
		return f, 0, &damage.Error{Object: key, Err: format.ErrCorrupt}
	}
	p := make([]byte, n)
	if err := damage.ReadFull(ctx, st, key, info.Size-n, p); err != nil {
		return f, 0, err
	}
	if f, err = format.ParseTrailer(p, info.Size, segment); err != nil {
		return f, 0, &damage.Error{Object: key, Err: err}
	}
	return f, info.Size, nil
}

// ReadTOC reads the table of contents of a segment, which is no replica.
func ReadTOC(ctx context.Context, st store.Store, m *machinekey.Keys, key string) (t format.TOC, err error) {
	body, end, err := ReadTable(ctx, st, m, key)
	if err != nil {
		return t, err
	}
	if t, err = format.ParseTOC(body, end); err != nil {
		return t, &damage.Error{Object: key, Machine: m.ID, Err: err}
	}
	return t, nil
}

// ReadReplicaTOC reads the table of contents of a segment's replica.
func ReadReplicaTOC(ctx context.Context, st store.Store, m *machinekey.Keys, key string) (t format.ReplicaTOC, err error) {
	body, end, err := ReadTable(ctx, st, m, key)
	if err != nil {
		return t, err
	}
	if t, err = format.ParseReplicaTOC(body, end); err != nil {
		return t, &damage.Error{Object: key, Machine: m.ID, Err: err}
	}
	return t, nil
}

// ErrNoTable says that a map object is of version 1.
var ErrNoTable = errors.New("map object has no page table")

// ReadTable reads and opens the table behind the data of a segment, a map
// object, or a replica of one: its body, and where the data ends.
func ReadTable(ctx context.Context, st store.Store, m *machinekey.Keys, key string) (body []byte, end int64, err error) {
	isSegment := strings.HasPrefix(key, "seg/")
	f, _, err := ReadTrailer(ctx, st, key, isSegment)
	if err != nil {
		return nil, 0, err
	}
	if f.TOCLen > store.MaxSmallObject {
		return nil, 0, &damage.Error{Object: key, Machine: m.ID, Err: format.ErrCorrupt}
	}
	kind := format.KindTOC
	if !isSegment {
		if kind = format.KindPages; f.TOCLen == 0 {
			return nil, 0, fmt.Errorf("read %s: %w", key, ErrNoTable)
		}
	}
	p := make([]byte, f.TOCLen)
	if err := damage.ReadFull(ctx, st, key, f.DataEnd, p); err != nil {
		return nil, 0, err
	}
	if body, err = envelope.OpenFrame(p, kind, m.Map, []byte(key)); err != nil {
		return nil, 0, &damage.Error{Object: key, Machine: m.ID, Err: err}
	}
	return body, f.DataEnd, nil
}

// Abort drops the segment.
func (w *Writer) Abort() error { return w.w.Abort() }

// CheckChunks reads a segment or map object and compares its checksums.
func CheckChunks(ctx context.Context, st store.Store, key string) error {
	isSegment := strings.HasPrefix(key, "seg/")
	f, _, err := ReadTrailer(ctx, st, key, isSegment)
	if err != nil {
		return err
	}
	p := make([]byte, min(format.CRCChunk, f.DataEnd))
	for i, want := range f.CRCs {
		off := int64(i) * format.CRCChunk
		p = p[:min(format.CRCChunk, f.DataEnd-off)]
		if err := damage.ReadFull(ctx, st, key, off, p); err != nil {
			return err
		}
		if format.CRC(p) != want {
			return &damage.Error{Object: key, Err: fmt.Errorf("checksum of the bytes from %d on: %w", off, format.ErrCorrupt)}
		}
		if i > 0 {
			continue
		}
		if err := CheckHeader(p, key, f); err != nil {
			return &damage.Error{Object: key, Err: err}
		}
	}
	if f.TOCLen > 0 {
		toc := make([]byte, min(f.TOCLen, store.MaxSmallObject))
		if err := damage.ReadFull(ctx, st, key, f.DataEnd, toc); err != nil {
			return err
		}
		if err := envelope.CheckFrame(toc); err != nil {
			return &damage.Error{Object: key, Err: err}
		}
	}
	return nil
}

// CheckHeader compares the header of a segment or map object, or of a replica
// of one, with its key and its trailer.
func CheckHeader(p []byte, key string, f format.Footer) error {
	_, _, replica, _ := format.Original(key)
	if strings.HasPrefix(key, "seg/") {
		h, err := format.ParseSegmentHeader(p)
		if err == nil && h.Replica != replica {
			err = fmt.Errorf("segment header: replica %v under the name of another kind: %w", h.Replica, format.ErrCorrupt)
		}
		return err
	}
	h, err := format.ParseMapHeader(p)
	if err == nil && (h.Replica != replica || (h.Version > 1) != (f.TOCLen > 0)) {
		err = fmt.Errorf("map header: version %d, replica %v with a name or end of another kind: %w", h.Version, h.Replica, format.ErrCorrupt)
	}
	return err
}
