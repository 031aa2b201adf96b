package repositories

import (
	"context"
	"fmt"
	"slices"

	"github.com/lockstep-backup/lockstep/api"
	"github.com/lockstep-backup/lockstep/audit"
	"github.com/lockstep-backup/lockstep/catalog"
	"github.com/lockstep-backup/lockstep/job"
	"github.com/lockstep-backup/lockstep/server/internal/frame"
)

type removePath struct {
	Name  string `path:"name" doc:"name, id or URL of the repository"`
	Force bool   `query:"force" doc:"also where it is the only place of recovery points"`
}

// remove forgets a repository. Nothing in it is touched: it can be added again.
func (s routes) remove(ctx context.Context, req *removePath) (*frame.Out[api.RepositoryRemoved], error) {
	e := audit.Event{Action: "repository.remove", Object: frame.Clip(req.Name)}
	if req.Force {
		e.Detail = frame.WithDetail(e.Detail, "force", "true")
	}
	return frame.Audited(ctx, s.Frame, e, func() (*frame.Out[api.RepositoryRemoved], error) {
		place, err := s.Place(req.Name)
		if err != nil {
			return nil, err
		}
		if place.Primary {
			p := frame.Refused("remove repository: backups write to %s", place.Name)
			p.Hint = "'lockstep repository promote' has them write to another one"
			return nil, p
		}
		c, err := s.Catalog(ctx)
		if err != nil {
			return nil, err
		}
		machines, err := c.Machines.List(ctx, true)
		if err != nil {
			return nil, err
		}
		locks, err := s.apart(place, machines)
		defer func() {
			for _, l := range locks {
				l.Release()
			}
		}()
		if err != nil {
			return nil, err
		}
		only, err := s.onlyThere(ctx, c, place)
		if err != nil {
			return nil, err
		}
		if len(only) > 0 && !req.Force {
			p := frame.Refused("remove repository: %s is the only place of %d recovery points", place.Name, len(only))
			p.Items, p.Hint = only, "'lockstep repository copy --from "+place.Name+" --to' another brings them there; --force forgets it all the same"
			return nil, p
		}
		v := api.RepositoryRemoved{Name: place.Name, ID: place.ID, URL: place.URL, Only: only}
		for _, m := range machines {
			p, _, err := frame.PolicyOf(ctx, c, m.ID)
			if err != nil {
				return nil, fmt.Errorf("policy of machine %s: %w", m.Name, err)
			}
			for _, name := range p.CopiesTo {
				if to, err := s.Place(name); err == nil && to.ID == place.ID {
					v.Warnings = append(v.Warnings, fmt.Sprintf("the policy of machine %s copies to it: 'lockstep policy set' names another", m.Name))
				}
			}
		}
		if err := s.Repositories.Remove(ctx, place.Name); err != nil {
			return nil, err
		}
		// When it is added again, it is looked at anew.
		if err := s.SetCopied(ctx, c, place.ID, frame.Copied{}); err != nil {
			v.Warnings = append(v.Warnings, fmt.Sprintf("what was copied to it is still in the catalog: %v", err))
		}
		return &frame.Out[api.RepositoryRemoved]{Body: v}, nil
	})
}

// apart keeps what works with a repository from beginning, and is busy where
// something does.
func (s routes) apart(place frame.Place, machines []catalog.Machine) (locks []*job.Lock, err error) {
	keys := []string{"repositories", "repair:" + place.ID, "scrub:" + place.ID}
	for _, m := range machines {
		keys = append(keys, "copy:"+place.ID+":"+m.Name)
	}
	for _, key := range keys {
		l, err := s.Locks.Acquire(key, "repository remove")
		if err != nil {
			return locks, err
		}
		locks = append(locks, l)
	}
	return locks, nil
}

// onlyThere are the recovery points that a repository lists and no other that
// can be read does. Of one that cannot be read itself it is what it was known to
// have, as far as the catalog lists it still.
func (s routes) onlyThere(ctx context.Context, c *catalog.Catalog, place frame.Place) ([]string, error) {
	here, elsewhere := map[string]bool{}, map[string]bool{}
	for _, p := range s.Repositories.List() {
		to := elsewhere
		if p.ID == place.ID {
			to = here
		}
		repo, err := s.Repositories.Open(ctx, p.Name)
		var l *listed
		if err == nil {
			l, err = look(ctx, repo)
		}
		if ctx.Err() != nil {
			return nil, ctx.Err()
		}
		if l != nil {
			for id := range l.points {
				to[id] = true
			}
		}
		if err != nil && p.ID == place.ID {
			if err := s.known(ctx, c, place, here); err != nil {
				return nil, err
			}
		}
	}
	only := []string{}
	for id := range here {
		if !elsewhere[id] {
			only = append(only, id)
		}
	}
	slices.Sort(only)
	return only, nil
}

// known adds the catalog's recovery points that were made in a repository or
// copied to it.
func (s routes) known(ctx context.Context, c *catalog.Catalog, place frame.Place, to map[string]bool) error {
	copied, err := s.Copied(ctx, c, place.ID)
	if err != nil {
		return err
	}
	points, err := c.Points.List(ctx, catalog.PointQuery{Bare: true})
	for _, p := range points {
		if p.Repository == place.ID || slices.Contains(copied.Points[p.Machine], p.ID) {
			to[p.ID] = true
		}
	}
	return err
}
