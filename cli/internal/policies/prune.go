package policies

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"

	"github.com/spf13/cobra"

	"github.com/lockstep-backup/lockstep/api"
	"github.com/lockstep-backup/lockstep/cli/internal/screen"
	"github.com/lockstep-backup/lockstep/cli/internal/shell"
)

func (a group) prune() *cobra.Command {
	var r api.PruneRequest
	cmd := a.Leaf(shell.Command{
		Use: "prune [NAME] [--dry-run] [--repository REPOSITORY…]", Short: "Delete the recovery points that policies let go",
		Long: `Without NAME all machines are pruned. --dry-run deletes nothing and explains each
recovery point. When no repository lists one any more, the secrets that only it
needed are held no more, and stay in custody. Backups may run meanwhile; the
newest recovery point is never deleted, nor is one that is pinned or under a
legal hold.

Copies in other repositories stay, unless --repository names them: the same
policy is carried out there. One that cannot be reached counts as having what it
had when it was read last.

Rules count days, so pruning is refused where the clock is before the newest
recovery point, or more than 31 days past the last time observed. Interrupted or
killed, the next run finishes what was begun.`,
		Example: "lockstep prune web01 --dry-run",
		Exits:   []int{api.ExitRefused, api.ExitDamaged, api.ExitBusy},
		Args:    cobra.MaximumNArgs(1),
		Run: func(ctx context.Context, _ *cobra.Command, args []string) error {
			r.Machine = shell.First(args)
			return a.WithClient(ctx, func(c *api.Client) error {
				j, err := a.RunJob(ctx, c, "prune", "what is deleted stays deleted",
					func() (api.Job, error) { return c.Prune(ctx, r) })
				if j.Prune != nil {
					v := *j.Prune
					a.Emit(v, func(w io.Writer) { a.printPruned(w, v, r) })
				} else if err == nil {
					err = errors.New("prune: the job ended without a result")
				}
				return err
			})
		},
	})
	cmd.GroupID = shell.GroupDaily
	cmd.Flags().BoolVar(&r.DryRun, "dry-run", false, "explain each recovery point and delete nothing")
	cmd.Flags().BoolVar(&r.ClockIsRight, "clock-is-right", false, "the clock is right, although it does not look so")
	cmd.Flags().StringArrayVar(&r.Repositories, "repository", nil, "`REPOSITORY` to prune; once for each (default: the one that backups write to)")
	return cmd
}

func (a group) printPruned(w io.Writer, v api.PruneResult, r api.PruneRequest) {
	said := false
	for _, m := range v.Machines {
		if a.Quiet && !v.DryRun && m.Deleted == 0 && len(m.Finished) == 0 {
			continue
		}
		if said {
			_, _ = fmt.Fprintln(w)
		}
		said = true
		a.printMachine(w, m, v.DryRun, len(r.Repositories) > 0)
	}
	if len(v.Machines) == 0 {
		a.Sayf("there is no machine yet; 'lockstep machine add' enrols one")
	}
}

func (a group) printMachine(w io.Writer, m api.PruneMachine, dryRun, named bool) {
	verb := "deleted"
	if dryRun {
		verb = "would be deleted"
	}
	what := m.Machine
	if named {
		what += " in " + m.Repository
	}
	line := fmt.Sprintf("%s: %s, %d kept", screen.CleanLine(what), screen.Count(m.Deleted, "recovery point "+verb, "recovery points "+verb), m.Kept)
	switch m.Origin {
	case api.PolicyNone:
		line += ", for there is no policy"
	case api.PolicyDefault:
		line += ", by the default policy"
	}
	if n := len(m.Finished); n > 0 {
		line += fmt.Sprintf(", %d finished that an earlier run had begun", n)
	}
	if m.ReleasedHolds > 0 {
		line += ", " + screen.Count(m.ReleasedHolds, "hold released", "holds released")
	}
	if m.FreedBytes > 0 {
		line += ", " + screen.Size(m.FreedBytes) + " freed"
	}
	if m.Error != nil {
		line += "; it ended early"
	}
	_, _ = fmt.Fprintln(w, line)
	if len(m.Points) == 0 {
		return
	}
	ids := make([]string, len(m.Points))
	for i, p := range m.Points {
		ids[i] = p.Point
	}
	short := screen.Shorten(ids)
	t := screen.NewTable("", "RECOVERY POINT", "TIME", "STATE", "WHY")
	for _, p := range m.Points {
		why, colour := "kept: ", ""
		if !p.Keep {
			why, colour = "deleted: ", screen.Yellow
		}
		if len(p.StillIn) > 0 {
			why = "deleted here, still in " + strings.Join(p.StillIn, ", ") + ": "
		}
		t.Add(screen.Text(short[p.Point]), screen.Text(screen.Stamp(p.Time)), screen.Painted(p.State, screen.StateColour(p.State)),
			screen.Painted(why+strings.Join(p.Reasons, "; "), colour))
	}
	t.Print(w, a.Style)
}
