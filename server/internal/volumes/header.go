package volumes

import (
	"context"
	"errors"
	"fmt"
	"net/http"

	"github.com/lockstep-backup/lockstep/api"
	"github.com/lockstep-backup/lockstep/audit"
	"github.com/lockstep-backup/lockstep/server/internal/frame"
	"github.com/lockstep-backup/lockstep/server/internal/headers"
	"github.com/lockstep-backup/lockstep/server/internal/places"
	"github.com/lockstep-backup/lockstep/server/internal/show"
)

type restorePath struct {
	frame.PointPath
	Disk   string `path:"disk"`
	Volume string `path:"volume"`
	Body   api.HeaderRestoreRequest
}

func (s routes) restoreHeader(ctx context.Context, req *restorePath) (*frame.Out[api.HeaderRestored], error) {
	r := req.Body
	e := audit.Event{Action: "header.restore", Object: req.Point + "/" + req.Disk + "/" + req.Volume, Detail: map[string]string{"target": frame.Clip(r.Target)}}
	for key, on := range map[string]bool{"dry run": r.DryRun, "force": r.Force} {
		if on {
			e.Detail[key] = "true"
		}
	}
	if r.Backup == "" && !r.DryRun {
		return nil, s.Refuse(ctx, e, frame.Usage("restore header: name a new file for what is there now"))
	}
	return frame.Audited(ctx, s.Frame, e, func() (*frame.Out[api.HeaderRestored], error) {
		out, err := s.restoreHeaderOf(ctx, req, e)
		if err != nil {
			return nil, headerProblem(fmt.Errorf("restore header: %w", err))
		}
		return &frame.Out[api.HeaderRestored]{Body: *out}, nil
	})
}

func (s routes) restoreHeaderOf(ctx context.Context, req *restorePath, e audit.Event) (*api.HeaderRestored, error) {
	r := req.Body
	c, err := s.Catalog(ctx)
	if err != nil {
		return nil, err
	}
	p, err := s.ResolvePoint(ctx, c, req.Point)
	if err != nil {
		return nil, err
	}
	lease, err := s.Lease(ctx, p.ID, "a header restore")
	if err != nil {
		return nil, err
	}
	defer lease.Release()
	out := &api.HeaderRestored{Point: p.ID, Target: r.Target, Ranges: []api.Range{}}
	near, _, err := s.Nearest(ctx, p, r.Repository, func(format string, args ...any) {
		out.Warnings = append(out.Warnings, frame.Clip(show.OneLine(fmt.Sprintf(format, args...))))
	})
	if err != nil {
		return nil, err
	}
	at, err := places.InPoint(p, req.Disk+"/"+req.Volume)
	if err != nil {
		return nil, err
	}
	out.Disk, out.Volume = at.Disk, at.Volume
	done, err := headers.Restore(ctx, headers.RestoreRequest{
		Repository: near.Repo, Formats: s.Formats, Manifest: near.Manifest, Disk: at.Disk, Volume: at.Volume,
		Open: s.OpenTarget, Target: r.Target, Backup: r.Backup, Force: r.Force, DryRun: r.DryRun,
		Begin: func() error { return s.Begin(ctx, e) },
	})
	if err != nil {
		if done.BackedUp {
			err = frame.Hint(err, "what was there before is in %s", r.Backup)
		}
		return nil, err
	}
	out.UUID, out.Found, out.Why, out.Written, out.Bytes = done.UUID, done.Found, done.Why, done.Written, done.Bytes
	out.Samples, out.Equal = done.Samples, done.Equal
	for _, g := range done.Ranges {
		out.Ranges = append(out.Ranges, api.Range{Offset: g.Offset, Length: g.Length})
	}
	if done.BackedUp {
		out.Backup = r.Backup
	}
	return out, nil
}

// headerProblem says what to do about what only this operation refuses.
func headerProblem(err error) error {
	refuse := func(status, exit int, hint string) error {
		p := frame.NewProblem(status, exit, show.OneLine(err.Error()))
		p.Hint = hint
		return p
	}
	switch {
	case errors.Is(err, headers.ErrOther):
		return refuse(http.StatusConflict, api.ExitTarget, "look at the target first; --force writes over it all the same, and what is there is kept in the backup file")
	case errors.Is(err, headers.ErrPlace):
		return refuse(http.StatusConflict, api.ExitTarget, "name the disk, or the partition or logical volume that the header is for")
	case errors.Is(err, headers.ErrNotRestorable):
		return refuse(http.StatusConflict, api.ExitRefused, "'lockstep volume list --point POINT' shows the volumes of other recovery points: take one of the same epoch")
	}
	return err
}
