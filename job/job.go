// Package job runs long work: queue, attempt, progress. One job is one
// execution of an intent; its events can be followed while it runs.
package job

import "time"

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

// Progress is how far a job is.
type Progress struct {
	Phase string `json:"phase"` // "scan", "prove", "write", …
	Done  int64  `json:"done"`  // bytes or things
	Total int64  `json:"total"` // 0 = not known
	Unit  string `json:"unit"`  // "bytes", "points", …
	Note  string `json:"note,omitempty"`
}

// Event is one thing that happened in a job; N counts from 1 without gaps.
type Event struct {
	N        int       `json:"n"`
	Time     time.Time `json:"time"`
	Kind     string    `json:"kind"` // "progress", "message", "warning", "done"
	Message  string    `json:"message,omitempty"`
	Progress *Progress `json:"progress,omitempty"`
}
