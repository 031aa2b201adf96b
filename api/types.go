// Package api holds the wire types of Lockstep's HTTP API and its client. The
// CLI, the portal and scripts use nothing else. JSON names are a contract
// (see docs/cli.md); times are RFC 3339 UTC, sizes bytes.
package api

import "time"

// States of a recovery point, worst first in Worst.
const (
	StateProven        = "proven"
	StateAtRisk        = "at-risk"
	StateUnproven      = "unproven"
	StateUnrecoverable = "unrecoverable"
	StateShredded      = "shredded"
	StatePlain         = "plain"
	StateOpaque        = "opaque"
)

// Machine is a protected machine.
type Machine struct {
	ID      string    `json:"id"`
	Name    string    `json:"name"`
	Created time.Time `json:"created"`
	Disks   []DiskDef `json:"disks"`
}

// DiskDef says where a protected disk is.
type DiskDef struct {
	ID     string `json:"id" doc:"disk id as the user named it, e.g. vda"`
	Source string `json:"source" doc:"image file, block device or source URL"`
	Header string `json:"header,omitempty" doc:"detached LUKS header file"`
}

// MachineCreate enrols a machine.
type MachineCreate struct {
	Name  string    `json:"name" pattern:"^[a-zA-Z0-9][a-zA-Z0-9._-]{0,62}$"`
	Disks []DiskDef `json:"disks" minItems:"1"`
}

// MachineDetail is a machine with what its disks show now.
type MachineDetail struct {
	Machine
	State    string     `json:"state"`
	Points   int        `json:"points"`
	Latest   *Point     `json:"latest,omitempty"`
	Live     []DiskView `json:"live,omitempty" doc:"the disks as they are now, where they can be read"`
	Warnings []string   `json:"warnings,omitempty"`
}

// DiskView is a disk as inspected.
type DiskView struct {
	ID        string   `json:"id"`
	SizeBytes int64    `json:"size_bytes"`
	Volumes   []Volume `json:"volumes"`
	Areas     []Area   `json:"areas,omitempty"`
	Error     string   `json:"error,omitempty"`
}

// Area is a part of a disk that is not an encrypted volume.
type Area struct {
	ID    string `json:"id"`
	Class string `json:"class"`
	Note  string `json:"note,omitempty"`
}

// Point is a recovery point.
type Point struct {
	ID              string      `json:"id"`
	Machine         string      `json:"machine" doc:"machine name"`
	MachineID       string      `json:"machine_id"`
	Repository      string      `json:"repository"`
	Time            time.Time   `json:"time"`
	State           string      `json:"state"`
	Why             []string    `json:"why,omitempty" doc:"reasons of the state, in words"`
	Consistency     string      `json:"consistency"`
	Parent          string      `json:"parent,omitempty"`
	Sequence        int64       `json:"sequence" doc:"number of its entry in the machine log; newest is decided by it"`
	Transfer        string      `json:"transfer" enum:"full,incremental"`
	Description     string      `json:"description,omitempty"`
	Incomplete      bool        `json:"incomplete"`
	SelfOpening     bool        `json:"self_opening"`
	ReadBytes       int64       `json:"read_bytes"`
	ChangedBytes    int64       `json:"changed_bytes"`
	StoredBytes     int64       `json:"stored_bytes"`
	MapBytes        int64       `json:"map_bytes"`
	DurationSeconds float64     `json:"duration_seconds"`
	Disks           []PointDisk `json:"disks"`
	Changes         []string    `json:"changes,omitempty" doc:"what changed in custody since the parent, in words"`
}

// PointDisk is one disk of a recovery point.
type PointDisk struct {
	ID           string   `json:"id"`
	SizeBytes    int64    `json:"size_bytes"`
	ContentRoot  string   `json:"content_root"`
	UnreadRanges []Range  `json:"unread_ranges,omitempty"`
	Volumes      []Volume `json:"volumes"`
	Areas        []Area   `json:"areas,omitempty"`
}

// Range is a byte range of a disk.
type Range struct {
	Offset int64 `json:"offset"`
	Length int64 `json:"length"`
}

// Volume is an encrypted volume of a disk.
type Volume struct {
	ID           string      `json:"id"`
	Disk         string      `json:"disk"`
	Type         string      `json:"type"`
	UUID         string      `json:"uuid,omitempty"`
	Label        string      `json:"label,omitempty"`
	Cipher       string      `json:"cipher,omitempty"`
	KeyBits      int         `json:"key_bits,omitempty"`
	SectorSize   int         `json:"sector_size,omitempty"`
	OffsetBytes  int64       `json:"offset_bytes"`
	SizeBytes    int64       `json:"size_bytes"`
	Epoch        string      `json:"epoch,omitempty"`
	HeaderDigest string      `json:"header_digest,omitempty"`
	State        string      `json:"state"`
	Why          []string    `json:"why,omitempty"`
	NotNeeded    string      `json:"not_needed,omitempty" doc:"reason, where declared"`
	SelfOpening  string      `json:"self_opening,omitempty"`
	Unsupported  string      `json:"unsupported,omitempty"`
	Conversion   string      `json:"conversion,omitempty"`
	Protectors   []Protector `json:"protectors"`
	Tokens       []string    `json:"tokens,omitempty"`
	Warnings     []string    `json:"warnings,omitempty"`
}

// Protector is something that unlocks a volume.
type Protector struct {
	ID          string   `json:"id"`
	Kind        string   `json:"kind"`
	Fingerprint string   `json:"fingerprint"`
	KDF         string   `json:"kdf,omitempty"`
	Note        string   `json:"note,omitempty"`
	OpenedBy    []string `json:"opened_by" doc:"secret versions (id@version) proven to open it"`
}

// SecretAdd takes a secret into custody.
type SecretAdd struct {
	Machine string `json:"machine"`
	Volume  string `json:"volume,omitempty" doc:"volume id, DISK/VOLUME, or unique prefix; empty = the whole machine"`
	Kind    string `json:"kind" enum:"passphrase,key-file,recovery-password,startup-key,volume-key"`
	Data    []byte `json:"data" doc:"the secret, base64; never logged"`
	Keep    bool   `json:"keep,omitempty" doc:"keep it pre-active although it opens nothing"`
	Secret  string `json:"secret,omitempty" doc:"add a version to this secret id"`
	New     bool   `json:"new,omitempty" doc:"make a secret of its own rather than a version of the machine's"`
}

// SecretAddResult says what the secret opens.
type SecretAddResult struct {
	Secret   string        `json:"secret"`
	Version  int           `json:"version"`
	State    string        `json:"state"`
	Existing bool          `json:"existing" doc:"the same bytes were in custody already"`
	Opens    []SecretOpens `json:"opens"`
	Proven   []string      `json:"proven" doc:"recovery points that are proven now"`
	Messages []string      `json:"messages,omitempty"`
}

// SecretOpens is one header that a secret opens; Point is "" for the disk as it is now.
type SecretOpens struct {
	Point      string   `json:"point,omitempty"`
	Disk       string   `json:"disk"`
	Volume     string   `json:"volume"`
	Protectors []string `json:"protectors"`
}

// Secret is a secret without its bytes.
type Secret struct {
	ID       string          `json:"id"`
	Machine  string          `json:"machine,omitempty"`
	Volume   string          `json:"volume,omitempty"`
	Kind     string          `json:"kind"`
	Versions []SecretVersion `json:"versions"`
}

// SecretVersion is one version of a secret.
type SecretVersion struct {
	Version int                `json:"version"`
	Ref     string             `json:"ref" doc:"id@version"`
	State   string             `json:"state"`
	Created time.Time          `json:"created"`
	Expires *time.Time         `json:"expires,omitempty"`
	Holds   []SecretHold       `json:"holds"`
	History []SecretTransition `json:"history,omitempty"`
}

// SecretHold is one recovery point that needs the version.
type SecretHold struct {
	Repository string    `json:"repository"`
	Machine    string    `json:"machine"`
	Point      string    `json:"point"`
	Since      time.Time `json:"since"`
}

// SecretTransition is one dated change of state.
type SecretTransition struct {
	State  string    `json:"state"`
	At     time.Time `json:"at"`
	Reason string    `json:"reason,omitempty"`
}

// Reason goes with whatever must name one.
type Reason struct {
	Reason string `json:"reason" minLength:"1"`
}

// Released carries a secret's bytes to who asked with a reason.
type Released struct {
	Ref  string `json:"ref"`
	Kind string `json:"kind"`
	Data []byte `json:"data"`
}

// BackupRequest makes a recovery point.
type BackupRequest struct {
	Machine         string `json:"machine"`
	Full            bool   `json:"full,omitempty"`
	Description     string `json:"description,omitempty"`
	AllowLive       bool   `json:"allow_live,omitempty"`
	AllowIncomplete bool   `json:"allow_incomplete,omitempty" doc:"record unread ranges instead of failing"`
}

// ProveRequest opens recovery points with the escrowed secrets.
type ProveRequest struct {
	Points []string `json:"points,omitempty"`
	All    bool     `json:"all,omitempty"`
}

// RestoreRequest writes disks back.
type RestoreRequest struct {
	Point   string          `json:"point"`
	Targets []RestoreTarget `json:"targets" minItems:"1"`
	Format  string          `json:"format,omitempty" doc:"raw"`
	Force   bool            `json:"force,omitempty"`
}

// RestoreTarget is where one disk goes.
type RestoreTarget struct {
	Disk   string `json:"disk"`
	Target string `json:"target"`
}

// RestoreResult says what was written.
type RestoreResult struct {
	Point string         `json:"point"`
	State string         `json:"state"`
	Keys  []PointKey     `json:"keys" doc:"pre-flight: which secret versions open the volumes"`
	Disks []RestoredDisk `json:"disks"`
}

// PointKey names a secret version that opens a volume.
type PointKey struct {
	Disk   string   `json:"disk"`
	Volume string   `json:"volume"`
	State  string   `json:"state"`
	Opens  []string `json:"opens"`
}

// RestoredDisk is one written disk.
type RestoredDisk struct {
	ID           string  `json:"id"`
	Target       string  `json:"target"`
	SizeBytes    int64   `json:"size_bytes"`
	WrittenBytes int64   `json:"written_bytes"`
	ContentRoot  string  `json:"content_root"`
	UnreadRanges []Range `json:"unread_ranges,omitempty"`
	Seconds      float64 `json:"duration_seconds"`
}

// VerifyRequest reads back and compares; no points means all.
type VerifyRequest struct {
	Points []string `json:"points,omitempty"`
}

// VerifyResult says what was found.
type VerifyResult struct {
	Points    int      `json:"points"`
	Objects   int64    `json:"objects"`
	ReadBytes int64    `json:"read_bytes"`
	Damage    []Damage `json:"damage"`
}

// Damage is something that cannot be read as it was stored.
type Damage struct {
	Object  string   `json:"object"`
	Machine string   `json:"machine,omitempty"`
	Disk    string   `json:"disk,omitempty"`
	Range   *Range   `json:"range,omitempty"`
	Points  []string `json:"points,omitempty"`
	Error   string   `json:"error"`
}

// Status is the picture of everything, the worst first.
type Status struct {
	Machines []MachineStatus `json:"machines"`
}

// MachineStatus is one machine: its recovery points × secret versions.
type MachineStatus struct {
	Machine string         `json:"machine"`
	State   string         `json:"state" doc:"the worst of its recovery points"`
	Latest  *time.Time     `json:"latest,omitempty"`
	Secrets []string       `json:"secrets" doc:"columns: secret versions, id@version"`
	States  []string       `json:"secret_states" doc:"state of each column's version"`
	Points  []PointSummary `json:"points" doc:"rows, newest first"`
	Notes   []string       `json:"notes,omitempty"`
}

// PointSummary is one row of the picture.
type PointSummary struct {
	ID           string    `json:"id"`
	Time         time.Time `json:"time"`
	State        string    `json:"state"`
	Why          []string  `json:"why,omitempty"`
	Transfer     string    `json:"transfer"`
	ChangedBytes int64     `json:"changed_bytes"`
	Opens        []string  `json:"opens" doc:"for each column: yes, no, untried"`
	Epochs       []string  `json:"epochs,omitempty" doc:"volume-key epochs, short"`
}

// NotNeeded declares a volume as not needed (or needed again).
type NotNeeded struct {
	Volume string `json:"volume"`
	Reason string `json:"reason" doc:"empty withdraws the declaration"`
}

// RebuildResult says what the catalog has again and what it cannot have.
type RebuildResult struct {
	Repository string   `json:"repository"`
	Machines   int      `json:"machines"`
	Points     int      `json:"points"`
	Proofs     int      `json:"proofs"`
	Holds      int      `json:"holds"`
	NotRebuilt []string `json:"not_rebuilt"`
	Problems   []string `json:"problems,omitempty"`
}

// AuditEntry is one entry of the audit log.
type AuditEntry struct {
	Index   int64             `json:"index"`
	Time    time.Time         `json:"time"`
	Actor   string            `json:"actor"`
	Action  string            `json:"action"`
	Object  string            `json:"object"`
	Outcome string            `json:"outcome"`
	Reason  string            `json:"reason,omitempty"`
	Detail  map[string]string `json:"detail,omitempty"`
}

// AuditReport is what audit verify found.
type AuditReport struct {
	Entries     int64    `json:"entries"`
	Root        string   `json:"root"`
	Checkpoints int      `json:"checkpoints"`
	Problems    []string `json:"problems"`
}

// Job is long work under way or ended. Result is the operation's own result.
type Job struct {
	ID       string         `json:"id"`
	Kind     string         `json:"kind" doc:"backup, prove, restore, verify, rebuild"`
	State    string         `json:"state" enum:"queued,running,succeeded,failed,canceled"`
	Created  time.Time      `json:"created"`
	Ended    *time.Time     `json:"ended,omitempty"`
	Error    *Error         `json:"error,omitempty"`
	Exit     int            `json:"exit" doc:"exit status of the command contract"`
	Backup   *Point         `json:"backup,omitempty"`
	Prove    []Point        `json:"prove,omitempty"`
	Restore  *RestoreResult `json:"restore,omitempty"`
	Verify   *VerifyResult  `json:"verify,omitempty"`
	Rebuild  *RebuildResult `json:"rebuild,omitempty"`
	Warnings []string       `json:"warnings,omitempty"`
}

// JobEvent is one event of a job; the events endpoint streams them.
type JobEvent struct {
	N       int       `json:"n"`
	Time    time.Time `json:"time"`
	Kind    string    `json:"kind" enum:"progress,message,warning,done"`
	Message string    `json:"message,omitempty"`
	Phase   string    `json:"phase,omitempty"`
	Done    int64     `json:"done,omitempty"`
	Total   int64     `json:"total,omitempty"`
	Unit    string    `json:"unit,omitempty"`
}

// Exit statuses of the command contract.
const (
	ExitDone        = 0
	ExitFailed      = 1
	ExitUsage       = 2
	ExitNotProven   = 3
	ExitRefused     = 4
	ExitWrongSecret = 5
	ExitDamaged     = 6
	ExitTarget      = 7
	ExitBusy        = 8
	ExitInterrupted = 130
)

// Error is a problem document (RFC 9457) with what a CLI needs: the exit
// status and a hint. It implements error.
type Error struct {
	Status int      `json:"status" doc:"HTTP status"`
	Title  string   `json:"title"`
	Detail string   `json:"detail" doc:"lower-case, operation first"`
	Exit   int      `json:"exit" doc:"exit status of the command contract"`
	Hint   string   `json:"hint,omitempty" doc:"what to do"`
	Items  []string `json:"items,omitempty" doc:"e.g. the recovery points that hold a secret"`
}

func (e *Error) Error() string {
	if e.Detail != "" {
		return e.Detail
	}
	return e.Title
}
