package repositories

import (
	"context"
	"fmt"
	"io"
	"math"

	"github.com/spf13/cobra"

	"github.com/lockstep-backup/lockstep/api"
	"github.com/lockstep-backup/lockstep/cli/internal/screen"
	"github.com/lockstep-backup/lockstep/cli/internal/shell"
)

func (a group) stats() *cobra.Command {
	var machine string
	cmd := a.Leaf(shell.Command{
		Use:   "stats [REPOSITORY]",
		Short: "Measure what is stored, who needs it, and when the disk will be full",
		Long: `ALONE is what nothing else needs: deleting that recovery point alone frees it.
DEAD is what no recovery point needs any more: 'lockstep prune' gives it back when
it is worth it. All maps are read for that, no content.

What is to be expected rests on the last 30 recovery points of each machine and
on its policy: it grows by what a day brings until the oldest that stays moves on.`,
		Example: "lockstep repository stats",
		Exits:   []int{api.ExitRefused},
		Args:    cobra.MaximumNArgs(1),
		Run: func(ctx context.Context, _ *cobra.Command, args []string) error {
			return a.WithClient(ctx, func(c *api.Client) error {
				v, err := c.RepositoryStats(ctx, shell.First(args), machine)
				if err != nil {
					return shell.OperationError("repository stats", err)
				}
				a.Emit(v, func(w io.Writer) { a.printStats(w, v) })
				for _, m := range v.Machines {
					if m.Error != "" {
						a.Warnf("machine %s is not measured as a whole: %s", screen.CleanLine(m.Machine), screen.CleanLine(m.Error))
					}
				}
				return nil
			})
		},
	})
	cmd.Flags().StringVar(&machine, "machine", "", "`NAME` of a machine (default: all)")
	return cmd
}

func (a group) printStats(w io.Writer, v api.RepositoryStats) {
	size := func(n int64) screen.Cell { return screen.Number(screen.Size(n)) }
	t := screen.NewTable("", "MACHINE", "POINTS", "LOGICAL", "STORED", "NEEDED", "DEAD", "A DAY", "IN 30 D", "IN 90 D", "IN 365 D")
	row := func(name string, points int, logical, stored, needed, dead int64, o *api.Outlook) {
		cells := []screen.Cell{screen.Text(name), screen.Number(fmt.Sprint(points)), size(logical), size(stored), size(needed), size(dead)}
		if o == nil {
			t.Add(append(cells, screen.Number("–"), screen.Number("–"), screen.Number("–"), screen.Number("–"))...)
			return
		}
		cells = append(cells, size(o.PerDay))
		for _, e := range o.Ahead {
			cells = append(cells, size(e.Bytes))
		}
		t.Add(cells...)
	}
	points := 0
	for _, m := range v.Machines {
		points += len(m.Points)
		row(m.Machine, len(m.Points), m.Logical, m.Stored, m.Needed, m.Dead, m.Outlook)
	}
	if len(v.Machines) != 1 {
		row("all", points, v.Logical, v.Stored, v.Needed, v.Dead, v.Outlook)
	}
	t.Print(w, a.Style)
	if points > 0 {
		_, _ = fmt.Fprintln(w)
		t := screen.NewTable("", "MACHINE", "POINT", "TIME", "LOGICAL", "WRITTEN", "ALONE")
		var ids []string
		for _, m := range v.Machines {
			for _, p := range m.Points {
				ids = append(ids, p.Point)
			}
		}
		short := screen.Shorten(ids)
		for _, m := range v.Machines {
			for _, p := range m.Points {
				t.Add(screen.Text(m.Machine), screen.Text(short[p.Point]), screen.Text(screen.Stamp(p.Time)), size(p.Logical), size(p.Written), size(p.Alone))
			}
		}
		t.Print(w, a.Style)
	}
	_, _ = fmt.Fprintln(w)
	_, _ = fmt.Fprintln(w, outlook(v))
}

// outlook is what is to be expected, in words.
func outlook(v api.RepositoryStats) string {
	o := v.Outlook
	if o == nil || len(o.Ahead) == 0 {
		return "what is to be expected shows when a machine has three recovery points"
	}
	last := o.Ahead[len(o.Ahead)-1]
	text := fmt.Sprintf("keeps growing by about %s a day", screen.Size(o.PerDay))
	switch n := len(o.Ahead); {
	case last.Bytes <= v.Stored:
		text = fmt.Sprintf("does not grow under the policies: about %s in %d days", screen.Size(last.Bytes), last.Days)
	case n > 1 && float64(last.Bytes-o.Ahead[n-2].Bytes) < 0.05*float64(o.PerDay)*float64(last.Days-o.Ahead[n-2].Days):
		text += fmt.Sprintf(" until the policies' horizon, then about %s", screen.Size(last.Bytes))
	default:
		text += fmt.Sprintf(": about %s in %d days", screen.Size(last.Bytes), last.Days)
	}
	if v.Free == nil {
		return text
	}
	text += fmt.Sprintf("; %s are free", screen.Size(*v.Free))
	if v.FullIn != nil {
		text += fmt.Sprintf(": full in about %s", screen.Count(int(math.Ceil(*v.FullIn)), "day", "days"))
	}
	return text
}

func (a group) lock() *cobra.Command {
	var l api.RepositoryLock
	var off bool
	cmd := a.Leaf(shell.Command{
		Use:   "lock REPOSITORY [--for PERIOD [--mode MODE] | --off]",
		Short: "Have the store hold what is written, whoever wants it gone",
		Long: `Each backup locks what its recovery point needs for at least so long (object
lock, WORM): neither this host nor who has taken it over can delete or replace it
before. Locks are extended in steps of a seventh of the period. What is locked
costs until its lock ends, also where the policy would let it go.

In compliance mode nobody lifts a lock early, in governance mode who has a special
right can. --off and a shorter period hold for what is written from then on.
Without any of these it says what is set.`,
		Example: "lockstep repository lock main --for 30d",
		Exits:   []int{api.ExitRefused, api.ExitBusy},
		Args:    cobra.ExactArgs(1),
		Run: func(ctx context.Context, cmd *cobra.Command, args []string) error {
			switch {
			case off && (l.For != "" || l.Mode != ""):
				return shell.UsageError(cmd, "repository lock: --off goes with neither --for nor --mode")
			case l.Mode != "" && l.For == "":
				return shell.UsageError(cmd, "repository lock: --mode needs --for")
			case l.Mode != "" && l.Mode != "governance" && l.Mode != "compliance":
				return shell.UsageError(cmd, "repository lock: --mode is governance or compliance")
			}
			return a.WithClient(ctx, func(c *api.Client) error {
				var v api.RepositoryLock
				var err error
				if off || l.For != "" {
					v, err = c.LockRepository(ctx, args[0], l)
				} else {
					v, err = c.RepositoryLock(ctx, args[0])
				}
				if err != nil {
					return shell.OperationError("repository lock", err)
				}
				if v.For == "" {
					a.Done(v, "repository %s: what is written is not locked", screen.CleanLine(v.Repository))
				} else {
					a.Done(v, "repository %s: what is written is locked for %s, in %s mode", screen.CleanLine(v.Repository), screen.CleanLine(v.For), screen.CleanLine(v.Mode))
				}
				return nil
			})
		},
	})
	f := cmd.Flags()
	f.StringVar(&l.For, "for", "", "`PERIOD` from each backup on, such as 30d; at least 1d")
	f.StringVar(&l.Mode, "mode", "", "`MODE`: governance or compliance (default governance)")
	f.BoolVar(&off, "off", false, "lock nothing from now on")
	return cmd
}
