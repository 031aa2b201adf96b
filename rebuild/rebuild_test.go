package rebuild_test

import (
	"context"
	"fmt"
	"reflect"
	"strings"
	"testing"

	"github.com/lockstep-backup/lockstep/catalog"
	"github.com/lockstep-backup/lockstep/custody"
	"github.com/lockstep-backup/lockstep/prove"
	"github.com/lockstep-backup/lockstep/prove/provetest"
	"github.com/lockstep-backup/lockstep/rebuild"
	"github.com/lockstep-backup/lockstep/repository"
)

var ctx = context.Background()

// history makes a machine with all states that a repository remembers.
func history(t *testing.T) (*provetest.Env, catalog.Machine) {
	e := provetest.New(t)
	dev := e.Encrypted("old")
	m := e.Machine("web", map[string]*provetest.Device{"vda": dev, "vdb": e.Encrypted("random")})
	_, err := e.Add(m, "old")
	e.Must(err)
	e.Must(prove.DeclareNotNeeded(ctx, e.Deps, m, custody.VolumeKey{Disk: "vdb", Volume: "disk"}, "scratch"))
	e.Backup(m)
	p, _ := e.Backup(m)
	e.Mark(p, custody.Mark{Kind: custody.MarkTag, Name: "gone", Set: true})
	e.Rotate(dev, "old", "new")
	bad, _ := e.Backup(m) // unrecoverable
	for _, x := range []custody.Mark{
		{Kind: custody.MarkPin, Set: true, Reason: "evidence"},
		{Kind: custody.MarkPin, Reason: "no more"},
		{Kind: custody.MarkTag, Name: "env", Value: "prod", Set: true},
		{Kind: custody.MarkLegalHold, Name: "CASE-12", Set: true, Reason: "asked for"},
	} {
		e.Mark(bad, x)
	}
	e.Must(e.Repo.Delete(ctx, m.ID, p, "test"))
	e.Must(e.Catalog.Points.Delete(ctx, p, e.Now(), "test"))
	gone, err := e.Catalog.Points.Get(ctx, p)
	e.Must(err)
	_, err = prove.ReleaseHolds(ctx, e.Deps, gone)
	e.Must(err)
	plain := e.Machine("plain", map[string]*provetest.Device{"vda": {Bytes: make([]byte, 1<<20)}})
	e.Backup(plain)
	return e, m
}

// picture is all that users see of recovery points and custody.
func picture(e *provetest.Env) string {
	var b strings.Builder
	machines, err := e.Deps.Catalog.Machines.List(ctx, true)
	e.Must(err)
	for _, m := range machines {
		fmt.Fprintf(&b, "machine %s %s %v\n", m.ID, m.Name, m.Disks)
		points, err := e.Deps.Catalog.Points.List(ctx, catalog.PointQuery{Machine: m.ID})
		e.Must(err)
		for _, p := range points {
			v := e.State(p.ID)
			fmt.Fprintf(&b, "  point %+v\n  verdict %+v\n", p, v)
			proofs, err := e.Deps.Catalog.Proofs.OfPoint(ctx, p.ID)
			e.Must(err)
			for _, x := range proofs {
				x.Time = x.Time.UTC()
				fmt.Fprintf(&b, "    proof %+v\n", x)
			}
			packages, err := e.Deps.Catalog.Packages.OfPoint(ctx, p.ID)
			e.Must(err)
			fmt.Fprintf(&b, "    packages %+v\n", packages)
		}
		headers, err := e.Deps.Catalog.Packages.Headers(ctx, m.ID)
		e.Must(err)
		fmt.Fprintf(&b, "  headers %+v\n", headers)
		marks, err := e.Deps.Catalog.Marks.OfMachine(ctx, m.ID)
		e.Must(err)
		fmt.Fprintf(&b, "  marks %+v\n", marks)
	}
	return b.String()
}

func TestSamePictureAfterwards(t *testing.T) {
	e, m := history(t)
	before := picture(e)
	for _, want := range []string{"proven", "unrecoverable", "plain", "not needed: scratch"} {
		if !strings.Contains(before, want) {
			t.Fatalf("the history lacks %q:\n%s", want, before)
		}
	}
	secrets, err := e.Manager.List(ctx)
	e.Must(err)
	lost := secrets[0].Versions[0]
	if len(lost.Holds) != 1 {
		t.Fatalf("%+v", lost)
	}
	// The key manager lost a hold as well.
	e.Must(e.Manager.Unhold(ctx, lost.Ref, lost.Holds[0]))

	e.Deps.Catalog = e.OpenCatalog("new.db")
	d := rebuild.Deps{
		Catalog: e.Deps.Catalog, Manager: e.Manager, Installation: "inst", Now: e.Now,
		Prove: func(r *repository.Repository) prove.Deps { x := e.Deps; x.Repo = r; return x },
	}
	res, err := rebuild.Run(ctx, d, rebuild.Source{Repo: e.OpenRepo(), URL: "mem:"})
	e.Must(err)
	if res.Machines != 2 || res.Points != 3 || res.Proofs != 1 || res.Holds != 1 || res.HoldsPlaced != 1 || len(res.Problems) > 0 {
		t.Errorf("%+v", res)
	}
	if after := picture(e); after != before {
		t.Errorf("before:\n%s\nafter:\n%s", before, after)
	}
	again, err := e.Manager.List(ctx)
	e.Must(err)
	if !reflect.DeepEqual(again[0].Versions[0].Holds[0].Key(), lost.Holds[0].Key()) {
		t.Errorf("holds %+v", again[0].Versions[0].Holds)
	}
	// What was rebuilt is read: nothing stands in the way of destroying but holds.
	if err := prove.CheckDestroy(ctx, e.Deps, lost.Ref); err == nil || !strings.Contains(err.Error(), "held by 1") {
		t.Errorf("%v", err)
	}
	_ = m
}

func TestWithoutManagerAndProver(t *testing.T) {
	e, _ := history(t)
	e.Deps.Catalog = e.OpenCatalog("new.db")
	res, err := rebuild.Run(ctx, rebuild.Deps{Catalog: e.Deps.Catalog, Now: e.Now}, rebuild.Source{Repo: e.OpenRepo(), URL: "mem:"})
	e.Must(err)
	if res.Points != 3 || res.Proofs != 1 || res.HoldsPlaced != 0 {
		t.Errorf("%+v", res)
	}
	said := strings.Join(res.NotRebuilt, "\n")
	for _, want := range []string{"holds in the key manager", "tried in vain", "audit log"} {
		if !strings.Contains(said, want) {
			t.Errorf("%q is not said in:\n%s", want, said)
		}
	}
}

// Statements that do not count (copied, damaged) are named and do not come back.
func TestForgedSidecars(t *testing.T) {
	e, m := history(t)
	points, err := e.Repo.Points(ctx, m.ID)
	e.Must(err)
	side, err := e.Repo.Sidecars(ctx, m.ID, points[0].ID)
	e.Must(err)
	for _, s := range side {
		_, err := e.Repo.PutSidecar(ctx, m.ID, points[1].ID, s.Kind, s.Raw)
		e.Must(err)
	}
	_, err = e.Repo.PutSidecar(ctx, m.ID, points[0].ID, repository.SidecarProof, []byte("{}"))
	e.Must(err)
	e.Deps.Catalog = e.OpenCatalog("new.db")
	res, err := rebuild.Run(ctx, rebuild.Deps{Catalog: e.Deps.Catalog, Now: e.Now}, rebuild.Source{Repo: e.Repo, URL: "mem:"})
	e.Must(err)
	if res.Proofs != 1 || len(res.Problems) != len(side)+1 {
		t.Errorf("%+v", res)
	}
}

// A repository that is registered but was not read this time counts as unread.
func TestOthersAreUnread(t *testing.T) {
	e, _ := history(t)
	e.Must(e.Catalog.Repositories.Put(ctx, catalog.Repository{ID: strings.Repeat("8", 32), URL: "mem:other", LastReadAt: e.Now()}))
	_, err := rebuild.Run(ctx, rebuild.Deps{Catalog: e.Catalog, Manager: e.Manager, Installation: "inst", Now: e.Now}, rebuild.Source{Repo: e.Repo, URL: "mem:"})
	e.Must(err)
	other := e.Machine("other", map[string]*provetest.Device{"vda": e.Encrypted("x")})
	added, err := e.Add(other, "x")
	e.Must(err)
	if err := prove.CheckDestroy(ctx, e.Deps, added.Version.Ref); err == nil || !strings.Contains(err.Error(), "mem:other") {
		t.Errorf("%v", err)
	}
}
