package prover_test

import (
	"context"
	"testing"

	"github.com/lockstep-backup/lockstep/custody"
	"github.com/lockstep-backup/lockstep/custody/prover/provertest"
	"github.com/lockstep-backup/lockstep/disk"
	"github.com/lockstep-backup/lockstep/diskcrypt/luks/luksformat"
)

// TestLogicalVolume: a volume in pieces is proven from the disk, in the order of
// its extents and no other, and never beyond the disk.
func TestLogicalVolume(t *testing.T) {
	const piece = 512 << 10
	in := install(t)
	dev := encrypted(t, luksformat.KDF{}, passphrase)
	v := inspected(t, dev)
	right := in.put(t, passphrase)
	at := []int64{5, 1, 7, 2} // in pieces of the disk
	d := make(memory, 9*piece)
	v.ID, v.Range = "vg-a", disk.Range{Offset: piece, Length: 7 * piece}
	for i, n := range at {
		copy(d[n*piece:], dev[i*piece:(i+1)*piece])
		v.Extents = append(v.Extents, disk.Range{Offset: n * piece, Length: piece})
	}
	c := provertest.Start(t, in.deps(t))
	try := func(extents ...disk.Range) custody.VolumeOutcome {
		t.Helper()
		w := v
		w.Extents = extents
		out, err := c.Try(context.Background(), request(w, right), &points{disks: map[string]memory{"vda": d}})
		if err != nil {
			t.Fatal(err)
		}
		return out.Volumes[0]
	}
	e := v.Extents
	o := try(e...)
	p, _, err := custody.VerifyProof(o.Proof, custody.TrustKeys{in.key.Public()}, expected(v))
	if err != nil || p.Secret != right || p.Class != "ext4" || p.Volume != "vg-a" {
		t.Fatalf("%+v %v", o, err)
	}
	far := e[0]
	far.Offset = int64(len(d)) - 4096
	for name, wrong := range map[string][]disk.Range{
		"another order":   {e[1], e[0], e[2], e[3]},
		"beyond the disk": {far, e[1], e[2], e[3]},
	} {
		if o := try(wrong...); o.Proof != nil {
			t.Errorf("%s: it is proven", name)
		}
	}
	// The header's pieces are right, the data's are not: the key is proven, and
	// nothing that it decrypts is recognised.
	if o := try(e[0], e[1], e[3], e[2]); o.Class == "ext4" {
		t.Errorf("class %s of other data", o.Class)
	}
}
