package show

import (
	"encoding/json"
	"fmt"
	"slices"

	"github.com/lockstep-backup/lockstep/api"
	"github.com/lockstep-backup/lockstep/catalog"
	"github.com/lockstep-backup/lockstep/custody"
	"github.com/lockstep-backup/lockstep/disk"
	"github.com/lockstep-backup/lockstep/diskcrypt"
	"github.com/lockstep-backup/lockstep/keymanager"
	"github.com/lockstep-backup/lockstep/prove"
)

// Point shows a recovery point of m, in the state that custody gives it now.
func Point(m catalog.Machine, p catalog.Point, view *prove.View) (api.Point, error) {
	verdict := view.Verdict(p)
	v := api.Point{
		ID: p.ID, Machine: m.Name, MachineID: p.Machine, Repository: p.Repository, Time: p.Time.UTC(),
		State: string(verdict.State), Why: verdict.Why, Consistency: p.Consistency, Parent: p.Parent,
		Sequence: p.Sequence, Transfer: transfer(p), Description: p.Description, Incomplete: p.Incomplete,
		SelfOpening: verdict.SelfOpening, ReadBytes: p.Stats.Read, ChangedBytes: p.Stats.Changed,
		StoredBytes: p.Stats.Stored, MapBytes: p.Stats.Map, DurationSeconds: p.Seconds, Disks: []api.PointDisk{},
	}
	states := map[custody.VolumeKey]custody.VolumeState{}
	for _, x := range verdict.Volumes {
		states[custody.VolumeKey{Disk: x.Disk, Volume: x.Volume}] = x
	}
	for _, d := range p.Disks {
		pd := api.PointDisk{ID: d.Disk, SizeBytes: d.Size, ContentRoot: d.ContentRoot, UnreadRanges: Ranges(d.Unread), Volumes: []api.Volume{}}
		areas, err := areasOf(d)
		if err != nil {
			return v, err
		}
		vols := volumesOf(d)
		pd.Areas = Areas(&diskcrypt.Report{Areas: areas, Volumes: vols})
		for _, a := range pd.Areas {
			if a.Unread != "" {
				v.Warnings = append(v.Warnings, fmt.Sprintf("%s/%s was not looked into: it may be encrypted, and nothing proves that it opens: %s", d.Disk, a.ID, a.Unread))
			}
		}
		for _, vol := range vols {
			pv := Volume(d.Disk, vol, openedBy(p.ID, d.Disk, vol, view))
			if st, ok := states[custody.VolumeKey{Disk: d.Disk, Volume: vol.ID}]; ok {
				pv.State, pv.Why, pv.NotNeeded = string(st.State), st.Why, st.NotNeeded
			}
			pd.Volumes = append(pd.Volumes, pv)
		}
		v.Disks = append(v.Disks, pd)
	}
	return v, nil
}

// openedBy says which secret versions are proven to open which protector of a
// volume of a recovery point.
func openedBy(point, diskID string, vol diskcrypt.Volume, view *prove.View) map[string][]string {
	opened := map[string][]string{}
	for _, proof := range view.Proofs(point) {
		if proof.Disk != diskID || proof.Volume != vol.ID {
			continue
		}
		ref := keymanager.Ref{ID: proof.Secret, Version: proof.Version}
		ids := slices.Clone(proof.Protectors)
		// A proof names the first protector that opened; an equal header was
		// perhaps tried in full.
		for _, p := range vol.Protectors {
			if slices.Contains(view.OpenedBy(vol.HeaderDigest, p.ID), ref) {
				ids = append(ids, p.ID)
			}
		}
		for _, id := range ids {
			if !slices.Contains(opened[id], ref.String()) {
				opened[id] = append(opened[id], ref.String())
			}
		}
	}
	return opened
}

func areasOf(d catalog.PointDisk) ([]diskcrypt.Area, error) {
	var areas []diskcrypt.Area
	if len(d.Areas) == 0 {
		return nil, nil
	}
	if err := json.Unmarshal(d.Areas, &areas); err != nil {
		return nil, fmt.Errorf("read areas of disk %s: %w", d.Disk, err)
	}
	return areas, nil
}

func volumesOf(d catalog.PointDisk) []diskcrypt.Volume {
	out := make([]diskcrypt.Volume, 0, len(d.Volumes))
	for _, x := range d.Volumes {
		out = append(out, prove.VolumeOf(x))
	}
	return out
}

// Ranges are ranges of a disk.
func Ranges(ranges []disk.Range) []api.Range {
	var out []api.Range
	for _, r := range ranges {
		out = append(out, api.Range{Offset: r.Offset, Length: r.Length})
	}
	return out
}

// Areas are the areas that are not volumes.
func Areas(rep *diskcrypt.Report) []api.Area {
	var out []api.Area
	for _, a := range rep.Areas {
		if !slices.ContainsFunc(rep.Volumes, func(v diskcrypt.Volume) bool { return v.ID == a.ID }) {
			out = append(out, api.Area{ID: a.ID, Class: a.Class, Note: a.Note, Unread: a.Unread})
		}
	}
	return out
}

// Volume shows a volume; opened are secret versions by protector.
func Volume(diskID string, v diskcrypt.Volume, opened map[string][]string) api.Volume {
	out := api.Volume{
		ID: v.ID, Disk: diskID, Type: v.Type, UUID: v.UUID, Label: v.Label, Cipher: v.Cipher, KeyBits: v.KeyBits,
		SectorSize: v.SectorSize, OffsetBytes: v.Range.Offset, SizeBytes: v.Size(), Epoch: v.Epoch,
		HeaderDigest: v.HeaderDigest, SelfOpening: v.SelfOpening, Unsupported: v.Unsupported, Conversion: v.Conversion,
		Protectors: []api.Protector{}, Warnings: v.Warnings, Declared: diskcrypt.FormatDeclaration(v.Declared),
	}
	for _, p := range v.Protectors {
		by := opened[p.ID]
		if by == nil {
			by = []string{}
		}
		out.Protectors = append(out.Protectors, api.Protector{
			ID: p.ID, Kind: p.Kind, Fingerprint: p.Fingerprint, KDF: p.KDF, Note: p.Note, OpenedBy: by,
		})
	}
	for _, t := range v.Tokens {
		text := t.Type
		if t.Meaning != "" {
			text += ": " + t.Meaning
		}
		out.Tokens = append(out.Tokens, text)
	}
	return out
}

// Changes is what changed in custody from a recovery point's parent to it.
type Changes struct {
	Texts []string
	Loud  string // not empty: what cannot be overlooked
}

// ChangesSince compares point i of all (oldest first) with its parent.
func ChangesSince(all []catalog.Point, i int) Changes {
	now := all[i]
	pi := slices.IndexFunc(all, func(p catalog.Point) bool { return p.ID == now.Parent && now.Parent != "" })
	if pi < 0 {
		return Changes{}
	}
	parent := all[pi]
	var history [][]custody.DiskVolumes
	for j := pi - 1; j >= 0; j-- {
		if all[j].Repository == now.Repository {
			history = append(history, prove.Found(all[j]))
		}
	}
	var out Changes
	for _, c := range custody.Compare(prove.Found(parent), prove.Found(now), history...) {
		if c.Kind != custody.ChangeNone {
			out.Texts = append(out.Texts, c.String())
		}
	}
	if replaced(parent, now) {
		out.Loud = fmt.Sprintf("none of the encrypted volumes of recovery point %s is on these disks any more: is this still the same machine? A disk may have been REPLACED by another", parent.ID)
	}
	return out
}

// replaced says that the parent had encrypted volumes and that neither a UUID
// nor a volume key of them is left, though there is something on the disks.
func replaced(parent, now catalog.Point) bool {
	before, after := map[string]bool{}, map[string]bool{}
	for _, x := range []struct {
		p   catalog.Point
		set map[string]bool
	}{{parent, before}, {now, after}} {
		for _, d := range x.p.Disks {
			for _, v := range d.Volumes {
				for _, id := range []string{v.UUID, v.Epoch} {
					if id != "" {
						x.set[id] = true
					}
				}
			}
		}
	}
	if len(before) == 0 || len(after) == 0 {
		return false
	}
	for id := range before {
		if after[id] {
			return false
		}
	}
	return true
}
