package cli

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/lockstep-backup/lockstep/api"
	"github.com/lockstep-backup/lockstep/cli/internal/screen"
)

// cancelWait is how long an interrupted command waits for its job to end.
const cancelWait = time.Minute

// runJob starts a job, follows it to its end and remembers its exit status.
// The job is returned also when it failed: it may have results all the same,
// and err is then what it says. Interrupted, it cancels the job; stays says
// what that leaves.
func (a *app) runJob(ctx context.Context, c *api.Client, op, stays string, start func() (api.Job, error)) (api.Job, error) {
	j, err := start()
	if err != nil {
		return api.Job{}, operationError(op, err)
	}
	p := screen.NewProgress(a.env.Stderr, a.env.IsTerminal(a.env.Stderr) && a.env.Getenv("TERM") != "dumb", a.quiet)
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
	a.noteJob(j)
	switch {
	case interrupted && j.State == "succeeded":
		a.note(api.ExitInterrupted)
		a.warnf("lockstep: %s: interrupted, but it had ended already", op)
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
func (a *app) cancelJob(ctx context.Context, c *api.Client, id string, p *screen.Progress) (api.Job, error) {
	ctx, stop := context.WithTimeout(context.WithoutCancel(ctx), cancelWait)
	defer stop()
	if _, err := c.CancelJob(ctx, id); err != nil {
		// It may have ended in the meantime; watching tells.
		p.Line("warning: cancel job " + id + ": " + screen.Clean(err.Error()))
	}
	return c.WatchJobAfter(ctx, id, p.Last(), p.Event)
}

// lostJob is the error where a job could not be followed to its end.
func (a *app) lostJob(op, id string, interrupted bool, err error) error {
	if interrupted {
		return WithHint(fmt.Errorf("%s: interrupted; job %s did not end within %s", op, id, cancelWait),
			"'lockstep job watch "+id+"' shows what becomes of it, where a server runs it")
	}
	return WithHint(operationError(op, err), "'lockstep job watch "+id+"' follows it, where a server runs it")
}

// noteJob remembers the exit statuses that a job's end and results mean.
func (a *app) noteJob(j api.Job) {
	a.note(j.Exit)
	if j.Error != nil {
		a.note(j.Error.Exit)
	}
	if j.Backup != nil {
		a.notePoint(j.Backup.State)
	}
	for _, p := range j.Prove {
		a.notePoint(p.State)
	}
	if j.Restore != nil {
		a.notePoint(j.Restore.State)
	}
	if j.Verify != nil && len(j.Verify.Damage) > 0 {
		a.note(api.ExitDamaged)
	}
	if j.State == "failed" && a.status == api.ExitDone {
		a.note(api.ExitFailed)
	}
}

func (a *app) jobCommand() *cobra.Command {
	return a.group("job", "Long work: backups, proofs, restores", groupWatch, "lockstep job list",
		a.jobList(), a.jobWatch(), a.jobCancel())
}

func (a *app) jobList() *cobra.Command {
	return a.leaf(command{
		use: "list", short: "List jobs",
		example: "lockstep job list",
		args:    cobra.NoArgs,
		run: func(ctx context.Context, _ *cobra.Command, _ []string) error {
			return a.withClient(ctx, func(c *api.Client) error {
				jobs, err := c.Jobs(ctx)
				if err != nil {
					return operationError("job list", err)
				}
				emitList(a, jobs, func(w io.Writer) {
					if len(jobs) == 0 {
						a.sayf("no job is known")
						return
					}
					t := screen.NewTable("", "JOB", "KIND", "STATE", "CREATED", "ENDED", "EXIT", "ERROR")
					for _, j := range jobs {
						exit, failure := "", ""
						if j.Ended != nil {
							exit = fmt.Sprint(j.Exit)
						}
						if j.Error != nil {
							failure = j.Error.Error()
						}
						t.Add(screen.Text(j.ID), screen.Text(j.Kind), screen.Painted(j.State, jobColour(j.State)), screen.Text(screen.Stamp(j.Created)),
							screen.Text(screen.StampOr(j.Ended, "–")), screen.Number(exit), screen.Text(failure))
					}
					t.Print(w, a.style)
				})
				return nil
			})
		},
	})
}

func jobColour(state string) string {
	switch state {
	case "succeeded":
		return screen.Green
	case "failed":
		return screen.Alarm
	case "running", "queued":
		return screen.Bold
	default:
		return screen.Dim
	}
}

func (a *app) jobWatch() *cobra.Command {
	return a.leaf(command{
		use: "watch JOB", short: "Follow a job to its end",
		long: `Every event is a line; with -o json every event is one JSON document on a line of
its own. The exit status is the job's. Interrupted, the job goes on.`,
		example: "lockstep job watch job-1",
		exits: []int{
			api.ExitNotProven, api.ExitRefused, api.ExitWrongSecret,
			api.ExitDamaged, api.ExitTarget, api.ExitBusy,
		},
		args: cobra.ExactArgs(1),
		run: func(ctx context.Context, _ *cobra.Command, args []string) error {
			return a.withClient(ctx, func(c *api.Client) error {
				enc := json.NewEncoder(a.env.Stdout)
				enc.SetEscapeHTML(false)
				j, err := c.WatchJob(ctx, args[0], func(e api.JobEvent) error {
					if a.json() {
						a.printed = true
						return enc.Encode(e)
					}
					line := fmt.Sprintf("%s  %-8s  %s", screen.Stamp(e.Time), e.Kind, screen.Describe(e))
					_, err := fmt.Fprintln(a.env.Stdout, strings.TrimRight(screen.CleanLine(line), " "))
					return err
				})
				if err != nil {
					if ctx.Err() != nil {
						return WithHint(fmt.Errorf("job watch: interrupted; job %s goes on", args[0]), "'lockstep job cancel "+args[0]+"' stops it")
					}
					return operationError("job watch", err)
				}
				a.noteJob(j)
				if j.Error != nil {
					return j.Error
				}
				if j.State == "canceled" {
					a.note(api.ExitInterrupted)
				}
				a.sayf("job %s (%s) %s", screen.CleanLine(j.ID), screen.CleanLine(j.Kind), screen.CleanLine(j.State))
				return nil
			})
		},
	})
}

func (a *app) jobCancel() *cobra.Command {
	return a.leaf(command{
		use: "cancel JOB", short: "Ask a job to stop",
		long:    "What it has committed stays, and the next run goes on from there.",
		example: "lockstep job cancel job-1",
		exits:   []int{api.ExitRefused},
		args:    cobra.ExactArgs(1),
		run: func(ctx context.Context, _ *cobra.Command, args []string) error {
			return a.withClient(ctx, func(c *api.Client) error {
				j, err := c.CancelJob(ctx, args[0])
				if err != nil {
					return operationError("job cancel", err)
				}
				a.done(j, "job %s is asked to stop; it is %s", screen.CleanLine(j.ID), screen.CleanLine(j.State))
				return nil
			})
		},
	})
}
