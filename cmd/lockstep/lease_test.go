package main

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/lockstep-backup/lockstep/api"
	"github.com/lockstep-backup/lockstep/nbd"
)

// While somebody reads a recovery point, nothing deletes it; when that has
// ended, it goes, and an overlay over it says so.
func TestPruneBesideAnExport(t *testing.T) {
	w, disk := web(t)
	want, err := os.ReadFile(disk)
	if err != nil {
		t.Fatal(err)
	}
	first := w.backup(api.StateUnrecoverable)
	if err := os.WriteFile(disk, slices.Concat(want[:1<<20], bytes.Repeat([]byte{7}, 1<<20), want[2<<20:]), 0o600); err != nil {
		t.Fatal(err)
	}
	w.backup(api.StateUnrecoverable)
	w.ok("", "policy", "set", "web01", "--keep-last", "1")
	address, overlay := w.path("nbd.sock"), w.path("scratch.ovl")
	ready, stop := w.background("export", first.ID, "--nbd", "unix:"+address, "--overlay", overlay)
	if text := strings.Join(ready.Warnings, " "); !strings.Contains(text, "lockstep point pin "+first.ID) {
		t.Errorf("nothing says that the overlay needs its recovery point: %q", text)
	}

	for _, args := range [][]string{{"prune", "--dry-run"}, {"prune"}} {
		j := asked[api.PruneResult](w, 0, "", args...)
		if len(j.Machines) != 1 || j.Machines[0].Deleted != 0 || j.Machines[0].Kept != 2 {
			t.Fatalf("%v: %+v", args, j)
		}
		i := slices.IndexFunc(j.Machines[0].Points, func(p api.PrunePoint) bool { return p.Point == first.ID })
		if i < 0 || !j.Machines[0].Points[i].InUse || !j.Machines[0].Points[i].Keep || !strings.Contains(j.Machines[0].Points[i].Reasons[0], "in use by an export, process ") {
			t.Errorf("%v: %+v", args, j.Machines[0].Points)
		}
		if text := w.ok("", args...); !strings.Contains(text, "kept: in use by an export, process ") {
			t.Errorf("%v:\n%s", args, text)
		}
	}
	w.want(8, "is in use by an export, process ", "point", "delete", first.ID, "--reason", "test")
	c, err := nbd.Dial(t.Context(), "unix", address, "", nil)
	if err != nil {
		t.Fatal(err)
	}
	got := make([]byte, c.Size())
	if _, err := c.ReadAt(got, 0); err != nil || !bytes.Equal(got, want) {
		t.Errorf("what is exported is not the disk, %v", err)
	}
	_ = c.Close()
	if code := stop(); code != 0 {
		t.Errorf("exit %d", code)
	}

	if j := asked[api.PruneResult](w, 0, "", "prune"); j.Machines[0].Deleted != 1 {
		t.Errorf("%+v", j)
	}
	w.want(4, "the recovery point that it lies over was deleted", "overlay", "commit", overlay)
}

// Whatever reads recovery points has leases on them: the file of one is there
// afterwards.
func TestReadersHaveLeases(t *testing.T) {
	w, _ := web(t)
	p := w.backup(api.StateUnrecoverable)
	w.offsite()
	sum := sha256.Sum256([]byte("point:" + p.ID))
	lease := filepath.Join(dataDir(w.data).locks(), "key-"+hex.EncodeToString(sum[:12])+".lock")
	for _, args := range [][]string{
		{"prove", p.ID},
		{"verify", p.ID},
		{"verify"},
		{"repository", "repair"},
		{"repository", "copy", "--to", "offsite"},
		{"restore", p.ID, "--disk", "vda=" + w.path("restored.img")},
		{"restore", p.ID, "--disk", "vda=-"},
		{"header", "export", p.ID + "/vda/disk", "--to", w.path("header.img")},
	} {
		_ = os.Remove(lease)
		if code, _, stderr := w.run("", args...); code != 0 && code != 3 {
			t.Errorf("%v: exit %d\n%s", args, code, stderr)
		}
		if _, err := os.Stat(lease); err != nil {
			t.Errorf("%v: nobody had a lease: %v", args, err)
		}
	}
}
