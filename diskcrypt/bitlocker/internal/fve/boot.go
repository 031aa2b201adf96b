// Package fve reads what BitLocker keeps on a volume: the boot sector, the
// metadata blocks with their datums, the bitmaps of a conversion, and the files
// of startup keys. It decrypts nothing. Its invariant: every offset and size
// that it returns without error lies inside the volume and within bounds, so
// that readers need not check again.
package fve

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"math"
)

// Errors of this package.
var (
	ErrNone    = errors.New("no BitLocker volume")
	ErrDamaged = errors.New("BitLocker metadata are damaged")
)

var le = binary.LittleEndian

// GUID as it is stored: the first three fields little endian.
type GUID [16]byte

func (g GUID) String() string {
	return fmt.Sprintf("%08x-%04x-%04x-%x-%x", le.Uint32(g[:]), le.Uint16(g[4:]), le.Uint16(g[6:]), g[8:10], g[10:16])
}

// The GUIDs that mark a boot sector.
var (
	GUIDNormal = GUID{0x3b, 0xd6, 0x67, 0x49, 0x29, 0x2e, 0xd8, 0x4a, 0x83, 0x99, 0xf6, 0xa3, 0x39, 0xe3, 0xd0, 0x01}
	GUIDEOW    = GUID{0x3b, 0x4d, 0xa8, 0x92, 0x80, 0xdd, 0x0e, 0x4d, 0x9e, 0x4e, 0xb1, 0xe3, 0x28, 0x4e, 0xae, 0xd8}
)

// Magic is how metadata blocks start, and boot sectors but for three bytes.
var Magic = []byte("-FVE-FS-")

// BootSize is what of the boot sector is read, whatever the sector size.
const BootSize = 512

// Flavours of a boot sector.
const (
	Vista = "vista" // Windows Vista and Server 2008
	Seven = "seven" // Windows 7 and later
	ToGo  = "to-go" // on a removable drive with FAT
)

// Boot is what a boot sector says.
type Boot struct {
	Flavour    string
	SectorSize int
	Offsets    []int64 // of the metadata blocks, as they stand there
	EOW        []int64 // of the conversion's information, where there is any
}

// ParseBoot reads a boot sector of BootSize bytes. ErrNone: it is not BitLocker's.
func ParseBoot(b []byte) (Boot, error) {
	if len(b) < BootSize {
		return Boot{}, ErrNone
	}
	b = b[:BootSize]
	boot := Boot{SectorSize: int(le.Uint16(b[11:]))}
	switch boot.SectorSize {
	case 512, 4096:
	case 0:
		boot.SectorSize = 512
	default:
		// Damage must not hide that this is BitLocker's; the metadata may tell the size.
		boot.SectorSize = 0
	}
	switch {
	case bytes.HasPrefix(b, []byte("\xeb\x52\x90-FVE-FS-")):
		boot.Flavour = Vista
		if lcn, cluster := le.Uint64(b[56:]), uint64(boot.SectorSize)*uint64(b[13]); cluster > 0 && lcn <= math.MaxInt64/cluster {
			boot.Offsets = []int64{int64(lcn * cluster)}
		}
		return boot, nil
	case bytes.Equal(b[3:11], Magic):
		boot.Flavour = Seven
	default:
		boot.Flavour = ToGo
	}
	// The driver looks for the GUID wherever it is.
	at, n := bytes.Index(b, GUIDNormal[:]), 3
	if eow := bytes.Index(b, GUIDEOW[:]); at < 0 {
		at, n = eow, 5
	}
	if at < 0 && boot.Flavour == ToGo {
		return Boot{}, ErrNone
	}
	if at < 0 || at+16+8*n > BootSize {
		return boot, nil
	}
	for i := range n {
		off := le.Uint64(b[at+16+8*i:])
		switch {
		case off > math.MaxInt64:
		case i < 3:
			boot.Offsets = append(boot.Offsets, int64(off))
		default:
			boot.EOW = append(boot.EOW, int64(off))
		}
	}
	return boot, nil
}
