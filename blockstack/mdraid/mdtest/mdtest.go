// Package mdtest writes md superblocks for tests, without the kernel's driver.
// mdadm is the judge of what it writes.
package mdtest

import (
	"encoding/binary"

	"github.com/lockstep-backup/lockstep/blockstack/mdraid"
)

// Array is what superblocks say.
type Array struct {
	Version  string
	Level    int
	Devices  int
	Name     string
	Updated  uint64 // seconds; 0 is some day
	Spare    bool
	Features uint32
	// In sectors; 0 is what fits.
	DataOffset, DataSize uint64
	Elsewhere            bool // the superblock says that it is somewhere else
}

// DataOffset is where the data of versions 1.1 and 1.2 begin.
const DataOffset = 1 << 20

var le = binary.LittleEndian

// Write writes the superblock of one member of an array over a device, and
// leaves the rest of it alone.
func Write(b []byte, a Array, role int) {
	size := uint64(len(b))
	if a.Updated == 0 {
		a.Updated = 1700000000
	}
	switch a.Version {
	case "0.90":
		writeOld(b[size&^0xffff-0x10000:], a, role)
	case "1.0":
		at := (size/512 - 16) &^ 7
		write(b[at*512:], a, role, at, 0, at)
	case "1.1":
		write(b, a, role, 0, DataOffset/512, size/512-DataOffset/512)
	case "1.2":
		write(b[4096:], a, role, 8, DataOffset/512, size/512-DataOffset/512)
	}
}

func write(b []byte, a Array, role int, at, from, sectors uint64) {
	if a.DataOffset > 0 {
		from = a.DataOffset
	}
	if a.DataSize > 0 {
		sectors = a.DataSize
	}
	if a.Elsewhere {
		at += 8
	}
	b = b[:4096]
	clear(b)
	le.PutUint32(b, 0xA92B4EFC)
	le.PutUint32(b[4:], 1)
	le.PutUint32(b[8:], a.Features)
	for i := range 16 {
		b[16+i], b[168+i] = byte(0x10+i), byte(0x80+role+i)
	}
	copy(b[32:64], a.Name)
	le.PutUint64(b[64:], 1700000000)
	le.PutUint32(b[72:], uint32(a.Level))
	le.PutUint64(b[80:], sectors&^127) // of each device, whole chunks
	le.PutUint32(b[88:], 128)
	le.PutUint32(b[92:], uint32(a.Devices))
	le.PutUint64(b[128:], from)
	le.PutUint64(b[136:], sectors)
	le.PutUint64(b[144:], at)
	le.PutUint32(b[160:], uint32(role))
	le.PutUint64(b[192:], a.Updated)
	le.PutUint64(b[200:], 17)
	le.PutUint64(b[208:], 1<<64-1) // in sync
	le.PutUint32(b[220:], uint32(a.Devices))
	for i := range a.Devices {
		le.PutUint16(b[256+2*i:], uint16(i))
		if a.Spare {
			le.PutUint16(b[256+2*i:], 0xffff)
		}
	}
	le.PutUint32(b[216:], mdraid.Sum(b[:256+2*a.Devices]))
}

func writeOld(b []byte, a Array, role int) {
	b = b[:4096]
	clear(b)
	word := func(n int, v uint32) { le.PutUint32(b[4*n:], v) }
	word(0, 0xA92B4EFC)
	word(2, 90)
	word(5, 0x01020304)
	word(6, 1700000000)
	word(7, uint32(a.Level))
	word(8, 4<<10) // KiB of each device
	word(9, uint32(a.Devices))
	word(10, uint32(a.Devices))
	word(13, 0x05060708)
	word(14, 0x090a0b0c)
	word(15, 0x0d0e0f10)
	word(32, uint32(a.Updated))
	word(33, 1) // clean
	word(34, uint32(a.Devices))
	word(35, uint32(a.Devices))
	word(39, 17)
	for i := range a.Devices {
		disk(b[4*(128+32*i):], i)
	}
	disk(b[4*992:], role)
	word(38, mdraid.OldSum(b))
}

// disk describes an active member in sync.
func disk(b []byte, i int) {
	le.PutUint32(b, uint32(i))
	le.PutUint32(b[4:], 7)
	le.PutUint32(b[8:], uint32(16*i))
	le.PutUint32(b[12:], uint32(i))
	le.PutUint32(b[16:], 6)
}

// Fix makes the checksum of what may be a superblock right.
func Fix(b []byte, old bool) {
	if old {
		le.PutUint32(b[152:], mdraid.OldSum(b))
		return
	}
	if n := le.Uint32(b[220:]); n <= (4096-256)/2 {
		le.PutUint32(b[216:], mdraid.Sum(b[:256+2*n]))
	}
}
