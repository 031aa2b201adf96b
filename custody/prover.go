package custody

import (
	"context"
	"time"

	"github.com/lockstep-backup/lockstep/disk"
	"github.com/lockstep-backup/lockstep/diskcrypt"
	"github.com/lockstep-backup/lockstep/envelope"
	"github.com/lockstep-backup/lockstep/keymanager"
)

// PointReader reads what a recovery point has stored: a disk's bytes, or those
// of the disk's detached header for a volume. Every byte was verified before it
// is handed on. Safe for use by one goroutine at a time.
type PointReader interface {
	// ReadAt fills p from off, as io.ReaderAt does. header selects the detached
	// header of the volume instead of the disk.
	ReadAt(disk, volume string, header bool, p []byte, off int64) (int, error)
}

// Prover opens volumes with secrets from the key manager, in a process of its
// own, and signs what it saw. It is trusted with secrets, the caller is not: it
// hands out signed statements and sealed packages, never a secret. Methods are
// safe for concurrent use, and run one after the other.
type Prover interface {
	// Try tries the candidates of every volume in their order until one opens
	// it. The error is about the prover as a whole (ErrProverDied, ErrManager, the
	// context's); what came of each volume is in the Outcome.
	Try(ctx context.Context, r Request, points PointReader) (Outcome, error)
	// Package seals secrets and headers to recovery recipients.
	Package(ctx context.Context, r PackageRequest, points PointReader) (Packages, error)
	// Close ends the process; its secrets go with it.
	Close() error
}

// Request asks to open the volumes of one recovery point, or of a live disk
// (Point ""; nothing is signed then).
type Request struct {
	Repository string          `json:"repository"`
	Machine    string          `json:"machine"`
	Point      string          `json:"point"`
	Volumes    []VolumeRequest `json:"volumes"`
	// AllProtectors asks for every protector that a secret opens, not only the
	// first: each costs a key derivation.
	AllProtectors bool `json:"all_protectors,omitempty"`
	// Inline is a secret that is not in the key manager (yet), tried before the
	// candidates. Nothing is signed for it.
	Inline     envelope.Secret `json:"-"`
	InlineKind diskcrypt.Kind  `json:"inline_kind,omitempty"`
}

// VolumeRequest is one volume to open.
type VolumeRequest struct {
	Disk        string `json:"disk"`
	ContentRoot string `json:"content_root,omitempty"`
	// Volume gives place, type and header digest as inspected. What the prover
	// reads itself must have the same digest.
	Volume     diskcrypt.Volume   `json:"volume"`
	HeaderSize int64              `json:"header_size,omitempty"` // of the detached header
	Candidates []CandidateRequest `json:"candidates"`
}

// CandidateRequest is a secret version to try.
type CandidateRequest struct {
	Secret keymanager.Ref `json:"secret"`
	Kind   diskcrypt.Kind `json:"kind"`
}

// Outcome is what came of a Request, in the order of its volumes.
type Outcome struct {
	Volumes []VolumeOutcome `json:"volumes"`
	Seconds float64         `json:"seconds"`
	PeakRSS int64           `json:"peak_rss"` // bytes of the prover's memory at most
}

// VolumeOutcome is what came of one volume.
type VolumeOutcome struct {
	Attempts []AttemptOutcome `json:"attempts"`
	Proof    []byte           `json:"-"`               // signed, where a candidate opened it
	Class    string           `json:"class,omitempty"` // recognised behind it, where it was opened
	Error    string           `json:"error,omitempty"` // why nothing could be tried
}

// Opened returns the attempt that opened the volume.
func (v VolumeOutcome) Opened() (AttemptOutcome, bool) {
	for _, a := range v.Attempts {
		if a.Tried == Opens {
			return a, true
		}
	}
	return AttemptOutcome{}, false
}

// AttemptOutcome is what came of one secret on one volume.
type AttemptOutcome struct {
	Secret     keymanager.Ref `json:"secret"` // zero for the inline secret
	Inline     bool           `json:"inline,omitempty"`
	Tried      Tried          `json:"tried"`
	Protectors []string       `json:"protectors,omitempty"` // ids that it opened
	Why        string         `json:"why,omitempty"`        // where Stopped
	Seconds    float64        `json:"seconds"`
	Reused     bool           `json:"reused,omitempty"` // the key derivation was not repeated
}

// PackageRequest asks for packages of one recovery point.
type PackageRequest struct {
	Cover   KeyCover        `json:"cover"` // without Recipients, Time, Software
	Headers []HeaderRequest `json:"headers"`
	// Recipients are all recovery recipients; those of different kinds get
	// packages of their own.
	Recipients []string `json:"recipients"`
}

// HeaderRequest asks for a header package.
type HeaderRequest struct {
	Disk       string           `json:"disk"`
	Volume     diskcrypt.Volume `json:"volume"`
	HeaderSize int64            `json:"header_size,omitempty"` // of the detached header
	Ranges     []disk.Range     `json:"ranges"`
}

// Packages are signed packages: for each kind of recipients one key package
// and one of each header. Header packages that could not be made are named in Problems.
type Packages struct {
	Key      []SignedKeyPackage
	Headers  []SignedHeaderPackage
	Problems []string
}

// SignedKeyPackage is a key package as it is stored, and what it covers.
type SignedKeyPackage struct {
	Cover KeyCover
	Raw   []byte
}

// SignedHeaderPackage is a header package as it is stored, and what it covers.
type SignedHeaderPackage struct {
	Cover HeaderCover
	Raw   []byte
}

// DefaultAttemptTimeout bounds one attempt: a header may ask for minutes of
// key derivation, and every slot of it is tried.
const DefaultAttemptTimeout = 10 * time.Minute
