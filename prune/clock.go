package prune

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/lockstep-backup/lockstep/repository"
	"github.com/lockstep-backup/lockstep/retention"
)

// MetaClock is the catalog's meta key of the time at which pruning last ran.
const MetaClock = "prune.clock"

// MaxGap is how far the clock may be past the last time that was observed: the
// newest recovery point's, or the last run's.
const MaxGap = 31 * 24 * time.Hour

// ErrClock refuses to prune: the clock cannot be right, and rules that count
// days would let the wrong recovery points go. The error is a *ClockError.
var ErrClock = errors.New("the clock does not look right")

// ClockError says what is wrong with the clock.
type ClockError struct {
	Now  time.Time
	Seen time.Time // the last time observed
	What string    // what it was observed by
}

func (e *ClockError) Error() string {
	now, seen := e.Now.UTC().Format(time.RFC3339), e.Seen.UTC().Format(time.RFC3339)
	if e.Now.Before(e.Seen) {
		return fmt.Sprintf("%v: it says %s, and %s is of %s", ErrClock, now, e.What, seen)
	}
	return fmt.Sprintf("%v: it says %s, more than %s after %s, of %s", ErrClock, now, retention.Words(MaxGap), e.What, seen)
}

// Is makes errors.Is(err, ErrClock) hold.
func (e *ClockError) Is(target error) bool { return target == ErrClock }

// Hint says what to do, in one sentence.
func (e *ClockError) Hint() string {
	return "set the clock right; if it is right, say so with --clock-is-right"
}

// checkClock compares the clock with what was observed before. A dry run shows
// what the clock leads to, and says what is wrong with it.
func (r *runner) checkClock(ctx context.Context, listed []repository.Point) error {
	now := r.Now()
	var seen time.Time
	what := "the newest recovery point"
	for _, p := range listed {
		if p.Time.After(seen) {
			seen = p.Time
		}
	}
	text, err := r.Catalog.Meta.Get(ctx, MetaClock)
	if err != nil {
		return err
	}
	if text != "" {
		last, err := time.Parse(time.RFC3339Nano, text)
		if err != nil {
			return fmt.Errorf("read when pruning last ran: %w", err)
		}
		if last.After(seen) {
			seen, what = last, "the last pruning"
		}
	}
	if seen.IsZero() || !now.Before(seen) && now.Sub(seen) <= MaxGap {
		return nil
	}
	wrong := &ClockError{Now: now, Seen: seen, What: what}
	switch {
	case r.req.DryRun:
		r.problem("%v", wrong)
	case !r.req.ClockIsRight:
		return wrong
	default:
		r.Log.Warn("pruning although the clock does not look right", "machine", r.req.Machine.Name, "error", wrong)
	}
	return nil
}
