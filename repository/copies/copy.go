// Package copies brings recovery points from one repository to another, and
// what is damaged in one back from another. docs/spec/repository.md, sections
// 14 and 15.
//
// Its invariant: a recovery point is listed in the destination when all that
// it needs is durable there, and nothing arrives that was not compared with
// what was written once.
package copies

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/lockstep-backup/lockstep/envelope"
	"github.com/lockstep-backup/lockstep/repository"
	"github.com/lockstep-backup/lockstep/repository/format"
	"github.com/lockstep-backup/lockstep/repository/internal/blockmap"
	"github.com/lockstep-backup/lockstep/repository/internal/inside"
	"github.com/lockstep-backup/lockstep/repository/internal/machinekey"
	"github.com/lockstep-backup/lockstep/repository/internal/machinelog"
	"github.com/lockstep-backup/lockstep/repository/internal/transfer"
	"github.com/lockstep-backup/lockstep/repository/internal/trust"
	"github.com/lockstep-backup/lockstep/store"
)

// ErrSealing says that two repositories store extents differently, so that
// nothing can be copied between them as it is.
var ErrSealing = errors.New("the repositories are not sealed alike")

// ErrOtherKeys says that two repositories have a machine of the same id with
// different keys.
var ErrOtherKeys = errors.New("the destination has a machine of this id with other keys")

// Options say what Copy copies, and how.
type Options struct {
	Points []string // ids of recovery points; empty: all that the source lists
	Newest int      // of those the newest N only; 0: all
	// Custodian is the destination's. It signs that the keys of the source count
	// there; nil where they are known to do so already.
	Custodian *envelope.SigningKey
	// Verify opens every extent that was copied where it lies then.
	Verify   bool
	Parallel int // objects at a time, 0: 4
	// Lease, where it is not nil, keeps a recovery point of the source from being
	// deleted while it is copied.
	Lease func(ctx context.Context, point string) (release func(), err error)
	// Progress is told of recovery points done, and of bytes copied so far.
	Progress func(done, total int, bytes int64)
}

// Counts are what a copy moved, in objects and bytes.
type Counts = transfer.Counts

// Result says what a copy did.
type Result struct {
	Counts
	Points  []string // copied now, oldest first
	Present int      // were there
	Deleted int      // not brought back: the destination's log deletes them
	Keys    bool     // keys of the source were added to the destination's trust log
	// Failed are the recovery points that could not be copied, and why. The
	// others were.
	Failed []Failure
	// Problems are statements that could not be copied or do not count, and
	// recovery points that the source deleted meanwhile, in words.
	Problems []string
}

// Failure is a recovery point that could not be copied.
type Failure struct {
	Point string
	Err   error
}

// Copy brings recovery points of a machine from src to dst, whatever they
// need, and all statements about them; docs/spec/repository.md, section 14.
// What is there already is not moved again; what dst deleted does not come
// back. Killed, it goes on when it is run again. The result is filled also
// where there is an error; a recovery point is listed in dst with all that it
// needs, or not at all.
func Copy(ctx context.Context, src, dst *repository.Repository, mid string, o Options) (Result, error) {
	c := &copying{src: src, dst: dst, in: src.Inside(), to: dst.Inside(), mid: mid, o: o}
	err := c.run(ctx)
	c.res.Counts = c.objects.Counts()
	if err != nil {
		err = fmt.Errorf("copy machine %s: %w", mid, err)
	}
	return c.res, err
}

type copying struct {
	src, dst *repository.Repository
	in, to   inside.Repository // the same from within
	mid      string
	keys     *machinekey.Keys
	from, at *machinelog.Log // of the machine, in src and dst
	o        Options
	objects  transfer.Copier
	res      Result

	mu          sync.Mutex
	done, total int
	referenced  map[string]bool      // by listed recovery points of dst, where somebody asked
	locked      map[string]time.Time // of recovery points that were copied
}

func (c *copying) run(ctx context.Context) error {
	switch {
	case c.to.Writer == nil:
		return c.to.ReadOnly("write to the other repository")
	case c.src.ID() == c.dst.ID():
		return errors.New("source and destination are the same repository")
	case c.src.Sealing() != c.dst.Sealing():
		return fmt.Errorf("%w: %s and %s", ErrSealing, c.src.Sealing(), c.dst.Sealing())
	}
	var err error
	if _, c.from, err = c.in.Machine(ctx, c.mid); err != nil {
		return err
	}
	if err := c.adoptKeys(ctx); err != nil {
		return err
	}
	if err := c.adoptMachine(ctx); err != nil {
		return err
	}
	c.objects = transfer.Copier{
		From: c.in.Store, To: c.to.Store, Keys: c.keys, Sealed: c.to.Sealed,
		Verify: c.o.Verify, Parallel: c.o.Parallel, Referenced: c.isReferenced,
	}
	if c.objects.Parallel <= 0 {
		c.objects.Parallel = 4
	}
	if c.o.Progress != nil {
		c.objects.Moved = func(n int64) {
			c.mu.Lock()
			defer c.mu.Unlock()
			c.o.Progress(c.done, c.total, n)
		}
	}
	source, err := c.from.Read(ctx)
	if err != nil {
		return err
	}
	chosen, err := c.choose(source)
	if err != nil {
		return err
	}
	c.total = len(chosen)
	for _, p := range chosen {
		err := c.point(ctx, source, p)
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		switch {
		case (errors.Is(err, repository.ErrDamaged) || errors.Is(err, repository.ErrNotFound)) && c.gone(ctx, p.Point):
			c.res.Problems = append(c.res.Problems, fmt.Sprintf("recovery point %s was deleted in the source before it was copied", p.Point))
		case errors.Is(err, repository.ErrDamaged), errors.Is(err, repository.ErrNotFound): // the others need not suffer
			c.res.Failed = append(c.res.Failed, Failure{p.Point, err})
		case err != nil:
			return fmt.Errorf("recovery point %s: %w", p.Point, err)
		}
		c.mu.Lock()
		c.done++
		c.mu.Unlock()
	}
	if err := c.sidecars(ctx); err != nil {
		return err
	}
	if n := len(c.res.Failed); n > 0 {
		return fmt.Errorf("%d recovery points could not be copied, the first is %s: %w", n, c.res.Failed[0].Point, c.res.Failed[0].Err)
	}
	return nil
}

// adoptKeys makes the source's signatures count in the destination.
func (c *copying) adoptKeys(ctx context.Context) error {
	theirs, ours := c.src.Trust(), c.dst.Trust()
	var lacking []envelope.KeyID
	for _, id := range ours.Missing(theirs) {
		if k, revoked, _ := theirs.Key(id); k.Role != envelope.RoleCustodian || revoked != nil {
			lacking = append(lacking, id)
		} else {
			c.res.Problems = append(c.res.Problems, fmt.Sprintf("what the source's custodian %s declared does not count in the destination", id))
		}
	}
	if len(lacking) == 0 {
		return nil
	}
	if c.o.Custodian == nil {
		return fmt.Errorf("keys that signed in the source do not count in the destination (%v), and no custodian's key is there to change that: %w", lacking, repository.ErrUntrusted)
	}
	return c.to.ChangeTrust(func(known trust.Log) (trust.Log, error) {
		for range maxTries {
			// What is known may be old: somebody else may have published keys since.
			now, err := known.Again(ctx, c.to.Store, c.dst.ID())
			if err != nil {
				return known, err
			}
			after, changed, err := now.Adopt(ctx, c.to.Store, c.dst.ID(), *c.o.Custodian, theirs, nil, c.to.Now())
			c.res.Keys = c.res.Keys || changed
			if !errors.Is(err, store.ErrExist) {
				return after, err
			}
		}
		return known, fmt.Errorf("the destination's trust log went on %d times meanwhile: %w", maxTries, repository.ErrConflict)
	})
}

// adoptMachine wraps the machine's keys for the destination.
func (c *copying) adoptMachine(ctx context.Context) error {
	rec, err := readRecord(ctx, c.in, c.mid)
	if err != nil {
		return err
	}
	defer rec.wipe()
	old, err := readRecord(ctx, c.to, c.mid)
	defer func() { old.wipe() }()
	switch {
	case errors.Is(err, repository.ErrNotFound):
		if err := rec.write(ctx, c.to, c.dst.Trust); err != nil {
			return err
		}
		// Another copier may have been faster; its keys have to be these.
		if old, err = readRecord(ctx, c.to, c.mid); err != nil {
			return err
		}
	case err != nil:
		return err
	}
	if !bytes.Equal(old.Metadata, rec.Metadata) || !bytes.Equal(old.Content, rec.Content) {
		return ErrOtherKeys
	}
	c.keys, c.at, err = c.to.Machine(ctx, c.mid)
	return err
}

// choose selects from what the source lists, oldest first.
func (c *copying) choose(source []machinelog.Record) ([]machinelog.Record, error) {
	listed := machinelog.Listed(source)
	if len(c.o.Points) > 0 {
		for _, id := range c.o.Points {
			if !slices.ContainsFunc(listed, func(p machinelog.Record) bool { return p.Point == id }) {
				return nil, fmt.Errorf("recovery point %s: %w", id, repository.ErrNotFound)
			}
		}
		listed = slices.DeleteFunc(listed, func(p machinelog.Record) bool { return !slices.Contains(c.o.Points, p.Point) })
	}
	// What came into the source out of order is in the order of its making here.
	slices.SortStableFunc(listed, func(a, b machinelog.Record) int { return cmp.Compare(a.Birth(), b.Birth()) })
	if n := c.o.Newest; n > 0 && len(listed) > n {
		listed = listed[len(listed)-n:]
	}
	return listed, nil
}

// lease keeps a recovery point in the source as long as it is copied.
func (c *copying) lease(ctx context.Context, point string) (release func(), err error) {
	if c.o.Lease == nil {
		return func() {}, nil
	}
	if release, err = c.o.Lease(ctx, point); err != nil {
		return nil, err
	}
	if c.gone(ctx, point) {
		release()
		return nil, fmt.Errorf("recovery point %s: %w", point, repository.ErrNotFound)
	}
	return release, nil
}

// gone reports whether the source's log, read anew, deletes a recovery point.
func (c *copying) gone(ctx context.Context, point string) bool {
	deleted, err := c.src.Deleted(ctx, c.mid)
	return err == nil && deleted[point]
}

// maxTries bounds how often others may come in between.
const maxTries = 16

// point copies one recovery point. What somebody writes to the destination's
// log meanwhile, a fence above all, may change what can be relied on: then
// everything is looked at again, and what was moved is found there.
func (c *copying) point(ctx context.Context, source []machinelog.Record, p machinelog.Record) error {
	var release func()
	for range maxTries {
		there, err := c.at.Read(ctx)
		if err != nil {
			return err
		}
		c.referenced = nil
		plan, err := transfer.NewPlan(source, there, p)
		if err != nil {
			return err
		}
		switch {
		case plan.Present:
			c.res.Present++
			return nil
		case plan.Deleted:
			c.res.Deleted++
			return nil
		}
		if release == nil { // before anything of it is read
			if release, err = c.lease(ctx, p.Point); err != nil {
				return err
			}
			defer release()
		}
		mf, err := manifest(ctx, c.src, c.mid, p.Point)
		if err != nil {
			return err
		}
		if err := c.move(ctx, plan, p, mf); err != nil {
			return err
		}
		e := machinelog.Entry{N: int64(len(there)), Kind: machinelog.Commit, Point: p.Point, Manifest: p.Manifest, Parent: plan.Parent}
		e.SetBirth(p.Birth())
		if mf.Repository != c.dst.ID() {
			e.Origin = mf.Repository
		}
		if err := c.protect(ctx, there, plan, mf); err != nil {
			return err
		}
		err = c.at.Append(ctx, there, e, *c.to.Writer, c.to.Now())
		if errors.Is(err, store.ErrExist) {
			continue
		}
		if err != nil {
			return err
		}
		return c.readBack(ctx, plan, p, mf)
	}
	return fmt.Errorf("the destination's log went on %d times meanwhile: %w", maxTries, repository.ErrConflict)
}

// move makes durable in the destination all that the recovery point needs.
func (c *copying) move(ctx context.Context, plan transfer.Plan, p machinelog.Record, mf *repository.Manifest) error {
	var trees []*blockmap.Tree
	for _, d := range mf.Disks {
		t, err := c.src.Tree(ctx, c.mid, d)
		if err != nil {
			return err
		}
		trees = append(trees, t)
	}
	if err := c.objects.Objects(ctx, plan, trees); err != nil {
		return err
	}
	if err := c.headers(ctx, mf); err != nil {
		return err
	}
	return c.objects.Manifest(ctx, p.Point, func(raw []byte) error {
		if trust.Digest(raw) != p.Manifest {
			return fmt.Errorf("it is not the manifest that was committed: %w", format.ErrCorrupt)
		}
		return nil
	})
}

func (c *copying) headers(ctx context.Context, mf *repository.Manifest) error {
	for _, d := range mf.Disks {
		for _, h := range d.Headers {
			if !format.ValidID(h.ID) {
				return &repository.DamageError{Object: format.ManifestKey(mf.Machine, mf.Point), Machine: mf.Machine, Err: format.ErrCorrupt}
			}
			if err := c.objects.Header(ctx, h.ID); err != nil {
				return err
			}
		}
	}
	return nil
}

// readBack looks at what was committed as a reader does. Header copies and the
// manifest have one name only: where a reclaim's late deletion may have met
// them, they are brought again.
func (c *copying) readBack(ctx context.Context, plan transfer.Plan, p machinelog.Record, mf *repository.Manifest) error {
	if p.Birth() <= plan.Fence {
		if err := c.move(ctx, plan, p, mf); err != nil {
			return fmt.Errorf("read back: %w", err)
		}
	}
	if _, err := manifest(ctx, c.dst, c.mid, mf.Point); err != nil {
		if deleted, derr := c.dst.Deleted(ctx, c.mid); derr == nil && deleted[mf.Point] {
			c.res.Deleted++ // by somebody, since it was committed
			return nil
		}
		return fmt.Errorf("read back: %w", err)
	}
	c.res.Points = append(c.res.Points, mf.Point)
	return nil
}

// isReferenced says whether a listed recovery point of the destination refers
// to an object; it reads all their maps, once.
func (c *copying) isReferenced(ctx context.Context, key string) (bool, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.referenced == nil {
		points, err := c.dst.Points(ctx, c.mid)
		if err != nil {
			return false, nil // with a damaged log nothing is sure
		}
		refs := transfer.NewReferences(-1)
		for _, p := range points {
			mf, err := c.dst.Manifest(ctx, p)
			if err != nil {
				continue
			}
			for _, d := range mf.Disks {
				t, err := c.dst.Tree(ctx, c.mid, d)
				if err == nil {
					err = refs.Add(ctx, t)
				}
				if err != nil && !errors.Is(err, repository.ErrDamaged) {
					return false, err
				}
			}
		}
		c.referenced = map[string]bool{}
		refs.Keys(c.mid, func(key string, _ int64) { c.referenced[key] = true })
	}
	return c.referenced[key], nil
}

// sidecars copies the statements that the destination lacks: about recovery
// points that it lists, and about the machine. They come and go by themselves,
// so they are compared on every copy.
func (c *copying) sidecars(ctx context.Context) error {
	points, err := c.dst.Points(ctx, c.mid)
	if err != nil && !errors.Is(err, repository.ErrDamaged) {
		return err
	}
	listed := map[string]bool{repository.MachineSidecars: true}
	for _, p := range points {
		listed[p.ID] = true
	}
	problems, err := c.objects.Sidecars(ctx,
		func(point, name string) bool {
			return listed[point] || strings.HasPrefix(name, repository.SidecarCertificate+"-")
		},
		func(key string, raw []byte) error { return checkSidecar(c.keys, key, raw) })
	for _, p := range problems {
		c.res.Problems = append(c.res.Problems, p.Error())
	}
	return err
}

// manifest reads the manifest of a recovery point that a repository lists.
func manifest(ctx context.Context, r *repository.Repository, mid, pid string) (*repository.Manifest, error) {
	points, err := r.Points(ctx, mid)
	if err != nil && !errors.Is(err, repository.ErrDamaged) {
		return nil, err
	}
	for _, p := range points {
		if p.ID == pid {
			return r.Manifest(ctx, p)
		}
	}
	return nil, fmt.Errorf("recovery point %s: %w", pid, repository.ErrNotFound)
}

// checkSidecar checks that a statement is authentic where it lies.
func checkSidecar(m *machinekey.Keys, key string, raw []byte) error {
	name := key[strings.LastIndexByte(key, '/')+1:]
	kind := name[:max(strings.LastIndexByte(name, '-'), 0)]
	k := m.Sidecar
	switch kind {
	case "":
		return format.ErrCorrupt
	case repository.SidecarKeyPackage, repository.SidecarHeaderPackage: // sealed to their recipients already
		k = nil
	}
	_, err := envelope.OpenFrame(raw, format.KindSidecar, k, []byte(key))
	return err
}
