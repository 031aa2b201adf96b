package custody

import (
	"slices"
	"strings"
	"testing"

	"github.com/lockstep-backup/lockstep/blockstack"
	"github.com/lockstep-backup/lockstep/disk"
	"github.com/lockstep-backup/lockstep/diskcrypt"
	"github.com/lockstep-backup/lockstep/keymanager"
)

// inGroup is a disk with a physical volume in p1, logical volumes and other areas.
func inGroup(point string, volumes []*diskcrypt.Volume, more ...diskcrypt.Area) []DiskVolumes {
	d := DiskVolumes{Disk: "vda", Point: point, Size: diskSize, Areas: areas("disk", diskcrypt.ClassTable, "p1", blockstack.LVM2)}
	for _, v := range volumes {
		d.Volumes = append(d.Volumes, *v)
		d.Areas = append(d.Areas, diskcrypt.Area{ID: v.ID, Range: v.Range, Class: v.Type})
	}
	d.Areas = append(d.Areas, more...)
	return []DiskVolumes{d}
}

// TestLogicalVolumeStories: what becomes of logical volumes between recovery points.
func TestLogicalVolumeStories(t *testing.T) {
	at := func(v *diskcrypt.Volume, mib ...int64) *diskcrypt.Volume {
		w := *v
		w.Range, w.Extents = disk.Range{Offset: slices.Min(mib) << 20, Length: (slices.Max(mib) - slices.Min(mib) + 10) << 20}, nil
		for _, m := range mib {
			w.Extents = append(w.Extents, disk.Range{Offset: m << 20, Length: 10 << 20})
		}
		return &w
	}
	good := at(onDisk("vg-a", diskcrypt.TypeLUKS2, "v1:e1", "sha256:1", "slot-0"), 40, 10)
	opaque := at(onDisk("vg-a", diskcrypt.TypeOpaque, "", ""), 40, 10)
	other := at(onDisk("vg-b", diskcrypt.TypeLUKS2, "v1:e2", "sha256:2", "slot-0"), 20, 60)
	rotated := at(onDisk("vg-a", diskcrypt.TypeLUKS2, "v1:e1", "sha256:3", "slot-1"), 40, 10)
	grown := at(good, 40, 10, 70)
	all := []*diskcrypt.Volume{good, other}
	unmapped := diskcrypt.Area{ID: "vg-a", Class: diskcrypt.ClassUnmapped, Unread: "thin"}
	noGroup := []DiskVolumes{{Disk: "vda", Point: "R2", Size: diskSize, Areas: areas("disk", diskcrypt.ClassTable, "p1", blockstack.LVM2)}}
	inArray := []DiskVolumes{{Disk: "vda", Point: "R2", Size: diskSize, Areas: append(areas("disk", diskcrypt.ClassTable),
		diskcrypt.Area{ID: "p2", Class: blockstack.MDRaid, Unread: "only members of a RAID1 are read by themselves"})}}
	for _, c := range []struct {
		name      string
		was, now  []DiskVolumes
		says, not string
		lost      bool
	}{
		{"as before", inGroup("R1", all), inGroup("R2", all), "vda/vg-a: unchanged", "gone", false},
		{"moved within the group", inGroup("R1", all), inGroup("R2", []*diskcrypt.Volume{at(good, 70, 80), other}), "vda/vg-a: unchanged", "replaced", false},
		{"grown", inGroup("R1", all), inGroup("R2", []*diskcrypt.Volume{grown, other}), "vda/vg-a: unchanged", "missing", false},
		{"rotated", inGroup("R1", all), inGroup("R2", []*diskcrypt.Volume{rotated, other}), "vda/vg-a: protector rotated", "vg-b: protector", false},
		{"header wiped", inGroup("R1", all), inGroup("R2", []*diskcrypt.Volume{opaque, other}), "vda/vg-a: header loss", "vg-b: header", true},
		{"zeroes", inGroup("R1", all), inGroup("R2", []*diskcrypt.Volume{other}, diskcrypt.Area{ID: "vg-a", Class: blockstack.Empty}), "vda/vg-a: header loss", "", true},
		{"formatted", inGroup("R1", all), inGroup("R2", []*diskcrypt.Volume{other}, diskcrypt.Area{ID: "vg-a", Class: "ext4"}), "vg-a: encryption off: was luks2, is now ext4", "header loss", false},
		{"removed", inGroup("R1", all), inGroup("R2", []*diskcrypt.Volume{other}), "vda/vg-a: volume gone", "header loss", false},
		{"not to be read any more", inGroup("R1", all), inGroup("R2", []*diskcrypt.Volume{other}, unmapped), "cannot be read from this disk any more", "header loss", false},
		{"the group's metadata lost", inGroup("R1", all), noGroup, "vda/vg-a: header loss", "", true},
		{"its place given to another", inGroup("R1", []*diskcrypt.Volume{good}), inGroup("R2", []*diskcrypt.Volume{at(other, 10, 60)}), "vda/vg-b: encryption on", "header loss", false},
		{"a partition that became a member of an array", onP2("R1", onDisk("p2", diskcrypt.TypeLUKS2, "v1:e1", "sha256:1", "slot-0"), ""), inArray, "vda/p2: volume gone: what is in its place cannot be looked into", "switched off", false},
	} {
		t.Run(c.name, func(t *testing.T) {
			var said strings.Builder
			for _, x := range Compare(c.was, c.now) {
				said.WriteString(x.String() + "\n")
			}
			if !strings.Contains(said.String(), c.says) || c.not != "" && strings.Contains(said.String(), c.not) {
				t.Errorf("says %s", said.String())
			}
			h := HistoryOf(c.was)
			lost := len(h.Missing(c.now[0])) > 0
			for _, v := range c.now[0].Volumes {
				lost = lost || h.Lost("vda", v) != nil
				if cut := h.Cut(c.now[0], v); cut != 0 {
					t.Errorf("%s: %d bytes are cut off", v.ID, cut)
				}
			}
			if lost != c.lost {
				t.Errorf("lost %v", lost)
			}
		})
	}
	if got := Evaluate(PointFacts{Now: day, Versions: versions(keymanager.Active), Volumes: []VolumeFacts{{
		Disk: "vda", Volume: *opaque, Loss: HistoryOf(inGroup("R1", all)).Lost("vda", *opaque),
	}}}); got.State != Unrecoverable || !strings.Contains(strings.Join(got.Why, " "), "lockstep header export R1/vda/vg-a") {
		t.Errorf("%+v", got)
	}
}
