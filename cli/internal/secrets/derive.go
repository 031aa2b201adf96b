package secrets

import (
	"context"
	"fmt"
	"io"
	"strings"

	"github.com/spf13/cobra"

	"github.com/lockstep-backup/lockstep/api"
	"github.com/lockstep-backup/lockstep/cli/internal/screen"
	"github.com/lockstep-backup/lockstep/cli/internal/shell"
)

func (a group) secretDerive() *cobra.Command {
	var reason string
	cmd := a.Leaf(shell.Command{
		Use:   "derive POINT/DISK/VOLUME --reason TEXT",
		Short: "Take what a BitLocker volume keeps under its key into custody",
		Long: `Windows keeps the recovery passwords and the startup keys of a BitLocker volume
on the volume, under its key. Whatever secret in custody opens the volume of this
recovery point gives them: they become secrets of their own, and are tried at
once on the machine's recovery points. What is in custody already is not taken
twice. None of them is shown; 'secret release' hands them out.`,
		Example: "lockstep secret derive win01@latest/vda/p3 --reason 'the recovery password was never written down'",
		Exits:   []int{api.ExitWrongSecret, api.ExitRefused, api.ExitDamaged},
		Args:    cobra.ExactArgs(1),
		Run: func(ctx context.Context, cmd *cobra.Command, args []string) error {
			parts := strings.SplitN(args[0], "/", 3)
			switch {
			case len(parts) != 3 || parts[0] == "" || parts[1] == "" || parts[2] == "":
				return shell.UsageError(cmd, "secret derive: %q is not of the form POINT/DISK/VOLUME", args[0])
			case strings.TrimSpace(reason) == "":
				return shell.UsageError(cmd, "secret derive: --reason TEXT is missing; it goes into the audit log")
			}
			return a.WithClient(ctx, func(c *api.Client) error {
				r, err := c.DeriveSecrets(ctx, api.SecretDerive{Point: parts[0], Disk: parts[1], Volume: parts[2], Reason: reason})
				if err != nil {
					return shell.OperationError("secret derive", err)
				}
				a.Emit(r, func(w io.Writer) { a.printDerived(w, r) })
				for _, m := range r.Messages {
					a.Sayf("%s", screen.Clean(m))
				}
				return nil
			})
		},
	})
	cmd.Flags().StringVar(&reason, "reason", "", "why, `TEXT`, for the audit log")
	return cmd
}

func (a group) printDerived(w io.Writer, r api.SecretDeriveResult) {
	if a.Quiet {
		return
	}
	_, _ = fmt.Fprintf(w, "volume %s/%s of recovery point %s was opened by %s\n",
		screen.CleanLine(r.Disk), screen.CleanLine(r.Volume), screen.CleanLine(r.Point), screen.CleanLine(r.From))
	if len(r.Secrets) == 0 {
		_, _ = fmt.Fprintln(w, "nothing was derived from it")
		return
	}
	_, _ = fmt.Fprintln(w)
	t := screen.NewTable("  ", "SECRET", "KIND", "PROTECTOR", "STATE", "THIS RECOVERY POINT", "IN CUSTODY")
	for _, s := range r.Secrets {
		opens, since := "not tried", "now"
		if s.Proven {
			opens = "opened"
		}
		if s.Existing {
			since = "already"
		}
		t.Add(screen.Text(fmt.Sprintf("%s@%d", s.Secret, s.Version)), screen.Text(s.Kind), screen.Text(s.Protector),
			screen.Painted(s.State, secretColour(s.State)), screen.Text(opens), screen.Text(since))
	}
	t.Print(w, a.Style)
}
