package repository

import (
	"context"

	"github.com/lockstep-backup/lockstep/repository/internal/blockmap"
	"github.com/lockstep-backup/lockstep/repository/internal/inside"
	"github.com/lockstep-backup/lockstep/repository/internal/machinekey"
	"github.com/lockstep-backup/lockstep/repository/internal/machinelog"
	"github.com/lockstep-backup/lockstep/repository/internal/trust"
)

// Inside is for the packages below repository/.
func (r *Repository) Inside() inside.Repository {
	return inside.Repository{
		Store: r.st, Sealed: r.cfg.Sealing == SealingAESGCM, Writer: r.writer, ReadOnly: r.readOnly, Now: r.clock, DEK: r.dekKey(), Lock: r.lock,
		Machine: func(ctx context.Context, mid string) (*machinekey.Keys, *machinelog.Log, error) {
			m, err := r.machine(ctx, mid)
			if err != nil {
				return nil, nil, err
			}
			return m.Keys, m.log, nil
		},
		ChangeTrust: func(change func(trust.Log) (trust.Log, error)) error {
			r.trustMu.Lock()
			defer r.trustMu.Unlock()
			after, err := change(r.trust)
			if err == nil {
				r.trust = after
			}
			return err
		},
		Forget: func(mid string) {
			r.mu.Lock()
			defer r.mu.Unlock()
			delete(r.machines, mid)
		},
	}
}

// Tree is the map of a disk of a manifest, for the packages below repository/.
func (r *Repository) Tree(ctx context.Context, mid string, d Disk) (*blockmap.Tree, error) {
	m, err := r.machine(ctx, mid)
	if err != nil {
		return nil, err
	}
	return m.openTree(d)
}

// Homes are the repositories that statements about a machine may name: this
// one, and those in which its recovery points were made.
func (r *Repository) Homes(ctx context.Context, mid string) (map[string]bool, error) {
	m, err := r.machine(ctx, mid)
	if err != nil {
		return nil, err
	}
	records, err := m.log.Read(ctx)
	if err != nil {
		return nil, err
	}
	homes := map[string]bool{r.cfg.ID: true}
	for _, rec := range records {
		if rec.Err == nil && rec.Origin != "" {
			homes[rec.Origin] = true
		}
	}
	return homes, nil
}
