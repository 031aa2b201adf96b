package main

import (
	"encoding/json"
	"os"
	"strings"
	"testing"

	"github.com/lockstep-backup/lockstep/api"
	"github.com/lockstep-backup/lockstep/cli"
	"github.com/lockstep-backup/lockstep/diskcrypt/luks/luksformat"
)

// A rehearsal of a machine with an encrypted ext4, from what is stored: the
// disk itself is gone by then.
func TestDrill(t *testing.T) {
	w, disk := web(t)
	w.edit(disk, func(f *os.File) {
		v, err := luksformat.Attach(t.Context(), f, diskSize, secretOf(oldPassphrase))
		if err != nil {
			t.Fatal(err)
		}
		defer v.Close()
		payload, err := v.Payload(nil, 0)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := payload.WriteAt(w.ext4(2<<20), 0); err != nil {
			t.Fatal(err)
		}
	})
	w.backup(api.StateUnrecoverable)

	var d cli.Drilled
	locked, _ := w.want(api.ExitNotProven, "", "-o", "json", "drill", "web01@latest", "--reason", "nothing opens it yet")
	if err := json.Unmarshal([]byte(locked), &d); err != nil || d.Outcome != "incomplete" || !d.Stored {
		t.Fatalf("%+v, %v", d, err)
	}
	w.add(oldPassphrase)
	if err := os.Remove(disk); err != nil {
		t.Fatal(err)
	}
	report, page := w.path("report.json"), w.path("report.html")
	done := w.ok("", "-o", "json", "drill", "web01@latest", "--reason", "rehearsal", "--report", report, "--html", page)
	if err := json.Unmarshal([]byte(done), &d); err != nil {
		t.Fatal(err)
	}
	kinds := map[string]string{}
	for _, s := range d.Steps {
		kinds[s.Kind] = s.Outcome
		if strings.Contains(s.Detail, "hello") {
			t.Errorf("a file is named: %+v", s)
		}
	}
	if d.Outcome != "passed" || kinds["unlock"] != "passed" || kinds["check"] != "passed" || kinds["sample"] != "passed" {
		t.Errorf("%+v", d)
	}
	if b, err := os.ReadFile(page); err != nil || !strings.Contains(string(b), "Drill of web01") {
		t.Errorf("%v", err)
	}
	if b, err := os.ReadFile(report); err != nil || !strings.Contains(string(b), "application/vnd.lockstep.drill+json") {
		t.Errorf("%v", err)
	}
	if r := w.releases(); len(r) != 1 || r[0].Detail["for"] != "point.drill" || r[0].Reason != "rehearsal" {
		t.Errorf("%+v", r)
	}
	// Both reports lie beside the recovery point, and count.
	all := asked[[]cli.Drilled](w, 0, "", "point", "drills", "web01@latest")
	if len(all) != 2 || all[0].Outcome != "incomplete" || all[1].Outcome != "passed" {
		t.Errorf("%+v", all)
	}
	for _, k := range []struct {
		code int
		args []string
	}{
		{api.ExitUsage, []string{"--boot-marker", "x", "--reason", "r"}},
		{api.ExitUsage, nil},
		{api.ExitUsage, []string{"--reason", "r", "--seed", "zz"}},
		{api.ExitUsage, []string{"--reason", "r", "--boot", "--boot-marker", "("}},
		{api.ExitTarget, []string{"--reason", "r", "--html", page}},
	} {
		w.want(k.code, "", append([]string{"drill", "web01@latest"}, k.args...)...)
	}
}
