package cli

import (
	"context"
	"fmt"
	"io"

	"github.com/spf13/cobra"

	"github.com/lockstep-backup/lockstep/api"
	"github.com/lockstep-backup/lockstep/cli/internal/screen"
)

func (a *app) auditCommand() *cobra.Command {
	return a.group("audit", "The log of everything that matters", groupWatch, "lockstep audit verify",
		a.auditList(), a.auditVerify())
}

func (a *app) auditList() *cobra.Command {
	var from int64
	cmd := a.leaf(command{
		use: "list [--from N]", short: "List the entries of the audit log",
		example: "lockstep audit list --from 100",
		exits:   []int{api.ExitRefused},
		args:    cobra.NoArgs,
		run: func(ctx context.Context, cmd *cobra.Command, _ []string) error {
			if from < 0 {
				return usageError(cmd, "audit list: --from is a number from 0")
			}
			return a.withClient(ctx, func(c *api.Client) error {
				entries, err := c.AuditEntries(ctx, from)
				if err != nil {
					return operationError("audit list", err)
				}
				emitList(a, entries, func(w io.Writer) {
					t := screen.NewTable("", "ENTRY", "TIME", "ACTOR", "ACTION", "OBJECT", "OUTCOME", "REASON")
					for _, e := range entries {
						colour := screen.Plain
						if e.Outcome != "done" {
							colour = screen.Yellow
						}
						t.Add(screen.Number(fmt.Sprint(e.Index)), screen.Text(screen.Stamp(e.Time)), screen.Text(e.Actor), screen.Text(e.Action), screen.Text(e.Object),
							screen.Painted(e.Outcome, colour), screen.Text(e.Reason))
					}
					t.Print(w, a.style)
				})
				return nil
			})
		},
	})
	cmd.Flags().Int64Var(&from, "from", 0, "begin with entry `N`")
	return cmd
}

func (a *app) auditVerify() *cobra.Command {
	return a.leaf(command{
		use: "verify", short: "Check that nobody changed the audit log",
		example: "lockstep audit verify",
		exits:   []int{api.ExitRefused, api.ExitDamaged},
		args:    cobra.NoArgs,
		run: func(ctx context.Context, _ *cobra.Command, _ []string) error {
			return a.withClient(ctx, func(c *api.Client) error {
				r, err := c.VerifyAudit(ctx)
				if err != nil {
					return operationError("audit verify", err)
				}
				if r.Problems == nil {
					r.Problems = []string{}
				}
				a.emit(r, func(w io.Writer) {
					verdict := a.style.Paint(screen.Green, "whole")
					if len(r.Problems) > 0 {
						verdict = a.style.Paint(screen.Alarm, "NOT WHOLE")
					}
					if !a.quiet || len(r.Problems) > 0 {
						_, _ = fmt.Fprintf(w, "the audit log is %s: %s, %s, root %s\n", verdict, screen.Count(int(r.Entries), "entry", "entries"),
							screen.Count(r.Checkpoints, "checkpoint", "checkpoints"), screen.CleanLine(r.Root))
					}
					for _, p := range r.Problems {
						_, _ = fmt.Fprintf(w, "  - %s\n", screen.CleanLine(p))
					}
				})
				if len(r.Problems) > 0 {
					a.note(api.ExitDamaged)
				}
				return nil
			})
		},
	})
}
