package api

import "time"

// Machine is a protected machine.
type Machine struct {
	ID      string    `json:"id"`
	Name    string    `json:"name"`
	Created time.Time `json:"created"`
	Disks   []DiskDef `json:"disks"`
}

// DiskDef says where a protected disk is.
type DiskDef struct {
	ID     string `json:"id" doc:"disk id as the user named it, e.g. vda"`
	Source string `json:"source" doc:"image file, block device or source URL"`
	Header string `json:"header,omitempty" doc:"detached LUKS header file"`
	// Declared is by volume id, "disk" for the whole disk.
	Declared map[string]string `json:"declared,omitempty" doc:"what volumes are that nothing on the disk shows, by volume id ('disk' = the whole disk): TYPE[,NAME=VALUE]…; of a disk that is changed, absent = as it was"`
}

// MachineCreate enrols a machine.
type MachineCreate struct {
	Name  string    `json:"name" pattern:"^[a-zA-Z0-9][a-zA-Z0-9._-]{0,62}$"`
	Disks []DiskDef `json:"disks" minItems:"1"`
}

// MachineChange says where disks of a machine lie from now on. Disks that it
// does not name stay as they are.
type MachineChange struct {
	Disks       []DiskDef `json:"disks,omitempty" doc:"disks that lie elsewhere now, or are new"`
	RemoveDisks []string  `json:"remove_disks,omitempty" doc:"ids of disks that are backed up no more; what is stored of them stays"`
	// Declare and Undeclare name volumes as DISK/VOLUME; DISK alone is the whole disk.
	Declare   map[string]string `json:"declare,omitempty" doc:"what volumes are that nothing on the disk shows, by DISK[/VOLUME]: TYPE[,NAME=VALUE]…"`
	Undeclare []string          `json:"undeclare,omitempty" doc:"volumes whose declaration is withdrawn, DISK[/VOLUME]"`
}

// MachineDetail is a machine with what its disks show now.
type MachineDetail struct {
	Machine
	State    string     `json:"state"`
	Points   int        `json:"points"`
	Latest   *Point     `json:"latest,omitempty"`
	Live     []DiskView `json:"live,omitempty" doc:"the disks as they are now, where they can be read"`
	Warnings []string   `json:"warnings,omitempty"`
}

// DiskView is a disk as inspected.
type DiskView struct {
	ID        string   `json:"id"`
	SizeBytes int64    `json:"size_bytes"`
	Volumes   []Volume `json:"volumes"`
	Areas     []Area   `json:"areas,omitempty"`
	Error     string   `json:"error,omitempty"`
}

// Area is a part of a disk that is not an encrypted volume.
type Area struct {
	ID    string `json:"id"`
	Class string `json:"class"`
	Note  string `json:"note,omitempty"`

	Unread string `json:"unread,omitempty" doc:"why what is inside was not looked into: it may be encrypted, and nothing proves that it opens"`
}

// NotNeeded declares a volume as not needed (or needed again).
type NotNeeded struct {
	Volume string `json:"volume"`
	Reason string `json:"reason" doc:"empty withdraws the declaration"`
}
