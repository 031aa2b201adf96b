package btrfs

import (
	"bytes"
	"cmp"
	"crypto/sha256"
	"fmt"
	"hash/crc32"
	"math"
	"sort"

	"github.com/cespare/xxhash/v2"
	"golang.org/x/crypto/blake2b"

	"github.com/lockstep-backup/lockstep/browse/internal/fsys"
)

const (
	nodeHeader = 101
	maxLevel   = 7
	maxChunks  = 1 << 18
)

// key is where an item is in its tree.
type key struct {
	object uint64
	kind   byte
	offset uint64
}

func keyOf(b []byte) key { return key{le.Uint64(b), b[8], le.Uint64(b[9:])} }

func (k key) compare(o key) int {
	return cmp.Or(cmp.Compare(k.object, o.object), cmp.Compare(k.kind, o.kind), cmp.Compare(k.offset, o.offset))
}

// tree is where its root lies.
type tree struct {
	at, generation uint64
	level          byte
}

// checksum is what verifies blocks that begin with their sum of a kind.
func checksum(kind uint16) (func([]byte) error, error) {
	var sum func(b []byte) []byte
	switch kind {
	case 0:
		table := crc32.MakeTable(crc32.Castagnoli)
		sum = func(b []byte) []byte { return le.AppendUint32(nil, crc32.Checksum(b, table)) }
	case 1:
		sum = func(b []byte) []byte { return le.AppendUint64(nil, xxhash.Sum64(b)) }
	case 2:
		sum = func(b []byte) []byte { s := sha256.Sum256(b); return s[:] }
	case 3:
		sum = func(b []byte) []byte { s := blake2b.Sum256(b); return s[:] }
	default:
		return nil, fsys.Unsupported("btrfs checksums of type %d", kind)
	}
	return func(b []byte) error {
		if s := sum(b[32:]); !bytes.Equal(s, b[:len(s)]) {
			return fsys.Corrupt("its checksum is wrong")
		}
		return nil
	}, nil
}

// chunk is a stretch of the addresses that trees and files use.
type chunk struct {
	logical, length uint64
	profile         uint64
	copies          []uint64 // where each copy on this device begins
}

const (
	profiles  = 0x7F8
	mirroring = 0x10 | 0x20 | 0x200 | 0x400 // RAID1, DUP, RAID1C3, RAID1C4
)

var profileNames = map[uint64]string{0x8: "RAID0", 0x40: "RAID10", 0x80: "RAID5", 0x100: "RAID6"}

// readChunks reads those that the superblock knows, by them the tree of all.
func (f *FS) readChunks(sb []byte) error {
	n := le.Uint32(sb[160:])
	if n > maxSysChunks {
		return fsys.Corrupt("%d bytes in the superblock", n)
	}
	var found []chunk
	for b := sb[sysChunks : sysChunks+n]; len(b) > 0; {
		if len(b) < 17 {
			return fsys.Corrupt("cut short in the superblock")
		}
		c, size, err := f.chunk(keyOf(b), b[17:])
		if err != nil {
			return err
		}
		found, b = append(found, c), b[17+size:]
	}
	if err := f.useChunks(found); err != nil {
		return err
	}
	found = nil
	root := tree{at: le.Uint64(sb[88:]), level: sb[199], generation: le.Uint64(sb[164:])}
	err := f.items(root, chunkObject, typeChunk, func(k key, b []byte) (bool, error) {
		c, _, err := f.chunk(k, b)
		if err == nil && len(found) >= maxChunks {
			err = fsys.Unsupported("more than %d", maxChunks)
		}
		found = append(found, c)
		return err == nil, err
	})
	if err != nil {
		return err
	}
	return f.useChunks(found)
}

func (f *FS) chunk(k key, b []byte) (c chunk, size int, err error) {
	if k.kind != typeChunk || len(b) < 48 || len(b) < 48+32*int(le.Uint16(b[44:])) {
		return c, 0, fsys.Corrupt("one is cut short")
	}
	stripes := int(le.Uint16(b[44:]))
	c = chunk{logical: k.offset, length: le.Uint64(b), profile: le.Uint64(b[24:]) & profiles}
	if c.length == 0 || c.length > math.MaxInt64 || c.logical > math.MaxInt64-c.length || stripes == 0 {
		return c, 0, fsys.Corrupt("%d bytes at %d in %d stripes", c.length, c.logical, stripes)
	}
	if c.profile == 0 && stripes != 1 {
		return c, 0, fsys.Corrupt("%d stripes where there is one", stripes)
	}
	if c.profile&^mirroring == 0 {
		for i := range stripes {
			s := b[48+32*i:]
			if le.Uint64(s) == f.device && len(c.copies) < 4 {
				c.copies = append(c.copies, le.Uint64(s[8:]))
			}
		}
	}
	return c, 48 + 32*stripes, nil
}

func (f *FS) useChunks(found []chunk) error {
	sort.Slice(found, func(i, j int) bool { return found[i].logical < found[j].logical })
	for i := 1; i < len(found); i++ {
		if found[i].logical < found[i-1].logical+found[i-1].length {
			return fsys.Corrupt("two overlap at %d", found[i].logical)
		}
	}
	f.chunks = found
	return nil
}

// locate is where the copies of what is at logical begin on this device, and
// how many bytes follow in one piece.
func (f *FS) locate(logical uint64) (copies []int64, length int64, err error) {
	i := sort.Search(len(f.chunks), func(i int) bool { return f.chunks[i].logical+f.chunks[i].length > logical })
	if i == len(f.chunks) || f.chunks[i].logical > logical {
		return nil, 0, fsys.Corrupt("address %d is in no chunk", logical)
	}
	c := f.chunks[i]
	if striped := c.profile &^ mirroring; striped != 0 {
		name := profileNames[striped]
		if name == "" {
			name = fmt.Sprintf("profile %#x", striped)
		}
		return nil, 0, fsys.Unsupported("btrfs %s", name)
	}
	if len(c.copies) == 0 {
		return nil, 0, fsys.Unsupported("btrfs content that lies on another device")
	}
	for _, at := range c.copies {
		if at > math.MaxInt64-c.length {
			return nil, 0, fsys.Corrupt("a chunk lies at %d", at)
		}
		copies = append(copies, int64(at+logical-c.logical))
	}
	return copies, int64(c.length - (logical - c.logical)), nil
}

// node reads a block of a tree, from the copy that is whole, and checks all
// of its keys and places.
func (f *FS) node(t tree) ([]byte, error) {
	if t.level > maxLevel {
		return nil, fsys.Corrupt("a tree of level %d", t.level)
	}
	copies, length, err := f.locate(t.at)
	if err != nil {
		return nil, err
	}
	if length < f.nodeSize {
		return nil, fsys.Corrupt("node %d leaves its chunk", t.at)
	}
	var b []byte
	for _, at := range copies {
		if b, err = f.vol.Bytes(at, f.nodeSize); err == nil {
			err = f.whole(b, t)
		}
		if err == nil {
			return b, nil
		}
	}
	return nil, fmt.Errorf("node %d: %w", t.at, err)
}

func (f *FS) whole(b []byte, t tree) error {
	if err := f.check(b); err != nil {
		return err
	}
	n, size := le.Uint32(b[96:]), uint32(itemSize)
	if t.level > 0 {
		size = pointerSize
	}
	switch {
	case !bytes.Equal(b[32:48], f.owner[:]):
		return fsys.Corrupt("it belongs to another file system")
	case le.Uint64(b[48:]) != t.at || b[100] != t.level || le.Uint64(b[80:]) != t.generation:
		return fsys.Corrupt("it is node %d of level %d and generation %d, not of level %d and generation %d",
			le.Uint64(b[48:]), b[100], le.Uint64(b[80:]), t.level, t.generation)
	case n > (uint32(len(b))-nodeHeader)/size || n == 0 && t.level > 0:
		return fsys.Corrupt("it has %d items", n)
	}
	room := uint32(len(b)) - nodeHeader
	var last key
	for i := range n {
		p := b[nodeHeader+i*size:]
		k := keyOf(p)
		if i > 0 && k.compare(last) <= 0 {
			return fsys.Corrupt("its keys are not in order")
		}
		last = k
		if t.level > 0 {
			continue
		}
		if at, length := le.Uint32(p[17:]), le.Uint32(p[21:]); at > room || length > room-at || at < n*size {
			return fsys.Corrupt("an item has %d bytes at %d", length, at)
		}
	}
	return nil
}

const (
	itemSize    = 25
	pointerSize = 33
)

// items calls fn with each item of a kind that an object has.
func (f *FS) items(t tree, object uint64, kind byte, fn func(key, []byte) (bool, error)) error {
	return f.each(t, key{object, kind, 0}, key{object, kind, math.MaxUint64}, fn)
}

// each calls fn with the items from low to high, in order, until it is false.
// What it is given is valid during the call.
func (f *FS) each(t tree, low, high key, fn func(key, []byte) (bool, error)) error {
	s := search{f: f, low: low, high: high, fn: fn}
	_, err := s.node(t, key{}, key{math.MaxUint64, 255, math.MaxUint64})
	return err
}

type search struct {
	f         *FS
	low, high key
	fn        func(key, []byte) (bool, error)
	nodes     int
}

// node looks below a node, whose keys are from first to last: so no node is
// met twice.
func (s *search) node(t tree, first, last key) (more bool, err error) {
	if s.nodes++; s.nodes > fsys.MaxNodes {
		return false, fsys.Corrupt("more than %d nodes for one object", fsys.MaxNodes)
	}
	b, err := s.f.node(t)
	if err != nil {
		return false, err
	}
	n, size := int(le.Uint32(b[96:])), itemSize
	if t.level > 0 {
		size = pointerSize
	}
	at := func(i int) []byte { return b[nodeHeader+i*size:] }
	if n > 0 && (keyOf(at(0)).compare(first) < 0 || keyOf(at(n-1)).compare(last) > 0) {
		return false, fsys.Corrupt("node %d has keys that belong elsewhere", t.at)
	}
	i := sort.Search(n, func(i int) bool { return keyOf(at(i)).compare(s.low) >= 0 })
	if t.level == 0 {
		for ; i < n; i++ {
			p := at(i)
			k := keyOf(p)
			if k.compare(s.high) > 0 {
				return false, nil
			}
			from, length := nodeHeader+le.Uint32(p[17:]), le.Uint32(p[21:])
			if more, err := s.fn(k, b[from:from+length]); err != nil || !more {
				return false, err
			}
		}
		return true, nil
	}
	if i == n || i > 0 && keyOf(at(i)).compare(s.low) > 0 {
		i-- // what is sought may be below the one before
	}
	for i = max(i, 0); i < n; i++ {
		p := at(i)
		k, end := keyOf(p), last
		if k.compare(s.high) > 0 {
			return false, nil
		}
		if i+1 < n {
			end = keyOf(at(i + 1)).before()
		}
		if more, err := s.node(tree{le.Uint64(p[17:]), le.Uint64(p[25:]), t.level - 1}, k, end); err != nil || !more {
			return false, err
		}
	}
	return true, nil
}

// before is the key before one that is not the first.
func (k key) before() key {
	if k.offset--; k.offset != math.MaxUint64 {
		return k
	}
	if k.kind--; k.kind != 255 {
		return k
	}
	k.object--
	return k
}
