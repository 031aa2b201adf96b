package main

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/lockstep-backup/lockstep/api"
)

// unwritable has the audit log fail to be written, for root too, and gives it back.
func (w *world) unwritable() (restore func()) {
	w.t.Helper()
	file := filepath.Join(dataDir(w.data).audit(), "checkpoints.jsonl")
	if err := os.Rename(file, w.path("checkpoints")); err != nil {
		w.t.Fatal(err)
	}
	if err := os.Mkdir(file, 0o700); err != nil {
		w.t.Fatal(err)
	}
	return func() {
		w.t.Helper()
		if err := os.Remove(file); err != nil {
			w.t.Fatal(err)
		}
		if err := os.Rename(w.path("checkpoints"), file); err != nil {
			w.t.Fatal(err)
		}
	}
}

func TestNothingIsDoneUnrecorded(t *testing.T) {
	w, _ := web(t)
	w.add(oldPassphrase)
	p := w.backup(api.StateProven)
	// Two that nothing needs: one to be destroyed, one machine to be removed.
	w.want(0, "unused passphrase\n", "secret", "add", "web01", "--kind", "passphrase", "--file", "-", "--keep", "--new")
	w.ok("", "machine", "add", "idle", "--disk", "vda="+w.encrypted("idle.img", newPassphrase))
	secrets := asked[[]api.Secret](w, 0, "", "secret", "list")
	i := slices.IndexFunc(secrets, func(s api.Secret) bool { return len(s.Versions[0].Holds) == 0 })
	if len(secrets) != 2 || i < 0 {
		t.Fatalf("secrets: %+v", secrets)
	}
	unused, used := secrets[i].ID, secrets[1-i].ID
	state := func() string {
		return w.ok("", "-o", "json", "machine", "list") + w.ok("", "-o", "json", "secret", "list") +
			w.ok("", "-o", "json", "point", "list") + w.ok("", "-o", "json", "audit", "list")
	}
	before := state()
	restore := w.unwritable()
	third := w.encrypted("third.img", newPassphrase)
	for _, args := range [][]string{
		{"secret", "destroy", unused, "--reason", "test"},
		{"secret", "disable", used, "--reason", "test"},
		{"secret", "enable", used, "--reason", "test"},
		{"secret", "release", used, "--reason", "test"},
		{"secret", "add", "web01", "--kind", "passphrase", "--keep", "--new", "--file", w.secretFile("another")},
		{"volume", "not-needed", "web01", "vda/disk", "--reason", "test"},
		{"point", "delete", p.ID, "--reason", "test"},
		{"machine", "add", "third", "--disk", "vda=" + third},
		{"machine", "remove", "idle"},
	} {
		_, stderr := w.want(1, "", args...)
		if !strings.Contains(stderr, "could not be recorded") || !strings.Contains(stderr, "audit") || strings.Contains(stderr, "done, but") {
			t.Errorf("lockstep %s says nothing of the audit log:\n%s", strings.Join(args[:2], " "), stderr)
		}
	}
	restore()
	if after := state(); after != before {
		t.Errorf("something was done that is not recorded:\n%s\n%s", before, after)
	}
	w.ok("", "secret", "destroy", unused, "--reason", "test")
	entries := asked[[]api.AuditEntry](w, 0, "", "audit", "list")
	var outcomes []string
	for _, e := range entries {
		if e.Action == "secret.destroy" {
			outcomes = append(outcomes, e.Outcome)
		}
	}
	if !slices.Equal(outcomes, []string{"begun", "done"}) {
		t.Errorf("a destruction is recorded as %q", outcomes)
	}
}

func TestRemovedAuditLogIsNoticed(t *testing.T) {
	w := started(t)
	folder := dataDir(w.data).audit()
	report := func(exit int) string {
		t.Helper()
		return strings.Join(asked[api.AuditReport](w, exit, "", "audit", "verify").Problems, "; ")
	}
	report(0)
	w.ok("", "machine", "add", "web01", "--disk", "vda="+w.encrypted("web01.img", oldPassphrase))
	kept := w.path("audit")
	copyFolder(t, folder, kept) // what the log was then
	w.ok("", "machine", "remove", "web01")
	report(0)

	if err := os.RemoveAll(folder); err != nil {
		t.Fatal(err)
	}
	if got := report(6); !strings.Contains(got, "it was removed") {
		t.Errorf("removed: %s", got)
	}
	// Begun anew by whoever comes next, it is not the log of this installation.
	w.ok("", "machine", "add", "web01", "--disk", "vda="+w.path("web01.img"))
	if got := report(6); !strings.Contains(got, "begun anew") {
		t.Errorf("begun anew: %s", got)
	}

	// Cut back consistently, to a time when it was whole.
	if err := os.RemoveAll(folder); err != nil {
		t.Fatal(err)
	}
	copyFolder(t, kept, folder)
	if got := report(6); !strings.Contains(got, "truncated") {
		t.Errorf("cut back: %s", got)
	}
	// However long it grows again: what contradicts it stays.
	for range 4 {
		w.ok("", "machine", "remove", "web01")
		w.ok("", "machine", "add", "web01", "--disk", "vda="+w.path("web01.img"))
	}
	if got := report(6); !strings.Contains(got, "edited") {
		t.Errorf("cut back and grown: %s", got)
	}
	// Without the catalog it is checked by itself.
	for _, name := range []string{"catalog.db", "catalog.db-wal", "catalog.db-shm"} {
		if err := os.Remove(filepath.Join(w.data, name)); err != nil && !os.IsNotExist(err) {
			t.Fatal(err)
		}
	}
	report(0)
}

func copyFolder(t *testing.T, from, to string) {
	t.Helper()
	if err := os.CopyFS(to, os.DirFS(from)); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(to, 0o700); err != nil {
		t.Fatal(err)
	}
}
