// Package catalogs is the routes of the catalog itself.
package catalogs

import (
	"context"
	"net/http"
	"slices"
	"strings"

	"github.com/lockstep-backup/lockstep/api"
	"github.com/lockstep-backup/lockstep/audit"
	"github.com/lockstep-backup/lockstep/catalog"
	"github.com/lockstep-backup/lockstep/disk"
	"github.com/lockstep-backup/lockstep/job"
	"github.com/lockstep-backup/lockstep/prove"
	"github.com/lockstep-backup/lockstep/rebuild"
	"github.com/lockstep-backup/lockstep/repository"
	"github.com/lockstep-backup/lockstep/server/internal/frame"
)

type routes struct{ *frame.Frame }

// Register adds the routes.
func Register(f *frame.Frame) {
	s := routes{f}
	frame.Route(f, "rebuild-catalog", http.MethodPost, "/v1/catalog/rebuild", "Fill the catalog anew from the repository", s.startRebuild, frame.Status(http.StatusAccepted))
}

// rebuildKey keeps two rebuilds of one catalog apart.
const rebuildKey = "catalog"

type rebuildInput struct {
	Repository string `query:"repository" doc:"URL of the repository to read; empty = the installation's"`
}

func (s routes) startRebuild(ctx context.Context, req *rebuildInput) (*frame.Out[api.Job], error) {
	places := s.Repositories.List()
	e := audit.Event{Action: "catalog.rebuild", Object: places[0].URL}
	if req.Repository != "" {
		i := slices.IndexFunc(places, func(p frame.Place) bool {
			return p.Name == req.Repository || disk.SameLocal(req.Repository, p.URL) || req.Repository == p.URL
		})
		if i < 0 {
			e.Object = frame.Clip(req.Repository)
			p := frame.Refused("rebuild catalog: this installation has no repository %q", frame.Clip(req.Repository))
			p.Hint = "its repository is " + places[0].URL
			if len(places) > 1 {
				p.Hint = "'lockstep repository list' shows its repositories"
			}
			return nil, s.Refuse(ctx, e, p)
		}
		e.Object = places[i].URL
		places = places[i : i+1]
	}
	return s.Start(ctx, "rebuild", e, func(ctx context.Context, p *job.Reporter) (frame.Result, error) {
		return s.rebuild(ctx, places, p)
	}, rebuildKey)
}

// sources opens the repositories, the one that is written first: what it says
// of a recovery point counts before what copies say. It is needed, unless
// another one was named.
func (s routes) sources(ctx context.Context, places []frame.Place, p *job.Reporter) ([]rebuild.Source, error) {
	var sources []rebuild.Source
	for _, place := range places {
		repo, err := s.Repositories.Open(ctx, place.Name)
		switch {
		case err == nil:
			sources = append(sources, rebuild.Source{Repo: repo, URL: place.URL})
		case place.Primary || len(places) == 1:
			return nil, err
		default:
			p.Warning("repository %s is not read: %s", place.Name, frame.ProblemOf(err).Detail)
		}
	}
	return sources, nil
}

// rebuild fills the catalog anew. The key manager may be away: then holds are
// not compared, and the result says so.
func (s routes) rebuild(ctx context.Context, places []frame.Place, p *job.Reporter) (frame.Result, error) {
	sources, err := s.sources(ctx, places, p)
	if err != nil {
		return frame.Result{}, err
	}
	var res rebuild.Result
	err = s.Rebuild(ctx, func(c *catalog.Catalog) error {
		deps := s.Custody(ctx, c)
		d := rebuild.Deps{
			Catalog: c, Manager: deps.Manager, Installation: s.Installation, Now: s.Now, Log: s.Log,
			Progress: func(done, total int, machine string) {
				p.Progress(job.Progress{Phase: "read", Done: int64(done), Total: int64(total), Unit: "machines", Note: machine})
			},
			Prove: func(r *repository.Repository) prove.Deps {
				deps.Repo = r
				return deps
			},
		}
		var err error
		if res, err = rebuild.Run(ctx, d, sources...); err != nil {
			return err
		}
		for _, place := range places {
			if !slices.ContainsFunc(sources, func(x rebuild.Source) bool { return x.Repo.ID() == place.ID }) {
				continue
			}
			if err := s.NoteAllListed(ctx, c, place); err != nil { // a damaged log, of which the problems say more
				s.Log.Warn("what the repository lists is not recorded", "repository", place.Name, "error", err)
			}
		}
		return ctx.Err()
	})
	if err != nil {
		return frame.Result{}, err
	}
	for _, problem := range res.Problems {
		p.Warning("%s", problem)
	}
	return frame.Result{JobResult: api.JobResult{Rebuild: &api.RebuildResult{
		Repository: urls(sources), Machines: res.Machines, Points: res.Points, Proofs: res.Proofs, Holds: res.Holds,
		NotRebuilt: res.NotRebuilt, Problems: res.Problems,
	}}}, nil
}

func urls(sources []rebuild.Source) string {
	var all []string
	for _, s := range sources {
		all = append(all, s.URL)
	}
	return strings.Join(all, ", ")
}
