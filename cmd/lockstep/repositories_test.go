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

// corrupt writes over the middle of all segments or maps of a repository.
func (w *world) corrupt(dir string, kinds ...string) {
	w.t.Helper()
	for _, kind := range kinds {
		found, err := filepath.Glob(filepath.Join(dir, kind, "*", "*", "*"))
		if err != nil || len(found) == 0 {
			w.t.Fatal(found, err)
		}
		for _, path := range found {
			w.edit(path, func(f *os.File) {
				info, err := f.Stat()
				if err == nil {
					_, err = f.WriteAt([]byte("damage"), info.Size()/2)
				}
				if err != nil {
					w.t.Fatal(err)
				}
			})
		}
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
	w.corrupt(filepath.Join(w.data, "repository"), "seg", "map")
	_, stderr := w.want(0, "", "restore", p.ID, "--disk", "vda="+w.path("restored.img"))
	if !strings.Contains(stderr, "were taken from another") {
		t.Errorf("the restore says\n%s", stderr)
	}
	same(t, image, w.path("restored.img"))
	if _, stderr := w.want(0, "", "restore", p.ID, "--disk", "vda=-"); !strings.Contains(stderr, "were taken from another") {
		t.Errorf("the streamed restore says\n%s", stderr)
	}
	if v := asked[api.VerifyResult](w, 6, "", "verify"); len(v.Damage) == 0 || v.Damage[0].From != "offsite" {
		t.Fatalf("%+v", v)
	}
	known := asked[api.Status](w, 6, "", "status")
	if !slices.Equal(known.Damaged, []string{"main"}) || !slices.ContainsFunc(known.Warnings, func(s string) bool {
		return strings.Contains(s, "repository main is DAMAGED") && strings.Contains(s, "web01")
	}) {
		t.Errorf("after damage was found, status says %+v", known)
	}
	w.want(6, "", "status", "web01")
	scrubbed := asked[api.ScrubResult](w, 6, "", "scrub")
	if scrubbed.Never || scrubbed.Oldest == nil || len(scrubbed.Damage) == 0 {
		t.Errorf("all was read just now: %+v", scrubbed)
	}
	dry := asked[api.RepairResult](w, 0, "", "repository", "repair", "--dry-run")
	if len(dry.Repaired) == 0 || len(dry.Failed) != 0 || dry.Repaired[0].From != "offsite" {
		t.Fatalf("%+v", dry)
	}
	done := asked[api.RepairResult](w, 0, "", "repository", "repair")
	if len(done.Repaired) < len(dry.Repaired) || done.Left != 0 {
		t.Fatalf("%+v", done)
	}
	if now := asked[api.Status](w, 0, "", "status"); len(now.Damaged) != 0 {
		t.Errorf("after the repair, status says %+v", now)
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

// TestEverythingReadsTheCopy: the first repository is gone, and what reads a
// recovery point takes it from the copy, or from where it is told to.
func TestEverythingReadsTheCopy(t *testing.T) {
	w, image := web(t)
	w.add(oldPassphrase)
	p := w.backup(api.StateProven)
	dir := w.offsite()
	w.copy("--to", "offsite")
	if err := os.Rename(filepath.Join(w.data, "repository"), w.path("away")); err != nil {
		t.Fatal(err)
	}
	_, stderr := w.want(0, "", "header", "export", p.ID+"/vda/disk", "--to", w.path("header"))
	if !strings.Contains(stderr, "repository main is passed over") {
		t.Errorf("header export says\n%s", stderr)
	}
	ready, stop := w.background("export", p.ID, "--nbd", "unix:"+w.path("s"))
	if !slices.ContainsFunc(ready.Warnings, func(s string) bool { return strings.Contains(s, "repository main is passed over") }) {
		t.Errorf("export says %q", ready.Warnings)
	}
	if code := stop(); code != 0 {
		t.Errorf("export: exit %d", code)
	}
	stdout, stderr := w.want(0, "", "restore", p.ID, "--disk", "vda=-")
	if !strings.Contains(stderr, "repository main is passed over") {
		t.Errorf("the streamed restore says\n%s", stderr)
	}
	if raw, err := os.ReadFile(image); err != nil || stdout != string(raw) {
		t.Errorf("%d bytes are not the disk's: %v", len(stdout), err)
	}
	for _, args := range [][]string{
		{"header", "export", p.ID + "/vda/disk", "--to", w.path("none")},
		{"restore", p.ID, "--disk", "vda=" + w.path("none")},
		{"restore", p.ID, "--disk", "vda=-"},
		{"export", p.ID, "--nbd", "unix:" + w.path("n")},
	} {
		if code, _, errs := w.run("", append(args, "--repository", "main")...); code == 0 || !strings.Contains(errs, "main") {
			t.Errorf("%q: exit %d\n%s", args, code, errs)
		}
		if code, _, errs := w.run("", append(args, "--repository", "nowhere")...); code != 1 || !strings.Contains(errs, `no repository "nowhere"`) {
			t.Errorf("%q: exit %d\n%s", args, code, errs)
		}
	}
	if v := asked[api.VerifyResult](w, 0, "", "verify", "--repository", "file://"+dir, p.ID); v.Points != 1 || !slices.Equal(v.Repositories, []string{"offsite"}) {
		t.Errorf("%+v", v)
	}
	if v := asked[api.ScrubResult](w, 0, "", "scrub", "--repository", "offsite"); v.Objects == 0 || v.LeftObjects != 0 {
		t.Errorf("%+v", v)
	}
	if code, _, _ := w.run("", "verify", "--repository", "all"); code == 0 {
		t.Error("verify of all repositories says nothing of the one that is gone")
	}
	if err := os.Rename(w.path("away"), filepath.Join(w.data, "repository")); err != nil {
		t.Fatal(err)
	}
	if v := asked[api.VerifyResult](w, 0, "", "verify", "--repository", "all"); v.Points != 2 || !slices.Equal(v.Repositories, []string{"main", "offsite"}) {
		t.Errorf("%+v", v)
	}
}

// TestWhatACopyLostIsMissed cuts the log of a copy off: what the last copy
// brought is missed there, also when backups write to it and the catalog says
// that it was made elsewhere.
func TestWhatACopyLostIsMissed(t *testing.T) {
	for _, promoted := range []bool{false, true} {
		w, _ := web(t)
		w.add(oldPassphrase)
		w.backup(api.StateProven)
		lost := w.backup(api.StateProven)
		dir := w.offsite()
		w.copy("--to", "offsite")
		args := []string{"verify", "--structure", "--repository", "offsite"}
		if v := asked[api.VerifyResult](w, 0, "", args...); len(v.Damage) != 0 {
			t.Fatalf("%+v", v)
		}
		if promoted {
			w.ok("", "repository", "promote", "offsite")
			args = []string{"verify", "--structure"}
			if v := asked[api.VerifyResult](w, 0, "", "verify", "--structure", "--repository", "all"); len(v.Damage) != 0 {
				t.Fatalf("%+v", v)
			}
		}
		entries, err := filepath.Glob(filepath.Join(dir, "log", "*", "*"))
		if err != nil || len(entries) < 2 {
			t.Fatal(entries, err)
		}
		slices.Sort(entries)
		if err := os.Remove(entries[len(entries)-1]); err != nil {
			t.Fatal(err)
		}
		v := asked[api.VerifyResult](w, 6, "", args...)
		if !slices.ContainsFunc(v.Damage, func(d api.Damage) bool {
			return slices.Contains(d.Points, lost.ID) && d.Repository == "offsite"
		}) {
			t.Errorf("promoted %v: %+v", promoted, v)
		}
		if promoted {
			continue
		}
		// What goes by the log's own word is not missed: a copy brings it back.
		w.copy("--to", "offsite")
		if v := asked[api.VerifyResult](w, 0, "", args...); len(v.Damage) != 0 {
			t.Errorf("%+v", v)
		}
	}
}

func TestARepositoryIsForgotten(t *testing.T) {
	w, _ := web(t)
	w.add(oldPassphrase)
	p := w.backup(api.StateProven)
	dir := w.offsite()
	w.want(4, "", "repository", "remove", "main")
	w.want(1, "", "repository", "remove", "nowhere")
	w.copy("--to", "offsite")
	w.ok("", "policy", "set", "web01", "--copy-to", "file://"+dir)
	_, stderr := w.want(0, "", "repository", "remove", "offsite")
	if !strings.Contains(stderr, "policy of machine web01 copies to it") {
		t.Errorf("it says\n%s", stderr)
	}
	if all := asked[[]api.Repository](w, 0, "", "repository", "list"); len(all) != 1 {
		t.Fatalf("%+v", all)
	}
	// Nothing in it was touched: it is taken back with all that it has.
	if v := asked[api.RepositoryAdded](w, 0, "", "repository", "add", "offsite", dir, "--kit", w.path("offsite-kit.txt")); v.ID == "" {
		t.Fatalf("%+v", v)
	}
	if r := w.repository("offsite"); r.Points != 1 || r.Missing != 0 {
		t.Fatalf("%+v", r)
	}
	// The only place of a recovery point stays.
	w.ok("", "repository", "promote", "offsite")
	second := w.backup(api.StateProven)
	w.ok("", "repository", "promote", "main")
	_, stderr = w.want(4, "", "repository", "remove", "offsite")
	if !strings.Contains(stderr, second.ID) || strings.Contains(stderr, p.ID) {
		t.Errorf("it says\n%s", stderr)
	}
	// Nor where it cannot be looked into.
	if err := os.Rename(dir, w.path("away")); err != nil {
		t.Fatal(err)
	}
	_, stderr = w.want(4, "", "repository", "remove", "offsite")
	if !strings.Contains(stderr, second.ID) {
		t.Errorf("it says\n%s", stderr)
	}
	if v := asked[api.RepositoryRemoved](w, 0, "", "repository", "remove", "offsite", "--force"); !slices.Equal(v.Only, []string{second.ID}) {
		t.Errorf("%+v", v)
	}
	w.audited("repository.remove")
}
