package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net/http"
	"os"

	"github.com/lockstep-backup/lockstep/api"
	"github.com/lockstep-backup/lockstep/catalog"
	"github.com/lockstep-backup/lockstep/cli"
	"github.com/lockstep-backup/lockstep/disk"
	"github.com/lockstep-backup/lockstep/export"
	"github.com/lockstep-backup/lockstep/server"
	"github.com/lockstep-backup/lockstep/source"
)

// overlayRefusal says what an error about an overlay means.
func overlayRefusal(err error) error {
	if err == nil {
		return nil
	}
	p := &api.Error{Status: http.StatusConflict, Title: "refused", Exit: api.ExitRefused, Detail: "overlay: " + err.Error()}
	switch {
	case errors.Is(err, export.ErrInUse):
		p.Exit, p.Hint = api.ExitBusy, "end the export that uses it"
	case errors.Is(err, export.ErrOverlay):
		p.Exit, p.Hint = api.ExitDamaged, "'lockstep export' makes overlays; a damaged one can only be discarded"
	case errors.Is(err, export.ErrOtherBase):
		p.Hint = "'lockstep overlay show' says to which recovery point it belongs"
	default:
		return err
	}
	return p
}

// useOverlay opens an overlay over a recovery point, or makes it.
func useOverlay(path string, p *export.Point) (*export.Overlay, error) {
	o, err := export.OpenOverlay(path)
	if errors.Is(err, fs.ErrNotExist) {
		o, err = export.CreateOverlay(path, p)
		return o, overlayRefusal(err)
	}
	if err == nil {
		if err = o.Attach(p); err != nil {
			err = errors.Join(err, o.Close())
		}
	}
	return o, overlayRefusal(err)
}

// showOverlay looks into an overlay. The machine may have another name by now.
func showOverlay(ctx context.Context, q cli.OverlayOptions) (cli.Overlay, error) {
	o, err := export.OpenOverlay(q.File)
	if err != nil {
		return cli.Overlay{}, overlayRefusal(err)
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
	return overlayRefusal(export.DiscardOverlay(q.File))
}

// withOverlay is the engine in this process, in which an overlay's disks stand
// for those of its machine: a backup of it then goes the usual way, lock,
// inspection, proof and audit log included.
func withOverlay(ctx context.Context, dir dataDir, path string, log *slog.Logger) (*api.Client, func() error, error) {
	o, err := export.OpenOverlay(path)
	if err != nil {
		return nil, nil, overlayRefusal(err)
	}
	e, err := openEngine(dir, log)
	if err != nil {
		return nil, nil, errors.Join(err, o.Close())
	}
	open, p, err := e.overlaySource(ctx, o)
	if err != nil {
		return nil, nil, errors.Join(overlayRefusal(err), o.Close(), e.close())
	}
	deps := e.deps()
	deps.OpenSource = open
	c, closeServer := serveInProcess(e, server.New(deps))
	return c, func() error { return errors.Join(closeServer(), p.Close(), o.Close()) }, nil
}

// overlaySource opens the overlay's disks by the sources that the machine's
// definition names.
func (e *engine) overlaySource(ctx context.Context, o *export.Overlay) (func(context.Context, string, source.Options) (source.Disk, error), *export.Point, error) {
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
	p, err := e.openPoint(ctx, catalog.Point{Machine: o.Base.Machine, ID: o.Base.Point}, "", func(format string, args ...any) {
		e.log.Warn(fmt.Sprintf(format, args...))
	})
	if err != nil {
		return nil, nil, err
	}
	if err := o.Attach(p); err != nil {
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
		return &overlaidDisk{Image: image, written: written, point: o.Base.Point, level: level}, nil
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

// overlaidDisk is a disk of a recovery point with what was written over it.
type overlaidDisk struct {
	export.Image
	written []disk.Range
	point   string
	level   source.Consistency
}

func (d *overlaidDisk) Check() error                    { return nil }
func (d *overlaidDisk) Close() error                    { return nil } // the overlay is closed with the engine
func (d *overlaidDisk) Consistency() source.Consistency { return d.level }

func (d *overlaidDisk) Changed(_ context.Context, parent string) (changed []disk.Range, known bool, reason string, err error) {
	if parent != d.point {
		return nil, false, "the overlay is over " + d.point + ", not over the recovery point before this one", nil
	}
	return d.written, true, "overlay", nil
}
