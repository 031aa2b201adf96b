// Package limit holds back how fast bytes are read and written, by a rate for
// each that may change with the time of day.
//
// What is limited travels with the context of an operation (see With), so that
// one open store serves limited and unlimited jobs at the same time. Its
// invariant: a limit changes when bytes pass, never which; and who gives up
// waiting is told so by the context's error.
package limit

import (
	"context"
	"fmt"
	"math"
	"sync"
	"time"

	"golang.org/x/time/rate"
)

// Schedule gives the rates at a time, in bytes per second for reading and for
// writing; 0 or less is no limit.
type Schedule func(at time.Time) (read, write int64)

// Slowest is the lowest rate that is taken: below it nothing useful ends.
const Slowest = 64 << 10

// Constant is the same at any time.
func Constant(read, write int64) Schedule {
	return func(time.Time) (int64, int64) { return read, write }
}

// Strictest is the lower of the rates of several schedules at any time; nil
// ones do not count, and without any it is nil.
func Strictest(schedules ...Schedule) Schedule {
	var all []Schedule
	for _, s := range schedules {
		if s != nil {
			all = append(all, s)
		}
	}
	if len(all) == 0 {
		return nil
	}
	return func(at time.Time) (read, write int64) {
		for _, s := range all {
			r, w := s(at)
			read, write = lower(read, r), lower(write, w)
		}
		return read, write
	}
}

// lower is the lower of two rates, of which those that are not above 0 are none.
func lower(a, b int64) int64 {
	switch {
	case a <= 0:
		return max(b, 0)
	case b <= 0:
		return a
	default:
		return min(a, b)
	}
}

// Clock is the time and the waiting; the zero value is the system's.
type Clock struct {
	Now   func() time.Time
	Sleep func(ctx context.Context, d time.Duration) error
}

func (c Clock) orSystem() Clock {
	if c.Now == nil {
		c.Now = time.Now
	}
	if c.Sleep == nil {
		c.Sleep = sleep
	}
	return c
}

func sleep(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// Limits are the limits of one operation. A nil *Limits limits nothing.
type Limits struct{ reads, writes bucket }

// New makes limits that follow a schedule; nil without one.
func New(s Schedule, c Clock) *Limits {
	if s == nil {
		return nil
	}
	c = c.orSystem()
	l := &Limits{}
	l.reads = bucket{clock: c, rate: func(at time.Time) int64 { r, _ := s(at); return r }}
	l.writes = bucket{clock: c, rate: func(at time.Time) int64 { _, w := s(at); return w }}
	return l
}

// Read waits until n bytes may be read.
func (l *Limits) Read(ctx context.Context, n int) error {
	if l == nil {
		return nil
	}
	return l.reads.wait(ctx, n)
}

// Write waits until n bytes may be written.
func (l *Limits) Write(ctx context.Context, n int) error {
	if l == nil {
		return nil
	}
	return l.writes.wait(ctx, n)
}

type key struct{}

// With has what is done under the context limited. nil limits nothing more.
func With(ctx context.Context, l *Limits) context.Context {
	if l == nil {
		return ctx
	}
	return context.WithValue(ctx, key{}, l)
}

// From gives the limits of a context, nil where there are none.
func From(ctx context.Context) *Limits {
	l, _ := ctx.Value(key{}).(*Limits)
	return l
}

// bucket limits one direction. Callers wait one after another, each for its own
// bytes: a large read cannot be overtaken for ever by small ones.
type bucket struct {
	clock Clock
	rate  func(time.Time) int64

	mu      sync.Mutex
	limiter *rate.Limiter
	now     int64 // rate that limiter has
}

// wait lets n bytes pass, a piece at a time, so that a rate that changes is
// noticed, and what passes at once is never more than a quarter of a second's.
func (b *bucket) wait(ctx context.Context, n int) error {
	for n > 0 {
		if err := ctx.Err(); err != nil {
			return fmt.Errorf("wait for the limit: %w", err)
		}
		took, r, d := b.reserve(n)
		if d > 0 {
			if err := b.clock.Sleep(ctx, d); err != nil {
				r.CancelAt(b.clock.Now()) // others need not wait for it
				return fmt.Errorf("wait for the limit: %w", err)
			}
		}
		n -= took
	}
	return nil
}

func (b *bucket) reserve(n int) (took int, r *rate.Reservation, wait time.Duration) {
	b.mu.Lock()
	defer b.mu.Unlock()
	at := b.clock.Now()
	now := b.rate(at)
	if now <= 0 {
		b.limiter, b.now = nil, 0
		return n, nil, 0
	}
	now = max(now, Slowest)
	piece := int(min(now/4, math.MaxInt32))
	switch {
	case b.limiter == nil:
		b.limiter = rate.NewLimiter(rate.Limit(now), piece)
		b.limiter.ReserveN(at, piece) // what passes from now on counts, not what could have before
	case b.now != now:
		b.limiter.SetLimitAt(at, rate.Limit(now))
		b.limiter.SetBurstAt(at, piece)
	}
	b.now = now
	took = min(n, piece)
	r = b.limiter.ReserveN(at, took)
	return took, r, r.DelayFrom(at)
}
