package diskcrypt

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/lockstep-backup/lockstep/blockstack"
	"github.com/lockstep-backup/lockstep/blockstack/lvm"
	"github.com/lockstep-backup/lockstep/blockstack/mdraid"
	"github.com/lockstep-backup/lockstep/disk"
)

// Logical says that the ID is that of a logical volume.
func (v Volume) Logical() bool { return IsLogical(v.ID) }

// IsLogical says that a volume's or an area's ID is that of a logical volume:
// the device mapper's name, which joins group and volume by a hyphen.
func IsLogical(id string) bool { return strings.Contains(id, "-") }

// GroupOf is the part of a logical volume's ID that its group's other volumes
// share, hyphen included; "" where it is no such ID.
func GroupOf(id string) string {
	for i := 0; i < len(id); i++ {
		if id[i] != '-' {
			continue
		}
		if i+1 == len(id) || id[i+1] != '-' {
			return id[:i+1]
		}
		i++ // doubled: part of the group's name
	}
	return ""
}

// physical is a physical volume among the areas.
type physical struct {
	pv *lvm.PV
	at disk.Range
}

// physicalVolume keeps a physical volume for when its group is put together.
func (f *finder) physicalVolume(at Volume, area *Area) error {
	if at.Extents != nil || at.Logical() {
		area.Unread = "a physical volume inside a logical volume"
		f.warn("%s: a physical volume inside a logical volume: not looked into, and may hold encrypted volumes", at.ID)
		return nil
	}
	pv, err := lvm.ReadPV(PlaceOf(f.r, at), at.Range.Length, at.ID)
	if errors.Is(err, lvm.ErrNotPV) {
		area.Unread = "the label of the physical volume is damaged"
		f.warn("%s: the label of the physical volume is damaged: its logical volumes are not found", at.ID)
		return nil
	}
	if err != nil {
		return err
	}
	f.pvs = append(f.pvs, physical{pv, at.Range})
	for _, d := range pv.Damage {
		f.warn("%s: physical volume: %s", at.ID, d)
	}
	if pv.Text != nil {
		area.Note = joinNotes("volume group "+pv.Text.VG, area.Note)
	}
	return nil
}

func joinNotes(notes ...string) string {
	return strings.Join(slices.DeleteFunc(notes, func(s string) bool { return s == "" }), "; ")
}

// volumeGroups looks at the logical volumes of the groups on this disk.
func (f *finder) volumeGroups(ctx context.Context) error {
	var pvs []*lvm.PV
	for _, p := range f.pvs {
		pvs = append(pvs, p.pv)
	}
	all := lvm.Assemble(pvs)
	for _, w := range all.Warnings {
		f.warn("%s", w)
	}
	for _, p := range f.pvs {
		if i := slices.IndexFunc(f.report.Areas, func(a Area) bool { return a.ID == p.pv.Name }); i >= 0 && p.pv.Lost != "" {
			f.report.Areas[i].Unread = p.pv.Lost
		}
	}
	looked := 0
	for _, vg := range all.VGs {
		for _, w := range vg.Warnings {
			f.warn("volume group %s: %s", vg.Name, w)
		}
		if vg.Exported {
			f.warn("volume group %s is exported: no machine activates it before vgimport", vg.Name)
		}
		if vg.SystemID != "" || vg.LockType != "" {
			f.warn("volume group %s is shared or has an owner (system id %q, lock type %q)", vg.Name, vg.SystemID, vg.LockType)
		}
		for _, lv := range vg.LVs {
			if looked++; looked > maxAreas {
				f.warn("only the first %d logical volumes were looked into", maxAreas)
				return nil
			}
			if err := f.logicalVolume(ctx, vg, lv); err != nil {
				return fmt.Errorf("logical volume %s: %w", lv.DeviceName(), err)
			}
		}
	}
	return nil
}

func (f *finder) logicalVolume(ctx context.Context, vg *lvm.VG, lv *lvm.LV) error {
	at := Volume{ID: lv.DeviceName()}
	if slices.ContainsFunc(f.report.Areas, func(a Area) bool { return a.ID == at.ID }) {
		// Two groups of one name, as clones of a disk have.
		other := at.ID + "." + vg.UUID[:6]
		f.warn("there are two logical volumes %s; the one of group %s is called %s", at.ID, vg.UUID, other)
		at.ID = other
	}
	extents, err := lv.Extents(MaxExtents)
	if err != nil {
		f.warn("%s: %v; it may be encrypted", at.ID, err)
		f.report.Areas = append(f.report.Areas, Area{ID: at.ID, Class: ClassUnmapped, Unread: err.Error()})
		return nil
	}
	if len(extents) == 0 {
		return nil // a volume of no size
	}
	first, last := int64(-1), int64(0)
	for _, e := range extents {
		i := slices.IndexFunc(f.pvs, func(p physical) bool { return p.pv == e.PV })
		r := disk.Range{Offset: f.pvs[i].at.Offset + e.Offset, Length: e.Length}
		at.Extents = append(at.Extents, r)
		if first < 0 || r.Offset < first {
			first = r.Offset
		}
		last = max(last, r.End())
	}
	at.Range = disk.Range{Offset: first, Length: last - first}
	if len(at.Extents) == 1 {
		at.Extents = nil // Range says it all
	}
	return f.lookAt(ctx, at)
}

// intoMirror narrows a place that is a member of a RAID1 to its data: what the
// array holds is there, whole. It returns what to say of the member, and why its
// content was not looked into; other members stay as they are.
func (f *finder) intoMirror(ctx context.Context, at *Volume) (note, unread string, err error) {
	outer := PlaceOf(f.r, *at)
	m, err := mdraid.Read(outer, at.Size())
	if err != nil {
		// Damaged ones blockstack names; a bad sector at the end hinders nothing else.
		return "", "", nil
	}
	if m.Data.Offset > 0 {
		// Such a superblock lies where a header would be that came after it.
		_, sound, err := f.inspect(ctx, Place{Data: outer, Size: at.Size()})
		if err != nil {
			return "", "", err
		}
		if sound {
			f.warn("%s: the remains of an md superblock (%s)", at.ID, m.Version)
			return "", "", nil
		}
	}
	note = fmt.Sprintf("member of md %s, version %s, array %s", m.LevelName(), m.Version, m.UUID)
	if !m.Mirror() {
		why := m.Unusual
		switch {
		case m.Level != 1:
			why = "only members of a RAID1 are read by themselves"
		case why == "":
			why = "it is a spare, or has failed"
		}
		f.warn("%s: %s: what the array holds is not looked into, and may be encrypted: %s", at.ID, note, why)
		return note, why, nil
	}
	if at.Extents != nil {
		f.warn("%s: %s: in a logical volume in pieces, and not looked into; may be encrypted", at.ID, note)
		return note, "a member of an array in a logical volume in pieces", nil
	}
	inner := *at
	inner.Range = disk.Range{Offset: at.Range.Offset + m.Data.Offset, Length: m.Data.Length}
	*at = inner
	signatures, err := blockstack.Identify(PlaceOf(f.r, inner), inner.Range.Length)
	if err != nil {
		return "", "", err
	}
	if len(signatures) > 0 && (signatures[0].Class == blockstack.GPT || signatures[0].Class == blockstack.MBR) {
		f.warn("%s: %s: it holds a partition table, and the partitions are not looked into; they may be encrypted", at.ID, note)
		unread = "a partition table inside an array"
	}
	return note, unread, nil
}
