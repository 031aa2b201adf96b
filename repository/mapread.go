package repository

import (
	"context"
	"crypto/cipher"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"sync"

	"github.com/lockstep-backup/lockstep/envelope"
	"github.com/lockstep-backup/lockstep/repository/format"
	"github.com/lockstep-backup/lockstep/store"
)

// mapCache reads map pages of one machine: it keeps the keys of map objects,
// windows of their bytes (neighbouring pages are wanted next) and parsed pages.
// All three are bounded.
type mapCache struct {
	m  *machine
	st store.Store

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

func newMapCache(m *machine, st store.Store) *mapCache {
	return &mapCache{
		m: m, st: st, objects: map[format.Name]cipher.AEAD{},
		windows: map[windowKey][]byte{}, pages: map[pageKey]any{},
	}
}

func mapAEAD(m *machine, id [format.IDSize]byte) (cipher.AEAD, error) {
	base := envelope.CopySecret(m.mapKey[:])
	defer base.Wipe()
	return newGCM(envelope.DeriveKey(base, keyPurpose+"page", m.raw[:], id[:]))
}

func (c *mapCache) object(ctx context.Context, name format.Name) (cipher.AEAD, error) {
	c.mu.Lock()
	a := c.objects[name]
	c.mu.Unlock()
	if a != nil {
		return a, nil
	}
	key := format.MapKey(c.m.ID, name)
	p := make([]byte, format.MapHeaderSize)
	if err := readFull(ctx, c.st, key, 0, p); err != nil {
		return nil, err
	}
	h, err := format.ParseMapHeader(p)
	if err == nil && h.Machine != c.m.raw {
		err = fmt.Errorf("map of another machine: %w", format.ErrCorrupt)
	}
	if err == nil {
		a, err = mapAEAD(c.m, h.ID)
	}
	if err != nil {
		return nil, &DamageError{Object: key, Machine: c.m.ID, Err: err}
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
func (c *mapCache) window(ctx context.Context, name format.Name, n int64) ([]byte, error) {
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
	if got == 0 && err != nil {
		return nil, readError(key, err)
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

func (c *mapCache) read(ctx context.Context, ref format.Ref, p []byte) error {
	for off := int64(ref.Offset); len(p) > 0; {
		w, err := c.window(ctx, ref.Object, off/mapWindow)
		if err != nil {
			return err
		}
		in := off % mapWindow
		if in >= int64(len(w)) {
			return &DamageError{Object: format.MapKey(c.m.ID, ref.Object), Machine: c.m.ID, Err: fmt.Errorf("object ends at a page: %w", format.ErrCorrupt)}
		}
		n := copy(p, w[in:])
		p = p[n:]
		off += int64(n)
	}
	return nil
}

// page reads and authenticates one page's plaintext.
func (c *mapCache) page(ctx context.Context, ref format.Ref, kind byte) ([]byte, error) {
	a, err := c.object(ctx, ref.Object)
	if err != nil {
		return nil, err
	}
	if ref.Length <= format.TagSize || ref.Length > format.MaxMapPage {
		return nil, &DamageError{Object: format.MapKey(c.m.ID, ref.Object), Machine: c.m.ID, Err: format.ErrCorrupt}
	}
	p := make([]byte, ref.Length)
	if err := c.read(ctx, ref, p); err != nil {
		return nil, err
	}
	var nonce [12]byte
	binary.LittleEndian.PutUint64(nonce[4:], uint64(ref.Offset))
	out, err := a.Open(p[:0], nonce[:], p, []byte{kind})
	if err != nil {
		return nil, &DamageError{Object: format.MapKey(c.m.ID, ref.Object), Machine: c.m.ID, Err: errTag}
	}
	return out, nil
}

func (c *mapCache) cached(ref format.Ref) any {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.pages[pageKey{ref.Object, ref.Offset}]
}

func (c *mapCache) keep(ref format.Ref, page any) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if len(c.pages) >= maxMapPages {
		clear(c.pages)
	}
	c.pages[pageKey{ref.Object, ref.Offset}] = page
}

func (c *mapCache) corrupt(ref format.Ref, err error) error {
	return &DamageError{Object: format.MapKey(c.m.ID, ref.Object), Machine: c.m.ID, Err: err}
}

// leaf reads a leaf; a zero ref is a leaf of zeroes.
func (c *mapCache) leaf(ctx context.Context, ref format.Ref) (*format.Leaf, error) {
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
	g := c.m.digester()
	node := leafNode(g, l)
	c.m.release(g)
	if node != ref.Node {
		return nil, c.corrupt(ref, fmt.Errorf("leaf does not hash to its reference: %w", format.ErrCorrupt))
	}
	c.keep(ref, l)
	return l, nil
}

func leafNode(g *format.Digester, l *format.Leaf) format.Digest {
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

func (c *mapCache) node(ctx context.Context, ref format.Ref, level int) (*format.Node, error) {
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
	g := c.m.digester()
	node := childrenNode(g, n)
	c.m.release(g)
	if node != ref.Node {
		return nil, c.corrupt(ref, fmt.Errorf("node does not hash to its reference: %w", format.ErrCorrupt))
	}
	c.keep(ref, n)
	return n, nil
}

// tree is the map of one disk.
type tree struct {
	c     *mapCache
	level int // of the root
	root  format.Ref
	size  int64
}

// ref finds the reference of the page of the given level with the given
// number (leaves: level 0). Beyond the tree everything is zero. known is false
// for pages above the root: they are not part of this tree.
func (t *tree) ref(ctx context.Context, level int, index int64) (ref format.Ref, known bool, err error) {
	if level > t.level {
		return ref, false, nil
	}
	if index>>(5*(t.level-level)) != 0 {
		return format.Ref{}, true, nil
	}
	ref = t.root
	for l := t.level; l > level; l-- {
		if ref.Zero() {
			return ref, true, nil
		}
		n, err := t.c.node(ctx, ref, l)
		if err != nil {
			return ref, true, err
		}
		ref = n.Children[(index>>(5*(l-1-level)))%format.Fanout]
	}
	return ref, true, nil
}

func (t *tree) leaf(ctx context.Context, index int64) (*format.Leaf, format.Ref, error) {
	ref, _, err := t.ref(ctx, 0, index)
	if err != nil {
		return nil, ref, err
	}
	l, err := t.c.leaf(ctx, ref)
	return l, ref, err
}

// openTree checks a manifest's map root.
func (m *machine) openTree(d Disk) (*tree, error) {
	bad := func(what string) (*tree, error) {
		return nil, &DamageError{Object: "manifest", Machine: m.ID, Disk: d.ID, Err: fmt.Errorf("%s: %w", what, format.ErrCorrupt)}
	}
	if d.Size < 0 || d.Size > 1<<62 {
		return bad("disk size")
	}
	t := &tree{c: m.maps, level: d.Map.Level, size: d.Size}
	if t.level != format.Levels(d.Size) {
		return bad("map level")
	}
	if d.Map.Page != nil {
		node, err := parseDigest(d.Map.Node)
		if err != nil || node.Zero() {
			return bad("map root")
		}
		name, err := format.ParseName(d.Map.Page.Object)
		if err != nil || d.Map.Page.Offset < format.MapHeaderSize || d.Map.Page.Length > format.MaxMapPage {
			return bad("map root")
		}
		t.root = format.Ref{Node: node, Object: name, Offset: d.Map.Page.Offset, Length: d.Map.Page.Length}
	}
	g := m.digester()
	root := g.Root(d.Size, t.root.Node)
	m.release(g)
	if want, err := parseDigest(d.ContentRoot); err != nil || want != root {
		return bad("content root")
	}
	return t, nil
}

// parseDigest reads 64 hex digits.
func parseDigest(s string) (d format.Digest, err error) {
	if len(s) != 2*format.DigestSize {
		return d, fmt.Errorf("digest: %w", format.ErrCorrupt)
	}
	if _, err := hex.Decode(d[:], []byte(s)); err != nil {
		return d, fmt.Errorf("digest: %w", format.ErrCorrupt)
	}
	return d, nil
}
