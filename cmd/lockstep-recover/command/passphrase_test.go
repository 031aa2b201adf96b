package command_test

import (
	"bytes"
	"os"
	"path/filepath"
	"testing"

	"github.com/lockstep-backup/lockstep/api"
	"github.com/lockstep-backup/lockstep/envelope"
	"github.com/lockstep-backup/lockstep/repository"
)

// The repository's passphrase gives the disks back, and nothing that is sealed
// to the recovery identity.
func TestPassphrase(t *testing.T) {
	f := newFixture(t)
	check(t, f.repository.AddHolder(t.Context(), repository.NewHolder{
		Name: "passphrase", Passphrase: envelope.CopySecret([]byte("of the repository")), WorkFactor: 10,
	}))
	dir := t.TempDir()
	right, wrong := filepath.Join(dir, "right"), filepath.Join(dir, "wrong")
	check(t, os.WriteFile(right, []byte("of the repository\n"), 0o600))
	check(t, os.WriteFile(wrong, []byte("of another one\n"), 0o600))
	with := func(file string, args ...string) (int, string, string) {
		return run(t, append(args, "--repository", f.repo, "--passphrase-file", file, "--unpinned")...)
	}

	status, out, errs := with(right, "list")
	want(t, status, 0, out, errs)
	contains(t, out, f.old.ID[:12], "locked")

	disk := filepath.Join(dir, "disk.img")
	status, out, errs = with(right, "restore", f.old.ID, "--disk", "vda="+disk)
	want(t, status, api.ExitNotProven, out, errs)
	if got, err := os.ReadFile(disk); err != nil || !bytes.Equal(got, f.oldImage) {
		t.Fatalf("the restored disk differs, %v", err)
	}

	status, out, errs = with(right, "secrets", f.old.ID, "--to", filepath.Join(dir, "secrets"))
	want(t, status, api.ExitNotProven, out, errs)
	if _, err := os.Stat(filepath.Join(dir, "secrets")); err == nil {
		t.Fatal("secrets came out without an identity")
	}

	status, out, errs = with(wrong, "list")
	want(t, status, api.ExitWrongSecret, out, errs)
}
