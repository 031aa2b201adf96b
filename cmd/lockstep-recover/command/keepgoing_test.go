package command_test

import (
	"bytes"
	"encoding/json"
	"os"
	"path/filepath"
	"testing"

	"github.com/lockstep-backup/lockstep/api"
)

// TestKeepGoing: what is not damaged comes back, and the list says what does not.
func TestKeepGoing(t *testing.T) {
	f := newFixture(t)
	whole := filepath.Join(f.dir, "whole")
	status, out, errs := f.run(t, "restore", f.old.ID, "--disk", "vda="+whole)
	want(t, status, 0, out, errs)
	wanted, err := os.ReadFile(whole)
	check(t, err)
	for _, p := range f.objects(t, "seg") {
		b, err := os.ReadFile(p)
		check(t, err)
		b[len(b)/3] ^= 1
		check(t, os.Chmod(p, 0o600))
		check(t, os.WriteFile(p, b, 0o600))
	}
	to, list := filepath.Join(f.dir, "image"), filepath.Join(f.dir, "damage.json")
	args := []string{"restore", f.old.ID, "--disk", "vda=" + to, "--damage-list", list}
	status, out, errs = f.run(t, args...)
	want(t, status, api.ExitUsage, out, errs)
	status, out, errs = f.run(t, append(args, "--keep-going")...)
	want(t, status, api.ExitDamaged, out, errs)
	contains(t, out, "DAMAGED", "zeroes at ")
	contains(t, errs, "disk vda is damaged in the repository")
	var found struct {
		Point string
		Disks []struct {
			Disk    string
			Damaged []api.DamagedRange `json:"damaged_ranges"`
		}
	}
	raw, err := os.ReadFile(list)
	check(t, err)
	check(t, json.Unmarshal(raw, &found))
	if found.Point != f.old.ID || len(found.Disks) != 1 || len(found.Disks[0].Damaged) == 0 {
		t.Fatalf("the list is %s", raw)
	}
	var lost int64
	for _, d := range found.Disks[0].Damaged {
		clear(wanted[d.Offset : d.Offset+d.Length])
		lost += d.Length
		if d.Error == "" || d.Object == "" {
			t.Errorf("damage without a cause: %+v", d)
		}
	}
	got, err := os.ReadFile(to)
	check(t, err)
	if !bytes.Equal(got, wanted) {
		t.Error("what is not in the list differs")
	}
	if lost > int64(len(got))/2 {
		t.Errorf("%d bytes are lost for one flipped byte in each segment", lost)
	}
	// Neither the list nor the target is written over.
	status, out, errs = f.run(t, append(args, "--keep-going")...)
	want(t, status, api.ExitTarget, out, errs)
}
