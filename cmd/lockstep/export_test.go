package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/lockstep-backup/lockstep/api"
	"github.com/lockstep-backup/lockstep/cli"
	"github.com/lockstep-backup/lockstep/internal/judge"
	"github.com/lockstep-backup/lockstep/nbd"
)

// background runs a command until the test calls stop, which gives its exit
// status. What it said when it was ready comes back decoded.
func (w *world) background(args ...string) (ready cli.Exported, stop func() int) {
	w.t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	r, out := io.Pipe()
	env := environment()
	w.errors.Reset()
	errs := &w.errors
	env.Args = append([]string{"--data", w.data, "-o", "json"}, args...)
	env.Stdin, env.Stdout, env.Stderr = strings.NewReader(""), out, errs
	env.Getenv = func(string) string { return "" }
	ended := make(chan int, 1)
	go func() {
		ended <- cli.Main(ctx, env)
		_ = out.Close()
	}()
	d := json.NewDecoder(r)
	if err := d.Decode(&ready); err != nil {
		cancel()
		w.t.Fatalf("lockstep %s: exit %d, %v\n%s", strings.Join(args, " "), <-ended, err, errs.String())
	}
	go func() { _, _ = io.Copy(io.Discard, r) }()
	stop = func() int {
		cancel()
		return <-ended
	}
	w.t.Cleanup(func() { cancel() })
	return ready, stop
}

// A recovery point is read, written over, and what was written becomes a
// recovery point: with the change that was made, and proven.
func TestExportOverlayCommit(t *testing.T) {
	w, disk := web(t)
	original, err := os.ReadFile(disk)
	if err != nil {
		t.Fatal(err)
	}
	w.add(oldPassphrase)
	first := w.backup(api.StateProven)

	address := w.path("nbd.sock")
	ready, stop := w.background("export", "web01@latest", "--nbd", "unix:"+address)
	if ready.Point != first.ID || len(ready.Disks) != 1 || ready.Disks[0].URI != "nbd+unix:///vda?socket="+address {
		t.Errorf("%+v", ready)
	}
	c, err := nbd.Dial(t.Context(), "unix", address, "", nil)
	if err != nil {
		t.Fatal(err)
	}
	got := make([]byte, c.Size())
	if _, err := c.ReadAt(got, 0); err != nil || !bytes.Equal(got, original) {
		t.Errorf("what is exported is not the disk, %v", err)
	}
	_ = c.Close()
	if code := stop(); code != 0 {
		t.Errorf("exit %d", code)
	}
	if _, err := os.Stat(address); !os.IsNotExist(err) {
		t.Errorf("the socket is still there: %v", err)
	}

	// Writing goes on where the first writer left off.
	overlay := w.path("scratch.ovl")
	for _, k := range []struct {
		off   int64
		bytes string
	}{{diskSize - 9000, "hello"}, {diskSize - 100, "world"}} {
		_, stop := w.background("export", "web01@latest", "--nbd", "unix:"+address, "--overlay", overlay)
		write(t, address, k.off, k.bytes)
		w.want(8, "", "overlay", "discard", overlay)
		if code := stop(); code != 0 {
			t.Errorf("exit %d", code)
		}
		copy(original[k.off:], k.bytes)
	}
	o := asked[cli.Overlay](w, 0, "", "overlay", "show", overlay)
	if o.Point != first.ID || o.Machine != "web01" || len(o.Disks) != 1 || o.Disks[0].WrittenBytes != 8192 {
		t.Errorf("%+v", o)
	}
	made := asked[api.Point](w, 0, "", "overlay", "commit", overlay, "--description", "repaired")
	if made.Parent != first.ID || made.State != "proven" || made.Consistency != "crash-consistent" ||
		made.Description != "repaired (written over recovery point "+first.ID+")" || made.ChangedBytes != 8192 || made.ReadBytes >= diskSize {
		t.Errorf("%+v", made)
	}
	w.ok("", "restore", "web01@latest", "--disk", "vda="+w.path("restored"))
	if got, err := os.ReadFile(w.path("restored")); err != nil || !bytes.Equal(got, original) {
		t.Errorf("the new recovery point is not what was written, %v", err)
	}
	// It is committed already, until somebody writes again.
	w.want(4, "committed already, as recovery point "+made.ID, "overlay", "commit", overlay)
	_, stop = w.background("export", first.ID, "--nbd", "unix:"+address, "--overlay", overlay)
	write(t, address, diskSize-100, "world")
	if code := stop(); code != 0 {
		t.Errorf("exit %d", code)
	}
	// Now another recovery point is the newest, and everything is compared.
	again := asked[api.Point](w, 0, "", "overlay", "commit", overlay)
	if again.Parent != made.ID || again.ChangedBytes != 0 || again.ReadBytes != diskSize {
		t.Errorf("%+v", again)
	}
	w.ok("", "overlay", "discard", overlay)
	if _, err := os.Stat(overlay); !os.IsNotExist(err) {
		t.Errorf("the overlay is still there: %v", err)
	}
	if list := w.ok("", "-o", "json", "audit", "list"); strings.Count(list, `"point.export"`) != 8 {
		t.Errorf("the audit log does not have the four exports, begun and done:\n%s", list)
	}
}

// What is damaged in the first repository is exported from the copy; where it
// is damaged there too, nothing wrong is handed out.
func TestExportBorrowsFromTheCopy(t *testing.T) {
	w, disk := web(t)
	w.add(oldPassphrase)
	w.backup(api.StateProven)
	dir := w.offsite()
	w.copy("--to", "offsite")
	w.corrupt(filepath.Join(w.data, "repository"), "seg")
	want, err := os.ReadFile(disk)
	if err != nil {
		t.Fatal(err)
	}
	exported := func() (got []byte, said string, err error) {
		t.Helper()
		address := w.path("nbd.sock")
		ready, stop := w.background("export", "web01@latest", "--nbd", "unix:"+address)
		c, err := nbd.Dial(t.Context(), "unix", address, "", nil)
		if err != nil {
			t.Fatal(err)
		}
		got = make([]byte, c.Size())
		_, err = c.ReadAt(got, 0)
		_ = c.Close()
		if code := stop(); code != 0 {
			t.Errorf("exit %d", code)
		}
		return got, strings.Join(ready.Warnings, "; ") + w.errors.String(), err
	}
	got, said, err := exported()
	if err != nil || !bytes.Equal(got, want) {
		t.Errorf("what is exported is not the disk, %v", err)
	}
	if strings.Count(said, "is taken from another") != 1 {
		t.Errorf("the export says %q", said)
	}
	w.corrupt(dir, "seg")
	if _, said, err := exported(); err == nil || strings.Contains(said, "is taken from another") {
		t.Errorf("damaged in both: %v, and it says %q", err, said)
	}
}

// write writes as an NBD client of the simplest kind.
func write(t *testing.T, address string, off int64, p string) {
	t.Helper()
	if out, err := qemuIO(t, "nbd+unix:///vda?socket="+address, off, p); err != nil {
		t.Fatalf("qemu-io: %v\n%s", err, out)
	}
}

func TestExportRefusals(t *testing.T) {
	w, _ := web(t)
	w.backup(api.StateUnrecoverable)
	letter := w.path("letter")
	if err := os.WriteFile(letter, []byte("no overlay"), 0o600); err != nil {
		t.Fatal(err)
	}
	overlay := w.path("other.ovl")
	_, stop := w.background("export", "web01@latest", "--nbd", "unix:"+w.path("s"), "--overlay", overlay)
	stop()
	w.backup(api.StateUnrecoverable)
	for _, k := range []struct {
		code int
		says string
		args []string
	}{
		{2, "where?", []string{"export", "web01@latest"}},
		{2, "--nbd unix:", []string{"export", "web01@latest", "--nbd", "somewhere"}},
		{4, "--tls-certificate", []string{"export", "web01@latest", "--nbd", "0.0.0.0:0"}},
		{1, "server-cert.pem", []string{"export", "web01@latest", "--nbd", "127.0.0.1:0", "--tls-certificate", w.dir}},
		{7, "no socket", []string{"export", "web01@latest", "--nbd", "unix:" + letter}},
		{6, "not an overlay", []string{"export", "web01@latest", "--nbd", "unix:" + w.path("s"), "--overlay", letter}},
		{4, "another recovery point", []string{"export", "web01@latest", "--nbd", "unix:" + w.path("s"), "--overlay", overlay}},
		{6, "not an overlay", []string{"overlay", "discard", letter}},
		{1, "point list", []string{"export", "nothing@latest", "--nbd", "unix:" + w.path("s")}},
		{7, "empty folder", []string{"mount", "web01@latest", w.dir}},
	} {
		if k.args[0] == "mount" {
			if _, err := os.Stat("/dev/fuse"); err != nil {
				continue
			}
		}
		_, stderr := w.want(k.code, "", k.args...)
		if !strings.Contains(stderr, k.says) {
			t.Errorf("%s says %q", strings.Join(k.args, " "), stderr)
		}
	}
	if p, err := os.ReadFile(letter); err != nil || string(p) != "no overlay" {
		t.Errorf("%q, %v", p, err)
	}
}

func TestMountCommand(t *testing.T) {
	if _, err := os.Stat("/dev/fuse"); err != nil || os.Geteuid() != 0 {
		t.Skip("cannot mount here; export/fusefs says so where judges are required")
	}
	w, disk := web(t)
	w.backup(api.StateUnrecoverable)
	dir := w.path("mnt")
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	ready, stop := w.background("mount", "web01@latest", dir)
	want, err := os.ReadFile(disk)
	if err != nil {
		t.Fatal(err)
	}
	if got, err := os.ReadFile(ready.Disks[0].File); err != nil || !bytes.Equal(got, want) {
		t.Errorf("what is mounted is not the disk, %v", err)
	}
	if code := stop(); code != 0 {
		t.Errorf("exit %d", code)
	}
	if _, err := os.Stat(filepath.Join(dir, "vda.raw")); !os.IsNotExist(err) {
		t.Errorf("still mounted: %v", err)
	}
}

// qemuIO writes text and has it flushed.
func qemuIO(t *testing.T, uri string, off int64, text string) ([]byte, error) {
	t.Helper()
	file := filepath.Join(t.TempDir(), "text")
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	write := fmt.Sprintf("write -s %s %d %d", file, off, len(text))
	return exec.Command(judge.Tool(t, "qemu-io"), "-f", "raw", "-c", write, "-c", "flush", uri).CombinedOutput()
}
