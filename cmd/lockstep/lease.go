package main

import (
	"context"
	"fmt"
	"sync/atomic"

	"github.com/lockstep-backup/lockstep/catalog"
	"github.com/lockstep-backup/lockstep/export"
	"github.com/lockstep-backup/lockstep/job"
	"github.com/lockstep-backup/lockstep/repository"
	"github.com/lockstep-backup/lockstep/server"
)

// leasedPoint is open for reading, and nothing prunes it meanwhile.
type leasedPoint struct {
	*export.Point
	repo    *repository.Repository // that it is read from
	release func()
}

func (p *leasedPoint) Close() error {
	defer p.release()
	return p.Point.Close()
}

// openPoint opens the disks of a recovery point for as long as the process
// lives, in the nearest repository that has it or in the one that is named.
// what says for people who reads it.
func (e *engine) openPoint(ctx context.Context, p catalog.Point, in, what string, note func(format string, args ...any)) (*leasedPoint, error) {
	release, err := server.Lease(ctx, job.NewLocks(e.dir.locks()), p.ID, what)
	if err != nil {
		return nil, err
	}
	// What is found out later, while somebody reads, goes to the log.
	var reading atomic.Bool
	say := func(format string, args ...any) {
		if reading.Load() {
			e.log.Warn(fmt.Sprintf(format, args...))
			return
		}
		note(format, args...)
	}
	repo, m, rest, err := server.FindNearest(ctx, places{e}, p, in, say)
	var point *export.Point
	if err == nil {
		point, err = export.Open(context.WithoutCancel(ctx), repo, m, export.Options{Elsewhere: rest, Borrowed: func(disk string, why error) {
			e.log.Warn(fmt.Sprintf("disk %s is damaged in the repository that it is read from; what cannot be read there is taken from another: %v", disk, why))
		}})
	}
	reading.Store(true)
	if err != nil {
		release()
		return nil, err
	}
	return &leasedPoint{point, repo, release}, nil
}
