package job_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/lockstep-backup/lockstep/catalog"
	"github.com/lockstep-backup/lockstep/catalog/sqlite"
	"github.com/lockstep-backup/lockstep/job"
)

var _ job.Store = catalog.Jobs(nil)

func store(t *testing.T, path string) job.Store {
	t.Helper()
	c, err := sqlite.Open(t.Context(), path, sqlite.Options{Create: true})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Maintenance.Close() })
	return c.Jobs
}

func runner(t *testing.T) (*job.Runner, job.Store) {
	t.Helper()
	dir := t.TempDir()
	s := store(t, filepath.Join(dir, "catalog.db"))
	return job.NewRunner(job.Options{Store: s, Locks: job.NewLocks(filepath.Join(dir, "locks"))}), s
}

func start(t *testing.T, r *job.Runner, fn func(context.Context, *job.Reporter) error, keys ...string) job.Job {
	t.Helper()
	j, err := r.Start(t.Context(), "backup", fn, keys...)
	if err != nil {
		t.Fatal(err)
	}
	return j
}

func wait(t *testing.T, r *job.Runner, id string) job.Job {
	t.Helper()
	j, err := r.Wait(t.Context(), id)
	if err != nil {
		t.Fatal(err)
	}
	return j
}

func events(t *testing.T, r *job.Runner, id string, after int) []job.Event {
	t.Helper()
	var out []job.Event
	for e, err := range r.Events(t.Context(), id, after) {
		if err != nil {
			t.Fatal(err)
		}
		if len(out) > 0 && e.N <= out[len(out)-1].N {
			t.Fatalf("event %d follows %d", e.N, out[len(out)-1].N)
		}
		out = append(out, e)
	}
	return out
}

func TestHowJobsEnd(t *testing.T) {
	failure := errors.New("read source: gone")
	for _, k := range []struct {
		name  string
		fn    func(context.Context, *job.Reporter) error
		state job.State
		text  string
	}{
		{"nil", func(context.Context, *job.Reporter) error { return nil }, job.Succeeded, ""},
		{"error", func(context.Context, *job.Reporter) error { return failure }, job.Failed, "read source: gone"},
		{"panic with a secret", func(context.Context, *job.Reporter) error { panic("hunter2") }, job.Failed, "internal error in job: string"},
		{"panic with an error that has a secret", func(context.Context, *job.Reporter) error { panic(errors.New("hunter2")) }, job.Failed, "internal error in job: *errors.errorString"},
		{"index", func(context.Context, *job.Reporter) error { var a []int; _ = a[len(os.Args)]; return nil }, job.Failed, "index out of range"},
		{"exit of the goroutine", func(context.Context, *job.Reporter) error { runtime.Goexit(); return nil }, job.Failed, "without returning"},
	} {
		t.Run(k.name, func(t *testing.T) {
			dir := t.TempDir()
			var log bytes.Buffer
			s := store(t, filepath.Join(dir, "catalog.db"))
			r := job.NewRunner(job.Options{
				Store: s, Log: slog.New(slog.NewTextHandler(&log, nil)),
				Describe: func(err error) any { return map[string]bool{"known": errors.Is(err, failure)} },
			})
			j := wait(t, r, start(t, r, k.fn).ID)
			if j.State != k.state || !strings.Contains(j.Error, k.text) || (k.text == "") != (j.Error == "") || j.Ended.IsZero() {
				t.Errorf("%+v", j)
			}
			if want := fmt.Sprintf(`{"known":%v}`, k.name == "error"); j.Error != "" && string(j.Problem) != want {
				t.Errorf("problem %s, want %s", j.Problem, want)
			}
			kept, err := job.NewRunner(job.Options{Store: s}).Get(t.Context(), j.ID)
			if err != nil || kept.State != j.State || kept.Error != j.Error {
				t.Errorf("stored: %+v, %v", kept, err)
			}
			doc, _ := s.GetJob(t.Context(), j.ID)
			if all := log.String() + j.Error + string(doc); strings.Contains(all, "hunter2") {
				t.Errorf("the panic's value leaked: %s", all)
			}
			es := events(t, r, j.ID, 0)
			if last := es[len(es)-1]; last.Kind != job.KindDone || last.Message != j.Error {
				t.Errorf("last event %+v", last)
			}
		})
	}
}

func TestResultAndWarningsStay(t *testing.T) {
	r, s := runner(t)
	j := wait(t, r, start(t, r, func(_ context.Context, p *job.Reporter) error {
		p.Message("began %s", p.Job())
		p.Warning("disk %s has bad sectors", "vda")
		return p.Result(map[string]int{"stored": 7})
	}).ID)
	kept, err := job.NewRunner(job.Options{Store: s}).Get(t.Context(), j.ID)
	if err != nil {
		t.Fatal(err)
	}
	for _, j := range []job.Job{j, kept} {
		if string(j.Result) != `{"stored":7}` || len(j.Warnings) != 1 || j.Warnings[0] != "disk vda has bad sectors" {
			t.Errorf("%+v", j)
		}
	}
	// Another process reads the same story from the store.
	for _, es := range [][]job.Event{events(t, r, j.ID, 0), events(t, job.NewRunner(job.Options{Store: s}), j.ID, 0)} {
		if len(es) != 3 || es[0].Message != "began "+j.ID || es[1].Kind != job.KindWarning || es[2].Kind != job.KindDone {
			t.Errorf("%+v", es)
		}
	}
	if es := events(t, r, j.ID, 2); len(es) != 1 || es[0].N != 3 {
		t.Errorf("after 2: %+v", es)
	}
}

func TestProgressIsThrottledAndEndsRight(t *testing.T) {
	var clock atomic.Int64
	r := job.NewRunner(job.Options{Now: func() time.Time { return time.Unix(1000, 0).Add(time.Duration(clock.Load())) }})
	const calls = 10000 // one a millisecond: ten seconds
	j := start(t, r, func(_ context.Context, p *job.Reporter) error {
		for i := range calls {
			clock.Add(int64(time.Millisecond))
			p.Progress(job.Progress{Phase: "write", Done: int64(i + 1), Total: calls})
		}
		p.Progress(job.Progress{Phase: "prove", Done: 1, Total: 2})
		p.Progress(job.Progress{Phase: "prove", Done: 2, Total: 2})
		return nil
	})
	es := events(t, r, j.ID, 0)
	var lastOf []job.Progress
	n := 0
	for _, e := range es {
		if e.Progress == nil {
			continue
		}
		n++
		if len(lastOf) == 0 || lastOf[len(lastOf)-1].Phase != e.Progress.Phase {
			lastOf = append(lastOf, *e.Progress)
		}
		lastOf[len(lastOf)-1] = *e.Progress
	}
	if n < 90 || n > 110 {
		t.Errorf("%d events of progress in ten seconds", n)
	}
	if len(lastOf) != 2 || lastOf[0].Done != calls || lastOf[1].Done != 2 {
		t.Errorf("last progress of each phase: %+v", lastOf)
	}
}

func TestFollowersThatComeLateMissNoMessage(t *testing.T) {
	r, _ := runner(t)
	const messages = 1300 // more than memory keeps
	j := wait(t, r, start(t, r, func(_ context.Context, p *job.Reporter) error {
		for i := range messages {
			p.Message("%d", i)
		}
		return nil
	}).ID)
	es := events(t, r, j.ID, 0)
	if len(es) != messages+1 {
		t.Fatalf("%d events, want %d", len(es), messages+1)
	}
	for i, e := range es[:messages] {
		if e.Message != fmt.Sprint(i) {
			t.Fatalf("event %d says %q", i, e.Message)
		}
	}
	if es := events(t, r, j.ID, messages-3); len(es) != 4 {
		t.Errorf("%d events at the end, want 4", len(es))
	}
}

func TestMemoryIsBounded(t *testing.T) {
	r := job.NewRunner(job.Options{}) // no store: what memory loses is lost
	j := wait(t, r, start(t, r, func(_ context.Context, p *job.Reporter) error {
		for i := range 5000 {
			p.Message("%d", i)
		}
		return nil
	}).ID)
	if es := events(t, r, j.ID, 0); len(es) != 1024 || es[1023].Kind != job.KindDone {
		t.Errorf("%d events", len(es))
	}
}

func TestFollowWhileItRuns(t *testing.T) {
	r, _ := runner(t)
	next := make(chan string)
	j := start(t, r, func(_ context.Context, p *job.Reporter) error {
		for text := range next {
			p.Message("%s", text)
		}
		return nil
	})
	next <- "one"
	var got []string
	for e, err := range r.Events(t.Context(), j.ID, 0) {
		if err != nil {
			t.Fatal(err)
		}
		got = append(got, e.Kind+" "+e.Message)
		switch len(got) {
		case 1:
			next <- "two"
		case 2:
			close(next)
		}
	}
	if want := "[message one message two done ]"; fmt.Sprint(got) != want {
		t.Errorf("%v, want %v", got, want)
	}
}

func TestCancelAndShutdown(t *testing.T) {
	untilCanceled := func(ctx context.Context, _ *job.Reporter) error { <-ctx.Done(); return ctx.Err() }
	t.Run("cancel", func(t *testing.T) {
		r, _ := runner(t)
		j := start(t, r, untilCanceled)
		if err := r.Cancel(t.Context(), j.ID); err != nil {
			t.Fatal(err)
		}
		if j := wait(t, r, j.ID); j.State != job.Canceled || !strings.Contains(j.Error, "on request") {
			t.Errorf("%+v", j)
		}
		if err := r.Cancel(t.Context(), j.ID); !errors.Is(err, job.ErrEnded) {
			t.Errorf("second cancel: %v", err)
		}
		if err := r.Cancel(t.Context(), "none"); !errors.Is(err, job.ErrNotFound) {
			t.Errorf("cancel of nothing: %v", err)
		}
	})
	t.Run("the caller's context does not end the job", func(t *testing.T) {
		r, _ := runner(t)
		ctx, cancel := context.WithCancel(t.Context())
		gone := make(chan struct{})
		j, err := r.Start(ctx, "backup", func(ctx context.Context, _ *job.Reporter) error { <-gone; return ctx.Err() })
		if err != nil {
			t.Fatal(err)
		}
		cancel()
		close(gone)
		if j := wait(t, r, j.ID); j.State != job.Succeeded {
			t.Errorf("%+v", j)
		}
	})
	t.Run("finished in spite of cancel", func(t *testing.T) {
		r, _ := runner(t)
		j := start(t, r, func(ctx context.Context, _ *job.Reporter) error { <-ctx.Done(); return nil })
		if err := r.Cancel(t.Context(), j.ID); err != nil {
			t.Fatal(err)
		}
		if j := wait(t, r, j.ID); j.State != job.Succeeded {
			t.Errorf("%+v", j)
		}
	})
	t.Run("shutdown", func(t *testing.T) {
		r, _ := runner(t)
		j := start(t, r, untilCanceled)
		if err := r.Shutdown(t.Context()); err != nil {
			t.Fatal(err)
		}
		if j := wait(t, r, j.ID); j.State != job.Canceled || !strings.Contains(j.Error, "shutting down") {
			t.Errorf("%+v", j)
		}
		if _, err := r.Start(t.Context(), "backup", untilCanceled); !errors.Is(err, job.ErrShutdown) {
			t.Errorf("start after shutdown: %v", err)
		}
	})
	t.Run("shutdown that does not wait for ever", func(t *testing.T) {
		r, _ := runner(t)
		stuck := make(chan struct{})
		start(t, r, func(context.Context, *job.Reporter) error { <-stuck; return nil })
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		if err := r.Shutdown(ctx); !errors.Is(err, context.Canceled) {
			t.Errorf("%v", err)
		}
		close(stuck)
		if err := r.Shutdown(t.Context()); err != nil {
			t.Error(err)
		}
	})
}

func TestOneOfAKey(t *testing.T) {
	dir := t.TempDir()
	locks := filepath.Join(dir, "locks")
	// Two Runners with Locks of their own stand for two processes.
	a := job.NewRunner(job.Options{Locks: job.NewLocks(locks)})
	b := job.NewRunner(job.Options{Locks: job.NewLocks(locks)})
	release := make(chan struct{})
	first := start(t, a, func(context.Context, *job.Reporter) error { <-release; return nil }, "machine:web")
	for name, r := range map[string]*job.Runner{"same": a, "other": b} {
		_, err := r.Start(t.Context(), "backup", func(context.Context, *job.Reporter) error { return nil }, "machine:db", "machine:web")
		var busy *job.BusyError
		if !errors.Is(err, job.ErrBusy) || !errors.As(err, &busy) || busy.Key != "machine:web" ||
			!strings.Contains(busy.Holder, fmt.Sprint("process ", os.Getpid())) {
			t.Errorf("%s: %v", name, err)
		}
		// The keys that it had got by then are free again.
		wait(t, r, start(t, r, func(context.Context, *job.Reporter) error { return nil }, "machine:db").ID)
	}
	close(release)
	wait(t, a, first.ID)
	// Whoever saw the end can start the same at once.
	for range 50 {
		wait(t, a, start(t, a, func(context.Context, *job.Reporter) error { return nil }, "machine:web").ID)
		wait(t, b, start(t, b, func(context.Context, *job.Reporter) error { return nil }, "machine:web").ID)
	}
}

func TestKilledProcess(t *testing.T) {
	dir := t.TempDir()
	cmd := exec.CommandContext(t.Context(), os.Args[0], "-test.run=^TestVictim$")
	cmd.Env = append(os.Environ(), "LOCKSTEP_JOB_VICTIM="+dir)
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	var id string
	if _, err := fmt.Fscanln(out, &id); err != nil {
		t.Fatal(err)
	}
	locks := filepath.Join(dir, "locks")
	r := job.NewRunner(job.Options{Store: store(t, filepath.Join(dir, "catalog.db")), Locks: job.NewLocks(locks)})

	// While the other process lives, its job is left alone and its key is held.
	if n, err := r.Recover(t.Context()); n != 0 || err != nil {
		t.Errorf("recovered %d, %v", n, err)
	}
	if err := r.Cancel(t.Context(), id); !errors.Is(err, job.ErrElsewhere) {
		t.Errorf("cancel: %v", err)
	}
	_, err = r.Start(t.Context(), "backup", func(context.Context, *job.Reporter) error { return nil }, "machine:web")
	var busy *job.BusyError
	if !errors.As(err, &busy) || !strings.Contains(busy.Holder, fmt.Sprint("process ", cmd.Process.Pid)) {
		t.Errorf("start: %v", err)
	}

	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = cmd.Wait() // killed, as it should be
	if n, err := r.Recover(t.Context()); n != 1 || err != nil {
		t.Errorf("recovered %d, %v", n, err)
	}
	if n, err := r.Recover(t.Context()); n != 0 || err != nil {
		t.Errorf("recovered again %d, %v", n, err)
	}
	j, err := r.Get(t.Context(), id)
	if err != nil || j.State != job.Failed || !strings.Contains(j.Error, "interrupted") || j.Ended.IsZero() {
		t.Errorf("%+v, %v", j, err)
	}
	es := events(t, r, id, 0)
	if len(es) != 2 || es[0].Message != "at work" || es[1].Kind != job.KindDone {
		t.Errorf("%+v", es)
	}
	wait(t, r, start(t, r, func(context.Context, *job.Reporter) error { return nil }, "machine:web").ID)
}

func TestVictim(t *testing.T) {
	dir := os.Getenv("LOCKSTEP_JOB_VICTIM")
	if dir == "" {
		t.Skip("runs as the child of TestKilledProcess")
	}
	r := job.NewRunner(job.Options{
		Store: store(t, filepath.Join(dir, "catalog.db")), Locks: job.NewLocks(filepath.Join(dir, "locks")),
	})
	j := start(t, r, func(ctx context.Context, p *job.Reporter) error {
		p.Message("at work")
		fmt.Println(p.Job())
		<-ctx.Done()
		return nil
	}, "machine:web")
	wait(t, r, j.ID)
}

// A store that fails stops a job from starting, for nobody could look it up,
// but not one that runs.
type brokenStore struct {
	job.Store
	broken atomic.Bool
}

var errStore = errors.New("disk is full")

func (s *brokenStore) PutJob(ctx context.Context, id, kind, state string, created, ended time.Time, doc []byte) error {
	if s.broken.Load() {
		return errStore
	}
	return s.Store.PutJob(ctx, id, kind, state, created, ended, doc)
}

func (s *brokenStore) PutJobEvent(ctx context.Context, id string, n int, at time.Time, doc []byte) error {
	if s.broken.Load() {
		return errStore
	}
	return s.Store.PutJobEvent(ctx, id, n, at, doc)
}

func TestStoreFails(t *testing.T) {
	s := &brokenStore{Store: store(t, filepath.Join(t.TempDir(), "catalog.db"))}
	r := job.NewRunner(job.Options{Store: s})
	j := start(t, r, func(_ context.Context, p *job.Reporter) error {
		s.broken.Store(true)
		p.Message("said to who listens")
		return nil
	})
	if j := wait(t, r, j.ID); j.State != job.Succeeded {
		t.Errorf("%+v", j)
	}
	if es := events(t, r, j.ID, 0); len(es) != 2 {
		t.Errorf("%+v", es)
	}
	_, err := r.Start(t.Context(), "backup", func(context.Context, *job.Reporter) error { return nil }, "machine:web")
	if !errors.Is(err, errStore) {
		t.Errorf("started without a store: %v", err)
	}
	s.broken.Store(false)
	wait(t, r, start(t, r, func(context.Context, *job.Reporter) error { return nil }, "machine:web").ID)
}

func TestListNewestFirst(t *testing.T) {
	r, _ := runner(t)
	a := wait(t, r, start(t, r, func(context.Context, *job.Reporter) error { return nil }).ID)
	b := wait(t, r, start(t, r, func(context.Context, *job.Reporter) error { return nil }).ID)
	got, err := r.List(t.Context(), 9)
	if err != nil || len(got) != 2 || got[0].ID != b.ID || got[1].ID != a.ID {
		t.Errorf("%+v, %v", got, err)
	}
}

func TestNilReporter(t *testing.T) {
	var p *job.Reporter
	p.Message("x")
	p.Warning("x")
	p.Progress(job.Progress{})
	if p.Result(1) != nil || p.Job() != "" {
		t.Error("a nil Reporter does something")
	}
}
