package main

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/lockstep-backup/lockstep/api"
)

// move moves what fits pattern out of the repository, and back again.
func (w *world) move(pattern string) (back func()) {
	w.t.Helper()
	found, err := filepath.Glob(filepath.Join(w.data, "repository", pattern))
	if err != nil || len(found) == 0 {
		w.t.Fatalf("nothing fits %s: %v", pattern, err)
	}
	to := w.t.TempDir()
	rename := func(from, to string) {
		if err := os.Rename(from, to); err != nil {
			w.t.Fatal(err)
		}
	}
	for i, path := range found {
		rename(path, filepath.Join(to, string(rune('a'+i))))
	}
	return func() {
		for i, path := range found {
			_ = os.RemoveAll(path)
			rename(filepath.Join(to, string(rune('a'+i))), path)
		}
	}
}

func namesPoint(v api.VerifyResult, id string) bool {
	return slices.ContainsFunc(v.Damage, func(d api.Damage) bool { return slices.Contains(d.Points, id) })
}

// TestLostRecoveryPoints: what the repository alone does not miss, the catalog does.
func TestLostRecoveryPoints(t *testing.T) {
	w, _ := web(t)
	w.backup(api.StateUnrecoverable)
	w.add(oldPassphrase)
	w.backup(api.StateProven)
	last := w.backup(api.StateProven)
	if v := asked[api.VerifyResult](w, 0, "", "verify"); len(v.Damage) != 0 {
		t.Fatalf("a sound repository: %+v", v.Damage)
	}
	entries, err := filepath.Glob(filepath.Join(w.data, "repository", "log", "*", "*"))
	if err != nil || len(entries) != 3 {
		t.Fatal(entries, err)
	}
	rel, err := filepath.Rel(filepath.Join(w.data, "repository"), entries[2])
	if err != nil {
		t.Fatal(err)
	}
	w.move(rel)
	for _, args := range [][]string{{"verify"}, {"verify", last.ID}} {
		if v := asked[api.VerifyResult](w, 6, "", args...); !namesPoint(v, last.ID) {
			t.Errorf("%v: %+v", args, v.Damage)
		}
	}
	_, stderr := w.want(6, "", "backup", "web01")
	if !strings.Contains(stderr, "the repository lost a recovery point") {
		t.Errorf("the next backup says\n%s", stderr)
	}
	if log := w.ok("", "audit", "list"); !strings.Contains(log, "repository.loss") {
		t.Errorf("the loss is not in the audit log:\n%s", log)
	}
}
