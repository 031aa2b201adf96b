package prove

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/lockstep-backup/lockstep/catalog"
	"github.com/lockstep-backup/lockstep/custody"
	"github.com/lockstep-backup/lockstep/diskcrypt"
	"github.com/lockstep-backup/lockstep/envelope"
	"github.com/lockstep-backup/lockstep/keymanager"
)

// freshProof is how old an equal proof may be for a new one not to be stored.
const freshProof = 24 * time.Hour

// View is what custody knows of one machine: secrets, proofs, packages,
// declarations, attempts. It answers for any number of recovery points without
// asking again; it is for one goroutine.
type View struct {
	d          Deps
	machine    string
	secrets    []keymanager.Info
	managerErr error
	versions   map[keymanager.Ref]keymanager.Version
	proofs     map[string][]catalog.Proof   // by recovery point
	packages   map[string][]catalog.Package // by recovery point
	declared   map[custody.VolumeKey]string // reasons in force
	points     []catalog.Point              // of the machine, by repository and sequence
	before     map[string]custody.History   // what came before each of them
	attempts   map[string]map[keymanager.Ref]catalog.Attempt
	stopped    map[string]map[keymanager.Ref]string // by header digest, of this run
}

// Load reads what custody knows of a machine. A key manager that does not
// answer is part of the view, not an error.
func Load(ctx context.Context, d Deps, machine string) (*View, error) {
	d = d.withDefaults()
	v := &View{
		d: d, machine: machine, versions: map[keymanager.Ref]keymanager.Version{},
		proofs: map[string][]catalog.Proof{}, packages: map[string][]catalog.Package{},
		declared: map[custody.VolumeKey]string{}, attempts: map[string]map[keymanager.Ref]catalog.Attempt{},
		stopped: map[string]map[keymanager.Ref]string{},
	}
	v.managerErr = keymanager.ErrUnavailable
	if d.Manager != nil {
		v.secrets, v.managerErr = d.Manager.List(ctx)
		if ctx.Err() != nil {
			return nil, ctx.Err()
		}
		if v.managerErr != nil {
			d.Log.Warn("list secrets", "error", v.managerErr)
		}
	}
	for _, s := range v.secrets {
		for _, x := range s.Versions {
			v.versions[x.Ref] = x
		}
	}
	proofs, err := d.Catalog.Proofs.OfMachine(ctx, machine)
	if err != nil {
		return nil, fmt.Errorf("load custody: %w", err)
	}
	for _, p := range proofs {
		if v.counts(p) {
			v.proofs[p.Point] = append(v.proofs[p.Point], p)
		}
	}
	packages, err := d.Catalog.Packages.OfMachine(ctx, machine)
	if err != nil {
		return nil, fmt.Errorf("load custody: %w", err)
	}
	for _, p := range packages {
		v.packages[p.Point] = append(v.packages[p.Point], p)
	}
	declarations, err := d.Catalog.Declarations.OfMachine(ctx, machine)
	if err != nil {
		return nil, fmt.Errorf("load custody: %w", err)
	}
	for _, x := range declarations {
		k := custody.VolumeKey{Disk: x.Disk, Volume: x.Volume}
		if delete(v.declared, k); !x.Withdrawn {
			v.declared[k] = x.Reason
		}
	}
	return v, v.loadAttempts(ctx)
}

// loadAttempts reads what was tried on the headers of this machine.
func (v *View) loadAttempts(ctx context.Context) error {
	all, err := v.d.Catalog.Points.List(ctx, catalog.PointQuery{Machine: v.machine, Deleted: true})
	if err != nil {
		return fmt.Errorf("load custody: %w", err)
	}
	v.remember(all)
	for _, p := range v.points {
		for _, d := range p.Disks {
			for _, x := range d.Volumes {
				if _, err := v.tried(ctx, x.HeaderDigest); err != nil {
					return err
				}
			}
		}
	}
	return nil
}

// remember keeps the points that are listed, and for each what was on the disks
// before; what was deleted since counts there too, or losing a header would be
// forgotten with the recovery point that had it.
func (v *View) remember(all []catalog.Point) {
	v.before = map[string]custody.History{}
	history, repository := custody.History(nil), ""
	for _, p := range all {
		if p.Repository != repository {
			history, repository = nil, p.Repository
		}
		if p.DeletedAt.IsZero() {
			v.points = append(v.points, p)
			v.before[p.ID] = history
		}
		history = history.After(Found(p))
	}
}

func (v *View) tried(ctx context.Context, digest string) (map[keymanager.Ref]catalog.Attempt, error) {
	if m, ok := v.attempts[digest]; ok || digest == "" {
		return m, nil
	}
	m := map[keymanager.Ref]catalog.Attempt{}
	list, err := v.d.Catalog.Proofs.Attempts(ctx, digest)
	if err != nil {
		return nil, fmt.Errorf("load custody: %w", err)
	}
	for _, a := range list {
		m[keymanager.Ref{ID: a.Secret, Version: a.Version}] = a
	}
	v.attempts[digest] = m
	return m, nil
}

// counts says whether a proof's signer is trusted today.
func (v *View) counts(p catalog.Proof) bool {
	if v.d.Repo == nil {
		return true
	}
	_, revoked, known := v.d.Repo.Trust().Key(envelope.KeyID(p.Signer))
	return known && revoked == nil
}

// Secrets returns the secrets that claim this machine, and why the key manager
// does not answer, if it does not.
func (v *View) Secrets() ([]keymanager.Info, error) {
	var out []keymanager.Info
	for _, s := range v.secrets {
		if m := s.Labels[keymanager.LabelMachine]; m == "" || m == v.machine {
			out = append(out, s)
		}
	}
	return out, v.managerErr
}

// State is what the key manager says of a version, another machine's too;
// "" where it says nothing.
func (v *View) State(ref keymanager.Ref) keymanager.State { return v.versions[ref].State }

// Proofs returns the valid proofs of a recovery point by time.
func (v *View) Proofs(point string) []catalog.Proof { return v.proofs[point] }

// Opens says what is known of a secret version and a recovery point: it is
// proven to open some volume of it, claimed to (it opened the same header
// elsewhere), opens none of those that are needed, or has not been tried on all.
func (v *View) Opens(p catalog.Point, ref keymanager.Ref) custody.Tried {
	out := custody.Refused
	for _, d := range p.Disks {
		for _, x := range d.Volumes {
			if v.proven(p.ID, d.Disk, x.Volume, ref) {
				return custody.Opens
			}
			if v.notNeeded(d.Disk, x.Volume) != "" || v.headerless(p, d.Disk, x) {
				continue
			}
			switch a, known := v.attempts[x.HeaderDigest][ref]; {
			case known && len(a.Opened) > 0:
				out = custody.Claimed
			case !known && out != custody.Claimed:
				out = custody.Untried
			}
		}
	}
	return out
}

// headerless says that a volume lost the header that a secret could open.
func (v *View) headerless(p catalog.Point, disk string, x catalog.Volume) bool {
	return x.HeaderDigest == "" && v.before[p.ID].Lost(disk, VolumeOf(x)) != nil
}

func (v *View) proven(point, disk, volume string, ref keymanager.Ref) bool {
	return slices.ContainsFunc(v.proofs[point], func(p catalog.Proof) bool {
		return p.Disk == disk && p.Volume == volume && refOf(p) == ref
	})
}

func refOf(p catalog.Proof) keymanager.Ref {
	return keymanager.Ref{ID: p.Secret, Version: p.Version}
}

// OpenedBy returns the secret versions that are known to open a protector of a
// volume with this header.
func (v *View) OpenedBy(headerDigest, protector string) []keymanager.Ref {
	var out []keymanager.Ref
	for ref, a := range v.attempts[headerDigest] {
		if slices.Contains(a.Opened, protector) {
			out = append(out, ref)
		}
	}
	slices.SortFunc(out, func(a, b keymanager.Ref) int {
		if a.ID != b.ID {
			if a.ID < b.ID {
				return -1
			}
			return 1
		}
		return a.Version - b.Version
	})
	return out
}

func (v *View) notNeeded(disk, volume string) string {
	return v.declared[custody.VolumeKey{Disk: disk, Volume: volume}]
}

// NotNeeded returns the reason of the declaration in force, "" if there is none.
func (v *View) NotNeeded(disk, volume string) string { return v.notNeeded(disk, volume) }

// VolumeOf reads all that the inspector said of a volume.
func VolumeOf(x catalog.Volume) diskcrypt.Volume {
	var out diskcrypt.Volume
	if err := json.Unmarshal(x.Body, &out); err != nil || out.ID == "" {
		out = diskcrypt.Volume{ID: x.Volume, Type: x.Type, UUID: x.UUID, Label: x.Label, Epoch: x.Epoch, HeaderDigest: x.HeaderDigest}
	}
	return out
}

// Verdict decides the state of a recovery point of this machine.
func (v *View) Verdict(p catalog.Point) custody.Verdict {
	f := custody.PointFacts{
		Now: v.d.Now(), MaxProofAge: v.d.MaxProofAge, ManagerErr: v.managerErr, Versions: v.versions,
	}
	if errors.Is(v.managerErr, keymanager.ErrDamaged) && len(v.secrets) > 0 {
		f.ManagerErr = fmt.Errorf("some secrets cannot be read: %w", v.managerErr)
	}
	before := v.before[p.ID]
	for i, d := range Found(p) {
		for _, e := range before.Missing(d) {
			gone := diskcrypt.Volume{ID: e.Volume.ID, Range: e.Volume.Range, Extents: e.Volume.Extents, Type: e.Volume.Type}
			f.Volumes = append(f.Volumes, custody.VolumeFacts{
				Disk: d.Disk, Volume: gone, NotNeeded: v.notNeeded(d.Disk, gone.ID), Loss: &custody.Loss{Earlier: e},
			})
		}
		f.Volumes = append(f.Volumes, v.facts(p, p.Disks[i], d)...)
		f.SelfOpening = append(f.SelfOpening, bekVolumes(p.Disks[i])...)
	}
	return custody.Evaluate(f)
}

// facts are those of the volumes that were found on a disk.
func (v *View) facts(p catalog.Point, d catalog.PointDisk, found custody.DiskVolumes) []custody.VolumeFacts {
	var out []custody.VolumeFacts
	for i, vol := range found.Volumes {
		place := d.Volumes[i].Volume
		vf := custody.VolumeFacts{
			Disk: d.Disk, Volume: vol, NotNeeded: v.notNeeded(d.Disk, place),
			Loss: v.before[p.ID].Lost(d.Disk, vol), Cut: v.before[p.ID].Cut(found, vol),
		}
		for _, proof := range v.proofs[p.ID] {
			if proof.Disk == d.Disk && proof.Volume == place {
				vf.Proofs = append(vf.Proofs, custody.ProofFacts{
					Secret: refOf(proof), Time: proof.Time, Packages: v.copies(p.ID, refOf(proof)),
				})
			}
		}
		for _, c := range custody.Candidates(v.query(p, d.Disk, vol)) {
			vf.Claims = append(vf.Claims, v.claim(c, vol.HeaderDigest))
		}
		out = append(out, vf)
	}
	return out
}

// Changes says what changed in custody since the recovery point's parent; what
// did not change is left out. Nothing where there is no parent any more.
func (v *View) Changes(p catalog.Point) []custody.Change {
	i := slices.IndexFunc(v.points, func(o catalog.Point) bool { return o.ID == p.Parent && o.Repository == p.Repository })
	if i < 0 {
		return nil
	}
	var history [][]custody.DiskVolumes
	for _, o := range slices.Backward(v.points[:i]) {
		if o.Repository == p.Repository {
			history = append(history, v.found(o))
		}
	}
	all := custody.Compare(v.found(v.points[i]), v.found(p), history...)
	return slices.DeleteFunc(all, func(c custody.Change) bool { return c.Kind == custody.ChangeNone })
}

// found is Found with what proofs tell of volume keys that headers do not show.
func (v *View) found(p catalog.Point) []custody.DiskVolumes {
	out := Found(p)
	for i := range out {
		keys := map[string]string{}
		for _, x := range v.proofs[p.ID] {
			if x.Disk == out[i].Disk && x.VKProof != "" {
				keys[x.Volume] = x.VKProof
			}
		}
		out[i] = out[i].WithKeys(keys)
	}
	return out
}

// Found is what the catalog knows of an inspection: the disks in the order of
// p, their volumes too.
func Found(p catalog.Point) []custody.DiskVolumes {
	point := p.ID
	if !p.DeletedAt.IsZero() {
		point = "" // nothing can be had from it
	}
	out := make([]custody.DiskVolumes, 0, len(p.Disks))
	for _, d := range p.Disks {
		var rep diskcrypt.Report
		for _, x := range d.Volumes {
			rep.Volumes = append(rep.Volumes, VolumeOf(x))
		}
		if json.Unmarshal(d.Areas, &rep.Areas) != nil {
			rep.Areas = nil
		}
		out = append(out, custody.Found(point, d.Disk, d.Size, &rep))
	}
	return out
}

// bekVolumes says which plain areas of a disk hold keys of others in clear.
func bekVolumes(d catalog.PointDisk) []string {
	var areas []diskcrypt.Area
	if json.Unmarshal(d.Areas, &areas) != nil {
		return nil
	}
	var out []string
	for _, a := range areas {
		if a.Note == "BEK VOLUME" {
			out = append(out, fmt.Sprintf("%s/%s is a BEK volume: it holds keys in clear", d.Disk, a.ID))
		}
	}
	return out
}

func (v *View) claim(c custody.Candidate, digest string) custody.Claim {
	out := custody.Claim{Secret: c.Secret, Kind: c.Kind, State: c.State}
	if a, known := v.attempts[digest][c.Secret]; known {
		// That it opens without a proof of this recovery point says: to be tried.
		if len(a.Opened) == 0 {
			out.Tried = custody.Refused
		}
		return out
	}
	if why, stopped := v.stopped[digest][c.Secret]; stopped {
		out.Tried, out.Why = custody.Stopped, why
	}
	return out
}

// copies counts today's recovery recipients for whom a package of the
// recovery point holds the version.
func (v *View) copies(point string, ref keymanager.Ref) int {
	n := 0
	for _, to := range v.d.Recipients {
		if slices.ContainsFunc(v.packages[point], func(p catalog.Package) bool {
			return slices.Contains(p.Recipients, to) && slices.Contains(p.Refs, ref.String())
		}) {
			n++
		}
	}
	return n
}

// query asks for candidates with what is known of header and parent.
func (v *View) query(p catalog.Point, disk string, vol diskcrypt.Volume) custody.CandidateQuery {
	q := custody.CandidateQuery{
		Machine: v.machine, Disk: disk, Volume: vol, Secrets: v.secrets,
		OpenedHeader: map[keymanager.Ref]bool{}, OpenedParent: map[keymanager.Ref]bool{}, Refused: map[keymanager.Ref]bool{},
	}
	for ref, a := range v.attempts[vol.HeaderDigest] {
		if len(a.Opened) > 0 {
			q.OpenedHeader[ref] = true
		} else {
			q.Refused[ref] = true
		}
	}
	for _, proof := range v.proofs[p.Parent] {
		if proof.Disk == disk && proof.Volume == vol.ID {
			q.OpenedParent[refOf(proof)] = true
		}
	}
	return q
}

// Candidates are the secret versions that claim a volume of a recovery point, the
// likeliest first (see custody.Candidates).
func (v *View) Candidates(ctx context.Context, p catalog.Point, disk string, vol diskcrypt.Volume) ([]custody.Candidate, error) {
	if _, err := v.tried(ctx, vol.HeaderDigest); err != nil {
		return nil, err
	}
	return custody.Candidates(v.query(p, disk, vol)), nil
}

// attempted records that a version opened, or opens nothing of, a header. What
// an earlier attempt found is not narrowed by one that stopped at the first protector.
func (v *View) attempted(ctx context.Context, digest string, ref keymanager.Ref, opened []string) error {
	m, err := v.tried(ctx, digest)
	if err != nil {
		return err
	}
	for _, id := range m[ref].Opened {
		if !slices.Contains(opened, id) {
			opened = append(slices.Clone(opened), id)
		}
	}
	a := catalog.Attempt{HeaderDigest: digest, Secret: ref.ID, Version: ref.Version, Opened: opened, Time: v.d.Now().UTC()}
	if err := v.d.Catalog.Proofs.PutAttempt(ctx, a); err != nil {
		return fmt.Errorf("record attempt: %w", err)
	}
	m[ref] = a
	delete(v.stopped[digest], ref)
	return nil
}

func (v *View) stop(digest string, ref keymanager.Ref, why string) {
	if v.stopped[digest] == nil {
		v.stopped[digest] = map[keymanager.Ref]string{}
	}
	v.stopped[digest][ref] = why
}

func (v *View) proved(p catalog.Proof) { v.proofs[p.Point] = append(v.proofs[p.Point], p) }

// fresh says whether an equal proof lies there that is young enough.
func (v *View) fresh(p custody.Proof, now time.Time) bool {
	limit := freshProof
	if v.d.MaxProofAge > 0 {
		limit = min(limit, v.d.MaxProofAge/2)
	}
	return slices.ContainsFunc(v.proofs[p.Point], func(old catalog.Proof) bool {
		age := now.Sub(old.Time)
		return old.Disk == p.Disk && old.Volume == p.Volume && refOf(old) == p.Secret && age >= 0 && age < limit
	})
}

// Unfinished are the newest of points, at most so many, whose proving is not
// complete; but is left out.
func (v *View) Unfinished(points []catalog.Point, but string, most int) (ids []string) {
	for _, p := range slices.Backward(points) {
		state := v.Verdict(p).State
		if p.ID != but && (state == custody.Unproven || state == custody.AtRisk) && len(ids) < most {
			ids = append(ids, p.ID)
		}
	}
	return ids
}
