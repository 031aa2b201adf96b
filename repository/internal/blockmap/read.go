// Package blockmap is the copy-on-write map of a disk: block → extents.
// docs/spec/repository.md, section 5.
package blockmap

import (
	"context"
	"crypto/cipher"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"sync"
	"sync/atomic"

	"github.com/lockstep-backup/lockstep/repository/format"
	"github.com/lockstep-backup/lockstep/repository/internal/damage"
	"github.com/lockstep-backup/lockstep/repository/internal/machinekey"
	"github.com/lockstep-backup/lockstep/repository/internal/segment"
	"github.com/lockstep-backup/lockstep/store"
)

// Cache reads map pages of one machine: it keeps the keys of map objects,
// windows of their bytes (neighbouring pages are wanted next) and parsed pages.
// All three are bounded.
type Cache struct {
	m  *machinekey.Keys
	st damage.Reader

	pagesRead atomic.Int64

	mu      sync.Mutex
	objects map[format.Name]cipher.AEAD
	windows map[windowKey][]byte
	pages   map[pageKey]any // *format.Leaf, *format.Node
}

type windowKey struct {
	object format.Name
	n      int64
}

type pageKey struct {
	object format.Name
	offset uint32
}

const (
	mapWindow        = 256 << 10
	maxMapWindows    = 32 // 8 MiB
	maxMapPages      = 2048
	maxCachedObjects = 1024
)

// NewCache reads through st.
func NewCache(m *machinekey.Keys, st damage.Reader) *Cache {
	return &Cache{
		m: m, st: st, objects: map[format.Name]cipher.AEAD{},
		windows: map[windowKey][]byte{}, pages: map[pageKey]any{},
	}
}

// PagesRead is how many pages were read and opened so far.
func (c *Cache) PagesRead() int64 { return c.pagesRead.Load() }

func (c *Cache) object(ctx context.Context, name format.Name) (cipher.AEAD, error) {
	c.mu.Lock()
	a := c.objects[name]
	c.mu.Unlock()
	if a != nil {
		return a, nil
	}
	key := format.MapKey(c.m.ID, name)
	var h format.MapHeader
	err := damage.ReadChecked(ctx, c.st, key, 0, make([]byte, format.MapHeaderSize), func(p []byte) (err error) {
		if h, err = format.ParseMapHeader(p); err == nil && h.Machine != c.m.Raw {
			err = fmt.Errorf("map of another machine: %w", format.ErrCorrupt)
		}
		return err
	})
	if err != nil {
		return nil, err
	}
	if a, err = c.m.MapPages(h.ID); err != nil {
		return nil, &damage.Error{Object: key, Machine: c.m.ID, Err: err}
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if len(c.objects) >= maxCachedObjects {
		clear(c.objects)
	}
	c.objects[name] = a
	return a, nil
}

// window returns the bytes [n*mapWindow, (n+1)*mapWindow) of an object, or what there is of them.
func (c *Cache) window(ctx context.Context, name format.Name, n int64) ([]byte, error) {
	k := windowKey{name, n}
	c.mu.Lock()
	p := c.windows[k]
	c.mu.Unlock()
	if p != nil {
		return p, nil
	}
	p = make([]byte, mapWindow)
	key := format.MapKey(c.m.ID, name)
	got, err := c.st.ReadRange(ctx, key, n*mapWindow, p)
	if err != nil && (got == 0 || !errors.Is(err, io.EOF)) { // half a window must not be kept
		if err = damage.FromStore(key, err); errors.Is(err, damage.ErrNotFound) {
			err = &damage.Error{Object: key, Machine: c.m.ID, Err: err}
		}
		return nil, err
	}
	p = p[:got]
	c.mu.Lock()
	defer c.mu.Unlock()
	if len(c.windows) >= maxMapWindows {
		for old := range c.windows { // any: which one hardly matters at these sizes
			delete(c.windows, old)
			break
		}
	}
	c.windows[k] = p
	return p, nil
}

func (c *Cache) read(ctx context.Context, ref format.Ref, p []byte) error {
	for off := int64(ref.Offset); len(p) > 0; {
		w, err := c.window(ctx, ref.Object, off/mapWindow)
		if err != nil {
			return err
		}
		in := off % mapWindow
		if in >= int64(len(w)) {
			return &damage.Error{Object: format.MapKey(c.m.ID, ref.Object), Machine: c.m.ID, Err: fmt.Errorf("object ends at a page: %w", format.ErrCorrupt)}
		}
		n := copy(p, w[in:])
		p = p[n:]
		off += int64(n)
	}
	return nil
}

// page reads and authenticates one page's plaintext.
func (c *Cache) page(ctx context.Context, ref format.Ref, kind byte) ([]byte, error) {
	a, err := c.object(ctx, ref.Object)
	if err != nil {
		return nil, err
	}
	if ref.Length <= format.TagSize || ref.Length > format.MaxMapPage {
		return nil, &damage.Error{Object: format.MapKey(c.m.ID, ref.Object), Machine: c.m.ID, Err: format.ErrCorrupt}
	}
	key := format.MapKey(c.m.ID, ref.Object)
	var nonce [12]byte
	binary.LittleEndian.PutUint64(nonce[4:], uint64(ref.Offset))
	for again := false; ; again = true {
		p := make([]byte, ref.Length)
		if err := c.read(ctx, ref, p); err != nil {
			return nil, err
		}
		c.pagesRead.Add(1)
		if out, err := a.Open(p[:0], nonce[:], p, []byte{kind}); err == nil {
			return out, nil
		}
		if again {
			return nil, &damage.Error{Object: key, Machine: c.m.ID, Err: segment.ErrTag}
		}
		// A bit may have flipped on the way, or another replica have come that has it.
		store.Forget(c.st, key)
		c.drop(ref.Object)
	}
}

// drop forgets the windows of an object.
func (c *Cache) drop(name format.Name) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for k := range c.windows {
		if k.object == name {
			delete(c.windows, k)
		}
	}
}

func (c *Cache) cached(ref format.Ref) any {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.pages[pageKey{ref.Object, ref.Offset}]
}

func (c *Cache) keep(ref format.Ref, page any) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if len(c.pages) >= maxMapPages {
		for old := range c.pages { // any one: random reads of a large disk would lose all of them again and again
			delete(c.pages, old)
			break
		}
	}
	c.pages[pageKey{ref.Object, ref.Offset}] = page
}

func (c *Cache) corrupt(ref format.Ref, err error) error {
	return &damage.Error{Object: format.MapKey(c.m.ID, ref.Object), Machine: c.m.ID, Err: err}
}

// Leaf reads a leaf; a zero ref is a leaf of zeroes.
func (c *Cache) Leaf(ctx context.Context, ref format.Ref) (*format.Leaf, error) {
	if ref.Zero() {
		return new(format.Leaf), nil
	}
	if l, ok := c.cached(ref).(*format.Leaf); ok {
		return l, nil
	}
	p, err := c.page(ctx, ref, format.PageLeaf)
	if err != nil {
		return nil, err
	}
	l, err := format.ParseLeaf(p)
	if err != nil {
		return nil, c.corrupt(ref, err)
	}
	g := c.m.Digester()
	node := LeafNode(g, l)
	c.m.Release(g)
	if node != ref.Node {
		return nil, c.corrupt(ref, fmt.Errorf("leaf does not hash to its reference: %w", format.ErrCorrupt))
	}
	c.keep(ref, l)
	return l, nil
}

// LeafNode is the root over a leaf's blocks.
func LeafNode(g *format.Digester, l *format.Leaf) format.Digest {
	var d [format.LeafBlocks]format.Digest
	for i := range l {
		d[i] = l[i].Digest
	}
	return g.Join32(&d)
}

func childrenNode(g *format.Digester, n *format.Node) format.Digest {
	var d [format.Fanout]format.Digest
	for i := range n.Children {
		d[i] = n.Children[i].Node
	}
	return g.Join32(&d)
}

// Node reads an inner node of that level; a zero ref is one of zeroes.
func (c *Cache) Node(ctx context.Context, ref format.Ref, level int) (*format.Node, error) {
	if ref.Zero() {
		return &format.Node{Level: level}, nil
	}
	if n, ok := c.cached(ref).(*format.Node); ok && n.Level == level {
		return n, nil
	}
	p, err := c.page(ctx, ref, format.PageNode)
	if err != nil {
		return nil, err
	}
	n, err := format.ParseNode(p, level)
	if err != nil {
		return nil, c.corrupt(ref, err)
	}
	g := c.m.Digester()
	node := childrenNode(g, n)
	c.m.Release(g)
	if node != ref.Node {
		return nil, c.corrupt(ref, fmt.Errorf("node does not hash to its reference: %w", format.ErrCorrupt))
	}
	c.keep(ref, n)
	return n, nil
}

// Tree is the map of one disk.
type Tree struct {
	Cache *Cache
	Level int // of the root
	Root  format.Ref
	Size  int64
}

// Ref finds the reference of the page of the given level with the given
// number (leaves: level 0). Beyond the Tree everything is zero. known is false
// for pages above the root: they are not part of this Tree.
func (t *Tree) Ref(ctx context.Context, level int, index int64) (ref format.Ref, known bool, err error) {
	if level > t.Level {
		return ref, false, nil
	}
	if index>>(5*(t.Level-level)) != 0 {
		return format.Ref{}, true, nil
	}
	ref = t.Root
	for l := t.Level; l > level; l-- {
		if ref.Zero() {
			return ref, true, nil
		}
		n, err := t.Cache.Node(ctx, ref, l)
		if err != nil {
			return ref, true, err
		}
		ref = n.Children[(index>>(5*(l-1-level)))%format.Fanout]
	}
	return ref, true, nil
}

// Leaf reads the leaf of that number.
func (t *Tree) Leaf(ctx context.Context, index int64) (*format.Leaf, format.Ref, error) {
	ref, _, err := t.Ref(ctx, 0, index)
	if err != nil {
		return nil, ref, err
	}
	l, err := t.Cache.Leaf(ctx, ref)
	return l, ref, err
}
