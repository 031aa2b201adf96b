// Package lvmtest writes LVM2 physical volumes for tests, without LVM and
// without the device mapper. What it writes is judged by lvm2's own tools.
package lvmtest

import (
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"io"
	"strings"

	"github.com/lockstep-backup/lockstep/blockstack/lvm"
)

// Device is a physical volume to be.
type Device struct {
	Name string // in the metadata: "pv0"
	W    io.WriterAt
	Size int64
	// Areas of metadata: 1, or 2, the second at the end. 0 is 1; -1 is none.
	Areas int
	// TextAt is where in an area the text begins, from 512 on; 0 is 512.
	TextAt int64
	// Absent: in the metadata, and not written.
	Absent bool
}

// Group is a volume group.
type Group struct {
	Name       string
	SeqNo      int    // 0 is 1
	ExtentSize int64  // bytes; 0 is 1 MiB
	Status     string // more of it, e.g. `, "EXPORTED"`
	More       string // lines of the group's section
	Devices    []Device
	Volumes    []Volume
}

// Volume is a logical volume.
type Volume struct {
	Name     string
	Hidden   bool
	Segments []Segment
}

// Segment is a stretch of a logical volume: its type, and its other lines.
type Segment struct {
	Extents int64
	Type    string
	Lines   string
}

// Start is where extents begin on each device, AreaSize what a metadata area has.
const (
	Start    = 1 << 20
	AreaSize = 1<<20 - 4096
)

// Linear is a run of extents of one device.
func Linear(pv string, from, extents int64) Segment {
	return Segment{extents, "striped", fmt.Sprintf("stripe_count = 1\nstripes = [\n%q, %d\n]\n", pv, from)}
}

// Striped goes around over devices, from one extent of each on.
func Striped(extents, stripe, from int64, pvs ...string) Segment {
	return Segment{extents, "striped", fmt.Sprintf("stripe_count = %d\nstripe_size = %d\nstripes = [\n%s\n]\n", len(pvs), stripe/512, pairs(from, pvs))}
}

// Mirror has one copy for each name, those of hidden volumes.
func Mirror(extents int64, images ...string) Segment {
	return Segment{extents, "mirror", fmt.Sprintf("mirror_count = %d\nregion_size = 1024\nmirrors = [\n%s\n]\n", len(images), pairs(0, images))}
}

// RAID1 has pairs of hidden volumes, NAME_rmeta_N and NAME_rimage_N.
func RAID1(extents int64, name string, legs int) Segment {
	var list []string
	for i := range legs {
		list = append(list, fmt.Sprintf("\"%s_rmeta_%d\", \"%s_rimage_%d\"", name, i, name, i))
	}
	return Segment{extents, "raid1", fmt.Sprintf("device_count = %d\nregion_size = 1024\nraids = [\n%s\n]\n", legs, strings.Join(list, ",\n"))}
}

func pairs(from int64, names []string) string {
	var list []string
	for _, n := range names {
		list = append(list, fmt.Sprintf("%q, %d", n, from))
	}
	return strings.Join(list, ",\n")
}

// ID is an id of LVM's form that follows from a name.
func ID(name string) string {
	sum := sha256.Sum256([]byte(name))
	const signs = "0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"
	var b strings.Builder
	for i, c := range sum {
		if i == 6 || i > 6 && i < 30 && (i-6)%4 == 0 {
			b.WriteByte('-')
		}
		b.WriteByte(signs[int(c)%len(signs)])
	}
	return b.String()
}

// PVID is the id of one of the group's devices.
func (g Group) PVID(device string) string { return ID("pv " + g.Name + " " + device) }

func (g Group) extent() int64 {
	if g.ExtentSize == 0 {
		return 1 << 20
	}
	return g.ExtentSize
}

func (d Device) extents(size int64) int64 {
	end := d.Size
	if d.Areas == 2 {
		end -= AreaSize
	}
	return (end - Start) / size
}

// Text is the group's metadata as it is written.
func (g Group) Text() string {
	var b strings.Builder
	line := func(format string, args ...any) { fmt.Fprintf(&b, format+"\n", args...) }
	line("%s {\nid = %q\nseqno = %d\nformat = \"lvm2\"", g.Name, ID("vg "+g.Name), max(g.SeqNo, 1))
	line("status = [\"RESIZEABLE\", \"READ\", \"WRITE\"%s]\nflags = []\nextent_size = %d\nmax_lv = 0\nmax_pv = 0\nmetadata_copies = 0", g.Status, g.extent()/512)
	b.WriteString(g.More)
	line("\nphysical_volumes {")
	for _, d := range g.Devices {
		line("\n%s {\nid = %q\ndevice = \"/dev/%s\"\n\nstatus = [\"ALLOCATABLE\"]\nflags = []\ndev_size = %d\npe_start = %d\npe_count = %d\n}",
			d.Name, g.PVID(d.Name), d.Name, d.Size/512, Start/512, d.extents(g.extent()))
	}
	line("}")
	if len(g.Volumes) > 0 {
		line("\nlogical_volumes {")
		for _, v := range g.Volumes {
			visible := ", \"VISIBLE\""
			if v.Hidden {
				visible = ""
			}
			line("\n%s {\nid = %q\nstatus = [\"READ\", \"WRITE\"%s]\nflags = []\ncreation_time = 1700000000\ncreation_host = \"guest\"\nsegment_count = %d",
				v.Name, ID("lv "+g.Name+" "+v.Name), visible, len(v.Segments))
			at := int64(0)
			for i, s := range v.Segments {
				line("\nsegment%d {\nstart_extent = %d\nextent_count = %d\n\ntype = %q\n%s}", i+1, at, s.Extents, s.Type, s.Lines)
				at += s.Extents
			}
			line("}")
		}
		line("}")
	}
	line("}\n# Written for a test\n\ncontents = \"Text Format Volume Group\"\nversion = 1\n\ndescription = \"\"\n\ncreation_host = \"guest\"\t# a comment\ncreation_time = 1700000000\n")
	return b.String()
}

// Write writes label and metadata of all devices; it leaves the extents alone.
func Write(g Group) error {
	for _, d := range g.Devices {
		if d.Absent {
			continue
		}
		if err := g.write(d, g.Text()+"\x00"); err != nil {
			return fmt.Errorf("write physical volume %s: %w", d.Name, err)
		}
	}
	return nil
}

// WriteText is Write with another text.
func WriteText(g Group, text string) error {
	for _, d := range g.Devices {
		if err := g.write(d, text); err != nil {
			return fmt.Errorf("write physical volume %s: %w", d.Name, err)
		}
	}
	return nil
}

func (g Group) write(d Device, text string) error {
	le := binary.LittleEndian
	at := []int64{4096, d.Size - AreaSize}[:max(1, d.Areas)]
	if d.Areas < 0 {
		at = nil
	}
	label := make([]byte, 512)
	copy(label, "LABELONE")
	le.PutUint64(label[8:], 1)
	le.PutUint32(label[20:], 32)
	copy(label[24:], "LVM2 001")
	copy(label[32:], strings.ReplaceAll(g.PVID(d.Name), "-", ""))
	le.PutUint64(label[64:], uint64(d.Size))
	le.PutUint64(label[72:], Start) // the data area, up to the end; then the list's end
	list := label[104:]
	for _, a := range at {
		le.PutUint64(list, uint64(a))
		le.PutUint64(list[8:], AreaSize)
		list = list[16:]
	}
	le.PutUint32(list[16:], 2) // version of the extension
	le.PutUint32(list[20:], 1) // in use
	le.PutUint32(label[16:], lvm.CRC(label[20:]))
	if _, err := d.W.WriteAt(label, 512); err != nil {
		return err
	}
	for _, a := range at {
		if err := writeArea(d, a, text); err != nil {
			return err
		}
	}
	return nil
}

func writeArea(d Device, start int64, text string) error {
	le := binary.LittleEndian
	from := max(d.TextAt, 512)
	h := make([]byte, 512)
	copy(h[4:], " LVM2 x[5A%r0N*>")
	le.PutUint32(h[20:], 1)
	le.PutUint64(h[24:], uint64(start))
	le.PutUint64(h[32:], AreaSize)
	le.PutUint64(h[40:], uint64(from))
	le.PutUint64(h[48:], uint64(len(text)))
	le.PutUint32(h[56:], lvm.CRC([]byte(text)))
	le.PutUint32(h, lvm.CRC(h[4:]))
	if _, err := d.W.WriteAt(h, start); err != nil {
		return err
	}
	first := min(int64(len(text)), AreaSize-from)
	if _, err := d.W.WriteAt([]byte(text[:first]), start+from); err != nil {
		return err
	}
	_, err := d.W.WriteAt([]byte(text[first:]), start+512)
	return err
}
