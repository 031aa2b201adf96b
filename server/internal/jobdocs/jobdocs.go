// Package jobdocs keeps jobs and their events in the catalog. It knows nothing
// of what they are: they are documents to it. Its invariant: without a catalog
// jobs run all the same, and are remembered by nobody.
package jobdocs

import (
	"context"
	"errors"
	"time"

	"github.com/lockstep-backup/lockstep/catalog"
)

// Store keeps jobs in the catalog where there is one: a catalog that is
// gone must not keep the job from running that rebuilds it.
type Store struct {
	Catalog func(context.Context) (*catalog.Catalog, error)
}

func (j Store) jobs(ctx context.Context) catalog.Jobs {
	c, err := j.Catalog(ctx)
	if err != nil {
		return nil
	}
	return c.Jobs
}

// PutJob keeps what a job is.
func (j Store) PutJob(ctx context.Context, id, kind, state string, created, ended time.Time, doc []byte) error {
	if c := j.jobs(ctx); c != nil {
		return c.PutJob(ctx, id, kind, state, created, ended, doc)
	}
	return nil
}

// GetJob gives it back; nil where nobody knows it.
func (j Store) GetJob(ctx context.Context, id string) ([]byte, error) {
	if c := j.jobs(ctx); c != nil {
		return c.GetJob(ctx, id)
	}
	return nil, nil
}

// JobDocs lists jobs in one of the states, the newest first.
func (j Store) JobDocs(ctx context.Context, states []string, limit int) ([][]byte, error) {
	if c := j.jobs(ctx); c != nil {
		return c.JobDocs(ctx, states, limit)
	}
	return nil, nil
}

// PutJobEvent keeps an event of a job.
func (j Store) PutJobEvent(ctx context.Context, id string, n int, at time.Time, doc []byte) error {
	c := j.jobs(ctx)
	if c == nil {
		return nil
	}
	err := c.PutJobEvent(ctx, id, n, at, doc)
	if errors.Is(err, catalog.ErrNotFound) {
		// The job began before the catalog was made anew; who follows it has its
		// events from memory.
		return nil
	}
	return err
}

// JobEventDocs lists the events of a job behind one.
func (j Store) JobEventDocs(ctx context.Context, id string, after, limit int) ([][]byte, error) {
	if c := j.jobs(ctx); c != nil {
		return c.JobEventDocs(ctx, id, after, limit)
	}
	return nil, nil
}
