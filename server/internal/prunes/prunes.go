// Package prunes is the route that removes what policies let go.
package prunes

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"slices"

	"github.com/lockstep-backup/lockstep/api"
	"github.com/lockstep-backup/lockstep/audit"
	"github.com/lockstep-backup/lockstep/catalog"
	"github.com/lockstep-backup/lockstep/job"
	"github.com/lockstep-backup/lockstep/prune"
	"github.com/lockstep-backup/lockstep/repository"
	"github.com/lockstep-backup/lockstep/server/internal/frame"
)

type routes struct{ *frame.Frame }

// Register adds the routes.
func Register(f *frame.Frame) {
	s := routes{f}
	frame.Route(f, "start-prune", http.MethodPost, "/v1/prunes", "Remove the recovery points that policies let go", s.start, frame.Status(http.StatusAccepted))
}

// key keeps prunings of one machine apart, and nothing else: backups go on.
func key(m catalog.Machine) string { return "prune:" + m.Name }

func (s routes) start(ctx context.Context, req *frame.In[api.PruneRequest]) (*frame.Out[api.Job], error) {
	r := req.Body
	e := audit.Event{Action: "machine.prune", Object: r.Machine}
	if r.DryRun {
		e.Detail = frame.WithDetail(e.Detail, "dry run", "true")
	}
	if r.ClockIsRight {
		e.Detail = frame.WithDetail(e.Detail, "clock is right", "true")
	}
	c, err := s.Catalog(ctx)
	if err != nil {
		return nil, s.Refuse(ctx, e, err)
	}
	var machines []catalog.Machine
	if r.Machine == "" {
		e.Object = "all"
		machines, err = c.Machines.List(ctx, false)
	} else {
		machines, err = s.Machines(ctx, c, r.Machine)
	}
	if err != nil {
		return nil, s.Refuse(ctx, e, err)
	}
	places := s.Repositories.List()[:1]
	if len(r.Repositories) > 0 {
		places = nil
		for _, name := range r.Repositories {
			place, err := s.Place(name)
			if err != nil {
				return nil, s.Refuse(ctx, e, err)
			}
			if !slices.Contains(places, place) {
				places = append(places, place)
			}
			e.Detail = frame.WithDetail(e.Detail, "repository "+place.Name, "true")
		}
	}
	var keys []string
	if !r.DryRun {
		for _, m := range machines {
			keys = append(keys, key(m))
		}
	}
	return s.Start(ctx, "prune", e, func(ctx context.Context, p *job.Reporter) (frame.Result, error) {
		return s.run(ctx, c, places, machines, r, p)
	}, keys...)
}

// run prunes one machine after the other, in one repository after the other.
// What one is refused for keeps no other from being pruned.
func (s routes) run(ctx context.Context, c *catalog.Catalog, places []frame.Place, machines []catalog.Machine, r api.PruneRequest, p *job.Reporter) (frame.Result, error) {
	res := &api.PruneResult{DryRun: r.DryRun, Machines: []api.PruneMachine{}}
	out := frame.Result{JobResult: api.JobResult{Prune: res}}
	// Asked first: without the key manager the holds would stay for ever.
	if _, err := s.Manager(ctx); err != nil && !r.DryRun {
		return out, fmt.Errorf("prune: holds could not be released: %w", err)
	}
	var bad []error
	for _, place := range places {
		repo, err := s.Repositories.Open(ctx, place.Name)
		if err != nil {
			bad = append(bad, fmt.Errorf("prune repository %s: %w", place.Name, err))
			continue
		}
		deps := s.Pruning(ctx, c, place, repo, map[string]string{"job": p.Job()})
		for _, m := range machines {
			v, err := s.machine(ctx, c, deps, m, r, p)
			v.Repository = place.Name
			if err != nil {
				problem := api.Error(*frame.ProblemOf(err))
				v.Error = &problem
				bad = append(bad, err)
			}
			res.Machines = append(res.Machines, v)
			for _, text := range v.Problems {
				p.Warning("%s: %s", m.Name, text)
			}
			if err := context.Cause(ctx); err != nil {
				return out, errors.Join(append(bad, err)...)
			}
		}
	}
	for _, err := range bad[:max(0, len(bad)-1)] {
		p.Warning("%s", frame.ProblemOf(err).Detail)
	}
	if len(bad) > 0 {
		return out, bad[len(bad)-1]
	}
	return out, nil
}

func (s routes) machine(ctx context.Context, c *catalog.Catalog, deps prune.Deps, m catalog.Machine, r api.PruneRequest, p *job.Reporter) (api.PruneMachine, error) {
	v := api.PruneMachine{Machine: m.Name, Points: []api.PrunePoint{}}
	pol, origin, err := frame.PolicyOf(ctx, c, m.ID)
	if err != nil {
		return v, err
	}
	v.Origin = origin
	switch why, err := frame.PolicyUnread(ctx, c, m.ID); {
	case err != nil:
		return v, err
	case why != "":
		p := frame.Refused("prune %s: its policy was lost with the catalog, and is not known: %s", m.Name, why)
		p.Hint = fmt.Sprintf("'lockstep policy show %[1]s' shows what would be in force; 'lockstep policy set %[1]s' or 'lockstep policy unset %[1]s' says what holds", m.Name)
		return v, p
	}
	found, err := prune.Run(ctx, deps, prune.Request{
		Machine: m, Policy: pol, DryRun: r.DryRun, ClockIsRight: r.ClockIsRight,
		Progress: func(done, total int) {
			p.Progress(job.Progress{Phase: "delete", Done: int64(done), Total: int64(total), Unit: "points", Note: m.Name})
		},
	})
	// A repository that does not know the machine yet has nothing of it.
	if errors.Is(err, repository.ErrNotFound) && len(found.Points) == 0 && !errors.Is(err, repository.ErrDamaged) {
		err = nil
	}
	v.Finished, v.ReleasedHolds, v.Problems = found.Finished, found.Released, found.Problems
	v.FreedBytes, v.FreedObjects = found.Freed.Bytes, found.Freed.Objects
	for _, x := range slices.Backward(found.Points) {
		switch {
		case x.Decision.Keep:
			v.Kept++
		case x.Deleted || r.DryRun:
			v.Deleted++
		}
		// Jobs are kept for months: those that stay are for a dry run to explain.
		if r.DryRun || x.Deleted || x.InUse {
			v.Points = append(v.Points, api.PrunePoint{
				Point: x.Point.ID, Time: x.Point.Time.UTC(), State: string(x.State),
				Keep: x.Decision.Keep, Reasons: x.Decision.Reasons, Deleted: x.Deleted, InUse: x.InUse, StillIn: x.In,
			})
		}
	}
	return v, err
}
