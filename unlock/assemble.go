package unlock

import (
	"slices"

	"github.com/lockstep-backup/lockstep/blockstack"
	"github.com/lockstep-backup/lockstep/blockstack/lvm"
)

// members are the devices that are put together to others.
type members struct {
	seen int // devices that were looked at
	pvs  []*lvm.PV
	at   map[string]int  // devices of physical volumes, by PV.Name
	lvs  map[string]bool // that are devices, by group's and own name
}

// assemble puts together what lies on several devices, and says whether that
// gave anything new. Where it did not, that was the last time.
func (w *walker) assemble() (more bool) {
	m := &w.members
	for ; m.seen < len(w.tree.Devices); m.seen++ {
		d := w.at(m.seen)
		if d.Class != blockstack.LVM2 {
			continue
		}
		p, err := lvm.ReadPV(d.R, d.Size, d.place())
		if err != nil {
			w.warn("%s: %v", d.place(), err)
			continue
		}
		for _, damage := range p.Damage {
			w.warn("%s: %s", d.place(), damage)
		}
		m.at[p.Name] = m.seen
		m.pvs = append(m.pvs, p)
	}
	all := lvm.Assemble(m.pvs)
	warnings := all.Warnings
	for _, vg := range all.VGs {
		warnings = append(warnings, vg.Warnings...)
		for _, l := range vg.LVs {
			key := vg.UUID + "/" + l.Name
			if l.Problem() != nil {
				warnings = append(warnings, l.DeviceName()+": "+l.Problem().Error())
			}
			if l.Problem() != nil || m.lvs[key] {
				continue
			}
			m.lvs[key] = true
			more = w.addLogical(l) || more
		}
	}
	if !more {
		w.tree.Warnings = append(w.tree.Warnings, warnings...)
	}
	return more
}

func (w *walker) addLogical(l *lvm.LV) bool {
	names, _ := l.Devices()
	var parents []int
	for _, name := range names {
		if i, ok := w.members.at[name]; ok && !slices.Contains(parents, i) {
			parents = append(parents, i)
		}
	}
	if len(parents) == 0 {
		return false // zeroes only
	}
	return w.add(Device{
		Disk: w.at(parents[0]).Disk, Name: l.DeviceName(), Kind: KindLogical, Parents: parents, R: l, Size: l.Size,
	}, true) >= 0
}
