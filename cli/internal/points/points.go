// Package points is the commands about recovery points, and the status of all of them.
package points

import (
	"context"
	"fmt"
	"io"
	"strings"

	"github.com/spf13/cobra"

	"github.com/lockstep-backup/lockstep/api"
	"github.com/lockstep-backup/lockstep/cli/internal/drills"
	"github.com/lockstep-backup/lockstep/cli/internal/screen"
	"github.com/lockstep-backup/lockstep/cli/internal/shell"
	"github.com/lockstep-backup/lockstep/cli/internal/show"
)

type group struct{ *shell.Run }

// Commands are the commands of this group.
func Commands(r *shell.Run) []*cobra.Command {
	a := group{r}
	return []*cobra.Command{a.pointCommand(), a.statusCommand()}
}

func (a group) pointCommand() *cobra.Command {
	return a.Group("point", "Recovery points", shell.GroupDaily, "lockstep point list web01",
		append(a.marks(), a.pointList(), a.pointShow(), a.pointDelete(), drills.Reports(a.Run))...)
}

func (a group) pointList() *cobra.Command {
	return a.Leaf(shell.Command{
		Use: "list [NAME]", Short: "List recovery points",
		Long:    "The exit status is 0 whatever their states are; 'lockstep status' tells by its own.",
		Example: "lockstep point list web01",
		Args:    cobra.MaximumNArgs(1),
		Run: func(ctx context.Context, _ *cobra.Command, args []string) error {
			return a.WithClient(ctx, func(c *api.Client) error {
				points, err := c.Points(ctx, shell.First(args))
				if err != nil {
					return shell.OperationError("point list", err)
				}
				shell.EmitList(a.Run, points, func(w io.Writer) {
					if len(points) == 0 {
						a.Sayf("there is no recovery point yet; 'lockstep backup NAME' makes one")
						return
					}
					show.Points(w, a.Style, points)
				})
				return nil
			})
		},
	})
}

func (a group) pointShow() *cobra.Command {
	return a.Leaf(shell.Command{
		Use: "show POINT", Short: "Show a recovery point, its volumes and what opens them",
		Example: "lockstep point show web01@latest",
		Exits:   []int{api.ExitNotProven, api.ExitRefused},
		Args:    cobra.ExactArgs(1),
		Run: func(ctx context.Context, _ *cobra.Command, args []string) error {
			return a.WithClient(ctx, func(c *api.Client) error {
				p, err := c.Point(ctx, args[0])
				if err != nil {
					return shell.OperationError("point show", err)
				}
				a.Emit(p, func(w io.Writer) { a.printPoint(w, p) })
				a.NotePoint(p.State)
				return nil
			})
		},
	})
}

func (a group) printPoint(w io.Writer, p api.Point) {
	_, _ = fmt.Fprintf(w, "%s  %s\n", a.Style.Paint(screen.Bold, screen.CleanLine(p.ID)), a.PaintState(p.State))
	var f screen.Facts
	for _, why := range p.Why {
		f.Add("why", why)
	}
	f.Add("machine", p.Machine)
	f.Add("time", screen.Stamp(p.Time))
	f.Add("description", p.Description)
	f.Add("transfer", fmt.Sprintf("%s: %s read, %s changed, %s stored, %s of map, in %s", p.Transfer, screen.Size(p.ReadBytes),
		screen.Size(p.ChangedBytes), screen.Size(p.StoredBytes), screen.Size(p.MapBytes), screen.Duration(p.DurationSeconds)))
	f.Add("consistency", p.Consistency)
	if p.Incomplete {
		f.Add("incomplete", "ranges of its disks could not be read")
	}
	if p.SelfOpening {
		f.Add("self-opening", "it holds what opens it: as good as plain")
	}
	for _, m := range show.Marks(p) {
		f.Add(m[0], m[1])
	}
	f.Add("parent", p.Parent)
	f.Add("repository", p.Repository)
	f.Add("only in", strings.Join(p.OnlyIn, ", "))
	for _, change := range p.Changes {
		f.Add("changed", change)
	}
	for _, warning := range p.Warnings {
		f.Add("warning", warning)
	}
	f.Print(w, "  ", a.Style)
	for _, d := range p.Disks {
		_, _ = fmt.Fprintf(w, "\n%s  %s  content root %s\n", a.Style.Paint(screen.Bold, screen.CleanLine(d.ID)), screen.Size(d.SizeBytes), screen.CleanLine(d.ContentRoot))
		if len(d.UnreadRanges) > 0 {
			_, _ = fmt.Fprintf(w, "  not read: %s, %s\n", screen.Count(len(d.UnreadRanges), "range", "ranges"), screen.Size(show.RangeBytes(d.UnreadRanges)))
		}
		show.Volumes(w, a.Style, d.Volumes, d.Areas)
	}
}

func (a group) pointDelete() *cobra.Command {
	var r api.PointDelete
	cmd := a.Leaf(shell.Command{
		Use: "delete POINT [--reason TEXT] [--repository REPOSITORY]", Short: "Delete a recovery point",
		Long: `It is deleted in the repository that backups write to, or in the one named. When
no repository lists it any more, the secrets that only it needed are held no
more, and stay in custody; until then it is listed and can be restored. One that
is pinned or under a legal hold is not deleted.`,
		Example: "lockstep point delete web01@2026-01-31T00:00:00Z --reason 'test machine'",
		Exits:   []int{api.ExitRefused, api.ExitBusy},
		Args:    cobra.ExactArgs(1),
		Run: func(ctx context.Context, _ *cobra.Command, args []string) error {
			return a.WithClient(ctx, func(c *api.Client) error {
				v, err := c.DeletePoint(ctx, args[0], r)
				if err != nil {
					return shell.OperationError("point delete", err)
				}
				text := fmt.Sprintf("recovery point %s is deleted", screen.CleanLine(args[0]))
				if len(v.StillIn) > 0 {
					text += fmt.Sprintf(" in repository %s; repository %s still lists it, and its secrets stay held",
						screen.CleanLine(v.Repository), screen.CleanLine(strings.Join(v.StillIn, ", ")))
				}
				a.Done(v, "%s", text)
				a.WarnAll(v.Warnings)
				return nil
			})
		},
	})
	f := cmd.Flags()
	f.StringVar(&r.Reason, "reason", "no reason given", "why, `TEXT`, for the audit log")
	f.StringVar(&r.Repository, "repository", "", "`REPOSITORY` to delete it in (default: the one that backups write to)")
	return cmd
}
