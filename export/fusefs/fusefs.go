// Package fusefs shows a recovery point as a folder with a file for each disk,
// through FUSE, and for each device of plaintext where it was unlocked. It only
// reads. On systems other than Linux it refuses.
package fusefs

import (
	"encoding/json"
	"errors"
	"log/slog"
	"net/url"
	"time"

	"github.com/lockstep-backup/lockstep/disk"
	"github.com/lockstep-backup/lockstep/export"
)

// ErrUnavailable says that this host cannot mount; the error's text says why.
var ErrUnavailable = errors.New("file systems in user space are not available")

// Options of a mount.
type Options struct {
	Log *slog.Logger
}

// FileName is the name of a disk's file.
func FileName(id string) string { return url.PathEscape(id) + ".raw" }

// PlainName is the name of the file of a device of plaintext.
func PlainName(id string) string { return url.PathEscape(id) }

// about is the file that says what is shown.
func about(p *export.Point) ([]byte, error) {
	type aboutDisk struct {
		ID          string       `json:"id"`
		File        string       `json:"file"`
		Size        int64        `json:"size_bytes"`
		ContentRoot string       `json:"content_root"`
		Unread      []disk.Range `json:"unread,omitempty"`
	}
	type aboutPlain struct {
		Disk   string `json:"disk"`
		Volume string `json:"volume"`
		File   string `json:"file"`
		Size   int64  `json:"size_bytes"`
		Class  string `json:"class"`
	}
	m := p.Manifest
	v := struct {
		Point       string       `json:"point"`
		Machine     string       `json:"machine"`
		Time        time.Time    `json:"time"`
		Consistency string       `json:"consistency"`
		Description string       `json:"description,omitempty"`
		Disks       []aboutDisk  `json:"disks"`
		Volumes     []aboutPlain `json:"volumes,omitempty"`
	}{Point: m.Point, Machine: m.MachineName, Time: m.Time.UTC(), Consistency: m.Consistency, Description: m.Description}
	for _, d := range m.Disks {
		v.Disks = append(v.Disks, aboutDisk{ID: d.ID, File: FileName(d.ID), Size: d.Size, ContentRoot: d.ContentRoot, Unread: d.Unread})
	}
	for _, x := range p.Plain {
		v.Volumes = append(v.Volumes, aboutPlain{Disk: x.Disk, Volume: x.Name, File: PlainName(x.ID), Size: x.Size(), Class: x.Class})
	}
	text, err := json.MarshalIndent(v, "", "  ")
	return append(text, '\n'), err
}
