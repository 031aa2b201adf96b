package reclaim

import (
	"slices"

	"github.com/lockstep-backup/lockstep/repository/internal/machinelog"
)

// history is a set of recovery points, each behind its nearest ancestor in the set.
type history struct {
	at   map[string]*node
	list []*node // in the order of the log
}

type node struct {
	machinelog.Record
	ancestor *node // A(P), nil: none
	kids     []*node
	gone     bool
}

// floor is the birth of the ancestor, -1 without one: P covers the births above.
func (n *node) floor() int64 {
	if n.ancestor == nil {
		return -1
	}
	return n.ancestor.Birth()
}

// newHistory takes the commits that keep accepts.
func newHistory(records []machinelog.Record, keep func(*machinelog.Record) bool) *history {
	h := &history{at: map[string]*node{}}
	parent := map[string]string{}
	for i := range records {
		r := &records[i]
		if r.Err != nil || r.Kind != machinelog.Commit {
			continue
		}
		parent[r.Point] = r.Parent
		if h.at[r.Point] == nil && keep(r) {
			n := &node{Record: *r}
			h.at[r.Point] = n
			h.list = append(h.list, n)
		}
	}
	for _, n := range h.list {
		p := n.Parent
		for steps := 0; p != "" && h.at[p] == nil && steps <= len(records); steps++ {
			p = parent[p]
		}
		// An ancestor is older; what does not say so is taken for none, which keeps more.
		if a := h.at[p]; a != nil && a.N < n.N && a.Birth() < n.Birth() {
			n.ancestor = a
			a.kids = append(a.kids, n)
		}
	}
	return h
}

// remove takes a recovery point out; its kids go to its ancestor.
func (h *history) remove(n *node) {
	n.gone = true
	delete(h.at, n.Point)
	for _, k := range n.kids {
		k.ancestor = n.ancestor
	}
	if n.ancestor != nil {
		n.ancestor.kids = append(slices.DeleteFunc(n.ancestor.kids, func(k *node) bool { return k == n }), n.kids...)
	}
}

// cover says which recovery points cover a birth.
type cover struct {
	by     []*node // by birth
	lowest []int64 // the lowest floor from here on
}

func newCover(h *history) *cover {
	c := &cover{}
	for _, n := range h.list {
		if !n.gone {
			c.by = append(c.by, n)
		}
	}
	slices.SortStableFunc(c.by, func(a, b *node) int { return int(a.Birth() - b.Birth()) })
	c.lowest = make([]int64, len(c.by))
	for i := len(c.by) - 1; i >= 0; i-- {
		c.lowest[i] = c.by[i].floor()
		if i+1 < len(c.by) {
			c.lowest[i] = min(c.lowest[i], c.lowest[i+1])
		}
	}
	return c
}

// of gives the recovery points that cover a birth.
func (c *cover) of(birth int64) (ps []*node) {
	i, _ := slices.BinarySearchFunc(c.by, birth, func(n *node, b int64) int { return int(n.Birth() - b) })
	for ; i < len(c.by) && c.lowest[i] < birth; i++ {
		if c.by[i].floor() < birth {
			ps = append(ps, c.by[i])
		}
	}
	return ps
}
