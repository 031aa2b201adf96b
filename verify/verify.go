// Package verify reads back what a repository holds and compares: names,
// checksums, seals, signatures, tags, digests, content roots; all of it, a part,
// what was not read for the longest, or what can be told without any key. It
// changes nothing. What several recovery points share is read once.
package verify

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"reflect"
	"strings"
	"sync"
	"time"

	"github.com/lockstep-backup/lockstep/catalog"
	"github.com/lockstep-backup/lockstep/disk"
	"github.com/lockstep-backup/lockstep/repository"
	"github.com/lockstep-backup/lockstep/repository/format"
	"github.com/lockstep-backup/lockstep/store"
)

// Request says what to verify.
type Request struct {
	Repository *repository.Repository
	Points     []repository.Point // what to read; with All, everything is read instead
	All        bool
	Depth      Depth
	Share      float64 // of the content, for Sample: more than 0, at most 1
	Seed       Seed    // chooses the sample; the same seed chooses the same of what is the same
	// Expected is what somebody outside of the repository, the catalog, knows to
	// be in it: a repository alone cannot tell that its newest entries are gone.
	// It has to be gathered before Run, or what is committed meanwhile is missed.
	Expected []Expected
	// Lease, where it is not nil, keeps a recovery point from being deleted while
	// its content is read.
	Lease func(ctx context.Context, point string) (release func(), err error)
	// Readings, where it is not nil, is told what a verification of all data read.
	Readings catalog.Readings
	Now      func() time.Time // for Readings
	Progress func(phase string, done, total int64)

	pick func(off int64, segments []string) bool // of the content, for damage that is known; nil: as Depth says
}

// Depth says how far a verification goes.
type Depth int

const (
	// Data reads all content.
	Data Depth = iota
	// Structure checks objects, signatures and maps, and of segments that they
	// are there with header and table of contents; it reads no content of disks.
	Structure
	// Sample is Structure, and a random part of the content.
	Sample
)

// Expected is a recovery point that has to be there.
type Expected struct {
	Machine  string // id
	Point    string
	Sequence int64
	Roots    map[string]string // content roots by disk, hex
	// Objects are the keys of statements about it in the store: proofs, packages.
	Objects []string
}

// Result says what was read and what is damaged.
type Result struct {
	Points  int
	Objects int64
	Read    int64 // bytes of disks compared; shared ones count once
	Damage  []Damage
}

// Damage is something that is not as it was stored.
type Damage struct {
	Object  string
	Machine string // id
	Disk    string
	Range   *disk.Range
	Points  []string // recovery points that it touches
	Err     error
}

// maxDamage bounds the list; a store that is gone would fill memory otherwise.
const maxDamage = 10000

// ErrTooMuch ends a verification that found more than can be listed.
var ErrTooMuch = errors.New("more damage than can be listed")

// Run verifies. The error is about not being able to look; what is damaged is
// in the result, which is filled as far as it went in either case.
func Run(ctx context.Context, req Request) (Result, error) {
	ctx = store.Uncached(ctx) // what a cache has says nothing of the store
	v := &verifier{req: req, segments: map[string]segment{}}
	started := time.Time{}
	if req.Now != nil {
		started = req.Now()
	}
	var err error
	if err = v.expected(ctx); err == nil {
		if req.All || len(req.Points) == 0 && len(req.Expected) == 0 {
			err = v.all(ctx)
		} else {
			err = v.points(ctx, req.Points)
		}
	}
	if err == nil && req.All && req.Depth == Data && req.Readings != nil {
		err = v.read(ctx, started)
	}
	v.res.Damage = joined(v.res.Damage)
	if err != nil {
		err = fmt.Errorf("verify: %w", err)
	}
	return v.res, err
}

// read remembers what was read and found sound; what is damaged stays first in
// the row for the next scrub.
func (v *verifier) read(ctx context.Context, at time.Time) error {
	damaged := map[string]bool{}
	for _, d := range v.res.Damage {
		damaged[d.Object] = true
	}
	list := make([]catalog.Reading, 0, len(v.keys))
	for _, key := range v.keys {
		if !damaged[key] {
			list = append(list, catalog.Reading{Key: key, Since: at})
		}
	}
	return v.req.Readings.Put(ctx, v.req.Repository.ID(), list)
}

type verifier struct {
	req  Request
	keys []string // objects, in a verification of all

	mu       sync.Mutex
	res      Result
	segments map[string]segment // whose content is not read, by the original's key
}

func (v *verifier) progress(phase string, done, total int64) {
	if v.req.Progress != nil {
		v.req.Progress(phase, done, total)
	}
}

// found records damage; other errors come back.
func (v *verifier) found(err error, points ...string) error {
	if err == nil {
		return nil
	}
	if joined, ok := err.(interface{ Unwrap() []error }); ok && reflect.TypeOf(err) == joinType {
		for _, e := range joined.Unwrap() {
			if err := v.found(e, points...); err != nil {
				return err
			}
		}
		return nil
	}
	d := Damage{Points: points, Err: err}
	var de *repository.DamageError
	switch {
	case errors.As(err, &de):
		d.Object, d.Machine, d.Disk = de.Object, de.Machine, de.Disk
		if de.Range.Length > 0 {
			r := de.Range
			d.Range = &r
		}
	case errors.Is(err, repository.ErrNotFound), errors.Is(err, repository.ErrUntrusted), errors.Is(err, repository.ErrFormat):
	default:
		return err
	}
	v.mu.Lock()
	defer v.mu.Unlock()
	if len(v.res.Damage) >= maxDamage {
		return ErrTooMuch
	}
	v.res.Damage = append(v.res.Damage, d)
	return nil
}

// joinType is what errors.Join makes: a list of findings, each of which counts.
var joinType = reflect.TypeOf(errors.Join(ErrTooMuch))

// expected compares what has to be there with what is.
func (v *verifier) expected(ctx context.Context) error {
	r := v.req.Repository
	listed := map[string]map[string]repository.Point{} // by machine and recovery point
	missing := map[string][]string{}                   // recovery points by object
	var order []string
	checked := map[string]bool{}
	for _, e := range v.req.Expected {
		if err := ctx.Err(); err != nil {
			return err
		}
		deleted, err := r.CheckCommitted(ctx, e.Machine, e.Point)
		if err := v.found(err, e.Point); err != nil {
			return err
		}
		if deleted || err != nil {
			continue // that the catalog is behind a deletion is no damage
		}
		if err := v.compare(ctx, e, listed); err != nil {
			return err
		}
		for _, key := range e.Objects {
			if checked[key] {
				if missing[key] != nil {
					missing[key] = append(missing[key], e.Point)
				}
				continue
			}
			checked[key] = true
			err := r.CheckObject(ctx, key)
			if errors.Is(err, repository.ErrNotFound) {
				// It may have gone together with its recovery point just now.
				if deleted, derr := r.CheckCommitted(ctx, e.Machine, e.Point); derr == nil && deleted {
					break
				}
				missing[key] = []string{e.Point}
				order = append(order, key)
				continue
			}
			if v.req.All {
				continue // it is among the objects, and damage is found there
			}
			if err := v.found(err, e.Point); err != nil {
				return err
			}
		}
	}
	for _, key := range order {
		err := v.found(&repository.DamageError{Object: key, Machine: machineOf(key), Err: fmt.Errorf(
			"it is in the catalog and not in the repository; 'lockstep prove' makes what can be made again: %w", repository.ErrNotFound)}, missing[key]...)
		if err != nil {
			return err
		}
	}
	return nil
}

// machineOf takes the machine out of an object's key.
func machineOf(key string) string {
	if part := strings.Split(key, "/"); len(part) > 1 {
		return part[1]
	}
	return ""
}

// compare compares a recovery point that is there with what it was when it was made.
func (v *verifier) compare(ctx context.Context, e Expected, listed map[string]map[string]repository.Point) error {
	r := v.req.Repository
	if listed[e.Machine] == nil {
		points, err := r.Points(ctx, e.Machine)
		if err != nil && !errors.Is(err, repository.ErrDamaged) {
			return err
		}
		listed[e.Machine] = map[string]repository.Point{}
		for _, p := range points {
			listed[e.Machine][p.ID] = p
		}
	}
	p, ok := listed[e.Machine][e.Point]
	if !ok {
		return nil // it was deleted just now
	}
	differs := func(format string, args ...any) error {
		return v.found(&repository.DamageError{
			Object: "log/" + e.Machine, Machine: e.Machine,
			Err: fmt.Errorf("recovery point differs from the catalog: "+format+": %w", append(args, repository.ErrDamaged)...),
		}, e.Point)
	}
	if p.Sequence != e.Sequence {
		return differs("it is entry %d of the log, and was entry %d", p.Sequence, e.Sequence)
	}
	mf, err := r.Manifest(ctx, p)
	if errors.Is(err, repository.ErrDamaged) || errors.Is(err, repository.ErrNotFound) {
		return nil // found when it is read
	}
	if err != nil {
		return v.found(err, e.Point)
	}
	roots := map[string]string{}
	for _, d := range mf.Disks {
		roots[d.ID] = d.ContentRoot
	}
	if !maps.Equal(roots, e.Roots) {
		return differs("its disks have other contents")
	}
	return nil
}

// all checks every object by itself, then every recovery point's content.
func (v *verifier) all(ctx context.Context) error {
	r := v.req.Repository
	err := r.Objects(ctx, func(i store.Info) error {
		if err := ctx.Err(); err != nil {
			return err
		}
		v.res.Objects++
		v.progress("objects", v.res.Objects, 0)
		v.keys = append(v.keys, i.Key)
		err := r.CheckObject(ctx, i.Key)
		if large := strings.HasPrefix(i.Key, "seg/") || strings.HasPrefix(i.Key, "map/"); large && errors.Is(err, repository.ErrNotFound) {
			if _, serr := r.Store().Stat(ctx, i.Key); errors.Is(serr, store.ErrNotExist) {
				return nil // gone since it was listed; whether anybody misses it, the maps say
			}
		}
		return v.found(err)
	})
	if err != nil {
		return err
	}
	if err := v.shadows(ctx); err != nil {
		return err
	}
	machines, err := r.Machines(ctx)
	if err != nil && !errors.Is(err, repository.ErrDamaged) {
		return err // damaged machine records were found among the objects
	}
	var points []repository.Point
	for _, m := range machines {
		if err := v.found(r.CheckLog(ctx, m.ID)); err != nil {
			return err
		}
		ps, err := r.Points(ctx, m.ID)
		if err != nil && !errors.Is(err, repository.ErrDamaged) {
			return err
		}
		points = append(points, ps...)
	}
	if err := v.points(ctx, points); err != nil {
		return err
	}
	// Last, for reading a machine may have mended its record. What is whole
	// again was lost all the same, and the store may lose more.
	for _, key := range r.TakeHealed() {
		d := &repository.DamageError{Object: key, Err: fmt.Errorf("it was missing, and was written again from its other copy: %w", repository.ErrDamaged)}
		if part := strings.Split(strings.TrimPrefix(key, "copies/"), "/"); part[0] == "machines" && len(part) > 1 {
			d.Machine = part[1]
		}
		if err := v.found(d); err != nil {
			return err
		}
	}
	return nil
}

// ErrHidden says that somebody tampered with a store that locks objects:
// something newer lies above what was locked, which is read all the same.
var ErrHidden = errors.New("somebody tampered with it: the locked version is hidden, and is read all the same")

// shadows reports what was deleted or overwritten by name in a store that locks objects.
func (v *verifier) shadows(ctx context.Context) error {
	err := v.req.Repository.Shadowed(ctx, func(s store.Shadow) error {
		kind := "a newer version lies above it"
		if s.Deleted {
			kind = "a delete marker lies above it"
		}
		if s.Newer > 1 {
			kind += fmt.Sprintf(", with %d more versions or markers", s.Newer-1)
		}
		d := &repository.DamageError{Object: s.Key, Err: fmt.Errorf("%w: %s", ErrHidden, kind)}
		if m := machineOf(strings.TrimPrefix(s.Key, "copies/")); format.ValidID(m) {
			d.Machine = m
		}
		return v.found(d)
	})
	if err != nil {
		return fmt.Errorf("look for hidden objects: %w", err)
	}
	return nil
}

// scanned is a disk that was read already, and what was found there.
type scanned struct {
	reader *repository.DiskReader
	damage []int // of the result
}

// points reads recovery points oldest first, so that each later one costs what it changed.
func (v *verifier) points(ctx context.Context, points []repository.Point) error {
	last := map[string]*scanned{} // by machine and disk
	lease := leases{take: v.req.Lease}
	defer lease.end()
	for i, p := range points {
		v.progress("points", int64(i), int64(len(points)))
		if err := lease.next(ctx, p.ID); err != nil {
			return err
		}
		if v.deleted(ctx, p) {
			continue
		}
		if err := v.point(ctx, p, last); err != nil && !errors.Is(err, errDeleted) {
			return err
		}
	}
	v.progress("points", int64(len(points)), int64(len(points)))
	return nil
}

func (v *verifier) point(ctx context.Context, p repository.Point, last map[string]*scanned) error {
	r := v.req.Repository
	v.res.Points++
	m, err := r.Manifest(ctx, p)
	if err != nil {
		return v.foundIn(ctx, p, err)
	}
	for _, d := range m.Disks {
		for _, h := range d.Headers {
			if err := v.foundIn(ctx, p, r.CheckHeader(ctx, m.Machine, h.ID)); err != nil {
				return err
			}
		}
		if err := v.disk(ctx, p, d, last); err != nil {
			return err
		}
	}
	return nil
}

func (v *verifier) disk(ctx context.Context, p repository.Point, d repository.Disk, last map[string]*scanned) error {
	reader, err := v.req.Repository.OpenDisk(ctx, p.Machine, d)
	if err != nil {
		return v.found(err, p.ID)
	}
	key := p.Machine + "/" + d.ID
	o := repository.ScanOptions{
		Damaged: func(de *repository.DamageError) error { return v.foundIn(ctx, p, de) },
		Data: func(_ int64, b []byte) error {
			v.mu.Lock()
			v.res.Read += int64(len(b))
			n := v.res.Read
			v.mu.Unlock()
			v.progress("content", n, 0)
			return nil
		},
	}
	now := &scanned{reader: reader}
	if before := last[key]; before != nil {
		o.Since = before.reader
		// What was damaged in the one before and is stored in the same place is damaged here too.
		for _, i := range before.damage {
			dm := &v.res.Damage[i]
			if dm.Range != nil && dm.Range.Offset < reader.Size() && reader.SameStored(before.reader, dm.Range.Offset) {
				dm.Points = append(dm.Points, p.ID)
				now.damage = append(now.damage, i)
			}
		}
	}
	from := len(v.res.Damage)
	if err := v.scan(ctx, p, d, reader, o); errors.Is(err, errDeleted) {
		return err
	} else if err := v.foundIn(ctx, p, err); err != nil {
		return err
	}
	for i := from; i < len(v.res.Damage); i++ {
		now.damage = append(now.damage, i)
	}
	last[key] = now
	return nil
}
