package catalog

import (
	"context"
	"encoding/json"
	"time"

	"github.com/lockstep-backup/lockstep/disk"
)

// Point is a recovery point.
type Point struct {
	ID         string
	Machine    string // machine id
	Repository string // repository id
	Sequence   int64  // number of its entry in the machine log; newest is decided by it
	Parent     string // point id, "" = none
	Time       time.Time
	Written    time.Time

	Consistency  string
	FullTransfer bool // how the bytes came; every recovery point is complete
	Description  string
	Incomplete   bool
	Stats        Stats
	Seconds      float64

	DeletedAt     time.Time // zero = listed
	DeletedReason string

	Disks []PointDisk
}

// Stats counts what a recovery point cost, in bytes.
type Stats struct {
	Read    int64
	Changed int64
	Stored  int64
	Map     int64
}

// PointDisk is one disk of a recovery point.
type PointDisk struct {
	Disk        string
	Size        int64
	ContentRoot string // hex
	Unread      []disk.Range
	Areas       json.RawMessage // parts that are not encrypted volumes, as the inspector wrote them
	Changes     string          // evidence of the change source
	Volumes     []Volume
}

// Volume is an encrypted volume of a recovery point.
type Volume struct {
	Volume       string // its id on the disk: "disk", "p2", …
	Type         string
	UUID         string
	Label        string
	Epoch        string
	HeaderDigest string          // equal digests mean equal headers
	HeaderCopy   string          // id of the header copy in the repository
	Body         json.RawMessage // all that the inspector said
}

// PointQuery selects recovery points; zero fields select all.
type PointQuery struct {
	Machine    string // machine id
	Repository string // repository id
	Deleted    bool   // deleted ones too
	Bare       bool   // without Disks
}

// HeaderUse is a place where a header was seen.
type HeaderUse struct {
	Point  string
	Disk   string
	Volume string
}

// Points are the recovery points.
type Points interface {
	// Record writes the recovery point with its disks and volumes, all or
	// nothing. Recording the same id again replaces what was there; it never
	// brings a deleted one back. ErrNotFound where the machine is unknown.
	Record(ctx context.Context, p Point) error
	// Get finds a recovery point by id, deleted or not; ErrNotFound.
	Get(ctx context.Context, id string) (Point, error)
	// List returns by machine and repository, and then by sequence, oldest first.
	List(ctx context.Context, q PointQuery) ([]Point, error)
	// ByPrefix returns at most limit ids, not of deleted ones, that begin with prefix.
	ByPrefix(ctx context.Context, prefix string, limit int) ([]string, error)
	// WithHeader returns where the header with this digest is, newest recovery
	// point of each machine first, deleted ones left out.
	WithHeader(ctx context.Context, headerDigest string) ([]HeaderUse, error)
	// Delete marks a recovery point as deleted; ErrNotFound. The first date and reason stay.
	Delete(ctx context.Context, id string, at time.Time, reason string) error
}
