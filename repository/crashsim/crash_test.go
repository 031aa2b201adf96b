// Package crashsim crashes a repository, and its copy, at every operation of
// backup, deletion, reclaim and copy, and looks what is left. It holds tests
// only. A crash is deterministic: the nth operation that changes a store is not
// done, or done without an answer, and nothing is done behind it; or its answer
// alone is lost, and the process goes on.
package crashsim

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/lockstep-backup/lockstep/repository"
	"github.com/lockstep-backup/lockstep/store"
	"github.com/lockstep-backup/lockstep/store/memstore"
	"github.com/lockstep-backup/lockstep/verify"
)

// manner is how an operation goes wrong.
type manner int

const (
	before manner = iota // the process dies before it
	after                // it is done, and the process dies before it hears so
	silent               // it is done, the answer is lost, the process goes on
)

func (m manner) String() string {
	return [...]string{"killed before", "killed after", "answer lost of"}[m]
}

var (
	errDead = errors.New("the process is dead")
	errLost = errors.New("the answer is lost")
)

// clock counts the operations of both stores of a step, and strikes one.
type clock struct {
	mu     sync.Mutex
	n, at  int // at 0: none
	manner manner
	dead   bool
	struck string
	kinds  map[string]int // of operations seen, by kind of object
}

// do carries out an operation that changes a store, or fails as it is to.
func (c *clock) do(what, key string, op func() error) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.dead {
		return errDead
	}
	c.n++
	kind, _, _ := strings.Cut(key, "/")
	if kind == "copies" {
		kind = "copies/" + strings.Split(key, "/")[1]
	}
	c.kinds[what+" "+kind]++
	if c.n != c.at {
		return op()
	}
	c.struck = what + " " + key
	switch c.manner {
	case before:
		c.dead = true
		return errDead
	case after:
		c.dead = true
		_ = op()
		return errDead
	}
	if err := op(); err != nil {
		return err
	}
	return errLost
}

// crashing is a store whose process can die.
type crashing struct {
	store.Store
	c *clock
}

func (s crashing) alive() error {
	s.c.mu.Lock()
	defer s.c.mu.Unlock()
	if s.c.dead {
		return errDead
	}
	return nil
}

func (s crashing) Put(ctx context.Context, key string, p []byte) error {
	return s.c.do("put", key, func() error { return s.Store.Put(ctx, key, p) })
}

func (s crashing) Delete(ctx context.Context, key string) error {
	return s.c.do("delete", key, func() error { return s.Store.Delete(ctx, key) })
}

func (s crashing) Create(ctx context.Context, key string) (store.Writer, error) {
	if err := s.alive(); err != nil {
		return nil, err
	}
	w, err := s.Store.Create(ctx, key)
	return crashingWriter{w, s, key}, err
}

type crashingWriter struct {
	store.Writer
	s   crashing
	key string
}

func (w crashingWriter) Commit() error { return w.s.c.do("commit", w.key, w.Writer.Commit) }

func (s crashing) ReadRange(ctx context.Context, key string, off int64, p []byte) (int, error) {
	if err := s.alive(); err != nil {
		return 0, err
	}
	return s.Store.ReadRange(ctx, key, off, p)
}

func (s crashing) Stat(ctx context.Context, key string) (store.Info, error) {
	if err := s.alive(); err != nil {
		return store.Info{}, err
	}
	return s.Store.Stat(ctx, key)
}

func (s crashing) List(ctx context.Context, prefix string, fn func(store.Info) error) error {
	if err := s.alive(); err != nil {
		return err
	}
	return s.Store.List(ctx, prefix, fn)
}

// perform runs a step on w with a strike.
func perform(w *world, s step, at int, m manner) (*clock, error) {
	c := &clock{at: at, manner: m, kinds: map[string]int{}}
	err := s.run(w, crashing{w.a.mem, c}, crashing{w.b.mem, c})
	return c, err
}

// lives are how many scripts are crashed everywhere.
const (
	lives      = 25
	backups    = 7
	wantPoints = 10000
)

// TestCrash strikes every operation of every step of several lives.
func TestCrash(t *testing.T) {
	n, want := lives, wantPoints
	switch {
	case testing.Short():
		n, want = 1, wantPoints/lives/2
	case soak():
		n, want = 10*lives, 10*wantPoints
	}
	type crashPoint struct {
		seed   uint64
		before *world
		step   step
		rest   []step
		at     int
		manner manner
	}
	work := make(chan crashPoint, 64)
	var mu sync.Mutex
	points := map[string]int{}
	total := 0
	kinds := map[string]int{}
	var done sync.WaitGroup
	for range runtime.GOMAXPROCS(0) {
		done.Go(func() {
			for p := range work {
				w := p.before.clone()
				c, err := perform(w, p.step, p.at, p.manner)
				at := fmt.Sprintf("life %d, %s: %s operation %d (%s)", p.seed, p.step.name, p.manner, p.at, c.struck)
				if c.struck == "" {
					continue // the workers of a backup share it out differently each time
				}
				if err == nil && p.manner != silent && p.at < c.n {
					t.Errorf("%s: the step ended well", at)
					continue
				}
				if err := goOn(w, p.step, p.rest, err); err != nil {
					t.Errorf("%s: %v", at, err)
				}
				mu.Lock()
				total++
				points[strings.Fields(p.step.name)[0]]++
				mu.Unlock()
			}
		})
	}
	for seed := range uint64(n) {
		rnd := rand.New(rand.NewPCG(seed, 42))
		w := newWorld(t, rnd, backups)
		steps := script(rnd, backups)
		for i, s := range steps {
			start := w.clone()
			c, err := perform(w, s, 0, before)
			if err != nil {
				t.Fatalf("life %d, %s, undisturbed: %v", seed, s.name, err)
			}
			mu.Lock()
			for k, v := range c.kinds {
				kinds[k] += v
			}
			mu.Unlock()
			for at := 1; at <= c.n; at++ {
				for _, m := range []manner{before, after, silent} {
					work <- crashPoint{seed, start, s, steps[i+1:], at, m}
				}
			}
		}
		if err := w.check(); err != nil {
			t.Fatalf("life %d, undisturbed: %v", seed, err)
		}
	}
	close(work)
	done.Wait()
	t.Logf("%d crash points: %v", total, points)
	t.Logf("operations struck: %v", kinds)
	if total < want {
		t.Errorf("%d crash points, want %d", total, want)
	}
	if testing.Short() {
		return
	}
	for _, kind := range []string{"commit seg", "commit map", "put points", "put log", "put headers-a", "put headers-b", "put side", "put ledger", "delete seg", "delete map", "delete points", "delete headers-a", "delete side", "delete ledger"} {
		if kinds[kind] == 0 {
			t.Errorf("no operation of kind %q was met", kind)
		}
	}
}

// goOn is the next process: what was acknowledged is there, the step and a few
// more can be done, and at the end nothing is damaged.
func goOn(w *world, s step, rest []step, first error) error {
	if err := w.check(); err != nil {
		return fmt.Errorf("after the crash (%v): %w", first, err)
	}
	const more = 2 // steps behind the one that was struck
	for _, next := range append([]step{s}, rest[:min(more, len(rest))]...) {
		if _, err := perform(w, next, 0, before); err != nil {
			return fmt.Errorf("going on with %s: %w", next.name, err)
		}
	}
	if err := w.check(); err != nil {
		return fmt.Errorf("at the end: %w", err)
	}
	return nil
}

// TestNothingIsLeft crashes reclaim at every operation and asks that the next
// one ends with the very objects that an undisturbed one leaves room for: what
// a crash left is found again, however often it happens.
func TestNothingIsLeft(t *testing.T) {
	rnd := rand.New(rand.NewPCG(99, 42))
	w := newWorld(t, rnd, backups)
	for v := range backups - 1 {
		if _, err := perform(w, backup(v, false), 0, before); err != nil {
			t.Fatal(err)
		}
		if v%2 == 0 {
			if _, err := perform(w, backup(v+1, true), 0, before); err != nil {
				t.Fatal(err)
			}
		}
	}
	for n := range 3 {
		if _, err := perform(w, remove(n, false), 0, before); err != nil {
			t.Fatal(err)
		}
	}
	s := reclaim(repository.ReclaimOptions{MaxDead: 0.2}, false)
	calm := w.clone()
	c, err := perform(calm, s, 0, before)
	if err != nil {
		t.Fatal(err)
	}
	want := sizes(t, calm.a.mem)
	for at := 1; at <= c.n; at++ {
		for _, m := range []manner{before, after, silent} {
			again := w.clone()
			struck, _ := perform(again, s, at, m)
			if struck.struck == "" {
				t.Fatalf("operation %d was not met", at)
			}
			if _, err := perform(again, s, 0, before); err != nil {
				t.Fatalf("%s %s: %v", m, struck.struck, err)
			}
			if err := again.check(); err != nil {
				t.Errorf("%s %s: %v", m, struck.struck, err)
			}
			for kind, n := range sizes(t, again.a.mem) {
				most := want[kind]
				if kind == "ledger" {
					most *= 4 // the one before goes when the next is written
				}
				if kind != "log" && n > most {
					t.Errorf("%s %s: %d bytes of kind %s are left, %d without the crash", m, struck.struck, n, kind, want[kind])
				}
			}
		}
	}
}

// sizes are the bytes in a store by the kind of object.
func sizes(t *testing.T, mem *memstore.Store) map[string]int64 {
	t.Helper()
	n := map[string]int64{}
	if err := mem.List(context.Background(), "", func(i store.Info) error {
		kind, _, _ := strings.Cut(i.Key, "/")
		n[kind] += i.Size
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	return n
}

// TestWholeAtTheEnd runs the lives undisturbed and reads back everything.
func TestWholeAtTheEnd(t *testing.T) {
	for seed := range uint64(3) {
		rnd := rand.New(rand.NewPCG(seed, 42))
		w := newWorld(t, rnd, backups)
		for _, s := range script(rnd, backups) {
			if _, err := perform(w, s, 0, before); err != nil {
				t.Fatalf("life %d, %s: %v", seed, s.name, err)
			}
		}
		for _, s := range []*side{w.a, w.b} {
			r, err := w.open(s.mem)
			if err != nil {
				t.Fatal(err)
			}
			res, err := verify.Run(context.Background(), verify.Request{Repository: r, All: true})
			if err != nil || len(res.Damage) > 0 {
				t.Errorf("life %d: %v, damage %v", seed, err, res.Damage)
			}
			_ = r.Close()
		}
	}
}

// A mistake in the order of reclaim is planted: an object that is deleted
// before its replica is there, a crash between, and the test must see it.
func TestCrashFindsAnEarlyDelete(t *testing.T) {
	found := 0
	for seed := range uint64(6) {
		rnd := rand.New(rand.NewPCG(seed, 42))
		w := newWorld(t, rnd, backups)
		for _, s := range script(rnd, backups) {
			start := w.clone()
			c, err := perform(w, s, 0, before)
			if err != nil {
				t.Fatal(err)
			}
			if !strings.HasPrefix(s.name, "reclaim in a") {
				continue
			}
			for at := 1; at <= c.n; at++ {
				bad := start.clone()
				clock := &clock{at: at, manner: before, kinds: map[string]int{}}
				_ = s.run(bad, &hasty{crashing: crashing{bad.a.mem, clock}}, crashing{bad.b.mem, clock})
				if bad.check() != nil {
					found++
				}
			}
		}
	}
	if found == 0 {
		t.Error("nobody notices that originals are deleted before their replicas are durable")
	}
}

// hasty acknowledges replicas before they are durable, and makes them durable
// only when the original was deleted.
type hasty struct {
	crashing
	mu      sync.Mutex
	waiting []store.Writer
}

func (h *hasty) Create(ctx context.Context, key string) (store.Writer, error) {
	w, err := h.crashing.Create(ctx, key)
	if err != nil || !strings.Contains(key[strings.LastIndexByte(key, '/'):], "-") {
		return w, err
	}
	return hastyWriter{w, h}, nil
}

type hastyWriter struct {
	store.Writer
	h *hasty
}

func (w hastyWriter) Commit() error {
	w.h.mu.Lock()
	defer w.h.mu.Unlock()
	w.h.waiting = append(w.h.waiting, w.Writer)
	return nil
}

func (h *hasty) Delete(ctx context.Context, key string) error {
	err := h.crashing.Delete(ctx, key)
	h.mu.Lock()
	defer h.mu.Unlock()
	if strings.HasPrefix(key, "seg/") || strings.HasPrefix(key, "map/") {
		for _, w := range slices.Backward(h.waiting) {
			_ = w.Commit()
		}
		h.waiting = nil
	}
	return err
}
