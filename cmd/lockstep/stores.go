package main

import (
	"context"
	"log/slog"
	"path/filepath"

	"github.com/lockstep-backup/lockstep/cmd/internal/stores"
)

// openedStore is a store whose files and connections can be let go of.
type openedStore = stores.Store

// openStore opens a repository's store, with a cache in the data directory if
// it is a remote one.
func (e *engine) openStore(ctx context.Context, c repositoryConfig) (openedStore, error) {
	return stores.Open(ctx, e.dir.repositoryURL(c), stores.Options{Cache: filepath.Join(e.dir.cache(), c.ID), Log: e.log})
}

// newStore opens the place of a new repository.
func newStore(ctx context.Context, location string) (openedStore, error) {
	return stores.Open(ctx, location, stores.Options{Create: true, Log: slog.New(slog.DiscardHandler)})
}

// remoteLocation is a remote store's URL as the store itself writes it. The
// store is asked, so that a wrong URL or missing credentials show before
// anything is made, and a URL with credentials in it is kept nowhere.
func remoteLocation(ctx context.Context, location string) (string, error) {
	st, err := newStore(ctx, location)
	if err != nil {
		return "", err
	}
	return st.Location(), st.Close()
}
