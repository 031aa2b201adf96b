package repository_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/lockstep-backup/lockstep/disk"
	"github.com/lockstep-backup/lockstep/repository"
	"github.com/lockstep-backup/lockstep/repository/format"
	"github.com/lockstep-backup/lockstep/store"
	"github.com/lockstep-backup/lockstep/store/memstore"
)

// tracedStore notes what becomes durable and what is deleted, and can stop a
// delete.
type tracedStore struct {
	store.Store
	mu     sync.Mutex
	lines  []string
	delete func(key string) error // nil: nothing special
	read   func(key string)
}

func (s *tracedStore) note(op, key string) {
	s.mu.Lock()
	s.lines = append(s.lines, op+" "+key)
	s.mu.Unlock()
}

func (s *tracedStore) ReadRange(ctx context.Context, key string, off int64, p []byte) (int, error) {
	if s.read != nil {
		s.read(key)
	}
	return s.Store.ReadRange(ctx, key, off, p)
}

func (s *tracedStore) Put(ctx context.Context, key string, p []byte) error {
	err := s.Store.Put(ctx, key, p)
	if err == nil {
		s.note("durable", key)
	}
	return err
}

func (s *tracedStore) Create(ctx context.Context, key string) (store.Writer, error) {
	w, err := s.Store.Create(ctx, key)
	return tracedWriter{w, s, key}, err
}

type tracedWriter struct {
	store.Writer
	s   *tracedStore
	key string
}

func (w tracedWriter) Commit() error {
	err := w.Writer.Commit()
	if err == nil {
		w.s.note("durable", w.key)
	}
	return err
}

func (s *tracedStore) Delete(ctx context.Context, key string) error {
	if s.delete != nil {
		if err := s.delete(key); err != nil {
			return err
		}
	}
	err := s.Store.Delete(ctx, key)
	s.note("delete", key)
	return err
}

// sparse is a disk of n blocks with one page of noise in each, so that its map
// is large and its content small.
func sparse(seed uint64, n int) []byte {
	p := make([]byte, n*65536)
	for b := range n {
		copy(p[b*65536:], noise(seed+uint64(b), 4096))
	}
	return p
}

// mostlyDead is a machine with a first recovery point, now deleted, of which a
// second one still needs a little: of its segment and of its map object.
func mostlyDead(tb testing.TB, st store.Store) (f *fixture, kept repository.Point, content []byte) {
	tb.Helper()
	const blocks = 5 * 32
	f = newFixture(tb, st, repository.SealingAESGCM)
	d := sparse(1, blocks)
	p, _ := f.backup(tb, &memDisk{p: d}, repository.BeginOptions{})
	d = bytes.Clone(d)
	for b := range blocks - 32 {
		if b%4 != 0 { // whoever wrote them side by side: at least one segment is mostly dead
			copy(d[b*65536:], noise(uint64(1000+b), 4096))
		}
	}
	kept, _ = f.backup(tb, &memDisk{p: d}, repository.BeginOptions{})
	if err := f.repo.Delete(tb.Context(), f.machine.ID, p.ID, "test"); err != nil {
		tb.Fatal(err)
	}
	return f, kept, d
}

func (f *fixture) reclaim(tb testing.TB, o repository.ReclaimOptions) repository.ReclaimResult {
	tb.Helper()
	res, err := f.repo.Reclaim(tb.Context(), f.machine.ID, o)
	if err != nil {
		tb.Fatal(err)
	}
	return res
}

// orderlyReclaim is the order of durability, as a rule over a trace.
func orderlyReclaim(lines []string, fence string) error {
	at := func(line string) int { return slices.Index(lines, line) }
	fenced := at("durable " + fence)
	ledger := slices.IndexFunc(lines, func(l string) bool { return strings.HasPrefix(l, "durable ledger/") && strings.HasSuffix(l, "-1") })
	replaced := 0
	for i, line := range lines {
		key, ok := strings.CutPrefix(line, "delete ")
		if !ok {
			continue
		}
		if fenced < 0 || fenced > i {
			return fmt.Errorf("%s goes before the fence", key)
		}
		if ledger < 0 || ledger > i {
			return fmt.Errorf("%s goes before the ledger that accounts for it is durable", key)
		}
		if j := slices.IndexFunc(lines, func(l string) bool { return strings.HasPrefix(l, "durable "+key+"-") }); j >= 0 {
			replaced++
			if j > i {
				return fmt.Errorf("%s goes before its replica is durable", key)
			}
		}
	}
	if replaced < 2 {
		return fmt.Errorf("%d objects were replaced", replaced)
	}
	return nil
}

// TestReclaimOrder: fence, ledger, replica, then the deletion; and the rule
// finds each of them out of place.
func TestReclaimOrder(t *testing.T) {
	st := &tracedStore{Store: memstore.New()}
	f, kept, content0 := mostlyDead(t, st)
	st.lines = nil
	res := f.reclaim(t, repository.ReclaimOptions{})
	if res.Rewritten.Objects < 2 || res.Fence < 0 || res.Freed <= 0 {
		t.Fatalf("%+v", res)
	}
	f.reclaimed(t, map[string][]byte{kept.ID: content0}, 0.5, lastBirth(t, f))
	fence := format.LogKey(f.machine.ID, res.Fence)
	if err := orderlyReclaim(st.lines, fence); err != nil {
		t.Fatal(err)
	}
	move := func(match func(string) bool, to int) []string {
		lines := slices.Clone(st.lines)
		i := slices.IndexFunc(lines, match)
		line := lines[i]
		lines = slices.Delete(lines, i, i+1)
		if to < 0 {
			return lines
		}
		return append(lines, line)
	}
	is := func(part string) func(string) bool { return func(l string) bool { return strings.Contains(l, part) } }
	for _, bug := range []struct {
		name, says string
		lines      []string
	}{
		{"fence skipped", "before the fence", move(is(fence), -1)},
		{"ledger after deletes", "before the ledger", move(is("-1"), 1)},
		{"segment deleted before its replica is durable", "before its replica", move(func(l string) bool {
			_, _, r, ok := format.Original(strings.TrimPrefix(l, "durable "))
			return ok && r
		}, 1)},
	} {
		if err := orderlyReclaim(bug.lines, fence); err == nil || !strings.Contains(err.Error(), bug.says) {
			t.Errorf("%s: %v", bug.name, err)
		}
	}
}

// TestReclaimTrustsNoCounts: a ledger that says that all is dead costs a look,
// nothing else.
func TestReclaimTrustsNoCounts(t *testing.T) {
	f := newFixture(t, memstore.New(), repository.SealingAESGCM)
	images := map[string][]byte{}
	d := noise(1, 20*65536)
	for i := range 3 {
		copy(d[i*4096:], noise(uint64(i+2), 4096))
		p, _ := f.backup(t, &memDisk{p: bytes.Clone(d)}, repository.BeginOptions{})
		images[p.ID] = bytes.Clone(d)
	}
	l := format.Ledger{Through: 3, Objects: map[format.ObjectName]format.LedgerEntry{}}
	large := slices.Concat(allKeys(t, f.st, "seg/"), allKeys(t, f.st, "map/"))
	for _, key := range large {
		_, name, _, _ := format.Original(key)
		l.Objects[format.ObjectName{Map: key[0] == 'm', Name: name}] = format.LedgerEntry{Dead: 1 << 20, Size: 1 << 20}
	}
	key := format.LedgerKey(f.machine.ID, 2, 2)
	put(t, f.st, key, sealed(t, format.KindLedger, f.keys(t).Map, key, l.Encode()))
	res := f.reclaim(t, repository.ReclaimOptions{})
	if res.Deleted.Objects != 0 || res.Recounted {
		t.Fatalf("%+v", res)
	}
	if now := slices.Concat(allKeys(t, f.st, "seg/"), allKeys(t, f.st, "map/")); !slices.Equal(now, large) {
		t.Fatalf("%v is left of %v", now, large)
	}
	f.reclaimed(t, images, 0.5, 99)
}

// TestReclaimWithoutLedger: a damaged ledger costs a recount.
func TestReclaimWithoutLedger(t *testing.T) {
	mem := memstore.New()
	f, kept, content0 := mostlyDead(t, mem)
	f.reclaim(t, repository.ReclaimOptions{})
	for _, key := range allKeys(t, mem, "ledger/") {
		if err := mem.Corrupt(key, func(p []byte) []byte { p[len(p)/2] ^= 1; return p }); err != nil {
			t.Fatal(err)
		}
	}
	d := bytes.Clone(content0)
	copy(d, noise(5, 300000))
	p, _ := f.backup(t, &memDisk{p: d}, repository.BeginOptions{})
	if err := f.repo.Delete(t.Context(), f.machine.ID, kept.ID, "test"); err != nil {
		t.Fatal(err)
	}
	if res := f.reclaim(t, repository.ReclaimOptions{}); !res.Recounted || res.Deleted.Objects == 0 {
		t.Fatalf("%+v", res)
	}
	f.reclaimed(t, map[string][]byte{p.ID: d}, 0.5, lastBirth(t, f))
}

// TestReclaimLastPoint: without a listed recovery point everything goes.
func TestReclaimLastPoint(t *testing.T) {
	f, kept, _ := mostlyDead(t, memstore.New())
	if _, err := f.repo.PutSidecar(t.Context(), f.machine.ID, kept.ID, repository.SidecarProof, []byte("x")); err != nil {
		t.Fatal(err)
	}
	certificate, err := f.repo.PutSidecar(t.Context(), f.machine.ID, kept.ID, repository.SidecarCertificate, []byte("x"))
	if err != nil {
		t.Fatal(err)
	}
	if err := f.repo.Delete(t.Context(), f.machine.ID, kept.ID, "test"); err != nil {
		t.Fatal(err)
	}
	f.reclaim(t, repository.ReclaimOptions{})
	for _, prefix := range []string{"seg/", "map/", "points/", "headers-a/", "headers-b/"} {
		if keys := allKeys(t, f.st, prefix); len(keys) != 0 {
			t.Errorf("left: %v", keys)
		}
	}
	if keys := allKeys(t, f.st, "side/"); !slices.Equal(keys, []string{certificate}) {
		t.Errorf("sidecars: %v", keys)
	}
}

// TestReclaimBesideWriters: who began before the fence.
func TestReclaimBesideWriters(t *testing.T) {
	begin := func(t *testing.T, f *fixture, d []byte) (*repository.PointWriter, *repository.Manifest) {
		t.Helper()
		w, err := f.open(t).Begin(t.Context(), f.machine.ID, repository.BeginOptions{})
		if err != nil {
			t.Fatal(err)
		}
		dd, err := w.WriteDisk(t.Context(), repository.DiskInput{ID: "vda", Source: &memDisk{p: d}})
		if err != nil {
			t.Fatal(err)
		}
		return w, &repository.Manifest{Disks: []repository.Disk{dd}}
	}
	t.Run("commits behind the fence", func(t *testing.T) {
		f, kept, d := mostlyDead(t, memstore.New())
		now := bytes.Clone(d)
		copy(now[5*65536:], noise(9, 65536))
		w, mf := begin(t, f, now)
		f.reclaim(t, repository.ReclaimOptions{})
		p, err := w.Commit(t.Context(), mf)
		if err != nil {
			t.Fatal(err)
		}
		f.reclaimed(t, map[string][]byte{kept.ID: d, p.ID: now}, 0.5, lastBirth(t, f))
	})
	t.Run("gives up where its birth was given away", func(t *testing.T) {
		f, kept, d := mostlyDead(t, memstore.New())
		w, mf := begin(t, f, noise(9, 100000))
		f.reclaim(t, repository.ReclaimOptions{Unfinished: true})
		if _, err := w.Commit(t.Context(), mf); !errors.Is(err, repository.ErrConflict) {
			t.Fatalf("commit: %v", err)
		}
		f.reclaim(t, repository.ReclaimOptions{Unfinished: true}) // its manifest
		f.reclaimed(t, map[string][]byte{kept.ID: d}, 0.5, 1<<31)
	})
	t.Run("gives up where its parent was deleted", func(t *testing.T) {
		f, kept, d := mostlyDead(t, memstore.New())
		w, mf := begin(t, f, d)
		if err := f.repo.Delete(t.Context(), f.machine.ID, kept.ID, "test"); err != nil {
			t.Fatal(err)
		}
		f.reclaim(t, repository.ReclaimOptions{})
		if _, err := w.Commit(t.Context(), mf); !errors.Is(err, repository.ErrConflict) {
			t.Fatalf("commit: %v", err)
		}
		p, _ := f.backup(t, &memDisk{p: d}, repository.BeginOptions{})
		f.reclaim(t, repository.ReclaimOptions{})
		f.reclaimed(t, map[string][]byte{p.ID: d}, 0.5, lastBirth(t, f))
	})
}

// TestSleepingReclaim: a reclaim that stops before each of its deletions, and
// goes on after others backed up, deleted and reclaimed, harms nothing.
func TestSleepingReclaim(t *testing.T) {
	for stop := range 8 {
		st := &tracedStore{Store: memstore.New()}
		f, kept, d := mostlyDead(t, st)
		images := map[string][]byte{kept.ID: d}
		n, met := 0, false
		awake := *f
		awake.st = st.Store
		st.delete = func(string) error {
			if n++; n != stop+1 || met {
				return nil
			}
			met = true
			awake.repo = awake.open(t)
			now := bytes.Clone(d)
			for i := range 3 {
				copy(now[(i*50)*65536:], noise(uint64(50+i), 20*65536))
				p, _ := awake.backup(t, &memDisk{p: bytes.Clone(now)}, repository.BeginOptions{})
				images[p.ID] = bytes.Clone(now)
				if i == 1 {
					if err := awake.repo.Delete(t.Context(), f.machine.ID, p.ID, "test"); err != nil {
						t.Fatal(err)
					}
				}
				awake.reclaim(t, repository.ReclaimOptions{Recount: i == 2})
			}
			return nil
		}
		f.reclaim(t, repository.ReclaimOptions{})
		if !met {
			if stop < 4 {
				t.Fatalf("%d deletions", n)
			}
			return
		}
		st.delete = nil
		awake.reclaim(t, repository.ReclaimOptions{})
		awake.reclaimed(t, images, 0.5, lastBirth(t, f))
	}
}

// TestReclaimBesideReader: what a reader reads is replaced while it reads.
func TestReclaimBesideReader(t *testing.T) {
	st := &tracedStore{Store: memstore.New()}
	f, kept, d := mostlyDead(t, st)
	other := *f
	other.st = st.Store
	r := f.open(t)
	var reads atomic.Int64
	st.read = func(key string) {
		if strings.HasPrefix(key, "seg/") {
			if reads.Add(1) == 3 {
				other.repo = other.open(t)
				if res := other.reclaim(t, repository.ReclaimOptions{}); res.Rewritten.Objects < 2 {
					t.Errorf("%+v", res)
				}
			}
		}
	}
	if got, err := readPoint(r, kept); err != nil || !bytes.Equal(got, d) {
		t.Fatalf("content differs, %v", err)
	}
	if reads.Load() < 3 {
		t.Fatalf("%d reads", reads.Load())
	}
}

// TestReclaimUnderLock: what the store holds stays, costs no replica, and goes
// when the lock is gone.
func TestReclaimUnderLock(t *testing.T) {
	st := &tracedStore{Store: memstore.New()}
	f, kept, d := mostlyDead(t, st)
	before := len(allKeys(t, st, "seg/")) + len(allKeys(t, st, "map/"))
	st.delete = func(key string) error {
		if _, _, replica, _ := format.Original(key); !replica && !strings.HasPrefix(key, "ledger/") {
			return fmt.Errorf("%s: %w", key, store.ErrLocked)
		}
		return nil
	}
	if res := f.reclaim(t, repository.ReclaimOptions{}); res.Locked.Objects == 0 || res.Deleted.Objects != 0 {
		t.Fatalf("%+v", res)
	}
	if now := len(allKeys(t, st, "seg/")) + len(allKeys(t, st, "map/")); now != before {
		t.Fatalf("%d objects became %d", before, now)
	}
	f.reclaim(t, repository.ReclaimOptions{})
	st.delete = nil
	f.reclaim(t, repository.ReclaimOptions{Recount: true})
	f.reclaimed(t, map[string][]byte{kept.ID: d}, 0.5, lastBirth(t, f))
}

// TestReclaimIsProportional: deleting one of sixty recovery points that differ
// little costs what it changed, not what there is.
func TestReclaimIsProportional(t *testing.T) {
	st := &tracedStore{Store: memstore.New()}
	f := newFixture(t, st, repository.SealingAESGCM)
	d := sparse(1, 40*32)
	var points []repository.Point
	for i := range 60 {
		at := int64(i%40*32+5) * 65536
		copy(d[at:], noise(uint64(5000+i), 4096))
		w, err := f.repo.Begin(t.Context(), f.machine.ID, repository.BeginOptions{})
		if err != nil {
			t.Fatal(err)
		}
		dd, err := w.WriteDisk(t.Context(), repository.DiskInput{
			ID: "vda", Source: &memDisk{p: d}, Known: i > 0, Changed: []disk.Range{{Offset: at, Length: 4096}},
		})
		if err != nil {
			t.Fatal(err)
		}
		p, err := w.Commit(t.Context(), &repository.Manifest{Disks: []repository.Disk{dd}})
		if err != nil {
			t.Fatal(err)
		}
		points = append(points, p)
	}
	full := f.reclaim(t, repository.ReclaimOptions{Recount: true, DryRun: true}).MapPages
	if err := f.repo.Delete(t.Context(), f.machine.ID, points[30].ID, "test"); err != nil {
		t.Fatal(err)
	}
	f.repo = f.open(t)
	large := map[string]bool{}
	st.read = func(key string) {
		st.mu.Lock()
		defer st.mu.Unlock()
		if strings.HasPrefix(key, "seg/") || strings.HasPrefix(key, "map/") {
			large[key] = true
		}
	}
	res := f.reclaim(t, repository.ReclaimOptions{})
	if res.Recounted || res.MapPages*10 > full || len(large) > 6 {
		t.Errorf("%+v: %d objects were read; %d map pages for all", res, len(large), full)
	}
	if res.Deleted.Objects == 0 {
		t.Errorf("%+v", res)
	}
}

// TestStats: what a recovery point alone holds is what deleting it frees.
func TestStats(t *testing.T) {
	f := newFixture(t, memstore.New(), repository.SealingAESGCM)
	d := sparse(1, 64)
	var points []repository.Point
	for i := range 4 {
		copy(d[i*65536:], noise(uint64(100+i), 8*65536))
		p, _ := f.backup(t, &memDisk{p: d}, repository.BeginOptions{})
		points = append(points, p)
	}
	before, err := f.repo.Stats(t.Context(), f.machine.ID)
	if err != nil {
		t.Fatal(err)
	}
	if before.Logical != 4*int64(len(d)) || len(before.Points) != 4 || before.Objects != int64(len(allKeys(t, f.st, "seg/"))+12) {
		t.Fatalf("%+v", before)
	}
	if err := f.repo.Delete(t.Context(), f.machine.ID, points[1].ID, "test"); err != nil {
		t.Fatal(err)
	}
	f.reclaim(t, repository.ReclaimOptions{MaxDead: 0.01})
	after, err := f.repo.Stats(t.Context(), f.machine.ID)
	if err != nil {
		t.Fatal(err)
	}
	if freed := before.Needed - after.Needed; freed != before.Points[1].Alone || freed < 65536 {
		t.Errorf("%d bytes are needed less, it was said to be %d", freed, before.Points[1].Alone)
	}
	if after.Stored >= before.Stored || after.Needed+after.Dead > after.Stored {
		t.Errorf("%+v, then %+v", before, after)
	}
}
