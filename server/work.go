package server

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
	"github.com/lockstep-backup/lockstep/repository"
	"github.com/lockstep-backup/lockstep/restore"
	"github.com/lockstep-backup/lockstep/server/internal/headers"
	"github.com/lockstep-backup/lockstep/server/internal/show"
	"github.com/lockstep-backup/lockstep/target"
	"github.com/lockstep-backup/lockstep/verify"
)

// Kinds of jobs.
const (
	kindBackup  = "backup"
	kindProve   = "prove"
	kindRestore = "restore"
	kindVerify  = "verify"
	kindRebuild = "rebuild"
)

func (s *Server) workRoutes() {
	accepted := status(http.StatusAccepted)
	route(s, "start-backup", http.MethodPost, "/v1/backups", "Make a recovery point", s.startBackup, accepted)
	route(s, "start-proofs", http.MethodPost, "/v1/proofs", "Open recovery points with the secrets in custody", s.startProofs, accepted)
	route(s, "start-restore", http.MethodPost, "/v1/restores", "Write disks back, still encrypted", s.startRestore, accepted)
	route(s, "start-verification", http.MethodPost, "/v1/verifications", "Read back what is stored and compare", s.startVerification, accepted)
	route(s, "rebuild-catalog", http.MethodPost, "/v1/catalog/rebuild", "Fill the catalog anew from the repository", s.startRebuild, accepted)
	route(s, "get-status", http.MethodGet, "/v1/status", "Which secret opens which recovery point, the worst machine first", s.getStatus)
}

// work is what a job does. The result stays with the job also where it failed.
type work func(ctx context.Context, p *job.Reporter) (result, error)

// start starts a job, which is recorded when it has ended; a refusal to start
// it is recorded at once.
func (s *Server) start(ctx context.Context, kind string, e audit.Event, do work, keys ...string) (*out[api.Job], error) {
	j, err := s.jobs.Start(ctx, kind, func(ctx context.Context, p *job.Reporter) error {
		_, err := audited(ctx, s, withJob(e, p.Job()), func() (result, error) {
			r, err := do(ctx, p)
			if serr := p.Result(r); serr != nil && err == nil {
				err = serr
			}
			// What a canceled job says of itself is only that it was canceled.
			if cause := context.Cause(ctx); err != nil && ctx.Err() != nil && cause != nil && !errors.Is(err, cause) {
				err = fmt.Errorf("%w: %w", cause, err)
			}
			if err == nil && r.Exit == api.ExitDamaged && (kind == kindProve || kind == kindVerify) {
				err = errFound
			}
			return r, err
		})
		if errors.Is(err, errFound) {
			err = nil // the job did what it is for
		}
		return err
	}, keys...)
	if err != nil {
		err = fmt.Errorf("%s: %w", kind, err)
		e.Outcome, e.Detail = outcomeOf(err), withDetail(e.Detail, "error", clip(problemOf(err).Detail))
		return nil, errors.Join(err, s.record(ctx, e))
	}
	return &out[api.Job]{Body: jobView(j)}, nil
}

// errFound has the audit log say that a job which looks for damage found some.
var errFound = fmt.Errorf("%w was found", repository.ErrDamaged)

func withJob(e audit.Event, id string) audit.Event {
	detail := map[string]string{"job": id}
	for k, v := range e.Detail {
		detail[k] = v
	}
	e.Detail = detail
	return e
}

// refuse records that something was not even started.
func (s *Server) refuse(ctx context.Context, e audit.Event, err error) error {
	e.Outcome, e.Detail = outcomeOf(err), withDetail(e.Detail, "error", clip(problemOf(err).Detail))
	return errors.Join(err, s.record(ctx, e))
}

func progress(p *job.Reporter) func(phase string, done, total int64) {
	return func(phase string, done, total int64) {
		p.Progress(job.Progress{Phase: phase, Done: done, Total: total, Unit: "bytes"})
	}
}

func (s *Server) startBackup(ctx context.Context, req *in[api.BackupRequest]) (*out[api.Job], error) {
	r := req.Body
	e := audit.Event{Action: "machine.backup", Object: r.Machine}
	c, err := s.d.Catalog(ctx)
	if err != nil {
		return nil, s.refuse(ctx, e, err)
	}
	m, err := s.machine(ctx, c, r.Machine)
	if err != nil {
		return nil, s.refuse(ctx, e, err)
	}
	return s.start(ctx, kindBackup, e, func(ctx context.Context, p *job.Reporter) (result, error) {
		return s.backUp(ctx, c, m, r, p)
	}, machineKey(m))
}

// backUp makes a recovery point and has it proven. What custody cannot do
// leaves it unproven; it never makes the backup fail.
func (s *Server) backUp(ctx context.Context, c *catalog.Catalog, m catalog.Machine, r api.BackupRequest, p *job.Reporter) (result, error) {
	repo, err := s.d.Repository(ctx)
	if err != nil {
		return result{}, fmt.Errorf("back up %s: %w", m.Name, err)
	}
	made, err := backup.Run(ctx, backup.Deps{
		Repository: repo, Catalog: c, Open: s.openSource, Formats: s.d.Formats, Log: s.d.Log, Now: s.d.Now, Software: s.d.Software,
	}, backup.Request{
		Machine: m, Full: r.Full, AllowLive: r.AllowLive, AllowIncomplete: r.AllowIncomplete, Description: r.Description, Progress: progress(p),
	})
	if rerr := s.recordFound(ctx, m, made); rerr != nil {
		p.Warning("what the backup found could not be recorded in the audit log: %s", problemOf(rerr).Detail)
		s.d.Log.Error("audit log", "machine", m.Name, "error", rerr)
	}
	exit := api.ExitDone
	if len(made.Lost) > 0 {
		exit = api.ExitDamaged
	}
	if err != nil {
		for _, w := range made.Warnings {
			p.Warning("%s", w)
		}
		return result{Exit: exit}, err
	}
	p.Message("recovery point %s is stored", made.Point.ID)
	for _, w := range made.Warnings {
		p.Warning("%s", w)
	}
	// It is committed: what follows adds to it and is done even if somebody
	// cancels between two steps, as far as the prover goes along.
	s.warnChanges(ctx, c, made.Point, p)
	p.Progress(job.Progress{Phase: "prove", Total: 1, Unit: "points"})
	ids := append([]string{made.Point.ID}, s.leftUnproven(ctx, c, made.Point)...)
	results, err := prove.Points(ctx, s.custodyDeps(ctx, c), ids, nil)
	if err != nil {
		p.Warning("recovery point %s is stored, but could not be proven: %s", made.Point.ID, problemOf(err).Detail)
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
	v, err := s.pointView(context.WithoutCancel(ctx), c, made.Point)
	if err != nil {
		return result{}, fmt.Errorf("back up %s: recovery point %s is stored, but cannot be shown: %w", m.Name, made.Point.ID, err)
	}
	return result{Backup: &v, Exit: max(exit, exitOfState(v.State))}, nil
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
func (s *Server) recordFound(ctx context.Context, m catalog.Machine, made backup.Result) error {
	var bad []error
	for _, id := range made.CaughtUp {
		bad = append(bad, s.record(ctx, CaughtUp(m, id, "", time.Time{})))
	}
	if len(made.Lost) > 0 {
		bad = append(bad, s.record(ctx, audit.Event{
			Action: "repository.loss", Object: m.Name, Outcome: audit.Failed,
			Detail: map[string]string{"points": clip(strings.Join(made.Lost, " "))},
		}))
	}
	return errors.Join(bad...)
}

// mostLeft bounds how many earlier recovery points one backup proves beside its own.
const mostLeft = 32

// leftUnproven are the newest earlier recovery points of the machine whose
// proving is not complete: the process died in between, or the key manager was
// away. With a header that was opened already they cost no key derivation.
func (s *Server) leftUnproven(ctx context.Context, c *catalog.Catalog, made catalog.Point) []string {
	view, err := prove.Load(ctx, s.custodyDeps(ctx, c), made.Machine)
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
func (s *Server) warnChanges(ctx context.Context, c *catalog.Catalog, made catalog.Point, p *job.Reporter) {
	all, err := c.Points.List(ctx, catalog.PointQuery{Machine: made.Machine, Deleted: true})
	if err != nil {
		p.Warning("what changed since the recovery point before is not known: %s", problemOf(err).Detail)
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

// exitOfState is the exit status of a command that made or looked at a
// recovery point.
func exitOfState(state string) int {
	switch state {
	case api.StateUnproven, api.StateAtRisk, api.StateUnrecoverable:
		return api.ExitNotProven
	default:
		return api.ExitDone
	}
}

// exitOfProof is what proving found beside the state: damage, or a secret that
// nothing keeps from being destroyed.
func exitOfProof(r prove.Result) int {
	switch {
	case len(r.Damaged) > 0:
		return api.ExitDamaged
	case len(r.Unheld) > 0:
		return api.ExitNotProven
	default:
		return api.ExitDone
	}
}

func (s *Server) startProofs(ctx context.Context, req *in[api.ProveRequest]) (*out[api.Job], error) {
	e := audit.Event{Action: "points.prove"}
	c, err := s.d.Catalog(ctx)
	if err != nil {
		return nil, s.refuse(ctx, e, err)
	}
	var ids []string
	switch {
	case req.Body.All && len(req.Body.Points) > 0:
		return nil, s.refuse(ctx, e, usage("prove: name recovery points or all, not both"))
	case req.Body.All:
		e.Object = "all"
		points, err := c.Points.List(ctx, catalog.PointQuery{Bare: true})
		if err != nil {
			return nil, err
		}
		// The newest first: they are what will be restored.
		for _, p := range slices.Backward(points) {
			ids = append(ids, p.ID)
		}
	case len(req.Body.Points) == 0:
		return nil, s.refuse(ctx, e, usage("prove: no recovery point is named"))
	default:
		for _, ref := range req.Body.Points {
			p, err := s.resolvePoint(ctx, c, ref)
			if err != nil {
				e.Object = ref
				return nil, s.refuse(ctx, e, err)
			}
			if !slices.Contains(ids, p.ID) {
				ids = append(ids, p.ID)
			}
		}
		e.Object = clip(fmt.Sprint(ids))
	}
	return s.start(ctx, kindProve, e, func(ctx context.Context, p *job.Reporter) (result, error) {
		return s.prove(ctx, c, ids, p)
	})
}

func (s *Server) prove(ctx context.Context, c *catalog.Catalog, ids []string, p *job.Reporter) (result, error) {
	r := result{Prove: []api.Point{}}
	deps := s.custodyDeps(ctx, c)
	if deps.Repo == nil {
		_, err := s.d.Repository(ctx)
		return r, err
	}
	results, err := prove.Points(ctx, deps, ids, func(done, total int, point string) {
		p.Progress(job.Progress{Phase: "prove", Done: int64(done), Total: int64(total), Unit: "points", Note: point})
	})
	machines := map[string][]api.Point{}
	for _, x := range results {
		for _, problem := range x.Problems {
			p.Warning("%s: %s", x.Point, problem)
		}
		points, known := machines[x.Machine]
		if !known {
			m, merr := c.Machines.Get(ctx, x.Machine)
			if merr != nil {
				return r, errors.Join(err, merr)
			}
			if points, merr = s.pointsOf(ctx, c, m); merr != nil {
				return r, errors.Join(err, merr)
			}
			machines[x.Machine] = points
		}
		if i := slices.IndexFunc(points, func(v api.Point) bool { return v.ID == x.Point }); i >= 0 {
			v := points[i]
			// The state rests on proofs of earlier days; what was just seen comes first.
			for _, d := range slices.Backward(x.Damaged) {
				text := "damaged: it cannot be read as it was stored: " + show.OneLine(d.Error())
				v.Why = append([]string{text}, v.Why...)
				p.Warning("%s: %s", x.Point, text)
			}
			r.Prove = append(r.Prove, v)
			r.Exit = max(r.Exit, exitOfState(v.State))
		}
		r.Exit = max(r.Exit, exitOfProof(x))
	}
	return r, err
}

func (s *Server) startRestore(ctx context.Context, req *in[api.RestoreRequest]) (*out[api.Job], error) {
	r := req.Body
	e := audit.Event{Action: "point.restore", Object: r.Point}
	for _, t := range r.Targets {
		e.Detail = withDetail(e.Detail, "disk "+t.Disk, clip(t.Target))
	}
	// Formats are the target's business, but a wrong one is wrong usage.
	if r.Format != "" && r.Format != "raw" {
		return nil, s.refuse(ctx, e, usage("restore: format %q is not available in this version (raw is)", r.Format))
	}
	c, err := s.d.Catalog(ctx)
	if err != nil {
		return nil, s.refuse(ctx, e, err)
	}
	p, err := s.resolvePoint(ctx, c, r.Point)
	if err != nil {
		return nil, s.refuse(ctx, e, err)
	}
	e.Object = p.ID
	if p.Incomplete {
		e.Detail = withDetail(e.Detail, "incomplete", "true")
	}
	return s.start(ctx, kindRestore, e, func(ctx context.Context, rep *job.Reporter) (result, error) {
		return s.restore(ctx, c, p, r, rep)
	})
}

// restore begins with the pre-flight: which secrets open what is restored, and
// are they there. It does not keep a ciphertext from being restored.
func (s *Server) restore(ctx context.Context, c *catalog.Catalog, p catalog.Point, r api.RestoreRequest, rep *job.Reporter) (result, error) {
	v, err := s.pointView(ctx, c, p)
	if err != nil {
		return result{}, err
	}
	res := &api.RestoreResult{Point: p.ID, State: v.State, Keys: show.Preflight(v, r.Targets), Disks: []api.RestoredDisk{}}
	for _, k := range res.Keys {
		if len(k.Opens) > 0 {
			rep.Message("%s/%s: opened by %s (%s)", k.Disk, k.Volume, strings.Join(k.Opens, ", "), k.State)
		} else {
			rep.Warning("%s/%s: no secret in custody is proven to open it (%s)", k.Disk, k.Volume, k.State)
		}
	}
	repo, err := s.d.Repository(ctx)
	if err != nil {
		return result{Restore: res}, err
	}
	mf, err := s.manifest(ctx, repo, p)
	if err != nil {
		return result{Restore: res}, err
	}
	req := restore.Request{
		Repository: repo, Manifest: mf, Open: s.openTarget, Options: target.Options{Force: r.Force, Format: r.Format}, Progress: progress(rep),
	}
	for _, t := range r.Targets {
		req.Targets = append(req.Targets, restore.Target{Disk: t.Disk, Target: t.Target})
	}
	done, err := restore.Run(ctx, req)
	out := result{Restore: res, Exit: exitOfState(v.State)}
	for _, d := range done {
		res.Disks = append(res.Disks, api.RestoredDisk{
			ID: d.ID, Target: d.Target, SizeBytes: d.Size, WrittenBytes: d.Written, ContentRoot: d.ContentRoot,
			UnreadRanges: show.Ranges(d.Unread), Seconds: d.Seconds,
		})
		if len(d.Unread) > 0 {
			out.Exit = api.ExitDamaged
			rep.Warning("disk %s: %d ranges could not be read when the recovery point was made, and are zeroes", d.ID, len(d.Unread))
		}
	}
	for _, d := range mf.Disks {
		apart, ierr := headers.Detached(d)
		if ierr != nil || !slices.ContainsFunc(r.Targets, func(t api.RestoreTarget) bool { return t.Disk == d.ID }) {
			continue // what cannot be read says so where it is shown
		}
		for _, v := range apart {
			rep.Warning("%s/%s: its header is not on the disk, and needed to open it: 'lockstep header export %s/%s/%s --to FILE'", d.ID, v, p.ID, d.ID, v)
		}
	}
	return out, err
}

func (s *Server) startVerification(ctx context.Context, req *in[api.VerifyRequest]) (*out[api.Job], error) {
	e := audit.Event{Action: "repository.verify", Object: "all"}
	var points []catalog.Point
	if len(req.Body.Points) > 0 {
		c, err := s.d.Catalog(ctx)
		if err != nil {
			return nil, s.refuse(ctx, e, err)
		}
		var ids []string
		for _, ref := range req.Body.Points {
			p, err := s.resolvePoint(ctx, c, ref)
			if err != nil {
				e.Object = ref
				return nil, s.refuse(ctx, e, err)
			}
			if !slices.Contains(ids, p.ID) {
				points, ids = append(points, p), append(ids, p.ID)
			}
		}
		e.Object = clip(fmt.Sprint(ids))
	}
	return s.start(ctx, kindVerify, e, func(ctx context.Context, p *job.Reporter) (result, error) {
		return s.verify(ctx, points, p)
	})
}

func (s *Server) verify(ctx context.Context, points []catalog.Point, p *job.Reporter) (result, error) {
	repo, err := s.d.Repository(ctx)
	if err != nil {
		return result{}, err
	}
	req := verify.Request{Repository: repo, All: len(points) == 0, Progress: progress(p)}
	if req.Expected, err = s.expected(ctx, repo, points); err != nil {
		return result{}, err
	}
	for _, x := range points {
		rp, err := s.repositoryPoint(ctx, repo, x)
		if errors.Is(err, repository.ErrNotFound) && x.Repository == repo.ID() {
			continue // it is expected, and reported as gone
		}
		if err != nil {
			return result{}, err
		}
		req.Points = append(req.Points, rp)
	}
	found, err := verify.Run(ctx, req)
	names := s.names(ctx)
	res := &api.VerifyResult{Points: found.Points, Objects: found.Objects, ReadBytes: found.Read, Damage: []api.Damage{}}
	for _, d := range found.Damage {
		v := api.Damage{Object: d.Object, Machine: show.Name(names, d.Machine), Disk: d.Disk, Points: d.Points, Error: "damaged"}
		if d.Range != nil {
			v.Range = &api.Range{Offset: d.Range.Offset, Length: d.Range.Length}
		}
		if d.Err != nil {
			v.Error = show.OneLine(d.Err.Error())
		}
		res.Damage = append(res.Damage, v)
	}
	r := result{Verify: res}
	if len(res.Damage) > 0 {
		r.Exit = api.ExitDamaged
	}
	return r, err
}

// expected is what the catalog knows to be in the repository: of the recovery
// points named, or of all. A catalog that is lost knows nothing; that has its
// own message, and what is stored can be read all the same.
func (s *Server) expected(ctx context.Context, repo *repository.Repository, points []catalog.Point) ([]verify.Expected, error) {
	c, err := s.d.Catalog(ctx)
	if err != nil {
		s.d.Log.Warn("what the catalog expects to be stored is not known", "error", err)
		return nil, nil
	}
	if len(points) == 0 {
		if points, err = c.Points.List(ctx, catalog.PointQuery{Repository: repo.ID()}); err != nil {
			return nil, err
		}
	}
	var out []verify.Expected
	headers := map[string][]catalog.HeaderPackage{}
	for _, p := range points {
		if p.Repository != repo.ID() || !p.DeletedAt.IsZero() {
			continue
		}
		e := verify.Expected{Machine: p.Machine, Point: p.ID, Sequence: p.Sequence, Roots: map[string]string{}}
		proofs, err := c.Proofs.OfPoint(ctx, p.ID)
		if err != nil {
			return nil, err
		}
		for _, x := range proofs {
			e.Objects = append(e.Objects, x.Key)
		}
		packages, err := c.Packages.OfPoint(ctx, p.ID)
		if err != nil {
			return nil, err
		}
		for _, x := range packages {
			e.Objects = append(e.Objects, x.Key)
		}
		if _, known := headers[p.Machine]; !known {
			if headers[p.Machine], err = c.Packages.Headers(ctx, p.Machine); err != nil {
				return nil, err
			}
		}
		digests := map[string]bool{}
		for _, d := range p.Disks {
			e.Roots[d.Disk] = d.ContentRoot
			for _, v := range d.Volumes {
				digests[v.HeaderDigest] = true
			}
		}
		for _, h := range headers[p.Machine] {
			if digests[h.HeaderDigest] {
				e.Objects = append(e.Objects, h.Key)
			}
		}
		out = append(out, e)
	}
	return out, nil
}
