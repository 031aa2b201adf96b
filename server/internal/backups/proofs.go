package backups

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/lockstep-backup/lockstep/api"
	"github.com/lockstep-backup/lockstep/audit"
	"github.com/lockstep-backup/lockstep/catalog"
	"github.com/lockstep-backup/lockstep/job"
	"github.com/lockstep-backup/lockstep/prove"
	"github.com/lockstep-backup/lockstep/server/internal/frame"
	"github.com/lockstep-backup/lockstep/server/internal/show"
)

// exitOfProof is what proving found beside the state: damage, or a secret that
// nothing keeps from being destroyed.
func exitOfProof(r prove.Result) int {
	switch {
	case len(r.Damaged) > 0:
		return api.ExitDamaged
	case len(r.Unheld) > 0:
		return api.ExitNotProven
	default:
		return api.ExitDone
	}
}

func (s routes) startProofs(ctx context.Context, req *frame.In[api.ProveRequest]) (*frame.Out[api.Job], error) {
	e := audit.Event{Action: "points.prove"}
	c, err := s.Catalog(ctx)
	if err != nil {
		return nil, s.Refuse(ctx, e, err)
	}
	var ids []string
	switch {
	case req.Body.All && len(req.Body.Points) > 0:
		return nil, s.Refuse(ctx, e, frame.Usage("prove: name recovery points or all, not both"))
	case req.Body.All:
		e.Object = "all"
		points, err := c.Points.List(ctx, catalog.PointQuery{Bare: true})
		if err != nil {
			return nil, err
		}
		// The newest first: they are what will be restored.
		only := map[string]map[string][]string{}
		for _, p := range slices.Backward(points) {
			if only[p.Machine] == nil {
				if only[p.Machine], err = s.OnlyIn(ctx, c, p.Machine); err != nil {
					return nil, err
				}
			}
			// Proofs are kept where backups go; of what is only in copies nothing is.
			if len(only[p.Machine][p.ID]) == 0 {
				ids = append(ids, p.ID)
			}
		}
	case len(req.Body.Points) == 0:
		return nil, s.Refuse(ctx, e, frame.Usage("prove: no recovery point is named"))
	default:
		for _, ref := range req.Body.Points {
			p, err := s.ResolvePoint(ctx, c, ref)
			if err != nil {
				e.Object = ref
				return nil, s.Refuse(ctx, e, err)
			}
			if !slices.Contains(ids, p.ID) {
				ids = append(ids, p.ID)
			}
		}
		e.Object = frame.Clip(fmt.Sprint(ids))
	}
	return s.Start(ctx, "prove", e, func(ctx context.Context, p *job.Reporter) (frame.Result, error) {
		return s.prove(ctx, c, ids, p)
	})
}

func (s routes) prove(ctx context.Context, c *catalog.Catalog, ids []string, p *job.Reporter) (frame.Result, error) {
	r := frame.Result{JobResult: api.JobResult{Prove: []api.Point{}}}
	deps := s.Custody(ctx, c)
	if deps.Repo == nil {
		_, err := s.Repository(ctx)
		return r, err
	}
	results, err := prove.Points(ctx, deps, ids, func(done, total int, point string) {
		p.Progress(job.Progress{Phase: "prove", Done: int64(done), Total: int64(total), Unit: "points", Note: point})
	})
	machines := map[string][]api.Point{}
	for _, x := range results {
		for _, problem := range x.Problems {
			p.Warning("%s: %s", x.Point, problem)
		}
		points, known := machines[x.Machine]
		if !known {
			m, merr := c.Machines.Get(ctx, x.Machine)
			if merr != nil {
				return r, errors.Join(err, merr)
			}
			if points, merr = s.PointsOf(ctx, c, m); merr != nil {
				return r, errors.Join(err, merr)
			}
			machines[x.Machine] = points
		}
		if i := slices.IndexFunc(points, func(v api.Point) bool { return v.ID == x.Point }); i >= 0 {
			v := points[i]
			// The state rests on proofs of earlier days; what was just seen comes first.
			for _, d := range slices.Backward(x.Damaged) {
				text := "damaged: it cannot be read as it was stored: " + show.OneLine(d.Error())
				v.Why = append([]string{text}, v.Why...)
				p.Warning("%s: %s", x.Point, text)
			}
			r.Prove = append(r.Prove, v)
			r.Exit = max(r.Exit, frame.ExitOfState(v.State))
		}
		r.Exit = max(r.Exit, exitOfProof(x))
	}
	r.Found = r.Exit == api.ExitDamaged
	return r, err
}
