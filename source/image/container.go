package image

import (
	"bytes"
	"fmt"

	"github.com/lockstep-backup/lockstep/disk"
	"github.com/lockstep-backup/lockstep/source"
)

// containers are formats that hold a disk, by the mark at an offset; from the
// end where the offset is negative. Places: QEMU's docs/interop and block/*.c,
// the VHD specification 1.0, MS-VHDX 2.2.
var containers = []struct {
	name string
	at   int64
	mark string
}{
	{"qcow2", 0, "QFI\xfb"},
	{"QED", 0, "QED\x00"},
	{"VMDK", 0, "KDMV"},
	{"VMDK", 0, "COWD"},
	{"VMDK (its description; the disk is in other files)", 0, "# Disk DescriptorFile"},
	{"VHDX", 0, "vhdxfile"},
	{"VHD", 0, "conectix"},
	{"VHD", -512, "conectix"},
	{"VHD", -511, "conectix"}, // written by Virtual PC before 2004
	{"VDI", 0x40, "\x7f\x10\xda\xbe"},
	{"Parallels", 0, "WithoutFreeSpace"},
	{"Parallels", 0, "WithouFreSpacExt"},
	{"Apple disk image", -512, "koly"},
	{"xz-compressed", 0, "\xfd7zXZ\x00"},
	{"gzip-compressed", 0, "\x1f\x8b\x08"},
	{"zstd-compressed", 0, "\x28\xb5\x2f\xfd"},
}

// refuseContainer keeps a container from being backed up as if its bytes were
// the disk's: everything after, from the partition table to the proof, would be
// about the wrong bytes.
func refuseContainer(d *Disk) error {
	head, tail := make([]byte, disk.SectorSize), make([]byte, disk.SectorSize)
	for _, piece := range []struct {
		p   []byte
		off int64
	}{{head, 0}, {tail, d.size - disk.SectorSize}} {
		piece.p = piece.p[:min(d.size, disk.SectorSize)]
		// A bad sector is for the backup to report; the disk is then not a container that could be told.
		if _, err := d.ReadAt(piece.p, max(piece.off, 0)); err != nil && !source.IsUnreadable(err) {
			return err
		}
	}
	for _, c := range containers {
		b := head
		at := c.at
		if at < 0 {
			b, at = tail, disk.SectorSize+at
		}
		if bytes.HasPrefix(b[at:], []byte(c.mark)) {
			return fmt.Errorf("open source %s: %w: it is not a raw disk but %s; attach it with qemu-nbd or convert it (qemu-img convert -O raw), or, if the disk really begins or ends like that, name it as file://…?format=raw", d.path, source.ErrUnsupported, c.name)
		}
	}
	return nil
}
