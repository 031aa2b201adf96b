// Package checks is the commands that read back what is stored.
package checks

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

type group struct{ *shell.Run }

// Commands are the commands of this group.
func Commands(r *shell.Run) []*cobra.Command {
	a := group{r}
	return []*cobra.Command{a.verifyCommand()}
}

func (a group) verifyCommand() *cobra.Command {
	cmd := a.Leaf(shell.Command{
		Use:   "verify [POINT …]",
		Short: "Read back what is stored and compare",
		Long: `Without POINT everything is read. Damage is named with the disks, ranges and
recovery points it touches, and the exit status is 6.`,
		Example: "lockstep verify web01@latest",
		Exits:   []int{api.ExitRefused, api.ExitDamaged},
		Args:    cobra.ArbitraryArgs,
		Run: func(ctx context.Context, _ *cobra.Command, args []string) error {
			return a.WithClient(ctx, func(c *api.Client) error {
				j, err := a.RunJob(ctx, c, "verify", "nothing is changed by it",
					func() (api.Job, error) { return c.Verify(ctx, api.VerifyRequest{Points: args}) })
				if j.Verify != nil {
					v := *j.Verify
					if v.Damage == nil {
						v.Damage = []api.Damage{}
					}
					a.Emit(v, func(w io.Writer) { a.printVerified(w, v) })
				} else if err == nil {
					err = errors.New("verify: the job ended without a result")
				}
				return err
			})
		},
	})
	cmd.GroupID = shell.GroupWatch
	return cmd
}

func (a group) printVerified(w io.Writer, v api.VerifyResult) {
	verdict := a.Style.Paint(screen.Green, "no damage")
	if len(v.Damage) > 0 {
		verdict = a.Style.Paint(screen.Alarm, "DAMAGED in "+screen.Count(len(v.Damage), "place", "places"))
	}
	if !a.Quiet || len(v.Damage) > 0 {
		_, _ = fmt.Fprintf(w, "read back %s, %s, %s: %s\n", screen.Count(v.Points, "recovery point", "recovery points"),
			screen.Count(int(v.Objects), "object", "objects"), screen.Size(v.ReadBytes), verdict)
	}
	if len(v.Damage) == 0 {
		return
	}
	_, _ = fmt.Fprintln(w)
	t := screen.NewTable("  ", "OBJECT", "MACHINE", "DISK", "RANGE", "RECOVERY POINTS", "ERROR")
	for _, d := range v.Damage {
		where := ""
		if d.Range != nil {
			where = fmt.Sprintf("%d+%d", d.Range.Offset, d.Range.Length)
		}
		t.Add(screen.Text(d.Object), screen.Text(d.Machine), screen.Text(d.Disk), screen.Text(where), screen.Text(strings.Join(d.Points, ", ")), screen.Text(d.Error))
	}
	t.Print(w, a.Style)
}
