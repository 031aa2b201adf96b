package lvm

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math"
	"slices"
	"strings"

	"github.com/lockstep-backup/lockstep/disk"
)

// ErrNotMapped says that a logical volume's bytes are not to be had: of a kind
// that is not read, on a physical volume that is missing, or damaged metadata.
var ErrNotMapped = errors.New("logical volume is not mapped")

// LV is a logical volume.
type LV struct {
	Name, UUID string
	VG         string
	Size       int64
	// Type is that of its segments: "striped" (linear as well), "raid1", "thin", …
	Type string

	vg       *VG
	segments []segment // without gaps, from 0 on
	problem  error
	depth    int // of logical volumes below it; where problem is nil
}

// segment is a stretch of a logical volume.
type segment struct {
	start, extents int64 // in extents of the group
	kind           string
	stripe         int64 // bytes
	areas          []area
	metas          []string // of raid1: the volumes with the legs' state
	leg            int      // of mirrors: which is read, once chosen

	origin, cow string // of a snapshot
	merging     bool
}

// area is a run of extents of a physical or a logical volume.
type area struct {
	pv     int // -1: lv
	lv     string
	extent int64
}

// Kinds of segments that are mapped; others are named and refused.
const (
	kindStriped = "striped"
	kindLinear  = "linear"
	kindMirror  = "mirror"
	kindRAID1   = "raid1"
	kindZero    = "zero"
)

const (
	maxLegs      = 64
	maxLVDepth   = 6 // a visible volume over pvmove over an image over a physical volume, and some
	maxStripeMul = 128
)

// areaExtents is how many extents of each of its areas a segment has.
func (s *segment) areaExtents() int64 {
	if s.kind == kindStriped || s.kind == kindLinear {
		return s.extents / int64(max(len(s.areas), 1))
	}
	return s.extents
}

// lv reads one logical volume of the text. What is merely not supported, or
// points outside, makes the volume a problem, not the group.
func (v *VG) lv(s *section, pvs map[string]int) (*LV, error) {
	l := &LV{Name: s.name, UUID: printed(s.text("id")), VG: v.Name, vg: v}
	if !validName(l.Name) {
		return nil, fmt.Errorf("%w: %q is no name of a logical volume", errText, clip(l.Name))
	}
	n, err := s.number("segment_count")
	if err != nil {
		return nil, err
	}
	if n > int64(len(s.sections)) {
		return nil, fmt.Errorf("%w: %s has fewer than %d segments", errText, l.Name, n)
	}
	for i := range n {
		sub := s.byName[fmt.Sprintf("segment%d", i+1)]
		if sub == nil {
			return nil, fmt.Errorf("%w: %s has no segment %d", errText, l.Name, i+1)
		}
		seg, err := readSegment(sub, pvs)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", l.Name, err)
		}
		l.segments = append(l.segments, seg)
	}
	slices.SortStableFunc(l.segments, func(a, b segment) int { return int(min(max(a.start-b.start, -1), 1)) })
	next := int64(0)
	for _, seg := range l.segments {
		if seg.start != next || seg.extents == 0 {
			return nil, fmt.Errorf("%w: the segments of %s have gaps or overlap", errText, l.Name)
		}
		if next, err = times(seg.start+seg.extents, 1); err != nil {
			return nil, err
		}
		if l.Type == "" || seg.kind != kindStriped {
			l.Type = seg.kind
		}
	}
	l.Size, err = times(next, v.ExtentSize)
	return l, err
}

func readSegment(s *section, pvs map[string]int) (g segment, err error) {
	kind, flags, _ := strings.Cut(s.text("type"), "+")
	if g.kind = clip(kind); g.kind == "" {
		return g, fmt.Errorf("%w: a segment has no type", errText)
	}
	for key, to := range map[string]*int64{"start_extent": &g.start, "extent_count": &g.extents} {
		if *to, err = s.number(key); err != nil {
			return g, err
		}
		if *to > math.MaxInt64/4 {
			return g, fmt.Errorf("%w: %d extents", errText, *to)
		}
	}
	if flags != "" {
		g.kind += "+" + clip(flags) // a kind of its own, and refused
		return g, nil
	}
	switch g.kind {
	case kindStriped, kindLinear:
		if err := g.pairs(s, "stripes", pvs); err != nil {
			return g, err
		}
		sectors, err := s.numberOr("stripe_size", 0)
		if err != nil {
			return g, err
		}
		g.stripe, err = times(sectors, sector)
		return g, err
	case kindMirror:
		return g, g.pairs(s, "mirrors", pvs)
	case kindRAID1:
		list := s.values["raids"]
		if len(list) == 0 || len(list)%2 != 0 || len(list) > 2*maxLegs {
			return g, fmt.Errorf("%w: a raid1 of %d volumes", errText, len(list))
		}
		for i := 0; i < len(list); i += 2 {
			g.metas = append(g.metas, list[i].text)
			g.areas = append(g.areas, area{pv: -1, lv: list[i+1].text})
		}
	case "snapshot":
		g.origin, g.cow = s.text("origin"), s.text("cow_store")
		if m := s.text("merging_store"); m != "" {
			g.cow, g.merging = m, true
		}
	}
	return g, nil
}

// pairs reads a list of names and first extents.
func (g *segment) pairs(s *section, key string, pvs map[string]int) error {
	list := s.values[key]
	if len(list) == 0 || len(list)%2 != 0 || len(list) > 2*maxStripeMul {
		return fmt.Errorf("%w: %d elements of %s", errText, len(list), key)
	}
	for i := 0; i < len(list); i += 2 {
		if !list[i].isText || list[i+1].isText || list[i+1].number < 0 || list[i+1].number > math.MaxInt64/4 {
			return fmt.Errorf("%w: %s", errText, key)
		}
		a := area{pv: -1, lv: list[i].text, extent: list[i+1].number}
		if n, ok := pvs[list[i].text]; ok {
			a.pv = n
		}
		g.areas = append(g.areas, a)
	}
	return nil
}

// refuse says why a volume is not mapped.
func refuse(format string, args ...any) error {
	return fmt.Errorf("%w: "+format, append([]any{ErrNotMapped}, args...)...)
}

// fail keeps the first reason why the volume is not mapped.
func (l *LV) fail(err error) {
	if l.problem == nil {
		l.problem = err
	}
}

// check follows a volume down to its physical volumes, chooses the legs of
// mirrors, and says why it cannot be mapped. Volumes that it passed are not
// followed again.
func (l *LV) check(path []*LV) error {
	if l.problem != nil {
		return l.problem
	}
	if l.depth > 0 {
		return nil
	}
	if slices.Contains(path, l) || len(path) >= maxLVDepth {
		return refuse("%s refers to itself, or is nested too deep", l.Name)
	}
	path = append(path, l)
	deepest := 0
	for i := range l.segments {
		s := &l.segments[i]
		switch s.kind {
		case kindZero:
		case kindStriped, kindLinear:
			if len(s.areas) > 1 {
				if n := int64(len(s.areas)); s.stripe == 0 || s.extents%n != 0 || s.extents/n*l.vg.ExtentSize%s.stripe != 0 {
					return refuse("the stripes of %s do not come out even", l.Name)
				}
			}
			for _, a := range s.areas {
				d, err := l.checkArea(a, s.areaExtents(), path)
				if err != nil {
					return err
				}
				deepest = max(deepest, d)
			}
		case kindMirror, kindRAID1:
			d, err := l.chooseLeg(s, path)
			if err != nil {
				return err
			}
			deepest = max(deepest, d)
		default:
			return refuse("it is of type %s, which is not read", s.kind)
		}
	}
	if deepest++; deepest > maxLVDepth {
		return refuse("%s is nested too deep", l.Name)
	}
	l.depth = deepest
	return nil
}

// checkArea says what is wrong with an area, and how deep what it refers to goes.
func (l *LV) checkArea(a area, extents int64, path []*LV) (depth int, err error) {
	if a.pv < 0 {
		sub := l.vg.all[a.lv]
		if sub == nil {
			return 0, refuse("there is no %q", clip(a.lv))
		}
		if err := sub.check(path); err != nil {
			sub.fail(err)
			return 0, err
		}
		if a.extent > sub.Size/l.vg.ExtentSize-extents {
			return 0, refuse("it goes beyond the end of %s", sub.Name)
		}
		return sub.depth, nil
	}
	m := l.vg.PVs[a.pv]
	if a.extent > m.extents-extents {
		return 0, refuse("it goes beyond the extents of %s", m.Name)
	}
	if m.PV == nil {
		return 0, refuse("physical volume %s is missing", m.words())
	}
	size := l.vg.ExtentSize
	if end := m.start + (a.extent+extents)*size; end > m.PV.Size {
		return 0, refuse("%s ends %d bytes before it does", m.PV.Name, end-m.PV.Size)
	}
	return 0, nil
}

// chooseLeg picks the leg of a mirror that is read: of those that are there the
// first that the array itself holds for current.
func (l *LV) chooseLeg(s *segment, path []*LV) (depth int, err error) {
	var problems []error
	states := make([]legState, len(s.areas))
	usable := make([]int, 0, len(s.areas))
	depths := make([]int, len(s.areas))
	for i, a := range s.areas {
		d, err := l.checkArea(a, s.extents, path)
		if err != nil {
			problems = append(problems, err)
			continue
		}
		depths[i] = d
		usable = append(usable, i)
		if i < len(s.metas) {
			states[i] = l.vg.legState(s.metas[i], path)
		}
	}
	if len(usable) == 0 {
		return 0, errors.Join(problems...)
	}
	// What the leg with the newest state says of the others is true.
	newest := usable[0]
	for _, i := range usable {
		if states[i].events > states[newest].events {
			newest = i
		}
	}
	s.leg = -1
	for _, i := range usable {
		failed := states[newest].known && states[newest].failed&(1<<i) != 0
		if !failed && !states[i].rebuilding && (!states[i].known || !states[newest].known || states[i].events == states[newest].events) {
			s.leg = i
			break
		}
	}
	if s.leg < 0 {
		s.leg = newest
		l.vg.warn("logical volume %s: no leg of the mirror is known to be current; leg %d is read", l.Name, s.leg)
	}
	return depths[s.leg], nil
}

// legState is what a leg of a raid1 says of the array (struct dm_raid_superblock of the kernel).
type legState struct {
	known      bool
	events     uint64
	failed     uint64 // bits of legs
	rebuilding bool
}

func (v *VG) legState(meta string, path []*LV) (s legState) {
	sub := v.all[meta]
	if sub == nil || sub.check(path) != nil {
		return s
	}
	b := make([]byte, sector)
	if n, _ := sub.ReadAt(b, 0); n < len(b) || string(b[:4]) != "DmRd" {
		return s
	}
	return legState{
		known: true, events: binary.LittleEndian.Uint64(b[16:]), failed: binary.LittleEndian.Uint64(b[24:]),
		rebuilding: binary.LittleEndian.Uint64(b[32:]) != math.MaxUint64,
	}
}

// Problem says why the volume is not mapped, nil where it is.
func (l *LV) Problem() error { return l.problem }

// DeviceName is the device mapper's name: "vg-lv".
func (l *LV) DeviceName() string { return DeviceName(l.VG, l.Name) }

// piece is a run of a volume's bytes: of a physical volume, or zeroes (pv nil).
type piece struct {
	member         int // of VG.PVs
	pv             *PV
	offset, length int64
}

// at finds where the bytes from off on are. Off is within the volume, which is mapped.
func (l *LV) at(off int64) piece {
	size := l.vg.ExtentSize
	i, found := slices.BinarySearchFunc(l.segments, off/size, func(s segment, e int64) int { return int(min(max(s.start-e, -1), 1)) })
	if !found {
		i--
	}
	s := &l.segments[i]
	off -= s.start * size
	left := s.extents*size - off
	if s.kind == kindZero {
		return piece{length: left}
	}
	a := s.areas[0]
	switch {
	case s.kind == kindMirror || s.kind == kindRAID1:
		a = s.areas[s.leg]
	case len(s.areas) > 1:
		chunk, in := off/s.stripe, off%s.stripe
		n := int64(len(s.areas))
		a = s.areas[chunk%n]
		off, left = chunk/n*s.stripe+in, s.stripe-in
	}
	off += a.extent * size
	if a.pv < 0 {
		p := l.vg.all[a.lv].at(off)
		p.length = min(p.length, left)
		return p
	}
	m := l.vg.PVs[a.pv]
	return piece{member: a.pv, pv: m.PV, offset: m.start + off, length: left}
}

// ReadAt reads the volume over all of its physical volumes.
func (l *LV) ReadAt(p []byte, off int64) (n int, err error) {
	if l.problem != nil {
		return 0, fmt.Errorf("read logical volume %s: %w", l.Name, l.problem)
	}
	if off < 0 {
		return 0, fmt.Errorf("read logical volume %s: offset %d", l.Name, off)
	}
	for n < len(p) && off+int64(n) < l.Size {
		w := l.at(off + int64(n))
		part := p[n : n+int(min(int64(len(p)-n), w.length))]
		if w.pv == nil {
			clear(part)
			n += len(part)
			continue
		}
		got, err := w.pv.R.ReadAt(part, w.offset)
		n += got
		if got < len(part) {
			if err == nil || errors.Is(err, io.EOF) {
				err = io.ErrUnexpectedEOF
			}
			return n, fmt.Errorf("read logical volume %s: %w", l.Name, err)
		}
	}
	if n < len(p) {
		return n, io.EOF
	}
	return n, nil
}

// Extent is a run of a logical volume's bytes on one of its group's physical volumes.
type Extent struct {
	PV *PV
	disk.Range
}

// ErrScattered says that a volume has more extents than were asked for.
var ErrScattered = errors.New("it is scattered over too many places")

// Extents are where the volume's bytes are, in its order, neighbours joined, at
// most limit of them. ErrNotMapped where it is not, or is zeroes in part.
func (l *LV) Extents(limit int) ([]Extent, error) {
	if l.problem != nil {
		return nil, l.problem
	}
	var out []Extent
	for off, pieces := int64(0), 0; off < l.Size; pieces++ {
		w := l.at(off)
		if w.pv == nil {
			return nil, refuse("it is zeroes in part, which are nowhere")
		}
		off += w.length
		if n := len(out); n > 0 && out[n-1].PV == w.pv && out[n-1].End() == w.offset {
			out[n-1].Length += w.length
		} else {
			out = append(out, Extent{w.pv, disk.Range{Offset: w.offset, Length: w.length}})
		}
		if len(out) > limit || pieces > 4*limit {
			return nil, fmt.Errorf("%w: more than %d", ErrScattered, limit)
		}
	}
	return out, nil
}

// Devices are the physical volumes that the volume has bytes on, by the names
// their caller gave, and the ids of those that are missing.
func (l *LV) Devices() (names, missing []string) {
	seen := map[*LV]bool{}
	var walk func(*LV)
	walk = func(l *LV) {
		if seen[l] {
			return
		}
		seen[l] = true
		for _, s := range l.segments {
			for _, a := range s.areas {
				switch {
				case a.pv < 0 && l.vg.all[a.lv] != nil:
					walk(l.vg.all[a.lv])
				case a.pv >= 0 && l.vg.PVs[a.pv].PV != nil:
					names = append(names, l.vg.PVs[a.pv].PV.Name)
				case a.pv >= 0:
					missing = append(missing, l.vg.PVs[a.pv].UUID)
				}
			}
		}
	}
	walk(l)
	slices.Sort(names)
	slices.Sort(missing)
	return slices.Compact(names), slices.Compact(missing)
}
