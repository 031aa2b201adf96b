package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"

	"github.com/lockstep-backup/lockstep/api"
	"github.com/lockstep-backup/lockstep/catalog"
	"github.com/lockstep-backup/lockstep/cli"
	"github.com/lockstep-backup/lockstep/cmd/internal/overlays"
	"github.com/lockstep-backup/lockstep/export"
	"github.com/lockstep-backup/lockstep/server"
	"github.com/lockstep-backup/lockstep/source"
)

// showOverlay looks into an overlay. The machine may have another name by now.
func showOverlay(ctx context.Context, q cli.OverlayOptions) (cli.Overlay, error) {
	o, err := export.OpenOverlay(q.File)
	if err != nil {
		return cli.Overlay{}, overlays.Refusal(err)
	}
	defer func() { _ = o.Close() }()
	v := cli.Overlay{File: q.File, Point: o.Base.Point, Machine: o.Base.MachineName, Time: o.Base.Time}
	written := o.Written()
	for _, d := range o.Base.Disks {
		v.Disks = append(v.Disks, cli.OverlayDisk{ID: d.ID, SizeBytes: d.Size, WrittenBytes: written[d.ID]})
	}
	e, err := openEngine(dataDir(q.DataDir), newLogger(os.Stderr))
	if err != nil {
		return v, err
	}
	defer func() { _ = e.close() }()
	c, err := e.openCatalog(ctx)
	if err != nil {
		return v, err
	}
	m, err := c.Machines.Get(ctx, o.Base.Machine)
	if errors.Is(err, catalog.ErrNotFound) {
		return v, cli.WithHint(fmt.Errorf("overlay over %s: machine %s is not in this installation: %w", v.Point, v.Machine, err), "--data says which installation it is")
	}
	v.Machine = m.Name
	return v, err
}

// discardOverlay removes an overlay.
func discardOverlay(_ context.Context, q cli.OverlayOptions) error {
	return overlays.Refusal(export.DiscardOverlay(q.File))
}

// withOverlay is the engine in this process, in which an overlay's disks stand
// for those of its machine: a backup of it then goes the usual way, lock,
// inspection, proof and audit log included.
func withOverlay(ctx context.Context, dir dataDir, path string, log *slog.Logger) (*api.Client, func() error, error) {
	o, err := export.OpenOverlay(path)
	if err != nil {
		return nil, nil, overlays.Refusal(err)
	}
	e, err := openEngine(dir, log)
	if err != nil {
		return nil, nil, errors.Join(err, o.Close())
	}
	open, p, err := e.overlaySource(ctx, o)
	if err != nil {
		return nil, nil, errors.Join(overlays.Refusal(err), o.Close(), e.close())
	}
	fail := func(err error) (*api.Client, func() error, error) {
		return nil, nil, errors.Join(err, p.Close(), o.Close(), e.close())
	}
	cat, err := e.openCatalog(ctx)
	if err != nil {
		return fail(err)
	}
	note, err := overlays.Committing(ctx, cat, path, o.Base.Machine)
	if err != nil {
		return fail(err)
	}
	deps := e.deps()
	deps.OpenSource = open
	c, closeServer := serveInProcess(e, server.New(deps))
	return c, func() error { return errors.Join(note(), closeServer(), p.Close(), o.Close()) }, nil
}

// overlaySource opens the overlay's disks by the sources that the machine's
// definition names.
func (e *engine) overlaySource(ctx context.Context, o *export.Overlay) (func(context.Context, string, source.Options) (source.Disk, error), *leasedPoint, error) {
	c, err := e.openCatalog(ctx)
	if err != nil {
		return nil, nil, err
	}
	m, err := c.Machines.Get(ctx, o.Base.Machine)
	if err != nil {
		return nil, nil, err
	}
	bySource := map[string]string{}
	for _, d := range m.Disks {
		bySource[d.Source] = d.ID
	}
	same := len(bySource) == len(m.Disks) && len(m.Disks) == len(o.Base.Disks)
	for _, d := range o.Base.Disks {
		same = same && hasDisk(m, d.ID)
	}
	if !same {
		return nil, nil, fmt.Errorf("machine %s has other disks now than the recovery point had: %w", m.Name, export.ErrOtherBase)
	}
	p, err := e.openPoint(ctx, catalog.Point{Machine: o.Base.Machine, ID: o.Base.Point}, "", "an overlay's commit", func(format string, args ...any) {
		e.log.Warn(fmt.Sprintf(format, args...))
	})
	if err != nil {
		return nil, nil, overlays.BaseGone(ctx, c, o, err)
	}
	if err := o.Attach(p.Point); err != nil {
		return nil, nil, errors.Join(err, p.Close())
	}
	// A guest that wrote and was then ended is as consistent as after a power
	// cut; what was not even that before does not become it.
	level := source.ConsistencyCrash
	if p.Manifest.Consistency == string(source.ConsistencyNone) {
		level = source.ConsistencyNone
	}
	return func(ctx context.Context, spec string, so source.Options) (source.Disk, error) {
		id, ok := bySource[spec]
		if !ok {
			return openSource(ctx, spec, so) // a detached header is no disk
		}
		image, written, err := o.Image(id)
		if err != nil {
			return nil, err
		}
		return &overlays.Disk{Image: image, Written: written, Point: o.Base.Point, Level: level}, nil
	}, p, nil
}

func hasDisk(m catalog.Machine, id string) bool {
	for _, d := range m.Disks {
		if d.ID == id {
			return true
		}
	}
	return false
}
