package format

import (
	"encoding/binary"
	"fmt"
	"hash/crc32"
)

func crcUpdate(c uint32, p []byte) uint32 { return crc32.Update(c, Castagnoli, p) }

// Page types; also the associated data of a map page. Early versions wrote
// pages of type 3, which nothing reads.
const (
	PageLeaf = 1
	PageNode = 2
)

// Extent is a stored run of pages of one block.
type Extent struct {
	Segment  Name
	Position uint32 // in pages from the start of the segment
	Stored   uint16 // pages stored there
	Live     uint16 // those of them that are current; not empty, disjoint from other extents' of the block
	Tag      [TagSize]byte
}

// Block is one block of a leaf. The zero value is a block of zeroes.
type Block struct {
	Digest  Digest
	Unread  uint16
	Extents []Extent
}

// Zero reports whether the block is zeroes.
func (b *Block) Zero() bool { return b.Digest.Zero() }

// Leaf is LeafBlocks blocks.
type Leaf [LeafBlocks]Block

// Zero reports whether every block is zeroes.
func (l *Leaf) Zero() bool {
	for i := range l {
		if !l[i].Zero() {
			return false
		}
	}
	return true
}

// Encode gives the page's plaintext.
func (l *Leaf) Encode(p []byte) []byte {
	var present uint32
	var names []Name
	index := func(n Name) int {
		for i := range names {
			if names[i] == n {
				return i
			}
		}
		names = append(names, n)
		return len(names) - 1
	}
	for i := range l {
		if l[i].Zero() {
			continue
		}
		present |= 1 << i
		for j := range l[i].Extents {
			index(l[i].Extents[j].Segment)
		}
	}
	p = append(p, PageLeaf, 0)
	p = binary.LittleEndian.AppendUint32(p, present)
	p = binary.AppendUvarint(p, uint64(len(names)))
	for _, n := range names {
		p = append(p, n[:]...)
	}
	ends := make([]uint32, len(names)) // where the previous extent in each segment ends; 0 = none yet
	for i := range l {
		b := &l[i]
		if b.Zero() {
			continue
		}
		p = append(p, b.Digest[:]...)
		flags := byte(len(b.Extents))
		if b.Unread != 0 {
			flags |= 0x20
		}
		p = append(p, flags)
		if b.Unread != 0 {
			p = binary.LittleEndian.AppendUint16(p, b.Unread)
		}
		for j := range b.Extents {
			e := &b.Extents[j]
			k := index(e.Segment)
			code := uint64(k) << 2
			full := e.Stored == 0xffff && e.Live == 0xffff
			next := ends[k] != 0 && ends[k] == e.Position
			if full {
				code |= 2
			}
			if next {
				code |= 1
			}
			p = binary.AppendUvarint(p, code)
			if !next {
				p = binary.LittleEndian.AppendUint32(p, e.Position)
			}
			if !full {
				p = binary.LittleEndian.AppendUint16(p, e.Stored)
				p = binary.LittleEndian.AppendUint16(p, e.Live)
			}
			p = append(p, e.Tag[:]...)
			ends[k] = e.Position + uint32(Pages(e.Stored))
		}
	}
	return p
}

// reader takes bytes off a page; after a short read bad stays true and zeroes come.
type reader struct {
	p   []byte
	bad bool
}

var zeroes [64]byte

func (r *reader) take(n int) []byte {
	if r.bad || len(r.p) < n {
		r.bad = true
		return zeroes[:n]
	}
	p := r.p[:n]
	r.p = r.p[n:]
	return p
}

func (r *reader) u8() byte    { return r.take(1)[0] }
func (r *reader) u16() uint16 { return binary.LittleEndian.Uint16(r.take(2)) }
func (r *reader) u32() uint32 { return binary.LittleEndian.Uint32(r.take(4)) }

func (r *reader) uvarint() uint64 {
	v, n := binary.Uvarint(r.p)
	if r.bad || n <= 0 {
		r.bad = true
		return 0
	}
	r.p = r.p[n:]
	return v
}

func (r *reader) varint() int64 {
	v, n := binary.Varint(r.p)
	if r.bad || n <= 0 {
		r.bad = true
		return 0
	}
	r.p = r.p[n:]
	return v
}

// ParseLeaf reads a leaf page.
func ParseLeaf(p []byte) (*Leaf, error) {
	bad := func(what string) (*Leaf, error) { return nil, fmt.Errorf("map leaf: %s: %w", what, ErrCorrupt) }
	r := &reader{p: p}
	if r.u8() != PageLeaf || r.u8() != 0 {
		return bad("type")
	}
	present := r.u32()
	n := r.uvarint()
	if n > LeafBlocks*PagesPerBlock {
		return bad("number of segments")
	}
	names := make([]Name, n)
	for i := range names {
		copy(names[i][:], r.take(8))
	}
	ends := make([]uint32, n)
	l := new(Leaf)
	for i := range l {
		if present&(1<<i) == 0 {
			continue
		}
		b := &l[i]
		copy(b.Digest[:], r.take(DigestSize))
		flags := r.u8()
		ne := int(flags & 0x1f)
		if flags&^0x3f != 0 || ne > PagesPerBlock {
			return bad("block flags")
		}
		covered := uint16(0)
		if flags&0x20 != 0 {
			b.Unread = r.u16()
			covered = b.Unread
			if b.Unread == 0 && !r.bad {
				return bad("empty unread mask")
			}
		}
		if b.Zero() && !r.bad {
			return bad("zero digest of a present block")
		}
		if ne > 0 {
			b.Extents = make([]Extent, ne)
		}
		for j := range b.Extents {
			e := &b.Extents[j]
			code := r.uvarint()
			k := code >> 2
			if k >= n {
				return bad("segment index")
			}
			e.Segment = names[k]
			if code&1 != 0 {
				e.Position = ends[k]
			} else {
				e.Position = r.u32()
			}
			e.Stored, e.Live = 0xffff, 0xffff
			if code&2 == 0 {
				e.Stored, e.Live = r.u16(), r.u16()
			}
			copy(e.Tag[:], r.take(TagSize))
			if r.bad {
				return bad("too short")
			}
			if e.Position == 0 || e.Live == 0 || e.Live&^e.Stored != 0 || e.Live&covered != 0 {
				return bad("page masks")
			}
			covered |= e.Live
			ends[k] = e.Position + uint32(Pages(e.Stored))
			if ends[k] < e.Position {
				return bad("position")
			}
		}
	}
	if r.bad {
		return bad("too short")
	}
	if len(r.p) != 0 {
		return bad("trailing bytes")
	}
	return l, nil
}

// Ref points at a map page and carries the root of the tree below it.
type Ref struct {
	Node   Digest
	Object Name
	Offset uint32
	Length uint32
}

// Zero reports whether everything below is zeroes; there is no page then.
func (r Ref) Zero() bool { return r.Node.Zero() }

// Node is an inner node of the map.
type Node struct {
	Level    int // 1 = its children are leaves
	Children [Fanout]Ref
}

// Encode gives the page's plaintext.
func (n *Node) Encode(p []byte) []byte {
	var present uint32
	for i := range n.Children {
		if !n.Children[i].Zero() {
			present |= 1 << i
		}
	}
	p = append(p, PageNode, byte(n.Level))
	p = binary.LittleEndian.AppendUint32(p, present)
	for i := range n.Children {
		c := &n.Children[i]
		if c.Zero() {
			continue
		}
		p = append(p, c.Node[:]...)
		p = append(p, c.Object[:]...)
		p = binary.LittleEndian.AppendUint32(p, c.Offset)
		p = binary.LittleEndian.AppendUint32(p, c.Length)
	}
	return p
}

// ParseNode reads an inner node of the given level.
func ParseNode(p []byte, level int) (*Node, error) {
	bad := func(what string) (*Node, error) { return nil, fmt.Errorf("map node: %s: %w", what, ErrCorrupt) }
	r := &reader{p: p}
	if r.u8() != PageNode {
		return bad("type")
	}
	n := &Node{Level: int(r.u8())}
	if n.Level != level || level < 1 || level > MaxLevel {
		return bad("level")
	}
	present := r.u32()
	for i := range n.Children {
		if present&(1<<i) == 0 {
			continue
		}
		c := &n.Children[i]
		copy(c.Node[:], r.take(DigestSize))
		copy(c.Object[:], r.take(8))
		c.Offset, c.Length = r.u32(), r.u32()
		if r.bad {
			return bad("too short")
		}
		if c.Node.Zero() || c.Offset < MapHeaderSize || c.Length <= TagSize || c.Length > MaxMapPage {
			return bad("reference")
		}
	}
	if r.bad || len(r.p) != 0 {
		return bad("length")
	}
	return n, nil
}
