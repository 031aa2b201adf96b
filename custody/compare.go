package custody

import (
	"fmt"
	"slices"
	"strings"

	"github.com/lockstep-backup/lockstep/blockstack"
	"github.com/lockstep-backup/lockstep/diskcrypt"
)

// ChangeKind is a kind of change in custody between two recovery points.
type ChangeKind string

// The kinds.
const (
	ChangeNone             ChangeKind = "unchanged"
	ChangeHeader           ChangeKind = "header changed" // neither protectors nor volume key: tokens, labels
	ChangeCredentialAdded  ChangeKind = "credential added"
	ChangeProtectorRemoved ChangeKind = "protector removed"
	ChangeProtectorRotated ChangeKind = "protector rotated" // some added, some removed
	ChangeNewEpoch         ChangeKind = "new epoch"         // another volume key
	ChangeConversion       ChangeKind = "conversion"        // in progress
	ChangeHeaderLoss       ChangeKind = "header loss"
	ChangeHeaderRollback   ChangeKind = "header rollback" // an earlier header is back
	ChangeAreaDamage       ChangeKind = "area damage"     // a wrapped key differs although its protector does not
	ChangeEncryptionOn     ChangeKind = "encryption on"
	ChangeEncryptionOff    ChangeKind = "encryption off"
	ChangeVolumeGone       ChangeKind = "volume gone"     // and nothing is in its place
	ChangeVolumeReplaced   ChangeKind = "volume replaced" // another volume stands in its place
)

// DiskVolumes is what an inspection found on one disk.
type DiskVolumes struct {
	Disk    string
	Volumes []diskcrypt.Volume
	// Plain names the places (as Volume.ID does) where something plain was
	// recognised, Present all places that are there. A volume that is gone from a
	// plain place was decrypted; gone from a present one it lost its header.
	Plain, Present []string
}

// Change is one thing that changed, in words for people.
type Change struct {
	Disk       string
	Volume     string
	Kind       ChangeKind
	Protectors []string // ids concerned
	Text       string
}

func (c Change) String() string {
	if strings.HasPrefix(c.Text, string(c.Kind)) {
		return fmt.Sprintf("%s/%s: %s", c.Disk, c.Volume, c.Text)
	}
	return fmt.Sprintf("%s/%s: %s: %s", c.Disk, c.Volume, c.Kind, c.Text)
}

// Compare says what changed in custody from the parent recovery point to this
// one. history holds what was found in older recovery points, newest first; it
// tells a reverted guest from a new volume key. Pure. A volume without change
// gives one ChangeNone.
func Compare(parent, now []DiskVolumes, history ...[]DiskVolumes) []Change {
	var out []Change
	before := map[string]DiskVolumes{}
	for _, d := range parent {
		before[d.Disk] = d
	}
	for _, d := range now {
		old, had := before[d.Disk]
		delete(before, d.Disk)
		out = append(out, compareDisk(old, d, had, history)...)
	}
	for _, d := range parent {
		if _, gone := before[d.Disk]; !gone {
			continue
		}
		for _, v := range d.Volumes {
			out = append(out, Change{Disk: d.Disk, Volume: v.ID, Kind: ChangeVolumeGone, Text: "the disk is not part of this recovery point"})
		}
	}
	return out
}

func compareDisk(old, now DiskVolumes, had bool, history [][]DiskVolumes) []Change {
	var out []Change
	for _, v := range now.Volumes {
		i := slices.IndexFunc(old.Volumes, func(o diskcrypt.Volume) bool { return o.ID == v.ID })
		switch {
		case i >= 0:
			out = append(out, compareVolume(now.Disk, old.Volumes[i], v, history)...)
		case had:
			out = append(out, appeared(now.Disk, v)...)
		}
	}
	for _, o := range old.Volumes {
		if !slices.ContainsFunc(now.Volumes, func(v diskcrypt.Volume) bool { return v.ID == o.ID }) {
			out = append(out, vanished(now, o))
		}
	}
	return out
}

func appeared(disk string, v diskcrypt.Volume) []Change {
	out := []Change{{
		Disk: disk, Volume: v.ID, Kind: ChangeEncryptionOn,
		Text: "encryption was switched on: this recovery point needs a secret for it",
	}}
	if v.Conversion != "" {
		out = append(out, conversion(disk, v))
	}
	return out
}

func vanished(now DiskVolumes, o diskcrypt.Volume) Change {
	c := Change{Disk: now.Disk, Volume: o.ID}
	switch {
	case slices.Contains(now.Plain, o.ID):
		c.Kind, c.Text = ChangeEncryptionOff, "encryption was switched off: this recovery point needs no secret for it"
	case slices.Contains(now.Present, o.ID):
		c.Kind, c.Text = ChangeHeaderLoss, headerLoss
	default:
		c.Kind, c.Text = ChangeVolumeGone, "nothing is in its place any more"
	}
	return c
}

const headerLoss = "the header is gone while the parent recovery point has it: restore the header from there (same epoch)"

func conversion(disk string, v diskcrypt.Volume) Change {
	return Change{
		Disk: disk, Volume: v.ID, Kind: ChangeConversion,
		Text: fmt.Sprintf("conversion in progress (%s): this recovery point needs the secrets of before and after", v.Conversion),
	}
}

func compareVolume(disk string, old, now diskcrypt.Volume, history [][]DiskVolumes) []Change {
	one := func(kind ChangeKind, text string, ids ...string) Change {
		return Change{Disk: disk, Volume: now.ID, Kind: kind, Text: text, Protectors: ids}
	}
	if now.Type == diskcrypt.TypeOpaque && old.Type != diskcrypt.TypeOpaque {
		return []Change{one(ChangeHeaderLoss, headerLoss)}
	}
	if isLUKS(now.Type) && now.HeaderDigest == "" && old.HeaderDigest != "" {
		return []Change{one(ChangeHeaderLoss, headerLoss)}
	}
	if old.Type == diskcrypt.TypeOpaque && now.Type != diskcrypt.TypeOpaque {
		return []Change{one(ChangeVolumeReplaced, "a volume with a header stands where none was recognised before")}
	}
	var out []Change
	if now.Conversion != "" {
		out = append(out, conversion(disk, now))
	}
	sameEpoch, epochKnown := sameFingerprint(old.Epoch, now.Epoch)
	sameUUID := old.UUID == "" || now.UUID == "" || strings.EqualFold(old.UUID, now.UUID)
	switch {
	case !sameUUID && (!epochKnown || !sameEpoch):
		return append(out, one(ChangeVolumeReplaced, "another volume stands in its place: expect a full-size incremental, and escrow its secret"))
	case epochKnown && !sameEpoch:
		if inHistory(history, disk, now) {
			return append(out, one(ChangeHeaderRollback, "an earlier volume-key epoch is back, as after reverting to a snapshot: the secrets of that time open it"))
		}
		return append(out, one(ChangeNewEpoch, "new epoch: the volume key changed; expect a full-size incremental"))
	}
	if sameUUID && now.SequenceID != 0 && now.SequenceID < old.SequenceID {
		out = append(out, one(ChangeHeaderRollback, fmt.Sprintf("the header went back from sequence %d to %d: protectors of that time are valid again", old.SequenceID, now.SequenceID)))
	}
	out = append(out, compareProtectors(disk, old, now)...)
	if len(out) > 0 {
		return out
	}
	if old.HeaderDigest != now.HeaderDigest {
		return []Change{one(ChangeHeader, "the header changed, protectors and volume key did not")}
	}
	return []Change{one(ChangeNone, "the same header")}
}

func compareProtectors(disk string, old, now diskcrypt.Volume) []Change {
	var added, removed, damaged []string
	seen := map[string]diskcrypt.Protector{}
	for _, p := range old.Protectors {
		seen[p.Fingerprint] = p
	}
	still := map[string]bool{}
	for _, p := range now.Protectors {
		still[p.Fingerprint] = true
		was, ok := seen[p.Fingerprint]
		switch {
		case !ok:
			added = append(added, p.ID)
		case was.AreaDigest != "" && was.AreaDigest != p.AreaDigest:
			damaged = append(damaged, p.ID)
		}
	}
	for _, p := range old.Protectors {
		if !still[p.Fingerprint] {
			removed = append(removed, p.ID)
		}
	}
	one := func(kind ChangeKind, text string, ids []string) Change {
		slices.Sort(ids)
		return Change{Disk: disk, Volume: now.ID, Kind: kind, Text: text, Protectors: slices.Compact(ids)}
	}
	var out []Change
	if len(damaged) > 0 {
		out = append(out, one(ChangeAreaDamage, "the wrapped key of "+strings.Join(damaged, ", ")+" differs although its protector is the same: damage; restore the header of the parent recovery point", damaged))
	}
	switch {
	case len(added) > 0 && len(removed) > 0:
		out = append(out, one(ChangeProtectorRotated, "protector rotated: old recovery points still open with the old secret; escrow the new one", append(added, removed...)))
	case len(added) > 0:
		out = append(out, one(ChangeCredentialAdded, "credential added: secrets in custody still open it; escrow the new one", added))
	case len(removed) > 0:
		out = append(out, one(ChangeProtectorRemoved, "protector removed: old recovery points still open with its secret", removed))
	}
	return out
}

// sameFingerprint compares two fingerprints; known is false where one is
// missing or they are of different encodings, which is not the same as different.
func sameFingerprint(a, b string) (same, known bool) {
	va, _, oka := strings.Cut(a, ":")
	vb, _, okb := strings.Cut(b, ":")
	if !oka || !okb || va != vb {
		return false, false
	}
	return a == b, true
}

func inHistory(history [][]DiskVolumes, disk string, now diskcrypt.Volume) bool {
	for _, point := range history {
		for _, d := range point {
			if d.Disk != disk {
				continue
			}
			for _, v := range d.Volumes {
				if same, known := sameFingerprint(v.Epoch, now.Epoch); v.ID == now.ID && known && same {
					return true
				}
			}
		}
	}
	return false
}

// Found turns an inspection of one disk into what Compare takes.
func Found(disk string, r *diskcrypt.Report) DiskVolumes {
	d := DiskVolumes{Disk: disk, Volumes: r.Volumes}
	for _, a := range r.Areas {
		d.Present = append(d.Present, a.ID)
		isVolume := slices.ContainsFunc(r.Volumes, func(v diskcrypt.Volume) bool { return v.ID == a.ID })
		if !isVolume && a.Class != diskcrypt.ClassUnknown && a.Class != blockstack.Empty {
			d.Plain = append(d.Plain, a.ID)
		}
	}
	return d
}
