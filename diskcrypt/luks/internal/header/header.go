// Package header reads the headers of LUKS1 and LUKS2 into one model and
// validates them as strictly as cryptsetup does. It opens nothing and writes
// nothing. Its invariant: every offset and size in a Header that Read returned
// without error was checked, so that readers need not check again.
package header

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"strings"

	"github.com/lockstep-backup/lockstep/diskcrypt/luks/internal/keyslot"
)

// Errors of Read.
var (
	ErrNone    = errors.New("no LUKS header")
	ErrDamaged = errors.New("LUKS header is damaged")
)

const (
	sectorBytes = 512
	pageBytes   = 4096
)

var (
	magic          = []byte("LUKS\xba\xbe")
	magicSecondary = []byte("SKUL\xba\xbe")
	// magicOffline is what cryptsetup-reencrypt (until 2.4) leaves in place of
	// the LUKS1 magic while it works.
	magicOffline = []byte("LUKS\xde\xad")
)

// Slot types.
const (
	SlotLUKS2     = "luks2" // a volume key in a box; LUKS1 slots are shown as this
	SlotReencrypt = "reencrypt"
)

// Segment types.
const (
	SegmentCrypt     = "crypt"
	SegmentLinear    = "linear"
	SegmentOPAL      = "hw-opal"
	SegmentOPALCrypt = "hw-opal-crypt"
)

// Known mandatory requirements.
const (
	RequireOfflineReencrypt = "offline-reencrypt"
	RequireOnlineReencrypt  = "online-reencrypt" // with "-v2" and "-v3", the versions whose state is authenticated
	RequireOPAL             = "opal"
	RequireInlineTags       = "inline-hw-tags"
)

// Header is what a LUKS header says.
type Header struct {
	Version   int
	UUID      string
	Label     string
	Subsystem string

	Slots    []Slot // ascending
	Digests  []Digest
	Segments []Segment // ascending
	Tokens   []Token

	Requirements []string
	Flags        []string

	// Copies are the binary headers with their JSON: one of 592 bytes for
	// LUKS1, primary and secondary for LUKS2 (nil where not valid).
	Copies     [2][]byte
	HeaderSize int64 // LUKS2: of one copy
	Areas      int64 // LUKS2: keyslots_size
	SequenceID uint64
	// Extent is the length of what a header backup holds, Gap included.
	Extent int64
	// KeyBytes and FirstArea are LUKS1's size of the volume key and offset of slot 0's area.
	KeyBytes  int
	FirstArea int64
	// OfflineReencryption: the magic of a LUKS1 header says that it is being re-encrypted.
	OfflineReencryption bool
	// SecondaryOnly: no primary was found, not even a damaged one.
	SecondaryOnly bool
	Warnings      []string
}

// Slot is one key slot.
type Slot struct {
	Number   int
	Type     string
	Box      keyslot.Box // for SlotLUKS2
	Priority int         // 0 ignore, 1 normal, 2 prefer
	Digest   int         // number of the digest that lists it
	Area     Area
	Raw      map[string]any // LUKS2
	// Reencryption is what a SlotReencrypt says, nil for others.
	Reencryption *Reencryption
}

// Reencryption is how data are being moved from one key to another, in a way
// that survives a crash.
type Reencryption struct {
	Mode       string // "reencrypt", "encrypt", "decrypt"
	Direction  string // "forward", "backward"
	Resilience string // "none", "checksum", "journal", "datashift", "datashift-checksum", "datashift-journal"
	Hash       string // of the checksums
	BlockSize  int64  // bytes that one checksum covers, 0 where there are none
	Shift      int64  // bytes that data are moved by, 0 where they stay
}

// Area is a part of the key-slots area.
type Area struct{ Offset, Size int64 }

// End is the first byte behind the area.
func (a Area) End() int64 { return a.Offset + a.Size }

// Digest recognises the volume key of the slots and segments it lists.
type Digest struct {
	Number   int
	Type     string
	Check    keyslot.Digest
	Slots    []int
	Segments []int
}

// Segment is a part of the plaintext device.
type Segment struct {
	Number     int
	Type       string
	Offset     int64
	Size       int64 // -1: to the end of the device
	IVTweak    uint64
	Encryption string
	SectorSize int
	Flags      []string
	Integrity  string // type, "" for none
	// JournalCrypt and JournalMAC name what protects the journal of integrity tags, "" or "none" for nothing.
	JournalCrypt, JournalMAC string
}

// Live reports that the segment is part of the device now, and not a note of a re-encryption.
func (s Segment) Live() bool {
	for _, f := range s.Flags {
		if strings.HasPrefix(f, "backup-") {
			return false
		}
	}
	return true
}

// Has reports whether the segment carries a flag.
func (s Segment) Has(flag string) bool {
	for _, f := range s.Flags {
		if f == flag {
			return true
		}
	}
	return false
}

// Token is a LUKS2 token, as its JSON object.
type Token struct {
	Number int
	Type   string
	Slots  []int
	Raw    map[string]any
}

// Live returns the segments that make up the device.
func (h *Header) Live() []Segment {
	var out []Segment
	for _, s := range h.Segments {
		if s.Live() {
			out = append(out, s)
		}
	}
	return out
}

// Flagged returns the segment with the flag, nil if there is none.
func (h *Header) Flagged(flag string) *Segment {
	for i := range h.Segments {
		if h.Segments[i].Has(flag) {
			return &h.Segments[i]
		}
	}
	return nil
}

// Reencryption returns the state of a re-encryption and where its area lies, nil if there is none.
func (h *Header) Reencryption() (*Reencryption, *Slot) {
	for i := range h.Slots {
		if s := &h.Slots[i]; s.Reencryption != nil {
			return s.Reencryption, s
		}
	}
	return nil, nil
}

// DigestOf returns the digest that lists segment number, nil if none.
func (h *Header) DigestOf(segment int) *Digest {
	for i := range h.Digests {
		for _, s := range h.Digests[i].Segments {
			if s == segment {
				return &h.Digests[i]
			}
		}
	}
	return nil
}

// Digest returns digest number, nil if there is none.
func (h *Header) Digest(number int) *Digest {
	for i := range h.Digests {
		if h.Digests[i].Number == number {
			return &h.Digests[i]
		}
	}
	return nil
}

// Read finds and reads the header at the start of r, of size bytes. dataSize
// is the size of the device with the data, the same unless the header is
// detached. ErrNone: no LUKS. ErrDamaged: the Header is non-nil and holds what
// could be read, for showing only.
func Read(r io.ReaderAt, size, dataSize int64) (*Header, error) {
	first := make([]byte, pageBytes)
	n, err := readAtMost(r, first, 0, size)
	if err != nil {
		return nil, fmt.Errorf("read LUKS header: %w", err)
	}
	first = first[:n]
	version := 0
	if len(first) >= 8 {
		version = int(first[6])<<8 | int(first[7])
	}
	switch {
	case bytes.HasPrefix(first, magicOffline), bytes.HasPrefix(first, magic) && version == 1:
		return read1(r, first, size)
	case bytes.HasPrefix(first, magic) && version == 2, !bytes.HasPrefix(first, magic):
		return read2(r, first, size, dataSize)
	}
	return &Header{Version: version}, damaged("version %d is not known", version)
}

// defect is an ErrDamaged that says only what is wrong: the caller's own error
// already says that it is damage.
type defect string

func (d defect) Error() string        { return string(d) }
func (d defect) Is(target error) bool { return target == ErrDamaged }

func damaged(format string, args ...any) error { return defect(fmt.Sprintf(format, args...)) }

// readAtMost reads what there is of b at off in a device of size bytes. Less
// than len(b) is not an error, a failing device is.
func readAtMost(r io.ReaderAt, b []byte, off, size int64) (int, error) {
	if off >= size {
		return 0, nil
	}
	b = b[:min(int64(len(b)), size-off)]
	n, err := r.ReadAt(b, off)
	if err != nil && !errors.Is(err, io.EOF) {
		return n, err
	}
	return n, nil
}

// text is a NUL-terminated field.
func text(b []byte) string {
	if i := bytes.IndexByte(b, 0); i >= 0 {
		b = b[:i]
	}
	return string(b)
}

// printable keeps what a terminal or a log can show of a text from a disk.
func printable(s string) string {
	return strings.Map(func(r rune) rune {
		if r < 0x20 || r == 0x7f || r >= 0x80 && r < 0xa0 || r == 0xfffd {
			return '?'
		}
		return r
	}, s)
}

func overlap(a, b Area) bool { return a.Offset < b.End() && b.Offset < a.End() }
