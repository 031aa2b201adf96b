package replica

import (
	"context"
	"errors"
	"slices"
	"sort"

	"github.com/lockstep-backup/lockstep/repository/format"
	"github.com/lockstep-backup/lockstep/repository/internal/damage"
)

// Held is what replicas have of a segment whose original is gone.
type Held struct {
	spans []span // in pages of the original, ascending, apart from each other
}

// Has says whether pages [position, position+n) of the original are there.
func (h *Held) Has(position uint32, n int) bool {
	from, to := int64(position), int64(position)+int64(n)
	i := sort.Search(len(h.spans), func(i int) bool { return h.spans[i].to > from })
	return i < len(h.spans) && h.spans[i].from <= from && to <= h.spans[i].to
}

// Held looks at the replicas of a segment whose original is gone: what those
// have whose tables are sound. An error is about there being none, the first
// one's where none is sound.
func (v *View) Held(ctx context.Context, key string) (*Held, error) {
	for try := 1; ; try++ {
		v.forget(key)
		missing := &damage.Error{Object: key, Machine: v.m.ID, Err: damage.ErrNotFound}
		keys, err := Keys(ctx, v.st, key)
		if err != nil {
			return nil, err
		}
		parts, err := v.find(ctx, key, missing)
		gone := errors.Is(err, damage.ErrNotFound) && len(keys) > 0 || err == nil && len(parts) < len(keys)
		if gone && try < maxTries {
			// One went while it was read, for another one that has the same; or it is damaged.
			if now, lerr := Keys(ctx, v.st, key); lerr == nil && !slices.Equal(keys, now) {
				continue
			}
		}
		if err != nil {
			return nil, err
		}
		var runs []format.Run
		for i := range parts {
			runs = append(runs, parts[i].runs...)
		}
		sort.Slice(runs, func(i, j int) bool { return runs[i].From < runs[j].From })
		h := &Held{}
		for _, r := range runs {
			from, to := int64(r.From), int64(r.From)+int64(r.Count)
			if n := len(h.spans); n > 0 && from <= h.spans[n-1].to {
				h.spans[n-1].to = max(h.spans[n-1].to, to)
			} else {
				h.spans = append(h.spans, span{from, to})
			}
		}
		return h, nil
	}
}
