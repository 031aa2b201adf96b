package frame

import (
	"context"

	"github.com/lockstep-backup/lockstep/api"
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
