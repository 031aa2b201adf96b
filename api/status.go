package api

import "time"

// Status is the picture of everything, the worst first.
type Status struct {
	Machines []MachineStatus `json:"machines"`
	Warnings []string        `json:"warnings,omitempty" doc:"what is not about one machine, and damage"`
	Damaged  []string        `json:"damaged,omitempty" doc:"names of repositories in which damage was found, and not found whole since"`
}

// MachineStatus is one machine: its recovery points × secret versions.
type MachineStatus struct {
	Machine string         `json:"machine"`
	State   string         `json:"state" doc:"the worst of its recovery points"`
	Latest  *time.Time     `json:"latest,omitempty"`
	Secrets []string       `json:"secrets" doc:"columns: secret versions, id@version"`
	States  []string       `json:"secret_states" doc:"state of each column's version"`
	Points  []PointSummary `json:"points" doc:"rows, newest first"`
	Notes   []string       `json:"notes,omitempty"`
}

// PointSummary is one row of the picture.
type PointSummary struct {
	ID           string    `json:"id"`
	Time         time.Time `json:"time"`
	State        string    `json:"state"`
	Why          []string  `json:"why,omitempty"`
	Transfer     string    `json:"transfer"`
	ChangedBytes int64     `json:"changed_bytes"`
	Opens        []string  `json:"opens" doc:"for each column: yes, claims, no, untried"`
	Epochs       []string  `json:"epochs,omitempty" doc:"volume-key epochs, short"`
	OnlyIn       []string  `json:"only_in,omitempty" doc:"names of repositories that have it, where the one that backups write to has not any more"`
}

// AuditEntry is one entry of the audit log.
type AuditEntry struct {
	Index   int64             `json:"index"`
	Time    time.Time         `json:"time"`
	Actor   string            `json:"actor"`
	Action  string            `json:"action"`
	Object  string            `json:"object"`
	Outcome string            `json:"outcome"`
	Reason  string            `json:"reason,omitempty"`
	Detail  map[string]string `json:"detail,omitempty"`
}

// AuditReport is what audit verify found.
type AuditReport struct {
	Entries     int64    `json:"entries"`
	Root        string   `json:"root"`
	Checkpoints int      `json:"checkpoints"`
	Problems    []string `json:"problems"`
}
