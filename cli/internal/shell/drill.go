package shell

import (
	"context"
	"io"
	"time"
)

// DrillOptions says what to rehearse.
type DrillOptions struct {
	DataDir    string
	Point      string
	Repository string // as in ExportOptions
	Unlock     *Unlock

	Files   int   // of each file system, read to their ends
	Bytes   int64 // of each file system
	Seed    string
	NoCheck bool
	Boot    *BootOptions // nil: not booted

	// Dry: the report is not stored beside the recovery point.
	Dry bool
	// Tell is given what is done now; it may name files of the guest. Console is
	// given what a booted guest says.
	Tell    func(string)
	Console io.Writer
	Log     io.Writer
}

// BootOptions says how to boot a machine.
type BootOptions struct {
	MemoryMiB      int
	CPUs           int
	Bus            string
	Firmware       string
	KVM            bool
	Marker         string // regular expression; "" = a login prompt
	TypePassphrase bool
	Screenshot     string // file
	Timeout        time.Duration
}

// Drilled is what came of a drill: its report for people and programs, and the
// signed report.
type Drilled struct {
	Point    string      `json:"point"`
	Machine  string      `json:"machine"`
	Time     time.Time   `json:"time"` // of the recovery point
	Started  time.Time   `json:"started"`
	Outcome  string      `json:"outcome"` // passed, failed, incomplete
	Reason   string      `json:"reason"`
	Actor    string      `json:"actor"`
	Steps    []DrillStep `json:"steps"`
	Tools    []DrillTool `json:"tools"`
	Open     float64     `json:"open_seconds,omitempty"`
	Unlock   float64     `json:"unlock_seconds,omitempty"`
	Readable float64     `json:"readable_seconds,omitempty"`
	Boot     float64     `json:"boot_seconds,omitempty"`
	Total    float64     `json:"total_seconds"`
	Stored   bool        `json:"stored"`
	Warnings []string    `json:"warnings"`

	Signed []byte `json:"-"` // DSSE
	HTML   []byte `json:"-"`
}

// DrillStep is one thing that was done.
type DrillStep struct {
	Kind    string  `json:"kind"`
	Disk    string  `json:"disk,omitempty"`
	Object  string  `json:"object,omitempty"`
	Outcome string  `json:"outcome"`
	Detail  string  `json:"detail,omitempty"`
	Secret  string  `json:"secret,omitempty"`
	Files   int64   `json:"files,omitempty"`
	Bytes   int64   `json:"bytes,omitempty"`
	Seconds float64 `json:"seconds"`
}

// DrillTool is a program that took part.
type DrillTool struct {
	Name    string `json:"name"`
	Version string `json:"version"`
}

// Drilling holds a drill, and lists the reports of a recovery point.
type Drilling struct {
	Run     func(context.Context, DrillOptions) (Drilled, error)
	Reports func(context.Context, DrillOptions) ([]Drilled, error)
}
