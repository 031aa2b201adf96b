package verify

import (
	"context"
	"errors"

	"github.com/lockstep-backup/lockstep/repository"
)

// errDeleted ends the reading of a recovery point that was deleted meanwhile.
var errDeleted = errors.New("recovery point was deleted meanwhile")

// leases are those of the recovery point that is read and of the one before,
// with whose maps it is compared.
type leases struct {
	take      func(ctx context.Context, point string) (release func(), err error)
	last, now func()
}

func (l *leases) next(ctx context.Context, point string) error {
	if l.take == nil {
		return nil
	}
	if l.last != nil {
		l.last()
	}
	l.last, l.now = l.now, nil
	now, err := l.take(ctx, point)
	l.now = now
	return err
}

func (l *leases) end() {
	for _, release := range []func(){l.last, l.now} {
		if release != nil {
			release()
		}
	}
}

// deleted reports whether the log, read anew, deletes a recovery point.
func (v *verifier) deleted(ctx context.Context, p repository.Point) bool {
	deleted, err := v.req.Repository.Deleted(ctx, p.Machine)
	return err == nil && deleted[p.ID]
}

// foundIn records damage of a recovery point: what is missing of one that was
// deleted meanwhile is none.
func (v *verifier) foundIn(ctx context.Context, p repository.Point, err error) error {
	if errors.Is(err, repository.ErrNotFound) && v.deleted(ctx, p) {
		return errDeleted
	}
	return v.found(err, p.ID)
}
