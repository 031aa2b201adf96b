// Package unlock opens the encrypted volumes of disks and walks what lies in
// what: disk, partition, encrypted volume, RAID array, logical volume, and
// again. It reads; nothing of the plaintext leaves memory but to who asks.
package unlock

import (
	"context"
	"errors"
	"io"
	"iter"

	"github.com/lockstep-backup/lockstep/disk"
	"github.com/lockstep-backup/lockstep/diskcrypt"
	"github.com/lockstep-backup/lockstep/envelope"
)

// Errors of Locked.Why.
var (
	// ErrNoKey: there was no secret to try.
	ErrNoKey = errors.New("there is no secret for it")
	// ErrNoHeader: neither the disk nor a stored copy has a header that is right.
	ErrNoHeader = errors.New("no sound header of it")
)

// Kinds of devices; the plaintext of an encrypted volume has the volume's type
// (diskcrypt.TypeLUKS2, …).
const (
	KindDisk      = "disk"
	KindPartition = "partition"
	KindArray     = "md" // of a RAID1; of a partition that is a leg, the partition is the array
	KindLogical   = "lv"
)

// Disk is a disk to look into: one of a recovery point's, or any other.
type Disk struct {
	ID   string
	R    io.ReaderAt // safe for concurrent use
	Size int64
	// Volumes are what is known to be encrypted there, as a manifest lists it:
	// it counts, whatever the disk looks like. Others are looked for.
	Volumes []diskcrypt.Volume
	// Headers are the headers of one of Volumes that are kept outside of the disk,
	// best first: of a detached header, the only ones. nil = none.
	Headers func(volume string) []Header
}

// Header is a copy of a volume's header.
type Header struct {
	From string // for people: "the header copy"
	R    io.ReaderAt
	Size int64
	// Ranges are what of it lies over the volume's first bytes where the header
	// is not detached; ascending.
	Ranges []disk.Range
}

// Key is a secret to try. Whoever gets it wipes it.
type Key struct {
	Name   string // for people, e.g. "web01-a1@2"; "" = nothing to be said
	Kind   diskcrypt.Kind
	Secret envelope.Secret
}

// Keys gives the secrets to try on a volume, the likeliest first. The next one
// is asked for only when the last did not open it, so that a secret is fetched,
// and that recorded, only where it is used. An error is a key that is not to be
// had; who gives errors may go on with others.
type Keys func(ctx context.Context, disk string, v diskcrypt.Volume) iter.Seq2[Key, error]

// Options of Open.
type Options struct {
	Formats []diskcrypt.Format
	Limits  diskcrypt.Limits
}

// Device is a run of bytes that was found: a disk, a part of one, what is in
// an encrypted volume.
type Device struct {
	// Disk is the ID of the disk that it is on, of several the first one's.
	Disk string
	// Name is its place, as diskcrypt.Volume.ID: "disk", "p3", "vgroot-home"; what
	// lies in what is no disk has the name of that before it: "vgroot-home.p1". An
	// encrypted volume and its plaintext, a disk that is a leg of a RAID1 and the
	// array, are two devices of one name, and what is inside comes later. Otherwise
	// (Disk, Name) is unique.
	Name string
	Kind string // one of the kinds, or the type of the encrypted volume whose plaintext it is
	// Class is what it starts with: a class of blockstack or of diskcrypt.
	Class string
	// Parents are the devices that it lies in, as indexes; none of a disk.
	Parents []int
	// Decrypted: it is the plaintext of an encrypted volume, or lies in one.
	Decrypted bool
	// Key and Protector opened it, and Header is where its header came from if not
	// from the disk: of a volume's plaintext.
	Key, Protector, Header string

	R    io.ReaderAt // safe for concurrent use, until the tree is closed
	Size int64

	depth int
}

// Locked is an encrypted volume that was not opened.
type Locked struct {
	Disk   string
	Name   string // as Device.Name
	Volume diskcrypt.Volume
	Why    error
}

// Tree is what was found, parents before children.
type Tree struct {
	Devices []Device
	Locked  []Locked
	// Warnings are about damage, and about what was not looked into.
	Warnings []string

	opened []diskcrypt.Opened
}

// Find gives a device by its place: of an encrypted volume that was opened, the
// plaintext. nil if there is none.
func (t *Tree) Find(disk, name string) *Device {
	for i := len(t.Devices) - 1; i >= 0; i-- {
		if d := &t.Devices[i]; d.Disk == disk && d.Name == name {
			return d
		}
	}
	return nil
}

// Close wipes the keys. Reads of what was decrypted fail from then on.
func (t *Tree) Close() error {
	var errs []error
	for _, o := range t.opened {
		errs = append(errs, o.Close())
	}
	t.opened = nil
	return errors.Join(errs...)
}

// Read gives a device's bytes as one reader, from the first.
func (d *Device) Read() *io.SectionReader { return io.NewSectionReader(d.R, 0, d.Size) }
