package restores

import (
	"fmt"
	"slices"

	"github.com/lockstep-backup/lockstep/api"
	"github.com/lockstep-backup/lockstep/backup"
	"github.com/lockstep-backup/lockstep/disk"
	"github.com/lockstep-backup/lockstep/diskcrypt"
	"github.com/lockstep-backup/lockstep/repository"
	"github.com/lockstep-backup/lockstep/restore"
	"github.com/lockstep-backup/lockstep/server/internal/frame"
	"github.com/lockstep-backup/lockstep/server/internal/places"
)

// wanted is a disk of a recovery point, or a part of it.
type wanted struct {
	disk string
	part disk.Range // zero length: all of it
	// extents of a logical volume that is in pieces, volume its ID; else empty.
	extents []disk.Range
	volume  string
	gpt     bool // the disk has a GPT
}

// find finds what was named in a recovery point.
func find(mf *repository.Manifest, p api.RestorePart) (w wanted, err error) {
	if p.Volume != "" {
		return findVolume(mf, p)
	}
	w.disk = p.Disk
	i := slices.IndexFunc(mf.Disks, func(d repository.Disk) bool { return d.ID == p.Disk })
	if i < 0 {
		return w, fmt.Errorf("restore %s: disk %q: %w", mf.Point, p.Disk, restore.ErrNoDisk)
	}
	rep, err := backup.Inspection(mf.Disks[i])
	if err != nil {
		return w, err
	}
	w.gpt = rep.Layout.Table == disk.TableGPT
	if p.Partition != "" {
		if w.part, err = restore.Partition(rep.Layout, p.Partition); err != nil {
			return w, fmt.Errorf("restore disk %s of %s: %w", p.Disk, mf.Point, err)
		}
	}
	return w, nil
}

func findVolume(mf *repository.Manifest, p api.RestorePart) (w wanted, err error) {
	if p.Disk != "" || p.Partition != "" {
		return w, frame.Usage("restore: name a disk, a partition of it, or a volume")
	}
	var all []places.Place
	volumes := map[places.Place]diskcrypt.Volume{}
	for _, d := range mf.Disks {
		rep, err := backup.Inspection(d)
		if err != nil {
			return w, err
		}
		for _, v := range rep.Volumes {
			at := places.Place{Disk: d.ID, Volume: v.ID}
			all, volumes[at] = append(all, at), v
		}
	}
	at, err := places.Find(all, p.Volume)
	if err != nil {
		return w, fmt.Errorf("restore %s: %w", mf.Point, err)
	}
	v := volumes[at]
	return wanted{disk: at.Disk, part: v.Range, extents: v.Extents, volume: v.ID}, nil
}

// holds says whether a volume lies in what is wanted.
func (w wanted) holds(v api.Volume) bool {
	if w.volume != "" {
		return v.ID == w.volume
	}
	if w.part.Length == 0 {
		return true
	}
	return v.OffsetBytes >= w.part.Offset && v.OffsetBytes+v.SizeBytes <= w.part.End()
}

// keys are what opens that of the volumes that is restored.
func keys(all []api.PointKey, v api.Point, parts []wanted) []api.PointKey {
	return slices.DeleteFunc(all, func(k api.PointKey) bool {
		return !slices.ContainsFunc(v.Disks, func(d api.PointDisk) bool {
			return d.ID == k.Disk && slices.ContainsFunc(d.Volumes, func(vol api.Volume) bool {
				return vol.ID == k.Volume && slices.ContainsFunc(parts, func(w wanted) bool { return w.disk == d.ID && w.holds(vol) })
			})
		})
	})
}
