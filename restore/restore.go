// Package restore writes disks of a recovery point back, still encrypted. Its
// core needs no catalog, no server and no key manager: lockstep-recover links
// it alone. Nothing reaches a target that was not verified before.
package restore

import (
	"context"
	"errors"
	"fmt"
	"sync/atomic"
	"time"

	"github.com/lockstep-backup/lockstep/disk"
	"github.com/lockstep-backup/lockstep/repository"
	"github.com/lockstep-backup/lockstep/target"
)

// ErrNoDisk says that the recovery point has no such disk.
var ErrNoDisk = errors.New("recovery point has no such disk")

// Target is where one disk goes.
type Target struct {
	Disk   string
	Target string
}

// Request asks for disks of one recovery point.
type Request struct {
	Repository *repository.Repository
	Manifest   *repository.Manifest
	Targets    []Target
	Open       func(ctx context.Context, spec string, size int64, o target.Options) (target.Disk, error)
	Options    target.Options
	Progress   func(phase string, done, total int64)
}

// Disk is one disk that was written.
type Disk struct {
	ID          string
	Target      string
	Size        int64
	Written     int64 // bytes of data; the rest was left or made zero
	ContentRoot string
	Unread      []disk.Range // never were in the recovery point
	Seconds     float64
}

// Run writes the disks. Every target is opened, and so checked, before
// anything is written to the first. An error leaves no new half-written file.
func Run(ctx context.Context, req Request) (done []Disk, err error) {
	type job struct {
		disk   repository.Disk
		reader *repository.DiskReader
		target target.Disk
		spec   string
	}
	var jobs []job
	defer func() {
		for _, j := range jobs {
			if j.target != nil {
				err = errors.Join(err, ignoreDone(j.target.Abort()))
			}
		}
	}()
	seen := map[string]bool{}
	var total int64
	for _, t := range req.Targets {
		d, ok := find(req.Manifest, t.Disk)
		if !ok {
			return nil, fmt.Errorf("restore %s: disk %q: %w", req.Manifest.Point, t.Disk, ErrNoDisk)
		}
		if seen[t.Disk] || seen["to "+t.Target] {
			return nil, fmt.Errorf("restore %s: disk %s or its target is named twice: %w", req.Manifest.Point, t.Disk, target.ErrNotNamed)
		}
		seen[t.Disk], seen["to "+t.Target] = true, true
		r, err := req.Repository.OpenDisk(ctx, req.Manifest.Machine, d)
		if err != nil {
			return nil, fmt.Errorf("restore %s: %w", req.Manifest.Point, err)
		}
		total += d.Size
		jobs = append(jobs, job{disk: d, reader: r, spec: t.Target})
	}
	for i := range jobs {
		if jobs[i].target, err = req.Open(ctx, jobs[i].spec, jobs[i].disk.Size, req.Options); err != nil {
			return nil, fmt.Errorf("restore disk %s to %s: %w", jobs[i].disk.ID, jobs[i].spec, err)
		}
	}
	var before int64
	for i := range jobs {
		j := &jobs[i]
		start := time.Now()
		var written atomic.Int64
		_, err := j.reader.Scan(ctx, repository.ScanOptions{
			Data: func(off int64, p []byte) error {
				written.Add(int64(len(p)))
				_, err := j.target.WriteAt(p, off)
				return err
			},
			Zero: j.target.Zero,
			Progress: func(n, _ int64) {
				if req.Progress != nil {
					req.Progress("write", before+n, total)
				}
			},
		})
		if err != nil {
			return done, fmt.Errorf("restore disk %s to %s: %w", j.disk.ID, j.spec, err)
		}
		if err := j.target.Commit(); err != nil {
			return done, fmt.Errorf("restore disk %s to %s: %w", j.disk.ID, j.spec, err)
		}
		j.target = nil
		before += j.disk.Size
		done = append(done, Disk{
			ID: j.disk.ID, Target: j.spec, Size: j.disk.Size, Written: written.Load(),
			ContentRoot: j.disk.ContentRoot, Unread: j.disk.Unread, Seconds: time.Since(start).Seconds(),
		})
	}
	return done, nil
}

func find(m *repository.Manifest, id string) (repository.Disk, bool) {
	for _, d := range m.Disks {
		if d.ID == id {
			return d, true
		}
	}
	return repository.Disk{}, false
}

// ignoreDone: an abort that fails must be heard of, but not for having
// nothing to do.
func ignoreDone(err error) error {
	if err == nil {
		return nil
	}
	return fmt.Errorf("clean up: %w", err)
}
