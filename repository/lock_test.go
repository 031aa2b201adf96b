package repository_test

import (
	"bytes"
	"context"
	"errors"
	"maps"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/lockstep-backup/lockstep/envelope"
	"github.com/lockstep-backup/lockstep/repository"
	"github.com/lockstep-backup/lockstep/repository/copies"
	"github.com/lockstep-backup/lockstep/repository/format"
	"github.com/lockstep-backup/lockstep/store"
	"github.com/lockstep-backup/lockstep/store/memstore"
)

const day = 24 * time.Hour

// lockStore is a store that locks by a clock that the test moves, and counts
// the extensions.
type lockStore struct {
	*memstore.Store
	mu      sync.Mutex
	at      time.Time
	retains map[string]int
	fail    func(key string) error
}

func newLockStore() *lockStore {
	s := &lockStore{at: time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC), retains: map[string]int{}}
	s.Store = memstore.NewLocking(s.now)
	return s
}

func (s *lockStore) now() time.Time {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.at
}

func (s *lockStore) pass(d time.Duration) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.at = s.at.Add(d)
}

func (s *lockStore) Retain(ctx context.Context, key string, until time.Time, mode store.LockMode) error {
	s.mu.Lock()
	s.retains[key]++
	fail := s.fail
	s.mu.Unlock()
	if fail != nil {
		if err := fail(key); err != nil {
			return err
		}
	}
	return s.Store.Retain(ctx, key, until, mode)
}

func (s *lockStore) taken() map[string]int {
	s.mu.Lock()
	defer s.mu.Unlock()
	out := maps.Clone(s.retains)
	clear(s.retains)
	return out
}

func (s *lockStore) until(tb testing.TB, key string) time.Time {
	tb.Helper()
	u, err := s.RetainedUntil(tb.Context(), key)
	if err != nil {
		tb.Fatal(err)
	}
	return u
}

func (s *lockStore) keys(tb testing.TB, prefix string) (keys []string) {
	tb.Helper()
	if err := s.List(tb.Context(), prefix, func(i store.Info) error { keys = append(keys, i.Key); return nil }); err != nil {
		tb.Fatal(err)
	}
	return keys
}

// lockedFixture is a repository whose objects are locked for ten days, in
// steps of two.
func lockedFixture(tb testing.TB) (*fixture, *lockStore) {
	tb.Helper()
	st := newLockStore()
	f := newFixture(tb, st, repository.SealingAESGCM)
	f.repo = f.openLocked(tb, st, repository.LockPolicy{For: 10 * day, Quantum: 2 * day})
	return f, st
}

func (f *fixture) openLocked(tb testing.TB, st *lockStore, p repository.LockPolicy) *repository.Repository {
	tb.Helper()
	r, err := repository.Open(tb.Context(), st, repository.OpenOptions{
		Unlock: repository.Unlocker{Identities: envelope.CopySecret(f.identity.Expose())}, Writer: &f.writer, TrustRoot: f.trust,
		Lock: p, Now: st.now,
	})
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() { _ = r.Close() })
	return r
}

// churn changes one page in each of the blocks given.
func churn(d *memDisk, with byte, blocks ...int) *memDisk {
	p := bytes.Clone(d.p)
	for _, b := range blocks {
		p[b*format.BlockSize+17] ^= with
	}
	return &memDisk{p: p}
}

// needed are the keys of all segments and map objects that a recovery point references.
func (f *fixture) needed(tb testing.TB, only repository.Point) map[string]bool {
	tb.Helper()
	points, err := f.repo.Points(tb.Context(), f.machine.ID)
	if err != nil || !slices.ContainsFunc(points, func(p repository.Point) bool { return p.ID == only.ID }) {
		tb.Fatalf("%s is not listed: %v", only.ID, err)
	}
	m := f.mark(tb, func(p repository.Point) bool { return p.ID == only.ID })
	keys := map[string]bool{}
	for n := range m.extents {
		keys[format.SegmentKey(f.machine.ID, n)] = true
	}
	for n := range m.pages {
		keys[format.MapKey(f.machine.ID, n)] = true
	}
	return keys
}

// TestLockPolicyUntil: a date is at least the period ahead, at most a quantum
// more, and the same for all of a quantum.
func TestLockPolicyUntil(t *testing.T) {
	for _, c := range []struct {
		policy repository.LockPolicy
		now    string
		want   string
	}{
		{repository.LockPolicy{For: 10 * day, Quantum: 2 * day}, "2026-03-01T12:00:00Z", "2026-03-12T00:00:00Z"},
		{repository.LockPolicy{For: 10 * day, Quantum: 2 * day}, "2026-03-02T00:00:00Z", "2026-03-12T00:00:00Z"},
		{repository.LockPolicy{For: 10 * day, Quantum: 2 * day}, "2026-03-02T00:00:00.001Z", "2026-03-14T00:00:00Z"},
		{repository.LockPolicy{For: 3 * day}, "2026-03-01T12:00:00Z", "2026-03-05T00:00:00Z"}, // a seventh is less than a day
		{repository.LockPolicy{For: 70 * day}, "2026-03-01T12:00:00Z", "2026-05-17T00:00:00Z"},
		{repository.LockPolicy{For: time.Hour, Quantum: time.Second}, "2026-03-01T12:00:00.5Z", "2026-03-01T13:00:01Z"},
	} {
		now, err := time.Parse(time.RFC3339Nano, c.now)
		if err != nil {
			t.Fatal(err)
		}
		if got := c.policy.Until(now).Format(time.RFC3339Nano); got != c.want {
			t.Errorf("%s from %s on: %s, want %s", c.policy.For, c.now, got, c.want)
		}
	}
	for _, p := range []repository.LockPolicy{{For: -1}, {For: 101 * 365 * day}, {For: day, Quantum: time.Millisecond}, {For: day, Mode: "forever"}} {
		if p.Check() == nil {
			t.Errorf("%+v is taken", p)
		}
	}
}

// TestLockEverythingNeeded: when a recovery point is committed, all that it
// needs is locked for the whole period, and the manifest says so.
func TestLockEverythingNeeded(t *testing.T) {
	f, st := lockedFixture(t)
	d := &memDisk{p: noise(1, 8<<20)}
	for i := range 4 {
		p, mf := f.backup(t, d, repository.BeginOptions{})
		if _, err := f.repo.PutSidecar(t.Context(), f.machine.ID, p.ID, repository.SidecarProof, []byte("proof")); err != nil {
			t.Fatal(err)
		}
		if mf.LockedUntil == nil || mf.LockedUntil.Before(st.now().Add(10*day)) || mf.LockedUntil.After(st.now().Add(12*day)) {
			t.Fatalf("the manifest says %v at %v", mf.LockedUntil, st.now())
		}
		read, err := f.repo.Manifest(t.Context(), p)
		if err != nil || read.LockedUntil == nil || !read.LockedUntil.Equal(*mf.LockedUntil) {
			t.Fatalf("read back: %v, %v", read, err)
		}
		want := f.needed(t, p)
		for _, prefix := range []string{"config", "keys/", "trust/", "machines/", "copies/", "log/", "points/" + f.machine.ID + "/" + p.ID, "side/" + f.machine.ID + "/" + p.ID} {
			for _, key := range st.keys(t, "") {
				if strings.HasPrefix(key, prefix) {
					want[key] = true
				}
			}
		}
		if len(want) < 10 {
			t.Fatalf("only %d objects are needed: %v", len(want), want)
		}
		for key := range want {
			if until := st.until(t, key); until.Before(*mf.LockedUntil) {
				t.Errorf("backup %d: %s is locked until %v, want %v", i, key, until, mf.LockedUntil)
			}
		}
		st.pass(3 * day)
		d = churn(d, byte(i+1), 3, 40)
	}
}

// TestLockExtendsOncePerQuantum: what is locked for long enough costs no
// request, and what is not costs one in a quantum.
func TestLockExtendsOncePerQuantum(t *testing.T) {
	f, st := lockedFixture(t)
	d := &memDisk{p: noise(1, 8<<20)}
	first, _ := f.backup(t, d, repository.BeginOptions{})
	old := f.needed(t, first)
	perQuantum := map[time.Time]map[string]int{}
	st.taken()
	for i := range 24 { // twelve days
		st.pass(12 * time.Hour)
		d = churn(d, byte(i+1), i)
		_, mf := f.backup(t, d, repository.BeginOptions{})
		of := perQuantum[*mf.LockedUntil]
		if of == nil {
			of = map[string]int{}
			perQuantum[*mf.LockedUntil] = of
		}
		for key, n := range st.taken() {
			of[key] += n
		}
	}
	if len(perQuantum) < 6 {
		t.Fatalf("%d quanta in twelve days", len(perQuantum))
	}
	extended := 0
	for until, of := range perQuantum {
		for key := range old {
			if of[key] > 1 {
				t.Errorf("%s was extended %d times until %v", key, of[key], until)
			}
			extended += of[key]
		}
		for _, key := range st.keys(t, "seg/") { // once when it was made, once for the period
			if of[key] > 2 {
				t.Errorf("%s was locked %d times until %v", key, of[key], until)
			}
		}
		if of["config"] > 1 {
			t.Errorf("config was extended %d times until %v", of["config"], until)
		}
	}
	if extended == 0 {
		t.Error("nothing of the first recovery point was extended")
	}
}

// TestLockHoldsOldSegments: as long as a listed recovery point is inside of its
// lock, nobody can delete what it references, however old; reclaim frees it
// when the lock has ended.
func TestLockHoldsOldSegments(t *testing.T) {
	f, st := lockedFixture(t)
	d := &memDisk{p: noise(1, 8<<20)}
	type made struct {
		point repository.Point
		data  []byte
		until time.Time
	}
	var all []made
	for i := range 10 {
		p, mf := f.backup(t, d, repository.BeginOptions{})
		all = append(all, made{p, d.p, *mf.LockedUntil})
		for _, m := range all {
			if !st.now().Before(m.until) {
				continue
			}
			for key := range f.needed(t, m.point) {
				if err := st.Delete(t.Context(), key); !errors.Is(err, store.ErrLocked) {
					t.Fatalf("at %v, %s of %s, locked until %v, could be deleted: %v", st.now(), key, m.point.ID, m.until, err)
				}
			}
		}
		d = churn(d, byte(i+1), i, i+20)
		st.pass(40 * time.Hour)
	}
	// All but the newest are deleted: their bytes stay until their locks end.
	newest := all[len(all)-1]
	for _, m := range all[:len(all)-1] {
		if err := f.repo.Delete(t.Context(), f.machine.ID, m.point.ID, "test"); err != nil {
			t.Fatal(err)
		}
	}
	held, err := f.repo.Reclaim(t.Context(), f.machine.ID, repository.ReclaimOptions{MaxDead: 0.01})
	if err != nil {
		t.Fatal(err)
	}
	if held.Locked.Objects == 0 || held.Rewritten.Objects > 0 {
		t.Errorf("inside the locks: %+v", held)
	}
	if !bytes.Equal(content(t, f.repo, newest.point), newest.data) {
		t.Error("the newest is not what was backed up")
	}
	st.pass(30 * day)
	f.repo = f.openLocked(t, st, repository.LockPolicy{For: 10 * day, Quantum: 2 * day})
	freed, err := f.repo.Reclaim(t.Context(), f.machine.ID, repository.ReclaimOptions{MaxDead: 0.01})
	if err != nil {
		t.Fatal(err)
	}
	if freed.Deleted.Objects < held.Locked.Objects/2 || freed.Locked.Objects > 0 || freed.Freed <= 0 {
		t.Errorf("behind the locks: %+v, before %+v", freed, held)
	}
	if !bytes.Equal(content(t, f.repo, newest.point), newest.data) {
		t.Error("the newest is not what was backed up, after reclaim")
	}
	// What is referenced now, replicas among them, is locked by the next backup.
	p, mf := f.backup(t, churn(d, 1, 60), repository.BeginOptions{})
	for _, key := range append(st.keys(t, "seg/"), st.keys(t, "map/")...) {
		original, _, _, _ := format.Original(key)
		if f.needed(t, p)[original] && st.until(t, key).Before(*mf.LockedUntil) {
			t.Errorf("%s is locked until %v, want %v", key, st.until(t, key), mf.LockedUntil)
		}
	}
}

// TestLockHiddenIsRead: deleting and overwriting by name hides nothing from
// backups, readers and listings, and is told.
func TestLockHiddenIsRead(t *testing.T) {
	f, st := lockedFixture(t)
	d := &memDisk{p: noise(1, 4<<20)}
	p, _ := f.backup(t, d, repository.BeginOptions{})
	keys := st.keys(t, "")
	for i, key := range keys {
		var err error
		if i%2 == 0 {
			err = st.Hide(key)
		} else {
			err = st.Cover(key, []byte("forged"))
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	f.repo = f.openLocked(t, st, repository.LockPolicy{For: 10 * day, Quantum: 2 * day})
	if !bytes.Equal(content(t, f.repo, p), d.p) {
		t.Error("the recovery point is not what was backed up")
	}
	var told []string
	if err := f.repo.Shadowed(t.Context(), func(s store.Shadow) error {
		told = append(told, s.Key)
		if want := slices.Index(keys, s.Key)%2 == 0; s.Deleted != want || s.Newer != 1 {
			t.Errorf("%+v", s)
		}
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	if !slices.Equal(told, keys) {
		t.Errorf("told %v of %v", told, keys)
	}
	next := churn(d, 1, 5)
	p, _ = f.backup(t, next, repository.BeginOptions{})
	if !bytes.Equal(content(t, f.repo, p), next.p) {
		t.Error("the next recovery point is not what was backed up")
	}
}

// TestLockRefused: a store that cannot lock, or refuses to, ends a backup
// before its commit; reading goes on.
func TestLockRefused(t *testing.T) {
	f := newFixture(t, memstore.New(), repository.SealingAESGCM)
	d := &memDisk{p: noise(1, 1<<20)}
	p, _ := f.backup(t, d, repository.BeginOptions{})
	r, err := repository.Open(t.Context(), f.st, repository.OpenOptions{
		Unlock: repository.Unlocker{Identities: envelope.CopySecret(f.identity.Expose())}, Writer: &f.writer,
		Lock: repository.LockPolicy{For: day},
	})
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(content(t, r, p), d.p) {
		t.Error("another content")
	}
	_, _, err = backup(r, f.machine.ID, churn(d, 1, 2), repository.BeginOptions{})
	var hint interface{ Hint() string }
	if !errors.Is(err, store.ErrNoLock) || !errors.As(err, &hint) || hint.Hint() == "" {
		t.Errorf("backup without locks: %v", err)
	}

	for _, prefix := range []string{"seg/", "map/", "points/", "config"} {
		f, st := lockedFixture(t)
		refused := errors.New("refused")
		st.fail = func(key string) error {
			if strings.HasPrefix(key, prefix) {
				return refused
			}
			return nil
		}
		if _, _, err := backup(f.repo, f.machine.ID, d, repository.BeginOptions{}); !errors.Is(err, refused) {
			t.Errorf("%s cannot be locked: %v", prefix, err)
		}
		if points, err := f.repo.Points(t.Context(), f.machine.ID); err != nil || len(points) != 0 {
			t.Errorf("%s cannot be locked: %d recovery points, %v", prefix, len(points), err)
		}
	}
	// A log entry that is there is a commit: the next backup locks it.
	lf, st := lockedFixture(t)
	st.fail = func(key string) error {
		if strings.HasPrefix(key, "log/") || strings.HasPrefix(key, "side/") {
			return errors.New("refused")
		}
		return nil
	}
	p, _ = lf.backup(t, d, repository.BeginOptions{})
	side, err := lf.repo.PutSidecar(t.Context(), lf.machine.ID, p.ID, repository.SidecarProof, []byte("proof"))
	if err != nil {
		t.Fatal(err)
	}
	st.fail = nil
	_, mf := lf.backup(t, churn(d, 1, 2), repository.BeginOptions{})
	for _, key := range []string{format.LogKey(lf.machine.ID, p.Sequence), side} {
		if until := st.until(t, key); until.Before(*mf.LockedUntil) {
			t.Errorf("%s is locked until %v, want %v", key, until, mf.LockedUntil)
		}
	}
}

// TestLockLeftovers: what an attempt leaves behind that never commits is held
// for a quantum only.
func TestLockLeftovers(t *testing.T) {
	f, st := lockedFixture(t)
	w, err := f.repo.Begin(t.Context(), f.machine.ID, repository.BeginOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := w.WriteDisk(t.Context(), repository.DiskInput{ID: "vda", Source: &memDisk{p: noise(1, 4<<20)}}); err != nil {
		t.Fatal(err)
	}
	w.Abort()
	keys := st.keys(t, "seg/")
	if len(keys) == 0 {
		t.Fatal("the attempt left nothing")
	}
	for _, key := range keys {
		if until, most := st.until(t, key), st.now().Add(2*day); until.IsZero() || until.After(most) {
			t.Errorf("%s is locked until %v, want %v", key, until, most)
		}
	}
	// The next attempt finds them, and locks them for the whole period.
	p, mf := f.backup(t, &memDisk{p: noise(1, 4<<20)}, repository.BeginOptions{})
	if mf.Disks[0].Stats.Reused == 0 {
		t.Fatal("nothing was reused")
	}
	for key := range f.needed(t, p) {
		if st.until(t, key).Before(*mf.LockedUntil) {
			t.Errorf("%s is locked until %v, want %v", key, st.until(t, key), mf.LockedUntil)
		}
	}
}

// TestLockCopies: a copy is locked where it lies, whatever the manifest says
// about where it was made.
func TestLockCopies(t *testing.T) {
	f := newFixture(t, memstore.New(), repository.SealingAESGCM)
	d := &memDisk{p: noise(1, 4<<20)}
	var newest []byte
	for i := range 3 {
		f.backup(t, d, repository.BeginOptions{})
		newest = d.p
		d = churn(d, byte(i+1), i)
	}
	st := newLockStore()
	other := newFixture(t, st, repository.SealingAESGCM)
	other.repo = other.openLocked(t, st, repository.LockPolicy{For: 10 * day, Quantum: 2 * day})
	if _, err := copies.Copy(t.Context(), f.repo, other.repo, f.machine.ID, copies.Options{Custodian: &other.custodian}); err != nil {
		t.Fatal(err)
	}
	want := st.now().Add(10 * day)
	for _, key := range st.keys(t, "") {
		if strings.Contains(key, "machines/"+other.machine.ID) {
			continue // it was made before there were locks, and needs none
		}
		if until := st.until(t, key); until.Before(want) {
			t.Errorf("%s is locked until %v, want %v", key, until, want)
		}
	}
	points, err := other.repo.Points(t.Context(), f.machine.ID)
	if err != nil || len(points) != 3 {
		t.Fatalf("%d recovery points, %v", len(points), err)
	}
	if !bytes.Equal(content(t, other.repo, points[2]), newest) {
		t.Error("the copy is not what was backed up")
	}
}
