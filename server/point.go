package server

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"slices"

	"github.com/lockstep-backup/lockstep/api"
	"github.com/lockstep-backup/lockstep/audit"
	"github.com/lockstep-backup/lockstep/catalog"
	"github.com/lockstep-backup/lockstep/diskcrypt"
	"github.com/lockstep-backup/lockstep/prove"
	"github.com/lockstep-backup/lockstep/repository"
	"github.com/lockstep-backup/lockstep/server/internal/show"
)

type PointPath struct {
	Point string `path:"point" doc:"id or unique prefix, NAME@latest, NAME@TIME"`
}

type ofMachine struct {
	Machine string `query:"machine" doc:"name of a machine; empty = all"`
}

func (s *Server) pointRoutes() {
	route(s, "list-points", http.MethodGet, "/v1/points", "List recovery points, the newest first", s.listPoints)
	route(s, "get-point", http.MethodGet, "/v1/points/{point}", "Show a recovery point", s.getPoint)
	route(s, "delete-point", http.MethodDelete, "/v1/points/{point}", "Delete a recovery point", s.deletePoint, status(http.StatusNoContent))
}

// resolve finds the recovery point that the user named.
func (s *Server) resolvePoint(ctx context.Context, c *catalog.Catalog, ref string) (catalog.Point, error) {
	p, err := c.Resolve(ctx, ref)
	if errors.Is(err, catalog.ErrNotFound) {
		err = hint(err, "'lockstep point list' shows the recovery points")
	}
	return p, err
}

func (s *Server) listPoints(ctx context.Context, req *ofMachine) (*out[[]api.Point], error) {
	c, err := s.d.Catalog(ctx)
	if err != nil {
		return nil, err
	}
	machines, err := s.machines(ctx, c, req.Machine)
	if err != nil {
		return nil, err
	}
	r := &out[[]api.Point]{Body: []api.Point{}}
	for _, m := range machines {
		points, err := s.pointsOf(ctx, c, m)
		if err != nil {
			return nil, err
		}
		r.Body = append(r.Body, points...)
	}
	return r, nil
}

// machines is the machine of that name, or all: removed ones too, for their
// recovery points stay.
func (s *Server) machines(ctx context.Context, c *catalog.Catalog, name string) ([]catalog.Machine, error) {
	if name == "" {
		return c.Machines.List(ctx, true)
	}
	m, err := s.machine(ctx, c, name)
	if err != nil {
		return nil, err
	}
	return []catalog.Machine{m}, nil
}

func (s *Server) getPoint(ctx context.Context, req *PointPath) (*out[api.Point], error) {
	c, err := s.d.Catalog(ctx)
	if err != nil {
		return nil, err
	}
	p, err := s.resolvePoint(ctx, c, req.Point)
	if err != nil {
		return nil, err
	}
	v, err := s.pointView(ctx, c, p)
	if err != nil {
		return nil, err
	}
	return &out[api.Point]{Body: v}, nil
}

// pointView shows one recovery point, with what changed since its parent.
func (s *Server) pointView(ctx context.Context, c *catalog.Catalog, p catalog.Point) (api.Point, error) {
	m, err := c.Machines.Get(ctx, p.Machine)
	if err != nil {
		return api.Point{}, err
	}
	points, err := s.pointsOf(ctx, c, m)
	if err != nil {
		return api.Point{}, err
	}
	i := slices.IndexFunc(points, func(v api.Point) bool { return v.ID == p.ID })
	if i < 0 {
		return api.Point{}, fmt.Errorf("show recovery point %s: %w", p.ID, catalog.ErrNotFound)
	}
	return points[i], nil
}

// pointsOf shows the recovery points of a machine, newest first.
func (s *Server) pointsOf(ctx context.Context, c *catalog.Catalog, m catalog.Machine) ([]api.Point, error) {
	// Deleted ones too: a recovery point may follow one.
	all, err := c.Points.List(ctx, catalog.PointQuery{Machine: m.ID, Deleted: true})
	if err != nil {
		return nil, err
	}
	if len(all) == 0 {
		return nil, nil
	}
	view, err := prove.Load(ctx, s.custodyDeps(ctx, c), m.ID)
	if err != nil {
		return nil, err
	}
	views := []api.Point{}
	for i := len(all) - 1; i >= 0; i-- {
		if !all[i].DeletedAt.IsZero() {
			continue
		}
		v, err := show.Point(m, all[i], view)
		if err != nil {
			return nil, err
		}
		v.Changes = show.ChangesSince(all, i).Texts
		views = append(views, v)
	}
	return views, nil
}

// custodyDeps is what custody works with now: a key manager or a repository
// that cannot be had is left out, and the states say so.
func (s *Server) custodyDeps(ctx context.Context, c *catalog.Catalog) prove.Deps {
	d := prove.Deps{
		Catalog: c, Prover: s.d.Prover, Recipients: s.d.Recipients, Installation: s.d.Installation,
		Formats: s.d.Formats, Live: s.liveDisks, Now: s.d.Now, Log: s.d.Log, Actor: s.actor(ctx),
		Audit: func(ctx context.Context, e audit.Event) error {
			_, err := s.d.Audit.Append(context.WithoutCancel(ctx), e)
			return err
		},
	}
	m, err := s.d.Manager(ctx)
	if err != nil {
		s.d.Log.Info("key manager", "error", err) // the states say it
	} else {
		d.Manager = m
	}
	r, err := s.d.Repository(ctx)
	if err != nil {
		s.d.Log.Info("repository", "error", err)
	} else {
		d.Repo = r
	}
	return d
}

type pointDelete struct {
	PointPath
	Body api.Reason
}

func (s *Server) deletePoint(ctx context.Context, req *pointDelete) (*none, error) {
	e := audit.Event{Action: "point.delete", Object: req.Point, Reason: req.Body.Reason}
	return audited(ctx, s, e, func() (*none, error) {
		return nil, s.forget(ctx, req.Point, e)
	})
}

// forget takes a recovery point off the list. The repository goes first: what
// it does not list is not there. Then its holds are released, for nothing
// needs the secrets any more, and then the catalog is told.
// Before all of that, e is recorded as begun.
func (s *Server) forget(ctx context.Context, ref string, e audit.Event) error {
	c, err := s.d.Catalog(ctx)
	if err != nil {
		return err
	}
	p, err := s.resolvePoint(ctx, c, ref)
	if err != nil {
		return err
	}
	fail := func(err error) error { return fmt.Errorf("delete recovery point %s: %w", p.ID, err) }
	m, err := c.Machines.Get(ctx, p.Machine)
	if err != nil {
		return fail(err)
	}
	lock, err := s.lock(m, "deletion of recovery point "+p.ID)
	if err != nil {
		return fail(err)
	}
	defer lock.Release()
	repo, err := s.d.Repository(ctx)
	if err != nil {
		return fail(err)
	}
	if p.Repository != repo.ID() {
		return fail(fmt.Errorf("it is in repository %s: %w", p.Repository, repository.ErrNotFound))
	}
	// Asked first: without the key manager the holds would stay for ever.
	if _, err := s.d.Manager(ctx); err != nil {
		return fail(fmt.Errorf("its holds could not be released: %w", err))
	}
	e.Object = p.ID
	if err := s.begin(ctx, e); err != nil {
		return fail(err)
	}
	err = repo.Delete(ctx, p.Machine, p.ID, e.Reason)
	if err != nil && !errors.Is(err, repository.ErrNotFound) { // it may have been deleted and only the rest is left
		return fail(err)
	}
	// From here on it is gone: finish, whoever hangs up.
	ctx = context.WithoutCancel(ctx)
	if err := prove.ReleaseHolds(ctx, s.custodyDeps(ctx, c), p); err != nil {
		return fail(hint(fmt.Errorf("it is deleted, but not all its holds are released: %w", err), "the same command again releases the rest"))
	}
	if err := c.Points.Delete(ctx, p.ID, s.d.Now().UTC(), e.Reason); err != nil {
		return fail(err)
	}
	return nil
}

// manifest finds a catalogued recovery point in the repository.
func (s *Server) manifest(ctx context.Context, repo *repository.Repository, p catalog.Point) (*repository.Manifest, error) {
	if p.Repository != repo.ID() {
		return nil, fmt.Errorf("recovery point %s is in repository %s: %w", p.ID, p.Repository, repository.ErrNotFound)
	}
	rp, err := s.repositoryPoint(ctx, repo, p)
	if err != nil {
		return nil, err
	}
	return repo.Manifest(ctx, rp)
}

func (s *Server) repositoryPoint(ctx context.Context, repo *repository.Repository, p catalog.Point) (repository.Point, error) {
	list, err := repo.Points(ctx, p.Machine)
	// Damage in other entries of the log must not keep this one from being read.
	i := slices.IndexFunc(list, func(x repository.Point) bool { return x.ID == p.ID })
	if i >= 0 {
		return list[i], nil
	}
	if err == nil {
		err = hint(repository.ErrNotFound, "the catalog and the repository disagree: 'lockstep catalog rebuild'")
	}
	return repository.Point{}, fmt.Errorf("find recovery point %s: %w", p.ID, err)
}

// liveDisks opens a machine's disks as they are now, for a secret to be tried on.
func (s *Server) liveDisks(ctx context.Context, m catalog.Machine) ([]prove.LiveDisk, error) {
	var open []prove.LiveDisk
	var bad []error
	for _, def := range m.Disks {
		d, detached, err := s.openLive(ctx, def)
		if err != nil {
			bad = append(bad, fmt.Errorf("disk %s: %w", def.ID, err))
			continue
		}
		l := prove.LiveDisk{ID: def.ID, Size: d.Size(), Disk: d, Close: func() { _ = d.Close() }}
		if h, ok := detached[diskcrypt.WholeDisk]; ok {
			l.Header, l.HeaderSize = h.R, h.Size
		}
		open = append(open, l)
	}
	if len(open) == 0 {
		return nil, errors.Join(bad...)
	}
	for _, err := range bad {
		s.d.Log.Warn("a disk cannot be read now", "machine", m.Name, "error", err)
	}
	return open, nil
}
