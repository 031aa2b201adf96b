package repository_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/lockstep-backup/lockstep/disk"
	"github.com/lockstep-backup/lockstep/envelope"
	"github.com/lockstep-backup/lockstep/repository"
	"github.com/lockstep-backup/lockstep/store"
	"github.com/lockstep-backup/lockstep/store/faultstore"
	"github.com/lockstep-backup/lockstep/store/memstore"
	"github.com/lockstep-backup/lockstep/verify"
)

// life is a repository's life in steps, and what was acknowledged of it. The
// same life can go on in another process after a crash.
type life struct {
	t         testing.TB
	writer    envelope.SigningKey
	prover    envelope.PublicKey
	custodian envelope.SigningKey
	recipient string
	identity  envelope.Secret

	next    int // step that comes next
	attempt int
	mid     string
	trust   string
	acked   map[string]int  // recovery points that were acknowledged → version of the disks
	tried   map[string]int  // all that were ever begun
	deleted map[string]bool // acknowledged deletions
	dying   string          // a deletion that was begun
	sides   map[string]string
	reused  int64 // bytes that resumed attempts found
}

const mid0 = "0123456789abcdef0123456789abcdef"

var lifeKeys = sync.OnceValue(func() *life {
	l := &life{}
	var err error
	for _, k := range []*envelope.SigningKey{&l.writer, &l.custodian} {
		role := "writer"
		if k == &l.custodian {
			role = "custodian"
		}
		if *k, err = envelope.GenerateSigningKey(role); err != nil {
			panic(err)
		}
	}
	prover, err := envelope.GenerateSigningKey("prover")
	if err != nil {
		panic(err)
	}
	l.prover = prover.Public()
	if l.identity, l.recipient, err = envelope.GenerateIdentity(); err != nil {
		panic(err)
	}
	return l
})

func newLife(t testing.TB) *life {
	l := *lifeKeys()
	l.t, l.acked, l.tried, l.deleted, l.sides = t, map[string]int{}, map[string]int{}, map[string]bool{}, map[string]string{}
	return &l
}

// version is the machine's two disks at a time.
var version = sync.OnceValue(func() (vs [3][2][]byte) {
	a, b := noise(1, 3*65536+77), noise(2, 20000)
	for i := range vs {
		vs[i] = [2][]byte{bytes.Clone(a), bytes.Clone(b)}
		copy(a[65536+i*8192:], noise(uint64(10+i), 3*4096))
		b = append(b, noise(uint64(20+i), 30000)...)
	}
	return vs
})

func (l *life) open(st store.Store) (*repository.Repository, error) {
	return repository.Open(ctxBackground, st, repository.OpenOptions{Unlock: repository.Unlocker{Identities: l.identity}, Writer: &l.writer})
}

// run goes on with the life until its end or an error.
func (l *life) run(st store.Store) error {
	ctx := ctxBackground
	var r *repository.Repository
	steps := []func() error{
		func() error {
			_, trust, err := repository.Create(ctx, st, repository.CreateOptions{
				Writer: l.writer.Public(), Prover: l.prover, Custodian: l.custodian,
				Holders: []repository.NewHolder{{Name: "recovery", Recipient: l.recipient}},
			})
			if errors.Is(err, repository.ErrExists) && l.attempt > 0 {
				_, err = l.open(st) // an attempt before got to its end, though nobody heard of it
			}
			return errors.Join(err, l.ack(func() { l.trust = trust }, err))
		},
		func() error {
			_, err := r.CreateMachine(ctx, mid0, "vm")
			if errors.Is(err, store.ErrExist) && l.attempt > 0 {
				err = nil
			}
			return errors.Join(err, l.ack(func() { l.mid = mid0 }, err))
		},
		func() error { return l.backup(r, 0) },
		func() error { return l.backup(r, 1) },
		func() error { return l.side(r, repository.SidecarProof) },
		func() error { return l.side(r, repository.SidecarKeyPackage) },
		func() error { return l.remove(r) },
		func() error { return l.backup(r, 2) },
	}
	for ; l.next < len(steps); l.next++ {
		if r == nil && l.next > 0 {
			var err error
			if r, err = l.open(st); err != nil {
				return err
			}
		}
		if err := steps[l.next](); err != nil {
			return fmt.Errorf("step %d: %w", l.next, err)
		}
	}
	return nil
}

func (l *life) ack(note func(), err error) error {
	if err == nil {
		note()
	}
	return nil
}

func (l *life) backup(r *repository.Repository, v int) error {
	ctx := ctxBackground
	id := fmt.Sprintf("%030x%02x", v, len(l.tried))
	l.tried[id] = v
	w, err := r.Begin(ctx, l.mid, repository.BeginOptions{PointID: id})
	if err != nil {
		return err
	}
	mf := &repository.Manifest{}
	for i, p := range version()[v] {
		d, err := w.WriteDisk(ctx, repository.DiskInput{ID: fmt.Sprintf("vd%c", 'a'+i), Source: &memDisk{p: p}})
		if err != nil {
			w.Abort()
			return err
		}
		mf.Disks = append(mf.Disks, d)
		l.reused += d.Stats.Reused
	}
	if err := w.FinishMaps(); err != nil {
		w.Abort()
		return err
	}
	rd, err := w.OpenDisk(ctx, mf.Disks[0])
	if err != nil {
		w.Abort()
		return err
	}
	hid, err := w.PutHeader(ctx, []disk.Range{{Offset: 65536, Length: 512}}, 1<<20, rd)
	if err != nil {
		w.Abort()
		return err
	}
	mf.Disks[0].Headers = []repository.HeaderRef{{Volume: "vda/whole", ID: hid}}
	if _, err := w.Commit(ctx, mf); err != nil {
		w.Abort()
		return err
	}
	l.acked[id] = v
	return nil
}

func (l *life) first() string {
	for _, id := range slices.Sorted(maps.Keys(l.acked)) {
		return id
	}
	return ""
}

func (l *life) side(r *repository.Repository, kind string) error {
	body := kind + strings.Repeat(".", 100)
	key, err := r.PutSidecar(ctxBackground, l.mid, l.first(), kind, []byte(body))
	if err == nil {
		l.sides[key] = body
	}
	return err
}

func (l *life) remove(r *repository.Repository) error {
	l.dying = l.first()
	err := r.Delete(ctxBackground, l.mid, l.dying, "test")
	if errors.Is(err, repository.ErrNotFound) && l.attempt > 0 {
		err = nil
	}
	if err == nil {
		l.deleted[l.dying] = true
	}
	return err
}

// check opens what is in the store, as the next process would, and compares it
// with what was acknowledged.
func (l *life) check(st store.Store) error {
	ctx := ctxBackground
	r, err := l.open(st)
	if err != nil {
		if l.trust == "" && errors.Is(err, repository.ErrNotFound) {
			return nil // never acknowledged
		}
		return err
	}
	defer r.Close()
	if l.mid == "" {
		return nil
	}
	points, err := r.Points(ctx, l.mid)
	if err != nil {
		return err
	}
	listed := map[string]bool{}
	for _, p := range points {
		listed[p.ID] = true
		v, ok := l.tried[p.ID]
		if !ok || l.deleted[p.ID] {
			return fmt.Errorf("recovery point %s is listed", p.ID)
		}
		m, err := r.Manifest(ctx, p)
		if err != nil {
			return fmt.Errorf("recovery point %s is listed: %w", p.ID, err)
		}
		if len(m.Disks) != 2 {
			return fmt.Errorf("recovery point %s has %d disks", p.ID, len(m.Disks))
		}
		for i, d := range m.Disks {
			got, err := readDisk(r, m, d)
			if err != nil {
				return fmt.Errorf("recovery point %s is listed: %w", p.ID, err)
			}
			if !bytes.Equal(got, version()[v][i]) {
				return fmt.Errorf("recovery point %s: disk %s differs", p.ID, d.ID)
			}
			for _, h := range d.Headers {
				if err := r.CheckHeader(ctx, l.mid, h.ID); err != nil {
					return fmt.Errorf("recovery point %s is listed: %w", p.ID, err)
				}
			}
		}
	}
	for id := range l.acked {
		if !listed[id] && id != l.dying {
			return fmt.Errorf("recovery point %s was acknowledged and is not listed", id)
		}
	}
	for key, body := range l.sides {
		found := false
		for id := range l.acked {
			ss, err := r.Sidecars(ctx, l.mid, id)
			if err != nil {
				return err
			}
			for _, s := range ss {
				found = found || s.Key == key && string(s.Raw) == body
			}
		}
		if !found {
			return fmt.Errorf("sidecar %s was acknowledged and is gone", key)
		}
	}
	return nil
}

// goOn is the next process: it checks, finishes the life, and checks again.
func (l *life) goOn(mem *memstore.Store) error {
	if err := l.check(mem); err != nil {
		return fmt.Errorf("after the fault: %w", err)
	}
	left := leftBehind(mem, l)
	l.attempt++
	l.reused = 0
	if err := l.run(mem); err != nil {
		return fmt.Errorf("going on: %w", err)
	}
	if left && l.reused == 0 {
		return errors.New("going on: durable segments of the interrupted attempt were not used")
	}
	if err := l.check(mem); err != nil {
		return fmt.Errorf("at the end: %w", err)
	}
	r, err := l.open(mem)
	if err != nil {
		return err
	}
	defer r.Close()
	res, err := verify.Run(ctxBackground, verify.Request{Repository: r})
	if err != nil {
		return err
	}
	for _, d := range res.Damage {
		return fmt.Errorf("at the end, of %d: %w", len(res.Damage), d.Err)
	}
	return nil
}

// leftBehind says whether durable segments lie there for the log entry that
// the next backup wants.
func leftBehind(mem *memstore.Store, l *life) bool {
	if l.mid == "" {
		return false
	}
	n := 0
	_ = mem.List(ctxBackground, "log/"+l.mid+"/", func(store.Info) error { n++; return nil })
	left := false
	_ = mem.List(ctxBackground, fmt.Sprintf("seg/%s/%08x/", l.mid, n), func(store.Info) error { left = true; return nil })
	return left
}

// mutates says which operations change the store.
func mutates(op faultstore.Op) bool {
	return op == faultstore.Put || op == faultstore.Commit || op == faultstore.Delete
}

// TestCrash strikes every operation of a repository's life in every way.
func TestCrash(t *testing.T) {
	whole := faultstore.New(memstore.New())
	l := newLife(t)
	if err := l.run(whole); err != nil {
		t.Fatal(err)
	}
	trace := whole.Trace()
	var bytesWritten int64
	kinds := map[string]bool{}
	for _, e := range trace {
		if e.Op == faultstore.Put || e.Op == faultstore.Write {
			bytesWritten += e.N
		}
		if mutates(e.Op) {
			kinds[kindOf(e.Key)] = true
		}
	}
	type strike struct {
		name  string
		fault *faultstore.Fault
		full  int64
		stays bool // the process lives on
	}
	var strikes []strike
	for i, e := range trace {
		at := fmt.Sprintf("%d (%s %s)", i+1, e.Op, e.Key)
		strikes = append(
			strikes,
			strike{"kill before " + at, faultstore.KillBefore(faultstore.Any, i+1, nil), -1, false},
			strike{"fail " + at, faultstore.Fail(faultstore.Any, i+1, nil), -1, true},
		)
		if mutates(e.Op) {
			strikes = append(
				strikes,
				strike{"kill after " + at, faultstore.KillAfter(faultstore.Any, i+1, nil), -1, false},
				strike{"answer lost of " + at, faultstore.FailAfter(faultstore.Any, i+1, nil), -1, true},
			)
		}
	}
	for n := int64(0); n < bytesWritten; n += bytesWritten / 40 {
		strikes = append(strikes, strike{fmt.Sprintf("full after %d bytes", n), nil, n, true})
	}
	want := 300
	if testing.Short() {
		for i := range strikes[:len(strikes)/9] {
			strikes[i] = strikes[9*i]
		}
		strikes = strikes[:len(strikes)/9]
		want /= 10
	}
	var mu sync.Mutex
	points := 0
	forEach(len(strikes), func(i int) {
		s := strikes[i]
		mem := memstore.New()
		st := faultstore.New(mem)
		if s.fault != nil {
			st.Add(s.fault)
		} else {
			st.SetCapacity(s.full)
		}
		l := newLife(t)
		err := l.run(st)
		if err == nil {
			// A few reads are for comfort only (looking for a parent's content, for second copies); the life goes on without them.
			if s.fault != nil && !s.stays {
				if len(st.Unexercised()) == 0 {
					t.Errorf("%s: the life ended well", s.name)
				}
				return
			}
		}
		if s.stays {
			st.SetCapacity(-1)
			l.attempt++
			if err := l.check(mem); err != nil {
				t.Errorf("%s: %v", s.name, err)
				return
			}
			if err := l.run(st); err != nil {
				t.Errorf("%s: going on in the same process: %v", s.name, err)
				return
			}
		}
		if _, err := st.Crash(); err != nil {
			t.Error(err)
		}
		if err := l.goOn(mem); err != nil {
			t.Errorf("%s: %v", s.name, err)
		}
		mu.Lock()
		points++
		mu.Unlock()
	})
	t.Logf("%d operations, %d crash points, %d bytes written", len(trace), points, bytesWritten)
	if points < want {
		t.Errorf("only %d crash points", points)
	}
	for _, k := range []string{"config", "keys", "trust", "machines", "seg", "map", "headers-a", "headers-b", "points", "log", "side"} {
		if !kinds[k] {
			t.Errorf("nothing of kind %s was written: the life leaves it out", k)
		}
	}
}

// lazyStore acknowledges segments and maps at once and stores them only after
// the next log entry: the bug of a writer whose order is wrong.
type lazyStore struct {
	store.Store
	mu    sync.Mutex
	queue []store.Writer
}

type lazyWriter struct {
	store.Writer
	s *lazyStore
}

func (s *lazyStore) Create(ctx context.Context, key string) (store.Writer, error) {
	w, err := s.Store.Create(ctx, key)
	if err != nil {
		return nil, err
	}
	return lazyWriter{w, s}, nil
}

func (w lazyWriter) Commit() error {
	w.s.mu.Lock()
	defer w.s.mu.Unlock()
	w.s.queue = append(w.s.queue, w.Writer)
	return nil
}

func (s *lazyStore) Put(ctx context.Context, key string, p []byte) error {
	err := s.Store.Put(ctx, key, p)
	if err == nil && strings.HasPrefix(key, "log/") {
		s.mu.Lock()
		defer s.mu.Unlock()
		for _, w := range s.queue {
			err = errors.Join(err, w.Commit())
		}
		s.queue = nil
	}
	return err
}

// TestCrashFindsPlantedBugs makes the mistakes that TestCrash is there to
// find, and fails if it would not.
func TestCrashFindsPlantedBugs(t *testing.T) {
	whole := faultstore.New(memstore.New())
	if err := newLife(t).run(whole); err != nil {
		t.Fatal(err)
	}
	// A left-out fsync: the nth object is acknowledged and lost in the next power cut.
	t.Run("fsync left out", func(t *testing.T) {
		found := map[string]int{}
		missed := map[string]int{}
		nth := map[faultstore.Op]int{}
		for _, e := range whole.Trace() {
			if e.Op != faultstore.Put && e.Op != faultstore.Commit {
				continue
			}
			nth[e.Op]++
			mem := memstore.New()
			st := faultstore.New(mem, faultstore.LoseOnCrash(e.Op, nth[e.Op]))
			l := newLife(t)
			if err := l.run(st); err != nil {
				t.Fatal(err)
			}
			lost, err := st.Crash()
			if err != nil {
				t.Fatal(err)
			}
			if len(lost) == 0 { // the object existed: nothing was acknowledged
				continue
			}
			if err := l.check(mem); err == nil {
				err = l.goOn(mem)
				if err == nil {
					missed[kindOf(e.Key)]++
					continue
				}
			}
			found[kindOf(e.Key)]++
		}
		t.Logf("found %v, harmless %v", found, missed)
		for _, kind := range []string{"seg", "map", "points", "log", "side", "headers-a", "headers-b"} {
			if found[kind] == 0 {
				t.Errorf("a lost object of kind %s is not found", kind)
			}
		}
		// What is kept twice survives the loss of one: the opening heals it.
		for _, kind := range []string{"config", "keys", "trust", "machines"} {
			if missed[kind] == 0 || found[kind] != 0 || missed["copies/"+kind] == 0 || found["copies/"+kind] != 0 {
				t.Errorf("objects of kind %s that are lost are not brought back", kind)
			}
		}
	})
	t.Run("log entry before segments", func(t *testing.T) {
		if err := newLife(t).run(&lazyStore{Store: memstore.New()}); err == nil {
			t.Error("the look through the uncommitted map does not notice")
		}
		seen := 0
		for n := 1; ; n++ {
			mem := memstore.New()
			st := faultstore.New(mem, faultstore.KillAfter(faultstore.Put, n, nil).On(func(key string) bool { return strings.HasPrefix(key, "log/") }))
			l := newLife(t)
			if err := l.runBlind(&lazyStore{Store: st}); err == nil {
				break
			}
			if _, err := st.Crash(); err != nil {
				t.Fatal(err)
			}
			if err := l.check(mem); err != nil {
				seen++
			}
		}
		if seen < 3 {
			t.Errorf("the wrong order was found %d times", seen)
		}
	})
}

// runBlind is run without looking through the uncommitted map, which would
// stop a writer of the wrong order before a crash could.
func (l *life) runBlind(st store.Store) error {
	if err := l.runTo(st, 2); err != nil {
		return err
	}
	r, err := l.open(st)
	if err != nil {
		return err
	}
	for v := range 3 {
		id := fmt.Sprintf("%032x", v)
		l.tried[id] = v
		w, err := r.Begin(ctxBackground, l.mid, repository.BeginOptions{PointID: id})
		if err != nil {
			return err
		}
		mf := &repository.Manifest{}
		for i, p := range version()[v] {
			d, err := w.WriteDisk(ctxBackground, repository.DiskInput{ID: fmt.Sprintf("vd%c", 'a'+i), Source: &memDisk{p: p}})
			if err != nil {
				return err
			}
			mf.Disks = append(mf.Disks, d)
		}
		if _, err := w.Commit(ctxBackground, mf); err != nil {
			return err
		}
		l.acked[id] = v
	}
	return nil
}

// runTo runs the first n steps.
func (l *life) runTo(st store.Store, n int) error {
	_, trust, err := repository.Create(ctxBackground, st, repository.CreateOptions{
		Writer: l.writer.Public(), Prover: l.prover, Custodian: l.custodian,
		Holders: []repository.NewHolder{{Name: "recovery", Recipient: l.recipient}},
	})
	if err != nil || n < 2 {
		return err
	}
	l.trust = trust
	r, err := l.open(st)
	if err != nil {
		return err
	}
	_, err = r.CreateMachine(ctxBackground, mid0, "vm")
	l.mid = mid0
	return err
}
