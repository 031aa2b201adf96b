// Package volumes is the commands about encrypted volumes and their headers.
package volumes

import (
	"context"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/lockstep-backup/lockstep/api"
	"github.com/lockstep-backup/lockstep/cli/internal/files"
	"github.com/lockstep-backup/lockstep/cli/internal/screen"
	"github.com/lockstep-backup/lockstep/cli/internal/shell"
	"github.com/lockstep-backup/lockstep/cli/internal/show"
)

type group struct{ *shell.Run }

// Commands are the commands of this group.
func Commands(r *shell.Run) []*cobra.Command {
	a := group{r}
	return []*cobra.Command{a.volumeCommand(), a.headerCommand()}
}

func (a group) volumeCommand() *cobra.Command {
	return a.Group("volume", "Encrypted volumes and what opens them", shell.GroupKeys, "lockstep volume list web01",
		a.volumeList(), a.volumeNotNeeded())
}

func (a group) volumeList() *cobra.Command {
	return a.Leaf(shell.Command{
		Use:   "list NAME[@POINT]",
		Short: "List a machine's encrypted volumes, their protectors, and which secret opens each",
		Long: `Without POINT the disks are read as they are now. POINT is latest, a time, or a
recovery point's id.`,
		Example: "lockstep volume list web01@latest",
		Exits:   []int{api.ExitRefused, api.ExitDamaged},
		Args:    cobra.ExactArgs(1),
		Run: func(ctx context.Context, cmd *cobra.Command, args []string) error {
			name, at, hasPoint := strings.Cut(args[0], "@")
			if name == "" || (hasPoint && at == "") {
				return shell.UsageError(cmd, "volume list: %q is not of the form NAME or NAME@POINT", args[0])
			}
			return a.WithClient(ctx, func(c *api.Client) error {
				point := ""
				if hasPoint {
					p, err := c.Point(ctx, pointOf(name, at))
					if err != nil {
						return shell.OperationError("volume list", err)
					}
					if p.Machine != name {
						return fmt.Errorf("volume list: recovery point %s is one of %s, not of %s", p.ID, p.Machine, name)
					}
					point = p.ID
				}
				disks, err := c.Volumes(ctx, name, point)
				if err != nil {
					return shell.OperationError("volume list", err)
				}
				shell.EmitList(a.Run, disks, func(w io.Writer) { show.Disks(w, a.Style, disks) })
				return nil
			})
		},
	})
}

// pointOf turns what follows NAME@ into a recovery point's name: "latest" and
// times belong to the machine, all else is an id.
func pointOf(machine, at string) string {
	if at == "latest" {
		return machine + "@" + at
	}
	if _, err := time.Parse(time.RFC3339, at); err == nil {
		return machine + "@" + at
	}
	return at
}

func (a group) volumeNotNeeded() *cobra.Command {
	var reason string
	var withdraw bool
	cmd := a.Leaf(shell.Command{
		Use:   "not-needed NAME DISK/VOLUME {--reason TEXT | --withdraw}",
		Short: "Declare that a volume need not open, or take that back",
		Long: `A volume that nobody needs, such as swap with a random key, would keep its
machine unrecoverable for ever. Declared, it does not count, and the reason is
shown with it.`,
		Example: "lockstep volume not-needed web01 vda/p3 --reason 'swap with a random key'",
		Exits:   []int{api.ExitRefused},
		Args:    cobra.ExactArgs(2),
		Run: func(ctx context.Context, cmd *cobra.Command, args []string) error {
			if withdraw == (reason != "") {
				return shell.UsageError(cmd, "volume not-needed: give either --reason TEXT or --withdraw")
			}
			return a.WithClient(ctx, func(c *api.Client) error {
				points, err := c.SetNotNeeded(ctx, args[0], api.NotNeeded{Volume: args[1], Reason: reason})
				if err != nil {
					return shell.OperationError("volume not-needed", err)
				}
				shell.EmitList(a.Run, points, func(w io.Writer) {
					if !a.Quiet {
						what := "is declared not needed"
						if withdraw {
							what = "is needed again"
						}
						_, _ = fmt.Fprintf(w, "%s of %s %s\n", screen.CleanLine(args[1]), screen.CleanLine(args[0]), what)
					}
					if len(points) > 0 {
						_, _ = fmt.Fprintf(w, "\nrecovery points whose state is another now:\n\n")
						show.Points(w, a.Style, points)
					}
				})
				return nil
			})
		},
	})
	cmd.Flags().StringVar(&reason, "reason", "", "why it need not open, `TEXT`")
	cmd.Flags().BoolVar(&withdraw, "withdraw", false, "the volume is needed again")
	return cmd
}

func (a group) headerCommand() *cobra.Command {
	return a.Group("header", "Encryption headers", shell.GroupDaily,
		"lockstep header export web01@latest/vda/p2 --to web01-p2.luks", a.headerExport(), a.headerRestore())
}

func (a group) headerExport() *cobra.Command {
	var to, repository string
	cmd := a.Leaf(shell.Command{
		Use:   "export POINT/DISK/VOLUME --to FILE",
		Short: "Write a volume's header as the usual tools read it",
		Long: `The file is what cryptsetup luksHeaderRestore takes. It is written with mode
0600 and never over another file: a header allows guessing at its passphrases.
A header that lies apart from its disk, or cannot be read there any more, comes
from its copy: areas that no key slot uses are zeroes in it.`,
		Example: "lockstep header export web01@latest/vda/p2 --to web01-p2.luks",
		Exits:   []int{api.ExitRefused, api.ExitTarget, api.ExitDamaged},
		Args:    cobra.ExactArgs(1),
		Run: func(ctx context.Context, cmd *cobra.Command, args []string) error {
			parts := strings.SplitN(args[0], "/", 3)
			if len(parts) != 3 || parts[0] == "" || parts[1] == "" || parts[2] == "" {
				return shell.UsageError(cmd, "header export: %q is not of the form POINT/DISK/VOLUME", args[0])
			}
			if to == "" || to == "-" {
				return shell.UsageError(cmd, "header export: --to FILE is missing")
			}
			return a.WithClient(ctx, func(c *api.Client) error {
				var n int64
				err := files.CreateNew(to, func(w io.Writer) (err error) {
					n, err = c.ExportHeader(ctx, parts[0], parts[1], parts[2], repository, w, func(text string) {
						a.Warnf("warning: %s", screen.CleanLine(text))
					})
					return err
				})
				if err != nil {
					return shell.OperationError("header export", err)
				}
				a.Done(map[string]any{
					"point": parts[0], "disk": parts[1], "volume": parts[2], "to": to, "size_bytes": n,
				}, "header of %s is in %s, %s", screen.CleanLine(args[0]), screen.CleanLine(to), screen.Size(n))
				return nil
			})
		},
	})
	cmd.Flags().StringVar(&to, "to", "", "`FILE` to make")
	shell.Repository(cmd, &repository)
	return cmd
}
