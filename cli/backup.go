package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/lockstep-backup/lockstep/api"
	"github.com/lockstep-backup/lockstep/cli/internal/screen"
)

func (a *app) backupCommand() *cobra.Command {
	var r api.BackupRequest
	cmd := a.leaf(command{
		use:   "backup NAME [--full] [--description TEXT]",
		short: "Make a recovery point of a machine",
		long: `The ciphertext of its disks is copied: all of it the first time, what changed
afterwards. Then the recovery point is proven, that is, opened with the secrets
in custody. One that does not open is kept, and the exit status is 3.`,
		example: "lockstep backup web01 --description 'before the upgrade'",
		exits:   []int{api.ExitNotProven, api.ExitRefused, api.ExitDamaged, api.ExitBusy},
		args:    cobra.ExactArgs(1),
		run: func(ctx context.Context, _ *cobra.Command, args []string) error {
			r.Machine = args[0]
			return a.withClient(ctx, func(c *api.Client) error {
				j, err := a.runJob(ctx, c, "backup", "no recovery point was made, what was stored is used by the next backup",
					func() (api.Job, error) { return c.Backup(ctx, r) })
				if j.Backup != nil {
					p := *j.Backup
					a.emit(p, func(w io.Writer) {
						if !a.quiet {
							a.printMade(w, p)
						}
					})
					a.warnPoint(p)
				} else if err == nil {
					err = errors.New("backup: the job ended without a recovery point")
				}
				return err
			})
		},
	})
	cmd.GroupID = groupDaily
	f := cmd.Flags()
	f.BoolVar(&r.Full, "full", false, "read and store everything, whatever is there already")
	f.StringVar(&r.Description, "description", "", "`TEXT` to find it by")
	f.BoolVar(&r.AllowLive, "allow-live", false, "read a disk that is in use (crash-consistent at best)")
	f.BoolVar(&r.AllowIncomplete, "allow-incomplete", false, "record ranges that cannot be read instead of failing")
	return cmd
}

// printMade says what a backup made.
func (a *app) printMade(w io.Writer, p api.Point) {
	_, _ = fmt.Fprintf(w, "recovery point %s of %s is %s\n", screen.CleanLine(p.ID), screen.CleanLine(p.Machine), a.paintState(p.State))
	var f screen.Facts
	f.Add("time", screen.Stamp(p.Time))
	f.Add("transfer", fmt.Sprintf("%s: %s read, %s changed, %s stored, in %s", p.Transfer,
		screen.Size(p.ReadBytes), screen.Size(p.ChangedBytes), screen.Size(p.StoredBytes), screen.Duration(p.DurationSeconds)))
	f.Add("consistency", p.Consistency)
	for _, d := range p.Disks {
		for _, v := range d.Volumes {
			f.Add("volume", d.ID+"/"+v.ID+" "+v.Type+", "+openedText(v))
		}
	}
	for _, change := range p.Changes {
		f.Add("changed", change)
	}
	f.Print(w, "  ", a.style)
}

// openedText says in a phrase what opens a volume.
func openedText(v api.Volume) string {
	refs := openers(v)
	switch {
	case v.NotNeeded != "":
		return "not needed: " + v.NotNeeded
	case len(refs) > 0:
		short := screen.ShortRefs(refs)
		names := make([]string, len(refs))
		for i, r := range refs {
			names[i] = short[r]
		}
		return "opened by " + strings.Join(names, ", ")
	case v.SelfOpening != "":
		return "self-opening: " + v.SelfOpening
	default:
		return "opened by nothing in custody"
	}
}

// warnPoint says that a recovery point may not open one day, and loudly that it
// does not.
func (a *app) warnPoint(p api.Point) {
	id, machine := screen.CleanLine(p.ID), screen.CleanLine(p.Machine)
	switch p.State {
	case api.StateUnproven:
		a.warnf("warning: recovery point %s of %s is UNPROVEN: nothing has shown yet that a secret opens it", id, machine)
		for _, why := range reasons(p) {
			a.warnf("  - %s", why)
		}
		a.warnf("hint: lockstep prove %s", id)
		return
	case api.StateAtRisk:
		a.warnf("warning: recovery point %s of %s is AT RISK: a secret opens it, but that may not last", id, machine)
		for _, why := range reasons(p) {
			a.warnf("  - %s", why)
		}
		a.warnf("hint: lockstep point show %s", id)
		return
	case api.StateUnrecoverable:
	default:
		return
	}
	need := needs(p)
	verdict := "is stored and kept, but no secret in custody opens it."
	if !need.secret {
		verdict = "is stored and kept, but as it is no secret can open it."
	}
	lines := []string{
		screen.NewStyle(a.env.IsTerminal(a.env.Stderr), a.env.Getenv).Paint(screen.Alarm, "UNRECOVERABLE"),
		"",
		"Recovery point " + id + " of " + machine,
		verdict,
		"Restored today, it is ciphertext that nobody can read.",
	}
	if whys := reasons(p); len(whys) > 0 {
		lines = append(lines, "", "Why:")
		for _, why := range whys {
			lines = append(lines, "  - "+why)
		}
	}
	if need.header {
		lines = append(lines,
			"",
			"What to do: no passphrase helps where the header is lost or erased. Do not",
			"format the volume: its data may still be there. Where a recovery point with",
			"the header is named above, keep it, put the header back, and back up again.",
		)
	}
	if need.format {
		lines = append(lines,
			"",
			"What to do: this version cannot open the format of a volume, whatever the",
			"secret. Keep its secret and the means to open it yourself.",
		)
	}
	if need.secret {
		lines = append(lines,
			"",
			"What to do: give Lockstep the passphrase that opens the disk today,",
			"  lockstep secret add "+machine+" --kind passphrase --file -",
			"It is tried at once; if it opens the recovery point, that is proven.",
		)
	}
	if !need.secret {
		lines = append(lines, "")
	}
	lines = append(lines,
		"A volume that nobody needs, such as swap with a random key, is declared:",
		"  lockstep volume not-needed "+machine+" DISK/VOLUME --reason TEXT",
	)
	rule := strings.Repeat("!", 76)
	a.warnf("\n%s", rule)
	for _, line := range lines {
		a.warnf("%s", strings.TrimRight("!!  "+line, " "))
	}
	a.warnf("%s\n", rule)
}

// remedies are what helps with a recovery point that nothing opens.
type remedies struct{ secret, header, format bool }

// needs follows the reasons of custody by how they begin (docs/spec/custody.md,
// section 6). What is known of no volume may need a secret.
func needs(p api.Point) (r remedies) {
	look := func(whys []string) (other bool) {
		other = true
		for _, why := range whys {
			switch {
			case strings.Contains(why, "header loss: "), strings.Contains(why, "header erased: "):
				r.header, other = true, false
			case strings.Contains(why, "cannot be opened by this version: "):
				r.format, other = true, false
			}
		}
		return other
	}
	for _, d := range p.Disks {
		for _, v := range d.Volumes {
			if v.State == api.StateUnrecoverable && v.NotNeeded == "" && look(v.Why) {
				r.secret = true
			}
		}
	}
	// A volume of which nothing is left is in the recovery point's reasons alone.
	look(p.Why)
	r.secret = r.secret || !r.header && !r.format
	return r
}

// reasons are why a recovery point is in its state, its volumes' included.
func reasons(p api.Point) []string {
	var out []string
	add := func(s string) {
		if s = screen.CleanLine(s); !slices.Contains(out, s) {
			out = append(out, s)
		}
	}
	for _, why := range p.Why {
		add(why)
	}
	for _, d := range p.Disks {
		for _, v := range d.Volumes {
			if v.State == api.StateProven || v.NotNeeded != "" {
				continue
			}
			for _, why := range v.Why {
				// The recovery point may say it already, with the volume's name or without.
				if !slices.ContainsFunc(out, func(s string) bool { return strings.HasSuffix(s, screen.CleanLine(why)) }) {
					add(d.ID + "/" + v.ID + ": " + why)
				}
			}
		}
	}
	return out
}

func (a *app) proveCommand() *cobra.Command {
	var all bool
	cmd := a.leaf(command{
		use:   "prove {POINT … | --all}",
		short: "Open recovery points with the secrets in custody, and record the proofs",
		long: `The headers and one sector of each volume are read from the repository as
stored, never from the live disk.`,
		example: "lockstep prove web01@latest",
		exits:   []int{api.ExitNotProven, api.ExitRefused, api.ExitDamaged},
		args:    cobra.ArbitraryArgs,
		run: func(ctx context.Context, cmd *cobra.Command, args []string) error {
			if all == (len(args) > 0) {
				return usageError(cmd, "prove: name recovery points, or --all")
			}
			return a.withClient(ctx, func(c *api.Client) error {
				j, err := a.runJob(ctx, c, "prove", "the proofs that were recorded stay",
					func() (api.Job, error) { return c.Prove(ctx, api.ProveRequest{Points: args, All: all}) })
				if err == nil || len(j.Prove) > 0 {
					emitList(a, j.Prove, func(w io.Writer) {
						if len(j.Prove) == 0 {
							a.sayf("there is no recovery point to prove")
							return
						}
						a.printStates(w, j.Prove)
					})
				}
				return err
			})
		},
	})
	cmd.GroupID = groupKeys
	cmd.Flags().BoolVar(&all, "all", false, "all recovery points")
	return cmd
}

func (a *app) restoreCommand() *cobra.Command {
	var r api.RestoreRequest
	var disks []string
	cmd := a.leaf(command{
		use:   "restore POINT --disk ID=TARGET [--disk …] [--force]",
		short: "Write disks back, still encrypted",
		long: `TARGET is an image file or a block device; the host on which the engine runs
opens it. Every byte is verified before it is written, and the whole afterwards.
A target that holds something is refused without --force.`,
		example: "lockstep restore web01@latest --disk vda=/srv/restore/web01.img",
		exits:   []int{api.ExitNotProven, api.ExitRefused, api.ExitDamaged, api.ExitTarget},
		args:    cobra.ExactArgs(1),
		run: func(ctx context.Context, cmd *cobra.Command, args []string) error {
			r.Point = args[0]
			seen := map[string]bool{}
			for _, s := range disks {
				id, target, found := strings.Cut(s, "=")
				if !found || id == "" || target == "" {
					return usageError(cmd, "restore: disk %q is not of the form ID=TARGET", s)
				}
				if seen[id] {
					return usageError(cmd, "restore: disk %s is named twice", id)
				}
				seen[id] = true
				target, err := a.enginePath(cmd, target)
				if err != nil {
					return err
				}
				r.Targets = append(r.Targets, api.RestoreTarget{Disk: id, Target: target})
			}
			switch {
			case len(r.Targets) == 0:
				return usageError(cmd, "restore: name at least one --disk ID=TARGET")
			case r.Format != "raw":
				return usageError(cmd, "restore: --format is raw")
			}
			return a.withClient(ctx, func(c *api.Client) error {
				j, err := a.runJob(ctx, c, "restore", "targets that were new files are removed, others are not complete",
					func() (api.Job, error) { return c.Restore(ctx, r) })
				switch {
				case err != nil && j.Restore != nil:
					for _, d := range j.Restore.Disks {
						a.warnf("disk %s is complete: %s", d.ID, d.Target)
					}
				case err == nil && j.Restore == nil:
					err = errors.New("restore: the job ended without a result")
				case err == nil:
					a.emit(j.Restore, func(w io.Writer) { a.printRestored(w, *j.Restore) })
				}
				return err
			})
		},
	})
	cmd.GroupID = groupDaily
	f := cmd.Flags()
	f.StringArrayVar(&disks, "disk", nil, "a disk and where it goes, `ID=TARGET`; once for each disk")
	f.StringVar(&r.Format, "format", "raw", "`FORMAT` of the target: raw")
	f.BoolVar(&r.Force, "force", false, "write over what the target holds")
	return cmd
}

func (a *app) printRestored(w io.Writer, r api.RestoreResult) {
	if !a.quiet {
		_, _ = fmt.Fprintf(w, "recovery point %s (%s) is restored\n\n", screen.CleanLine(r.Point), a.paintState(r.State))
	}
	t := screen.NewTable("  ", "DISK", "SIZE", "WRITTEN", "TIME", "TARGET")
	for _, d := range r.Disks {
		t.Add(screen.Text(d.ID), screen.Number(screen.Size(d.SizeBytes)), screen.Number(screen.Size(d.WrittenBytes)), screen.Number(screen.Duration(d.Seconds)), screen.Text(d.Target))
	}
	t.Print(w, a.style)
	for _, d := range r.Disks {
		if len(d.UnreadRanges) > 0 {
			_, _ = fmt.Fprintf(w, "\n  %s was not read completely: %s, %s\n", screen.CleanLine(d.ID),
				screen.Count(len(d.UnreadRanges), "range", "ranges"), screen.Size(rangeBytes(d.UnreadRanges)))
		}
	}
	if len(r.Keys) == 0 {
		return
	}
	_, _ = fmt.Fprintf(w, "\nwhat opens it:\n\n")
	t = screen.NewTable("  ", "VOLUME", "STATE", "SECRET")
	for _, k := range r.Keys {
		opens := screen.Text(strings.Join(k.Opens, ", "))
		if len(k.Opens) == 0 {
			opens = screen.Painted("nothing in custody", screen.Yellow)
		}
		t.Add(screen.Text(k.Disk+"/"+k.Volume), screen.Painted(k.State, screen.StateColour(k.State)), opens)
	}
	t.Print(w, a.style)
}

func rangeBytes(ranges []api.Range) int64 {
	var n int64
	for _, r := range ranges {
		n += r.Length
	}
	return n
}

func (a *app) verifyCommand() *cobra.Command {
	cmd := a.leaf(command{
		use:   "verify [POINT …]",
		short: "Read back what is stored and compare",
		long: `Without POINT everything is read. Damage is named with the disks, ranges and
recovery points it touches, and the exit status is 6.`,
		example: "lockstep verify web01@latest",
		exits:   []int{api.ExitRefused, api.ExitDamaged},
		args:    cobra.ArbitraryArgs,
		run: func(ctx context.Context, _ *cobra.Command, args []string) error {
			return a.withClient(ctx, func(c *api.Client) error {
				j, err := a.runJob(ctx, c, "verify", "nothing is changed by it",
					func() (api.Job, error) { return c.Verify(ctx, api.VerifyRequest{Points: args}) })
				if j.Verify != nil {
					v := *j.Verify
					if v.Damage == nil {
						v.Damage = []api.Damage{}
					}
					a.emit(v, func(w io.Writer) { a.printVerified(w, v) })
				} else if err == nil {
					err = errors.New("verify: the job ended without a result")
				}
				return err
			})
		},
	})
	cmd.GroupID = groupWatch
	return cmd
}

func (a *app) printVerified(w io.Writer, v api.VerifyResult) {
	verdict := a.style.Paint(screen.Green, "no damage")
	if len(v.Damage) > 0 {
		verdict = a.style.Paint(screen.Alarm, "DAMAGED in "+screen.Count(len(v.Damage), "place", "places"))
	}
	if !a.quiet || len(v.Damage) > 0 {
		_, _ = fmt.Fprintf(w, "read back %s, %s, %s: %s\n", screen.Count(v.Points, "recovery point", "recovery points"),
			screen.Count(int(v.Objects), "object", "objects"), screen.Size(v.ReadBytes), verdict)
	}
	if len(v.Damage) == 0 {
		return
	}
	_, _ = fmt.Fprintln(w)
	t := screen.NewTable("  ", "OBJECT", "MACHINE", "DISK", "RANGE", "RECOVERY POINTS", "ERROR")
	for _, d := range v.Damage {
		where := ""
		if d.Range != nil {
			where = fmt.Sprintf("%d+%d", d.Range.Offset, d.Range.Length)
		}
		t.Add(screen.Text(d.Object), screen.Text(d.Machine), screen.Text(d.Disk), screen.Text(where), screen.Text(strings.Join(d.Points, ", ")), screen.Text(d.Error))
	}
	t.Print(w, a.style)
}

func (a *app) catalogCommand() *cobra.Command {
	return a.group("catalog", "The index of what is where", groupWatch, "lockstep catalog rebuild", a.catalogRebuild())
}

func (a *app) catalogRebuild() *cobra.Command {
	var repository string
	cmd := a.leaf(command{
		use:   "rebuild",
		short: "Make the catalog anew from the repository",
		long: `Recovery points, states, proofs and holds are in the repository and come back.
What is not there is named; it is backed up with the data directory.`,
		example: "lockstep catalog rebuild",
		exits:   []int{api.ExitRefused, api.ExitDamaged, api.ExitBusy},
		args:    cobra.NoArgs,
		run: func(ctx context.Context, cmd *cobra.Command, _ []string) (err error) {
			if repository != "" {
				if repository, err = a.enginePath(cmd, repository); err != nil {
					return err
				}
			}
			return a.withClient(ctx, func(c *api.Client) error {
				j, err := a.runJob(ctx, c, "catalog rebuild", "the catalog is not complete; run it again",
					func() (api.Job, error) { return c.RebuildCatalog(ctx, repository) })
				if j.Rebuild == nil {
					if err == nil {
						err = errors.New("catalog rebuild: the job ended without a result")
					}
					return err
				}
				r := *j.Rebuild
				a.emit(r, func(w io.Writer) {
					var f screen.Facts
					f.Add("machines", fmt.Sprint(r.Machines))
					f.Add("recovery points", fmt.Sprint(r.Points))
					f.Add("proofs", fmt.Sprint(r.Proofs))
					f.Add("holds", fmt.Sprint(r.Holds))
					_, _ = fmt.Fprintf(w, "the catalog is made anew from %s\n", screen.CleanLine(r.Repository))
					f.Print(w, "  ", a.style)
					if len(r.NotRebuilt) > 0 {
						_, _ = fmt.Fprintf(w, "not in the repository, so not in the catalog:\n")
						for _, s := range r.NotRebuilt {
							_, _ = fmt.Fprintf(w, "  - %s\n", screen.CleanLine(s))
						}
					}
				})
				a.warnAll(r.Problems)
				return err
			})
		},
	})
	cmd.Flags().StringVar(&repository, "repository", "", "`URL` of the repository to read (default: the installation's)")
	return cmd
}
