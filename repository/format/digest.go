package format

import (
	"encoding/binary"
	"math/bits"

	"github.com/zeebo/blake3"
)

// Digest is a keyed BLAKE3 digest. 32 zero bytes stand for zeroes.
type Digest [DigestSize]byte

// Zero reports whether d stands for zeroes.
func (d Digest) Zero() bool { return d == Digest{} }

// Digester computes the digests of one machine. It is for one goroutine.
type Digester struct {
	block, node *blake3.Hasher
}

// NewDigester takes the block-digest key and the node key, 32 bytes each.
func NewDigester(blockKey, nodeKey []byte) (*Digester, error) {
	b, err := blake3.NewKeyed(blockKey)
	if err != nil {
		return nil, err
	}
	n, err := blake3.NewKeyed(nodeKey)
	if err != nil {
		return nil, err
	}
	return &Digester{block: b, node: n}, nil
}

func sum(h *blake3.Hasher) (d Digest) {
	h.Sum(d[:0])
	return d
}

// Block is the digest of a whole block (BlockSize bytes) that is not all zero;
// the caller has looked for zeroes before.
func (g *Digester) Block(p []byte) Digest {
	g.block.Reset()
	_, _ = g.block.Write(p)
	return sum(g.block)
}

// UnreadBlock is the digest of a block with unread pages, which p holds as zeroes.
func (g *Digester) UnreadBlock(p []byte, unread uint16) Digest {
	g.node.Reset()
	_, _ = g.node.Write([]byte{2, byte(unread), byte(unread >> 8)})
	_, _ = g.node.Write(p)
	return sum(g.node)
}

// Keyed is a digest under the block-digest key of bytes that are no block: ids
// of header copies, tags of unsealed extents.
func (g *Digester) Keyed(parts ...[]byte) Digest {
	g.block.Reset()
	for _, p := range parts {
		_, _ = g.block.Write(p)
	}
	return sum(g.block)
}

// Node joins two digests.
func (g *Digester) Node(l, r Digest) Digest {
	if l.Zero() && r.Zero() {
		return Digest{}
	}
	var b [1 + 2*DigestSize]byte
	b[0] = 1
	copy(b[1:], l[:])
	copy(b[1+DigestSize:], r[:])
	g.node.Reset()
	_, _ = g.node.Write(b[:])
	return sum(g.node)
}

// Join32 is the root over 32 digests: one map node's worth of the tree. It uses d as scratch.
func (g *Digester) Join32(d *[32]Digest) Digest {
	for n := 32; n > 1; n /= 2 {
		for i := range n / 2 {
			d[i] = g.Node(d[2*i], d[2*i+1])
		}
	}
	return d[0]
}

// Root is the content root of a disk of size bytes; top is the root over its
// block digests, filled up to a power of 32.
func (g *Digester) Root(size int64, top Digest) Digest {
	var b [9]byte
	binary.LittleEndian.PutUint64(b[1:], uint64(size))
	g.node.Reset()
	_, _ = g.node.Write(b[:])
	_, _ = g.node.Write(top[:])
	return sum(g.node)
}

// Levels is the level of the root of a map over size bytes: 0 = one leaf.
func Levels(size int64) int {
	leaves := LeafCount(size)
	l := 0
	for leaves > 1 {
		leaves = (leaves + Fanout - 1) / Fanout
		l++
	}
	return l
}

// LeafCount is the number of leaves over size bytes, at least 1.
func LeafCount(size int64) int64 {
	n := (size + LeafSize - 1) / LeafSize
	return max(n, 1)
}

// BlockCount is the number of blocks of a disk.
func BlockCount(size int64) int64 { return (size + BlockSize - 1) / BlockSize }

// Pages counts the pages of a mask.
func Pages(mask uint16) int { return bits.OnesCount16(mask) }
