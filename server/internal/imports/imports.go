// Package imports is the routes of importing images that exist already.
package imports

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"net/http"
	"path/filepath"
	"regexp"
	"slices"
	"time"

	"github.com/lockstep-backup/lockstep/api"
	"github.com/lockstep-backup/lockstep/audit"
	"github.com/lockstep-backup/lockstep/backup"
	"github.com/lockstep-backup/lockstep/catalog"
	"github.com/lockstep-backup/lockstep/importing"
	"github.com/lockstep-backup/lockstep/job"
	"github.com/lockstep-backup/lockstep/prove"
	"github.com/lockstep-backup/lockstep/repository"
	"github.com/lockstep-backup/lockstep/server/internal/frame"
)

type routes struct{ *frame.Frame }

// Register adds the routes.
func Register(f *frame.Frame) {
	s := routes{f}
	frame.Route(f, "start-import", http.MethodPost, "/v1/imports", "Make recovery points of images that exist already", s.startImport, frame.Status(http.StatusAccepted))
}

// diskName is as a machine's disks are named.
var diskName = regexp.MustCompile(`^[a-zA-Z0-9][a-zA-Z0-9._-]{0,62}$`)

func (s routes) startImport(ctx context.Context, req *frame.In[api.ImportRequest]) (*frame.Out[api.Job], error) {
	r := req.Body
	e := audit.Event{Action: "machine.import", Object: r.Machine}
	if r.DryRun {
		e.Detail = frame.WithDetail(e.Detail, "dry_run", "true")
	}
	items, other, err := s.items(&r)
	if err == nil {
		err = importing.Plausible(items)
	}
	if err != nil {
		return nil, s.Refuse(ctx, e, fmt.Errorf("import %s: %w", r.Machine, err))
	}
	c, err := s.Catalog(ctx)
	if err != nil {
		return nil, s.Refuse(ctx, e, err)
	}
	m, made, err := s.machine(ctx, c, r.Machine)
	if err != nil {
		return nil, s.Refuse(ctx, e, err)
	}
	return s.Start(ctx, "import", e, func(ctx context.Context, p *job.Reporter) (frame.Result, error) {
		w := work{routes: s, c: c, m: m, made: made, r: r, p: p}
		w.res = &api.ImportResult{Machine: m.Name, DryRun: r.DryRun, Items: []api.ImportedItem{}, PassedOver: other}
		exit, err := w.run(s.Limited(ctx, r.Rates, s.PolicyLimits(ctx, c, m.ID)), items)
		return frame.Result{JobResult: api.JobResult{Import: w.res}, Exit: exit}, err
	}, frame.MachineKey(m))
}

// items are what is asked for, in order of time, with all paths checked.
func (s routes) items(r *api.ImportRequest) (items []importing.Item, other []string, err error) {
	for i, dir := range r.AllowBacking {
		if r.AllowBacking[i], err = s.path(dir); err != nil {
			return nil, nil, err
		}
	}
	if r.Directory != "" {
		switch {
		case len(r.Disks) > 0 || r.Time != nil:
			return nil, nil, frame.Usage("a folder names its images and times itself")
		case r.Disk == "":
			r.Disk = "vda"
		case !diskName.MatchString(r.Disk):
			return nil, nil, frame.Usage("disk id %q: only letters, digits, '.', '_' and '-' can be used", r.Disk)
		}
		dir, err := s.path(r.Directory)
		if err != nil {
			return nil, nil, err
		}
		return importing.Folder{Dir: dir, Disk: r.Disk, Format: r.Format, Backing: r.AllowBacking, TimeFrom: r.TimeFrom}.Items()
	}
	if len(r.Disks) == 0 || r.Time == nil {
		return nil, nil, frame.Usage("name the disks' images and their time, or a folder")
	}
	item := importing.Item{Time: r.Time.UTC()}
	for _, d := range r.Disks {
		if !diskName.MatchString(d.ID) {
			return nil, nil, frame.Usage("disk id %q: only letters, digits, '.', '_' and '-' can be used", d.ID)
		}
		if slices.ContainsFunc(item.Images, func(o importing.Image) bool { return o.Disk == d.ID }) {
			return nil, nil, frame.Usage("disk %s is named twice", d.ID)
		}
		path, err := s.path(d.File)
		if err != nil {
			return nil, nil, err
		}
		item.Images = append(item.Images, importing.Image{Disk: d.ID, Path: path, Format: r.Format, Backing: r.AllowBacking})
	}
	return []importing.Item{item}, nil, nil
}

func (s routes) path(path string) (string, error) {
	if !filepath.IsAbs(path) {
		return "", frame.Usage("%q is not a path from the root", path)
	}
	return s.AllowedSource(path)
}

// machine finds the machine to import into, or thinks up one.
func (s routes) machine(ctx context.Context, c *catalog.Catalog, name string) (m catalog.Machine, made bool, err error) {
	m, err = c.Machines.ByName(ctx, name)
	switch {
	case errors.Is(err, catalog.ErrNotFound):
		var id [16]byte
		_, _ = rand.Read(id[:]) // never fails since Go 1.24
		return catalog.Machine{ID: hex.EncodeToString(id[:]), Name: name, Created: s.Now().UTC()}, true, nil
	case err != nil:
		return m, false, err
	case !m.RemovedAt.IsZero():
		// The same machine again, as 'machine add' has it.
		return catalog.Machine{ID: m.ID, Name: m.Name, Created: m.Created}, true, nil
	}
	return m, false, nil
}

// work is one import under way.
type work struct {
	routes
	c    *catalog.Catalog
	m    catalog.Machine
	made bool // the machine is not in the catalog yet
	r    api.ImportRequest
	p    *job.Reporter
	res  *api.ImportResult
	ids  []string // of what was imported now
}

func (w *work) run(ctx context.Context, items []importing.Item) (exit int, err error) {
	d := backup.Deps{Catalog: w.c, Open: w.OpenSource, Formats: w.Formats, Log: w.Log, Now: w.Now, Software: w.Software}
	points, err := w.c.Points.List(ctx, catalog.PointQuery{Machine: w.m.ID, Bare: true})
	if err != nil {
		return 0, err
	}
	items, err = w.plan(points, items)
	if err == nil && !w.r.DryRun {
		d.Repository, err = w.Repository(ctx)
	}
	if err == nil {
		err = w.same(ctx, points, items)
	}
	if err != nil {
		return 0, fmt.Errorf("import %s: %w", w.m.Name, err)
	}
	for i, item := range items {
		w.p.Progress(job.Progress{Phase: "import", Done: int64(i), Total: int64(len(items)), Unit: "images"})
		if err = w.one(ctx, d, points, item); err != nil {
			err = fmt.Errorf("import %s as of %s: %w", item.Images[0].Path, item.Time.Format("2006-01-02T15:04:05.999Z07:00"), err)
			break
		}
	}
	if len(w.ids) == 0 {
		return 0, err
	}
	// What is committed stays; it is proven also where a later one failed.
	return w.prove(context.WithoutCancel(ctx)), err
}

// plan is what can be imported, the same for a dry run: a folder goes on where
// recovery points of its beginning were pruned.
func (w *work) plan(points []catalog.Point, items []importing.Item) ([]importing.Item, error) {
	take, older, err := importing.Plan(points, items, w.Now())
	if err != nil || len(older) == 0 {
		return take, err
	}
	newest, _ := importing.Newest(points)
	if w.r.Directory == "" {
		return nil, fmt.Errorf("%s: %s of %s: %w", older[0].Images[0].Path, newest.ID, newest.Time.UTC().Format(time.RFC3339Nano), backup.ErrOrder)
	}
	for _, i := range older {
		w.res.Older = append(w.res.Older, filepath.Base(i.Images[0].Path))
	}
	if len(take) == 0 {
		w.p.Warning("all images are older than the newest recovery point of %s, of %s: import them under a name of their own, such as %s-history", w.m.Name, newest.Time.UTC().Format(time.RFC3339), w.m.Name)
	}
	return take, nil
}

// same refuses images whose time is that of a recovery point of other images.
func (w *work) same(ctx context.Context, points []catalog.Point, items []importing.Item) error {
	var repo *repository.Repository
	var there []repository.Point
	for _, item := range items {
		old, ok := importing.Existing(points, item)
		if !ok {
			continue
		}
		if repo == nil {
			var err error
			if repo, err = w.Repository(ctx); err != nil {
				return err
			}
			// Damage in other entries of the log must not keep these from being read.
			if there, err = repo.Points(ctx, w.m.ID); err != nil && !errors.Is(err, repository.ErrDamaged) {
				return err
			}
		}
		i := slices.IndexFunc(there, func(p repository.Point) bool { return p.ID == old.ID })
		if i < 0 {
			continue // in another repository, or lost: its size is compared
		}
		mf, err := repo.Manifest(ctx, there[i])
		if err != nil {
			return err
		}
		if err := importing.Same(mf.Definition, item); err != nil {
			return fmt.Errorf("recovery point %s of %s: %w", old.ID, old.Time.UTC().Format(time.RFC3339Nano), err)
		}
	}
	return nil
}

// one imports an item, or finds that it was.
func (w *work) one(ctx context.Context, d backup.Deps, points []catalog.Point, item importing.Item) error {
	out := api.ImportedItem{Time: item.Time.UTC()}
	for _, x := range item.Images {
		out.Disks = append(out.Disks, api.ImportDisk{ID: x.Disk, File: x.Path})
	}
	old, existing := importing.Existing(points, item)
	if existing {
		out.Point, out.Existing = old.ID, true
	}
	if existing || w.r.DryRun {
		return w.look(ctx, d, item, old, out)
	}
	if w.made {
		m := w.m
		m.Disks = item.Disks()
		if err := w.c.Machines.Put(ctx, m); err != nil {
			return err
		}
	}
	res, err := importing.Run(ctx, d, importing.Request{
		Machine: w.m, Item: item, Description: w.r.Description, Consistency: w.r.Consistency, Progress: frame.Progress(w.p),
	})
	for _, text := range res.Warnings {
		w.p.Warning("%s", text)
	}
	if err != nil {
		if w.made && res.Point.ID == "" {
			err = errors.Join(err, w.c.Machines.Remove(context.WithoutCancel(ctx), w.m.ID, w.Now().UTC()))
		}
		return err
	}
	w.made = false
	w.p.Message("recovery point %s is of %s", res.Point.ID, out.Time.Format("2006-01-02T15:04:05Z07:00"))
	out.Point = res.Point.ID
	for _, x := range res.Point.Disks {
		out.SizeBytes += x.Size
	}
	w.ids = append(w.ids, out.Point)
	w.res.Items = append(w.res.Items, out)
	return nil
}

// look adds what is there already, or would be made. That of the same time and
// name is taken for the same; that it cannot be where the sizes differ.
func (w *work) look(ctx context.Context, d backup.Deps, item importing.Item, old catalog.Point, out api.ImportedItem) error {
	sizes, err := importing.Look(ctx, d, item)
	if err != nil {
		return err
	}
	for _, n := range sizes {
		out.SizeBytes += n
	}
	if out.Existing {
		p, err := w.c.Points.Get(ctx, old.ID)
		if err != nil {
			return err
		}
		for i, x := range item.Images {
			if !slices.ContainsFunc(p.Disks, func(o catalog.PointDisk) bool { return o.Disk == x.Disk && o.Size == sizes[i] }) {
				return fmt.Errorf("%s has this time, and disk %s is not as large there: %w", old.ID, x.Disk, importing.ErrOther)
			}
		}
	}
	w.res.Items = append(w.res.Items, out)
	return nil
}

// prove opens what was imported with the secrets in custody.
func (w *work) prove(ctx context.Context) (exit int) {
	results, err := prove.Points(ctx, w.Custody(ctx, w.c), w.ids, func(done, total int, point string) {
		w.p.Progress(job.Progress{Phase: "prove", Done: int64(done), Total: int64(total), Unit: "points", Note: point})
	})
	if err != nil {
		w.p.Warning("the images are imported, but could not be proven: %s", frame.ProblemOf(err).Detail)
	}
	for _, x := range results {
		for _, problem := range x.Problems {
			w.p.Warning("%s: %s", x.Point, problem)
		}
	}
	for i := range w.res.Items {
		it := &w.res.Items[i]
		if !slices.Contains(w.ids, it.Point) {
			continue
		}
		p, err := w.c.Points.Get(ctx, it.Point)
		if err == nil {
			var v api.Point
			if v, err = w.PointView(ctx, w.c, p); err == nil {
				it.State = v.State
				exit = max(exit, frame.ExitOfState(v.State))
			}
		}
		if err != nil {
			w.p.Warning("%s: %s", it.Point, frame.ProblemOf(err).Detail)
		}
	}
	return exit
}
