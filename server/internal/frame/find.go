package frame

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
	"github.com/lockstep-backup/lockstep/prove"
	"github.com/lockstep-backup/lockstep/repository"
	"github.com/lockstep-backup/lockstep/server/internal/show"
)

// Machine finds a protected machine by name; a removed one is not found.
func (s *Frame) Machine(ctx context.Context, c *catalog.Catalog, name string) (catalog.Machine, error) {
	m, err := c.Machines.ByName(ctx, name)
	if errors.Is(err, catalog.ErrNotFound) || err == nil && !m.RemovedAt.IsZero() {
		p := NewProblem(http.StatusNotFound, api.ExitFailed, fmt.Sprintf("find machine: there is no machine %q", name))
		p.Hint = "'lockstep machine list' shows the machines; 'lockstep machine add' enrols one"
		return m, p
	}
	return m, err
}

// Machines is the machine of that name, or all: removed ones too, for their
// recovery points stay.
func (s *Frame) Machines(ctx context.Context, c *catalog.Catalog, name string) ([]catalog.Machine, error) {
	if name == "" {
		return c.Machines.List(ctx, true)
	}
	m, err := s.Machine(ctx, c, name)
	if err != nil {
		return nil, err
	}
	return []catalog.Machine{m}, nil
}

// Names gives machines' names to ids, as far as the catalog can say.
func (s *Frame) Names(ctx context.Context) map[string]string {
	out := map[string]string{}
	c, err := s.Catalog(ctx)
	if err != nil {
		return out
	}
	all, err := c.Machines.List(ctx, true)
	if err != nil {
		return out
	}
	for _, m := range all {
		out[m.ID] = m.Name
	}
	return out
}

// ResolvePoint finds the recovery point that the user named.
func (s *Frame) ResolvePoint(ctx context.Context, c *catalog.Catalog, ref string) (catalog.Point, error) {
	p, err := c.Resolve(ctx, ref)
	if errors.Is(err, catalog.ErrNotFound) {
		err = Hint(err, "'lockstep point list' shows the recovery points")
	}
	return p, err
}

// PointView shows one recovery point, with what changed since its parent.
func (s *Frame) PointView(ctx context.Context, c *catalog.Catalog, p catalog.Point) (api.Point, error) {
	m, err := c.Machines.Get(ctx, p.Machine)
	if err != nil {
		return api.Point{}, err
	}
	points, err := s.PointsOf(ctx, c, m)
	if err != nil {
		return api.Point{}, err
	}
	i := slices.IndexFunc(points, func(v api.Point) bool { return v.ID == p.ID })
	if i < 0 {
		return api.Point{}, fmt.Errorf("show recovery point %s: %w", p.ID, catalog.ErrNotFound)
	}
	return points[i], nil
}

// PointsOf shows the recovery points of a machine, newest first.
func (s *Frame) PointsOf(ctx context.Context, c *catalog.Catalog, m catalog.Machine) ([]api.Point, error) {
	// Deleted ones too: a recovery point may follow one.
	all, err := c.Points.List(ctx, catalog.PointQuery{Machine: m.ID, Deleted: true})
	if err != nil {
		return nil, err
	}
	if len(all) == 0 {
		return nil, nil
	}
	view, err := prove.Load(ctx, s.Custody(ctx, c), m.ID)
	if err != nil {
		return nil, err
	}
	marks, err := prove.MarksOf(ctx, c, m.ID)
	if err != nil {
		return nil, err
	}
	only, err := s.OnlyIn(ctx, c, m.ID)
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
		v.OnlyIn = only[v.ID]
		show.Marks(&v, marks[v.ID])
		views = append(views, v)
	}
	return views, nil
}

// Custody is what custody works with now: a key manager or a repository
// that cannot be had is left out, and the states say so.
func (s *Frame) Custody(ctx context.Context, c *catalog.Catalog) prove.Deps {
	d := prove.Deps{
		Catalog: c, Prover: s.Prover, Recipients: s.Recipients, Installation: s.Installation,
		Formats: s.Formats, Live: s.LiveDisks, Lease: s.Leases("a proof"), Now: s.Now, Log: s.Log, Actor: s.ActorOf(ctx),
		Audit: func(ctx context.Context, e audit.Event) error {
			_, err := s.Audit.Append(context.WithoutCancel(ctx), e)
			return err
		},
	}
	m, err := s.Manager(ctx)
	if err != nil {
		s.Log.Info("key manager", "error", err) // the states say it
	} else {
		d.Manager = m
	}
	r, err := s.Repository(ctx)
	if err != nil {
		s.Log.Info("repository", "error", err)
	} else {
		d.Repo = r
	}
	return d
}

// Manifest finds a catalogued recovery point in the repository.
func (s *Frame) Manifest(ctx context.Context, repo *repository.Repository, p catalog.Point) (*repository.Manifest, error) {
	rp, err := s.RepositoryPoint(ctx, repo, p)
	if err != nil {
		return nil, err
	}
	return repo.Manifest(ctx, rp)
}

// RepositoryPoint finds a catalogued recovery point in the repository's log.
func (s *Frame) RepositoryPoint(ctx context.Context, repo *repository.Repository, p catalog.Point) (repository.Point, error) {
	return pointIn(ctx, repo, p)
}

// ErrPointDeleted says that a repository's log deletes a recovery point.
var ErrPointDeleted = errors.New("recovery point was deleted")

func pointIn(ctx context.Context, repo *repository.Repository, p catalog.Point) (repository.Point, error) {
	list, err := repo.Points(ctx, p.Machine)
	// Damage in other entries of the log must not keep this one from being read.
	i := slices.IndexFunc(list, func(x repository.Point) bool { return x.ID == p.ID })
	if i >= 0 {
		return list[i], nil
	}
	if deleted, derr := repo.Deleted(ctx, p.Machine); err == nil && derr == nil && deleted[p.ID] {
		err = Hint(fmt.Errorf("%w: %w", ErrPointDeleted, repository.ErrNotFound), "'lockstep point list' shows the recovery points that are left")
	}
	if err == nil {
		err = Hint(repository.ErrNotFound, "the catalog and the repository disagree: 'lockstep catalog rebuild'")
	}
	return repository.Point{}, fmt.Errorf("find recovery point %s: %w", p.ID, err)
}

// Lock keeps backups, restores and deletions of a machine apart.
func (s *Frame) Lock(m catalog.Machine, what string) (*job.Lock, error) {
	return s.Locks.Acquire(MachineKey(m), what)
}

// MachineKey keeps jobs of one machine apart.
func MachineKey(m catalog.Machine) string { return "machine:" + m.Name }
