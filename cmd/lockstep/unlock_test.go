package main

import (
	"bytes"
	"crypto/sha256"
	"encoding/json"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/lockstep-backup/lockstep/api"
	"github.com/lockstep-backup/lockstep/diskcrypt"
	"github.com/lockstep-backup/lockstep/diskcrypt/luks"
	"github.com/lockstep-backup/lockstep/envelope"
	"github.com/lockstep-backup/lockstep/internal/judge"
)

// plaintext is what the one volume of a disk decrypts to, read without any of
// what is tested.
func plaintext(t *testing.T, file, passphrase string) []byte {
	t.Helper()
	f, err := os.Open(file)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	rep, err := diskcrypt.Find(t.Context(), f, diskSize, diskcrypt.FindOptions{Formats: formats()})
	if err != nil || len(rep.Volumes) != 1 {
		t.Fatalf("%+v, %v", rep, err)
	}
	v := rep.Volumes[0]
	p := diskcrypt.Place{Data: diskcrypt.PlaceOf(f, v), Size: v.Size()}
	o, err := luks.Format{}.Open(t.Context(), p, diskcrypt.KindPassphrase, envelope.NewSecret([]byte(passphrase)), diskcrypt.Limits{})
	if err != nil {
		t.Fatal(err)
	}
	defer o.Close()
	b, err := io.ReadAll(io.NewSectionReader(o, 0, o.Size()))
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// releases are the entries of the audit log about secrets handed out.
func (w *world) releases() (out []api.AuditEntry) {
	for _, e := range asked[[]api.AuditEntry](w, 0, "", "audit", "list") {
		if e.Action == "secret.release" {
			out = append(out, e)
		}
	}
	return out
}

func TestExportUnlocked(t *testing.T) {
	w, disk := web(t)
	want := plaintext(t, disk, oldPassphrase)
	w.add(oldPassphrase)
	point := w.backup(api.StateProven)
	address := "unix:" + w.path("nbd.sock")

	ready, stop := w.background("export", "web01@latest", "--nbd", address, "--unlock", "--reason", "a lost file")
	if len(ready.Volumes) != 1 || len(ready.Disks) != 1 {
		t.Fatalf("%+v", ready)
	}
	v := ready.Volumes[0]
	if v.ID != "vda-"+v.Volume+".plain" && v.ID != "vda.plain" || v.SizeBytes != int64(len(want)) || v.Secret == "" || v.Protector == "" {
		t.Errorf("%+v", v)
	}
	got := w.path("plain")
	if out, err := exec.Command(judge.Tool(t, "qemu-img"), "convert", "-f", "raw", "-O", "raw", v.URI, got).CombinedOutput(); err != nil {
		t.Fatalf("qemu-img: %v\n%s", err, out)
	}
	judge.Decided(t, "qemu-img")
	if b, err := os.ReadFile(got); err != nil || !bytes.Equal(b, want) {
		t.Errorf("what qemu-img read is not the plaintext, %v", err)
	}
	copied := w.path("copied")
	if out, err := exec.Command(judge.Tool(t, "nbdcopy"), v.URI, copied).CombinedOutput(); err != nil {
		t.Fatalf("nbdcopy: %v\n%s", err, out)
	}
	judge.Decided(t, "nbdcopy")
	if b, err := os.ReadFile(copied); err != nil || sha256.Sum256(b) != sha256.Sum256(want) {
		t.Errorf("what nbdcopy read is not the plaintext, %v", err)
	}
	// Nobody writes there.
	if out, err := exec.Command(judge.Tool(t, "qemu-io"), "-f", "raw", "-c", "write 0 512", v.URI).CombinedOutput(); err == nil {
		t.Errorf("the plaintext was written to: %s", out)
	}
	if code := stop(); code != 0 {
		t.Errorf("exit %d", code)
	}
	r := w.releases()
	if len(r) != 1 || r[0].Object != v.Secret || r[0].Reason != "a lost file" || r[0].Outcome != "done" ||
		r[0].Detail["point"] != point.ID || r[0].Detail["volume"] != "vda/"+v.Volume || r[0].Detail["for"] != "point.export" {
		t.Errorf("%+v", r)
	}
	if list := w.ok("", "-o", "json", "audit", "list"); !strings.Contains(list, `"unlocked": "vda/`+v.Volume+` by secret `+v.Secret+`"`) {
		t.Errorf("the export does not say what was unlocked:\n%s", list)
	}
}

// A given secret opens what custody knows nothing of, and custody is not asked.
func TestUnlockByGivenSecret(t *testing.T) {
	w, disk := web(t)
	want := plaintext(t, disk, oldPassphrase)
	w.backup(api.StateUnrecoverable)
	secret := w.path("secret")
	if err := os.WriteFile(secret, []byte(oldPassphrase), 0o600); err != nil {
		t.Fatal(err)
	}
	volume := asked[api.Point](w, 3, "", "point", "show", "web01@latest").Disks[0].Volumes[0].ID
	socket := w.path("nbd.sock")
	for _, name := range []string{volume, "vda/" + volume} {
		ready, stop := w.background("export", "web01@latest", "--nbd", "unix:"+socket, "--unlock",
			"--secret-file", name+"="+secret, "--secret-file", "vdz/p9="+secret)
		if len(ready.Volumes) != 1 || ready.Volumes[0].SizeBytes != int64(len(want)) ||
			!strings.Contains(strings.Join(ready.Warnings, "\n"), "vdz/p9") {
			t.Errorf("%+v", ready)
		}
		if code := stop(); code != 0 {
			t.Errorf("exit %d", code)
		}
	}
	if r := w.releases(); len(r) != 0 {
		t.Errorf("custody was asked: %+v", r)
	}
	wrong := w.path("wrong")
	if err := os.WriteFile(wrong, []byte("not it"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, k := range []struct {
		code int
		says string
		args []string
	}{
		{5, "no volume opened", []string{"--nbd", "unix:" + socket, "--unlock", "--secret-file", volume + "=" + wrong}},
		{5, "--secret-file", []string{"--nbd", "unix:" + socket, "--unlock", "--reason", "a test"}},
		{2, "by which secrets", []string{"--nbd", "unix:" + socket, "--unlock"}},
		{4, "unix socket", []string{"--nbd", "127.0.0.1:0", "--unlock", "--secret-file", volume + "=" + secret}},
		{4, "unix socket", []string{"--nbd", "0.0.0.0:0", "--insecure", "--unlock", "--secret-file", volume + "=" + secret}},
	} {
		_, stderr := w.want(k.code, "", append([]string{"export", "web01@latest"}, k.args...)...)
		if !strings.Contains(stderr, k.says) || strings.Contains(stderr, oldPassphrase) || strings.Contains(stderr, "not it") {
			t.Errorf("%s says %q", strings.Join(k.args, " "), stderr)
		}
	}
	if r := w.releases(); len(r) != 0 {
		t.Errorf("secrets were released for what was refused: %+v", r)
	}
}

func TestMountUnlocked(t *testing.T) {
	if _, err := os.Stat("/dev/fuse"); err != nil || os.Geteuid() != 0 {
		t.Skip("cannot mount here; export/fusefs says so where judges are required")
	}
	w, disk := web(t)
	want := plaintext(t, disk, oldPassphrase)
	w.add(oldPassphrase)
	w.backup(api.StateProven)
	dir := w.path("mnt")
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	ready, stop := w.background("mount", "web01@latest", dir, "--unlock", "--reason", "a lost file")
	if len(ready.Volumes) != 1 {
		t.Fatalf("%+v", ready)
	}
	v := ready.Volumes[0]
	if b, err := os.ReadFile(v.File); err != nil || !bytes.Equal(b, want) {
		t.Errorf("the mounted file is not the plaintext, %v", err)
	}
	if st, err := os.Stat(v.File); err != nil || st.Mode().Perm() != 0o400 {
		t.Errorf("%v, %v", st.Mode(), err)
	}
	about := struct {
		Volumes []struct{ File, Volume string }
	}{}
	text, err := os.ReadFile(filepath.Join(dir, "point.json"))
	if err == nil {
		err = json.Unmarshal(text, &about)
	}
	if err != nil || len(about.Volumes) != 1 || filepath.Join(dir, about.Volumes[0].File) != v.File {
		t.Errorf("%s, %v", text, err)
	}
	if code := stop(); code != 0 {
		t.Errorf("exit %d", code)
	}
	if r := w.releases(); len(r) != 1 || r[0].Detail["for"] != "point.mount" {
		t.Errorf("%+v", r)
	}
	// Nothing of the plaintext is where the recovery point is kept.
	line := want[:64]
	for at := 0; bytes.Count(line, []byte{0}) > 0 && at+64 <= len(want); at += 64 {
		line = want[at : at+64]
	}
	if bytes.Count(line, []byte{0}) > 0 {
		t.Fatal("the plaintext is empty")
	}
	err = filepath.WalkDir(w.dir, func(p string, d os.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		b, err := os.ReadFile(p)
		if err == nil && bytes.Contains(b, line) {
			t.Errorf("%s has plaintext", p)
		}
		return err
	})
	if err != nil {
		t.Error(err)
	}
}
