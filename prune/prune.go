// Package prune removes the recovery points that a machine's policy lets go:
// it decides (package retention), deletes them in the repository, has their
// holds released and the freed bytes reclaimed. Deleting one recovery point by
// hand goes through here as well.
//
// It takes no lock against backups and never stops one: the newest recovery
// point, which a backup builds on, is never deleted. It may be killed anywhere;
// the next run finishes what was begun. Its invariant: what somebody pinned or
// holds for a case stays, whether the catalog or the repository knows of it.
package prune

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"time"

	"github.com/lockstep-backup/lockstep/catalog"
	"github.com/lockstep-backup/lockstep/custody"
	"github.com/lockstep-backup/lockstep/policy"
	"github.com/lockstep-backup/lockstep/repository"
	"github.com/lockstep-backup/lockstep/retention"
)

// Errors that callers act on.
var (
	// ErrLost: the catalog lists recovery points that the repository's log does
	// not have. Nothing is deleted by a rule then.
	ErrLost = errors.New("the repository lost recovery points that the catalog lists")
	// ErrChanged: recovery points that were to be kept went away meanwhile.
	ErrChanged = errors.New("recovery points were deleted by somebody else meanwhile")
	// ErrInUse: somebody reads it just now. The error is an *InUseError.
	ErrInUse = errors.New("recovery point is in use")
	// ErrKept: it is pinned, or held for a case.
	ErrKept = errors.New("recovery point is to be kept")
)

// InUseError says that somebody reads a recovery point.
type InUseError struct {
	Point  string
	Holder string // who, for people; may be ""
}

func (e *InUseError) Error() string {
	return fmt.Sprintf("recovery point %s is %s", e.Point, e.Words())
}

// Words are what keeps the recovery point.
func (e *InUseError) Words() string {
	if e.Holder == "" {
		return "in use by another process"
	}
	return "in use by " + e.Holder
}

// Is makes errors.Is(err, ErrInUse) hold.
func (e *InUseError) Is(target error) bool { return target == ErrInUse }

// Statements are what people said of a machine's recovery points.
type Statements struct {
	// Marks in force, by recovery point.
	Marks map[string]custody.Marks
	// Doubtful are recovery points of which it is not certain that nobody wants
	// them kept, and why.
	Doubtful map[string]string
}

// Freed is what was reclaimed.
type Freed struct {
	Objects int64
	Bytes   int64
}

// Reclaimer frees what no recovery point of a machine references any more.
type Reclaimer func(ctx context.Context, machine string) (Freed, error)

// Deps is what pruning works with.
type Deps struct {
	Repository *repository.Repository
	Catalog    *catalog.Catalog

	// States says what state recovery points of a machine are in.
	States func(ctx context.Context, machine string) (func(catalog.Point) custody.State, error)
	// Statements reads them from catalog and repository.
	Statements func(ctx context.Context, machine string) (Statements, error)
	// Elsewhere says which other repositories list recovery points of a machine
	// that this one does not list any more; nil: there is no other.
	Elsewhere func(ctx context.Context, machine string, points []string) (Elsewhere, error)
	// Release releases the holds of recovery points that are gone, and counts them.
	Release func(ctx context.Context, points ...catalog.Point) (int, error)
	// Claim keeps readers off a recovery point until done is called; an *InUseError
	// where somebody reads it. nil: nobody reads. A reader that comes while it is
	// claimed looks into the log after that.
	Claim func(point string) (done func(), err error)
	// Begin records that a recovery point is about to be deleted; where it fails
	// nothing is done. Done records what came of it.
	Begin func(ctx context.Context, p catalog.Point, reason string) error
	Done  func(ctx context.Context, p catalog.Point, reason string, err error) error
	// Locked says until when the store keeps recovery points of a machine whatever
	// anybody wants (WORM), by this host's clock; nil where it keeps none.
	Locked func(ctx context.Context, machine string, points []string) (map[string]time.Time, error)
	// Reclaim may be nil.
	Reclaim Reclaimer

	Now func() time.Time
	Log *slog.Logger
}

// Request says what to prune.
type Request struct {
	Machine catalog.Machine
	Policy  policy.Policy
	// DryRun decides and changes nothing.
	DryRun bool
	// ClockIsRight goes on although the clock looks wrong, and takes it for right.
	ClockIsRight bool
	// Progress is told how many of the recovery points that go are gone.
	Progress func(done, total int)
}

// Point is a recovery point and what was decided on it.
type Point struct {
	Point    catalog.Point
	State    custody.State
	Decision retention.Decision
	Deleted  bool     // by this run
	InUse    bool     // it would go, and somebody reads it: it is kept this time
	In       []string // names of repositories that still list it, if it was deleted
}

// Result is what came of a run.
type Result struct {
	Points   []Point // in the log's order, the oldest first
	Finished []string
	Released int   // holds
	Freed    Freed // bytes of the store
	Problems []string
}

// batch is how many recovery points go before the key manager is asked to
// release their holds, and before it is looked at again what may go.
const batch = 64

// Run prunes one machine. What was deleted when it fails stays deleted, and is
// in the result.
func Run(ctx context.Context, d Deps, req Request) (Result, error) {
	if d.Now == nil {
		d.Now = time.Now
	}
	if d.Log == nil {
		d.Log = slog.New(slog.DiscardHandler)
	}
	r := runner{Deps: d, req: req}
	if err := r.run(ctx); err != nil {
		return r.res, fmt.Errorf("prune %s: %w", req.Machine.Name, err)
	}
	return r.res, nil
}

type runner struct {
	Deps
	req Request
	res Result
	// unfinished are deleted in the repository, and the rest of it is still to be done.
	unfinished []catalog.Point
}

func (r *runner) run(ctx context.Context) error {
	listed, err := r.Repository.Points(ctx, r.req.Machine.ID)
	if errors.Is(err, repository.ErrNotFound) && len(listed) == 0 {
		return nil // it was never backed up
	}
	if err != nil {
		// A log that cannot be read whole may list what is gone, and lack what is there.
		return err
	}
	if err := r.checkClock(ctx, listed); err != nil {
		return err
	}
	if err := r.decide(ctx, listed); err != nil {
		return err
	}
	if r.req.DryRun {
		return r.dryInUse()
	}
	if err := r.Catalog.Meta.Set(ctx, MetaClock, r.Now().UTC().Format(time.RFC3339Nano)); err != nil {
		return err
	}
	if err := r.finish(ctx); err != nil {
		return err
	}
	if err := r.deleteAll(ctx); err != nil {
		return err
	}
	// Also where nothing was deleted now: an earlier run may have died before this.
	if r.Reclaim == nil {
		return nil
	}
	if r.res.Freed, err = r.Reclaim(ctx, r.req.Machine.ID); err != nil {
		return fmt.Errorf("reclaim: %w", err)
	}
	return nil
}

// decide fills in what becomes of each recovery point, and which deletions an
// earlier run left unfinished.
func (r *runner) decide(ctx context.Context, listed []repository.Point) error {
	known, err := r.Catalog.Points.List(ctx, catalog.PointQuery{Machine: r.req.Machine.ID, Deleted: true})
	if err != nil {
		return err
	}
	if err := r.compare(ctx, listed, known); err != nil {
		return err
	}
	if len(listed) == 0 {
		return nil
	}
	state, err := r.States(ctx, r.req.Machine.ID)
	if err != nil {
		return err
	}
	said, err := r.Statements(ctx, r.req.Machine.ID)
	if err != nil {
		return err
	}
	parent, err := r.parent(ctx, listed)
	if err != nil {
		return err
	}
	loc, err := r.req.Policy.Location()
	if err != nil {
		return err
	}
	by := map[string]catalog.Point{}
	for _, p := range known {
		by[p.ID] = p
	}
	points := make([]retention.Point, len(listed))
	for i, p := range listed {
		rp := retention.Point{ID: p.ID, Time: p.Time, Sequence: p.Sequence}
		c, ok := by[p.ID]
		v := Point{Point: c}
		switch {
		case !ok:
			v.Point = catalog.Point{ID: p.ID, Machine: p.Machine, Repository: r.Repository.ID(), Sequence: p.Sequence, Time: p.Time, Written: p.Time}
			rp.Needed = append(rp.Needed, "the catalog does not know it yet")
		case !c.DeletedAt.IsZero():
			rp.Needed = append(rp.Needed, "the catalog says that it was deleted, and the repository lists it")
			r.problem("recovery point %s was deleted and is listed again: the repository was rolled back", p.ID)
		default:
			v.State = state(c)
			rp.Time, rp.Incomplete = c.Time, c.Incomplete
			rp.Opens = v.State == custody.Proven || v.State == custody.AtRisk || v.State == custody.Plain
		}
		if p.ID == parent && i != len(listed)-1 {
			rp.Needed = append(rp.Needed, "a backup builds on it, for newer ones cannot be read")
		}
		if why := said.Doubtful[p.ID]; why != "" {
			rp.Needed = append(rp.Needed, why)
		}
		addMarks(&rp, said.Marks[p.ID])
		points[i] = rp
		r.res.Points = append(r.res.Points, v)
	}
	now := r.Now()
	asked := map[string]bool{}
	for {
		decisions, err := retention.Decide(points, r.req.Policy.Rules(), now, loc)
		if err != nil {
			return err
		}
		for i := range r.res.Points {
			r.res.Points[i].Decision = decisions[i]
		}
		// Only of what would go the store is asked: it costs a request each. What it
		// keeps may make others go, which a minimum kept in its place.
		again, err := r.locked(ctx, points, decisions, asked)
		if err != nil || !again {
			return err
		}
	}
}

// dryInUse says what would be kept for its being read.
func (r *runner) dryInUse() error {
	if r.Claim == nil {
		return nil
	}
	for i := range r.res.Points {
		p := &r.res.Points[i]
		if p.Decision.Keep {
			continue
		}
		done, err := r.Claim(p.Point.ID)
		var used *InUseError
		if errors.As(err, &used) {
			p.keepInUse(used)
			continue
		}
		if err != nil {
			return err
		}
		done()
	}
	return nil
}

func (p *Point) keepInUse(e *InUseError) {
	p.InUse, p.Decision.Keep, p.Decision.Reasons = true, true, []string{e.Words() + "; kept this time"}
}

// locked fills in what the store keeps of what is to go and was not asked
// about yet, and says whether it keeps anything.
func (r *runner) locked(ctx context.Context, points []retention.Point, decisions []retention.Decision, asked map[string]bool) (again bool, err error) {
	if r.Locked == nil {
		return false, nil
	}
	var ask []string
	for _, d := range decisions {
		if !d.Keep && !asked[d.ID] {
			ask, asked[d.ID] = append(ask, d.ID), true
		}
	}
	if len(ask) == 0 {
		return false, nil
	}
	until, err := r.Locked(ctx, r.req.Machine.ID, ask)
	if err != nil {
		return false, fmt.Errorf("ask the store what it keeps: %w", err)
	}
	for i, p := range points {
		if t, ok := until[p.ID]; ok {
			points[i].RetainUntil, again = t, true
		}
	}
	return again, nil
}

func addMarks(p *retention.Point, m custody.Marks) {
	if m.Pin != nil {
		p.Pins = append(p.Pins, retention.Pin{By: m.Pin.Actor, Reason: m.Pin.Reason})
	}
	for _, h := range m.LegalHolds {
		p.LegalHolds = append(p.LegalHolds, retention.LegalHold{Case: h.Name, Reason: h.Reason})
	}
	p.Tags = m.Tags
}

func (r *runner) problem(format string, args ...any) {
	r.res.Problems = append(r.res.Problems, fmt.Sprintf(format, args...))
}

// note adds problems, each once: every batch may meet the same.
func (r *runner) note(problems []string) {
	for _, text := range problems {
		if !slices.Contains(r.res.Problems, text) {
			r.res.Problems = append(r.res.Problems, text)
		}
	}
}

// compare tells recovery points that the log deleted from those that it lost.
func (r *runner) compare(ctx context.Context, listed []repository.Point, known []catalog.Point) error {
	has := map[string]bool{}
	for _, p := range listed {
		has[p.ID] = true
	}
	deleted, err := r.Repository.Deleted(ctx, r.req.Machine.ID)
	if err != nil {
		return err
	}
	var lost []string
	for _, p := range known {
		switch {
		case has[p.ID] || !p.DeletedAt.IsZero():
			continue
		case p.Repository != r.Repository.ID(): // of it this log may have a copy, or not
			if deleted[p.ID] && r.Elsewhere != nil {
				r.unfinished = append(r.unfinished, p)
			}
			continue
		}
		deleted, err := r.Repository.CheckCommitted(ctx, p.Machine, p.ID)
		switch {
		case err == nil && deleted:
			r.unfinished = append(r.unfinished, p)
		case err == nil || errors.Is(err, repository.ErrNotFound) || errors.Is(err, repository.ErrDamaged):
			lost = append(lost, p.ID)
		default:
			return err
		}
	}
	if len(lost) > 0 {
		return fmt.Errorf("%w: %s", ErrLost, strings.Join(lost[:min(len(lost), 8)], ", "))
	}
	return nil
}

// parent is the recovery point that the next backup builds on: the newest whose
// manifest can be read. A backup under way builds on it already.
func (r *runner) parent(ctx context.Context, listed []repository.Point) (string, error) {
	for _, p := range slices.Backward(listed) {
		_, err := r.Repository.Manifest(ctx, p)
		switch {
		case err == nil:
			return p.ID, nil
		case !errors.Is(err, repository.ErrDamaged) && !errors.Is(err, repository.ErrNotFound) && !errors.Is(err, repository.ErrUntrusted):
			return "", err
		}
		r.problem("recovery point %s cannot be read: %v", p.ID, err)
	}
	return "", nil
}

// finish does the rest of deletions that are in the repository's log already.
// What another repository lists is finished when that has deleted it as well.
func (r *runner) finish(ctx context.Context) error {
	if r.Elsewhere != nil && len(r.unfinished) > 0 {
		var ids []string
		for _, p := range r.unfinished {
			ids = append(ids, p.ID)
		}
		found, err := r.Elsewhere(ctx, r.req.Machine.ID, ids)
		if err != nil {
			return err
		}
		r.note(found.Problems)
		r.unfinished = slices.DeleteFunc(r.unfinished, func(p catalog.Point) bool { return len(found.In[p.ID]) > 0 })
	}
	for some := range slices.Chunk(r.unfinished, batch) {
		d, err := Delete(ctx, r.Deps, some, func(catalog.Point) string { return "finished: the repository had deleted it" })
		r.res.Finished = append(r.res.Finished, d.Deleted...)
		r.res.Released += d.Released
		r.note(d.Problems)
		if err != nil {
			return err
		}
	}
	return nil
}

// deleteAll deletes what is to go, the oldest first.
func (r *runner) deleteAll(ctx context.Context) error {
	var going []int
	for i, p := range r.res.Points {
		if !p.Decision.Keep {
			going = append(going, i)
		}
	}
	done := 0
	r.progress(done, len(going))
	for some := range slices.Chunk(going, batch) {
		if err := ctx.Err(); err != nil {
			return err
		}
		points, err := r.still(ctx, some)
		if err != nil {
			return err
		}
		d, err := Delete(ctx, r.Deps, points, func(p catalog.Point) string {
			i := slices.IndexFunc(some, func(i int) bool { return r.res.Points[i].Point.ID == p.ID })
			return "prune: " + clip(strings.Join(r.res.Points[some[i]].Decision.Reasons, "; "))
		})
		r.res.Released += d.Released
		r.note(d.Problems)
		for _, i := range some {
			p := &r.res.Points[i]
			if used := d.InUse[p.Point.ID]; used != nil {
				p.keepInUse(used)
			}
			p.Deleted, p.In = slices.Contains(d.Deleted, p.Point.ID), d.In[p.Point.ID]
		}
		if err != nil {
			return err
		}
		done += len(some)
		r.progress(done, len(going))
	}
	return nil
}

func (r *runner) progress(done, total int) {
	if r.req.Progress != nil {
		r.req.Progress(done, total)
	}
}

// still looks again before a batch goes: what was decided rests on what is
// kept, and somebody may have pinned one of these meanwhile.
func (r *runner) still(ctx context.Context, some []int) ([]catalog.Point, error) {
	listed, err := r.Repository.Points(ctx, r.req.Machine.ID)
	if err != nil {
		return nil, err
	}
	has := map[string]bool{}
	for _, p := range listed {
		has[p.ID] = true
	}
	for _, p := range r.res.Points {
		if p.Decision.Keep && !has[p.Point.ID] {
			return nil, fmt.Errorf("recovery point %s: %w", p.Point.ID, ErrChanged)
		}
	}
	said, err := r.Statements(ctx, r.req.Machine.ID)
	if err != nil {
		return nil, err
	}
	var points []catalog.Point
	for _, i := range some {
		p := &r.res.Points[i]
		why := Keeps(said.Marks[p.Point.ID])
		if d := said.Doubtful[p.Point.ID]; d != "" {
			why = append(why, d)
		}
		if len(why) > 0 {
			p.Decision.Keep, p.Decision.Reasons = true, why
			continue
		}
		points = append(points, p.Point)
	}
	return points, nil
}

// Keeps are the reasons for which nothing may delete a recovery point with
// these marks.
func Keeps(m custody.Marks) (why []string) {
	if m.Pin != nil {
		why = append(why, fmt.Sprintf("pinned by %s (%s)", m.Pin.Actor, m.Pin.Reason))
	}
	for _, h := range m.LegalHolds {
		why = append(why, fmt.Sprintf("legal hold %s (%s)", h.Name, h.Reason))
	}
	return why
}

// clip keeps a reason in a log entry short.
func clip(s string) string {
	const most = 1000
	if len(s) <= most {
		return s
	}
	return strings.ToValidUTF8(s[:most], "") + "…"
}
