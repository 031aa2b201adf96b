package main

import (
	"bytes"
	"context"
	"encoding/base64"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/lockstep-backup/lockstep/api"
	"github.com/lockstep-backup/lockstep/diskcrypt/luks/luksformat"
	"github.com/lockstep-backup/lockstep/internal/judge"
)

func TestRotation(t *testing.T) {
	w, image := web(t)
	first := w.backup(api.StateUnrecoverable)
	if first.Transfer != "full" || len(first.Disks) != 1 || len(first.Disks[0].Volumes) != 1 {
		t.Fatalf("first recovery point: %+v", first)
	}
	added := w.add(oldPassphrase)
	if added.Existing || added.State != "active" || !slices.Equal(added.Proven, []string{first.ID}) {
		t.Fatalf("added: %+v", added)
	}
	again := w.add(oldPassphrase)
	if !again.Existing || again.Secret != added.Secret || again.Version != added.Version {
		t.Fatalf("the same passphrase again: %+v", again)
	}
	before, err := os.ReadFile(image)
	if err != nil {
		t.Fatal(err)
	}
	second := w.backup(api.StateProven)
	if second.Transfer != "incremental" || second.Parent != first.ID || second.ChangedBytes != 0 || len(second.Changes) != 0 {
		t.Fatalf("second recovery point: %+v", second)
	}

	w.rotate(image, oldPassphrase, newPassphrase)
	_, stderr := w.want(3, "", "backup", "web01")
	if !strings.Contains(stderr, "protector rotated") {
		t.Errorf("nobody was told of the rotation:\n%s", stderr)
	}
	third := asked[api.Point](w, 3, "", "point", "show", "web01@latest")
	if third.State != api.StateUnrecoverable || !slices.ContainsFunc(third.Changes, func(s string) bool { return strings.Contains(s, "protector rotated") }) {
		t.Fatalf("after the rotation: %s, changes %q", third.State, third.Changes)
	}
	renewed := w.add(newPassphrase)
	if renewed.Secret != added.Secret || renewed.Version != 2 || !slices.Equal(renewed.Proven, []string{third.ID}) {
		t.Fatalf("the new passphrase: %+v", renewed)
	}
	secret := asked[api.Secret](w, 0, "", "secret", "show", "web01")
	if len(secret.Versions) != 2 || secret.Versions[0].State != "deactivated" || secret.Versions[1].State != "active" || len(secret.Versions[0].Holds) != 2 {
		t.Fatalf("versions: %+v", secret.Versions)
	}
	status := asked[api.Status](w, 0, "", "status", "web01").Machines[0]
	var grid []string
	for _, p := range status.Points {
		grid = append(grid, strings.Join(p.Opens, " "))
	}
	if status.State != api.StateProven || !slices.Equal(grid, []string{"no yes", "yes untried", "yes untried"}) && !slices.Equal(grid, []string{"no yes", "yes no", "yes no"}) {
		t.Fatalf("status: %s, %q", status.State, grid)
	}

	// What a recovery point needs is not destroyed, and says what needs it.
	refused := asked[api.Error](w, 4, "", "secret", "destroy", "web01@1")
	want := []string{first.ID, second.ID}
	slices.Sort(want)
	if !slices.Equal(refused.Items, want) {
		t.Fatalf("held by %q, want %q", refused.Items, want)
	}

	// The oldest recovery point restores byte for byte and opens with the old
	// passphrase, which is released for it.
	target := w.path("restored.img")
	restored := asked[api.RestoreResult](w, 0, "", "restore", first.ID[:12], "--disk", "vda="+target)
	if len(restored.Keys) != 1 || !slices.Equal(restored.Keys[0].Opens, []string{added.Secret + "@1"}) {
		t.Fatalf("pre-flight: %+v", restored.Keys)
	}
	after, err := os.ReadFile(target)
	if err != nil || !bytes.Equal(before, after) {
		t.Fatalf("the restored disk is another: %v", err)
	}
	if got := w.ok("", "secret", "release", "web01@1", "--reason", "restore"); got != oldPassphrase {
		t.Fatalf("released %q", got)
	}
	w.said.Reset() // the release is the one answer that may say it
	if len(w.opens(target, oldPassphrase)) == 0 || len(w.opens(target, newPassphrase)) != 0 {
		t.Fatal("the restored disk does not open as it should")
	}
	w.header(first, before)

	w.ok("", "point", "delete", first.ID, "--reason", "test")
	w.ok("", "point", "delete", second.ID, "--reason", "test")
	_, told := w.want(0, "", "secret", "destroy", "web01@1", "--reason", "nothing needs it")
	for _, p := range []string{first.ID, second.ID} {
		objects, err := filepath.Glob(filepath.Join(dataDir(w.data).repository(), "side", "*", p, "keypackage-*"))
		if err != nil || len(objects) != 1 || !strings.Contains(told, "side/") || !strings.Contains(told, filepath.Base(objects[0])) {
			t.Errorf("the sealed copies %q of recovery point %s are not named:\n%s", objects, p, told)
		}
	}
	w.want(4, "", "secret", "release", "web01@1", "--reason", "too late")
	if got := asked[[]api.Point](w, 0, "", "point", "list", "web01"); len(got) != 1 || got[0].ID != third.ID || got[0].State != api.StateProven {
		t.Fatalf("left: %+v", got)
	}
	w.ok("", "audit", "verify")
	w.ok("", "verify")
	w.audited("init", "machine.add", "machine.backup", "point.prove", "secret.add", "secret.destroy", "secret.release", "point.restore", "header.export", "point.delete")
	w.redacted()
	w.private()
}

// header compares an exported header with what cryptsetup makes of the image.
func (w *world) header(p api.Point, image []byte) {
	w.t.Helper()
	to := w.path("header")
	w.ok("", "header", "export", p.ID+"/vda/disk", "--to", to)
	exported, err := os.ReadFile(to)
	if err != nil || len(exported) == 0 || !bytes.Equal(exported, image[:len(exported)]) {
		w.t.Fatalf("exported header: %d bytes, %v", len(exported), err)
	}
	tool, err := exec.LookPath("cryptsetup")
	if err != nil {
		if os.Getenv("LOCKSTEP_REQUIRE_JUDGES") == "1" {
			w.t.Fatal("cryptsetup is missing")
		}
		return
	}
	disk, backup := w.path("judged.img"), w.path("judged.header")
	if err := os.WriteFile(disk, image, 0o600); err != nil {
		w.t.Fatal(err)
	}
	if out, err := exec.Command(tool, "-q", "luksHeaderBackup", disk, "--header-backup-file", backup).CombinedOutput(); err != nil {
		w.t.Fatalf("cryptsetup: %v: %s", err, out)
	}
	judged, err := os.ReadFile(backup)
	if err != nil || !bytes.Equal(judged, exported) {
		w.t.Fatalf("cryptsetup makes another header of it: %d and %d bytes, %v", len(judged), len(exported), err)
	}
	judge.Decided(w.t, "cryptsetup luksHeaderBackup")
}

// audited wants entries of each action.
func (w *world) audited(actions ...string) {
	w.t.Helper()
	seen := map[string]bool{}
	for _, e := range asked[[]api.AuditEntry](w, 0, "", "audit", "list") {
		seen[e.Action] = true
		if !strings.HasPrefix(e.Actor, "uid:") {
			w.t.Errorf("entry %d is by %q", e.Index, e.Actor)
		}
	}
	for _, a := range actions {
		if !seen[a] {
			w.t.Errorf("the audit log has no %s", a)
		}
	}
}

// redacted looks for the secrets in everything that was said and stored.
func (w *world) redacted() {
	w.t.Helper()
	var needles [][]byte
	for _, s := range []string{oldPassphrase, newPassphrase} {
		// Base64 at each of the three ways it may be aligned.
		for shift := range 3 {
			enc := base64.StdEncoding.EncodeToString(append(make([]byte, shift), s...))
			needles = append(needles, []byte(enc[4:len(enc)-4]))
		}
		needles = append(needles, []byte(s))
	}
	look := func(what string, text []byte) {
		for _, n := range needles {
			if bytes.Contains(text, n) {
				w.t.Errorf("%s holds a secret", what)
			}
		}
	}
	look("what was said", w.said.Bytes())
	looked := 0
	err := filepath.WalkDir(w.data, func(p string, d fs.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() {
			return err
		}
		text, err := os.ReadFile(p)
		looked++
		look(p, text)
		return err
	})
	if err != nil || looked < 10 {
		w.t.Fatalf("looked at %d files: %v", looked, err)
	}
}

// private wants the data directory to be nobody else's.
func (w *world) private() {
	w.t.Helper()
	err := filepath.WalkDir(w.data, func(p string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		info, err := d.Info()
		if err == nil && info.Mode().Perm()&0o077 != 0 {
			w.t.Errorf("%s has mode %v", p, info.Mode())
		}
		return err
	})
	if err != nil {
		w.t.Fatal(err)
	}
	if info, err := os.Stat(w.path("kit.txt")); err != nil || info.Mode().Perm() != 0o600 {
		w.t.Errorf("recovery kit: %v %v", info, err)
	}
}

func TestCustodyAwayDoesNotStopBackups(t *testing.T) {
	w, _ := web(t)
	w.add(oldPassphrase)
	kek := dataDir(w.data).kek()
	if err := os.Rename(kek, kek+".away"); err != nil {
		t.Fatal(err)
	}
	p := w.backup(api.StateUnproven)
	if out, _ := w.want(1, "", "secret", "list"); strings.Contains(out, "s-") {
		t.Fatalf("secrets are listed by a sealed key manager:\n%s", out)
	}
	w.want(1, "", "secret", "add", "web01", "--kind", "passphrase", "--file", w.secretFile(oldPassphrase))
	if err := os.Rename(kek+".away", kek); err != nil {
		t.Fatal(err)
	}
	proven := asked[[]api.Point](w, 0, "", "prove", "--all")
	if len(proven) != 1 || proven[0].ID != p.ID || proven[0].State != api.StateProven {
		t.Fatalf("proven: %+v", proven)
	}
	w.redacted()
}

func (w *world) secretFile(text string) string {
	w.t.Helper()
	path := w.path("secret")
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		w.t.Fatal(err)
	}
	return path
}

func TestCatalogIsLostAndRebuilt(t *testing.T) {
	w, image := web(t)
	w.add(oldPassphrase)
	w.backup(api.StateProven)
	w.rotate(image, oldPassphrase, newPassphrase)
	w.backup(api.StateUnrecoverable)
	w.ok("", "volume", "not-needed", "web01", "vda/disk", "--reason", "test of declarations")
	w.ok("", "volume", "not-needed", "web01", "vda/disk", "--withdraw")
	before := w.ok("", "-o", "json", "point", "list")
	held := w.ok("", "-o", "json", "secret", "show", "web01")
	for _, name := range []string{"catalog.db", "catalog.db-wal", "catalog.db-shm"} {
		if err := os.Remove(filepath.Join(w.data, name)); err != nil && !os.IsNotExist(err) {
			t.Fatal(err)
		}
	}
	_, stderr := w.want(1, "", "point", "list")
	if !strings.Contains(stderr, "catalog rebuild") {
		t.Errorf("nobody says what to do:\n%s", stderr)
	}
	// Without the catalog nobody knows what needs a secret.
	w.want(1, "", "secret", "destroy", "web01@1")
	r := asked[api.RebuildResult](w, 0, "", "catalog", "rebuild")
	if r.Points != 2 || r.Machines != 1 || r.Proofs != 1 || r.Holds != 1 {
		t.Fatalf("rebuilt: %+v", r)
	}
	if after := w.ok("", "-o", "json", "point", "list"); after != before {
		t.Errorf("the list is another:\n%s\n%s", before, after)
	}
	if after := w.ok("", "-o", "json", "secret", "show", "web01"); after != held {
		t.Errorf("the secret is another:\n%s\n%s", held, after)
	}
}

// TestHeaderSurvivesItsDisk damages every segment: what is left are the copies.
func TestHeaderSurvivesItsDisk(t *testing.T) {
	w, image := web(t)
	w.add(oldPassphrase)
	p := w.backup(api.StateProven)
	damaged := 0
	err := filepath.WalkDir(filepath.Join(dataDir(w.data).repository(), "seg"), func(path string, d fs.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() {
			return err
		}
		text, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		for i := range text {
			if i%512 == 100 {
				text[i] ^= 1
			}
		}
		damaged++
		if err := os.Chmod(path, 0o600); err != nil {
			return err
		}
		return os.WriteFile(path, text, 0o600)
	})
	if err != nil || damaged == 0 {
		t.Fatalf("%d segments damaged: %v", damaged, err)
	}
	w.want(6, "", "verify")
	target := w.path("restored.img")
	w.want(6, "", "restore", p.ID, "--disk", "vda="+target)
	if _, err := os.Stat(target); err == nil {
		t.Error("a half-written target is left")
	}
	header := w.path("header")
	w.ok("", "header", "export", p.ID+"/vda/disk", "--to", header)
	if len(w.opens(header, oldPassphrase)) == 0 {
		t.Error("the header from the copy does not open")
	}
	original, err := os.ReadFile(image)
	if err != nil {
		t.Fatal(err)
	}
	got, err := os.ReadFile(header)
	if err != nil || !bytes.Equal(got[:16<<10], original[:16<<10]) {
		t.Errorf("the header is another: %v", err)
	}
}

func TestDetachedHeader(t *testing.T) {
	w := started(t)
	image, header := w.path("data.img"), w.path("data.header")
	w.edit(header, func(h *os.File) {
		if err := h.Truncate(2 << 20); err != nil {
			t.Fatal(err)
		}
		v, err := luksformat.Format(h, 2<<20, luksformat.Options{KeyslotsSize: 1 << 20, DataOffset: -1})
		if err != nil {
			t.Fatal(err)
		}
		defer v.Close()
		if _, err := v.AddKey(context.Background(), secretOf(oldPassphrase), luksformat.KDF{}); err != nil {
			t.Fatal(err)
		}
		w.edit(image, func(d *os.File) {
			if err := d.Truncate(diskSize); err != nil {
				t.Fatal(err)
			}
			p, err := v.Payload(d, diskSize)
			if err != nil {
				t.Fatal(err)
			}
			if _, err := p.WriteAt(bytes.Repeat([]byte("payload "), 1<<12), 0); err != nil {
				t.Fatal(err)
			}
		})
	})
	w.ok("", "machine", "add", "web01", "--disk", "vda="+image+",header="+header)
	w.add(oldPassphrase)
	w.backup(api.StateProven)
	to := w.path("exported")
	w.ok("", "header", "export", "web01@latest/vda/disk", "--to", to)
	if len(w.opens(to, oldPassphrase)) == 0 {
		t.Error("the exported header does not open")
	}
	// The restored disk is of no use without it.
	if _, told := w.want(0, "", "restore", "web01@latest", "--disk", "vda="+w.path("restored.img")); !strings.Contains(told, "header export") {
		t.Errorf("nobody says that the header lies apart:\n%s", told)
	}
}
