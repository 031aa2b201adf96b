package cli

import (
	"context"
	"fmt"
	"io"
	"strings"

	"github.com/spf13/cobra"

	"github.com/lockstep-backup/lockstep/api"
	"github.com/lockstep-backup/lockstep/cli/internal/screen"
)

func (a *app) pointCommand() *cobra.Command {
	return a.group("point", "Recovery points", groupDaily, "lockstep point list web01",
		a.pointList(), a.pointShow(), a.pointDelete())
}

func (a *app) pointList() *cobra.Command {
	return a.leaf(command{
		use: "list [NAME]", short: "List recovery points",
		long:    "The exit status is 0 whatever their states are; 'lockstep status' tells by its own.",
		example: "lockstep point list web01",
		args:    cobra.MaximumNArgs(1),
		run: func(ctx context.Context, _ *cobra.Command, args []string) error {
			return a.withClient(ctx, func(c *api.Client) error {
				points, err := c.Points(ctx, first(args))
				if err != nil {
					return operationError("point list", err)
				}
				emitList(a, points, func(w io.Writer) {
					if len(points) == 0 {
						a.sayf("there is no recovery point yet; 'lockstep backup NAME' makes one")
						return
					}
					a.printPoints(w, points)
				})
				return nil
			})
		},
	})
}

// printPoints prints recovery points as a table, with the machine's name where
// there are several machines.
func (a *app) printPoints(w io.Writer, points []api.Point) {
	ids := make([]string, len(points))
	machines := map[string]bool{}
	for i, p := range points {
		ids[i] = p.ID
		machines[p.Machine] = true
	}
	short := screen.Shorten(ids)
	heads := []string{"RECOVERY POINT", "TIME", "STATE", "TRANSFER", "CHANGED", "STORED", "DESCRIPTION"}
	if len(machines) > 1 {
		heads = append([]string{"MACHINE"}, heads...)
	}
	t := screen.NewTable("", heads...)
	for _, p := range points {
		description := p.Description
		if p.Incomplete {
			description = strings.TrimSpace("(incomplete) " + description)
		}
		row := []screen.Cell{
			screen.Text(short[p.ID]), screen.Text(screen.Stamp(p.Time)), screen.Painted(p.State, screen.StateColour(p.State)), screen.Text(p.Transfer),
			screen.Number(screen.Size(p.ChangedBytes)), screen.Number(screen.Size(p.StoredBytes)), screen.Text(description),
		}
		if len(machines) > 1 {
			row = append([]screen.Cell{screen.Text(p.Machine)}, row...)
		}
		t.Add(row...)
	}
	t.Print(w, a.style)
}

// printStates prints recovery points with why they are in the state they are in.
func (a *app) printStates(w io.Writer, points []api.Point) {
	ids := make([]string, len(points))
	for i, p := range points {
		ids[i] = p.ID
	}
	short := screen.Shorten(ids)
	t := screen.NewTable("", "RECOVERY POINT", "MACHINE", "TIME", "STATE", "WHY")
	for _, p := range points {
		t.Add(screen.Text(short[p.ID]), screen.Text(p.Machine), screen.Text(screen.Stamp(p.Time)), screen.Painted(p.State, screen.StateColour(p.State)),
			screen.Text(strings.Join(p.Why, "; ")))
	}
	t.Print(w, a.style)
}

func (a *app) pointShow() *cobra.Command {
	return a.leaf(command{
		use: "show POINT", short: "Show a recovery point, its volumes and what opens them",
		example: "lockstep point show web01@latest",
		exits:   []int{api.ExitNotProven, api.ExitRefused},
		args:    cobra.ExactArgs(1),
		run: func(ctx context.Context, _ *cobra.Command, args []string) error {
			return a.withClient(ctx, func(c *api.Client) error {
				p, err := c.Point(ctx, args[0])
				if err != nil {
					return operationError("point show", err)
				}
				a.emit(p, func(w io.Writer) { a.printPoint(w, p) })
				a.notePoint(p.State)
				return nil
			})
		},
	})
}

func (a *app) printPoint(w io.Writer, p api.Point) {
	_, _ = fmt.Fprintf(w, "%s  %s\n", a.style.Paint(screen.Bold, screen.CleanLine(p.ID)), a.paintState(p.State))
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
	f.Add("parent", p.Parent)
	f.Add("repository", p.Repository)
	for _, change := range p.Changes {
		f.Add("changed", change)
	}
	f.Print(w, "  ", a.style)
	for _, d := range p.Disks {
		_, _ = fmt.Fprintf(w, "\n%s  %s  content root %s\n", a.style.Paint(screen.Bold, screen.CleanLine(d.ID)), screen.Size(d.SizeBytes), screen.CleanLine(d.ContentRoot))
		if len(d.UnreadRanges) > 0 {
			_, _ = fmt.Fprintf(w, "  not read: %s, %s\n", screen.Count(len(d.UnreadRanges), "range", "ranges"), screen.Size(rangeBytes(d.UnreadRanges)))
		}
		a.printVolumes(w, d.Volumes, d.Areas)
	}
}

func (a *app) pointDelete() *cobra.Command {
	var reason string
	cmd := a.leaf(command{
		use: "delete POINT [--reason TEXT]", short: "Delete a recovery point",
		long:    "The secrets that only it needed are held no more, and stay in custody.",
		example: "lockstep point delete web01@2026-01-31T00:00:00Z --reason 'test machine'",
		exits:   []int{api.ExitRefused, api.ExitBusy},
		args:    cobra.ExactArgs(1),
		run: func(ctx context.Context, _ *cobra.Command, args []string) error {
			return a.withClient(ctx, func(c *api.Client) error {
				if err := c.DeletePoint(ctx, args[0], reason); err != nil {
					return operationError("point delete", err)
				}
				a.done(map[string]string{"deleted": args[0]}, "recovery point %s is deleted", screen.CleanLine(args[0]))
				return nil
			})
		},
	})
	cmd.Flags().StringVar(&reason, "reason", "no reason given", "why, `TEXT`, for the audit log")
	return cmd
}
