package transfer

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/lockstep-backup/lockstep/repository/format"
	"github.com/lockstep-backup/lockstep/repository/internal/blockmap"
	"github.com/lockstep-backup/lockstep/repository/internal/damage"
	"github.com/lockstep-backup/lockstep/repository/internal/machinekey"
	"github.com/lockstep-backup/lockstep/repository/internal/replica"
	"github.com/lockstep-backup/lockstep/repository/internal/segment"
	"github.com/lockstep-backup/lockstep/store"
)

// replicas brings an object under another name: because the source has it so
// (gone), or because its own may vanish in the destination (fenced).
func (c *Copier) replicas(ctx context.Context, key string, gone, fenced bool, buf Buffer) error {
	if fenced {
		info, err := Replace(ctx, c.To, c.From, c.Keys, c.Sealed, key)
		if err != nil {
			return err
		}
		c.count(func(n *Counts) { n.Objects++; n.Replicas++; n.Bytes += info.Size })
		return nil
	}
	keys, err := replica.Keys(ctx, c.From, key)
	if err != nil {
		return err
	}
	if gone && len(keys) == 0 {
		return &damage.Error{Object: key, Machine: c.Keys.ID, Err: damage.ErrNotFound}
	}
	for _, k := range keys {
		want, err := c.From.Stat(ctx, k)
		if err != nil {
			return damage.FromStore(k, err)
		}
		have, err := c.To.Stat(ctx, k)
		switch {
		case err == nil && have.Size != want.Size:
			return fmt.Errorf("in the destination: %w", errSize(k, have.Size, want.Size))
		case err == nil:
			c.count(func(n *Counts) { n.Found++ })
			continue
		case !errors.Is(err, store.ErrNotExist):
			return damage.FromStore(k, err)
		}
		if err := c.large(ctx, k, buf); err != nil {
			return err
		}
		c.count(func(n *Counts) { n.Replicas++ })
	}
	return nil
}

// Replace writes a replica of an object, given by its key or by a replica's,
// that has all that src has of it; every tag is compared on the way. A map
// object of version 1 has no table that a replica could have: it comes under
// its own name, which must be free.
func Replace(ctx context.Context, dst, src store.Store, m *machinekey.Keys, sealed bool, key string) (store.Info, error) {
	original, name, _, ok := format.Original(key)
	if !ok {
		return store.Info{}, &damage.Error{Object: key, Machine: m.ID, Err: format.ErrCorrupt}
	}
	keys := []string{original}
	if _, err := src.Stat(ctx, original); errors.Is(err, store.ErrNotExist) {
		if keys, err = replica.Keys(ctx, src, original); err != nil {
			return store.Info{}, err
		}
		if len(keys) == 0 {
			return store.Info{}, &damage.Error{Object: original, Machine: m.ID, Err: damage.ErrNotFound}
		}
	} else if err != nil {
		return store.Info{}, damage.FromStore(original, err)
	}
	view := replica.New(src, m)
	if original == format.SegmentKey(m.ID, name) {
		s, err := segment.NewCache(m, view, sealed).Get(ctx, name)
		if err != nil {
			return store.Info{}, err
		}
		toc, err := extentsOf(ctx, src, m, keys)
		if err != nil {
			return store.Info{}, err
		}
		return segment.WriteReplica(ctx, dst, view, m, s, toc)
	}
	table, err := pagesOf(ctx, src, m, keys)
	if errors.Is(err, segment.ErrNoTable) {
		n, err := Large(ctx, dst, src, original, NewBuffer())
		return store.Info{Key: original, Size: n}, err
	}
	if err != nil {
		return store.Info{}, err
	}
	return blockmap.NewCache(m, view).WriteReplica(ctx, dst, name, table)
}

// Held is how a repository holds an object.
type Held struct {
	// SameName: it can be brought elsewhere under its own name only, for it is a
	// map object of version 1.
	SameName bool
}

// Has says whether a repository has an object, or replicas of it, whole.
func Has(ctx context.Context, st store.Store, m *machinekey.Keys, sealed bool, key string) (h Held, err error) {
	original, _, _, ok := format.Original(key)
	if !ok {
		return h, &damage.Error{Object: key, Machine: m.ID, Err: format.ErrCorrupt}
	}
	keys := []string{original}
	if _, err := st.Stat(ctx, original); errors.Is(err, store.ErrNotExist) {
		if keys, err = replica.Keys(ctx, st, original); err == nil && len(keys) == 0 {
			err = &damage.Error{Object: original, Machine: m.ID, Err: damage.ErrNotFound}
		}
		if err != nil {
			return h, err
		}
	}
	for _, k := range keys {
		if err := CheckLarge(ctx, st, m, sealed, k); err != nil {
			return h, err
		}
	}
	if strings.HasPrefix(original, "map/") && len(keys) == 1 && keys[0] == original {
		_, err = blockmap.ReadPages(ctx, st, m, original)
		h.SameName = errors.Is(err, segment.ErrNoTable)
		if h.SameName {
			err = nil
		}
	}
	return h, err
}

// Covered says whether replicas in dst, all of them whole, have everything
// that src has of an object, and gives the key of one.
func Covered(ctx context.Context, dst, src store.Store, m *machinekey.Keys, sealed bool, key string) (as string, err error) {
	original, name, _, ok := format.Original(key)
	if !ok {
		return "", &damage.Error{Object: key, Machine: m.ID, Err: format.ErrCorrupt}
	}
	here, err := replica.Keys(ctx, dst, original)
	if err != nil || len(here) == 0 {
		return "", err
	}
	for _, k := range here {
		if err := CheckLarge(ctx, dst, m, sealed, k); err != nil {
			return "", err
		}
	}
	there := []string{original}
	if _, err := src.Stat(ctx, original); errors.Is(err, store.ErrNotExist) {
		if there, err = replica.Keys(ctx, src, original); err != nil {
			return "", err
		}
	}
	have := map[uint32]bool{}
	if original == format.SegmentKey(m.ID, name) {
		has, err := extentsOf(ctx, dst, m, here)
		if err != nil {
			return "", err
		}
		for _, e := range has.Extents {
			have[e.Position] = true
		}
		wanted, err := extentsOf(ctx, src, m, there)
		for _, e := range wanted.Extents {
			if !have[e.Position] {
				return "", err
			}
		}
		return here[0], err
	}
	has, err := pagesOf(ctx, dst, m, here)
	if err != nil {
		return "", err
	}
	for _, e := range has.Pages {
		have[e.Offset] = true
	}
	wanted, err := pagesOf(ctx, src, m, there)
	for _, e := range wanted.Pages {
		if !have[e.Offset] {
			return "", err
		}
	}
	return here[0], err
}

// extentsOf joins the tables of contents of a segment or of its replicas.
func extentsOf(ctx context.Context, st store.Store, m *machinekey.Keys, keys []string) (all format.TOC, err error) {
	seen := map[uint32]bool{}
	for _, key := range keys {
		var t format.TOC
		if _, _, isReplica, _ := format.Original(key); isReplica {
			var rt format.ReplicaTOC
			rt, err = segment.ReadReplicaTOC(ctx, st, m, key)
			t = rt.TOC
		} else {
			t, err = segment.ReadTOC(ctx, st, m, key)
		}
		if err != nil {
			return all, err
		}
		place := make([]uint16, len(t.Disks))
		for i, d := range t.Disks {
			at := slices.Index(all.Disks, d)
			if at < 0 {
				at = len(all.Disks)
				all.Disks = append(all.Disks, d)
			}
			place[i] = uint16(at)
		}
		for _, e := range t.Extents {
			if !seen[e.Position] {
				seen[e.Position] = true
				e.Disk = place[e.Disk]
				all.Extents = append(all.Extents, e)
			}
		}
	}
	return all, nil
}

// pagesOf joins the page tables of a map object or of its replicas.
func pagesOf(ctx context.Context, st store.Store, m *machinekey.Keys, keys []string) (all format.PageTable, err error) {
	seen := map[uint32]bool{}
	for _, key := range keys {
		t, err := blockmap.ReadPages(ctx, st, m, key)
		if err != nil {
			return all, err
		}
		place := make([]int, len(t.Disks))
		for i, d := range t.Disks {
			if place[i] = slices.Index(all.Disks, d); place[i] < 0 {
				place[i] = len(all.Disks)
				all.Disks = append(all.Disks, d)
			}
		}
		for _, e := range t.Pages {
			if !seen[e.Offset] {
				seen[e.Offset] = true
				e.Disk = place[e.Disk]
				all.Pages = append(all.Pages, e)
			}
		}
	}
	slices.SortFunc(all.Pages, func(a, b format.PageEntry) int { return cmp.Compare(a.Offset, b.Offset) })
	return all, nil
}

// CheckLarge checks a segment, a map object or a replica: every checksum, the
// table, and, of a segment, every extent.
func CheckLarge(ctx context.Context, st store.Store, m *machinekey.Keys, sealed bool, key string) error {
	original, name, isReplica, ok := format.Original(key)
	if !ok {
		return &damage.Error{Object: key, Machine: m.ID, Err: format.ErrCorrupt}
	}
	if err := segment.CheckChunks(ctx, st, key); err != nil {
		return err
	}
	switch isSegment := original == format.SegmentKey(m.ID, name); {
	case isSegment && isReplica:
		_, err := segment.ReadReplicaTOC(ctx, st, m, key)
		return err
	case isSegment:
		return Extents(ctx, st, m, sealed, key)
	}
	if _, err := blockmap.ReadPages(ctx, st, m, key); err != nil && !errors.Is(err, segment.ErrNoTable) {
		return err
	}
	return nil
}
