package main

import (
	"context"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/lockstep-backup/lockstep/api"
	"github.com/lockstep-backup/lockstep/catalog/sqlite"
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

// TestDamageIsNotProven: a recovery point that cannot be read is not proven by
// what was proven of it before.
func TestDamageIsNotProven(t *testing.T) {
	w, _ := web(t)
	w.backup(api.StateUnrecoverable)
	w.add(oldPassphrase)
	p := w.backup(api.StateProven)
	back := w.move("map/*")
	found := asked[[]api.Point](w, 6, "", "prove", p.ID)
	if len(found) != 1 || len(found[0].Why) == 0 || !strings.HasPrefix(found[0].Why[0], "damaged:") {
		t.Errorf("proven: %+v", found)
	}
	if out, _ := w.want(6, "", "prove", p.ID); !strings.Contains(out, "damaged:") {
		t.Errorf("prove says\n%s", out)
	}
	entries := asked[[]api.AuditEntry](w, 0, "", "audit", "list")
	for _, action := range []string{"point.prove", "points.prove"} {
		i := slices.IndexFunc(entries, func(e api.AuditEntry) bool { return e.Action == action && e.Outcome == "failed" })
		if i < 0 {
			t.Errorf("no %s has failed in the audit log", action)
		}
	}
	back()
	w.ok("", "prove", p.ID)
	w.ok("", "verify")
}

// TestLostSidecarsAreNoticedAndMadeAgain: verify misses them, prove makes them again.
func TestLostSidecarsAreNoticedAndMadeAgain(t *testing.T) {
	w, _ := web(t)
	w.backup(api.StateUnrecoverable)
	w.add(oldPassphrase)
	p := w.backup(api.StateProven)
	for _, kind := range []string{"proof-*", "keypackage-*", "headerpackage-*"} {
		pattern := "side/*/" + p.ID + "/" + kind
		if kind == "headerpackage-*" {
			pattern = "side/*/*/" + kind
		}
		w.move(pattern)
		for _, args := range [][]string{{"verify"}, {"verify", p.ID}} {
			if v := asked[api.VerifyResult](w, 6, "", args...); !namesPoint(v, p.ID) {
				t.Errorf("%v without %s: %+v", args, kind, v.Damage)
			}
		}
		w.ok("", "prove", p.ID)
		if v := asked[api.VerifyResult](w, 0, "", "verify"); len(v.Damage) != 0 {
			t.Errorf("after proving again without %s: %+v", kind, v.Damage)
		}
		if found, _ := filepath.Glob(filepath.Join(w.data, "repository", pattern)); len(found) == 0 {
			t.Errorf("%s was not made again", kind)
		}
	}
}

// TestLostCopiesAreTold: what is kept twice is mended when it is used, and
// verify says so once, whichever of the copies it was.
func TestLostCopiesAreTold(t *testing.T) {
	w, _ := web(t)
	w.backup(api.StateUnrecoverable)
	for _, pattern := range []string{
		"config", "copies/config", "keys/*", "copies/keys/*", "trust/*", "copies/trust/*", "machines/*/key", "copies/machines/*/key",
	} {
		w.move(pattern)
		v := asked[api.VerifyResult](w, 6, "", "verify")
		if len(v.Damage) == 0 {
			t.Errorf("%s was lost: %+v", pattern, v)
		}
		for _, d := range v.Damage {
			if ok, _ := filepath.Match(pattern, d.Object); !ok || !strings.Contains(d.Error, "written again") {
				t.Errorf("%s was lost: %+v", pattern, d)
			}
		}
		w.ok("", "verify")
	}
}

// TestCaughtUpIsRecorded: a recovery point whose process died between the
// commit and the records comes into the audit log when it comes into the catalog.
func TestCaughtUpIsRecorded(t *testing.T) {
	for _, c := range []struct {
		name    string
		pending bool // the catalog knows that something was about to be committed
		next    []string
	}{{"by the next backup", false, []string{"backup", "web01"}}, {"by the next command", true, []string{"point", "list"}}} {
		t.Run(c.name, func(t *testing.T) {
			w, _ := web(t)
			first := w.backup(api.StateUnrecoverable)
			before, err := os.ReadFile(filepath.Join(w.data, "catalog.db"))
			if err != nil {
				t.Fatal(err)
			}
			died := w.backup(api.StateUnrecoverable)
			left, err := filepath.Glob(filepath.Join(w.data, "catalog.db-*"))
			if err != nil || len(left) != 0 {
				t.Fatalf("the catalog is not closed: %v, %v", left, err)
			}
			if err := os.WriteFile(filepath.Join(w.data, "catalog.db"), before, 0o600); err != nil {
				t.Fatal(err)
			}
			if c.pending {
				db, err := sqlite.Open(context.Background(), filepath.Join(w.data, "catalog.db"), sqlite.Options{})
				if err != nil {
					t.Fatal(err)
				}
				if err := db.Meta.Set(context.Background(), "commit.pending/"+first.MachineID, died.ID); err != nil {
					t.Fatal(err)
				}
				if err := db.Maintenance.Close(); err != nil {
					t.Fatal(err)
				}
			}
			w.run("", c.next...)
			entries := asked[[]api.AuditEntry](w, 0, "", "audit", "list")
			if !slices.ContainsFunc(entries, func(e api.AuditEntry) bool {
				return e.Action == "machine.backup" && e.Outcome == "done" && e.Detail["point"] == died.ID && e.Detail["recorded"] != ""
			}) {
				t.Errorf("recovery point %s is not in the audit log: %+v", died.ID, entries)
			}
		})
	}
}
