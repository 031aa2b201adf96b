package repositories

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/lockstep-backup/lockstep/api"
	"github.com/lockstep-backup/lockstep/audit"
	"github.com/lockstep-backup/lockstep/backup"
	"github.com/lockstep-backup/lockstep/catalog"
	"github.com/lockstep-backup/lockstep/job"
	"github.com/lockstep-backup/lockstep/limit"
	"github.com/lockstep-backup/lockstep/repository"
	"github.com/lockstep-backup/lockstep/repository/copies"
	"github.com/lockstep-backup/lockstep/server/internal/frame"
	"github.com/lockstep-backup/lockstep/server/internal/show"
	"github.com/lockstep-backup/lockstep/verify"
)

// due is one machine that goes to one repository.
type due struct {
	machine catalog.Machine
	to      frame.Place
}

func (s routes) startCopy(ctx context.Context, req *frame.In[api.CopyRequest]) (*frame.Out[api.Job], error) {
	r := req.Body
	e := audit.Event{Action: "repository.copy", Object: frame.Clip(r.To)}
	if r.To == "" {
		e.Object = "as the policies say"
	}
	c, err := s.Catalog(ctx)
	if err != nil {
		return nil, s.Refuse(ctx, e, err)
	}
	from := s.Repositories.List()[0]
	if r.From != "" {
		if from, err = s.Place(r.From); err != nil {
			return nil, s.Refuse(ctx, e, err)
		}
	}
	var machines []catalog.Machine
	if len(r.Machines) == 0 {
		machines, err = c.Machines.List(ctx, true)
	}
	for _, name := range r.Machines {
		var m catalog.Machine
		if m, err = s.Machine(ctx, c, name); err != nil {
			break
		}
		machines = append(machines, m)
	}
	var todo []due
	if err == nil {
		todo, err = s.due(ctx, c, machines, from, r.To)
	}
	if err == nil && len(todo) == 0 && r.To == "" {
		p := frame.Refused("copy: no policy says where copies go")
		p.Hint = "--to NAME says where; 'lockstep policy set --copy-to' has it done by 'lockstep repository copy' alone"
		err = p
	}
	if err != nil {
		return nil, s.Refuse(ctx, e, err)
	}
	var keys []string
	for _, d := range todo {
		if k := frame.CopyKey(d.to, d.machine); !slices.Contains(keys, k) {
			keys = append(keys, k)
		}
	}
	return s.Start(ctx, "copy", e, func(ctx context.Context, p *job.Reporter) (frame.Result, error) {
		return s.copy(ctx, c, from, todo, r, p)
	}, keys...)
}

// due says which machines go where.
func (s routes) due(ctx context.Context, c *catalog.Catalog, machines []catalog.Machine, from frame.Place, to string) ([]due, error) {
	var todo []due
	add := func(m catalog.Machine, place string) error {
		p, err := s.Place(place)
		switch {
		case err != nil:
			return err
		case p.ID == from.ID && to != "":
			return frame.Usage("copy: %s is where it comes from", p.Name)
		case p.ID != from.ID:
			todo = append(todo, due{m, p})
		}
		return nil
	}
	for _, m := range machines {
		if to != "" {
			if err := add(m, to); err != nil {
				return nil, err
			}
			continue
		}
		p, _, err := frame.PolicyOf(ctx, c, m.ID)
		if err != nil {
			return nil, fmt.Errorf("policy of machine %s: %w", m.Name, err)
		}
		for _, place := range p.CopiesTo {
			if err := add(m, place); err != nil {
				return nil, fmt.Errorf("policy of machine %s: %w", m.Name, err)
			}
		}
	}
	return todo, nil
}

// copy copies one machine after the other; what fails for one keeps no other
// from being copied.
func (s routes) copy(ctx context.Context, c *catalog.Catalog, from frame.Place, todo []due, r api.CopyRequest, p *job.Reporter) (frame.Result, error) {
	res := &api.CopyResult{Copies: []api.MachineCopy{}}
	out := frame.Result{JobResult: api.JobResult{Copy: res}}
	src, err := s.Repositories.Open(ctx, from.Name)
	if err != nil {
		return out, err
	}
	var failed []error
	bad := map[string]bool{}
	defer func() { s.noteCopies(context.WithoutCancel(ctx), c, todo, bad) }()
	for _, d := range todo {
		v, err := s.copyMachine(s.Limited(ctx, r.Rates, s.PolicyLimits(ctx, c, d.machine.ID)), c, src, from, d, r, p)
		if errors.Is(err, repository.ErrNotFound) && v == nil {
			continue // it was never backed up there
		}
		if v != nil {
			res.Copies = append(res.Copies, *v)
			for _, problem := range v.Problems {
				p.Warning("%s to %s: %s", d.machine.Name, d.to.Name, show.OneLine(problem))
			}
			for _, f := range v.Failed {
				p.Warning("%s to %s: recovery point %s: %s", d.machine.Name, d.to.Name, f.Point, f.Error)
			}
		}
		if ctx.Err() != nil {
			bad[d.to.ID] = true
			return out, context.Cause(ctx)
		}
		if err != nil {
			failed, bad[d.to.ID] = append(failed, fmt.Errorf("%s to %s: %w", d.machine.Name, d.to.Name, err)), true
		}
	}
	return out, errors.Join(failed...)
}

// noteCopies records what the destinations have now.
func (s routes) noteCopies(ctx context.Context, c *catalog.Catalog, todo []due, bad map[string]bool) {
	for _, d := range todo {
		points, err := s.NoteListed(ctx, c, d.to, d.machine.ID)
		var v frame.Copied
		if err == nil {
			v, err = s.Copied(ctx, c, d.to.ID)
		}
		if err == nil && len(points) > 0 {
			v.Newest[d.machine.ID] = points[len(points)-1]
			if !bad[d.to.ID] {
				v.Time = s.Now().UTC()
			}
			err = s.SetCopied(ctx, c, d.to.ID, v)
		}
		if err != nil && !errors.Is(err, repository.ErrNotFound) {
			s.Log.Warn("what was copied is not recorded", "repository", d.to.Name, "machine", d.machine.Name, "error", err)
		}
	}
	for _, d := range todo {
		s.noteThere(ctx, c, d.to, []catalog.Machine{d.machine})
	}
}

func (s routes) copyMachine(ctx context.Context, c *catalog.Catalog, src *repository.Repository, from frame.Place, d due, r api.CopyRequest, p *job.Reporter) (*api.MachineCopy, error) {
	points, err := src.Points(ctx, d.machine.ID)
	if err != nil && !errors.Is(err, repository.ErrDamaged) {
		return nil, err
	}
	o := copies.Options{Newest: r.Newest, Verify: r.Verify, Lease: s.Leases("a copy to " + d.to.Name), Progress: func(_, _ int, n int64) {
		p.Progress(job.Progress{Phase: "copy", Done: n, Unit: "bytes", Note: d.machine.Name + " to " + d.to.Name})
	}}
	if len(r.Points) > 0 {
		for _, x := range points {
			if slices.ContainsFunc(r.Points, func(id string) bool { return strings.HasPrefix(x.ID, id) }) {
				o.Points = append(o.Points, x.ID)
			}
		}
		if len(o.Points) == 0 {
			return nil, repository.ErrNotFound // of another machine
		}
	}
	v := &api.MachineCopy{Machine: d.machine.Name, From: from.Name, To: d.to.Name, Points: []string{}}
	fail := func(err error) (*api.MachineCopy, error) {
		v.Error = frame.ProblemOf(err).Detail
		return v, err
	}
	dst, err := s.Repositories.Open(ctx, d.to.Name)
	if err != nil {
		return fail(err)
	}
	custodian, err := s.Custodian()
	if err != nil {
		return fail(err)
	}
	defer custodian.Wipe()
	o.Custodian = &custodian
	if err := s.NoteCopying(ctx, c, d.to, d.machine.ID, points); err != nil {
		return fail(err)
	}
	found, err := copies.Copy(ctx, src, dst, d.machine.ID, o)
	v.Points = append(v.Points, found.Points...)
	v.Present, v.Deleted, v.Objects, v.Found, v.Bytes, v.Sidecars = found.Present, found.Deleted, found.Objects, found.Found, found.Bytes, found.Sidecars
	v.Problems = found.Problems
	for _, f := range found.Failed {
		v.Failed = append(v.Failed, api.FailedCopy{Point: f.Point, Error: show.OneLine(f.Err.Error())})
	}
	if d.to.Primary && len(found.Points) > 0 { // what came into it is in the catalog from now on
		_, cerr := backup.CatchUp(ctx, backup.Deps{Repository: dst, Catalog: c, Log: s.Log}, d.machine)
		err = errors.Join(err, cerr)
	}
	if err != nil {
		return fail(err)
	}
	return v, nil
}

func (s routes) startRepair(ctx context.Context, req *frame.In[api.RepairRequest]) (*frame.Out[api.Job], error) {
	r := req.Body
	e := audit.Event{Action: "repository.repair", Object: r.Repository}
	place := s.Repositories.List()[0]
	var err error
	if r.Repository != "" {
		if place, err = s.Place(r.Repository); err != nil {
			return nil, s.Refuse(ctx, e, err)
		}
	}
	e.Object = place.Name
	if r.DryRun {
		e.Detail = frame.WithDetail(e.Detail, "dry run", "true")
	}
	var from frame.Place
	if r.From != "" {
		if from, err = s.Place(r.From); err == nil && from.ID == place.ID {
			err = frame.Usage("repair: %s is what is repaired", from.Name)
		}
		if err != nil {
			return nil, s.Refuse(ctx, e, err)
		}
	}
	return s.Start(ctx, "repair", e, func(ctx context.Context, p *job.Reporter) (frame.Result, error) {
		return s.repair(s.Limited(ctx, r.Rates, s.allLimits(ctx)...), place, from.ID, r, p)
	}, "repair:"+place.ID)
}

// allLimits are the limits in the policies of all machines: an object that is
// repaired may be any one's.
func (s routes) allLimits(ctx context.Context) (all []limit.Schedule) {
	c, err := s.Catalog(ctx)
	var machines []catalog.Machine
	if err == nil {
		machines, err = c.Machines.List(ctx, true)
	}
	if err != nil { // without the catalog, repairing is all the more needed
		s.Log.Warn("the policies' limits are not known", "error", err)
	}
	for _, m := range machines {
		if l := s.PolicyLimits(ctx, c, m.ID); l != nil {
			all = append(all, l)
		}
	}
	return all
}

func (s routes) repair(ctx context.Context, place frame.Place, from string, r api.RepairRequest, p *job.Reporter) (frame.Result, error) {
	res := &api.RepairResult{Repository: place.Name, DryRun: r.DryRun, Repaired: []api.RepairedObject{}, Failed: []api.FailedRepair{}}
	out := frame.Result{JobResult: api.JobResult{Repair: res}}
	repo, err := s.Repositories.Open(ctx, place.Name)
	if err != nil {
		return out, err
	}
	keys := r.Objects
	if len(keys) == 0 {
		if keys, err = s.damaged(ctx, repo, p); err != nil {
			return out, err
		}
	}
	everything := len(r.Objects) == 0 // was read
	names := map[string]string{"": place.Name}
	var others []*repository.Repository
	for _, o := range s.Repositories.List() {
		if o.ID == place.ID || from != "" && o.ID != from {
			continue
		}
		other, err := s.Repositories.Open(ctx, o.Name)
		if err != nil {
			p.Warning("repository %s cannot be used: %s", o.Name, frame.ProblemOf(err).Detail)
			continue
		}
		names[o.ID] = o.Name
		others = append(others, other)
	}
	// What a damaged manifest or map hides shows when it is whole again.
	const rounds = 16
	held := map[string]bool{} // damaged originals that the store does not let go
	for range rounds {
		done, err := copies.Repair(ctx, repo, others, keys, copies.RepairOptions{DryRun: r.DryRun, Progress: func(n, total int) {
			p.Progress(job.Progress{Phase: "repair", Done: int64(n), Total: int64(total), Unit: "objects"})
		}})
		progress := false
		for _, x := range done.Repaired {
			if !x.Held.IsZero() {
				if held[x.Object] {
					continue
				}
				held[x.Object] = true
				p.Warning("%s: the damaged original stays until %s, for the store locks it; what stands for it is read", x.Object, x.Held.UTC().Format(time.RFC3339))
			}
			progress = true
			res.Repaired = append(res.Repaired, api.RepairedObject{Object: x.Object, From: names[x.From], As: x.As})
		}
		res.Failed = []api.FailedRepair{}
		for _, x := range done.Failed {
			res.Failed = append(res.Failed, api.FailedRepair{Object: x.Object, Error: show.OneLine(x.Err.Error())})
		}
		if res.Left = len(res.Failed); err != nil || r.DryRun || !progress {
			if err != nil {
				return out, err
			}
			s.noteRepair(ctx, place, keys, res, everything, r.DryRun)
			break
		}
		if keys, err = s.damaged(ctx, repo, p); err != nil {
			return out, err
		}
		keys = slices.DeleteFunc(keys, func(key string) bool { return held[key] })
		everything = true
		s.noteRepair(ctx, place, keys, res, everything, false)
		if res.Left = len(keys); len(keys) == 0 {
			break
		}
	}
	if res.Left > 0 {
		out.Exit, out.Found = api.ExitDamaged, true
	}
	return out, nil
}

// noteRepair forgets damage that is no more: of what was looked at, either
// the objects of keys or everything, what neither failed nor is damaged still.
func (s routes) noteRepair(ctx context.Context, place frame.Place, keys []string, res *api.RepairResult, everything, dry bool) {
	if dry {
		return
	}
	repaired := func(key string) bool {
		return slices.ContainsFunc(res.Repaired, func(x api.RepairedObject) bool { return x.Object == key })
	}
	failed := func(key string) bool {
		return slices.ContainsFunc(res.Failed, func(x api.FailedRepair) bool { return x.Object == key })
	}
	s.NoteDamage(ctx, place, frame.FoundByReading, nil, func(d frame.KnownDamage) bool {
		switch named := slices.Contains(keys, d.Object); {
		case failed(d.Object):
			return false
		case named:
			return !everything // it was looked at, and is whole; else it is damaged still
		}
		// What of everything is content, the maps say; what else is gone, they do not.
		return repaired(d.Object) || everything && (strings.HasPrefix(d.Object, "seg/") || strings.HasPrefix(d.Object, "map/"))
	})
}

// damaged are the keys of objects that a verification of everything names.
func (s routes) damaged(ctx context.Context, repo *repository.Repository, p *job.Reporter) ([]string, error) {
	found, err := verify.Run(ctx, verify.Request{Repository: repo, All: true, Lease: s.Leases("a repair"), Progress: frame.Progress(p)})
	var keys []string
	for _, d := range found.Damage {
		if !slices.Contains(keys, d.Object) {
			keys = append(keys, d.Object)
		}
	}
	return keys, err
}
