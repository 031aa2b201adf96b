// Package checks is the routes of reading back what is stored.
package checks

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
	"github.com/lockstep-backup/lockstep/repository"
	"github.com/lockstep-backup/lockstep/server/internal/frame"
	"github.com/lockstep-backup/lockstep/verify"
)

type routes struct{ *frame.Frame }

// Register adds the routes.
func Register(f *frame.Frame) {
	s := routes{f}
	frame.Route(f, "start-verification", http.MethodPost, "/v1/verifications", "Read back what is stored and compare", s.startVerification, frame.Status(http.StatusAccepted))
	frame.Route(f, "start-scrub", http.MethodPost, "/v1/scrubs", "Read back what has not been read for the longest", s.startScrub, frame.Status(http.StatusAccepted))
}

func (s routes) startVerification(ctx context.Context, req *frame.In[api.VerifyRequest]) (*frame.Out[api.Job], error) {
	e := audit.Event{Action: "repository.verify", Object: "all"}
	depth, err := depthOf(req.Body)
	if err != nil {
		return nil, s.Refuse(ctx, e, err)
	}
	var points []catalog.Point
	if len(req.Body.Points) > 0 {
		c, err := s.Catalog(ctx)
		if err != nil {
			return nil, s.Refuse(ctx, e, err)
		}
		var ids []string
		for _, ref := range req.Body.Points {
			p, err := s.ResolvePoint(ctx, c, ref)
			if err != nil {
				e.Object = ref
				return nil, s.Refuse(ctx, e, err)
			}
			if !slices.Contains(ids, p.ID) {
				points, ids = append(points, p), append(ids, p.ID)
			}
		}
		e.Object = frame.Clip(fmt.Sprint(ids))
	}
	return s.Start(ctx, "verify", e, func(ctx context.Context, p *job.Reporter) (frame.Result, error) {
		return s.verify(s.Limited(ctx, req.Body.Rates), points, depth, p)
	})
}

// depthOf is how far a verification goes.
func depthOf(r api.VerifyRequest) (q verify.Request, err error) {
	switch {
	case r.Structure && r.Sample > 0:
		return q, frame.Usage("verify: the structure alone and a sample of the content exclude each other")
	case r.Seed != "" && r.Sample == 0:
		return q, frame.Usage("verify: a seed is for a sample")
	case r.Structure:
		q.Depth = verify.Structure
	case r.Sample > 0:
		q.Depth, q.Share, q.Seed = verify.Sample, r.Sample, verify.NewSeed()
		if r.Seed == "" {
			break
		}
		if q.Seed, err = verify.ParseSeed(r.Seed); err != nil {
			return q, frame.Usage("verify: seed %v", err)
		}
	}
	return q, nil
}

func (s routes) verify(ctx context.Context, points []catalog.Point, req verify.Request, p *job.Reporter) (frame.Result, error) {
	repo, err := s.Repository(ctx)
	if err != nil {
		return frame.Result{}, err
	}
	req.Repository, req.All, req.Progress = repo, len(points) == 0, frame.Progress(p)
	if c, err := s.Catalog(ctx); err == nil {
		req.Readings, req.Now = c.Readings, s.Now
	}
	if req.Expected, err = s.expected(ctx, repo, points); err != nil {
		return frame.Result{}, err
	}
	for _, x := range points {
		rp, err := s.RepositoryPoint(ctx, repo, x)
		if errors.Is(err, repository.ErrNotFound) && x.Repository == repo.ID() {
			continue // it is expected, and reported as gone
		}
		if err != nil {
			return frame.Result{}, err
		}
		req.Points = append(req.Points, rp)
	}
	found, err := verify.Run(ctx, req)
	res := &api.VerifyResult{Depth: "data", Points: found.Points, Objects: found.Objects, ReadBytes: found.Read, Damage: s.damage(ctx, found.Damage)}
	switch req.Depth {
	case verify.Structure:
		res.Depth = "structure"
	case verify.Sample:
		res.Depth, res.Sample, res.Seed = "sample", req.Share, req.Seed.String()
	}
	r := frame.Result{JobResult: api.JobResult{Verify: res}}
	if len(res.Damage) > 0 {
		s.repairable(ctx, repo, res.Damage, p)
		r.Exit, r.Found = api.ExitDamaged, true
	}
	return r, err
}

// repairable says of damage from where it can be repaired.
func (s routes) repairable(ctx context.Context, repo *repository.Repository, damage []api.Damage, p *job.Reporter) {
	var keys []string
	for _, d := range damage {
		if !slices.Contains(keys, d.Object) {
			keys = append(keys, d.Object)
		}
	}
	from := s.RepairFrom(ctx, repo, keys)
	for i := range damage {
		damage[i].From = from[damage[i].Object]
	}
	if len(from) > 0 {
		p.Warning("%d of %d damaged objects can be brought back: 'lockstep repository repair'", len(from), len(keys))
	}
}

// expected is what the catalog knows to be in the repository: of the recovery
// points named, or of all. A catalog that is lost knows nothing; that has its
// own message, and what is stored can be read all the same.
func (s routes) expected(ctx context.Context, repo *repository.Repository, points []catalog.Point) ([]verify.Expected, error) {
	c, err := s.Catalog(ctx)
	if err != nil {
		s.Log.Warn("what the catalog expects to be stored is not known", "error", err)
		return nil, nil
	}
	if len(points) == 0 {
		if points, err = c.Points.List(ctx, catalog.PointQuery{Repository: repo.ID()}); err != nil {
			return nil, err
		}
	}
	var out []verify.Expected
	headers := map[string][]catalog.HeaderPackage{}
	for _, p := range points {
		if p.Repository != repo.ID() || !p.DeletedAt.IsZero() {
			continue
		}
		e := verify.Expected{Machine: p.Machine, Point: p.ID, Sequence: p.Sequence, Roots: map[string]string{}}
		proofs, err := c.Proofs.OfPoint(ctx, p.ID)
		if err != nil {
			return nil, err
		}
		for _, x := range proofs {
			e.Objects = append(e.Objects, x.Key)
		}
		packages, err := c.Packages.OfPoint(ctx, p.ID)
		if err != nil {
			return nil, err
		}
		for _, x := range packages {
			e.Objects = append(e.Objects, x.Key)
		}
		if _, known := headers[p.Machine]; !known {
			if headers[p.Machine], err = c.Packages.Headers(ctx, p.Machine); err != nil {
				return nil, err
			}
		}
		digests := map[string]bool{}
		for _, d := range p.Disks {
			e.Roots[d.Disk] = d.ContentRoot
			for _, v := range d.Volumes {
				digests[v.HeaderDigest] = true
			}
		}
		for _, h := range headers[p.Machine] {
			if digests[h.HeaderDigest] {
				e.Objects = append(e.Objects, h.Key)
			}
		}
		out = append(out, e)
	}
	return out, nil
}
