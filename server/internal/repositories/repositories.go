// Package repositories is the routes of the installation's repositories: which
// there are, what goes from one to another, and what is brought back.
package repositories

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"time"

	"github.com/lockstep-backup/lockstep/api"
	"github.com/lockstep-backup/lockstep/audit"
	"github.com/lockstep-backup/lockstep/backup"
	"github.com/lockstep-backup/lockstep/catalog"
	"github.com/lockstep-backup/lockstep/repository"
	"github.com/lockstep-backup/lockstep/server/internal/frame"
)

type routes struct{ *frame.Frame }

// Register adds the routes.
func Register(f *frame.Frame) {
	s := routes{f}
	s.registerStorage()
	frame.Route(f, "list-repositories", http.MethodGet, "/v1/repositories", "List the repositories, and what each lacks", s.list)
	frame.Route(f, "add-repository", http.MethodPost, "/v1/repositories", "Make a repository, or join one that is there", s.add)
	frame.Route(f, "promote-repository", http.MethodPost, "/v1/repositories/{name}/promote", "Have backups write to this repository from now on", s.promote)
	frame.Route(f, "remove-repository", http.MethodDelete, "/v1/repositories/{name}", "Forget a repository, and touch nothing in it", s.remove)
	frame.Route(f, "start-copy", http.MethodPost, "/v1/copies", "Copy recovery points to another repository", s.startCopy, frame.Status(http.StatusAccepted))
	frame.Route(f, "start-repair", http.MethodPost, "/v1/repairs", "Bring damaged objects back from another repository", s.startRepair, frame.Status(http.StatusAccepted))
}

// listed are the recovery points of a repository, by id, with their machine.
type listed struct {
	machines int
	points   map[string]repository.Point
	newest   []repository.Point // of each machine
}

func (s routes) list(ctx context.Context, _ *frame.None) (*frame.Out[[]api.Repository], error) {
	out := []api.Repository{}
	var primary *listed
	for _, p := range s.Repositories.List() {
		v := api.Repository{Name: p.Name, ID: p.ID, URL: p.URL, Primary: p.Primary}
		if c, err := s.Catalog(ctx); err == nil {
			if copied, err := s.Copied(ctx, c, p.ID); err == nil && !copied.Time.IsZero() {
				v.LastCopy = &copied.Time
			}
		}
		repo, err := s.Repositories.Open(ctx, p.Name)
		var l *listed
		if err == nil {
			v.Writable = repo.Inside().Writer != nil
			l, err = look(ctx, repo)
		}
		if ctx.Err() != nil {
			return nil, ctx.Err()
		}
		if err != nil {
			v.Error = frame.ProblemOf(err).Detail
		}
		if l != nil {
			s.describe(ctx, &v, repo, l, primary)
		}
		if p.Primary {
			primary = l
		}
		out = append(out, v)
	}
	return &frame.Out[[]api.Repository]{Body: out}, nil
}

// look reads the logs of a repository. Where a part of it is damaged, the rest
// comes beside the error.
func look(ctx context.Context, repo *repository.Repository) (*listed, error) {
	machines, err := repo.Machines(ctx)
	if err != nil && !errors.Is(err, repository.ErrDamaged) {
		return nil, err
	}
	l := &listed{machines: len(machines), points: map[string]repository.Point{}}
	bad := []error{err}
	for _, m := range machines {
		points, err := repo.Points(ctx, m.ID)
		if err != nil && !errors.Is(err, repository.ErrDamaged) {
			return nil, err
		}
		bad = append(bad, err)
		for _, p := range points {
			l.points[p.ID] = p
		}
		if n := len(points); n > 0 {
			l.newest = append(l.newest, points[n-1])
		}
	}
	return l, errors.Join(bad...)
}

func (s routes) describe(ctx context.Context, v *api.Repository, repo *repository.Repository, l, primary *listed) {
	v.Reachable, v.Machines, v.Points = true, l.machines, len(l.points)
	var newest time.Time
	for _, p := range l.newest {
		at := p.Time
		if c, err := s.Catalog(ctx); err == nil {
			if known, err := c.Points.Get(ctx, p.ID); err == nil {
				at = known.Time
			}
		}
		if at.After(newest) {
			newest = at
		}
	}
	if !newest.IsZero() {
		newest = newest.UTC()
		v.Newest = &newest
	}
	if primary == nil {
		return
	}
	for id, p := range primary.points {
		if _, there := l.points[id]; there {
			continue
		}
		if deleted, err := repo.CheckCommitted(ctx, p.Machine, id); err != nil || !deleted {
			v.Missing++
		}
	}
}

func (s routes) add(ctx context.Context, req *frame.In[api.RepositoryAdd]) (*frame.Out[api.RepositoryAdded], error) {
	r := req.Body
	e := audit.Event{Action: "repository.add", Object: frame.Clip(r.Name), Detail: map[string]string{"url": frame.Clip(r.URL)}}
	return frame.Audited(ctx, s.Frame, e, func() (*frame.Out[api.RepositoryAdded], error) {
		if s.Restricted && (r.PassphraseFile != "" || r.IdentityFile != "" || r.KitFile != "") {
			p := frame.Refused("add repository: a server reads and writes no files that a request names")
			p.Hint = "run 'lockstep repository add' while no server runs"
			return nil, p
		}
		lock, err := s.Locks.Acquire("repositories", "repository add")
		if err != nil {
			return nil, err
		}
		defer lock.Release()
		a, err := s.Repositories.Add(ctx, frame.NewPlace{
			Name: r.Name, URL: r.URL, PassphraseFile: r.PassphraseFile, IdentityFile: r.IdentityFile, KitFile: r.KitFile,
		})
		var refused *api.Error
		if errors.As(err, &refused) { // what it says is for who asked
			return nil, (*frame.Problem)(refused)
		}
		if err != nil {
			return nil, err
		}
		// What it has already counts, also where it cannot be reached later.
		c, err := s.Catalog(ctx)
		if err == nil {
			err = s.NoteAllListed(ctx, c, a.Place)
		}
		if err != nil {
			s.Log.Warn("what the repository has is not recorded", "repository", a.Name, "error", err)
		}
		return &frame.Out[api.RepositoryAdded]{Body: api.RepositoryAdded{
			Name: a.Name, ID: a.ID, URL: a.URL, TrustRoot: a.TrustRoot, Made: a.Made, KitFile: a.KitFile, Warnings: a.Warnings,
		}}, nil
	})
}

type repositoryPath struct {
	Name string `path:"name" doc:"name, id or URL of the repository"`
}

// promote waits for nobody: a backup under way would end in the repository
// that is given up, so it is refused instead.
func (s routes) promote(ctx context.Context, req *repositoryPath) (*frame.Out[api.Repository], error) {
	e := audit.Event{Action: "repository.promote", Object: frame.Clip(req.Name)}
	return frame.Audited(ctx, s.Frame, e, func() (*frame.Out[api.Repository], error) {
		place, err := s.Place(req.Name)
		if err != nil {
			return nil, err
		}
		if place.Primary {
			return nil, frame.Refused("promote repository: backups write to %s already", place.Name)
		}
		repo, err := s.Repositories.Open(ctx, place.Name)
		if err != nil {
			return nil, err
		}
		if repo.Inside().Writer == nil {
			return nil, repo.Inside().ReadOnly("promote repository " + place.Name)
		}
		c, err := s.Catalog(ctx)
		if err != nil {
			return nil, err
		}
		machines, err := c.Machines.List(ctx, true)
		if err != nil {
			return nil, err
		}
		lock, err := s.Locks.Acquire("repositories", "repository promote")
		if err != nil {
			return nil, err
		}
		defer lock.Release()
		for _, m := range machines {
			l, err := s.Lock(m, "repository promote")
			if err != nil {
				return nil, err
			}
			defer l.Release()
		}
		before := s.Repositories.List()[0]
		if err := s.Repositories.Promote(ctx, place.Name); err != nil {
			return nil, err
		}
		before.Primary, place.Primary = false, true
		s.noteGivenUp(ctx, c, before, machines)
		// The catalog follows the log of the one that is written.
		if err := record(ctx, c, repo, machines); err != nil {
			return nil, frame.Hint(fmt.Errorf("repository %s is the one that is written; the catalog could not follow: %w", place.Name, err), "'lockstep catalog rebuild'")
		}
		if err := s.NoteAllListed(ctx, c, place); err != nil {
			s.Log.Warn("what the repository lacks is not recorded", "repository", place.Name, "error", err)
		}
		s.noteThere(ctx, c, place, machines)
		all, err := s.list(ctx, nil)
		if err != nil {
			return nil, err
		}
		i := slices.IndexFunc(all.Body, func(r api.Repository) bool { return r.ID == place.ID })
		return &frame.Out[api.Repository]{Body: all.Body[i]}, nil
	})
}

// noteGivenUp remembers what the repository has that was written until now, so
// that status can say what it lacks later.
func (s routes) noteGivenUp(ctx context.Context, c *catalog.Catalog, place frame.Place, machines []catalog.Machine) {
	v, err := s.Copied(ctx, c, place.ID)
	for _, m := range machines {
		var points []catalog.Point
		if err == nil {
			points, err = c.Points.List(ctx, catalog.PointQuery{Machine: m.ID, Bare: true})
		}
		if err == nil {
			err = s.NoteGivenUp(ctx, c, place, m.ID, points)
		}
		if newest, ok := catalog.Newest(points, time.Time{}); ok {
			v.Newest[m.ID] = newest.ID
		}
		for _, p := range points { // what was made there is known by that
			if p.Repository != place.ID && !slices.Contains(v.Points[m.ID], p.ID) {
				v.Points[m.ID] = append(v.Points[m.ID], p.ID)
			}
		}
	}
	if err == nil {
		err = s.SetCopied(ctx, c, place.ID, v)
	}
	if err != nil {
		s.Log.Warn("what the repository has that is given up is not recorded", "repository", place.Name, "error", err)
	}
}

// noteThere remembers what a repository lists of machines: from then on it is
// missed there, unless its log says that it was deleted.
func (s routes) noteThere(ctx context.Context, c *catalog.Catalog, place frame.Place, machines []catalog.Machine) {
	repo, err := s.Repositories.Open(ctx, place.Name)
	var v frame.Copied
	if err == nil {
		v, err = s.Copied(ctx, c, place.ID)
	}
	bad := []error{err}
	if err == nil {
		for _, m := range machines {
			points, err := repo.Points(ctx, m.ID)
			if err != nil && !errors.Is(err, repository.ErrNotFound) && !errors.Is(err, repository.ErrDamaged) {
				bad = append(bad, err)
				continue
			}
			if len(points) == 0 {
				continue
			}
			v.Points[m.ID] = nil
			for _, p := range points {
				v.Points[m.ID] = append(v.Points[m.ID], p.ID)
			}
		}
		bad = append(bad, s.SetCopied(ctx, c, place.ID, v))
	}
	if err := errors.Join(bad...); err != nil {
		s.Log.Warn("what a repository has is not recorded", "repository", place.Name, "error", err)
	}
}

// record has the catalog say of each recovery point what this repository's log says.
func record(ctx context.Context, c *catalog.Catalog, repo *repository.Repository, machines []catalog.Machine) error {
	var bad []error
	for _, m := range machines {
		points, err := repo.Points(ctx, m.ID)
		if errors.Is(err, repository.ErrNotFound) {
			continue
		}
		bad = append(bad, err)
		for _, p := range points {
			mf, err := repo.Manifest(ctx, p)
			var cp catalog.Point
			if err == nil {
				cp, err = backup.CatalogPoint(p, mf)
			}
			if err == nil {
				err = c.Points.Record(ctx, cp)
			}
			bad = append(bad, err)
		}
	}
	return errors.Join(bad...)
}
