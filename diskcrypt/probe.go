package diskcrypt

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"strings"

	"github.com/lockstep-backup/lockstep/blockstack"
)

// Probe names a volume by signature alone, nil where none of the signatures is
// one of an encryption. Formats that read the header say more.
func Probe(p Place, signatures []blockstack.Signature) *Volume {
	for _, s := range signatures {
		v := Volume{UUID: s.UUID, Label: s.Label, Protectors: []Protector{}}
		switch s.Class {
		case blockstack.LUKS1:
			v.Type, v.Unsupported = TypeLUKS1, "no reader for LUKS is linked in"
		case blockstack.LUKS2:
			v.Type, v.Unsupported = TypeLUKS2, "no reader for LUKS is linked in"
		case blockstack.BitLocker:
			v.Type, v.UUID = TypeBitLocker, bitLockerGUID(p, s)
			v.Unsupported = "no reader for BitLocker is linked in"
		case blockstack.ToGo:
			v.Type, v.UUID = TypeBitLocker, bitLockerGUID(p, s)
			v.Unsupported = "no reader for BitLocker is linked in"
		case blockstack.CoreStore:
			v.Type, v.Unsupported = TypeFileVault, "CoreStorage, as FileVault 2 uses it: recognised, not opened; it may hold volumes without encryption"
		case blockstack.APFS:
			v.Type, v.Unsupported = TypeAPFS, "APFS: recognised, not opened; its volumes may or may not be encrypted"
		case blockstack.Integrity:
			v.Type, v.Unsupported = TypeOpaque, "dm-integrity: what it holds is not looked into; may be encrypted"
		default:
			continue
		}
		return &v
	}
	return nil
}

// bitLockerGUID reads the volume's GUID from the first of its three metadata
// blocks that is one (libbde, "BitLocker Drive Encryption format"), "" if none is.
func bitLockerGUID(p Place, s blockstack.Signature) string {
	boot := make([]byte, 512)
	if _, err := p.Data.ReadAt(boot, 0); err != nil {
		return ""
	}
	var offsets []uint64
	switch {
	case s.Version == "vista": // a cluster number
		cluster := uint64(binary.LittleEndian.Uint16(boot[11:])) * uint64(boot[13])
		if lcn := binary.LittleEndian.Uint64(boot[56:]); cluster > 0 && lcn < 1<<40 {
			offsets = append(offsets, lcn*cluster)
		}
	case s.Class == blockstack.ToGo:
		offsets = threeOffsets(boot[440:])
	default:
		offsets = threeOffsets(boot[176:])
	}
	const blockHeader, guidAt = 64, 16
	for _, off := range offsets {
		b := make([]byte, blockHeader+guidAt+16)
		if off >= uint64(p.Size) {
			continue
		}
		if _, err := p.Data.ReadAt(b, int64(off)); err != nil || !bytes.HasPrefix(b, []byte("-FVE-FS-")) {
			continue
		}
		g := b[blockHeader+guidAt:]
		return strings.ToLower(fmt.Sprintf("%08x-%04x-%04x-%x-%x", binary.LittleEndian.Uint32(g), binary.LittleEndian.Uint16(g[4:]),
			binary.LittleEndian.Uint16(g[6:]), g[8:10], g[10:16]))
	}
	return ""
}

func threeOffsets(b []byte) (offsets []uint64) {
	for i := range 3 {
		offsets = append(offsets, binary.LittleEndian.Uint64(b[8*i:]))
	}
	return offsets
}
