// Package reclaim gives back what no listed recovery point needs.
// docs/spec/repository.md, section 13.
//
// What it finds by comparing maps and keeps in the ledger only says where it is
// worth looking: before anything is deleted, the object's own table is compared
// with the maps of all listed recovery points that can need it. Its invariant:
// nothing is deleted without a fence, nor before what replaces it, and the
// ledger that knows of it, are durable.
package reclaim

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/lockstep-backup/lockstep/envelope"
	"github.com/lockstep-backup/lockstep/repository/format"
	"github.com/lockstep-backup/lockstep/repository/internal/blockmap"
	"github.com/lockstep-backup/lockstep/repository/internal/damage"
	"github.com/lockstep-backup/lockstep/repository/internal/machinekey"
	"github.com/lockstep-backup/lockstep/repository/internal/machinelog"
	"github.com/lockstep-backup/lockstep/repository/internal/segment"
	"github.com/lockstep-backup/lockstep/store"
)

// Disk is one disk of a recovery point.
type Disk struct {
	ID   string
	Tree *blockmap.Tree
}

// Content is what a manifest references, and what its writer counted.
type Content struct {
	Disks   []Disk
	Headers []string
	Stored  int64 // bytes of new segments
	Reused  int64 // bytes found in segments of an earlier attempt
	Logical int64 // bytes of the disks
}

// Source is one machine of a repository.
type Source struct {
	Store    store.Store
	Keys     *machinekey.Keys
	View     damage.Reader
	Segments *segment.Cache
	Maps     *blockmap.Cache
	History  *machinelog.Log
	// Content reads the manifest that a commit entry names.
	Content func(context.Context, machinelog.Record) (*Content, error)
	// Uncommitted reads the birth of a manifest that no entry commits; -1: unknown.
	Uncommitted func(ctx context.Context, point string) (int64, error)
	Writer      *envelope.SigningKey
	Now         func() time.Time
	Logger      *slog.Logger
}

// Options of a run.
type Options struct {
	DryRun     bool    // only say what would be done
	Unfinished bool    // what writers under way stored goes as well: they give up
	Recount    bool    // count over all maps, whatever the ledger says
	MaxDead    float64 // share of dead bytes from which an object is rewritten; 0: DefaultMaxDead
	Progress   func(done, total int64)
}

// DefaultMaxDead: rewriting at half dead moves at most as many bytes as it
// frees, and keeps what is stored below twice what is needed. Measured with 80
// incrementals of 1 % random pages, the last 10 kept: a quarter rewrites 56 %
// of what changed for 1.06 times the bytes needed, a half 14 % for 1.10 times,
// never 0 % for 1.17 times.
const DefaultMaxDead = 0.5

// Count is a number of objects and their bytes.
type Count struct{ Objects, Bytes int64 }

func (c *Count) add(bytes int64) { c.Objects++; c.Bytes += bytes }

// Result of a run.
type Result struct {
	Deleted   Count // wholly dead, or replaced by a replica
	Rewritten Count // replicas written instead
	Locked    Count // dead, but held by the store
	Freed     int64 // bytes deleted less bytes rewritten
	Dead      int64 // bytes that stay though nothing needs them, as far as is counted
	Fence     int64 // number of the fence in the log, -1: none was needed
	MapPages  int64 // pages of maps that were read for it
	Recounted bool  // all maps were compared
}

// errOvertaken says that the log went on before the fence was written.
var errOvertaken = errors.New("the log went on meanwhile")

// ErrBusy says that the log went on again and again before a fence was written.
var ErrBusy = errors.New("others write to the machine's log all the time")

const maxAttempts = 5

// Run reclaims.
func Run(ctx context.Context, s *Source, o Options) (Result, error) {
	if o.MaxDead == 0 {
		o.MaxDead = DefaultMaxDead
	}
	if o.MaxDead < 0 || o.MaxDead > 1 {
		return Result{}, fmt.Errorf("reclaim: a share of dead bytes of %g is not between 0 and 1", o.MaxDead)
	}
	before := s.Maps.PagesRead()
	recount := o.Recount
	for range maxAttempts {
		r := &run{Source: s, o: o, recount: recount}
		r.res.Fence, r.res.Recounted = -1, recount
		err := r.do(ctx)
		r.res.MapPages = s.Maps.PagesRead() - before
		switch {
		case err == nil:
			return r.res, nil
		case errors.Is(err, errOvertaken):
			continue
		case r.res.Fence < 0 && !recount && errors.Is(err, errRecount):
			s.Logger.Warn("maps of deleted recovery points cannot be read, everything is counted again", "error", err)
			recount = true
			continue
		}
		return r.res, fmt.Errorf("reclaim: %w", err)
	}
	return Result{Fence: -1}, fmt.Errorf("reclaim: %w", ErrBusy)
}

// run is one attempt: what was found out holds for the log as it was read.
type run struct {
	*Source
	o       Options
	recount bool
	res     Result

	records []machinelog.Record
	limit   int64    // the greatest birth of which anything is deleted
	now     *history // what is listed
	cover   *cover
	loaded  map[string]*Content

	dead     bytesOf // by the ledger and the deletions since
	unclear  []births
	next     format.Ledger
	small    []store.Info // objects of one frame that go
	suspects []suspect
}

// births is a range (floor, to].
type births struct{ floor, to int64 }

func (r *run) do(ctx context.Context) (err error) {
	if r.records, err = r.History.Read(ctx); err != nil {
		return err
	}
	for i := range r.records {
		// It may have been a commit whose recovery point can be brought back.
		if r.records[i].Err != nil {
			return fmt.Errorf("the log has an entry that cannot be read: %w", r.records[i].Err)
		}
	}
	if r.limit = machinelog.LastBirth(r.records); r.o.Unfinished {
		r.limit = max(r.limit, int64(len(r.records)))
	}
	if r.limit < 0 {
		return nil
	}
	deleted := machinelog.Deleted(r.records)
	r.now = newHistory(r.records, func(c *machinelog.Record) bool { return !deleted[c.Point] })
	r.cover = newCover(r.now)
	r.loaded = map[string]*Content{}
	r.next = format.Ledger{Through: uint64(len(r.records)) + 1, Objects: map[format.ObjectName]format.LedgerEntry{}}
	if err := r.account(ctx, deleted); err != nil {
		return err
	}
	if err := r.list(ctx); err != nil {
		return err
	}
	if err := r.listSmall(ctx, deleted); err != nil {
		return err
	}
	if err := r.sweep(ctx); err != nil {
		return err
	}
	if _, err := r.remove(ctx, r.small); err != nil {
		return err
	}
	for n, e := range r.next.Objects {
		r.res.Dead += int64(e.Dead) * unit(n)
	}
	if r.o.DryRun || r.res.Fence < 0 {
		return nil
	}
	if err := r.writeLedger(ctx, r.res.Fence, swept, r.next); err != nil {
		return err
	}
	return r.dropLedgers(ctx, r.res.Fence)
}

// unit is what the ledger counts an object in, in bytes.
func unit(n format.ObjectName) int64 {
	if n.Map {
		return 64
	}
	return format.PageSize
}

// fence writes the fence and the ledger that accounts for what is about to be
// deleted, once. In a dry run it does nothing.
func (r *run) fence(ctx context.Context) error {
	if r.o.DryRun || r.res.Fence >= 0 {
		return nil
	}
	e := machinelog.Entry{Kind: machinelog.Fence, Leftovers: &r.limit, Reason: "reclaim", Must: []string{machinelog.FeatureReplicas}}
	for i := range r.records {
		if len(r.records[i].Must) > 0 {
			e.Must = nil // it was said before
		}
	}
	err := r.History.Append(ctx, r.records, e, *r.Writer, r.Now())
	if errors.Is(err, store.ErrExist) {
		return errOvertaken
	}
	if err != nil {
		return err
	}
	r.res.Fence = int64(len(r.records))
	return r.writeLedger(ctx, r.res.Fence, accounted, r.next)
}

// content reads a recovery point's manifest; few are kept.
func (r *run) content(ctx context.Context, n *node) (*Content, error) {
	if c := r.loaded[n.Point]; c != nil {
		return c, nil
	}
	c, err := r.Content(ctx, n.Record)
	if err != nil {
		return nil, err
	}
	if len(r.loaded) >= 64 {
		clear(r.loaded)
	}
	r.loaded[n.Point] = c
	return c, nil
}

// deletions under way at once: a store far away takes its time for each.
const deletions = 8

// remove deletes objects and says which of them the store holds.
func (r *run) remove(ctx context.Context, all []store.Info) (held map[string]bool, err error) {
	if len(all) == 0 {
		return nil, nil
	}
	if err := r.fence(ctx); err != nil {
		return nil, err
	}
	held = map[string]bool{}
	var mu sync.Mutex
	group, ctx := errgroup.WithContext(ctx)
	group.SetLimit(deletions)
	for _, i := range all {
		group.Go(func() error {
			var err error
			if !r.o.DryRun {
				err = r.Store.Delete(ctx, i.Key)
			}
			mu.Lock()
			defer mu.Unlock()
			switch {
			case errors.Is(err, store.ErrLocked):
				held[i.Key] = true
				r.res.Locked.add(i.Size)
			case err == nil, errors.Is(err, store.ErrNotExist):
				r.res.Deleted.add(i.Size)
				r.res.Freed += i.Size
			default:
				return fmt.Errorf("delete %s: %w", i.Key, err)
			}
			return nil
		})
	}
	return held, group.Wait()
}
