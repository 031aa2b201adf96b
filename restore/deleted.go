package restore

import (
	"context"
	"errors"
	"fmt"
	"sync"

	"github.com/lockstep-backup/lockstep/repository"
)

// ErrDeleted says that somebody deleted the recovery point while it was read:
// what is missing of it is not damage.
var ErrDeleted = errors.New("recovery point was deleted meanwhile")

// deletions tells data that is gone with its recovery point from data that was
// lost. Its methods are called concurrently.
type deletions struct {
	repo     *repository.Repository
	manifest *repository.Manifest

	mu   sync.Mutex
	last string // object that was missing, and the recovery point was listed
}

// explain gives cause, or ErrDeleted where something was not found and the
// machine's log, read anew, deletes the recovery point.
func (d *deletions) explain(ctx context.Context, cause error) error {
	if !errors.Is(cause, repository.ErrNotFound) {
		return cause
	}
	deleted, err := d.repo.Deleted(ctx, d.manifest.Machine)
	if err != nil || !deleted[d.manifest.Point] {
		return cause
	}
	// It is not wrapped: it would count as damage.
	return fmt.Errorf("%w: %v", ErrDeleted, cause)
}

// stop is ErrDeleted, or nil where a scan may go on beyond damage. Of an object
// with many missing ranges the log is asked once.
func (d *deletions) stop(ctx context.Context, e *repository.DamageError) error {
	if !errors.Is(e, repository.ErrNotFound) {
		return nil
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if e.Object == d.last {
		return nil
	}
	if err := d.explain(ctx, e); errors.Is(err, ErrDeleted) {
		return err
	}
	d.last = e.Object
	return nil
}

// goOn has a scan go on beyond damage, and remember it.
func (d *deletions) goOn(ctx context.Context, l *losses) func(*repository.DamageError) error {
	return func(e *repository.DamageError) error {
		if err := d.stop(ctx, e); err != nil {
			return err
		}
		return l.add(e)
	}
}
