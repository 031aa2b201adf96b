package server

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"

	"github.com/danielgtaylor/huma/v2"

	"github.com/lockstep-backup/lockstep/api"
	"github.com/lockstep-backup/lockstep/audit"
	"github.com/lockstep-backup/lockstep/catalog"
	"github.com/lockstep-backup/lockstep/custody"
	"github.com/lockstep-backup/lockstep/prove"
	"github.com/lockstep-backup/lockstep/server/internal/headers"
)

type volumesQuery struct {
	MachinePath
	Point string `query:"point" doc:"recovery point; empty = the disks as they are now"`
}

func (s *Server) volumeRoutes() {
	route(s, "list-volumes", http.MethodGet, "/v1/machines/{name}/volumes", "List encrypted volumes and what opens them", s.listVolumes)
	route(s, "declare-not-needed", http.MethodPost, "/v1/machines/{name}/not-needed", "Declare that a volume is not needed, or take that back", s.declareNotNeeded)
	route(s, "export-header", http.MethodGet, "/v1/points/{point}/disks/{disk}/volumes/{volume}/header", "A volume's header, as the usual tools read it", s.exportHeader,
		func(o *huma.Operation) {
			o.Responses = map[string]*huma.Response{"200": {
				Description: "The header",
				Content:     map[string]*huma.MediaType{"application/octet-stream": {Schema: &huma.Schema{Type: "string", Format: "binary"}}},
			}}
		})
}

func (s *Server) listVolumes(ctx context.Context, req *volumesQuery) (*out[[]api.DiskView], error) {
	c, err := s.d.Catalog(ctx)
	if err != nil {
		return nil, err
	}
	m, err := s.machine(ctx, c, req.Name)
	if err != nil {
		return nil, err
	}
	r := &out[[]api.DiskView]{Body: []api.DiskView{}}
	if req.Point == "" {
		r.Body, _ = s.live(ctx, c, m)
		return r, nil
	}
	p, err := s.resolvePoint(ctx, c, req.Point)
	if err != nil {
		return nil, err
	}
	if p.Machine != m.ID {
		return nil, usage("list volumes: recovery point %s is not one of %s", p.ID, m.Name)
	}
	v, err := s.pointView(ctx, c, p)
	if err != nil {
		return nil, err
	}
	for _, d := range v.Disks {
		r.Body = append(r.Body, api.DiskView{ID: d.ID, SizeBytes: d.SizeBytes, Volumes: d.Volumes, Areas: d.Areas})
	}
	return r, nil
}

// place is a volume of a machine: disk and place on it.
type place struct{ disk, volume string }

func (p place) String() string { return p.disk + "/" + p.volume }

// findVolume finds the volume that the user named as DISK/VOLUME, as a
// volume's id, or as a unique prefix of either.
func findVolume(places []place, ref string) (place, error) {
	var found []place
	for _, exact := range []bool{true, false} {
		for _, p := range places {
			fits := strings.HasPrefix(p.String(), ref) || strings.HasPrefix(p.volume, ref)
			if exact {
				fits = p.String() == ref || p.volume == ref
			}
			if fits && !slices.Contains(found, p) {
				found = append(found, p)
			}
		}
		if len(found) > 0 {
			break
		}
	}
	names := make([]string, 0, len(found))
	for _, p := range found {
		names = append(names, p.String())
	}
	switch len(found) {
	case 1:
		return found[0], nil
	case 0:
		p := newProblem(http.StatusNotFound, api.ExitFailed, fmt.Sprintf("find volume: there is no encrypted volume %q", ref))
		p.Hint = "'lockstep volume list' shows the volumes"
		return place{}, p
	default:
		return place{}, usage("find volume: more than one is %q: %s", ref, strings.Join(names, ", "))
	}
}

// places are all encrypted volumes that a machine's recovery points have, and
// its disks as they are now where those can be read.
func (s *Server) places(ctx context.Context, c *catalog.Catalog, m catalog.Machine) ([]place, error) {
	var out []place
	add := func(p place) {
		if !slices.Contains(out, p) {
			out = append(out, p)
		}
	}
	points, err := c.Points.List(ctx, catalog.PointQuery{Machine: m.ID})
	if err != nil {
		return nil, err
	}
	for _, p := range points {
		for _, d := range p.Disks {
			for _, v := range d.Volumes {
				add(place{d.Disk, v.Volume})
			}
		}
	}
	for _, def := range m.Disks {
		f, err := s.inspectLive(ctx, def)
		if err != nil {
			continue // the recovery points count
		}
		for _, v := range f.report.Volumes {
			add(place{def.ID, v.ID})
		}
	}
	return out, nil
}

type notNeeded struct {
	MachinePath
	Body api.NotNeeded
}

func (s *Server) declareNotNeeded(ctx context.Context, req *notNeeded) (*out[[]api.Point], error) {
	points, err := s.declare(ctx, req.Name, req.Body)
	if err != nil {
		e := audit.Event{
			Action: "volume.declare", Object: req.Name + "/" + req.Body.Volume, Outcome: outcomeOf(err),
			Reason: req.Body.Reason, Detail: withDetail(nil, "error", clip(problemOf(err).Detail)),
		}
		if aerr := s.record(ctx, e); aerr != nil {
			err = errors.Join(err, aerr)
		}
		return nil, err
	}
	return &out[[]api.Point]{Body: points}, nil
}

// declare returns the recovery points whose state changed. What was declared is
// in the audit log, by package prove.
func (s *Server) declare(ctx context.Context, name string, n api.NotNeeded) ([]api.Point, error) {
	c, err := s.d.Catalog(ctx)
	if err != nil {
		return nil, err
	}
	m, err := s.machine(ctx, c, name)
	if err != nil {
		return nil, err
	}
	all, err := s.places(ctx, c, m)
	if err != nil {
		return nil, err
	}
	at, err := findVolume(all, n.Volume)
	if err != nil {
		return nil, err
	}
	before, err := s.pointsOf(ctx, c, m)
	if err != nil {
		return nil, err
	}
	deps := s.custodyDeps(ctx, c)
	if deps.Repo == nil { // the declaration is kept there
		if _, err := s.d.Repository(ctx); err != nil {
			return nil, err
		}
	}
	if deps.Custodian, err = s.d.Custodian(); err != nil {
		return nil, err
	}
	defer deps.Custodian.Wipe()
	begun := audit.Event{Action: "volume.declare", Object: m.Name + "/" + at.String(), Reason: n.Reason}
	if err := s.begin(ctx, begun); err != nil {
		return nil, err
	}
	if err := prove.DeclareNotNeeded(ctx, deps, m, custody.VolumeKey{Disk: at.disk, Volume: at.volume}, n.Reason); err != nil {
		return nil, err
	}
	after, err := s.pointsOf(ctx, c, m)
	if err != nil {
		return nil, err
	}
	states := map[string]string{}
	for _, p := range before {
		states[p.ID] = p.State
	}
	changed := []api.Point{}
	for _, p := range after {
		if states[p.ID] != p.State {
			changed = append(changed, p)
		}
	}
	return changed, nil
}

type headerPath struct {
	PointPath
	Disk   string `path:"disk"`
	Volume string `path:"volume"`
}

func (s *Server) exportHeader(ctx context.Context, req *headerPath) (*huma.StreamResponse, error) {
	e := audit.Event{Action: "header.export", Object: req.Point + "/" + req.Disk + "/" + req.Volume}
	raw, err := audited(ctx, s, e, func() ([]byte, error) {
		b, err := s.header(ctx, req)
		if err != nil {
			return nil, fmt.Errorf("export header: %w", err)
		}
		return b, nil
	})
	if err != nil {
		return nil, err
	}
	return &huma.StreamResponse{Body: func(c huma.Context) {
		c.SetHeader("Content-Type", "application/octet-stream")
		c.SetHeader("Content-Length", fmt.Sprint(len(raw)))
		c.SetStatus(http.StatusOK)
		_, _ = c.BodyWriter().Write(raw)
	}}, nil
}

// header reads a volume's header from the recovery point's own extents, and
// where these cannot be read (or the header is detached) from the copies that
// were stored apart.
func (s *Server) header(ctx context.Context, req *headerPath) ([]byte, error) {
	c, err := s.d.Catalog(ctx)
	if err != nil {
		return nil, err
	}
	p, err := s.resolvePoint(ctx, c, req.Point)
	if err != nil {
		return nil, err
	}
	repo, err := s.d.Repository(ctx)
	if err != nil {
		return nil, err
	}
	mf, err := s.manifest(ctx, repo, p)
	if err != nil {
		return nil, err
	}
	var places []place
	for _, d := range p.Disks {
		for _, v := range d.Volumes {
			places = append(places, place{d.Disk, v.Volume})
		}
	}
	at, err := findVolume(places, req.Disk+"/"+req.Volume)
	if err != nil {
		return nil, err
	}
	raw, copied, err := headers.Export(ctx, repo, s.d.Formats, mf, at.disk, at.volume)
	if copied != nil {
		s.d.Log.Warn("a header is not readable on its disk; using its copy", "point", p.ID, "volume", at.String(), "error", copied)
	}
	return raw, err
}
