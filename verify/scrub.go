package verify

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/lockstep-backup/lockstep/catalog"
	"github.com/lockstep-backup/lockstep/repository"
	"github.com/lockstep-backup/lockstep/repository/format"
	"github.com/lockstep-backup/lockstep/store"
)

// ScrubRequest says how much to read. What was not read for the longest comes first.
type ScrubRequest struct {
	Repository *repository.Repository
	Readings   catalog.Readings
	For        time.Duration    // no object is begun after that; 0: no limit
	Bytes      int64            // no object but the first is begun that would be more; 0: no limit
	OlderThan  time.Duration    // what was read within it is left out
	Now        func() time.Time // called concurrently
	Progress   func(phase string, done, total int64)
	// Lease is that of Request, for the recovery points that are read to say what
	// damaged objects belong to. An object that goes meanwhile is not damaged.
	Lease func(ctx context.Context, point string) (release func(), err error)
}

// ScrubResult says what was read and what is damaged.
type ScrubResult struct {
	Objects   int64
	Read      int64 // bytes of objects
	Left      int64 // objects that are due and were not read
	LeftBytes int64
	// Oldest is since when something was not read, now; zero: what was there
	// before anybody took note was never read, or there is nothing at all.
	// What is damaged and was read in this run counts as read.
	Oldest time.Time
	Never  bool // the oldest was never read: it was seen first at Oldest, where that is known
	Damage []Damage
	Sound  map[string]bool // the objects that were read and are sound
}

// Scrub reads objects whole, compares their checksums and what shows that they
// are authentic, and remembers when that was. Of what is damaged it says which
// disks, ranges and recovery points it touches. What was read is remembered
// also where the error is not nil; damaged objects are not, and so come first
// again the next time.
func Scrub(ctx context.Context, req ScrubRequest) (res ScrubResult, err error) {
	s := &scrub{ScrubRequest: req, v: &verifier{req: Request{Repository: req.Repository, Lease: req.Lease}, segments: map[string]segment{}}}
	s.res.Sound = map[string]bool{}
	err = s.run(store.Uncached(ctx))
	s.res.Damage = joined(s.v.res.Damage)
	if err != nil {
		err = fmt.Errorf("scrub: %w", err)
	}
	return s.res, err
}

type scrub struct {
	ScrubRequest
	v *verifier

	mu   sync.Mutex
	res  ScrubResult
	done []catalog.Reading // not yet recorded
	bad  []string          // damaged objects

	started time.Time
}

// object is one that is due.
type object struct {
	key  string
	size int64
}

func (s *scrub) run(ctx context.Context) error {
	start := s.Now()
	s.started = start
	due, err := s.due(ctx, start)
	if err != nil {
		return err
	}
	err = s.read(ctx, due, start)
	// What was read is read, whoever hangs up.
	keep := context.WithoutCancel(ctx)
	err = errors.Join(err, s.record(keep, 0))
	if err == nil {
		err = s.locate(ctx)
	}
	return errors.Join(err, s.oldest(keep))
}

// oldest says what was not read for the longest. What was found damaged was
// read just now, although it stays first in the row.
func (s *scrub) oldest(ctx context.Context) error {
	if len(s.bad) == 0 {
		oldest, err := s.Readings.Oldest(ctx, s.Repository.ID())
		if errors.Is(err, catalog.ErrNotFound) {
			return nil
		}
		s.res.Oldest, s.res.Never = oldest.Since, oldest.Never
		return err
	}
	all, err := s.Readings.List(ctx, s.Repository.ID())
	if err != nil {
		return err
	}
	bad := make(map[string]bool, len(s.bad))
	for _, key := range s.bad {
		bad[key] = true
	}
	s.res.Oldest = s.started
	for _, r := range all {
		if !bad[r.Key] {
			s.res.Oldest, s.res.Never = r.Since, r.Never
			break
		}
	}
	return nil
}

// due compares what is stored with what is known of it, and gives what is to be
// read in its order.
func (s *scrub) due(ctx context.Context, now time.Time) ([]object, error) {
	id := s.Repository.ID()
	known, err := s.Readings.List(ctx, id)
	if err != nil {
		return nil, err
	}
	sizes := map[string]int64{}
	var keys []string
	if err := s.Repository.Objects(ctx, func(i store.Info) error {
		sizes[i.Key] = i.Size
		keys = append(keys, i.Key)
		return ctx.Err()
	}); err != nil {
		return nil, err
	}
	var gone []string
	seen := make(map[string]bool, len(known))
	for _, r := range known {
		seen[r.Key] = true
		if _, there := sizes[r.Key]; !there {
			gone = append(gone, r.Key)
		}
	}
	var added []catalog.Reading
	for _, key := range keys {
		if seen[key] {
			continue
		}
		r := catalog.Reading{Key: key, Since: now, Never: true}
		if len(known) == 0 {
			r.Since = time.Time{} // nobody knows how long it has been there
		}
		added = append(added, r)
	}
	if err := s.Readings.Forget(ctx, id, gone); err != nil {
		return nil, err
	}
	if err := s.Readings.Put(ctx, id, added); err != nil {
		return nil, err
	}
	if known, err = s.Readings.List(ctx, id); err != nil {
		return nil, err
	}
	var due []object
	for _, r := range known {
		size, there := sizes[r.Key]
		if there && !r.Since.After(now.Add(-s.OlderThan)) {
			due = append(due, object{r.Key, size})
		}
	}
	return due, nil
}

func (s *scrub) read(ctx context.Context, due []object, start time.Time) error {
	var total, taken int64
	for _, o := range due {
		total += o.size
	}
	if s.Bytes > 0 {
		total = min(total, s.Bytes)
	}
	group, gctx := errgroup.WithContext(ctx)
	group.SetLimit(readers)
	n := 0
	for _, o := range due {
		if gctx.Err() != nil || s.For > 0 && s.Now().Sub(start) >= s.For || s.Bytes > 0 && n > 0 && taken+o.size > s.Bytes {
			break
		}
		n++
		taken += o.size
		group.Go(func() error {
			if err := s.object(gctx, o); err != nil {
				return err
			}
			s.mu.Lock()
			defer s.mu.Unlock()
			s.res.Objects++
			s.res.Read += o.size
			if s.Progress != nil {
				s.Progress("content", s.res.Read, total)
			}
			return nil
		})
		if err := s.record(gctx, recordAfter); err != nil {
			break // the last one says it again
		}
	}
	err := group.Wait()
	for _, o := range due[n:] {
		s.res.Left++
		s.res.LeftBytes += o.size
	}
	if err == nil {
		err = ctx.Err()
	}
	return err
}

// object reads one object.
func (s *scrub) object(ctx context.Context, o object) error {
	var err error
	if strings.HasPrefix(o.key, "seg/") {
		// The other objects are read whole when they are checked with keys.
		err = repository.CheckStored(ctx, s.Repository.Store(), o.key)
	}
	if err == nil {
		err = s.Repository.CheckObject(ctx, o.key)
	}
	if ctx.Err() != nil {
		return ctx.Err()
	}
	if errors.Is(err, repository.ErrNotFound) {
		if _, serr := s.Repository.Store().Stat(ctx, o.key); errors.Is(serr, store.ErrNotExist) {
			return nil // deleted since it was listed
		}
	}
	if err != nil {
		if err := s.v.found(err, pointsOf(o.key)...); err != nil {
			return err
		}
		s.mu.Lock()
		s.bad = append(s.bad, o.key)
		s.mu.Unlock()
		return nil
	}
	s.mu.Lock()
	s.done = append(s.done, catalog.Reading{Key: o.key, Since: s.Now()})
	s.res.Sound[o.key] = true
	s.mu.Unlock()
	return nil
}

// recordAfter is how many readings are recorded at once: what is not recorded
// when the process dies is read again.
const recordAfter = 256

// record records what was read, where it is more than some.
func (s *scrub) record(ctx context.Context, some int) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.done) <= some {
		return nil
	}
	err := s.Readings.Put(ctx, s.Repository.ID(), s.done)
	if err == nil {
		s.done = s.done[:0]
	}
	return err
}

// pointsOf is the recovery point that an object belongs to by its name.
func pointsOf(key string) []string {
	if part := strings.Split(key, "/"); len(part) > 2 && (part[0] == "points" || part[0] == "side") {
		return []string{part[2]}
	}
	return nil
}

// locate reads what recovery points have in damaged segments and maps, so that
// damage is named by disk, range and recovery points.
func (s *scrub) locate(ctx context.Context) error {
	bad := map[string]bool{}
	var machines []string
	for _, key := range s.bad {
		if !strings.HasPrefix(key, "seg/") && !strings.HasPrefix(key, "map/") {
			continue
		}
		if original, _, _, ok := format.Original(key); ok {
			bad[original] = true // maps know nothing of replicas
		}
		if m := machineOf(key); !slices.Contains(machines, m) {
			machines = append(machines, m)
		}
	}
	if len(bad) == 0 {
		return nil
	}
	s.v.req.pick = func(_ int64, segments []string) bool {
		return slices.ContainsFunc(segments, func(key string) bool { return bad[key] })
	}
	s.v.req.Progress = func(phase string, done, total int64) {
		if phase == "points" && s.Progress != nil {
			s.Progress(phase, done, total)
		}
	}
	first := len(s.v.res.Damage)
	for _, m := range machines {
		points, err := s.Repository.Points(ctx, m)
		if err != nil && !errors.Is(err, repository.ErrDamaged) {
			return err
		}
		if err := s.v.points(ctx, points); err != nil {
			return err
		}
	}
	// Where ranges are named, the object alone says nothing more.
	ranged := map[string]bool{}
	for _, d := range s.v.res.Damage[first:] {
		if original, _, _, ok := format.Original(d.Object); ok && d.Range != nil {
			ranged[original] = true
		}
	}
	i := 0
	s.v.res.Damage = slices.DeleteFunc(s.v.res.Damage, func(d Damage) bool {
		i++
		original, _, _, _ := format.Original(d.Object)
		return i <= first && d.Range == nil && ranged[original]
	})
	return nil
}
