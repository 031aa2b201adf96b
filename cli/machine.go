package cli

import (
	"context"
	"fmt"
	"io"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/lockstep-backup/lockstep/api"
	"github.com/lockstep-backup/lockstep/cli/internal/screen"
)

func (a *app) machineCommand() *cobra.Command {
	return a.group("machine", "Protected machines", groupStart, "lockstep machine list",
		a.machineAdd(), a.machineList(), a.machineShow(), a.machineRemove())
}

func (a *app) machineAdd() *cobra.Command {
	var disks []string
	cmd := a.leaf(command{
		use:   "add NAME --disk ID=SOURCE[,header=FILE] [--disk …]",
		short: "Enrol a machine",
		long: `SOURCE is an image file, a block device or a source URL. The host on which the
engine runs opens it: the server, where there is one. A LUKS disk whose header
is detached names it with ,header=FILE.`,
		example: "lockstep machine add web01 --disk vda=/var/lib/libvirt/images/web01.img",
		exits:   []int{api.ExitRefused},
		args:    cobra.ExactArgs(1),
		run: func(ctx context.Context, cmd *cobra.Command, args []string) error {
			m := api.MachineCreate{Name: args[0]}
			seen := map[string]bool{}
			for _, s := range disks {
				d, err := parseDisk(s)
				if err != nil {
					return usageError(cmd, "machine add: %v", err)
				}
				if seen[d.ID] {
					return usageError(cmd, "machine add: disk %s is named twice", d.ID)
				}
				seen[d.ID] = true
				if d.Source, err = a.enginePath(cmd, d.Source); err != nil {
					return err
				}
				if d.Header != "" {
					if d.Header, err = a.enginePath(cmd, d.Header); err != nil {
						return err
					}
				}
				m.Disks = append(m.Disks, d)
			}
			if len(m.Disks) == 0 {
				return usageError(cmd, "machine add: a machine needs at least one --disk ID=SOURCE")
			}
			return a.withClient(ctx, func(c *api.Client) error {
				d, err := c.CreateMachine(ctx, m)
				if err != nil {
					return operationError("machine add", err)
				}
				a.emit(d, func(w io.Writer) {
					if a.quiet {
						return
					}
					_, _ = fmt.Fprintf(w, "machine %s is enrolled with %s\n\n", screen.CleanLine(d.Name), screen.Count(len(d.Disks), "disk", "disks"))
					a.printDisks(w, d.Live)
				})
				a.warnAll(d.Warnings)
				for _, v := range liveVolumes(d.Live) {
					if v.NotNeeded == "" && v.SelfOpening == "" && len(openers(v)) == 0 && len(v.Protectors) > 0 {
						a.sayf("next: lockstep secret add %s --kind passphrase --file -", screen.CleanLine(d.Name))
						break
					}
				}
				return nil
			})
		},
	})
	cmd.Flags().StringArrayVar(&disks, "disk", nil, "a disk, `ID=SOURCE[,header=FILE]`; once for each disk")
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

func (a *app) machineList() *cobra.Command {
	return a.leaf(command{
		use: "list", short: "List the protected machines",
		example: "lockstep machine list",
		args:    cobra.NoArgs,
		run: func(ctx context.Context, _ *cobra.Command, _ []string) error {
			return a.withClient(ctx, func(c *api.Client) error {
				machines, err := c.Machines(ctx)
				if err != nil {
					return operationError("machine list", err)
				}
				emitList(a, machines, func(w io.Writer) {
					if len(machines) == 0 {
						a.sayf("no machine is enrolled yet; 'lockstep machine add --help' shows how")
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
							t.Add(screen.Text(name), screen.Text(created), screen.Text(d.ID), screen.Text(source))
							name, created = "", ""
						}
						if name != "" {
							t.Add(screen.Text(name), screen.Text(created))
						}
					}
					t.Print(w, a.style)
				})
				return nil
			})
		},
	})
}

func (a *app) machineShow() *cobra.Command {
	return a.leaf(command{
		use: "show NAME", short: "Show a machine and its disks as they are now",
		example: "lockstep machine show web01",
		exits:   []int{api.ExitRefused},
		args:    cobra.ExactArgs(1),
		run: func(ctx context.Context, _ *cobra.Command, args []string) error {
			return a.withClient(ctx, func(c *api.Client) error {
				m, err := c.Machine(ctx, args[0])
				if err != nil {
					return operationError("machine show", err)
				}
				a.emit(m, func(w io.Writer) { a.printMachine(w, m) })
				a.warnAll(m.Warnings)
				return nil
			})
		},
	})
}

func (a *app) printMachine(w io.Writer, m api.MachineDetail) {
	_, _ = fmt.Fprintf(w, "%s  %s\n", a.style.Paint(screen.Bold, screen.CleanLine(m.Name)), a.paintState(m.State))
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
	f.Print(w, "  ", a.style)
	if len(m.Live) > 0 {
		_, _ = fmt.Fprintf(w, "\nthe disks as they are now:\n\n")
		a.printDisks(w, m.Live)
	}
}

func (a *app) machineRemove() *cobra.Command {
	return a.leaf(command{
		use: "remove NAME", short: "Remove a machine that has no recovery points",
		example: "lockstep machine remove web01",
		exits:   []int{api.ExitRefused},
		args:    cobra.ExactArgs(1),
		run: func(ctx context.Context, _ *cobra.Command, args []string) error {
			return a.withClient(ctx, func(c *api.Client) error {
				if err := c.RemoveMachine(ctx, args[0]); err != nil {
					return operationError("machine remove", err)
				}
				a.done(map[string]string{"removed": args[0]}, "machine %s is removed", screen.CleanLine(args[0]))
				return nil
			})
		},
	})
}

func (a *app) paintState(state string) string {
	if state == "" {
		return "no recovery points"
	}
	return a.style.Paint(screen.StateColour(state), screen.CleanLine(state))
}

func (a *app) warnAll(warnings []string) {
	for _, s := range warnings {
		a.warnf("warning: %s", screen.Clean(s))
	}
}

func liveVolumes(disks []api.DiskView) []api.Volume {
	var out []api.Volume
	for _, d := range disks {
		out = append(out, d.Volumes...)
	}
	return out
}

// openers are the secret versions that open any protector of a volume.
func openers(v api.Volume) []string {
	var out []string
	for _, p := range v.Protectors {
		for _, ref := range p.OpenedBy {
			if !slices.Contains(out, ref) {
				out = append(out, ref)
			}
		}
	}
	return out
}
