// Package places finds the volume of a machine that the user named.
package places

import (
	"context"
	"fmt"
	"net/http"
	"slices"
	"strings"

	"github.com/lockstep-backup/lockstep/api"
	"github.com/lockstep-backup/lockstep/catalog"
	"github.com/lockstep-backup/lockstep/server/internal/frame"
)

// Place is a volume of a machine: disk and place on it.
type Place struct{ Disk, Volume string }

// String is DISK/VOLUME.
func (p Place) String() string { return p.Disk + "/" + p.Volume }

// Find finds the volume that the user named as DISK/VOLUME, as a
// volume's id, or as a unique prefix of either.
func Find(places []Place, ref string) (Place, error) {
	var found []Place
	for _, exact := range []bool{true, false} {
		for _, p := range places {
			fits := strings.HasPrefix(p.String(), ref) || strings.HasPrefix(p.Volume, ref)
			if exact {
				fits = p.String() == ref || p.Volume == ref
			}
			if fits && !slices.Contains(found, p) {
				found = append(found, p)
			}
		}
		if len(found) > 0 {
			break
		}
	}
	names := make([]string, 0, len(found))
	for _, p := range found {
		names = append(names, p.String())
	}
	switch len(found) {
	case 1:
		return found[0], nil
	case 0:
		p := frame.NewProblem(http.StatusNotFound, api.ExitFailed, fmt.Sprintf("find volume: there is no encrypted volume %q", ref))
		p.Hint = "'lockstep volume list' shows the volumes"
		return Place{}, p
	default:
		return Place{}, frame.Usage("find volume: more than one is %q: %s", ref, strings.Join(names, ", "))
	}
}

// InPoint finds the volume of a recovery point that the user named.
func InPoint(p catalog.Point, ref string) (Place, error) {
	var known []Place
	for _, d := range p.Disks {
		for _, v := range d.Volumes {
			known = append(known, Place{Disk: d.Disk, Volume: v.Volume})
		}
	}
	return Find(known, ref)
}

// Of gives all encrypted volumes that a machine's recovery points have, and
// its disks as they are now where those can be read.
func Of(ctx context.Context, s *frame.Frame, c *catalog.Catalog, m catalog.Machine) ([]Place, error) {
	var out []Place
	add := func(p Place) {
		if !slices.Contains(out, p) {
			out = append(out, p)
		}
	}
	points, err := c.Points.List(ctx, catalog.PointQuery{Machine: m.ID})
	if err != nil {
		return nil, err
	}
	for _, p := range points {
		for _, d := range p.Disks {
			for _, v := range d.Volumes {
				add(Place{d.Disk, v.Volume})
			}
		}
	}
	for _, def := range m.Disks {
		f, err := s.Inspect(ctx, def)
		if err != nil {
			continue // the recovery points count
		}
		for _, v := range f.Report.Volumes {
			add(Place{def.ID, v.ID})
		}
	}
	return out, nil
}
