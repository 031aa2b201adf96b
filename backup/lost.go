package backup

import (
	"context"
	"errors"
	"fmt"

	"github.com/lockstep-backup/lockstep/catalog"
	"github.com/lockstep-backup/lockstep/repository"
)

// lost lists recovery points of a machine that the catalog has and the
// repository's log does not: it was cut off, rolled back, or deleted. A log
// alone cannot show that its newest entries are gone, so this is looked at
// before the next entry takes the place of the first lost one.
func lost(ctx context.Context, d Deps, m catalog.Machine) ([]string, error) {
	known, err := d.Catalog.Points.List(ctx, catalog.PointQuery{Machine: m.ID, Repository: d.Repository.ID(), Bare: true})
	if err != nil || len(known) == 0 {
		return nil, err
	}
	points, err := d.Repository.Points(ctx, m.ID)
	if err != nil && !errors.Is(err, repository.ErrNotFound) && !errors.Is(err, repository.ErrDamaged) {
		return nil, fmt.Errorf("compare the catalog with the repository: %w", err)
	}
	listed := map[string]bool{}
	for _, p := range points {
		listed[p.ID] = true
	}
	var gone []string
	for i, p := range known {
		// The newest is looked for in the store, the others in what was read of
		// the log: what is cut off takes the newest along.
		if listed[p.ID] && i < len(known)-1 {
			continue
		}
		_, err := d.Repository.CheckCommitted(ctx, m.ID, p.ID)
		switch {
		case err == nil:
		case errors.Is(err, repository.ErrNotFound), errors.Is(err, repository.ErrDamaged), errors.Is(err, repository.ErrUntrusted):
			gone = append(gone, p.ID)
		default:
			return nil, fmt.Errorf("compare the catalog with the repository: %w", err)
		}
	}
	return gone, nil
}

func lostWarning(n int) string {
	what := fmt.Sprintf("%d recovery points that", n)
	if n == 1 {
		what = "a recovery point that"
	}
	return "the repository lost " + what + " the catalog lists: its log was cut off, rolled back or deleted; run 'lockstep verify' to see which. " +
		"Put them back from a copy of the repository, or have the catalog forget them with 'lockstep catalog rebuild'"
}
