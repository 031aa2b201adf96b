package api

import (
	"context"
	"net/http"
)

// HeaderRestoreRequest writes a volume's header, as a recovery point has it,
// over that of the same volume on a target.
type HeaderRestoreRequest struct {
	Target string `json:"target" minLength:"1" doc:"the disk or the volume: an image file or a block device that the server opens"`
	Backup string `json:"backup,omitempty" doc:"new file for what is there before; needed but for a dry run"`
	DryRun bool   `json:"dry_run,omitempty" doc:"check, and write nothing"`
	Force  bool   `json:"force,omitempty" doc:"also over a sound header, and where nothing shows that it is this volume"`
	// Repository is where the recovery point is read; the nearest where it is "".
	Repository string `json:"repository,omitempty" doc:"name; empty = the nearest that has the recovery point"`
}

// HeaderRestored says what was found on the target and what was written.
type HeaderRestored struct {
	Point    string   `json:"point"`
	Disk     string   `json:"disk"`
	Volume   string   `json:"volume"`
	UUID     string   `json:"uuid,omitempty"`
	Target   string   `json:"target"`
	Found    string   `json:"found" enum:"same,damaged,other" doc:"what the target had: this header, a damaged one or none, or another"`
	Why      string   `json:"why"`
	Written  bool     `json:"written"`
	Bytes    int64    `json:"bytes" doc:"size of the header"`
	Ranges   []Range  `json:"ranges" doc:"of the target: what is, or would be, written"`
	Backup   string   `json:"backup,omitempty" doc:"file with what was there before, each byte where it was in the volume"`
	Samples  int      `json:"samples" doc:"pages behind the header that were compared with the recovery point"`
	Equal    int      `json:"equal_samples"`
	Warnings []string `json:"warnings,omitempty"`
}

// RestoreHeader writes a volume's header back to a target.
func (c *Client) RestoreHeader(ctx context.Context, point, disk, volume string, r HeaderRestoreRequest) (HeaderRestored, error) {
	return call[HeaderRestored](ctx, c, http.MethodPost, r, nil, "points", point, "disks", disk, "volumes", volume, "header")
}
