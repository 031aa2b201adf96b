// Package setup is the commands that work on a data directory: init, serve, demo.
package setup

import (
	"context"
	"errors"
	"fmt"
	"io"
	"path/filepath"
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
	return []*cobra.Command{a.initCommand(), a.serveCommand(), a.demoCommand()}
}

func (a group) initCommand() *cobra.Command {
	var o shell.InitOptions
	cmd := a.Leaf(shell.Command{
		Use:   "init [--repository URL]",
		Short: "Make the data directory: catalog, key manager, repository, recovery kit",
		Long: `The recovery kit holds the recovery identity, which opens every recovery point
with nothing left but the repository. Its place is printed once: move it away.
With --recipient the identity is yours already and is not in the kit.`,
		Example: "lockstep init --kit /root/lockstep-kit.txt",
		Exits:   []int{api.ExitRefused, api.ExitTarget},
		Args:    cobra.NoArgs,
		Run: func(ctx context.Context, cmd *cobra.Command, _ []string) error {
			if err := a.Local(cmd); err != nil {
				return err
			}
			if o.KeyManagerPassphraseFile != "" && o.KeyManagerKeyFile != "" {
				return shell.UsageError(cmd, "init: give either --key-manager-passphrase-file or --key-manager-key-file")
			}
			if o.Unsealed && o.PassphraseFile != "" {
				return shell.UsageError(cmd, "init: an unsealed repository has no passphrase")
			}
			for _, p := range []*string{&o.PassphraseFile, &o.KeyManagerPassphraseFile, &o.KeyManagerKeyFile, &o.KitFile} {
				if *p == "" {
					continue
				}
				abs, err := filepath.Abs(*p)
				if err != nil {
					return fmt.Errorf("init: %w", err)
				}
				*p = abs
			}
			if a.Env.Init == nil {
				return errors.New("init: this program cannot make a data directory")
			}
			o.DataDir = a.DataDir
			r, err := a.Env.Init(ctx, o)
			if err != nil {
				return shell.OperationError("init", err)
			}
			if r.Warnings == nil {
				r.Warnings = []string{}
			}
			if r.KeyPlaces == nil {
				r.KeyPlaces = []string{}
			}
			a.Emit(r, func(w io.Writer) { a.printInit(w, r) })
			a.warnKit(r)
			a.WarnAll(r.Warnings)
			a.Sayf("next: lockstep machine add NAME --disk vda=SOURCE")
			return nil
		},
	})
	cmd.GroupID = shell.GroupStart
	f := cmd.Flags()
	f.StringVar(&o.Repository, "repository", "", "`URL` of the repository (default: a local one inside the data directory)")
	f.BoolVar(&o.Unsealed, "unsealed", false, "do not seal the repository: it holds ciphertext, but sizes, times and headers show")
	f.StringVar(&o.PassphraseFile, "passphrase-file", "", "`FILE` with a passphrase that opens the repository as well")
	f.StringVar(&o.KeyManagerPassphraseFile, "key-manager-passphrase-file", "", "`FILE` with the passphrase that seals the key manager")
	f.StringVar(&o.KeyManagerKeyFile, "key-manager-key-file", "", "`FILE` that seals the key manager (default: one in the data directory, mode 0600)")
	f.StringVar(&o.KitFile, "kit", "", "`FILE` for the recovery kit")
	f.StringArrayVar(&o.Recipients, "recipient", nil, "age `RECIPIENT` that can recover everything; once for each")
	return cmd
}

func (a group) printInit(w io.Writer, r shell.InitResult) {
	if a.Quiet {
		return
	}
	_, _ = fmt.Fprintf(w, "Lockstep is ready in %s\n", screen.CleanLine(r.DataDir))
	var f screen.Facts
	f.Add("repository", r.Repository)
	f.Add("recipient", r.Recipient)
	f.Print(w, "  ", a.Style)
	if len(r.KeyPlaces) > 0 {
		_, _ = fmt.Fprintln(w, "keys:")
		for _, p := range r.KeyPlaces {
			_, _ = fmt.Fprintf(w, "  - %s\n", screen.CleanLine(p))
		}
	}
}

// warnKit says, even with --quiet, where the recovery kit is.
func (a group) warnKit(r shell.InitResult) {
	if r.KitFile == "" {
		return
	}
	rule := strings.Repeat("*", 72)
	heading := screen.NewStyle(a.Env.IsTerminal(a.Env.Stderr), a.Env.Getenv).Paint(screen.Bold, "RECOVERY KIT")
	a.Warnf("\n%s\n**  %s", rule, heading)
	for _, line := range []string{
		"",
		"    " + screen.CleanLine(r.KitFile),
		"",
		"With it and the repository, everything can be restored without this host;",
		"so whoever has it can, too. It is shown this once.",
		"",
		"Move it away now: print it or copy it to a medium that goes into a safe,",
		"check that the copy reads, then remove it here. Without it, the loss of",
		"this data directory is the loss of every recovery point.",
	} {
		a.Warnf("%s", strings.TrimRight("**  "+line, " "))
	}
	a.Warnf("%s\n", rule)
}
