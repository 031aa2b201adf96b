// Package backups is the routes of making recovery points and proving them.
package backups

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/lockstep-backup/lockstep/api"
	"github.com/lockstep-backup/lockstep/audit"
	"github.com/lockstep-backup/lockstep/backup"
	"github.com/lockstep-backup/lockstep/catalog"
	"github.com/lockstep-backup/lockstep/job"
	"github.com/lockstep-backup/lockstep/prove"
	"github.com/lockstep-backup/lockstep/server/internal/frame"
	"github.com/lockstep-backup/lockstep/server/internal/show"
)

type routes struct{ *frame.Frame }

// Register adds the routes.
func Register(f *frame.Frame) {
	s := routes{f}
	frame.Route(f, "start-backup", http.MethodPost, "/v1/backups", "Make a recovery point", s.startBackup, frame.Status(http.StatusAccepted))
	frame.Route(f, "start-proofs", http.MethodPost, "/v1/proofs", "Open recovery points with the secrets in custody", s.startProofs, frame.Status(http.StatusAccepted))
}

func (s routes) startBackup(ctx context.Context, req *frame.In[api.BackupRequest]) (*frame.Out[api.Job], error) {
	r := req.Body
	e := audit.Event{Action: "machine.backup", Object: r.Machine}
	c, err := s.Catalog(ctx)
	if err != nil {
		return nil, s.Refuse(ctx, e, err)
	}
	m, err := s.Machine(ctx, c, r.Machine)
	if err != nil {
		return nil, s.Refuse(ctx, e, err)
	}
	return s.Start(ctx, "backup", e, func(ctx context.Context, p *job.Reporter) (frame.Result, error) {
		return s.backUp(s.Limited(ctx, r.Rates, s.PolicyLimits(ctx, c, m.ID)), c, m, r, p)
	}, frame.MachineKey(m))
}

// backUp makes a recovery point and has it proven. What custody cannot do
// leaves it unproven; it never makes the backup fail.
func (s routes) backUp(ctx context.Context, c *catalog.Catalog, m catalog.Machine, r api.BackupRequest, p *job.Reporter) (frame.Result, error) {
	repo, err := s.Repository(ctx)
	if err != nil {
		return frame.Result{}, fmt.Errorf("back up %s: %w", m.Name, err)
	}
	made, err := backup.Run(ctx, backup.Deps{
		Repository: repo, Catalog: c, Open: s.OpenSource, Formats: s.Formats, Log: s.Log, Now: s.Now, Software: s.Software,
	}, backup.Request{
		Machine: m, Full: r.Full, AllowLive: r.AllowLive, AllowIncomplete: r.AllowIncomplete, Description: r.Description, Progress: frame.Progress(p),
	})
	if rerr := s.recordFound(ctx, m, made); rerr != nil {
		p.Warning("what the backup found could not be recorded in the audit log: %s", frame.ProblemOf(rerr).Detail)
		s.Log.Error("audit log", "machine", m.Name, "error", rerr)
	}
	exit := api.ExitDone
	if len(made.Lost) > 0 {
		exit = api.ExitDamaged
	}
	if err != nil {
		for _, w := range made.Warnings {
			p.Warning("%s", w)
		}
		return frame.Result{Exit: exit}, err
	}
	p.Message("recovery point %s is stored", made.Point.ID)
	for _, w := range made.Warnings {
		p.Warning("%s", w)
	}
	// It is committed: what follows adds to it and is done even if somebody
	// cancels between two steps, as far as the prover goes along.
	s.warnChanges(ctx, c, made.Point, p)
	if err := s.StatePolicies(context.WithoutCancel(ctx), c, false, m); err != nil {
		p.Warning("recovery point %s is stored, and the policy is not: a lost catalog would not get it back: %s", made.Point.ID, frame.ProblemOf(err).Detail)
	}
	p.Progress(job.Progress{Phase: "prove", Total: 1, Unit: "points"})
	ids := append([]string{made.Point.ID}, s.leftUnproven(ctx, c, made.Point)...)
	results, err := prove.Points(ctx, s.Custody(ctx, c), ids, nil)
	if err != nil {
		p.Warning("recovery point %s is stored, but could not be proven: %s", made.Point.ID, frame.ProblemOf(err).Detail)
	}
	for _, x := range results {
		for _, problem := range x.Problems {
			if x.Point == made.Point.ID { // of the others it was said in their time
				p.Warning("%s", problem)
			}
		}
		exit = max(exit, exitOfProof(x))
		for _, d := range x.Damaged {
			p.Warning("recovery point %s cannot be read as it was stored: %s", x.Point, show.OneLine(d.Error()))
		}
	}
	p.Progress(job.Progress{Phase: "prove", Done: 1, Total: 1, Unit: "points"})
	v, err := s.PointView(context.WithoutCancel(ctx), c, made.Point)
	if err != nil {
		return frame.Result{}, fmt.Errorf("back up %s: recovery point %s is stored, but cannot be shown: %w", m.Name, made.Point.ID, err)
	}
	for _, w := range v.Warnings {
		p.Warning("%s", w)
	}
	return frame.Result{JobResult: api.JobResult{Backup: &v}, Exit: max(exit, frame.ExitOfState(v.State))}, nil
}

// CaughtUp is the audit entry of a recovery point that is recorded later than
// it was committed, for the process that committed it could not do so.
func CaughtUp(m catalog.Machine, point, actor string, now time.Time) audit.Event {
	return audit.Event{
		Time: now.UTC(), Actor: actor, Action: "machine.backup", Object: m.Name, Outcome: audit.Done,
		Detail: map[string]string{"point": point, "recorded": "later, not by the process that committed it"},
	}
}

// recordFound records what a backup found out about earlier recovery points:
// that one was committed by a process that died before it could say so, and
// that the repository lost some.
func (s routes) recordFound(ctx context.Context, m catalog.Machine, made backup.Result) error {
	var bad []error
	for _, id := range made.CaughtUp {
		bad = append(bad, s.Record(ctx, CaughtUp(m, id, "", time.Time{})))
	}
	if len(made.Lost) > 0 {
		bad = append(bad, s.Record(ctx, audit.Event{
			Action: "repository.loss", Object: m.Name, Outcome: audit.Failed,
			Detail: map[string]string{"points": frame.Clip(strings.Join(made.Lost, " "))},
		}))
	}
	return errors.Join(bad...)
}

// mostLeft bounds how many earlier recovery points one backup proves beside its own.
const mostLeft = 32

// leftUnproven are the newest earlier recovery points of the machine whose
// proving is not complete: the process died in between, or the key manager was
// away. With a header that was opened already they cost no key derivation.
func (s routes) leftUnproven(ctx context.Context, c *catalog.Catalog, made catalog.Point) []string {
	view, err := prove.Load(ctx, s.Custody(ctx, c), made.Machine)
	if err != nil {
		return nil // the proof of the new one says why
	}
	points, err := c.Points.List(ctx, catalog.PointQuery{Machine: made.Machine, Repository: made.Repository})
	if err != nil {
		return nil
	}
	return view.Unfinished(points, made.ID, mostLeft)
}

// warnChanges says what changed in custody since the parent.
func (s routes) warnChanges(ctx context.Context, c *catalog.Catalog, made catalog.Point, p *job.Reporter) {
	all, err := c.Points.List(ctx, catalog.PointQuery{Machine: made.Machine, Deleted: true})
	if err != nil {
		p.Warning("what changed since the recovery point before is not known: %s", frame.ProblemOf(err).Detail)
		return
	}
	i := slices.IndexFunc(all, func(x catalog.Point) bool { return x.ID == made.ID })
	if i < 0 {
		return
	}
	found := show.ChangesSince(all, i)
	if found.Loud != "" {
		p.Warning("%s", found.Loud)
	}
	for _, text := range found.Texts {
		p.Warning("%s", text)
	}
}
