package repository

import (
	"context"
	"encoding/json"
	"fmt"

	"github.com/lockstep-backup/lockstep/envelope"
	"github.com/lockstep-backup/lockstep/repository/format"
	"github.com/lockstep-backup/lockstep/repository/internal/machinelog"
	"github.com/lockstep-backup/lockstep/repository/internal/reclaim"
	"github.com/lockstep-backup/lockstep/repository/internal/smallobject"
)

// Of Reclaim and Stats.
type (
	ReclaimOptions = reclaim.Options
	ReclaimResult  = reclaim.Result
	MachineStats   = reclaim.Stats
	PointStats     = reclaim.PointStats
)

// ErrBusy says that others write to the machine's log all the time.
var ErrBusy = reclaim.ErrBusy

// DefaultMaxDead is the share of dead bytes from which an object is rewritten.
const DefaultMaxDead = reclaim.DefaultMaxDead

// Reclaim gives back what no listed recovery point of a machine needs. It runs
// beside backups and readers, and goes on where a run before was killed. What
// it did until an error is in the result.
func (r *Repository) Reclaim(ctx context.Context, mid string, o ReclaimOptions) (ReclaimResult, error) {
	if r.writer == nil && !o.DryRun {
		return ReclaimResult{Fence: -1}, r.readOnly("reclaim")
	}
	s, err := r.reclaimSource(ctx, mid)
	if err != nil {
		return ReclaimResult{Fence: -1}, err
	}
	return reclaim.Run(ctx, s, o)
}

// Stats counts, over all maps of a machine, what is stored and who needs it.
func (r *Repository) Stats(ctx context.Context, mid string) (MachineStats, error) {
	s, err := r.reclaimSource(ctx, mid)
	if err != nil {
		return MachineStats{}, err
	}
	st, err := reclaim.Measure(ctx, s)
	if err != nil {
		return st, fmt.Errorf("measure machine %s: %w", mid, err)
	}
	return st, nil
}

func (r *Repository) reclaimSource(ctx context.Context, mid string) (*reclaim.Source, error) {
	m, err := r.machine(ctx, mid)
	if err != nil {
		return nil, err
	}
	return &reclaim.Source{
		Store: r.st, Keys: m.Keys, View: m.view, Segments: m.segments, Maps: m.maps, History: m.log,
		Writer: r.writer, Now: r.clock, Logger: r.log,
		Content: func(ctx context.Context, rec machinelog.Record) (*reclaim.Content, error) {
			mf, err := r.Manifest(ctx, pointOf(&rec, mid))
			if err != nil {
				return nil, err
			}
			return m.content(mf)
		},
		Uncommitted: func(ctx context.Context, point string) (int64, error) { return r.uncommittedBirth(ctx, m, point) },
	}, nil
}

// content is what a manifest references.
func (m *machine) content(mf *Manifest) (*reclaim.Content, error) {
	c := &reclaim.Content{}
	for _, d := range mf.Disks {
		t, err := m.openTree(d)
		if err != nil {
			return nil, err
		}
		c.Disks = append(c.Disks, reclaim.Disk{ID: d.ID, Tree: t})
		for _, h := range d.Headers {
			c.Headers = append(c.Headers, h.ID)
		}
		c.Stored += d.Stats.Stored
		c.Reused += d.Stats.Reused
		c.Logical += d.Size
	}
	return c, nil
}

// uncommittedBirth reads the birth of a manifest that no log entry names.
func (r *Repository) uncommittedBirth(ctx context.Context, m *machine, point string) (int64, error) {
	key := format.ManifestKey(m.Machine.ID, point)
	signed, err := smallobject.Get(ctx, r.st, key, format.KindManifest, m.Metadata)
	if err != nil {
		return -1, err
	}
	body, _, err := envelope.Verify(signed, manifestType, r.Trust().KeySet(envelope.RoleWriter))
	if err != nil {
		return -1, &DamageError{Object: key, Machine: m.Machine.ID, Err: err}
	}
	var mf Manifest
	if err := json.Unmarshal(body, &mf); err != nil {
		return -1, &DamageError{Object: key, Machine: m.Machine.ID, Err: err}
	}
	if mf.Birth == nil || mf.Point != point {
		return -1, nil
	}
	return *mf.Birth, nil
}
