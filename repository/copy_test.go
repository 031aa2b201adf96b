package repository_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/lockstep-backup/lockstep/repository"
	"github.com/lockstep-backup/lockstep/repository/copies"
	"github.com/lockstep-backup/lockstep/repository/internal/machinelog"
	"github.com/lockstep-backup/lockstep/store"
	"github.com/lockstep-backup/lockstep/store/faultstore"
	"github.com/lockstep-backup/lockstep/store/memstore"
)

// pair is a sample and an empty repository of another installation: nothing
// of its keys is known to the sample, nor the other way round.
type pair struct {
	*sample
	dst    *fixture
	dstMem *memstore.Store
}

func newPair(tb testing.TB, sealing string) *pair {
	tb.Helper()
	return &pair{sample: newSample(tb, sealing)}
}

// destination makes the other repository anew.
func (p *pair) destination(tb testing.TB, sealing string) {
	tb.Helper()
	p.dstMem = memstore.New()
	p.dst = newFixture(tb, p.dstMem, sealing)
}

func (p *pair) options() copies.Options {
	return copies.Options{Custodian: &p.dst.custodian, Verify: true}
}

func (p *pair) copy(tb testing.TB, o copies.Options) copies.Result {
	tb.Helper()
	res, err := copies.Copy(tb.Context(), p.repo, p.dst.repo, p.machine.ID, o)
	if err != nil {
		tb.Fatal(err)
	}
	return res
}

// checkCopy opens what lies in the destination's store with its own keys alone, and
// compares each recovery point that it lists with what was backed up.
func (p *pair) checkCopy(st store.Store) (listed []string, err error) {
	f := *p.dst
	f.st = st
	r, err := repository.Open(ctxBackground, st, repository.OpenOptions{Unlock: repository.Unlocker{Identities: f.identity}, TrustRoot: f.trust})
	if err != nil {
		return nil, err
	}
	defer r.Close()
	points, err := r.Points(ctxBackground, p.machine.ID)
	if errors.Is(err, repository.ErrNotFound) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	for _, x := range points {
		listed = append(listed, x.ID)
		mf, err := r.Manifest(ctxBackground, x)
		if err != nil {
			return nil, fmt.Errorf("recovery point %s is listed: %w", x.ID, err)
		}
		for _, d := range mf.Disks {
			got, err := scanDisk(r, mf, d)
			if err != nil {
				return nil, fmt.Errorf("recovery point %s is listed: %w", x.ID, err)
			}
			if want := p.images[imageKey(x.ID, d.ID)]; want != nil && !bytes.Equal(got, want) {
				return nil, fmt.Errorf("recovery point %s: disk %s differs", x.ID, d.ID)
			}
			for _, h := range d.Headers {
				if err := r.CheckHeader(ctxBackground, p.machine.ID, h.ID); err != nil {
					return nil, fmt.Errorf("recovery point %s is listed: %w", x.ID, err)
				}
			}
		}
	}
	return listed, nil
}

func (p *pair) mustList(tb testing.TB, want ...string) {
	tb.Helper()
	got, err := p.checkCopy(p.dstMem)
	if err != nil {
		tb.Fatal(err)
	}
	if !slices.Equal(got, want) {
		tb.Fatalf("the destination lists %v, not %v", got, want)
	}
	for _, key := range allKeys(tb, p.dstMem, "") {
		if err := repository.CheckStored(tb.Context(), p.dstMem, key); err != nil {
			tb.Errorf("%s: %v", key, err)
		}
		if err := p.dst.repo.CheckObject(tb.Context(), key); err != nil {
			tb.Errorf("%s: %v", key, err)
		}
	}
}

func ids(points []repository.Point) (out []string) {
	for _, p := range points {
		out = append(out, p.ID)
	}
	return out
}

// data are the keys of what moves byte for byte.
func data(tb testing.TB, st store.Store) (keys []string) {
	tb.Helper()
	for _, prefix := range []string{"headers-a/", "headers-b/", "map/", "points/", "seg/", "side/"} {
		keys = append(keys, allKeys(tb, st, prefix)...)
	}
	return keys
}

func TestCopy(t *testing.T) {
	for _, sealing := range []string{repository.SealingAESGCM, repository.SealingNone} {
		t.Run(sealing, func(t *testing.T) {
			p := newPair(t, sealing)
			p.destination(t, sealing)
			res := p.copy(t, p.options())
			if !slices.Equal(res.Points, ids(p.points)) || res.Objects == 0 || res.Sidecars == 0 || !res.Keys || res.Replicas != 0 {
				t.Fatalf("copied: %+v", res)
			}
			p.mustList(t, ids(p.points)...)
			for _, key := range data(t, p.dstMem) {
				if !bytes.Equal(get(t, p.dstMem, key), get(t, p.mem, key)) {
					t.Errorf("%s is not the source's, byte for byte", key)
				}
			}
			// All statements came along but those about the one that was deleted.
			if got, want := allKeys(t, p.dstMem, "side/"), allKeys(t, p.mem, "side/"); !slices.Equal(got, want) {
				t.Errorf("statements: %v, not %v", got, want)
			}
			if _, err := p.dstMem.Stat(t.Context(), "points/"+p.machine.ID+"/"+p.gone.ID); !errors.Is(err, store.ErrNotExist) {
				t.Error("the deleted recovery point's manifest was copied")
			}
			// The log is the destination's own; the births and the origin are the source's.
			for i, x := range mustPoints(t, p.dst.repo, p.machine.ID) {
				if x.Birth != p.points[i].Birth || x.Origin != p.repo.ID() || x.Writer != string(p.dst.writer.ID()) {
					t.Errorf("entry %+v of %+v", x, p.points[i])
				}
			}

			again := p.copy(t, p.options())
			if again.Present != 3 || len(again.Points) != 0 || again.Objects != 0 || again.Sidecars != 0 || again.Bytes != 0 || again.Keys {
				t.Fatalf("copied once more: %+v", again)
			}

			// One more recovery point costs what it wrote itself.
			before := data(t, p.mem)
			next := p.backup(t, &memDisk{p: noise(77, 3*65536)}, repository.BeginOptions{})
			var fresh []string
			for _, key := range data(t, p.mem) {
				if !slices.Contains(before, key) {
					fresh = append(fresh, key)
				}
			}
			had := data(t, p.dstMem)
			more := p.copy(t, p.options())
			if !slices.Equal(more.Points, []string{next.ID}) || more.Objects != int64(len(fresh)) {
				t.Fatalf("copied %+v, of the new objects %v", more, fresh)
			}
			for _, key := range data(t, p.dstMem) {
				if !slices.Contains(had, key) && !slices.Contains(fresh, key) {
					t.Errorf("%s was moved and is not new", key)
				}
			}
			p.mustList(t, append(ids(p.points), next.ID)...)
		})
	}
}

func (p *pair) backup(tb testing.TB, d *memDisk, o repository.BeginOptions) repository.Point {
	tb.Helper()
	x, _ := p.fixture.backup(tb, d, o)
	p.images[imageKey(x.ID, "vda")] = bytes.Clone(d.p)
	return x
}

func mustPoints(tb testing.TB, r *repository.Repository, mid string) []repository.Point {
	tb.Helper()
	points, err := r.Points(ctxBackground, mid)
	if err != nil {
		tb.Fatal(err)
	}
	return points
}

func TestCopyChooses(t *testing.T) {
	p := newPair(t, repository.SealingAESGCM)
	p.destination(t, repository.SealingAESGCM)
	all := ids(p.points)
	o := p.options()
	o.Newest = 1
	if res := p.copy(t, o); !slices.Equal(res.Points, all[2:]) {
		t.Fatalf("%+v", res)
	}
	p.mustList(t, all[2])
	// An older one comes later; what it shares with the newer is there.
	o.Newest, o.Points = 0, all[:1]
	if res := p.copy(t, o); !slices.Equal(res.Points, all[:1]) || res.Found == 0 {
		t.Fatalf("%+v", res)
	}
	o.Points = nil
	if res := p.copy(t, o); !slices.Equal(res.Points, all[1:2]) || res.Present != 2 {
		t.Fatalf("%+v", res)
	}
	p.mustList(t, all...) // in the order in which they were made
	o.Points = []string{p.gone.ID}
	if _, err := copies.Copy(t.Context(), p.repo, p.dst.repo, p.machine.ID, o); !errors.Is(err, repository.ErrNotFound) {
		t.Fatalf("a deleted recovery point was copied: %v", err)
	}
}

// TestCopyLeavesDeletedAlone: what the destination deleted does not come back.
func TestCopyLeavesDeletedAlone(t *testing.T) {
	p := newPair(t, repository.SealingAESGCM)
	p.destination(t, repository.SealingAESGCM)
	p.copy(t, p.options())
	all := ids(p.points)
	for i, id := range all[:2] {
		if err := p.dst.repo.Delete(t.Context(), p.machine.ID, id, "pruned here"); err != nil {
			t.Fatal(err)
		}
		if res := p.copy(t, p.options()); res.Deleted != i+1 || len(res.Points) != 0 || res.Objects != 0 {
			t.Fatalf("%+v", res)
		}
	}
	p.mustList(t, all[2])
	// A new one finds its nearest ancestor that is still there.
	next := p.backup(t, &memDisk{p: noise(78, 70000)}, repository.BeginOptions{})
	p.copy(t, p.options())
	p.mustList(t, all[2], next.ID)
	if got := mustPoints(t, p.dst.repo, p.machine.ID); got[1].Parent != all[2] {
		t.Fatalf("parent is %s", got[1].Parent)
	}
}

// TestCopyBecomesTheOneThatIsWritten: the source is lost; the copy goes on by
// itself, and later the source, found again, gets what it missed.
func TestCopyBecomesTheOneThatIsWritten(t *testing.T) {
	p := newPair(t, repository.SealingAESGCM)
	p.destination(t, repository.SealingAESGCM)
	p.copy(t, p.options())
	image := bytes.Clone(p.images[imageKey(p.points[2].ID, "vda")])
	copy(image, noise(90, 4096))
	p.dst.machine = p.machine
	next, mf := p.dst.backup(t, &memDisk{p: image}, repository.BeginOptions{})
	p.images[imageKey(next.ID, "vda")] = image
	if mf.Parent != p.points[2].ID || mf.Disks[0].Stats.Changed > 32<<10 || next.Birth <= p.points[2].Birth {
		t.Fatalf("the backup after the loss is not incremental: %+v", mf)
	}
	p.mustList(t, append(ids(p.points), next.ID)...)
	back, err := copies.Copy(t.Context(), p.dst.repo, p.repo, p.machine.ID, copies.Options{Custodian: &p.custodian})
	if err != nil || !slices.Equal(back.Points, []string{next.ID}) || back.Present != 3 {
		t.Fatalf("%+v, %v", back, err)
	}
	points := mustPoints(t, p.repo, p.machine.ID)
	if got := content(t, p.repo, points[3]); !bytes.Equal(got, image) || points[3].Origin != p.dst.repo.ID() {
		t.Fatal("what was copied back is not what was made there")
	}
	// And from there into a third: the origin is where it was made.
	third := newFixture(t, memstore.New(), repository.SealingAESGCM)
	if _, err := copies.Copy(t.Context(), p.repo, third.repo, p.machine.ID, copies.Options{Custodian: &third.custodian}); err != nil {
		t.Fatal(err)
	}
	points = mustPoints(t, third.repo, p.machine.ID)
	if points[0].Origin != p.repo.ID() || points[3].Origin != p.dst.repo.ID() || !bytes.Equal(content(t, third.repo, points[3]), image) {
		t.Fatalf("%+v", points)
	}
}

func TestCopyRefuses(t *testing.T) {
	p := newPair(t, repository.SealingAESGCM)
	p.destination(t, repository.SealingNone)
	if _, err := copies.Copy(t.Context(), p.repo, p.dst.repo, p.machine.ID, p.options()); !errors.Is(err, copies.ErrSealing) {
		t.Errorf("another sealing: %v", err)
	}
	p.destination(t, repository.SealingAESGCM)
	if _, err := copies.Copy(t.Context(), p.repo, p.dst.repo, p.machine.ID, copies.Options{}); !errors.Is(err, repository.ErrUntrusted) {
		t.Errorf("keys that nobody vouches for: %v", err)
	}
	if _, err := copies.Copy(t.Context(), p.repo, p.repo, p.machine.ID, p.options()); err == nil {
		t.Error("a repository was copied to itself")
	}
	if _, err := p.openReader(p.dstMem); err == nil {
		t.Fatal("keys of the one open the other")
	}
	ro, err := p.openReader(p.mem)
	if err != nil {
		t.Fatal(err)
	}
	defer ro.Close()
	if _, err := copies.Copy(t.Context(), p.dst.repo, ro, p.machine.ID, p.options()); !errors.Is(err, repository.ErrReadOnly) {
		t.Errorf("read only: %v", err)
	}
	if _, err := copies.Copy(t.Context(), p.repo, p.dst.repo, strings.Repeat("0", 32), p.options()); !errors.Is(err, repository.ErrNotFound) {
		t.Errorf("no such machine: %v", err)
	}
	if _, err := p.dst.repo.CreateMachine(t.Context(), p.machine.ID, "namesake"); err != nil {
		t.Fatal(err)
	}
	if _, err := copies.Copy(t.Context(), p.repo, p.dst.repo, p.machine.ID, p.options()); !errors.Is(err, copies.ErrOtherKeys) {
		t.Errorf("a machine with other keys: %v", err)
	}
}

// TestCopyDoesNotSpreadDamage: each object of the source flips a bit in turn.
// The recovery points that need it are named, the others are copied, and
// nothing damaged arrives.
func TestCopyDoesNotSpreadDamage(t *testing.T) {
	p := newPair(t, repository.SealingAESGCM)
	for _, key := range data(t, p.mem) {
		raw := get(t, p.mem, key)
		for _, at := range []int{len(raw) / 3, len(raw) - 30} {
			p.destination(t, repository.SealingAESGCM)
			replace(t, p.mem, key, flip(raw, at))
			src, err := p.openReader(p.mem)
			if err != nil {
				t.Fatal(err)
			}
			res, err := copies.Copy(t.Context(), src, p.dst.repo, p.machine.ID, p.options())
			src.Close()
			replace(t, p.mem, key, raw)
			switch kind := kindOf(key); {
			case kind == "side" && (err != nil || len(res.Problems) == 0 || len(res.Points) != 3):
				t.Errorf("%s: %+v, %v", key, res, err)
			case strings.HasPrefix(kind, "headers") && (err != nil || len(res.Points) != 3):
				t.Errorf("%s: the other copy was there: %+v, %v", key, res, err)
			case (kind == "seg" || kind == "map" || kind == "points") && (!errors.Is(err, repository.ErrDamaged) || len(res.Failed) == 0):
				// What only deleted recovery points refer to is not read.
				if err != nil || len(res.Points) != 3 {
					t.Errorf("%s: %+v, %v", key, res, err)
				}
			}
			if len(res.Points)+len(res.Failed) != 3 {
				t.Errorf("%s: %+v", key, res)
			}
			p.mustList(t, res.Points...)
		}
	}
}

func flip(raw []byte, at int) []byte {
	raw = bytes.Clone(raw)
	raw[at] ^= 4
	return raw
}

// TestCopyIsKilled strikes every operation of a copy: what the destination
// lists is whole at any time, and the next run finishes.
func TestCopyIsKilled(t *testing.T) {
	p := newPair(t, repository.SealingAESGCM)
	p.destination(t, repository.SealingAESGCM)
	start := p.dstMem.Clone()
	run := func(st store.Store) error {
		f := *p.dst
		f.st = st
		r, err := repository.Open(ctxBackground, st, repository.OpenOptions{
			Unlock: repository.Unlocker{Identities: f.identity}, Writer: &f.writer, TrustRoot: f.trust,
		})
		if err != nil {
			return err
		}
		defer r.Close()
		_, err = copies.Copy(ctxBackground, p.repo, r, p.machine.ID, copies.Options{Custodian: &f.custodian, Parallel: 2})
		return err
	}
	whole := faultstore.New(start.Clone())
	if err := run(whole); err != nil {
		t.Fatal(err)
	}
	trace := whole.Trace()
	type strike struct {
		name  string
		fault func() *faultstore.Fault
	}
	var strikes []strike
	for i, e := range trace {
		at := fmt.Sprintf("%d (%s %s)", i+1, e.Op, e.Key)
		strikes = append(strikes, strike{"kill before " + at, func() *faultstore.Fault { return faultstore.KillBefore(faultstore.Any, i+1, nil) }})
		if mutates(e.Op) {
			strikes = append(
				strikes,
				strike{"kill after " + at, func() *faultstore.Fault { return faultstore.KillAfter(faultstore.Any, i+1, nil) }},
				strike{"answer lost of " + at, func() *faultstore.Fault { return faultstore.FailAfter(faultstore.Any, i+1, nil) }},
			)
		}
	}
	if len(strikes) < 100 {
		t.Fatalf("%d strikes only", len(strikes))
	}
	var mu sync.Mutex
	partial := 0
	forEach(len(strikes), func(i int) {
		mem := start.Clone()
		st := faultstore.New(mem, strikes[i].fault())
		err := run(st)
		listed, cerr := p.checkCopy(mem)
		if cerr != nil {
			t.Errorf("%s: %v (copy: %v)", strikes[i].name, cerr, err)
			return
		}
		mu.Lock()
		if n := len(listed); n > 0 && n < 3 {
			partial++
		}
		mu.Unlock()
		if err := run(mem); err != nil {
			t.Errorf("%s: the next run: %v", strikes[i].name, err)
		}
		if listed, err := p.checkCopy(mem); err != nil || len(listed) != 3 {
			t.Errorf("%s: after the next run: %v, %v", strikes[i].name, listed, err)
		}
		if got, want := data(t, mem), data(t, p.mem); len(got) < len(want)-4 {
			t.Errorf("%s: after the next run there are %d objects of %d", strikes[i].name, len(got), len(want))
		}
	})
	if partial == 0 {
		t.Error("no strike met a copy half done")
	}
}

// TestCopiersMeet: two copiers of one machine and somebody who deletes get
// in each other's way; nothing that is listed lacks anything.
func TestCopiersMeet(t *testing.T) {
	p := newPair(t, repository.SealingAESGCM)
	for i := range 6 {
		x := p.backup(t, &memDisk{p: noise(uint64(100+i), 65536+i*4096)}, repository.BeginOptions{})
		p.points = append(p.points, x)
	}
	p.destination(t, repository.SealingAESGCM)
	var wait sync.WaitGroup
	for range 3 {
		r := p.dst.open(t)
		wait.Go(func() {
			if _, err := copies.Copy(t.Context(), p.repo, r, p.machine.ID, p.options()); err != nil && !errors.Is(err, repository.ErrConflict) {
				t.Error(err)
			}
		})
	}
	wait.Go(func() {
		for {
			points, err := p.dst.repo.Points(t.Context(), p.machine.ID)
			if err != nil && !errors.Is(err, repository.ErrNotFound) {
				t.Error(err)
				return
			}
			if len(points) == 0 {
				continue
			}
			if err := p.dst.repo.Delete(t.Context(), p.machine.ID, points[0].ID, "test"); err != nil && !errors.Is(err, repository.ErrConflict) {
				t.Error(err)
			}
			return
		}
	})
	wait.Wait()
	p.copy(t, p.options())
	listed, err := p.checkCopy(p.dstMem)
	if err != nil || len(listed) != len(p.points)-1 {
		t.Fatal(listed, err)
	}
}

// fence writes what a reclaim writes before it deletes anything.
func fence(tb testing.TB, f *fixture, mid string, leftovers int64) {
	tb.Helper()
	in := f.repo.Inside()
	_, log, err := in.Machine(tb.Context(), mid)
	if err != nil {
		tb.Fatal(err)
	}
	records, err := log.Read(tb.Context())
	if err != nil {
		tb.Fatal(err)
	}
	e := machinelog.Entry{Kind: machinelog.Fence, Leftovers: &leftovers, Must: []string{machinelog.FeatureReplicas}}
	if err := log.Append(tb.Context(), records, e, f.writer, in.Now()); err != nil {
		tb.Fatal(err)
	}
}

// TestCopyBehindAFence: what a reclaim of the destination may have an eye on is
// not relied on, and no name is used that it may still delete.
func TestCopyBehindAFence(t *testing.T) {
	p := newPair(t, repository.SealingAESGCM)
	p.destination(t, repository.SealingAESGCM)
	image := noise(40, 3*65536)
	p.points = nil
	for i := range 3 { // each needs something of its own, all something of the first
		copy(image, noise(uint64(41+i), 65536))
		p.points = append(p.points, p.backup(t, &memDisk{p: image}, repository.BeginOptions{Full: i == 0}))
	}
	all := ids(p.points)
	// A copy dies when all objects are there and nothing is committed; and the
	// newest recovery point is listed.
	o := p.options()
	o.Points = all[2:]
	p.copy(t, o)
	needed := data(t, p.dstMem)
	before := p.dstMem.Clone()
	o.Points = all[:2]
	p.copy(t, o)
	var left []string
	for _, key := range data(t, p.dstMem) {
		if !slices.Contains(needed, key) && (kindOf(key) == "seg" || kindOf(key) == "map") {
			put(t, before, key, get(t, p.dstMem, key))
			left = append(left, key)
		}
	}
	if len(left) < 2 {
		t.Fatalf("the older recovery points need nothing of their own: %v", left)
	}
	p.dstMem = before
	p.dst.st = before
	p.dst.repo = p.dst.open(t)
	fence(t, p.dst, p.machine.ID, p.points[2].Birth)
	res := p.copy(t, o)
	if !slices.Equal(res.Points, all[:2]) || res.Replicas == 0 || res.Found == 0 {
		t.Fatalf("%+v", res)
	}
	// The reclaim gets to what it saw.
	for _, key := range left {
		if err := p.dstMem.Delete(t.Context(), key); err != nil {
			t.Fatal(err)
		}
	}
	p.mustList(t, all...)
	// And from there to a third, where no name was ever in use: replicas stay what they are.
	third := newFixture(t, memstore.New(), repository.SealingAESGCM)
	from := p.dst.open(t)
	o = copies.Options{Custodian: &third.custodian, Verify: true}
	more, err := copies.Copy(t.Context(), from, third.repo, p.machine.ID, o)
	if err != nil || len(more.Points) != 3 || more.Replicas == 0 {
		t.Fatalf("%+v, %v", more, err)
	}
	p.dst, p.dstMem = third, third.st.(*memstore.Store)
	p.mustList(t, all...)
}

// meddler does something at the first Put below a prefix.
type meddler struct {
	store.Store
	prefix string
	once   sync.Once
	do     func()
}

func (m *meddler) Put(ctx context.Context, key string, p []byte) error {
	if strings.HasPrefix(key, m.prefix) {
		m.once.Do(m.do)
	}
	return m.Store.Put(ctx, key, p)
}

// TestFenceMeetsACopy: a reclaim of the destination begins when all objects of
// a recovery point are there and its entry is not. What the reclaim may delete
// is brought under other names before the entry is written.
func TestFenceMeetsACopy(t *testing.T) {
	for _, prefix := range []string{"points/", "log/"} {
		p := newPair(t, repository.SealingAESGCM)
		p.destination(t, repository.SealingAESGCM)
		var left []string
		m := &meddler{Store: p.dstMem, prefix: prefix, do: func() {
			other := *p.dst
			other.repo = p.dst.open(t)
			fence(t, &other, p.machine.ID, p.points[2].Birth)
			left = append(allKeys(t, p.dstMem, "seg/"), allKeys(t, p.dstMem, "map/")...)
		}}
		f := *p.dst
		f.st = m
		p.dst.repo = f.open(t)
		res := p.copy(t, p.options())
		if len(res.Points) != 3 || res.Replicas == 0 || len(left) == 0 {
			t.Fatalf("%s: %+v, %v", prefix, res, left)
		}
		for _, key := range left { // nothing listed referred to them when the fence came
			if err := p.dstMem.Delete(t.Context(), key); err != nil {
				t.Fatal(err)
			}
		}
		p.dst.repo = p.dst.open(t)
		p.mustList(t, ids(p.points)...)
	}
}

// What is copied has a lease, and what the source deleted before it had one is
// passed over: the others come.
func TestCopyLeases(t *testing.T) {
	p := newPair(t, repository.SealingAESGCM)
	p.destination(t, repository.SealingAESGCM)
	held, moved := "", 0
	o := p.options()
	o.Parallel = 1
	o.Lease = func(ctx context.Context, point string) (func(), error) {
		if held != "" {
			t.Errorf("a lease on %s beside that on %s", point, held)
		}
		if held = point; point == p.points[1].ID { // somebody without a lease comes first
			if err := p.repo.Delete(ctx, p.machine.ID, point, "test"); err != nil {
				t.Fatal(err)
			}
			if _, err := p.repo.Reclaim(ctx, p.machine.ID, repository.ReclaimOptions{}); err != nil {
				t.Fatal(err)
			}
		}
		return func() { held = "" }, nil
	}
	o.Progress = func(done, total int, _ int64) {
		if moved++; done < total && held == "" {
			t.Error("bytes move without a lease")
		}
	}
	res := p.copy(t, o)
	want := ids(slices.Delete(slices.Clone(p.points), 1, 2))
	if !slices.Equal(res.Points, want) || len(res.Failed) != 0 || len(res.Problems) == 0 || !strings.Contains(strings.Join(res.Problems, "\n"), p.points[1].ID+" was deleted in the source") {
		t.Errorf("%+v", res)
	}
	if held != "" || moved == 0 {
		t.Errorf("%q is held, told %d times", held, moved)
	}
	p.mustList(t, want...)
	// What is there already is not read, and needs no lease.
	o.Lease = func(context.Context, string) (func(), error) { return nil, errors.New("a lease for nothing") }
	if res := p.copy(t, o); res.Present != len(want) {
		t.Errorf("%+v", res)
	}
}
