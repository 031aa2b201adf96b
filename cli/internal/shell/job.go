package shell

import (
	"context"
	"fmt"
	"time"

	"github.com/lockstep-backup/lockstep/api"
	"github.com/lockstep-backup/lockstep/cli/internal/screen"
)

// cancelWait is how long an interrupted command waits for its job to end.
const cancelWait = time.Minute

// Progress shows on standard error how far something is.
func (a *Run) Progress() *screen.Progress {
	return screen.NewProgress(a.Env.Stderr, a.Env.IsTerminal(a.Env.Stderr) && a.Env.Getenv("TERM") != "dumb", a.Quiet)
}

// RunJob starts a job, follows it to its end and remembers its exit status.
// The job is returned also when it failed: it may have results all the same,
// and err is then what it says. Interrupted, it cancels the job; stays says
// what that leaves.
func (a *Run) RunJob(ctx context.Context, c *api.Client, op, stays string, start func() (api.Job, error)) (api.Job, error) {
	j, err := start()
	if err != nil {
		return api.Job{}, OperationError(op, err)
	}
	p := a.Progress()
	id := j.ID
	j, err = c.WatchJob(ctx, id, p.Event)
	interrupted := ctx.Err() != nil
	if interrupted {
		p.Line(op + ": interrupted; asking job " + id + " to stop")
		j, err = a.cancelJob(ctx, c, id, p)
	}
	p.Close(err == nil && j.State == "succeeded")
	if err != nil {
		return api.Job{}, a.lostJob(op, id, interrupted, err)
	}
	for _, w := range j.Warnings {
		p.Warning(w)
	}
	a.NoteJob(j)
	switch {
	case interrupted && j.State == "succeeded":
		a.Note(api.ExitInterrupted)
		a.Warnf("lockstep: %s: interrupted, but it had ended already", op)
		return j, nil
	case interrupted:
		again := "the same command goes on from there"
		if op == "restore" {
			again = "the same command begins anew; with --force where the target was there before"
		}
		return j, WithHint(fmt.Errorf("%s: interrupted; %s", op, stays), again)
	case j.Error != nil:
		return j, j.Error
	case j.State == "canceled":
		return j, &api.Error{Title: "canceled", Detail: op + ": job " + id + " was canceled; " + stays, Exit: api.ExitInterrupted}
	case j.State != "succeeded":
		return j, fmt.Errorf("%s: job %s ended as %q without saying why", op, id, j.State)
	}
	return j, nil
}

// cancelJob cancels and waits for the end, since with an engine in this
// process the end of the process is the end of the job.
func (a *Run) cancelJob(ctx context.Context, c *api.Client, id string, p *screen.Progress) (api.Job, error) {
	ctx, stop := context.WithTimeout(context.WithoutCancel(ctx), cancelWait)
	defer stop()
	if _, err := c.CancelJob(ctx, id); err != nil {
		// It may have ended in the meantime; watching tells.
		p.Line("warning: cancel job " + id + ": " + screen.Clean(err.Error()))
	}
	return c.WatchJobAfter(ctx, id, p.Last(), p.Event)
}

// lostJob is the error where a job could not be followed to its end.
func (a *Run) lostJob(op, id string, interrupted bool, err error) error {
	if interrupted {
		return WithHint(fmt.Errorf("%s: interrupted; job %s did not end within %s", op, id, cancelWait),
			"'lockstep job watch "+id+"' shows what becomes of it, where a server runs it")
	}
	return WithHint(OperationError(op, err), "'lockstep job watch "+id+"' follows it, where a server runs it")
}

// NoteJob remembers the exit statuses that a job's end and results mean.
func (a *Run) NoteJob(j api.Job) {
	a.Note(j.Exit)
	if j.Error != nil {
		a.Note(j.Error.Exit)
	}
	if j.Backup != nil {
		a.NotePoint(j.Backup.State)
	}
	for _, p := range j.Prove {
		a.NotePoint(p.State)
	}
	if j.Restore != nil {
		a.NotePoint(j.Restore.State)
	}
	if j.Verify != nil && len(j.Verify.Damage) > 0 {
		a.Note(api.ExitDamaged)
	}
	if j.Scrub != nil && len(j.Scrub.Damage) > 0 {
		a.Note(api.ExitDamaged)
	}
	if j.State == "failed" && a.status == api.ExitDone {
		a.Note(api.ExitFailed)
	}
}
