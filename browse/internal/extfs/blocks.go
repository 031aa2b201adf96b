package extfs

import (
	"github.com/lockstep-backup/lockstep/browse/internal/fsys"
)

// runs is where the content of an inode lies. What is allocated and not yet
// written is a hole.
func (f *FS) runs(i inode) (fsys.Runs, error) {
	m := mapping{f: f, end: i.size()}
	var err error
	if i.flags()&flagExtents != 0 {
		err = m.extents(i.body(), -1)
	} else {
		err = m.pointers(i.body())
	}
	return m.runs, err
}

type mapping struct {
	f     *FS
	runs  fsys.Runs
	end   int64 // the content's, bytes
	next  int64 // where the next extent may begin, in blocks
	nodes int64
}

func (m *mapping) node(n uint64) ([]byte, error) {
	// Each is a block of its own: more than the volume has are some again and again.
	if most := min(fsys.MaxNodes, m.f.vol.Size()/m.f.bs); m.nodes >= most {
		return nil, fsys.Corrupt("more than %d blocks say where one file lies", most)
	}
	m.nodes++
	return m.f.block(n)
}

func (m *mapping) add(logical int64, physical uint64, count int64) error {
	if physical >= m.f.blocks || uint64(count) > m.f.blocks-physical {
		return fsys.Corrupt("%d blocks at %d of %d", count, physical, m.f.blocks)
	}
	if int64(len(m.runs)) > m.f.vol.Size()/m.f.bs {
		return fsys.Corrupt("a file in more pieces than the volume has blocks")
	}
	return m.runs.Add(fsys.Run{At: logical * m.f.bs, Length: count * m.f.bs, From: int64(physical) * m.f.bs})
}

// extents reads a node of the tree; depth is that its parent promises, -1 at
// the root.
func (m *mapping) extents(b []byte, depth int) error {
	if le.Uint16(b) != 0xF30A {
		return fsys.Corrupt("no extent header")
	}
	entries, d := int(le.Uint16(b[2:])), int(le.Uint16(b[6:]))
	if entries > (len(b)-12)/12 || d > 5 || depth >= 0 && d != depth {
		return fsys.Corrupt("extent node of depth %d with %d entries", d, entries)
	}
	for k := range entries {
		e := b[12+12*k:]
		logical := int64(le.Uint32(e))
		if logical < m.next {
			return fsys.Corrupt("extents out of order at block %d", logical)
		}
		if d > 0 {
			child, err := m.node(uint64(le.Uint32(e[4:])) | uint64(le.Uint16(e[8:]))<<32)
			if err != nil {
				return err
			}
			before := m.next
			if err := m.extents(child, d-1); err != nil {
				return err
			}
			if m.next == before {
				m.next = logical // an empty leaf
			}
			continue
		}
		count, written := int64(le.Uint16(e[4:])), true
		if count > 32768 {
			count, written = count-32768, false
		}
		m.next = logical + count
		if !written || logical*m.f.bs >= m.end {
			continue // allocated ahead
		}
		if err := m.add(logical, uint64(le.Uint32(e[8:]))|uint64(le.Uint16(e[6:]))<<32, count); err != nil {
			return err
		}
	}
	return nil
}

// pointers reads the block numbers of ext2 and ext3.
func (m *mapping) pointers(b []byte) error {
	for k := range 12 {
		if err := m.indirect(uint64(le.Uint32(b[4*k:])), 0); err != nil {
			return err
		}
	}
	for level := 1; level <= 3; level++ {
		if err := m.indirect(uint64(le.Uint32(b[4*(11+level):])), level); err != nil {
			return err
		}
	}
	return nil
}

func (m *mapping) indirect(n uint64, level int) error {
	if m.next*m.f.bs >= m.end {
		return nil
	}
	if n == 0 {
		count := int64(1)
		for range level {
			count *= m.f.bs / 4
		}
		m.next += count
		return nil
	}
	if level == 0 {
		m.next++
		return m.add(m.next-1, n, 1)
	}
	b, err := m.node(n)
	if err != nil {
		return err
	}
	for k := int64(0); k < m.f.bs/4; k++ {
		if err := m.indirect(uint64(le.Uint32(b[4*k:])), level-1); err != nil {
			return err
		}
	}
	return nil
}
