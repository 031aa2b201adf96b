package prune

import (
	"context"
	"errors"
	"fmt"

	"github.com/lockstep-backup/lockstep/catalog"
	"github.com/lockstep-backup/lockstep/repository"
)

// Deletion is what came of deleting recovery points.
type Deletion struct {
	Deleted  []string // in the repository, with their holds released
	Released int      // holds
}

// HalfDoneError says that recovery points are off the repository's list, and
// that something of the rest is still to be done.
type HalfDoneError struct {
	Points []string
	Err    error
}

func (e *HalfDoneError) Error() string {
	return fmt.Sprintf("deleted, but not all of its holds are released: %v", e.Err)
}

// Unwrap gives the cause.
func (e *HalfDoneError) Unwrap() error { return e.Err }

// Hint says what to do, in one sentence.
func (e *HalfDoneError) Hint() string { return "the same command again does the rest" }

// Delete takes recovery points off the list. The repository goes first: what it
// does not list is not there. Then their holds are released, for nothing needs
// the secrets any more, and then the catalog is told. Each is recorded as begun
// before, and with its outcome after. One that the repository does not list any
// more is finished: it was begun before. Of d it uses Repository, Catalog,
// Release, Begin, Done and Now.
func Delete(ctx context.Context, d Deps, points []catalog.Point, reason func(catalog.Point) string) (out Deletion, err error) {
	var gone []catalog.Point
	for _, p := range points {
		if err = ctx.Err(); err != nil {
			break
		}
		if err = d.Begin(ctx, p, reason(p)); err != nil {
			err = fmt.Errorf("delete recovery point %s: %w", p.ID, err)
			break
		}
		err = d.Repository.Delete(ctx, p.Machine, p.ID, reason(p))
		if err != nil && !errors.Is(err, repository.ErrNotFound) {
			err = errors.Join(err, d.Done(ctx, p, reason(p), err))
			break
		}
		err = nil
		gone = append(gone, p)
	}
	if len(gone) == 0 {
		return out, err
	}
	// From here on they are gone: finish, whoever hangs up.
	ctx = context.WithoutCancel(ctx)
	released, rerr := d.Release(ctx, gone...)
	out.Released = released
	if rerr != nil {
		half := &HalfDoneError{Err: rerr}
		errs := []error{half, err}
		for _, p := range gone {
			half.Points = append(half.Points, p.ID)
			errs = append(errs, d.Done(ctx, p, reason(p), half))
		}
		return out, errors.Join(errs...)
	}
	errs := []error{err}
	for _, p := range gone {
		err := d.Catalog.Points.Delete(ctx, p.ID, d.Now().UTC(), reason(p))
		if err == nil {
			out.Deleted = append(out.Deleted, p.ID)
		}
		errs = append(errs, err, d.Done(ctx, p, reason(p), err))
	}
	return out, errors.Join(errs...)
}
