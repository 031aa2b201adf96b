package prune

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/lockstep-backup/lockstep/catalog"
)

// Deletion is what came of deleting recovery points.
type Deletion struct {
	Deleted  []string // in the repository; with their holds released, or still elsewhere
	Released int      // holds
	// InUse are those that somebody reads: nothing was done to them.
	InUse map[string]*InUseError
	Elsewhere
}

// Elsewhere is what other repositories list of recovery points. What cannot be
// asked counts as having what it is known to have had.
type Elsewhere struct {
	In       map[string][]string // names of repositories, by recovery point; of those that are elsewhere
	Problems []string            // what could not be asked, and what it counts as, in words
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

// Delete takes recovery points of one machine off the repository's list. The
// repository goes first: what it does not list is not there. Of those that no
// other repository lists either, the holds are released, for nothing needs the
// secrets any more, and then the catalog is told; the others stay in the
// catalog and keep their holds. Each is recorded as begun before, and with its
// outcome after. One that the repository does not list any more is finished: it
// was begun before. One that somebody reads is left alone. Of d it uses
// Repository, Catalog, Elsewhere, Release, Claim, Begin, Done and Now.
func Delete(ctx context.Context, d Deps, points []catalog.Point, reason func(catalog.Point) string) (out Deletion, err error) {
	out.In, out.InUse = map[string][]string{}, map[string]*InUseError{}
	points, let, err := claim(d, points, out.InUse)
	defer func() { let() }()
	if len(points) == 0 || err != nil {
		return out, err
	}
	byID := map[string]catalog.Point{}
	var ids []string
	for _, p := range points {
		byID[p.ID] = p
		ids = append(ids, p.ID)
	}
	var begun []catalog.Point
	var refused error
	deleted, err := d.Repository.DeleteAll(ctx, points[0].Machine, ids, func(id string) (string, error) {
		p := byID[id]
		if err := d.Begin(ctx, p, reason(p)); err != nil {
			refused = fmt.Errorf("delete recovery point %s: %w", id, err)
			return "", refused
		}
		begun = append(begun, p)
		return reason(p), nil
	})
	let() // what the log has deleted nobody begins to read
	gone := begun
	if n := len(begun); err != nil && refused == nil && n > 0 && !slices.Contains(deleted, begun[n-1].ID) {
		// The last one that was begun is what failed, or was not there.
		gone = begun[:n-1]
		err = errors.Join(err, d.Done(ctx, begun[n-1], reason(begun[n-1]), err))
	}
	if len(gone) == 0 {
		return out, err
	}
	// From here on they are gone: finish, whoever hangs up.
	ctx = context.WithoutCancel(ctx)
	if herr := finish(ctx, d, gone, &out); herr != nil {
		half := &HalfDoneError{Err: herr}
		errs := []error{half, err}
		for _, p := range gone {
			half.Points = append(half.Points, p.ID)
			errs = append(errs, d.Done(ctx, p, reason(p), half))
		}
		return out, errors.Join(errs...)
	}
	errs := []error{err}
	for _, p := range gone {
		var err error
		if len(out.In[p.ID]) == 0 {
			err = d.Catalog.Points.Delete(ctx, p.ID, d.Now().UTC(), reason(p))
		}
		if err == nil {
			out.Deleted = append(out.Deleted, p.ID)
		}
		errs = append(errs, err, d.Done(ctx, p, reason(p), err))
	}
	return out, errors.Join(errs...)
}

// claim keeps readers off recovery points, and gives those that nobody reads.
// let, which may be called twice, lets readers come again.
func claim(d Deps, points []catalog.Point, used map[string]*InUseError) (free []catalog.Point, let func(), err error) {
	var claimed []func()
	let = func() {
		for _, done := range claimed {
			done()
		}
		claimed = nil
	}
	if d.Claim == nil {
		return points, let, nil
	}
	for _, p := range points {
		done, err := d.Claim(p.ID)
		var e *InUseError
		if errors.As(err, &e) {
			used[p.ID] = e
			continue
		}
		if err != nil {
			return nil, let, err
		}
		free, claimed = append(free, p), append(claimed, done)
	}
	return free, let, nil
}

// finish asks where else they are, and releases the holds of those that are
// nowhere any more.
func finish(ctx context.Context, d Deps, gone []catalog.Point, out *Deletion) error {
	if d.Elsewhere != nil {
		var ids []string
		for _, p := range gone {
			ids = append(ids, p.ID)
		}
		found, err := d.Elsewhere(ctx, gone[0].Machine, ids)
		if err != nil {
			return err
		}
		out.Elsewhere = found
	}
	free := slices.DeleteFunc(slices.Clone(gone), func(p catalog.Point) bool { return len(out.In[p.ID]) > 0 })
	if len(free) == 0 {
		return nil
	}
	var err error
	out.Released, err = d.Release(ctx, free...)
	return err
}
