// Package backup makes recovery points: it opens a machine's disks at a point
// in time, has the repository store what changed, inspects the result through
// the uncommitted map, and commits. It holds no secret and asks no key
// manager: a backup never waits for one. Proving comes afterwards.
package backup

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"time"

	"github.com/lockstep-backup/lockstep/catalog"
	"github.com/lockstep-backup/lockstep/disk"
	"github.com/lockstep-backup/lockstep/diskcrypt"
	"github.com/lockstep-backup/lockstep/repository"
	"github.com/lockstep-backup/lockstep/source"
)

// Deps is what a backup works with.
type Deps struct {
	Repository *repository.Repository
	Catalog    *catalog.Catalog
	// Open opens a disk, or a detached header's file, by what the user wrote.
	Open     func(ctx context.Context, spec string, o source.Options) (source.Disk, error)
	Formats  []diskcrypt.Format
	Log      *slog.Logger
	Now      func() time.Time
	Software string
}

// Request asks for one recovery point.
type Request struct {
	Machine         catalog.Machine
	Full            bool
	AllowLive       bool
	AllowIncomplete bool
	Description     string
	// At is the instant that the disks show, where they are not of now: they are
	// images of old. ErrFuture, ErrOrder.
	At time.Time
	// Consistency is what is known of images of old; "" asks the sources.
	Consistency string
	Progress    func(phase string, done, total int64)
}

// Errors about a given time; see Request.At.
var (
	ErrFuture = errors.New("time is in the future")
	// ErrOrder: newest and parent follow the order of writing. What is older than
	// a recovery point that is there would become the newest by it.
	ErrOrder = errors.New("a recovery point of that time or a later one is there already")
)

// Result is the committed recovery point.
type Result struct {
	Point    catalog.Point
	Warnings []string
	// CaughtUp are earlier recovery points whose process died between the
	// commit and its record; they are in the catalog now.
	CaughtUp []string
	// Lost are earlier recovery points that the catalog lists and the
	// repository does not have any more.
	Lost []string
}

// opened is one disk at its point in time.
type opened struct {
	def    catalog.MachineDisk
	disk   source.Disk
	header *diskcrypt.Header
}

// maxDetachedHeader bounds a detached header's file.
const maxDetachedHeader = 64 << 20

// Run makes a recovery point. Until it is committed nothing is listed; what
// was stored serves the next run. Where only the catalog could not be written
// after the commit, the recovery point is there all the same and the error
// says so.
func Run(ctx context.Context, d Deps, req Request) (res Result, err error) {
	if d.Log == nil {
		d.Log = slog.New(slog.DiscardHandler)
	}
	if d.Now == nil {
		d.Now = time.Now
	}
	start := d.Now()
	// Before anything is written: a machine that vanished would look new afterwards.
	if res.Lost, err = lost(ctx, d, req.Machine); err != nil {
		return res, fmt.Errorf("back up %s: %w", req.Machine.Name, err)
	}
	if n := len(res.Lost); n > 0 {
		res.Warnings = append(res.Warnings, lostWarning(n))
		d.Log.Error("the repository lost recovery points", "machine", req.Machine.Name, "points", res.Lost)
	}
	created, err := ensureMachine(ctx, d, req.Machine)
	if err != nil {
		return res, fmt.Errorf("back up %s: %w", req.Machine.Name, err)
	}
	if res.CaughtUp, err = CatchUp(ctx, d, req.Machine); err != nil {
		return res, fmt.Errorf("back up %s: %w", req.Machine.Name, err)
	}
	disks, err := openAll(ctx, d, req)
	defer func() {
		for _, o := range disks {
			_ = o.disk.Close()
		}
	}()
	if err != nil {
		return res, fmt.Errorf("back up %s: %w", req.Machine.Name, err)
	}
	if err := checkTime(ctx, d, req, start); err != nil {
		return res, fmt.Errorf("back up %s: %w", req.Machine.Name, err)
	}
	attempt, err := noteAttempt(ctx, d, req.Machine)
	if err != nil {
		return res, fmt.Errorf("back up %s: %w", req.Machine.Name, err)
	}
	w, err := d.Repository.Begin(ctx, req.Machine.ID, repository.BeginOptions{
		Full: req.Full, Unread: req.AllowIncomplete, Fresh: created || attempt == attemptDone,
	})
	if err != nil {
		return res, fmt.Errorf("back up %s: %w", req.Machine.Name, err)
	}
	mf, err := write(ctx, d, req, w, disks, start)
	if err != nil {
		w.Abort()
		return res, fmt.Errorf("back up %s: %w", req.Machine.Name, err)
	}
	res.Warnings = append(res.Warnings, clockWarnings(w.Parent(), mf)...)
	mf.Seconds = time.Since(start).Seconds()
	if err := d.Catalog.Meta.Set(ctx, pendingKey(req.Machine.ID), w.ID()); err != nil {
		w.Abort()
		return res, fmt.Errorf("back up %s: %w", req.Machine.Name, err)
	}
	p, err := w.Commit(ctx, mf)
	if err != nil {
		return res, fmt.Errorf("back up %s: %w", req.Machine.Name, err)
	}
	ctx = context.WithoutCancel(ctx) // it is committed: who hangs up now must find it in the catalog
	if res.Point, err = CatalogPoint(p, mf); err == nil {
		err = d.Catalog.Points.Record(ctx, res.Point)
	}
	if err == nil {
		err = d.Catalog.Meta.Set(ctx, pendingKey(req.Machine.ID), "")
	}
	if err == nil {
		err = d.Catalog.Meta.Set(ctx, attemptKey(d, req.Machine), attemptDone)
	}
	if err != nil {
		return res, fmt.Errorf("back up %s: recovery point %s is committed, but the catalog could not be written: %w", req.Machine.Name, p.ID, err)
	}
	return res, nil
}

// checkTime refuses a given time that would put the machine's recovery points
// out of order, before anything is read.
func checkTime(ctx context.Context, d Deps, req Request, now time.Time) error {
	if req.At.IsZero() {
		return nil
	}
	if req.At.After(now) {
		return fmt.Errorf("%s: %w", stamp(req.At), ErrFuture)
	}
	points, err := d.Catalog.Points.List(ctx, catalog.PointQuery{Machine: req.Machine.ID, Bare: true})
	if err != nil {
		return err
	}
	at := req.At.Truncate(time.Millisecond)
	for _, p := range points {
		if p.DeletedAt.IsZero() && !p.Time.Before(at) {
			return fmt.Errorf("%s of %s: %w", p.ID, stamp(p.Time), ErrOrder)
		}
	}
	return nil
}

func stamp(t time.Time) string { return t.UTC().Format(time.RFC3339Nano) }

// Of a machine's backups to a repository the catalog notes whether the last one
// was committed: one that was not may have left something in the store, which
// the next one looks for. Where nothing is noted, that is done as well.
const (
	attemptBegun = "begun"
	attemptDone  = "done"
)

func attemptKey(d Deps, m catalog.Machine) string {
	return "backup.attempt." + d.Repository.ID() + "." + m.ID
}

// noteAttempt notes that a backup begins, and gives what was noted before.
func noteAttempt(ctx context.Context, d Deps, m catalog.Machine) (before string, err error) {
	before, err = d.Catalog.Meta.Get(ctx, attemptKey(d, m))
	if err == nil && before != attemptBegun {
		err = d.Catalog.Meta.Set(ctx, attemptKey(d, m), attemptBegun)
	}
	return before, err
}

// ensureMachine makes the machine known to the repository, once.
func ensureMachine(ctx context.Context, d Deps, m catalog.Machine) (created bool, err error) {
	_, err = d.Repository.Points(ctx, m.ID)
	if errors.Is(err, repository.ErrNotFound) {
		_, err = d.Repository.CreateMachine(ctx, m.ID, m.Name)
		return err == nil, err
	}
	if errors.Is(err, repository.ErrDamaged) {
		d.Log.Error("machine log has damaged entries", "machine", m.Name, "error", err)
		return false, nil // the log's head is known; a new recovery point is worth more than silence
	}
	return false, err
}

// openAll opens all disks before any is read: the nearest to one instant that
// sources without snapshots allow.
func openAll(ctx context.Context, d Deps, req Request) ([]opened, error) {
	var all []opened
	for _, def := range req.Machine.Disks {
		s, err := d.Open(ctx, def.Source, source.Options{AllowLive: req.AllowLive})
		if err != nil {
			return all, fmt.Errorf("open disk %s: %w", def.ID, err)
		}
		o := opened{def: def, disk: s}
		if def.Header != "" {
			h, err := readDetached(ctx, d, def, req.AllowLive)
			if err != nil {
				_ = s.Close()
				return all, err
			}
			o.header = h
		}
		all = append(all, o)
	}
	return all, nil
}

func readDetached(ctx context.Context, d Deps, def catalog.MachineDisk, live bool) (*diskcrypt.Header, error) {
	h, err := d.Open(ctx, def.Header, source.Options{AllowLive: live})
	if err != nil {
		return nil, fmt.Errorf("open detached header of disk %s: %w", def.ID, err)
	}
	defer h.Close()
	if h.Size() > maxDetachedHeader {
		return nil, fmt.Errorf("open detached header of disk %s: %d bytes are too many for a header", def.ID, h.Size())
	}
	p := make([]byte, h.Size())
	if _, err := h.ReadAt(p, 0); err != nil && !errors.Is(err, io.EOF) {
		return nil, fmt.Errorf("read detached header of disk %s: %w", def.ID, err)
	}
	return &diskcrypt.Header{R: newBytes(p), Size: int64(len(p))}, nil
}

// write stores the disks, makes their maps durable, looks at them through
// these maps and copies the encryption headers.
func write(ctx context.Context, d Deps, req Request, w *repository.PointWriter, disks []opened, start time.Time) (*repository.Manifest, error) {
	definition, err := json.Marshal(req.Machine.Disks)
	if err != nil {
		return nil, err
	}
	mf := &repository.Manifest{
		Time: start.UTC().Truncate(time.Millisecond), Consistency: req.Consistency, Description: req.Description, Full: req.Full || w.Parent() == nil,
		Definition: definition, Software: d.Software,
	}
	if !req.At.IsZero() {
		mf.Time = req.At.UTC().Truncate(time.Millisecond)
		if p := w.Parent(); p != nil && !p.Time.Before(mf.Time) {
			return nil, fmt.Errorf("%s: %w", stamp(p.Time), ErrOrder)
		}
	}
	var total, before int64
	for _, o := range disks {
		total += o.disk.Size()
	}
	for _, o := range disks {
		if req.Consistency == "" {
			mf.Consistency = worse(mf.Consistency, o.disk.Consistency())
		}
		in := repository.DiskInput{ID: o.def.ID, Source: o.disk, Unreadable: source.IsUnreadable}
		if p := w.Parent(); p != nil {
			if in.Changed, in.Known, in.Why, err = o.disk.Changed(ctx, p.Point); err != nil {
				return nil, fmt.Errorf("ask for changes of disk %s: %w", o.def.ID, err)
			}
		}
		if req.Progress != nil {
			in.Progress = func(done, _ int64) { req.Progress("store", before+done, total) }
		}
		dd, err := w.WriteDisk(ctx, in)
		// A disk that changed its size or went away meanwhile must not look like a bad sector or pass silently.
		if cerr := o.disk.Check(); cerr != nil {
			return nil, errors.Join(fmt.Errorf("disk %s: %w", o.def.ID, cerr), err)
		}
		if err != nil {
			return nil, err
		}
		before += o.disk.Size()
		mf.Incomplete = mf.Incomplete || len(dd.Unread) > 0
		mf.Disks = append(mf.Disks, dd)
	}
	if err := w.FinishMaps(); err != nil {
		return nil, err
	}
	for i := range mf.Disks {
		if err := inspect(ctx, d, req, w, &mf.Disks[i], disks[i]); err != nil {
			return nil, fmt.Errorf("inspect disk %s: %w", mf.Disks[i].ID, err)
		}
	}
	return mf, nil
}

// inspect looks at a disk as stored, never at the live one.
func inspect(ctx context.Context, d Deps, req Request, w *repository.PointWriter, dd *repository.Disk, from opened) error {
	header := from.header
	if req.Progress != nil {
		req.Progress("inspect", 0, 0)
	}
	r, err := w.OpenDisk(ctx, *dd)
	if err != nil {
		return err
	}
	defer r.Close()
	opts := diskcrypt.FindOptions{Formats: d.Formats, Declared: from.def.Declared}
	if header != nil {
		opts.Detached = map[string]diskcrypt.Header{diskcrypt.WholeDisk: *header}
	}
	rep, err := diskcrypt.Find(ctx, r, r.Size(), opts)
	if err != nil {
		return err
	}
	for _, v := range rep.Volumes {
		ranges := v.HeaderEssential
		if len(ranges) == 0 {
			ranges = v.HeaderRanges
		}
		if len(ranges) == 0 {
			continue
		}
		src, size := diskcrypt.PlaceOf(r, v), headerSize(v)
		if v.Detached && header != nil {
			src, size = header.R, header.Size
		}
		id, err := w.PutHeader(ctx, ranges, size, src)
		if err != nil {
			return fmt.Errorf("copy header of %s: %w", v.ID, err)
		}
		dd.Headers = append(dd.Headers, repository.HeaderRef{Volume: v.ID, ID: id})
	}
	dd.Inspection, err = json.Marshal(rep)
	return err
}

func headerSize(v diskcrypt.Volume) int64 {
	var end int64
	for _, g := range v.HeaderRanges {
		end = max(end, g.End())
	}
	return end
}

// worse keeps the lower of two consistency levels; "" is none seen yet.
func worse(have string, c source.Consistency) string {
	order := map[string]int{
		string(source.ConsistencyNone): 1, string(source.ConsistencyCrash): 2,
		string(source.ConsistencyFileSystem): 3, string(source.ConsistencyApplication): 4,
	}
	if have == "" || order[string(c)] < order[have] {
		return string(c)
	}
	return have
}

// clockWarnings: order never depends on the clock, but a clock that went
// backwards is worth a word, for people read times.
func clockWarnings(parent, now *repository.Manifest) []string {
	if parent == nil || !now.Time.Before(parent.Time) {
		return nil
	}
	return []string{fmt.Sprintf("the clock is %s behind the recovery point before this one; order follows the log, not the clock",
		parent.Time.Sub(now.Time).Round(time.Second))}
}

// bytesAt reads from memory.
type bytesAt []byte

func newBytes(p []byte) io.ReaderAt { return bytesAt(p) }

func (b bytesAt) ReadAt(p []byte, off int64) (int, error) {
	if off < 0 || off >= int64(len(b)) {
		return 0, io.EOF
	}
	n := copy(p, b[off:])
	if n < len(p) {
		return n, io.EOF
	}
	return n, nil
}

// CatalogPoint is what the catalog keeps of a committed recovery point. A
// rebuild makes the same from the repository alone.
func CatalogPoint(p repository.Point, m *repository.Manifest) (catalog.Point, error) {
	c := catalog.Point{
		ID: p.ID, Machine: p.Machine, Repository: m.Repository, Sequence: p.Sequence, Parent: m.Parent,
		Time: m.Time, Written: m.Written, Consistency: m.Consistency, FullTransfer: m.Full,
		Description: m.Description, Incomplete: m.Incomplete, Seconds: m.Seconds,
	}
	for _, d := range m.Disks {
		c.Stats.Read += d.Stats.Read
		c.Stats.Changed += d.Stats.Changed
		c.Stats.Stored += d.Stats.Stored
		c.Stats.Map += d.Stats.Map
		pd := catalog.PointDisk{
			Disk: d.ID, Size: d.Size, ContentRoot: d.ContentRoot,
			Unread: append([]disk.Range(nil), d.Unread...), Changes: d.Changes,
		}
		rep, err := Inspection(d)
		if err != nil {
			return c, err
		}
		if pd.Areas, err = json.Marshal(rep.Areas); err != nil {
			return c, err
		}
		headers := map[string]string{}
		for _, h := range d.Headers {
			headers[h.Volume] = h.ID
		}
		for _, v := range rep.Volumes {
			body, err := json.Marshal(v)
			if err != nil {
				return c, err
			}
			pd.Volumes = append(pd.Volumes, catalog.Volume{
				Volume: v.ID, Type: v.Type, UUID: v.UUID, Label: v.Label, Epoch: v.Epoch,
				HeaderDigest: v.HeaderDigest, HeaderCopy: headers[v.ID], Body: body,
			})
		}
		c.Disks = append(c.Disks, pd)
	}
	return c, nil
}

// Inspection reads what was found on a disk of a manifest.
func Inspection(d repository.Disk) (*diskcrypt.Report, error) {
	rep := new(diskcrypt.Report)
	if len(d.Inspection) == 0 {
		return rep, nil
	}
	if err := json.Unmarshal(d.Inspection, rep); err != nil {
		return nil, fmt.Errorf("read inspection of disk %s: %w", d.ID, err)
	}
	return rep, nil
}
