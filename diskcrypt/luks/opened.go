package luks

import (
	"github.com/lockstep-backup/lockstep/diskcrypt/internal/opened"
)

// volumeOpened is a volume whose keys are known.
type volumeOpened struct {
	opened.Volume
	bound bool
}

// BoundToData reports that the volume cannot be read over other data that have
// the same header: what was read of the data when it was opened decides what
// lies where.
func (o *volumeOpened) BoundToData() bool { return o.bound }

// wipeAll wipes what holds keys, as far as it can be wiped.
func wipeAll(used []any) func() {
	return func() {
		for _, c := range used {
			if w, ok := c.(interface{ Wipe() }); ok {
				w.Wipe()
			}
		}
	}
}
