package diskcrypt

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"slices"

	"github.com/lockstep-backup/lockstep/blockstack"
	"github.com/lockstep-backup/lockstep/disk"
)

// WholeDisk is the ID of a volume or area that is the disk itself.
const WholeDisk = "disk"

// Classes of areas beside those of blockstack.
const (
	ClassUnknown = "unknown" // nothing recognised, not random either
	ClassTable   = "partition-table"
	// ClassUnmapped is a logical volume whose bytes are not all on the disk, or of a
	// kind that is not read; Area.Unread says which.
	ClassUnmapped = "logical-volume"
)

// Area is a part of a disk that was looked at: the disk itself, a partition (of
// a member of a RAID1, its data), or a logical volume.
type Area struct {
	ID    string     `json:"id"`    // as Volume.ID
	Range disk.Range `json:"range"` // as Volume.Range; empty of a logical volume that is not mapped
	// Class is the type of the volume there, or what blockstack recognised, e.g. "ext4", "swap", "empty".
	Class string `json:"class"`
	Note  string `json:"note,omitempty"`
	// Unread says why what is inside was not looked into: it may be encrypted, and
	// nothing proves that it opens. "" where it was.
	Unread string `json:"unread,omitempty"`
}

// Report is what Find found on a disk.
type Report struct {
	Layout   disk.Layout `json:"layout"`
	Volumes  []Volume    `json:"volumes"`
	Areas    []Area      `json:"areas"`
	Warnings []string    `json:"warnings,omitempty"`
}

// Header is a detached header.
type Header struct {
	R    io.ReaderAt
	Size int64
}

// FindOptions of Find.
type FindOptions struct {
	Formats []Format
	// Detached headers by the ID of the volume they belong to, e.g. WholeDisk.
	Detached map[string]Header
	// Declared is what the user declared of volumes that cannot be seen, by their ID.
	Declared map[string]map[string]string
}

// maxAreas bounds the partitions that are looked into, and the logical volumes.
const maxAreas = 512

// Find looks at a disk, at each of its partitions, and at the logical volumes of
// its own volume groups: what is encrypted there, by which of the formats it
// opens, and what the rest is. LVM inside an encrypted volume is seen only when
// that is open, and not here. Encryption that is
// recognised and that no format reads becomes a Volume with Unsupported set.
// An error means that the disk could not be read; damage is in the report.
func Find(ctx context.Context, r io.ReaderAt, size int64, opts FindOptions) (*Report, error) {
	f := finder{report: &Report{Volumes: []Volume{}, Areas: []Area{}}, opts: opts, r: r}
	defer f.missedDeclarations()
	err := f.tables(ctx, size)
	if err == nil {
		err = f.volumeGroups(ctx)
	}
	if err != nil {
		return nil, fmt.Errorf("inspect disk: %w", err)
	}
	return f.report, f.missedHeaders()
}

// tables looks at the disk and its partitions.
func (f *finder) tables(ctx context.Context, size int64) error {
	whole := disk.Range{Length: size}
	if _, ok := f.opts.Detached[WholeDisk]; ok || f.declaredWhole() {
		// The header outside, or the user, says that this is ciphertext from the
		// first byte on; whatever looks like a table in it is chance or a leftover.
		f.report.Layout = disk.Layout{Table: disk.TableNone, SectorSize: disk.SectorSize}
		return f.look(ctx, WholeDisk, whole)
	}
	layout, err := disk.ReadLayout(f.r, size)
	if err != nil {
		return err
	}
	f.report.Layout = layout
	f.report.Warnings = append(f.report.Warnings, layout.Warnings...)
	if layout.Table == disk.TableNone {
		return f.look(ctx, WholeDisk, whole)
	}
	if covered, err := f.lookAtWhole(ctx, whole); err != nil || covered {
		return err
	}
	for i, p := range layout.Partitions {
		if i == maxAreas {
			f.warn("only the first %d of %d partitions were looked into", maxAreas, len(layout.Partitions))
			break
		}
		if err := f.look(ctx, fmt.Sprintf("p%d", p.Number), p.Range); err != nil {
			return fmt.Errorf("partition %d: %w", p.Number, err)
		}
	}
	return nil
}

type finder struct {
	report *Report
	opts   FindOptions
	r      io.ReaderAt
	used   []string // detached headers that found their volume

	declaredSeen []string // declarations that found their place

	pvs []physical // LVM's physical volumes among the areas
}

// missedHeaders refuses a detached header that belongs to no area: its volume
// would be taken for something that needs no secret.
func (f *finder) missedHeaders() error {
	for id := range f.opts.Detached {
		if !slices.Contains(f.used, id) {
			return fmt.Errorf("inspect disk: there is no volume %q for the detached header", id)
		}
	}
	return nil
}

// lookAtWhole looks for a volume on a disk that also has a partition table.
// Boot sectors of file systems and of BitLocker can pass for an MBR; the copy
// of a GPT at the end survives when a whole disk is encrypted. So a volume at
// the first byte, where a table has its own sector, wins, unless it is damaged
// or only its magic is there beside a GPT.
func (f *finder) lookAtWhole(ctx context.Context, whole disk.Range) (covered bool, err error) {
	table := f.report.Layout.Table
	signatures, err := blockstack.Identify(f.r, whole.Length)
	if err != nil {
		return false, err
	}
	for _, s := range signatures {
		if s.Offset != 0 || s.Broken || Probe(Place{Data: f.r, Size: whole.Length}, []blockstack.Signature{s}) == nil {
			continue
		}
		_, sound, err := f.inspect(ctx, Place{Data: f.r, Size: whole.Length})
		if err != nil {
			return false, err
		}
		if !sound && (isLUKS(s) || table == disk.TableGPT) {
			f.warn("the start of the disk also carries the signature of %s; the partition table counts", s)
			continue
		}
		f.warn("the disk carries both a partition table and %s over the whole disk; the latter counts", s)
		return true, f.look(ctx, WholeDisk, whole)
	}
	if len(f.report.Layout.Partitions) == 0 {
		return true, f.look(ctx, WholeDisk, whole)
	}
	f.report.Areas = append(f.report.Areas, Area{ID: WholeDisk, Range: whole, Class: ClassTable, Note: table})
	return false, nil
}

func (f *finder) warn(format string, args ...any) {
	f.report.Warnings = append(f.report.Warnings, fmt.Sprintf(format, args...))
}

// look finds what is in one range and adds it to the report.
func (f *finder) look(ctx context.Context, id string, rng disk.Range) error {
	return f.lookAt(ctx, Volume{ID: id, Range: rng})
}

// lookAt is look for a place of one range or several.
func (f *finder) lookAt(ctx context.Context, at Volume) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	member, unread, err := f.intoMirror(ctx, &at)
	if err != nil {
		return err
	}
	id := at.ID
	place := Place{Data: PlaceOf(f.r, at), Size: at.Size()}
	detached, isDetached := f.opts.Detached[id]
	if isDetached {
		place.Header, place.HeadSize = detached.R, detached.Size
		f.used = append(f.used, id)
	}
	signatures, err := blockstack.Identify(place.Data, place.Size)
	if err != nil {
		return err
	}
	place.Declared = f.declared(id, signatures)
	v, _, err := f.inspect(ctx, place)
	if err != nil {
		return err
	}
	if isDetached && v == nil {
		return fmt.Errorf("volume %s: the detached header is of no known format", id)
	}
	if place.Declared != nil && v == nil {
		v = undeclarable(place)
	}
	if !isDetached && place.Declared == nil {
		if v != nil && leftover(v, signatures) {
			f.warn("%s: %s with the remains of a %s header (%s)", id, signatures[0], v.Type, v.UUID)
			v = nil
		}
		if v == nil {
			v = Probe(place, signatures)
		}
		if v == nil && len(signatures) == 0 {
			if v, err = opaque(place); err != nil {
				return err
			}
		}
	}
	area := Area{ID: id, Range: at.Range, Class: ClassUnknown, Unread: unread}
	switch {
	case v != nil:
		v.ID, v.Range, v.Extents = id, at.Range, at.Extents
		area.Class = v.Type
		f.report.Volumes = append(f.report.Volumes, *v)
	case len(signatures) > 0:
		area.Class = signatures[0].Class
		area.Note = describe(signatures)
	}
	if v == nil && isFAT(area.Class) && signatures[0].Label == "BEK VOLUME" {
		f.warn("%s: this is the BEK volume of Azure Disk Encryption: it holds the keys of the machine's other disks in clear", id)
		area.Note = "BEK VOLUME"
	}
	if member != "" {
		area.Note = joinNotes(member, area.Note)
	}
	if area.Class == blockstack.LVM2 {
		if err := f.physicalVolume(at, &area); err != nil {
			return err
		}
	}
	f.report.Areas = append(f.report.Areas, area)
	return nil
}

// inspect asks the formats in order. sound: the header is valid.
func (f *finder) inspect(ctx context.Context, p Place) (v *Volume, sound bool, err error) {
	for _, format := range f.opts.Formats {
		v, err := format.Inspect(ctx, p)
		switch {
		case errors.Is(err, ErrNotThisFormat), p.Declared != nil && v != nil && v.Declared == nil:
			continue
		case errors.Is(err, ErrDamaged) && v != nil:
			return v, false, nil // v says that it is damaged
		case err != nil:
			return nil, false, fmt.Errorf("%s: %w", format.Name(), err)
		}
		return v, true, nil
	}
	return nil, false, nil
}

// leftover reports a volume whose own start was overwritten by something whose
// checksum is right: the device was put to another use, and the header behind
// its start is what remained.
func leftover(v *Volume, signatures []blockstack.Signature) bool {
	if len(signatures) == 0 || !signatures[0].Confirmed {
		return false
	}
	return v.Type == TypeLUKS2 && !slices.ContainsFunc(signatures, isLUKS)
}

func isLUKS(s blockstack.Signature) bool {
	return s.Class == blockstack.LUKS1 || s.Class == blockstack.LUKS2
}

func isFAT(class string) bool {
	return class == blockstack.FAT12 || class == blockstack.FAT16 || class == blockstack.FAT32
}

func describe(signatures []blockstack.Signature) (note string) {
	s := signatures[0]
	switch {
	case s.Broken:
		note = s.String() + ", checksum wrong"
	case s.Version != "":
		note = s.String()
	}
	for _, other := range signatures[1:] {
		if note != "" {
			note += "; "
		}
		note += "also signature of " + other.String()
	}
	return note
}

// The test for randomness. 64 KiB of random bytes have 7.997 bits of entropy per
// byte, give or take 0.0003.
const (
	entropySample = 64 << 10
	entropyBits   = 7.99
	// A random sector has 7.6 bits, give or take 0.03.
	sectorEntropyBits = 7.4
)

// opaque tells whether what no one recognises looks like ciphertext: at its
// start, or behind a start of zeroes, which is what wiping a header leaves, or
// in the first sector alone, where VeraCrypt has its header.
func opaque(p Place) (*Volume, error) {
	if p.Size < 2*disk.SectorSize || p.Size%disk.SectorSize != 0 {
		return nil, nil
	}
	v := &Volume{
		Type: TypeOpaque, Protectors: []Protector{},
		Unsupported: "random data without a header: may be VeraCrypt, plain dm-crypt, or LUKS whose header is elsewhere or was lost",
	}
	b := make([]byte, entropySample)
	first := b[:2*disk.SectorSize]
	if _, err := io.ReadFull(io.NewSectionReader(p.Data, 0, int64(len(first))), first); err != nil {
		return nil, fmt.Errorf("read sample: %w", err)
	}
	if entropy(first[:disk.SectorSize]) >= sectorEntropyBits && entropy(first[disk.SectorSize:]) == 0 {
		v.Warnings = []string{"one random sector at the start, as VeraCrypt's header is"}
		return v, nil
	}
	if p.Size < entropySample {
		return nil, nil
	}
	for quarter := range int64(4) {
		if _, err := io.ReadFull(io.NewSectionReader(p.Data, (p.Size-entropySample)/4*quarter, entropySample), b); err != nil {
			return nil, fmt.Errorf("read sample: %w", err)
		}
		h := entropy(b)
		if h >= entropyBits {
			if quarter > 0 {
				v.Warnings = []string{"the start is zero and random data follow: a header may have been wiped"}
			}
			return v, nil
		}
		if quarter == 0 && h > 0 {
			return nil, nil
		}
	}
	return nil, nil
}

// entropy is Shannon's, in bits per byte.
func entropy(b []byte) float64 {
	var count [256]int
	for _, c := range b {
		count[c]++
	}
	h := 0.0
	for _, n := range count {
		if n > 0 {
			p := float64(n) / float64(len(b))
			h -= p * math.Log2(p)
		}
	}
	return h
}
