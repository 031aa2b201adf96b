package command

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"strings"

	"github.com/spf13/cobra"

	"github.com/lockstep-backup/lockstep/api"
	"github.com/lockstep-backup/lockstep/repository"
	"github.com/lockstep-backup/lockstep/rescue"
	"github.com/lockstep-backup/lockstep/restore"
	"github.com/lockstep-backup/lockstep/target"
	"github.com/lockstep-backup/lockstep/target/image"
	"github.com/lockstep-backup/lockstep/verify"
)

type restoreDoc struct {
	Point    string        `json:"point"`
	Machine  string        `json:"machine"`
	Opens    bool          `json:"opens"`
	Disks    []restoredDoc `json:"disks"`
	Warnings []string      `json:"warnings"`
}

type restoredDoc struct {
	Disk        string `json:"disk"`
	Target      string `json:"target"`
	Size        int64  `json:"size_bytes"`
	Written     int64  `json:"written_bytes"`
	ContentRoot string `json:"content_root"`
	Unread      int    `json:"unread_ranges,omitempty"`
	// Damaged are zeroes in the target; only with --keep-going.
	Damaged []api.DamagedRange `json:"damaged_ranges,omitempty"`
	Seconds float64            `json:"duration_seconds"`
}

func (a *app) restoreCommand() *cobra.Command {
	var disks []string
	var o target.Options
	var keepGoing bool
	var list string
	cmd := a.command(verb{
		use:   "restore POINT --disk ID=TARGET [--disk …] [--force]",
		short: "Write disks back, still encrypted",
		long: `TARGET is a new or empty image file, or a block device. Every byte is verified
before it is written, and the whole disk afterwards. A target that holds
something is refused without --force, and a device that is larger than the disk
without --larger; what lies behind the disk stays as it is, and the backup of a
GPT belongs at the device's end ('sgdisk --move-second-header').

Damaged data ends it. With --keep-going there are zeroes in its place, all the
rest is written, and the exit status is 6; --damage-list makes a JSON file of
what is missing.`,
		example: "lockstep-recover restore web01@latest --disk vda=/srv/web01.img --repository /mnt/repository --identity kit.txt",
		exits:   []int{api.ExitNotProven, api.ExitTarget},
		args:    1,
		run: func(ctx context.Context, args []string) error {
			targets, err := parseTargets(disks)
			if err != nil {
				return err
			}
			if list != "" {
				if !keepGoing {
					return usagef("--damage-list is for --keep-going")
				}
				if err := checkNew(list); err != nil {
					own := &statusError{fmt.Errorf("restore: nothing is written: the damage list cannot be made: %w", err), api.ExitFailed, "--damage-list names a new file, in a folder that is there and that you may write to"}
					if errors.Is(err, fs.ErrExist) {
						own.status = api.ExitTarget
					}
					return own
				}
			}
			return a.withPoint(ctx, args[0], func(r *rescue.Rescue, p *rescue.Point) error {
				return a.restore(ctx, r, p, targets, o, keepGoing, list)
			})
		},
	})
	cmd.Flags().StringArrayVar(&disks, "disk", nil, "a disk and where it goes, `ID=TARGET`; once for each disk")
	cmd.Flags().BoolVar(&keepGoing, "keep-going", false, "write zeroes where stored data is damaged, and go on")
	cmd.Flags().StringVar(&list, "damage-list", "", "`FILE` to make, for what --keep-going could not write")
	cmd.Flags().BoolVar(&o.Force, "force", false, "write over what the target holds")
	cmd.Flags().BoolVar(&o.Larger, "larger", false, "take a device that is larger, and leave what lies behind as it is")
	return cmd
}

func parseTargets(disks []string) ([]restore.Target, error) {
	if len(disks) == 0 {
		return nil, usagef("--disk ID=TARGET is missing")
	}
	var out []restore.Target
	for _, s := range disks {
		id, to, ok := strings.Cut(s, "=")
		if !ok || id == "" || to == "" {
			return nil, usagef("--disk %q is not of the form ID=TARGET", s)
		}
		out = append(out, restore.Target{Disk: id, Target: to})
	}
	return out, nil
}

func (a *app) restore(ctx context.Context, r *rescue.Rescue, p *rescue.Point, targets []restore.Target, o target.Options, keepGoing bool, list string) error {
	bar := a.progress()
	done, err := restore.Run(ctx, restore.Request{
		Repository: r.Repository(), Manifest: p.Manifest, Targets: targets,
		Open: func(ctx context.Context, spec string, size int64, o target.Options) (target.Disk, error) {
			return image.Opener{}.Open(ctx, spec, size, o)
		},
		Options: o, KeepGoing: keepGoing, Progress: bar.show,
	})
	bar.end()
	if err != nil {
		return err
	}
	doc := restoreDoc{Point: p.ID, Machine: p.MachineName, Opens: p.Opens(), Disks: []restoredDoc{}, Warnings: []string{}}
	warn := func(status int, format string, args ...any) {
		a.note(status)
		doc.Warnings = append(doc.Warnings, fmt.Sprintf(format, args...))
	}
	for _, d := range done {
		doc.Disks = append(doc.Disks, restoredDoc{d.ID, d.Target, d.Size, d.Written, d.ContentRoot, len(d.Unread), damagedRanges(d), d.Seconds})
		for _, u := range d.Unread {
			warn(api.ExitDamaged, "disk %s: %d bytes at %d could not be read when the recovery point was made; they are zero now", d.ID, u.Length, u.Offset)
		}
	}
	for _, d := range doc.Disks {
		if len(d.Damaged) > 0 {
			warn(api.ExitDamaged, "disk %s is damaged in the repository: %d ranges of it are zeroes in %s", d.Disk, len(d.Damaged), d.Target)
		}
	}
	if list != "" {
		if err := writeDamage(list, doc); err != nil {
			return err
		}
	}
	for _, d := range p.Manifest.Disks {
		named := false
		for _, t := range targets {
			named = named || t.Disk == d.ID
		}
		if !named {
			doc.Warnings = append(doc.Warnings, fmt.Sprintf("disk %s (%s) of this recovery point was not asked for", d.ID, sizeText(d.Size)))
		}
	}
	for _, v := range p.Volumes {
		if v.Access == rescue.Locked {
			warn(api.ExitNotProven, "volume %s: %s", v.Name(), accessText(v))
		}
	}
	a.emit(doc, func(w io.Writer) {
		for _, d := range doc.Disks {
			verdict := "content root " + d.ContentRoot[:min(12, len(d.ContentRoot))] + "… verified"
			if len(d.Damaged) > 0 {
				verdict = "DAMAGED"
			}
			_, _ = fmt.Fprintf(w, "disk %s is back in %s: %s, %s written, %s\n",
				clean(d.Disk), clean(d.Target), sizeText(d.Size), sizeText(d.Written), verdict)
			for i, x := range d.Damaged {
				if i == mostDamaged {
					_, _ = fmt.Fprintf(w, "  and %d more; -o json and --damage-list have all of them\n", len(d.Damaged)-i)
					break
				}
				_, _ = fmt.Fprintf(w, "  zeroes at %d, %d bytes: %s: %s\n", x.Offset, x.Length, clean(x.Object), clean(x.Error))
			}
		}
		if len(p.Volumes) > 0 {
			_, _ = fmt.Fprintf(w, "next: lockstep-recover secrets %s --to NEW-FOLDER\n", p.ID[:min(12, len(p.ID))])
		}
	})
	for _, t := range doc.Warnings {
		a.warnf("warning: %s", t)
	}
	return nil
}

// mostDamaged bounds the list for people.
const mostDamaged = 20

func damagedRanges(d restore.Disk) (out []api.DamagedRange) {
	for _, x := range d.Damaged {
		out = append(out, api.DamagedRange{
			Range: api.Range{Offset: x.Range.Offset, Length: x.Range.Length}, Object: x.Object, Error: x.Err.Error(),
		})
	}
	return out
}

// damageList is what --damage-list makes, as lockstep does.
type damageList struct {
	Point string        `json:"point"`
	Disks []damagedDisk `json:"disks"`
}

type damagedDisk struct {
	Disk    string             `json:"disk"`
	Target  string             `json:"target"`
	Size    int64              `json:"size_bytes"`
	Damaged []api.DamagedRange `json:"damaged_ranges"`
}

// checkNew tells whether a new file could be made, and leaves none.
func checkNew(path string) error {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	return errors.Join(f.Close(), os.Remove(path))
}

// writeDamage makes a new file, for its owner alone.
func writeDamage(path string, doc restoreDoc) error {
	list := damageList{Point: doc.Point, Disks: []damagedDisk{}}
	for _, d := range doc.Disks {
		ranges := d.Damaged
		if ranges == nil {
			ranges = []api.DamagedRange{}
		}
		list.Disks = append(list.Disks, damagedDisk{d.Disk, d.Target, d.Size, ranges})
	}
	raw, err := json.MarshalIndent(list, "", "  ")
	if err != nil {
		return fmt.Errorf("restore: write the damage list: %w", err)
	}
	f, err := os.OpenFile(path, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if err != nil {
		return fmt.Errorf("restore: the disks are written, the damage list is not: %w", err)
	}
	_, err = f.Write(append(raw, '\n'))
	if err := errors.Join(err, f.Sync(), f.Close()); err != nil {
		return fmt.Errorf("restore: the disks are written, the damage list is not: %w", err)
	}
	return nil
}

type verifyDoc struct {
	Points   int         `json:"points"`
	Objects  int64       `json:"objects"`
	Read     int64       `json:"read_bytes"`
	Packages int         `json:"packages_opened"`
	Damage   []damageDoc `json:"damage"`
}

type damageDoc struct {
	Object string   `json:"object,omitempty"`
	Disk   string   `json:"disk,omitempty"`
	Offset *int64   `json:"offset,omitempty"`
	Length *int64   `json:"length,omitempty"`
	Points []string `json:"points,omitempty"`
	Error  string   `json:"error"`
}

func (a *app) verifyCommand() *cobra.Command {
	return a.command(verb{
		use:   "verify",
		short: "Read back everything and open every key package",
		long: `Names, checksums, seals, signatures, digests and content roots of the whole
repository are compared, and every key package for this identity is opened. So
this is also the yearly trial of a kit. Secrets are not shown.`,
		example: "lockstep-recover verify --repository /mnt/repository --identity kit.txt",
		run: func(ctx context.Context, _ []string) error {
			return a.with(ctx, func(r *rescue.Rescue) error { return a.verify(ctx, r) })
		},
	})
}

func (a *app) verify(ctx context.Context, r *rescue.Rescue) error {
	bar := a.progress()
	res, err := verify.Run(ctx, verify.Request{Repository: r.Repository(), Progress: bar.show})
	bar.end()
	if err != nil && !errors.Is(err, verify.ErrTooMuch) {
		return err
	}
	doc := verifyDoc{Points: res.Points, Objects: res.Objects, Read: res.Read, Damage: []damageDoc{}}
	for _, d := range res.Damage {
		dd := damageDoc{Object: d.Object, Disk: d.Disk, Points: d.Points, Error: d.Why()}
		if d.Range != nil {
			dd.Offset, dd.Length = &d.Range.Offset, &d.Range.Length
		}
		doc.Damage = append(doc.Damage, dd)
	}
	ms, _, merr := r.Machines(ctx)
	if merr != nil {
		return merr
	}
	for _, m := range ms {
		for _, e := range m.Problems {
			doc.add(e, "")
		}
		for _, p := range m.Points {
			for _, e := range p.Problems {
				doc.add(e, p.ID)
			}
			opened, problems := r.OpenPackages(p)
			doc.Packages += opened
			for _, e := range problems {
				doc.add(e, p.ID)
			}
		}
	}
	if len(doc.Damage) > 0 {
		a.note(api.ExitDamaged)
	}
	a.emit(doc, func(w io.Writer) {
		_, _ = fmt.Fprintf(w, "%d recovery points, %d objects, %s of disks compared, %d key packages opened\n",
			doc.Points, doc.Objects, sizeText(doc.Read), doc.Packages)
		if len(doc.Damage) == 0 {
			_, _ = fmt.Fprintln(w, "no damage found")
		}
		for _, d := range doc.Damage {
			text := d.Error
			if len(d.Points) > 0 {
				text += " (recovery points " + strings.Join(d.Points, ", ") + ")"
			}
			_, _ = fmt.Fprintf(w, "damaged: %s\n", clean(text))
		}
	})
	return err
}

// add notes what verify.Run does not look at: signatures of statements. What
// is damaged as an object was found already.
func (d *verifyDoc) add(err error, point string) {
	var de *repository.DamageError
	if errors.As(err, &de) {
		for _, known := range d.Damage {
			if known.Object == de.Object {
				return
			}
		}
	}
	dd := damageDoc{Error: err.Error()}
	if de != nil {
		dd.Object = de.Object
	}
	if point != "" {
		dd.Points = []string{point}
	}
	d.Damage = append(d.Damage, dd)
}
