package backup

import (
	"context"
	"errors"
	"fmt"
	"log/slog"

	"github.com/lockstep-backup/lockstep/catalog"
	"github.com/lockstep-backup/lockstep/repository"
)

// pendingKey is the catalog's note that a machine's recovery point is about to
// be committed. What finds it later knows that the catalog may lack one.
func pendingKey(machine string) string { return "commit.pending/" + machine }

// Pending lists machines with a commit that may be missing from the catalog:
// one that is under way, or whose process died between the commit and its record.
func Pending(ctx context.Context, c *catalog.Catalog) ([]catalog.Machine, error) {
	machines, err := c.Machines.List(ctx, true)
	if err != nil {
		return nil, fmt.Errorf("look for commits under way: %w", err)
	}
	var pending []catalog.Machine
	for _, m := range machines {
		point, err := c.Meta.Get(ctx, pendingKey(m.ID))
		if err != nil {
			return nil, fmt.Errorf("look for commits under way: %w", err)
		}
		if point != "" {
			pending = append(pending, m)
		}
	}
	return pending, nil
}

// CatchUp records recovery points of a machine that are committed in the
// repository and missing from the catalog, and returns their ids. It may run
// beside a backup of the same machine.
func CatchUp(ctx context.Context, d Deps, m catalog.Machine) (added []string, err error) {
	log := d.Log
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	points, err := d.Repository.Points(ctx, m.ID)
	if errors.Is(err, repository.ErrNotFound) {
		return nil, nil // it was never backed up
	}
	if err != nil && !errors.Is(err, repository.ErrDamaged) {
		return nil, fmt.Errorf("catch up with the repository: %w", err)
	}
	known, err := d.Catalog.Points.List(ctx, catalog.PointQuery{Machine: m.ID, Deleted: true, Bare: true})
	if err != nil {
		return nil, fmt.Errorf("catch up with the repository: %w", err)
	}
	has := map[string]bool{}
	for _, p := range known {
		has[p.ID] = true
	}
	for _, p := range points {
		if has[p.ID] {
			continue
		}
		mf, err := d.Repository.Manifest(ctx, p)
		if errors.Is(err, repository.ErrDamaged) || errors.Is(err, repository.ErrNotFound) {
			log.Error("recovery point is not in the catalog, and its manifest cannot be read", "point", p.ID, "error", err)
			continue
		}
		if err == nil {
			err = record(ctx, d, p, mf)
		}
		if err != nil {
			return added, fmt.Errorf("catch up with the repository: recovery point %s: %w", p.ID, err)
		}
		log.Info("recovery point was committed and not yet in the catalog", "point", p.ID, "machine", m.Name)
		added = append(added, p.ID)
	}
	waiting, err := d.Catalog.Meta.Get(ctx, pendingKey(m.ID))
	for _, id := range added {
		if err == nil && id == waiting {
			err = d.Catalog.Meta.Set(ctx, pendingKey(m.ID), "")
		}
	}
	if err != nil {
		return added, fmt.Errorf("catch up with the repository: %w", err)
	}
	return added, nil
}

func record(ctx context.Context, d Deps, p repository.Point, mf *repository.Manifest) error {
	c, err := CatalogPoint(p, mf)
	if err != nil {
		return err
	}
	return d.Catalog.Points.Record(ctx, c)
}
