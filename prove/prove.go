// Package prove opens recovery points, as they are stored, with the secrets in
// custody, and records what came of it: signed proofs, holds, key packages. It
// also takes secrets into custody and says what a recovery point's state is.
//
// It holds no secret but the one that a user is just adding; the prover, a
// process of its own, has the others. It never writes to a source or to what a
// recovery point consists of. Its invariant: a hold is placed before the proof
// that needs it is stored.
package prove

import (
	"context"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strconv"
	"time"

	"github.com/lockstep-backup/lockstep/audit"
	"github.com/lockstep-backup/lockstep/catalog"
	"github.com/lockstep-backup/lockstep/custody"
	"github.com/lockstep-backup/lockstep/diskcrypt"
	"github.com/lockstep-backup/lockstep/envelope"
	"github.com/lockstep-backup/lockstep/keymanager"
	"github.com/lockstep-backup/lockstep/repository"
)

// Deps is what proving works with.
type Deps struct {
	Repo    *repository.Repository
	Catalog *catalog.Catalog
	// Manager may be nil: then it is not available, and nothing fails for it.
	Manager keymanager.Manager
	Prover  custody.Prover
	// Custodian signs declarations.
	Custodian envelope.SigningKey
	// Recipients are the recovery recipients that key packages are sealed to.
	Recipients []string
	// Installation tags holds: several installations may share a manager.
	Installation string
	// MaxProofAge of the policy; 0 = a proof does not age.
	MaxProofAge time.Duration

	// Formats inspect live disks, which Live opens. Either may be empty.
	Formats []diskcrypt.Format
	Live    func(ctx context.Context, m catalog.Machine) ([]LiveDisk, error)

	// Lease, where it is not nil, keeps a recovery point from being deleted while
	// secrets are tried on it.
	Lease func(ctx context.Context, point string) (release func(), err error)

	Now   func() time.Time
	Log   *slog.Logger
	Audit func(ctx context.Context, e audit.Event) error
	Actor string // who asked, for audit entries and declarations
}

func (d Deps) withDefaults() Deps {
	if d.Now == nil {
		d.Now = time.Now
	}
	if d.Log == nil {
		d.Log = slog.New(slog.DiscardHandler)
	}
	return d
}

func (d Deps) audit(ctx context.Context, action, object, outcome, reason string, detail map[string]string) {
	if d.Audit == nil {
		return
	}
	e := audit.Event{Time: d.Now(), Actor: d.Actor, Action: action, Object: object, Outcome: outcome, Reason: reason, Detail: detail}
	if err := d.Audit(ctx, e); err != nil {
		d.Log.Error("write audit entry", "action", action, "object", object, "error", err)
	}
}

// Result is what came of proving one recovery point.
type Result struct {
	Point    string
	Machine  string
	Verdict  custody.Verdict
	Opened   []Opening // by secrets in custody, in this run
	Problems []string  // what could not be done, in words; none of it is fatal
	// Damaged is what of the recovery point cannot be read as it was stored. An
	// earlier proof does not make up for it, whatever the verdict says.
	Damaged []error
	// Unheld are versions that open it and that the key manager could not be
	// made to hold: it may let them be destroyed.
	Unheld  []keymanager.Ref
	Seconds float64 // of the prover
	PeakRSS int64   // bytes, the prover's highest
}

// Opening says that a secret opened a volume.
type Opening struct {
	Point      string // "" = the disk as it is now
	Disk       string
	Volume     string
	Secret     keymanager.Ref
	Protectors []string
}

// Progress is told before each volume; total counts recovery points.
type Progress func(done, total int, point string)

// Points tries the secrets in custody on recovery points, in the order given,
// and records what came of it. An error is about all of it (unknown recovery
// point, catalog, context); that the key manager or the prover is away, or that
// a recovery point is damaged, is in the results.
func Points(ctx context.Context, d Deps, ids []string, progress Progress) ([]Result, error) {
	d = d.withDefaults()
	r := runner{Deps: d, views: map[string]*View{}, points: map[string][]repository.Point{}, headers: map[string]bool{}}
	var out []Result
	for i, id := range ids {
		if progress != nil {
			progress(i, len(ids), id)
		}
		res, err := r.point(ctx, id)
		if err != nil {
			return out, fmt.Errorf("prove recovery point %s: %w", id, err)
		}
		out = append(out, res)
	}
	if progress != nil {
		progress(len(ids), len(ids), "")
	}
	return out, nil
}

// runner keeps, over one run, what several recovery points share.
type runner struct {
	Deps
	views  map[string]*View              // by machine
	points map[string][]repository.Point // by machine
	// declared are the volumes that the user declared, by machine and disk.
	declared map[string]map[string]map[string]map[string]string
	// headers are the machines whose header packages were looked for in the store.
	headers map[string]bool
}

func (r *runner) view(ctx context.Context, machine string) (*View, error) {
	if v := r.views[machine]; v != nil {
		return v, nil
	}
	v, err := Load(ctx, r.Deps, machine)
	if err == nil {
		r.views[machine] = v
	}
	return v, err
}

// subject is a recovery point under proof.
type subject struct {
	catalog  catalog.Point
	expected custody.ExpectedPoint
	volumes  []subjectVolume
	reader   *pointReader
}

type subjectVolume struct {
	disk        string
	contentRoot string
	volume      diskcrypt.Volume
	headerSize  int64 // of the detached header
}

// errNotListed: the catalog has the recovery point, and the repository's log not.
var errNotListed = fmt.Errorf("the repository does not list it: %w", repository.ErrNotFound)

func (r *runner) subject(ctx context.Context, id string) (*subject, error) {
	cp, err := r.Catalog.Points.Get(ctx, id)
	if err != nil {
		return nil, err
	}
	if r.points[cp.Machine] == nil {
		list, err := r.Repo.Points(ctx, cp.Machine)
		if err != nil && !errors.Is(err, repository.ErrDamaged) {
			return nil, err
		}
		r.points[cp.Machine] = list
	}
	i := slices.IndexFunc(r.points[cp.Machine], func(p repository.Point) bool { return p.ID == id })
	if i < 0 {
		return nil, errNotListed
	}
	mf, err := r.Repo.Manifest(ctx, r.points[cp.Machine][i])
	if err != nil {
		return nil, err
	}
	s := &subject{catalog: cp}
	if s.expected, err = Expected(mf); err != nil {
		return nil, err
	}
	s.reader = newPointReader(ctx, r.Repo, mf)
	for di, disk := range s.expected.Disks {
		for _, v := range disk.Volumes {
			sv := subjectVolume{disk: disk.ID, contentRoot: disk.ContentRoot, volume: r.asDeclared(ctx, s, disk.ID, v)}
			if v.Detached {
				h, err := s.reader.header(mf.Disks[di], v.ID)
				if err != nil {
					r.Log.Warn("read detached header", "point", id, "disk", disk.ID, "volume", v.ID, "error", err)
				} else {
					sv.headerSize = h.Size
				}
			}
			s.volumes = append(s.volumes, sv)
		}
	}
	return s, nil
}

// Expected is what the signed manifest says that proofs must be about.
func Expected(mf *repository.Manifest) (custody.ExpectedPoint, error) {
	e := custody.ExpectedPoint{Repository: mf.Repository, Machine: mf.Machine, Point: mf.Point}
	for _, d := range mf.Disks {
		x := custody.ExpectedDisk{ID: d.ID, ContentRoot: d.ContentRoot}
		if len(d.Inspection) > 0 {
			var rep diskcrypt.Report
			if err := json.Unmarshal(d.Inspection, &rep); err != nil {
				return e, fmt.Errorf("read inspection of disk %s: %w", d.ID, err)
			}
			x.Volumes = rep.Volumes
		}
		e.Disks = append(e.Disks, x)
	}
	return e, nil
}

func (r *runner) point(ctx context.Context, id string) (Result, error) {
	res := Result{Point: id}
	if r.Lease != nil {
		release, err := r.Lease(ctx, id)
		if err != nil {
			return res, err
		}
		defer release()
	}
	cp, err := r.Catalog.Points.Get(ctx, id)
	if err != nil {
		return res, err
	}
	// It may have gone since others of this run were looked for.
	if deleted, err := r.Repo.Deleted(ctx, cp.Machine); err == nil && deleted[id] {
		return r.deleted(ctx, cp)
	}
	s, err := r.subject(ctx, id)
	if err != nil {
		return r.unreadable(ctx, res, err)
	}
	defer s.reader.Close()
	res.Machine = s.catalog.Machine
	view, err := r.view(ctx, s.catalog.Machine)
	if err != nil {
		return res, err
	}
	if err := r.reconcile(ctx, s, view, &res); err != nil {
		return res, err
	}
	for _, v := range s.volumes {
		if view.notNeeded(v.disk, v.volume.ID) != "" || v.volume.HeaderDigest == "" {
			continue // it does not count, or there is nothing that a secret could open
		}
		if err := r.volume(ctx, s, v, view, &res); err != nil {
			return res, err
		}
	}
	if err := r.packages(ctx, s, view, &res); err != nil {
		return res, err
	}
	res.Verdict = view.Verdict(s.catalog)
	res.Damaged = s.reader.damage
	r.conclude(ctx, res)
	return res, nil
}

// conclude records what came of it.
func (r *runner) conclude(ctx context.Context, res Result) {
	outcome, detail := audit.Done, map[string]string{"state": string(res.Verdict.State), "machine": res.Machine}
	if len(res.Damaged) > 0 {
		outcome = audit.Failed
		detail["damaged"] = strconv.Itoa(len(res.Damaged))
	}
	r.audit(ctx, "point.prove", res.Point, outcome, "", detail)
}

// deleted is the end for a recovery point that the repository has deleted:
// there is nothing to try, and that is no damage.
func (r *runner) deleted(ctx context.Context, cp catalog.Point) (Result, error) {
	res := Result{Point: cp.ID, Machine: cp.Machine, Problems: []string{"nothing is tried: the repository has deleted it"}}
	view, err := r.view(ctx, cp.Machine)
	if err != nil {
		return res, err
	}
	res.Verdict = view.Verdict(cp)
	return res, nil
}

// unreadable is the end for a recovery point of which not even the description
// can be read: that is a finding. Other errors come back.
func (r *runner) unreadable(ctx context.Context, res Result, err error) (Result, error) {
	if ctx.Err() != nil || !isDamage(err) {
		return res, err
	}
	cp, cerr := r.Catalog.Points.Get(ctx, res.Point)
	if cerr != nil {
		return res, errors.Join(err, cerr)
	}
	res.Machine, res.Damaged = cp.Machine, []error{err}
	view, verr := r.view(ctx, cp.Machine)
	if verr != nil {
		return res, errors.Join(err, verr)
	}
	res.Verdict = view.Verdict(cp)
	res.Problems = append(res.Problems, err.Error())
	r.conclude(ctx, res)
	return res, nil
}

// volume tries the candidates of one volume and records what came of it: until
// one opens it, and then what else is active, for each protector in use wants
// its proof and its hold. The error is the context's or the catalog's.
func (r *runner) volume(ctx context.Context, s *subject, v subjectVolume, view *View, res *Result) error {
	candidates, err := view.Candidates(ctx, s.catalog, v.disk, v.volume)
	if err != nil {
		return err
	}
	active := map[keymanager.Ref]bool{}
	req := custody.VolumeRequest{Disk: v.disk, ContentRoot: v.contentRoot, Volume: v.volume, HeaderSize: v.headerSize}
	for _, c := range candidates {
		if c.Usable() && !c.Refused {
			req.Candidates = append(req.Candidates, custody.CandidateRequest{Secret: c.Secret, Kind: c.Kind})
			active[c.Secret] = c.State == keymanager.Active
		}
	}
	for len(req.Candidates) > 0 && r.Prover != nil {
		o, err := r.try(ctx, s, v, req, view, res)
		if err != nil || o == nil || len(o.Attempts) == 0 || o.Proof == nil {
			return err
		}
		req.Candidates = slices.DeleteFunc(req.Candidates, func(c custody.CandidateRequest) bool {
			return !active[c.Secret] || slices.ContainsFunc(o.Attempts, func(a custody.AttemptOutcome) bool { return a.Secret == c.Secret })
		})
	}
	return nil
}

// try has the prover try the candidates up to the first that opens the volume.
// The outcome is nil where the prover gave none.
func (r *runner) try(ctx context.Context, s *subject, v subjectVolume, req custody.VolumeRequest, view *View, res *Result) (*custody.VolumeOutcome, error) {
	name := custody.VolumeKey{Disk: v.disk, Volume: v.volume.ID}.String()
	outcome, err := r.Prover.Try(ctx, custody.Request{
		Repository: s.catalog.Repository, Machine: s.catalog.Machine, Point: s.catalog.ID, Volumes: []custody.VolumeRequest{req},
	}, s.reader)
	if ctx.Err() != nil {
		return nil, ctx.Err()
	}
	if err != nil {
		// Nothing is known about any of them: it stays unproven, with the reason.
		r.Log.Warn("prover", "point", s.catalog.ID, "volume", name, "error", err)
		for _, c := range req.Candidates {
			view.stop(v.volume.HeaderDigest, c.Secret, proverWords(err))
		}
		res.Problems = append(res.Problems, name+": "+proverWords(err))
		return nil, nil
	}
	res.Seconds += outcome.Seconds
	res.PeakRSS = max(res.PeakRSS, outcome.PeakRSS)
	o := outcome.Volumes[0]
	if o.Error != "" {
		for _, c := range req.Candidates {
			view.stop(v.volume.HeaderDigest, c.Secret, o.Error)
		}
		res.Problems = append(res.Problems, name+": "+o.Error)
	}
	for _, a := range o.Attempts {
		if a.Tried == custody.Stopped {
			view.stop(v.volume.HeaderDigest, a.Secret, a.Why)
			res.Problems = append(res.Problems, fmt.Sprintf("%s: secret %s: %s", name, a.Secret, a.Why))
			continue
		}
		if err := view.attempted(ctx, v.volume.HeaderDigest, a.Secret, a.Protectors); err != nil {
			return nil, err
		}
	}
	if o.Proof == nil {
		return &o, nil
	}
	return &o, r.proof(ctx, s, o, view, res, name)
}

func proverWords(err error) string {
	switch {
	case errors.Is(err, custody.ErrProverStart):
		return err.Error()
	case errors.Is(err, custody.ErrProverDied):
		return "the prover died while it tried; try again"
	case errors.Is(err, custody.ErrProverProtocol):
		return "the prover's answer cannot be believed"
	default:
		return "the prover could not be asked"
	}
}

// proof checks a proof as a stranger would, places the hold, and stores it.
func (r *runner) proof(ctx context.Context, s *subject, o custody.VolumeOutcome, view *View, res *Result, name string) error {
	p, signer, err := custody.VerifyProof(o.Proof, r.Repo.Trust(), s.expected)
	if err != nil {
		res.Problems = append(res.Problems, fmt.Sprintf("%s: the prover's proof does not count: %v", name, err))
		return nil
	}
	a, _ := o.Opened()
	if a.Secret != p.Secret {
		res.Problems = append(res.Problems, name+": the prover's proof names another secret than it says")
		return nil
	}
	res.Opened = append(res.Opened, Opening{Point: p.Point, Disk: p.Disk, Volume: p.Volume, Secret: p.Secret, Protectors: a.Protectors})
	if view.fresh(p, r.Now()) {
		return r.placeHold(ctx, p, res) // it may have been lost since
	}
	if err := r.placeHold(ctx, p, res); err != nil {
		return err
	}
	key, err := r.Repo.PutSidecar(ctx, p.Machine, p.Point, repository.SidecarProof, o.Proof)
	if err != nil {
		if ctx.Err() != nil {
			return ctx.Err()
		}
		res.Problems = append(res.Problems, fmt.Sprintf("%s: store proof: %v", name, err))
		return nil
	}
	record := CatalogProof(key, p, signer)
	if err := r.Catalog.Proofs.Put(ctx, record); err != nil {
		return fmt.Errorf("record proof: %w", err)
	}
	view.proved(record)
	return nil
}

// CatalogProof is what the catalog keeps of a verified proof.
func CatalogProof(key string, p custody.Proof, signer envelope.KeyID) catalog.Proof {
	c := catalog.Proof{
		Key: key, Point: p.Point, Disk: p.Disk, Volume: p.Volume, Secret: p.Secret.ID, Version: p.Secret.Version,
		Recognised: p.Class, KeyCheck: p.KeyCheck, Time: p.Time, Signer: string(signer),
		VKProof: hex.EncodeToString(p.VKProof),
	}
	for _, x := range p.Protectors {
		c.Protectors = append(c.Protectors, x.ID)
	}
	return c
}

func (r *runner) placeHold(ctx context.Context, p custody.Proof, res *Result) error {
	if r.Manager == nil {
		return nil
	}
	err := r.Manager.Hold(ctx, p.Secret, keymanager.Hold{
		Repository: p.Repository, Machine: p.Machine, Point: p.Point, Installer: r.Installation, Since: r.Now().UTC(),
	})
	if ctx.Err() != nil {
		return ctx.Err()
	}
	if err != nil {
		// The hold follows from the proof in the repository as well, and is placed
		// again by the next run; the proof is worth more than it.
		r.Log.Warn("place hold", "secret", p.Secret.String(), "point", p.Point, "error", err)
		res.Problems = append(res.Problems, fmt.Sprintf("secret %s could not be held in the key manager", p.Secret))
		if !slices.Contains(res.Unheld, p.Secret) {
			res.Unheld = append(res.Unheld, p.Secret)
		}
	}
	return nil
}
