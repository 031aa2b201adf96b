// Package machines is the routes of protected machines.
package machines

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
	"github.com/lockstep-backup/lockstep/server/internal/frame"
	"github.com/lockstep-backup/lockstep/server/internal/show"
)

type routes struct{ *frame.Frame }

// Register adds the routes.
func Register(f *frame.Frame) {
	s := routes{f}
	frame.Route(f, "list-machines", http.MethodGet, "/v1/machines", "List the protected machines", s.listMachines)
	frame.Route(f, "create-machine", http.MethodPost, "/v1/machines", "Enrol a machine", s.createMachine)
	frame.Route(f, "get-machine", http.MethodGet, "/v1/machines/{name}", "Show a machine and its disks as they are now", s.getMachine)
	frame.Route(f, "change-machine", http.MethodPatch, "/v1/machines/{name}", "Change where a machine's disks lie", s.changeMachine)
	frame.Route(f, "remove-machine", http.MethodDelete, "/v1/machines/{name}", "Remove a machine without recovery points", s.removeMachine, frame.Status(http.StatusNoContent))
}

func (s routes) listMachines(ctx context.Context, _ *frame.None) (*frame.Out[[]api.Machine], error) {
	c, err := s.Catalog(ctx)
	if err != nil {
		return nil, err
	}
	all, err := c.Machines.List(ctx, false)
	if err != nil {
		return nil, err
	}
	r := &frame.Out[[]api.Machine]{Body: []api.Machine{}}
	for _, m := range all {
		r.Body = append(r.Body, show.Machine(m))
	}
	return r, nil
}

func (s routes) createMachine(ctx context.Context, req *frame.In[api.MachineCreate]) (*frame.Out[api.MachineDetail], error) {
	e := audit.Event{Action: "machine.add", Object: req.Body.Name}
	return frame.Audited(ctx, s.Frame, e, func() (*frame.Out[api.MachineDetail], error) {
		d, err := s.enrol(ctx, req.Body, e)
		if err != nil {
			return nil, fmt.Errorf("add machine %s: %w", req.Body.Name, err)
		}
		return &frame.Out[api.MachineDetail]{Body: d}, nil
	})
}

// diskName is what a disk's id may be: it stands in paths, DISK/VOLUME and the
// repository.
var diskName = regexp.MustCompile(`^[a-zA-Z0-9][a-zA-Z0-9._-]{0,62}$`)

// enrol records e as begun before it changes anything.
func (s routes) enrol(ctx context.Context, req api.MachineCreate, e audit.Event) (d api.MachineDetail, err error) {
	c, err := s.Catalog(ctx)
	if err != nil {
		return d, err
	}
	m := catalog.Machine{ID: newID(), Name: req.Name, Created: s.Now().UTC()}
	if old, err := c.Machines.ByName(ctx, req.Name); err == nil && old.RemovedAt.IsZero() {
		return d, fmt.Errorf("%w", catalog.ErrExists)
	} else if err == nil {
		// The same machine again: its recovery points stay its own, and the
		// repository keeps one machine of a name.
		m.ID, m.Created = old.ID, old.Created
	} else if !errors.Is(err, catalog.ErrNotFound) {
		return d, err
	}
	for _, def := range req.Disks {
		declared, err := declarations(def.ID, def.Declared)
		if err != nil {
			return d, err
		}
		m.Disks = append(m.Disks, catalog.MachineDisk{ID: def.ID, Source: def.Source, Header: def.Header, Declared: declared})
	}
	return s.keep(ctx, c, m, e)
}

// keep checks the disks of a machine as they are now, records e as begun, and
// puts the machine into the catalog.
func (s routes) keep(ctx context.Context, c *catalog.Catalog, m catalog.Machine, e audit.Event) (d api.MachineDetail, err error) {
	sources, ids := map[string]string{}, map[string]bool{}
	for _, def := range m.Disks {
		switch {
		case !diskName.MatchString(def.ID):
			return d, frame.Usage("disk id %q: only letters, digits, '.', '_' and '-' can be used", def.ID)
		case def.Source == "":
			return d, frame.Usage("disk %s has no source", def.ID)
		case ids[def.ID]:
			return d, frame.Usage("disk %s is named twice", def.ID)
		case sources[def.Source] != "":
			return d, frame.Usage("disks %s and %s are the same source", sources[def.Source], def.ID)
		}
		sources[def.Source], ids[def.ID] = def.ID, true
	}
	var warnings []string
	live := make([]api.DiskView, 0, len(m.Disks))
	for _, def := range m.Disks {
		found, err := s.Inspect(ctx, def)
		if err != nil {
			return d, declarationProblem(def, err)
		}
		if err := declaredPlaces(def, found.Report); err != nil {
			return d, err
		}
		live = append(live, s.LiveView(ctx, c, def.ID, found))
		warnings = append(warnings, show.Warnings(found.ID, found.Report)...)
	}
	others, err := c.Machines.List(ctx, false)
	if err != nil {
		return d, err
	}
	for _, o := range others {
		if o.ID == m.ID {
			continue
		}
		for _, od := range o.Disks {
			if id := sources[od.Source]; id != "" {
				warnings = append(warnings, fmt.Sprintf("%s: %s is also disk %s of machine %s", id, od.Source, od.ID, o.Name))
			}
		}
	}
	if err := s.Begin(ctx, e); err != nil {
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

type changeRequest struct {
	frame.MachinePath
	Body api.MachineChange
}

func (s routes) changeMachine(ctx context.Context, req *changeRequest) (*frame.Out[api.MachineDetail], error) {
	e := audit.Event{Action: "machine.change", Object: req.Name}
	return frame.Audited(ctx, s.Frame, e, func() (*frame.Out[api.MachineDetail], error) {
		d, err := s.change(ctx, req.Name, req.Body, e)
		if err != nil {
			return nil, fmt.Errorf("change machine %s: %w", req.Name, err)
		}
		return &frame.Out[api.MachineDetail]{Body: d}, nil
	})
}

// change replaces the sources of the disks named, adds disks that are new and
// takes away those to be removed. What is stored of them stays.
func (s routes) change(ctx context.Context, name string, req api.MachineChange, e audit.Event) (d api.MachineDetail, err error) {
	c, err := s.Catalog(ctx)
	if err != nil {
		return d, err
	}
	m, err := s.Machine(ctx, c, name)
	if err != nil {
		return d, err
	}
	// A backup that runs has read where the disks are.
	lock, err := s.Lock(m, "change of the machine")
	if err != nil {
		return d, err
	}
	defer lock.Release()
	m.Disks = slices.Clone(m.Disks)
	at := func(id string) int {
		return slices.IndexFunc(m.Disks, func(o catalog.MachineDisk) bool { return o.ID == id })
	}
	seen := map[string]bool{}
	for _, def := range req.Disks {
		if seen[def.ID] {
			return d, frame.Usage("disk %s is named twice", def.ID)
		}
		seen[def.ID] = true
		declared, err := declarations(def.ID, def.Declared)
		if err != nil {
			return d, err
		}
		now := catalog.MachineDisk{ID: def.ID, Source: def.Source, Header: def.Header, Declared: declared}
		if i := at(def.ID); i >= 0 {
			if def.Declared == nil { // it lies elsewhere, and is what it was
				now.Declared = m.Disks[i].Declared
			}
			m.Disks[i] = now
		} else {
			m.Disks = append(m.Disks, now)
		}
	}
	for _, id := range req.RemoveDisks {
		i := at(id)
		if i < 0 {
			return d, frame.Usage("the machine has no disk %s", id)
		}
		if seen[id] {
			return d, frame.Usage("disk %s is to be changed and removed", id)
		}
		m.Disks = slices.Delete(m.Disks, i, i+1)
	}
	if err := declare(m.Disks, req); err != nil {
		return d, err
	}
	if len(m.Disks) == 0 {
		return d, frame.Usage("a machine needs at least one disk")
	}
	return s.keep(ctx, c, m, e)
}

// newID draws 128 random bits as 32 hex digits.
func newID() string {
	var b [16]byte
	_, _ = rand.Read(b[:]) // never fails since Go 1.24
	return hex.EncodeToString(b[:])
}

func (s routes) machineDetail(ctx context.Context, c *catalog.Catalog, m catalog.Machine) (api.MachineDetail, error) {
	d := api.MachineDetail{Machine: show.Machine(m)}
	points, err := s.PointsOf(ctx, c, m)
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

func (s routes) getMachine(ctx context.Context, req *frame.MachinePath) (*frame.Out[api.MachineDetail], error) {
	c, err := s.Catalog(ctx)
	if err != nil {
		return nil, err
	}
	m, err := s.Machine(ctx, c, req.Name)
	if err != nil {
		return nil, err
	}
	d, err := s.machineDetail(ctx, c, m)
	if err != nil {
		return nil, err
	}
	d.Live, d.Warnings = s.Live(ctx, c, m)
	return &frame.Out[api.MachineDetail]{Body: d}, nil
}

func (s routes) removeMachine(ctx context.Context, req *frame.MachinePath) (*frame.None, error) {
	e := audit.Event{Action: "machine.remove", Object: req.Name}
	return frame.Audited(ctx, s.Frame, e, func() (*frame.None, error) {
		c, err := s.Catalog(ctx)
		if err != nil {
			return nil, err
		}
		m, err := s.Machine(ctx, c, req.Name)
		if err != nil {
			return nil, err
		}
		// Nobody may start a backup of it meanwhile.
		lock, err := s.Lock(m, "removal of the machine")
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
			p := frame.Refused("remove machine %s: it has %d %s", m.Name, len(points), what)
			p.Hint = "delete its recovery points first ('lockstep point delete'), or leave it: a machine costs nothing"
			for _, pt := range points {
				p.Items = append(p.Items, pt.ID)
			}
			return nil, p
		}
		if err := s.Begin(ctx, e); err != nil {
			return nil, err
		}
		return nil, c.Machines.Remove(ctx, m.ID, s.Now().UTC())
	})
}
