package frame

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"

	"github.com/lockstep-backup/lockstep/catalog"
	"github.com/lockstep-backup/lockstep/job"
	"github.com/lockstep-backup/lockstep/prune"
	"github.com/lockstep-backup/lockstep/repository"
)

// listing is what the catalog remembers of a machine's recovery points in one
// repository, so that nothing has to be asked of a store that may be away.
type listing struct {
	// Listed, of a repository for copies: what it listed when it was read last.
	Listed []string `json:"listed,omitempty"`
	// Gone, of the one that backups write to: what the catalog lists, and it does
	// not any more.
	Gone []string `json:"gone,omitempty"`
}

func listedKey(place Place, machine string) string {
	return "repository.listed." + place.ID + "." + machine
}

// listedAllKey is set where all of a repository was read: of a machine without a
// listing it had nothing then.
func listedAllKey(place Place) string { return "repository.listed." + place.ID }

// CopyKey is what a job holds that copies a machine to a repository.
func CopyKey(place Place, m catalog.Machine) string { return "copy:" + place.ID + ":" + m.Name }

// listing reads what is remembered; known is false where nothing ever was.
func (s *Frame) listing(ctx context.Context, c *catalog.Catalog, place Place, machine string) (l listing, known bool, err error) {
	raw, err := c.Meta.Get(ctx, listedKey(place, machine))
	if err != nil || raw != "" {
		if err == nil {
			err = json.Unmarshal([]byte(raw), &l)
		}
		return l, err == nil, err
	}
	all, err := c.Meta.Get(ctx, listedAllKey(place))
	return l, all != "", err
}

// NoteListed reads what a repository lists of a machine, and remembers it. Where
// a part of its log is damaged, nothing is remembered.
func (s *Frame) NoteListed(ctx context.Context, c *catalog.Catalog, place Place, machine string) (listed []string, err error) {
	// Before the log: what the catalog has, the log had then.
	known, err := c.Points.List(ctx, catalog.PointQuery{Machine: machine, Bare: true})
	if err != nil {
		return nil, err
	}
	repo, err := s.Repositories.Open(ctx, place.Name)
	if err != nil {
		return nil, err
	}
	points, err := repo.Points(ctx, machine)
	if errors.Is(err, repository.ErrNotFound) && !errors.Is(err, repository.ErrDamaged) {
		old, _, lerr := s.listing(ctx, c, place, machine)
		made := slices.ContainsFunc(known, func(p catalog.Point) bool { return p.Repository == place.ID })
		// A store that went away while it was open looks empty.
		if lerr == nil && len(old.Listed) == 0 && !(place.Primary && made) {
			err = nil
		}
	}
	for _, p := range points {
		listed = append(listed, p.ID)
	}
	if err != nil {
		return listed, err
	}
	l := listing{Listed: listed}
	if place.Primary {
		l.Listed = nil
		for _, p := range known {
			if !slices.Contains(listed, p.ID) {
				l.Gone = append(l.Gone, p.ID)
			}
		}
	}
	return listed, s.setListing(ctx, c, place, machine, l)
}

func (s *Frame) setListing(ctx context.Context, c *catalog.Catalog, place Place, machine string, l listing) error {
	raw, err := json.Marshal(l)
	if err != nil {
		return err
	}
	return c.Meta.Set(ctx, listedKey(place, machine), string(raw))
}

// NoteCopying remembers recovery points as listed before they are copied: a copy
// that is killed may have brought them.
func (s *Frame) NoteCopying(ctx context.Context, c *catalog.Catalog, place Place, machine string, points []repository.Point) error {
	l, known, err := s.listing(ctx, c, place, machine)
	if err != nil || !known && !place.Primary { // what was never read counts as having all
		return err
	}
	for _, p := range points {
		switch {
		case place.Primary:
			l.Gone = slices.DeleteFunc(l.Gone, func(id string) bool { return id == p.ID })
		case !slices.Contains(l.Listed, p.ID):
			l.Listed = append(l.Listed, p.ID)
		}
	}
	return s.setListing(ctx, c, place, machine, l)
}

// NoteGivenUp remembers of the repository that backups wrote to until now what
// it lists: of the catalog's recovery points those that it did not delete.
func (s *Frame) NoteGivenUp(ctx context.Context, c *catalog.Catalog, place Place, machine string, points []catalog.Point) error {
	old, _, err := s.listing(ctx, c, place, machine)
	if err != nil {
		return err
	}
	var l listing
	for _, p := range points {
		if !slices.Contains(old.Gone, p.ID) {
			l.Listed = append(l.Listed, p.ID)
		}
	}
	return s.setListing(ctx, c, place, machine, l)
}

// NoteAllListed is NoteListed for all machines.
func (s *Frame) NoteAllListed(ctx context.Context, c *catalog.Catalog, place Place) error {
	machines, err := c.Machines.List(ctx, true)
	if err != nil {
		return err
	}
	for _, m := range machines {
		if _, err := s.NoteListed(ctx, c, place, m.ID); err != nil {
			return fmt.Errorf("machine %s: %w", m.Name, err)
		}
	}
	return c.Meta.Set(ctx, listedAllKey(place), s.Now().UTC().Format("2006-01-02T15:04:05Z"))
}

// remembered says of recovery points which of them count as listed in a
// repository that cannot be asked, and why those count.
func (s *Frame) remembered(ctx context.Context, c *catalog.Catalog, place Place, machine string, points []string) (in []string, why string, err error) {
	l, known, err := s.listing(ctx, c, place, machine)
	if err != nil {
		return nil, "", err
	}
	for _, id := range points {
		switch {
		case place.Primary:
			if !slices.Contains(l.Gone, id) {
				in = append(in, id)
			}
		case !known || slices.Contains(l.Listed, id):
			in = append(in, id)
		}
	}
	if why = "it counts as having what it had when it was read last"; !known {
		why = "it was never read, and counts as having all"
	}
	return in, why, nil
}

// Elsewhere says which repositories but one list recovery points of a machine
// that the one has deleted. They are asked; one that does not answer, or is just
// being copied to, counts as having what it may have.
func (s *Frame) Elsewhere(ctx context.Context, c *catalog.Catalog, but string, m catalog.Machine, points []string) (out prune.Elsewhere, err error) {
	out.In = map[string][]string{}
	for _, place := range s.Repositories.List() {
		if place.ID == but {
			continue
		}
		in, problem, err := s.listedIn(ctx, c, place, m, points)
		if err != nil {
			return out, fmt.Errorf("ask repository %s what it lists: %w", place.Name, err)
		}
		for _, id := range in {
			out.In[id] = append(out.In[id], place.Name)
		}
		if problem != "" && len(in) > 0 {
			out.Problems = append(out.Problems, fmt.Sprintf("repository %s %s", place.Name, problem))
		}
	}
	return out, nil
}

func (s *Frame) listedIn(ctx context.Context, c *catalog.Catalog, place Place, m catalog.Machine, points []string) (in []string, problem string, err error) {
	// A copy that is under way may have begun when the recovery points were still
	// listed where it takes them from. One that begins now does not find them.
	lock, err := s.Locks.Acquire(CopyKey(place, m), "a look for copies that are under way")
	if errors.Is(err, job.ErrBusy) {
		return points, "is being copied to; it counts as having all that was deleted, and the holds stay until the next 'lockstep prune'", nil
	}
	if err != nil {
		return nil, "", err
	}
	lock.Release()
	listed, err := s.NoteListed(ctx, c, place, m.ID)
	if ctx.Err() != nil {
		return nil, "", ctx.Err()
	}
	if err != nil {
		in, why, rerr := s.remembered(ctx, c, place, m.ID, points)
		if rerr != nil {
			return nil, "", rerr
		}
		// Of a log that is damaged in part the rest counts as well.
		for _, id := range points {
			if slices.Contains(listed, id) && !slices.Contains(in, id) {
				in = append(in, id)
			}
		}
		return in, fmt.Sprintf("cannot be asked (%s); %s, and the holds of these recovery points stay", ProblemOf(err).Detail, why), nil
	}
	return slices.DeleteFunc(slices.Clone(points), func(id string) bool { return !slices.Contains(listed, id) }), "", nil
}

// OnlyIn names the repositories of recovery points that the one that backups
// write to does not list any more, as far as that is remembered.
func (s *Frame) OnlyIn(ctx context.Context, c *catalog.Catalog, machine string) (map[string][]string, error) {
	places := s.Repositories.List()
	l, _, err := s.listing(ctx, c, places[0], machine)
	if err != nil || len(l.Gone) == 0 {
		return nil, err
	}
	out := map[string][]string{}
	for _, place := range places[1:] {
		in, _, err := s.remembered(ctx, c, place, machine, l.Gone)
		if err != nil {
			return nil, err
		}
		for _, id := range in {
			out[id] = append(out[id], place.Name)
		}
	}
	return out, nil
}
