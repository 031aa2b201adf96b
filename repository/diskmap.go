package repository

import (
	"encoding/hex"
	"fmt"

	"github.com/lockstep-backup/lockstep/repository/format"
	"github.com/lockstep-backup/lockstep/repository/internal/blockmap"
)

// openTree checks a manifest's map root.
func (m *machine) openTree(d Disk) (*blockmap.Tree, error) {
	bad := func(what string) (*blockmap.Tree, error) {
		return nil, &DamageError{Object: "manifest", Machine: m.Machine.ID, Disk: d.ID, Err: fmt.Errorf("%s: %w", what, format.ErrCorrupt)}
	}
	if d.Size < 0 || d.Size > 1<<62 {
		return bad("disk size")
	}
	t := &blockmap.Tree{Cache: m.maps, Level: d.Map.Level, Size: d.Size}
	if t.Level != format.Levels(d.Size) {
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
		t.Root = format.Ref{Node: node, Object: name, Offset: d.Map.Page.Offset, Length: d.Map.Page.Length}
	}
	g := m.Digester()
	root := g.Root(d.Size, t.Root.Node)
	m.Release(g)
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

func pageRef(p blockmap.Placed) PageRef {
	return PageRef{Object: p.Object.String(), Offset: p.Offset, Length: p.Length}
}

// mapRef is a finished map's root as the manifest names it.
func mapRef(b *blockmap.Builder) MapRef {
	m := MapRef{Level: b.Level()}
	if !b.Root.Zero() {
		p := pageRef(blockmap.Placed{Object: b.Root.Object, Offset: b.Root.Offset, Length: b.Root.Length})
		m.Page, m.Node = &p, hex.EncodeToString(b.Root.Node[:])
	}
	return m
}
