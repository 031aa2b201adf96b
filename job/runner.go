package job

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"runtime"
	"sync"
	"time"
)

const (
	// endedKept bounds the ended jobs that stay in memory; the store has them all.
	endedKept = 64
	// storeTime bounds what is written after a job's own context has ended.
	storeTime = 30 * time.Second
	// interruptedSkip goes beyond any number that progress, which is not kept,
	// can have reached: ten a second for a day and more.
	interruptedSkip = 1 << 20
)

// Options of a Runner.
type Options struct {
	// Store may be nil: then jobs are known while the process lives.
	Store Store
	// Locks may be nil: then only this Runner's own jobs are kept apart.
	Locks *Locks
	// Describe turns a job's error into what Job.Problem carries; may be nil.
	Describe func(error) any
	Log      *slog.Logger
	// Now may be nil.
	Now func() time.Time
}

// Runner runs jobs. It is safe for concurrent use.
type Runner struct {
	o Options

	mu       sync.Mutex
	closed   bool
	jobs     map[string]*execution
	ended    []string // ids, oldest first
	inFlight sync.WaitGroup
}

// NewRunner returns a Runner. Call Recover once before the first Start.
func NewRunner(o Options) *Runner {
	if o.Locks == nil {
		o.Locks = NewLocks("")
	}
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	if o.Now == nil {
		o.Now = time.Now
	}
	return &Runner{o: o, jobs: map[string]*execution{}}
}

// execution is a job of this process.
type execution struct {
	*history
	cancel context.CancelCauseFunc
}

// Start runs fn as a job and returns at once. The job outlives ctx, of which
// only the values are used; Cancel and Shutdown end it. It holds the keys
// while it runs: a *BusyError where one is held already.
func (r *Runner) Start(ctx context.Context, kind string, fn func(context.Context, *Reporter) error, keys ...string) (Job, error) {
	var id [16]byte
	rand.Read(id[:])
	j := Job{ID: hex.EncodeToString(id[:]), Kind: kind, State: Running, Created: r.now()}

	r.mu.Lock()
	if r.closed {
		r.mu.Unlock()
		return Job{}, fmt.Errorf("start %s: %w", kind, ErrShutdown)
	}
	r.inFlight.Add(1)
	r.mu.Unlock()

	release, err := r.hold(kind, j.ID, keys)
	if err != nil {
		r.inFlight.Done()
		return Job{}, fmt.Errorf("start %s: %w", kind, err)
	}
	if err := r.save(ctx, j); err != nil {
		release()
		r.inFlight.Done()
		return Job{}, fmt.Errorf("start %s: %w", kind, err)
	}
	run, cancel := context.WithCancelCause(context.WithoutCancel(ctx))
	e := &execution{history: newHistory(j), cancel: cancel}
	r.mu.Lock()
	r.jobs[j.ID] = e
	if r.closed {
		cancel(ErrShutdown)
	}
	r.mu.Unlock()
	go func() {
		defer r.inFlight.Done()
		defer cancel(nil)
		r.run(run, e, release, fn)
	}()
	return j, nil
}

// hold takes the keys and the lock that shows others that the job lives.
func (r *Runner) hold(kind, id string, keys []string) (release func(), err error) {
	var releases []func()
	release = func() {
		for i := len(releases) - 1; i >= 0; i-- {
			releases[i]()
		}
	}
	for _, key := range keys {
		k, err := r.o.Locks.Acquire(key, kind)
		if err != nil {
			release()
			return nil, err
		}
		releases = append(releases, k.Release)
	}
	stop, err := r.o.Locks.startPulse(id)
	if err != nil {
		release()
		return nil, err
	}
	releases = append(releases, stop)
	return release, nil
}

func (r *Runner) run(ctx context.Context, e *execution, release func(), fn func(context.Context, *Reporter) error) {
	rep := &Reporter{r: r, e: e}
	err := r.call(ctx, e, rep, fn)
	rep.flush()

	after, cancel := context.WithTimeout(context.WithoutCancel(ctx), storeTime)
	defer cancel()
	j := e.job()
	j.Ended = r.now()
	cause := context.Cause(ctx)
	switch {
	case err == nil:
		j.State = Succeeded
	case cause != nil && !errors.Is(err, ErrPanicked):
		j.State = Canceled
		if !errors.Is(err, cause) {
			err = fmt.Errorf("%w: %w", cause, err)
		}
	default:
		j.State = Failed
	}
	message := ""
	if err != nil {
		message = err.Error()
		j.Error = message
		j.Problem = r.describe(err)
	}
	done := e.next(Event{Time: j.Ended, Kind: KindDone, Message: message})
	// First the store, then the keys, then who waits: whoever saw the end can
	// look it up, and start the same again.
	lost := r.saveEvent(after, j.ID, done)
	if err := r.save(after, j); err != nil {
		r.o.Log.Error("record end of job", "job", j.ID, "err", err)
	} else if lost != nil {
		// The store may be another than at the start: the job made it anew.
		if err := r.saveEvent(after, j.ID, done); err != nil {
			r.o.Log.Error("record end of job", "job", j.ID, "err", err)
		}
	}
	release()
	e.end(j, done)
	r.forgetOld(j.ID)
}

// call calls fn and turns a panic into an error that carries nothing of the
// panic's value, which may hold a secret; only the runtime's own errors
// (index out of range, nil dereference) say themselves.
func (r *Runner) call(ctx context.Context, e *execution, rep *Reporter, fn func(context.Context, *Reporter) error) (err error) {
	returned := false
	done := make(chan struct{})
	// A goroutine of its own, so that runtime.Goexit in fn ends only that one.
	go func() {
		defer close(done)
		defer func() {
			if returned {
				return
			}
			v := recover()
			what := fmt.Sprintf("%T", v)
			if re, ok := v.(runtime.Error); ok {
				what = re.Error()
			}
			if v == nil {
				what = "it left without returning"
			}
			err = fmt.Errorf("%w in job: %s", ErrPanicked, what)
			r.o.Log.Error("job panicked", "job", e.job().ID, "what", what, "stack", callers())
		}()
		err = fn(ctx, rep)
		returned = true
	}()
	<-done
	return err
}

// callers names the functions and lines of the stack, without arguments.
func callers() []string {
	pc := make([]uintptr, 32)
	frames := runtime.CallersFrames(pc[:runtime.Callers(3, pc)])
	var out []string
	for {
		f, more := frames.Next()
		out = append(out, fmt.Sprintf("%s:%d", f.Function, f.Line))
		if !more {
			return out
		}
	}
}

func (r *Runner) describe(err error) json.RawMessage {
	if r.o.Describe == nil {
		return nil
	}
	doc, jerr := json.Marshal(r.o.Describe(err))
	if jerr != nil {
		r.o.Log.Error("describe error of job", "err", jerr)
		return nil
	}
	return doc
}

func (r *Runner) now() time.Time { return r.o.Now().UTC() }

func (r *Runner) save(ctx context.Context, j Job) error {
	if r.o.Store == nil {
		return nil
	}
	doc, err := json.Marshal(j)
	if err != nil {
		return err
	}
	return r.o.Store.PutJob(ctx, j.ID, j.Kind, string(j.State), j.Created, j.Ended, doc)
}

func (r *Runner) saveEvent(ctx context.Context, id string, e Event) error {
	if r.o.Store == nil {
		return nil
	}
	doc, err := json.Marshal(e)
	if err != nil {
		return err
	}
	return r.o.Store.PutJobEvent(ctx, id, e.N, e.Time, doc)
}

func (r *Runner) forgetOld(id string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.ended = append(r.ended, id)
	for len(r.ended) > endedKept {
		delete(r.jobs, r.ended[0])
		r.ended = r.ended[1:]
	}
}

func (r *Runner) mine(id string) *execution {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.jobs[id]
}

// Get returns a job of this process or of the store; ErrNotFound.
func (r *Runner) Get(ctx context.Context, id string) (Job, error) {
	if e := r.mine(id); e != nil {
		return e.job(), nil
	}
	if r.o.Store == nil {
		return Job{}, fmt.Errorf("find job %s: %w", id, ErrNotFound)
	}
	doc, err := r.o.Store.GetJob(ctx, id)
	if err != nil {
		return Job{}, fmt.Errorf("find job %s: %w", id, err)
	}
	if doc == nil {
		return Job{}, fmt.Errorf("find job %s: %w", id, ErrNotFound)
	}
	var j Job
	if err := json.Unmarshal(doc, &j); err != nil {
		return Job{}, fmt.Errorf("find job %s: %w", id, err)
	}
	return j, nil
}

// List returns the jobs of the store, newest first; without a store, those of
// this process in no order.
func (r *Runner) List(ctx context.Context, limit int) ([]Job, error) {
	if r.o.Store == nil {
		r.mu.Lock()
		defer r.mu.Unlock()
		var out []Job
		for _, e := range r.jobs {
			if len(out) < limit {
				out = append(out, e.job())
			}
		}
		return out, nil
	}
	return r.stored(ctx, nil, limit)
}

func (r *Runner) stored(ctx context.Context, states []string, limit int) ([]Job, error) {
	docs, err := r.o.Store.JobDocs(ctx, states, limit)
	if err != nil {
		return nil, fmt.Errorf("list jobs: %w", err)
	}
	out := make([]Job, len(docs))
	for i, doc := range docs {
		if err := json.Unmarshal(doc, &out[i]); err != nil {
			return nil, fmt.Errorf("list jobs: %w", err)
		}
		// What this process runs it knows better.
		if e := r.mine(out[i].ID); e != nil {
			out[i] = e.job()
		}
	}
	return out, nil
}

// Cancel asks a job to stop and does not wait for it. ErrNotFound, ErrEnded, ErrElsewhere.
func (r *Runner) Cancel(ctx context.Context, id string) error {
	if e := r.mine(id); e != nil {
		if e.job().State.Ended() {
			return fmt.Errorf("cancel job %s: %w", id, ErrEnded)
		}
		e.cancel(ErrCanceled)
		return nil
	}
	j, err := r.Get(ctx, id)
	switch {
	case err != nil:
		return err
	case j.State.Ended():
		return fmt.Errorf("cancel job %s: %w", id, ErrEnded)
	default:
		return fmt.Errorf("cancel job %s: %w", id, ErrElsewhere)
	}
}

// Wait returns the job when it has ended, or with ctx's error as it is then.
func (r *Runner) Wait(ctx context.Context, id string) (Job, error) {
	for _, err := range r.Events(ctx, id, 0) {
		if err != nil {
			return Job{}, err
		}
	}
	return r.Get(ctx, id)
}

// Shutdown lets no job start any more, cancels those that run, and waits until
// they have ended, or ctx has.
func (r *Runner) Shutdown(ctx context.Context) error {
	r.mu.Lock()
	r.closed = true
	for _, e := range r.jobs {
		e.cancel(ErrShutdown)
	}
	r.mu.Unlock()
	idle := make(chan struct{})
	go func() {
		r.inFlight.Wait()
		close(idle)
	}()
	select {
	case <-idle:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("shut down: jobs are still running: %w", ctx.Err())
	}
}

// Recover marks the stored jobs that no process runs any more as failed, and
// says how many there were. Without a folder for locks all unfinished jobs of
// other Runners count as such.
func (r *Runner) Recover(ctx context.Context) (int, error) {
	if r.o.Store == nil {
		return 0, nil
	}
	open, err := r.stored(ctx, []string{string(Queued), string(Running)}, 1<<20)
	if err != nil {
		return 0, err
	}
	n := 0
	for _, j := range open {
		marked, err := r.recoverOne(ctx, j.ID)
		if err != nil {
			return n, fmt.Errorf("recover job %s: %w", j.ID, err)
		}
		if marked {
			n++
		}
	}
	return n, nil
}

func (r *Runner) recoverOne(ctx context.Context, id string) (bool, error) {
	if r.mine(id) != nil {
		return false, nil
	}
	alive, err := r.o.Locks.alive(id)
	if err != nil || alive {
		return false, err
	}
	// It may have ended between being listed and being found without a lock.
	j, err := r.Get(ctx, id)
	if err != nil || j.State.Ended() {
		return false, err
	}
	last := 0
	for {
		docs, err := r.o.Store.JobEventDocs(ctx, id, last, 500)
		if err != nil {
			return false, err
		}
		if len(docs) == 0 {
			break
		}
		var e Event
		if err := json.Unmarshal(docs[len(docs)-1], &e); err != nil {
			return false, err
		}
		last = e.N
	}
	j.State, j.Ended, j.Error, j.Problem = Failed, r.now(), ErrStopped.Error(), r.describe(ErrStopped)
	e := Event{N: last + interruptedSkip, Time: j.Ended, Kind: KindDone, Message: j.Error}
	if err := r.saveEvent(ctx, id, e); err != nil {
		return false, err
	}
	if err := r.save(ctx, j); err != nil {
		return false, err
	}
	r.o.Log.Info("job was interrupted", "job", id, "kind", j.Kind)
	return true, nil
}
