package main

import (
	"bufio"
	"bytes"
	"encoding/json"
	"os"
	"strings"
	"syscall"
	"testing"

	"github.com/lockstep-backup/lockstep/api"
	"github.com/lockstep-backup/lockstep/cli"
	"github.com/lockstep-backup/lockstep/internal/judge"
)

// What is refused says what to do about it, and that fits.
func TestHintsFit(t *testing.T) {
	w, _ := web(t)
	w.backup(api.StateUnrecoverable)
	letter, list := w.path("letter"), w.path("list.json")
	for _, file := range []string{letter, list} {
		if err := os.WriteFile(file, []byte("somebody's"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	restore := []string{"restore", "web01@latest", "--disk", "vda=" + w.path("out.img"), "--keep-going", "--damage-list"}
	for _, k := range []struct {
		code int
		hint string
		args []string
	}{
		{4, "lockstep point show", []string{"point", "unpin", "web01@latest"}},
		{4, "lockstep point show", []string{"point", "unhold", "web01@latest", "--case", "nope", "--reason", "x"}},
		{6, "remove it yourself", []string{"overlay", "discard", letter}},
		{1, "make the folder", []string{"repository", "check-store", w.path("nowhere")}},
		{1, "names a new file", append(restore, w.path("nowhere/list.json"))},
		{7, "names a new file", append(restore, list)},
		{4, "object lock", []string{"repository", "lock", "main", "--for", "30d"}},
		{4, "repository add", []string{"policy", "set", "web01", "--copy-to", "file://" + w.path("nowhere")}},
		{4, "repository add", []string{"policy", "set", "web01", "--copy-to", "offsite"}},
		{4, "repository list", []string{"policy", "set", "--default", "--copy-to", "main"}},
		{2, "00:00-12:00", []string{"policy", "set", "web01", "--limit", "08:00-08:00,read=10M"}},
	} {
		_, stderr := w.want(k.code, "", k.args...)
		if _, hint, _ := strings.Cut(stderr, "hint: "); !strings.Contains(hint, k.hint) {
			t.Errorf("%s says %s", strings.Join(k.args, " "), stderr)
		}
	}
	if _, err := os.Stat(w.path("out.img")); !os.IsNotExist(err) {
		t.Errorf("disks are written although the damage list cannot be: %v", err)
	}
	for _, file := range []string{letter, list} {
		if text, err := os.ReadFile(file); err != nil || string(text) != "somebody's" {
			t.Errorf("%s: %q, %v", file, text, err)
		}
	}
	w.want(api.ExitNotProven, "", append(restore, w.path("new.json"))...)
	if _, err := os.Stat(w.path("new.json")); err != nil {
		t.Error(err)
	}
}

// A repository may be named in a policy; what a policy has already it may keep.
func TestPoliciesNameRepositories(t *testing.T) {
	w, _ := web(t)
	dir := w.offsite()
	v := asked[api.PolicyView](w, 0, "", "policy", "set", "web01", "--copy-to", "offsite")
	if len(v.Policy.CopiesTo) != 1 || v.Policy.CopiesTo[0] != "file://"+dir {
		t.Fatalf("%+v", v.Policy)
	}
	w.ok("", "repository", "remove", "offsite")
	w.ok("", "policy", "set", "web01", "--keep-last", "7")
	w.want(api.ExitRefused, "", "policy", "set", "web01", "--copy-to", "offsite")
}

// The names in what is printed are those that the user gave, or sees elsewhere.
func TestResultsNameWhatWasNamed(t *testing.T) {
	w := started(t)
	image := w.path("web01.img")
	w.edit(image, func(f *os.File) {
		mbr := make([]byte, diskSize)
		entry := mbr[446:]
		entry[4], entry[9], entry[13] = 0x83, 8, 8 // 2048 sectors from sector 2048
		mbr[510], mbr[511] = 0x55, 0xaa
		if _, err := f.Write(mbr); err != nil {
			t.Fatal(err)
		}
	})
	w.ok("", "machine", "add", "web01", "--disk", "vda="+image)
	first := w.backup(api.StatePlain)
	out := w.ok("", "restore", "web01@latest", "--disk", "vda/1="+w.path("part.img"))
	if !strings.Contains(out, "vda/1 ") || strings.Contains(out, "vda[") {
		t.Error(out)
	}
	r := asked[api.RestoreResult](w, 0, "", "restore", "web01@latest", "--disk", "vda/1="+w.path("part2.img"))
	if len(r.Disks) != 1 || r.Disks[0].ID != "vda" || r.Disks[0].Name != "vda/1" || r.Disks[0].Part == nil {
		t.Errorf("%+v", r.Disks)
	}
	second := w.backup(api.StatePlain)
	w.ok("", "policy", "set", "web01", "--keep-last", "1", "--daily", "1")
	if out := w.ok("", "--quiet", "prune"); !strings.Contains(out, first.ID[:12]) || !strings.Contains(out, "deleted") {
		t.Errorf("--quiet does not say what was deleted:\n%s", out)
	}
	if r := asked[api.PruneResult](w, 0, "", "prune", "--dry-run"); len(r.Machines) != 1 || r.Machines[0].Points[0].Point != second.ID {
		t.Errorf("%+v", r)
	}
}

// A mount whose program was killed is in the way, and goes as the hint says.
func TestDeadMountIsNamed(t *testing.T) {
	if _, err := os.Stat("/dev/fuse"); err != nil || os.Geteuid() != 0 {
		t.Skip("cannot mount here; export/fusefs says so where judges are required")
	}
	w, _ := web(t)
	w.backup(api.StateUnrecoverable)
	dir := w.path("mnt")
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	cmd := w.program("-o", "json", "mount", "web01@latest", dir)
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = syscall.Unmount(dir, syscall.MNT_FORCE) })
	var ready cli.Exported
	if err := json.NewDecoder(bufio.NewReader(out)).Decode(&ready); err != nil {
		t.Fatal(err)
	}
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = cmd.Wait()
	if _, stderr := w.want(api.ExitTarget, "", "mount", "web01@latest", dir); !strings.Contains(stderr, "umount "+dir) {
		t.Error(stderr)
	}
}

// A service that does not take the credentials is not one that lacks a right.
func TestWrongCredentialsAreNamed(t *testing.T) {
	w := newWorld(t)
	b := newBucket(t, w)
	file := w.path("s3-credentials")
	right, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	const key = "secret_access_key = "
	if err := os.WriteFile(file, bytes.Replace(right, []byte(key), []byte(key+"not"), 1), 0o600); err != nil {
		t.Fatal(err)
	}
	_, stderr := w.want(api.ExitFailed, "", "repository", "check-store", b.url)
	if _, hint, _ := strings.Cut(stderr, "hint: "); !strings.Contains(hint, "the credentials are not accepted") {
		t.Error(stderr)
	}
	judge.Decided(t, "versitygw (S3 server)")
}
