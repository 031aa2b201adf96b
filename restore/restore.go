// Package restore writes disks of a recovery point back, still encrypted. Its
// core needs no catalog, no server and no key manager: lockstep-recover links
// it alone. Nothing reaches a target that was not verified before;
// zeroes do where data is damaged, if that is asked for.
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

// Target is where one disk goes, or a part of one.
type Target struct {
	Disk string
	Part disk.Range // of the disk; zero length: all of it
	// Extents are the part's bytes in its order, where they are not just Part: a logical volume's.
	Extents []disk.Range
	Target  string
}

// Request asks for disks of one recovery point.
type Request struct {
	Repository *repository.Repository
	Manifest   *repository.Manifest
	Targets    []Target
	Open       func(ctx context.Context, spec string, size int64, o target.Options) (target.Disk, error)
	Options    target.Options
	// KeepGoing writes zeroes where stored data is damaged; Disk.Damaged says where.
	KeepGoing bool
	Progress  func(phase string, done, total int64)
	// Elsewhere gives other repositories that have the recovery point, when
	// something cannot be read in the first; nil: there are none.
	Elsewhere func() []*repository.Repository
}

// Disk is one disk that was written.
type Disk struct {
	ID          string
	Part        disk.Range // as asked for
	Target      string
	Size        int64        // of the disk, or of the part
	Written     int64        // bytes of data; the rest was left or made zero
	Beyond      int64        // bytes that the target has beyond that, where it is larger; they are as they were
	ContentRoot string       // of the whole disk
	Unread      []disk.Range // never were in the recovery point
	Damaged     []Damaged    // zeroes in the target, by offset; only with KeepGoing
	Borrowed    int64        // bytes that could not be read in the first repository, and were taken from another
	BorrowedFor error        // why, of the first of them
	Seconds     float64
}

// Run writes the disks. Every target is opened, and so checked, before
// anything is written to the first. An error leaves no new half-written file.
func Run(ctx context.Context, req Request) (done []Disk, err error) {
	type job struct {
		disk   repository.Disk
		list   []disk.Range
		size   int64
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
		list, size, err := pieces(d, t.Part, t.Extents)
		if err != nil {
			return nil, fmt.Errorf("restore %s: %w", req.Manifest.Point, err)
		}
		name := fmt.Sprintf("%s %+v", t.Disk, list)
		if seen[name] || seen["to "+t.Target] {
			return nil, fmt.Errorf("restore %s: disk %s or its target is named twice: %w", req.Manifest.Point, t.Disk, target.ErrNotNamed)
		}
		seen[name], seen["to "+t.Target] = true, true
		r, err := req.Repository.OpenDisk(ctx, req.Manifest.Machine, d)
		if err != nil {
			return nil, fmt.Errorf("restore %s: %w", req.Manifest.Point, err)
		}
		total += size
		jobs = append(jobs, job{disk: d, list: list, size: size, reader: r, spec: t.Target})
	}
	for i := range jobs {
		if jobs[i].target, err = req.Open(ctx, jobs[i].spec, jobs[i].size, req.Options); err != nil {
			return nil, fmt.Errorf("restore disk %s to %s: %w", jobs[i].disk.ID, jobs[i].spec, err)
		}
	}
	gone := deletions{repo: req.Repository, manifest: req.Manifest}
	var before int64
	for i := range jobs {
		j := &jobs[i]
		start := time.Now()
		var written atomic.Int64
		o := repository.ScanOptions{
			Data: func(off int64, p []byte) error {
				written.Add(int64(len(p)))
				_, err := j.target.WriteAt(p, off)
				return err
			},
			Zero: j.target.Zero,
			Progress: func(n, _ int64) {
				if req.Progress != nil {
					req.Progress("write", before+min(n, j.size), total)
				}
			},
		}
		var from borrowed
		from.lend(ctx, &o, req.Elsewhere, req.Manifest, j.disk)
		var lost losses
		if req.KeepGoing {
			o.Damaged = gone.goOn(ctx, &lost)
		}
		err := scan(ctx, j.reader, j.disk, o, j.list, &lost)
		if err != nil {
			err = gone.explain(ctx, err)
			return done, fmt.Errorf("restore disk %s to %s: %w", j.disk.ID, j.spec, err)
		}
		if err := j.target.Commit(); err != nil {
			return done, fmt.Errorf("restore disk %s to %s: %w", j.disk.ID, j.spec, err)
		}
		beyond := max(j.target.Capacity()-j.size, 0)
		j.target = nil
		before += j.size
		done = append(done, Disk{
			ID: j.disk.ID, Part: req.Targets[i].Part, Target: j.spec, Size: j.size, Written: written.Load(), Beyond: beyond,
			ContentRoot: j.disk.ContentRoot, Unread: unread(j.disk, j.list), Damaged: lost.damaged(), Borrowed: from.bytes, BorrowedFor: from.why, Seconds: time.Since(start).Seconds(),
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
