package reclaim

import (
	"context"
	"errors"

	"github.com/lockstep-backup/lockstep/repository/format"
	"github.com/lockstep-backup/lockstep/repository/internal/blockmap"
	"github.com/lockstep-backup/lockstep/repository/internal/damage"
)

// bytesOf counts bytes by object.
type bytesOf map[format.ObjectName]int64

func (b bytesOf) add(n format.Name, isMap bool, bytes int64) {
	b[format.ObjectName{Map: isMap, Name: n}] += bytes
}

func unreadable(err error) bool {
	return errors.Is(err, damage.ErrDamaged) || errors.Is(err, damage.ErrNotFound)
}

// exclusive counts what of births above floor p references and none of others
// does. What an unreadable page of others may reference counts as referenced;
// an unreadable page of p is an error.
//
// A page references nothing younger than itself, so a subtree of floor or
// below is left out as a whole, and so is one that others share.
func exclusive(ctx context.Context, p *Content, others []*Content, floor int64, count bytesOf) error {
	for _, d := range p.Disks {
		c := &comparison{tree: d.Tree, floor: floor, count: count}
		var at []place
		shared := false
		for _, o := range others {
			for _, od := range o.Disks {
				if od.ID != d.ID {
					continue
				}
				pl := place{tree: od.Tree}
				if od.Tree.Level < d.Tree.Level {
					pl.above = true
				} else {
					var err error
					if pl.ref, _, err = od.Tree.Ref(ctx, d.Tree.Level, 0); err != nil {
						if !unreadable(err) {
							return err
						}
						shared = true
					}
				}
				at = append(at, pl)
			}
		}
		if shared {
			continue
		}
		if err := c.page(ctx, d.Tree.Level, d.Tree.Root, at); err != nil {
			return err
		}
	}
	return nil
}

// comparison walks one tree beside others.
type comparison struct {
	tree  *blockmap.Tree
	floor int64
	count bytesOf
}

// place is where another tree is: at the page of the same level and number, or
// above its root, which is smaller.
type place struct {
	tree  *blockmap.Tree
	ref   format.Ref
	above bool
}

func (c *comparison) page(ctx context.Context, level int, ref format.Ref, others []place) error {
	if ref.Zero() || ref.Object.Birth() <= c.floor {
		return nil
	}
	for _, o := range others {
		if !o.above && o.ref.Object == ref.Object && o.ref.Offset == ref.Offset {
			return nil
		}
	}
	c.count.add(ref.Object, true, int64(ref.Length))
	if level == 0 {
		return c.leaf(ctx, ref, others)
	}
	n, err := c.tree.Cache.Node(ctx, ref, level)
	if err != nil {
		return err
	}
	nodes := make([]*format.Node, len(others))
	for i, o := range others {
		if o.above || o.ref.Zero() {
			continue
		}
		if nodes[i], err = o.tree.Cache.Node(ctx, o.ref, level); err != nil {
			if unreadable(err) {
				return nil
			}
			return err
		}
	}
	below := make([]place, 0, len(others))
	for i := range n.Children {
		below = below[:0]
		for k, o := range others {
			switch {
			case nodes[k] != nil:
				below = append(below, place{tree: o.tree, ref: nodes[k].Children[i]})
			case o.above && i == 0 && o.tree.Level == level-1:
				below = append(below, place{tree: o.tree, ref: o.tree.Root})
			case o.above && i == 0:
				below = append(below, o)
			}
		}
		if err := c.page(ctx, level-1, n.Children[i], append([]place(nil), below...)); err != nil {
			return err
		}
	}
	return nil
}

func (c *comparison) leaf(ctx context.Context, ref format.Ref, others []place) error {
	l, err := c.tree.Cache.Leaf(ctx, ref)
	if err != nil {
		return err
	}
	leaves := make([]*format.Leaf, 0, len(others))
	for _, o := range others {
		if o.ref.Zero() {
			continue
		}
		ol, err := o.tree.Cache.Leaf(ctx, o.ref)
		if err != nil {
			if unreadable(err) {
				return nil
			}
			return err
		}
		leaves = append(leaves, ol)
	}
	for b := range l {
	extents:
		for i := range l[b].Extents {
			e := &l[b].Extents[i]
			if e.Segment.Birth() <= c.floor {
				continue
			}
			for _, ol := range leaves {
				if has(&ol[b], e.Segment, e.Position) {
					continue extents
				}
			}
			c.count.add(e.Segment, false, int64(format.Pages(e.Stored))*format.PageSize)
		}
	}
	return nil
}

func has(b *format.Block, segment format.Name, position uint32) bool {
	for i := range b.Extents {
		if b.Extents[i].Segment == segment && b.Extents[i].Position == position {
			return true
		}
	}
	return false
}
