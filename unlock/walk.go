package unlock

import (
	"context"
	"errors"
	"fmt"
	"regexp"
	"slices"

	"github.com/lockstep-backup/lockstep/blockstack"
	"github.com/lockstep-backup/lockstep/disk"
	"github.com/lockstep-backup/lockstep/diskcrypt"
)

// What is looked into at most. A real machine has a handful of each.
const (
	maxDepth   = 8
	maxDevices = 2048
	maxOpened  = 128
)

// Open opens what keys open of the disks, and all that lies in it. That a volume
// is locked, or something is damaged, is in the tree; an error is the context's.
func Open(ctx context.Context, disks []Disk, keys Keys, o Options) (*Tree, error) {
	w := walker{ctx: ctx, tree: &Tree{}, keys: keys, o: o, disks: map[string]*Disk{}, names: map[[2]string]bool{}}
	w.members.at, w.members.lvs = map[string]int{}, map[string]bool{}
	for i := range disks {
		d := &disks[i]
		w.disks[d.ID] = d
		w.add(Device{Disk: d.ID, Name: diskcrypt.WholeDisk, Kind: KindDisk, R: d.R, Size: d.Size}, true)
	}
	if err := w.run(); err != nil {
		return nil, fmt.Errorf("unlock: %w", errors.Join(err, w.tree.Close()))
	}
	return w.tree, nil
}

type walker struct {
	ctx   context.Context
	tree  *Tree
	keys  Keys
	o     Options
	disks map[string]*Disk
	names map[[2]string]bool
	scan  []int // devices that may have parts
	full  bool  // more devices than are kept

	members members
}

func (w *walker) run() error {
	for {
		for len(w.scan) > 0 {
			i := w.scan[0]
			w.scan = w.scan[1:]
			if err := w.look(i); err != nil {
				return err
			}
		}
		// What is put together of several devices waits for those that were
		// still to be opened.
		if !w.assemble() {
			return w.ctx.Err()
		}
	}
}

func (w *walker) warn(format string, args ...any) {
	w.tree.Warnings = append(w.tree.Warnings, fmt.Sprintf(format, args...))
}

func (w *walker) at(i int) *Device { return &w.tree.Devices[i] }

// place is where a device is, for people.
func (d *Device) place() string {
	if d.Name == diskcrypt.WholeDisk {
		return d.Disk
	}
	return d.Disk + "/" + d.Name
}

// add adds a device, and has it looked into where it is not known yet what it
// is. -1: there are enough.
func (w *walker) add(d Device, look bool) int {
	for _, p := range d.Parents {
		d.depth = max(d.depth, w.at(p).depth+1)
		d.Decrypted = d.Decrypted || w.at(p).Decrypted
	}
	if len(w.tree.Devices) == maxDevices || d.depth > maxDepth {
		if !w.full {
			w.warn("%s: what lies deeper, or behind the first %d devices, was not looked into", d.place(), maxDevices)
		}
		w.full = true
		return -1
	}
	if d.Class == "" {
		d.Class = diskcrypt.ClassUnknown
	}
	// A plaintext has the name of its volume, an array that of its member; what
	// else has one that is taken, on disks that were tampered with, gets another.
	if !inPlace(d) {
		name := d.Name
		for n := 2; w.names[[2]string{d.Disk, d.Name}]; n++ {
			d.Name = fmt.Sprintf("%s#%d", name, n)
		}
		w.names[[2]string{d.Disk, d.Name}] = true
	}
	i := len(w.tree.Devices)
	w.tree.Devices = append(w.tree.Devices, d)
	if look {
		w.scan = append(w.scan, i)
	}
	return i
}

// inPlace: it is what another device holds, all of it.
func inPlace(d Device) bool {
	return d.Kind != KindDisk && d.Kind != KindPartition && d.Kind != KindLogical
}

// partition matches the areas of a report that are partitions.
var partition = regexp.MustCompile(`^p[0-9]{1,9}$`)

// look finds the parts of a device and opens what is encrypted of them.
func (w *walker) look(i int) error {
	if err := w.ctx.Err(); err != nil {
		return err
	}
	d := *w.at(i)
	known := w.known(d)
	rep, err := diskcrypt.Find(w.ctx, d.R, d.Size, diskcrypt.FindOptions{Formats: w.o.Formats, Detached: w.detached(d, known)})
	if w.ctx.Err() != nil {
		return w.ctx.Err()
	}
	if err != nil {
		w.warn("%s: %v", d.place(), err)
		rep = &diskcrypt.Report{}
	}
	for _, warning := range rep.Warnings {
		w.warn("%s: %s", d.place(), warning)
	}
	parts := w.merge(d, rep, known)
	for _, p := range parts {
		child := Device{Disk: d.Disk, Name: d.Name, Class: p.class, Parents: []int{i}, R: part(d, p.rng), Size: p.rng.Length}
		at := i
		switch {
		case p.id != diskcrypt.WholeDisk:
			child.Name, child.Kind = inside(d.Name, p.id), KindPartition
			at = w.add(child, false)
		case p.rng != disk.Range{Length: d.Size}:
			w.at(i).Class, child.Kind = blockstack.MDRaid, KindArray
			at = w.add(child, p.volume == nil)
		default:
			w.at(i).Class = p.class
		}
		if at < 0 {
			return nil
		}
		if p.volume != nil {
			if err := w.open(at, *p.volume, p.known); err != nil {
				return err
			}
		}
	}
	return nil
}

// inside is the name of a part of what is at name.
func inside(name, id string) string {
	if name == diskcrypt.WholeDisk {
		return id
	}
	return name + "." + id
}

// known are the volumes that lie on a device for certain.
func (w *walker) known(d Device) []diskcrypt.Volume {
	all := w.disks[d.Disk].Volumes
	switch d.Kind {
	case KindDisk:
		return all
	case KindLogical:
		if i := slices.IndexFunc(all, func(v diskcrypt.Volume) bool { return v.ID == d.Name }); i >= 0 && !d.Decrypted {
			v := all[i]
			v.ID, v.Range, v.Extents = diskcrypt.WholeDisk, disk.Range{Length: d.Size}, nil
			return []diskcrypt.Volume{v}
		}
	}
	return nil
}

// stored are the headers of a device's volume that lie elsewhere.
func (w *walker) stored(d Device) []Header {
	if h := w.disks[d.Disk].Headers; h != nil {
		return h(d.Name)
	}
	return nil
}

func (w *walker) detached(d Device, known []diskcrypt.Volume) map[string]diskcrypt.Header {
	out := map[string]diskcrypt.Header{}
	for _, v := range known {
		if !v.Detached || v.Extents != nil {
			continue
		}
		at := d
		if d.Kind == KindDisk {
			at.Name = v.ID
		}
		if h := w.stored(at); len(h) > 0 {
			out[v.ID] = diskcrypt.Header{R: h[0].R, Size: h[0].Size}
		}
	}
	return out
}

// found is a part of a device: the device itself, or a partition.
type found struct {
	id     string
	rng    disk.Range
	class  string
	volume *diskcrypt.Volume
	known  bool
}

// merge puts together what is known and what was found. What is known counts;
// volumes of LVM and arrays are seen when those are put together.
func (w *walker) merge(d Device, rep *diskcrypt.Report, known []diskcrypt.Volume) []found {
	var out []found
	put := func(f found) {
		if i := slices.IndexFunc(out, func(o found) bool { return o.id == f.id }); i >= 0 {
			out[i] = f
			return
		}
		out = append(out, f)
	}
	for _, a := range rep.Areas {
		if a.ID == diskcrypt.WholeDisk || partition.MatchString(a.ID) {
			if d.Decrypted && a.Class == diskcrypt.TypeOpaque {
				a.Class = diskcrypt.ClassUnknown // what was never written, not one more volume
			}
			put(found{id: a.ID, rng: a.Range, class: a.Class})
		}
	}
	for _, v := range rep.Volumes {
		if v.Extents == nil && (v.ID == diskcrypt.WholeDisk || partition.MatchString(v.ID)) &&
			!(d.Decrypted && v.Type == diskcrypt.TypeOpaque) {
			put(found{id: v.ID, rng: v.Range, class: v.Type, volume: &v})
		}
	}
	for _, v := range known {
		if v.Extents != nil || v.ID != diskcrypt.WholeDisk && !partition.MatchString(v.ID) {
			continue
		}
		if err := v.CheckPlace(d.Size); err != nil {
			w.warn("%s: %v", d.place(), err)
			continue
		}
		put(found{id: v.ID, rng: v.Range, class: v.Type, volume: &v, known: true})
		if v.ID == diskcrypt.WholeDisk { // whatever looks like a table is ciphertext
			return out[slices.IndexFunc(out, func(o found) bool { return o.id == v.ID }):][:1]
		}
	}
	if out == nil {
		class := diskcrypt.ClassUnknown
		if s, err := blockstack.Identify(d.R, d.Size); err == nil && len(s) > 0 {
			class = s[0].Class
		}
		out = []found{{id: diskcrypt.WholeDisk, rng: disk.Range{Length: d.Size}, class: class}}
	}
	return out
}
