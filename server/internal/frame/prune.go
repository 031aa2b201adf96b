package frame

import (
	"context"
	"errors"
	"maps"
	"time"

	"github.com/lockstep-backup/lockstep/audit"
	"github.com/lockstep-backup/lockstep/catalog"
	"github.com/lockstep-backup/lockstep/custody"
	"github.com/lockstep-backup/lockstep/prove"
	"github.com/lockstep-backup/lockstep/prune"
	"github.com/lockstep-backup/lockstep/repository"
)

// Pruning is what deleting recovery points in one repository works with now.
// Each is recorded as begun and with its outcome; detail goes into both entries.
func (s *Frame) Pruning(ctx context.Context, c *catalog.Catalog, place Place, repo *repository.Repository, detail map[string]string) prune.Deps {
	deps := s.Custody(ctx, c)
	event := func(p catalog.Point, reason string) audit.Event {
		e := audit.Event{Action: "point.delete", Object: p.ID, Reason: reason}
		if !place.Primary {
			e.Detail = WithDetail(e.Detail, "repository", place.Name)
		}
		for k, v := range detail {
			e.Detail = WithDetail(e.Detail, k, v)
		}
		return e
	}
	return prune.Deps{
		Repository: repo, Catalog: c, Now: s.Now, Log: s.Log,
		Locked: func(ctx context.Context, machine string, points []string) (map[string]time.Time, error) {
			if s.Deps.Locked == nil {
				return nil, nil
			}
			return s.Deps.Locked(ctx, place.Name, machine, points)
		},
		Elsewhere: func(ctx context.Context, machine string, points []string) (found prune.Elsewhere, err error) {
			m, err := c.Machines.Get(ctx, machine)
			if err != nil {
				return found, err
			}
			if _, err := s.NoteListed(ctx, c, place, machine); err != nil && !errors.Is(err, repository.ErrDamaged) {
				return found, err
			}
			return s.Elsewhere(ctx, c, place.ID, m, points)
		},
		States: func(ctx context.Context, machine string) (func(catalog.Point) custody.State, error) {
			v, err := prove.Load(ctx, deps, machine)
			if err != nil {
				return nil, err
			}
			return func(p catalog.Point) custody.State { return v.Verdict(p).State }, nil
		},
		Statements: func(ctx context.Context, machine string) (said prune.Statements, err error) {
			// Those of the last copy, and what was said since where backups go.
			from := []*repository.Repository{repo}
			if deps.Repo != nil && deps.Repo.ID() != repo.ID() {
				from = append(from, deps.Repo)
			}
			for _, r := range from {
				d := deps
				d.Repo = r
				doubtful, err := prove.SyncMarks(ctx, d, machine)
				if err != nil {
					return said, err
				}
				if said.Doubtful == nil {
					said.Doubtful = map[string]string{}
				}
				maps.Copy(said.Doubtful, doubtful)
			}
			said.Marks, err = prove.MarksOf(ctx, c, machine)
			return said, err
		},
		Release: func(ctx context.Context, points ...catalog.Point) (int, error) {
			return prove.ReleaseHolds(ctx, deps, points...)
		},
		Reclaim: func(ctx context.Context, machine string) (prune.Freed, error) {
			r, err := repo.Reclaim(ctx, machine, repository.ReclaimOptions{})
			return prune.Freed{Objects: r.Deleted.Objects, Bytes: r.Freed}, err
		},
		Claim: s.claim,
		Begin: func(ctx context.Context, p catalog.Point, reason string) error {
			return s.Begin(ctx, event(p, reason))
		},
		Done: func(ctx context.Context, p catalog.Point, reason string, err error) error {
			e := event(p, reason)
			if e.Outcome = OutcomeOf(err); err != nil {
				e.Detail = WithDetail(e.Detail, "error", Clip(ProblemOf(err).Detail))
			}
			return s.Record(ctx, e)
		},
	}
}
