package main

import (
	"bytes"
	"os"
	"strings"
	"testing"

	"github.com/lockstep-backup/lockstep/api"
)

// lose moves a file away for as long as fn runs.
func (w *world) lose(file string, fn func()) {
	w.t.Helper()
	if err := os.Rename(file, file+".away"); err != nil {
		w.t.Fatal(err)
	}
	fn()
	if err := os.Rename(file+".away", file); err != nil {
		w.t.Fatal(err)
	}
}

func TestReadingNeedsNoWriterKey(t *testing.T) {
	w, image := web(t)
	w.add(oldPassphrase)
	p := w.backup(api.StateProven)
	original, err := os.ReadFile(image)
	if err != nil {
		t.Fatal(err)
	}
	w.lose(dataDir(w.data).writerKey(), func() {
		w.ok("", "restore", p.ID, "--disk", "vda="+w.path("restored.img"))
		if got, err := os.ReadFile(w.path("restored.img")); err != nil || !bytes.Equal(got, original) {
			t.Errorf("the restored disk is another: %v", err)
		}
		w.ok("", "verify")
		w.ok("", "prove", "--all")
		w.ok("", "status")
		w.ok("", "point", "list")
		w.ok("", "header", "export", p.ID+"/vda/disk", "--to", w.path("header"))
		for _, args := range [][]string{{"backup", "web01"}, {"point", "delete", p.ID, "--reason", "test"}} {
			_, stderr := w.want(1, "", args...)
			if !strings.Contains(stderr, "writer.key") || !strings.Contains(stderr, "backup of the data directory") {
				t.Errorf("lockstep %s does not say what is missing:\n%s", args[0], stderr)
			}
		}
	})
	if second := w.backup(api.StateProven); second.Parent != p.ID {
		t.Errorf("the recovery point that could not be deleted is not the parent: %+v", second)
	}
}

func TestLostProverKeys(t *testing.T) {
	w, image := web(t)
	w.add(oldPassphrase)
	w.backup(api.StateProven)
	w.rotate(image, oldPassphrase, newPassphrase)
	w.lose(dataDir(w.data).proverKey(), func() {
		_, stderr := w.want(3, "", "backup", "web01")
		if !strings.Contains(stderr, "prover.key") {
			t.Errorf("nobody says why nothing is proven:\n%s", stderr)
		}
		_, stderr = w.want(1, newPassphrase, "secret", "add", "web01", "--kind", "passphrase", "--file", "-")
		if !strings.Contains(stderr, "prover.key") {
			t.Errorf("nobody says why no secret is tried:\n%s", stderr)
		}
	})
	w.lose(dataDir(w.data).vkproofKey(), func() {
		w.add(newPassphrase)
		w.backup(api.StateProven)
	})
	w.backup(api.StateProven)
}
