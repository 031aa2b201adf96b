package server

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"slices"

	"github.com/lockstep-backup/lockstep/api"
	"github.com/lockstep-backup/lockstep/audit"
	"github.com/lockstep-backup/lockstep/catalog"
	"github.com/lockstep-backup/lockstep/custody"
	"github.com/lockstep-backup/lockstep/disk"
	"github.com/lockstep-backup/lockstep/diskcrypt"
	"github.com/lockstep-backup/lockstep/keymanager"
	"github.com/lockstep-backup/lockstep/prove"
	"github.com/lockstep-backup/lockstep/repository"
)

type PointPath struct {
	Point string `path:"point" doc:"id or unique prefix, NAME@latest, NAME@TIME"`
}

type ofMachine struct {
	Machine string `query:"machine" doc:"name of a machine; empty = all"`
}

func (s *Server) pointRoutes() {
	route(s, "list-points", http.MethodGet, "/v1/points", "List recovery points, the newest first", s.listPoints)
	route(s, "get-point", http.MethodGet, "/v1/points/{point}", "Show a recovery point", s.getPoint)
	route(s, "delete-point", http.MethodDelete, "/v1/points/{point}", "Delete a recovery point", s.deletePoint, status(http.StatusNoContent))
}

// resolve finds the recovery point that the user named.
func (s *Server) resolvePoint(ctx context.Context, c *catalog.Catalog, ref string) (catalog.Point, error) {
	p, err := c.Resolve(ctx, ref)
	if errors.Is(err, catalog.ErrNotFound) {
		err = hint(err, "'lockstep point list' shows the recovery points")
	}
	return p, err
}

func (s *Server) listPoints(ctx context.Context, req *ofMachine) (*out[[]api.Point], error) {
	c, err := s.d.Catalog(ctx)
	if err != nil {
		return nil, err
	}
	machines, err := s.machines(ctx, c, req.Machine)
	if err != nil {
		return nil, err
	}
	r := &out[[]api.Point]{Body: []api.Point{}}
	for _, m := range machines {
		points, err := s.pointsOf(ctx, c, m)
		if err != nil {
			return nil, err
		}
		r.Body = append(r.Body, points...)
	}
	return r, nil
}

// machines is the machine of that name, or all: removed ones too, for their
// recovery points stay.
func (s *Server) machines(ctx context.Context, c *catalog.Catalog, name string) ([]catalog.Machine, error) {
	if name == "" {
		return c.Machines.List(ctx, true)
	}
	m, err := s.machine(ctx, c, name)
	if err != nil {
		return nil, err
	}
	return []catalog.Machine{m}, nil
}

func (s *Server) getPoint(ctx context.Context, req *PointPath) (*out[api.Point], error) {
	c, err := s.d.Catalog(ctx)
	if err != nil {
		return nil, err
	}
	p, err := s.resolvePoint(ctx, c, req.Point)
	if err != nil {
		return nil, err
	}
	v, err := s.pointView(ctx, c, p)
	if err != nil {
		return nil, err
	}
	return &out[api.Point]{Body: v}, nil
}

// pointView shows one recovery point, with what changed since its parent.
func (s *Server) pointView(ctx context.Context, c *catalog.Catalog, p catalog.Point) (api.Point, error) {
	m, err := c.Machines.Get(ctx, p.Machine)
	if err != nil {
		return api.Point{}, err
	}
	points, err := s.pointsOf(ctx, c, m)
	if err != nil {
		return api.Point{}, err
	}
	i := slices.IndexFunc(points, func(v api.Point) bool { return v.ID == p.ID })
	if i < 0 {
		return api.Point{}, fmt.Errorf("show recovery point %s: %w", p.ID, catalog.ErrNotFound)
	}
	return points[i], nil
}

// pointsOf shows the recovery points of a machine, newest first.
func (s *Server) pointsOf(ctx context.Context, c *catalog.Catalog, m catalog.Machine) ([]api.Point, error) {
	// Deleted ones too: a recovery point may follow one.
	all, err := c.Points.List(ctx, catalog.PointQuery{Machine: m.ID, Deleted: true})
	if err != nil {
		return nil, err
	}
	if len(all) == 0 {
		return nil, nil
	}
	view, err := prove.Load(ctx, s.custodyDeps(ctx, c), m.ID)
	if err != nil {
		return nil, err
	}
	views := []api.Point{}
	for i := len(all) - 1; i >= 0; i-- {
		if !all[i].DeletedAt.IsZero() {
			continue
		}
		v, err := pointOf(m, all[i], view)
		if err != nil {
			return nil, err
		}
		v.Changes = changesSince(all, i).Texts
		views = append(views, v)
	}
	return views, nil
}

// custodyDeps is what custody works with now: a key manager or a repository
// that cannot be had is left out, and the states say so.
func (s *Server) custodyDeps(ctx context.Context, c *catalog.Catalog) prove.Deps {
	d := prove.Deps{
		Catalog: c, Prover: s.d.Prover, Recipients: s.d.Recipients, Installation: s.d.Installation,
		Formats: s.d.Formats, Live: s.liveDisks, Now: s.d.Now, Log: s.d.Log, Actor: s.actor(ctx),
		Audit: func(ctx context.Context, e audit.Event) error {
			_, err := s.d.Audit.Append(context.WithoutCancel(ctx), e)
			return err
		},
	}
	m, err := s.d.Manager(ctx)
	if err != nil {
		s.d.Log.Warn("key manager", "error", err)
	} else {
		d.Manager = m
	}
	r, err := s.d.Repository(ctx)
	if err != nil {
		s.d.Log.Warn("repository", "error", err)
	} else {
		d.Repo = r
	}
	return d
}

// worst is the state of a machine.
func worst(points []api.Point) string {
	states := make([]custody.State, 0, len(points))
	for _, p := range points {
		states = append(states, custody.State(p.State))
	}
	return string(custody.WorstState(states...))
}

func pointOf(m catalog.Machine, p catalog.Point, view *prove.View) (api.Point, error) {
	verdict := view.Verdict(p)
	v := api.Point{
		ID: p.ID, Machine: m.Name, MachineID: p.Machine, Repository: p.Repository, Time: p.Time.UTC(),
		State: string(verdict.State), Why: verdict.Why, Consistency: p.Consistency, Parent: p.Parent,
		Sequence: p.Sequence, Transfer: "incremental", Description: p.Description, Incomplete: p.Incomplete,
		SelfOpening: verdict.SelfOpening, ReadBytes: p.Stats.Read, ChangedBytes: p.Stats.Changed,
		StoredBytes: p.Stats.Stored, MapBytes: p.Stats.Map, DurationSeconds: p.Seconds, Disks: []api.PointDisk{},
	}
	if p.FullTransfer {
		v.Transfer = "full"
	}
	states := map[custody.VolumeKey]custody.VolumeState{}
	for _, x := range verdict.Volumes {
		states[custody.VolumeKey{Disk: x.Disk, Volume: x.Volume}] = x
	}
	for _, d := range p.Disks {
		pd := api.PointDisk{ID: d.Disk, SizeBytes: d.Size, ContentRoot: d.ContentRoot, UnreadRanges: rangeViews(d.Unread), Volumes: []api.Volume{}}
		areas, err := areasOf(d)
		if err != nil {
			return v, err
		}
		vols := volumesOf(d)
		pd.Areas = areaViews(&diskcrypt.Report{Areas: areas, Volumes: vols})
		for _, vol := range vols {
			pv := volumeView(d.Disk, vol, openedBy(p.ID, d.Disk, vol, view))
			if st, ok := states[custody.VolumeKey{Disk: d.Disk, Volume: vol.ID}]; ok {
				pv.State, pv.Why, pv.NotNeeded = string(st.State), st.Why, st.NotNeeded
			}
			pd.Volumes = append(pd.Volumes, pv)
		}
		v.Disks = append(v.Disks, pd)
	}
	return v, nil
}

// openedBy says which secret versions are proven to open which protector of a
// volume of a recovery point.
func openedBy(point, diskID string, vol diskcrypt.Volume, view *prove.View) map[string][]string {
	opened := map[string][]string{}
	for _, proof := range view.Proofs(point) {
		if proof.Disk != diskID || proof.Volume != vol.ID {
			continue
		}
		ref := keymanager.Ref{ID: proof.Secret, Version: proof.Version}
		ids := slices.Clone(proof.Protectors)
		// A proof names the first protector that opened; an equal header was
		// perhaps tried in full.
		for _, p := range vol.Protectors {
			if slices.Contains(view.OpenedBy(vol.HeaderDigest, p.ID), ref) {
				ids = append(ids, p.ID)
			}
		}
		for _, id := range ids {
			if !slices.Contains(opened[id], ref.String()) {
				opened[id] = append(opened[id], ref.String())
			}
		}
	}
	return opened
}

func areasOf(d catalog.PointDisk) ([]diskcrypt.Area, error) {
	var areas []diskcrypt.Area
	if len(d.Areas) == 0 {
		return nil, nil
	}
	if err := json.Unmarshal(d.Areas, &areas); err != nil {
		return nil, fmt.Errorf("read areas of disk %s: %w", d.Disk, err)
	}
	return areas, nil
}

func volumesOf(d catalog.PointDisk) []diskcrypt.Volume {
	out := make([]diskcrypt.Volume, 0, len(d.Volumes))
	for _, x := range d.Volumes {
		out = append(out, prove.VolumeOf(x))
	}
	return out
}

func rangeViews(ranges []disk.Range) []api.Range {
	var out []api.Range
	for _, r := range ranges {
		out = append(out, api.Range{Offset: r.Offset, Length: r.Length})
	}
	return out
}

// areaViews are the areas that are not volumes.
func areaViews(rep *diskcrypt.Report) []api.Area {
	var out []api.Area
	for _, a := range rep.Areas {
		if !slices.ContainsFunc(rep.Volumes, func(v diskcrypt.Volume) bool { return v.ID == a.ID }) {
			out = append(out, api.Area{ID: a.ID, Class: a.Class, Note: a.Note})
		}
	}
	return out
}

// volumeView shows a volume; opened are secret versions by protector.
func volumeView(diskID string, v diskcrypt.Volume, opened map[string][]string) api.Volume {
	out := api.Volume{
		ID: v.ID, Disk: diskID, Type: v.Type, UUID: v.UUID, Label: v.Label, Cipher: v.Cipher, KeyBits: v.KeyBits,
		SectorSize: v.SectorSize, OffsetBytes: v.Range.Offset, SizeBytes: v.Range.Length, Epoch: v.Epoch,
		HeaderDigest: v.HeaderDigest, SelfOpening: v.SelfOpening, Unsupported: v.Unsupported, Conversion: v.Conversion,
		Protectors: []api.Protector{}, Warnings: v.Warnings,
	}
	for _, p := range v.Protectors {
		by := opened[p.ID]
		if by == nil {
			by = []string{}
		}
		out.Protectors = append(out.Protectors, api.Protector{
			ID: p.ID, Kind: p.Kind, Fingerprint: p.Fingerprint, KDF: p.KDF, Note: p.Note, OpenedBy: by,
		})
	}
	for _, t := range v.Tokens {
		text := t.Type
		if t.Meaning != "" {
			text += ": " + t.Meaning
		}
		out.Tokens = append(out.Tokens, text)
	}
	return out
}

// changes is what changed in custody from a recovery point's parent to it.
type changes struct {
	Texts []string
	Loud  string // not empty: what cannot be overlooked
}

// changesSince compares point i of all (oldest first) with its parent.
func changesSince(all []catalog.Point, i int) changes {
	now := all[i]
	pi := slices.IndexFunc(all, func(p catalog.Point) bool { return p.ID == now.Parent && now.Parent != "" })
	if pi < 0 {
		return changes{}
	}
	parent := all[pi]
	var history [][]custody.DiskVolumes
	for j := pi - 1; j >= 0; j-- {
		if all[j].Repository == now.Repository {
			history = append(history, foundIn(all[j]))
		}
	}
	var out changes
	for _, c := range custody.Compare(foundIn(parent), foundIn(now), history...) {
		if c.Kind != custody.ChangeNone {
			out.Texts = append(out.Texts, c.String())
		}
	}
	if replaced(parent, now) {
		out.Loud = fmt.Sprintf("none of the encrypted volumes of recovery point %s is on these disks any more: is this still the same machine? A disk may have been REPLACED by another", parent.ID)
	}
	return out
}

func foundIn(p catalog.Point) []custody.DiskVolumes {
	out := make([]custody.DiskVolumes, 0, len(p.Disks))
	for _, d := range p.Disks {
		areas, err := areasOf(d)
		if err != nil {
			areas = nil
		}
		out = append(out, custody.Found(d.Disk, &diskcrypt.Report{Volumes: volumesOf(d), Areas: areas}))
	}
	return out
}

// replaced says that the parent had encrypted volumes and that neither a UUID
// nor a volume key of them is left, though there is something on the disks.
func replaced(parent, now catalog.Point) bool {
	before, after := map[string]bool{}, map[string]bool{}
	for _, x := range []struct {
		p   catalog.Point
		set map[string]bool
	}{{parent, before}, {now, after}} {
		for _, d := range x.p.Disks {
			for _, v := range d.Volumes {
				for _, id := range []string{v.UUID, v.Epoch} {
					if id != "" {
						x.set[id] = true
					}
				}
			}
		}
	}
	if len(before) == 0 || len(after) == 0 {
		return false
	}
	for id := range before {
		if after[id] {
			return false
		}
	}
	return true
}

type pointDelete struct {
	PointPath
	Body api.Reason
}

func (s *Server) deletePoint(ctx context.Context, req *pointDelete) (*none, error) {
	e := audit.Event{Action: "point.delete", Object: req.Point, Reason: req.Body.Reason}
	return audited(ctx, s, e, func() (*none, error) {
		return nil, s.forget(ctx, req.Point, req.Body.Reason)
	})
}

// forget takes a recovery point off the list. The repository goes first: what
// it does not list is not there. Then its holds are released, for nothing
// needs the secrets any more, and then the catalog is told.
func (s *Server) forget(ctx context.Context, ref, reason string) error {
	c, err := s.d.Catalog(ctx)
	if err != nil {
		return err
	}
	p, err := s.resolvePoint(ctx, c, ref)
	if err != nil {
		return err
	}
	fail := func(err error) error { return fmt.Errorf("delete recovery point %s: %w", p.ID, err) }
	m, err := c.Machines.Get(ctx, p.Machine)
	if err != nil {
		return fail(err)
	}
	lock, err := s.lock(m, "deletion of recovery point "+p.ID)
	if err != nil {
		return fail(err)
	}
	defer lock.Release()
	repo, err := s.d.Repository(ctx)
	if err != nil {
		return fail(err)
	}
	if p.Repository != repo.ID() {
		return fail(fmt.Errorf("it is in repository %s: %w", p.Repository, repository.ErrNotFound))
	}
	// Asked first: without the key manager the holds would stay for ever.
	if _, err := s.d.Manager(ctx); err != nil {
		return fail(fmt.Errorf("its holds could not be released: %w", err))
	}
	err = repo.Delete(ctx, p.Machine, p.ID, reason)
	if err != nil && !errors.Is(err, repository.ErrNotFound) { // it may have been deleted and only the rest is left
		return fail(err)
	}
	// From here on it is gone: finish, whoever hangs up.
	ctx = context.WithoutCancel(ctx)
	if err := prove.ReleaseHolds(ctx, s.custodyDeps(ctx, c), p); err != nil {
		return fail(hint(fmt.Errorf("it is deleted, but not all its holds are released: %w", err), "the same command again releases the rest"))
	}
	if err := c.Points.Delete(ctx, p.ID, s.d.Now().UTC(), reason); err != nil {
		return fail(err)
	}
	return nil
}

// manifest finds a catalogued recovery point in the repository.
func (s *Server) manifest(ctx context.Context, repo *repository.Repository, p catalog.Point) (*repository.Manifest, error) {
	if p.Repository != repo.ID() {
		return nil, fmt.Errorf("recovery point %s is in repository %s: %w", p.ID, p.Repository, repository.ErrNotFound)
	}
	rp, err := s.repositoryPoint(ctx, repo, p)
	if err != nil {
		return nil, err
	}
	return repo.Manifest(ctx, rp)
}

func (s *Server) repositoryPoint(ctx context.Context, repo *repository.Repository, p catalog.Point) (repository.Point, error) {
	list, err := repo.Points(ctx, p.Machine)
	// Damage in other entries of the log must not keep this one from being read.
	i := slices.IndexFunc(list, func(x repository.Point) bool { return x.ID == p.ID })
	if i >= 0 {
		return list[i], nil
	}
	if err == nil {
		err = hint(repository.ErrNotFound, "the catalog and the repository disagree: 'lockstep catalog rebuild'")
	}
	return repository.Point{}, fmt.Errorf("find recovery point %s: %w", p.ID, err)
}

// liveDisks opens a machine's disks as they are now, for a secret to be tried on.
func (s *Server) liveDisks(ctx context.Context, m catalog.Machine) ([]prove.LiveDisk, error) {
	var open []prove.LiveDisk
	var bad []error
	for _, def := range m.Disks {
		d, detached, err := s.openLive(ctx, def)
		if err != nil {
			bad = append(bad, fmt.Errorf("disk %s: %w", def.ID, err))
			continue
		}
		l := prove.LiveDisk{ID: def.ID, Size: d.Size(), Disk: d, Close: func() { _ = d.Close() }}
		if h, ok := detached[diskcrypt.WholeDisk]; ok {
			l.Header, l.HeaderSize = h.R, h.Size
		}
		open = append(open, l)
	}
	if len(open) == 0 {
		return nil, errors.Join(bad...)
	}
	for _, err := range bad {
		s.d.Log.Warn("a disk cannot be read now", "machine", m.Name, "error", err)
	}
	return open, nil
}
