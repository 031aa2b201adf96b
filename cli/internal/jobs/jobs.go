// Package jobs is the commands about jobs.
package jobs

import (
	"context"
	"fmt"
	"io"
	"strings"

	"github.com/spf13/cobra"

	"github.com/lockstep-backup/lockstep/api"
	"github.com/lockstep-backup/lockstep/cli/internal/screen"
	"github.com/lockstep-backup/lockstep/cli/internal/shell"
)

type group struct{ *shell.Run }

// Commands are the commands of this group.
func Commands(r *shell.Run) []*cobra.Command {
	a := group{r}
	return []*cobra.Command{a.jobCommand()}
}

func (a group) jobCommand() *cobra.Command {
	return a.Group("job", "Long work: backups, proofs, restores", shell.GroupWatch, "lockstep job list",
		a.jobList(), a.jobWatch(), a.jobCancel())
}

func (a group) jobList() *cobra.Command {
	return a.Leaf(shell.Command{
		Use: "list", Short: "List jobs",
		Example: "lockstep job list",
		Args:    cobra.NoArgs,
		Run: func(ctx context.Context, _ *cobra.Command, _ []string) error {
			return a.WithClient(ctx, func(c *api.Client) error {
				jobs, err := c.Jobs(ctx)
				if err != nil {
					return shell.OperationError("job list", err)
				}
				shell.EmitList(a.Run, jobs, func(w io.Writer) {
					if len(jobs) == 0 {
						a.Sayf("no job is known")
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
					t.Print(w, a.Style)
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

func (a group) jobWatch() *cobra.Command {
	return a.Leaf(shell.Command{
		Use: "watch JOB", Short: "Follow a job to its end",
		Long: `Every event is a line; with -o json every event is one JSON document on a line of
its own. The exit status is the job's. Interrupted, the job goes on.`,
		Example: "lockstep job watch job-1",
		Exits: []int{
			api.ExitNotProven, api.ExitRefused, api.ExitWrongSecret,
			api.ExitDamaged, api.ExitTarget, api.ExitBusy,
		},
		Args: cobra.ExactArgs(1),
		Run: func(ctx context.Context, _ *cobra.Command, args []string) error {
			return a.WithClient(ctx, func(c *api.Client) error {
				j, err := c.WatchJob(ctx, args[0], func(e api.JobEvent) error {
					if a.JSON() {
						return a.JSONLine(e)
					}
					line := fmt.Sprintf("%s  %-8s  %s", screen.Stamp(e.Time), e.Kind, screen.Describe(e))
					_, err := fmt.Fprintln(a.Env.Stdout, strings.TrimRight(screen.CleanLine(line), " "))
					return err
				})
				if err != nil {
					if ctx.Err() != nil {
						return shell.WithHint(fmt.Errorf("job watch: interrupted; job %s goes on", args[0]), "'lockstep job cancel "+args[0]+"' stops it")
					}
					return shell.OperationError("job watch", err)
				}
				a.NoteJob(j)
				if j.Error != nil {
					return j.Error
				}
				if j.State == "canceled" {
					a.Note(api.ExitInterrupted)
				}
				a.Sayf("job %s (%s) %s", screen.CleanLine(j.ID), screen.CleanLine(j.Kind), screen.CleanLine(j.State))
				return nil
			})
		},
	})
}

func (a group) jobCancel() *cobra.Command {
	return a.Leaf(shell.Command{
		Use: "cancel JOB", Short: "Ask a job to stop",
		Long:    "What it has committed stays, and the next run goes on from there.",
		Example: "lockstep job cancel job-1",
		Exits:   []int{api.ExitRefused},
		Args:    cobra.ExactArgs(1),
		Run: func(ctx context.Context, _ *cobra.Command, args []string) error {
			return a.WithClient(ctx, func(c *api.Client) error {
				j, err := c.CancelJob(ctx, args[0])
				if err != nil {
					return shell.OperationError("job cancel", err)
				}
				a.Done(j, "job %s is asked to stop; it is %s", screen.CleanLine(j.ID), screen.CleanLine(j.State))
				return nil
			})
		},
	})
}
