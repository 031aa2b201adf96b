package header

import (
	"encoding/binary"
	"fmt"
	"io"
	"strings"

	"github.com/lockstep-backup/lockstep/diskcrypt/luks/internal/keyslot"
)

// LUKS1 on disk, "LUKS On-Disk Format Specification" 1.2.3.
const (
	luks1Bytes     = 592
	luks1Slots     = 8
	luks1SlotBase  = 208
	luks1SlotBytes = 48
	luks1Active    = 0x00AC71F3
	luks1Inactive  = 0x0000DEAD
	luks1DigestLen = 20
	// luks1MostGap bounds how much in front of the payload counts as header.
	luks1MostGap = 64 << 20
)

func read1(r io.ReaderAt, first []byte, size int64) (*Header, error) {
	h := &Header{Version: 1, HeaderSize: luks1Bytes}
	if len(first) < luks1Bytes {
		return h, damaged("device of %d bytes ends inside the header", size)
	}
	b := first[:luks1Bytes]
	h.Copies[0] = b
	h.OfflineReencryption = string(b[:6]) == string(magicOffline)
	cipher, mode := text(b[8:40]), text(b[40:72])
	hash := strings.ToLower(text(b[72:104]))
	payload := int64(binary.BigEndian.Uint32(b[104:])) * sectorBytes
	keyBytes := binary.BigEndian.Uint32(b[108:])
	h.UUID = printable(text(b[168:208]))
	encryption := printable(cipher + "-" + mode)
	h.Segments = []Segment{{Type: SegmentCrypt, Offset: payload, Size: -1, Encryption: encryption, SectorSize: sectorBytes}}
	digest := Digest{Type: keyslot.PBKDF2, Segments: []int{0}, Check: keyslot.Digest{
		Hash:       printable(hash),
		Iterations: uint64(binary.BigEndian.Uint32(b[164:])),
		Salt:       b[132:164],
		Sum:        b[112 : 112+luks1DigestLen],
	}}

	var problems []string
	bad := func(format string, args ...any) { problems = append(problems, fmt.Sprintf(format, args...)) }
	if keyBytes < 1 || keyBytes > keyslot.MaxKeyBytes {
		bad("volume key of %d bytes", keyBytes)
		keyBytes = 0
	}
	if cipher == "" || mode == "" || hash == "" {
		bad("cipher, mode or hash is empty")
	}
	if digest.Check.Iterations < 1 {
		bad("digest with 0 iterations")
	}
	if h.UUID == "" {
		h.warn("uuid is empty")
	}
	h.KeyBytes = int(keyBytes)
	material := keyslot.MaterialSize(h.KeyBytes)
	var areas [luks1Slots]Area
	for i := range luks1Slots {
		s := b[luks1SlotBase+i*luks1SlotBytes:][:luks1SlotBytes]
		state := binary.BigEndian.Uint32(s)
		iterations := binary.BigEndian.Uint32(s[4:])
		offset := int64(binary.BigEndian.Uint32(s[40:])) * sectorBytes
		stripes := binary.BigEndian.Uint32(s[44:])
		areas[i] = Area{offset, material}
		if i == 0 {
			h.FirstArea = offset
		}
		h.Extent = max(h.Extent, roundUp(areas[i].End(), pageBytes))
		switch {
		case stripes != keyslot.Stripes:
			bad("key slot %d: %d stripes", i, stripes)
		case offset < luks1Bytes:
			bad("key slot %d: area at %d lies in the header", i, offset)
		case areas[i].End() > size:
			bad("key slot %d: area [%d, %d) ends beyond the device of %d bytes", i, offset, areas[i].End(), size)
		case payload > 0 && areas[i].End() > payload:
			bad("key slot %d: area [%d, %d) reaches into the data at %d", i, offset, areas[i].End(), payload)
		case state != luks1Active && state != luks1Inactive:
			h.warn("key slot %d: state %#x is neither active nor inactive; taken for inactive", i, state)
		case state == luks1Active && iterations < 1:
			h.warn("key slot %d: 0 iterations: it opens no more", i)
		}
		for j := range i {
			if overlap(areas[i], areas[j]) {
				bad("key slots %d and %d: areas overlap", j, i)
				break
			}
		}
		if state != luks1Active {
			continue
		}
		digest.Slots = append(digest.Slots, i)
		h.Slots = append(h.Slots, Slot{
			Number: i, Type: SlotLUKS2, Priority: 1, Area: areas[i],
			Box: keyslot.Box{
				KDF:           keyslot.KDF{Type: keyslot.PBKDF2, Hash: digest.Check.Hash, Iterations: uint64(iterations), Salt: s[8:40]},
				KeyBytes:      int(keyBytes),
				AFHash:        digest.Check.Hash,
				Cipher:        encryption,
				CipherKeySize: int(keyBytes),
				Offset:        offset,
				Size:          material,
			},
		})
	}
	h.Digests = []Digest{digest}
	if len(problems) > 0 {
		h.Extent = 0
		return h, damaged("%s", strings.Join(problems, "; "))
	}
	if payload > h.Extent && payload <= luks1MostGap {
		h.Extent = payload // clevis keeps its LUKSMeta behind the last slot
	}
	h.Extent = min(h.Extent, size)
	return h, nil
}

func roundUp(n, unit int64) int64 { return (n + unit - 1) / unit * unit }
