package show

import (
	"slices"

	"github.com/lockstep-backup/lockstep/api"
)

// Preflight names what opens the volumes of the disks that are restored.
func Preflight(v api.Point, targets []api.RestoreTarget) []api.PointKey {
	keys := []api.PointKey{}
	for _, d := range v.Disks {
		if !slices.ContainsFunc(targets, func(t api.RestoreTarget) bool { return t.Disk == d.ID }) {
			continue
		}
		for _, vol := range d.Volumes {
			k := api.PointKey{Disk: d.ID, Volume: vol.ID, State: vol.State, Opens: []string{}}
			for _, p := range vol.Protectors {
				for _, ref := range p.OpenedBy {
					if !slices.Contains(k.Opens, ref) {
						k.Opens = append(k.Opens, ref)
					}
				}
			}
			keys = append(keys, k)
		}
	}
	return keys
}
