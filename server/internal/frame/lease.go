package frame

import (
	"context"
	"errors"
	"fmt"

	"github.com/lockstep-backup/lockstep/job"
	"github.com/lockstep-backup/lockstep/prune"
)

func pointKey(point string) string { return "point:" + point }

// Lease keeps a recovery point, by its id, from being deleted while somebody of
// this installation reads it; what says for people who. It has to be held before
// the recovery point is looked up in a repository: one that is listed then stays
// listed. The system drops it with the process.
func Lease(ctx context.Context, locks *job.Locks, point, what string) (*job.Lock, error) {
	l, err := locks.Share(ctx, pointKey(point), what)
	if err != nil {
		return nil, fmt.Errorf("read recovery point %s: %w", point, err)
	}
	return l, nil
}

// Lease is Lease with the installation's locks.
func (s *Frame) Lease(ctx context.Context, point, what string) (*job.Lock, error) {
	return Lease(ctx, s.Locks, point, what)
}

// Leases is Lease for who reads one recovery point after the other.
func (s *Frame) Leases(what string) func(ctx context.Context, point string) (release func(), err error) {
	return func(ctx context.Context, point string) (func(), error) {
		l, err := s.Lease(ctx, point, what)
		if err != nil {
			return nil, err
		}
		return l.Release, nil
	}
}

// claim is the other side: it keeps readers off for as long as it takes to
// delete a recovery point.
func (s *Frame) claim(point string) (done func(), err error) {
	l, err := s.Locks.Acquire(pointKey(point), "its deletion")
	var busy *job.BusyError
	if errors.As(err, &busy) {
		return nil, &prune.InUseError{Point: point, Holder: busy.Holder}
	}
	if err != nil {
		return nil, err
	}
	return l.Discard, nil
}
