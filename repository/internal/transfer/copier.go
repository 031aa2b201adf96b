package transfer

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"

	"golang.org/x/sync/errgroup"

	"github.com/lockstep-backup/lockstep/envelope"
	"github.com/lockstep-backup/lockstep/repository/format"
	"github.com/lockstep-backup/lockstep/repository/internal/blockmap"
	"github.com/lockstep-backup/lockstep/repository/internal/damage"
	"github.com/lockstep-backup/lockstep/repository/internal/headercopy"
	"github.com/lockstep-backup/lockstep/repository/internal/machinekey"
	"github.com/lockstep-backup/lockstep/repository/internal/segment"
	"github.com/lockstep-backup/lockstep/repository/internal/smallobject"
	"github.com/lockstep-backup/lockstep/store"
)

// Counts are what a copy did.
type Counts struct {
	Objects  int64 // segments, map objects, header copies and manifests written
	Replicas int64 // of these: under a name of their own, section 12
	Found    int64 // objects that were there already
	Bytes    int64 // written
	Sidecars int64 // written
}

// Copier moves the objects of one machine. Its keys are the same on both sides.
type Copier struct {
	From, To store.Store
	Keys     *machinekey.Keys
	Sealed   bool
	Verify   bool // open every extent that was copied where it lies then
	Parallel int
	// Referenced says whether a listed recovery point of the destination refers to an object.
	Referenced func(ctx context.Context, key string) (bool, error)
	Moved      func(bytes int64) // so far, may be nil

	mu     sync.Mutex
	counts Counts
}

// Counts so far.
func (c *Copier) Counts() Counts {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.counts
}

func (c *Copier) count(fn func(*Counts)) {
	c.mu.Lock()
	defer c.mu.Unlock()
	fn(&c.counts)
	if c.Moved != nil {
		c.Moved(c.counts.Bytes)
	}
}

// Objects moves the segments and map objects behind the maps that the
// destination may lack.
func (c *Copier) Objects(ctx context.Context, d Plan, trees []*blockmap.Tree) error {
	need := NewReferences(d.Covered)
	for _, t := range trees {
		if err := need.Add(ctx, t); err != nil {
			return err
		}
	}
	var keys []string
	births := map[string]int64{}
	need.Keys(c.Keys.ID, func(key string, birth int64) { keys, births[key] = append(keys, key), birth })
	slices.Sort(keys)
	slices.Reverse(keys) // segments before maps
	group, ctx := errgroup.WithContext(ctx)
	group.SetLimit(c.Parallel)
	buffers := sync.Pool{New: func() any { b := NewBuffer(); return &b }}
	for _, key := range keys {
		if ctx.Err() != nil {
			break
		}
		group.Go(func() error {
			buf := buffers.Get().(*Buffer)
			defer buffers.Put(buf)
			return c.object(ctx, key, births[key] <= d.Fence, *buf)
		})
	}
	return group.Wait()
}

// object brings one segment or map object. What the destination has is relied
// on where no reclaim can have had an eye on it, or a listed recovery point
// refers to it; else it may vanish, and its name may have been in use.
func (c *Copier) object(ctx context.Context, key string, fenced bool, buf Buffer) error {
	want, err := c.From.Stat(ctx, key)
	gone := errors.Is(err, store.ErrNotExist)
	if err != nil && !gone {
		return damage.FromStore(key, err)
	}
	have, err := c.To.Stat(ctx, key)
	switch {
	case errors.Is(err, store.ErrNotExist) && !gone && !fenced:
		return c.large(ctx, key, buf)
	case errors.Is(err, store.ErrNotExist):
		return c.replicas(ctx, key, gone, fenced, buf)
	case err != nil:
		return damage.FromStore(key, err)
	}
	if !gone && have.Size != want.Size {
		return fmt.Errorf("in the destination: %w", errSize(key, have.Size, want.Size))
	}
	if fenced {
		sure, err := c.Referenced(ctx, key)
		if err != nil {
			return err
		}
		if !sure {
			return c.replicas(ctx, key, gone, fenced, buf)
		}
	}
	c.count(func(n *Counts) { n.Found++ })
	return nil
}

func (c *Copier) large(ctx context.Context, key string, buf Buffer) error {
	n, err := Large(ctx, c.To, c.From, key, buf)
	if errors.Is(err, store.ErrExist) { // another copier was faster
		c.count(func(n *Counts) { n.Found++ })
		return nil
	}
	if err == nil && c.Verify {
		err = CheckLarge(ctx, c.To, c.Keys, c.Sealed, key)
	}
	if err != nil {
		return err
	}
	c.count(func(x *Counts) { x.Objects++; x.Bytes += n })
	return nil
}

// Header copies both copies of an encryption header. One that is damaged in the
// source is made anew from the other.
func (c *Copier) Header(ctx context.Context, hid string) error {
	for _, key := range format.HeaderKeys(c.Keys.ID, hid) {
		if _, err := c.To.Stat(ctx, key); err == nil {
			if _, err := c.header(ctx, c.To, key); err != nil {
				return fmt.Errorf("in the destination: %w", err)
			}
			c.count(func(n *Counts) { n.Found++ })
			continue
		} else if !errors.Is(err, store.ErrNotExist) {
			return damage.FromStore(key, err)
		}
		n, wrote, err := Small(ctx, c.To, c.From, key, func(raw []byte) error {
			_, err := openHeader(c.Keys, key, raw)
			return err
		})
		if errors.Is(err, damage.ErrDamaged) || errors.Is(err, damage.ErrNotFound) {
			var body, frame []byte
			if body, err = c.anyHeader(ctx, hid); err == nil {
				frame, err = smallobject.Put(ctx, c.To, key, format.KindHeader, c.Keys.Header, body)
			}
			n, wrote = int64(len(frame)), true
		}
		if err != nil {
			return err
		}
		c.wrote(n, wrote)
	}
	return nil
}

func (c *Copier) wrote(n int64, wrote bool) {
	c.count(func(x *Counts) {
		if wrote {
			x.Objects++
			x.Bytes += n
		} else {
			x.Found++
		}
	})
}

func openHeader(m *machinekey.Keys, key string, raw []byte) ([]byte, error) {
	body, err := envelope.OpenFrame(raw, format.KindHeader, m.Header, []byte(key))
	if err == nil {
		_, err = headercopy.Parse(body)
	}
	return body, err
}

func (c *Copier) header(ctx context.Context, st store.Store, key string) (body []byte, err error) {
	_, err = Read(ctx, st, key, func(raw []byte) (err error) {
		body, err = openHeader(c.Keys, key, raw)
		return err
	})
	return body, err
}

// anyHeader reads whichever copy of a header is sound in the source.
func (c *Copier) anyHeader(ctx context.Context, hid string) ([]byte, error) {
	var errs []error
	for _, key := range format.HeaderKeys(c.Keys.ID, hid) {
		body, err := c.header(ctx, c.From, key)
		if err == nil {
			return body, nil
		}
		errs = append(errs, err)
	}
	return nil, errors.Join(errs...)
}

// Manifest copies a recovery point's manifest; check compares it with the log.
func (c *Copier) Manifest(ctx context.Context, pid string, check func([]byte) error) error {
	n, wrote, err := Small(ctx, c.To, c.From, format.ManifestKey(c.Keys.ID, pid), check)
	if err == nil {
		c.wrote(n, wrote)
	}
	return err
}

// Sidecars copies the statements that the destination lacks and wanted accepts.
// check says whether one is authentic where it lies. What could not be copied
// because it is damaged comes back as problems.
func (c *Copier) Sidecars(ctx context.Context, wanted func(point, name string) bool, check func(key string, raw []byte) error) (problems []error, err error) {
	prefix := strings.TrimSuffix(format.SidecarPrefix(c.Keys.ID, ""), "/") // of all recovery points
	there := map[string]bool{}
	if err := c.To.List(ctx, prefix, func(i store.Info) error { there[i.Key] = true; return nil }); err != nil {
		return nil, fmt.Errorf("list statements: %w", err)
	}
	var missing []string
	err = c.From.List(ctx, prefix, func(i store.Info) error {
		point, name, _ := strings.Cut(strings.TrimPrefix(i.Key, prefix), "/")
		if !there[i.Key] && wanted(point, name) {
			missing = append(missing, i.Key)
		}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("list statements: %w", err)
	}
	group, ctx := errgroup.WithContext(ctx)
	group.SetLimit(c.Parallel)
	for _, key := range missing {
		if ctx.Err() != nil {
			break
		}
		group.Go(func() error {
			n, wrote, err := Small(ctx, c.To, c.From, key, func(raw []byte) error { return check(key, raw) })
			switch {
			case errors.Is(err, damage.ErrDamaged), errors.Is(err, damage.ErrNotFound):
				c.mu.Lock()
				defer c.mu.Unlock()
				problems = append(problems, err)
			case err != nil:
				return err
			case wrote:
				c.count(func(x *Counts) { x.Sidecars++; x.Bytes += n })
			}
			return nil
		})
	}
	err = group.Wait()
	return problems, err
}

// Extents opens every extent of a segment where it lies.
func Extents(ctx context.Context, st store.Store, m *machinekey.Keys, sealed bool, key string) error {
	_, name, _, ok := format.Original(key)
	if !ok {
		return &damage.Error{Object: key, Machine: m.ID, Err: format.ErrCorrupt}
	}
	toc, err := segment.ReadTOC(ctx, st, m, key)
	if err != nil {
		return err
	}
	s, err := segment.NewCache(m, st, sealed).Get(ctx, name)
	if err != nil {
		return err
	}
	slices.SortFunc(toc.Extents, func(a, b format.TOCExtent) int { return int(int64(a.Position) - int64(b.Position)) })
	g := m.Digester()
	defer m.Release(g)
	var x segment.Scratch
	buf := make([]byte, format.CRCChunk+format.TagSize)
	for i := 0; i < len(toc.Extents); {
		// As many neighbours at once as the buffer holds.
		start, end, j := int64(toc.Extents[i].Position)*format.PageSize, int64(0), i
		for ; j < len(toc.Extents); j++ {
			stop := (int64(toc.Extents[j].Position) + int64(format.Pages(toc.Extents[j].Mask))) * format.PageSize
			if stop-start > format.CRCChunk {
				break
			}
			end = max(end, stop)
		}
		if err := damage.ReadFull(ctx, st, key, start, buf[:end-start]); err != nil {
			return err
		}
		for _, e := range toc.Extents[i:j] {
			at := int64(e.Position)*format.PageSize - start
			if err := s.Open(g, &x, buf[at:], format.Pages(e.Mask)*format.PageSize, e.Position, e.Mask, e.Tag); err != nil {
				return &damage.Error{Object: key, Machine: m.ID, Err: err}
			}
		}
		i = j
	}
	return nil
}
