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
)

// Area is a part of a disk that was looked at: the disk itself or a partition.
type Area struct {
	ID    string     `json:"id"` // as Volume.ID
	Range disk.Range `json:"range"`
	// Class is the type of the volume there, or what blockstack recognised, e.g. "ext4", "swap", "empty".
	Class string `json:"class"`
	Note  string `json:"note,omitempty"`
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

// maxAreas bounds the partitions that are looked into.
const maxAreas = 512

// Find looks at a disk and at each of its partitions: what is encrypted there,
// by which of the formats it opens, and what the rest is. Encryption that is
// recognised and that no format reads becomes a Volume with Unsupported set.
// An error means that the disk could not be read; damage is in the report.
func Find(ctx context.Context, r io.ReaderAt, size int64, opts FindOptions) (*Report, error) {
	rep := &Report{Volumes: []Volume{}, Areas: []Area{}}
	f := finder{report: rep, opts: opts, r: r}
	defer f.missedDeclarations()
	if _, ok := opts.Detached[WholeDisk]; ok || f.declaredWhole() {
		// The header outside, or the user, says that this is ciphertext from the
		// first byte on; whatever looks like a table in it is chance or a leftover.
		if err := f.look(ctx, WholeDisk, disk.Range{Length: size}); err != nil {
			return nil, fmt.Errorf("inspect disk: %w", err)
		}
		rep.Layout = disk.Layout{Table: disk.TableNone, SectorSize: disk.SectorSize}
		return rep, f.missedHeaders()
	}
	layout, err := disk.ReadLayout(r, size)
	if err != nil {
		return nil, fmt.Errorf("inspect disk: %w", err)
	}
	rep.Layout = layout
	rep.Warnings = append(rep.Warnings, layout.Warnings...)
	whole := disk.Range{Length: size}
	if layout.Table == disk.TableNone {
		if err := f.look(ctx, WholeDisk, whole); err != nil {
			return nil, fmt.Errorf("inspect disk: %w", err)
		}
		return rep, f.missedHeaders()
	}
	covered, err := f.lookAtWhole(ctx, whole)
	if err != nil {
		return nil, fmt.Errorf("inspect disk: %w", err)
	}
	if covered {
		return rep, f.missedHeaders()
	}
	for i, p := range layout.Partitions {
		if i == maxAreas {
			rep.Warnings = append(rep.Warnings, fmt.Sprintf("only the first %d of %d partitions were looked into", maxAreas, len(layout.Partitions)))
			break
		}
		if err := f.look(ctx, fmt.Sprintf("p%d", p.Number), p.Range); err != nil {
			return nil, fmt.Errorf("inspect disk: partition %d: %w", p.Number, err)
		}
	}
	return rep, f.missedHeaders()
}

type finder struct {
	report *Report
	opts   FindOptions
	r      io.ReaderAt
	used   []string // detached headers that found their volume

	declaredSeen []string // declarations that found their place
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
	if err := ctx.Err(); err != nil {
		return err
	}
	place := Place{Data: io.NewSectionReader(f.r, rng.Offset, rng.Length), Size: rng.Length}
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
	area := Area{ID: id, Range: rng, Class: ClassUnknown}
	switch {
	case v != nil:
		v.ID, v.Range = id, rng
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
