// Package catalogtest is the conformance suite of package catalog: what every
// adapter must do. It knows nothing of any database.
package catalogtest

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"reflect"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/lockstep-backup/lockstep/catalog"
	"github.com/lockstep-backup/lockstep/disk"
)

// Open gives a new handle on one and the same, initially empty, catalog each
// time it is called. The suite closes the handles.
type Open func(tb testing.TB) *catalog.Catalog

// Run runs the suite. newCatalog makes an empty catalog.
func Run(t *testing.T, newCatalog func(tb testing.TB) Open) {
	for _, c := range []struct {
		name string
		test func(*testing.T, Open)
	}{
		{"machines", testMachines},
		{"repositories", testRepositories},
		{"points are whole", testPoints},
		{"points record again", testPointsAgain},
		{"points refuse unknown machine", testPointsUnknownMachine},
		{"points record all or nothing", testPointsAtomic},
		{"points by prefix and header", testPointsFind},
		{"resolve", testResolve},
		{"proofs", testProofs},
		{"packages", testPackages},
		{"declarations", testDeclarations},
		{"marks", testMarks},
		{"policies", testPolicies},
		{"readings", testReadings},
		{"jobs", testJobs},
		{"meta", testMeta},
		{"rebuild", testRebuild},
		{"two handles write at once", testConcurrent},
		{"another handle sees it", testDurable},
	} {
		t.Run(c.name, func(t *testing.T) { c.test(t, newCatalog(t)) })
	}
}

var start = time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)

func at(minutes int) time.Time { return start.Add(time.Duration(minutes) * time.Minute) }

func handle(t *testing.T, open Open) (context.Context, *catalog.Catalog) {
	t.Helper()
	c := open(t)
	t.Cleanup(func() {
		if err := c.Maintenance.Close(); err != nil {
			t.Errorf("close: %v", err)
		}
	})
	return t.Context(), c
}

func ok(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func is(t *testing.T, err, want error) {
	t.Helper()
	if !errors.Is(err, want) {
		t.Fatalf("error %v, want %v", err, want)
	}
}

func same(t *testing.T, got, want any) {
	t.Helper()
	if !reflect.DeepEqual(got, want) {
		t.Fatalf("got  %+v\nwant %+v", got, want)
	}
}

func machine(id, name string) catalog.Machine {
	return catalog.Machine{
		ID: id, Name: name, Created: at(0),
		Disks: []catalog.MachineDisk{{ID: "vda", Source: "/srv/" + name + ".img", Header: "/srv/h"}, {ID: "vdb", Source: "/dev/vdb"}},
	}
}

func pointID(n int) string { return fmt.Sprintf("%032x", n*0x1000000000) }

func point(id, machine string, seq int64) catalog.Point {
	return catalog.Point{
		ID: id, Machine: machine, Repository: "repo-1", Sequence: seq, Parent: "earlier",
		Time: at(int(seq)), Written: at(int(seq)).Add(123456789 * time.Nanosecond),
		Consistency: "crash-consistent", FullTransfer: seq == 1, Description: "it's \"quoted\" – ümlaut", Incomplete: true,
		Stats: catalog.Stats{Read: 1 << 40, Changed: 2, Stored: 3, Map: 4}, Seconds: 1.25,
		Disks: []catalog.PointDisk{
			{
				Disk: "vdb", Size: 64 << 40, ContentRoot: strings.Repeat("ab", 32), Changes: "scan: no tracking",
				Unread: []disk.Range{{Offset: 1 << 41, Length: 4096}}, Areas: json.RawMessage(`[{"id":"p1","class":"vfat"}]`),
				Volumes: []catalog.Volume{
					{
						Volume: "p3", Type: "luks2", UUID: "u-3", Label: "root", Epoch: "v1:aa",
						HeaderDigest: "sha256:h1", HeaderCopy: "copy-1", Body: json.RawMessage(`{"id":"p3"}`),
					},
					{Volume: "p10", Type: "luks1", HeaderDigest: "sha256:h2", Body: json.RawMessage(`{"id":"p10"}`)},
				},
			},
			{Disk: "vda", Size: 512, ContentRoot: "00"},
		},
	}
}

func testMachines(t *testing.T, open Open) {
	ctx, c := handle(t, open)
	_, err := c.Machines.Get(ctx, "m1")
	is(t, err, catalog.ErrNotFound)
	_, err = c.Machines.ByName(ctx, "web")
	is(t, err, catalog.ErrNotFound)
	is(t, c.Machines.Remove(ctx, "m1", at(1)), catalog.ErrNotFound)

	web, db := machine("m1", "web"), machine("m2", "db")
	ok(t, c.Machines.Put(ctx, web))
	ok(t, c.Machines.Put(ctx, db))
	is(t, c.Machines.Put(ctx, machine("m3", "web")), catalog.ErrExists)
	got, err := c.Machines.ByName(ctx, "web")
	ok(t, err)
	same(t, got, web)
	all, err := c.Machines.List(ctx, false)
	ok(t, err)
	same(t, all, []catalog.Machine{db, web})

	web.Disks = web.Disks[:1]
	ok(t, c.Machines.Put(ctx, web))
	got, err = c.Machines.Get(ctx, "m1")
	ok(t, err)
	same(t, got, web)

	ok(t, c.Machines.Remove(ctx, "m1", at(5)))
	web.RemovedAt = at(5)
	got, err = c.Machines.ByName(ctx, "web")
	ok(t, err)
	same(t, got, web)
	again := machine("m3", "web") // the name is free again
	ok(t, c.Machines.Put(ctx, again))
	got, err = c.Machines.ByName(ctx, "web")
	ok(t, err)
	same(t, got, again)
	all, err = c.Machines.List(ctx, false)
	ok(t, err)
	same(t, all, []catalog.Machine{db, again})
	all, err = c.Machines.List(ctx, true)
	ok(t, err)
	same(t, all, []catalog.Machine{db, again, web})
}

func testRepositories(t *testing.T, open Open) {
	ctx, c := handle(t, open)
	_, err := c.Repositories.Get(ctx, "r1")
	is(t, err, catalog.ErrNotFound)
	is(t, c.Repositories.MarkRead(ctx, "r1", at(1)), catalog.ErrNotFound)
	r := catalog.Repository{ID: "r1", URL: "file:///srv/backup", TrustRoot: "sha256:00"}
	ok(t, c.Repositories.Put(ctx, r))
	ok(t, c.Repositories.MarkRead(ctx, "r1", at(7)))
	r.LastReadAt = at(7)
	got, err := c.Repositories.Get(ctx, "r1")
	ok(t, err)
	same(t, got, r)
	all, err := c.Repositories.List(ctx)
	ok(t, err)
	same(t, all, []catalog.Repository{r})
}

func withMachine(t *testing.T, open Open) (context.Context, *catalog.Catalog) {
	t.Helper()
	ctx, c := handle(t, open)
	ok(t, c.Machines.Put(ctx, machine("m1", "web")))
	return ctx, c
}

func testPoints(t *testing.T, open Open) {
	ctx, c := withMachine(t, open)
	ok(t, c.Machines.Put(ctx, machine("m2", "db")))
	_, err := c.Points.Get(ctx, pointID(1))
	is(t, err, catalog.ErrNotFound)
	// Recorded against the order of the log.
	p1, p2, other := point(pointID(9), "m1", 1), point(pointID(5), "m1", 2), point(pointID(7), "m2", 1)
	p2.Repository = "repo-1"
	for _, p := range []catalog.Point{p2, other, p1} {
		ok(t, c.Points.Record(ctx, p))
	}
	got, err := c.Points.Get(ctx, p1.ID)
	ok(t, err)
	same(t, got, p1)
	list, err := c.Points.List(ctx, catalog.PointQuery{Machine: "m1"})
	ok(t, err)
	same(t, list, []catalog.Point{p1, p2})
	list, err = c.Points.List(ctx, catalog.PointQuery{})
	ok(t, err)
	same(t, list, []catalog.Point{p1, p2, other})
	list, err = c.Points.List(ctx, catalog.PointQuery{Repository: "another"})
	ok(t, err)
	same(t, len(list), 0)
	bare := p1
	bare.Disks = nil
	list, err = c.Points.List(ctx, catalog.PointQuery{Machine: "m1", Bare: true})
	ok(t, err)
	same(t, list[0], bare)

	ok(t, c.Points.Delete(ctx, p1.ID, at(50), "asked for"))
	ok(t, c.Points.Delete(ctx, p1.ID, at(60), "again"))
	is(t, c.Points.Delete(ctx, pointID(99), at(50), ""), catalog.ErrNotFound)
	list, err = c.Points.List(ctx, catalog.PointQuery{Machine: "m1"})
	ok(t, err)
	same(t, list, []catalog.Point{p2})
	p1.DeletedAt, p1.DeletedReason = at(50), "asked for"
	list, err = c.Points.List(ctx, catalog.PointQuery{Machine: "m1", Deleted: true})
	ok(t, err)
	same(t, list, []catalog.Point{p1, p2})
}

func testPointsAgain(t *testing.T, open Open) {
	ctx, c := withMachine(t, open)
	p := point(pointID(1), "m1", 1)
	ok(t, c.Points.Record(ctx, p))
	ok(t, c.Points.Record(ctx, p))
	got, err := c.Points.Get(ctx, p.ID)
	ok(t, err)
	same(t, got, p)
	p.Disks = p.Disks[1:]
	p.Description = "changed"
	ok(t, c.Points.Record(ctx, p))
	got, err = c.Points.Get(ctx, p.ID)
	ok(t, err)
	same(t, got, p)

	ok(t, c.Points.Delete(ctx, p.ID, at(50), "gone"))
	ok(t, c.Points.Record(ctx, p))
	got, err = c.Points.Get(ctx, p.ID)
	ok(t, err)
	p.DeletedAt, p.DeletedReason = at(50), "gone"
	same(t, got, p)
}

func testPointsUnknownMachine(t *testing.T, open Open) {
	ctx, c := handle(t, open)
	is(t, c.Points.Record(ctx, point(pointID(1), "nobody", 1)), catalog.ErrNotFound)
}

func testPointsAtomic(t *testing.T, open Open) {
	ctx, c := withMachine(t, open)
	p := point(pointID(1), "m1", 1)
	ok(t, c.Points.Record(ctx, p))
	broken := p
	broken.Description = "must not be seen"
	broken.Disks = append(broken.Disks[:2:2], broken.Disks[0]) // the same disk twice
	if err := c.Points.Record(ctx, broken); err == nil {
		t.Fatal("a disk was recorded twice")
	}
	got, err := c.Points.Get(ctx, p.ID)
	ok(t, err)
	same(t, got, p)
}

func testPointsFind(t *testing.T, open Open) {
	ctx, c := withMachine(t, open)
	for i, id := range []string{"aa10", "aa20", "ab30", "b_40"} {
		ok(t, c.Points.Record(ctx, point(id, "m1", int64(i+1))))
	}
	for _, k := range []struct {
		prefix string
		limit  int
		want   []string
	}{
		{"aa", 9, []string{"aa10", "aa20"}},
		{"a", 2, []string{"aa10", "aa20"}},
		{"aa20", 9, []string{"aa20"}},
		{"b_", 9, []string{"b_40"}},
		{"_", 9, nil},
		{"%", 9, nil},
		{`\`, 9, nil},
	} {
		got, err := c.Points.ByPrefix(ctx, k.prefix, k.limit)
		ok(t, err)
		same(t, got, k.want)
	}
	ok(t, c.Points.Delete(ctx, "aa20", at(9), "x"))
	uses, err := c.Points.WithHeader(ctx, "sha256:h1")
	ok(t, err)
	same(t, uses, []catalog.HeaderUse{{Point: "b_40", Disk: "vdb", Volume: "p3"}, {Point: "ab30", Disk: "vdb", Volume: "p3"}, {Point: "aa10", Disk: "vdb", Volume: "p3"}})
	uses, err = c.Points.WithHeader(ctx, "sha256:none")
	ok(t, err)
	same(t, len(uses), 0)
}

func testResolve(t *testing.T, open Open) {
	ctx, c := withMachine(t, open)
	ok(t, c.Machines.Put(ctx, machine("m2", "empty")))
	ok(t, c.Machines.Put(ctx, machine("m3", "abc")))
	// The clock went backwards between sequence 2 and 3.
	for _, p := range []struct {
		id   string
		seq  int64
		time int
	}{{"aa01", 1, 10}, {"aa02", 2, 30}, {"bb03", 3, 20}} {
		q := point(p.id, "m1", p.seq)
		q.Time, q.Written = at(p.time), at(p.time)
		ok(t, c.Points.Record(ctx, q))
	}
	q := point("ee01", "m3", 1) // within a second: lists show it without the fraction
	q.Time, q.Written = at(10).Add(823*time.Millisecond), at(11)
	ok(t, c.Points.Record(ctx, q))
	ok(t, c.Points.Record(ctx, point("dd04", "m1", 4)))
	ok(t, c.Points.Delete(ctx, "dd04", at(60), "by hand"))
	rfc := func(minutes int) string { return at(minutes).Format(time.RFC3339) }
	for _, k := range []struct {
		ref, want string
		err       error
	}{
		{"web@latest", "bb03", nil}, // by sequence, though aa02 has the later clock
		{"web@" + rfc(30), "bb03", nil},
		{"web@" + rfc(29), "bb03", nil},
		{"web@" + rfc(19), "aa01", nil},
		{"web@" + rfc(10), "aa01", nil},
		{"web@" + at(10).In(time.FixedZone("", 7200)).Format(time.RFC3339), "aa01", nil},
		{"web@" + rfc(9), "", catalog.ErrNotFound},
		{"abc@" + rfc(10), "ee01", nil},
		{"abc@" + at(10).Format("2006-01-02T15:04:05.000Z07:00"), "", catalog.ErrNotFound},
		{"abc@" + at(10).Add(-time.Second).Format(time.RFC3339), "", catalog.ErrNotFound},
		{"web@yesterday", "", catalog.ErrBadRef},
		{"web@", "", catalog.ErrBadRef},
		{"@latest", "", catalog.ErrBadRef},
		{"", "", catalog.ErrBadRef},
		{"no-such@latest", "", catalog.ErrNotFound},
		{"empty@latest", "", catalog.ErrNotFound},
		{"bb", "bb03", nil},
		{"aa01", "aa01", nil},
		{"aa", "", catalog.ErrAmbiguous},
		{"cc", "", catalog.ErrNotFound},
		{"dd04", "", catalog.ErrNotFound},
		{"dd", "", catalog.ErrNotFound},
		{"abc", "", catalog.ErrNotFound},
		{"web", "", catalog.ErrBadRef},
		{"AA01", "", catalog.ErrBadRef},
	} {
		p, err := c.Resolve(ctx, k.ref)
		if p.ID != k.want || !errors.Is(err, k.err) {
			t.Errorf("%q: %q, %v; want %q, %v", k.ref, p.ID, err, k.want, k.err)
		}
		if err == nil && len(p.Disks) == 0 {
			t.Errorf("%q: without disks", k.ref)
		}
	}
	if _, err := c.Resolve(ctx, "web"); !strings.Contains(err.Error(), "web@latest") {
		t.Errorf("a machine's name is not helped: %v", err)
	}
	if _, err := c.Resolve(ctx, "dd04"); !strings.Contains(err.Error(), "by hand") {
		t.Errorf("a deleted recovery point does not say why: %v", err)
	}
}

func testProofs(t *testing.T, open Open) {
	ctx, c := withMachine(t, open)
	ok(t, c.Points.Record(ctx, point("aa01", "m1", 1)))
	p := catalog.Proof{
		Key: "side/1", Point: "aa01", Disk: "vda", Volume: "p3", Secret: "s1", Version: 2,
		Protectors: []string{"slot-0", "slot-1"}, Recognised: "lvm", KeyCheck: "luks2-digest-0", Time: at(3), Signer: "k", VKProof: "aabb",
	}
	later, unknown := p, p
	later.Key, later.Time, later.Version = "side/0", at(4), 3
	unknown.Key, unknown.Point = "side/9", "ff99"
	for _, q := range []catalog.Proof{later, p, unknown, p} {
		ok(t, c.Proofs.Put(ctx, q))
	}
	got, err := c.Proofs.OfPoint(ctx, "aa01")
	ok(t, err)
	same(t, got, []catalog.Proof{p, later})
	got, err = c.Proofs.OfMachine(ctx, "m1")
	ok(t, err)
	same(t, got, []catalog.Proof{p, later})
	got, err = c.Proofs.OfSecret(ctx, "s1", 2)
	ok(t, err)
	same(t, got, []catalog.Proof{p, unknown})
	ok(t, c.Proofs.Forget(ctx, "side/9"))
	ok(t, c.Proofs.Forget(ctx, "side/9"))
	got, err = c.Proofs.OfSecret(ctx, "s1", 2)
	ok(t, err)
	same(t, got, []catalog.Proof{p})

	a := catalog.Attempt{HeaderDigest: "sha256:h", Secret: "s1", Version: 1, Opened: []string{"slot-2"}, Time: at(1)}
	b := catalog.Attempt{HeaderDigest: "sha256:h", Secret: "s1", Version: 2, Time: at(2)}
	ok(t, c.Proofs.PutAttempt(ctx, b))
	ok(t, c.Proofs.PutAttempt(ctx, catalog.Attempt{HeaderDigest: "sha256:h", Secret: "s1", Version: 1, Time: at(0)}))
	ok(t, c.Proofs.PutAttempt(ctx, a))
	attempts, err := c.Proofs.Attempts(ctx, "sha256:h")
	ok(t, err)
	same(t, attempts, []catalog.Attempt{a, b})
}

func testPackages(t *testing.T, open Open) {
	ctx, c := withMachine(t, open)
	ok(t, c.Points.Record(ctx, point("aa01", "m1", 1)))
	p := catalog.Package{Key: "side/1", Point: "aa01", Recipients: []string{"age1x"}, Refs: []string{"s1@1", "s1@2"}, Time: at(1)}
	elsewhere := catalog.Package{Key: "side/2", Point: "ff99", Time: at(1)}
	for _, q := range []catalog.Package{p, p, elsewhere} {
		ok(t, c.Packages.Put(ctx, q))
	}
	got, err := c.Packages.OfPoint(ctx, "aa01")
	ok(t, err)
	same(t, got, []catalog.Package{p})
	got, err = c.Packages.OfMachine(ctx, "m1")
	ok(t, err)
	same(t, got, []catalog.Package{p})

	h := catalog.HeaderPackage{Key: "side/3", Machine: "m1", HeaderDigest: "sha256:h1", Recipients: []string{"age1x"}}
	h2 := h
	h2.HeaderDigest = "sha256:h2"
	for _, q := range []catalog.HeaderPackage{h2, h, h} {
		ok(t, c.Packages.PutHeader(ctx, q))
	}
	headers, err := c.Packages.Headers(ctx, "m1")
	ok(t, err)
	same(t, headers, []catalog.HeaderPackage{h, h2})

	for _, key := range []string{"side/1", "side/3", "side/3", "side/none"} {
		ok(t, c.Packages.Forget(ctx, key))
	}
	got, err = c.Packages.OfPoint(ctx, "aa01")
	ok(t, err)
	same(t, len(got), 0)
	got, err = c.Packages.OfPoint(ctx, "ff99")
	ok(t, err)
	same(t, got, []catalog.Package{elsewhere})
	headers, err = c.Packages.Headers(ctx, "m1")
	ok(t, err)
	same(t, len(headers), 0)
}

func testDeclarations(t *testing.T, open Open) {
	ctx, c := handle(t, open)
	d := catalog.Declaration{Key: "side/1", Machine: "m1", Disk: "vda", Volume: "p2", Reason: "random-key swap", Time: at(1)}
	w := catalog.Declaration{Key: "side/0", Machine: "m1", Disk: "vda", Volume: "p2", Time: at(2), Withdrawn: true}
	for _, q := range []catalog.Declaration{w, d, d} {
		ok(t, c.Declarations.Put(ctx, q))
	}
	got, err := c.Declarations.OfMachine(ctx, "m1")
	ok(t, err)
	same(t, got, []catalog.Declaration{d, w})
}

func testMarks(t *testing.T, open Open) {
	ctx, c := handle(t, open)
	pin := catalog.Mark{Key: "side/2", Machine: "m1", Point: "aa01", Kind: "pin", Set: true, Sequence: 1, Reason: "before the move", Actor: "uid:0", Time: at(3)}
	unpin := catalog.Mark{Key: "side/1", Machine: "m1", Point: "aa01", Kind: "pin", Sequence: 2, Actor: "uid:0", Time: at(1)}
	tag := catalog.Mark{Key: "side/0", Machine: "m1", Point: "bb02", Kind: "tag", Name: "release", Value: "9", Set: true, Sequence: 2, Time: at(2)}
	other := catalog.Mark{Key: "side/9", Machine: "m2", Point: "cc03", Kind: "pin", Set: true, Sequence: 1, Time: at(1)}
	for _, m := range []catalog.Mark{tag, unpin, pin, other, pin} {
		ok(t, c.Marks.Put(ctx, m))
	}
	got, err := c.Marks.OfMachine(ctx, "m1")
	ok(t, err)
	same(t, got, []catalog.Mark{pin, unpin, tag}) // the sequence first, then the time
	got, err = c.Marks.OfMachine(ctx, "m9")
	ok(t, err)
	same(t, len(got), 0)
}

func testPolicies(t *testing.T, open Open) {
	ctx, c := handle(t, open)
	doc, err := c.Policies.Get(ctx, "")
	ok(t, err)
	same(t, doc == nil, true)
	ok(t, c.Policies.Delete(ctx, "m1"))
	ok(t, c.Policies.Put(ctx, "", []byte(`{"format":1}`)))
	ok(t, c.Policies.Put(ctx, "m1", []byte(`{"format":1,"timezone":"UTC"}`)))
	ok(t, c.Policies.Put(ctx, "m1", []byte(`{"format":1,"timezone":"Europe/Berlin"}`)))
	for machine, want := range map[string]string{"": `{"format":1}`, "m1": `{"format":1,"timezone":"Europe/Berlin"}`, "m2": ""} {
		doc, err := c.Policies.Get(ctx, machine)
		ok(t, err)
		same(t, string(doc), want)
	}
	ok(t, c.Policies.Delete(ctx, "m1"))
	doc, err = c.Policies.Get(ctx, "m1")
	ok(t, err)
	same(t, doc == nil, true)
}

func testReadings(t *testing.T, open Open) {
	ctx, c := handle(t, open)
	_, err := c.Readings.Oldest(ctx, "r1")
	is(t, err, catalog.ErrNotFound)
	ok(t, c.Readings.Put(ctx, "r1", nil))
	ok(t, c.Readings.Put(ctx, "r2", []catalog.Reading{{Key: "seg/a", Since: at(0)}}))
	ok(t, c.Readings.Put(ctx, "r1", []catalog.Reading{
		{Key: "seg/c", Since: at(2)}, {Key: "seg/b", Since: at(2), Never: true}, {Key: "seg/a", Since: at(2)}, {Key: "config", Since: at(3), Never: true},
	}))
	keys := func() (all []string) {
		list, err := c.Readings.List(ctx, "r1")
		ok(t, err)
		for _, r := range list {
			all = append(all, r.Key)
		}
		return all
	}
	same(t, keys(), []string{"seg/b", "seg/a", "seg/c", "config"})
	first, err := c.Readings.Oldest(ctx, "r1")
	ok(t, err)
	same(t, first, catalog.Reading{Key: "seg/b", Since: at(2), Never: true})
	// Read again, it is the last in the row.
	ok(t, c.Readings.Put(ctx, "r1", []catalog.Reading{{Key: "seg/b", Since: at(5)}}))
	same(t, keys(), []string{"seg/a", "seg/c", "config", "seg/b"})
	ok(t, c.Readings.Forget(ctx, "r1", []string{"seg/a", "seg/b", "not there"}))
	same(t, keys(), []string{"seg/c", "config"})
	ok(t, c.Maintenance.Rebuild(ctx, func(*catalog.Catalog) error { return nil }))
	same(t, keys(), []string{"seg/c", "config"})
	list, err := c.Readings.List(ctx, "r2")
	ok(t, err)
	same(t, list, []catalog.Reading{{Key: "seg/a", Since: at(0)}})
}

func testJobs(t *testing.T, open Open) {
	ctx, c := handle(t, open)
	doc, err := c.Jobs.GetJob(ctx, "j1")
	ok(t, err)
	same(t, doc == nil, true)
	is(t, c.Jobs.PutJobEvent(ctx, "j1", 1, at(0), []byte("{}")), catalog.ErrNotFound)
	ok(t, c.Jobs.PutJob(ctx, "j1", "backup", "running", at(1), time.Time{}, []byte(`{"id":"j1"}`)))
	ok(t, c.Jobs.PutJob(ctx, "j2", "prove", "running", at(2), time.Time{}, []byte(`{"id":"j2"}`)))
	ok(t, c.Jobs.PutJob(ctx, "j1", "backup", "failed", at(1), at(3), []byte(`{"id":"j1","state":"failed"}`)))
	doc, err = c.Jobs.GetJob(ctx, "j1")
	ok(t, err)
	same(t, string(doc), `{"id":"j1","state":"failed"}`)
	docs := func(limit int, states ...string) (out []string) {
		t.Helper()
		d, err := c.Jobs.JobDocs(ctx, states, limit)
		ok(t, err)
		for _, b := range d {
			out = append(out, string(b))
		}
		return out
	}
	same(t, docs(9), []string{`{"id":"j2"}`, `{"id":"j1","state":"failed"}`})
	same(t, docs(1), []string{`{"id":"j2"}`})
	same(t, docs(9, "running", "queued"), []string{`{"id":"j2"}`})
	for n := 1; n <= 5; n++ {
		ok(t, c.Jobs.PutJobEvent(ctx, "j1", n, at(n), fmt.Appendf(nil, "%d", n)))
	}
	ok(t, c.Jobs.PutJobEvent(ctx, "j1", 3, at(9), []byte("again")))
	events, err := c.Jobs.JobEventDocs(ctx, "j1", 1, 3)
	ok(t, err)
	same(t, events, [][]byte{[]byte("2"), []byte("3"), []byte("4")})
	ok(t, c.Jobs.TrimJobs(ctx, at(4)))
	same(t, docs(9), []string{`{"id":"j2"}`})
	events, err = c.Jobs.JobEventDocs(ctx, "j1", 0, 9)
	ok(t, err)
	same(t, len(events), 0)
}

func testMeta(t *testing.T, open Open) {
	ctx, c := handle(t, open)
	v, err := c.Meta.Get(ctx, "clock")
	ok(t, err)
	same(t, v, "")
	ok(t, c.Meta.Set(ctx, "clock", "1"))
	ok(t, c.Meta.Set(ctx, "clock", "2"))
	v, err = c.Meta.Get(ctx, "clock")
	ok(t, err)
	same(t, v, "2")
}

func testRebuild(t *testing.T, open Open) {
	ctx, c := withMachine(t, open)
	ok(t, c.Points.Record(ctx, point("aa01", "m1", 1)))
	ok(t, c.Repositories.Put(ctx, catalog.Repository{ID: "r1"}))
	ok(t, c.Meta.Set(ctx, "clock", "1"))
	ok(t, c.Policies.Put(ctx, "m9", []byte(`{"format":1}`)))
	ok(t, c.Marks.Put(ctx, catalog.Mark{Key: "side/1", Machine: "m1", Point: "aa01", Kind: "pin", Set: true, Time: at(1)}))
	ok(t, c.Jobs.PutJob(ctx, "j1", "rebuild", "running", at(1), time.Time{}, []byte(`{}`)))

	stop := errors.New("stop")
	err := c.Maintenance.Rebuild(ctx, func(n *catalog.Catalog) error {
		ok(t, n.Machines.Put(ctx, machine("m9", "other")))
		return stop
	})
	is(t, err, stop)
	_, err = c.Points.Get(ctx, "aa01")
	ok(t, err)
	_, err = c.Machines.Get(ctx, "m9")
	is(t, err, catalog.ErrNotFound)

	ok(t, c.Maintenance.Rebuild(ctx, func(n *catalog.Catalog) error {
		if err := n.Machines.Put(ctx, machine("m9", "other")); err != nil {
			return err
		}
		return n.Points.Record(ctx, point("bb02", "m9", 1))
	}))
	_, err = c.Points.Get(ctx, "aa01")
	is(t, err, catalog.ErrNotFound)
	p, err := c.Points.Get(ctx, "bb02")
	ok(t, err)
	same(t, p, point("bb02", "m9", 1))
	_, err = c.Machines.Get(ctx, "m1")
	is(t, err, catalog.ErrNotFound)
	_, err = c.Repositories.Get(ctx, "r1")
	ok(t, err)
	doc, err := c.Jobs.GetJob(ctx, "j1")
	ok(t, err)
	same(t, string(doc), `{}`)
	marks, err := c.Marks.OfMachine(ctx, "m1")
	ok(t, err)
	same(t, len(marks), 0)
	doc, err = c.Policies.Get(ctx, "m9")
	ok(t, err)
	same(t, string(doc), `{"format":1}`)
	v, err := c.Meta.Get(ctx, "clock")
	ok(t, err)
	same(t, v, "1")
	ok(t, c.Maintenance.Check(ctx))
}

func testConcurrent(t *testing.T, open Open) {
	ctx, a := withMachine(t, open)
	_, b := handle(t, open)
	const each = 20
	var wg sync.WaitGroup
	for h, c := range []*catalog.Catalog{a, b} {
		for w := range 2 {
			wg.Go(func() {
				for i := range each {
					seq := (h*2+w)*each + i + 1
					if err := c.Points.Record(ctx, point(pointID(seq), "m1", int64(seq))); err != nil {
						t.Errorf("record %d: %v", seq, err)
						return
					}
					if _, err := c.Points.List(ctx, catalog.PointQuery{Machine: "m1"}); err != nil {
						t.Errorf("list: %v", err)
						return
					}
				}
			})
		}
	}
	wg.Wait()
	all, err := a.Points.List(ctx, catalog.PointQuery{Machine: "m1"})
	ok(t, err)
	same(t, len(all), 4*each)
	for i, p := range all {
		same(t, p, point(pointID(i+1), "m1", int64(i+1)))
	}
}

func testDurable(t *testing.T, open Open) {
	first := open(t)
	ctx := t.Context()
	ok(t, first.Machines.Put(ctx, machine("m1", "web")))
	ok(t, first.Points.Record(ctx, point("aa01", "m1", 1)))
	ok(t, first.Maintenance.Close())
	_, c := handle(t, open)
	p, err := c.Points.Get(ctx, "aa01")
	ok(t, err)
	same(t, p, point("aa01", "m1", 1))
}
