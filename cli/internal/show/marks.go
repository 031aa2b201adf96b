package show

import (
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/lockstep-backup/lockstep/api"
	"github.com/lockstep-backup/lockstep/cli/internal/screen"
)

// Marks are a recovery point's pin, legal holds and tags, as names and texts.
func Marks(p api.Point) (out [][2]string) {
	said := func(m api.PointMark) string {
		return fmt.Sprintf("%s (by %s, %s)", m.Reason, m.Actor, screen.Stamp(m.Time))
	}
	if p.Pin != nil {
		out = append(out, [2]string{"pinned", said(*p.Pin)})
	}
	for _, h := range p.LegalHolds {
		out = append(out, [2]string{"legal hold", h.Name + ": " + said(h)})
	}
	for _, k := range slices.Sorted(maps.Keys(p.Tags)) {
		out = append(out, [2]string{"tag", k + "=" + p.Tags[k]})
	}
	return out
}

// briefly is Marks for a table.
func briefly(p api.Point) string {
	var out []string
	if p.Pin != nil {
		out = append(out, "pinned")
	}
	for _, h := range p.LegalHolds {
		out = append(out, "held: "+h.Name)
	}
	for _, k := range slices.Sorted(maps.Keys(p.Tags)) {
		out = append(out, k+"="+p.Tags[k])
	}
	return strings.Join(out, ", ")
}
