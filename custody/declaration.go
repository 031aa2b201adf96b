package custody

import (
	"fmt"
	"strings"
	"time"

	"github.com/lockstep-backup/lockstep/envelope"
)

// DeclarationType is the payload type of a signed declaration.
const DeclarationType = "application/vnd.lockstep.declaration+json"

// Declaration states that a volume is not needed, and why, or withdraws that.
// It holds for all recovery points of the machine; the latest about a volume holds.
type Declaration struct {
	Format     int       `json:"format"`
	Repository string    `json:"repository"`
	Machine    string    `json:"machine"`
	Disk       string    `json:"disk"`
	Volume     string    `json:"volume"`
	NotNeeded  bool      `json:"not_needed"` // false withdraws
	Reason     string    `json:"reason"`
	Actor      string    `json:"actor"`
	Time       time.Time `json:"time"`
}

// Check refuses a declaration that is malformed.
func (d Declaration) Check() error {
	if err := checkFormat(d.Format); err != nil {
		return err
	}
	if err := checkIDs("repository", d.Repository, "machine", d.Machine); err != nil {
		return err
	}
	if err := checkTexts("disk", d.Disk, "volume", d.Volume, "actor", d.Actor); err != nil {
		return err
	}
	if d.Disk == "" || d.Volume == "" {
		return fmt.Errorf("%w: disk or volume is missing", ErrStatement)
	}
	if d.NotNeeded && strings.TrimSpace(d.Reason) == "" {
		return fmt.Errorf("%w: reason is missing", ErrStatement)
	}
	if err := checkText("reason", d.Reason, maxReason); err != nil {
		return err
	}
	return checkTime("time", d.Time)
}

// SignDeclaration makes the signed statement, with a custodian's key.
func SignDeclaration(d Declaration, key envelope.SigningKey) ([]byte, error) {
	d.Format = formatVersion
	d.Time = d.Time.UTC()
	if err := d.Check(); err != nil {
		return nil, fmt.Errorf("sign declaration: %w", err)
	}
	raw, err := signJSON(DeclarationType, d, envelope.RoleCustodian, key)
	if err != nil {
		return nil, fmt.Errorf("sign declaration: %w", err)
	}
	return raw, nil
}

// VerifyDeclaration checks signature and role, format, and that it is about
// this machine in this repository.
func VerifyDeclaration(raw []byte, trust Trust, repository, machine string) (Declaration, error) {
	return VerifyDeclarationOf(raw, trust, map[string]bool{repository: true}, machine)
}

// VerifyDeclarationOf is VerifyDeclaration for a machine whose recovery points
// were made in several repositories and copied: the declaration may name any.
func VerifyDeclarationOf(raw []byte, trust Trust, repositories map[string]bool, machine string) (Declaration, error) {
	payload, _, err := verify(raw, DeclarationType, envelope.RoleCustodian, trust)
	if err != nil {
		return Declaration{}, fmt.Errorf("verify declaration: %w", err)
	}
	var d Declaration
	if err := decode(payload, &d); err != nil {
		return Declaration{}, fmt.Errorf("verify declaration: %w", err)
	}
	if err := d.Check(); err != nil {
		return Declaration{}, fmt.Errorf("verify declaration: %w", err)
	}
	if !repositories[d.Repository] || d.Machine != machine {
		return Declaration{}, fmt.Errorf("verify declaration: %w: machine %s", ErrMismatch, d.Machine)
	}
	return d, nil
}

// VolumeKey names a volume of a machine: its disk and its place there.
type VolumeKey struct {
	Disk   string
	Volume string
}

func (k VolumeKey) String() string { return k.Disk + "/" + k.Volume }

// InForce returns, for every volume that is declared as not needed now, the
// declaration that says so.
func InForce(all []Declaration) map[VolumeKey]Declaration {
	last := map[VolumeKey]Declaration{}
	for _, d := range all {
		k := VolumeKey{d.Disk, d.Volume}
		if prev, ok := last[k]; !ok || !d.Time.Before(prev.Time) {
			last[k] = d
		}
	}
	for k, d := range last {
		if !d.NotNeeded {
			delete(last, k)
		}
	}
	return last
}

// NextTime is the time for a new declaration: now, or just behind the last one
// about the volume where the clock went back.
func NextTime(all []Declaration, k VolumeKey, now time.Time) time.Time {
	for _, d := range all {
		if d.Disk == k.Disk && d.Volume == k.Volume && !now.After(d.Time) {
			now = d.Time.Add(time.Microsecond)
		}
	}
	return now
}
