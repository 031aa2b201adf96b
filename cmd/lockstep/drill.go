package main

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/lockstep-backup/lockstep/cli"
	"github.com/lockstep-backup/lockstep/cmd/internal/rehearsing"
	"github.com/lockstep-backup/lockstep/custody"
	"github.com/lockstep-backup/lockstep/diskcrypt"
	"github.com/lockstep-backup/lockstep/drill"
	"github.com/lockstep-backup/lockstep/envelope"
	"github.com/lockstep-backup/lockstep/unlock"
)

// holdDrill rehearses a restore.
func holdDrill(ctx context.Context, o cli.DrillOptions) (out cli.Drilled, err error) {
	started := time.Now()
	x, err := openExport(ctx, dataDir(o.DataDir), o.Point, o.Repository, "a drill", o.Log)
	if err != nil {
		return out, err
	}
	defer func() { err = errors.Join(err, x.close()) }()
	x.reason = o.Unlock.Reason
	c, err := x.openCatalog(ctx)
	if err != nil {
		return out, err
	}
	r := rehearsing.Rehearsal{
		Options: o, Started: started, Point: x.point.Point, Repository: x.point.repo,
		Unlock: unlock.Options{Formats: formats(), Limits: diskcrypt.Limits{KDFMemory: kdfMemory()}},
		Actor:  localActor(), Software: software(), Log: x.log,
	}
	if r.Declarations, err = c.Declarations.OfMachine(ctx, x.listed.Machine); err != nil {
		return out, err
	}
	keys, err := x.keys(ctx, x.listed, o.Unlock, "point.drill")
	if err != nil {
		return out, err
	}
	r.Keys = keys.of
	detail := map[string]string{}
	err = x.audited(ctx, "point.drill", detail, func() error {
		report, err := r.Hold(ctx)
		if err != nil {
			return err
		}
		detail["outcome"] = report.Outcome
		return x.keepReport(ctx, report, o.Dry, &out)
	})
	out.Warnings = append(append(append([]string{}, x.warnings...), keys.Warnings()...), out.Warnings...)
	return out, err
}

// keepReport signs a report, stores it, and shows it.
func (x *exporting) keepReport(ctx context.Context, report custody.Drill, dry bool, out *cli.Drilled) error {
	key, err := envelope.ReadSigningKeyFile(x.dir.custodianKey())
	if err != nil {
		return err
	}
	defer key.Wipe()
	if *out, err = rehearsing.Drilled(report); err != nil {
		return err
	}
	if out.Signed, err = custody.SignDrill(report, key); err != nil || dry {
		return err
	}
	if err = drill.Store(ctx, x.point.repo, report, out.Signed); err != nil {
		out.Warnings = append(out.Warnings, fmt.Sprintf("the report is not kept beside the recovery point: %v", err))
	}
	out.Stored = err == nil
	return nil
}

// drillReports lists the drills of a recovery point.
func drillReports(ctx context.Context, o cli.DrillOptions) (out []cli.Drilled, err error) {
	x, err := openExport(ctx, dataDir(o.DataDir), o.Point, o.Repository, "reading reports", o.Log)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, x.close()) }()
	reports, problems, err := drill.Reports(ctx, x.point.repo, x.point.Manifest)
	for _, p := range problems {
		x.log.Warn(p)
	}
	for _, d := range reports {
		r, err := rehearsing.Drilled(d)
		if err != nil {
			return nil, err
		}
		r.Stored, r.Warnings = true, []string{}
		out = append(out, r)
	}
	return out, err
}
