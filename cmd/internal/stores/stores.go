// Package stores chooses a repository's store by its URL, for the programs. It
// reads from the environment what the adapters take as options.
package stores

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"os"
	"strings"
	"time"

	"github.com/lockstep-backup/lockstep/api"
	"github.com/lockstep-backup/lockstep/disk"
	"github.com/lockstep-backup/lockstep/store"
	"github.com/lockstep-backup/lockstep/store/azureblob"
	"github.com/lockstep-backup/lockstep/store/gcs"
	"github.com/lockstep-backup/lockstep/store/localdir"
	"github.com/lockstep-backup/lockstep/store/mapcache"
	"github.com/lockstep-backup/lockstep/store/remote"
	"github.com/lockstep-backup/lockstep/store/s3"
)

// Store is a store whose files and connections can be let go of.
type Store interface {
	store.Store
	io.Closer
}

// Refusal makes wrong usage of an error that says that a location names no
// store; others stay what they are. op begins the text.
func Refusal(op string, err error) error {
	if !errors.Is(err, remote.ErrLocation) && !errors.Is(err, ErrScheme) && !errors.Is(err, disk.ErrNotLocal) {
		return err
	}
	p := &api.Error{Status: http.StatusUnprocessableEntity, Title: "wrong usage", Exit: api.ExitUsage, Detail: op + ": " + err.Error(), Hint: forms}
	var hinted interface{ Hint() string }
	if errors.As(err, &hinted) {
		p.Hint = hinted.Hint()
	}
	return p
}

const forms = "a path, file:///…, s3://…, azblob://… and gs://… name a store: docs/stores.md"

// Options say what a store is opened for.
type Options struct {
	Create bool         // for a new repository
	Cache  string       // folder that keeps map pages of remote stores, "" = none
	Log    *slog.Logger // nil: nobody is told
}

// ErrScheme says that no store goes by that URL.
var ErrScheme = errors.New("stores of this kind are not available in this version")

// IsRemote tells whether a location is a URL of another kind than file.
func IsRemote(location string) bool {
	scheme, _, isURL := strings.Cut(location, "://")
	return isURL && !strings.EqualFold(scheme, "file")
}

// Open opens the store that a path or a URL names.
func Open(ctx context.Context, location string, o Options) (Store, error) {
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	if !IsRemote(location) {
		if o.Create {
			return typed(localdir.Create(location, localdir.Options{}))
		}
		return typed(localdir.Open(location, localdir.Options{}))
	}
	under, err := openRemote(ctx, location, o)
	if err != nil || o.Cache == "" {
		return under, err
	}
	cached, err := mapcache.Open(under, o.Cache, mapcache.Options{Log: o.Log})
	if err != nil {
		// A cache only saves time.
		o.Log.Warn("map pages of the repository are not cached", "folder", o.Cache, "error", err)
		return under, nil
	}
	return &cachedStore{cached, under}, nil
}

func openRemote(ctx context.Context, location string, o Options) (Store, error) {
	scheme, _, _ := strings.Cut(location, "://")
	switch strings.ToLower(scheme) {
	case s3.Scheme:
		so := s3.Options{Log: o.Log, Region: os.Getenv("AWS_REGION")}
		if so.Region == "" {
			so.Region = os.Getenv("AWS_DEFAULT_REGION")
		}
		if o.Create {
			return typed(s3.Create(ctx, location, so))
		}
		return typed(s3.Open(ctx, location, so))
	case azureblob.Scheme:
		ao := azureblob.Options{Log: o.Log, Create: o.Create}
		for _, name := range []string{"AZURE_STORAGE_CONNECTION_STRING", "AZURE_STORAGE_KEY", "AZURE_STORAGE_SAS_TOKEN"} {
			if v := os.Getenv(name); v != "" {
				ao.Secret = []byte(v)
				break
			}
		}
		return typed(azureblob.Open(ctx, location, ao))
	case gcs.Scheme:
		return typed(gcs.Open(ctx, location, gcs.Options{Log: o.Log}))
	}
	return nil, remote.WithHint(fmt.Errorf("open store: %.20q: %w", scheme, ErrScheme), forms)
}

// typed keeps a nil pointer out of the interface.
func typed[T Store](s T, err error) (Store, error) {
	if err != nil {
		return nil, err
	}
	return s, nil
}

// cachedStore is a remote store with a cache before it.
type cachedStore struct {
	*mapcache.Store
	under Store
}

// Unwrap gives the remote store.
func (s *cachedStore) Unwrap() store.Store { return s.under }

// Close closes the cache and the remote store.
func (s *cachedStore) Close() error { return errors.Join(s.Store.Close(), s.under.Close()) }

// As finds what a store can do beyond the contract, also behind a cache or a
// limit: store.Locker, CleanTemp, Counts.
func As[T any](s store.Store) (T, bool) {
	for {
		if t, ok := s.(T); ok {
			return t, true
		}
		u, ok := s.(interface{ Unwrap() store.Store })
		if !ok {
			var none T
			return none, false
		}
		s = u.Unwrap()
	}
}

// Locks says whether a store locks objects.
func Locks(ctx context.Context, s store.Store) (bool, error) {
	l, ok := As[store.Locker](s)
	if !ok {
		return false, nil
	}
	status, err := l.LockStatus(ctx)
	if errors.Is(err, store.ErrNoLock) {
		return false, nil
	}
	return status.Enabled, err
}

// Cleaner is implemented by stores in which killed writers leave something.
type Cleaner interface {
	// CleanTemp removes what is older than age, and says how many things those were.
	CleanTemp(ctx context.Context, age time.Duration) (int, error)
}
