// Package drills is the commands about rehearsals of a restore.
package drills

import (
	"context"
	"errors"
	"fmt"
	"io"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/lockstep-backup/lockstep/api"
	"github.com/lockstep-backup/lockstep/cli/internal/files"
	"github.com/lockstep-backup/lockstep/cli/internal/screen"
	"github.com/lockstep-backup/lockstep/cli/internal/shell"
)

type group struct{ *shell.Run }

// Commands are the commands of this group.
func Commands(r *shell.Run) []*cobra.Command {
	a := group{r}
	return []*cobra.Command{a.drill()}
}

// Reports is the command that lists the drills of a recovery point; it belongs
// to those about recovery points.
func Reports(r *shell.Run) *cobra.Command { return group{r}.reports() }

func (a group) drill() *cobra.Command {
	var o shell.DrillOptions
	var u shell.UnlockFlags
	var boot shell.BootOptions
	var report, html string
	var sample int64
	var verbose, withBoot bool
	cmd := a.Leaf(shell.Command{
		Use:   "drill POINT --reason TEXT",
		Short: "Rehearse a restore, and keep the evidence",
		Long: `The recovery point is read from its repository, never from the live disk: every
volume is unlocked, what lies in it is recognised, each file system is checked
by its own tool (e2fsck, xfs_repair, ntfsfix, fsck.fat, where installed), and a
sample of files is read to their ends. With --boot the machine boots in QEMU,
without a network, until a login prompt or --boot-marker is seen on its serial
console, or for --boot-timeout with a picture of its screen.
Nothing is written but to memory. The report is signed and kept beside the
recovery point; 'lockstep point drills' shows it again. It names no file of the
guest; --verbose does, on standard error.
Secrets come from custody with --reason, each release being in the audit log, or
from --secret-file.
The exit status is 5 if a volume could not be unlocked, 6 if something else
failed, 3 if a volume stayed locked for want of a secret or nothing was read.`,
		Example: "lockstep drill web01@latest --reason 'quarterly rehearsal' --html drill.html",
		Exits:   []int{api.ExitNotProven, api.ExitRefused, api.ExitWrongSecret, api.ExitDamaged, api.ExitTarget},
		Args:    cobra.ExactArgs(1),
		Run: func(ctx context.Context, cmd *cobra.Command, args []string) error {
			if err := a.Local(cmd); err != nil {
				return err
			}
			if a.Env.Drill.Run == nil {
				return errors.New("drill: this program cannot hold drills")
			}
			var err error
			if o.Files < 0 || o.Files > 1_000_000 || sample < 0 || sample > 1<<40 {
				return shell.UsageError(cmd, "drill: --sample-files is 0 to 1000000, --sample-mib is not negative")
			}
			o.Bytes = sample << 20
			for _, name := range []string{"boot-marker", "boot-memory", "boot-cpus", "boot-bus", "boot-firmware", "boot-kvm", "boot-screenshot", "boot-timeout", "boot-type-passphrase"} {
				if cmd.Flags().Changed(name) && !withBoot {
					return shell.UsageError(cmd, "drill: --%s goes with --boot", name)
				}
			}
			if withBoot {
				if boot.Timeout <= 0 || boot.MemoryMiB < 16 || boot.CPUs < 1 {
					return shell.UsageError(cmd, "drill: --boot-timeout, --boot-memory (MiB) and --boot-cpus are greater than zero")
				}
				for _, p := range []*string{&boot.Screenshot, &boot.Firmware} {
					if *p != "" {
						if *p, err = filepath.Abs(*p); err != nil {
							return err
						}
					}
				}
				o.Boot = &boot
			}
			for _, f := range []string{report, html} {
				if f == "" {
					continue
				}
				if err := files.CheckNew(f); err != nil {
					return shell.OperationError("drill", err)
				}
			}
			if o.Unlock, err = u.Read(ctx, a.Run, cmd); err != nil {
				return err
			}
			defer o.Unlock.Wipe()
			o.DataDir, o.Point, o.Log, o.Console = a.DataDir, args[0], a.Env.Stderr, io.Discard
			o.Tell = func(string) {}
			if verbose {
				o.Tell = func(s string) {
					for line := range strings.Lines(s) {
						a.Warnf("%s", screen.CleanLine(strings.TrimRight(line, "\n")))
					}
				}
				o.Console = lines{o.Tell}
			}
			d, err := a.Env.Drill.Run(ctx, o)
			if err != nil {
				return shell.OperationError("drill", err)
			}
			return a.done(d, report, html)
		},
	})
	f := cmd.Flags()
	shell.Repository(cmd, &o.Repository)
	u.Add(cmd)
	f.IntVar(&o.Files, "sample-files", 200, "read `N` files of each file system to their ends; 0 = none")
	f.Int64Var(&sample, "sample-mib", 1024, "at most `MIB` of each file system")
	f.StringVar(&o.Seed, "seed", "", "read the same files as the drill whose report has this seed, `HEX`")
	f.BoolVar(&o.NoCheck, "no-check", false, "run no tools of the file systems")
	f.StringVar(&report, "report", "", "write the signed report to a new `FILE` too (JSON)")
	f.StringVar(&html, "html", "", "write the report as a page to a new `FILE` too")
	f.BoolVar(&o.Dry, "no-store", false, "do not keep the report beside the recovery point")
	f.BoolVarP(&verbose, "verbose", "v", false, "say what is done, and what the tools and the guest say, on standard error")
	f.BoolVar(&withBoot, "boot", false, "boot the machine too")
	f.StringVar(&boot.Marker, "boot-marker", "", "the machine is up when this regular expression, `RE`, is on its serial console")
	f.IntVar(&boot.MemoryMiB, "boot-memory", 1024, "`MIB` of memory")
	f.IntVar(&boot.CPUs, "boot-cpus", 1, "`N` processors")
	f.StringVar(&boot.Bus, "boot-bus", "virtio", "`BUS` of the disks: virtio, sata")
	f.StringVar(&boot.Firmware, "boot-firmware", "", "`FILE` with UEFI firmware, instead of a BIOS")
	f.BoolVar(&boot.KVM, "boot-kvm", false, "use the processor's virtualisation")
	f.BoolVar(&boot.TypePassphrase, "boot-type-passphrase", false, "type the passphrases that unlocked the volumes when the console asks for one")
	f.StringVar(&boot.Screenshot, "boot-screenshot", "", "write a picture of the screen to `FILE` (PNG)")
	f.DurationVar(&boot.Timeout, "boot-timeout", 5*time.Minute, "the machine is not up after `TIME`: it failed")
	cmd.GroupID = shell.GroupWatch
	return cmd
}

// lines hands on whole pieces of text.
type lines struct{ tell func(string) }

func (l lines) Write(p []byte) (int, error) {
	l.tell(string(p))
	return len(p), nil
}

// done shows a report, writes the files, and says by the error what came of it.
func (a group) done(d shell.Drilled, report, html string) error {
	a.WarnAll(d.Warnings)
	var errs []error
	for _, f := range []struct {
		name string
		b    []byte
	}{{report, d.Signed}, {html, d.HTML}} {
		if f.name != "" {
			if err := write(f.name, f.b); err != nil {
				errs = append(errs, shell.OperationError("drill", err))
			}
		}
	}
	if d.Warnings == nil {
		d.Warnings = []string{}
	}
	a.Emit(d, func(w io.Writer) { a.print(w, d) })
	switch d.Outcome {
	case "failed":
		if slices.ContainsFunc(d.Steps, func(s shell.DrillStep) bool { return s.Kind == "unlock" && s.Outcome == "failed" }) {
			errs = append(errs, &api.Error{Title: "failed", Exit: api.ExitWrongSecret, Detail: "drill: a volume of recovery point " + d.Point + " could not be unlocked", Hint: "'lockstep point show " + d.Point + "' says what is known to open it"})
			break
		}
		errs = append(errs, &api.Error{Title: "failed", Exit: api.ExitDamaged, Detail: "drill: recovery point " + d.Point + " failed it", Hint: "'lockstep verify' says whether what is stored is whole; --verbose shows what the tools say"})
	case "incomplete":
		errs = append(errs, &api.Error{Title: "incomplete", Exit: api.ExitNotProven, Detail: "drill: a volume stayed locked, or no file was read", Hint: "'lockstep point show " + d.Point + "' says what opens its volumes"})
	}
	return errors.Join(errs...)
}

func write(file string, b []byte) error {
	return files.CreateNew(file, func(w io.Writer) error {
		_, err := w.Write(b)
		return err
	})
}

func (a group) print(w io.Writer, d shell.Drilled) {
	colours := map[string]string{"passed": screen.Green, "warned": screen.Yellow, "failed": screen.Alarm, "skipped": ""}
	t := screen.NewTable("", "STEP", "WHERE", "RESULT", "TIME", "FOUND")
	for _, s := range d.Steps {
		where := s.Disk
		if s.Disk != "" && s.Object != "" {
			where += "/"
		}
		detail := s.Detail
		if s.Bytes > 0 {
			detail += " (" + screen.Size(s.Bytes) + ")"
		}
		if s.Secret != "" {
			detail += " by " + s.Secret
		}
		t.Add(screen.Text(s.Kind), screen.Text(screen.CleanLine(where+s.Object)), screen.Painted(s.Outcome, colours[s.Outcome]), screen.Number(seconds(s.Seconds)), screen.Text(screen.CleanLine(detail)))
	}
	t.Print(w, a.Style)
	times := "open after " + seconds(d.Open)
	if d.Unlock > 0 {
		times += ", unlocked after " + seconds(d.Unlock)
	}
	if d.Readable > 0 {
		times += ", files readable after " + seconds(d.Readable)
	}
	if d.Boot > 0 {
		times += ", up after " + seconds(d.Boot)
	}
	_, _ = fmt.Fprintf(w, "\n%s: %s; %s in all\n", d.Outcome, times, seconds(d.Total))
}

func seconds(s float64) string {
	if s < 100 {
		return fmt.Sprintf("%.2f s", s)
	}
	return fmt.Sprintf("%d min %d s", int(s)/60, int(s)%60)
}

func (a group) reports() *cobra.Command {
	var o shell.DrillOptions
	var html string
	cmd := a.Leaf(shell.Command{
		Use:     "drills POINT",
		Short:   "Show the signed reports of a recovery point's drills",
		Long:    "Reports that are not signed by a custodian, or are about something else, do not\ncount and are named.",
		Example: "lockstep point drills web01@latest --html drill.html",
		Exits:   []int{api.ExitRefused, api.ExitDamaged, api.ExitTarget},
		Args:    cobra.ExactArgs(1),
		Run: func(ctx context.Context, cmd *cobra.Command, args []string) error {
			if err := a.Local(cmd); err != nil {
				return err
			}
			if a.Env.Drill.Reports == nil {
				return errors.New("point drills: this program cannot read reports")
			}
			o.DataDir, o.Point, o.Log = a.DataDir, args[0], a.Env.Stderr
			all, err := a.Env.Drill.Reports(ctx, o)
			if err != nil {
				return shell.OperationError("point drills", err)
			}
			if html != "" {
				if len(all) == 0 {
					return &api.Error{Title: "not found", Exit: api.ExitRefused, Detail: "point drills: there was no drill of it", Hint: "'lockstep drill POINT' holds one"}
				}
				if err := write(html, all[len(all)-1].HTML); err != nil {
					return shell.OperationError("point drills", err)
				}
			}
			shell.EmitList(a.Run, all, func(w io.Writer) {
				if len(all) == 0 {
					a.Sayf("there was no drill of it yet; 'lockstep drill POINT' holds one")
				}
				for i, d := range all {
					if i > 0 {
						_, _ = fmt.Fprintln(w)
					}
					_, _ = fmt.Fprintf(w, "%s by %s: %s\n", d.Started.UTC().Format("2006-01-02 15:04:05"), screen.CleanLine(d.Actor), screen.CleanLine(d.Reason))
					a.print(w, d)
				}
			})
			return nil
		},
	})
	shell.Repository(cmd, &o.Repository)
	cmd.Flags().StringVar(&html, "html", "", "write the last one as a page to a new `FILE`")
	return cmd
}
