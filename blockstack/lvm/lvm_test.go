package lvm_test

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math"
	"math/rand"
	"strings"
	"testing"
	"testing/iotest"

	"github.com/lockstep-backup/lockstep/blockstack/lvm"
	"github.com/lockstep-backup/lockstep/blockstack/lvm/lvmtest"
)

const mib = 1 << 20

// memory is a device of bytes.
type memory []byte

func (m memory) ReadAt(p []byte, off int64) (int, error) { return bytes.NewReader(m).ReadAt(p, off) }

func (m memory) WriteAt(p []byte, off int64) (int, error) {
	if off < 0 || off+int64(len(p)) > int64(len(m)) {
		return 0, io.ErrShortWrite
	}
	return copy(m[off:], p), nil
}

const deviceSize = 16 * mib

// sample is a group over two devices with what is mapped and what is hidden.
func sample(areas int) (lvmtest.Group, []memory) {
	images := []memory{make(memory, deviceSize), make(memory, deviceSize)}
	for i, m := range images {
		r := rand.New(rand.NewSource(int64(i)))
		_, _ = r.Read(m[lvmtest.Start : deviceSize-mib])
	}
	g := lvmtest.Group{Name: "vg-x", SeqNo: 7, Volumes: []lvmtest.Volume{
		{Name: "root", Segments: []lvmtest.Segment{lvmtest.Linear("pv0", 3, 2), lvmtest.Linear("pv0", 0, 1)}},
		{Name: "home_1", Segments: []lvmtest.Segment{lvmtest.Linear("pv1", 0, 1), lvmtest.Linear("pv0", 1, 1)}},
		{Name: "fast-one", Segments: []lvmtest.Segment{lvmtest.Striped(4, 64<<10, 5, "pv0", "pv1")}},
		{Name: "plain", Segments: []lvmtest.Segment{lvmtest.Linear("pv1", 4, 1)}},
	}}
	for i, m := range images {
		g.Devices = append(g.Devices, lvmtest.Device{Name: fmt.Sprintf("pv%d", i), W: m, Size: deviceSize, Areas: areas})
	}
	return g, images
}

func write(t testing.TB, g lvmtest.Group) {
	t.Helper()
	if err := lvmtest.Write(g); err != nil {
		t.Fatal(err)
	}
}

func read(t testing.TB, images ...memory) []*lvm.PV {
	t.Helper()
	var out []*lvm.PV
	for i, m := range images {
		p, err := lvm.ReadPV(m, int64(len(m)), fmt.Sprintf("p%d", i+1))
		if err != nil {
			t.Fatal(err)
		}
		out = append(out, p)
	}
	return out
}

func find(v *lvm.VG, name string) *lvm.LV {
	for _, l := range v.LVs {
		if l.Name == name {
			return l
		}
	}
	return nil
}

// segment is one extent of any type.
func segment(kind, lines string) lvmtest.Segment {
	return lvmtest.Segment{Extents: 1, Type: kind, Lines: lines}
}

// extents of a device, as bytes.
func extent(m memory, from, n int64) []byte {
	return m[lvmtest.Start+from*mib : lvmtest.Start+(from+n)*mib]
}

func join(parts ...[]byte) []byte { return bytes.Join(parts, nil) }

func TestMapping(t *testing.T) {
	g, images := sample(2)
	a, b := images[0], images[1]
	g.Volumes = append(g.Volumes,
		lvmtest.Volume{Name: "m_mimage_0", Hidden: true, Segments: []lvmtest.Segment{lvmtest.Linear("pv0", 8, 1)}},
		lvmtest.Volume{Name: "m_mimage_1", Hidden: true, Segments: []lvmtest.Segment{lvmtest.Linear("pv1", 8, 1)}},
		lvmtest.Volume{Name: "m", Segments: []lvmtest.Segment{lvmtest.Mirror(1, "m_mimage_0", "m_mimage_1")}},
		lvmtest.Volume{Name: "r_rmeta_0", Hidden: true, Segments: []lvmtest.Segment{lvmtest.Linear("pv0", 9, 1)}},
		lvmtest.Volume{Name: "r_rmeta_1", Hidden: true, Segments: []lvmtest.Segment{lvmtest.Linear("pv1", 9, 1)}},
		lvmtest.Volume{Name: "r_rimage_0", Hidden: true, Segments: []lvmtest.Segment{lvmtest.Linear("pv0", 10, 1)}},
		lvmtest.Volume{Name: "r_rimage_1", Hidden: true, Segments: []lvmtest.Segment{lvmtest.Linear("pv1", 10, 1)}},
		lvmtest.Volume{Name: "r", Segments: []lvmtest.Segment{lvmtest.RAID1(1, "r", 2)}},
		lvmtest.Volume{Name: "pvmove0", Hidden: true, Segments: []lvmtest.Segment{segment("mirror", "mirrors = [ \"pv0\", 11, \"pv1\", 11 ]\n")}},
		lvmtest.Volume{Name: "moving", Segments: []lvmtest.Segment{lvmtest.Linear("pv0", 12, 1), lvmtest.Linear("pvmove0", 0, 1)}},
		lvmtest.Volume{Name: "zero", Segments: []lvmtest.Segment{lvmtest.Linear("pv1", 12, 1), segment("zero", "")}},
	)
	// The second leg is newer, and says that the first has failed.
	meta := func(b []byte, events, failed uint64) {
		copy(b, "DmRd")
		binary.LittleEndian.PutUint64(b[16:], events)
		binary.LittleEndian.PutUint64(b[24:], failed)
		binary.LittleEndian.PutUint64(b[32:], math.MaxUint64)
	}
	meta(extent(a, 9, 1), 3, 0)
	meta(extent(b, 9, 1), 5, 1)
	write(t, g)

	var stripes []byte
	for i := range int64(32) {
		stripes = append(stripes, extent(a, 5, 2)[i<<16:(i+1)<<16]...)
		stripes = append(stripes, extent(b, 5, 2)[i<<16:(i+1)<<16]...)
	}
	want := map[string][]byte{
		"root": join(extent(a, 3, 2), extent(a, 0, 1)), "home_1": join(extent(b, 0, 1), extent(a, 1, 1)), "fast-one": stripes,
		"plain": extent(b, 4, 1), "m": extent(a, 8, 1), "r": extent(b, 10, 1), "moving": join(extent(a, 12, 1), extent(a, 11, 1)),
		"zero": join(extent(b, 12, 1), make([]byte, mib)),
	}
	vgs := lvm.Assemble(read(t, images...))
	if len(vgs.VGs) != 1 || len(vgs.Warnings) != 0 || len(vgs.VGs[0].Warnings) != 0 {
		t.Fatalf("%+v", vgs)
	}
	vg := vgs.VGs[0]
	if vg.Name != "vg-x" || vg.SeqNo != 7 || vg.ExtentSize != mib || len(vg.PVs) != 2 || len(vg.LVs) != len(want) {
		t.Fatalf("%+v", vg)
	}
	for name, content := range want {
		lv := find(vg, name)
		if lv == nil || lv.Size != int64(len(content)) {
			t.Fatalf("%s: %+v", name, lv)
		}
		if err := iotest.TestReader(io.NewSectionReader(lv, 0, lv.Size), content); err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		extents, err := lv.Extents(100)
		if name == "zero" {
			if !errors.Is(err, lvm.ErrNotMapped) {
				t.Fatal("zeroes have extents:", err)
			}
			continue
		}
		if err != nil {
			t.Fatal(name, err)
		}
		var got []byte
		for _, e := range extents {
			part := make([]byte, e.Length)
			if _, err := e.PV.R.ReadAt(part, e.Offset); err != nil {
				t.Fatal(err)
			}
			got = append(got, part...)
		}
		if !bytes.Equal(got, content) {
			t.Fatalf("%s: its extents hold something else", name)
		}
	}
	if _, err := find(vg, "fast-one").Extents(63); !errors.Is(err, lvm.ErrScattered) {
		t.Fatal(err)
	}
	if n := find(vg, "fast-one").DeviceName(); n != "vg--x-fast--one" {
		t.Fatal(n)
	}
	if on, _ := find(vg, "moving").Devices(); strings.Join(on, " ") != "p1 p2" {
		t.Fatal(on)
	}
}

// TestRefused: what is not mapped says why, and the rest of the group is there.
func TestRefused(t *testing.T) {
	linear, lv := lvmtest.Linear, func(name string, s ...lvmtest.Segment) lvmtest.Volume {
		return lvmtest.Volume{Name: name, Segments: s}
	}
	hidden := func(v lvmtest.Volume) lvmtest.Volume { v.Hidden = true; return v }
	for _, c := range []struct {
		name    string
		volumes []lvmtest.Volume
		why     map[string]string // part of the reason; "" where it is mapped
	}{
		{"kinds", []lvmtest.Volume{
			lv("a", segment("thin", "thin_pool = \"p\"\ntransaction_id = 0\ndevice_id = 1\n")), lv("p", segment("thin-pool", "")),
			lv("c", segment("cache", "")), lv("d", segment("raid5_ls", "")), lv("e", segment("vdo", "")),
			lv("f", segment("writecache", "")), lv("g", segment("error", "")), lv("h", segment("striped+NEWFLAG", "")),
			lv("i", linear("pv0", 0, 1)), lv("j", segment("raid0", "")), lv("k", linear("pv0", 1, 1), segment("integrity", "")),
		}, map[string]string{
			"a": "type thin", "p": "thin-pool", "c": "cache", "d": "raid5_ls", "e": "vdo", "f": "writecache", "g": "error", "h": "striped+NEWFLAG", "i": "",
			"j": "raid0", "k": "integrity",
		}},
		{"snapshots", []lvmtest.Volume{
			lv("origin", linear("pv0", 0, 1)), lv("snap", linear("pv0", 1, 1)),
			hidden(lv("snapshot0", segment("snapshot", "chunk_size = 8\norigin = \"origin\"\ncow_store = \"snap\"\n"))),
			lv("target", linear("pv0", 2, 1)), lv("back", linear("pv0", 3, 1)),
			hidden(lv("snapshot1", segment("snapshot", "chunk_size = 8\norigin = \"target\"\nmerging_store = \"back\"\n"))),
		}, map[string]string{"origin": "", "snap": "snapshot of origin", "target": "merged into it", "back": "snapshot of target"}},
		{"overlapping", []lvmtest.Volume{
			lv("a", linear("pv0", 0, 4)), lv("b", linear("pv0", 3, 2)), lv("c", linear("pv0", 5, 1)), lv("d", linear("pv1", 0, 1), linear("pv1", 0, 1)),
			lv("e", lvmtest.Striped(4, 64<<10, 6, "pv0", "pv0")),
		}, map[string]string{"a": "it and b have the same extents of pv0", "b": "it and a", "c": "", "d": "it and d", "e": "it and e"}},
		{"beyond", []lvmtest.Volume{
			lv("a", linear("pv0", 14, 1)), lv("b", linear("pv0", 15, 1)), lv("c", linear("pv0", math.MaxInt64/4, 1)), lv("d", linear("pv1", 0, math.MaxInt64>>22)),
			lv("e", linear("nowhere", 0, 1)), hidden(lv("f", linear("pv0", 0, 1))), lv("g", linear("f", 1, 1)), lv("h", linear("f", 0, 1)),
		}, map[string]string{"a": "", "b": "beyond the extents", "c": "beyond the extents", "d": "beyond the extents", "e": `no "nowhere"`, "g": "beyond the end of f", "h": ""}},
		{"cycles", []lvmtest.Volume{
			lv("a", linear("b", 0, 1)), lv("b", linear("a", 0, 1)), lv("c", linear("c", 0, 1)), lv("d", linear("pv0", 0, 1)),
			lv("m", lvmtest.Mirror(1, "m", "d")),
		}, map[string]string{"a": "refers to itself", "b": "refers to itself", "c": "refers to itself", "d": "", "m": "refers to itself"}},
		{"deep", []lvmtest.Volume{
			lv("a", linear("b", 0, 1)), lv("b", linear("c", 0, 1)), lv("c", linear("d", 0, 1)), lv("d", linear("e", 0, 1)),
			lv("e", linear("f", 0, 1)), lv("f", linear("g", 0, 1)), lv("g", linear("h", 0, 1)), lv("h", linear("pv0", 0, 1)),
		}, map[string]string{"a": "nested too deep", "h": ""}},
		{"uneven stripes", []lvmtest.Volume{
			lv("a", lvmtest.Striped(3, 64<<10, 0, "pv0", "pv1")), lv("b", lvmtest.Striped(2, 0, 4, "pv0", "pv1")), lv("c", lvmtest.Striped(2, 3*512, 8, "pv0", "pv1")),
		}, map[string]string{"a": "even", "b": "even", "c": "even"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			g, images := sample(1)
			g.Volumes = c.volumes
			write(t, g)
			a := lvm.Assemble(read(t, images...))
			if len(a.VGs) != 1 {
				t.Fatalf("%+v", a)
			}
			for name, why := range c.why {
				l := find(a.VGs[0], name)
				if l == nil {
					t.Fatal("no", name)
				}
				_, extents := l.Extents(1000)
				_, read := l.ReadAt(make([]byte, 512), 0)
				switch err := l.Problem(); {
				case why == "" && (err != nil || extents != nil || read != nil):
					t.Errorf("%s: %v %v %v", name, err, extents, read)
				case why != "" && (err == nil || !strings.Contains(err.Error(), why) || !errors.Is(err, lvm.ErrNotMapped) || extents == nil || read == nil):
					t.Errorf("%s: %v, want %q", name, err, why)
				}
			}
		})
	}
}

// TestMutations: one defect each; what is found in spite of it, and what is said of it.
func TestMutations(t *testing.T) {
	const first, second = 4096, deviceSize - lvmtest.AreaSize
	crc := func(m memory, at int64) { binary.LittleEndian.PutUint32(m[at:], lvm.CRC(m[at+4:at+512])) }
	text := func(g lvmtest.Group, old, now string) string {
		s := strings.Replace(g.Text(), old, now, 1)
		if s == g.Text() {
			panic("no " + old)
		}
		return s
	}
	for _, c := range []struct {
		name   string
		change func(g *lvmtest.Group, images []memory)
		vgs    int    // that are found all the same
		says   string // part of a warning or of damage
	}{
		{"nothing", func(*lvmtest.Group, []memory) {}, 1, ""},
		{"text of one copy", func(_ *lvmtest.Group, m []memory) { m[0][first+600] ^= 1 }, 1, "checksum of its text"},
		{"header of one copy", func(_ *lvmtest.Group, m []memory) { m[0][first+45] ^= 1 }, 1, "checksum of its header"},
		{"magic of one copy", func(_ *lvmtest.Group, m []memory) { m[0][first+5] ^= 1 }, 1, "magic"},
		{"both copies of one device", func(_ *lvmtest.Group, m []memory) { m[0][first+5] ^= 1; m[0][second+700] ^= 1 }, 1, "metadata area 2 of 2"},
		{"all copies", func(_ *lvmtest.Group, m []memory) {
			for _, m := range m {
				m[first+5] ^= 1
				m[second+5] ^= 1
			}
		}, 0, "metadata cannot be read"},
		{"header of another place", func(_ *lvmtest.Group, m []memory) { copy(m[0][second:], m[0][first:first+512]) }, 1, "another place"},
		{"version 2", func(_ *lvmtest.Group, m []memory) { m[0][first+20] = 2; crc(m[0], first) }, 1, "version is 2"},
		{"text larger than the area", func(_ *lvmtest.Group, m []memory) {
			binary.LittleEndian.PutUint64(m[0][first+48:], 1<<40)
			crc(m[0], first)
		}, 1, "text has"},
		{"text behind the area", func(_ *lvmtest.Group, m []memory) {
			binary.LittleEndian.PutUint64(m[0][first+40:], 1<<40)
			crc(m[0], first)
		}, 1, "text is at byte"},
		{"set aside", func(_ *lvmtest.Group, m []memory) { m[0][first+60] = 1; crc(m[0], first) }, 1, ""},
		{"area behind the device", func(_ *lvmtest.Group, m []memory) {
			binary.LittleEndian.PutUint64(m[0][512+104:], 1<<40)
			binary.LittleEndian.PutUint32(m[0][512+16:], lvm.CRC(m[0][532:1024]))
		}, 1, "not on the device"},
		{"older copy", func(g *lvmtest.Group, m []memory) {
			g.SeqNo = 9
			old := m[0][second:]
			keep := bytes.Clone(old)
			_ = lvmtest.Write(*g)
			copy(old, keep)
		}, 1, "versions 7 and 9"},
		{"older device", func(g *lvmtest.Group, m []memory) {
			g.SeqNo = 9
			keep := bytes.Clone(m[1])
			_ = lvmtest.Write(*g)
			copy(m[1], keep)
		}, 1, "version 7"},
		{"the same device twice", func(_ *lvmtest.Group, m []memory) { copy(m[1], m[0]) }, 1, "the same physical volume"},
		{"left the group", func(g *lvmtest.Group, _ []memory) {
			g.SeqNo, g.Devices = 9, g.Devices[:1]
			g.Volumes = g.Volumes[:1]
			_ = lvmtest.Write(*g)
		}, 1, "not in volume group vg-x any more"},
		{"no extent size", func(g *lvmtest.Group, _ []memory) {
			_ = lvmtest.WriteText(*g, text(*g, "extent_size = 2048", "extent_size = 0"))
		}, 0, "extents of no size"},
		{"huge extents", func(g *lvmtest.Group, _ []memory) {
			_ = lvmtest.WriteText(*g, text(*g, "extent_size = 2048", "extent_size = 9223372036854775807"))
		}, 0, "too much"},
		{"negative", func(g *lvmtest.Group, _ []memory) {
			_ = lvmtest.WriteText(*g, text(*g, "pe_start = 2048", "pe_start = -2048"))
		}, 0, "pe_start"},
		{"gap", func(g *lvmtest.Group, _ []memory) {
			_ = lvmtest.WriteText(*g, text(*g, "start_extent = 2\n", "start_extent = 3\n"))
		}, 0, "gaps or overlap"},
		{"huge count", func(g *lvmtest.Group, _ []memory) {
			_ = lvmtest.WriteText(*g, text(*g, "segment_count = 2", "segment_count = 2000000000"))
		}, 0, "fewer than"},
		{"hostile name", func(g *lvmtest.Group, _ []memory) { _ = lvmtest.WriteText(*g, text(*g, "home_1 {", "../../etc {")) }, 0, "no name"},
		{"hostile group", func(g *lvmtest.Group, _ []memory) { _ = lvmtest.WriteText(*g, text(*g, "vg-x {", "vg/x {")) }, 0, "no name"},
		{"no contents", func(g *lvmtest.Group, _ []memory) {
			_ = lvmtest.WriteText(*g, text(*g, "contents = \"Text Format Volume Group\"", ""))
		}, 0, "contents"},
		{"unbalanced", func(g *lvmtest.Group, _ []memory) {
			_ = lvmtest.WriteText(*g, text(*g, "physical_volumes {", "physical_volumes"))
		}, 0, "neither a section"},
		{"a key twice", func(g *lvmtest.Group, _ []memory) {
			_ = lvmtest.WriteText(*g, text(*g, "seqno = 7", "seqno = 7\nseqno = 8"))
		}, 0, "twice"},
		{"same id twice", func(g *lvmtest.Group, _ []memory) {
			_ = lvmtest.WriteText(*g, text(*g, g.PVID("pv1"), g.PVID("pv0")))
		}, 0, "two physical volumes"},
	} {
		t.Run(c.name, func(t *testing.T) {
			g, images := sample(2)
			write(t, g)
			c.change(&g, images)
			pvs := read(t, images...)
			a := lvm.Assemble(pvs)
			said := append([]string{}, a.Warnings...)
			for _, p := range pvs {
				said = append(said, p.Damage...)
			}
			for _, v := range a.VGs {
				said = append(said, v.Warnings...)
			}
			all := strings.Join(said, "\n")
			if len(a.VGs) != c.vgs || !strings.Contains(all, c.says) || c.says == "" && all != "" {
				t.Fatalf("%d groups; said: %s", len(a.VGs), all)
			}
		})
	}
}

func TestMembers(t *testing.T) {
	g, images := sample(1)
	g.Status, g.More = `, "EXPORTED"`, "system_id = \"other\"\nlock_type = \"sanlock\"\n"
	g.Devices[1].Areas = -1
	write(t, g)
	a := lvm.Assemble(read(t, images...))
	if len(a.VGs) != 1 || !a.VGs[0].Exported || a.VGs[0].SystemID != "other" || a.VGs[0].LockType != "sanlock" || find(a.VGs[0], "plain").Problem() != nil {
		t.Fatalf("%+v", a)
	}
	// Without the second device, what is on the first stays.
	a = lvm.Assemble(read(t, images[0]))
	vg := a.VGs[0]
	if find(vg, "root").Problem() != nil || !strings.Contains(strings.Join(vg.Warnings, " "), g.PVID("pv1")) {
		t.Fatalf("%+v", vg)
	}
	for _, name := range []string{"home_1", "fast-one", "plain"} {
		if err := find(vg, name).Problem(); err == nil || !strings.Contains(err.Error(), `missing`) || !strings.Contains(err.Error(), g.PVID("pv1")) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, missing := find(vg, "home_1").Devices(); len(missing) != 1 || missing[0] != g.PVID("pv1") {
		t.Error(missing)
	}
	// The second alone has no metadata: what is on it is not known, and that is said.
	alone := read(t, images[1])
	if a := lvm.Assemble(alone); len(a.VGs) != 0 || len(a.Warnings) != 1 || !strings.Contains(alone[0].Lost, "no metadata") {
		t.Fatalf("%+v", a)
	}
	// A device that was cut short keeps what lies before its end.
	short := images[0][:lvmtest.Start+4*mib]
	vg = lvm.Assemble(read(t, short, images[1])).VGs[0]
	if err := find(vg, "root").Problem(); err == nil || !strings.Contains(err.Error(), "p1 ends 1048576 bytes before it does") {
		t.Fatal(err)
	}
	if err := find(vg, "home_1").Problem(); err != nil {
		t.Fatal(err)
	}
}

func TestReadPVErrors(t *testing.T) {
	if _, err := lvm.ReadPV(memory(nil), 0, "x"); !errors.Is(err, lvm.ErrNotPV) {
		t.Error(err)
	}
	if _, err := lvm.ReadPV(memory(make([]byte, 512)), 4096, "x"); !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Error(err)
	}
	bad := errors.New("bad sector")
	if _, err := lvm.ReadPV(broken{bad}, 4096, "x"); !errors.Is(err, bad) {
		t.Error(err)
	}
	g, images := sample(1)
	write(t, g)
	images[0][540] ^= 1
	if _, err := lvm.ReadPV(images[0], deviceSize, "x"); !errors.Is(err, lvm.ErrNotPV) {
		t.Error("the label's checksum is wrong and it is taken")
	}
}

type broken struct{ err error }

func (b broken) ReadAt([]byte, int64) (int, error) { return 0, b.err }
