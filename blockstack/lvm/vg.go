package lvm

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
)

// VG is a volume group as its newest metadata describes it.
type VG struct {
	Name, UUID string
	SeqNo      int64
	ExtentSize int64 // bytes
	// Exported: vgexport was run, and no machine activates it.
	Exported bool
	// SystemID is that of the host that owns it, LockType how hosts share it; "" mostly.
	SystemID, LockType string
	PVs                []Member
	// LVs are those that a user sees, by name; what LVM makes up for itself is not here.
	LVs []*LV
	// Warnings: physical volumes that are missing, metadata that is old or damaged.
	Warnings []string

	all map[string]*LV // with the hidden ones
}

// Member is a physical volume of a group.
type Member struct {
	Name, UUID string // Name is that in the metadata: "pv0"
	Device     string // where it was when the metadata was written, a hint
	Missing    bool
	PV         *PV // nil where it is missing

	start, extents int64 // bytes to the first extent; their number
}

// Assembled is what physical volumes make up.
type Assembled struct {
	VGs []*VG
	// Warnings belong to no group: a physical volume that is there twice, one
	// whose group's metadata cannot be read.
	Warnings []string
}

// Assemble puts volume groups together from the physical volumes that are
// there. Groups of which nobody has metadata are not found.
func Assemble(pvs []*PV) Assembled {
	var out Assembled
	byID := map[string]*PV{}
	newest := map[string]*Metadata{} // by the group's id
	var order []string
	for _, p := range pvs {
		if p.UUID != "" {
			if first := byID[p.UUID]; first != nil {
				out.warn("%s and %s are the same physical volume %s, the first counts", first.Name, p.Name, p.UUID)
				p.Lost = "a copy of the physical volume in " + first.Name
				continue
			}
			byID[p.UUID] = p
		}
		if p.Text == nil {
			continue
		}
		id := p.Text.vg.text("id")
		if have := newest[id]; have == nil {
			newest[id] = p.Text
			order = append(order, id)
		} else if p.Text.SeqNo > have.SeqNo {
			newest[id] = p.Text
		}
	}
	used := map[*PV]bool{}
	for _, id := range order {
		vg, err := readVG(newest[id], byID)
		if err != nil {
			out.warn("volume group %s: %v", newest[id].VG, err)
			for _, p := range pvs {
				if p.Text != nil && p.Text.vg.text("id") == id {
					p.Lost = err.Error()
				}
			}
			continue
		}
		for _, m := range vg.PVs {
			if m.PV == nil {
				continue
			}
			used[m.PV] = true
			if t := m.PV.Text; t != nil && (t.vg.text("id") != id || t.SeqNo != vg.SeqNo) {
				vg.warn("%s has older metadata than the group: version %d of %s, the newest is %d", m.PV.Name, t.SeqNo, t.VG, vg.SeqNo)
			}
		}
		out.VGs = append(out.VGs, vg)
	}
	for _, p := range pvs {
		if used[p] || p.UUID != "" && byID[p.UUID] != p {
			continue
		}
		switch {
		case p.Text != nil && slices.ContainsFunc(out.VGs, func(v *VG) bool { return v.UUID == p.Text.vg.text("id") }):
			out.warn("%s is not in volume group %s any more", p.Name, p.Text.VG)
		case p.Text == nil && p.unreadable:
			p.Lost = "the volume group's metadata cannot be read"
			out.warn("%s: the volume group's metadata cannot be read: its logical volumes are not found", p.Name)
		case p.Text == nil && p.Areas == 0:
			p.Lost = "it has no metadata: what its volume group has on it is described elsewhere"
			out.warn("%s: %s", p.Name, p.Lost)
		}
	}
	return out
}

func (a *Assembled) warn(format string, args ...any) {
	a.Warnings = append(a.Warnings, fmt.Sprintf(format, args...))
}

func (v *VG) warn(format string, args ...any) {
	v.Warnings = append(v.Warnings, fmt.Sprintf(format, args...))
}

// readVG makes a group of its metadata and the physical volumes that are there.
func readVG(m *Metadata, have map[string]*PV) (*VG, error) {
	v := &VG{
		Name: m.VG, SeqNo: m.SeqNo, UUID: m.vg.text("id"), all: map[string]*LV{}, Exported: m.vg.has("status", "EXPORTED"),
		SystemID: clip(m.vg.text("system_id")), LockType: clip(m.vg.text("lock_type")),
	}
	if printed(v.UUID) != v.UUID {
		return nil, fmt.Errorf("%w: the group's id is none", errText)
	}
	size, err := m.vg.number("extent_size")
	if err != nil {
		return nil, err
	}
	if size == 0 {
		return nil, fmt.Errorf("%w: extents of no size", errText)
	}
	if v.ExtentSize, err = times(size, sector); err != nil {
		return nil, err
	}
	var missing []string
	pvs := map[string]int{}
	if list := m.vg.byName["physical_volumes"]; list != nil {
		for _, s := range list.sections {
			pv, err := v.member(s, have)
			if err != nil {
				return nil, err
			}
			pvs[s.name] = len(v.PVs)
			v.PVs = append(v.PVs, pv)
			if pv.PV == nil {
				missing = append(missing, pv.words())
			}
		}
	}
	if len(missing) > 0 {
		v.warn("physical volumes are missing: %s", strings.Join(missing, ", "))
	}
	if list := m.vg.byName["logical_volumes"]; list != nil {
		for _, s := range list.sections {
			lv, err := v.lv(s, pvs)
			if err != nil {
				return nil, err
			}
			v.all[lv.Name] = lv
			if s.has("status", "VISIBLE") {
				v.LVs = append(v.LVs, lv)
			}
		}
	}
	v.snapshots()
	v.overlaps()
	for _, name := range v.names() {
		lv := v.all[name]
		lv.fail(lv.check(nil))
	}
	slices.SortFunc(v.LVs, func(a, b *LV) int { return cmp.Compare(a.Name, b.Name) })
	return v, nil
}

// member reads one physical volume of the text.
func (v *VG) member(s *section, have map[string]*PV) (Member, error) {
	m := Member{Name: clip(s.name), UUID: printed(s.text("id")), Device: clip(s.text("device"))}
	if m.UUID == "" {
		return m, fmt.Errorf("%w: the id of %s is none", errText, m.Name)
	}
	if slices.ContainsFunc(v.PVs, func(o Member) bool { return o.UUID == m.UUID }) {
		return m, fmt.Errorf("%w: two physical volumes with the id %s", errText, m.UUID)
	}
	start, err := s.number("pe_start")
	if err != nil {
		return m, err
	}
	if m.start, err = times(start, sector); err != nil {
		return m, err
	}
	if m.extents, err = s.number("pe_count"); err != nil {
		return m, err
	}
	if _, err = times(m.extents, v.ExtentSize); err != nil {
		return m, err
	}
	m.PV = have[m.UUID]
	m.Missing = m.PV == nil
	return m, nil
}

// words name a physical volume that is not there.
func (m Member) words() string {
	if m.Device == "" {
		return m.UUID
	}
	return fmt.Sprintf("%s (was %q)", m.UUID, m.Device)
}

// snapshots marks what the old kind of snapshot makes of other volumes: its
// exceptions are no image of anything, and an origin that is being merged into
// is none either.
func (v *VG) snapshots() {
	for _, name := range v.names() {
		for _, s := range v.all[name].segments {
			if s.kind != "snapshot" {
				continue
			}
			if cow := v.all[s.cow]; cow != nil {
				cow.fail(refuse("it is a snapshot of %s, which is not put together here", clip(s.origin)))
			}
			if origin := v.all[s.origin]; origin != nil && s.merging {
				origin.fail(refuse("snapshot %s is being merged into it", clip(s.cow)))
			}
		}
	}
}

// overlaps marks logical volumes that claim the same extents as another, or
// twice: one of them is wrong, and nobody knows which.
func (v *VG) overlaps() {
	type claim struct {
		pv          int
		from, until int64
		lv          *LV
	}
	var claims []claim
	for _, name := range v.names() {
		lv := v.all[name]
		for _, s := range lv.segments {
			for _, a := range s.areas {
				if a.pv >= 0 {
					claims = append(claims, claim{a.pv, a.extent, a.extent + s.areaExtents(), lv})
				}
			}
		}
	}
	slices.SortStableFunc(claims, func(a, b claim) int { return cmp.Or(cmp.Compare(a.pv, b.pv), cmp.Compare(a.from, b.from)) })
	var last claim
	for i, c := range claims {
		if i > 0 && c.pv == last.pv && c.from < last.until {
			pv := v.PVs[c.pv].Name
			c.lv.fail(refuse("it and %s have the same extents of %s", last.lv.Name, pv))
			last.lv.fail(refuse("it and %s have the same extents of %s", c.lv.Name, pv))
		}
		if i == 0 || c.pv != last.pv || c.until > last.until {
			last = c
		}
	}
}

func (v *VG) names() []string {
	names := make([]string, 0, len(v.all))
	for n := range v.all {
		names = append(names, n)
	}
	slices.Sort(names)
	return names
}
