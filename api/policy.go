package api

import (
	"context"
	"net/http"
	"time"
)

// Policy of a machine, in the JSON form of package policy.
type Policy struct {
	Format    int             `json:"format,omitempty" doc:"1; 0 means it, too"`
	Timezone  string          `json:"timezone,omitempty" doc:"IANA name; days, weeks and times of day are those of this zone; empty = UTC"`
	Schedule  string          `json:"schedule,omitempty" doc:"calendar expression of five fields, or 'every 6h'"`
	Retention PolicyRetention `json:"retention,omitzero"`
	ProofAge  string          `json:"proof_age,omitempty" doc:"how old a proof may get, e.g. 90d"`
	VerifyAge string          `json:"verify_age,omitempty" doc:"how long ago data may have been read back, e.g. 12w"`
	Limits    []PolicyLimit   `json:"limits,omitempty"`
	CopiesTo  []string        `json:"copies_to,omitempty" doc:"URLs of repositories; names are taken too"`
}

// PolicyRetention says what is kept; none of the first seven means everything.
type PolicyRetention struct {
	KeepLast int      `json:"keep_last,omitempty"`
	Hourly   int      `json:"hourly,omitempty"`
	Daily    int      `json:"daily,omitempty"`
	Weekly   int      `json:"weekly,omitempty"`
	Monthly  int      `json:"monthly,omitempty"`
	Yearly   int      `json:"yearly,omitempty"`
	Within   string   `json:"within,omitempty" doc:"younger ones stay, e.g. 48h"`
	Minimum  int      `json:"minimum,omitempty" doc:"so many stay whatever the rules say"`
	KeepTags []string `json:"keep_tags,omitempty" doc:"key or key=value: what has the tag stays"`
}

// PolicyLimit limits rates from a time of day to another.
type PolicyLimit struct {
	From  string `json:"from" doc:"HH:MM in the policy's time zone"`
	To    string `json:"to" doc:"HH:MM; not behind from = over midnight"`
	Read  int64  `json:"read,omitempty" doc:"from the source, bytes/s; 0 = no limit"`
	Write int64  `json:"write,omitempty" doc:"to the repository, bytes/s; 0 = no limit"`
}

// Whose policy is in force.
const (
	PolicyOwn     = "machine"
	PolicyDefault = "default"
	PolicyNone    = "none"
)

// PolicyView is the policy in force.
type PolicyView struct {
	Machine string      `json:"machine,omitempty" doc:"empty: the default"`
	Origin  string      `json:"origin" enum:"machine,default,none"`
	Policy  Policy      `json:"policy"`
	Next    []time.Time `json:"next,omitempty" doc:"next times of the schedule"`
	// Warnings are what somebody should know, in words.
	Warnings []string `json:"warnings,omitempty"`
}

// Policy returns the policy in force for a machine, or the default where
// machine is "".
func (c *Client) Policy(ctx context.Context, machine string) (PolicyView, error) {
	return call[PolicyView](ctx, c, http.MethodGet, nil, nil, policyPath(machine)...)
}

// SetPolicy sets the policy of a machine, or the default.
func (c *Client) SetPolicy(ctx context.Context, machine string, p Policy) (PolicyView, error) {
	return call[PolicyView](ctx, c, http.MethodPut, p, nil, policyPath(machine)...)
}

// UnsetPolicy takes a machine's policy away, so that the default is in force,
// or the default. It returns what is in force then.
func (c *Client) UnsetPolicy(ctx context.Context, machine string) (PolicyView, error) {
	return call[PolicyView](ctx, c, http.MethodDelete, nil, nil, policyPath(machine)...)
}

func policyPath(machine string) []string {
	if machine == "" {
		return []string{"policy"}
	}
	return []string{"machines", machine, "policy"}
}

// Kinds of marks.
const (
	MarkPin       = "pin"
	MarkTag       = "tag"
	MarkLegalHold = "legal-hold"
)

// MarkRequest pins, tags or holds a recovery point, or takes that back.
type MarkRequest struct {
	Kind   string `json:"kind" enum:"pin,tag,legal-hold"`
	Name   string `json:"name,omitempty" doc:"a tag's key, a legal hold's case"`
	Value  string `json:"value,omitempty" doc:"of a tag"`
	Set    bool   `json:"set" doc:"false takes it back"`
	Reason string `json:"reason,omitempty"`
}

// PointMark is a pin or a legal hold in force.
type PointMark struct {
	Name   string    `json:"name,omitempty" doc:"a legal hold's case"`
	Reason string    `json:"reason"`
	Actor  string    `json:"actor"`
	Time   time.Time `json:"time"`
}

// MarkPoint sets a mark on a recovery point, or takes one back.
func (c *Client) MarkPoint(ctx context.Context, point string, m MarkRequest) (Point, error) {
	return call[Point](ctx, c, http.MethodPost, m, nil, "points", point, "marks")
}

// PruneRequest removes what policies let go.
type PruneRequest struct {
	Machine      string `json:"machine,omitempty" doc:"name; empty = all"`
	DryRun       bool   `json:"dry_run,omitempty" doc:"decide and explain, change nothing"`
	ClockIsRight bool   `json:"clock_is_right,omitempty" doc:"go on although the clock does not look right"`
	// Repositories are pruned one after the other.
	Repositories []string `json:"repositories,omitempty" doc:"names; empty = the primary"`
}

// PruneResult says what stayed and what went, and why.
type PruneResult struct {
	DryRun   bool           `json:"dry_run"`
	Machines []PruneMachine `json:"machines"`
}

// PruneMachine is what came of pruning one machine.
type PruneMachine struct {
	Machine    string `json:"machine"`
	Repository string `json:"repository" doc:"name"`
	Origin     string `json:"origin" enum:"machine,default,none" doc:"whose policy"`
	Kept       int    `json:"kept"`
	// In a dry run all of the machine, the newest first; else those that went.
	Points        []PrunePoint `json:"points" doc:"in a dry run all, else those that went; the newest first"`
	Deleted       int          `json:"deleted" doc:"in a dry run: that would be"`
	Finished      []string     `json:"finished,omitempty" doc:"deleted by an earlier run that did not come to its end"`
	ReleasedHolds int          `json:"released_holds"`
	FreedBytes    int64        `json:"freed_bytes"`
	FreedObjects  int64        `json:"freed_objects"`
	Problems      []string     `json:"problems,omitempty"`
	Error         *Error       `json:"error,omitempty" doc:"why it ended early"`
}

// PrunePoint is a recovery point and what was decided on it.
type PrunePoint struct {
	Point   string    `json:"point"`
	Time    time.Time `json:"time"`
	State   string    `json:"state,omitempty"`
	Keep    bool      `json:"keep"`
	Reasons []string  `json:"reasons"`
	Deleted bool      `json:"deleted"`
	InUse   bool      `json:"in_use,omitempty" doc:"it would go, but somebody reads it, and it is kept this time; reasons says who"`
	StillIn []string  `json:"still_in,omitempty" doc:"names of repositories that list it, or count as doing so; its secrets stay held"`
}

// Prune starts pruning.
func (c *Client) Prune(ctx context.Context, r PruneRequest) (Job, error) {
	return call[Job](ctx, c, http.MethodPost, r, nil, "prunes")
}
