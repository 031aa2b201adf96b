package unlock_test

import (
	"errors"
	"io"
	"testing"

	"github.com/lockstep-backup/lockstep/blockstack/lvm/lvmtest"
	"github.com/lockstep-backup/lockstep/blockstack/mdraid/mdtest"
	"github.com/lockstep-backup/lockstep/diskcrypt/luks/luksformat"
	"github.com/lockstep-backup/lockstep/unlock"
)

// parts are the first bytes of each megabyte of an image, which is what a fuzzer
// can work on.
const partBytes = 4 * kib

func parts(m memory) []byte {
	var out []byte
	for off := 0; off < len(m); off += mib {
		out = append(out, m[off:off+partBytes]...)
	}
	return out
}

// image is what parts takes apart; the last one is the content of a volume.
func image(b []byte) memory {
	m := make(memory, 8*mib)
	for off := 0; off < len(m) && len(b) > 0; off += mib {
		n := min(len(b), partBytes)
		copy(m[off:], b[:n])
		b = b[n:]
	}
	return m
}

// FuzzOpen opens disks whose tables, labels and superblocks are anything, and a
// sound volume with anything in it: whatever comes out is inside, in order, and
// can be read.
func FuzzOpen(f *testing.F) {
	table := mbr(make(memory, 8*mib), [2]int64{mib, 2 * mib}, [2]int64{2 * mib, 6 * mib}, [2]int64{6 * mib, 7 * mib})
	copy(table[mib:], content(f, 64*kib))
	group := make(memory, 8*mib)
	err := lvmtest.Write(lvmtest.Group{
		Name: "vg", Devices: []lvmtest.Device{{Name: "pv0", W: group, Size: 8 * mib}},
		Volumes: []lvmtest.Volume{
			{Name: "a", Segments: []lvmtest.Segment{lvmtest.Linear("pv0", 0, 2), lvmtest.Linear("pv0", 3, 1)}},
			{Name: "b", Segments: []lvmtest.Segment{lvmtest.Linear("pv0", 4, 2)}},
		},
	})
	if err != nil {
		f.Fatal(err)
	}
	leg := make(memory, 8*mib)
	mdtest.Write(leg, mdtest.Array{Version: "1.1", Level: 1, Devices: 2}, 0)
	copy(leg[mdtest.DataOffset:], table[:512])
	for _, m := range []memory{table, group, leg} {
		f.Add(parts(m), true)
		f.Add(parts(m), false)
	}
	f.Fuzz(func(t *testing.T, b []byte, encrypted bool) {
		m := image(b)
		if encrypted {
			outer := make(memory, 9*mib)
			encrypt(t, outer, "pw", luksformat.Options{}, m)
			m = outer
		}
		tree, err := unlock.Open(t.Context(), []unlock.Disk{vda(m)}, passphrases("pw"), options)
		if err != nil {
			t.Fatal(err)
		}
		names := map[string]bool{}
		for i, d := range tree.Devices {
			if d.Kind == unlock.KindPartition || d.Kind == unlock.KindLogical {
				if names[d.Name] {
					t.Errorf("two devices are called %s", d.Name)
				}
				names[d.Name] = true
			}
			if len(d.Parents) == 0 != (d.Kind == unlock.KindDisk) {
				t.Errorf("%s has no parent", d.Name)
			}
			for _, p := range d.Parents {
				if p >= i || d.Size > tree.Devices[p].Size*int64(len(d.Parents)) && d.Kind != unlock.KindLogical {
					t.Errorf("%s is not in %s", d.Name, tree.Devices[p].Name)
				}
			}
			buf := make([]byte, 4*kib)
			for _, off := range []int64{0, d.Size / 2, d.Size - 1, d.Size} {
				if n, err := d.R.ReadAt(buf, max(off, 0)); err != nil && !errors.Is(err, io.EOF) && !errors.Is(err, io.ErrUnexpectedEOF) || n == 0 && off < d.Size && off >= 0 {
					t.Errorf("read %s at %d of %d: %d, %v", d.Name, off, d.Size, n, err)
				}
			}
		}
		if err := tree.Close(); err != nil {
			t.Error(err)
		}
	})
}
