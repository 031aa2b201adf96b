package custody

import (
	"cmp"
	"slices"
	"time"

	"github.com/lockstep-backup/lockstep/diskcrypt"
	"github.com/lockstep-backup/lockstep/keymanager"
)

// CandidateQuery asks which secret versions may open a volume.
type CandidateQuery struct {
	Machine string
	Disk    string
	Volume  diskcrypt.Volume
	Secrets []keymanager.Info
	// OpenedHeader are versions that opened the same header, on whatever machine:
	// clones of a template share it. OpenedParent opened the volume of the parent
	// recovery point. Refused opened nothing of this very header.
	OpenedHeader, OpenedParent, Refused map[keymanager.Ref]bool
}

// Candidate is a secret version that claims a volume.
type Candidate struct {
	Secret  keymanager.Ref
	Kind    diskcrypt.Kind
	State   keymanager.State
	Created time.Time
	Refused bool
}

// Usable says whether the key manager gives the version out. Compromised ones
// it does: what they opened must still open.
func (c Candidate) Usable() bool {
	switch c.State {
	case keymanager.PreActive, keymanager.Active, keymanager.Deactivated, keymanager.Compromised:
		return true
	}
	return false
}

// Candidates returns the secret versions that claim a volume, the likeliest
// first: what opened this header before, what opened the parent recovery
// point, then the newest. Destroyed ones are left out; disabled and refused
// ones are in it, at the end, because the state is explained by them.
func Candidates(q CandidateQuery) []Candidate {
	var out []Candidate
	for _, s := range q.Secrets {
		kind := diskcrypt.Kind(s.Kind)
		for _, v := range s.Versions {
			if v.State == keymanager.Destroyed {
				continue
			}
			if !q.OpenedHeader[v.Ref] && !q.claims(s, kind) {
				continue
			}
			out = append(out, Candidate{Secret: v.Ref, Kind: kind, State: v.State, Created: v.Created, Refused: q.Refused[v.Ref]})
		}
	}
	slices.SortStableFunc(out, func(a, b Candidate) int {
		return cmp.Or(
			first(!a.Refused && a.Usable(), !b.Refused && b.Usable()),
			first(q.OpenedHeader[a.Secret], q.OpenedHeader[b.Secret]),
			first(q.OpenedParent[a.Secret], q.OpenedParent[b.Secret]),
			b.Created.Compare(a.Created),
			cmp.Compare(a.Secret.ID, b.Secret.ID),
			cmp.Compare(b.Secret.Version, a.Secret.Version),
		)
	})
	return out
}

func first(a, b bool) int {
	switch {
	case a == b:
		return 0
	case a:
		return -1
	}
	return 1
}

// claims says whether a secret's labels and kind fit the volume. A secret
// without a machine's label claims every machine.
func (q CandidateQuery) claims(s keymanager.Info, kind diskcrypt.Kind) bool {
	if m := s.Labels[keymanager.LabelMachine]; m != "" && m != q.Machine {
		return false
	}
	if v := s.Labels[keymanager.LabelVolume]; v != "" && v != (VolumeKey{q.Disk, q.Volume.ID}).String() {
		return false
	}
	return KindFits(kind, q.Volume.Type)
}

// KindFits says whether a secret of this kind can open a volume of this type.
// Types that are not known take every kind.
func KindFits(kind diskcrypt.Kind, volumeType string) bool {
	switch volumeType {
	case diskcrypt.TypeLUKS1, diskcrypt.TypeLUKS2:
		return kind == diskcrypt.KindPassphrase || kind == diskcrypt.KindKeyFile || kind == diskcrypt.KindVolumeKey
	case diskcrypt.TypeBitLocker:
		return kind != diskcrypt.KindKeyFile && kind != diskcrypt.KindVeraCrypt
	case diskcrypt.TypeVeraCrypt:
		return kind == diskcrypt.KindPassphrase || kind == diskcrypt.KindKeyFile || kind == diskcrypt.KindVeraCrypt
	case diskcrypt.TypePlain:
		return kind == diskcrypt.KindPassphrase || kind == diskcrypt.KindKeyFile || kind == diskcrypt.KindVolumeKey
	}
	return true
}
