package repository

import (
	"context"
	"crypto/cipher"
	"crypto/rand"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"sort"

	"github.com/lockstep-backup/lockstep/repository/format"
	"github.com/lockstep-backup/lockstep/store"
)

// mapWriter gathers the new map pages of a recovery point in one object (or,
// past mapObjectSize, a few). It is for one goroutine.
type mapWriter struct {
	r     *Repository
	m     *machine
	entry int64
	ctx   context.Context // of the whole recovery point

	w      store.Writer
	name   format.Name
	aead   cipher.AEAD
	crcs   format.CRCs
	buf    []byte // not yet handed to w
	offset int64  // of the end of buf in the object
	total  int64  // bytes of finished objects
}

const mapObjectSize = 512 << 20

func (w *mapWriter) start() error {
	h := format.MapHeader{Machine: w.m.raw}
	var random [4]byte
	_, _ = rand.Read(h.ID[:])
	_, _ = rand.Read(random[:])
	w.name = format.NewName(w.entry, binary.LittleEndian.Uint32(random[:]))
	var err error
	if w.aead, err = mapAEAD(w.m, h.ID); err != nil {
		return err
	}
	if w.w, err = w.r.st.Create(w.ctx, format.MapKey(w.m.ID, w.name)); err != nil {
		return fmt.Errorf("write map: %w", err)
	}
	w.crcs = format.CRCs{}
	w.buf = append(w.buf[:0], h.Encode()...)
	w.offset = int64(len(w.buf))
	return nil
}

// page seals plain behind what is there; it uses plain as scratch.
func (w *mapWriter) page(kind byte, plain []byte) (placed, error) {
	if w.w != nil && w.offset+int64(len(plain)) > mapObjectSize {
		if err := w.finish(); err != nil {
			return placed{}, err
		}
	}
	if w.w == nil {
		if err := w.start(); err != nil {
			return placed{}, err
		}
	}
	ref := placed{Object: w.name, Offset: uint32(w.offset), Length: uint32(len(plain) + format.TagSize)}
	if ref.Length > format.MaxMapPage {
		return ref, fmt.Errorf("write map: page of %d bytes is too large", ref.Length)
	}
	var nonce [12]byte
	binary.LittleEndian.PutUint64(nonce[4:], uint64(ref.Offset))
	w.buf = w.aead.Seal(w.buf, nonce[:], plain, []byte{kind})
	w.offset += int64(ref.Length)
	if len(w.buf) >= chunkSize {
		return ref, w.flush()
	}
	return ref, nil
}

func (w *mapWriter) flush() error {
	_, _ = w.crcs.Write(w.buf)
	_, err := w.w.Write(w.buf)
	w.buf = w.buf[:0]
	if err != nil {
		return fmt.Errorf("write map: %w", err)
	}
	return nil
}

// finish makes the object under way durable, if there is one.
func (w *mapWriter) finish() error {
	if w.w == nil {
		return nil
	}
	if err := w.flush(); err != nil {
		return err
	}
	end := w.crcs.Size()
	tail := format.MapTrailer(end, w.crcs.Finish())
	if _, err := w.w.Write(tail); err != nil {
		return fmt.Errorf("write map: %w", err)
	}
	if err := w.w.Commit(); err != nil {
		return fmt.Errorf("write map: %w", err)
	}
	w.total += end + int64(len(tail))
	w.w = nil
	return nil
}

func (w *mapWriter) abort() {
	if w.w != nil {
		_ = w.w.Abort()
		w.w = nil
	}
}

// placed is where a page was put.
type placed struct {
	Object format.Name
	Offset uint32
	Length uint32
}

func (p placed) json() PageRef {
	return PageRef{Object: p.Object.String(), Offset: p.Offset, Length: p.Length}
}

// treeBuilder makes a disk's map from its leaves, which come in order. What is
// equal to the parent's is referred to, not written.
type treeBuilder struct {
	w      *mapWriter
	g      *format.Digester
	level  int
	leaves int64
	parent *tree // nil: none

	next  int64 // number of the leaf that comes next
	nodes [format.MaxLevel + 2]format.Node
	root  format.Ref
	buf   []byte
}

// add takes the next leaf's reference.
func (b *treeBuilder) add(ctx context.Context, ref format.Ref) error {
	index := b.next
	b.next++
	for level := 0; ; level++ {
		if level == b.level {
			b.root = ref
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

func (b *treeBuilder) close(ctx context.Context, n *format.Node, index int64) (format.Ref, error) {
	digest := childrenNode(b.g, n)
	if digest.Zero() {
		return format.Ref{}, nil
	}
	if ref, ok, err := b.same(ctx, digest, n.Level, index); ok || err != nil {
		return ref, err
	}
	b.buf = n.Encode(b.buf[:0])
	p, err := b.w.page(format.PageNode, b.buf)
	return format.Ref{Node: digest, Object: p.Object, Offset: p.Offset, Length: p.Length}, err
}

// same finds the parent's page of equal content at the same place. A parent's
// map that cannot be read is no reason to fail: the page is written anew.
func (b *treeBuilder) same(ctx context.Context, digest format.Digest, level int, index int64) (format.Ref, bool, error) {
	if b.parent == nil {
		return format.Ref{}, false, nil
	}
	ref, known, err := b.parent.ref(ctx, level, index)
	if err != nil {
		if ctx.Err() != nil {
			return ref, false, ctx.Err()
		}
		return format.Ref{}, false, nil
	}
	return ref, known && ref.Node == digest, nil
}

// leaf writes a leaf that differs from the parent's and returns its reference.
func (b *treeBuilder) leaf(ctx context.Context, l *format.Leaf, digest format.Digest) (format.Ref, error) {
	b.buf = l.Encode(b.buf[:0])
	p, err := b.w.page(format.PageLeaf, b.buf)
	return format.Ref{Node: digest, Object: p.Object, Offset: p.Offset, Length: p.Length}, err
}

// mapRef is the finished root as the manifest names it.
func (b *treeBuilder) mapRef() MapRef {
	m := MapRef{Level: b.level}
	if !b.root.Zero() {
		p := placed{b.root.Object, b.root.Offset, b.root.Length}.json()
		m.Page, m.Node = &p, hex.EncodeToString(b.root.Node[:])
	}
	return m
}

// usage counts pages by segment; it is written behind the map.
type usage map[format.Name]*format.Usage

func (u usage) entry(n format.Name) *format.Usage {
	e := u[n]
	if e == nil {
		e = &format.Usage{Segment: n}
		u[n] = e
	}
	return e
}

func (u usage) write(ctx context.Context, w *mapWriter) ([]PageRef, error) {
	if len(u) == 0 {
		return nil, nil
	}
	all := make([]format.Usage, 0, len(u))
	for _, e := range u {
		all = append(all, *e)
	}
	sort.Slice(all, func(i, j int) bool { return string(all[i].Segment[:]) < string(all[j].Segment[:]) })
	const perPage = 2000 // at most 8+5+5 bytes each
	var refs []PageRef
	for len(all) > 0 {
		n := min(perPage, len(all))
		p, err := w.page(format.PageUsage, format.EncodeUsage(nil, all[:n]))
		if err != nil {
			return nil, err
		}
		refs = append(refs, p.json())
		all = all[n:]
	}
	return refs, nil
}
