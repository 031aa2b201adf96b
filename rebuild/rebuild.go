// Package rebuild makes a lost catalog anew from repositories: machines,
// recovery points, proofs, key packages, declarations, marks, and the holds that
// follow from the proofs. It believes only what is signed by keys that the
// repository's trust log names. It never writes to a repository, but through
// proving, where that is asked for.
package rebuild

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"time"

	"github.com/lockstep-backup/lockstep/backup"
	"github.com/lockstep-backup/lockstep/catalog"
	"github.com/lockstep-backup/lockstep/custody"
	"github.com/lockstep-backup/lockstep/keymanager"
	"github.com/lockstep-backup/lockstep/prove"
	"github.com/lockstep-backup/lockstep/repository"
)

// Source is a repository to rebuild from.
type Source struct {
	Repo *repository.Repository
	URL  string
}

// Deps is what a rebuild works with.
type Deps struct {
	Catalog *catalog.Catalog
	// Manager may be nil; holds are compared with it and placed where missing.
	Manager      keymanager.Manager
	Installation string
	// Prove, if not nil, tries the secrets again on recovery points without a
	// proof: what opens nothing is recorded in the catalog alone, and without it
	// an unrecoverable recovery point would come back as unproven.
	Prove func(r *repository.Repository) prove.Deps

	Now func() time.Time
	Log *slog.Logger
	// Progress is told which machine is read.
	Progress func(done, total int, machine string)
}

// Result says what the catalog has again.
type Result struct {
	Repositories []string
	Machines     int
	Points       int
	Proofs       int
	Holds        int // that follow from the proofs
	HoldsPlaced  int // that the key manager lacked
	Policies     int // the default among them
	NotRebuilt   []string
	Problems     []string
}

// NotRebuilt is what no repository holds.
var NotRebuilt = []string{
	"users and roles: they are backed up with the data directory",
	"a default policy that no machine followed",
	"the audit log: it lies in the data directory and is backed up with it",
	"which secrets were tried in vain: 'status' shows them as untried",
	"jobs and their history",
	"machines that were enrolled and never backed up",
	"reasons and dates of deleted recovery points",
	"when a machine was enrolled: it counts from its record in the repository",
}

// contents is all that is read before the catalog is touched.
type contents struct {
	machines []catalog.Machine
	points   []catalog.Point
	proofs   []catalog.Proof
	attempts []catalog.Attempt
	packages []catalog.Package
	headers  []catalog.HeaderPackage
	declared []catalog.Declaration
	marks    []catalog.Mark
	policies map[string]prove.Policies // by machine
	holds    []prove.RefHold
	from     map[string]string // recovery point to the id of the repository that it was read from
}

// Run reads the repositories and replaces what the catalog says of machines and
// recovery points. A repository that is registered and not among them counts as
// unread from then on: nothing is destroyed until it was read.
func Run(ctx context.Context, d Deps, sources ...Source) (Result, error) {
	if d.Now == nil {
		d.Now = time.Now
	}
	if d.Log == nil {
		d.Log = slog.New(slog.DiscardHandler)
	}
	res := Result{NotRebuilt: slices.Clone(NotRebuilt)}
	all := contents{from: map[string]string{}, policies: map[string]prove.Policies{}}
	for _, s := range sources {
		res.Repositories = append(res.Repositories, s.Repo.ID())
		if err := read(ctx, d, s.Repo, &all, &res); err != nil {
			return res, fmt.Errorf("rebuild catalog: read repository %s: %w", s.Repo.ID(), err)
		}
	}
	now := d.Now().UTC()
	err := d.Catalog.Maintenance.Rebuild(ctx, func(c *catalog.Catalog) error {
		return fill(ctx, c, &all, sources, now, &res)
	})
	if err != nil {
		return res, fmt.Errorf("rebuild catalog: %w", err)
	}
	res.Machines, res.Points, res.Proofs, res.Holds = len(all.machines), len(all.points), len(all.proofs), len(all.holds)
	if err := repairHolds(ctx, d, &all, sources, &res); err != nil {
		return res, fmt.Errorf("rebuild catalog: %w", err)
	}
	return res, tryAgain(ctx, d, &all, sources, &res)
}

// read takes what a repository says. What is damaged is a problem, not an end:
// the rest must come back.
func read(ctx context.Context, d Deps, repo *repository.Repository, all *contents, res *Result) error {
	machines, err := repo.Machines(ctx)
	if err != nil {
		if ctx.Err() != nil || len(machines) == 0 {
			return err
		}
		res.Problems = append(res.Problems, err.Error())
	}
	for i, m := range machines {
		if d.Progress != nil {
			d.Progress(i, len(machines), m.Name)
		}
		points, err := repo.Points(ctx, m.ID)
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if err != nil {
			res.Problems = append(res.Problems, fmt.Sprintf("machine %s: %v", m.Name, err))
		}
		machine := catalog.Machine{ID: m.ID, Name: m.Name, Created: m.Created}
		for _, p := range points {
			disks, err := readPoint(ctx, d, repo, p, all, res)
			if ctx.Err() != nil {
				return ctx.Err()
			}
			if err != nil {
				res.Problems = append(res.Problems, fmt.Sprintf("recovery point %s of %s: %v", p.ID, m.Name, err))
				continue
			}
			if disks != nil {
				machine.Disks = disks // the newest recovery point's, in the log's order
			}
		}
		c, err := prove.ReadMachine(ctx, repo, m.ID)
		if err != nil {
			return err
		}
		all.declared = append(all.declared, c.Declarations...)
		all.headers = append(all.headers, c.Headers...)
		all.marks = append(all.marks, c.Marks...)
		stated := all.policies[m.ID]
		stated.Add(c.Policies)
		all.policies[m.ID] = stated
		res.Problems = append(res.Problems, c.Problems...)
		addMachine(all, machine)
	}
	return nil
}

// addMachine adds a machine once, also where it goes to several repositories.
func addMachine(all *contents, m catalog.Machine) {
	i := slices.IndexFunc(all.machines, func(o catalog.Machine) bool { return o.ID == m.ID })
	switch {
	case i < 0:
		all.machines = append(all.machines, m)
	case len(all.machines[i].Disks) == 0:
		all.machines[i].Disks = m.Disks
	}
}

func readPoint(ctx context.Context, d Deps, repo *repository.Repository, p repository.Point, all *contents, res *Result) ([]catalog.MachineDisk, error) {
	if all.from[p.ID] != "" {
		return nil, nil // a copy
	}
	mf, err := repo.Manifest(ctx, p)
	if err != nil {
		return nil, err
	}
	cp, err := backup.CatalogPoint(p, mf)
	if err != nil {
		return nil, err
	}
	c, err := prove.ReadPoint(ctx, repo, mf)
	if err != nil {
		return nil, err
	}
	all.points, all.from[p.ID] = append(all.points, cp), repo.ID()
	all.packages = append(all.packages, c.Packages...)
	all.holds = append(all.holds, prove.HoldsOf(c.Proofs, d.Installation)...)
	res.Problems = append(res.Problems, c.Problems...)
	for _, x := range c.Proofs {
		all.proofs = append(all.proofs, x.Record)
		addAttempt(all, catalog.Attempt{
			HeaderDigest: x.Proof.HeaderDigest, Secret: x.Record.Secret, Version: x.Record.Version,
			Opened: x.Record.Protectors, Time: x.Record.Time,
		})
	}
	var disks []catalog.MachineDisk
	if len(mf.Definition) > 0 {
		if err := json.Unmarshal(mf.Definition, &disks); err != nil {
			d.Log.Warn("read definition", "point", p.ID, "error", err)
			res.Problems = append(res.Problems, fmt.Sprintf("recovery point %s: the machine's definition cannot be read", p.ID))
		}
	}
	return disks, nil
}

// addAttempt joins what several proofs say of one header and version.
func addAttempt(all *contents, a catalog.Attempt) {
	for i, old := range all.attempts {
		if old.HeaderDigest != a.HeaderDigest || old.Secret != a.Secret || old.Version != a.Version {
			continue
		}
		for _, id := range a.Opened {
			if !slices.Contains(old.Opened, id) {
				all.attempts[i].Opened = append(slices.Clone(all.attempts[i].Opened), id)
			}
		}
		return
	}
	all.attempts = append(all.attempts, a)
}

func fill(ctx context.Context, c *catalog.Catalog, all *contents, sources []Source, now time.Time, res *Result) error {
	for _, m := range all.machines {
		err := c.Machines.Put(ctx, m)
		if errors.Is(err, catalog.ErrExists) {
			// Two of one name: one of them was removed before, and only the lost
			// catalog knew which. Both stay reachable.
			old := m.Name
			m.Name = fmt.Sprintf("%s-%.8s", m.Name, m.ID)
			res.Problems = append(res.Problems, fmt.Sprintf("two machines are called %s; %s is called %s now", old, m.ID, m.Name))
			err = c.Machines.Put(ctx, m)
		}
		if err != nil {
			return err
		}
	}
	for _, p := range all.points {
		if err := c.Points.Record(ctx, p); err != nil {
			return err
		}
	}
	for _, p := range all.proofs {
		if err := c.Proofs.Put(ctx, p); err != nil {
			return err
		}
	}
	for _, a := range all.attempts {
		if err := c.Proofs.PutAttempt(ctx, a); err != nil {
			return err
		}
	}
	for _, p := range all.packages {
		if err := c.Packages.Put(ctx, p); err != nil {
			return err
		}
	}
	for _, h := range all.headers {
		if err := c.Packages.PutHeader(ctx, h); err != nil {
			return err
		}
	}
	for _, x := range all.declared {
		if err := c.Declarations.Put(ctx, x); err != nil {
			return err
		}
	}
	for _, x := range all.marks {
		if err := c.Marks.Put(ctx, x); err != nil {
			return err
		}
	}
	for _, s := range sources {
		r := catalog.Repository{ID: s.Repo.ID(), URL: s.URL, TrustRoot: s.Repo.Trust().Root, LastReadAt: now}
		if err := c.Repositories.Put(ctx, r); err != nil {
			return err
		}
	}
	if err := fillPolicies(ctx, c, all, now, res); err != nil {
		return err
	}
	return c.Meta.Set(ctx, prove.MetaRebuilt, now.Format(time.RFC3339Nano))
}

// repairHolds places holds that the key manager lacks, and names those for
// which it has no recovery point. It releases none: a repository of which a part
// is damaged lists less than it has.
func repairHolds(ctx context.Context, d Deps, all *contents, sources []Source, res *Result) error {
	if d.Manager == nil {
		res.NotRebuilt = append(res.NotRebuilt, "holds in the key manager, which does not answer: prove again when it does")
		return nil
	}
	infos, err := d.Manager.List(ctx)
	if ctx.Err() != nil {
		return ctx.Err()
	}
	if err != nil && len(infos) == 0 {
		d.Log.Warn("list secrets", "error", err)
		res.NotRebuilt = append(res.NotRebuilt, "holds in the key manager, which does not answer: prove again when it does")
		return nil
	}
	have := map[keymanager.Ref]map[string]bool{}
	listed := map[string]bool{}
	for _, p := range all.points {
		listed[p.Repository+"/"+p.ID] = true
	}
	for _, s := range infos {
		for _, v := range s.Versions {
			have[v.Ref] = map[string]bool{}
			for _, h := range v.Holds {
				have[v.Ref][h.Key()] = true
				ours := h.Installer == d.Installation && slices.ContainsFunc(sources, func(s Source) bool { return s.Repo.ID() == h.Repository })
				if ours && !listed[h.Repository+"/"+h.Point] {
					res.Problems = append(res.Problems, fmt.Sprintf("secret %s is held for recovery point %s, which the repository does not list", v.Ref, h.Point))
				}
			}
		}
	}
	for _, h := range all.holds {
		keys, known := have[h.Secret]
		switch {
		case !known:
			res.Problems = append(res.Problems, fmt.Sprintf("secret %s opens recovery point %s and is not in the key manager", h.Secret, h.Hold.Point))
		case !keys[h.Hold.Key()]:
			if err := d.Manager.Hold(ctx, h.Secret, h.Hold); err != nil {
				if ctx.Err() != nil {
					return ctx.Err()
				}
				res.Problems = append(res.Problems, fmt.Sprintf("secret %s could not be held for recovery point %s", h.Secret, h.Hold.Point))
				continue
			}
			keys[h.Hold.Key()] = true
			res.HoldsPlaced++
		}
	}
	return nil
}

// tryAgain proves the recovery points that have volumes without a proof.
func tryAgain(ctx context.Context, d Deps, all *contents, sources []Source, res *Result) error {
	const lost = "which secrets were tried in vain: prove again, until then such recovery points are unproven instead of unrecoverable"
	if d.Prove == nil {
		res.NotRebuilt = append(res.NotRebuilt, lost)
		return nil
	}
	proven := map[volumeOfPoint]bool{}
	for _, x := range all.proofs {
		proven[volumeOfPoint{x.Point, x.Disk, x.Volume}] = true
	}
	for _, s := range sources {
		var ids []string
		for _, p := range all.points {
			if all.from[p.ID] == s.Repo.ID() && unproven(p, proven, all) {
				ids = append(ids, p.ID)
			}
		}
		if len(ids) == 0 {
			continue
		}
		results, err := prove.Points(ctx, d.Prove(s.Repo), ids, nil)
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if err != nil {
			res.Problems = append(res.Problems, err.Error())
			res.NotRebuilt = append(res.NotRebuilt, lost)
		}
		for _, r := range results {
			res.Problems = append(res.Problems, r.Problems...)
		}
	}
	return nil
}

type volumeOfPoint struct{ point, disk, volume string }

func unproven(p catalog.Point, proven map[volumeOfPoint]bool, all *contents) bool {
	for _, disk := range p.Disks {
		for _, v := range disk.Volumes {
			if !proven[volumeOfPoint{p.ID, disk.Disk, v.Volume}] && !declared(p.Machine, custody.VolumeKey{Disk: disk.Disk, Volume: v.Volume}, all) {
				return true
			}
		}
	}
	return false
}

func declared(machine string, k custody.VolumeKey, all *contents) bool {
	var own []custody.Declaration
	for _, x := range all.declared {
		if x.Machine == machine {
			own = append(own, custody.Declaration{Disk: x.Disk, Volume: x.Volume, NotNeeded: !x.Withdrawn, Time: x.Time})
		}
	}
	_, ok := custody.InForce(own)[k]
	return ok
}
