package custody

import (
	"cmp"
	"fmt"
	"maps"
	"slices"

	"github.com/lockstep-backup/lockstep/blockstack"
	"github.com/lockstep-backup/lockstep/diskcrypt"
)

// History is what earlier recovery points of a machine say of its places: the
// newest header that opened something stood there. What was decrypted, or whose
// partition was taken away, is not in it any more. The zero value is the
// history of a first recovery point.
type History map[VolumeKey]Earlier

// Earlier is the header that a place had.
type Earlier struct {
	// Point is the newest recovery point that is still listed and has a header of
	// this volume key; "" where all were deleted.
	Point  string
	Volume diskcrypt.Volume
	// Length is that of the volume in bytes before its disk's end cut it off.
	Length int64
}

// Loss says what a place has lost since.
type Loss struct {
	Earlier Earlier
	Erased  bool // the header is there, without a key slot; otherwise it is gone
}

// HistoryOf folds what was found in recovery points, oldest first.
func HistoryOf(points ...[]DiskVolumes) History {
	var h History
	for _, p := range points {
		h = h.After(p)
	}
	return h
}

// After is the history behind a recovery point; h stays as it is. A recovery
// point that is not listed any more (it has no DiskVolumes.Point) tells what was
// there, but nobody can have a header from it.
func (h History) After(now []DiskVolumes) History {
	out := maps.Clone(h)
	if out == nil {
		out = History{}
	}
	for k, e := range h {
		if i := slices.IndexFunc(now, func(d DiskVolumes) bool { return d.Disk == k.Disk }); i >= 0 {
			if place, _ := now[i].look(e.at(k)); place == placeOther {
				delete(out, k)
			}
		}
	}
	for _, d := range now {
		for _, v := range d.Volumes {
			if !hasHeader(v) || erased(v) || v.Declared != nil { // nobody sees that a declared one has no header any more
				continue
			}
			k := VolumeKey{Disk: d.Disk, Volume: v.ID}
			e := Earlier{Volume: v, Length: max(v.Size(), h[k].uncut(v, d.Size))}
			if e.Point = d.Point; e.Point != "" {
				out[k] = e
				continue
			}
			if same, known := sameFingerprint(h[k].Volume.Epoch, v.Epoch); known && same {
				e.Point = h[k].Point
			}
			out[k] = e
		}
	}
	return out
}

// uncut is the length that a volume had before the end of its disk cut it off,
// 0 where it is whole.
func (e Earlier) uncut(v diskcrypt.Volume, diskSize int64) int64 {
	const sector = 4096 // the largest: a partition is cut at a whole one
	atEnd := diskSize > 0 && v.Range.End() > diskSize-sector
	if v.ID == diskcrypt.WholeDisk || v.Logical() || !atEnd || e.Volume.Range.Offset != v.Range.Offset || e.Length <= v.Size() {
		return 0
	}
	return e.Length
}

// Lost says what the place of a volume that was found has lost; nil = nothing.
func (h History) Lost(diskID string, v diskcrypt.Volume) *Loss {
	e, known := h[VolumeKey{Disk: diskID, Volume: v.ID}]
	switch {
	case hasHeader(v) && erased(v):
		l := Loss{Erased: true}
		if same, sure := sameFingerprint(e.Volume.Epoch, v.Epoch); known && sure && same {
			l.Earlier = e
		}
		return &l
	case known && !hasHeader(v):
		return &Loss{Earlier: e}
	}
	return nil
}

// Cut is how many bytes of a volume its disk's end cuts off.
func (h History) Cut(d DiskVolumes, v diskcrypt.Volume) int64 {
	if full := h[VolumeKey{Disk: d.Disk, Volume: v.ID}].uncut(v, d.Size); full > 0 {
		return full - v.Size()
	}
	return 0
}

// Missing are the volumes of a disk of which not even an opaque one is left in
// their place although nothing else was put there: header lost, or with it the
// partition table.
func (h History) Missing(d DiskVolumes) []Earlier {
	var out []Earlier
	for k, e := range h {
		if k.Disk != d.Disk || slices.ContainsFunc(d.Volumes, func(v diskcrypt.Volume) bool { return v.ID == k.Volume }) {
			continue
		}
		if place, _ := d.look(e.at(k)); place == placeBare {
			out = append(out, e)
		}
	}
	slices.SortFunc(out, func(a, b Earlier) int { return cmp.Compare(a.Volume.ID, b.Volume.ID) })
	return out
}

// place is what is where a volume with a header was.
type place int

const (
	placeHeader place = iota // a volume with a header, in its place or over it
	placeBare                // nothing that says what it is: zeroes, garbage, ciphertext without a header
	placeOther               // something plain, or the partition was taken away
)

// at is the volume under the name that the history keeps it by.
func (e Earlier) at(k VolumeKey) diskcrypt.Volume {
	e.Volume.ID = k.Volume
	return e.Volume
}

// look says what is at the place of a volume, and what stands there in words.
func (d DiskVolumes) look(was diskcrypt.Volume) (place, string) {
	id := was.ID
	bare := false
	for _, v := range d.Volumes {
		if v.ID != id && !v.Shares(was) {
			continue
		}
		if hasHeader(v) {
			return placeHeader, v.ID
		}
		bare = true
	}
	if bare {
		return placeBare, "random data without a header"
	}
	if was.Logical() {
		if p, class, known := d.lookLogical(id); known {
			return p, class
		}
	}
	table := false
	for _, a := range d.Areas {
		switch {
		case a.ID == id && a.Unread != "":
			return placeHeader, a.Class // who knows what it holds
		case a.ID == id && plain(a.Class):
			return placeOther, a.Class
		case a.ID == id, a.ID == diskcrypt.WholeDisk && !plain(a.Class):
			// With the partition table gone, what the whole disk shows is all there is.
			return placeBare, orText(a.Class, diskcrypt.ClassUnknown)
		case a.ID == diskcrypt.WholeDisk && a.Class != diskcrypt.ClassTable:
			return placeOther, a.Class
		case a.ID == diskcrypt.WholeDisk:
			table = true
		}
	}
	if !table && len(d.Areas) == 0 {
		return placeHeader, "" // nothing is known of the disk, so nothing follows
	}
	return placeOther, ""
}

// unread says that what is in a place could not be looked into.
func (d DiskVolumes) unread(id string) bool {
	return slices.ContainsFunc(d.Areas, func(a diskcrypt.Area) bool { return a.ID == id && a.Unread != "" })
}

// lookLogical is look for a logical volume without a header in its place. What
// the disk or the partition below it shows says nothing of it, while there is a
// physical volume; known: there is one.
func (d DiskVolumes) lookLogical(id string) (p place, class string, known bool) {
	group := false
	for _, a := range d.Areas {
		switch {
		case a.ID == id && a.Class == diskcrypt.ClassUnmapped:
			return placeHeader, a.Class, true // not to be had here, and not lost for that
		case a.ID == id && plain(a.Class):
			return placeOther, a.Class, true
		case a.ID == id:
			return placeBare, orText(a.Class, diskcrypt.ClassUnknown), true
		}
		group = group || diskcrypt.GroupOf(a.ID) == diskcrypt.GroupOf(id)
		known = known || a.Class == blockstack.LVM2
	}
	if group {
		return placeOther, "", true // the others of its group are there, so it was removed
	}
	return placeBare, "a physical volume whose group cannot be read", known
}

// plain says that the class names what uses the place. A bare table does not: it
// is the class of a disk none of whose partitions is there, deleted or cut off.
func plain(class string) bool {
	switch class {
	case "", diskcrypt.ClassUnknown, blockstack.Empty, blockstack.GPT, blockstack.MBR:
		return false
	}
	return true
}

// hasHeader says that the volume has a header of a known format that could be
// read; only such a header can be lost, and brought back.
func hasHeader(v diskcrypt.Volume) bool {
	return v.Type != diskcrypt.TypeOpaque && v.HeaderDigest != ""
}

// erased says that no key slot is left that opens the volume.
func erased(v diskcrypt.Volume) bool {
	if !isLUKS(v.Type) || v.HeaderDigest == "" || v.Epoch == "" || v.Conversion != "" || v.SelfOpening != "" {
		return false
	}
	return !slices.ContainsFunc(v.Protectors, func(p diskcrypt.Protector) bool {
		// Key slots that package luks names so hold another key than the volume's.
		return p.Kind != "unbound" && p.Kind != "reencryption-state"
	})
}

// The beginnings of reasons that tell apart what is to be done: a passphrase
// cannot help where no header is left that it could open. The CLI's advice and
// docs/spec/custody.md follow them.
const (
	ReasonHeaderLoss   = "header loss: "
	ReasonHeaderErased = "header erased: "
	ReasonUnsupported  = "cannot be opened by this version: "
)

// text says what was lost and how it comes back.
func (l Loss) text(diskID string) string {
	e := l.Earlier
	restore := ""
	if e.Point != "" {
		restore = fmt.Sprintf("restore it with `lockstep header export %s/%s/%s --to FILE`", e.Point, diskID, e.Volume.ID)
		switch {
		case e.Volume.Type == diskcrypt.TypeBitLocker: // no usual tool takes a file of it
			restore = fmt.Sprintf("restore it with `lockstep header restore %s/%s/%s --to TARGET --backup FILE`", e.Point, diskID, e.Volume.ID)
		case e.Volume.Detached:
			restore += " and keep it as the detached header"
		case isLUKS(e.Volume.Type):
			restore += " and cryptsetup luksHeaderRestore"
		default:
			restore += " and write it back to where it was"
		}
	}
	switch {
	case l.Erased && restore == "":
		return ReasonHeaderErased + "it has no key slot, and no listed recovery point has one of the same volume key"
	case l.Erased:
		return fmt.Sprintf(ReasonHeaderErased+"it has no key slot; recovery point %s has the header of the same volume key: %s", e.Point, restore)
	case restore == "":
		return ReasonHeaderLoss + "the header is gone, and the recovery points that had it were deleted"
	}
	return fmt.Sprintf(ReasonHeaderLoss+"the header is gone; recovery point %s has it: %s", e.Point, restore)
}
