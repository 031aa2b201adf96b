// Package restores is the commands that write disks back.
package restores

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
	return []*cobra.Command{a.restoreCommand()}
}

func (a group) restoreCommand() *cobra.Command {
	var r api.RestoreRequest
	var disks []string
	cmd := a.Leaf(shell.Command{
		Use:   "restore POINT --disk ID=TARGET [--disk …] [--force]",
		Short: "Write disks back, still encrypted",
		Long: `TARGET is an image file or a block device; the host on which the engine runs
opens it. Every byte is verified before it is written, and the whole afterwards.
A target that holds something is refused without --force.`,
		Example: "lockstep restore web01@latest --disk vda=/srv/restore/web01.img",
		Exits:   []int{api.ExitNotProven, api.ExitRefused, api.ExitDamaged, api.ExitTarget},
		Args:    cobra.ExactArgs(1),
		Run: func(ctx context.Context, cmd *cobra.Command, args []string) error {
			r.Point = args[0]
			seen := map[string]bool{}
			for _, s := range disks {
				id, target, found := strings.Cut(s, "=")
				if !found || id == "" || target == "" {
					return shell.UsageError(cmd, "restore: disk %q is not of the form ID=TARGET", s)
				}
				if seen[id] {
					return shell.UsageError(cmd, "restore: disk %s is named twice", id)
				}
				seen[id] = true
				target, err := a.EnginePath(cmd, target)
				if err != nil {
					return err
				}
				r.Targets = append(r.Targets, api.RestoreTarget{Disk: id, Target: target})
			}
			switch {
			case len(r.Targets) == 0:
				return shell.UsageError(cmd, "restore: name at least one --disk ID=TARGET")
			case r.Format != "raw":
				return shell.UsageError(cmd, "restore: --format is raw")
			}
			return a.WithClient(ctx, func(c *api.Client) error {
				j, err := a.RunJob(ctx, c, "restore", "targets that were new files are removed, others are not complete",
					func() (api.Job, error) { return c.Restore(ctx, r) })
				switch {
				case err != nil && j.Restore != nil:
					for _, d := range j.Restore.Disks {
						a.Warnf("disk %s is complete: %s", d.ID, d.Target)
					}
				case err == nil && j.Restore == nil:
					err = errors.New("restore: the job ended without a result")
				case err == nil:
					a.Emit(j.Restore, func(w io.Writer) { a.printRestored(w, *j.Restore) })
				}
				return err
			})
		},
	})
	cmd.GroupID = shell.GroupDaily
	f := cmd.Flags()
	f.StringArrayVar(&disks, "disk", nil, "a disk and where it goes, `ID=TARGET`; once for each disk")
	f.StringVar(&r.Format, "format", "raw", "`FORMAT` of the target: raw")
	f.BoolVar(&r.Force, "force", false, "write over what the target holds")
	return cmd
}

func (a group) printRestored(w io.Writer, r api.RestoreResult) {
	if !a.Quiet {
		_, _ = fmt.Fprintf(w, "recovery point %s (%s) is restored\n\n", screen.CleanLine(r.Point), a.PaintState(r.State))
	}
	t := screen.NewTable("  ", "DISK", "SIZE", "WRITTEN", "TIME", "TARGET")
	for _, d := range r.Disks {
		t.Add(screen.Text(d.ID), screen.Number(screen.Size(d.SizeBytes)), screen.Number(screen.Size(d.WrittenBytes)), screen.Number(screen.Duration(d.Seconds)), screen.Text(d.Target))
	}
	t.Print(w, a.Style)
	for _, d := range r.Disks {
		if len(d.UnreadRanges) > 0 {
			_, _ = fmt.Fprintf(w, "\n  %s was not read completely: %s, %s\n", screen.CleanLine(d.ID),
				screen.Count(len(d.UnreadRanges), "range", "ranges"), screen.Size(show.RangeBytes(d.UnreadRanges)))
		}
	}
	if len(r.Keys) == 0 {
		return
	}
	_, _ = fmt.Fprintf(w, "\nwhat opens it:\n\n")
	t = screen.NewTable("  ", "VOLUME", "STATE", "SECRET")
	for _, k := range r.Keys {
		opens := screen.Text(strings.Join(k.Opens, ", "))
		if len(k.Opens) == 0 {
			opens = screen.Painted("nothing in custody", screen.Yellow)
		}
		t.Add(screen.Text(k.Disk+"/"+k.Volume), screen.Painted(k.State, screen.StateColour(k.State)), opens)
	}
	t.Print(w, a.Style)
}
