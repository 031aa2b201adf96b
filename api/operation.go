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
	// Repository is where it is read; what is damaged there is read from others.
	Repository string `json:"repository,omitempty" doc:"name; empty = the nearest that has the recovery point"`
	Format     string `json:"format,omitempty" doc:"raw"`
	Force      bool   `json:"force,omitempty"`
	// KeepGoing is for what is left of damaged data.
	KeepGoing bool `json:"keep_going,omitempty" doc:"write zeroes where stored data is damaged, and list it, instead of failing"`
	Larger    bool `json:"larger,omitempty" doc:"take a device that is larger than the disk; what lies behind the disk stays as it is"`
	Rates
}

// RestoreTarget is where one disk goes, or a partition or volume of it.
type RestoreTarget struct {
	RestorePart
	Target string `json:"target"`
}

// RestorePart is a disk, one partition of it, or one volume.
type RestorePart struct {
	Disk      string `json:"disk,omitempty" doc:"not needed with volume"`
	Partition string `json:"partition,omitempty" doc:"number of a partition, 1 for the first"`
	Volume    string `json:"volume,omitempty" doc:"an encrypted volume, DISK/VOLUME, its id or a unique prefix"`
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

// RestoredDisk is one written disk, or a part of one.
type RestoredDisk struct {
	ID           string  `json:"id"`
	Name         string  `json:"name,omitempty" doc:"partition or volume as the request named it, where it is not a whole disk"`
	Part         *Range  `json:"part,omitempty" doc:"range of the disk, where it is not all of it"`
	BeyondBytes  int64   `json:"beyond_bytes,omitempty" doc:"bytes that the target has behind the disk, and that are as they were"`
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
	Points    []string `json:"points,omitempty"`
	Structure bool     `json:"structure,omitempty" doc:"objects, signatures and maps, no content of disks"`
	Sample    float64  `json:"sample,omitempty" minimum:"0" maximum:"1" doc:"the structure, and this share of the content, drawn at random"`
	Seed      string   `json:"seed,omitempty" doc:"of an earlier sample, to draw the same"`
	// Repository is AllRepositories, or which one; the primary where it is "".
	Repository string `json:"repository,omitempty" doc:"name; empty = the primary, all = one after the other"`
	Rates
}

// AllRepositories asks for every repository in place of one.
const AllRepositories = "all"

// VerifyResult says what was found.
type VerifyResult struct {
	Depth     string   `json:"depth" enum:"data,structure,sample,stored" doc:"how far it went; stored: without keys"`
	Sample    float64  `json:"sample,omitempty"`
	Seed      string   `json:"seed,omitempty" doc:"what chose the sample"`
	Points    int      `json:"points"`
	Objects   int64    `json:"objects"`
	ReadBytes int64    `json:"read_bytes"`
	Damage    []Damage `json:"damage"`
	// Repositories were read; objects and bytes of several are added up.
	Repositories []string `json:"repositories,omitempty" doc:"names"`
}

// Damage is something that cannot be read as it was stored.
type Damage struct {
	Object  string   `json:"object"`
	Machine string   `json:"machine,omitempty"`
	Disk    string   `json:"disk,omitempty"`
	Range   *Range   `json:"range,omitempty"`
	Points  []string `json:"points,omitempty"`
	Error   string   `json:"error"`
	// Repository is where it was found.
	Repository string `json:"repository,omitempty" doc:"name"`
	From       string `json:"repairable_from,omitempty" doc:"name of the repository from which 'repository repair' can bring it back"`
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
