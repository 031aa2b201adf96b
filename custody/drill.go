package custody

import (
	"fmt"
	"math"
	"time"

	"github.com/lockstep-backup/lockstep/envelope"
	"github.com/lockstep-backup/lockstep/keymanager"
)

// DrillType is the payload type of a signed drill report.
const DrillType = "application/vnd.lockstep.drill+json"

// Kinds of steps of a drill.
const (
	DrillOpen       = "open"       // the recovery point, from the repository
	DrillUnlock     = "unlock"     // an encrypted volume
	DrillLayout     = "layout"     // partition table, LVM
	DrillFileSystem = "filesystem" // recognised, and its root folder read
	DrillCheck      = "check"      // the file system's own tool
	DrillSample     = "sample"     // files read to their ends
	DrillBoot       = "boot"       // the machine, from an export
)

// Outcomes of a step, and of a drill (passed, failed, incomplete).
const (
	DrillPassed     = "passed"
	DrillWarned     = "warned"
	DrillFailed     = "failed"
	DrillSkipped    = "skipped"
	DrillIncomplete = "incomplete"
)

// MaxDrillSteps is how many steps a report holds.
const MaxDrillSteps = 4096

const maxDrillParts = 1024

// Drill states what a rehearsal did with a recovery point and what came of it
// (docs/spec/drill.md). It names nothing that only the plaintext has.
type Drill struct {
	Format      int         `json:"format"`
	Repository  string      `json:"repository"`
	Machine     string      `json:"machine"`
	MachineName string      `json:"machine_name"`
	Point       string      `json:"point"`
	PointTime   time.Time   `json:"point_time"`
	Disks       []DrillDisk `json:"disks"`

	Reason   string    `json:"reason"`
	Actor    string    `json:"actor"`
	Host     string    `json:"host"`
	Software string    `json:"software"`
	Started  time.Time `json:"started"`
	Finished time.Time `json:"finished"`

	Outcome string       `json:"outcome"`
	Steps   []DrillStep  `json:"steps"`
	Tools   []DrillTool  `json:"tools"`
	Timings DrillTimings `json:"timings"`
}

// DrillDisk is a disk of the recovery point.
type DrillDisk struct {
	ID          string `json:"id"`
	SizeBytes   int64  `json:"size_bytes"`
	ContentRoot string `json:"content_root"` // hex
}

// DrillStep is one thing that was done, or was to be done.
type DrillStep struct {
	Kind    string          `json:"kind"`
	Disk    string          `json:"disk,omitempty"`
	Object  string          `json:"object,omitempty"` // a device: "p3", "vgroot-root"
	Outcome string          `json:"outcome"`
	Detail  string          `json:"detail,omitempty"`
	Secret  *keymanager.Ref `json:"secret,omitempty"`
	Files   int64           `json:"files,omitempty"`
	Bytes   int64           `json:"bytes,omitempty"`
	Seconds float64         `json:"seconds"`
}

// DrillTool is a program that took part.
type DrillTool struct {
	Name    string `json:"name"`
	Version string `json:"version"`
}

// DrillTimings are wall seconds since the start; zero = not reached.
type DrillTimings struct {
	Open     float64 `json:"open_seconds,omitempty"`
	Unlock   float64 `json:"unlock_seconds,omitempty"`
	Readable float64 `json:"readable_seconds,omitempty"`
	Boot     float64 `json:"boot_seconds,omitempty"`
	Total    float64 `json:"total_seconds"`
}

// Conclude is the outcome that follows from the steps: failed if one failed,
// incomplete if a volume stayed locked or nothing was read to its end.
func (d Drill) Conclude() string {
	locked, read := false, false
	for _, s := range d.Steps {
		switch {
		case s.Outcome == DrillFailed:
			return DrillFailed
		case s.Kind == DrillUnlock && s.Outcome == DrillSkipped:
			locked = true
		case s.Kind == DrillSample && s.Outcome != DrillSkipped, s.Kind == DrillBoot && s.Outcome == DrillPassed:
			read = true
		}
	}
	if locked || !read {
		return DrillIncomplete
	}
	return DrillPassed
}

// Check refuses a report that is malformed.
func (d Drill) Check() error {
	if err := checkFormat(d.Format); err != nil {
		return err
	}
	if err := checkIDs("repository", d.Repository, "machine", d.Machine, "point", d.Point); err != nil {
		return err
	}
	if err := checkTexts("machine_name", d.MachineName, "actor", d.Actor, "host", d.Host, "software", d.Software); err != nil {
		return err
	}
	if err := checkText("reason", d.Reason, maxReason); err != nil {
		return err
	}
	for name, t := range map[string]time.Time{"point_time": d.PointTime, "started": d.Started, "finished": d.Finished} {
		if err := checkTime(name, t); err != nil {
			return err
		}
	}
	if len(d.Disks) == 0 || len(d.Disks) > maxDrillParts || len(d.Tools) > maxDrillParts {
		return fmt.Errorf("%w: %d disks, %d tools", ErrStatement, len(d.Disks), len(d.Tools))
	}
	for _, x := range d.Disks {
		if err := checkTexts("disk", x.ID); err != nil {
			return err
		}
		if err := checkHex("content_root", x.ContentRoot); err != nil {
			return err
		}
		if x.ID == "" || x.SizeBytes < 0 {
			return fmt.Errorf("%w: a disk without id or size", ErrStatement)
		}
	}
	if len(d.Steps) == 0 || len(d.Steps) > MaxDrillSteps {
		return fmt.Errorf("%w: %d steps", ErrStatement, len(d.Steps))
	}
	for _, s := range d.Steps {
		if err := s.check(); err != nil {
			return err
		}
	}
	for _, x := range d.Tools {
		if err := checkTexts("tool", x.Name, "version", x.Version); err != nil {
			return err
		}
	}
	t := d.Timings
	if !seconds(t.Open, t.Unlock, t.Readable, t.Boot, t.Total) {
		return fmt.Errorf("%w: a time that cannot be", ErrStatement)
	}
	if d.Outcome != d.Conclude() {
		return fmt.Errorf("%w: outcome %q does not follow from the steps", ErrStatement, d.Outcome)
	}
	return nil
}

func (s DrillStep) check() error {
	switch s.Kind {
	case DrillOpen, DrillUnlock, DrillLayout, DrillFileSystem, DrillCheck, DrillSample, DrillBoot:
	default:
		return fmt.Errorf("%w: step of kind %q", ErrStatement, s.Kind)
	}
	switch s.Outcome {
	case DrillPassed, DrillWarned, DrillFailed, DrillSkipped:
	default:
		return fmt.Errorf("%w: step with outcome %q", ErrStatement, s.Outcome)
	}
	if s.Files < 0 || s.Bytes < 0 || !seconds(s.Seconds) {
		return fmt.Errorf("%w: step with a figure that cannot be", ErrStatement)
	}
	if s.Secret != nil {
		if err := checkTexts("secret", s.Secret.ID); err != nil {
			return err
		}
	}
	return checkTexts("disk", s.Disk, "object", s.Object, "detail", s.Detail)
}

func seconds(all ...float64) bool {
	for _, s := range all {
		if s < 0 || math.IsNaN(s) || math.IsInf(s, 0) {
			return false
		}
	}
	return true
}

// SignDrill makes the signed statement, with a custodian's key.
func SignDrill(d Drill, key envelope.SigningKey) ([]byte, error) {
	d.Format = formatVersion
	d.PointTime, d.Started, d.Finished = d.PointTime.UTC(), d.Started.UTC(), d.Finished.UTC()
	if err := d.Check(); err != nil {
		return nil, fmt.Errorf("sign drill report: %w", err)
	}
	raw, err := signJSON(DrillType, d, envelope.RoleCustodian, key)
	if err != nil {
		return nil, fmt.Errorf("sign drill report: %w", err)
	}
	return raw, nil
}

// VerifyDrill checks signature and role, format, and that the report is about
// this recovery point, content roots included. ErrMismatch, ErrRevoked,
// ErrFormat, ErrStatement, or what envelope.Verify says.
func VerifyDrill(raw []byte, trust Trust, want ExpectedPoint) (Drill, error) {
	payload, _, err := verify(raw, DrillType, envelope.RoleCustodian, trust)
	if err != nil {
		return Drill{}, fmt.Errorf("verify drill report: %w", err)
	}
	var d Drill
	if err := decode(payload, &d); err != nil {
		return Drill{}, fmt.Errorf("verify drill report: %w", err)
	}
	if err := d.Check(); err != nil {
		return Drill{}, fmt.Errorf("verify drill report: %w", err)
	}
	if d.Repository != want.Repository || d.Machine != want.Machine || d.Point != want.Point || len(d.Disks) != len(want.Disks) {
		return Drill{}, fmt.Errorf("verify drill report: %w: another recovery point", ErrMismatch)
	}
	for i, x := range want.Disks {
		if y := d.Disks[i]; y.ID != x.ID || y.ContentRoot != x.ContentRoot {
			return Drill{}, fmt.Errorf("verify drill report: %w: disk %s", ErrMismatch, y.ID)
		}
	}
	return d, nil
}
