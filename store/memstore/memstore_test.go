package memstore_test

import (
	"testing"

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
