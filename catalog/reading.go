package catalog

import (
	"context"
	"time"
)

// Reading says since when an object of a repository has not been read back:
// since it was read and found sound the last time or, where it never was, since
// it was seen for the first time.
type Reading struct {
	Key   string // in the store
	Since time.Time
	Never bool // it was seen, and not read since
}

// Readings remember when the objects of repositories were read back. No
// repository holds that; a rebuild leaves it as it is.
type Readings interface {
	// Put records readings of a repository, by its id; all of them or none.
	Put(ctx context.Context, repository string, readings []Reading) error
	// List returns all of a repository, what has not been read for the longest
	// first; that was never read comes before what was read at the same time.
	List(ctx context.Context, repository string) ([]Reading, error)
	// Oldest returns the first of List; ErrNotFound where there is none.
	Oldest(ctx context.Context, repository string) (Reading, error)
	// Forget drops objects that are gone.
	Forget(ctx context.Context, repository string, keys []string) error
}
