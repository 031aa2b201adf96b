// Package storecheck checks whether a store keeps the contract of store.Store:
// the conformance suite of every adapter, and what an operator runs against a
// store of his own before he trusts it with a repository.
//
// It is not a test of durability under power loss: it shows what can be seen
// without cutting the power. Its invariants: what passes here may hold a
// repository; and it touches nothing outside the folder it makes, which is gone
// when it returns.
package storecheck

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"runtime"
	"sync"
	"time"

	"github.com/lockstep-backup/lockstep/store"
)

// Outcome of a check.
type Outcome string

// The outcomes.
const (
	Passed        Outcome = "passed"
	Failed        Outcome = "failed"
	NotApplicable Outcome = "not applicable"
)

// Result says how a check went.
type Result struct {
	Name    string        `json:"check"`
	Outcome Outcome       `json:"outcome"`
	Details []string      `json:"details,omitempty"` // what failed, why it does not apply, or figures
	Took    time.Duration `json:"-"`
}

// Failures are the details of a check that failed.
func (r Result) Failures() []string {
	if r.Outcome != Failed {
		return nil
	}
	return r.Details
}

// Check is one part of the contract. The store it is given must be empty.
type Check struct {
	Name string
	run  func(t *run, s store.Store)
}

// Contract is what every store keeps.
func Contract() []Check {
	return []Check{
		{"put gives back what was put", checkPut},
		{"put keeps no reference to its argument", checkPutCopies},
		{"put never overwrites", checkPutExisting},
		{"create is visible from commit on", checkCreate},
		{"create with writes of all sizes", checkWriteSizes},
		{"abort leaves nothing", checkAbort},
		{"commit never overwrites", checkCommitExisting},
		{"one of 16 puts wins", checkPutRace},
		{"one of 16 commits wins", checkCommitRace},
		{"ranges", checkRanges},
		{"a large object", checkLargeObject},
		{"listing in the order of keys", checkListOrder},
		{"listing below a prefix", checkListPrefix},
		{"listing calls back without a lock held", checkListCallback},
		{"keys that are none", checkBadKeys},
		{"longest key", checkLongestKey},
		{"absent objects", checkAbsent},
		{"delete", checkDelete},
		{"cancelled context", checkCancelled},
		{"concurrent use", checkConcurrent},
		{"whole objects within a bound", checkGetAll},
		{"location", checkLocation},
	}
}

// Run runs a check on an empty store.
func (c Check) Run(ctx context.Context, s store.Store) Result { return c.on(ctx, s, 0) }

func (c Check) on(ctx context.Context, s store.Store, folder int) Result {
	t := &run{ctx: ctx, folder: folder}
	began := time.Now()
	done := make(chan struct{})
	go func() { // Fatalf ends the goroutine
		defer close(done)
		c.run(t, s)
	}()
	<-done
	r := Result{Name: c.Name, Outcome: Passed, Details: t.notes, Took: time.Since(began)}
	switch {
	case len(t.failures) > 0:
		r.Outcome, r.Details = Failed, t.failures
	case t.skipped:
		r.Outcome = NotApplicable
	}
	return r
}

// maxFailures bounds what one check says.
const maxFailures = 20

// run is one check under way, in the manner of testing.T.
type run struct {
	ctx    context.Context
	folder int // length of what the store puts before each key

	mu       sync.Mutex
	failures []string
	notes    []string
	skipped  bool
}

func (t *run) Errorf(format string, args ...any) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if len(t.failures) < maxFailures {
		t.failures = append(t.failures, fmt.Sprintf(format, args...))
	}
}

func (t *run) Error(args ...any) { t.Errorf("%s", fmt.Sprint(args...)) }

func (t *run) Fatalf(format string, args ...any) {
	t.Errorf(format, args...)
	runtime.Goexit()
}

func (t *run) Fatal(args ...any) {
	t.Error(args...)
	runtime.Goexit()
}

// Notef says something that is no failure.
func (t *run) Notef(format string, args ...any) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.notes = append(t.notes, fmt.Sprintf(format, args...))
}

// Skipf ends a check that does not apply, saying why.
func (t *run) Skipf(format string, args ...any) {
	t.Notef(format, args...)
	t.skipped = true
	runtime.Goexit()
}

// Options change what Run does; the zero value is for operators.
type Options struct {
	// Large is the size of the largest object, in bytes; 0 = 80 MiB, which goes
	// in parts to every adapter.
	Large int64
	// Measure is how many bytes are sent and fetched for the throughput; 0 = 128 MiB.
	Measure int64
	// Lock is how long an object is locked to see that locks hold, and then end;
	// 0 = 20 s, negative: not tried.
	Lock time.Duration
}

const (
	defaultLarge   = 80 << 20
	defaultMeasure = 128 << 20
	defaultLock    = 20 * time.Second
)

// ErrRetained says that the store locks all that is put into it, so that the
// check could not clean up behind itself.
var ErrRetained = errors.New("store retains every new object")

// Run runs all checks in a folder of its own below the store's root, with a
// random name, tells report about each, and deletes the folder. ok says that
// none failed. The error is about the running itself: the check was
// interrupted, cannot begin, or could not delete what it made.
func Run(ctx context.Context, s store.Store, o Options, report func(Result)) (ok bool, err error) {
	if o.Large == 0 {
		o.Large = defaultLarge
	}
	if o.Measure == 0 {
		o.Measure = defaultMeasure
	}
	if o.Lock == 0 {
		o.Lock = defaultLock
	}
	if l, is := s.(store.Locker); is {
		status, err := l.LockStatus(ctx)
		switch {
		case err != nil:
			return false, fmt.Errorf("check store: %w", err)
		case status.Enabled && status.Default > 0:
			return false, fmt.Errorf("check store: %w for %d days: what the check makes would stay so long", ErrRetained, int(status.Default.Hours()/24))
		}
	}
	var b [8]byte
	_, _ = rand.Read(b[:]) // never fails since Go 1.24
	root := "check-" + hex.EncodeToString(b[:])
	defer func() {
		// Also when the check was interrupted.
		if cerr := clean(context.WithoutCancel(ctx), s, root+"/"); cerr != nil {
			ok, err = false, errors.Join(err, fmt.Errorf("check store: delete what lies in %s/: %w", root, cerr))
		}
	}()
	checks := append(Contract(),
		Check{"one of 2 large objects of the same name wins", o.largeRace},
		Check{"an object is listed, found and gone at once", checkConsistency},
		Check{"object lock", o.lock},
		Check{"speed", o.measure},
	)
	ok = true
	for i, c := range checks {
		if err := ctx.Err(); err != nil {
			return false, fmt.Errorf("check store: %w", err)
		}
		f := &folder{s, fmt.Sprintf("%s/%02d/", root, i)}
		r := c.on(ctx, f, len(f.prefix))
		if err := ctx.Err(); err != nil { // its failures are ours
			return false, fmt.Errorf("check store: %w", err)
		}
		ok = ok && r.Outcome != Failed
		report(r)
	}
	return ok, nil
}

func clean(ctx context.Context, s store.Store, prefix string) error {
	var keys []string
	err := s.List(ctx, prefix, func(i store.Info) error { keys = append(keys, i.Key); return nil })
	if err != nil {
		return err
	}
	for _, k := range keys {
		if derr := s.Delete(ctx, k); derr != nil && !errors.Is(derr, store.ErrNotExist) {
			err = errors.Join(err, derr)
		}
	}
	return err
}
