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
	var in []frame.Place
	switch name := req.Body.Repository; name {
	case "":
	case api.AllRepositories:
		in = s.Repositories.List()
		e.Detail = frame.WithDetail(e.Detail, "repository", name)
	default:
		place, err := s.Place(name)
		if err != nil {
			return nil, s.Refuse(ctx, e, err)
		}
		in = []frame.Place{place}
		e.Detail = frame.WithDetail(e.Detail, "repository", place.Name)
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
		if in == nil {
			in = s.Repositories.List()[:1]
		}
		return s.verify(s.Limited(ctx, req.Body.Rates), in, points, depth, p)
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

// verify verifies one repository after the other; one that cannot be opened
// keeps no other from being read.
func (s routes) verify(ctx context.Context, in []frame.Place, points []catalog.Point, req verify.Request, p *job.Reporter) (frame.Result, error) {
	res := &api.VerifyResult{Depth: "data", Damage: []api.Damage{}}
	switch req.Depth {
	case verify.Structure:
		res.Depth = "structure"
	case verify.Sample:
		res.Depth, res.Sample, res.Seed = "sample", req.Share, req.Seed.String()
	}
	r := frame.Result{JobResult: api.JobResult{Verify: res}}
	left := slices.Clone(points) // that no repository was found to have
	var bad []error
	for _, place := range in {
		err := s.verifyOne(ctx, place, points, &left, req, res, p)
		if err != nil && len(in) > 1 {
			err = fmt.Errorf("repository %s: %w", place.Name, err)
		}
		bad = append(bad, err)
		if ctx.Err() != nil {
			break
		}
	}
	err := errors.Join(bad...)
	if err == nil && len(left) > 0 {
		err = fmt.Errorf("verify recovery point %s: %w", left[0].ID, repository.ErrNotFound)
	}
	if len(res.Damage) > 0 {
		r.Exit, r.Found = api.ExitDamaged, true
	}
	return r, err
}

// verifyOne adds to res what it found in one repository, and takes off left
// which recovery points it has or had.
func (s routes) verifyOne(ctx context.Context, place frame.Place, points []catalog.Point, left *[]catalog.Point, req verify.Request, res *api.VerifyResult, p *job.Reporter) error {
	repo, err := s.Repositories.Open(ctx, place.Name)
	if err != nil {
		return err
	}
	req.Lease = s.Leases("a verification")
	req.Repository, req.All, req.Progress = repo, len(points) == 0, frame.Progress(p)
	if c, err := s.Catalog(ctx); err == nil {
		req.Readings, req.Now = c.Readings, s.Now
	}
	if req.Expected, err = s.expected(ctx, place, repo, points); err != nil {
		return err
	}
	for _, x := range points {
		rp, err := s.RepositoryPoint(ctx, repo, x)
		if err == nil {
			req.Points = append(req.Points, rp)
		}
		gone := slices.ContainsFunc(req.Expected, func(e verify.Expected) bool { return e.Point == x.ID })
		if err == nil || gone {
			*left = slices.DeleteFunc(*left, func(y catalog.Point) bool { return y.ID == x.ID })
		} else if !errors.Is(err, repository.ErrNotFound) {
			return err
		}
	}
	res.Repositories = append(res.Repositories, place.Name)
	if !req.All && len(req.Points)+len(req.Expected) == 0 {
		return nil // it has none of them
	}
	found, err := verify.Run(ctx, req)
	by := frame.FoundByReading
	if req.Depth == verify.Structure {
		by = frame.FoundByStructure
	}
	s.NoteDamage(ctx, place, by, noted(found.Damage), func(d frame.KnownDamage) bool {
		if err != nil || req.Depth != verify.Data && d.By != frame.FoundByStructure {
			return false // it was not looked for
		}
		return req.All || d.Only(req.Points)
	})
	damage := s.damage(ctx, place, found.Damage)
	if len(damage) > 0 {
		s.repairable(ctx, place, repo, damage, p)
	}
	res.Points, res.Objects, res.ReadBytes = res.Points+found.Points, res.Objects+found.Objects, res.ReadBytes+found.Read
	res.Damage = append(res.Damage, damage...)
	return err
}

// repairable says of damage from where it can be repaired.
func (s routes) repairable(ctx context.Context, place frame.Place, repo *repository.Repository, damage []api.Damage, p *job.Reporter) {
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
		named := ""
		if !place.Primary {
			named = " --repository " + place.Name
		}
		p.Warning("%d of %d damaged objects can be brought back: 'lockstep repository repair%s'", len(from), len(keys), named)
	}
}
