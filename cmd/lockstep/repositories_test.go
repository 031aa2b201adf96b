package main

import (
	"bytes"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/lockstep-backup/lockstep/api"
)

// offsite is a second repository beside the one in the data directory.
func (w *world) offsite() string {
	w.t.Helper()
	dir := w.path("offsite")
	v := asked[api.RepositoryAdded](w, 0, "", "repository", "add", "offsite", dir, "--kit", w.path("offsite-kit.txt"))
	if !v.Made || v.KitFile != w.path("offsite-kit.txt") {
		w.t.Fatalf("%+v", v)
	}
	return dir
}

func (w *world) copy(args ...string) api.MachineCopy {
	w.t.Helper()
	v := asked[api.CopyResult](w, 0, "", append([]string{"repository", "copy"}, args...)...)
	if len(v.Copies) != 1 {
		w.t.Fatalf("%+v", v)
	}
	return v.Copies[0]
}

func (w *world) repository(name string) api.Repository {
	w.t.Helper()
	all := asked[[]api.Repository](w, 0, "", "repository", "list")
	i := slices.IndexFunc(all, func(r api.Repository) bool { return r.Name == name })
	if i < 0 {
		w.t.Fatalf("no %s in %+v", name, all)
	}
	return all[i]
}

// recoverCopy runs lockstep-recover with the kits of both repositories: the one
// has the identity, the other the pins.
func (w *world) recoverCopy(dir string, args ...string) string {
	w.t.Helper()
	return w.recover(append(args, "--repository", dir, "--identity", w.path("kit.txt"), "--identity", w.path("offsite-kit.txt"))...)
}

// TestTheFirstRepositoryIsLost: copies go elsewhere, the first repository is
// deleted with the catalog, and life goes on with the copy: restores, proofs,
// incremental backups, and the kit alone.
func TestTheFirstRepositoryIsLost(t *testing.T) {
	w, image := web(t)
	w.add(oldPassphrase)
	first := w.backup(api.StateProven)
	dir := w.offsite()
	if r := w.repository("offsite"); r.Missing != 1 || !r.Writable || r.Points != 0 {
		t.Fatalf("%+v", r)
	}
	if c := w.copy("--to", "offsite", "--verify"); !slices.Equal(c.Points, []string{first.ID}) || c.Sidecars == 0 || c.Objects == 0 {
		t.Fatalf("%+v", c)
	}
	second := w.backup(api.StateProven)
	if s := w.ok("", "status"); !strings.Contains(s, "repository offsite does not have the newest recovery point yet") {
		t.Errorf("status says\n%s", s)
	}
	// The policy says where copies go: that is all that a timer has to know.
	w.want(4, "", "repository", "copy")
	w.ok("", "policy", "set", "web01", "--copy-to", "file://"+dir)
	c := w.copy()
	if !slices.Equal(c.Points, []string{second.ID}) || c.Present != 1 || c.Objects > 6 {
		t.Fatalf("%+v", c)
	}
	if c := w.copy(); len(c.Points) != 0 || c.Objects != 0 || c.Sidecars != 0 || c.Bytes != 0 {
		t.Fatalf("a copy without anything new: %+v", c)
	}
	if r := w.repository("offsite"); r.Missing != 0 || r.Points != 2 || r.LastCopy == nil {
		t.Fatalf("%+v", r)
	}
	if s := w.ok("", "status"); strings.Contains(s, "offsite") {
		t.Errorf("status says\n%s", s)
	}

	if err := os.RemoveAll(filepath.Join(w.data, "repository")); err != nil {
		t.Fatal(err)
	}
	_, stderr := w.want(0, "", "restore", second.ID, "--disk", "vda="+w.path("restored.img"))
	if !strings.Contains(stderr, "repository main is passed over") {
		t.Errorf("the restore says\n%s", stderr)
	}
	same(t, image, w.path("restored.img"))
	if r := w.repository("main"); r.Reachable || r.Error == "" {
		t.Fatalf("%+v", r)
	}
	w.ok("", "repository", "promote", "offsite")
	third := w.backup(api.StateProven)
	if third.Parent != second.ID || third.Transfer != "incremental" {
		t.Fatalf("the backup after the loss: %+v", third)
	}
	for _, p := range asked[[]api.Point](w, 0, "", "point", "list") {
		if p.State != api.StateProven {
			t.Errorf("recovery point %s is %s: %q", p.ID, p.State, p.Why)
		}
	}
	if v := asked[api.VerifyResult](w, 0, "", "verify"); v.Points != 3 || len(v.Damage) != 0 {
		t.Fatalf("%+v", v)
	}
	// Its own kit, the identity of the first, and nothing else.
	if list := w.recoverCopy(dir, "list"); !strings.Contains(list, "web01") || strings.Contains(list, "locked") {
		t.Errorf("lockstep-recover list says\n%s", list)
	}
	w.recoverCopy(dir, "restore", "web01@latest", "--disk", "vda="+w.path("recovered.img"))
	same(t, image, w.path("recovered.img"))

	// The catalog comes back from the copy alone.
	before := w.ok("", "-o", "json", "point", "list")
	for _, name := range []string{"catalog.db", "catalog.db-wal", "catalog.db-shm"} {
		if err := os.Remove(filepath.Join(w.data, name)); err != nil && !os.IsNotExist(err) {
			t.Fatal(err)
		}
	}
	if r := asked[api.RebuildResult](w, 0, "", "catalog", "rebuild"); r.Points != 3 || r.Proofs < 3 {
		t.Fatalf("%+v", r)
	}
	if after := w.ok("", "-o", "json", "point", "list"); after != before {
		t.Errorf("the list is another:\n%s\n%s", before, after)
	}
	w.audited("repository.add", "repository.copy", "repository.promote")
}

func same(t *testing.T, a, b string) {
	t.Helper()
	x, err := os.ReadFile(a)
	if err != nil {
		t.Fatal(err)
	}
	y, err := os.ReadFile(b)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(x, y) {
		t.Fatalf("%s and %s differ", a, b)
	}
}

// TestDamageIsRepairedFromTheCopy flips bytes in every segment and map of the
// first repository: a restore takes what it cannot read from the copy, and a
// repair makes all whole.
func TestDamageIsRepairedFromTheCopy(t *testing.T) {
	w, image := web(t)
	w.add(oldPassphrase)
	p := w.backup(api.StateProven)
	w.offsite()
	w.copy("--to", "offsite")
	for _, kind := range []string{"seg", "map"} {
		found, err := filepath.Glob(filepath.Join(w.data, "repository", kind, "*", "*", "*"))
		if err != nil || len(found) == 0 {
			t.Fatal(found, err)
		}
		for _, path := range found {
			w.edit(path, func(f *os.File) {
				info, err := f.Stat()
				if err == nil {
					_, err = f.WriteAt([]byte("damage"), info.Size()/2)
				}
				if err != nil {
					t.Fatal(err)
				}
			})
		}
	}
	_, stderr := w.want(0, "", "restore", p.ID, "--disk", "vda="+w.path("restored.img"))
	if !strings.Contains(stderr, "were taken from another") {
		t.Errorf("the restore says\n%s", stderr)
	}
	same(t, image, w.path("restored.img"))
	if v := asked[api.VerifyResult](w, 6, "", "verify"); len(v.Damage) == 0 || v.Damage[0].From != "offsite" {
		t.Fatalf("%+v", v)
	}
	dry := asked[api.RepairResult](w, 0, "", "repository", "repair", "--dry-run")
	if len(dry.Repaired) == 0 || len(dry.Failed) != 0 || dry.Repaired[0].From != "offsite" {
		t.Fatalf("%+v", dry)
	}
	done := asked[api.RepairResult](w, 0, "", "repository", "repair")
	if len(done.Repaired) < len(dry.Repaired) || done.Left != 0 {
		t.Fatalf("%+v", done)
	}
	w.ok("", "verify")
	w.ok("", "restore", p.ID, "--disk", "vda="+w.path("again.img"))
	same(t, image, w.path("again.img"))
}

func TestRepositoriesAreAddedOnce(t *testing.T) {
	w, _ := web(t)
	dir := w.offsite()
	w.want(7, "", "repository", "add", "offsite", w.path("other"))
	w.want(7, "", "repository", "add", "again", dir)
	w.want(2, "", "repository", "add", "Off Site", w.path("other"))
	w.want(1, "", "repository", "copy", "--to", "nowhere")
	w.want(4, "", "repository", "promote", "main")
	w.want(1, "", "repository", "promote", "nowhere")
}
