package format

// TreeHash computes the root over leaf nodes as they come in order.
type TreeHash struct {
	Level int // of the root
	rows  [MaxLevel + 2][Fanout]Digest
	fill  [MaxLevel + 2]int
	top   Digest
}

// Add takes the node of the leaf that comes next.
func (t *TreeHash) Add(g *Digester, d Digest) { t.addAt(g, 0, d) }

// addAt takes the root of a whole subtree of the given level.
func (t *TreeHash) addAt(g *Digester, level int, d Digest) {
	for level++; level <= t.Level; level++ {
		t.rows[level][t.fill[level]] = d
		t.fill[level]++
		if t.fill[level] < Fanout {
			return
		}
		d = g.Join32(&t.rows[level])
		t.rows[level], t.fill[level] = [Fanout]Digest{}, 0
	}
	t.top = d
}

// Zeros takes n leaves of zeroes.
func (t *TreeHash) Zeros(g *Digester, n int64) {
	for n > 0 {
		level, span := 0, int64(1) // of the largest subtree that begins here and fits
		for level < t.Level && t.fill[level+1] == 0 && span*Fanout <= n {
			level++
			span *= Fanout
		}
		t.addAt(g, level, Digest{})
		n -= span
	}
}

// Root is the root over what came.
func (t *TreeHash) Root(g *Digester) Digest {
	if t.Level == 0 {
		return t.top
	}
	for level := 1; level <= t.Level; level++ {
		if t.fill[level] == 0 {
			continue
		}
		d := g.Join32(&t.rows[level])
		if level == t.Level {
			return d
		}
		t.rows[level+1][t.fill[level+1]] = d
		t.fill[level+1]++
	}
	return t.top
}
