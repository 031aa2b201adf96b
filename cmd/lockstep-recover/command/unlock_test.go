package command_test

import (
	"bytes"
	"encoding/json"
	"io"
	"os"
	"path/filepath"
	"testing"

	"github.com/lockstep-backup/lockstep/diskcrypt"
	"github.com/lockstep-backup/lockstep/diskcrypt/luks"
	"github.com/lockstep-backup/lockstep/envelope"
)

func TestUnlock(t *testing.T) {
	f := newFixture(t)
	before := tree(t, f.repo)
	p2 := diskcrypt.Place{Data: io.NewSectionReader(bytes.NewReader(f.oldImage), 2<<20, 4<<20), Size: 4 << 20}
	opened, err := luks.Format{}.Open(ctx, p2, diskcrypt.KindPassphrase, envelope.NewSecret([]byte(oldPassphrase)), diskcrypt.Limits{})
	check(t, err)
	plain, err := io.ReadAll(io.NewSectionReader(opened, 0, opened.Size()))
	check(t, err)
	check(t, opened.Close())

	status, out, errs := f.run(t, "unlock", f.old.ID, "-o", "json")
	want(t, status, 0, out, errs)
	var doc struct {
		Devices []struct {
			Disk, Volume, Class, Secret string
			Size                        int64 `json:"size_bytes"`
		}
		Locked []struct{ Volume string }
	}
	check(t, json.Unmarshal([]byte(out), &doc))
	if len(doc.Devices) != 1 || len(doc.Locked) != 0 || doc.Devices[0].Volume != "p2" || doc.Devices[0].Class != "ext2" ||
		doc.Devices[0].Size != int64(len(plain)) || doc.Devices[0].Secret != "secret-of-web01@1" {
		t.Errorf("%+v", doc)
	}
	to := filepath.Join(f.dir, "plain")
	status, out, errs = f.run(t, "unlock", f.old.ID, "--volume", "vda/p2", "--to", to)
	want(t, status, 0, out, errs)
	got, err := os.ReadFile(to)
	check(t, err)
	if !bytes.Equal(got, plain) {
		t.Error("the file is not the plaintext")
	}
	if st, err := os.Stat(to); err != nil || st.Mode().Perm() != 0o600 {
		t.Errorf("%v, %v", st.Mode(), err)
	}
	status, out, errs = f.run(t, "unlock", f.old.ID, "--volume", "vda/p2", "--to", "-")
	want(t, status, 0, "", errs)
	if out != string(plain) {
		t.Error("standard output is not the plaintext")
	}
	// Nothing is written over; what cannot be opened says why and leaves no file.
	status, out, errs = f.run(t, "unlock", f.old.ID, "--volume", "vda/p2", "--to", to)
	want(t, status, 7, out, errs)
	none := filepath.Join(f.dir, "none")
	status, out, errs = f.run(t, "unlock", f.new.ID, "--volume", "vda/p2", "--to", none)
	want(t, status, 3, out, errs)
	contains(t, errs, "there is no secret for it")
	status, out, errs = f.run(t, "unlock", f.old.ID, "--volume", "vda/p1", "--to", none)
	want(t, status, 1, out, errs)
	status, out, errs = f.run(t, "unlock", f.old.ID, "--to", none)
	want(t, status, 2, out, errs)
	if _, err := os.Stat(none); !os.IsNotExist(err) {
		t.Error("a file was made for nothing")
	}
	status, out, errs = f.run(t, "unlock", f.new.ID)
	want(t, status, 3, out, errs)
	contains(t, errs, "vda/p2 stays locked")
	if tree(t, f.repo) != before {
		t.Error("the repository was written to")
	}
}
