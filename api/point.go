package api

import "time"

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
	Warnings        []string    `json:"warnings,omitempty" doc:"what was not looked into and may be encrypted, in words: the state says nothing of it"`

	OnlyIn     []string          `json:"only_in,omitempty" doc:"names of repositories that have it, where the one that backups write to has not any more"`
	Pin        *PointMark        `json:"pin,omitempty" doc:"nothing deletes it until this is taken back"`
	Tags       map[string]string `json:"tags,omitempty"`
	LegalHolds []PointMark       `json:"legal_holds,omitempty" doc:"nothing deletes it until these are lifted"`
}

// PointDelete deletes a recovery point in one repository.
type PointDelete struct {
	Reason     string `json:"reason"`
	Repository string `json:"repository,omitempty" doc:"name; empty = the primary"`
}

// PointDeleted says where a recovery point was deleted. Where another repository
// still lists it, the secrets that it needs stay held.
type PointDeleted struct {
	Deleted    string   `json:"deleted" doc:"its id"`
	Repository string   `json:"repository" doc:"name"`
	StillIn    []string `json:"still_in,omitempty" doc:"names of repositories that list it, or count as doing so"`
	Warnings   []string `json:"warnings,omitempty"`
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
	Declared     string      `json:"declared,omitempty" doc:"what the user declared of it, where nothing on the disk shows it: TYPE[,NAME=VALUE]…"`
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
