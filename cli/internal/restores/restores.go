// Package restores is the commands that write disks back.
package restores

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"

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
	return []*cobra.Command{a.restoreCommand()}
}

func (a group) restoreCommand() *cobra.Command {
	var r api.RestoreRequest
	var disks, volumes []string
	var list string
	cmd := a.Leaf(shell.Command{
		Use:   "restore POINT --disk ID[/PARTITION]=TARGET [--disk …] [--volume VOLUME=TARGET] [--force]",
		Short: "Write disks back, still encrypted",
		Long: `TARGET is an image file or a block device; the host on which the engine runs
opens it. Every byte is verified before it is written, and the whole afterwards.
A target that holds something is refused without --force.

ID/PARTITION is one partition by its number, such as vda/1; VOLUME is one
encrypted volume. A device that is larger than what is written to it is refused
without --larger; what lies behind stays as it is, and what to do about the
backup of a partition table is said. TARGET - is standard output, for one disk:
its bytes in order, zeroes included; only exit status 0 or 3 says that all of
them came.

Damaged data ends it. With --keep-going there are zeroes in its place, all the
rest is written, and the exit status is 6; --damage-list makes a JSON file of
what is missing.`,
		Example: "lockstep restore web01@latest --disk vda=/srv/restore/web01.img",
		Exits:   []int{api.ExitNotProven, api.ExitRefused, api.ExitDamaged, api.ExitTarget},
		Args:    cobra.ExactArgs(1),
		Run: func(ctx context.Context, cmd *cobra.Command, args []string) error {
			r.Point = args[0]
			var err error
			if r.Targets, err = a.targets(cmd, disks, volumes); err != nil {
				return err
			}
			switch {
			case len(r.Targets) == 1 && r.Targets[0].Target == stdout:
				if r.KeepGoing || r.Force || r.Larger {
					return shell.UsageError(cmd, "restore: --keep-going, --force and --larger are not for standard output")
				}
				return a.stream(ctx, cmd, api.StreamRequest{Point: r.Point, Repository: r.Repository, RestorePart: r.Targets[0].RestorePart, Rates: r.Rates})
			case slices.ContainsFunc(r.Targets, func(t api.RestoreTarget) bool { return t.Target == stdout }):
				return shell.UsageError(cmd, "restore: only one disk can go to standard output, and nothing beside it")
			case r.Format != "raw":
				return shell.UsageError(cmd, "restore: --format is raw")
			case list != "" && !r.KeepGoing:
				return shell.UsageError(cmd, "restore: --damage-list is for --keep-going")
			}
			if list != "" {
				if err := files.CheckNew(list); err != nil {
					return shell.WithHint(fmt.Errorf("restore: nothing is written: the damage list cannot be made: %w", err),
						"--damage-list names a new file, in a folder that is there and that you may write to")
				}
			}
			return a.WithClient(ctx, func(c *api.Client) error {
				j, err := a.RunJob(ctx, c, "restore", "targets that were new files are removed, others are not complete",
					func() (api.Job, error) { return c.Restore(ctx, r) })
				switch {
				case err != nil && j.Restore != nil:
					for _, d := range j.Restore.Disks {
						a.Warnf("disk %s is complete: %s", d.ID, d.Target)
					}
				case err == nil && j.Restore == nil:
					err = errors.New("restore: the job ended without a result")
				case err == nil:
					if list != "" {
						err = writeDamage(list, *j.Restore)
					}
					a.Emit(j.Restore, func(w io.Writer) { a.printRestored(w, *j.Restore) })
				}
				return err
			})
		},
	})
	cmd.GroupID = shell.GroupDaily
	f := cmd.Flags()
	f.StringArrayVar(&disks, "disk", nil, "a disk or partition and where it goes, `ID=TARGET` or ID/PARTITION=TARGET; once for each")
	f.StringArrayVar(&volumes, "volume", nil, "an encrypted volume and where it goes, `VOLUME=TARGET`; once for each")
	f.BoolVar(&r.Larger, "larger", false, "take a device that is larger, and leave what lies behind as it is")
	shell.Rates(cmd, &r.Rates)
	shell.Repository(cmd, &r.Repository)
	f.StringVar(&r.Format, "format", "raw", "`FORMAT` of the target: raw")
	f.BoolVar(&r.KeepGoing, "keep-going", false, "write zeroes where stored data is damaged, and go on")
	f.StringVar(&list, "damage-list", "", "`FILE` to make, for what --keep-going could not write")
	f.BoolVar(&r.Force, "force", false, "write over what the target holds")
	return cmd
}

// targets reads what goes where.
func (a group) targets(cmd *cobra.Command, disks, volumes []string) (out []api.RestoreTarget, err error) {
	seen := map[string]bool{}
	add := func(what, s string, part func(name string) api.RestorePart) error {
		name, target, found := strings.Cut(s, "=")
		if !found || name == "" || target == "" {
			return shell.UsageError(cmd, "restore: %s %q is not of the form %s=TARGET", what, s, map[string]string{"disk": "ID", "volume": "VOLUME"}[what])
		}
		if seen[what+name] {
			return shell.UsageError(cmd, "restore: %s %s is named twice", what, name)
		}
		seen[what+name] = true
		if target != stdout {
			var err error
			if target, err = a.EnginePath(cmd, target); err != nil {
				return err
			}
		}
		out = append(out, api.RestoreTarget{RestorePart: part(name), Target: target})
		return nil
	}
	for _, s := range disks {
		if id, part, found := strings.Cut(strings.SplitN(s, "=", 2)[0], "/"); found && (id == "" || part == "" || part == "p") {
			return nil, shell.UsageError(cmd, "restore: disk %q is not of the form ID/PARTITION=TARGET", s)
		}
		err := add("disk", s, func(name string) api.RestorePart {
			id, partition, _ := strings.Cut(name, "/")
			return api.RestorePart{Disk: id, Partition: strings.TrimPrefix(partition, "p")}
		})
		if err != nil {
			return nil, err
		}
	}
	for _, s := range volumes {
		if err := add("volume", s, func(name string) api.RestorePart { return api.RestorePart{Volume: name} }); err != nil {
			return nil, err
		}
	}
	if len(out) == 0 {
		return nil, shell.UsageError(cmd, "restore: name at least one --disk ID=TARGET")
	}
	return out, nil
}

func (a group) printRestored(w io.Writer, r api.RestoreResult) {
	if !a.Quiet {
		_, _ = fmt.Fprintf(w, "recovery point %s (%s) is restored\n\n", screen.CleanLine(r.Point), a.PaintState(r.State))
	}
	t := screen.NewTable("  ", "DISK", "SIZE", "WRITTEN", "TIME", "TARGET")
	for _, d := range r.Disks {
		t.Add(screen.Text(diskText(d)), screen.Number(screen.Size(d.SizeBytes)), screen.Number(screen.Size(d.WrittenBytes)), screen.Number(screen.Duration(d.Seconds)), screen.Text(d.Target))
	}
	t.Print(w, a.Style)
	for _, d := range r.Disks {
		if len(d.UnreadRanges) > 0 {
			_, _ = fmt.Fprintf(w, "\n  %s was not read completely: %s, %s\n", screen.CleanLine(d.ID),
				screen.Count(len(d.UnreadRanges), "range", "ranges"), screen.Size(show.RangeBytes(d.UnreadRanges)))
		}
	}
	a.printDamaged(w, r)
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
	t.Print(w, a.Style)
}

// printDamaged lists what is zero in the targets.
func (a group) printDamaged(w io.Writer, r api.RestoreResult) {
	const most = 20 // for people; the rest is in the JSON
	t := screen.NewTable("  ", "DISK", "RANGE", "SIZE", "OBJECT", "ERROR")
	n := 0
	for _, d := range r.Disks {
		for _, x := range d.Damaged {
			if n++; n <= most {
				t.Add(screen.Text(d.ID), screen.Text(fmt.Sprintf("%d+%d", x.Offset, x.Length)), screen.Number(screen.Size(x.Length)), screen.Text(x.Object), screen.Text(x.Error))
			}
		}
	}
	if n == 0 {
		return
	}
	_, _ = fmt.Fprintf(w, "\n%s, zeroes in the targets:\n\n", a.Style.Paint(screen.Alarm, "DAMAGED in "+screen.Count(n, "range", "ranges")))
	t.Print(w, a.Style)
	if n > most {
		_, _ = fmt.Fprintf(w, "  and %d more; -o json and --damage-list have all of them\n", n-most)
	}
}

// damageList is what --damage-list makes: the disks that were restored, and
// what of each is zero although data was stored there.
type damageList struct {
	Point string        `json:"point"`
	Disks []damagedDisk `json:"disks"`
}

type damagedDisk struct {
	Disk      string             `json:"disk"`
	Target    string             `json:"target"`
	SizeBytes int64              `json:"size_bytes"`
	Damaged   []api.DamagedRange `json:"damaged_ranges"`
}

func writeDamage(path string, r api.RestoreResult) error {
	list := damageList{Point: r.Point, Disks: []damagedDisk{}}
	for _, d := range r.Disks {
		ranges := d.Damaged
		if ranges == nil {
			ranges = []api.DamagedRange{}
		}
		list.Disks = append(list.Disks, damagedDisk{d.ID, d.Target, d.SizeBytes, ranges})
	}
	err := files.CreateNew(path, func(w io.Writer) error {
		enc := json.NewEncoder(w)
		enc.SetIndent("", "  ")
		return enc.Encode(list)
	})
	if err != nil {
		return fmt.Errorf("restore: the disks are written, the damage list is not: %w", err)
	}
	return nil
}

// diskText names a disk, or the range of it that was written.
func diskText(d api.RestoredDisk) string {
	switch {
	case d.Part == nil:
		return d.ID
	case d.Name != "":
		return d.Name
	}
	return fmt.Sprintf("%s[%d+%d]", d.ID, d.Part.Offset, d.Part.Length)
}
