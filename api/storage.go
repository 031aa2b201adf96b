package api

import (
	"context"
	"net/http"
	"time"
)

// RepositoryStats is what a repository holds, who needs it and what is to be
// expected. Sizes are bytes.
type RepositoryStats struct {
	Name     string         `json:"name"`
	URL      string         `json:"url"`
	Logical  int64          `json:"logical" doc:"of the disks of all recovery points"`
	Stored   int64          `json:"stored" doc:"in the store, all objects of the machines"`
	Needed   int64          `json:"needed" doc:"extents and map pages that recovery points need"`
	Dead     int64          `json:"dead" doc:"of segments and map objects, what is not needed; tables included"`
	Objects  int64          `json:"objects"`
	Machines []MachineStats `json:"machines"`
	Free     *int64         `json:"free,omitempty" doc:"free space of a local store"`
	Outlook  *Outlook       `json:"outlook,omitempty" doc:"of all machines that have one; a machine without counts as it is"`
	FullIn   *float64       `json:"full_in_days,omitempty" doc:"days until the free space is used up; absent = not within a year, or not known"`
}

// MachineStats is what a repository holds of a machine.
type MachineStats struct {
	Machine string       `json:"machine" doc:"name, or id of one that the catalog does not know"`
	Logical int64        `json:"logical"`
	Stored  int64        `json:"stored"`
	Needed  int64        `json:"needed"`
	Dead    int64        `json:"dead"`
	Objects int64        `json:"objects"`
	Points  []PointStats `json:"points" doc:"oldest first"`
	Outlook *Outlook     `json:"outlook,omitempty" doc:"absent: fewer than three recovery points"`
	Error   string       `json:"error,omitempty" doc:"why it could not be measured"`
}

// PointStats is what a recovery point takes.
type PointStats struct {
	Point   string    `json:"point"`
	Time    time.Time `json:"time"`
	Logical int64     `json:"logical" doc:"of its disks"`
	Written int64     `json:"written" doc:"stored when it was made"`
	Alone   int64     `json:"alone" doc:"what nothing else needs: deleting it alone frees it"`
}

// Outlook is what is to be expected if everything goes on as it did.
type Outlook struct {
	Observed int        `json:"observed" doc:"recovery points that it rests on"`
	PerDay   int64      `json:"per_day" doc:"stored in a day, on average"`
	Typical  int64      `json:"typical_per_day" doc:"the same by the median recovery point"`
	Ahead    []Expected `json:"ahead"`
}

// Expected is what is to be expected at a time.
type Expected struct {
	Days   int   `json:"days"`
	Bytes  int64 `json:"bytes"`
	Points int   `json:"points" doc:"that the policies keep then"`
}

// RepositoryLock is for how long a repository's store locks what is written.
type RepositoryLock struct {
	Repository string `json:"repository,omitempty"`
	For        string `json:"for,omitempty" doc:"such as 30d; empty = nothing is locked"`
	Mode       string `json:"mode,omitempty" enum:"governance,compliance" doc:"who can lift a lock: who has a special right, or nobody"`
}

// RepositoryStats measures a repository, "" is the one that backups write to.
// It reads all maps, of one machine or of all.
func (c *Client) RepositoryStats(ctx context.Context, name, machine string) (RepositoryStats, error) {
	return call[RepositoryStats](ctx, c, http.MethodGet, nil, query("machine", machine), "repositories", orPrimary(name), "stats")
}

// RepositoryLock says how a repository is locked.
func (c *Client) RepositoryLock(ctx context.Context, name string) (RepositoryLock, error) {
	return call[RepositoryLock](ctx, c, http.MethodGet, nil, nil, "repositories", orPrimary(name), "lock")
}

// LockRepository sets how a repository is locked from now on.
func (c *Client) LockRepository(ctx context.Context, name string, l RepositoryLock) (RepositoryLock, error) {
	return call[RepositoryLock](ctx, c, http.MethodPut, l, nil, "repositories", orPrimary(name), "lock")
}

// Primary names, in a path, the repository that backups write to.
const Primary = "@primary"

func orPrimary(name string) string {
	if name == "" {
		return Primary
	}
	return name
}
