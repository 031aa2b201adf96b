package main

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/lockstep-backup/lockstep/api"
	"github.com/lockstep-backup/lockstep/job"
)

func TestRefusals(t *testing.T) {
	w, image := web(t)
	w.add(oldPassphrase)
	p := w.backup(api.StateProven)
	full := w.path("full.img")
	if err := os.WriteFile(full, []byte("somebody's disk"), 0o600); err != nil {
		t.Fatal(err)
	}
	qcow := w.path("disk.qcow2")
	if err := os.WriteFile(qcow, append([]byte("QFI\xfb\x00\x00\x00\x03"), make([]byte, 1<<16)...), 0o600); err != nil {
		t.Fatal(err)
	}
	other := w.encrypted("other.img", newPassphrase)
	wrong := w.secretFile("not the passphrase")
	for name, k := range map[string]struct {
		args []string
		exit int
		says string
	}{
		"wrong secret":          {[]string{"secret", "add", "web01", "--kind", "passphrase", "--file", wrong}, 5, "opens no protector"},
		"unknown machine":       {[]string{"backup", "nobody"}, 1, `no machine "nobody"`},
		"unknown point":         {[]string{"point", "show", "0123456789"}, 1, "not in the catalog"},
		"machine for a point":   {[]string{"point", "show", "web01"}, 2, "web01@latest"},
		"unknown secret":        {[]string{"secret", "show", "s-nothing"}, 1, "no such secret"},
		"unknown version":       {[]string{"secret", "release", "web01@7", "--reason", "x"}, 1, "no such secret"},
		"bad version":           {[]string{"secret", "release", "web01@x", "--reason", "x"}, 2, "SECRET@VERSION"},
		"held":                  {[]string{"secret", "destroy", "web01"}, 4, "held"},
		"target not empty":      {[]string{"restore", p.ID, "--disk", "vda=" + full}, 7, "not empty"},
		"target is a folder":    {[]string{"restore", p.ID, "--disk", "vda=" + w.dir}, 7, "not what was named"},
		"no such disk":          {[]string{"restore", p.ID, "--disk", "vdz=" + w.path("new.img")}, 2, "no such disk"},
		"another format":        {[]string{"restore", p.ID, "--disk", "vda=" + w.path("new.img"), "--format", "vhd"}, 2, "format"},
		"machine with points":   {[]string{"machine", "remove", "web01"}, 4, "1 recovery point"},
		"name is taken":         {[]string{"machine", "add", "web01", "--disk", "vda=" + other}, 4, "taken"},
		"bad name":              {[]string{"machine", "add", "bad name", "--disk", "vda=" + other}, 2, ""},
		"bad disk id":           {[]string{"machine", "add", "db01", "--disk", "v/a=" + other}, 2, "disk id"},
		"disk twice":            {[]string{"machine", "add", "db01", "--disk", "vda=" + other, "--disk", "vda=" + image}, 2, "vda"},
		"source twice":          {[]string{"machine", "add", "db01", "--disk", "vda=" + other, "--disk", "vdb=" + other}, 2, "same source"},
		"qcow2":                 {[]string{"machine", "add", "db01", "--disk", "vda=" + qcow}, 1, "qcow2"},
		"source is gone":        {[]string{"machine", "add", "db01", "--disk", "vda=" + w.path("gone.img")}, 1, "does not exist"},
		"another kind of store": {[]string{"machine", "add", "db01", "--disk", "vda=iscsi://host/disk"}, 1, "iscsi"},
		"unknown volume":        {[]string{"volume", "not-needed", "web01", "vda/p9", "--reason", "x"}, 1, "no encrypted volume"},
		"unknown job":           {[]string{"job", "watch", "job-0"}, 1, "no such job"},
		"volume of a plain":     {[]string{"header", "export", p.ID + "/vda/p7", "--to", w.path("h")}, 1, "no encrypted volume"},
	} {
		t.Run(name, func(t *testing.T) {
			code, out, errs := w.run("", k.args...)
			if code != k.exit || !strings.Contains(out+errs, k.says) {
				t.Fatalf("exit %d, want %d and %q\n%s%s", code, k.exit, k.says, out, errs)
			}
		})
	}
	if text, err := os.ReadFile(full); err != nil || string(text) != "somebody's disk" {
		t.Errorf("the target was written to: %v", err)
	}
	if entries, err := filepath.Glob(w.path("new.img")); err != nil || len(entries) > 0 {
		t.Errorf("targets are left: %q %v", entries, err)
	}
	if got := asked[[]api.Machine](w, 0, "", "machine", "list"); len(got) != 1 {
		t.Errorf("machines: %+v", got)
	}
	if got := asked[[]api.Secret](w, 0, "", "secret", "list"); len(got) != 1 || len(got[0].Versions) != 1 {
		t.Errorf("a wrong secret was kept: %+v", got)
	}
	outcomes := map[string]bool{}
	for _, e := range asked[[]api.AuditEntry](w, 0, "", "audit", "list") {
		outcomes[e.Action+" "+e.Outcome] = true
	}
	for _, want := range []string{"secret.add refused", "secret.destroy refused", "point.restore refused", "machine.remove refused", "machine.add refused"} {
		if !outcomes[want] {
			t.Errorf("the audit log does not know of %s", want)
		}
	}
	w.redacted()
}

func TestSecondBackupIsBusy(t *testing.T) {
	w, _ := web(t)
	// Another process holds the machine, as a backup does.
	lock, err := job.NewLocks(dataDir(w.data).locks()).Acquire("machine:web01", "backup")
	if err != nil {
		t.Fatal(err)
	}
	for _, args := range [][]string{{"backup", "web01"}, {"machine", "remove", "web01"}} {
		if _, stderr := w.want(8, "", args...); !strings.Contains(stderr, "busy") {
			t.Errorf("%q says %s", args, stderr)
		}
	}
	lock.Release()
	w.want(3, "", "backup", "web01")
}

func TestKeptAndDisabled(t *testing.T) {
	w, _ := web(t)
	kept := asked[api.SecretAddResult](w, 0, "for another day\n", "secret", "add", "web01", "--kind", "passphrase", "--file", "-", "--keep", "--new")
	if kept.State != "pre-active" || len(kept.Opens) != 0 {
		t.Fatalf("kept: %+v", kept)
	}
	right := w.add(oldPassphrase)
	if right.Secret != kept.Secret {
		// The first secret of the kind is the machine's own.
		t.Fatalf("%+v is not a version of %s", right, kept.Secret)
	}
	w.backup(api.StateProven)
	w.ok("", "secret", "disable", "web01@2", "--reason", "test")
	if got := asked[api.Point](w, 3, "", "point", "show", "web01@latest"); got.State != api.StateAtRisk {
		t.Errorf("a disabled secret leaves it %s", got.State)
	}
	w.want(4, "", "secret", "release", "web01@2", "--reason", "it is disabled")
	w.ok("", "secret", "enable", "web01@2", "--reason", "test")
	if got := asked[api.Point](w, 0, "", "point", "show", "web01@latest"); got.State != api.StateProven {
		t.Errorf("enabled again, it is %s: %q", got.State, got.Why)
	}
	w.want(2, "", "secret", "destroy", "web01") // which one?
	s := asked[api.Secret](w, 0, "", "secret", "destroy", right.Secret[:6]+"@1", "--reason", "not needed")
	if s.Versions[0].State != "destroyed" {
		t.Errorf("versions: %+v", s.Versions)
	}
}

func TestReplacedDiskIsLoud(t *testing.T) {
	w, image := web(t)
	w.add(oldPassphrase)
	w.backup(api.StateProven)
	if err := os.Remove(image); err != nil {
		t.Fatal(err)
	}
	w.encrypted(filepath.Base(image), newPassphrase)
	_, stderr := w.want(3, "", "backup", "web01")
	if !strings.Contains(stderr, "REPLACED") || !strings.Contains(stderr, "volume replaced") {
		t.Errorf("nobody was told:\n%s", stderr)
	}
	jobs := asked[[]api.Job](w, 0, "", "job", "list")
	if len(jobs) != 2 || !slices.ContainsFunc(jobs[0].Warnings, func(s string) bool { return strings.Contains(s, "REPLACED") }) {
		t.Errorf("jobs: %+v", jobs)
	}
}

// A location that names no store is wrong usage, with a word on what is right;
// nothing is left behind.
func TestLocationsThatNameNoStore(t *testing.T) {
	w := newWorld(t)
	made := newWorld(t)
	made.ok("", "init", "--kit", made.path("kit.txt"))
	for _, location := range []string{"ftp://host/x", "s3://", "s3://bucket?nonsense=1", "gs://", "azblob://account", "s3://b/%zz"} {
		for _, k := range []struct {
			w    *world
			args []string
		}{
			{w, []string{"init", "--kit", w.path("kit.txt"), "--repository", location}},
			{made, []string{"repository", "add", "offsite", location, "--kit", made.path("offsite.txt")}},
			{made, []string{"repository", "check-store", location}},
		} {
			_, stderr := k.w.want(api.ExitUsage, "", k.args...)
			if !strings.Contains(stderr, "hint: ") {
				t.Errorf("%s says no hint: %s", strings.Join(k.args, " "), stderr)
			}
		}
	}
	for _, path := range []string{w.path("kit.txt"), made.path("offsite.txt")} {
		if _, err := os.Lstat(path); !os.IsNotExist(err) {
			t.Errorf("%s is there: %v", path, err)
		}
	}
	if list := asked[[]api.Repository](made, 0, "", "repository", "list"); len(list) != 1 {
		t.Errorf("%+v", list)
	}
}
