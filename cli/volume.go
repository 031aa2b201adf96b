package cli

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
)

func (a *app) volumeCommand() *cobra.Command {
	return a.group("volume", "Encrypted volumes and what opens them", groupKeys, "lockstep volume list web01",
		a.volumeList(), a.volumeNotNeeded())
}

func (a *app) volumeList() *cobra.Command {
	return a.leaf(command{
		use:   "list NAME[@POINT]",
		short: "List a machine's encrypted volumes, their protectors, and which secret opens each",
		long: `Without POINT the disks are read as they are now. POINT is latest, a time, or a
recovery point's id.`,
		example: "lockstep volume list web01@latest",
		exits:   []int{api.ExitRefused, api.ExitDamaged},
		args:    cobra.ExactArgs(1),
		run: func(ctx context.Context, cmd *cobra.Command, args []string) error {
			name, at, hasPoint := strings.Cut(args[0], "@")
			if name == "" || (hasPoint && at == "") {
				return usageError(cmd, "volume list: %q is not of the form NAME or NAME@POINT", args[0])
			}
			return a.withClient(ctx, func(c *api.Client) error {
				point := ""
				if hasPoint {
					p, err := c.Point(ctx, pointOf(name, at))
					if err != nil {
						return operationError("volume list", err)
					}
					if p.Machine != name {
						return fmt.Errorf("volume list: recovery point %s is one of %s, not of %s", p.ID, p.Machine, name)
					}
					point = p.ID
				}
				disks, err := c.Volumes(ctx, name, point)
				if err != nil {
					return operationError("volume list", err)
				}
				emitList(a, disks, func(w io.Writer) { a.printDisks(w, disks) })
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

// printDisks prints disks, their volumes and protectors, and what is beside them.
func (a *app) printDisks(w io.Writer, disks []api.DiskView) {
	for i, d := range disks {
		if i > 0 {
			_, _ = fmt.Fprintln(w)
		}
		if d.Error != "" {
			_, _ = fmt.Fprintf(w, "%s  cannot be read: %s\n", a.style.Paint(screen.Bold, screen.CleanLine(d.ID)), screen.CleanLine(d.Error))
			if len(d.Volumes)+len(d.Areas) == 0 {
				continue
			}
		} else {
			_, _ = fmt.Fprintf(w, "%s  %s\n", a.style.Paint(screen.Bold, screen.CleanLine(d.ID)), screen.Size(d.SizeBytes))
		}
		a.printVolumes(w, d.Volumes, d.Areas)
	}
}

func (a *app) printVolumes(w io.Writer, volumes []api.Volume, areas []api.Area) {
	if len(areas) > 0 {
		for _, area := range areas {
			line := "  " + area.ID + "  " + area.Class
			if area.Note != "" {
				line += "  " + area.Note
			}
			_, _ = fmt.Fprintln(w, screen.CleanLine(line))
		}
	}
	for _, v := range volumes {
		a.printVolume(w, v)
	}
	if len(volumes) == 0 {
		_, _ = fmt.Fprintln(w, "  no encrypted volume")
	}
}

func (a *app) printVolume(w io.Writer, v api.Volume) {
	_, _ = fmt.Fprintf(w, "  %s  %s  %s", a.style.Paint(screen.Bold, screen.CleanLine(v.ID)), screen.CleanLine(v.Type), screen.Size(v.SizeBytes))
	if v.State != "" {
		_, _ = fmt.Fprintf(w, "  %s", a.paintState(v.State))
	}
	_, _ = fmt.Fprintln(w)
	var f screen.Facts
	cipher := v.Cipher
	if cipher != "" && v.KeyBits > 0 {
		cipher += fmt.Sprintf(", %d bits", v.KeyBits)
	}
	if cipher != "" && v.SectorSize > 0 {
		cipher += fmt.Sprintf(", sectors of %d bytes", v.SectorSize)
	}
	f.Add("uuid", v.UUID)
	f.Add("label", v.Label)
	f.Add("cipher", cipher)
	f.Add("epoch", screen.ShortEpoch(v.Epoch))
	f.Add("not needed", v.NotNeeded)
	f.Add("self-opening", v.SelfOpening)
	f.Add("not supported", v.Unsupported)
	f.Add("conversion", v.Conversion)
	for _, why := range v.Why {
		f.Add("why", why)
	}
	for _, token := range v.Tokens {
		f.Add("token", token)
	}
	for _, warning := range v.Warnings {
		f.Add("warning", warning)
	}
	f.Print(w, "    ", a.style)
	if len(v.Protectors) == 0 {
		return
	}
	refs := screen.ShortRefs(openers(v))
	t := screen.NewTable("    ", "PROTECTOR", "KIND", "KDF", "OPENED BY", "NOTE")
	for _, p := range v.Protectors {
		opened := screen.Painted("nothing in custody", screen.Yellow)
		if len(p.OpenedBy) > 0 {
			names := make([]string, len(p.OpenedBy))
			for i, r := range p.OpenedBy {
				names[i] = refs[r]
			}
			opened = screen.Painted(strings.Join(names, ", "), screen.Green)
		}
		t.Add(screen.Text(p.ID), screen.Text(p.Kind), screen.Text(p.KDF), opened, screen.Text(p.Note))
	}
	t.Print(w, a.style)
}

func (a *app) volumeNotNeeded() *cobra.Command {
	var reason string
	var withdraw bool
	cmd := a.leaf(command{
		use:   "not-needed NAME DISK/VOLUME {--reason TEXT | --withdraw}",
		short: "Declare that a volume need not open, or take that back",
		long: `A volume that nobody needs, such as swap with a random key, would keep its
machine unrecoverable for ever. Declared, it does not count, and the reason is
shown with it.`,
		example: "lockstep volume not-needed web01 vda/p3 --reason 'swap with a random key'",
		exits:   []int{api.ExitRefused},
		args:    cobra.ExactArgs(2),
		run: func(ctx context.Context, cmd *cobra.Command, args []string) error {
			if withdraw == (reason != "") {
				return usageError(cmd, "volume not-needed: give either --reason TEXT or --withdraw")
			}
			return a.withClient(ctx, func(c *api.Client) error {
				points, err := c.SetNotNeeded(ctx, args[0], api.NotNeeded{Volume: args[1], Reason: reason})
				if err != nil {
					return operationError("volume not-needed", err)
				}
				emitList(a, points, func(w io.Writer) {
					if !a.quiet {
						what := "is declared not needed"
						if withdraw {
							what = "is needed again"
						}
						_, _ = fmt.Fprintf(w, "%s of %s %s\n", screen.CleanLine(args[1]), screen.CleanLine(args[0]), what)
					}
					if len(points) > 0 {
						_, _ = fmt.Fprintf(w, "\nrecovery points whose state is another now:\n\n")
						a.printPoints(w, points)
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

func (a *app) headerCommand() *cobra.Command {
	return a.group("header", "Encryption headers", groupDaily,
		"lockstep header export web01@latest/vda/p2 --to web01-p2.luks", a.headerExport())
}

func (a *app) headerExport() *cobra.Command {
	var to string
	cmd := a.leaf(command{
		use:   "export POINT/DISK/VOLUME --to FILE",
		short: "Write a volume's header as the usual tools read it",
		long: `The file is what cryptsetup luksHeaderRestore takes. It is written with mode
0600 and never over another file: a header allows guessing at its passphrases.
A header that lies apart from its disk, or cannot be read there any more, comes
from its copy: areas that no key slot uses are zeroes in it.`,
		example: "lockstep header export web01@latest/vda/p2 --to web01-p2.luks",
		exits:   []int{api.ExitRefused, api.ExitTarget, api.ExitDamaged},
		args:    cobra.ExactArgs(1),
		run: func(ctx context.Context, cmd *cobra.Command, args []string) error {
			parts := strings.SplitN(args[0], "/", 3)
			if len(parts) != 3 || parts[0] == "" || parts[1] == "" || parts[2] == "" {
				return usageError(cmd, "header export: %q is not of the form POINT/DISK/VOLUME", args[0])
			}
			if to == "" || to == "-" {
				return usageError(cmd, "header export: --to FILE is missing")
			}
			return a.withClient(ctx, func(c *api.Client) error {
				var n int64
				err := files.CreateNew(to, func(w io.Writer) (err error) {
					n, err = c.ExportHeader(ctx, parts[0], parts[1], parts[2], w)
					return err
				})
				if err != nil {
					return operationError("header export", err)
				}
				a.done(map[string]any{
					"point": parts[0], "disk": parts[1], "volume": parts[2], "to": to, "size_bytes": n,
				}, "header of %s is in %s, %s", screen.CleanLine(args[0]), screen.CleanLine(to), screen.Size(n))
				return nil
			})
		},
	})
	cmd.Flags().StringVar(&to, "to", "", "`FILE` to make")
	return cmd
}
