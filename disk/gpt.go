package disk

import (
	"bytes"
	"crypto/rand"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"hash/crc32"
	"strings"
	"unicode"
	"unicode/utf16"
)

// Offsets in a GPT header and entry: UEFI specification 2.10, tables 5.5 and 5.6.
const (
	gptHeaderSize = 92
	gptRevision   = 0x00010000
	gptEntrySize  = 128
	gptEntryCount = 128
	gptNameUnits  = 36
)

var gptSignature = []byte("EFI PART")

// gptHeader is one of the two, already checked against its CRC.
type gptHeader struct {
	at, alternate           uint64 // LBA
	firstUsable, lastUsable uint64
	guid                    [16]byte
	entriesAt               uint64
	entryCount, entrySize   uint32
	entriesCRC              uint32
	entries                 []byte // entryCount × entrySize, already checked
}

// damaged says why a copy cannot be used: empty text means that there is none.
type damaged string

// readGPT reads the better copy of a GPT. Not found: the disk may have an MBR.
func (l *reader) readGPT(sector0 []byte, mbr masterBoot) (found bool, err error) {
	if mbr.sane && !mbr.protective && mbr.used() {
		return false, l.noteStaleGPT()
	}
	if !mbr.protective && (isFileSystemBoot(sector0) || bytes.HasPrefix(sector0, []byte("LUKS\xba\xbe"))) {
		return false, nil // what is behind can only be left over
	}
	primaryThere := false
	for _, sectorSize := range []int64{512, 4096} {
		primary, bad, err := l.readGPTCopy(sectorSize, 1)
		if err != nil {
			return false, err
		}
		primaryThere = primaryThere || bad != ""
		if primary == nil {
			continue
		}
		l.layout.SectorSize = int(sectorSize)
		if !mbr.protective {
			l.warn("the protective MBR is missing")
		}
		if err := l.compareWithBackup(primary, sectorSize); err != nil {
			return false, err
		}
		l.takeGPT(primary)
		return true, nil
	}
	// A backup alone may be left over from an earlier life of the disk, so
	// something at its beginning must speak for it.
	blank := false
	if !mbr.protective && !primaryThere {
		if blank, err = l.blankStart(); err != nil {
			return false, err
		}
	}
	for _, sectorSize := range []int64{512, 4096} {
		backup, bad, err := l.readGPTCopy(sectorSize, uint64(l.size/sectorSize)-1)
		if err != nil {
			return false, err
		}
		if backup == nil {
			if bad != "" && (mbr.protective || primaryThere) {
				l.warn("backup GPT: %s", bad)
			}
			continue
		}
		if !mbr.protective && !primaryThere && !blank {
			l.warn("a GPT at the end of the disk is left over: nothing at its beginning belongs to it")
			return false, nil
		}
		l.layout.SectorSize = int(sectorSize)
		l.warn("the primary GPT is damaged or missing: the backup is used")
		if !mbr.protective {
			l.warn("the protective MBR is missing")
		}
		l.takeGPT(backup)
		return true, nil
	}
	if mbr.protective || primaryThere {
		l.warn("there was a GPT, but neither copy of it can be used")
	}
	return false, nil
}

func (m masterBoot) used() bool {
	for _, e := range m.entries {
		if !e.empty() {
			return true
		}
	}
	return false
}

func (l *reader) noteStaleGPT() error {
	for _, sectorSize := range []int64{512, 4096} {
		stale, _, err := l.readGPTCopy(sectorSize, 1)
		if err != nil {
			return err
		}
		if stale != nil {
			l.warn("a GPT is there as well, but the MBR does not name it: the MBR is used")
			return nil
		}
	}
	return nil
}

// blankStart reports whether the first 256 KiB, where every known file system
// and container has its mark, are zero.
func (l *reader) blankStart() (bool, error) {
	start := make([]byte, min(256<<10, l.size))
	if err := l.read(start, 0); err != nil {
		return false, err
	}
	return bytes.Count(start, []byte{0}) == len(start), nil
}

// readGPTCopy reads and checks the header at a sector, and its entries.
func (l *reader) readGPTCopy(sectorSize int64, at uint64) (*gptHeader, damaged, error) {
	sectors := uint64(l.size / sectorSize)
	if at == 0 || at >= sectors {
		return nil, "", nil
	}
	b := make([]byte, sectorSize)
	if err := l.read(b, int64(at)*sectorSize); err != nil {
		return nil, "", err
	}
	if !bytes.HasPrefix(b, gptSignature) {
		return nil, "", nil
	}
	le := binary.LittleEndian
	headerSize := le.Uint32(b[12:])
	if headerSize < gptHeaderSize || int64(headerSize) > sectorSize {
		return nil, "header size out of range", nil
	}
	sum := le.Uint32(b[16:])
	clear(b[16:20])
	if crc32.ChecksumIEEE(b[:headerSize]) != sum {
		return nil, "header checksum is wrong", nil
	}
	h := &gptHeader{
		at: le.Uint64(b[24:]), alternate: le.Uint64(b[32:]),
		firstUsable: le.Uint64(b[40:]), lastUsable: le.Uint64(b[48:]),
		guid:      [16]byte(b[56:72]),
		entriesAt: le.Uint64(b[72:]), entryCount: le.Uint32(b[80:]), entrySize: le.Uint32(b[84:]),
		entriesCRC: le.Uint32(b[88:]),
	}
	switch {
	case le.Uint32(b[8:])>>16 != gptRevision>>16:
		return nil, "unknown revision", nil
	case h.at != at:
		return nil, "header names another place as its own", nil
	case h.entrySize < gptEntrySize || h.entrySize > maxEntrySize || h.entrySize%8 != 0:
		return nil, "entry size out of range", nil
	case uint64(h.entryCount)*uint64(h.entrySize) > maxEntryBytes:
		return nil, "too many entries", nil
	}
	n := int64(h.entryCount) * int64(h.entrySize)
	if h.entriesAt == 0 || h.entriesAt >= sectors || n > l.size-int64(h.entriesAt)*sectorSize {
		return nil, "entries lie outside of the disk", nil
	}
	h.entries = make([]byte, n)
	if err := l.read(h.entries, int64(h.entriesAt)*sectorSize); err != nil {
		return nil, "", err
	}
	if crc32.ChecksumIEEE(h.entries) != h.entriesCRC {
		return nil, "entries checksum is wrong", nil
	}
	return h, "", nil
}

// compareWithBackup only warns: the primary is good.
func (l *reader) compareWithBackup(primary *gptHeader, sectorSize int64) error {
	last := uint64(l.size/sectorSize) - 1
	at := primary.alternate
	if at != last {
		l.warn("the backup GPT is not at the end of the disk (was the disk resized?)")
	}
	backup, bad, err := l.readGPTCopy(sectorSize, at)
	if err != nil {
		return err
	}
	switch {
	case backup == nil && bad != "":
		l.warn("the backup GPT is damaged: %s", bad)
	case backup == nil || at == primary.at:
		l.warn("the backup GPT is missing")
	case backup.guid != primary.guid || !bytes.Equal(backup.entries, primary.entries):
		l.warn("the two copies of the GPT differ: the primary is used")
	}
	return nil
}

func (l *reader) takeGPT(h *gptHeader) {
	l.layout.Table = TableGPT
	l.layout.GUID = guidText(h.guid)
	for i := range int(h.entryCount) {
		e := h.entries[i*int(h.entrySize):]
		kind := [16]byte(e[:16])
		if kind == ([16]byte{}) {
			continue
		}
		first, last := binary.LittleEndian.Uint64(e[32:]), binary.LittleEndian.Uint64(e[40:])
		if first < h.firstUsable || last > h.lastUsable {
			l.warn("partition %d lies not wholly in the usable area", i+1)
		}
		l.add(Partition{Number: i + 1, Type: guidText(kind), GUID: guidText([16]byte(e[16:32])), Name: gptName(e[56:128])}, first, last)
	}
}

// gptName decodes UTF-16LE up to the first NUL. Names end on terminals, so
// whatever a terminal might obey is replaced.
func gptName(b []byte) string {
	units := make([]uint16, 0, gptNameUnits)
	for i := 0; i+1 < len(b); i += 2 {
		u := binary.LittleEndian.Uint16(b[i:])
		if u == 0 {
			break
		}
		units = append(units, u)
	}
	return strings.Map(func(r rune) rune {
		if unicode.IsPrint(r) {
			return r
		}
		return unicode.ReplacementChar
	}, string(utf16.Decode(units)))
}

// guidText: the first three fields are little-endian (UEFI 2.10, appendix A).
func guidText(g [16]byte) string {
	le := binary.LittleEndian
	return fmt.Sprintf("%08X-%04X-%04X-%X-%X", le.Uint32(g[:]), le.Uint16(g[4:]), le.Uint16(g[6:]), g[8:10], g[10:])
}

func parseGUID(s string) (g [16]byte, err error) {
	raw, err := hex.DecodeString(strings.ReplaceAll(s, "-", ""))
	if err != nil || len(raw) != 16 || len(s) != 36 || s[8] != '-' || s[13] != '-' || s[18] != '-' || s[23] != '-' {
		return g, fmt.Errorf("%q is not a GUID", s)
	}
	copy(g[:], raw)
	for _, field := range [][]byte{g[0:4], g[4:6], g[6:8]} {
		for i, j := 0, len(field)-1; i < j; i, j = i+1, j-1 {
			field[i], field[j] = field[j], field[i]
		}
	}
	return g, nil
}

// NewGUID makes a random one (RFC 9562, version 4), in upper case.
func NewGUID() string {
	var g [16]byte
	_, _ = rand.Read(g[:]) // never fails
	g[7] = g[7]&0x0F | 0x40
	g[8] = g[8]&0x3F | 0x80
	return guidText(g)
}

var errGPT = errors.New("write GPT")
