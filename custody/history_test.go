package custody

import (
	"strings"
	"testing"

	"github.com/lockstep-backup/lockstep/blockstack"
	"github.com/lockstep-backup/lockstep/disk"
	"github.com/lockstep-backup/lockstep/diskcrypt"
	"github.com/lockstep-backup/lockstep/keymanager"
)

const diskSize = 100 << 20

// onP2 is a disk with a table whose second partition holds v, or class.
func onP2(point string, v *diskcrypt.Volume, class string) []DiskVolumes {
	d := DiskVolumes{Disk: "vda", Point: point, Size: diskSize, Areas: areas("disk", diskcrypt.ClassTable, "p1", "ext4")}
	if v != nil {
		d.Volumes, class = []diskcrypt.Volume{*v}, v.Type
	}
	if class != "" {
		d.Areas = append(d.Areas, diskcrypt.Area{ID: "p2", Class: class})
	}
	return []DiskVolumes{d}
}

func wholeDisk(point, class string, volumes ...diskcrypt.Volume) []DiskVolumes {
	return []DiskVolumes{{Disk: "vda", Point: point, Size: diskSize, Volumes: volumes, Areas: areas("disk", class)}}
}

func onDisk(id, kind, epoch, digest string, slots ...string) *diskcrypt.Volume {
	v := &diskcrypt.Volume{ID: id, Type: kind, UUID: "u" + epoch, Epoch: epoch, HeaderDigest: digest, Range: disk.Range{Offset: 10 << 20, Length: 80 << 20}}
	if id == "disk" {
		v.Range = disk.Range{Length: diskSize}
	}
	for _, s := range slots {
		v.Protectors = append(v.Protectors, diskcrypt.Protector{ID: s, Kind: "passphrase", Fingerprint: "v1:" + s + epoch})
	}
	return v
}

// Each story is a row of recovery points R1, R2, … of one disk; the last one is
// judged, and compared with the one before.
func TestHeaderStories(t *testing.T) {
	good := onDisk("p2", diskcrypt.TypeLUKS2, "v1:e1", "sha256:1", "slot-0")
	other := onDisk("p2", diskcrypt.TypeLUKS2, "v1:e2", "sha256:2", "slot-0")
	noSlots := onDisk("p2", diskcrypt.TypeLUKS2, "v1:e1", "sha256:3")
	unbound := *noSlots
	unbound.Protectors = []diskcrypt.Protector{{ID: "slot-1", Kind: "unbound"}}
	damaged := onDisk("p2", diskcrypt.TypeLUKS2, "", "")
	damaged.Unsupported = "checksum wrong"
	opaque := onDisk("p2", diskcrypt.TypeOpaque, "", "")
	bitlocker := onDisk("p2", diskcrypt.TypeBitLocker, "", "sha256:b", "tpm")
	badBitLocker := onDisk("p2", diskcrypt.TypeBitLocker, "", "")
	badBitLocker.Unsupported = "no copy is good"
	whole := onDisk("disk", diskcrypt.TypeOpaque, "", "")
	deleted := func(p []DiskVolumes) []DiskVolumes { p[0].Point = ""; return p }
	cut := *good
	cut.Range.Length = 50 << 20
	cutDisk := func(point string) []DiskVolumes {
		p := onP2(point, &cut, "")
		p[0].Size = 60<<20 + 512
		return p
	}

	const export = "recovery point R1 has it: restore it with `lockstep header export R1/vda/p2 --to FILE` and cryptsetup luksHeaderRestore"
	cases := []struct {
		name   string
		points [][]DiskVolumes
		state  State
		why    string // in a reason; "" = there is no reason about headers
		change string // in a change's words
		not    string // in none
	}{
		{"opaque", [][]DiskVolumes{onP2("R1", good, ""), onP2("R2", opaque, "")}, Unrecoverable, "vda/p2: header loss: the header is gone; " + export, "header loss", "no escrowed secret"},
		{"opaque for long", [][]DiskVolumes{onP2("R1", good, ""), onP2("R2", opaque, ""), onP2("R3", opaque, "")}, Unrecoverable, export, "", ""},
		{"damaged", [][]DiskVolumes{onP2("R1", good, ""), onP2("R2", damaged, "")}, Unrecoverable, export, "header loss", ""},
		{"nothing is recognised", [][]DiskVolumes{onP2("R1", good, ""), onP2("R2", nil, diskcrypt.ClassUnknown)}, Unrecoverable, export, "header loss", "encryption"},
		{"zeroes", [][]DiskVolumes{onP2("R1", good, ""), onP2("R2", nil, blockstack.Empty), onP2("R3", nil, blockstack.Empty)}, Unrecoverable, export, "header loss", ""},
		{"the table is gone too", [][]DiskVolumes{onP2("R1", good, ""), onP2("R2", opaque, ""), wholeDisk("R3", diskcrypt.TypeOpaque, *whole)}, Unrecoverable, export, "vda/p2: header loss", "encryption"},
		{"cut to almost nothing", [][]DiskVolumes{onP2("R1", good, ""), wholeDisk("R2", diskcrypt.ClassUnknown)}, Unrecoverable, export, "header loss", ""},
		{"cut behind the table", [][]DiskVolumes{onP2("R1", good, ""), wholeDisk("R2", blockstack.GPT)}, Unrecoverable, export, "header loss", "encryption"},
		{"its recovery point was deleted", [][]DiskVolumes{deleted(onP2("", good, "")), onP2("R2", opaque, "")}, Unrecoverable, "were deleted", "header loss", "lockstep header export"},
		{"a later one was deleted", [][]DiskVolumes{onP2("R1", good, ""), deleted(onP2("", good, "")), onP2("R3", opaque, "")}, Unrecoverable, export, "header loss", ""},
		{"opaque ever since", [][]DiskVolumes{onP2("R1", opaque, ""), onP2("R2", opaque, "")}, Opaque, "", "unchanged", ""},
		{"no BitLocker metadata", [][]DiskVolumes{onP2("R1", bitlocker, ""), onP2("R2", opaque, "")}, Unrecoverable, "lockstep header restore R1/vda/p2 --to TARGET", "header loss", "cryptsetup"},
		{"damaged BitLocker metadata", [][]DiskVolumes{onP2("R1", bitlocker, ""), onP2("R2", badBitLocker, "")}, Unrecoverable, "lockstep header restore R1/vda/p2 --to TARGET", "header loss", "no escrowed secret"},
		{"BitLocker metadata damaged from the first", [][]DiskVolumes{onP2("R1", badBitLocker, ""), onP2("R2", badBitLocker, "")}, Unrecoverable, "its header cannot be read: no copy is good", "unchanged", "no escrowed secret"},
		{"the BitLocker metadata are back", [][]DiskVolumes{onP2("R1", bitlocker, ""), onP2("R2", badBitLocker, ""), onP2("R3", bitlocker, "")}, Unproven, "", "returned to the header of recovery point R1", "replaced"},
		{"a file system", [][]DiskVolumes{onP2("R1", good, ""), onP2("R2", nil, "ext4")}, Plain, "", "was luks2, is now ext4", "header loss"},
		{"garbage after a file system", [][]DiskVolumes{onP2("R1", good, ""), onP2("R2", nil, "ext4"), onP2("R3", nil, diskcrypt.ClassUnknown)}, Plain, "", "", "header loss"},
		{"partition deleted", [][]DiskVolumes{onP2("R1", good, ""), onP2("R2", nil, "")}, Plain, "", "volume gone", "header loss"},
		{"erased", [][]DiskVolumes{onP2("R1", good, ""), onP2("R2", noSlots, "")}, Unrecoverable, "header erased: it has no key slot; recovery point R1 has the header of the same volume key", "header erased", "protector removed"},
		{"erased for long", [][]DiskVolumes{onP2("R1", good, ""), onP2("R2", noSlots, ""), onP2("R3", noSlots, "")}, Unrecoverable, "header export R1/vda/p2", "unchanged", ""},
		{"an unbound slot opens nothing", [][]DiskVolumes{onP2("R1", good, ""), onP2("R2", &unbound, "")}, Unrecoverable, "header erased", "header erased", ""},
		{"erased, of another key", [][]DiskVolumes{onP2("R1", other, ""), onP2("R2", noSlots, "")}, Unrecoverable, "no listed recovery point", "volume replaced", "header export"},
		{"the header is back", [][]DiskVolumes{onP2("R1", good, ""), onP2("R2", opaque, ""), onP2("R3", good, "")}, Unproven, "", "header returned: returned to the header of recovery point R1", "replaced"},
		{"key slots are back", [][]DiskVolumes{onP2("R1", good, ""), onP2("R2", noSlots, ""), onP2("R3", good, "")}, Unproven, "", "returned to the header of recovery point R1", "credential added"},
		{"back, with another key slot", [][]DiskVolumes{onP2("R1", good, ""), onP2("R2", opaque, ""), onP2("R3", onDisk("p2", diskcrypt.TypeLUKS2, "v1:e1", "sha256:9", "slot-4"), "")}, Unproven, "", "returned to the epoch of recovery point R1", "replaced"},
		{"back after the table was gone", [][]DiskVolumes{onP2("R1", good, ""), wholeDisk("R2", diskcrypt.TypeOpaque, *whole), onP2("R3", good, "")}, Unproven, "", "returned to the header of recovery point R1", "encryption"},
		{"made anew after the table was gone", [][]DiskVolumes{onP2("R1", good, ""), wholeDisk("R2", diskcrypt.TypeOpaque, *whole), onP2("R3", other, "")}, Unproven, "", "another volume stands in its place", "encryption"},
		{"another volume and back", [][]DiskVolumes{onP2("R1", good, ""), onP2("R2", other, ""), onP2("R3", good, "")}, Unproven, "", "returned to the header of recovery point R1", "replaced"},
		{"opaque on a plain disk", [][]DiskVolumes{onP2("R1", nil, "ext4"), onP2("R2", opaque, "")}, Opaque, "", "opaque: random data", "encryption was switched on"},
		{"cut off", [][]DiskVolumes{onP2("R1", good, ""), cutDisk("R2")}, Unproven, "31457280 bytes of it are missing", "disk resized: the disk shrank from 104857600 to 62915072 bytes; p2 ended 31456768 bytes behind its end now", ""},
		{"cut off for long", [][]DiskVolumes{onP2("R1", good, ""), cutDisk("R2"), cutDisk("R3")}, Unproven, "31457280 bytes of it are missing", "unchanged", ""},
		{"grown again", [][]DiskVolumes{cutDisk("R1"), onP2("R2", good, "")}, Unproven, "", "disk resized: the disk grew from 62915072 to 104857600 bytes", "missing"},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			last := len(c.points) - 1
			now, h := c.points[last], HistoryOf(c.points[:last]...)
			f := PointFacts{Now: day, Versions: versions(keymanager.Active)}
			for _, e := range h.Missing(now[0]) {
				f.Volumes = append(f.Volumes, VolumeFacts{Disk: "vda", Volume: diskcrypt.Volume{ID: e.Volume.ID, Type: e.Volume.Type}, Loss: &Loss{Earlier: e}})
			}
			for _, v := range now[0].Volumes {
				vf := VolumeFacts{Disk: "vda", Volume: v, Loss: h.Lost("vda", v), Cut: h.Cut(now[0], v)}
				vf.Claims = []Claim{{Secret: v1, Kind: diskcrypt.KindPassphrase, State: keymanager.Active}}
				f.Volumes = append(f.Volumes, vf)
			}
			got := Evaluate(f)
			why := strings.Join(got.Why, "\n")
			if got.State != c.state || !strings.Contains(why, c.why) {
				t.Errorf("got %s %q, want %s with %q", got.State, got.Why, c.state, c.why)
			}
			if c.why == "" && strings.Contains(why, "header") && c.state != Opaque {
				t.Errorf("reasons %q", got.Why)
			}
			var changes strings.Builder
			var older [][]DiskVolumes
			for i := last - 2; i >= 0; i-- {
				older = append(older, c.points[i])
			}
			for _, x := range Compare(c.points[last-1], now, older...) {
				changes.WriteString(x.String() + "\n")
			}
			if !strings.Contains(changes.String(), c.change) {
				t.Errorf("changes %s, want %q", changes.String(), c.change)
			}
			if c.not != "" && strings.Contains(changes.String()+why, c.not) {
				t.Errorf("says %q: %s %s", c.not, changes.String(), why)
			}
		})
	}
}

// What a header that was lost or erased says does not hide that the key manager is away, nor a volume key.
func TestErasedHeaderAndVolumeKey(t *testing.T) {
	v := *onDisk("p2", diskcrypt.TypeLUKS2, "v1:e1", "sha256:3")
	facts := func(kind diskcrypt.Kind, err error) PointFacts {
		return PointFacts{Now: day, ManagerErr: err, Volumes: []VolumeFacts{{
			Disk: "vda", Volume: v, Loss: HistoryOf().Lost("vda", v),
			Claims: []Claim{{Secret: v1, Kind: kind, State: keymanager.Active}},
		}}}
	}
	for _, c := range []struct {
		kind diskcrypt.Kind
		err  error
		want State
	}{
		{diskcrypt.KindPassphrase, nil, Unrecoverable},
		{diskcrypt.KindVolumeKey, nil, Unproven},
		{diskcrypt.KindPassphrase, keymanager.ErrSealed, Unproven},
	} {
		if got := Evaluate(facts(c.kind, c.err)); got.State != c.want || !strings.Contains(got.Why[0], "header erased") {
			t.Errorf("%s, %v: %s %q", c.kind, c.err, got.State, got.Why)
		}
	}
}

func TestReasonsOfPointsWithoutSecrets(t *testing.T) {
	orphan := VolumeFacts{Disk: "vda", Volume: luksVolume("p2")}
	declared := orphan
	declared.NotNeeded = "swap"
	unsupported := orphan
	unsupported.Volume.Unsupported = "serpent"
	why := func(v ...VolumeFacts) string { return strings.Join(Evaluate(PointFacts{Volumes: v}).Why, "\n") }
	if s := why(declared); !strings.HasPrefix(s, "every encrypted volume is declared not needed\n") {
		t.Errorf("all declared: %q", s)
	}
	for _, s := range []string{why(), why(declared, orphan)} {
		if strings.Contains(s, "every encrypted volume") {
			t.Errorf("not all declared: %q", s)
		}
	}
	if s := why(unsupported); s != "vda/p2: cannot be opened by this version: serpent" {
		t.Errorf("unsupported: %q", s)
	}
}
