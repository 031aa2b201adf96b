package frame

import (
	"context"
	"time"

	"github.com/lockstep-backup/lockstep/api"
	"github.com/lockstep-backup/lockstep/catalog"
	"github.com/lockstep-backup/lockstep/limit"
)

// Limited has a job read and write no faster than was asked for, and than the
// schedules say; nil ones say nothing.
func (s *Frame) Limited(ctx context.Context, r api.Rates, schedules ...limit.Schedule) context.Context {
	if r != (api.Rates{}) {
		schedules = append(schedules, limit.Constant(r.LimitRead, r.LimitWrite))
	}
	return limit.With(ctx, limit.New(limit.Strictest(schedules...), limit.Clock{}))
}

// PolicyLimits are the limits in a machine's policy, by its id; nil where it has
// none. They are for what runs by itself: nobody waits for a restore because of
// them. A policy that cannot be read stops no backup.
func (s *Frame) PolicyLimits(ctx context.Context, c *catalog.Catalog, machine string) limit.Schedule {
	p, _, err := PolicyOf(ctx, c, machine)
	if err != nil {
		s.Log.Warn("the policy's limits are not known", "machine", machine, "error", err)
		return nil
	}
	if len(p.Limits) == 0 {
		return nil
	}
	zone, err := p.Location()
	if err != nil {
		s.Log.Warn("the policy's time zone is not known here; its times of day are taken for UTC", "machine", machine, "error", err)
		zone = time.UTC
	}
	return func(at time.Time) (read, write int64) {
		l := p.Limits.At(at, zone)
		return l.Read, l.Write
	}
}
