package verify

import (
	"cmp"
	"errors"
	"slices"
	"strings"

	"github.com/lockstep-backup/lockstep/disk"
	"github.com/lockstep-backup/lockstep/repository"
)

// Why says what is wrong, without what the other fields say.
func (d Damage) Why() string {
	if d.Err == nil {
		return ""
	}
	err := d.Err
	var de *repository.DamageError
	if errors.As(err, &de) && de.Err != nil {
		err = de.Err
	}
	return strings.ReplaceAll(err.Error(), "read "+d.Object+": ", "")
}

// joined makes one finding of neighbouring ranges of a disk that miss the same
// of the same object for the same recovery points. What was found first stays first.
func joined(found []Damage) []Damage {
	type group struct{ object, machine, disk, points, why string }
	groups := map[group]int{} // places in lists
	lists := [][]Damage{}
	for _, d := range found {
		if d.Range == nil {
			lists = append(lists, []Damage{d})
			continue
		}
		g := group{d.Object, d.Machine, d.Disk, strings.Join(d.Points, " "), d.Why()}
		if at, known := groups[g]; known {
			lists[at] = append(lists[at], d)
			continue
		}
		groups[g] = len(lists)
		lists = append(lists, []Damage{d})
	}
	var out []Damage
	for _, list := range lists {
		if len(list) == 1 {
			out = append(out, list[0])
			continue
		}
		slices.SortStableFunc(list, func(a, b Damage) int { return cmp.Compare(a.Range.Offset, b.Range.Offset) })
		for first := 0; first < len(list); {
			r := *list[first].Range
			next := first + 1
			for ; next < len(list) && list[next].Range.Offset <= r.End(); next++ {
				r.Length = max(r.End(), list[next].Range.End()) - r.Offset
			}
			out = append(out, list[first].over(r))
			first = next
		}
	}
	return out
}

// over is the damage with another range.
func (d Damage) over(r disk.Range) Damage {
	var de *repository.DamageError
	if errors.As(d.Err, &de) && de.Range == *d.Range {
		whole := *de
		whole.Range = r
		d.Err = &whole
	}
	d.Range = &r
	return d
}
