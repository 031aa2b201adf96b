package api

import (
	"context"
	"net/http"
	"time"
)

// ImportRequest makes recovery points of images that exist already: of Disks,
// at Time, or of each image in Directory.
type ImportRequest struct {
	Machine string       `json:"machine" pattern:"^[a-zA-Z0-9][a-zA-Z0-9._-]{0,62}$" doc:"made where there is none of this name"`
	Time    *time.Time   `json:"time,omitempty" doc:"what the images show; for disks"`
	Disks   []ImportDisk `json:"disks,omitempty"`

	Directory string `json:"directory,omitempty" doc:"folder of images of one disk, one for each time"`
	Disk      string `json:"disk,omitempty" doc:"id of that disk; default vda"`
	TimeFrom  string `json:"time_from,omitempty" doc:"mtime (default), or name:LAYOUT with %Y %m %d %H %M %S or %s, in UTC"`

	Format       string   `json:"format,omitempty" enum:"raw,qcow2,vmdk,vpc,vhdx" doc:"default: what each file's name says; never what its content says"`
	AllowBacking []string `json:"allow_backing,omitempty" doc:"folders beside an image's own in which files may be that it names"`
	Description  string   `json:"description,omitempty"`
	Consistency  string   `json:"consistency,omitempty" enum:"unknown,none,crash-consistent,file-system-consistent,application-consistent"`
	DryRun       bool     `json:"dry_run,omitempty" doc:"look at the images and store nothing"`
	Rates
}

// ImportDisk is the image of one disk.
type ImportDisk struct {
	ID   string `json:"id"`
	File string `json:"file"`
}

// ImportResult says what was imported, in order of time.
type ImportResult struct {
	Machine    string         `json:"machine"`
	DryRun     bool           `json:"dry_run"`
	Items      []ImportedItem `json:"items"`
	PassedOver []string       `json:"passed_over,omitempty" doc:"files of the folder that are no images, or show no time"`
	Older      []string       `json:"older,omitempty" doc:"images of the folder that are older than the newest recovery point, and passed over"`
}

// ImportedItem is a recovery point that was made, was there already, or would be made.
type ImportedItem struct {
	Time      time.Time    `json:"time"`
	Disks     []ImportDisk `json:"disks"`
	SizeBytes int64        `json:"size_bytes,omitempty"`
	Point     string       `json:"point,omitempty"`
	State     string       `json:"state,omitempty"`
	Existing  bool         `json:"existing,omitempty" doc:"it was imported before: a recovery point has this time, and is of images of these names"`
}

// Rates limit how fast a job reads and writes, beside what the policy says.
type Rates struct {
	LimitRead  int64 `json:"limit_read,omitempty" minimum:"0" doc:"bytes a second, from disks and stores together; 0 = no limit"`
	LimitWrite int64 `json:"limit_write,omitempty" minimum:"0" doc:"bytes a second, to disks and stores together; 0 = no limit"`
}

// Import makes recovery points of images; the job's result is in Import.
func (c *Client) Import(ctx context.Context, r ImportRequest) (Job, error) {
	return call[Job](ctx, c, http.MethodPost, r, nil, "imports")
}
