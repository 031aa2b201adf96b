package custody

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/lockstep-backup/lockstep/diskcrypt"
	"github.com/lockstep-backup/lockstep/keymanager"
)

var v1, v2 = keymanager.Ref{ID: "s", Version: 1}, keymanager.Ref{ID: "s", Version: 2}

func versions(states ...keymanager.State) map[keymanager.Ref]keymanager.Version {
	m := map[keymanager.Ref]keymanager.Version{}
	for i, s := range states {
		ref := keymanager.Ref{ID: "s", Version: i + 1}
		m[ref] = keymanager.Version{Ref: ref, State: s}
	}
	return m
}

func luksVolume(id string) diskcrypt.Volume {
	return diskcrypt.Volume{ID: id, Type: diskcrypt.TypeLUKS2, HeaderDigest: "sha256:" + id}
}

func TestEvaluate(t *testing.T) {
	now := day.Add(100 * time.Hour)
	soon, late := now.Add(time.Hour), now.Add(1000*time.Hour)
	proof := func(ref keymanager.Ref, packages int) ProofFacts {
		return ProofFacts{Secret: ref, Time: day, Packages: packages}
	}
	proven := VolumeFacts{Disk: "vda", Volume: luksVolume("p2"), Proofs: []ProofFacts{proof(v1, 1)}}
	oneCopy := VolumeFacts{Disk: "vda", Volume: luksVolume("p3"), Proofs: []ProofFacts{proof(v1, 0)}}
	claim := func(state keymanager.State, tried Tried) VolumeFacts {
		return VolumeFacts{Disk: "vda", Volume: luksVolume("p4"), Claims: []Claim{{Secret: v2, State: state, Tried: tried, Why: "it takes too long"}}}
	}
	untried := claim(keymanager.Active, Untried)
	lost := claim(keymanager.Active, Refused)
	orphan := VolumeFacts{Disk: "vda", Volume: luksVolume("p5")}
	opaque := VolumeFacts{Disk: "vdb", Volume: diskcrypt.Volume{ID: "disk", Type: diskcrypt.TypeOpaque}}
	bitLocker := func(kinds ...string) VolumeFacts {
		v := VolumeFacts{Disk: "vda", Volume: diskcrypt.Volume{ID: "p3", Type: diskcrypt.TypeBitLocker, HeaderDigest: "sha256:b"}}
		for _, k := range kinds {
			v.Volume.Protectors = append(v.Volume.Protectors, diskcrypt.Protector{Kind: k, Offline: k == "recovery-password" || k == "clear-key"})
		}
		return v
	}
	suspended := bitLocker("tpm", "clear-key")
	suspended.Volume.SelfOpening = "clear key: protection is suspended"
	notNeeded := func(v VolumeFacts) VolumeFacts { v.NotNeeded = "random-key swap"; return v }
	edit := func(v VolumeFacts, f func(*VolumeFacts)) VolumeFacts { f(&v); return v }
	active := versions(keymanager.Active, keymanager.Active)
	withExpiry := func(at time.Time) map[keymanager.Ref]keymanager.Version {
		m := versions(keymanager.Active)
		x := m[v1]
		x.Expires = &at
		m[v1] = x
		return m
	}

	cases := []struct {
		name  string
		facts PointFacts
		state State
		why   string // in some reason
	}{
		{"nothing is encrypted", PointFacts{}, Plain, ""},
		{"BitLocker by TPM alone", PointFacts{Volumes: []VolumeFacts{bitLocker("tpm", "tpm-pin", "tpm")}}, Unrecoverable, "nothing but tpm, tpm-pin opens it, which a restored machine does not have"},
		{"suspended BitLocker, no secret", PointFacts{Volumes: []VolumeFacts{suspended}}, Plain, "self-opening: clear key"},
		{"suspended BitLocker, proven", PointFacts{Versions: active, Volumes: []VolumeFacts{edit(suspended, func(v *VolumeFacts) { v.Proofs = proven.Proofs })}}, Proven, "self-opening: clear key"},
		{"proven", PointFacts{Versions: active, Volumes: []VolumeFacts{proven}}, Proven, ""},
		{"one copy", PointFacts{Versions: active, Volumes: []VolumeFacts{oneCopy}}, AtRisk, "one copy only"},
		{"proof too old", PointFacts{MaxProofAge: 99 * time.Hour, Versions: active, Volumes: []VolumeFacts{proven}}, AtRisk, "older than the policy"},
		{"proof as old as allowed", PointFacts{MaxProofAge: 100 * time.Hour, Versions: active, Volumes: []VolumeFacts{proven}}, Proven, ""},
		{"manager unavailable, proven", PointFacts{ManagerErr: keymanager.ErrUnavailable, Volumes: []VolumeFacts{proven}}, AtRisk, "does not answer"},
		{"manager sealed, proven", PointFacts{ManagerErr: keymanager.ErrSealed, Volumes: []VolumeFacts{proven}}, AtRisk, "is sealed"},
		{"manager unavailable, not tried", PointFacts{ManagerErr: keymanager.ErrUnavailable, Volumes: []VolumeFacts{orphan}}, Unproven, "does not answer"},
		{"pre-active", PointFacts{Versions: versions(keymanager.PreActive), Volumes: []VolumeFacts{proven}}, Proven, ""},
		{"deactivated", PointFacts{Versions: versions(keymanager.Deactivated), Volumes: []VolumeFacts{proven}}, Proven, ""},
		{"compromised opens all the same", PointFacts{Versions: versions(keymanager.Compromised), Volumes: []VolumeFacts{proven}}, Proven, ""},
		{"disabled", PointFacts{Versions: versions(keymanager.Disabled), Volumes: []VolumeFacts{proven}}, AtRisk, "is disabled"},
		{"expires, kept without end", PointFacts{Versions: withExpiry(late), Volumes: []VolumeFacts{proven}}, AtRisk, "expires"},
		{"expires before the point", PointFacts{Until: &late, Versions: withExpiry(soon), Volumes: []VolumeFacts{proven}}, AtRisk, "expires"},
		{"expires after the point", PointFacts{Until: &soon, Versions: withExpiry(late), Volumes: []VolumeFacts{proven}}, Proven, ""},
		{"destroyed, package left", PointFacts{Versions: versions(keymanager.Destroyed), Volumes: []VolumeFacts{proven}}, AtRisk, "only copy is the key package"},
		{"destroyed, nothing left", PointFacts{Versions: versions(keymanager.Destroyed), Volumes: []VolumeFacts{oneCopy}}, Unrecoverable, "was destroyed"},
		{"destroyed with certificate", PointFacts{Shredded: "c", Versions: versions(keymanager.Destroyed), Volumes: []VolumeFacts{oneCopy}}, Shredded, "certificate c"},
		{"certificate counts although a package lies there", PointFacts{Shredded: "c", Versions: versions(keymanager.Destroyed), Volumes: []VolumeFacts{proven}}, Shredded, "certificate c"},
		{"certificate, but it still opens", PointFacts{Shredded: "c", Versions: active, Volumes: []VolumeFacts{proven}}, Proven, ""},
		{"gone from the manager, package left", PointFacts{Volumes: []VolumeFacts{proven}}, AtRisk, "only copy"},
		{"gone from the manager", PointFacts{Volumes: []VolumeFacts{oneCopy}}, Unrecoverable, "not in the key manager"},
		{"untried", PointFacts{Versions: active, Volumes: []VolumeFacts{untried}}, Unproven, "was not tried yet, or not to an end"},
		{"stopped", PointFacts{Versions: active, Volumes: []VolumeFacts{claim(keymanager.Active, Stopped)}}, Unproven, "it takes too long"},
		{"disabled claim", PointFacts{Versions: active, Volumes: []VolumeFacts{claim(keymanager.Disabled, Untried)}}, Unproven, "is disabled"},
		{"destroyed claim", PointFacts{Versions: active, Volumes: []VolumeFacts{claim(keymanager.Destroyed, Untried)}}, Unrecoverable, "no escrowed secret"},
		{"refused", PointFacts{Versions: active, Volumes: []VolumeFacts{lost}}, Unrecoverable, "none of 1"},
		{"no claim", PointFacts{Versions: active, Volumes: []VolumeFacts{orphan}}, Unrecoverable, "no escrowed secret"},
		{"unsupported, no claim", PointFacts{Versions: active, Volumes: []VolumeFacts{edit(orphan, func(v *VolumeFacts) { v.Volume.Unsupported = "serpent" })}}, Unrecoverable, "serpent"},
		{"damaged header", PointFacts{Versions: active, Volumes: []VolumeFacts{edit(untried, func(v *VolumeFacts) { v.Volume.HeaderDigest = "" })}}, Unrecoverable, "header cannot be read"},
		{"opaque", PointFacts{Versions: active, Volumes: []VolumeFacts{opaque}}, Opaque, "high entropy"},
		{"opaque and proven", PointFacts{Versions: active, Volumes: []VolumeFacts{edit(opaque, func(v *VolumeFacts) { v.Proofs = proven.Proofs })}}, Proven, ""},
		{"not needed", PointFacts{Versions: active, Volumes: []VolumeFacts{notNeeded(lost)}}, Plain, "random-key swap"},
		{"not needed beside proven", PointFacts{Versions: active, Volumes: []VolumeFacts{notNeeded(lost), proven}}, Proven, "random-key swap"},
		{"opens, and cannot be read", PointFacts{Versions: active, Volumes: []VolumeFacts{edit(proven, func(v *VolumeFacts) { v.Volume.Undecidable = "how far a conversion got is lost" })}}, AtRisk, "cannot be read"},
		{"opens itself, and cannot be read", PointFacts{Versions: active, Volumes: []VolumeFacts{edit(suspended, func(v *VolumeFacts) { v.Volume.Undecidable = "how far a conversion got is lost" })}}, AtRisk, "cannot be read"},
		{"self-opening", PointFacts{Versions: active, Volumes: []VolumeFacts{edit(orphan, func(v *VolumeFacts) { v.Volume.SelfOpening = "null cipher" })}}, Plain, "null cipher"},
		{"conversion is said", PointFacts{Versions: active, Volumes: []VolumeFacts{edit(untried, func(v *VolumeFacts) { v.Volume.Conversion = "re-encryption, 40 %" })}}, Unproven, "40 %"},
		{"the better of two proofs", PointFacts{Versions: versions(keymanager.Disabled, keymanager.Active), Volumes: []VolumeFacts{
			edit(proven, func(v *VolumeFacts) { v.Proofs = []ProofFacts{proof(v1, 1), proof(v2, 1)} }),
		}}, Proven, ""},
		{"a lost proof beside a good one", PointFacts{Versions: versions(keymanager.Destroyed, keymanager.Active), Volumes: []VolumeFacts{
			edit(proven, func(v *VolumeFacts) { v.Proofs = []ProofFacts{proof(v1, 0), proof(v2, 1)} }),
		}}, Proven, ""},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			c.facts.Now = now
			got := Evaluate(c.facts)
			if got.State != c.state || !strings.Contains(strings.Join(got.Why, "\n"), c.why) {
				t.Errorf("got %s %q, want %s with %q", got.State, got.Why, c.state, c.why)
			}
			if got.State == Proven && c.why == "" && len(got.Why) > 0 {
				t.Errorf("reasons for nothing: %q", got.Why)
			}
			if len(got.Volumes) != len(c.facts.Volumes) {
				t.Errorf("%d volumes", len(got.Volumes))
			}
		})
	}
}

// Every pair of volume states: the worse one decides, in either order.
func TestWorstVolumeDecides(t *testing.T) {
	order := []State{Plain, Proven, AtRisk, Opaque, Unproven, Shredded, Unrecoverable}
	facts := map[State]VolumeFacts{
		Proven:        {Volume: luksVolume("a"), Proofs: []ProofFacts{{Secret: v1, Time: day, Packages: 1}}},
		AtRisk:        {Volume: luksVolume("b"), Proofs: []ProofFacts{{Secret: v1, Time: day}}},
		Opaque:        {Volume: diskcrypt.Volume{Type: diskcrypt.TypeOpaque}},
		Unproven:      {Volume: luksVolume("c"), Claims: []Claim{{Secret: v2, State: keymanager.Active}}},
		Unrecoverable: {Volume: luksVolume("d")},
		Plain:         {Volume: diskcrypt.Volume{SelfOpening: "clear key"}},
	}
	for i, a := range order {
		for j, b := range order {
			if a == Shredded || b == Shredded {
				if got := worst(a, b, pointRank); got != order[max(i, j)] {
					t.Errorf("%s with %s: %s", a, b, got)
				}
				continue
			}
			got := Evaluate(PointFacts{Now: day, Versions: versions(keymanager.Active), Volumes: []VolumeFacts{facts[a], facts[b]}})
			if got.State != order[max(i, j)] {
				t.Errorf("%s with %s: %s", a, b, got.State)
			}
			if got.SelfOpening != (a == Plain || b == Plain) {
				t.Errorf("%s with %s: self-opening %v", a, b, got.SelfOpening)
			}
		}
	}
}

func TestWorstState(t *testing.T) {
	cases := []struct {
		in   []State
		want State
	}{
		{nil, ""},
		{[]State{Proven}, Proven},
		{[]State{Plain, Proven}, Proven},
		{[]State{Proven, Shredded, AtRisk}, AtRisk}, // shredded on purpose hides nothing
		{[]State{Proven, Shredded}, Shredded},
		{[]State{Unproven, Unrecoverable, Opaque}, Unrecoverable},
		{[]State{"", Proven}, Proven},
		{[]State{"no state", Plain}, Plain},
	}
	for _, c := range cases {
		if got := WorstState(c.in...); got != c.want {
			t.Errorf("%v: %q, want %q", c.in, got, c.want)
		}
	}
}

func TestSelfOpeningByOtherAreas(t *testing.T) {
	got := Evaluate(PointFacts{Now: day, SelfOpening: []string{"vdb/p1: BEK volume"}})
	if !got.SelfOpening || got.State != Plain || len(got.Why) != 1 {
		t.Errorf("%+v", got)
	}
}

func TestCandidates(t *testing.T) {
	at := func(h int) time.Time { return day.Add(time.Duration(h) * time.Hour) }
	secret := func(id, machine, volume string, kind diskcrypt.Kind, states ...keymanager.State) keymanager.Info {
		s := keymanager.Info{ID: id, Kind: string(kind), Labels: map[string]string{keymanager.LabelMachine: machine, keymanager.LabelVolume: volume}}
		for i, st := range states {
			s.Versions = append(s.Versions, keymanager.Version{Ref: keymanager.Ref{ID: id, Version: i + 1}, State: st, Created: at(i)})
		}
		return s
	}
	ref := func(s string) keymanager.Ref {
		var r keymanager.Ref
		if _, err := fmt.Sscanf(strings.ReplaceAll(s, "@", " "), "%s %d", &r.ID, &r.Version); err != nil {
			t.Fatal(err)
		}
		return r
	}
	set := func(refs ...string) map[keymanager.Ref]bool {
		m := map[keymanager.Ref]bool{}
		for _, r := range refs {
			m[ref(r)] = true
		}
		return m
	}
	all := []keymanager.Info{
		secret("a", machineID, "", diskcrypt.KindPassphrase, keymanager.Deactivated, keymanager.Active),
		secret("b", machineID, "vda/p2", diskcrypt.KindKeyFile, keymanager.Active),
		secret("c", machineID, "vda/p3", diskcrypt.KindPassphrase, keymanager.Active),
		secret("d", "other", "", diskcrypt.KindPassphrase, keymanager.Active),
		secret("e", machineID, "", diskcrypt.KindRecoveryPassword, keymanager.Active),
		secret("f", machineID, "", diskcrypt.KindPassphrase, keymanager.Destroyed, keymanager.Compromised, keymanager.Disabled),
		secret("g", "", "", diskcrypt.KindVolumeKey, keymanager.PreActive),
	}
	cases := []struct {
		name string
		q    CandidateQuery
		want string
	}{
		{"labels and kinds", CandidateQuery{}, "a@2 f@2 a@1 b@1 g@1 f@3"},
		{"opened this header before", CandidateQuery{OpenedHeader: set("a@1", "d@1")}, "a@1 d@1 a@2 f@2 b@1 g@1 f@3"},
		{"opened the parent", CandidateQuery{OpenedParent: set("b@1")}, "b@1 a@2 f@2 a@1 g@1 f@3"},
		{"header before parent", CandidateQuery{OpenedParent: set("b@1"), OpenedHeader: set("g@1")}, "g@1 b@1 a@2 f@2 a@1 f@3"},
		{"refused last", CandidateQuery{Refused: set("a@2")}, "f@2 a@1 b@1 g@1 f@3 a@2"},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			c.q.Machine, c.q.Disk, c.q.Volume, c.q.Secrets = machineID, "vda", luksVolume("p2"), all
			var got []string
			for _, x := range Candidates(c.q) {
				got = append(got, x.Secret.String())
			}
			if s := strings.Join(got, " "); s != c.want {
				t.Errorf("got %s\nwant %s", s, c.want)
			}
		})
	}
}

func TestCompare(t *testing.T) {
	prot := func(specs ...string) (out []diskcrypt.Protector) {
		for i, s := range specs {
			fp, area, _ := strings.Cut(s, "/")
			out = append(out, diskcrypt.Protector{ID: fmt.Sprintf("slot-%d", i), Fingerprint: fp, AreaDigest: area})
		}
		return out
	}
	base := diskcrypt.Volume{ID: "p2", Type: diskcrypt.TypeLUKS2, UUID: "u", Epoch: "v1:e1", HeaderDigest: "sha256:1", SequenceID: 5, Protectors: prot("v1:a/x")}
	with := func(f func(*diskcrypt.Volume)) []diskcrypt.Volume {
		v := base
		v.HeaderDigest = "sha256:2"
		f(&v)
		return []diskcrypt.Volume{v}
	}
	older := [][]DiskVolumes{{{Disk: "vda", Volumes: []diskcrypt.Volume{{ID: "p2", Epoch: "v1:e0"}}}}}
	type k = ChangeKind
	cases := []struct {
		name    string
		parent  []diskcrypt.Volume
		now     DiskVolumes
		history [][]DiskVolumes
		want    []k
		text    string
	}{
		{name: "unchanged", now: DiskVolumes{Volumes: []diskcrypt.Volume{base}}, want: []k{ChangeNone}},
		{name: "token added", now: DiskVolumes{Volumes: with(func(v *diskcrypt.Volume) { v.SequenceID = 6 })}, want: []k{ChangeHeader}},
		{name: "credential added", now: DiskVolumes{Volumes: with(func(v *diskcrypt.Volume) { v.Protectors = prot("v1:a/x", "v1:b/y") })}, want: []k{ChangeCredentialAdded}, text: "escrow the new one"},
		{name: "credential removed", parent: with(func(v *diskcrypt.Volume) { v.Protectors = prot("v1:a/x", "v1:b/y") }), now: DiskVolumes{Volumes: []diskcrypt.Volume{base}}, want: []k{ChangeProtectorRemoved}},
		{name: "passphrase changed", now: DiskVolumes{Volumes: with(func(v *diskcrypt.Volume) { v.Protectors = prot("v1:b/y") })}, want: []k{ChangeProtectorRotated}, text: "old recovery points still open with the old secret"},
		{name: "new epoch", now: DiskVolumes{Volumes: with(func(v *diskcrypt.Volume) { v.Epoch = "v1:e2"; v.Protectors = prot("v1:b/y") })}, want: []k{ChangeNewEpoch}, text: "full-size incremental"},
		{name: "re-encryption in progress", now: DiskVolumes{Volumes: with(func(v *diskcrypt.Volume) { v.Conversion = "re-encryption, 40 %"; v.Epoch = "v1:e2" })}, want: []k{ChangeConversion, ChangeNewEpoch}, text: "40 %"},
		{name: "reverted to an earlier epoch", history: older, now: DiskVolumes{Volumes: with(func(v *diskcrypt.Volume) { v.Epoch = "v1:e0" })}, want: []k{ChangeHeaderRollback}},
		{name: "reverted to earlier protectors", now: DiskVolumes{Volumes: with(func(v *diskcrypt.Volume) { v.SequenceID = 4; v.Protectors = prot("v1:z/y") })}, want: []k{ChangeHeaderRollback, ChangeProtectorRotated}},
		{name: "reformatted", now: DiskVolumes{Volumes: with(func(v *diskcrypt.Volume) { v.UUID = "w"; v.Epoch = "v1:e9"; v.SequenceID = 1 })}, want: []k{ChangeVolumeReplaced}},
		{name: "epoch in another encoding", now: DiskVolumes{Volumes: with(func(v *diskcrypt.Volume) { v.Epoch = "v2:zz" })}, want: []k{ChangeHeader}},
		{name: "key slot damaged", now: DiskVolumes{Volumes: with(func(v *diskcrypt.Volume) { v.Protectors = prot("v1:a/broken") })}, want: []k{ChangeAreaDamage}},
		{name: "key slot unreadable", now: DiskVolumes{Volumes: with(func(v *diskcrypt.Volume) { v.Protectors = prot("v1:a/") })}, want: []k{ChangeAreaDamage}},
		{name: "damaged and another added", now: DiskVolumes{Volumes: with(func(v *diskcrypt.Volume) { v.Protectors = prot("v1:a/broken", "v1:b/y") })}, want: []k{ChangeAreaDamage, ChangeCredentialAdded}},
		{name: "header erased", now: DiskVolumes{Areas: areas("disk", diskcrypt.ClassTable, "p2", diskcrypt.ClassUnknown)}, want: []k{ChangeHeaderLoss}, text: "header export R/vda/p2"},
		{name: "only ciphertext is left", now: DiskVolumes{Volumes: []diskcrypt.Volume{{ID: "p2", Type: diskcrypt.TypeOpaque}}}, want: []k{ChangeHeaderLoss}},
		{name: "header damaged", now: DiskVolumes{Volumes: with(func(v *diskcrypt.Volume) { v.HeaderDigest, v.Protectors = "", nil })}, want: []k{ChangeHeaderLoss}},
		{name: "decrypted", now: DiskVolumes{Areas: areas("disk", diskcrypt.ClassTable, "p2", "ext4")}, want: []k{ChangeEncryptionOff}, text: "was luks2, is now ext4"},
		{name: "partition gone", now: DiskVolumes{Areas: areas("disk", diskcrypt.ClassTable)}, want: []k{ChangeVolumeGone}},
		{name: "encrypted", parent: []diskcrypt.Volume{}, now: DiskVolumes{Volumes: []diskcrypt.Volume{base}}, want: []k{ChangeEncryptionOn}},
		{name: "being encrypted", parent: []diskcrypt.Volume{}, now: DiskVolumes{Volumes: with(func(v *diskcrypt.Volume) { v.Conversion = "encryption, 10 %" })}, want: []k{ChangeEncryptionOn, ChangeConversion}},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			if c.parent == nil {
				c.parent = []diskcrypt.Volume{base}
			}
			c.now.Disk = "vda"
			got := Compare([]DiskVolumes{{Disk: "vda", Point: "R", Volumes: c.parent}}, []DiskVolumes{c.now}, c.history...)
			var kinds []k
			var text strings.Builder
			for _, x := range got {
				kinds = append(kinds, x.Kind)
				text.WriteString(x.String() + "\n")
				if x.Disk != "vda" || x.Volume != "p2" {
					t.Errorf("about %s/%s", x.Disk, x.Volume)
				}
			}
			if fmt.Sprint(kinds) != fmt.Sprint(c.want) || !strings.Contains(text.String(), c.text) {
				t.Errorf("got %v %s, want %v %q", kinds, text.String(), c.want, c.text)
			}
		})
	}
}

// Where the header does not tell the volume key, proofs do.
func TestCompareByProofs(t *testing.T) {
	at := func(point, digest, vkproof string) []DiskVolumes {
		v := diskcrypt.Volume{ID: "p3", Type: diskcrypt.TypeBitLocker, UUID: "u", HeaderDigest: digest, Protectors: []diskcrypt.Protector{{ID: "r", Fingerprint: "v1:r"}}}
		return []DiskVolumes{DiskVolumes{Disk: "vda", Point: point, Volumes: []diskcrypt.Volume{v}}.WithKeys(map[string]string{"p3": vkproof})}
	}
	for _, c := range []struct {
		name        string
		parent, now []DiskVolumes
		history     [][]DiskVolumes
		want        ChangeKind
		text        string
	}{
		{"another key", at("R1", "sha256:1", "aa"), at("R2", "sha256:2", "bb"), nil, ChangeNewEpoch, "full-size incremental"},
		{"the same key", at("R1", "sha256:1", "aa"), at("R2", "sha256:2", "aa"), nil, ChangeHeader, "protectors and volume key did not"},
		{"the parent was not proven", at("R1", "sha256:1", ""), at("R2", "sha256:2", "bb"), nil, ChangeHeader, "the header changed, its protectors did not"},
		{"this one was not proven", at("R1", "sha256:1", "aa"), at("R2", "sha256:2", ""), nil, ChangeHeader, "the header changed, its protectors did not"},
		{"the key of before", at("R1", "sha256:2", "bb"), at("R2", "sha256:3", "aa"), [][]DiskVolumes{at("R0", "sha256:1", "aa")}, ChangeHeaderRollback, "returned to the epoch of recovery point R0"},
		{"the same header", at("R1", "sha256:1", "aa"), at("R2", "sha256:1", "aa"), nil, ChangeNone, ""},
	} {
		got := Compare(c.parent, c.now, c.history...)
		if len(got) != 1 || got[0].Kind != c.want || !strings.Contains(got[0].Text, c.text) {
			t.Errorf("%s: %v", c.name, got)
		}
	}
	// What the header says is not covered up, nor is a lost header taken for one.
	luks := diskcrypt.Volume{ID: "p3", Epoch: "v1:e", HeaderDigest: "sha256:1"}
	gone := diskcrypt.Volume{ID: "p4"}
	d := DiskVolumes{Volumes: []diskcrypt.Volume{luks, gone}}.WithKeys(map[string]string{"p3": "aa", "p4": "aa"})
	if d.Volumes[0].Epoch != "v1:e" || d.Volumes[1].Epoch != "" {
		t.Errorf("%+v", d)
	}
}

// areas are pairs of place and class.
func areas(pairs ...string) (out []diskcrypt.Area) {
	for i := 0; i < len(pairs); i += 2 {
		out = append(out, diskcrypt.Area{ID: pairs[i], Class: pairs[i+1]})
	}
	return out
}

func TestCompareDisks(t *testing.T) {
	d := func(id string) DiskVolumes {
		return DiskVolumes{Disk: id, Volumes: []diskcrypt.Volume{luksVolume("disk")}}
	}
	got := Compare([]DiskVolumes{d("a"), d("b")}, []DiskVolumes{d("b"), d("c")})
	if len(got) != 2 || got[0].Kind != ChangeNone || got[0].Disk != "b" || got[1].Kind != ChangeVolumeGone || got[1].Disk != "a" {
		t.Errorf("%v", got)
	}
}
