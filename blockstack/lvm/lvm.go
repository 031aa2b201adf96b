// Package lvm reads LVM2: labels and metadata areas of physical volumes, the
// volume groups they make up, and where the bytes of logical volumes lie. It
// never writes. Its invariant: a logical volume that it maps has each of its
// bytes inside a physical volume that is there, and belongs to no other.
package lvm

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"slices"
	"strings"

	"github.com/lockstep-backup/lockstep/disk"
)

// ErrNotPV says that there is no label of a physical volume.
var ErrNotPV = errors.New("no LVM2 physical volume")

const (
	sector     = disk.SectorSize
	mdaHeader  = 512
	mdaMagic   = " LVM2 x[5A%r0N*>"
	flagIgnore = 1
	maxAreas   = 16 // of data, and of metadata; LVM makes two at most
)

var le = binary.LittleEndian

// CRC is LVM's checksum: CRC-32 with a start of its own and without the last inversion.
func CRC(b []byte) uint32 { return moreCRC(0xF597A6CF, b) }

func moreCRC(crc uint32, b []byte) uint32 { return ^crc32.Update(^crc, crc32.IEEETable, b) }

// PV is a physical volume as its own bytes describe it.
type PV struct {
	Name string // the caller's: "p3"
	R    io.ReaderAt
	Size int64  // of the device it was read from
	UUID string // as LVM prints it: six characters, hyphen, …
	// DeviceSize is what the header says the device had.
	DeviceSize int64
	// Text is the newest metadata that is whole, nil where there is none:
	// an orphan, a member without metadata areas, or a damaged one.
	Text *Metadata
	// Areas is the number of metadata areas that the header names.
	Areas int
	// Damage says what of the header or the areas is not as it should be.
	Damage []string
	// Lost says, once it was assembled, why the group that it belongs to is not
	// known: its logical volumes are not found. "" where it is, or where there is none.
	Lost string

	unreadable bool // the header or an area was damaged, so that metadata may be missing
}

// Metadata is one version of a volume group's description.
type Metadata struct {
	VG    string
	SeqNo int64
	vg    *section
}

// ReadPV reads the label and the metadata areas of a device of size bytes.
// ErrNotPV where there is no label with a right checksum; an error of another
// kind is that of reading the label. Damage further on is in PV.Damage.
func ReadPV(r io.ReaderAt, size int64, name string) (*PV, error) {
	head := make([]byte, min(max(size, 0), 4*sector))
	if n, err := r.ReadAt(head, 0); n < len(head) {
		if err == nil || errors.Is(err, io.EOF) {
			err = io.ErrUnexpectedEOF
		}
		return nil, fmt.Errorf("read label: %w", err)
	}
	for i := 0; i+sector <= len(head); i += sector {
		b := head[i : i+sector]
		if string(b[:8]) != "LABELONE" || string(b[24:32]) != "LVM2 001" ||
			le.Uint64(b[8:]) != uint64(i/sector) || CRC(b[20:]) != le.Uint32(b[16:]) {
			continue
		}
		p := &PV{Name: name, R: r, Size: size}
		p.header(b)
		return p, nil
	}
	return nil, ErrNotPV
}

func (p *PV) damaged(format string, args ...any) {
	p.Damage = append(p.Damage, fmt.Sprintf(format, args...))
}

// header reads the PV header of a label sector, and the areas it names.
func (p *PV) header(b []byte) {
	at := le.Uint32(b[20:])
	if at < 32 || at > sector-40 {
		p.damaged("the label says that its header is at byte %d", at)
		p.unreadable = true
		return
	}
	b = b[at:]
	p.UUID = printed(string(b[:32]))
	if p.UUID == "" {
		p.damaged("the physical volume's id is none")
	}
	if n := le.Uint64(b[32:]); n <= 1<<62 {
		p.DeviceSize = int64(n)
	}
	if p.DeviceSize > p.Size {
		p.damaged("it was made on %d bytes, and %d are left", p.DeviceSize, p.Size)
	}
	_, rest, ok := locations(b[40:])
	if !ok {
		p.damaged("the list of data areas has no end")
		p.unreadable = true
		return
	}
	areas, _, ok := locations(rest)
	if !ok {
		p.damaged("the list of metadata areas has no end")
		p.unreadable = true
	}
	p.Areas = len(areas)
	for i, a := range areas {
		text, err := p.area(a)
		switch {
		case err != nil:
			p.damaged("metadata area %d of %d: %v", i+1, len(areas), err)
			p.unreadable = true
		case text == nil:
		case p.Text == nil:
			p.Text = text
		case text.SeqNo != p.Text.SeqNo:
			p.damaged("its metadata areas differ: versions %d and %d", min(text.SeqNo, p.Text.SeqNo), max(text.SeqNo, p.Text.SeqNo))
			if text.SeqNo > p.Text.SeqNo {
				p.Text = text
			}
		}
	}
}

// location is an area as the header names it.
type location struct{ offset, size uint64 }

func locations(b []byte) (list []location, rest []byte, ok bool) {
	for len(b) >= 16 && len(list) <= maxAreas {
		l := location{le.Uint64(b), le.Uint64(b[8:])}
		b = b[16:]
		if l.offset == 0 {
			return list, b, true
		}
		list = append(list, l)
	}
	return nil, nil, false
}

// area reads the metadata that an area holds at present, nil where it holds
// none or is set aside.
func (p *PV) area(a location) (*Metadata, error) {
	if a.size < 2*mdaHeader || a.size > uint64(p.Size) || a.offset > uint64(p.Size)-a.size {
		return nil, fmt.Errorf("%d bytes at %d are not on the device", a.size, a.offset)
	}
	start, size := int64(a.offset), int64(a.size)
	h := make([]byte, mdaHeader)
	if n, err := p.R.ReadAt(h, start); n < len(h) {
		return nil, fmt.Errorf("read header: %w", err)
	}
	switch {
	case string(h[4:20]) != mdaMagic:
		return nil, errors.New("its magic is wrong")
	case CRC(h[4:]) != le.Uint32(h):
		return nil, errors.New("the checksum of its header is wrong")
	case le.Uint32(h[20:]) != 1:
		return nil, fmt.Errorf("its version is %d", le.Uint32(h[20:]))
	case le.Uint64(h[24:]) != a.offset || le.Uint64(h[32:]) != a.size:
		return nil, errors.New("its header is that of another place")
	}
	offset, length, crc, flags := le.Uint64(h[40:]), le.Uint64(h[48:]), le.Uint32(h[56:]), le.Uint32(h[60:])
	switch {
	case offset == 0 || flags&flagIgnore != 0:
		return nil, nil // an orphan, or vgchange --metadatacopies set it aside
	case length == 0 || length > maxText || length > a.size-mdaHeader:
		return nil, fmt.Errorf("its text has %d bytes", length)
	case offset < mdaHeader || offset >= a.size:
		return nil, fmt.Errorf("its text is at byte %d", offset)
	}
	// The text runs around in the area, behind the header.
	text := make([]byte, length)
	first := min(int64(length), size-int64(offset))
	for _, part := range []struct {
		b  []byte
		at int64
	}{{text[:first], start + int64(offset)}, {text[first:], start + mdaHeader}} {
		if n, err := p.R.ReadAt(part.b, part.at); n < len(part.b) {
			return nil, fmt.Errorf("read text: %w", err)
		}
	}
	if CRC(text) != crc {
		return nil, errors.New("the checksum of its text is wrong")
	}
	return readMetadata(text)
}

// readMetadata finds the volume group's section in a text.
func readMetadata(text []byte) (*Metadata, error) {
	text, _, _ = bytes.Cut(text, []byte{0})
	root, err := parseText(string(text))
	if err != nil {
		return nil, err
	}
	if c := root.text("contents"); c != "Text Format Volume Group" {
		return nil, fmt.Errorf("%w: its contents are %q", errText, clip(c))
	}
	if v, err := root.number("version"); err != nil || v != 1 {
		return nil, fmt.Errorf("%w: its version is not 1", errText)
	}
	i := slices.IndexFunc(root.sections, func(s *section) bool { return s.text("id") != "" })
	if i < 0 || len(root.sections) > 1 {
		return nil, fmt.Errorf("%w: it does not describe one volume group", errText)
	}
	m := &Metadata{VG: root.sections[i].name, vg: root.sections[i]}
	if !validName(m.VG) {
		return nil, fmt.Errorf("%w: %q is no name", errText, clip(m.VG))
	}
	if m.SeqNo, err = m.vg.number("seqno"); err != nil {
		return nil, err
	}
	return m, nil
}

// printed is an id as LVM prints it, "" where it is none.
func printed(id string) string {
	id = strings.ReplaceAll(id, "-", "")
	if len(id) != 32 {
		return ""
	}
	for _, c := range []byte(id) {
		if !(c >= '0' && c <= '9' || c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c == '!' || c == '#') {
			return ""
		}
	}
	return id[:6] + "-" + id[6:10] + "-" + id[10:14] + "-" + id[14:18] + "-" + id[18:22] + "-" + id[22:26] + "-" + id[26:]
}

// validName follows lvm(8), "VALID NAMES".
func validName(s string) bool {
	if s == "" || s == "." || s == ".." || s[0] == '-' || len(s) > 127 {
		return false
	}
	for _, c := range []byte(s) {
		if !(c >= '0' && c <= '9' || c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || strings.IndexByte("+_.-", c) >= 0) {
			return false
		}
	}
	return true
}

// DeviceName is the device mapper's name of a logical volume: hyphens in names doubled.
func DeviceName(vg, lv string) string {
	return strings.ReplaceAll(vg, "-", "--") + "-" + strings.ReplaceAll(lv, "-", "--")
}
