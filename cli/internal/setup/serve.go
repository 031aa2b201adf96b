package setup

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"

	"github.com/lockstep-backup/lockstep/api"
	"github.com/lockstep-backup/lockstep/cli/internal/screen"
	"github.com/lockstep-backup/lockstep/cli/internal/shell"
)

func (a group) serveCommand() *cobra.Command {
	var o shell.ServeOptions
	cmd := a.Leaf(shell.Command{
		Use:   "serve",
		Short: "Answer the API on a unix socket in the data directory",
		Long: `Only the owner of the data directory can connect. The other commands find the
socket by themselves. A server opens disks only inside the folders that it is
told to allow. It ends on interrupt or termination, and that is exit status 0.`,
		Example: "lockstep serve --allow-source /var/lib/libvirt/images --allow-target /srv/restore",
		Exits:   []int{api.ExitBusy},
		Args:    cobra.NoArgs,
		Run: func(ctx context.Context, cmd *cobra.Command, _ []string) error {
			if err := a.Local(cmd); err != nil {
				return err
			}
			for _, list := range [][]string{o.AllowSources, o.AllowTargets} {
				for i, dir := range list {
					if strings.Contains(dir, "://") {
						continue // an NBD server, by its address
					}
					abs, err := filepath.Abs(dir)
					if err != nil {
						return fmt.Errorf("serve: %w", err)
					}
					list[i] = abs
				}
			}
			if a.Env.Serve == nil {
				return errors.New("serve: this program cannot serve")
			}
			o.DataDir, o.Log = a.DataDir, a.Env.Stderr
			o.Ready = func(address string) {
				if a.JSON() {
					a.PrintJSON(map[string]string{"address": address})
					return
				}
				a.Sayf("serving on %s", screen.CleanLine(address))
			}
			err := a.Env.Serve(ctx, o)
			if ctx.Err() != nil && (err == nil || errors.Is(err, context.Canceled)) {
				return nil
			}
			return operationErrorOrNil("serve", err)
		},
	})
	cmd.GroupID = shell.GroupStart
	f := cmd.Flags()
	f.StringArrayVar(&o.AllowSources, "allow-source", nil, "`DIR` from which disks may be read, or nbd://HOST:PORT; once for each")
	f.StringArrayVar(&o.AllowTargets, "allow-target", nil, "`DIR` into which disks may be restored; once for each")
	return cmd
}

func operationErrorOrNil(op string, err error) error {
	if err == nil {
		return nil
	}
	return shell.OperationError(op, err)
}

func (a group) demoCommand() *cobra.Command {
	var o shell.DemoOptions
	cmd := a.Leaf(shell.Command{
		Use:   "demo [--dir DIR]",
		Short: "Show the whole story on a real encrypted disk",
		Long: `It makes the disk itself, in a temporary directory that is removed at the end.
With --dir, or DEMO_DIR in the environment, everything stays to look at.`,
		Example: "lockstep demo",
		Args:    cobra.NoArgs,
		Run: func(ctx context.Context, cmd *cobra.Command, _ []string) error {
			if err := a.Local(cmd); err != nil {
				return err
			}
			if o.Dir == "" {
				o.Dir = a.Env.Getenv("DEMO_DIR")
			}
			if o.Dir != "" {
				abs, err := filepath.Abs(o.Dir)
				if err != nil {
					return fmt.Errorf("demo: %w", err)
				}
				o.Dir = abs
			}
			o.Story = a.Env.Stdout
			if a.JSON() {
				o.Story = a.Env.Stderr
			}
			if a.Env.Demo == nil {
				return errors.New("demo: this program has no demo")
			}
			if err := a.Env.Demo(ctx, o); err != nil {
				return shell.OperationError("demo", err)
			}
			if a.JSON() {
				a.PrintJSON(map[string]string{"dir": o.Dir})
			}
			return nil
		},
	})
	cmd.GroupID = shell.GroupStart
	cmd.Flags().StringVar(&o.Dir, "dir", "", "keep everything in `DIR`")
	return cmd
}
