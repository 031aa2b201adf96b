// Package machines is the commands about protected machines.
package machines

import (
	"context"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/lockstep-backup/lockstep/api"
	"github.com/lockstep-backup/lockstep/cli/internal/screen"
	"github.com/lockstep-backup/lockstep/cli/internal/shell"
	"github.com/lockstep-backup/lockstep/cli/internal/show"
)

type group struct{ *shell.Run }

// Commands are the commands of this group.
func Commands(r *shell.Run) []*cobra.Command {
	a := group{r}
	return []*cobra.Command{a.machineCommand()}
}

func (a group) machineCommand() *cobra.Command {
	return a.Group("machine", "Protected machines", shell.GroupStart, "lockstep machine list",
		a.machineAdd(), a.machineChange(), a.machineList(), a.machineShow(), a.machineRemove())
}

func (a group) machineAdd() *cobra.Command {
	var disks, declare []string
	cmd := a.Leaf(shell.Command{
		Use:   "add NAME --disk ID=SOURCE[,header=FILE] [--disk …]",
		Short: "Enrol a machine",
		Long: `SOURCE is an image file, a block device or a source URL. The host on which the
engine runs opens it: the server, where there is one. A LUKS disk whose header
is detached names it with ,header=FILE.

` + declaring,
		Example: "lockstep machine add web01 --disk vda=/var/lib/libvirt/images/web01.img",
		Exits:   []int{api.ExitRefused},
		Args:    cobra.ExactArgs(1),
		Run: func(ctx context.Context, cmd *cobra.Command, args []string) error {
			m := api.MachineCreate{Name: args[0]}
			var err error
			if m.Disks, err = a.disks(cmd, disks); err != nil {
				return err
			}
			if len(m.Disks) == 0 {
				return shell.UsageError(cmd, "machine add: a machine needs at least one --disk ID=SOURCE")
			}
			declared, err := declarations(cmd, declare)
			if err != nil {
				return err
			}
			if err := declareNew(cmd, m.Disks, declared); err != nil {
				return err
			}
			return a.WithClient(ctx, func(c *api.Client) error {
				d, err := c.CreateMachine(ctx, m)
				if err != nil {
					return shell.OperationError("machine add", err)
				}
				a.Emit(d, func(w io.Writer) {
					if a.Quiet {
						return
					}
					_, _ = fmt.Fprintf(w, "machine %s is enrolled with %s\n\n", screen.CleanLine(d.Name), screen.Count(len(d.Disks), "disk", "disks"))
					show.Disks(w, a.Style, d.Live)
				})
				a.WarnAll(d.Warnings)
				for _, v := range liveVolumes(d.Live) {
					if v.NotNeeded == "" && v.SelfOpening == "" && len(show.Openers(v)) == 0 && len(v.Protectors) > 0 {
						a.Sayf("next: lockstep secret add %s --kind %s --file -", screen.CleanLine(d.Name), kindFor(v))
						break
					}
				}
				return nil
			})
		},
	})
	cmd.Flags().StringArrayVar(&disks, "disk", nil, "a disk, `ID=SOURCE[,header=FILE]`; once for each disk")
	cmd.Flags().StringArrayVar(&declare, "declare", nil, declareUsage)
	return cmd
}

// disks reads --disk flags; the engine finds the paths from its own folder.
func (a group) disks(cmd *cobra.Command, flags []string) ([]api.DiskDef, error) {
	var defs []api.DiskDef
	seen := map[string]bool{}
	for _, s := range flags {
		d, err := parseDisk(s)
		if err != nil {
			return nil, shell.UsageError(cmd, "machine %s: %v", cmd.Name(), err)
		}
		if seen[d.ID] {
			return nil, shell.UsageError(cmd, "machine %s: disk %s is named twice", cmd.Name(), d.ID)
		}
		seen[d.ID] = true
		if d.Source, err = a.EnginePath(cmd, d.Source); err != nil {
			return nil, err
		}
		if d.Header != "" {
			if d.Header, err = a.EnginePath(cmd, d.Header); err != nil {
				return nil, err
			}
		}
		defs = append(defs, d)
	}
	return defs, nil
}

func (a group) machineChange() *cobra.Command {
	var disks, remove, declare, undeclare []string
	cmd := a.Leaf(shell.Command{
		Use:   "change NAME [--disk ID=SOURCE[,header=FILE] …] [--remove-disk ID …] [--declare DISK[/VOLUME]=TYPE …] [--undeclare DISK[/VOLUME] …]",
		Short: "Say where a machine's disks lie from now on, and what they are",
		Long: `Disks that are named have this source from now on, or are new; the others stay
as they are. The recovery points keep what they have: the next one holds the
disks as they are then, and stores what differs.

` + declaring,
		Example: "lockstep machine change web01 --disk vda=/srv/new/web01.img",
		Exits:   []int{api.ExitRefused, api.ExitBusy},
		Args:    cobra.ExactArgs(1),
		Run: func(ctx context.Context, cmd *cobra.Command, args []string) error {
			defs, err := a.disks(cmd, disks)
			if err != nil {
				return err
			}
			if len(defs)+len(remove)+len(declare)+len(undeclare) == 0 {
				return shell.UsageError(cmd, "machine change: name what changes: --disk ID=SOURCE, --remove-disk ID, --declare or --undeclare")
			}
			declared, err := declarations(cmd, declare)
			if err != nil {
				return err
			}
			return a.WithClient(ctx, func(c *api.Client) error {
				d, err := c.ChangeMachine(ctx, args[0], api.MachineChange{Disks: defs, RemoveDisks: remove, Declare: declared, Undeclare: undeclare})
				if err != nil {
					return shell.OperationError("machine change", err)
				}
				a.Emit(d, func(w io.Writer) {
					if a.Quiet {
						return
					}
					_, _ = fmt.Fprintf(w, "machine %s has %s from now on\n\n", screen.CleanLine(d.Name), screen.Count(len(d.Disks), "disk", "disks"))
					show.Disks(w, a.Style, d.Live)
				})
				a.WarnAll(d.Warnings)
				return nil
			})
		},
	})
	cmd.Flags().StringArrayVar(&disks, "disk", nil, "a disk and where it lies, `ID=SOURCE[,header=FILE]`; once for each disk")
	cmd.Flags().StringArrayVar(&remove, "remove-disk", nil, "`ID` of a disk that is backed up no more; once for each disk")
	cmd.Flags().StringArrayVar(&declare, "declare", nil, declareUsage)
	cmd.Flags().StringArrayVar(&undeclare, "undeclare", nil, "a `VOLUME` whose declaration is withdrawn, DISK[/VOLUME]; once for each volume")
	return cmd
}

// parseDisk reads ID=SOURCE[,header=FILE]. A source may hold commas and equals
// signs, so only the last ",header=" counts.
func parseDisk(s string) (api.DiskDef, error) {
	id, rest, found := strings.Cut(s, "=")
	if !found || id == "" || rest == "" {
		return api.DiskDef{}, fmt.Errorf("disk %q is not of the form ID=SOURCE", s)
	}
	if strings.ContainsAny(id, "/@, ") {
		return api.DiskDef{}, fmt.Errorf("disk id %q may not hold '/', '@', ',' or a space", id)
	}
	d := api.DiskDef{ID: id, Source: rest}
	if i := strings.LastIndex(rest, ",header="); i >= 0 {
		d.Source, d.Header = rest[:i], rest[i+len(",header="):]
		if d.Source == "" || d.Header == "" {
			return api.DiskDef{}, fmt.Errorf("disk %q is not of the form ID=SOURCE,header=FILE", s)
		}
	}
	return d, nil
}

func (a group) machineList() *cobra.Command {
	return a.Leaf(shell.Command{
		Use: "list", Short: "List the protected machines",
		Example: "lockstep machine list",
		Args:    cobra.NoArgs,
		Run: func(ctx context.Context, _ *cobra.Command, _ []string) error {
			return a.WithClient(ctx, func(c *api.Client) error {
				machines, err := c.Machines(ctx)
				if err != nil {
					return shell.OperationError("machine list", err)
				}
				shell.EmitList(a.Run, machines, func(w io.Writer) {
					if len(machines) == 0 {
						a.Sayf("no machine is enrolled yet; 'lockstep machine add --help' shows how")
						return
					}
					t := screen.NewTable("", "MACHINE", "ENROLLED", "DISK", "SOURCE")
					for _, m := range machines {
						name, created := m.Name, screen.Stamp(m.Created)
						for _, d := range m.Disks {
							source := d.Source
							if d.Header != "" {
								source += ", header " + d.Header
							}
							for _, volume := range slices.Sorted(maps.Keys(d.Declared)) {
								source += ", " + volume + " declared " + d.Declared[volume]
							}
							t.Add(screen.Text(name), screen.Text(created), screen.Text(d.ID), screen.Text(source))
							name, created = "", ""
						}
						if name != "" {
							t.Add(screen.Text(name), screen.Text(created))
						}
					}
					t.Print(w, a.Style)
				})
				return nil
			})
		},
	})
}

func (a group) machineShow() *cobra.Command {
	return a.Leaf(shell.Command{
		Use: "show NAME", Short: "Show a machine and its disks as they are now",
		Example: "lockstep machine show web01",
		Exits:   []int{api.ExitRefused},
		Args:    cobra.ExactArgs(1),
		Run: func(ctx context.Context, _ *cobra.Command, args []string) error {
			return a.WithClient(ctx, func(c *api.Client) error {
				m, err := c.Machine(ctx, args[0])
				if err != nil {
					return shell.OperationError("machine show", err)
				}
				a.Emit(m, func(w io.Writer) { a.printMachine(w, m) })
				a.WarnAll(m.Warnings)
				return nil
			})
		},
	})
}

func (a group) printMachine(w io.Writer, m api.MachineDetail) {
	_, _ = fmt.Fprintf(w, "%s  %s\n", a.Style.Paint(screen.Bold, screen.CleanLine(m.Name)), a.PaintState(m.State))
	var f screen.Facts
	f.Add("id", m.ID)
	f.Add("enrolled", screen.Stamp(m.Created))
	for _, d := range m.Disks {
		source := d.Source
		if d.Header != "" {
			source += ", header " + d.Header
		}
		f.Add("disk "+screen.CleanLine(d.ID), source)
	}
	f.Add("recovery points", fmt.Sprint(m.Points))
	if m.Latest != nil {
		f.Add("newest", fmt.Sprintf("%s, %s, %s", m.Latest.ID, screen.Stamp(m.Latest.Time), m.Latest.State))
	}
	f.Print(w, "  ", a.Style)
	if len(m.Live) > 0 {
		_, _ = fmt.Fprintf(w, "\nthe disks as they are now:\n\n")
		show.Disks(w, a.Style, m.Live)
	}
}

func (a group) machineRemove() *cobra.Command {
	return a.Leaf(shell.Command{
		Use: "remove NAME", Short: "Remove a machine that has no recovery points",
		Example: "lockstep machine remove web01",
		Exits:   []int{api.ExitRefused},
		Args:    cobra.ExactArgs(1),
		Run: func(ctx context.Context, _ *cobra.Command, args []string) error {
			return a.WithClient(ctx, func(c *api.Client) error {
				if err := c.RemoveMachine(ctx, args[0]); err != nil {
					return shell.OperationError("machine remove", err)
				}
				a.Done(map[string]string{"removed": args[0]}, "machine %s is removed", screen.CleanLine(args[0]))
				return nil
			})
		},
	})
}

func liveVolumes(disks []api.DiskView) []api.Volume {
	var out []api.Volume
	for _, d := range disks {
		out = append(out, d.Volumes...)
	}
	return out
}

// kindFor is the kind of secret that a volume is likeliest to be opened by.
func kindFor(v api.Volume) string {
	if v.Type == "veracrypt" {
		return "veracrypt"
	}
	for _, p := range v.Protectors {
		if p.Kind == "recovery-password" {
			return p.Kind
		}
	}
	return "passphrase"
}
