package repository

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"runtime"

	"github.com/lockstep-backup/lockstep/disk"
	"github.com/lockstep-backup/lockstep/repository/format"
	"github.com/lockstep-backup/lockstep/repository/internal/blockmap"
	"github.com/lockstep-backup/lockstep/repository/internal/machinelog"
	"github.com/lockstep-backup/lockstep/repository/internal/resume"
	"github.com/lockstep-backup/lockstep/store"
)

// BeginOptions for a new recovery point.
type BeginOptions struct {
	Full    bool   // store everything anew, whatever the parent has
	PointID string // "" draws one
	// Fresh says that no attempt since the newest recovery point was interrupted,
	// as far as the caller knows: then nobody looks for what it left.
	Fresh bool
	// Unread makes a recovery point of a source with bad ranges: they are
	// recorded as unread. Otherwise a bad range ends the backup.
	Unread bool
}

// PointWriter makes one recovery point: WriteDisk for each disk, FinishMaps,
// then Commit. Until Commit nothing of it is listed.
type PointWriter struct {
	r      *Repository
	m      *machine
	opts   BeginOptions
	birth  int64 // in the names of all that is stored
	seen   []machinelog.Record
	parent *Manifest
	on     Point // of parent
	maps   *blockmap.Writer
	resume *resume.Leftovers
	id     string
}

// Begin starts a recovery point on the newest one of the machine as parent.
func (r *Repository) Begin(ctx context.Context, mid string, o BeginOptions) (*PointWriter, error) {
	if r.writer == nil {
		return nil, r.readOnly("begin recovery point")
	}
	m, err := r.machine(ctx, mid)
	if err != nil {
		return nil, err
	}
	records, err := m.log.Read(ctx)
	if err != nil {
		return nil, err
	}
	w := &PointWriter{r: r, m: m, opts: o, birth: machinelog.NextBirth(records), seen: records, id: o.PointID}
	if w.id == "" {
		w.id = newID()
	}
	if w.birth >= 1<<32 || len(records) >= 1<<32 {
		return nil, fmt.Errorf("begin recovery point: machine log is full")
	}
	points := points(records, mid)
	// An entry that cannot be read may have deleted a recovery point before it, and
	// what that references may be gone: only what was committed later is a parent.
	damaged := int64(-1)
	for _, rec := range records {
		if errors.Is(rec.Err, ErrFormat) {
			return nil, fmt.Errorf("begin recovery point: %w", rec.Err)
		}
		if rec.Err != nil {
			damaged = rec.N
		}
	}
	// A parent whose manifest is damaged must not stop backups: the one before
	// it serves as well, for every recovery point is complete.
	for i := len(points) - 1; i >= 0 && w.parent == nil && points[i].Sequence > damaged; i-- {
		w.on = points[i]
		if w.parent, err = r.Manifest(ctx, w.on); err != nil {
			if errors.Is(err, ErrFormat) || !errors.Is(err, ErrDamaged) && !errors.Is(err, ErrNotFound) {
				return nil, err
			}
			r.log.Error("recovery point cannot serve as parent", "point", points[i].ID, "error", err)
		}
	}
	w.maps = blockmap.NewWriter(ctx, r.st, m.Keys, w.birth)
	// What attempts left that nobody committed and no fence gave away.
	free := machinelog.LastBirth(records)
	for _, rec := range records {
		if rec.Leftovers != nil {
			free = max(free, *rec.Leftovers)
		}
	}
	from := free + 1
	if o.Fresh {
		from = w.birth + 1 // none
	}
	if w.resume, err = resume.Find(ctx, r.st, m.Keys, from, w.birth, r.log); err != nil {
		return nil, err
	}
	return w, nil
}

// ID is the recovery point's id.
func (w *PointWriter) ID() string { return w.id }

// Parent is the manifest of the recovery point this one follows, nil for the first.
func (w *PointWriter) Parent() *Manifest { return w.parent }

// DiskSource is what a disk is read from; source.Disk has these methods.
type DiskSource interface {
	io.ReaderAt
	Size() int64
	NextData(off int64) (disk.Range, error)
}

// DiskInput describes one disk to write.
type DiskInput struct {
	ID     string
	Source DiskSource
	// Changed are the ranges that may differ from the parent, where Known.
	Changed []disk.Range
	Known   bool
	Why     string // of Known: the evidence of the change source
	// Unreadable says whether an error of Source is about a bad range that
	// smaller reads may narrow down.
	Unreadable func(error) bool
	Progress   func(done, total int64)
}

func (w *PointWriter) parentDisk(id string) *Disk {
	if w.parent == nil {
		return nil
	}
	for i := range w.parent.Disks {
		if w.parent.Disks[i].ID == id {
			return &w.parent.Disks[i]
		}
	}
	return nil
}

// WriteDisk reads a disk, stores what differs from the parent, and gives its
// part of the manifest. One disk at a time.
func (w *PointWriter) WriteDisk(ctx context.Context, in DiskInput) (Disk, error) {
	size := in.Source.Size()
	if size < 0 || size > 1<<62 {
		return Disk{}, fmt.Errorf("write disk %s: size %d", in.ID, size)
	}
	d := Disk{ID: in.ID, Size: size, Changes: "scan"}
	if in.Known {
		d.Changes = "cbt"
	}
	if in.Why != "" {
		d.Changes += ": " + in.Why
	}
	dw := &diskWriter{PointWriter: w, in: in, size: size}
	if pd := w.parentDisk(in.ID); pd != nil && !w.opts.Full {
		t, err := w.m.openTree(*pd)
		if err != nil {
			w.r.log.Error("parent's map cannot be used, everything is stored anew", "disk", in.ID, "error", err)
		} else {
			dw.parent = t
		}
	}
	g := w.m.Digester()
	defer w.m.Release(g)
	before := w.maps.Bytes()
	dw.tree = blockmap.NewBuilder(w.maps, g, in.ID, size, dw.parent)
	if err := dw.run(ctx); err != nil {
		return Disk{}, fmt.Errorf("write disk %s: %w", in.ID, err)
	}
	root := g.Root(size, dw.tree.Root.Node)
	d.ContentRoot = hex.EncodeToString(root[:])
	d.Map = mapRef(dw.tree)
	d.Stats = dw.stats
	d.Stats.Map = w.maps.Bytes() - before
	for _, u := range dw.unread {
		if n := len(d.Unread); n > 0 && d.Unread[n-1].End() == u.Offset {
			d.Unread[n-1].Length += u.Length
		} else {
			d.Unread = append(d.Unread, u)
		}
	}
	return d, nil
}

// FinishMaps makes the maps durable: afterwards OpenDisk reads the disks
// through the uncommitted recovery point, and no more disks can be written.
func (w *PointWriter) FinishMaps() error { return w.maps.Finish() }

// OpenDisk reads a disk of the uncommitted recovery point, after FinishMaps.
func (w *PointWriter) OpenDisk(ctx context.Context, d Disk) (*DiskReader, error) {
	return w.r.OpenDisk(ctx, w.m.Machine.ID, d)
}

// Commit stores the manifest and the log entry. ErrConflict says that another
// writer committed, or that data may have been reclaimed, since Begin.
func (w *PointWriter) Commit(ctx context.Context, mf *Manifest) (Point, error) {
	if err := w.maps.Finish(); err != nil {
		return Point{}, fmt.Errorf("commit: %w", err)
	}
	mf.Format, mf.Repository = 1, w.r.cfg.ID
	mf.Machine, mf.MachineName, mf.Point = w.m.Machine.ID, w.m.Name, w.id
	if w.parent != nil {
		mf.Parent = w.parent.Point
	}
	mf.Written, mf.Birth = w.r.clock(), &w.birth
	if err := w.protect(ctx, mf); err != nil {
		return Point{}, fmt.Errorf("commit: %w", err)
	}
	digest, err := w.r.putManifest(ctx, w.m, mf)
	if err != nil {
		return Point{}, fmt.Errorf("commit: %w", err)
	}
	for {
		e := machinelog.Entry{N: int64(len(w.seen)), Kind: machinelog.Commit, Point: w.id, Manifest: digest, Parent: mf.Parent}
		e.SetBirth(w.birth)
		err := w.m.log.Append(ctx, w.seen, e, *w.r.writer, w.r.clock())
		if err == nil {
			break
		}
		if !errors.Is(err, store.ErrExist) {
			return Point{}, fmt.Errorf("commit: %w", err)
		}
		if err := w.recheck(ctx, mf.Parent); err != nil {
			return Point{}, fmt.Errorf("commit: %w", err)
		}
	}
	records, err := w.m.log.Read(ctx)
	if err != nil {
		return Point{}, fmt.Errorf("read back commit: %w", err)
	}
	for _, p := range points(records, w.m.Machine.ID) {
		if p.ID == w.id {
			return p, nil
		}
	}
	return Point{}, fmt.Errorf("read back commit: %w", ErrConflict)
}

// recheck looks at entries that others wrote since Begin: deletions of other
// recovery points, and fences before this writer's birth, leave everything
// referenced in its place.
func (w *PointWriter) recheck(ctx context.Context, parent string) error {
	records, err := w.m.log.Read(ctx)
	if err != nil {
		return err
	}
	if len(records) == len(w.seen) { // a store that shows no entry where it has one would keep us here
		return fmt.Errorf("machine log entry %d: %w", len(w.seen), ErrConflict)
	}
	for _, rec := range records[len(w.seen):] {
		harmless := rec.Err == nil && (rec.Kind == machinelog.Delete && rec.Point != parent ||
			rec.Kind == machinelog.Fence && rec.Leftovers != nil && *rec.Leftovers < w.birth)
		if !harmless {
			return fmt.Errorf("machine log entry %d: %w", rec.N, ErrConflict)
		}
	}
	w.seen = records
	return nil
}

// Abort drops what is not durable yet; durable segments serve the next attempt.
func (w *PointWriter) Abort() { w.maps.Abort() }

// workers is how many units are in flight: some read or write while others compute.
func workers() int { return min(max(2*runtime.GOMAXPROCS(0), 4), 16) }

// workersFor is workers for a disk of size bytes: no more than it has units,
// for each has megabytes of buffers.
func workersFor(size int64) int { return int(min(int64(workers()), format.LeafCount(size))) }
