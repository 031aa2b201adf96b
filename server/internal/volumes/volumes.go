// Package volumes is the routes of encrypted volumes and their headers.
package volumes

import (
	"context"
	"errors"
	"fmt"
	"net/http"

	"github.com/danielgtaylor/huma/v2"

	"github.com/lockstep-backup/lockstep/api"
	"github.com/lockstep-backup/lockstep/audit"
	"github.com/lockstep-backup/lockstep/custody"
	"github.com/lockstep-backup/lockstep/prove"
	"github.com/lockstep-backup/lockstep/server/internal/frame"
	"github.com/lockstep-backup/lockstep/server/internal/headers"
	"github.com/lockstep-backup/lockstep/server/internal/places"
	"github.com/lockstep-backup/lockstep/server/internal/show"
)

type routes struct{ *frame.Frame }

// Register adds the routes.
func Register(f *frame.Frame) {
	s := routes{f}
	frame.Route(f, "list-volumes", http.MethodGet, "/v1/machines/{name}/volumes", "List encrypted volumes and what opens them", s.listVolumes)
	frame.Route(f, "declare-not-needed", http.MethodPost, "/v1/machines/{name}/not-needed", "Declare that a volume is not needed, or take that back", s.declareNotNeeded)
	frame.Route(f, "export-header", http.MethodGet, "/v1/points/{point}/disks/{disk}/volumes/{volume}/header", "A volume's header, as the usual tools read it", s.exportHeader,
		func(o *huma.Operation) {
			o.Responses = map[string]*huma.Response{"200": {
				Description: "The header",
				Content:     map[string]*huma.MediaType{"application/octet-stream": {Schema: &huma.Schema{Type: "string", Format: "binary"}}},
			}}
		})
	frame.Route(f, "restore-header", http.MethodPost, "/v1/points/{point}/disks/{disk}/volumes/{volume}/header", "Write a volume's header over the damaged one of a target", s.restoreHeader)
}

type volumesQuery struct {
	frame.MachinePath
	Point string `query:"point" doc:"recovery point; empty = the disks as they are now"`
}

func (s routes) listVolumes(ctx context.Context, req *volumesQuery) (*frame.Out[[]api.DiskView], error) {
	c, err := s.Catalog(ctx)
	if err != nil {
		return nil, err
	}
	m, err := s.Machine(ctx, c, req.Name)
	if err != nil {
		return nil, err
	}
	r := &frame.Out[[]api.DiskView]{Body: []api.DiskView{}}
	if req.Point == "" {
		r.Body, _ = s.Live(ctx, c, m)
		return r, nil
	}
	p, err := s.ResolvePoint(ctx, c, req.Point)
	if err != nil {
		return nil, err
	}
	if p.Machine != m.ID {
		return nil, frame.Usage("list volumes: recovery point %s is not one of %s", p.ID, m.Name)
	}
	v, err := s.PointView(ctx, c, p)
	if err != nil {
		return nil, err
	}
	for _, d := range v.Disks {
		r.Body = append(r.Body, api.DiskView{ID: d.ID, SizeBytes: d.SizeBytes, Volumes: d.Volumes, Areas: d.Areas})
	}
	return r, nil
}

type notNeeded struct {
	frame.MachinePath
	Body api.NotNeeded
}

func (s routes) declareNotNeeded(ctx context.Context, req *notNeeded) (*frame.Out[[]api.Point], error) {
	points, err := s.declare(ctx, req.Name, req.Body)
	if err != nil {
		e := audit.Event{
			Action: "volume.declare", Object: req.Name + "/" + req.Body.Volume, Outcome: frame.OutcomeOf(err),
			Reason: req.Body.Reason, Detail: frame.WithDetail(nil, "error", frame.Clip(frame.ProblemOf(err).Detail)),
		}
		if aerr := s.Record(ctx, e); aerr != nil {
			err = errors.Join(err, aerr)
		}
		return nil, err
	}
	return &frame.Out[[]api.Point]{Body: points}, nil
}

// declare returns the recovery points whose state changed. What was declared is
// in the audit log, by package prove.
func (s routes) declare(ctx context.Context, name string, n api.NotNeeded) ([]api.Point, error) {
	c, err := s.Catalog(ctx)
	if err != nil {
		return nil, err
	}
	m, err := s.Machine(ctx, c, name)
	if err != nil {
		return nil, err
	}
	all, err := places.Of(ctx, s.Frame, c, m)
	if err != nil {
		return nil, err
	}
	at, err := places.Find(all, n.Volume)
	if err != nil {
		return nil, err
	}
	before, err := s.PointsOf(ctx, c, m)
	if err != nil {
		return nil, err
	}
	deps := s.Custody(ctx, c)
	if deps.Repo == nil { // the declaration is kept there
		if _, err := s.Repository(ctx); err != nil {
			return nil, err
		}
	}
	if deps.Custodian, err = s.Custodian(); err != nil {
		return nil, err
	}
	defer deps.Custodian.Wipe()
	begun := audit.Event{Action: "volume.declare", Object: m.Name + "/" + at.String(), Reason: n.Reason}
	if err := s.Begin(ctx, begun); err != nil {
		return nil, err
	}
	if err := prove.DeclareNotNeeded(ctx, deps, m, custody.VolumeKey{Disk: at.Disk, Volume: at.Volume}, n.Reason); err != nil {
		return nil, err
	}
	after, err := s.PointsOf(ctx, c, m)
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
	frame.PointPath
	Disk   string `path:"disk"`
	Volume string `path:"volume"`
	// Repository is where it is read.
	Repository string `query:"repository" doc:"name; empty = the nearest that has the recovery point"`
}

func (s routes) exportHeader(ctx context.Context, req *headerPath) (*huma.StreamResponse, error) {
	e := audit.Event{Action: "header.export", Object: req.Point + "/" + req.Disk + "/" + req.Volume}
	var warnings []string
	warn := func(format string, args ...any) {
		warnings = append(warnings, frame.Clip(show.OneLine(fmt.Sprintf(format, args...))))
	}
	raw, err := frame.Audited(ctx, s.Frame, e, func() ([]byte, error) {
		b, err := s.header(ctx, req, warn)
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
		for _, text := range warnings {
			c.AppendHeader(api.WarningHeader, text)
		}
		c.SetStatus(http.StatusOK)
		_, _ = c.BodyWriter().Write(raw)
	}}, nil
}

// header reads a volume's header from the recovery point's own extents, and
// where these cannot be read (or the header is detached) from the copies that
// were stored apart; what is damaged in one repository is read in the next.
func (s routes) header(ctx context.Context, req *headerPath, warn func(format string, args ...any)) ([]byte, error) {
	c, err := s.Catalog(ctx)
	if err != nil {
		return nil, err
	}
	p, err := s.ResolvePoint(ctx, c, req.Point)
	if err != nil {
		return nil, err
	}
	lease, err := s.Lease(ctx, p.ID, "a header export")
	if err != nil {
		return nil, err
	}
	defer lease.Release()
	near, rest, err := s.Nearest(ctx, p, req.Repository, warn)
	if err != nil {
		return nil, err
	}
	at, err := places.InPoint(p, req.Disk+"/"+req.Volume)
	if err != nil {
		return nil, err
	}
	raw, copied, err := headers.Export(ctx, near.Repo, s.Formats, near.Manifest, at.Disk, at.Volume)
	if err != nil && ctx.Err() == nil && req.Repository == "" {
		for _, repo := range rest() {
			other, apart, oerr := headers.Export(ctx, repo, s.Formats, near.Manifest, at.Disk, at.Volume)
			if oerr == nil {
				warn("it could not be read in repository %s, and was taken from another: %v", near.Place.Name, err)
				raw, copied, err = other, apart, nil
				break
			}
		}
	}
	if copied != nil {
		s.Log.Warn("a header is not readable on its disk; using its copy", "point", p.ID, "volume", at.String(), "error", copied)
	}
	return raw, err
}
