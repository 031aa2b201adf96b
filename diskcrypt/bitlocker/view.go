package bitlocker

import (
	"cmp"
	"encoding/binary"
	"errors"
	"io"
	"slices"

	"github.com/lockstep-backup/lockstep/disk"
	"github.com/lockstep-backup/lockstep/diskcrypt/bitlocker/internal/fve"
	"github.com/lockstep-backup/lockstep/diskcrypt/internal/plainview"
)

// vistaPlain is how much of a volume of Vista is never encrypted.
const vistaPlain = 0x2000

// logicalSize is the size of the opened volume: all whole sectors of the place.
func (m *metadata) logicalSize() int64 { return m.size / m.sector * m.sector }

// align widens ranges to whole sectors.
func (m *metadata) align(rs disk.Ranges) disk.Ranges {
	out := make([]disk.Range, 0, len(rs))
	for _, r := range rs {
		from := r.Offset / m.sector * m.sector
		out = append(out, disk.Range{Offset: from, Length: (r.End() - from + m.sector - 1) / m.sector * m.sector})
	}
	return disk.Normalize(out...)
}

// reserved is what the volume keeps for BitLocker's own use; inside it reads zero.
func (m *metadata) reserved() disk.Ranges {
	var rs []disk.Range
	room := m.block.Room()
	if m.block.Version == 1 {
		room = (room + m.cluster - 1) / m.cluster * m.cluster
	}
	for _, off := range m.block.Offsets {
		rs = append(rs, disk.Range{Offset: off, Length: room})
	}
	rs = append(rs, disk.Range{Offset: m.block.VirtualOffset, Length: m.block.VirtualSectors * m.sector})
	if m.eow != nil {
		rs = append(rs, m.eow.Reserved...)
	}
	return m.align(disk.Normalize(rs...).Intersect(m.all()))
}

// all is the whole logical volume.
func (m *metadata) all() disk.Ranges { return disk.Normalize(disk.Range{Length: m.logicalSize()}) }

// encrypted is what of the volume's bytes is ciphertext.
func (m *metadata) encrypted() disk.Ranges {
	all := disk.Range{Length: m.logicalSize()}
	b := m.block
	switch {
	case b.State == fve.StateDecrypted:
		return nil
	case b.Version == 1:
		all.Offset, all.Length = vistaPlain, max(0, all.Length-vistaPlain)
		if m.backupBoot > 0 {
			return disk.Normalize(all).Subtract(disk.Normalize(disk.Range{Offset: m.backupBoot, Length: m.sector}))
		}
	case m.eow != nil:
		return m.align(m.eow.Encrypted.Intersect(m.all()))
	case b.StateOffset != 0:
		all.Length = min(all.Length, b.StateOffset/m.sector*m.sector)
	}
	return disk.Normalize(all)
}

// window is what the conversion log covers while a step is done: whether it is
// ciphertext cannot be told.
func (m *metadata) window() disk.Ranges {
	if b := m.block; m.eow == nil && b.Version == 2 && b.State == fve.StateSwitching && b.StateSize > 0 {
		return m.align(disk.Normalize(disk.Range{Offset: b.StateOffset, Length: b.StateSize}).Intersect(m.all()))
	}
	return nil
}

var errWindow = errors.New("the volume was copied in the middle of a conversion step, and this part lies in its log")

// plan is where the bytes of the logical volume are.
func (m *metadata) plan(c plainview.Cipher) plainview.Runs {
	var runs plainview.Runs
	add := func(kind plainview.Kind, rs disk.Ranges, shift int64) {
		for _, r := range rs {
			run := plainview.Run{Offset: r.Offset - shift, Length: r.Length, Kind: kind, From: r.Offset}
			switch kind {
			case plainview.Crypt:
				run.Cipher, run.Unit = c, uint64(r.Offset)/unitSize
			case plainview.Unreadable:
				run.Why = errWindow
			}
			runs = append(runs, run)
		}
	}
	all, encrypted := m.all(), m.encrypted()

	// The start of the volume lies where it was moved to.
	head := disk.Range{Length: min(m.block.VirtualSectors*m.sector, m.logicalSize())}
	moved := disk.Normalize(disk.Range{Offset: m.block.VirtualOffset, Length: head.Length}).Intersect(all)
	window := m.window()
	add(plainview.Unreadable, moved.Intersect(window), m.block.VirtualOffset)
	moved = moved.Subtract(window)
	add(plainview.Crypt, moved.Intersect(encrypted), m.block.VirtualOffset)
	add(plainview.Plain, moved.Subtract(encrypted), m.block.VirtualOffset)

	rest := all.Subtract(disk.Normalize(head))
	if m.eowFailed != nil {
		return m.lostConversion(c, head, rest)
	}
	zero := rest.Intersect(m.reserved())
	rest = rest.Subtract(zero)
	add(plainview.Zero, zero, 0)
	add(plainview.Unreadable, rest.Intersect(window), 0)
	rest = rest.Subtract(window)
	add(plainview.Crypt, rest.Intersect(encrypted), 0)
	add(plainview.Plain, rest.Subtract(encrypted), 0)
	slices.SortFunc(runs, func(a, b plainview.Run) int { return cmp.Compare(a.Offset, b.Offset) })
	return runs
}

var errLostConversion = errors.New("how far the volume was converted is lost, so nobody can tell whether this part is encrypted")

// lostConversion is the plan where the bitmaps of a conversion are lost: the
// moved boot area as it was found to be, and nothing else.
func (m *metadata) lostConversion(c plainview.Cipher, head disk.Range, rest disk.Ranges) (runs plainview.Runs) {
	if head.Length > 0 {
		runs = append(runs, plainview.Run{
			Length: head.Length, Kind: m.head, From: m.block.VirtualOffset, Unit: uint64(m.block.VirtualOffset) / unitSize,
			Cipher: c, Why: errLostConversion,
		})
	}
	for _, r := range rest {
		runs = append(runs, plainview.Run{Offset: r.Offset, Length: r.Length, Kind: plainview.Unreadable, Why: errLostConversion})
	}
	return runs
}

// data is what the plan's runs are read from: on Vista the boot sector, and its
// copy in the last sector, are the file system's own with two fields changed,
// which are put back.
func (m *metadata) data(r io.ReaderAt) io.ReaderAt {
	if m.block.Version != 1 {
		return r
	}
	p := patched{ReaderAt: r, mirror: m.block.MirrorLCN, at: []int64{0}}
	if m.backupBoot > 0 {
		p.at = append(p.at, m.backupBoot)
	}
	return p
}

// patched gives Vista's boot sectors as NTFS had them.
type patched struct {
	io.ReaderAt
	mirror uint64
	at     []int64
}

func (p patched) ReadAt(b []byte, off int64) (int, error) {
	n, err := p.ReaderAt.ReadAt(b, off)
	for _, at := range p.at {
		patch(b[:n], at+3-off, []byte("NTFS    "))
		patch(b[:n], at+56-off, binary.LittleEndian.AppendUint64(nil, p.mirror))
	}
	return n, err
}

// patch puts what of field lies inside b at its place, which may begin before b.
func patch(b []byte, at int64, field []byte) {
	switch {
	case at <= -int64(len(field)) || at >= int64(len(b)):
	case at < 0:
		copy(b, field[-at:])
	default:
		copy(b[at:], field)
	}
}
