package main

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/lockstep-backup/lockstep/api"
)

// TestSecretsAreHeldForCopies: a recovery point that was deleted where backups
// go and is in a copy keeps its secret, is shown, comes back, and lets the
// secret go with the last copy.
func TestSecretsAreHeldForCopies(t *testing.T) {
	w, image := web(t)
	added := w.add(oldPassphrase)
	old := w.backup(api.StateProven)
	dir := w.offsite()
	w.copy("--to", "offsite")
	w.rotate(image, oldPassphrase, newPassphrase)
	w.add(newPassphrase)
	w.backup(api.StateProven)
	ref := fmt.Sprintf("%s@%d", added.Secret, added.Version)

	d := asked[api.PointDeleted](w, 0, "", "point", "delete", old.ID, "--reason", "test")
	if d.Repository != "main" || !slices.Equal(d.StillIn, []string{"offsite"}) {
		t.Fatalf("%+v", d)
	}
	only := func(where ...string) {
		t.Helper()
		for _, p := range asked[[]api.Point](w, 0, "", "point", "list") {
			if p.ID == old.ID {
				if !slices.Equal(p.OnlyIn, where) || p.State != api.StateProven {
					t.Errorf("%s is only in %q and %s: %q", p.ID, p.OnlyIn, p.State, p.Why)
				}
				return
			}
		}
		t.Errorf("%s is not listed", old.ID)
	}
	refused := func() {
		t.Helper()
		_, stderr := w.want(4, "", "secret", "destroy", ref, "--reason", "test")
		if !strings.Contains(stderr, old.ID) || !strings.Contains(stderr, "repository offsite") {
			t.Errorf("destroying says\n%s", stderr)
		}
	}
	only("offsite")
	refused()
	if s := w.ok("", "status"); !strings.Contains(s, "1 in offsite") {
		t.Errorf("status says\n%s", s)
	}
	w.want(1, "", "point", "delete", old.ID)
	w.ok("", "restore", old.ID, "--disk", "vda="+w.path("restored.img"))
	if len(w.opens(w.path("restored.img"), oldPassphrase)) == 0 {
		t.Error("the restored disk does not open")
	}

	// The catalog and its memory are lost.
	for _, name := range []string{"catalog.db", "catalog.db-wal", "catalog.db-shm"} {
		if err := os.Remove(filepath.Join(w.data, name)); err != nil && !os.IsNotExist(err) {
			t.Fatal(err)
		}
	}
	w.ok("", "catalog", "rebuild")
	only("offsite")
	refused()

	// The copy is away: what is remembered counts, and it is said.
	if err := os.Rename(dir, dir+".away"); err != nil {
		t.Fatal(err)
	}
	w.ok("", "policy", "set", "--default", "--keep-last", "1")
	if _, stderr := w.want(0, "", "prune"); !strings.Contains(stderr, "repository offsite cannot be asked") {
		t.Errorf("pruning says\n%s", stderr)
	}
	only("offsite")
	refused()
	if err := os.Rename(dir+".away", dir); err != nil {
		t.Fatal(err)
	}

	// The copy has one recovery point, which its policy keeps; by hand it goes.
	v := asked[api.PruneResult](w, 0, "", "prune", "--repository", "offsite")
	if len(v.Machines) != 1 || v.Machines[0].Repository != "offsite" || v.Machines[0].Deleted != 0 {
		t.Fatalf("%+v", v)
	}
	only("offsite")
	w.copy("--to", "offsite")
	v = asked[api.PruneResult](w, 0, "", "prune", "--repository", "offsite")
	if m := v.Machines[0]; m.Deleted != 1 || m.ReleasedHolds != 1 || len(m.Points[0].StillIn) != 0 {
		t.Fatalf("%+v", v)
	}
	if list := asked[[]api.Point](w, 0, "", "point", "list"); len(list) != 1 {
		t.Errorf("%+v", list)
	}
	w.ok("", "secret", "destroy", ref, "--reason", "nothing needs it")
}
