package api

import (
	"context"
	"net/http"
	"time"
)

// ScrubRequest reads back what has not been read for the longest; without
// limits, everything.
type ScrubRequest struct {
	Repository       string `json:"repository,omitempty" doc:"name; empty = the primary"`
	ForSeconds       int64  `json:"for_seconds,omitempty" minimum:"0" doc:"begin no object after that; 0 = no limit"`
	Bytes            int64  `json:"bytes,omitempty" minimum:"0" doc:"begin no object but the first that would be more; 0 = no limit"`
	OlderThanSeconds int64  `json:"older_than_seconds,omitempty" minimum:"0" doc:"leave out what was read within that"`
	WarnAfterSeconds int64  `json:"warn_after_seconds,omitempty" minimum:"0" doc:"from now on, status warns of what was not read within that; 0 = as before"`
}

// ScrubResult says what was read and what is due.
type ScrubResult struct {
	Objects     int64      `json:"objects"`
	ReadBytes   int64      `json:"read_bytes"`
	LeftObjects int64      `json:"left_objects" doc:"due, and not read"`
	LeftBytes   int64      `json:"left_bytes"`
	Oldest      *time.Time `json:"oldest,omitempty" doc:"since when something has not been read now; damaged data that was read now counts as read; none = nobody knows since when"`
	Never       bool       `json:"never" doc:"the oldest was never read; it is known to be there since then"`
	Damage      []Damage   `json:"damage"`
}

// Scrub starts reading back what has not been read for the longest.
func (c *Client) Scrub(ctx context.Context, r ScrubRequest) (Job, error) {
	return call[Job](ctx, c, http.MethodPost, r, nil, "scrubs")
}
