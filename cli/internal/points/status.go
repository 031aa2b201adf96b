package points

import (
	"context"
	"fmt"
	"io"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/lockstep-backup/lockstep/api"
	"github.com/lockstep-backup/lockstep/cli/internal/screen"
	"github.com/lockstep-backup/lockstep/cli/internal/shell"
)

func (a group) statusCommand() *cobra.Command {
	cmd := a.Leaf(shell.Command{
		Use:   "status [NAME]",
		Short: "Show which secret opens which recovery point, the worst machine first",
		Long: `Rows are recovery points, the newest first; columns are versions of secrets. A
cell says whether that version opens that recovery point: opens (proven), claims
(it opened the same header in another one), – (it does not), or untried. A
machine shows the worst of its recovery points, and with one that is not proven
the exit status is 3. Damage that was found, and not found whole since, is a
warning, and the exit status is 6.`,
		Example: "lockstep status web01",
		Exits:   []int{api.ExitNotProven, api.ExitDamaged},
		Args:    cobra.MaximumNArgs(1),
		Run: func(ctx context.Context, _ *cobra.Command, args []string) error {
			return a.WithClient(ctx, func(c *api.Client) error {
				s, err := c.Status(ctx, shell.First(args))
				if err != nil {
					return shell.OperationError("status", err)
				}
				slices.SortStableFunc(s.Machines, func(x, y api.MachineStatus) int { return screen.Badness(x.State) - screen.Badness(y.State) })
				if s.Machines == nil {
					s.Machines = []api.MachineStatus{}
				}
				a.Emit(s, func(w io.Writer) { a.printStatus(w, s) })
				a.WarnAll(s.Warnings)
				if len(s.Damaged) > 0 {
					a.Note(api.ExitDamaged)
				}
				for _, m := range s.Machines {
					a.NotePoint(m.State)
					for _, p := range m.Points {
						a.NotePoint(p.State)
					}
				}
				return nil
			})
		},
	})
	cmd.GroupID = shell.GroupWatch
	return cmd
}

func (a group) printStatus(w io.Writer, s api.Status) {
	if len(s.Machines) == 0 {
		a.Sayf("no machine is enrolled yet; 'lockstep machine add --help' shows how")
		return
	}
	for i, m := range s.Machines {
		if i > 0 {
			_, _ = fmt.Fprintln(w)
		}
		a.printMachineStatus(w, m)
	}
}

func (a group) printMachineStatus(w io.Writer, m api.MachineStatus) {
	state := m.State
	if state == api.StateUnrecoverable {
		state = strings.ToUpper(state)
	}
	name := a.Style.Paint(screen.Bold, screen.CleanLine(m.Machine))
	if len(m.Points) == 0 {
		_, _ = fmt.Fprintf(w, "%s  no recovery points\n", name)
	} else {
		_, _ = fmt.Fprintf(w, "%s  %s  %s, newest %s\n\n", name, a.Style.Paint(screen.StateColour(m.State), screen.CleanLine(state)),
			screen.Count(len(m.Points), "recovery point", "recovery points"), screen.StampOr(m.Latest, "never"))
		a.printPicture(w, m)
	}
	for _, note := range m.Notes {
		_, _ = fmt.Fprintf(w, "\n  note: %s\n", screen.CleanLine(note))
	}
}

// printPicture prints recovery points × secret versions, and under it why what
// is not proven is not.
func (a group) printPicture(w io.Writer, m api.MachineStatus) {
	ids := make([]string, len(m.Points))
	epochs := false
	for i, p := range m.Points {
		ids[i] = p.ID
		epochs = epochs || len(p.Epochs) > 0
	}
	short, refs := screen.Shorten(ids), screen.ShortRefs(m.Secrets)

	heads := []string{"RECOVERY POINT", "TIME", "STATE", "TRANSFER", "CHANGED"}
	if epochs {
		heads = append(heads, "EPOCH")
	}
	fixed := len(heads)
	for _, ref := range m.Secrets {
		heads = append(heads, refs[ref])
	}
	t := screen.NewTable("  ", heads...)
	if len(m.States) > 0 && len(m.Secrets) > 0 {
		row := make([]screen.Cell, fixed, len(heads))
		for i := range m.Secrets {
			c := screen.Cell{}
			if i < len(m.States) {
				c = screen.Painted(m.States[i], screen.Dim)
			}
			row = append(row, c)
		}
		t.Add(row...)
	}
	for _, p := range m.Points {
		row := []screen.Cell{
			screen.Text(short[p.ID]), screen.Text(screen.Stamp(p.Time)), screen.Painted(p.State, screen.StateColour(p.State)),
			screen.Text(p.Transfer), screen.Number(screen.Size(p.ChangedBytes)),
		}
		if epochs {
			row = append(row, screen.Text(strings.Join(p.Epochs, ",")))
		}
		for i := range m.Secrets {
			opens := ""
			if i < len(p.Opens) {
				opens = p.Opens[i]
			}
			row = append(row, opensCell(opens))
		}
		t.Add(row...)
	}
	t.Print(w, a.Style)

	said := false
	for _, p := range m.Points {
		for _, why := range p.Why {
			if !said {
				_, _ = fmt.Fprintln(w)
				said = true
			}
			_, _ = fmt.Fprintf(w, "  %s: %s\n", screen.CleanLine(short[p.ID]), screen.CleanLine(why))
		}
	}
}

func opensCell(opens string) screen.Cell {
	switch opens {
	case "yes":
		return screen.Painted("opens", screen.Green)
	case "no":
		return screen.Painted("–", screen.Dim)
	case "claims":
		return screen.Painted("claims", screen.Yellow)
	case "untried":
		return screen.Painted("untried", screen.Yellow)
	default:
		return screen.Text("?")
	}
}
