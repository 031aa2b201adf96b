package cli

import (
	"context"
	"time"

	"github.com/lockstep-backup/lockstep/api"
)

// withDrills adds drills that are held at once. What comes of one is what the
// name of the machine says.
func withDrills(e Env) Env {
	drilled := func(o DrillOptions) Drilled {
		d := Drilled{
			Point: "0123456789abcdef0123456789abcdef", Machine: "web01", Time: time.Date(2026, 3, 14, 2, 15, 0, 0, time.UTC),
			Started: time.Date(2026, 3, 15, 9, 0, 0, 0, time.UTC), Outcome: "passed", Reason: "rehearsal", Actor: "uid:0",
			Steps: []DrillStep{
				{Kind: "open", Outcome: "passed", Detail: "1 disk", Seconds: 0.25},
				{Kind: "unlock", Disk: "vda", Object: "p3", Outcome: "passed", Detail: "luks2, slot-0", Secret: "web01-a1@2", Seconds: 1.5},
				{Kind: "sample", Disk: "vda", Object: "p3", Outcome: "passed", Detail: "200 of 4312 files\x1b[2J", Files: 200, Bytes: 3 << 20, Seconds: 130},
			},
			Tools: []DrillTool{{Name: "e2fsck", Version: "1.47.0"}}, Open: 0.25, Unlock: 1.75, Readable: 1.8, Total: 131.8, Stored: !o.Dry,
			Signed: []byte("{}"), HTML: []byte("<!doctype html>"),
		}
		switch o.Point {
		case "locked@latest":
			d.Outcome, d.Steps[1].Outcome, d.Steps[1].Secret = "incomplete", "skipped", ""
		case "broken@latest":
			d.Outcome, d.Steps[2].Outcome = "failed", "failed"
		}
		return d
	}
	e.Drill = Drilling{
		Run: func(_ context.Context, o DrillOptions) (Drilled, error) {
			if o.Point == "gone@latest" {
				return Drilled{}, &api.Error{Exit: api.ExitRefused, Detail: "no such recovery point", Hint: "'lockstep point list'"}
			}
			o.Tell("checking")
			return drilled(o), nil
		},
		Reports: func(_ context.Context, o DrillOptions) ([]Drilled, error) {
			if o.Point == "new@latest" {
				return nil, nil
			}
			return []Drilled{drilled(o)}, nil
		},
	}
	return e
}
