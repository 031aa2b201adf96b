package checks

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"time"

	"github.com/lockstep-backup/lockstep/api"
	"github.com/lockstep-backup/lockstep/audit"
	"github.com/lockstep-backup/lockstep/catalog"
	"github.com/lockstep-backup/lockstep/job"
	"github.com/lockstep-backup/lockstep/server/internal/frame"
	"github.com/lockstep-backup/lockstep/server/internal/show"
	"github.com/lockstep-backup/lockstep/verify"
)

// scrubKey keeps two scrubs of a repository apart: they would read the same.
const scrubKey = "scrub"

func (s routes) startScrub(ctx context.Context, req *frame.In[api.ScrubRequest]) (*frame.Out[api.Job], error) {
	r := req.Body
	e := audit.Event{Action: "repository.scrub", Object: frame.Clip(r.Repository)}
	place, err := s.PlaceOrPrimary(r.Repository)
	if err != nil {
		return nil, s.Refuse(ctx, e, err)
	}
	e.Object = place.URL
	const most = int64(100 * 365 * 24 * time.Hour / time.Second)
	if max(r.ForSeconds, r.OlderThanSeconds, r.WarnAfterSeconds) > most {
		return nil, s.Refuse(ctx, e, frame.Usage("scrub: a time is longer than 100 years"))
	}
	c, err := s.Catalog(ctx)
	if err != nil {
		return nil, s.Refuse(ctx, e, err)
	}
	return s.Start(ctx, "scrub", e, func(ctx context.Context, p *job.Reporter) (frame.Result, error) {
		return s.scrub(ctx, c, place, r, p)
	}, scrubKey+":"+place.ID)
}

func (s routes) scrub(ctx context.Context, c *catalog.Catalog, place frame.Place, r api.ScrubRequest, p *job.Reporter) (frame.Result, error) {
	repo, err := s.Repositories.Open(ctx, place.Name)
	if err != nil {
		return frame.Result{}, err
	}
	if r.WarnAfterSeconds > 0 {
		if err := c.Meta.Set(ctx, warnAfterKey, strconv.FormatInt(r.WarnAfterSeconds, 10)); err != nil {
			return frame.Result{}, err
		}
	}
	found, err := verify.Scrub(ctx, verify.ScrubRequest{
		Repository: repo, Readings: c.Readings, Now: s.Now, Progress: frame.Progress(p), Bytes: r.Bytes, Lease: s.Leases("a scrub"),
		For: time.Duration(r.ForSeconds) * time.Second, OlderThan: time.Duration(r.OlderThanSeconds) * time.Second,
	})
	res := &api.ScrubResult{
		Objects: found.Objects, ReadBytes: found.Read, LeftObjects: found.Left, LeftBytes: found.LeftBytes,
		Never: found.Never, Damage: s.damage(ctx, place, found.Damage),
	}
	if !found.Oldest.IsZero() {
		at := found.Oldest.UTC()
		res.Oldest = &at
	}
	out := frame.Result{JobResult: api.JobResult{Scrub: res}}
	s.NoteDamage(ctx, place, frame.FoundByScrub, noted(found.Damage), func(d frame.KnownDamage) bool {
		return d.By != frame.FoundByReading && found.Sound[d.Object]
	})
	if len(res.Damage) > 0 {
		out.Exit, out.Found = api.ExitDamaged, true
	}
	return out, err
}

// noted is what is remembered of damage.
func noted(found []verify.Damage) (out []frame.KnownDamage) {
	for _, d := range found {
		out = append(out, frame.KnownDamage{Object: d.Object, Machine: d.Machine, Points: d.Points})
	}
	return out
}

// damage shows what a verification found.
func (s routes) damage(ctx context.Context, place frame.Place, found []verify.Damage) []api.Damage {
	names := s.Names(ctx)
	out := make([]api.Damage, 0, len(found))
	for _, d := range found {
		v := api.Damage{Object: d.Object, Machine: show.Name(names, d.Machine), Disk: d.Disk, Points: d.Points, Error: "damaged", Repository: place.Name}
		if d.Range != nil {
			v.Range = &api.Range{Offset: d.Range.Offset, Length: d.Range.Length}
		}
		if why := d.Why(); why != "" {
			v.Error = show.OneLine(why)
		}
		out = append(out, v)
	}
	return out
}

// warnAfterKey is the catalog's value with the age in seconds after which
// status warns; defaultWarnAfter counts where it was never set.
const (
	warnAfterKey     = "scrub-warn-after"
	defaultWarnAfter = 90 * 24 * time.Hour
)

// Overdue says of each of the repositories, in which recovery points were made,
// whose data was not read back for longer than was set that it was not. What is
// not known is said to be so.
func Overdue(ctx context.Context, c *catalog.Catalog, in []frame.Place, now time.Time) ([]string, error) {
	after := defaultWarnAfter
	text, err := c.Meta.Get(ctx, warnAfterKey)
	if err != nil {
		return nil, err
	}
	if n, err := strconv.ParseInt(text, 10, 64); err == nil && n > 0 && n < int64(100*365*24*time.Hour/time.Second) {
		after = time.Duration(n) * time.Second
	}
	limit := now.Add(-after)
	points, err := c.Points.List(ctx, catalog.PointQuery{Bare: true})
	if err != nil {
		return nil, err
	}
	oldest := map[string]time.Time{} // recovery point, by repository
	for _, p := range points {
		if !p.DeletedAt.IsZero() {
			continue
		}
		if at, known := oldest[p.Repository]; !known || p.Written.Before(at) {
			oldest[p.Repository] = p.Written
		}
	}
	var out []string
	for _, place := range in {
		id := place.ID
		if _, made := oldest[id]; !made {
			continue
		}
		scrub := "lockstep scrub"
		if !place.Primary {
			scrub += " --repository " + place.Name
		}
		r, err := c.Readings.Oldest(ctx, id)
		unknown := errors.Is(err, catalog.ErrNotFound) || err == nil && r.Since.IsZero()
		switch {
		case unknown && oldest[id].Before(limit):
			out = append(out, fmt.Sprintf("not all of repository %s has been read back since it was written, and its oldest recovery point is of %s: '%s' reads what is oldest first", place.Name, day(oldest[id]), scrub))
		case unknown:
		case err != nil:
			return nil, err
		case r.Since.Before(limit):
			out = append(out, fmt.Sprintf("data in repository %s has not been read back since %s: '%s' reads what is oldest first", place.Name, day(r.Since), scrub))
		}
	}
	return out, nil
}

func day(t time.Time) string { return t.UTC().Format(time.DateOnly) }
