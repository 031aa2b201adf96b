package checks

import (
	"context"
	"errors"
	"slices"

	"github.com/lockstep-backup/lockstep/catalog"
	"github.com/lockstep-backup/lockstep/repository"
	"github.com/lockstep-backup/lockstep/server/internal/frame"
	"github.com/lockstep-backup/lockstep/verify"
)

// expected is what the catalog knows to be in a repository: of the recovery
// points named, or of all. It knows what was made there, and what was there
// when copying to it last ended or when it became the one that backups write
// to. A catalog that is lost knows nothing; that has its own message, and what
// is stored can be read all the same.
func (s routes) expected(ctx context.Context, place frame.Place, repo *repository.Repository, points []catalog.Point) ([]verify.Expected, error) {
	c, err := s.Catalog(ctx)
	if err != nil {
		s.Log.Warn("what the catalog expects to be stored is not known", "error", err)
		return nil, nil
	}
	copied, err := s.Copied(ctx, c, place.ID)
	if err != nil {
		return nil, err
	}
	all := len(points) == 0
	if all {
		if points, err = c.Points.List(ctx, catalog.PointQuery{Deleted: true}); err != nil {
			return nil, err
		}
	}
	logs := logs{repo: repo, listed: map[string]map[string]int64{}}
	headers := map[string][]catalog.HeaderPackage{}
	known := map[string]bool{}
	var out []verify.Expected
	for _, p := range points {
		known[p.ID] = true
		deleted := !p.DeletedAt.IsZero()
		made := p.Repository == place.ID && !deleted
		// What the primary's log lets go, a copy may keep.
		noted := slices.Contains(copied.Points[p.Machine], p.ID) && !(deleted && place.Primary)
		if !made && !noted {
			continue
		}
		e := verify.Expected{Machine: p.Machine, Point: p.ID, Sequence: p.Sequence, Roots: map[string]string{}}
		digests := map[string]bool{}
		for _, d := range p.Disks {
			e.Roots[d.Disk] = d.ContentRoot
			for _, v := range d.Volumes {
				digests[v.HeaderDigest] = true
			}
		}
		if made && place.Primary {
			e.Objects, err = objects(ctx, c, p, digests, headers)
		} else { // every log has its own order
			e.Sequence, _, err = logs.find(ctx, p.Machine, p.ID)
		}
		if err != nil {
			return nil, err
		}
		out = append(out, e)
	}
	if !all {
		return out, nil
	}
	// Of what the catalog forgot, it can be said that it is gone.
	for machine, ids := range copied.Points {
		for _, id := range ids {
			if known[id] {
				continue
			}
			if _, there, err := logs.find(ctx, machine, id); err != nil {
				return nil, err
			} else if !there {
				out = append(out, verify.Expected{Machine: machine, Point: id})
			}
		}
	}
	return out, nil
}

// logs looks up recovery points in the logs of a repository.
type logs struct {
	repo   *repository.Repository
	listed map[string]map[string]int64 // sequence, by machine and recovery point
}

func (l logs) find(ctx context.Context, machine, point string) (sequence int64, there bool, err error) {
	if l.listed[machine] == nil {
		points, err := l.repo.Points(ctx, machine)
		if err != nil && !errors.Is(err, repository.ErrDamaged) && !errors.Is(err, repository.ErrNotFound) {
			return 0, false, err
		}
		l.listed[machine] = map[string]int64{}
		for _, p := range points {
			l.listed[machine][p.ID] = p.Sequence
		}
	}
	sequence, there = l.listed[machine][point]
	return sequence, there, nil
}

// objects are the keys of what the primary has about a recovery point: proofs,
// packages, header copies.
func objects(ctx context.Context, c *catalog.Catalog, p catalog.Point, digests map[string]bool, headers map[string][]catalog.HeaderPackage) (keys []string, err error) {
	proofs, err := c.Proofs.OfPoint(ctx, p.ID)
	if err != nil {
		return nil, err
	}
	for _, x := range proofs {
		keys = append(keys, x.Key)
	}
	packages, err := c.Packages.OfPoint(ctx, p.ID)
	if err != nil {
		return nil, err
	}
	for _, x := range packages {
		keys = append(keys, x.Key)
	}
	if _, known := headers[p.Machine]; !known {
		if headers[p.Machine], err = c.Packages.Headers(ctx, p.Machine); err != nil {
			return nil, err
		}
	}
	for _, h := range headers[p.Machine] {
		if digests[h.HeaderDigest] {
			keys = append(keys, h.Key)
		}
	}
	return keys, nil
}
