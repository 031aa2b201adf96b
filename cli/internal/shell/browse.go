package shell

import (
	"io"
	"time"
)

// BrowseOptions says what to read of a file system in a recovery point.
type BrowseOptions struct {
	DataDir      string
	Point        string
	Repository   string // as in ExportOptions
	Disk, Volume string
	Path         string
	Unlock       *Unlock // nil: only what is not encrypted
	Log          io.Writer

	Action  string // "ls", "find", "cat", "get", "tar"
	Pattern string // find
	// Opened is called once, before anything is read.
	Opened func(Browsed)
	File   func(BrowsedFile) error // ls, find: called with each
	Out    io.Writer               // cat, tar
	Dir    string                  // get: folder
	Force  bool                    // get: replace files
	Owners bool                    // get: give files to their owners
}

// Browsed is the file system that is read, and how.
type Browsed struct {
	Point    string   `json:"point"`
	Machine  string   `json:"machine"`
	Class    string   `json:"class"`
	Label    string   `json:"label,omitempty"`
	UUID     string   `json:"uuid,omitempty"`
	Reader   string   `json:"reader"` // "user-space"
	Dirty    bool     `json:"dirty"`
	Replayed bool     `json:"replayed"` // its journal is applied, in memory
	Warnings []string `json:"warnings"`
}

// BrowsedFile is one file.
type BrowsedFile struct {
	Path      string    `json:"path"`
	Type      string    `json:"type"` // "file", "directory", "symlink", …
	Mode      string    `json:"mode"` // as ls shows it
	UID       uint32    `json:"uid"`
	GID       uint32    `json:"gid"`
	Links     uint32    `json:"links"`
	SizeBytes int64     `json:"size_bytes"`
	Modified  time.Time `json:"modified"`
	Target    string    `json:"target,omitempty"` // of a symbolic link
	Flags     []string  `json:"flags,omitempty"`
}

// BrowseResult is what was written where, and what could not be read.
type BrowseResult struct {
	Browsed
	Written  string   `json:"written,omitempty"` // get, tar: where
	Files    int64    `json:"files"`
	Dirs     int64    `json:"dirs"`
	Links    int64    `json:"links"`
	Bytes    int64    `json:"bytes"`
	Problems []string `json:"problems"` // files that could not be read
}
