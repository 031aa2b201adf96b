package main

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/lockstep-backup/lockstep/cmd/internal/stores"
	"github.com/lockstep-backup/lockstep/repository/format"
	"github.com/lockstep-backup/lockstep/store"
)

// locked says until when the store of a repository, by name, keeps the manifests of recovery
// points, by this host's clock. Where it does not say, nothing is lost by going
// on: it does not delete what it keeps.
func (e *engine) locked(ctx context.Context, name, machine string, points []string) (map[string]time.Time, error) {
	all := e.repositoryConfigs()
	i := slices.IndexFunc(all, func(c repositoryConfig) bool { return c.name() == name })
	if i < 0 {
		return nil, fmt.Errorf("there is no repository %q", name)
	}
	st, err := e.openStore(ctx, all[i])
	if err != nil {
		return nil, err
	}
	defer st.Close()
	l, ok := stores.As[store.Locker](st)
	if !ok {
		return nil, nil
	}
	status, err := l.LockStatus(ctx)
	if err != nil || !status.Enabled {
		if err != nil && !errors.Is(err, store.ErrNoLock) {
			e.log.Warn("the repository's store does not say what it locks", "error", err)
		}
		return nil, ctx.Err()
	}
	ahead := time.Since(status.Now) // locks end by the store's clock
	out := map[string]time.Time{}
	for _, p := range points {
		until, err := l.RetainedUntil(ctx, format.ManifestKey(machine, p))
		if ctx.Err() != nil {
			return nil, ctx.Err()
		}
		if err != nil {
			e.log.Warn("the repository's store does not say until when it keeps a recovery point", "point", p, "error", err)
		}
		if err == nil && !until.IsZero() {
			out[p] = until.Add(ahead)
		}
	}
	return out, nil
}
