package storecheck

import (
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/lockstep-backup/lockstep/store"
)

// folder is a store below a prefix of another.
type folder struct {
	store.Store
	prefix string // ends in a slash
}

func (f *folder) Put(ctx context.Context, key string, data []byte) error {
	return f.Store.Put(ctx, f.prefix+key, data)
}

func (f *folder) Create(ctx context.Context, key string) (store.Writer, error) {
	return f.Store.Create(ctx, f.prefix+key)
}

func (f *folder) ReadRange(ctx context.Context, key string, off int64, p []byte) (int, error) {
	return f.Store.ReadRange(ctx, f.prefix+key, off, p)
}

func (f *folder) Stat(ctx context.Context, key string) (store.Info, error) {
	info, err := f.Store.Stat(ctx, f.prefix+key)
	info.Key = strings.TrimPrefix(info.Key, f.prefix)
	return info, err
}

func (f *folder) List(ctx context.Context, prefix string, fn func(store.Info) error) error {
	return f.Store.List(ctx, f.prefix+prefix, func(i store.Info) error {
		key, ok := strings.CutPrefix(i.Key, f.prefix)
		if !ok {
			return fmt.Errorf("list %s: %s does not lie below it", f.prefix+prefix, i.Key)
		}
		return fn(store.Info{Key: key, Size: i.Size})
	})
}

func (f *folder) Delete(ctx context.Context, key string) error {
	return f.Store.Delete(ctx, f.prefix+key)
}

func (f *folder) retain(ctx context.Context, l store.Locker, key string, until time.Time) error {
	return l.Retain(ctx, f.prefix+key, until, store.Governance)
}

func (f *folder) retainedUntil(ctx context.Context, l store.Locker, key string) (time.Time, error) {
	return l.RetainedUntil(ctx, f.prefix+key)
}
