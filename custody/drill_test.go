package custody

import (
	"encoding/json"
	"errors"
	"math"
	"strings"
	"testing"
	"time"

	"github.com/lockstep-backup/lockstep/envelope"
	"github.com/lockstep-backup/lockstep/keymanager"
)

func goodDrill() Drill {
	return Drill{
		Format: 1, Repository: repoID, Machine: machineID, MachineName: "web01", Point: pointID, PointTime: day,
		Disks:  []DrillDisk{{ID: "vda", SizeBytes: 1 << 20, ContentRoot: rootHex}},
		Reason: "rehearsal", Actor: "uid:0", Host: "backup1", Software: "lockstep test",
		Started: day.Add(time.Hour), Finished: day.Add(2 * time.Hour), Outcome: DrillPassed,
		Steps: []DrillStep{
			{Kind: DrillOpen, Outcome: DrillPassed, Seconds: 0.1},
			{Kind: DrillUnlock, Disk: "vda", Object: "p1", Outcome: DrillPassed, Secret: &keymanager.Ref{ID: "s", Version: 1}},
			{Kind: DrillSample, Disk: "vda", Object: "p1", Outcome: DrillPassed, Files: 3, Bytes: 100},
		},
		Tools:   []DrillTool{{Name: "e2fsck", Version: "1.47.0"}},
		Timings: DrillTimings{Open: 0.1, Total: 3},
	}
}

func drillPoint() ExpectedPoint {
	return ExpectedPoint{Repository: repoID, Machine: machineID, Point: pointID, Disks: []ExpectedDisk{{ID: "vda", ContentRoot: rootHex}}}
}

func TestDrillConclusion(t *testing.T) {
	step := func(kind, outcome string) DrillStep { return DrillStep{Kind: kind, Outcome: outcome} }
	for _, k := range []struct {
		name  string
		steps []DrillStep
		want  string
	}{
		{"everything", []DrillStep{step(DrillUnlock, DrillPassed), step(DrillSample, DrillPassed)}, DrillPassed},
		{"a warning is no failure", []DrillStep{step(DrillCheck, DrillWarned), step(DrillSample, DrillPassed)}, DrillPassed},
		{"booted, nothing sampled", []DrillStep{step(DrillUnlock, DrillPassed), step(DrillBoot, DrillPassed)}, DrillPassed},
		{"a volume stayed locked", []DrillStep{step(DrillUnlock, DrillSkipped), step(DrillSample, DrillPassed)}, DrillIncomplete},
		{"nothing was read", []DrillStep{step(DrillUnlock, DrillPassed), step(DrillSample, DrillSkipped)}, DrillIncomplete},
		{"a failure outweighs", []DrillStep{step(DrillUnlock, DrillSkipped), step(DrillSample, DrillFailed)}, DrillFailed},
	} {
		if got := (Drill{Steps: k.steps}).Conclude(); got != k.want {
			t.Errorf("%s: %s, want %s", k.name, got, k.want)
		}
	}
}

// One defect each, and the class of its refusal.
func TestDrillRefusals(t *testing.T) {
	custodian := key(t, envelope.RoleCustodian)
	for _, k := range []struct {
		name string
		bend func(*Drill)
		want error
	}{
		{"machine is no id", func(d *Drill) { d.Machine = "web01" }, ErrStatement},
		{"another point", func(d *Drill) { d.Point = strings.Repeat("5", 32) }, ErrMismatch},
		{"another repository", func(d *Drill) { d.Repository = strings.Repeat("5", 32) }, ErrMismatch},
		{"another content", func(d *Drill) { d.Disks[0].ContentRoot = strings.Repeat("5", 64) }, ErrMismatch},
		{"a disk more", func(d *Drill) { d.Disks = append(d.Disks, DrillDisk{ID: "vdb", ContentRoot: rootHex}) }, ErrMismatch},
		{"content root is not hex", func(d *Drill) { d.Disks[0].ContentRoot = "x" }, ErrStatement},
		{"no disk", func(d *Drill) { d.Disks = nil }, ErrStatement},
		{"no steps", func(d *Drill) { d.Steps = nil }, ErrStatement},
		{"too many steps", func(d *Drill) { d.Steps = make([]DrillStep, MaxDrillSteps+1) }, ErrStatement},
		{"unknown kind", func(d *Drill) { d.Steps[0].Kind = "dance" }, ErrStatement},
		{"unknown outcome of a step", func(d *Drill) { d.Steps[0].Outcome = "fine" }, ErrStatement},
		{"control character", func(d *Drill) { d.Steps[0].Detail = "a\x1b[2J" }, ErrStatement},
		{"negative time", func(d *Drill) { d.Steps[0].Seconds = -1 }, ErrStatement},
		{"a failure called passed", func(d *Drill) { d.Steps[2].Outcome = DrillFailed }, ErrStatement},
		{"a pass called failed", func(d *Drill) { d.Outcome = DrillFailed }, ErrStatement},
		{"without a date", func(d *Drill) { d.Started = time.Time{} }, ErrStatement},
		{"reason too long", func(d *Drill) { d.Reason = strings.Repeat("x", 5000) }, ErrStatement},
		{"later format", func(d *Drill) { d.Format = 2 }, ErrFormat},
	} {
		t.Run(k.name, func(t *testing.T) {
			d := goodDrill()
			k.bend(&d)
			payload, err := json.Marshal(d)
			if err != nil {
				t.Fatal(err)
			}
			raw, err := envelope.Sign(DrillType, payload, custodian)
			if err != nil {
				t.Fatal(err)
			}
			if _, err := VerifyDrill(raw, trust(custodian), drillPoint()); !errors.Is(err, k.want) {
				t.Errorf("%v, want %v", err, k.want)
			}
		})
	}
	d := goodDrill()
	d.Timings.Boot = math.NaN()
	if _, err := SignDrill(d, custodian); !errors.Is(err, ErrStatement) {
		t.Errorf("a time that is no number: %v", err)
	}
	if _, err := SignDrill(goodDrill(), key(t, envelope.RoleProver)); err == nil {
		t.Error("signed by a prover")
	}
}

func TestDrillIsSigned(t *testing.T) {
	custodian := key(t, envelope.RoleCustodian)
	raw, err := SignDrill(goodDrill(), custodian)
	if err != nil {
		t.Fatal(err)
	}
	d, err := VerifyDrill(raw, trust(custodian), drillPoint())
	if err != nil || d.Steps[2].Files != 3 || d.Steps[1].Secret.Version != 1 {
		t.Fatalf("%+v, %v", d, err)
	}
	if _, err := VerifyDrill(raw, trust(key(t, envelope.RoleCustodian)), drillPoint()); !errors.Is(err, envelope.ErrSignature) {
		t.Errorf("by somebody else's key: %v", err)
	}
	id := custodian.Public().ID
	if _, err := VerifyDrill(raw, revoking{trust(custodian), id}, drillPoint()); !errors.Is(err, ErrRevoked) {
		t.Errorf("by a revoked key: %v", err)
	}
}
