package storetest

import (
	"errors"
	"testing"
	"time"

	"github.com/lockstep-backup/lockstep/store"
)

// LockingStore is a store that locks objects.
type LockingStore interface {
	store.Store
	store.Locker
}

// Locked is an empty store that locks objects, with what somebody who has
// rights on its bucket can do behind its back.
type Locked struct {
	Store  LockingStore
	Reopen func(t *testing.T) LockingStore               // the same place, as another process opens it
	Hide   func(t *testing.T, key string)                // deletes by name: a delete marker
	Cover  func(t *testing.T, key string, data []byte)   // overwrites by name: a newer version
	Expire func(t *testing.T, key string, at time.Time)  // makes a lock that ends at that time end
	Until  func(t *testing.T, d time.Duration) time.Time // the store's clock, so much ahead
}

// RunLocked runs the suite of store.Locker.
func RunLocked(t *testing.T, empty func(t *testing.T) Locked) {
	for _, c := range []struct {
		name string
		test func(*testing.T, Locked)
	}{
		{"what is locked cannot be deleted", testLockHolds},
		{"a lock is never shortened", testLockGrows},
		{"a delete marker hides nothing that is locked", testHidden},
		{"a newer version covers nothing that is locked", testCovered},
		{"what is not locked can be deleted and made again", testUnlocked},
		{"a lock that has ended gives way", testExpired},
		{"absent objects have no lock", testLockAbsent},
	} {
		t.Run(c.name, func(t *testing.T) { c.test(t, empty(t)) })
	}
}

// lockFor is longer than any test.
const lockFor = time.Hour

func retain(t *testing.T, l Locked, key string, until time.Time, mode store.LockMode) {
	t.Helper()
	if err := l.Store.Retain(t.Context(), key, until, mode); err != nil {
		t.Fatalf("retain %s: %v", key, err)
	}
}

func wantUntil(t *testing.T, l Locked, key string, want time.Time) {
	t.Helper()
	got, err := l.Store.RetainedUntil(t.Context(), key)
	if err != nil || got.Before(want) || got.Sub(want) > time.Second {
		t.Errorf("%s is retained until %v, %v; want %v", key, got, err, want)
	}
}

// wantHeld checks that an object cannot be deleted, replaced, hidden or missed.
func wantHeld(t *testing.T, s store.Store, key string, data []byte) {
	t.Helper()
	wantObject(t, s, key, data)
	wantKeys(t, s, key)
	if err := s.Put(t.Context(), key, []byte("other")); !errors.Is(err, store.ErrExist) {
		t.Errorf("put over it: %v, want ErrExist", err)
	}
	w := create(t, s, key, []byte("another"))
	if err := w.Commit(); !errors.Is(err, store.ErrExist) {
		t.Errorf("commit over it: %v, want ErrExist", err)
	}
	if err := s.Delete(t.Context(), key); !errors.Is(err, store.ErrLocked) {
		t.Errorf("delete: %v, want ErrLocked", err)
	}
	wantObject(t, s, key, data)
	wantKeys(t, s, key)
}

func wantShadows(t *testing.T, s store.Locker, want ...store.Shadow) {
	t.Helper()
	n := 0
	err := s.Shadowed(t.Context(), "", func(got store.Shadow) error {
		if n >= len(want) || got != want[n] {
			t.Errorf("shadow %d: %+v, want %+v", n, got, want)
		}
		n++
		return nil
	})
	if err != nil || n != len(want) {
		t.Errorf("%d shadows, %v; want %d", n, err, len(want))
	}
}

func testLockHolds(t *testing.T, l Locked) {
	status, err := l.Store.LockStatus(t.Context())
	if err != nil || !status.Enabled || status.Now.IsZero() {
		t.Fatalf("lock status: %+v, %v", status, err)
	}
	put(t, l.Store, "a/b", []byte("first"))
	until := l.Until(t, lockFor)
	retain(t, l, "a/b", until, store.Governance)
	wantUntil(t, l, "a/b", until)
	wantHeld(t, l.Store, "a/b", []byte("first"))
	wantHeld(t, l.Reopen(t), "a/b", []byte("first"))
	wantShadows(t, l.Store)
}

func testLockGrows(t *testing.T, l Locked) {
	put(t, l.Store, "k", []byte("x"))
	until := l.Until(t, lockFor)
	retain(t, l, "k", until, store.Governance)
	retain(t, l, "k", until.Add(-lockFor/2), store.Governance)
	wantUntil(t, l, "k", until)
	retain(t, l, "k", until.Add(lockFor), store.Governance)
	wantUntil(t, l, "k", until.Add(lockFor))
}

func testHidden(t *testing.T, l Locked) {
	put(t, l.Store, "a/b", []byte("first"))
	until := l.Until(t, lockFor)
	retain(t, l, "a/b", until, store.Governance)
	l.Hide(t, "a/b")
	for _, s := range []LockingStore{l.Store, l.Reopen(t)} {
		wantHeld(t, s, "a/b", []byte("first"))
		wantShadows(t, s, store.Shadow{Key: "a/b", Deleted: true, Newer: 1})
	}
	wantUntil(t, l, "a/b", until)
	// A lock can be made longer through what hides it.
	retain(t, l, "a/b", until.Add(lockFor), store.Governance)
	wantUntil(t, l, "a/b", until.Add(lockFor))
}

func testCovered(t *testing.T, l Locked) {
	put(t, l.Store, "a/b", []byte("first"))
	retain(t, l, "a/b", l.Until(t, lockFor), store.Governance)
	l.Cover(t, "a/b", []byte("forged, and longer"))
	for _, s := range []LockingStore{l.Store, l.Reopen(t)} {
		wantHeld(t, s, "a/b", []byte("first"))
		wantShadows(t, s, store.Shadow{Key: "a/b", Newer: 1})
	}
	l.Hide(t, "a/b")
	for _, s := range []LockingStore{l.Store, l.Reopen(t)} {
		wantHeld(t, s, "a/b", []byte("first"))
		wantShadows(t, s, store.Shadow{Key: "a/b", Deleted: true, Newer: 2})
	}
}

func testUnlocked(t *testing.T, l Locked) {
	put(t, l.Store, "k", []byte("first"))
	if until, err := l.Store.RetainedUntil(t.Context(), "k"); err != nil || !until.IsZero() {
		t.Errorf("retained until %v, %v; want never", until, err)
	}
	if err := l.Store.Delete(t.Context(), "k"); err != nil {
		t.Fatalf("delete: %v", err)
	}
	put(t, l.Store, "k", []byte("second"))
	wantObject(t, l.Store, "k", []byte("second"))
	if err := l.Store.Delete(t.Context(), "k"); err != nil {
		t.Errorf("delete: %v", err)
	}
	wantKeys(t, l.Store)
	put(t, l.Store, "k", []byte("third"))
	wantObject(t, l.Reopen(t), "k", []byte("third"))
	l.Hide(t, "k")
	wantKeys(t, l.Reopen(t))
	wantShadows(t, l.Store)
}

func testExpired(t *testing.T, l Locked) {
	put(t, l.Store, "gone", []byte("x"))
	put(t, l.Store, "kept", []byte("y"))
	until := l.Until(t, 2*time.Second)
	retain(t, l, "gone", until, store.Governance)
	retain(t, l, "kept", until, store.Governance)
	l.Hide(t, "gone")
	l.Expire(t, "kept", until)
	s := l.Reopen(t)
	wantKeys(t, s, "kept")
	if err := s.Delete(t.Context(), "kept"); err != nil {
		t.Errorf("delete: %v", err)
	}
	wantKeys(t, s)
	wantShadows(t, s)
}

func testLockAbsent(t *testing.T, l Locked) {
	if err := l.Store.Retain(t.Context(), "absent", l.Until(t, lockFor), store.Governance); !errors.Is(err, store.ErrNotExist) {
		t.Errorf("retain: %v, want ErrNotExist", err)
	}
	if _, err := l.Store.RetainedUntil(t.Context(), "absent"); !errors.Is(err, store.ErrNotExist) {
		t.Errorf("retained until: %v, want ErrNotExist", err)
	}
}
