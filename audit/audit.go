// Package audit is the tamper-evident log of everything that matters: every
// backup, proof, release, refusal, change.
package audit

import "time"

// Event is one entry. It never holds a secret.
type Event struct {
	Time    time.Time         `json:"time"`
	Actor   string            `json:"actor"`            // "uid:0", a user's name, "system"
	Action  string            `json:"action"`           // "machine.backup", "secret.release", "secret.destroy", …
	Object  string            `json:"object"`           // what it was done to: a machine, point, secret ref
	Outcome string            `json:"outcome"`          // "begun", "done", "refused", "failed"
	Reason  string            `json:"reason,omitempty"` // given by the user, or why it was refused
	Detail  map[string]string `json:"detail,omitempty"`
}

// Outcomes. Begun is what is about to be done: an entry of how it ended
// follows, unless the process died or the log could not be written any more.
const (
	Begun   = "begun"
	Done    = "done"
	Refused = "refused"
	Failed  = "failed"
)
