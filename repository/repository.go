// Package repository is Lockstep's own store of recovery points: blocks of
// disks go into segments, a copy-on-write map says where they are, a manifest
// describes a recovery point, and an entry in the machine's log commits it.
// docs/spec/repository.md is the format.
//
// The package knows disks as bytes. What is on them (volumes, protectors) it
// carries as JSON that others write and read. Its one invariant worth knowing:
// a recovery point is listed if and only if all that it references is durable.
package repository

import (
	"encoding/json"
	"errors"
	"time"

	"github.com/lockstep-backup/lockstep/disk"
	"github.com/lockstep-backup/lockstep/repository/internal/creation"
	"github.com/lockstep-backup/lockstep/repository/internal/damage"
	"github.com/lockstep-backup/lockstep/repository/internal/holder"
	"github.com/lockstep-backup/lockstep/repository/internal/settings"
)

// Errors that callers act on.
var (
	ErrNotFound  = damage.ErrNotFound
	ErrConflict  = errors.New("another writer committed meanwhile")
	ErrNoKey     = holder.ErrNoKey
	ErrDamaged   = damage.ErrDamaged
	ErrFormat    = damage.ErrFormat
	ErrUntrusted = damage.ErrUntrusted
	ErrReadOnly  = errors.New("repository is open for reading only")
	ErrExists    = creation.ErrExists
)

// DamageError reports stored data that cannot be read as it was written.
// errors.Is(err, ErrDamaged) holds.
type DamageError = damage.Error

// Sealing of extents.
const (
	SealingAESGCM = settings.AESGCM
	SealingNone   = settings.None
)

// Machine is a protected machine as the repository knows it.
type Machine struct {
	ID      string    `json:"machine"`
	Name    string    `json:"name"`
	Created time.Time `json:"created"`
}

// Manifest describes one recovery point. It is sealed and signed by a writer's key.
type Manifest struct {
	Format      int       `json:"format"`
	Repository  string    `json:"repository"`
	Machine     string    `json:"machine"`
	MachineName string    `json:"machine_name"`
	Point       string    `json:"point"`
	Parent      string    `json:"parent,omitempty"`
	Time        time.Time `json:"time"`            // when the source's point in time was opened
	Written     time.Time `json:"written"`         // when the manifest was made
	Birth       *int64    `json:"birth,omitempty"` // in the names of what was stored for it; early versions: nil
	// LockedUntil is until when the writer had locked all that it needs; nil: it did not.
	LockedUntil *time.Time `json:"locked_until,omitempty"`

	Consistency string          `json:"consistency"`
	Description string          `json:"description,omitempty"`
	Incomplete  bool            `json:"incomplete,omitempty"`
	Full        bool            `json:"full"` // how the bytes were transferred; every recovery point is complete
	Definition  json.RawMessage `json:"definition,omitempty"`
	Disks       []Disk          `json:"disks"`
	Software    string          `json:"software"`
	Seconds     float64         `json:"seconds"`
}

// Disk is one disk of a recovery point.
type Disk struct {
	ID          string       `json:"id"`
	Size        int64        `json:"size"`
	ContentRoot string       `json:"content_root"` // hex
	Map         MapRef       `json:"map"`
	Usage       []PageRef    `json:"usage,omitempty"` // of early versions; not used
	Unread      []disk.Range `json:"unread,omitempty"`
	Stats       Stats        `json:"stats"`
	// Changes is the evidence of the change source: "scan", "cbt", and why.
	Changes string `json:"changes"`
	// Inspection is the diskcrypt.Report of this disk, read through the map.
	Inspection json.RawMessage `json:"inspection,omitempty"`
	Headers    []HeaderRef     `json:"headers,omitempty"`
}

// Stats counts what a disk's transfer cost, in bytes.
type Stats struct {
	Read    int64 `json:"read"`    // from the source
	Changed int64 `json:"changed"` // pages that differ from the parent
	Stored  int64 `json:"stored"`  // new segment bytes, tables of contents included
	Map     int64 `json:"map"`     // new map bytes
	Reused  int64 `json:"reused"`  // found in segments of an earlier, interrupted attempt
}

// Add adds o to s.
func (s *Stats) Add(o Stats) {
	s.Read += o.Read
	s.Changed += o.Changed
	s.Stored += o.Stored
	s.Map += o.Map
	s.Reused += o.Reused
}

// PageRef points at a map page.
type PageRef struct {
	Object string `json:"object"` // 16 hex digits
	Offset uint32 `json:"offset"`
	Length uint32 `json:"length"`
}

// MapRef is the root of a disk's map. Without a page the whole disk is zero.
type MapRef struct {
	Level int      `json:"level"` // 0 = the root is a leaf
	Page  *PageRef `json:"page,omitempty"`
	Node  string   `json:"node,omitempty"` // hex, Merkle root below the page
}

// HeaderRef names the stored copies of a volume's encryption header.
type HeaderRef struct {
	Volume string `json:"volume"` // diskcrypt.Volume.ID
	ID     string `json:"id"`
}

// Point is a listed recovery point.
type Point struct {
	ID       string
	Machine  string
	Sequence int64 // number of its log entry
	Parent   string
	Time     time.Time // of the log entry
	Writer   string    // key id
	Birth    int64     // in the names of what was stored for it
	Origin   string    // of a copy: id of the repository it was written to first

	manifestDigest string
}

// Sidecar kinds.
const (
	SidecarProof         = "proof"
	SidecarKeyPackage    = "keypackage"
	SidecarHeaderPackage = "headerpackage"
	SidecarDeclaration   = "declaration"
	SidecarCertificate   = "certificate"
	SidecarTag           = "tag"
	SidecarPolicy        = "policy"
	SidecarDrill         = "drill"
)

// MachineSidecars stands for the point id where a sidecar is about the machine as a whole.
const MachineSidecars = "00000000000000000000000000000000"

// Sidecar is a signed object about a recovery point; Raw is the DSSE envelope.
type Sidecar struct {
	Kind string
	Key  string // in the store
	Raw  []byte
}
