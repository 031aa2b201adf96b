package memstore_test

import (
	"errors"
	"testing"
	"time"

	"github.com/lockstep-backup/lockstep/store"
	"github.com/lockstep-backup/lockstep/store/memstore"
	"github.com/lockstep-backup/lockstep/store/storetest"
)

func TestConformance(t *testing.T) {
	storetest.Run(t, func(*testing.T) store.Store { return memstore.New() })
	s := memstore.New()
	t.Run("reopen", func(t *testing.T) {
		storetest.RunReopen(t, func(*testing.T) store.Store { return s })
	})
}

func TestCloneAndCorrupt(t *testing.T) {
	s := memstore.New()
	if err := s.Put(t.Context(), "k", []byte("abc")); err != nil {
		t.Fatal(err)
	}
	c := s.Clone()
	if err := s.Corrupt("k", func(b []byte) []byte { b[0] ^= 1; return b }); err != nil {
		t.Fatal(err)
	}
	for want, from := range map[string]*memstore.Store{"abc": c, "`bc": s} {
		if got, err := store.GetAll(t.Context(), from, "k", 10); err != nil || string(got) != want {
			t.Errorf("got %q, %v; want %q", got, err, want)
		}
	}
	if err := s.Corrupt("absent", nil); err == nil {
		t.Error("corrupted an absent object")
	}
}

func TestLocking(t *testing.T) {
	storetest.RunLocked(t, func(*testing.T) storetest.Locked {
		now := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
		s := memstore.NewLocking(func() time.Time { return now })
		must := func(t *testing.T, err error) {
			if err != nil {
				t.Fatal(err)
			}
		}
		return storetest.Locked{
			Store:  s,
			Reopen: func(*testing.T) storetest.LockingStore { return s },
			Hide:   func(t *testing.T, key string) { must(t, s.Hide(key)) },
			Cover:  func(t *testing.T, key string, data []byte) { must(t, s.Cover(key, data)) },
			Expire: func(_ *testing.T, _ string, at time.Time) { now = at },
			Until:  func(_ *testing.T, d time.Duration) time.Time { return now.Add(d) },
		}
	})
	if err := memstore.New().Retain(t.Context(), "k", time.Now(), store.Governance); !errors.Is(err, store.ErrNoLock) {
		t.Errorf("retain without locks: %v, want ErrNoLock", err)
	}
}
