package verify

import (
	"context"
	"errors"
	"fmt"
	"sync"

	"golang.org/x/sync/errgroup"

	"github.com/lockstep-backup/lockstep/repository"
	"github.com/lockstep-backup/lockstep/store"
)

// readers is how many objects are read at the same time.
const readers = 4

// Stored reads every object of a store and compares shapes and checksums
// (CRC-32C). It needs no key, so it tells what rotted or was cut off from what
// is as it was written, but not what somebody made on purpose, and it does not
// know what should be there. An error is about not being able to look.
func Stored(ctx context.Context, st store.Store, progress func(phase string, done, total int64)) (Result, error) {
	ctx = store.Uncached(ctx)
	v := &verifier{req: Request{Progress: progress}}
	var mu sync.Mutex
	group, gctx := errgroup.WithContext(ctx)
	group.SetLimit(readers)
	err := st.List(gctx, "", func(i store.Info) error {
		if err := gctx.Err(); err != nil {
			return err
		}
		group.Go(func() error {
			err := repository.CheckStored(gctx, st, i.Key)
			if errors.Is(err, repository.ErrNotFound) {
				return nil // it was deleted since it was listed
			}
			if err := v.found(err); err != nil {
				return err
			}
			mu.Lock()
			defer mu.Unlock()
			v.res.Objects++
			v.res.Read += i.Size
			v.progress("content", v.res.Read, 0)
			return nil
		})
		return nil
	})
	// What stopped the group is why listing ended, too.
	if werr := group.Wait(); werr != nil {
		err = werr
	}
	if err == nil && v.res.Objects == 0 && len(v.res.Damage) == 0 {
		err = fmt.Errorf("there is no object in it: %w", repository.ErrNotFound)
	}
	if err != nil {
		err = fmt.Errorf("verify what is stored: %w", err)
	}
	return v.res, err
}
