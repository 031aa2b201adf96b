package rescue

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"reflect"
	"slices"
	"strings"
	"time"

	"github.com/lockstep-backup/lockstep/custody"
	"github.com/lockstep-backup/lockstep/diskcrypt"
	"github.com/lockstep-backup/lockstep/envelope"
	"github.com/lockstep-backup/lockstep/keymanager"
	"github.com/lockstep-backup/lockstep/repository"
)

// Machine is a machine of the repository with its recovery points, newest
// first, and what could not be read or does not count.
type Machine struct {
	repository.Machine
	Points   []*Point
	Problems []error
}

// Point is a recovery point.
type Point struct {
	repository.Point
	MachineName string
	Manifest    *repository.Manifest // nil where it cannot be read
	Volumes     []Volume
	Problems    []error

	packages []keyPackage
	machine  *Machine
}

// Access says what the recovery identity can do with a volume.
type Access string

// The answers.
const (
	Ready       Access = "ready"        // a key package has a secret for it, and a proof says that it opens it
	Untested    Access = "untested"     // a key package has a secret for it, without a proof that counts
	Locked      Access = "locked"       // no key package that the identity opens has a secret for it
	NotNeeded   Access = "not-needed"   // declared so
	SelfOpening Access = "self-opening" // it is as good as plain
)

// Volume is an encrypted volume of a recovery point.
type Volume struct {
	Disk string
	diskcrypt.Volume
	Access    Access
	Keys      []Key
	Proofs    []custody.Proof // valid ones
	NotNeeded string          // reason of the declaration in force
}

// Name is DISK/VOLUME.
func (v Volume) Name() string { return v.Disk + "/" + v.ID }

// Key is a secret version in a key package.
type Key struct {
	Secret keymanager.Ref
	Kind   diskcrypt.Kind
	Here   bool   // the identity opens the package
	Point  string // recovery point of the package: this one, or another with the same header
}

// keyPackage is a key package whose signature is right.
type keyPackage struct {
	cover   custody.KeyCover
	raw     []byte
	revoked bool
	ours    bool
}

// Machines reads what there is: machines by name. Damage is among the
// problems; the error is about not being able to look.
func (r *Rescue) Machines(ctx context.Context) ([]*Machine, []error, error) {
	all, err := r.repo.Machines(ctx)
	if all == nil && err != nil && !errors.Is(err, repository.ErrDamaged) || ctx.Err() != nil {
		return nil, nil, errors.Join(err, ctx.Err())
	}
	problems := flatten(err)
	var out []*Machine
	for _, m := range all {
		machine, err := r.machine(ctx, m)
		if err != nil {
			return nil, nil, err
		}
		out = append(out, machine)
	}
	return out, problems, nil
}

func (r *Rescue) machine(ctx context.Context, rm repository.Machine) (*Machine, error) {
	m := &Machine{Machine: rm}
	points, err := r.repo.Points(ctx, rm.ID)
	if err != nil && !errors.Is(err, repository.ErrDamaged) || ctx.Err() != nil {
		return nil, errors.Join(err, ctx.Err())
	}
	m.Problems = append(m.Problems, flatten(err)...)
	m.Problems = append(m.Problems, flatten(r.repo.CheckLog(ctx, rm.ID))...)
	declared, err := r.declarations(ctx, m)
	if err != nil {
		return nil, err
	}
	for _, p := range slices.Backward(points) {
		pt, err := r.point(ctx, m, p)
		if err != nil {
			return nil, err
		}
		m.Points = append(m.Points, pt)
	}
	for _, p := range m.Points {
		p.judge(declared)
	}
	return m, nil
}

func (r *Rescue) declarations(ctx context.Context, m *Machine) (map[custody.VolumeKey]custody.Declaration, error) {
	sidecars, err := r.repo.Sidecars(ctx, m.ID, repository.MachineSidecars)
	if ctx.Err() != nil {
		return nil, ctx.Err()
	}
	m.Problems = append(m.Problems, flatten(err)...)
	homes, err := r.repo.Homes(ctx, m.ID)
	if err != nil {
		return nil, err
	}
	var all []custody.Declaration
	for _, s := range sidecars {
		if s.Kind != repository.SidecarDeclaration {
			continue
		}
		d, err := custody.VerifyDeclarationOf(s.Raw, r.trust(), homes, m.ID)
		if err != nil {
			m.Problems = append(m.Problems, fmt.Errorf("%s does not count: %w", s.Key, err))
			continue
		}
		all = append(all, d)
	}
	return custody.InForce(all), nil
}

func (r *Rescue) point(ctx context.Context, m *Machine, rp repository.Point) (*Point, error) {
	p := &Point{Point: rp, MachineName: m.Name, machine: m}
	mf, err := r.repo.Manifest(ctx, rp)
	if ctx.Err() != nil {
		return nil, ctx.Err()
	}
	if err != nil {
		p.Problems = append(p.Problems, err)
		return p, nil
	}
	p.Manifest = mf
	want := custody.ExpectedPoint{Repository: mf.Repository, Machine: mf.Machine, Point: mf.Point}
	for _, d := range mf.Disks {
		report := new(diskcrypt.Report)
		if len(d.Inspection) > 0 {
			if err := json.Unmarshal(d.Inspection, report); err != nil {
				p.Problems = append(p.Problems, fmt.Errorf("read inspection of disk %s: %w", d.ID, err))
			}
		}
		want.Disks = append(want.Disks, custody.ExpectedDisk{ID: d.ID, ContentRoot: d.ContentRoot, Volumes: report.Volumes})
		for _, v := range report.Volumes {
			p.Volumes = append(p.Volumes, Volume{Disk: d.ID, Volume: v})
		}
	}
	return p, r.statements(ctx, p, want)
}

// statements reads proofs and covers of key packages.
func (r *Rescue) statements(ctx context.Context, p *Point, want custody.ExpectedPoint) error {
	sidecars, err := r.repo.Sidecars(ctx, p.Machine, p.ID)
	if ctx.Err() != nil {
		return ctx.Err()
	}
	p.Problems = append(p.Problems, flatten(err)...)
	for _, s := range sidecars {
		var err error
		switch s.Kind {
		case repository.SidecarProof:
			var proof custody.Proof
			if proof, _, err = custody.VerifyProof(s.Raw, r.trust(), want); err == nil {
				v := p.volume(proof.Disk, proof.Volume)
				v.Proofs = append(v.Proofs, proof)
				if v.Type == diskcrypt.TypeOpaque && proof.Declared != nil { // declared later, and opened so
					v.Type, v.Declared, v.HeaderDigest, v.Unsupported = proof.Type, proof.Declared, proof.HeaderDigest, ""
				}
			}
		case repository.SidecarKeyPackage:
			var cover custody.KeyCover
			cover, err = custody.ReadKeyCover(s.Raw, r.trust())
			revoked := errors.Is(err, custody.ErrRevoked)
			if err == nil || revoked {
				if cover.Repository != want.Repository || cover.Machine != want.Machine || cover.Point != want.Point {
					err = custody.ErrMismatch
					break
				}
				p.packages = append(p.packages, keyPackage{cover, s.Raw, revoked, r.ours(cover.Recipients)})
			}
		}
		if err != nil {
			p.Problems = append(p.Problems, fmt.Errorf("%s does not count: %w", s.Key, err))
		}
	}
	return nil
}

// volume finds a volume; the caller knows that there is one.
func (p *Point) volume(disk, id string) *Volume {
	i := slices.IndexFunc(p.Volumes, func(v Volume) bool { return v.Disk == disk && v.ID == id })
	return &p.Volumes[i]
}

// judge fills in Keys and Access, which also depend on the other recovery
// points of the machine: a package of one with the same header serves as well.
func (p *Point) judge(declared map[custody.VolumeKey]custody.Declaration) {
	for i := range p.Volumes {
		v := &p.Volumes[i]
		v.Keys = p.keys(*v)
		if len(v.Keys) == 0 {
			for _, q := range p.machine.Points {
				if q != p && len(v.Keys) == 0 {
					v.Keys = q.keysForHeader(*v)
				}
			}
		}
		here := slices.ContainsFunc(v.Keys, func(k Key) bool { return k.Here })
		proven := slices.ContainsFunc(v.Keys, func(k Key) bool {
			return k.Here && slices.ContainsFunc(v.Proofs, func(pr custody.Proof) bool { return pr.Secret == k.Secret })
		})
		if d, ok := declared[custody.VolumeKey{Disk: v.Disk, Volume: v.ID}]; ok {
			v.NotNeeded = d.Reason
		}
		switch {
		case proven:
			v.Access = Ready
		case here:
			v.Access = Untested
		case v.NotNeeded != "":
			v.Access = NotNeeded
		case v.SelfOpening != "":
			v.Access = SelfOpening
		default:
			v.Access = Locked
		}
	}
}

// keys are the secrets of this recovery point's packages for a volume, those
// that the identity opens first.
func (p *Point) keys(v Volume) []Key {
	var out []Key
	for _, pkg := range p.packages {
		for _, s := range pkg.cover.Secrets {
			if s.Disk != v.Disk || s.Volume != v.ID {
				continue
			}
			k := Key{Secret: s.Secret, Kind: s.Kind, Here: pkg.ours, Point: p.ID}
			if i := slices.IndexFunc(out, func(o Key) bool { return o.Secret == k.Secret }); i >= 0 {
				out[i].Here = out[i].Here || k.Here
				continue
			}
			out = append(out, k)
		}
	}
	slices.SortStableFunc(out, func(a, b Key) int {
		switch {
		case a.Here == b.Here:
			return 0
		case a.Here:
			return -1
		}
		return 1
	})
	return out
}

// keysForHeader are the secrets for a volume of this recovery point that has
// the same header as v of another one.
func (p *Point) keysForHeader(v Volume) []Key {
	if v.HeaderDigest == "" {
		return nil
	}
	for _, mine := range p.Volumes {
		if mine.Disk == v.Disk && mine.ID == v.ID && mine.HeaderDigest == v.HeaderDigest {
			return p.keys(mine)
		}
	}
	return nil
}

// Opens says whether the identity can open every volume that is needed.
func (p *Point) Opens() bool {
	return p.Manifest != nil && !slices.ContainsFunc(p.Volumes, func(v Volume) bool { return v.Access == Locked })
}

// Incomplete says whether ranges could not be read when it was made.
func (p *Point) Incomplete() bool {
	return p.Manifest != nil && (p.Manifest.Incomplete ||
		slices.ContainsFunc(p.Manifest.Disks, func(d repository.Disk) bool { return len(d.Unread) > 0 }))
}

// When is the time of the recovery point: that of the source, or of the log
// entry where the manifest cannot be read.
func (p *Point) When() time.Time {
	if p.Manifest != nil {
		return p.Manifest.Time
	}
	return p.Time
}

// Find finds a recovery point by its id, a prefix of it that is unique,
// NAME@latest or NAME@TIME (the newest at or before TIME, RFC 3339). ErrNoPoint.
func Find(machines []*Machine, name string) (*Point, error) {
	fail := func(why string) (*Point, error) {
		return nil, fmt.Errorf("find recovery point %q: %w%s", name, ErrNoPoint, why)
	}
	at := strings.LastIndexByte(name, '@')
	if at < 0 {
		var found []*Point
		for _, m := range machines {
			for _, p := range m.Points {
				if strings.HasPrefix(p.ID, name) && name != "" {
					found = append(found, p)
				}
			}
		}
		switch len(found) {
		case 0:
			return fail("")
		case 1:
			return found[0], nil
		}
		return fail(fmt.Sprintf(": %d begin with it", len(found)))
	}
	var ms []*Machine
	for _, m := range machines {
		if m.Name == name[:at] || m.ID == name[:at] {
			ms = append(ms, m)
		}
	}
	if len(ms) == 0 {
		return fail(": there is no such machine")
	}
	if len(ms) > 1 {
		return fail(": several machines have this name; use the recovery point's id")
	}
	if name[at+1:] == "latest" {
		if len(ms[0].Points) == 0 {
			return fail(": the machine has none")
		}
		return ms[0].Points[0], nil
	}
	limit, err := time.Parse(time.RFC3339, name[at+1:])
	if err != nil {
		return fail(": what follows @ is neither latest nor a time such as 2026-03-14T02:15:00Z")
	}
	if !strings.Contains(name[at+1:], ".") {
		limit = limit.Add(time.Second - 1) // all of that second: lists show no fractions
	}
	for _, p := range ms[0].Points {
		if !p.When().After(limit) {
			return p, nil
		}
	}
	return fail(": the machine has none that old")
}

// flatten makes a list of what errors.Join joined.
func flatten(err error) []error {
	if err == nil {
		return nil
	}
	// Only that type is a list; other errors of several parts are one finding.
	joined, ok := err.(interface{ Unwrap() []error })
	if !ok || reflect.TypeOf(err) != joinType {
		return []error{err}
	}
	var out []error
	for _, e := range joined.Unwrap() {
		out = append(out, flatten(e)...)
	}
	return out
}

var joinType = reflect.TypeOf(errors.Join(ErrNoPoint))

// openPackages opens this recovery point's key packages that the identity
// opens. The caller wipes them.
func (r *Rescue) openPackages(p *Point) (out []*custody.KeyPackage, problems []error) {
	for _, pkg := range p.packages {
		if !pkg.ours {
			continue
		}
		opened, err := custody.OpenKeyPackage(pkg.raw, r.identities, r.trust())
		if err != nil {
			problems = append(problems, err)
		}
		if opened != nil && (err == nil || pkg.revoked && errors.Is(err, custody.ErrRevoked)) {
			out = append(out, opened)
		}
	}
	return out, problems
}

// OpenPackages opens every key package of a recovery point that is sealed to
// the identity, forgets what was in it, and says how many opened.
func (r *Rescue) OpenPackages(p *Point) (opened int, problems []error) {
	pkgs, problems := r.openPackages(p)
	for _, pkg := range pkgs {
		pkg.Wipe()
	}
	return len(pkgs), problems
}

// Secret is a secret taken out of a key package.
type Secret struct {
	Disk, Volume string
	Key          Key
	Bytes        envelope.Secret
}

// Secrets takes out the secrets of a recovery point, for each volume those of
// its own packages or, where there are none, of one with the same header. The
// caller wipes them. Problems name packages that could not be opened.
func (r *Rescue) Secrets(p *Point) (out []Secret, problems []error) {
	opened := map[string][]*custody.KeyPackage{}
	defer func() {
		for _, pkgs := range opened {
			for _, pkg := range pkgs {
				pkg.Wipe()
			}
		}
	}()
	for _, v := range p.Volumes {
		for _, k := range v.Keys {
			if !k.Here {
				continue
			}
			if _, done := opened[k.Point]; !done {
				i := slices.IndexFunc(p.machine.Points, func(q *Point) bool { return q.ID == k.Point })
				pkgs, bad := r.openPackages(p.machine.Points[i])
				opened[k.Point] = pkgs
				problems = append(problems, bad...)
			}
			if b, ok := secretOf(opened[k.Point], v, k); ok {
				out = append(out, Secret{Disk: v.Disk, Volume: v.ID, Key: k, Bytes: envelope.CopySecret(b.Expose())})
			}
		}
	}
	return out, problems
}

func secretOf(pkgs []*custody.KeyPackage, v Volume, k Key) (envelope.Secret, bool) {
	for _, pkg := range pkgs {
		for i, s := range pkg.Cover.Secrets {
			if s.Disk == v.Disk && s.Volume == v.ID && s.Secret == k.Secret {
				return pkg.Bytes[i], true
			}
		}
	}
	return envelope.Secret{}, false
}
