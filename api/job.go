package api

import "time"

// Job is long work under way or ended.
type Job struct {
	ID      string     `json:"id"`
	Kind    string     `json:"kind" doc:"backup, prove, restore, verify, rebuild, prune, import, scrub, copy, repair"`
	State   string     `json:"state" enum:"queued,running,succeeded,failed,canceled"`
	Created time.Time  `json:"created"`
	Ended   *time.Time `json:"ended,omitempty"`
	Error   *Error     `json:"error,omitempty"`
	Exit    int        `json:"exit" doc:"exit status of the command contract"`
	JobResult
	Warnings []string `json:"warnings,omitempty"`
}

// JobResult is the operation's own result: the one field of its kind.
type JobResult struct {
	Backup  *Point         `json:"backup,omitempty"`
	Prove   []Point        `json:"prove,omitempty"`
	Restore *RestoreResult `json:"restore,omitempty"`
	Verify  *VerifyResult  `json:"verify,omitempty"`
	Rebuild *RebuildResult `json:"rebuild,omitempty"`
	Import  *ImportResult  `json:"import,omitempty"`
	Prune   *PruneResult   `json:"prune,omitempty"`
	Scrub   *ScrubResult   `json:"scrub,omitempty"`
	Copy    *CopyResult    `json:"copy,omitempty"`
	Repair  *RepairResult  `json:"repair,omitempty"`
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
