package custody

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/lockstep-backup/lockstep/diskcrypt"
	"github.com/lockstep-backup/lockstep/keymanager"
)

// PointFacts is all that the state of a recovery point follows from.
type PointFacts struct {
	Now         time.Time
	MaxProofAge time.Duration // of the policy; 0 = a proof does not age
	Until       *time.Time    // when the recovery point expires; nil = kept without end

	// ManagerErr says why the key manager does not answer; nil = it does, and
	// Versions is what it says of every version that Volumes names.
	ManagerErr error
	Versions   map[keymanager.Ref]keymanager.Version

	// Shredded names the certificate by which the recovery point's secrets were
	// destroyed on purpose, "" if there is none.
	Shredded string
	// SelfOpening says what else on its disks opens it (a BEK volume), in words.
	SelfOpening []string

	Volumes []VolumeFacts
}

// VolumeFacts is what is known of one volume of the recovery point.
type VolumeFacts struct {
	Disk      string
	Volume    diskcrypt.Volume
	NotNeeded string // reason of the declaration in force, "" = none

	Proofs []ProofFacts // valid ones of this recovery point
	// Claims are the secret versions that claim the volume (see Candidates),
	// disabled ones too, with what came of trying them on this header.
	Claims []Claim

	// Loss is what its place lost since an earlier recovery point, nil = nothing
	// (see History); a volume of which nothing is left is there for its Loss alone.
	Loss *Loss
	// Cut is how many bytes of it the end of the disk cuts off.
	Cut int64
}

// ProofFacts is what of a valid proof the state depends on.
type ProofFacts struct {
	Secret keymanager.Ref
	Time   time.Time
	// Packages is the number of recovery recipients of today for which a key
	// package of this recovery point holds the version.
	Packages int
}

// Claim is a secret version that claims a volume.
type Claim struct {
	Secret keymanager.Ref
	Kind   diskcrypt.Kind
	State  keymanager.State
	Tried  Tried
	Why    string // in words, where it could not be tried to an end
}

// Tried says what came of trying a secret version on a header.
type Tried string

// The outcomes of trying.
const (
	Untried Tried = ""
	Opens   Tried = "opens"
	Refused Tried = "refused" // opens no protector of this very header: for ever
	Claimed Tried = "claimed" // opened this very header elsewhere, and was not tried on this recovery point
	Stopped Tried = "stopped" // could not be tried to an end: limits, time, format; says nothing
)

// VolumeState is the state of one volume.
type VolumeState struct {
	Disk      string
	Volume    string
	State     State // "" where it is not needed and was not proven
	Why       []string
	NotNeeded string   // reason; the volume does not count then
	Opens     []string // secret versions with a valid proof, "id@version"
}

// Verdict is the state of a recovery point, and why.
type Verdict struct {
	State       State
	Why         []string // reasons in words, each naming its volume
	SelfOpening bool     // holds itself what opens it: as good as plain
	Volumes     []VolumeState
}

// Evaluate decides the state of a recovery point. It is pure: equal facts,
// equal verdict. The worst volume decides; volumes declared not needed do not count.
func Evaluate(f PointFacts) Verdict {
	v := Verdict{State: Plain}
	declared := 0
	for _, vol := range f.Volumes {
		s := f.volume(vol)
		v.Volumes = append(v.Volumes, s)
		name := VolumeKey{s.Disk, s.Volume}.String()
		if vol.Volume.SelfOpening != "" {
			v.SelfOpening = true
		}
		if s.NotNeeded != "" {
			declared++
			v.Why = append(v.Why, fmt.Sprintf("%s: not needed: %s", name, s.NotNeeded))
			continue
		}
		v.State = worst(v.State, s.State, pointRank)
		for _, w := range s.Why {
			v.Why = append(v.Why, name+": "+w)
		}
	}
	if declared > 0 && declared == len(f.Volumes) {
		v.Why = append([]string{whyAllDeclared}, v.Why...)
	}
	for _, w := range f.SelfOpening {
		v.SelfOpening = true
		v.Why = append(v.Why, "self-opening: "+w)
	}
	return v
}

const (
	whyOpaque = "high entropy without a known header: may be VeraCrypt or plain dm-crypt"
	// Plain, but not because everybody can read it.
	whyAllDeclared = "every encrypted volume is declared not needed"
)

func (f PointFacts) volume(vol VolumeFacts) VolumeState {
	s := VolumeState{Disk: vol.Disk, Volume: vol.Volume.ID, NotNeeded: vol.NotNeeded}
	for _, p := range vol.Proofs {
		s.Opens = append(s.Opens, p.Secret.String())
	}
	slices.Sort(s.Opens)
	s.Opens = slices.Compact(s.Opens)

	var lost []string // why proofs do not count any more
	for _, p := range vol.Proofs {
		state, why, usable := f.proof(p)
		if !usable {
			lost = append(lost, why...)
			continue
		}
		better := s.State == "" || pointRank[state] < pointRank[s.State] ||
			state == s.State && len(why) < len(s.Why)
		if better {
			s.State, s.Why = state, why
		}
	}
	if s.State == "" && vol.NotNeeded != "" {
		return s // nobody tries it, so nothing would be true of it for long
	}
	if s.State == "" {
		s.State, s.Why = f.unopened(vol)
		s.Why = append(s.Why, lost...)
	}
	if vol.Volume.Undecidable != "" {
		if s.State == Proven || s.State == Plain {
			s.State = AtRisk
		}
		s.Why = append(s.Why, "it opens, and most of it cannot be read: "+vol.Volume.Undecidable)
	}
	if vol.Volume.SelfOpening != "" {
		s.Why = append(s.Why, "self-opening: "+vol.Volume.SelfOpening)
	}
	if vol.Volume.Conversion != "" {
		s.Why = append(s.Why, "conversion in progress: "+vol.Volume.Conversion)
	}
	if vol.Cut > 0 {
		s.Why = append(s.Why, fmt.Sprintf("the disk ends before it does: %d bytes of it are missing", vol.Cut))
	}
	return s
}

// proof grades a valid proof: proven or at risk; usable is false where the
// version is gone and no package holds it either.
func (f PointFacts) proof(p ProofFacts) (state State, why []string, usable bool) {
	ref := p.Secret.String()
	packaged := p.Packages > 0
	if f.ManagerErr != nil {
		why = append(why, fmt.Sprintf("secret %s: %s", ref, managerWords(f.ManagerErr)))
	} else {
		version, known := f.Versions[p.Secret]
		switch {
		case !known && !packaged:
			return "", []string{fmt.Sprintf("secret %s opened it, but is not in the key manager any more", ref)}, false
		case !known:
			why = append(why, fmt.Sprintf("secret %s is not in the key manager: its only copy is the key package", ref))
		case version.State == keymanager.Destroyed && (f.Shredded != "" || !packaged):
			return "", []string{fmt.Sprintf("secret %s opened it, but was destroyed", ref)}, false
		case version.State == keymanager.Destroyed:
			why = append(why, fmt.Sprintf("secret %s was destroyed in the key manager: its only copy is the key package", ref))
		case version.State == keymanager.Disabled:
			why = append(why, fmt.Sprintf("secret %s is disabled in its key manager", ref))
		case version.Expires != nil && (f.Until == nil || version.Expires.Before(*f.Until)):
			why = append(why, fmt.Sprintf("secret %s expires at %s, before the recovery point does", ref, version.Expires.UTC().Format(time.RFC3339)))
		}
		if known && version.State != keymanager.Destroyed && !packaged {
			why = append(why, fmt.Sprintf("secret %s has one copy only: no key package is sealed to a recovery recipient", ref))
		}
	}
	if age := f.Now.Sub(p.Time); f.MaxProofAge > 0 && age > f.MaxProofAge {
		why = append(why, fmt.Sprintf("the proof with secret %s is of %s, older than the policy allows", ref, p.Time.UTC().Format(time.RFC3339)))
	}
	if len(why) > 0 {
		return AtRisk, why, true
	}
	return Proven, nil, true
}

// unopened decides for a volume without a proof that counts.
func (f PointFacts) unopened(vol VolumeFacts) (State, []string) {
	switch {
	case vol.Volume.SelfOpening != "":
		return Plain, nil
	case f.Shredded != "":
		return Shredded, []string{"its secrets were destroyed on purpose: certificate " + f.Shredded}
	}
	lost := vol.Loss != nil && !vol.Loss.Erased
	if vol.Volume.HeaderDigest == "" && (lost || headed(vol.Volume.Type)) {
		// Whatever secrets claim it: there is nothing left that they could open.
		var why []string
		if lost {
			why = append(why, vol.Loss.text(vol.Disk))
		}
		if headed(vol.Volume.Type) {
			why = append(why, "its header cannot be read: "+orText(vol.Volume.Unsupported, "it is damaged"))
		}
		return Unrecoverable, why
	}
	why, refused := vol.claims()
	if vol.Loss != nil {
		why = append([]string{vol.Loss.text(vol.Disk)}, why...)
	}
	switch {
	case f.ManagerErr != nil:
		return Unproven, append(why, managerWords(f.ManagerErr))
	case vol.Volume.Type == diskcrypt.TypeOpaque:
		return Opaque, []string{whyOpaque}
	case vol.Loss != nil && len(why) == 1:
		return Unrecoverable, why
	case len(why) > 0:
		return Unproven, why
	case refused > 0:
		why = append(why, fmt.Sprintf("none of %d escrowed secret versions opens it", refused))
	case vol.Volume.Unsupported == "":
		why = append(why, "no escrowed secret claims to open it")
	}
	if kinds := bound(vol.Volume); kinds != "" {
		why = append(why, fmt.Sprintf("nothing but %s opens it, which a restored machine does not have: add a recovery password (manage-bde -protectors -add X: -recoverypassword), escrow it and back up again", kinds))
	}
	if vol.Volume.Type == diskcrypt.TypePlain && refused > 0 {
		why = append(why, "plain dm-crypt has no check of its key: it may be the declaration that is wrong, or it holds what has no signature")
	}
	if vol.Volume.Unsupported != "" {
		// No secret would change that, so nothing is said of there being none.
		why = append([]string{ReasonUnsupported + vol.Volume.Unsupported}, why...)
	}
	return Unrecoverable, why
}

// claims says of the secret versions that may open the volume why they were not
// shown to, and how many were shown not to.
func (vol VolumeFacts) claims() (why []string, refused int) {
	for _, c := range vol.Claims {
		switch {
		case c.Tried == Refused:
			refused++
		case c.State == keymanager.Destroyed:
		case vol.Loss != nil && vol.Loss.Erased && c.Kind != diskcrypt.KindVolumeKey:
			// Without a key slot the volume key alone opens it.
		case c.Tried == Stopped:
			why = append(why, fmt.Sprintf("secret %s could not be tried: %s", c.Secret, c.Why))
		case c.State == keymanager.Disabled:
			why = append(why, fmt.Sprintf("secret %s claims to open it, but is disabled", c.Secret))
		default:
			why = append(why, fmt.Sprintf("secret %s claims to open it; it was not tried yet, or not to an end", c.Secret))
		}
	}
	return why, refused
}

func isLUKS(t string) bool { return t == diskcrypt.TypeLUKS1 || t == diskcrypt.TypeLUKS2 }

// headed says that without its header nothing opens a volume of this type, and
// that its header is read here: where there is no digest, it is damaged.
func headed(t string) bool { return isLUKS(t) || t == diskcrypt.TypeBitLocker }

// bound names what opens a BitLocker volume that nothing opens but parts of its
// machine, "" where something else does.
func bound(v diskcrypt.Volume) string {
	if v.Type != diskcrypt.TypeBitLocker || len(v.Protectors) == 0 {
		return ""
	}
	var kinds []string
	for _, p := range v.Protectors {
		if p.Offline {
			return ""
		}
		kinds = append(kinds, p.Kind)
	}
	slices.Sort(kinds)
	return strings.Join(slices.Compact(kinds), ", ")
}

func orText(s, otherwise string) string {
	if s == "" {
		return otherwise
	}
	return s
}

// managerWords says why there is no answer without what the adapter adds.
func managerWords(err error) string {
	switch {
	case errors.Is(err, keymanager.ErrSealed):
		return "the key manager is sealed"
	case errors.Is(err, keymanager.ErrDamaged):
		return "the key manager's state is damaged"
	default:
		return "the key manager does not answer"
	}
}

// Two rankings: within a recovery point a shredded volume makes the whole
// unrestorable, nearly the worst; among the recovery points of a machine one
// that was shredded on purpose must not hide those that need somebody.
var (
	pointRank   = map[State]int{Plain: 0, Proven: 1, AtRisk: 2, Opaque: 3, Unproven: 4, Shredded: 5, Unrecoverable: 6}
	machineRank = map[State]int{Plain: 0, Proven: 1, Shredded: 2, AtRisk: 3, Opaque: 4, Unproven: 5, Unrecoverable: 6}
)

func worst(a, b State, rank map[State]int) State {
	ra, oka := rank[a]
	rb, okb := rank[b]
	switch {
	case !okb || b == "":
		return a
	case !oka || rb > ra:
		return b
	}
	return a
}

// WorstState is the state of a machine: the worst of its recovery points;
// "" where there are none.
func WorstState(states ...State) State {
	var out State
	for _, s := range states {
		out = worst(out, s, machineRank)
	}
	return out
}
