package prune_test

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/lockstep-backup/lockstep/catalog"
	"github.com/lockstep-backup/lockstep/custody"
	"github.com/lockstep-backup/lockstep/keymanager"
	"github.com/lockstep-backup/lockstep/policy"
	"github.com/lockstep-backup/lockstep/prove"
	"github.com/lockstep-backup/lockstep/prove/provetest"
	"github.com/lockstep-backup/lockstep/prune"
	"github.com/lockstep-backup/lockstep/repository"
	"github.com/lockstep-backup/lockstep/store"
)

var ctx = context.Background()

// world is an installation, and hooks into what pruning does.
type world struct {
	*provetest.Env
	m        catalog.Machine
	events   []string
	reclaims int
	step     func(what string) // before each thing that is done; may panic
}

func newWorld(t *testing.T, d *provetest.Device) *world {
	w := &world{Env: provetest.New(t), step: func(string) {}}
	if d == nil {
		d = &provetest.Device{Bytes: make([]byte, 1<<20)}
	}
	w.m = w.Machine("web01", map[string]*provetest.Device{"vda": d})
	return w
}

func (w *world) deps() prune.Deps {
	c := *w.Catalog
	c.Points = points{c.Points, w}
	return prune.Deps{
		Repository: w.Repo, Catalog: &c, Now: w.Now,
		States: func(ctx context.Context, machine string) (func(catalog.Point) custody.State, error) {
			v, err := prove.Load(ctx, w.Deps, machine)
			if err != nil {
				return nil, err
			}
			return func(p catalog.Point) custody.State { return v.Verdict(p).State }, nil
		},
		Statements: func(ctx context.Context, machine string) (s prune.Statements, err error) {
			if s.Doubtful, err = prove.SyncMarks(ctx, w.Deps, machine); err != nil {
				return s, err
			}
			s.Marks, err = prove.MarksOf(ctx, w.Catalog, machine)
			return s, err
		},
		Release: func(ctx context.Context, points ...catalog.Point) (int, error) {
			w.step("release")
			n, err := prove.ReleaseHolds(ctx, w.Deps, points...)
			w.step("released")
			return n, err
		},
		Begin: func(_ context.Context, p catalog.Point, _ string) error {
			w.step("begin")
			w.events = append(w.events, "begin "+p.ID)
			return nil
		},
		Done: func(_ context.Context, p catalog.Point, _ string, err error) error {
			w.step("done")
			w.events = append(w.events, fmt.Sprintf("done %s %v", p.ID, err))
			return nil
		},
		Reclaim: func(context.Context, string) (prune.Freed, error) {
			w.step("reclaim")
			w.reclaims++
			return prune.Freed{Objects: 1, Bytes: 2}, nil
		},
	}
}

type points struct {
	catalog.Points
	w *world
}

func (p points) Delete(ctx context.Context, id string, at time.Time, reason string) error {
	p.w.step("forget")
	return p.Points.Delete(ctx, id, at, reason)
}

// backups makes a recovery point a day, the first at the clock's next midnight.
func (w *world) backups(n int, make func() string) (ids []string) {
	day := w.Clock.Truncate(24 * time.Hour)
	for range n {
		day = day.AddDate(0, 0, 1)
		w.Clock = day
		ids = append(ids, make())
	}
	return ids
}

func (w *world) prune(p policy.Retention, edit ...func(*prune.Request)) (prune.Result, error) {
	w.T.Helper()
	req := prune.Request{Machine: w.m, Policy: policy.Policy{Retention: p}}
	for _, f := range edit {
		f(&req)
	}
	return prune.Run(ctx, w.deps(), req)
}

func dryRun(r *prune.Request) { r.DryRun = true }

func (w *world) listed() (ids []string) {
	w.T.Helper()
	ps, err := w.OpenRepo().Points(ctx, w.m.ID)
	w.Must(err)
	for _, p := range ps {
		ids = append(ids, p.ID)
	}
	return ids
}

// holds are the recovery points that hold a secret version.
func (w *world) holds(ref keymanager.Ref) (ids []string) {
	w.T.Helper()
	infos, err := w.Manager.List(ctx)
	w.Must(err)
	for _, s := range infos {
		for _, v := range s.Versions {
			for _, h := range v.Holds {
				if v.Ref == ref {
					ids = append(ids, h.Point)
				}
			}
		}
	}
	slices.Sort(ids)
	return ids
}

// check compares repository, catalog and what the words say.
func (w *world) check(want []string) {
	w.T.Helper()
	if got := w.listed(); !slices.Equal(got, want) {
		w.T.Fatalf("the repository lists %v, want %v", got, want)
	}
	ps, err := w.Catalog.Points.List(ctx, catalog.PointQuery{Machine: w.m.ID})
	w.Must(err)
	var ids []string
	for _, p := range ps {
		ids = append(ids, p.ID)
	}
	if !slices.Equal(ids, want) {
		w.T.Fatalf("the catalog lists %v, want %v", ids, want)
	}
}

func TestPruneReleasesHolds(t *testing.T) {
	w := newWorld(t, nil)
	dev := w.Encrypted("old")
	w.m = w.Machine("db01", map[string]*provetest.Device{"vda": dev})
	first, err := w.Add(w.m, "old")
	w.Must(err)
	backup := func() string { id, _ := w.Backup(w.m); return id }
	ids := w.backups(3, backup)
	w.Rotate(dev, "old", "new")
	second, err := w.Add(w.m, "new")
	w.Must(err)
	ids = append(ids, w.backups(4, backup)...)
	if got := w.holds(first.Version.Ref); len(got) != 3 {
		t.Fatalf("%d holds of the old version", len(got))
	}
	var held *keymanager.HeldError
	if err := prove.Destroy(ctx, w.Deps, first.Version.Ref, "test"); !errors.As(err, &held) {
		t.Fatalf("destroyed before pruning: %v", err)
	}

	plan, err := w.prune(policy.Retention{Daily: 2}, dryRun)
	w.Must(err)
	w.check(ids)
	if len(w.events) != 0 || w.reclaims != 0 {
		t.Errorf("a dry run did something: %v", w.events)
	}
	res, err := w.prune(policy.Retention{Daily: 2})
	w.Must(err)
	w.check(ids[5:])
	for i, p := range res.Points {
		if p.Decision.Keep == p.Deleted || p.Decision.Keep != plan.Points[i].Decision.Keep {
			t.Errorf("%s: %v, deleted: %v, in the dry run: %v", p.Point.ID, p.Decision, p.Deleted, plan.Points[i].Decision)
		}
	}
	if s := res.Points[6].Decision.String(); s != "kept: newest; daily 1 of 2 ("+w.Clock.Format("2006-01-02")+")" {
		t.Error(s)
	}
	if res.Released != 5 || res.Freed.Bytes != 2 || w.reclaims != 1 {
		t.Errorf("%+v", res)
	}
	if got := w.holds(first.Version.Ref); len(got) != 0 {
		t.Errorf("holds of the old version: %v", got)
	}
	if got := w.holds(second.Version.Ref); !slices.Equal(got, slices.Sorted(slices.Values(ids[5:]))) {
		t.Errorf("holds of the new version: %v", got)
	}
	w.Must(prove.Destroy(ctx, w.Deps, first.Version.Ref, "nothing needs it"))
	if err := prove.Destroy(ctx, w.Deps, second.Version.Ref, "test"); !errors.As(err, &held) {
		t.Errorf("destroyed what is needed: %v", err)
	}
	p, err := w.Catalog.Points.Get(ctx, ids[0])
	w.Must(err)
	if !strings.HasPrefix(p.DeletedReason, "prune: daily: ") {
		t.Errorf("reason %q", p.DeletedReason)
	}
	// Again, and nothing happens.
	w.events = nil
	res, err = w.prune(policy.Retention{Daily: 2})
	w.Must(err)
	w.check(ids[5:])
	if len(w.events) != 0 || res.Released != 0 {
		t.Errorf("pruned twice: %v", w.events)
	}
}

// TestKilledAnywhere: after a kill at any step the next run ends where a run
// that was not killed does, and nothing that is kept was touched.
func TestKilledAnywhere(t *testing.T) {
	type killed struct{}
	for kill := 1; ; kill++ {
		dev := &provetest.Device{}
		w := newWorld(t, nil)
		*dev = *w.Encrypted("one")
		w.m = w.Machine("db01", map[string]*provetest.Device{"vda": dev})
		secret, err := w.Add(w.m, "one")
		w.Must(err)
		ids := w.backups(4, func() string { id, _ := w.Backup(w.m); return id })
		n, what := 0, ""
		w.step = func(s string) {
			if n++; n == kill {
				what = s
				panic(killed{})
			}
		}
		func() {
			defer func() {
				if r := recover(); r != nil && r != (killed{}) {
					panic(r)
				}
			}()
			_, err := w.prune(policy.Retention{KeepLast: 1})
			w.Must(err)
		}()
		w.step = func(string) {}
		if got := w.listed(); !slices.Contains(got, ids[3]) {
			t.Fatalf("killed at %d (%s): the newest is gone", kill, what)
		}
		// A new process; what is deleted already may be told as finished.
		w.Repo = w.OpenRepo()
		w.Deps.Repo = w.Repo
		reclaims := w.reclaims
		_, err = w.prune(policy.Retention{KeepLast: 1})
		w.Must(err)
		w.check(ids[3:])
		if got := w.holds(secret.Version.Ref); !slices.Equal(got, ids[3:]) {
			t.Fatalf("killed at %d (%s): holds %v", kill, what, got)
		}
		if w.reclaims != reclaims+1 {
			t.Fatalf("killed at %d (%s): not reclaimed", kill, what)
		}
		for _, id := range ids[:3] {
			if !slices.Contains(w.events, "done "+id+" <nil>") && what != "done" && what != "forget" {
				t.Errorf("killed at %d (%s): the deletion of %s is not recorded: %v", kill, what, id, w.events)
			}
		}
		if what == "" {
			if kill < 10 {
				t.Fatalf("only %d steps", kill)
			}
			return
		}
	}
}

func TestManagerAwayLeavesTheRestForLater(t *testing.T) {
	w := newWorld(t, nil)
	ids := w.backups(3, func() string { return w.Store1(w.m) })
	d := w.deps()
	release := d.Release
	d.Release = func(context.Context, ...catalog.Point) (int, error) { return 0, keymanager.ErrUnavailable }
	req := prune.Request{Machine: w.m, Policy: policy.Policy{Retention: policy.Retention{KeepLast: 1}}}
	_, err := prune.Run(ctx, d, req)
	var half *prune.HalfDoneError
	if !errors.As(err, &half) || !slices.Equal(half.Points, ids[:2]) || !errors.Is(err, keymanager.ErrUnavailable) {
		t.Fatalf("%v", err)
	}
	// The catalog still has them: their holds are to be released.
	p, err := w.Catalog.Points.Get(ctx, ids[0])
	w.Must(err)
	if !p.DeletedAt.IsZero() {
		t.Error("the catalog forgot a recovery point with holds")
	}
	d.Release = release
	res, err := prune.Run(ctx, d, req)
	w.Must(err)
	if !slices.Equal(res.Finished, ids[:2]) {
		t.Errorf("finished %v", res.Finished)
	}
	w.check(ids[2:])
}

func TestMarksKeep(t *testing.T) {
	w := newWorld(t, nil)
	ids := w.backups(8, func() string { return w.Store1(w.m) })
	w.Mark(ids[0], custody.Mark{Kind: custody.MarkPin, Set: true, Reason: "before the move"})
	w.Mark(ids[1], custody.Mark{Kind: custody.MarkLegalHold, Name: "CASE-12", Set: true, Reason: "asked for"})
	w.Mark(ids[2], custody.Mark{Kind: custody.MarkTag, Name: "release", Value: "9", Set: true})
	w.Mark(ids[3], custody.Mark{Kind: custody.MarkTag, Name: "other", Set: true})
	w.Mark(ids[4], custody.Mark{Kind: custody.MarkPin, Set: true, Reason: "x"})
	w.Mark(ids[4], custody.Mark{Kind: custody.MarkPin})
	res, err := w.prune(policy.Retention{KeepLast: 1, KeepTags: []string{"release"}})
	w.Must(err)
	w.check([]string{ids[0], ids[1], ids[2], ids[7]})
	for i, want := range map[int]string{0: "kept: pinned by uid:0 (before the move)", 1: "kept: legal hold CASE-12 (asked for)", 2: "kept: tagged release=9"} {
		if s := res.Points[i].Decision.String(); s != want {
			t.Errorf("%q, want %q", s, want)
		}
	}
	// A store that loses the pin does not unpin; one that spoils a pin which is
	// not known from before deletes nothing.
	w.Must(w.Store.List(ctx, "side/"+w.m.ID+"/"+repository.MachineSidecars+"/", func(i store.Info) error {
		if err := w.Store.Delete(ctx, i.Key); err != nil {
			return err
		}
		return nil
	}))
	_, err = w.prune(policy.Retention{KeepLast: 1})
	w.Must(err)
	w.check([]string{ids[0], ids[1], ids[7]})
	_, err = w.Repo.PutSidecar(ctx, w.m.ID, repository.MachineSidecars, repository.SidecarTag, []byte("not signed"))
	w.Must(err)
	if _, err = w.prune(policy.Retention{KeepLast: 1}); err != nil {
		t.Errorf("anybody with the repository's key could stop pruning: %v", err)
	}
	w.Must(w.Store.Put(ctx, "side/"+w.m.ID+"/"+repository.MachineSidecars+"/tag-0123456789abcdef", []byte("spoilt")))
	w.Must(w.Catalog.Policies.Put(ctx, "", []byte(`{}`))) // the catalog is there all the same
	w.backups(1, func() string { return w.Store1(w.m) })
	before := w.listed()
	if _, err := w.prune(policy.Retention{KeepLast: 1}); !errors.Is(err, prove.ErrMarkUnread) {
		t.Errorf("a mark that cannot be read: %v", err)
	}
	w.check(before)
}

// TestPinnedMeanwhile: pruning looks again before each batch.
func TestPinnedMeanwhile(t *testing.T) {
	w := newWorld(t, nil)
	ids := w.backups(70, func() string { return w.Store1(w.m) })
	once := false
	w.step = func(what string) {
		if what == "release" && !once {
			once = true
			w.Mark(ids[67], custody.Mark{Kind: custody.MarkPin, Set: true, Reason: "just in time"})
		}
	}
	res, err := w.prune(policy.Retention{KeepLast: 1})
	w.Must(err)
	w.check([]string{ids[67], ids[69]})
	if p := res.Points[67]; p.Deleted || !p.Decision.Keep || !strings.Contains(p.Decision.String(), "just in time") {
		t.Errorf("%+v", p)
	}
}

// What somebody reads stays, this time; others go.
func TestInUseStays(t *testing.T) {
	w := newWorld(t, nil)
	ids := w.backups(4, func() string { return w.Store1(w.m) })
	read := ids[1]
	var claimed []string
	run := func(dry bool) prune.Result {
		t.Helper()
		d := w.deps()
		d.Claim = func(point string) (func(), error) {
			if point == read {
				return nil, &prune.InUseError{Point: point, Holder: "a restore, process 7, since noon"}
			}
			claimed = append(claimed, point)
			return func() {
				claimed = slices.DeleteFunc(claimed, func(id string) bool { return id == point })
			}, nil
		}
		step := w.step
		w.step = func(what string) {
			if what == "begin" && len(claimed) == 0 || what == "release" && len(claimed) > 0 {
				t.Errorf("%s with %v claimed", what, claimed)
			}
		}
		defer func() { w.step = step }()
		res, err := prune.Run(ctx, d, prune.Request{Machine: w.m, Policy: policy.Policy{Retention: policy.Retention{KeepLast: 1}}, DryRun: dry})
		w.Must(err)
		if len(claimed) > 0 {
			t.Errorf("still claimed: %v", claimed)
		}
		return res
	}
	for _, dry := range []bool{true, false} {
		p := run(dry).Points[1]
		if !p.InUse || !p.Decision.Keep || p.Deleted || p.Decision.Reasons[0] != "in use by a restore, process 7, since noon; kept this time" {
			t.Errorf("dry run %v: %+v", dry, p)
		}
	}
	w.check([]string{ids[1], ids[3]})
	read = ""
	run(false)
	w.check(ids[3:])
}

func TestDeletedMeanwhile(t *testing.T) {
	w := newWorld(t, nil)
	ids := w.backups(70, func() string { return w.Store1(w.m) })
	once := false
	w.step = func(what string) {
		if what == "release" && !once {
			once = true
			w.Must(w.OpenRepo().Delete(ctx, w.m.ID, ids[69], "somebody else"))
		}
	}
	if _, err := w.prune(policy.Retention{KeepLast: 1}); !errors.Is(err, prune.ErrChanged) {
		t.Fatalf("%v", err)
	}
	if got := w.listed(); !slices.Equal(got, ids[64:69]) {
		t.Errorf("left: %v", got)
	}
}

// TestBackupBesides: a backup that began before goes on, and commits.
func TestBackupBesides(t *testing.T) {
	w := newWorld(t, nil)
	ids := w.backups(5, func() string { return w.Store1(w.m) })
	other := w.OpenRepo()
	pw, err := other.Begin(ctx, w.m.ID, repository.BeginOptions{})
	w.Must(err)
	if pw.Parent().Point != ids[4] {
		t.Fatalf("parent %s", pw.Parent().Point)
	}
	_, err = w.prune(policy.Retention{KeepLast: 1})
	w.Must(err)
	w.Must(pw.FinishMaps())
	p, err := pw.Commit(ctx, &repository.Manifest{Time: w.Now()})
	w.Must(err)
	if got := w.listed(); !slices.Equal(got, []string{ids[4], p.ID}) {
		t.Errorf("%v", got)
	}
}

// TestDamagedNewest: where the newest cannot be read, backups build on the one
// before it.
func TestDamagedNewest(t *testing.T) {
	w := newWorld(t, nil)
	ids := w.backups(5, func() string { return w.Store1(w.m) })
	w.Must(w.Store.Delete(ctx, "points/"+w.m.ID+"/"+ids[4]))
	w.Repo = w.OpenRepo()
	res, err := w.prune(policy.Retention{KeepLast: 1})
	w.Must(err)
	w.check(ids[3:])
	if len(res.Problems) != 1 || !strings.Contains(res.Points[3].Decision.String(), "a backup builds on it") {
		t.Errorf("%v, %v", res.Problems, res.Points[3].Decision)
	}
}

func TestNothingProvenIsLost(t *testing.T) {
	w := newWorld(t, nil)
	dev := w.Encrypted("old")
	w.m = w.Machine("db01", map[string]*provetest.Device{"vda": dev})
	_, err := w.Add(w.m, "old")
	w.Must(err)
	backup := func() string { id, _ := w.Backup(w.m); return id }
	ids := w.backups(2, backup)
	w.Rotate(dev, "old", "lost")
	ids = append(ids, w.backups(3, backup)...)
	res, err := w.prune(policy.Retention{KeepLast: 2})
	w.Must(err)
	w.check([]string{ids[1], ids[3], ids[4]})
	if p := res.Points[1]; p.State != custody.Proven || p.Decision.String() != "kept: newest that is proven and complete" {
		t.Errorf("%s %v", p.State, p.Decision)
	}
	if p := res.Points[4]; p.State != custody.Unrecoverable {
		t.Errorf("%s %v", p.State, p.Decision)
	}
}

func TestClock(t *testing.T) {
	right := func(r *prune.Request) { r.ClockIsRight = true }
	for _, k := range []struct {
		name   string
		change func(w *world)
		says   string
	}{
		{"before the newest", func(w *world) { w.Clock = w.Clock.Add(-time.Hour) }, "the newest recovery point is of"},
		{"long after the newest", func(w *world) { w.Clock = w.Clock.Add(prune.MaxGap + time.Hour) }, "more than 31 days after the newest recovery point"},
		{"before the last pruning", func(w *world) {
			w.Clock = w.Clock.Add(20 * 24 * time.Hour)
			_, err := w.prune(policy.Retention{KeepLast: 3})
			w.Must(err)
			w.Clock = w.Clock.Add(-time.Hour)
		}, "the last pruning is of"},
	} {
		t.Run(k.name, func(t *testing.T) {
			w := newWorld(t, nil)
			ids := w.backups(3, func() string { return w.Store1(w.m) })
			k.change(w)
			_, err := w.prune(policy.Retention{KeepLast: 1})
			var clock *prune.ClockError
			if !errors.Is(err, prune.ErrClock) || !errors.As(err, &clock) || !strings.Contains(err.Error(), k.says) || !strings.Contains(clock.Hint(), "--clock-is-right") {
				t.Fatalf("%v", err)
			}
			w.check(ids)
			plan, err := w.prune(policy.Retention{KeepLast: 1}, dryRun)
			if err != nil || len(plan.Problems) != 1 || !strings.Contains(plan.Problems[0], k.says) {
				t.Errorf("dry run: %v, %v", plan.Problems, err)
			}
			_, err = w.prune(policy.Retention{KeepLast: 1}, right)
			w.Must(err)
			w.check(ids[2:])
			// What was said to be right is observed from now on.
			if k.name != "before the newest" {
				_, err = w.prune(policy.Retention{KeepLast: 1})
				w.Must(err)
			}
		})
	}
}

func TestRefusals(t *testing.T) {
	t.Run("a log that was cut off", func(t *testing.T) {
		w := newWorld(t, nil)
		ids := w.backups(4, func() string { return w.Store1(w.m) })
		w.Must(w.Store.Delete(ctx, fmt.Sprintf("log/%s/%016x", w.m.ID, 3)))
		w.Repo = w.OpenRepo()
		if _, err := w.prune(policy.Retention{KeepLast: 1}); !errors.Is(err, prune.ErrLost) {
			t.Errorf("%v", err)
		}
		if got := w.listed(); !slices.Equal(got, ids[:3]) {
			t.Errorf("%v", got)
		}
	})
	t.Run("a log with a hole", func(t *testing.T) {
		w := newWorld(t, nil)
		w.backups(4, func() string { return w.Store1(w.m) })
		w.Must(w.Store.Delete(ctx, fmt.Sprintf("log/%s/%016x", w.m.ID, 1)))
		w.Repo = w.OpenRepo()
		if _, err := w.prune(policy.Retention{KeepLast: 1}); !errors.Is(err, repository.ErrDamaged) {
			t.Errorf("%v", err)
		}
	})
	t.Run("what cannot be recorded", func(t *testing.T) {
		w := newWorld(t, nil)
		ids := w.backups(2, func() string { return w.Store1(w.m) })
		d := w.deps()
		no := errors.New("disk full")
		d.Begin = func(context.Context, catalog.Point, string) error { return no }
		if _, err := prune.Run(ctx, d, prune.Request{Machine: w.m, Policy: policy.Policy{Retention: policy.Retention{KeepLast: 1}}}); !errors.Is(err, no) {
			t.Errorf("%v", err)
		}
		w.check(ids)
	})
	t.Run("never backed up", func(t *testing.T) {
		w := newWorld(t, nil)
		res, err := w.prune(policy.Retention{KeepLast: 1})
		if err != nil || len(res.Points) != 0 {
			t.Errorf("%+v, %v", res, err)
		}
	})
	t.Run("made in another repository", func(t *testing.T) {
		w := newWorld(t, nil)
		ids := w.backups(3, func() string { return w.Store1(w.m) })
		for _, id := range ids[:2] { // one that is here as a copy, and one that is not
			p, err := w.Catalog.Points.Get(ctx, id)
			w.Must(err)
			p.Repository = strings.Repeat("a", 32)
			w.Must(w.Catalog.Points.Record(ctx, p))
		}
		w.Must(w.Repo.Delete(ctx, w.m.ID, ids[0], "never copied"))
		w.Mark(ids[1], custody.Mark{Kind: custody.MarkTag, Name: "a", Set: true})
		res, err := w.prune(policy.Retention{KeepLast: 1})
		w.Must(err)
		if len(res.Finished) != 0 || !slices.Equal(w.listed(), ids[2:]) {
			t.Errorf("finished %v, listed %v", res.Finished, w.listed())
		}
		for i, id := range ids[:2] {
			p, err := w.Catalog.Points.Get(ctx, id)
			w.Must(err)
			if p.DeletedAt.IsZero() != (i == 0) {
				t.Errorf("recovery point %d is deleted at %v", i, p.DeletedAt)
			}
		}
	})
	t.Run("not in the catalog yet", func(t *testing.T) {
		w := newWorld(t, nil)
		ids := w.backups(3, func() string { return w.Store1(w.m) })
		second := w.OpenCatalog("second.db")
		w.Must(second.Machines.Put(ctx, w.m))
		p, err := w.Catalog.Points.Get(ctx, ids[2])
		w.Must(err)
		w.Must(second.Points.Record(ctx, p))
		w.Catalog, w.Deps.Catalog = second, second
		res, err := w.prune(policy.Retention{KeepLast: 1})
		w.Must(err)
		if got := w.listed(); !slices.Equal(got, ids) || !strings.Contains(res.Points[0].Decision.String(), "the catalog does not know it yet") {
			t.Errorf("%v, %v", got, res.Points[0].Decision)
		}
	})
}

func TestKeeps(t *testing.T) {
	all := custody.MarksInForce([]custody.Mark{
		{Point: "a", Kind: custody.MarkPin, Set: true, Sequence: 1, Actor: "uid:0", Reason: "r"},
		{Point: "b", Kind: custody.MarkTag, Name: "x", Set: true, Sequence: 1},
		{Point: "c", Kind: custody.MarkLegalHold, Name: "CASE-1", Set: true, Sequence: 1, Reason: "r"},
	})
	got := map[string]string{}
	for id, m := range all {
		got[id] = strings.Join(prune.Keeps(m), ";")
	}
	if want := map[string]string{"a": "pinned by uid:0 (r)", "b": "", "c": "legal hold CASE-1 (r)"}; !maps.Equal(got, want) {
		t.Errorf("%v", got)
	}
}

// TestStoreKeeps: what a store keeps (WORM) stays, and is asked for only where
// it would go; a minimum counts it.
func TestStoreKeeps(t *testing.T) {
	w := newWorld(t, nil)
	ids := w.backups(5, func() string { return w.Store1(w.m) })
	var asked []string
	d := w.deps()
	locked := map[string]time.Time{ids[0]: w.Clock.Add(time.Hour), ids[1]: w.Clock.Add(-time.Hour), ids[3]: w.Clock.Add(time.Hour)}
	d.Locked = func(_ context.Context, machine string, points []string) (map[string]time.Time, error) {
		out := map[string]time.Time{}
		for _, id := range points {
			if until, ok := locked[id]; ok {
				out[id] = until
			}
		}
		asked = append(asked, points...)
		return out, nil
	}
	req := prune.Request{Machine: w.m, Policy: policy.Policy{Retention: policy.Retention{KeepLast: 1, Minimum: 3}}}
	res, err := prune.Run(ctx, d, req)
	w.Must(err)
	// At first the minimum keeps 2 and 3; with 0 locked, 2 is one too many, and
	// nobody had asked about it.
	if !slices.Equal(asked, []string{ids[0], ids[1], ids[2]}) {
		t.Errorf("asked about %v", asked)
	}
	w.check([]string{ids[0], ids[3], ids[4]})
	if s := res.Points[0].Decision.String(); !strings.HasPrefix(s, "kept: WORM until 20") {
		t.Error(s)
	}
	no := errors.New("store is away")
	d.Locked = func(context.Context, string, []string) (map[string]time.Time, error) { return nil, no }
	w.backups(1, func() string { return w.Store1(w.m) })
	if _, err := prune.Run(ctx, d, req); !errors.Is(err, no) {
		t.Errorf("%v", err)
	}
}
