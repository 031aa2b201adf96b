package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"net/http"
	"path/filepath"
	"time"

	"github.com/lockstep-backup/lockstep/api"
	"github.com/lockstep-backup/lockstep/audit"
	"github.com/lockstep-backup/lockstep/catalog"
	"github.com/lockstep-backup/lockstep/cli"
	"github.com/lockstep-backup/lockstep/cmd/internal/nbdlisten"
	"github.com/lockstep-backup/lockstep/cmd/internal/overlays"
	"github.com/lockstep-backup/lockstep/export"
	"github.com/lockstep-backup/lockstep/export/fusefs"
	"github.com/lockstep-backup/lockstep/nbd"
)

// An export reads the repository in this process, also beside a server. It
// keeps the recovery point from being deleted, and is in nobody else's way.

// exporting is a recovery point that is open for reading.
type exporting struct {
	*engine
	point    *leasedPoint
	listed   catalog.Point
	reason   string // of what it is unlocked for, for the audit log
	warnings []string
}

// openExport opens a recovery point by what the user wrote.
func openExport(ctx context.Context, dir dataDir, ref, repository, what string, log io.Writer) (*exporting, error) {
	e, err := openEngine(dir, slog.New(slog.NewTextHandler(log, &slog.HandlerOptions{Level: slog.LevelWarn})))
	if err != nil {
		return nil, err
	}
	x := &exporting{engine: e}
	if err := x.open(ctx, ref, repository, what); err != nil {
		return nil, errors.Join(err, e.close())
	}
	return x, nil
}

func (x *exporting) open(ctx context.Context, ref, repository, what string) error {
	c, err := x.openCatalog(ctx)
	if err != nil {
		return err
	}
	p, err := c.Resolve(ctx, ref)
	if errors.Is(err, catalog.ErrNotFound) {
		return cli.WithHint(err, "'lockstep point list' shows the recovery points")
	}
	if err != nil {
		return err
	}
	x.listed = p
	x.point, err = x.openPoint(ctx, p, repository, what, func(format string, args ...any) { x.warnings = append(x.warnings, fmt.Sprintf(format, args...)) })
	if err != nil {
		return err
	}
	for _, d := range x.point.Manifest.Disks {
		if len(d.Unread) > 0 {
			x.warnings = append(x.warnings, fmt.Sprintf("disk %s: %d ranges could not be read when the recovery point was made, and are zeroes", d.ID, len(d.Unread)))
		}
	}
	return nil
}

func (x *exporting) close() error { return errors.Join(x.point.Close(), x.engine.close()) }

// about is what is told to who asked.
func (x *exporting) about(where func(id string, d *cli.ExportedDisk)) cli.Exported {
	m := x.point.Manifest
	v := cli.Exported{Point: m.Point, Machine: m.MachineName, Time: m.Time, Warnings: x.warnings}
	for _, d := range x.point.Disks {
		y := cli.ExportedDisk{ID: d.ID, SizeBytes: d.Size()}
		where(d.ID, &y)
		v.Disks = append(v.Disks, y)
	}
	return v
}

// audited does something that gives away what is on the disks, and records that it begins
// and how it ended. What cannot be recorded is not done.
func (x *exporting) audited(ctx context.Context, action string, detail map[string]string, do func() error) error {
	ctx = context.WithoutCancel(ctx)
	event := func(outcome string) audit.Event {
		return audit.Event{Time: time.Now().UTC(), Actor: localActor(), Action: action, Object: x.point.Manifest.Point, Outcome: outcome, Reason: x.reason, Detail: detail}
	}
	if _, err := x.audit.Append(ctx, event(audit.Begun)); err != nil {
		return cli.WithHint(fmt.Errorf("it could not be recorded in the audit log, so nothing was done: %w", err), "'lockstep audit verify' says what is wrong with the audit log")
	}
	err := do()
	outcome := audit.Done
	if err != nil {
		outcome = audit.Failed
	}
	_, aerr := x.audit.Append(ctx, event(outcome))
	return errors.Join(err, aerr)
}

// exportPoint serves a recovery point over NBD until ctx ends.
func exportPoint(ctx context.Context, o cli.ExportOptions) (err error) {
	x, err := openExport(ctx, dataDir(o.DataDir), o.Point, o.Repository, "an export", o.Log)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, x.close()) }()
	var overlay *export.Overlay
	if o.Overlay != "" {
		var made bool
		if overlay, made, err = overlays.Use(o.Overlay, x.point.Point); err != nil {
			return err
		}
		if made {
			x.warnings = append(x.warnings, fmt.Sprintf("the overlay is of no use without recovery point %[1]s, which may be pruned when this export has ended: 'lockstep point pin %[1]s --reason overlay' keeps it", x.point.Manifest.Point))
		}
		defer func() { err = errors.Join(err, overlay.Close()) }()
	}
	l, err := nbdlisten.Open(ctx, nbdlisten.Options{Address: o.Address, Certificates: o.Certificates, Insecure: o.Insecure, Private: o.Unlock != nil})
	if err != nil {
		return listenRefusal(err)
	}
	defer func() { _ = l.Close() }()
	// Not before it is known that somebody can be served: releases stay in the audit log.
	if err := x.unlock(ctx, o.Unlock, "point.export"); err != nil {
		return err
	}
	exports, err := x.point.Exports(overlay)
	if err != nil {
		return err
	}
	s, err := nbd.NewServer(nbd.Config{Exports: exports, TLS: l.TLS, Log: x.log})
	if err != nil {
		return err
	}
	if l.AnyClient {
		x.warnings = append(x.warnings, "there is no ca-cert.pem beside the certificate: the connection is encrypted, and whoever can reach it may read")
	}
	detail := map[string]string{"nbd": o.Address}
	if o.Overlay != "" {
		detail["overlay"] = o.Overlay
	}
	return x.audited(ctx, "point.export", x.unlocked(detail, o.Unlock), func() error {
		v := x.about(func(id string, d *cli.ExportedDisk) { d.URI = l.URI(id) })
		v.Volumes = x.volumes(func(id string, v *cli.ExportedVolume) { v.URI = l.URI(id) })
		v.Overlay = o.Overlay
		o.Ready(v)
		return s.Serve(ctx, l)
	})
}

// listenRefusal says what to do about an address.
func listenRefusal(err error) error {
	p := &api.Error{Status: http.StatusConflict, Title: "refused", Exit: api.ExitRefused, Detail: "export: " + err.Error()}
	switch {
	case errors.Is(err, nbdlisten.ErrAddress):
		p.Exit, p.Hint = api.ExitUsage, "--nbd unix:/run/web01.nbd, or --nbd 127.0.0.1:10809"
	case errors.Is(err, nbdlisten.ErrNoTLS):
		p.Hint = "--tls-certificate DIR encrypts; a unix socket or 127.0.0.1 needs no encryption; --insecure does without"
	case errors.Is(err, nbdlisten.ErrOpen):
		p.Hint = "plaintext goes over a unix socket, or with --tls-certificate to clients that are known by a certificate (ca-cert.pem in that folder)"
	case errors.Is(err, nbdlisten.ErrInUse):
		p.Exit, p.Hint = api.ExitBusy, "name another address"
	case errors.Is(err, nbdlisten.ErrNoSocket):
		p.Exit, p.Hint = api.ExitTarget, "name another path"
	case errors.Is(err, fs.ErrNotExist):
		return cli.WithHint(err, "a folder for --tls-certificate has server-cert.pem and server-key.pem; the socket's folder must be there")
	default:
		return err
	}
	return p
}

// mountPoint shows a recovery point as files until ctx ends or somebody unmounts it.
func mountPoint(ctx context.Context, o cli.MountOptions) (err error) {
	x, err := openExport(ctx, dataDir(o.DataDir), o.Point, o.Repository, "a mount", o.Log)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, x.close()) }()
	if err := x.unlock(ctx, o.Unlock, "point.mount"); err != nil {
		return err
	}
	return x.audited(ctx, "point.mount", x.unlocked(map[string]string{"folder": o.Dir}, o.Unlock), func() error {
		m, err := fusefs.New(x.point.Point, o.Dir, fusefs.Options{Log: x.log})
		if errors.Is(err, fusefs.ErrUnavailable) {
			return cli.WithHint(err, "mounting needs Linux with /dev/fuse, and for others than root fusermount3 (package fuse3); 'lockstep export' needs neither")
		}
		if err != nil {
			hint := "name an empty folder; where the program of a mount is dead, 'fusermount3 -u " + o.Dir + "', or as root 'umount " + o.Dir + "', takes it away"
			return &api.Error{Status: http.StatusConflict, Title: "refused", Exit: api.ExitTarget, Detail: "mount: " + err.Error(), Hint: hint}
		}
		v := x.about(func(id string, d *cli.ExportedDisk) { d.File = filepath.Join(o.Dir, fusefs.FileName(id)) })
		v.Volumes = x.volumes(func(id string, v *cli.ExportedVolume) { v.File = filepath.Join(o.Dir, fusefs.PlainName(id)) })
		v.Dir = o.Dir
		o.Ready(v)
		select {
		case <-ctx.Done():
		case <-m.Ended():
		}
		lazy, err := m.Unmount()
		if lazy {
			x.log.Warn("programs still had files open; they get errors now", "folder", o.Dir)
		}
		if err != nil {
			err = cli.WithHint(err, "when nothing uses it any more: umount, or fusermount3 -u -z")
		}
		return err
	})
}
