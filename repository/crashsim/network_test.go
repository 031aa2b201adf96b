package crashsim

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"math/rand/v2"
	"os"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/lockstep-backup/lockstep/repository"
	"github.com/lockstep-backup/lockstep/store"
)

// trouble is what a network, and a store behind it, does to one operation. The
// process lives on.
type trouble string

const (
	refused   trouble = "refused"       // an error, nothing done
	timedOut  trouble = "timed out"     // the deadline passes, nothing done
	unheard   trouble = "answer lost"   // done, and an error
	twice     trouble = "sent twice"    // done, and done again; the second answer is heard
	cut       trouble = "cut off"       // half of what was to be read, and no error
	flipped   trouble = "flipped"       // one bit of what was read
	stale     trouble = "stale listing" // the newer half of the objects is not listed yet
	ghost     trouble = "ghost listing" // objects are listed that are deleted
	duplicate trouble = "listed twice"  // pages of a listing overlap
	hanging   trouble = "hanging"       // no answer until the caller gives up
)

// troubles by the kind of operation.
var troubles = map[string][]trouble{
	"put": {refused, timedOut, unheard, twice}, "commit": {refused, timedOut, unheard, twice}, "delete": {refused, timedOut, unheard, twice},
	"write": {refused}, "create": {refused},
	"read": {refused, timedOut, cut, flipped, hanging}, "stat": {refused, timedOut, hanging}, "list": {refused, timedOut, stale, ghost, duplicate},
}

// network is a store behind a network of which one operation goes wrong.
type network struct {
	store.Store
	mu      sync.Mutex
	n, at   int
	trouble trouble
	op      string // that was met at at
	struck  bool
	giveUp  context.CancelFunc
	deleted []string
	ops     []string // kinds, in order
}

// strike counts an operation and says whether it goes wrong.
func (s *network) strike(op string) (trouble, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.n++
	s.ops = append(s.ops, op)
	if s.n != s.at || !slices.Contains(troubles[op], s.trouble) {
		return "", false
	}
	s.op, s.struck = op, true
	return s.trouble, true
}

var errNetwork = errors.New("network: connection reset")

func (s *network) change(op string, do func() error) error {
	t, hit := s.strike(op)
	if !hit {
		return do()
	}
	switch t {
	case refused:
		return errNetwork
	case timedOut:
		return fmt.Errorf("network: %w", context.DeadlineExceeded)
	case unheard:
		if err := do(); err != nil {
			return err
		}
		return errNetwork
	}
	if err := do(); err != nil { // twice
		return err
	}
	return do()
}

func (s *network) Put(ctx context.Context, key string, p []byte) error {
	return s.change("put", func() error { return s.Store.Put(ctx, key, p) })
}

func (s *network) Delete(ctx context.Context, key string) error {
	err := s.change("delete", func() error { return s.Store.Delete(ctx, key) })
	s.mu.Lock()
	defer s.mu.Unlock()
	s.deleted = append(s.deleted, key)
	return err
}

func (s *network) Create(ctx context.Context, key string) (store.Writer, error) {
	if _, hit := s.strike("create"); hit {
		return nil, errNetwork
	}
	w, err := s.Store.Create(ctx, key)
	return &networkWriter{w, s, key}, err
}

type networkWriter struct {
	store.Writer
	s   *network
	key string
}

func (w *networkWriter) Write(p []byte) (int, error) {
	if _, hit := w.s.strike("write"); hit {
		return 0, errNetwork
	}
	return w.Writer.Write(p)
}

// Commit sent twice meets its own object: the store says that it exists.
func (w *networkWriter) Commit() error {
	done := false
	return w.s.change("commit", func() error {
		if done {
			return fmt.Errorf("commit %s: %w", w.key, store.ErrExist)
		}
		done = true
		return w.Writer.Commit()
	})
}

func (s *network) read(ctx context.Context, op string) (trouble, error) {
	t, hit := s.strike(op)
	switch {
	case !hit:
		return "", nil
	case t == refused:
		return t, errNetwork
	case t == timedOut:
		return t, fmt.Errorf("network: %w", context.DeadlineExceeded)
	case t == hanging:
		s.giveUp()
		<-ctx.Done()
		return t, ctx.Err()
	}
	return t, nil
}

func (s *network) ReadRange(ctx context.Context, key string, off int64, p []byte) (int, error) {
	t, err := s.read(ctx, "read")
	if err != nil {
		return 0, err
	}
	n, err := s.Store.ReadRange(ctx, key, off, p)
	switch {
	case t == cut && n > 1:
		return n / 2, io.EOF
	case t == flipped && n > 0:
		p[n/2] ^= 4
	}
	return n, err
}

func (s *network) Stat(ctx context.Context, key string) (store.Info, error) {
	if _, err := s.read(ctx, "stat"); err != nil {
		return store.Info{}, err
	}
	return s.Store.Stat(ctx, key)
}

func (s *network) List(ctx context.Context, prefix string, fn func(store.Info) error) error {
	t, err := s.read(ctx, "list")
	if err != nil {
		return err
	}
	var all []store.Info
	if err := s.Store.List(ctx, prefix, func(i store.Info) error { all = append(all, i); return nil }); err != nil {
		return err
	}
	switch t {
	case stale:
		all = all[:len(all)/2]
	case ghost:
		s.mu.Lock()
		for _, key := range s.deleted {
			if strings.HasPrefix(key, prefix) {
				all = append(all, store.Info{Key: key, Size: 5000})
			}
		}
		s.mu.Unlock()
		slices.SortFunc(all, func(a, b store.Info) int { return strings.Compare(a.Key, b.Key) })
	case duplicate:
		all = append(slices.Clone(all[:len(all)/2]), all[max(len(all)/2-1, 0):]...)
	}
	for _, i := range all {
		if err := fn(i); err != nil {
			return err
		}
	}
	return nil
}

// TestNetwork lets one operation of each step go wrong in every way that a
// network has. The step may fail; nothing that is listed may be lost or differ,
// and the next process goes on.
func TestNetwork(t *testing.T) {
	every := 15 // operations of reading of which one is struck
	seeds := uint64(1)
	switch {
	case testing.Short():
		every = 60
	case soak():
		every, seeds = 1, 10
	}
	type blow struct {
		seed   uint64
		before *world
		step   step
		rest   []step
		there  bool
		at     int
		kind   string
		t      trouble
	}
	work := make(chan blow, 64)
	var mu sync.Mutex
	met := map[string]int{}
	failed := map[string]int{}
	var done sync.WaitGroup
	for range runtime.GOMAXPROCS(0) {
		done.Go(func() {
			for b := range work {
				w := b.before.clone()
				ctx, giveUp := context.WithCancel(context.Background())
				n := &network{at: b.at, trouble: b.t, giveUp: giveUp}
				w.ctx = ctx
				var err error
				if b.there {
					n.Store = w.b.mem
					err = b.step.run(w, w.a.mem, n)
				} else {
					n.Store = w.a.mem
					err = b.step.run(w, n, w.b.mem)
				}
				giveUp()
				w.ctx = context.Background()
				if !n.struck {
					continue
				}
				if err := goOn(w, b.step, b.rest, err); err != nil {
					t.Errorf("life %d, %s, operation %d, a %s, %s: %v", b.seed, b.step.name, b.at, n.op, b.t, err)
				}
				mu.Lock()
				met[n.op+" "+string(b.t)]++
				if err != nil {
					failed[n.op+" "+string(b.t)]++
				}
				mu.Unlock()
			}
		})
	}
	for seed := range seeds {
		rnd := rand.New(rand.NewPCG(seed+1000, 42))
		w := newWorld(t, rnd, backups)
		steps := script(rnd, backups)
		for i, s := range steps {
			start := w.clone()
			a, b := &network{Store: w.a.mem}, &network{Store: w.b.mem}
			if err := s.run(w, a, b); err != nil {
				t.Fatalf("life %d, %s, undisturbed: %v", seed, s.name, err)
			}
			for there, n := range map[bool]*network{false: a, true: b} {
				for at, op := range n.ops {
					for k, tr := range troubles[op] {
						switch op {
						case "read", "stat":
							if (at+k)%every != 0 {
								continue
							}
						case "list":
							if (at+k)%max(every/3, 1) != 0 {
								continue
							}
						}
						work <- blow{seed, start, s, steps[i+1:], there, at + 1, op, tr}
					}
				}
			}
		}
	}
	close(work)
	done.Wait()
	for op, ts := range troubles {
		for _, tr := range ts {
			if met[op+" "+string(tr)] == 0 && !testing.Short() {
				t.Errorf("%q of a %s was never met", tr, op)
			}
		}
	}
	for _, k := range slices.Sorted(maps.Keys(met)) {
		t.Logf("%-22s met %5d times, the step failed %5d times", k, met[k], failed[k])
	}
}

// TestWritersAndReclaim lets several machines be backed up to one repository
// while space is reclaimed for all of them all the time. (make soak runs it for
// minutes, under the race detector.)
func TestWritersAndReclaim(t *testing.T) {
	const machines = 4
	rounds := 6
	if soak() {
		rounds = 300
	}
	rnd := rand.New(rand.NewPCG(7, 42))
	w := newWorld(t, rnd, rounds)
	r, err := w.open(w.a.mem)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	ctx := t.Context()
	mids := []string{machine}
	for i := 1; i < machines; i++ {
		m, err := r.CreateMachine(ctx, "", fmt.Sprintf("vm%d", i))
		if err != nil {
			t.Fatal(err)
		}
		mids = append(mids, m.ID)
	}
	stop := make(chan struct{})
	var writers, others sync.WaitGroup
	for _, mid := range mids {
		others.Go(func() { // its own repository object, as of another process
			own, err := w.open(w.a.mem)
			if err != nil {
				t.Error(err)
				return
			}
			defer own.Close()
			for n := 0; ; n++ {
				select {
				case <-stop:
					return
				default:
				}
				ps, err := own.Points(ctx, mid)
				if err != nil {
					t.Errorf("list: %v", err)
					return
				}
				if len(ps) > 3 {
					if err := own.Delete(ctx, mid, ps[n%(len(ps)-2)].ID, "test"); err != nil && !errors.Is(err, repository.ErrConflict) {
						t.Errorf("delete: %v", err)
						return
					}
				}
				if _, err := own.Reclaim(ctx, mid, repository.ReclaimOptions{MaxDead: 0.1}); err != nil {
					t.Errorf("reclaim: %v", err)
					return
				}
			}
		})
		writers.Go(func() {
			for v := range rounds {
				p, err := r.Begin(ctx, mid, repository.BeginOptions{})
				if err != nil {
					t.Errorf("begin: %v", err)
					return
				}
				d, err := p.WriteDisk(ctx, repository.DiskInput{ID: "vda", Source: source{w.versions[v]}})
				if err != nil {
					t.Errorf("write: %v", err)
					return
				}
				if _, err := p.Commit(ctx, &repository.Manifest{Disks: []repository.Disk{d}, Description: fmt.Sprint(v)}); err != nil {
					t.Errorf("commit: a backup was stopped: %v", err)
					return
				}
			}
		})
	}
	writers.Wait()
	close(stop)
	others.Wait()
	for _, mid := range mids {
		ps, err := r.Points(ctx, mid)
		if err != nil {
			t.Fatal(err)
		}
		for _, p := range ps {
			m, err := r.Manifest(ctx, p)
			if err != nil {
				t.Fatal(err)
			}
			var v int
			if _, err := fmt.Sscan(m.Description, &v); err != nil {
				t.Fatal(err)
			}
			d, err := r.OpenDisk(ctx, mid, m.Disks[0])
			if err != nil {
				t.Fatal(err)
			}
			got := make([]byte, d.Size())
			if n, err := d.ReadAt(got, 0); n != len(got) || string(got) != string(w.versions[v]) {
				t.Errorf("machine %s, version %d differs: %v", mid, v, err)
			}
		}
	}
}

// soak says whether there is time for the long forms of tests (.ci/soak sets it).
func soak() bool { return os.Getenv("LOCKSTEP_SOAK") != "" }
