package veracrypt

import (
	"bytes"
	"encoding/binary"
	"hash/crc32"
)

// Sizes and places of headers, in bytes.
const (
	headerSize = 512
	saltSize   = 64
	fieldsAt   = saltSize // what is behind the salt is encrypted

	groupSize     = 64 << 10  // a header and what keeps it apart from the next
	backupGroups  = 2         // at the end of the volume
	systemAt      = 62 * 512  // of a disk with a boot loader
	oldHiddenAt   = -1536     // from the end, TrueCrypt 3 to 5
	leastWithBack = 4 * 65536 // room for both groups
)

// place is where a header may be.
type place struct {
	id     string
	note   string
	offset int64
	order  int
	hidden bool
	atEnd  bool
	old    bool // its volume lies before it, by the header's size alone
}

// headerPlaces are the places of a volume of size bytes, in the order in which
// they are tried. Hidden headers are random bytes where there is no hidden
// volume: that one opens is the only sign of it.
func headerPlaces(size int64, system bool) []place {
	if system {
		if size < systemAt+headerSize {
			return nil
		}
		return []place{{id: "system", note: "system encryption, sector 62 of the disk", offset: systemAt}}
	}
	if size < headerSize+512 {
		return nil
	}
	out := []place{{id: "header", note: "of the outer volume", offset: 0}}
	if size >= groupSize+headerSize {
		out = append(out, place{id: "hidden", note: "of a hidden volume, if there is one", offset: groupSize, hidden: true})
	}
	if size >= leastWithBack {
		out = append(out,
			place{id: "backup", note: "copy of the outer volume's at the end", offset: size - backupGroups*groupSize, atEnd: true},
			place{id: "backup-hidden", note: "copy of the hidden volume's at the end, if there is one", offset: size - groupSize, hidden: true, atEnd: true})
	}
	if size >= headerSize-oldHiddenAt {
		out = append(out, place{id: "old-hidden", note: "of a hidden volume of TrueCrypt before 6.0, if there is one", offset: size + oldHiddenAt, hidden: true, atEnd: true, old: true})
	}
	for i := range out {
		out[i].order = i
	}
	return out
}

// header is what a decrypted header says.
type header struct {
	version    uint16
	hiddenSize uint64
	volumeSize uint64
	dataOffset uint64
	dataSize   uint64
	flags      uint32
	sectorSize uint32
	keys       []byte // 256 bytes, of the buffer that was decoded
}

const (
	flagSystem  = 1
	flagInPlace = 2

	keysAt   = 192
	keysSize = 256
)

// Magic of a decrypted header.
var (
	magicVera = []byte("VERA")
	magicTrue = []byte("TRUE")
)

// decode reads the 448 decrypted bytes behind the salt; ok is false where the
// key was wrong. The magic must be that of the key derivation: VeraCrypt's
// counts do not open TrueCrypt's volumes, nor the other way round.
func decode(b []byte, magic []byte) (h header, ok bool) {
	if len(b) != headerSize-saltSize || !bytes.Equal(b[:4], magic) {
		return h, false
	}
	be := binary.BigEndian
	h = header{
		version: be.Uint16(b[4:]), hiddenSize: be.Uint64(b[28:]), volumeSize: be.Uint64(b[36:]),
		dataOffset: be.Uint64(b[44:]), dataSize: be.Uint64(b[52:]), flags: be.Uint32(b[60:]), sectorSize: be.Uint32(b[64:]),
		keys: b[keysAt : keysAt+keysSize],
	}
	if crc32.ChecksumIEEE(h.keys) != be.Uint32(b[8:]) {
		return h, false
	}
	if h.version >= 4 && crc32.ChecksumIEEE(b[:188]) != be.Uint32(b[188:]) {
		return h, false
	}
	return h, true
}
