// Package mdraid reads the superblocks of Linux's software RAID (md): what a
// device is a member of, and where its share of the data lies. It assembles
// nothing. Its invariant: the data of a superblock that it returns lie on the
// device that was read.
package mdraid

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"strings"

	"github.com/lockstep-backup/lockstep/disk"
)

// Errors of Read.
var (
	ErrNoMember = errors.New("no md superblock")
	ErrDamaged  = errors.New("md superblock is damaged")
)

// Member is what a superblock says of the device that carries it.
type Member struct {
	Version string     // "0.90", "1.0", "1.1", "1.2"
	Offset  int64      // of the superblock
	UUID    string     // of the array, as mdadm prints it: 01234567:89abcdef:…
	Name    string     // of the array, "" of 0.90
	Level   int        // 1, 0, 5, …, -1 linear, -4 multipath
	Devices int        // that the array has
	Role    int        // among them, -1 for spares, members that failed, journals
	Events  uint64     // of two members, the one with more is newer
	Data    disk.Range // the device's share of the data
	// Unusual names what keeps Data from being the array's content although the
	// level would say so: a reshape, a recovery that has not reached the end.
	Unusual string
}

const (
	magic     = 0xA92B4EFC
	superSize = 4096 // what a superblock may have
	headSize  = 256  // of version 1, without roles

	// features of version 1
	recoveryOffset = 1 << 1
	reshapeActive  = 1 << 2
	journal        = 1 << 9
)

var le = binary.LittleEndian

// Mirror says that the device's data are the array's, whole: a leg of a RAID1.
func (m Member) Mirror() bool { return m.Level == 1 && m.Unusual == "" && m.Role >= 0 }

// LevelName is the level as mdadm names it.
func (m Member) LevelName() string {
	switch m.Level {
	case -1:
		return "linear"
	case -4:
		return "multipath"
	case -5:
		return "faulty"
	case -10:
		return "container"
	}
	return fmt.Sprintf("raid%d", m.Level)
}

// places are where superblocks lie, those at the end first: what is at the
// start of such a member is the array's content, and may look like a member itself.
func places(size int64) []struct {
	version string
	offset  int64
} {
	sectors := size / disk.SectorSize
	return []struct {
		version string
		offset  int64
	}{{"1.0", ((sectors - 16) &^ 7) * disk.SectorSize}, {"0.90", size&^0xffff - 0x10000}, {"1.1", 0}, {"1.2", 4096}}
}

// Read finds the superblock of a device of size bytes. ErrNoMember where there is
// none, ErrDamaged where there is one and it is not whole. Of several the one
// that was updated last counts.
func Read(r io.ReaderAt, size int64) (Member, error) {
	var best Member
	var newest uint64
	found, damaged := false, error(nil)
	for _, p := range places(size) {
		if p.offset < 0 || p.offset > size-superSize {
			continue
		}
		b := make([]byte, superSize)
		if n, err := r.ReadAt(b, p.offset); n < len(b) {
			return Member{}, fmt.Errorf("read md superblock: %w", err)
		}
		if le.Uint32(b) != magic {
			continue
		}
		var m Member
		var updated uint64
		var err error
		switch major := le.Uint32(b[4:]); {
		case major == 0 && p.version == "0.90":
			m, updated, err = readOld(b, p.offset)
		case major == 1 && p.version != "0.90":
			m, updated, err = readNew(b, p.offset, size)
		default:
			continue
		}
		if err != nil {
			damaged = fmt.Errorf("%w: version %s: %w", ErrDamaged, p.version, err)
			continue
		}
		if m.Version = p.version; !found || updated > newest {
			best, newest, found = m, updated, true
		}
	}
	switch {
	case found:
		return best, nil
	case damaged != nil:
		return Member{}, damaged
	}
	return Member{}, ErrNoMember
}

// readNew reads version 1 (struct mdp_superblock_1 of the kernel).
func readNew(b []byte, at, size int64) (m Member, updated uint64, err error) {
	roles := int64(le.Uint32(b[220:]))
	if roles > (superSize-headSize)/2 {
		return m, 0, fmt.Errorf("%d devices", roles)
	}
	if Sum(b[:headSize+2*roles]) != le.Uint32(b[216:]) {
		return m, 0, errors.New("its checksum is wrong")
	}
	if int64(le.Uint64(b[144:])) != at/disk.SectorSize {
		return m, 0, errors.New("it is that of another place")
	}
	m = Member{
		Offset: at, UUID: fmt.Sprintf("%x:%x:%x:%x", b[16:20], b[20:24], b[24:28], b[28:32]), Name: printable(b[32:64]), Level: int(int32(le.Uint32(b[72:]))),
		Devices: int(min(le.Uint32(b[92:]), 1<<16)), Events: le.Uint64(b[200:]), Role: -1,
	}
	if n := int64(le.Uint32(b[160:])); n < roles {
		if role := le.Uint16(b[headSize+2*n:]); role < 0xfff0 {
			m.Role = int(role)
		}
	}
	from, length := le.Uint64(b[128:]), le.Uint64(b[136:])
	if m.Level == 1 && le.Uint64(b[80:]) > 0 {
		length = min(length, le.Uint64(b[80:])) // what each member gives
	}
	if m.Data, err = within(from, length, size); err != nil {
		return m, 0, err
	}
	switch features := le.Uint32(b[8:]); {
	case features&reshapeActive != 0:
		m.Unusual = "a reshape is under way"
	case features&journal != 0 && m.Role < 0:
		m.Unusual = "it is the array's journal"
	case features&recoveryOffset != 0 && le.Uint64(b[152:]) < length:
		m.Unusual = "it was not recovered to its end"
	}
	return m, le.Uint64(b[192:]) & (1<<40 - 1), nil
}

// readOld reads version 0.90 (struct mdp_superblock_s), in the byte order of PCs.
func readOld(b []byte, at int64) (m Member, updated uint64, err error) {
	word := func(n int) uint32 { return le.Uint32(b[4*n:]) }
	if OldSum(b) != word(38) {
		return m, 0, errors.New("its checksum is wrong")
	}
	m = Member{
		Offset: at, UUID: fmt.Sprintf("%08x:%08x:%08x:%08x", word(5), word(13), word(14), word(15)), Level: int(int32(word(7))), Devices: int(min(word(10), 1<<16)),
		Events: uint64(word(39)) | uint64(word(40))<<32, Role: -1,
	}
	const this, roleWord, stateWord, active, inSync, faulty = 992, 3, 4, 1 << 1, 1 << 2, 1 << 0
	if state := word(this + stateWord); state&active != 0 && state&inSync != 0 && state&faulty == 0 {
		m.Role = int(min(word(this+roleWord), 1<<16))
	}
	length := int64(word(8)) * 1024
	if length <= 0 || length > at || m.Level != 1 {
		length = at
	}
	m.Data = disk.Range{Length: length}
	if word(3) >= 91 {
		m.Unusual = "a reshape is under way"
	}
	return m, uint64(word(32)), nil
}

// within checks a run of sectors.
func within(from, length uint64, size int64) (disk.Range, error) {
	sectors := uint64(size) / disk.SectorSize
	if from > sectors || length == 0 || length > sectors-from {
		return disk.Range{}, fmt.Errorf("its data, %d sectors from %d on, do not lie on the device of %d", length, from, sectors)
	}
	return disk.Range{Offset: int64(from) * disk.SectorSize, Length: int64(length) * disk.SectorSize}, nil
}

// Sum is the checksum of a version-1 superblock with its roles: its words added,
// the carries folded, the field itself as zero.
func Sum(b []byte) uint32 {
	var sum uint64
	for i := 0; i+4 <= len(b); i += 4 {
		if i != 216 {
			sum += uint64(le.Uint32(b[i:]))
		}
	}
	if len(b)%4 == 2 {
		sum += uint64(le.Uint16(b[len(b)-2:]))
	}
	return uint32(sum) + uint32(sum>>32)
}

// OldSum is that of a 0.90 superblock.
func OldSum(b []byte) uint32 {
	var sum uint64
	for i := 0; i+4 <= len(b); i += 4 {
		if i != 4*38 {
			sum += uint64(le.Uint32(b[i:]))
		}
	}
	return uint32(sum) + uint32(sum>>32)
}

func printable(b []byte) string {
	s, _, _ := strings.Cut(string(b), "\x00")
	return strings.Map(func(r rune) rune {
		if r < ' ' || r > '~' {
			return '?'
		}
		return r
	}, s)
}
