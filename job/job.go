// Package job runs long work: it starts it, follows its progress, cancels it,
// and remembers how it ended. One job is one execution of an intent.
//
// It is not a queue and knows nothing of what a job does. Its invariant: a job
// whose process died does not stay "running"; whoever starts next marks it
// failed. And two jobs that name the same key never run at once, whatever
// processes they are in.
package job

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"time"
)

// Errors that callers act on.
var (
	ErrNotFound  = errors.New("no such job")
	ErrBusy      = errors.New("busy")                          // the key is held; a *BusyError says by whom
	ErrEnded     = errors.New("job has ended")                 // too late to cancel
	ErrCanceled  = errors.New("canceled on request")           // cause of the context of a canceled job
	ErrShutdown  = errors.New("lockstep is shutting down")     // cause of the context at shutdown
	ErrPanicked  = errors.New("internal error")                // the job panicked; nothing of the panic's value is kept
	ErrStopped   = errors.New("interrupted: its process died") // what Recover records
	ErrElsewhere = errors.New("job runs in another process")   // it cannot be canceled from here
)

// BusyError says that another job holds a key. errors.Is(err, ErrBusy) holds.
type BusyError struct {
	Key    string // as given, e.g. "machine:web"
	Holder string // for people: which process, since when; may be ""
}

func (e *BusyError) Error() string {
	if e.Holder != "" {
		return fmt.Sprintf("%s is busy (%s)", e.Key, e.Holder)
	}
	return e.Key + " is busy"
}

// Is reports ErrBusy.
func (e *BusyError) Is(target error) bool { return target == ErrBusy }

// State of a job.
type State string

// The states.
const (
	Queued    State = "queued"
	Running   State = "running"
	Succeeded State = "succeeded"
	Failed    State = "failed"
	Canceled  State = "canceled"
)

// Ended reports whether nothing follows the state.
func (s State) Ended() bool { return s == Succeeded || s == Failed || s == Canceled }

// Job is one execution.
type Job struct {
	ID       string    `json:"id"`
	Kind     string    `json:"kind"`
	State    State     `json:"state"`
	Created  time.Time `json:"created"`
	Ended    time.Time `json:"ended,omitzero"`
	Error    string    `json:"error,omitempty"`
	Warnings []string  `json:"warnings,omitempty"` // at most 100; all are events
	// Problem is the error as Options.Describe gave it.
	Problem json.RawMessage `json:"problem,omitempty"`
	// Result is what Reporter.Result was last given.
	Result json.RawMessage `json:"result,omitempty"`
}

// Progress is how far a job is.
type Progress struct {
	Phase string `json:"phase"` // "scan", "prove", "write", …
	Done  int64  `json:"done"`  // bytes or things
	Total int64  `json:"total"` // 0 = not known
	Unit  string `json:"unit"`  // "bytes", "points", …
	Note  string `json:"note,omitempty"`
}

// Kinds of events.
const (
	KindProgress = "progress"
	KindMessage  = "message"
	KindWarning  = "warning"
	KindDone     = "done" // the last; Message is the error, "" where there is none
)

// Event is one thing that happened in a job. N grows; numbers are missing where
// progress was overtaken by later progress.
type Event struct {
	N        int       `json:"n"`
	Time     time.Time `json:"time"`
	Kind     string    `json:"kind"`
	Message  string    `json:"message,omitempty"`
	Progress *Progress `json:"progress,omitempty"`
}

// Store keeps jobs beyond the process, as documents it need not understand.
// Progress is not kept. catalog.Jobs is a Store.
type Store interface {
	// PutJob adds or replaces. ended is zero while the job has not.
	PutJob(ctx context.Context, id, kind, state string, created, ended time.Time, doc []byte) error
	// GetJob returns nil where there is none.
	GetJob(ctx context.Context, id string) (doc []byte, err error)
	// JobDocs returns at most limit jobs in one of the states (none named: all), newest first.
	JobDocs(ctx context.Context, states []string, limit int) ([][]byte, error)
	// PutJobEvent adds event n; the same n again changes nothing.
	PutJobEvent(ctx context.Context, id string, n int, at time.Time, doc []byte) error
	// JobEventDocs returns at most limit events behind number after, in order.
	JobEventDocs(ctx context.Context, id string, after, limit int) ([][]byte, error)
}
