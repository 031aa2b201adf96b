package restore

import (
	"slices"
	"sync"

	"github.com/lockstep-backup/lockstep/disk"
	"github.com/lockstep-backup/lockstep/repository"
)

// Damaged is a range of a disk that cannot be read as it was stored. With
// KeepGoing the target has zeroes there.
type Damaged struct {
	Range  disk.Range // of the disk, also where a part of it is restored
	Object string     // key in the store, as far as known; that of the first where several ranges became one
	Err    error
}

// maxDamaged bounds the list of one disk. Beyond it neighbours become one range
// with what lies between them: the list then names more than is damaged, never less.
const maxDamaged = 10000

// losses are what one disk lost. Its methods are called concurrently.
type losses struct {
	mu   sync.Mutex
	part disk.Range // that is scanned
	list []Damaged
}

// from says which part is scanned next.
func (l *losses) from(part disk.Range) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.part = part
}

// add has a scan go on.
func (l *losses) add(e *repository.DamageError) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	from, to := max(e.Range.Offset, l.part.Offset), min(e.Range.End(), l.part.End())
	if from >= to {
		return nil // beside the part
	}
	l.list = append(l.list, Damaged{disk.Range{Offset: from, Length: to - from}, e.Object, e.Err})
	if len(l.list) >= 2*maxDamaged {
		l.tidy()
	}
	return nil
}

// damaged is the list by offset.
func (l *losses) damaged() []Damaged {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.tidy()
	return l.list
}

func (l *losses) tidy() {
	slices.SortFunc(l.list, func(a, b Damaged) int {
		switch {
		case a.Range.Offset < b.Range.Offset:
			return -1
		case a.Range.Offset > b.Range.Offset:
			return 1
		default:
			return 0
		}
	})
	l.join(func(a, b Damaged) bool { return a.Range.End() >= b.Range.Offset && a.Object == b.Object })
	for len(l.list) > maxDamaged {
		pair := false
		l.join(func(Damaged, Damaged) bool {
			pair = !pair
			return pair
		})
	}
}

// join makes one of neighbours where same says so.
func (l *losses) join(same func(a, b Damaged) bool) {
	out := l.list[:0]
	for _, d := range l.list {
		if n := len(out); n > 0 && same(out[n-1], d) {
			out[n-1].Range.Length = max(out[n-1].Range.End(), d.Range.End()) - out[n-1].Range.Offset
			continue
		}
		out = append(out, d)
	}
	l.list = out
}
