// Package drill rehearses a restore: it opens a recovery point from its
// repository, unlocks every volume with the secrets in custody, looks at what
// is there, has the file systems checked, reads a sample of files to their
// ends, boots the machine if asked, and reports what came of it.
//
// Nothing is restored and nothing is written but to memory. Its invariant: what
// was asked for and not done is in the report. docs/spec/drill.md is the
// report's format.
package drill

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"time"

	"github.com/lockstep-backup/lockstep/blockstack"
	"github.com/lockstep-backup/lockstep/browse"
	"github.com/lockstep-backup/lockstep/custody"
	"github.com/lockstep-backup/lockstep/diskcrypt"
	"github.com/lockstep-backup/lockstep/export"
	"github.com/lockstep-backup/lockstep/keymanager"
	"github.com/lockstep-backup/lockstep/repository"
	"github.com/lockstep-backup/lockstep/unlock"
)

// ErrNoTool says that a program that a step needs is not on this host.
var ErrNoTool = errors.New("program is not installed")

// Finding is what came of a check or a boot.
type Finding struct {
	Outcome string // custody.DrillPassed, …
	Detail  string // nothing of the guest's names or contents
	Tools   []custody.DrillTool
}

// Checker has a file system checked by its own tool.
type Checker interface {
	// Check runs the tool for a class of file system (package blockstack) on a
	// scratch disk. ErrNoTool where there is none, here or at all.
	Check(ctx context.Context, class string, on *Scratch) (Finding, error)
}

// BootDisk is a disk of the machine to be booted.
type BootDisk struct {
	ID string
	*Scratch
}

// Booter boots a machine from its disks.
type Booter interface {
	// Boot returns when the machine is up, or is taken not to come up any more.
	Boot(ctx context.Context, disks []BootDisk) (Finding, error)
}

// Request asks for a drill.
type Request struct {
	Point      *export.Point
	Repository *repository.Repository
	Started    time.Time // before the recovery point was opened
	Keys       unlock.Keys
	Unlock     unlock.Options
	// NotNeeded gives the reason why a volume is declared as not needed, "" if it is not.
	NotNeeded func(disk, volume string) string
	// Secret gives the secret version that a key's name stands for, nil if none.
	Secret func(key string) *keymanager.Ref

	Sample  Sample
	Check   Checker // nil: not asked for
	Boot    Booter  // nil: not asked for
	Scratch int64   // bytes of memory that one scratch disk may take; 0 = 256 MiB

	Reason, Actor, Host, Software string

	Now func() time.Time
	// Tell says what is done now, for people: it may name files of the guest.
	Tell func(format string, args ...any)
	Log  *slog.Logger
}

// Run does it. The error says that the drill could not be held; what it found
// is in the report, failures too.
func Run(ctx context.Context, req Request) (custody.Drill, error) {
	if req.Now == nil {
		req.Now = time.Now
	}
	if req.Tell == nil {
		req.Tell = func(string, ...any) {}
	}
	if req.Scratch == 0 {
		req.Scratch = 256 << 20
	}
	m := req.Point.Manifest
	r := &run{Request: req, report: custody.Drill{
		Format: 1, Repository: m.Repository, Machine: m.Machine, MachineName: m.MachineName, Point: m.Point, PointTime: m.Time,
		Reason: req.Reason, Actor: req.Actor, Host: req.Host, Software: req.Software, Started: req.Started, Tools: []custody.DrillTool{},
	}}
	for _, d := range m.Disks {
		r.report.Disks = append(r.report.Disks, custody.DrillDisk{ID: d.ID, SizeBytes: d.Size, ContentRoot: d.ContentRoot})
	}
	if err := r.all(ctx); err != nil {
		return custody.Drill{}, fmt.Errorf("drill recovery point %s: %w", m.Point, err)
	}
	r.report.Finished = req.Now()
	r.report.Timings.Total = r.since()
	r.report.Outcome = r.report.Conclude()
	return r.report, nil
}

type run struct {
	Request
	report custody.Drill
	beyond int // steps that the report has no room for
	failed bool
}

// since is the seconds since the start.
func (r *run) since() float64 { return max(r.Now().Sub(r.Started).Seconds(), 0) }

// step notes a step that began at a time.
func (r *run) step(began time.Time, s custody.DrillStep) {
	s.Seconds = max(r.Now().Sub(began).Seconds(), 0)
	s.Detail = plain(s.Detail)
	r.failed = r.failed || s.Outcome == custody.DrillFailed
	// One place is kept for the count of the rest, one for a failure among them.
	if len(r.report.Steps) >= custody.MaxDrillSteps-2 {
		r.beyond++
		return
	}
	r.report.Steps = append(r.report.Steps, s)
	where := strings.Trim(s.Disk+" "+s.Object, " ")
	r.Tell("%s %s: %s %s", s.Kind, where, s.Outcome, s.Detail)
}

// plain makes a text fit for a report: one line, not too long.
func plain(s string) string {
	s = strings.Map(func(c rune) rune {
		if c < ' ' || c == 0x7f || c >= 0x80 && c < 0xa0 {
			return ' '
		}
		return c
	}, strings.ToValidUTF8(s, "?"))
	if len(s) > 500 {
		s = strings.ToValidUTF8(s[:500], "") + "…"
	}
	return s
}

func (r *run) all(ctx context.Context) error {
	r.step(r.Started, custody.DrillStep{Kind: custody.DrillOpen, Outcome: custody.DrillPassed, Detail: count(len(r.report.Disks), "disk")})
	r.report.Timings.Open = r.since()
	tree, err := r.unlock(ctx)
	if err != nil {
		return err
	}
	r.layout(tree)
	if err := r.fileSystems(ctx, tree); err != nil {
		return err
	}
	if r.Boot != nil {
		if err := r.boot(ctx); err != nil {
			return err
		}
	}
	if r.beyond > 0 {
		outcome := custody.DrillWarned
		if r.failed {
			outcome = custody.DrillFailed
		}
		r.report.Steps = append(r.report.Steps, custody.DrillStep{Kind: custody.DrillLayout, Outcome: outcome, Detail: count(r.beyond, "further step")})
	}
	return ctx.Err()
}

func count(n int, what string) string {
	if n == 1 {
		return "1 " + what
	}
	return fmt.Sprintf("%d %ss", n, what)
}

// unlock opens every volume.
func (r *run) unlock(ctx context.Context) (*unlock.Tree, error) {
	began := r.Now()
	r.Tell("unlocking")
	tree, err := r.Point.Unlock(ctx, r.Repository, r.Keys, r.Unlock)
	if err != nil {
		return nil, err
	}
	for _, d := range tree.Devices {
		if d.Protector == "" && d.Key == "" {
			continue
		}
		s := custody.DrillStep{Kind: custody.DrillUnlock, Disk: d.Disk, Object: d.Name, Outcome: custody.DrillPassed, Detail: d.Kind + ", " + d.Protector}
		if d.Header != "" {
			s.Outcome, s.Detail = custody.DrillWarned, s.Detail+", by "+d.Header
		}
		if r.Secret != nil {
			s.Secret = r.Secret(d.Key)
		}
		r.step(began, s)
		began = r.Now()
	}
	for _, l := range tree.Locked {
		s := custody.DrillStep{Kind: custody.DrillUnlock, Disk: l.Disk, Object: l.Name, Detail: l.Volume.Type + ": " + l.Why.Error()}
		reason := ""
		if r.NotNeeded != nil {
			reason = r.NotNeeded(l.Disk, l.Name)
		}
		switch {
		case reason != "":
			s.Outcome, s.Detail = custody.DrillWarned, l.Volume.Type+", declared as not needed: "+reason
		case errors.Is(l.Why, unlock.ErrNoKey), errors.Is(l.Why, diskcrypt.ErrUnsupported):
			s.Outcome = custody.DrillSkipped
		default:
			s.Outcome = custody.DrillFailed
		}
		r.step(began, s)
		began = r.Now()
	}
	r.report.Timings.Unlock = r.since()
	return tree, nil
}

// layout says what lies in what.
func (r *run) layout(tree *unlock.Tree) {
	children := map[int]int{}
	logical := map[string]int{} // by group: logical volumes
	for _, d := range tree.Devices {
		for _, p := range d.Parents {
			children[p]++
		}
		if d.Kind == unlock.KindLogical {
			group, _, _ := strings.Cut(strings.ReplaceAll(d.Name, "--", "\x00"), "-")
			logical[strings.ReplaceAll(group, "\x00", "-")]++
		}
	}
	for i, d := range tree.Devices {
		if n := children[i]; d.Class == blockstack.GPT || d.Class == blockstack.MBR || d.Class == diskcrypt.ClassTable {
			r.step(r.Now(), custody.DrillStep{
				Kind: custody.DrillLayout, Disk: d.Disk, Object: d.Name, Outcome: custody.DrillPassed,
				Detail: "partition table, " + count(n, "partition") + " looked into",
			})
		}
	}
	groups := make([]string, 0, len(logical))
	for g := range logical {
		groups = append(groups, g)
	}
	slices.Sort(groups)
	for _, g := range groups {
		r.step(r.Now(), custody.DrillStep{Kind: custody.DrillLayout, Object: g, Outcome: custody.DrillPassed, Detail: "LVM, " + count(logical[g], "logical volume")})
	}
	for _, w := range tree.Warnings {
		r.step(r.Now(), custody.DrillStep{Kind: custody.DrillLayout, Outcome: custody.DrillWarned, Detail: w})
	}
}

// leaves are the devices in which no other lies, and that are not locked.
func leaves(tree *unlock.Tree) []unlock.Device {
	inner := map[int]bool{}
	for _, d := range tree.Devices {
		for _, p := range d.Parents {
			inner[p] = true
		}
	}
	var out []unlock.Device
	for i, d := range tree.Devices {
		locked := slices.ContainsFunc(tree.Locked, func(l unlock.Locked) bool { return l.Disk == d.Disk && l.Name == d.Name })
		if !inner[i] && !locked {
			out = append(out, d)
		}
	}
	slices.SortStableFunc(out, func(a, b unlock.Device) int { return cmp.Compare(a.Disk, b.Disk) })
	return out
}

// fileSystems looks at every file system: first all of them, so that it is
// known how soon something could be read, then what takes its time.
func (r *run) fileSystems(ctx context.Context, tree *unlock.Tree) error {
	type found struct {
		unlock.Device
		fs *browse.FS
	}
	var all []found
	for _, d := range leaves(tree) {
		if err := ctx.Err(); err != nil {
			return err
		}
		began := r.Now()
		s := custody.DrillStep{Kind: custody.DrillFileSystem, Disk: d.Disk, Object: d.Name, Outcome: custody.DrillPassed, Detail: d.Class}
		fs, err := browse.Open(d.R, d.Size, d.Class)
		switch {
		case err == nil:
			if f := fs.Facts(); f.Dirty {
				s.Detail += ", was in use"
				if f.Replayed {
					s.Detail += ", journal applied in memory"
				}
			}
			names := 0
			for _, lerr := range fs.ReadDir("/") {
				if lerr != nil {
					s.Outcome, s.Detail = custody.DrillFailed, d.Class+": the root folder cannot be read to its end"
					r.Tell("%v", lerr)
					break
				}
				names++
			}
			if s.Outcome == custody.DrillPassed {
				s.Detail += ", " + count(names, "name") + " in the root folder"
			}
			all = append(all, found{d, fs})
		case errors.As(err, new(*browse.UnsupportedError)) && browse.Readable(d.Class):
			s.Outcome, s.Detail = custody.DrillWarned, d.Class+": "+err.Error()
		case !browse.Readable(d.Class):
			if d.Class == "" || d.Class == blockstack.Empty {
				continue // nothing is claimed of it
			}
			s.Outcome, s.Detail = custody.DrillSkipped, d.Class+": no files are read in it"
			if d.Class == blockstack.Swap {
				s.Outcome, s.Detail = custody.DrillPassed, "swap: there is nothing to be read"
			}
		default:
			s.Outcome, s.Detail = custody.DrillFailed, err.Error()
		}
		r.step(began, s)
	}
	if len(all) > 0 {
		r.report.Timings.Readable = r.since()
	}
	for _, f := range all {
		if r.Check != nil {
			if err := r.check(ctx, f.Device); err != nil {
				return err
			}
		}
		if err := r.sample(ctx, f.Device, f.fs); err != nil {
			return err
		}
	}
	return nil
}

// check has a file system checked over a scratch disk.
func (r *run) check(ctx context.Context, d unlock.Device) error {
	began := r.Now()
	r.Tell("checking %s %s (%s)", d.Disk, d.Name, d.Class)
	scratch := NewScratch(d.R, d.Size, r.Scratch)
	defer scratch.Close()
	f, err := r.Request.Check.Check(ctx, d.Class, scratch)
	if ctx.Err() != nil {
		return ctx.Err()
	}
	s := custody.DrillStep{Kind: custody.DrillCheck, Disk: d.Disk, Object: d.Name, Outcome: f.Outcome, Detail: f.Detail}
	switch {
	case errors.Is(err, ErrNoTool):
		s.Outcome, s.Detail = custody.DrillSkipped, err.Error()
	case err != nil:
		s.Outcome, s.Detail = custody.DrillFailed, err.Error()
	}
	r.tools(f.Tools)
	r.step(began, s)
	return nil
}

func (r *run) tools(tools []custody.DrillTool) {
	for _, t := range tools {
		t.Name, t.Version = plain(t.Name), plain(t.Version)
		if !slices.Contains(r.report.Tools, t) {
			r.report.Tools = append(r.report.Tools, t)
		}
	}
}

// boot boots the machine over scratch disks.
func (r *run) boot(ctx context.Context) error {
	began := r.Now()
	r.Tell("booting")
	var disks []BootDisk
	for _, d := range r.Point.Disks {
		s := NewScratch(d, d.Size(), r.Scratch)
		defer s.Close()
		disks = append(disks, BootDisk{d.ID, s})
	}
	f, err := r.Request.Boot.Boot(ctx, disks)
	if ctx.Err() != nil {
		return ctx.Err()
	}
	s := custody.DrillStep{Kind: custody.DrillBoot, Outcome: f.Outcome, Detail: f.Detail}
	switch {
	case errors.Is(err, ErrNoTool):
		s.Outcome, s.Detail = custody.DrillSkipped, err.Error()
	case err != nil:
		s.Outcome, s.Detail = custody.DrillFailed, err.Error()
	}
	r.tools(f.Tools)
	r.step(began, s)
	if s.Outcome == custody.DrillPassed {
		r.report.Timings.Boot = r.since()
	}
	return nil
}
