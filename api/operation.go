package api

// BackupRequest makes a recovery point.
type BackupRequest struct {
	Machine         string `json:"machine"`
	Full            bool   `json:"full,omitempty"`
	Description     string `json:"description,omitempty"`
	AllowLive       bool   `json:"allow_live,omitempty"`
	AllowIncomplete bool   `json:"allow_incomplete,omitempty" doc:"record unread ranges instead of failing"`
	Rates
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
	// KeepGoing is for what is left of damaged data.
	KeepGoing bool `json:"keep_going,omitempty" doc:"write zeroes where stored data is damaged, and list it, instead of failing"`
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
	// Damaged is by offset, and empty but with KeepGoing.
	Damaged []DamagedRange `json:"damaged_ranges,omitempty" doc:"ranges that are zeroes because stored data is damaged"`
	Seconds float64        `json:"duration_seconds"`
}

// DamagedRange is a range of a disk whose stored data is damaged.
type DamagedRange struct {
	Range
	Object string `json:"object,omitempty" doc:"key in the store"`
	Error  string `json:"error"`
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
