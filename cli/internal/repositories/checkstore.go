package repositories

import (
	"context"
	"errors"
	"fmt"
	"io"

	"github.com/spf13/cobra"

	"github.com/lockstep-backup/lockstep/api"
	"github.com/lockstep-backup/lockstep/cli/internal/screen"
	"github.com/lockstep-backup/lockstep/cli/internal/shell"
)

var errStore = errors.New("repository check-store: the store cannot hold a repository safely")

func (a group) checkStore() *cobra.Command {
	return a.Leaf(shell.Command{
		Use:   "check-store URL",
		Short: "Try whether a store can hold a repository",
		Long: `Writes some hundred MiB into a folder of its own below URL, tries what a
repository relies on (creation that never overwrites, ranges, listings, locks),
measures the speed, and deletes the folder. It needs no server and no data
directory. What cannot be tried is whether the store keeps its word when the
power fails.`,
		Example: "lockstep repository check-store /srv/backup",
		Exits:   []int{api.ExitFailed},
		Args:    cobra.ExactArgs(1),
		Run: func(ctx context.Context, cmd *cobra.Command, args []string) error {
			if err := a.Local(cmd); err != nil {
				return err
			}
			if a.Env.CheckStore == nil {
				return errors.New("repository check-store: this program cannot check stores")
			}
			o := shell.StoreCheckOptions{URL: args[0], Report: func(c shell.StoreCheck) {
				if !a.JSON() {
					a.printCheck(a.Env.Stdout, c)
				}
			}}
			r, err := a.Env.CheckStore(ctx, o)
			if err != nil {
				return shell.OperationError("repository check-store", err)
			}
			a.Emit(r, func(w io.Writer) {
				if r.Passed {
					_, _ = fmt.Fprintf(w, "%s can hold a repository\n", screen.CleanLine(r.Store))
				}
			})
			if !r.Passed {
				return shell.WithHint(errStore, "take another store, or a newer version of its server; docs/stores.md says what each check means")
			}
			return nil
		},
	})
}

func (a group) printCheck(w io.Writer, c shell.StoreCheck) {
	_, _ = fmt.Fprintf(w, "%-14s  %s\n", c.Outcome, screen.CleanLine(c.Name))
	for _, d := range c.Details {
		_, _ = fmt.Fprintf(w, "                - %s\n", screen.CleanLine(d))
	}
}
