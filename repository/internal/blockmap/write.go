package blockmap

import (
	"context"
	"crypto/cipher"
	"crypto/rand"
	"encoding/binary"
	"fmt"

	"github.com/lockstep-backup/lockstep/envelope"
	"github.com/lockstep-backup/lockstep/repository/format"
	"github.com/lockstep-backup/lockstep/repository/internal/machinekey"
	"github.com/lockstep-backup/lockstep/store"
)

// Writer gathers the new map pages of a recovery point in one object (or,
// past mapObjectSize, a few). It is for one goroutine.
type Writer struct {
	st    store.Store
	m     *machinekey.Keys
	birth int64
	ctx   context.Context // of the whole recovery point

	w      store.Writer
	name   format.Name
	aead   cipher.AEAD
	crcs   format.CRCs
	table  format.PageTable
	buf    []byte // not yet handed to w
	offset int64  // of the end of buf in the object
	total  int64  // bytes of finished objects
}

const (
	flushSize     = 1 << 20
	mapObjectSize = 512 << 20
)

func (w *Writer) start() error {
	h := format.MapHeader{Version: 2, Machine: w.m.Raw}
	var random [4]byte
	_, _ = rand.Read(h.ID[:])
	_, _ = rand.Read(random[:])
	w.name = format.NewName(w.birth, binary.LittleEndian.Uint32(random[:]))
	var err error
	if w.aead, err = w.m.MapPages(h.ID); err != nil {
		return err
	}
	if w.w, err = w.st.Create(w.ctx, format.MapKey(w.m.ID, w.name)); err != nil {
		return fmt.Errorf("write map: %w", err)
	}
	w.crcs, w.table = format.CRCs{}, format.PageTable{}
	w.buf = append(w.buf[:0], h.Encode()...)
	w.offset = int64(len(w.buf))
	return nil
}

// page seals plain, page number index of that level of a disk's map, behind
// what is there.
func (w *Writer) page(disk string, level int, index int64, plain []byte) (Placed, error) {
	if w.w != nil && w.offset+int64(len(plain)) > mapObjectSize {
		if err := w.Finish(); err != nil {
			return Placed{}, err
		}
	}
	if w.w == nil {
		if err := w.start(); err != nil {
			return Placed{}, err
		}
	}
	ref := Placed{Object: w.name, Offset: uint32(w.offset), Length: uint32(len(plain) + format.TagSize)}
	if ref.Length > format.MaxMapPage {
		return ref, fmt.Errorf("write map: page of %d bytes is too large", ref.Length)
	}
	var nonce [12]byte
	binary.LittleEndian.PutUint64(nonce[4:], uint64(ref.Offset))
	kind := byte(format.PageNode)
	if level == 0 {
		kind = format.PageLeaf
	}
	w.buf = w.aead.Seal(w.buf, nonce[:], plain, []byte{kind})
	if n := len(w.table.Disks); n == 0 || w.table.Disks[n-1] != disk { // disks come one after another
		w.table.Disks = append(w.table.Disks, disk)
	}
	w.table.Pages = append(w.table.Pages, format.PageEntry{
		Disk: len(w.table.Disks) - 1, Level: level, Index: index, Offset: ref.Offset, Length: ref.Length,
	})
	w.offset += int64(ref.Length)
	if len(w.buf) >= flushSize {
		return ref, w.flush()
	}
	return ref, nil
}

func (w *Writer) flush() error {
	_, _ = w.crcs.Write(w.buf)
	_, err := w.w.Write(w.buf)
	w.buf = w.buf[:0]
	if err != nil {
		return fmt.Errorf("write map: %w", err)
	}
	return nil
}

// Finish makes the object under way durable, if there is one.
func (w *Writer) Finish() error {
	if w.w == nil {
		return nil
	}
	if err := w.flush(); err != nil {
		return err
	}
	end := w.crcs.Size()
	frame, err := envelope.SealFrame(format.KindPages, w.m.Map, []byte(format.MapKey(w.m.ID, w.name)), w.table.Encode(false))
	if err != nil {
		return fmt.Errorf("write map: %w", err)
	}
	tail := append(frame, format.MapTrailer(end, int64(len(frame)), w.crcs.Finish())...)
	if _, err := w.w.Write(tail); err != nil {
		return fmt.Errorf("write map: %w", err)
	}
	if err := w.w.Commit(); err != nil {
		return fmt.Errorf("write map: %w", err)
	}
	w.total += end + int64(len(tail))
	w.w, w.offset = nil, 0
	return nil
}

// Abort drops the object under way.
func (w *Writer) Abort() {
	if w.w != nil {
		_ = w.w.Abort()
		w.w = nil
	}
}

// Placed is where a page was put.
type Placed struct {
	Object format.Name
	Offset uint32
	Length uint32
}

// NewWriter begins map objects of that birth.
func NewWriter(ctx context.Context, st store.Store, m *machinekey.Keys, birth int64) *Writer {
	return &Writer{ctx: ctx, st: st, m: m, birth: birth}
}

// Bytes is how much was written so far.
func (w *Writer) Bytes() int64 { return w.offset + w.total }

// Builder makes a disk's map from its leaves, which come in order. What is
// equal to the parent's is referred to, not written.
type Builder struct {
	w      *Writer
	disk   string
	g      *format.Digester
	level  int
	leaves int64
	parent *Tree // nil: none

	next  int64 // number of the leaf that comes next
	nodes [format.MaxLevel + 2]format.Node
	Root  format.Ref
	buf   []byte
}

// Add takes the next leaf's reference.
func (b *Builder) Add(ctx context.Context, ref format.Ref) error {
	index := b.next
	b.next++
	for level := 0; ; level++ {
		if level == b.level {
			b.Root = ref
			return nil
		}
		up := &b.nodes[level+1]
		up.Children[index%format.Fanout] = ref
		last := b.next == b.leaves
		if index%format.Fanout != format.Fanout-1 && !last {
			return nil
		}
		index /= format.Fanout
		up.Level = level + 1
		var err error
		if ref, err = b.close(ctx, up, index); err != nil {
			return err
		}
		*up = format.Node{}
	}
}

func (b *Builder) close(ctx context.Context, n *format.Node, index int64) (format.Ref, error) {
	digest := childrenNode(b.g, n)
	if digest.Zero() {
		return format.Ref{}, nil
	}
	if ref, ok, err := b.same(ctx, digest, n.Level, index); ok || err != nil {
		return ref, err
	}
	b.buf = n.Encode(b.buf[:0])
	p, err := b.w.page(b.disk, n.Level, index, b.buf)
	return format.Ref{Node: digest, Object: p.Object, Offset: p.Offset, Length: p.Length}, err
}

// NewBuilder begins the map of a disk of size bytes; parent may be nil.
func NewBuilder(w *Writer, g *format.Digester, disk string, size int64, parent *Tree) *Builder {
	return &Builder{w: w, g: g, disk: disk, level: format.Levels(size), leaves: format.LeafCount(size), parent: parent}
}

// Level is the level of the root.
func (b *Builder) Level() int { return b.level }

// same finds the parent's page of equal content at the same place. A parent's
// map that cannot be read is no reason to fail: the page is written anew.
func (b *Builder) same(ctx context.Context, digest format.Digest, level int, index int64) (format.Ref, bool, error) {
	if b.parent == nil {
		return format.Ref{}, false, nil
	}
	ref, known, err := b.parent.Ref(ctx, level, index)
	if err != nil {
		if ctx.Err() != nil {
			return ref, false, ctx.Err()
		}
		return format.Ref{}, false, nil
	}
	return ref, known && ref.Node == digest, nil
}

// Leaf writes the leaf that comes next, which differs from the parent's, and
// returns its reference for Add.
func (b *Builder) Leaf(l *format.Leaf, digest format.Digest) (format.Ref, error) {
	b.buf = l.Encode(b.buf[:0])
	p, err := b.w.page(b.disk, 0, b.next, b.buf)
	return format.Ref{Node: digest, Object: p.Object, Offset: p.Offset, Length: p.Length}, err
}
