package twin

import (
	"context"

	"github.com/lockstep-backup/lockstep/store"
)

// once is a store whose listings of a prefix are made once.
type once struct {
	store.Store
	listed map[string][]store.Info
}

// maxListedOnce bounds what is remembered of a listing; a longer one is made again.
const maxListedOnce = 10000

// ListOnce gives a store that remembers its listings, for one goroutine and one
// operation: opening a repository looks at the same few prefixes for several
// reasons. What is created meanwhile is not seen in them.
func ListOnce(st store.Store) store.Store {
	return &once{Store: st, listed: map[string][]store.Info{}}
}

// Unwrap gives the store beneath.
func (o *once) Unwrap() store.Store { return o.Store }

// List implements store.Store.
func (o *once) List(ctx context.Context, prefix string, fn func(store.Info) error) error {
	all, known := o.listed[prefix]
	if known {
		for _, i := range all {
			if err := fn(i); err != nil {
				return err
			}
		}
		return nil
	}
	n := 0
	err := o.Store.List(ctx, prefix, func(i store.Info) error {
		if n++; n <= maxListedOnce {
			all = append(all, i)
		}
		return fn(i)
	})
	if err == nil && n <= maxListedOnce {
		o.listed[prefix] = all
	}
	return err
}
