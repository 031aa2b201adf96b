package prove_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/lockstep-backup/lockstep/catalog"
	"github.com/lockstep-backup/lockstep/custody"
	"github.com/lockstep-backup/lockstep/custody/prover/provertest"
	"github.com/lockstep-backup/lockstep/diskcrypt"
	"github.com/lockstep-backup/lockstep/envelope"
	"github.com/lockstep-backup/lockstep/keymanager"
	"github.com/lockstep-backup/lockstep/prove"
	"github.com/lockstep-backup/lockstep/prove/provetest"
	"github.com/lockstep-backup/lockstep/repository"
)

var ctx = context.Background()

func version(t *testing.T, e *provetest.Env, ref keymanager.Ref) keymanager.Version {
	t.Helper()
	infos, err := e.Manager.List(ctx)
	e.Must(err)
	for _, s := range infos {
		for _, v := range s.Versions {
			if v.Ref == ref {
				return v
			}
		}
	}
	t.Fatalf("%s is not in the key manager", ref)
	return keymanager.Version{}
}

func heldFor(v keymanager.Version) (points []string) {
	for _, h := range v.Holds {
		points = append(points, h.Point)
	}
	return points
}

// The story of the demo, at this level: old point proven by v1, new one
// unrecoverable after a rotation, proven by v2; v1 archived and held.
func TestRotation(t *testing.T) {
	e := provetest.New(t)
	const first, second = "FIRST-passphrase", "SECOND-passphrase"
	dev := e.Encrypted(first)
	m := e.Machine("web", map[string]*provetest.Device{"vda": dev})

	added, err := e.Add(m, first)
	e.Must(err)
	if len(added.Opens) != 1 || added.Opens[0].Point != "" || added.Version.State != keymanager.Active || len(added.Proven) != 0 {
		t.Fatalf("before any backup the live header is tried: %+v", added)
	}
	v1 := added.Version.Ref

	old, res := e.Backup(m)
	if res.Verdict.State != custody.Proven || len(res.Opened) != 1 || res.Opened[0].Secret != v1 || len(res.Problems) > 0 {
		t.Fatalf("first recovery point: %+v", res)
	}
	if got := heldFor(version(t, e, v1)); !slices.Equal(got, []string{old}) {
		t.Fatalf("v1 is held for %v", got)
	}

	e.Rotate(dev, first, second)
	fresh, res := e.Backup(m)
	if res.Verdict.State != custody.Unrecoverable || len(res.Opened) != 0 {
		t.Fatalf("after the rotation: %+v", res)
	}
	if s := e.State(old); s.State != custody.Proven {
		t.Fatalf("the old one is %s %v", s.State, s.Why)
	}

	view, err := prove.Load(ctx, e.Deps, m.ID)
	e.Must(err)
	cp, err := e.Catalog.Points.Get(ctx, fresh)
	e.Must(err)
	if c := view.Changes(cp); len(c) != 1 || c[0].Kind != custody.ChangeProtectorRotated || !strings.Contains(c[0].Text, "escrow the new one") {
		t.Errorf("changes: %v", c)
	}

	added, err = e.Add(m, second)
	e.Must(err)
	v2 := added.Version.Ref
	if v2.ID != v1.ID || v2.Version != 2 || !slices.Equal(added.Proven, []string{fresh}) || !slices.Equal(added.Deactivated, []keymanager.Ref{v1}) {
		t.Fatalf("adding the second: %+v", added)
	}
	if s := e.State(fresh); s.State != custody.Proven || s.Volumes[0].Opens[0] != v2.String() {
		t.Fatalf("now: %+v", s)
	}
	one, two := version(t, e, v1), version(t, e, v2)
	if one.State != keymanager.Deactivated || !slices.Equal(heldFor(one), []string{old}) || one.History[len(one.History)-1].Reason == "" {
		t.Errorf("v1: %+v", one)
	}
	if two.State != keymanager.Active || !slices.Equal(heldFor(two), []string{fresh}) {
		t.Errorf("v2: %+v", two)
	}

	var held *keymanager.HeldError
	if err := prove.Destroy(ctx, e.Deps, v1, "spring cleaning"); !errors.As(err, &held) || len(held.Holds) != 1 || held.Holds[0].Point != old {
		t.Errorf("destroying what is held: %v", err)
	}
	// The manager lost its holds: they follow from the proofs.
	e.Must(e.Manager.Unhold(ctx, v1, one.Holds[0]))
	if err := prove.Destroy(ctx, e.Deps, v1, "spring cleaning"); !errors.As(err, &held) || held.Holds[0].Machine != m.ID {
		t.Errorf("destroying what the catalog holds: %v", err)
	}
	// Proving again places it again, and stores no second proof while the first is fresh.
	_, err = prove.Points(ctx, e.Deps, []string{old}, nil)
	e.Must(err)
	if len(version(t, e, v1).Holds) != 1 {
		t.Error("the lost hold was not placed again")
	}
	count := func() (n int) {
		side, err := e.Repo.Sidecars(ctx, m.ID, old)
		e.Must(err)
		for _, s := range side {
			if s.Kind == repository.SidecarProof {
				n++
			}
		}
		return n
	}
	if n := count(); n != 1 {
		t.Errorf("%d proofs", n)
	}
	e.Clock = e.Clock.Add(48 * time.Hour)
	_, err = prove.Points(ctx, e.Deps, []string{old}, nil)
	e.Must(err)
	if n := count(); n != 2 {
		t.Errorf("%d proofs after two days, want another", n)
	}

	// Gone from the repository, its holds go too, and v1 can be destroyed.
	e.Must(e.Repo.Delete(ctx, m.ID, old, "test"))
	e.Must(e.Catalog.Points.Delete(ctx, old, e.Now(), "test"))
	p, err := e.Catalog.Points.Get(ctx, old)
	e.Must(err)
	if n, err := prove.ReleaseHolds(ctx, e.Deps, p); err != nil || n != 1 {
		t.Fatalf("released %d, %v", n, err)
	}
	if len(version(t, e, v1).Holds) != 0 || len(version(t, e, v2).Holds) != 1 {
		t.Error("holds after deletion")
	}
	e.Must(prove.Destroy(ctx, e.Deps, v1, "spring cleaning"))
	if version(t, e, v1).State != keymanager.Destroyed {
		t.Error("not destroyed")
	}

	// Nothing secret went anywhere but into the key manager and the sealed packages.
	entries, err := json.Marshal(e.Audit)
	e.Must(err)
	out := append(append(e.Log.Bytes(), entries...), fmt.Sprintf("%+v %+v %v", added, res, held)...)
	for _, s := range []string{first, second, provetest.Plaintext} {
		if bytes.Contains(out, []byte(s)) {
			t.Errorf("%q is in a log, an audit entry or a result", s)
		}
	}
}

func TestKeyPackages(t *testing.T) {
	e := provetest.New(t)
	m := e.Machine("web", map[string]*provetest.Device{"vda": e.Encrypted("a"), "vdb": e.Encrypted("b")})
	_, err := e.Add(m, "a", func(r *prove.AddRequest) { r.Volume = "vda/disk" })
	e.Must(err)
	_, err = e.Add(m, "b", func(r *prove.AddRequest) { r.Volume = "vdb/disk" })
	e.Must(err)
	p1, res := e.Backup(m)
	if res.Verdict.State != custody.Proven || len(res.Opened) != 2 {
		t.Fatalf("%+v", res)
	}
	p2, _ := e.Backup(m)

	kinds := func(point string) map[string]int {
		side, err := e.Repo.Sidecars(ctx, m.ID, point)
		e.Must(err)
		n := map[string]int{}
		for _, s := range side {
			n[s.Kind]++
		}
		return n
	}
	if n := kinds(p2); n[repository.SidecarKeyPackage] != 1 || n[repository.SidecarProof] != 2 {
		t.Errorf("second recovery point: %v", n)
	}
	if n := kinds(repository.MachineSidecars); n[repository.SidecarHeaderPackage] != 2 {
		t.Errorf("header packages: %v, want one for each distinct header", n)
	}
	// With repository and identity, nothing else is needed.
	side, err := e.Repo.Sidecars(ctx, m.ID, p1)
	e.Must(err)
	for _, s := range side {
		if s.Kind != repository.SidecarKeyPackage {
			continue
		}
		k, err := custody.OpenKeyPackage(s.Raw, e.Identity, e.Repo.Trust())
		e.Must(err)
		if len(k.Bytes) != 2 || string(k.Bytes[0].Expose()) != "a" || string(k.Bytes[1].Expose()) != "b" || len(k.Cover.Headers) != 2 {
			t.Errorf("%+v", k.Cover)
		}
	}

	// A new recovery recipient gets packages of its own, also for old points;
	// until then the second copy is missing.
	id2, to2, err := envelope.GenerateIdentity()
	e.Must(err)
	e.Deps.Recipients = []string{to2}
	if s := e.State(p1); s.State != custody.AtRisk || !strings.Contains(s.Why[0], "one copy only") {
		t.Errorf("%+v", s)
	}
	_, err = prove.Points(ctx, e.Deps, []string{p1, p2}, nil)
	e.Must(err)
	if s := e.State(p1); s.State != custody.Proven {
		t.Errorf("%+v", s)
	}
	if n := kinds(p1); n[repository.SidecarKeyPackage] != 2 {
		t.Errorf("%v", n)
	}
	side, err = e.Repo.Sidecars(ctx, m.ID, p1)
	e.Must(err)
	opened := 0
	for _, s := range side {
		if s.Kind == repository.SidecarKeyPackage {
			if _, err := custody.OpenKeyPackage(s.Raw, id2, e.Repo.Trust()); err == nil {
				opened++
			}
		}
	}
	if opened != 1 {
		t.Errorf("the new identity opens %d packages", opened)
	}
}

func TestNothingOpens(t *testing.T) {
	e := provetest.New(t)
	m := e.Machine("web", map[string]*provetest.Device{"vda": e.Encrypted("right")})
	_, err := e.Add(m, "wrong")
	var nothing *prove.NothingOpensError
	if !errors.As(err, &nothing) || !errors.Is(err, diskcrypt.ErrWrongSecret) || nothing.Headers != 1 {
		t.Fatalf("%v", err)
	}
	if infos, err := e.Manager.List(ctx); err != nil || len(infos) != 0 {
		t.Errorf("something was kept: %+v %v", infos, err)
	}
	added, err := e.Add(m, "wrong", func(r *prove.AddRequest) { r.Keep = true })
	e.Must(err)
	if added.Version.State != keymanager.PreActive || len(added.Opens) != 0 {
		t.Errorf("%+v", added)
	}
	p, res := e.Backup(m)
	if res.Verdict.State != custody.Unrecoverable {
		t.Errorf("%+v", res)
	}
	if v := version(t, e, added.Version.Ref); len(v.Holds) != 0 {
		t.Errorf("a hold without proof: %+v", v)
	}
	if proofs, err := e.Catalog.Proofs.OfPoint(ctx, p); err != nil || len(proofs) != 0 {
		t.Errorf("%+v %v", proofs, err)
	}

	// The same bytes again are the version that is there; once they open it is active.
	again, err := e.Add(m, "wrong", func(r *prove.AddRequest) { r.Keep = true })
	e.Must(err)
	if !again.Existing || again.Version.Ref != added.Version.Ref {
		t.Errorf("%+v", again)
	}

	// Without any header to try, that is said, and it is no wrong secret.
	empty := e.Machine("empty", map[string]*provetest.Device{"vda": {Bytes: make([]byte, 1<<20)}})
	if _, err := e.Add(empty, "x"); !errors.As(err, &nothing) || errors.Is(err, diskcrypt.ErrWrongSecret) {
		t.Errorf("%v", err)
	}
}

// Kept for a passphrase that will only come into force: it becomes active
// when it opens.
func TestKeptSecretComesIntoForce(t *testing.T) {
	e := provetest.New(t)
	dev := e.Encrypted("old")
	m := e.Machine("web", map[string]*provetest.Device{"vda": dev})
	_, err := e.Add(m, "old")
	e.Must(err)
	kept, err := e.Add(m, "new", func(r *prove.AddRequest) { r.Keep = true })
	e.Must(err)
	e.Rotate(dev, "old", "new")
	_, res := e.Backup(m)
	if res.Verdict.State != custody.Proven || res.Opened[0].Secret != kept.Version.Ref {
		t.Fatalf("%+v", res)
	}
	added, err := e.Add(m, "new")
	e.Must(err)
	if !added.Existing || added.Version.State != keymanager.Active || len(added.Deactivated) != 1 {
		t.Errorf("%+v", added)
	}
}

// A passphrase of long ago, given later, opens old recovery points and goes to
// the archive; the one that opens the newest header stays active.
func TestOldSecretGivenLater(t *testing.T) {
	e := provetest.New(t)
	dev := e.Encrypted("old")
	m := e.Machine("web", map[string]*provetest.Device{"vda": dev})
	p1, res := e.Backup(m)
	if res.Verdict.State != custody.Unrecoverable {
		t.Fatalf("%+v", res)
	}
	p2, _ := e.Backup(m)
	e.Rotate(dev, "old", "new")
	p3, _ := e.Backup(m)
	now, err := e.Add(m, "new")
	e.Must(err)
	added, err := e.Add(m, "old")
	e.Must(err)
	if added.Version.State != keymanager.Deactivated || len(added.Deactivated) != 0 || len(added.Opens) != 2 ||
		len(added.Proven) != 2 || !slices.Contains(added.Proven, p1) || !slices.Contains(added.Proven, p2) {
		t.Errorf("%+v", added)
	}
	if v := version(t, e, now.Version.Ref); v.State != keymanager.Active || !slices.Equal(heldFor(v), []string{p3}) {
		t.Errorf("%+v", v)
	}
	// The guest is reverted to the snapshot of old: the archive's version opens the newest header again.
	e.Rotate(dev, "new", "old")
	added, err = e.Add(m, "old")
	e.Must(err)
	if !added.Existing || added.Version.State != keymanager.Active || len(added.Deactivated) != 1 {
		t.Errorf("%+v", added)
	}
}

func TestManagerAway(t *testing.T) {
	e := provetest.New(t)
	m := e.Machine("web", map[string]*provetest.Device{"vda": e.Encrypted("a")})
	_, err := e.Add(m, "a")
	e.Must(err)
	e.Manager.Away = true
	p, res := e.Backup(m)
	if res.Verdict.State != custody.Unproven || !strings.Contains(strings.Join(res.Verdict.Why, " "), "does not answer") {
		t.Fatalf("%+v", res)
	}
	if _, err := e.Add(m, "a"); !errors.Is(err, keymanager.ErrUnavailable) {
		t.Errorf("%v", err)
	}
	e.Deps.Manager = nil
	if s := e.State(p); s.State != custody.Unproven {
		t.Errorf("%+v", s)
	}
	e.Deps.Manager, e.Manager.Away = e.Manager, false
	rs, err := prove.Points(ctx, e.Deps, []string{p}, nil)
	if err != nil || rs[0].Verdict.State != custody.Proven {
		t.Errorf("it is back: %+v %v", rs, err)
	}
	e.Manager.Away = true
	if s := e.State(p); s.State != custody.AtRisk {
		t.Errorf("proven, and away again: %+v", s)
	}
}

// dying is a prover whose process always dies.
type dying struct{ custody.Prover }

func (dying) Try(context.Context, custody.Request, custody.PointReader) (custody.Outcome, error) {
	return custody.Outcome{}, fmt.Errorf("try secrets: %w: signal: killed", custody.ErrProverDied)
}

func TestProverDies(t *testing.T) {
	e := provetest.New(t)
	m := e.Machine("web", map[string]*provetest.Device{"vda": e.Encrypted("a")})
	_, err := e.Add(m, "a")
	e.Must(err)
	good := e.Deps.Prover
	e.Deps.Prover = dying{}
	// Another header: this one's openings are known from adding.
	p, res := e.Backup(m)
	if res.Verdict.State != custody.Unproven || len(res.Problems) == 0 {
		t.Fatalf("%+v", res)
	}
	if _, err := e.Add(m, "b"); errors.Is(err, diskcrypt.ErrWrongSecret) || err == nil {
		t.Errorf("a prover that dies says nothing about the secret: %v", err)
	}
	e.Deps.Prover = good
	rs, err := prove.Points(ctx, e.Deps, []string{p}, nil)
	if err != nil || rs[0].Verdict.State != custody.Proven {
		t.Errorf("%+v %v", rs, err)
	}
}

// A prover whose key the trust log does not know proves nothing.
func TestForeignProver(t *testing.T) {
	e := provetest.New(t)
	m := e.Machine("web", map[string]*provetest.Device{"vda": e.Encrypted("a")})
	_, err := e.Add(m, "a")
	e.Must(err)
	deps := e.ProverDeps()
	deps.Key, err = envelope.GenerateSigningKey(envelope.RoleProver)
	e.Must(err)
	e.Deps.Prover = provertest.Start(t, deps)
	p, res := e.Backup(m)
	if res.Verdict.State == custody.Proven || len(res.Problems) == 0 {
		t.Errorf("%+v", res)
	}
	side, err := e.Repo.Sidecars(ctx, m.ID, p)
	if err != nil || len(side) != 0 {
		t.Errorf("stored: %d %v", len(side), err)
	}
}

// A proof copied to another recovery point with the very same header does not
// count there.
func TestReplay(t *testing.T) {
	e := provetest.New(t)
	m := e.Machine("web", map[string]*provetest.Device{"vda": e.Encrypted("a")})
	_, err := e.Add(m, "a")
	e.Must(err)
	p1, _ := e.Backup(m)
	p2 := e.Store1(m)
	side, err := e.Repo.Sidecars(ctx, m.ID, p1)
	e.Must(err)
	for _, s := range side {
		_, err := e.Repo.PutSidecar(ctx, m.ID, p2, s.Kind, s.Raw)
		e.Must(err)
	}
	points, err := e.Repo.Points(ctx, m.ID)
	e.Must(err)
	mf, err := e.Repo.Manifest(ctx, points[1])
	e.Must(err)
	got, err := prove.ReadPoint(ctx, e.Repo, mf)
	e.Must(err)
	if len(got.Proofs) != 0 || len(got.Packages) != 0 || len(got.Problems) != 2 {
		t.Errorf("%+v", got)
	}
	holds, _, err := prove.HoldsFromRepository(ctx, e.Repo, "inst")
	if err != nil || len(holds) != 1 || holds[0].Hold.Point != p1 {
		t.Errorf("%+v %v", holds, err)
	}
}

func TestDetachedHeader(t *testing.T) {
	e := provetest.New(t)
	whole := e.Encrypted("a")
	const head = 1 << 20 // covers header and key slots; the payload begins behind
	dev := &provetest.Device{Header: slices.Clone(whole.Bytes), Bytes: slices.Clone(whole.Bytes)}
	clear(dev.Bytes[:head])
	m := e.Machine("web", map[string]*provetest.Device{"vda": dev})
	_, err := e.Add(m, "a")
	e.Must(err)
	_, res := e.Backup(m)
	if res.Verdict.State != custody.Proven || len(res.Problems) > 0 {
		t.Errorf("%+v", res)
	}
}

func TestDeclarations(t *testing.T) {
	e := provetest.New(t)
	m := e.Machine("web", map[string]*provetest.Device{"vda": e.Encrypted("a"), "vdb": e.Encrypted("random key")})
	_, err := e.Add(m, "a")
	e.Must(err)
	p, res := e.Backup(m)
	if res.Verdict.State != custody.Unrecoverable {
		t.Fatalf("%+v", res)
	}
	k := custody.VolumeKey{Disk: "vdb", Volume: "disk"}
	e.Must(prove.DeclareNotNeeded(ctx, e.Deps, m, k, "swap with a random key"))
	s := e.State(p)
	if s.State != custody.Proven || !strings.Contains(strings.Join(s.Why, " "), "swap with a random key") {
		t.Errorf("%+v", s)
	}
	e.Clock = e.Clock.Add(-time.Hour) // the clock goes back; the withdrawal holds all the same
	e.Must(prove.DeclareNotNeeded(ctx, e.Deps, m, k, ""))
	if s := e.State(p); s.State != custody.Unrecoverable {
		t.Errorf("%+v", s)
	}
	foreign := e.Deps
	foreign.Custodian, err = envelope.GenerateSigningKey(envelope.RoleCustodian)
	e.Must(err)
	if err := prove.DeclareNotNeeded(ctx, foreign, m, k, "x"); !errors.Is(err, envelope.ErrSignature) {
		t.Errorf("a custodian that nobody knows: %v", err)
	}
}

func TestDestroyFailsClosed(t *testing.T) {
	e := provetest.New(t)
	m := e.Machine("web", map[string]*provetest.Device{"vda": e.Encrypted("a")})
	added, err := e.Add(m, "a", func(r *prove.AddRequest) { r.Keep = true })
	e.Must(err)
	ref := added.Version.Ref
	e.Must(e.Catalog.Repositories.Put(ctx, catalog.Repository{ID: strings.Repeat("9", 32), URL: "mem:other"}))
	if err := prove.Destroy(ctx, e.Deps, ref, "x"); !errors.Is(err, prove.ErrUnread) {
		t.Errorf("a repository that was never read: %v", err)
	}
	e.Must(e.Catalog.Repositories.MarkRead(ctx, strings.Repeat("9", 32), e.Now()))
	e.Must(e.Catalog.Meta.Set(ctx, prove.MetaRebuilt, e.Clock.Add(time.Hour).Format(time.RFC3339Nano)))
	if err := prove.CheckDestroy(ctx, e.Deps, ref); !errors.Is(err, prove.ErrUnread) {
		t.Errorf("not read since the rebuild: %v", err)
	}
	e.Clock = e.Clock.Add(2 * time.Hour)
	repos, err := e.Catalog.Repositories.List(ctx)
	e.Must(err)
	for _, r := range repos {
		e.Must(e.Catalog.Repositories.MarkRead(ctx, r.ID, e.Now()))
	}
	e.Must(prove.Destroy(ctx, e.Deps, ref, "x"))
	if err := prove.CheckDestroy(ctx, e.Deps, keymanager.Ref{ID: "nobody", Version: 1}); !errors.Is(err, keymanager.ErrNotFound) {
		t.Errorf("%v", err)
	}
	e.Manager.Away = true
	if err := prove.Destroy(ctx, e.Deps, ref, "x"); !errors.Is(err, keymanager.ErrUnavailable) {
		t.Errorf("%v", err)
	}
}

// A backup that died between its commit and the proof leaves a recovery point
// that no proof names. The only secret that opens it is not destroyed.
func TestDestroyProvesFirst(t *testing.T) {
	e := provetest.New(t)
	m := e.Machine("web", map[string]*provetest.Device{"vda": e.Encrypted("a")})
	added, err := e.Add(m, "a", func(r *prove.AddRequest) { r.Keep = true })
	e.Must(err)
	p, _ := e.Backup(m)
	var held *keymanager.HeldError
	if err := prove.Destroy(ctx, e.Deps, added.Version.Ref, "x"); !errors.As(err, &held) || len(held.Holds) != 1 || held.Holds[0].Point != p {
		t.Errorf("destroyed though %s needs it: %v", p, err)
	}
}

// Several protectors of one header: all that a secret opens are named.
func TestAllProtectorsAreNamed(t *testing.T) {
	e := provetest.New(t)
	m := e.Machine("web", map[string]*provetest.Device{"vda": e.Encrypted("a", "b", "a")})
	p, _ := e.Backup(m)
	added, err := e.Add(m, "a")
	e.Must(err)
	for _, o := range added.Opens {
		if !slices.Equal(o.Protectors, []string{"slot-0", "slot-2"}) {
			t.Errorf("%+v", o)
		}
	}
	cp, err := e.Catalog.Points.Get(ctx, p)
	e.Must(err)
	v, err := prove.Load(ctx, e.Deps, m.ID)
	e.Must(err)
	digest := cp.Disks[0].Volumes[0].HeaderDigest
	if len(v.OpenedBy(digest, "slot-0")) != 1 || len(v.OpenedBy(digest, "slot-2")) != 1 || len(v.OpenedBy(digest, "slot-1")) != 0 {
		t.Error("opened by")
	}
	if v.Opens(cp, added.Version.Ref) != custody.Opens || v.Opens(cp, keymanager.Ref{ID: "x", Version: 1}) != custody.Untried {
		t.Error("opens")
	}
}

// A header that is lost is missed as long as a recovery point remembers it, and
// known again when it is put back.
func TestHeaderLossAndReturn(t *testing.T) {
	e := provetest.New(t)
	dev := e.Encrypted("a")
	m := e.Machine("web", map[string]*provetest.Device{"vda": dev})
	added, err := e.Add(m, "a")
	e.Must(err)
	first, _ := e.Backup(m)
	header := bytes.Clone(dev.Bytes[:1<<20])
	opens := func(point string) custody.Tried {
		p, err := e.Catalog.Points.Get(ctx, point)
		e.Must(err)
		v, err := prove.Load(ctx, e.Deps, m.ID)
		e.Must(err)
		return v.Opens(p, added.Version.Ref)
	}
	lost := func(point string, want ...string) {
		t.Helper()
		s := e.State(point)
		why := strings.Join(s.Why, "\n")
		for _, w := range append(want, "vda/disk: header loss: ") {
			if s.State != custody.Unrecoverable || !strings.Contains(why, w) {
				t.Errorf("%s %q, want unrecoverable with %q", s.State, s.Why, w)
			}
		}
	}

	clear(dev.Bytes[:1<<20])
	zeroed, _ := e.Backup(m)
	lost(zeroed, "recovery point "+first+" has it", "lockstep header export "+first+"/vda/disk")
	still, _ := e.Backup(m)
	lost(still, "recovery point "+first+" has it")
	if got := opens(still); got == custody.Opens || got == custody.Claimed {
		t.Errorf("without a header: %s", got)
	}

	copy(dev.Bytes, header)
	back, _ := e.Backup(m)
	p, err := e.Catalog.Points.Get(ctx, back)
	e.Must(err)
	v, err := prove.Load(ctx, e.Deps, m.ID)
	e.Must(err)
	if c := v.Changes(p); len(c) != 1 || c[0].Kind != custody.ChangeHeaderReturned || !strings.Contains(c[0].Text, first) {
		t.Errorf("changes: %v", c)
	}
	if s := e.State(back); s.State != custody.Proven || opens(back) != custody.Opens {
		t.Errorf("back: %s %q, %s", s.State, s.Why, opens(back))
	}

	// With the last recovery point that has it deleted, it is not forgotten.
	for _, id := range []string{first, back} {
		e.Must(e.Catalog.Points.Delete(ctx, id, e.Now(), "test"))
	}
	lost(still, "were deleted")
}

// What opened the same header in another recovery point claims this one, and is
// not shown as a proof of it.
func TestOpensNeedsAProof(t *testing.T) {
	e := provetest.New(t)
	m := e.Machine("web", map[string]*provetest.Device{"vda": e.Encrypted("a")})
	added, err := e.Add(m, "a")
	e.Must(err)
	first, _ := e.Backup(m)
	e.Manager.Away = true
	second, res := e.Backup(m)
	if res.Verdict.State != custody.Unproven {
		t.Fatalf("%+v", res.Verdict)
	}
	e.Manager.Away = false
	opens := func(point string) custody.Tried {
		p, err := e.Catalog.Points.Get(ctx, point)
		e.Must(err)
		v, err := prove.Load(ctx, e.Deps, m.ID)
		e.Must(err)
		return v.Opens(p, added.Version.Ref)
	}
	if opens(first) != custody.Opens || opens(second) != custody.Claimed {
		t.Errorf("proven: %s, not proven: %s", opens(first), opens(second))
	}
	e.Must(prove.DeclareNotNeeded(ctx, e.Deps, m, custody.VolumeKey{Disk: "vda", Volume: "disk"}, "nobody reads it"))
	if got := opens(first); got != custody.Opens {
		t.Errorf("declared not needed, the proof is still one: %s", got)
	}
}

// What was proven before, or is not now, is not said to be proven now.
func TestAddedAgainIsNoNews(t *testing.T) {
	e := provetest.New(t)
	m := e.Machine("web", map[string]*provetest.Device{"vda": e.Encrypted("a", "b")})
	point, _ := e.Backup(m)
	added, err := e.Add(m, "a")
	e.Must(err)
	if !slices.Equal(added.Proven, []string{point}) {
		t.Fatalf("first: %+v", added)
	}
	for _, pass := range []string{"a", "b"} {
		if again, err := e.Add(m, pass); err != nil || len(again.Opens) == 0 || len(again.Proven) != 0 {
			t.Errorf("it was proven before: %+v, %v", again, err)
		}
	}
	infos, err := e.Manager.List(ctx)
	e.Must(err)
	for _, s := range infos {
		for _, v := range s.Versions {
			e.Must(e.Manager.SetState(ctx, v.Ref, keymanager.Disabled, "test"))
		}
	}
	again, err := e.Add(m, "a")
	e.Must(err)
	if s := e.State(point); s.State != custody.AtRisk || len(again.Proven) != 0 {
		t.Errorf("disabled, %s, and said to be proven: %+v", s.State, again)
	}
	// What opens only at risk is said to be that.
	e.Deps.Recipients = nil
	fresh := e.Machine("alone", map[string]*provetest.Device{"vda": e.Encrypted("c")})
	e.Backup(fresh)
	first, err := e.Add(fresh, "c")
	e.Must(err)
	if len(first.Proven) != 0 || !strings.Contains(strings.Join(first.Messages, "\n"), "at risk: ") {
		t.Errorf("at risk: %+v", first)
	}
}

func TestCanceled(t *testing.T) {
	e := provetest.New(t)
	m := e.Machine("web", map[string]*provetest.Device{"vda": e.Encrypted("a")})
	_, err := e.Add(m, "a")
	e.Must(err)
	p := e.Store1(m)
	canceled, cancel := context.WithCancel(ctx)
	cancel()
	if _, err := prove.Points(canceled, e.Deps, []string{p}, nil); !errors.Is(err, context.Canceled) {
		t.Errorf("%v", err)
	}
}
