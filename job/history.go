package job

import (
	"context"
	"encoding/json"
	"fmt"
	"iter"
	"slices"
	"sync"
	"time"
)

const (
	// eventsKept bounds a job's events in memory.
	eventsKept = 1024
	// progressEvery is the least time between two events of progress in one phase.
	progressEvery = 100 * time.Millisecond
	warningsKept  = 100
	pollEvery     = 250 * time.Millisecond
	pageOfEvents  = 256
)

// history is a job of this process and its newest events.
type history struct {
	mu      sync.Mutex
	j       Job
	n       int
	events  []Event
	dropped int // number of the newest event that memory has lost and the store may have
	changed chan struct{}
}

func newHistory(j Job) *history {
	return &history{j: j, changed: make(chan struct{})}
}

func (h *history) job() Job {
	h.mu.Lock()
	defer h.mu.Unlock()
	j := h.j
	j.Warnings = slices.Clone(j.Warnings)
	return j
}

// next numbers an event.
func (h *history) next(e Event) Event {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.n++
	e.N = h.n
	return e
}

// add shows an event to who follows. What a goroutine that outlived its job
// still says is dropped: nothing follows the last event.
func (h *history) add(e Event) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if !h.j.State.Ended() {
		h.append(e)
	}
}

func (h *history) append(e Event) {
	if len(h.events) >= eventsKept {
		// Progress is the first to go: later progress says it better.
		i := slices.IndexFunc(h.events, func(e Event) bool { return e.Kind == KindProgress })
		if i < 0 {
			i = 0
			h.dropped = h.events[0].N
		}
		h.events = slices.Delete(h.events, i, i+1)
	}
	h.events = append(h.events, e)
	close(h.changed)
	h.changed = make(chan struct{})
}

func (h *history) end(j Job, done Event) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.j = j
	h.append(done)
}

// since returns the events behind number after, whether older ones are only in
// the store, whether nothing follows, and what is closed at the next change.
func (h *history) since(after int) (events []Event, lost, ended bool, changed <-chan struct{}) {
	h.mu.Lock()
	defer h.mu.Unlock()
	i, _ := slices.BinarySearchFunc(h.events, after+1, func(e Event, n int) int { return e.N - n })
	return slices.Clone(h.events[i:]), h.dropped > after, h.j.State.Ended(), h.changed
}

// Events yields the job's events behind number after, and follows until the job
// has ended, ctx ends or the loop is left. Events that were long ago are read
// from the store.
func (r *Runner) Events(ctx context.Context, id string, after int) iter.Seq2[Event, error] {
	return func(yield func(Event, error) bool) {
		if e := r.mine(id); e != nil {
			r.follow(ctx, e, after, yield)
			return
		}
		r.poll(ctx, id, after, yield)
	}
}

var closed = func() chan struct{} {
	c := make(chan struct{})
	close(c)
	return c
}()

func (r *Runner) follow(ctx context.Context, e *execution, after int, yield func(Event, error) bool) {
	for {
		events, lost, ended, changed := e.since(after)
		if lost && r.o.Store != nil {
			older, err := r.storedEvents(ctx, e.job().ID, after)
			if err != nil {
				yield(Event{}, err)
				return
			}
			i, _ := slices.BinarySearchFunc(older, events[0].N, func(e Event, n int) int { return e.N - n })
			if i == pageOfEvents { // there is more before those in memory
				events, ended, changed = older, false, closed
			} else {
				events = append(older[:i], events...)
			}
		}
		for _, ev := range events {
			if !yield(ev, nil) {
				return
			}
			after = ev.N
		}
		if ended {
			return
		}
		select {
		case <-changed:
		case <-ctx.Done():
			yield(Event{}, ctx.Err())
			return
		}
	}
}

// poll follows a job of another process through the store.
func (r *Runner) poll(ctx context.Context, id string, after int, yield func(Event, error) bool) {
	tick := time.NewTicker(pollEvery)
	defer tick.Stop()
	for {
		// The state first: what is read then is all there is, if it has ended.
		j, err := r.Get(ctx, id)
		if err != nil {
			yield(Event{}, err)
			return
		}
		for {
			events, err := r.storedEvents(ctx, id, after)
			if err != nil {
				yield(Event{}, err)
				return
			}
			for _, e := range events {
				if !yield(e, nil) {
					return
				}
				after = e.N
			}
			if len(events) < pageOfEvents {
				break
			}
		}
		if j.State.Ended() {
			return
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			yield(Event{}, ctx.Err())
			return
		}
	}
}

// storedEvents returns the next events that the store has.
func (r *Runner) storedEvents(ctx context.Context, id string, after int) ([]Event, error) {
	if r.o.Store == nil {
		return nil, nil
	}
	docs, err := r.o.Store.JobEventDocs(ctx, id, after, pageOfEvents)
	if err != nil {
		return nil, fmt.Errorf("read events of job %s: %w", id, err)
	}
	out := make([]Event, len(docs))
	for i, doc := range docs {
		if err := json.Unmarshal(doc, &out[i]); err != nil {
			return nil, fmt.Errorf("read events of job %s: %w", id, err)
		}
	}
	return out, nil
}

// Reporter is how a job tells what it does. It is safe for concurrent use, and
// a nil Reporter swallows everything. Nothing secret may be given to it.
type Reporter struct {
	r *Runner
	e *execution

	mu      sync.Mutex
	phase   string
	last    time.Time
	pending *Progress
}

// Progress says how far the job is. It may be called as often as one likes:
// about ten events a second come of it, the last of each phase among them.
func (p *Reporter) Progress(now Progress) {
	if p == nil {
		return
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	t := p.r.now()
	if now.Phase != p.phase {
		p.flushLocked(t)
	}
	since := t.Sub(p.last)
	if now.Phase != p.phase || since >= progressEvery || since < 0 {
		p.phase, p.pending = now.Phase, &now
		p.flushLocked(t)
		return
	}
	p.pending = &now
}

// Message tells people something.
func (p *Reporter) Message(format string, args ...any) {
	if p != nil {
		p.say(KindMessage, fmt.Sprintf(format, args...))
	}
}

// Warning tells people something they should act on; it stays with the job.
func (p *Reporter) Warning(format string, args ...any) {
	if p == nil {
		return
	}
	text := fmt.Sprintf(format, args...)
	h := p.e.history
	h.mu.Lock()
	if len(h.j.Warnings) < warningsKept {
		h.j.Warnings = append(h.j.Warnings, text)
	}
	h.mu.Unlock()
	p.say(KindWarning, text)
}

// Result sets what the job came to; the last call counts. It is kept also
// where the job fails.
func (p *Reporter) Result(v any) error {
	if p == nil {
		return nil
	}
	doc, err := json.Marshal(v)
	if err != nil {
		return fmt.Errorf("set result of job: %w", err)
	}
	p.e.mu.Lock()
	defer p.e.mu.Unlock()
	p.e.j.Result = doc
	return nil
}

// Job returns the id of the job, "" for a nil Reporter.
func (p *Reporter) Job() string {
	if p == nil {
		return ""
	}
	return p.e.job().ID
}

func (p *Reporter) say(kind, text string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	now := p.r.now()
	p.flushLocked(now)
	e := p.e.next(Event{Time: now, Kind: kind, Message: text})
	ctx, cancel := context.WithTimeout(context.Background(), storeTime)
	defer cancel()
	if err := p.r.saveEvent(ctx, p.e.job().ID, e); err != nil {
		// The work matters more than its story.
		p.r.o.Log.Error("record event of job", "err", err)
	}
	p.e.add(e)
}

// flush sends progress that was held back.
func (p *Reporter) flush() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.flushLocked(p.r.now())
}

func (p *Reporter) flushLocked(now time.Time) {
	if p.pending == nil {
		return
	}
	e := p.e.next(Event{Time: now, Kind: KindProgress, Progress: p.pending})
	p.pending, p.last = nil, now
	p.e.add(e)
}
