package diskcrypt_test

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/lockstep-backup/lockstep/blockstack/lvm/lvmtest"
	"github.com/lockstep-backup/lockstep/blockstack/mdraid/mdtest"
	"github.com/lockstep-backup/lockstep/disk"
	"github.com/lockstep-backup/lockstep/diskcrypt"
	"github.com/lockstep-backup/lockstep/diskcrypt/luks"
	"github.com/lockstep-backup/lockstep/envelope"
	"github.com/lockstep-backup/lockstep/internal/judge"
)

// pieces is a device made of parts of a disk, for writing.
type pieces struct {
	m  memory
	at []disk.Range
}

func (p pieces) size() (n int64) {
	for _, r := range p.at {
		n += r.Length
	}
	return n
}

func (p pieces) each(b []byte, off int64, do func(on, b []byte)) (int, error) {
	n := 0
	for _, r := range p.at {
		for n < len(b) && off < r.Length {
			k := min(len(b)-n, int(r.Length-off))
			do(p.m[r.Offset+off:], b[n:n+k])
			n, off = n+k, off+int64(k)
		}
		off -= r.Length
	}
	if n < len(b) {
		return n, io.EOF
	}
	return n, nil
}

func (p pieces) WriteAt(b []byte, off int64) (int, error) {
	return p.each(b, off, func(on, b []byte) { copy(on, b) })
}

func (p pieces) ReadAt(b []byte, off int64) (int, error) {
	return p.each(b, off, func(on, b []byte) { copy(b, on) })
}

// group writes a group whose physical volumes are parts of a disk.
func group(t *testing.T, m memory, name string, volumes []lvmtest.Volume, parts ...disk.Range) {
	t.Helper()
	g := lvmtest.Group{Name: name, Volumes: volumes}
	for i, p := range parts {
		g.Devices = append(g.Devices, lvmtest.Device{Name: fmt.Sprintf("pv%d", i), W: memory(m[p.Offset:p.End()]), Size: p.Length})
	}
	if err := lvmtest.Write(g); err != nil {
		t.Fatal(err)
	}
}

func lv(name string, s ...lvmtest.Segment) lvmtest.Volume {
	return lvmtest.Volume{Name: name, Segments: s}
}

// extents of a physical volume that begins at from.
func onPV(from, first, n int64) disk.Range { return at(from+lvmtest.Start+first*mib, n*mib) }

// luksIn formats a LUKS2 volume into pieces of a disk.
func luksIn(t *testing.T, m memory, parts ...disk.Range) {
	t.Helper()
	p := pieces{m, parts}
	whole := make(memory, p.size())
	luksAt(t, whole, 0, p.size())
	if _, err := p.WriteAt(whole, 0); err != nil {
		t.Fatal(err)
	}
}

func TestFindLogicalVolumes(t *testing.T) {
	linear := lvmtest.Linear
	for _, c := range []struct {
		name    string
		make    func(t *testing.T, m memory)
		want    string
		warning string // part of one; "" = there is none
	}{
		{"whole disk", func(t *testing.T, m memory) {
			group(t, m, "vg-0", []lvmtest.Volume{lv("home", linear("pv0", 0, 4)), lv("b", linear("pv0", 4, 1)), lv("swap-1", linear("pv0", 5, 1)), lv("empty", linear("pv0", 6, 1))}, at(0, 16*mib))
			luksIn(t, m, onPV(0, 0, 4))
			extMagic(m[onPV(0, 4, 1).Offset:])
			random(t, m[onPV(0, 5, 1).Offset:onPV(0, 5, 1).End()])
		}, "disk=lvm2-pv vg--0-b=ext2 vg--0-empty=empty vg--0-home=luks2 vg--0-swap--1=opaque vg--0-home:luks2 vg--0-swap--1:opaque", ""},
		{"partition, in pieces", func(t *testing.T, m memory) {
			mbr(m, [2]int64{mib, 16 * mib})
			group(t, m, "vg", []lvmtest.Volume{lv("a", linear("pv0", 6, 2), linear("pv0", 2, 2)), lv("b", linear("pv0", 4, 2), linear("pv0", 8, 2))}, at(mib, 15*mib))
			luksIn(t, m, onPV(mib, 6, 2), onPV(mib, 2, 2))
			luksIn(t, m, onPV(mib, 4, 2), onPV(mib, 8, 2))
		}, "disk=partition-table p1=lvm2-pv vg-a=luks2 vg-b=luks2 vg-a:luks2 vg-b:luks2", ""},
		{"over two partitions", func(t *testing.T, m memory) {
			mbr(m, [2]int64{mib, 8 * mib}, [2]int64{8 * mib, 16 * mib})
			group(t, m, "vg", []lvmtest.Volume{lv("a", lvmtest.Striped(4, 64<<10, 1, "pv0", "pv1"))}, at(mib, 7*mib), at(8*mib, 8*mib))
			var parts []disk.Range
			for i := range int64(32) {
				parts = append(parts, at(onPV(mib, 1, 1).Offset+i<<16, 1<<16), at(onPV(8*mib, 1, 1).Offset+i<<16, 1<<16))
			}
			luksIn(t, m, parts...)
		}, "disk=partition-table p1=lvm2-pv p2=lvm2-pv vg-a=luks2 vg-a:luks2", ""},
		{"not all there", func(t *testing.T, m memory) {
			other := make(memory, 16*mib)
			g := lvmtest.Group{Name: "vg", Devices: []lvmtest.Device{{Name: "pv0", W: m, Size: 16 * mib}, {Name: "pv1", W: other, Size: 16 * mib}}, Volumes: []lvmtest.Volume{
				lv("a", linear("pv0", 0, 4)), lv("b", linear("pv0", 4, 1), linear("pv1", 0, 1)), lv("pool", lvmtest.Segment{Extents: 1, Type: "thin-pool"}),
			}}
			if err := lvmtest.Write(g); err != nil {
				t.Fatal(err)
			}
			luksIn(t, m, onPV(0, 0, 4))
		}, "disk=lvm2-pv vg-a=luks2 vg-b=logical-volume vg-pool=logical-volume vg-a:luks2", "vg-pool: logical volume is not mapped: it is of type thin-pool"},
		{"metadata gone", func(t *testing.T, m memory) {
			group(t, m, "vg", []lvmtest.Volume{lv("a", linear("pv0", 0, 4))}, at(0, 16*mib))
			luksIn(t, m, onPV(0, 0, 4))
			m[4700] ^= 1
		}, "disk=lvm2-pv", "logical volumes are not found"},
		{"clones", func(t *testing.T, m memory) {
			mbr(m, [2]int64{mib, 8 * mib}, [2]int64{8 * mib, 16 * mib})
			group(t, m, "vg", []lvmtest.Volume{lv("a", linear("pv0", 0, 1))}, at(mib, 7*mib))
			copy(m[8*mib:], m[mib:8*mib])
		}, "disk=partition-table p1=lvm2-pv p2=lvm2-pv vg-a=empty", "the same physical volume"},
		{"exported, of another host", func(_ *testing.T, m memory) {
			if err := lvmtest.Write(lvmtest.Group{
				Name: "vg", Status: `, "EXPORTED"`, More: "system_id = \"h\"\n", Devices: []lvmtest.Device{{Name: "pv0", W: m, Size: 16 * mib}},
				Volumes: []lvmtest.Volume{lv("a", linear("pv0", 0, 1))},
			}); err != nil {
				panic(err)
			}
		}, "disk=lvm2-pv vg-a=empty", `system id "h"`},
		{"inside a mirror", func(t *testing.T, m memory) {
			mdtest.Write(m, mdtest.Array{Version: "1.2", Level: 1, Devices: 2}, 0)
			group(t, m, "vg", []lvmtest.Volume{lv("a", linear("pv0", 0, 4))}, at(mdtest.DataOffset, 16*mib-mdtest.DataOffset))
			luksIn(t, m, onPV(mdtest.DataOffset, 0, 4))
		}, "disk=lvm2-pv vg-a=luks2 vg-a:luks2", ""},
		{"mirrors of each version", func(t *testing.T, m memory) {
			mbr(m, [2]int64{mib, 4 * mib}, [2]int64{4 * mib, 8 * mib}, [2]int64{8 * mib, 12 * mib}, [2]int64{12 * mib, 16 * mib})
			for i, v := range []struct {
				version        string
				from, to, skip int64
			}{{"0.90", 1, 4, 0}, {"1.0", 4, 8, 0}, {"1.1", 8, 12, 1}, {"1.2", 12, 16, 1}} {
				mdtest.Write(m[v.from*mib:v.to*mib], mdtest.Array{Version: v.version, Level: 1, Devices: 2}, i%2)
				luksAt(t, m, (v.from+v.skip)*mib, v.to*mib-64<<10*(1-v.skip))
			}
		}, "disk=partition-table p1=luks2 p2=luks2 p3=luks2 p4=luks2 p1:luks2 p2:luks2 p3:luks2 p4:luks2", ""},
		{"member of a raid5", func(t *testing.T, m memory) {
			mdtest.Write(m, mdtest.Array{Version: "1.2", Level: 5, Devices: 3}, 0)
			luksAt(t, m, mib, 8*mib)
		}, "disk=md-raid", "only members of a RAID1"},
		{"spare", func(_ *testing.T, m memory) {
			mdtest.Write(m, mdtest.Array{Version: "1.2", Level: 1, Devices: 2, Spare: true}, 0)
		}, "disk=md-raid", "a spare"},
		{"partitions in a mirror", func(_ *testing.T, m memory) {
			mdtest.Write(m, mdtest.Array{Version: "1.1", Level: 1, Devices: 2}, 0)
			mbr(m[mib:], [2]int64{mib, 2 * mib})
		}, "disk=mbr", "partition table, and the partitions are not looked into"},
	} {
		t.Run(c.name, func(t *testing.T) {
			m := make(memory, 16*mib)
			c.make(t, m)
			rep := find(t, m, diskcrypt.FindOptions{})
			if got := summary(rep); got != c.want {
				t.Fatalf("got  %s\nwant %s\nwarnings %q", got, c.want, rep.Warnings)
			}
			for _, area := range rep.Areas {
				closed := area.Class == diskcrypt.ClassUnmapped || area.Class == "md-raid" || strings.Contains(c.warning, "partition table, and")
				if closed != (area.Unread != "") && area.Class != "lvm2-pv" {
					t.Errorf("%s: not looked into: %q", area.ID, area.Unread)
				}
			}
			if all := strings.Join(rep.Warnings, "\n"); !strings.Contains(all, c.warning) || c.warning == "" && all != "" {
				t.Fatalf("warnings %q do not say %q", rep.Warnings, c.warning)
			}
			for _, v := range rep.Volumes {
				if err := v.CheckPlace(int64(len(m))); err != nil {
					t.Fatal(err)
				}
				if v.Type != diskcrypt.TypeLUKS2 {
					continue
				}
				// What is found opens from its place.
				o, err := luks.Format{}.Open(context.Background(), diskcrypt.Place{Data: diskcrypt.PlaceOf(m, v), Size: v.Size()},
					diskcrypt.KindPassphrase, envelope.NewSecret([]byte("pw")), diskcrypt.Limits{})
				if err != nil {
					t.Fatalf("%s: %v", v.ID, err)
				}
				o.Close()
			}
		})
	}
}

// TestFindClonesOfGroups: two groups of one name keep their volumes apart.
func TestFindClonesOfGroups(t *testing.T) {
	m := make(memory, 16*mib)
	mbr(m, [2]int64{mib, 8 * mib}, [2]int64{8 * mib, 16 * mib})
	group(t, m, "vg", []lvmtest.Volume{lv("a", lvmtest.Linear("pv0", 0, 4))}, at(mib, 7*mib))
	// A group whose ids differ, and whose name is the same.
	g := lvmtest.Group{Name: "zz", Devices: []lvmtest.Device{{Name: "pv0", W: m[8*mib:], Size: 8 * mib}}, Volumes: []lvmtest.Volume{lv("a", lvmtest.Linear("pv0", 0, 4))}}
	if err := lvmtest.WriteText(g, strings.Replace(g.Text(), "zz {", "vg {", 1)); err != nil {
		t.Fatal(err)
	}
	luksIn(t, m, onPV(8*mib, 0, 4))
	want := "disk=partition-table p1=lvm2-pv p2=lvm2-pv vg-a=empty vg-a." + lvmtest.ID("vg zz")[:6] + "=luks2 vg-a." + lvmtest.ID("vg zz")[:6] + ":luks2"
	if got := summary(find(t, m, diskcrypt.FindOptions{})); got != want {
		t.Fatal(got)
	}
}

// TestFindDetachedLogical: a detached header for a logical volume.
func TestFindDetachedLogical(t *testing.T) {
	m := make(memory, 16*mib)
	group(t, m, "vg", []lvmtest.Volume{lv("a", lvmtest.Linear("pv0", 0, 2), lvmtest.Linear("pv0", 4, 2))}, at(0, 16*mib))
	head := make(memory, 4*mib)
	luksAt(t, head, 0, 4*mib)
	rep := find(t, m, diskcrypt.FindOptions{Detached: map[string]diskcrypt.Header{"vg-a": {R: head, Size: int64(len(head))}}})
	if got := summary(rep); got != "disk=lvm2-pv vg-a=luks2 vg-a:luks2" || !rep.Volumes[0].Detached || len(rep.Volumes[0].Extents) != 2 {
		t.Fatalf("%s %+v", got, rep.Volumes)
	}
}

// TestFindInFixture: what LVM itself made, inside a LUKS volume.
func TestFindInFixture(t *testing.T) {
	src := filepath.Join(judge.Fixtures(t), "disk/disk-gpt-esp-boot-luks2-lvm.img.xz")
	img, err := exec.Command(judge.Tool(t, "xz"), "-dc", src).Output()
	if err != nil {
		judge.Missing(t, src)
	}
	m := memory(img)
	rep := find(t, m, diskcrypt.FindOptions{})
	i := slices.IndexFunc(rep.Volumes, func(v diskcrypt.Volume) bool { return v.ID == "p3" })
	v := rep.Volumes[i]
	o, err := luks.Format{}.Open(context.Background(), diskcrypt.Place{Data: diskcrypt.PlaceOf(m, v), Size: v.Size()}, diskcrypt.KindPassphrase,
		envelope.NewSecret([]byte("fixture-pass")), diskcrypt.Limits{})
	if err != nil {
		t.Fatal(err)
	}
	defer o.Close()
	inside, err := diskcrypt.Find(context.Background(), o, o.Size(), diskcrypt.FindOptions{Formats: []diskcrypt.Format{luks.Format{}}})
	if err != nil {
		t.Fatal(err)
	}
	if got := summary(inside); got != "disk=lvm2-pv vgroot-home=ext4 vgroot-root=ext4" || len(inside.Warnings) > 0 {
		t.Fatalf("%s %q", got, inside.Warnings)
	}
	// As dmsetup said: vgroot-home: 0 131072 linear 198656, vgroot-root: 0 196608 linear 2048.
	for id, want := range map[string]disk.Range{"vgroot-home": at(198656*512, 131072*512), "vgroot-root": at(2048*512, 196608*512)} {
		i := slices.IndexFunc(inside.Areas, func(a diskcrypt.Area) bool { return a.ID == id })
		if inside.Areas[i].Range != want {
			t.Errorf("%s: %+v", id, inside.Areas[i])
		}
	}
	judge.Decided(t, "image disk-gpt-esp-boot-luks2-lvm: dmsetup table")
}

func TestGroupOf(t *testing.T) {
	for id, want := range map[string]string{"vg-a": "vg-", "vg--0-a--b": "vg--0-", "a----b-c": "a----b-", "p1": "", "disk": "", "a--": ""} {
		if got := diskcrypt.GroupOf(id); got != want || diskcrypt.IsLogical(id) != bytes.ContainsRune([]byte(id), '-') {
			t.Errorf("%s: %q", id, got)
		}
	}
}
