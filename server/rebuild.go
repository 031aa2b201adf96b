package server

import (
	"context"

	"github.com/lockstep-backup/lockstep/api"
	"github.com/lockstep-backup/lockstep/audit"
	"github.com/lockstep-backup/lockstep/catalog"
	"github.com/lockstep-backup/lockstep/disk"
	"github.com/lockstep-backup/lockstep/job"
	"github.com/lockstep-backup/lockstep/prove"
	"github.com/lockstep-backup/lockstep/rebuild"
	"github.com/lockstep-backup/lockstep/repository"
)

// rebuildKey keeps two rebuilds of one catalog apart.
const rebuildKey = "catalog"

type rebuildInput struct {
	Repository string `query:"repository" doc:"URL of the repository to read; empty = the installation's"`
}

func (s *Server) startRebuild(ctx context.Context, req *rebuildInput) (*out[api.Job], error) {
	e := audit.Event{Action: "catalog.rebuild", Object: s.d.RepositoryURL}
	if req.Repository != "" && !disk.SameLocal(req.Repository, s.d.RepositoryURL) {
		e.Object = clip(req.Repository)
		p := refused("rebuild catalog: this installation has no repository %q", clip(req.Repository))
		p.Hint = "its repository is " + s.d.RepositoryURL
		return nil, s.refuse(ctx, e, p)
	}
	return s.start(ctx, kindRebuild, e, s.rebuild, rebuildKey)
}

// rebuild fills the catalog anew. The key manager may be away: then holds are
// not compared, and the result says so.
func (s *Server) rebuild(ctx context.Context, p *job.Reporter) (result, error) {
	repo, err := s.d.Repository(ctx)
	if err != nil {
		return result{}, err
	}
	var res rebuild.Result
	err = s.d.Rebuild(ctx, func(c *catalog.Catalog) error {
		deps := s.custodyDeps(ctx, c)
		d := rebuild.Deps{
			Catalog: c, Manager: deps.Manager, Installation: s.d.Installation, Now: s.d.Now, Log: s.d.Log,
			Progress: func(done, total int, machine string) {
				p.Progress(job.Progress{Phase: "read", Done: int64(done), Total: int64(total), Unit: "machines", Note: machine})
			},
			Prove: func(r *repository.Repository) prove.Deps {
				deps.Repo = r
				return deps
			},
		}
		var err error
		res, err = rebuild.Run(ctx, d, rebuild.Source{Repo: repo, URL: s.d.RepositoryURL})
		return err
	})
	if err != nil {
		return result{}, err
	}
	for _, problem := range res.Problems {
		p.Warning("%s", problem)
	}
	return result{Rebuild: &api.RebuildResult{
		Repository: s.d.RepositoryURL, Machines: res.Machines, Points: res.Points, Proofs: res.Proofs, Holds: res.Holds,
		NotRebuilt: res.NotRebuilt, Problems: res.Problems,
	}}, nil
}
