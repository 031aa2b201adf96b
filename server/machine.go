package server

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"net/http"
	"regexp"
	"slices"

	"github.com/lockstep-backup/lockstep/api"
	"github.com/lockstep-backup/lockstep/audit"
	"github.com/lockstep-backup/lockstep/catalog"
	"github.com/lockstep-backup/lockstep/diskcrypt"
	"github.com/lockstep-backup/lockstep/server/internal/show"
)

type MachinePath struct {
	Name string `path:"name"`
}

func (s *Server) machineRoutes() {
	route(s, "list-machines", http.MethodGet, "/v1/machines", "List the protected machines", s.listMachines)
	route(s, "create-machine", http.MethodPost, "/v1/machines", "Enrol a machine", s.createMachine)
	route(s, "get-machine", http.MethodGet, "/v1/machines/{name}", "Show a machine and its disks as they are now", s.getMachine)
	route(s, "remove-machine", http.MethodDelete, "/v1/machines/{name}", "Remove a machine without recovery points", s.removeMachine, status(http.StatusNoContent))
}

// machine finds a protected machine by name; a removed one is not found.
func (s *Server) machine(ctx context.Context, c *catalog.Catalog, name string) (catalog.Machine, error) {
	m, err := c.Machines.ByName(ctx, name)
	if errors.Is(err, catalog.ErrNotFound) || err == nil && !m.RemovedAt.IsZero() {
		p := newProblem(http.StatusNotFound, api.ExitFailed, fmt.Sprintf("find machine: there is no machine %q", name))
		p.Hint = "'lockstep machine list' shows the machines; 'lockstep machine add' enrols one"
		return m, p
	}
	return m, err
}

func (s *Server) listMachines(ctx context.Context, _ *none) (*out[[]api.Machine], error) {
	c, err := s.d.Catalog(ctx)
	if err != nil {
		return nil, err
	}
	all, err := c.Machines.List(ctx, false)
	if err != nil {
		return nil, err
	}
	r := &out[[]api.Machine]{Body: []api.Machine{}}
	for _, m := range all {
		r.Body = append(r.Body, show.Machine(m))
	}
	return r, nil
}

func (s *Server) createMachine(ctx context.Context, req *in[api.MachineCreate]) (*out[api.MachineDetail], error) {
	e := audit.Event{Action: "machine.add", Object: req.Body.Name}
	return audited(ctx, s, e, func() (*out[api.MachineDetail], error) {
		d, err := s.enrol(ctx, req.Body, e)
		if err != nil {
			return nil, fmt.Errorf("add machine %s: %w", req.Body.Name, err)
		}
		return &out[api.MachineDetail]{Body: d}, nil
	})
}

// diskName is what a disk's id may be: it stands in paths, DISK/VOLUME and the
// repository.
var diskName = regexp.MustCompile(`^[a-zA-Z0-9][a-zA-Z0-9._-]{0,62}$`)

// enrol records e as begun before it changes anything.
func (s *Server) enrol(ctx context.Context, req api.MachineCreate, e audit.Event) (d api.MachineDetail, err error) {
	c, err := s.d.Catalog(ctx)
	if err != nil {
		return d, err
	}
	m := catalog.Machine{ID: newID(), Name: req.Name, Created: s.d.Now().UTC()}
	if old, err := c.Machines.ByName(ctx, req.Name); err == nil && old.RemovedAt.IsZero() {
		return d, fmt.Errorf("%w", catalog.ErrExists)
	} else if err == nil {
		// The same machine again: its recovery points stay its own, and the
		// repository keeps one machine of a name.
		m.ID, m.Created = old.ID, old.Created
	} else if !errors.Is(err, catalog.ErrNotFound) {
		return d, err
	}
	sources := map[string]string{}
	for _, def := range req.Disks {
		switch {
		case !diskName.MatchString(def.ID):
			return d, usage("disk id %q: only letters, digits, '.', '_' and '-' can be used", def.ID)
		case def.Source == "":
			return d, usage("disk %s has no source", def.ID)
		case slices.ContainsFunc(m.Disks, func(o catalog.MachineDisk) bool { return o.ID == def.ID }):
			return d, usage("disk %s is named twice", def.ID)
		case sources[def.Source] != "":
			return d, usage("disks %s and %s are the same source", sources[def.Source], def.ID)
		}
		sources[def.Source] = def.ID
		m.Disks = append(m.Disks, catalog.MachineDisk{ID: def.ID, Source: def.Source, Header: def.Header})
	}
	var warnings []string
	live := make([]api.DiskView, 0, len(m.Disks))
	for _, def := range m.Disks {
		found, err := s.inspectLive(ctx, def)
		if err != nil {
			return d, fmt.Errorf("disk %s: %w", def.ID, err)
		}
		live = append(live, s.liveView(ctx, c, def.ID, found))
		warnings = append(warnings, show.Warnings(found.id, found.report)...)
	}
	others, err := c.Machines.List(ctx, false)
	if err != nil {
		return d, err
	}
	for _, o := range others {
		for _, od := range o.Disks {
			if id := sources[od.Source]; id != "" {
				warnings = append(warnings, fmt.Sprintf("%s: %s is also disk %s of machine %s", id, od.Source, od.ID, o.Name))
			}
		}
	}
	if err := s.begin(ctx, e); err != nil {
		return d, err
	}
	if err := c.Machines.Put(ctx, m); err != nil {
		return d, err
	}
	if d, err = s.machineDetail(ctx, c, m); err != nil {
		return d, err
	}
	d.Live, d.Warnings = live, warnings
	return d, nil
}

// newID draws 128 random bits as 32 hex digits.
func newID() string {
	var b [16]byte
	_, _ = rand.Read(b[:]) // never fails since Go 1.24
	return hex.EncodeToString(b[:])
}

func (s *Server) machineDetail(ctx context.Context, c *catalog.Catalog, m catalog.Machine) (api.MachineDetail, error) {
	d := api.MachineDetail{Machine: show.Machine(m)}
	points, err := s.pointsOf(ctx, c, m)
	if err != nil {
		return d, err
	}
	d.Points = len(points)
	d.State = show.Worst(points)
	if len(points) > 0 {
		latest := points[0]
		d.Latest = &latest
	}
	return d, nil
}

func (s *Server) getMachine(ctx context.Context, req *MachinePath) (*out[api.MachineDetail], error) {
	c, err := s.d.Catalog(ctx)
	if err != nil {
		return nil, err
	}
	m, err := s.machine(ctx, c, req.Name)
	if err != nil {
		return nil, err
	}
	d, err := s.machineDetail(ctx, c, m)
	if err != nil {
		return nil, err
	}
	d.Live, d.Warnings = s.live(ctx, c, m)
	return &out[api.MachineDetail]{Body: d}, nil
}

// live looks at a machine's disks as they are now; what cannot be read says so.
func (s *Server) live(ctx context.Context, c *catalog.Catalog, m catalog.Machine) (views []api.DiskView, warnings []string) {
	views = []api.DiskView{}
	for _, def := range m.Disks {
		found, err := s.inspectLive(ctx, def)
		if err != nil {
			views = append(views, api.DiskView{ID: def.ID, Volumes: []api.Volume{}, Error: problemOf(err).Detail})
			continue
		}
		views = append(views, s.liveView(ctx, c, def.ID, found))
		warnings = append(warnings, show.Warnings(found.id, found.report)...)
	}
	return views, warnings
}

func (s *Server) removeMachine(ctx context.Context, req *MachinePath) (*none, error) {
	e := audit.Event{Action: "machine.remove", Object: req.Name}
	return audited(ctx, s, e, func() (*none, error) {
		c, err := s.d.Catalog(ctx)
		if err != nil {
			return nil, err
		}
		m, err := s.machine(ctx, c, req.Name)
		if err != nil {
			return nil, err
		}
		// Nobody may start a backup of it meanwhile.
		lock, err := s.lock(m, "removal of the machine")
		if err != nil {
			return nil, fmt.Errorf("remove machine %s: %w", m.Name, err)
		}
		defer lock.Release()
		points, err := c.Points.List(ctx, catalog.PointQuery{Machine: m.ID, Bare: true})
		if err != nil {
			return nil, err
		}
		if len(points) > 0 {
			what := "recovery points"
			if len(points) == 1 {
				what = "recovery point"
			}
			p := refused("remove machine %s: it has %d %s", m.Name, len(points), what)
			p.Hint = "delete its recovery points first ('lockstep point delete'), or leave it: a machine costs nothing"
			for _, pt := range points {
				p.Items = append(p.Items, pt.ID)
			}
			return nil, p
		}
		if err := s.begin(ctx, e); err != nil {
			return nil, err
		}
		return nil, c.Machines.Remove(ctx, m.ID, s.d.Now().UTC())
	})
}

// foundDisk is what is on a disk as it is now.
type foundDisk struct {
	id     string
	size   int64
	report *diskcrypt.Report
}
