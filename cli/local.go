package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"path/filepath"
	"runtime"
	"strings"

	"github.com/spf13/cobra"

	"github.com/lockstep-backup/lockstep/api"
	"github.com/lockstep-backup/lockstep/cli/internal/screen"
)

func (a *app) initCommand() *cobra.Command {
	var o InitOptions
	cmd := a.leaf(command{
		use:   "init [--repository URL]",
		short: "Make the data directory: catalog, key manager, repository, recovery kit",
		long: `The recovery kit holds the recovery identity, which opens every recovery point
with nothing left but the repository. Its place is printed once: move it away.
With --recipient the identity is yours already and is not in the kit.`,
		example: "lockstep init --kit /root/lockstep-kit.txt",
		exits:   []int{api.ExitRefused, api.ExitTarget},
		args:    cobra.NoArgs,
		run: func(ctx context.Context, cmd *cobra.Command, _ []string) error {
			if err := a.local(cmd); err != nil {
				return err
			}
			if o.KeyManagerPassphraseFile != "" && o.KeyManagerKeyFile != "" {
				return usageError(cmd, "init: give either --key-manager-passphrase-file or --key-manager-key-file")
			}
			if o.Unsealed && o.PassphraseFile != "" {
				return usageError(cmd, "init: an unsealed repository has no passphrase")
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
			if a.env.Init == nil {
				return errors.New("init: this program cannot make a data directory")
			}
			o.DataDir = a.dataDir
			r, err := a.env.Init(ctx, o)
			if err != nil {
				return operationError("init", err)
			}
			if r.Warnings == nil {
				r.Warnings = []string{}
			}
			if r.KeyPlaces == nil {
				r.KeyPlaces = []string{}
			}
			a.emit(r, func(w io.Writer) { a.printInit(w, r) })
			a.warnKit(r)
			a.warnAll(r.Warnings)
			a.sayf("next: lockstep machine add NAME --disk vda=SOURCE")
			return nil
		},
	})
	cmd.GroupID = groupStart
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

func (a *app) printInit(w io.Writer, r InitResult) {
	if a.quiet {
		return
	}
	_, _ = fmt.Fprintf(w, "Lockstep is ready in %s\n", screen.CleanLine(r.DataDir))
	var f screen.Facts
	f.Add("repository", r.Repository)
	f.Add("recipient", r.Recipient)
	f.Print(w, "  ", a.style)
	if len(r.KeyPlaces) > 0 {
		_, _ = fmt.Fprintln(w, "keys:")
		for _, p := range r.KeyPlaces {
			_, _ = fmt.Fprintf(w, "  - %s\n", screen.CleanLine(p))
		}
	}
}

// warnKit says, even with --quiet, where the recovery kit is.
func (a *app) warnKit(r InitResult) {
	if r.KitFile == "" {
		return
	}
	rule := strings.Repeat("*", 72)
	heading := screen.NewStyle(a.env.IsTerminal(a.env.Stderr), a.env.Getenv).Paint(screen.Bold, "RECOVERY KIT")
	a.warnf("\n%s\n**  %s", rule, heading)
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
		a.warnf("%s", strings.TrimRight("**  "+line, " "))
	}
	a.warnf("%s\n", rule)
}

func (a *app) serveCommand() *cobra.Command {
	var o ServeOptions
	cmd := a.leaf(command{
		use:   "serve",
		short: "Answer the API on a unix socket in the data directory",
		long: `Only the owner of the data directory can connect. The other commands find the
socket by themselves. A server opens disks only inside the folders that it is
told to allow. It ends on interrupt or termination, and that is exit status 0.`,
		example: "lockstep serve --allow-source /var/lib/libvirt/images --allow-target /srv/restore",
		exits:   []int{api.ExitBusy},
		args:    cobra.NoArgs,
		run: func(ctx context.Context, cmd *cobra.Command, _ []string) error {
			if err := a.local(cmd); err != nil {
				return err
			}
			for _, list := range [][]string{o.AllowSources, o.AllowTargets} {
				for i, dir := range list {
					abs, err := filepath.Abs(dir)
					if err != nil {
						return fmt.Errorf("serve: %w", err)
					}
					list[i] = abs
				}
			}
			if a.env.Serve == nil {
				return errors.New("serve: this program cannot serve")
			}
			o.DataDir, o.Log = a.dataDir, a.env.Stderr
			o.Ready = func(address string) {
				if a.json() {
					a.printJSON(map[string]string{"address": address})
					return
				}
				a.sayf("serving on %s", screen.CleanLine(address))
			}
			err := a.env.Serve(ctx, o)
			if ctx.Err() != nil && (err == nil || errors.Is(err, context.Canceled)) {
				return nil
			}
			return operationErrorOrNil("serve", err)
		},
	})
	cmd.GroupID = groupStart
	f := cmd.Flags()
	f.StringArrayVar(&o.AllowSources, "allow-source", nil, "`DIR` from which disks may be read; once for each")
	f.StringArrayVar(&o.AllowTargets, "allow-target", nil, "`DIR` into which disks may be restored; once for each")
	return cmd
}

func operationErrorOrNil(op string, err error) error {
	if err == nil {
		return nil
	}
	return operationError(op, err)
}

func (a *app) demoCommand() *cobra.Command {
	var o DemoOptions
	cmd := a.leaf(command{
		use:   "demo [--dir DIR]",
		short: "Show the whole story on a real encrypted disk",
		long: `It makes the disk itself, in a temporary directory that is removed at the end.
With --dir, or DEMO_DIR in the environment, everything stays to look at.`,
		example: "lockstep demo",
		args:    cobra.NoArgs,
		run: func(ctx context.Context, cmd *cobra.Command, _ []string) error {
			if err := a.local(cmd); err != nil {
				return err
			}
			if o.Dir == "" {
				o.Dir = a.env.Getenv("DEMO_DIR")
			}
			if o.Dir != "" {
				abs, err := filepath.Abs(o.Dir)
				if err != nil {
					return fmt.Errorf("demo: %w", err)
				}
				o.Dir = abs
			}
			o.Story = a.env.Stdout
			if a.json() {
				o.Story = a.env.Stderr
			}
			if a.env.Demo == nil {
				return errors.New("demo: this program has no demo")
			}
			if err := a.env.Demo(ctx, o); err != nil {
				return operationError("demo", err)
			}
			if a.json() {
				a.printJSON(map[string]string{"dir": o.Dir})
			}
			return nil
		},
	})
	cmd.GroupID = groupStart
	cmd.Flags().StringVar(&o.Dir, "dir", "", "keep everything in `DIR`")
	return cmd
}

func (a *app) versionCommand() *cobra.Command {
	cmd := a.leaf(command{
		use: "version", short: "Print the version",
		example: "lockstep version",
		args:    cobra.NoArgs,
		run: func(context.Context, *cobra.Command, []string) error {
			v := map[string]string{"version": a.env.Version, "go": runtime.Version(), "os": runtime.GOOS, "arch": runtime.GOARCH}
			a.emit(v, func(w io.Writer) {
				_, _ = fmt.Fprintf(w, "lockstep %s (%s, %s/%s)\n", v["version"], v["go"], v["os"], v["arch"])
			})
			return nil
		},
	})
	cmd.GroupID = groupWatch
	return cmd
}

func (a *app) helpCommand() *cobra.Command {
	cmd := a.leaf(command{
		use: "help [COMMAND]", short: "Print the help of a command",
		example: "lockstep help secret add",
		args:    cobra.ArbitraryArgs,
		run: func(_ context.Context, cmd *cobra.Command, args []string) error {
			found, rest, err := a.root.Find(args)
			if err != nil || found == nil || len(rest) > 0 {
				return usageError(cmd, "help: there is no command %q", strings.Join(args, " "))
			}
			return found.Help()
		},
	})
	cmd.GroupID = groupWatch
	return cmd
}
