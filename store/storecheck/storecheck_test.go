package storecheck_test

import (
	"context"
	"errors"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/lockstep-backup/lockstep/store"
	"github.com/lockstep-backup/lockstep/store/faultstore"
	"github.com/lockstep-backup/lockstep/store/memstore"
	"github.com/lockstep-backup/lockstep/store/storecheck"
)

var quick = storecheck.Options{Large: 5 << 20, Measure: 1 << 20, Lock: -1}

func check(t *testing.T, s store.Store) (failed []string, all []storecheck.Result) {
	t.Helper()
	ok, err := storecheck.Run(t.Context(), s, quick, func(r storecheck.Result) {
		all = append(all, r)
		if r.Outcome == storecheck.Failed {
			failed = append(failed, r.Name)
		}
	})
	if err != nil {
		t.Fatal(err)
	}
	if ok != (len(failed) == 0) {
		t.Errorf("ok is %v, %d checks failed", ok, len(failed))
	}
	return failed, all
}

func TestGoodStorePassesAndIsLeftAsItWas(t *testing.T) {
	s := memstore.New()
	if err := s.Put(t.Context(), "config", []byte("of somebody")); err != nil {
		t.Fatal(err)
	}
	failed, all := check(t, s)
	if len(failed) > 0 {
		t.Errorf("failed: %q", failed)
	}
	if len(all) != len(storecheck.Contract())+4 {
		t.Errorf("%d checks", len(all))
	}
	last := all[len(all)-1]
	if last.Outcome != storecheck.Passed || len(last.Details) != 4 || !strings.HasPrefix(last.Details[0], "up: ") {
		t.Errorf("figures: %+v", last)
	}
	var keys []string
	if err := s.List(t.Context(), "", func(i store.Info) error { keys = append(keys, i.Key); return nil }); err != nil || !slices.Equal(keys, []string{"config"}) {
		t.Errorf("left behind: %q, %v", keys, err)
	}
}

// overwriting forgets the condition, as servers do that do not know it.
type overwriting struct{ store.Store }

func (s overwriting) Put(ctx context.Context, key string, data []byte) error {
	if err := store.CheckKey(key); err != nil {
		return err
	}
	if err := s.Delete(ctx, key); err != nil && !errors.Is(err, store.ErrNotExist) {
		return err
	}
	return s.Store.Put(ctx, key, data)
}

// late hides the newest object from listings.
type late struct{ store.Store }

func (s late) List(ctx context.Context, prefix string, fn func(store.Info) error) error {
	var all []store.Info
	if err := s.Store.List(ctx, prefix, func(i store.Info) error { all = append(all, i); return nil }); err != nil {
		return err
	}
	for _, i := range all[:max(len(all)-1, 0)] {
		if err := fn(i); err != nil {
			return err
		}
	}
	return nil
}

func TestBadStoresFail(t *testing.T) {
	for _, k := range []struct {
		name string
		s    store.Store
		want string // among what fails
	}{
		{"overwrites", overwriting{memstore.New()}, "put never overwrites"},
		{"overwrites in a race", overwriting{memstore.New()}, "one of 16 puts wins"},
		{"lists late", late{memstore.New()}, "an object is listed, found and gone at once"},
		{"truncates", faultstore.New(memstore.New(), faultstore.Truncate(0, 5000)), "ranges"},
	} {
		t.Run(k.name, func(t *testing.T) {
			if failed, _ := check(t, k.s); !slices.Contains(failed, k.want) {
				t.Errorf("failed: %q, want %q among them", failed, k.want)
			}
		})
	}
}

func TestInterruptedCheckCleansUp(t *testing.T) {
	s := memstore.New()
	ctx, cancel := context.WithCancel(t.Context())
	n := 0
	_, err := storecheck.Run(ctx, s, quick, func(storecheck.Result) {
		if n++; n == 3 {
			cancel()
		}
	})
	if !errors.Is(err, context.Canceled) || n != 3 {
		t.Errorf("%v after %d checks, want context.Canceled after 3", err, n)
	}
	if err := s.List(t.Context(), "", func(i store.Info) error { return errors.New(i.Key) }); err != nil {
		t.Errorf("left behind: %v", err)
	}
}

// retaining locks what is put into it.
type retaining struct {
	store.Store
	store.Locker
}

func (retaining) LockStatus(context.Context) (store.LockStatus, error) {
	return store.LockStatus{Enabled: true, Default: 48 * time.Hour}, nil
}

func TestStoreThatRetainsEverythingIsNotTouched(t *testing.T) {
	s := memstore.New()
	_, err := storecheck.Run(t.Context(), retaining{Store: s}, quick, func(r storecheck.Result) { t.Errorf("checked: %+v", r) })
	if !errors.Is(err, storecheck.ErrRetained) {
		t.Errorf("%v, want ErrRetained", err)
	}
}
