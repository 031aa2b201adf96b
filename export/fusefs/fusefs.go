// Package fusefs shows a recovery point as a folder with a file for each disk,
// through FUSE. It only reads; what it hands on is verified ciphertext. On
// systems other than Linux it refuses.
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

// about is the file that says what is shown.
func about(p *export.Point) ([]byte, error) {
	type aboutDisk struct {
		ID          string       `json:"id"`
		File        string       `json:"file"`
		Size        int64        `json:"size_bytes"`
		ContentRoot string       `json:"content_root"`
		Unread      []disk.Range `json:"unread,omitempty"`
	}
	m := p.Manifest
	v := struct {
		Point       string      `json:"point"`
		Machine     string      `json:"machine"`
		Time        time.Time   `json:"time"`
		Consistency string      `json:"consistency"`
		Description string      `json:"description,omitempty"`
		Disks       []aboutDisk `json:"disks"`
	}{Point: m.Point, Machine: m.MachineName, Time: m.Time.UTC(), Consistency: m.Consistency, Description: m.Description}
	for _, d := range m.Disks {
		v.Disks = append(v.Disks, aboutDisk{ID: d.ID, File: FileName(d.ID), Size: d.Size, ContentRoot: d.ContentRoot, Unread: d.Unread})
	}
	text, err := json.MarshalIndent(v, "", "  ")
	return append(text, '\n'), err
}
