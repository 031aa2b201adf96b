package repositories

import (
	"context"
	"errors"
	"net/http"
	"slices"
	"time"

	"github.com/lockstep-backup/lockstep/api"
	"github.com/lockstep-backup/lockstep/repository"
	"github.com/lockstep-backup/lockstep/retention"
	"github.com/lockstep-backup/lockstep/server/internal/frame"
)

func (s routes) registerStorage() {
	frame.Route(s.Frame, "repository-stats", http.MethodGet, "/v1/repositories/{name}/stats", "Measure what a repository holds, who needs it and what is to be expected", s.stats)
	frame.Route(s.Frame, "get-repository-lock", http.MethodGet, "/v1/repositories/{name}/lock", "Show for how long what is written is locked", s.showLock)
	frame.Route(s.Frame, "set-repository-lock", http.MethodPut, "/v1/repositories/{name}/lock", "Set for how long what is written is locked", s.setLock)
}

// named is the repository of a path.
func (s routes) named(name string) (frame.Place, error) {
	if name == api.Primary {
		return s.Repositories.List()[0], nil
	}
	return s.Place(name)
}

type statsRequest struct {
	Name string `path:"name" doc:"name, id or URL of the repository"`
	frame.OfMachine
}

const day = 24 * time.Hour

// ahead is how far is looked.
var ahead = []time.Duration{30 * day, 90 * day, 365 * day}

func (s routes) stats(ctx context.Context, req *statsRequest) (*frame.Out[api.RepositoryStats], error) {
	place, err := s.named(req.Name)
	if err != nil {
		return nil, err
	}
	repo, err := s.Repositories.Open(ctx, place.Name)
	if err != nil {
		return nil, err
	}
	only := ""
	if req.Machine != "" {
		c, err := s.Catalog(ctx)
		if err != nil {
			return nil, err
		}
		m, err := s.Machine(ctx, c, req.Machine)
		if err != nil {
			return nil, err
		}
		only = m.ID
	}
	machines, err := repo.Machines(ctx)
	if err != nil && !errors.Is(err, repository.ErrDamaged) {
		return nil, err
	}
	out := api.RepositoryStats{Name: place.Name, URL: place.URL, Machines: []api.MachineStats{}}
	names := s.Names(ctx)
	total := make([]retention.Expected, len(ahead))
	outlook := api.Outlook{}
	for _, m := range machines {
		if only != "" && m.ID != only {
			continue
		}
		v, o, err := s.measure(ctx, repo, m.ID)
		if ctx.Err() != nil {
			return nil, ctx.Err()
		}
		if v.Machine = m.ID; names[m.ID] != "" {
			v.Machine = names[m.ID]
		}
		if err != nil {
			v.Error = frame.ProblemOf(err).Detail
		}
		out.Logical, out.Stored, out.Needed = out.Logical+v.Logical, out.Stored+v.Stored, out.Needed+v.Needed
		out.Dead, out.Objects = out.Dead+v.Dead, out.Objects+v.Objects
		for i, d := range ahead {
			e := retention.Expected{In: d, Bytes: v.Stored, Points: len(v.Points)}
			if o != nil {
				e = o.Ahead[i]
			}
			total[i].In, total[i].Bytes, total[i].Points = d, total[i].Bytes+e.Bytes, total[i].Points+e.Points
		}
		if o != nil {
			v.Outlook = wireOutlook(*o)
			outlook.Observed, outlook.PerDay, outlook.Typical = outlook.Observed+o.Observed, outlook.PerDay+o.PerDay, outlook.Typical+o.Typical
		}
		out.Machines = append(out.Machines, v)
	}
	if outlook.Observed > 0 {
		outlook.Ahead = wireOutlook(retention.Outlook{Ahead: total}).Ahead
		out.Outlook = &outlook
	}
	if place.Local && s.Free != nil {
		if free, err := s.Free(place.URL); err == nil {
			out.Free = &free
			if in, ok := retention.FullIn(out.Stored, free, total); ok && only == "" && out.Outlook != nil {
				days := in.Hours() / 24
				out.FullIn = &days
			}
		}
	}
	return &frame.Out[api.RepositoryStats]{Body: out}, nil
}

func wireOutlook(o retention.Outlook) *api.Outlook {
	v := &api.Outlook{Observed: o.Observed, PerDay: o.PerDay, Typical: o.Typical, Ahead: []api.Expected{}}
	for _, e := range o.Ahead {
		v.Ahead = append(v.Ahead, api.Expected{Days: int(e.In / day), Bytes: e.Bytes, Points: e.Points})
	}
	return v
}

// measure measures a machine. The outlook is nil where there is none.
func (s routes) measure(ctx context.Context, repo *repository.Repository, mid string) (v api.MachineStats, o *retention.Outlook, err error) {
	v.Points = []api.PointStats{}
	st, err := repo.Stats(ctx, mid)
	v.Logical, v.Stored, v.Needed, v.Dead, v.Objects = st.Logical, st.Stored, st.Needed, st.Dead, st.Objects
	if err != nil {
		return v, nil, err
	}
	listed, err := repo.Points(ctx, mid)
	if err != nil {
		return v, nil, err
	}
	var history []retention.Stored
	for _, p := range listed {
		i := slices.IndexFunc(st.Points, func(m repository.PointStats) bool { return m.Point == p.ID })
		if i < 0 {
			continue // it came after that was measured
		}
		mf, err := repo.Manifest(ctx, p)
		if errors.Is(err, repository.ErrNotFound) {
			if deleted, derr := repo.Deleted(ctx, mid); derr == nil && deleted[p.ID] {
				continue // since it was listed
			}
		}
		if err != nil {
			return v, nil, err
		}
		x := api.PointStats{Point: p.ID, Time: mf.Time.UTC(), Logical: st.Points[i].Logical, Alone: st.Points[i].Alone}
		if mf.Time.IsZero() {
			x.Time = p.Time.UTC()
		}
		for _, d := range mf.Disks {
			x.Written += d.Stats.Stored + d.Stats.Map
		}
		v.Points = append(v.Points, x)
		history = append(history, retention.Stored{
			Point: retention.Point{ID: p.ID, Time: x.Time, Sequence: int64(len(history)), Opens: true, Incomplete: mf.Incomplete},
			Bytes: x.Written, Alone: x.Alone,
		})
	}
	c, err := s.Catalog(ctx)
	if err != nil {
		return v, nil, err
	}
	pol, _, err := frame.PolicyOf(ctx, c, mid)
	if err != nil {
		return v, nil, err
	}
	loc, err := pol.Location()
	if err != nil {
		return v, nil, err
	}
	look, ok, err := retention.Expect(st.Stored, history, pol.Rules(), s.Now(), loc, ahead)
	if err != nil || !ok {
		return v, nil, err
	}
	return v, &look, nil
}
