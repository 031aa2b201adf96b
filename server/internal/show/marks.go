package show

import (
	"github.com/lockstep-backup/lockstep/api"
	"github.com/lockstep-backup/lockstep/custody"
)

// Marks adds the marks in force to what is shown of a recovery point.
func Marks(v *api.Point, m custody.Marks) {
	view := func(m custody.Mark) api.PointMark {
		return api.PointMark{Name: m.Name, Reason: m.Reason, Actor: m.Actor, Time: m.Time.UTC()}
	}
	if m.Pin != nil {
		pin := view(*m.Pin)
		v.Pin = &pin
	}
	v.Tags = m.Tags
	for _, h := range m.LegalHolds {
		v.LegalHolds = append(v.LegalHolds, view(h))
	}
}
