// Package backups is the commands that make recovery points and prove them.
package backups

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
	"github.com/lockstep-backup/lockstep/cli/internal/show"
)

type group struct{ *shell.Run }

// Commands are the commands of this group.
func Commands(r *shell.Run) []*cobra.Command {
	a := group{r}
	return []*cobra.Command{a.backupCommand(), a.proveCommand()}
}

func (a group) backupCommand() *cobra.Command {
	var r api.BackupRequest
	cmd := a.Leaf(shell.Command{
		Use:   "backup NAME [--full] [--description TEXT]",
		Short: "Make a recovery point of a machine",
		Long: `The ciphertext of its disks is copied: all of it the first time, what changed
afterwards. Then the recovery point is proven, that is, opened with the secrets
in custody. One that does not open is kept, and the exit status is 3.`,
		Example: "lockstep backup web01 --description 'before the upgrade'",
		Exits:   []int{api.ExitNotProven, api.ExitRefused, api.ExitDamaged, api.ExitBusy},
		Args:    cobra.ExactArgs(1),
		Run: func(ctx context.Context, _ *cobra.Command, args []string) error {
			r.Machine = args[0]
			return a.WithClient(ctx, func(c *api.Client) error {
				j, err := a.RunJob(ctx, c, "backup", "no recovery point was made, what was stored is used by the next backup",
					func() (api.Job, error) { return c.Backup(ctx, r) })
				if j.Backup != nil {
					p := *j.Backup
					a.Emit(p, func(w io.Writer) {
						if !a.Quiet {
							a.printMade(w, p)
						}
					})
					a.warnPoint(p)
				} else if err == nil {
					err = errors.New("backup: the job ended without a recovery point")
				}
				return err
			})
		},
	})
	cmd.GroupID = shell.GroupDaily
	f := cmd.Flags()
	f.BoolVar(&r.Full, "full", false, "read and store everything, whatever is there already")
	f.StringVar(&r.Description, "description", "", "`TEXT` to find it by")
	f.BoolVar(&r.AllowLive, "allow-live", false, "read a disk that is in use (crash-consistent at best)")
	shell.Rates(cmd, &r.Rates)
	f.BoolVar(&r.AllowIncomplete, "allow-incomplete", false, "record ranges that cannot be read instead of failing")
	return cmd
}

// printMade says what a backup made.
func (a group) printMade(w io.Writer, p api.Point) {
	_, _ = fmt.Fprintf(w, "recovery point %s of %s is %s\n", screen.CleanLine(p.ID), screen.CleanLine(p.Machine), a.PaintState(p.State))
	var f screen.Facts
	f.Add("time", screen.Stamp(p.Time))
	f.Add("transfer", fmt.Sprintf("%s: %s read, %s changed, %s stored, in %s", p.Transfer,
		screen.Size(p.ReadBytes), screen.Size(p.ChangedBytes), screen.Size(p.StoredBytes), screen.Duration(p.DurationSeconds)))
	f.Add("consistency", p.Consistency)
	for _, d := range p.Disks {
		for _, v := range d.Volumes {
			f.Add("volume", d.ID+"/"+v.ID+" "+v.Type+", "+openedText(v))
		}
	}
	for _, change := range p.Changes {
		f.Add("changed", change)
	}
	f.Print(w, "  ", a.Style)
}

// openedText says in a phrase what opens a volume.
func openedText(v api.Volume) string {
	refs := show.Openers(v)
	switch {
	case v.NotNeeded != "":
		return "not needed: " + v.NotNeeded
	case len(refs) > 0:
		short := screen.ShortRefs(refs)
		names := make([]string, len(refs))
		for i, r := range refs {
			names[i] = short[r]
		}
		return "opened by " + strings.Join(names, ", ")
	case v.SelfOpening != "":
		return "self-opening: " + v.SelfOpening
	default:
		return "opened by nothing in custody"
	}
}

func (a group) proveCommand() *cobra.Command {
	var all bool
	cmd := a.Leaf(shell.Command{
		Use:   "prove {POINT … | --all}",
		Short: "Open recovery points with the secrets in custody, and record the proofs",
		Long: `The headers and one sector of each volume are read from the repository as
stored, never from the live disk.`,
		Example: "lockstep prove web01@latest",
		Exits:   []int{api.ExitNotProven, api.ExitRefused, api.ExitDamaged},
		Args:    cobra.ArbitraryArgs,
		Run: func(ctx context.Context, cmd *cobra.Command, args []string) error {
			if all == (len(args) > 0) {
				return shell.UsageError(cmd, "prove: name recovery points, or --all")
			}
			return a.WithClient(ctx, func(c *api.Client) error {
				j, err := a.RunJob(ctx, c, "prove", "the proofs that were recorded stay",
					func() (api.Job, error) { return c.Prove(ctx, api.ProveRequest{Points: args, All: all}) })
				if err == nil || len(j.Prove) > 0 {
					shell.EmitList(a.Run, j.Prove, func(w io.Writer) {
						if len(j.Prove) == 0 {
							a.Sayf("there is no recovery point to prove")
							return
						}
						show.States(w, a.Style, j.Prove)
					})
				}
				return err
			})
		},
	})
	cmd.GroupID = shell.GroupKeys
	cmd.Flags().BoolVar(&all, "all", false, "all recovery points")
	return cmd
}
