package catalog

import (
	"context"
	"time"
)

// Policies keeps machines' policies as documents that package policy writes and
// reads. No repository holds them: a rebuild leaves them as they are.
type Policies interface {
	// Put sets the policy of a machine, by its id; "" stands for machines that
	// have none of their own.
	Put(ctx context.Context, machine string, doc []byte) error
	// Get returns nil where none was set.
	Get(ctx context.Context, machine string) (doc []byte, err error)
	// Delete takes a machine's policy away, if it has one.
	Delete(ctx context.Context, machine string) error
}

// Mark is a statement that keeps or names a recovery point, or takes that back;
// see package custody for what it says and which of several counts.
type Mark struct {
	Key      string // of the sidecar, in the store
	Machine  string
	Point    string
	Kind     string
	Name     string
	Value    string
	Set      bool // false takes it back
	Sequence int64
	Reason   string
	Actor    string
	Time     time.Time
}

// Marks are pins, tags and legal holds.
type Marks interface {
	// Put records a mark; once per key.
	Put(ctx context.Context, m Mark) error
	// OfMachine returns all of a machine's, by sequence, time and key, those that
	// take something back too.
	OfMachine(ctx context.Context, machine string) ([]Mark, error)
}
