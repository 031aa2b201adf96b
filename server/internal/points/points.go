// Package points is the routes of recovery points, and the status of all of them.
package points

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"strings"

	"github.com/lockstep-backup/lockstep/api"
	"github.com/lockstep-backup/lockstep/audit"
	"github.com/lockstep-backup/lockstep/catalog"
	"github.com/lockstep-backup/lockstep/prove"
	"github.com/lockstep-backup/lockstep/prune"
	"github.com/lockstep-backup/lockstep/repository"
	"github.com/lockstep-backup/lockstep/server/internal/frame"
)

type routes struct{ *frame.Frame }

// Register adds the routes.
func Register(f *frame.Frame) {
	s := routes{f}
	frame.Route(f, "list-points", http.MethodGet, "/v1/points", "List recovery points, the newest first", s.listPoints)
	frame.Route(f, "get-point", http.MethodGet, "/v1/points/{point}", "Show a recovery point", s.getPoint)
	frame.Route(f, "delete-point", http.MethodDelete, "/v1/points/{point}", "Delete a recovery point", s.deletePoint)
	frame.Route(f, "mark-point", http.MethodPost, "/v1/points/{point}/marks", "Pin, tag or hold a recovery point, or take that back", s.markPoint)
	frame.Route(f, "get-status", http.MethodGet, "/v1/status", "Which secret opens which recovery point, the worst machine first", s.getStatus)
}

func (s routes) listPoints(ctx context.Context, req *frame.OfMachine) (*frame.Out[[]api.Point], error) {
	c, err := s.Catalog(ctx)
	if err != nil {
		return nil, err
	}
	machines, err := s.Machines(ctx, c, req.Machine)
	if err != nil {
		return nil, err
	}
	r := &frame.Out[[]api.Point]{Body: []api.Point{}}
	for _, m := range machines {
		points, err := s.PointsOf(ctx, c, m)
		if err != nil {
			return nil, err
		}
		r.Body = append(r.Body, points...)
	}
	return r, nil
}

func (s routes) getPoint(ctx context.Context, req *frame.PointPath) (*frame.Out[api.Point], error) {
	c, err := s.Catalog(ctx)
	if err != nil {
		return nil, err
	}
	p, err := s.ResolvePoint(ctx, c, req.Point)
	if err != nil {
		return nil, err
	}
	v, err := s.PointView(ctx, c, p)
	if err != nil {
		return nil, err
	}
	return &frame.Out[api.Point]{Body: v}, nil
}

type pointDelete struct {
	frame.PointPath
	Body api.PointDelete
}

func (s routes) deletePoint(ctx context.Context, req *pointDelete) (*frame.Out[api.PointDeleted], error) {
	e := audit.Event{Action: "point.delete", Object: req.Point, Reason: req.Body.Reason}
	if req.Body.Repository != "" {
		e.Detail = frame.WithDetail(e.Detail, "repository", frame.Clip(req.Body.Repository))
	}
	return frame.Audited(ctx, s.Frame, e, func() (*frame.Out[api.PointDeleted], error) {
		v, err := s.forget(ctx, req.Point, req.Body.Repository, e)
		if err != nil {
			return nil, err
		}
		return &frame.Out[api.PointDeleted]{Body: v}, nil
	})
}

// forget takes a recovery point off the list of one repository; before that, e
// is recorded as begun. What somebody wants kept is not deleted.
func (s routes) forget(ctx context.Context, ref, in string, e audit.Event) (v api.PointDeleted, err error) {
	c, err := s.Catalog(ctx)
	if err != nil {
		return v, err
	}
	p, err := s.ResolvePoint(ctx, c, ref)
	if err != nil {
		return v, err
	}
	fail := func(err error) (api.PointDeleted, error) {
		return v, fmt.Errorf("delete recovery point %s: %w", p.ID, err)
	}
	m, err := c.Machines.Get(ctx, p.Machine)
	if err != nil {
		return fail(err)
	}
	place := s.Repositories.List()[0]
	if in != "" {
		if place, err = s.Place(in); err != nil {
			return fail(err)
		}
	}
	lock, err := s.Lock(m, "deletion of recovery point "+p.ID)
	if err != nil {
		return fail(err)
	}
	defer lock.Release()
	repo, err := s.Repositories.Open(ctx, place.Name)
	if err != nil {
		return fail(err)
	}
	if err := s.there(ctx, c, place, repo, m, p); err != nil {
		return fail(err)
	}
	deps := s.Pruning(ctx, c, place, repo, nil)
	// A mark that cannot be read does not keep who names one recovery point from
	// deleting it; those that can be read do.
	if _, err := deps.Statements(ctx, m.ID); err != nil && !errors.Is(err, prove.ErrMarkUnread) {
		return fail(err)
	}
	marks, err := prove.MarksOf(ctx, c, m.ID)
	if err != nil {
		return fail(err)
	}
	if why := prune.Keeps(marks[p.ID]); len(why) > 0 {
		return fail(fmt.Errorf("%w: %s", prune.ErrKept, strings.Join(why, "; ")))
	}
	// Asked first: without the key manager the holds would stay for ever.
	if _, err := s.Manager(ctx); err != nil {
		return fail(fmt.Errorf("its holds could not be released: %w", err))
	}
	e.Object = p.ID
	deps.Begin = func(ctx context.Context, _ catalog.Point, _ string) error { return s.Begin(ctx, e) }
	deps.Done = func(context.Context, catalog.Point, string, error) error { return nil } // the request's own entry says it
	done, err := prune.Delete(ctx, deps, []catalog.Point{p}, func(catalog.Point) string { return e.Reason })
	if err != nil {
		return fail(err)
	}
	if used := done.InUse[p.ID]; used != nil {
		return v, fmt.Errorf("delete: %w", used)
	}
	return api.PointDeleted{Deleted: p.ID, Repository: place.Name, StillIn: done.In[p.ID], Warnings: done.Problems}, nil
}

// there refuses to delete a recovery point in a repository that does not list
// it, while another one does. One that none lists any more is to be finished.
func (s routes) there(ctx context.Context, c *catalog.Catalog, place frame.Place, repo *repository.Repository, m catalog.Machine, p catalog.Point) error {
	_, err := s.RepositoryPoint(ctx, repo, p)
	if err == nil || !errors.Is(err, repository.ErrNotFound) || errors.Is(err, repository.ErrDamaged) {
		return nil // what a damaged log hides, deleting finds or refuses
	}
	found, err := s.Elsewhere(ctx, c, place.ID, m, []string{p.ID})
	if err != nil {
		return err
	}
	if in := found.In[p.ID]; len(in) > 0 {
		return frame.Hint(fmt.Errorf("repository %s does not list it; it is in %s: %w", place.Name, strings.Join(in, ", "), repository.ErrNotFound),
			"'lockstep point delete %s --repository %s' deletes it there", p.ID, in[0])
	}
	deleted, err := repo.Deleted(ctx, p.Machine)
	if err != nil && !errors.Is(err, repository.ErrNotFound) {
		return err
	}
	if p.Repository != repo.ID() && !deleted[p.ID] {
		return fmt.Errorf("it was made in repository %s: %w", p.Repository, repository.ErrNotFound)
	}
	return nil
}
