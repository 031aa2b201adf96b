package catalog

import (
	"context"
	"time"
)

// Jobs keeps jobs and their events as documents that package job writes and
// reads; it is a job.Store.
type Jobs interface {
	// PutJob adds the job or replaces the one with its id. ended is zero while it has not.
	PutJob(ctx context.Context, id, kind, state string, created, ended time.Time, doc []byte) error
	// GetJob returns nil where there is none.
	GetJob(ctx context.Context, id string) (doc []byte, err error)
	// JobDocs returns at most limit jobs in one of the states (none named: all), newest first.
	JobDocs(ctx context.Context, states []string, limit int) ([][]byte, error)
	// PutJobEvent adds event n of a job; the same n again changes nothing.
	PutJobEvent(ctx context.Context, id string, n int, at time.Time, doc []byte) error
	// JobEventDocs returns at most limit events behind number after, in order.
	JobEventDocs(ctx context.Context, id string, after, limit int) ([][]byte, error)
	// TrimJobs deletes jobs, with their events, that ended before t.
	TrimJobs(ctx context.Context, t time.Time) error
}
