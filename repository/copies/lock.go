package copies

import (
	"context"
	"time"

	"github.com/lockstep-backup/lockstep/repository"
	"github.com/lockstep-backup/lockstep/repository/format"
	"github.com/lockstep-backup/lockstep/repository/internal/machinelog"
	"github.com/lockstep-backup/lockstep/repository/internal/retainlock"
	"github.com/lockstep-backup/lockstep/repository/internal/transfer"
)

// protect locks in the destination all that a recovery point needs that is
// about to be committed there.
func (c *copying) protect(ctx context.Context, there []machinelog.Record, plan transfer.Plan, mf *repository.Manifest) error {
	if c.to.Lock == nil {
		return nil
	}
	n := retainlock.Needs{
		Machine: c.mid, Entries: int64(len(there)), Also: []string{format.ManifestKey(c.mid, mf.Point)},
		Parent: plan.Parent, ParentUntil: c.locked[plan.Parent], ParentBirth: plan.Covered,
	}
	for _, rec := range there {
		if rec.Err == nil && rec.Kind == machinelog.Commit && rec.Point == plan.Parent {
			n.ParentEntry = rec.N
		}
	}
	for _, d := range mf.Disks {
		t, err := c.dst.Tree(ctx, c.mid, d)
		if err != nil {
			return err
		}
		n.Trees = append(n.Trees, t)
		for _, h := range d.Headers {
			n.Headers = append(n.Headers, h.ID)
		}
	}
	until, err := c.to.Lock.Protect(ctx, n)
	if err != nil {
		return err
	}
	if c.locked == nil {
		c.locked = map[string]time.Time{}
	}
	c.locked[mf.Point] = until
	return nil
}
