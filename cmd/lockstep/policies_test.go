package main

import (
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/lockstep-backup/lockstep/api"
)

// loseCatalog has the catalog lost, and rebuilt.
func (w *world) loseCatalog() api.RebuildResult {
	w.t.Helper()
	for _, name := range []string{"catalog.db", "catalog.db-wal", "catalog.db-shm"} {
		if err := os.Remove(filepath.Join(w.data, name)); err != nil && !os.IsNotExist(err) {
			w.t.Fatal(err)
		}
	}
	return asked[api.RebuildResult](w, 0, "", "catalog", "rebuild")
}

// What a policy keeps is kept after the catalog was lost, and where that is not
// known nothing goes until somebody says what holds.
func TestPoliciesSurviveTheCatalog(t *testing.T) {
	w, _ := web(t)
	w.ok("", "policy", "set", "--default", "--keep-last", "1")
	w.backup(api.StateUnrecoverable)
	w.backup(api.StateUnrecoverable)
	w.ok("", "policy", "set", "web01", "--keep-last", "2", "--daily", "7", "--timezone", "Europe/Berlin", "--schedule", "@daily")
	shown := func() string { return w.ok("", "policy", "show", "web01") }
	before := shown()
	if r := w.loseCatalog(); len(r.Problems) != 0 || strings.Contains(strings.Join(r.NotRebuilt, " "), "and policies") {
		t.Errorf("%+v", r)
	}
	if after := shown(); after != before {
		t.Errorf("before\n%s\nafter\n%s", before, after)
	}
	if v := asked[api.PruneResult](w, 0, "", "prune"); v.Machines[0].Deleted != 0 {
		t.Errorf("%+v", v)
	}
	// A rebuild beside a catalog that is there changes nothing that is meant.
	w.ok("", "policy", "unset", "web01")
	w.ok("", "policy", "set", "web01", "--keep-last", "3")
	before = shown()
	w.ok("", "catalog", "rebuild")
	if after := shown(); after != before {
		t.Errorf("before\n%s\nafter\n%s", before, after)
	}

	// The statement is damaged: the default would let one go.
	var stated []string
	err := filepath.WalkDir(w.dir, func(path string, _ fs.DirEntry, err error) error {
		if strings.HasPrefix(filepath.Base(path), "policy-") {
			stated = append(stated, path)
		}
		return err
	})
	if err != nil || len(stated) < 3 {
		t.Fatalf("%v, %v", stated, err)
	}
	raw, err := os.ReadFile(stated[0])
	if err != nil {
		t.Fatal(err)
	}
	raw[len(raw)/2] ^= 1
	if err := os.Chmod(stated[0], 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(stated[0], raw, 0o600); err != nil {
		t.Fatal(err)
	}
	if r := w.loseCatalog(); !strings.Contains(strings.Join(r.Problems, "\n"), "the policy of machine web01 is not known") {
		t.Errorf("%+v", r)
	}
	for _, args := range [][]string{{"prune", "--dry-run"}, {"prune"}} {
		if _, stderr := w.want(4, "", args...); !strings.Contains(stderr, "lockstep policy set web01") {
			t.Errorf("%v says\n%s", args, stderr)
		}
	}
	if text := shown(); !strings.Contains(text, "lost with the catalog") {
		t.Errorf("policy show says\n%s", text)
	}
	w.backup(api.StateUnrecoverable) // states nothing: it is not known
	w.want(4, "", "prune")
	w.ok("", "policy", "set", "web01", "--keep-last", "2")
	if v := asked[api.PruneResult](w, 0, "", "prune"); v.Machines[0].Deleted != 1 {
		t.Errorf("%+v", v)
	}
}
