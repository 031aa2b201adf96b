package prove

import (
	"context"

	"github.com/lockstep-backup/lockstep/diskcrypt"
)

// asDeclared is what a recovery point's volume is by what the machine's owner
// declares today, where the recovery point is older than the declaration: there
// it was opaque. What cannot be read so stays what it was.
func (r *runner) asDeclared(ctx context.Context, s *subject, disk string, v diskcrypt.Volume) diskcrypt.Volume {
	if v.Type != diskcrypt.TypeOpaque || v.HeaderDigest != "" {
		return v
	}
	declared := r.declaredOf(ctx, s.catalog.Machine)[disk][v.ID]
	if declared == nil {
		return v
	}
	out, err := diskcrypt.Declared(ctx, r.Formats, diskOf{s.reader, disk, v.ID}, v, declared)
	if err != nil {
		r.Log.Warn("read volume as declared", "point", s.catalog.ID, "disk", disk, "volume", v.ID, "error", err)
	}
	if err != nil || out == nil {
		return v
	}
	return *out
}

// declaredOf are a machine's declarations by disk and volume. A machine that
// the catalog does not have declares nothing.
func (r *runner) declaredOf(ctx context.Context, machine string) map[string]map[string]map[string]string {
	if all, ok := r.declared[machine]; ok {
		return all
	}
	all := map[string]map[string]map[string]string{}
	if m, err := r.Catalog.Machines.Get(ctx, machine); err == nil {
		for _, d := range m.Disks {
			all[d.ID] = d.Declared
		}
	} else {
		r.Log.Warn("read machine", "machine", machine, "error", err)
	}
	if r.declared == nil {
		r.declared = map[string]map[string]map[string]map[string]string{}
	}
	r.declared[machine] = all
	return all
}

// diskOf is a disk of a recovery point as an io.ReaderAt.
type diskOf struct {
	points       *pointReader
	disk, volume string
}

func (d diskOf) ReadAt(p []byte, off int64) (int, error) {
	return d.points.ReadAt(d.disk, d.volume, false, p, off)
}
