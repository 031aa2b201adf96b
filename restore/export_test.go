package restore

import (
	"github.com/lockstep-backup/lockstep/disk"
	"github.com/lockstep-backup/lockstep/repository"
)

// LossesOf is what the losses of a part come to.
func LossesOf(part disk.Range, fill func(add func(disk.Range, string))) []Damaged {
	var l losses
	l.from(part)
	fill(func(r disk.Range, object string) {
		_ = l.add(&repository.DamageError{Range: r, Object: object, Err: repository.ErrDamaged})
	})
	return l.damaged()
}
