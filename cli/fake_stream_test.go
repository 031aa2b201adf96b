package cli

import (
	"encoding/json"
	"net/http"
	"strings"
	"testing"

	"github.com/lockstep-backup/lockstep/api"
)

// theDisk is what the fake has on every disk.
var theDisk = strings.Repeat("ciphertext\x00", 1000)

func init() {
	fakeRoutes = append(fakeRoutes, func(f *fake, mux *http.ServeMux) {
		mux.HandleFunc("POST /v1/restores/stream", func(w http.ResponseWriter, req *http.Request) {
			r := body[api.StreamRequest](f, req)
			out := api.StreamOutcome{Restore: &api.RestoreResult{
				Point: newPoint, State: api.StateProven, Keys: []api.PointKey{},
				Disks: []api.RestoredDisk{{ID: "vda", Target: "-", SizeBytes: int64(len(theDisk))}},
			}}
			bytes := theDisk
			switch r.Disk {
			case "nodisk":
				refuse(w, api.Error{Status: 422, Title: "x", Detail: "restore: no such disk", Exit: api.ExitUsage})
				return
			case "damaged":
				bytes = bytes[:500]
				out = api.StreamOutcome{Exit: api.ExitDamaged, Error: &api.Error{Title: "x", Detail: "restore: damaged data", Exit: api.ExitDamaged}}
			case "short":
				bytes = bytes[:500]
			case "opaque":
				out.Exit, out.Restore.State = api.ExitNotProven, api.StateUnrecoverable
			}
			w.Header().Set(api.SizeHeader, "11000")
			_, _ = w.Write([]byte(bytes))
			if r.Disk == "silent" {
				return
			}
			p, _ := json.Marshal(out)
			w.Header().Set(http.TrailerPrefix+api.OutcomeTrailer, string(p))
		})
	})
}

func TestRestoreToStandardOutput(t *testing.T) {
	for disk, c := range map[string]struct {
		status int
		whole  bool
		says   string
	}{
		"vda":     {0, true, "all of it verified"},
		"vda/p2":  {0, true, "all of it verified"},
		"opaque":  {3, true, "unrecoverable"},
		"damaged": {6, false, "damaged data"},
		"short":   {1, false, "500 of 11000 bytes"},
		"silent":  {1, true, "does not say whether all came"},
		"nodisk":  {2, false, "no such disk"},
	} {
		r := run(t, newFake(), nil, "restore", "web01@latest", "--disk", disk+"=-")
		if r.status != c.status || (r.stdout == theDisk) != c.whole || !strings.Contains(r.stderr, c.says) {
			t.Errorf("%s: exit status %d, %d bytes, %s", disk, r.status, len(r.stdout), r.stderr)
		}
		if !c.whole && !strings.HasPrefix(theDisk, r.stdout) {
			t.Errorf("%s: something else than the disk is on standard output: %q", disk, r.stdout)
		}
	}
	f := newFake()
	run(t, f, nil, "restore", "web01@latest", "--volume", "vda/p2=-", "--limit-read", "1M")
	if got := string(f.last["/v1/restores/stream"]); got != `{"point":"web01@latest","volume":"vda/p2","limit_read":1048576}` {
		t.Errorf("sent: %s", got)
	}
	for _, args := range [][]string{
		{"--disk", "vda=-", "--disk", "vdb=/x"},
		{"--disk", "vda=-", "--force"},
		{"--disk", "vda=-", "-o", "json"},
		{"--disk", "vda=-", "--larger"},
		{"--disk", "vda/=-"},
		{"--disk", "/1=-"},
		{"--volume", "=-"},
		{"--volume", "a=/x", "--volume", "a=/y"},
	} {
		if r := run(t, newFake(), nil, append([]string{"restore", "web01@latest"}, args...)...); r.status != 2 || strings.Contains(r.stdout, "ciphertext") {
			t.Errorf("%q: exit status %d", args, r.status)
		}
	}
	terminal := func(e *Env) { e.IsTerminal = func(s any) bool { return s == e.Stdout } }
	if r := run(t, newFake(), terminal, "restore", "web01@latest", "--disk", "vda=-"); r.status != 2 || r.stdout != "" {
		t.Errorf("on a terminal: exit status %d, %q", r.status, r.stdout)
	}
	f = newFake()
	run(t, f, nil, "restore", "web01@latest", "--disk", "vda/1=/a", "--disk", "vda/p2=/b", "--volume", "vdb/disk=/c", "--larger")
	if got := string(f.last["/v1/restores"]); !strings.Contains(got, `"targets":[{"disk":"vda","partition":"1","target":"/a"},{"disk":"vda","partition":"2","target":"/b"},{"volume":"vdb/disk","target":"/c"}]`) || !strings.Contains(got, `"larger":true`) {
		t.Errorf("sent: %s", got)
	}
}
