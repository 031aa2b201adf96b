// Package audits is the commands about the audit log.
package audits

import (
	"context"
	"fmt"
	"io"

	"github.com/spf13/cobra"

	"github.com/lockstep-backup/lockstep/api"
	"github.com/lockstep-backup/lockstep/cli/internal/screen"
	"github.com/lockstep-backup/lockstep/cli/internal/shell"
)

type group struct{ *shell.Run }

// Commands are the commands of this group.
func Commands(r *shell.Run) []*cobra.Command {
	a := group{r}
	return []*cobra.Command{a.auditCommand()}
}

func (a group) auditCommand() *cobra.Command {
	return a.Group("audit", "The log of everything that matters", shell.GroupWatch, "lockstep audit verify",
		a.auditList(), a.auditVerify())
}

func (a group) auditList() *cobra.Command {
	var from int64
	cmd := a.Leaf(shell.Command{
		Use: "list [--from N]", Short: "List the entries of the audit log",
		Example: "lockstep audit list --from 100",
		Exits:   []int{api.ExitRefused},
		Args:    cobra.NoArgs,
		Run: func(ctx context.Context, cmd *cobra.Command, _ []string) error {
			if from < 0 {
				return shell.UsageError(cmd, "audit list: --from is a number from 0")
			}
			return a.WithClient(ctx, func(c *api.Client) error {
				entries, err := c.AuditEntries(ctx, from)
				if err != nil {
					return shell.OperationError("audit list", err)
				}
				shell.EmitList(a.Run, entries, func(w io.Writer) {
					t := screen.NewTable("", "ENTRY", "TIME", "ACTOR", "ACTION", "OBJECT", "OUTCOME", "REASON")
					for _, e := range entries {
						colour := screen.Plain
						if e.Outcome != "done" {
							colour = screen.Yellow
						}
						t.Add(screen.Number(fmt.Sprint(e.Index)), screen.Text(screen.Stamp(e.Time)), screen.Text(e.Actor), screen.Text(e.Action), screen.Text(e.Object),
							screen.Painted(e.Outcome, colour), screen.Text(e.Reason))
					}
					t.Print(w, a.Style)
				})
				return nil
			})
		},
	})
	cmd.Flags().Int64Var(&from, "from", 0, "begin with entry `N`")
	return cmd
}

func (a group) auditVerify() *cobra.Command {
	return a.Leaf(shell.Command{
		Use: "verify", Short: "Check that nobody changed the audit log",
		Example: "lockstep audit verify",
		Exits:   []int{api.ExitRefused, api.ExitDamaged},
		Args:    cobra.NoArgs,
		Run: func(ctx context.Context, _ *cobra.Command, _ []string) error {
			return a.WithClient(ctx, func(c *api.Client) error {
				r, err := c.VerifyAudit(ctx)
				if err != nil {
					return shell.OperationError("audit verify", err)
				}
				if r.Problems == nil {
					r.Problems = []string{}
				}
				a.Emit(r, func(w io.Writer) {
					verdict := a.Style.Paint(screen.Green, "whole")
					if len(r.Problems) > 0 {
						verdict = a.Style.Paint(screen.Alarm, "NOT WHOLE")
					}
					if !a.Quiet || len(r.Problems) > 0 {
						_, _ = fmt.Fprintf(w, "the audit log is %s: %s, %s, root %s\n", verdict, screen.Count(int(r.Entries), "entry", "entries"),
							screen.Count(r.Checkpoints, "checkpoint", "checkpoints"), screen.CleanLine(r.Root))
					}
					for _, p := range r.Problems {
						_, _ = fmt.Fprintf(w, "  - %s\n", screen.CleanLine(p))
					}
				})
				if len(r.Problems) > 0 {
					a.Note(api.ExitDamaged)
				}
				return nil
			})
		},
	})
}
