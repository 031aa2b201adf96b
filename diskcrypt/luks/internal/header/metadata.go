package header

import (
	"bytes"
	"errors"
	"fmt"
	"maps"
	"math"
	"slices"
	"strings"

	"github.com/lockstep-backup/lockstep/diskcrypt/luks/internal/keyslot"
)

const (
	maxKeyslotsSize = 128 << 20
	minDigest       = 20 // shorter ones would let a wrong key pass
	maxDigest       = 64
	maxSalt         = 64
	// maxChecksumBlock bounds what is read to decide one block of a re-encryption.
	maxChecksumBlock = 64 << 10
)

// parseMetadata reads and validates the JSON area of a header with copies of
// hdrSize bytes on a device of size bytes.
func parseMetadata(area []byte, hdrSize, size, dataSize int64) (*Header, error) {
	end := bytes.IndexByte(area, 0)
	if end < 0 {
		return nil, errors.New("JSON area has no terminating NUL")
	}
	if bytes.ContainsFunc(area[end:], func(r rune) bool { return r != 0 }) {
		return nil, errors.New("JSON area is not zero behind the JSON")
	}
	if end == 0 || area[0] != '{' {
		return nil, errors.New("JSON area does not start with an object")
	}
	v, err := parseTree(area[:end])
	if err != nil {
		return nil, fmt.Errorf("JSON: %w", err)
	}
	m, ok := v.(map[string]any)
	if !ok {
		return nil, errors.New("JSON is not an object")
	}
	h := &Header{HeaderSize: hdrSize}
	root := fields{"header", m, &err}
	h.readConfig(root.object("config"))
	h.readSlots(root.children("keyslots"))
	h.readSegments(root.children("segments"))
	h.readDigests(root.children("digests"))
	h.readTokens(root.children("tokens"))
	if err != nil {
		return nil, err
	}
	if err := h.validate(); err != nil {
		return nil, err
	}
	h.Extent = min(2*hdrSize+h.Areas, size)
	if size < 2*hdrSize+h.Areas {
		h.warn("device of %d bytes ends inside the key slots area of %d bytes", size, 2*hdrSize+h.Areas)
	}
	for _, s := range h.Segments {
		end := s.Offset
		if s.Size > 0 {
			end += s.Size
		}
		if s.Live() && end > dataSize {
			h.warn("segment %d reaches to %d, beyond the device of %d bytes", s.Number, end, dataSize)
		}
	}
	return h, nil
}

func sortedNumbers(m map[int]fields) []int { return slices.Sorted(maps.Keys(m)) }

func (h *Header) readConfig(f fields) {
	if n := f.bytes64("json_size"); n != h.HeaderSize-binaryBytes {
		f.fail("json_size is %d in a header of %d bytes", n, h.HeaderSize)
	}
	h.Areas = f.bytes64("keyslots_size")
	if h.Areas > maxKeyslotsSize || h.Areas%pageBytes != 0 {
		f.fail("keyslots_size is %d", h.Areas)
	}
	if f.has("flags") {
		h.Flags = f.texts("flags")
	}
	switch f.m["requirements"].(type) {
	case nil:
		if f.has("requirements") {
			f.fail("requirements is null")
		}
	case []any: // as the specification has it; cryptsetup writes the object
		h.Requirements = f.texts("requirements")
	default:
		r := f.object("requirements")
		if r.has("mandatory") {
			h.Requirements = r.texts("mandatory")
		}
	}
}

func (h *Header) readSlots(all map[int]fields) {
	for _, number := range sortedNumbers(all) {
		f := all[number]
		s := Slot{Number: number, Type: f.text("type"), Priority: 1, Digest: -1, Raw: f.m}
		keyBytes := int(f.int("key_size", 1, keyslot.MaxKeyBytes))
		if f.has("priority") {
			s.Priority = int(f.int("priority", 0, 2))
		}
		a := f.object("area")
		areaType := a.text("type")
		s.Area = Area{a.bytes64("offset"), a.bytes64("size")}
		switch s.Type {
		case SlotLUKS2:
			if areaType != "raw" {
				a.fail("type %q of a luks2 key slot", areaType)
			}
			s.Box = readBox(f, a, keyBytes)
			s.Box.Offset, s.Box.Size = s.Area.Offset, s.Area.Size
			if s.Area.Size < keyslot.MaterialSize(keyBytes) {
				a.fail("size %d is too small for a key of %d bytes", s.Area.Size, keyBytes)
			}
		case SlotReencrypt:
			s.Reencryption = readReencryption(f, a, areaType)
		}
		h.Slots = append(h.Slots, s)
	}
}

func readReencryption(f, area fields, areaType string) *Reencryption {
	r := &Reencryption{Mode: f.text("mode"), Direction: f.text("direction"), Resilience: areaType}
	if r.Mode != "reencrypt" && r.Mode != "encrypt" && r.Mode != "decrypt" {
		f.fail("mode %q is not known", r.Mode)
	}
	if r.Direction != "forward" && r.Direction != "backward" {
		f.fail("direction %q is not known", r.Direction)
	}
	if areaType == "checksum" || areaType == "datashift-checksum" {
		r.Hash = area.text("hash")
		r.BlockSize = int64(area.int("sector_size", sectorBytes, maxChecksumBlock))
		if r.BlockSize&(r.BlockSize-1) != 0 {
			area.fail("sector_size %d", r.BlockSize)
		}
	}
	if strings.HasPrefix(areaType, "datashift") {
		r.Shift = area.bytes64("shift_size")
		if r.Shift == 0 || r.Shift%sectorBytes != 0 {
			area.fail("shift_size %d", r.Shift)
		}
	}
	return r
}

func readBox(f, area fields, keyBytes int) keyslot.Box {
	b := keyslot.Box{
		KeyBytes:      keyBytes,
		Cipher:        area.text("encryption"),
		CipherKeySize: int(area.int("key_size", 1, keyslot.MaxKeyBytes)),
	}
	af := f.object("af")
	if t := af.text("type"); t != "luks1" {
		af.fail("type %q is not known", t)
	}
	af.int("stripes", keyslot.Stripes, keyslot.Stripes)
	b.AFHash = strings.ToLower(af.text("hash"))
	k := f.object("kdf")
	b.KDF.Type = k.text("type")
	b.KDF.Salt = k.base64("salt", maxSalt)
	switch b.KDF.Type {
	case keyslot.PBKDF2:
		b.KDF.Hash = strings.ToLower(k.text("hash"))
		b.KDF.Iterations = k.int("iterations", 1, math.MaxUint32)
	case keyslot.Argon2i, keyslot.Argon2id:
		b.KDF.Time = k.int("time", 1, math.MaxUint32)
		b.KDF.MemoryKiB = k.int("memory", 1, math.MaxUint32)
		b.KDF.Lanes = k.int("cpus", 1, math.MaxUint32)
	}
	return b
}

func (h *Header) readSegments(all map[int]fields) {
	for _, number := range sortedNumbers(all) {
		f := all[number]
		s := Segment{Number: number, Type: f.text("type"), Offset: f.bytes64("offset"), SectorSize: sectorBytes}
		if size, ok := f.m["size"].(string); ok && size == "dynamic" {
			s.Size = -1
		} else if s.Size = f.bytes64("size"); s.Size == 0 {
			f.fail("size is 0")
		}
		if s.Offset%sectorBytes != 0 || s.Size > 0 && s.Size%sectorBytes != 0 {
			f.fail("offset %d or size %d is not a whole number of sectors", s.Offset, s.Size)
		}
		if f.has("flags") {
			s.Flags = f.texts("flags")
		}
		if s.Type == SegmentCrypt || s.Type == SegmentOPALCrypt {
			s.IVTweak = f.decimal("iv_tweak")
			s.Encryption = f.text("encryption")
			s.SectorSize = int(f.int("sector_size", sectorBytes, pageBytes))
			if s.SectorSize&(s.SectorSize-1) != 0 {
				f.fail("sector_size %d", s.SectorSize)
			}
			if s.Size > 0 && s.SectorSize > 0 && s.Size%int64(s.SectorSize) != 0 {
				f.fail("size %d is not a whole number of sectors of %d", s.Size, s.SectorSize)
			}
		}
		if f.has("integrity") {
			i := f.object("integrity")
			s.Integrity = i.text("type")
			if i.has("journal_encryption") {
				s.JournalCrypt = i.text("journal_encryption")
			}
			if i.has("journal_integrity") {
				s.JournalMAC = i.text("journal_integrity")
			}
		}
		h.Segments = append(h.Segments, s)
	}
}

func (h *Header) readDigests(all map[int]fields) {
	for _, number := range sortedNumbers(all) {
		f := all[number]
		d := Digest{Number: number, Type: f.text("type"), Slots: f.numbers("keyslots"), Segments: f.numbers("segments")}
		if d.Type == keyslot.PBKDF2 {
			d.Check = keyslot.Digest{
				Hash:       strings.ToLower(f.text("hash")),
				Iterations: f.int("iterations", 1, math.MaxUint32),
				Salt:       f.base64("salt", maxSalt),
				Sum:        f.base64("digest", maxDigest),
			}
			if len(d.Check.Sum) < minDigest {
				f.fail("digest of %d bytes", len(d.Check.Sum))
			}
		}
		h.Digests = append(h.Digests, d)
	}
}

func (h *Header) readTokens(all map[int]fields) {
	for _, number := range sortedNumbers(all) {
		f := all[number]
		h.Tokens = append(h.Tokens, Token{Number: number, Type: f.text("type"), Slots: f.numbers("keyslots"), Raw: f.m})
	}
}

// validate checks what holds between objects.
func (h *Header) validate() error {
	areas := Area{2 * h.HeaderSize, h.Areas}
	for i, s := range h.Slots {
		if s.Area.Size == 0 || s.Area.Offset < areas.Offset || s.Area.Size > areas.Size || s.Area.End() > areas.End() {
			return fmt.Errorf("key slot %d: area [%d, %d) is not inside the key slots area [%d, %d)",
				s.Number, s.Area.Offset, s.Area.End(), areas.Offset, areas.End())
		}
		for _, other := range h.Slots[:i] {
			if overlap(s.Area, other.Area) {
				return fmt.Errorf("key slots %d and %d: areas overlap", other.Number, s.Number)
			}
		}
	}
	if err := h.validateSegments(); err != nil {
		return err
	}
	return h.validateReferences()
}

func (h *Header) validateSegments() error {
	if len(h.Segments) == 0 {
		return errors.New("no segment")
	}
	live := h.Live()
	for i, s := range live {
		if s.Number != i {
			return fmt.Errorf("segment %d is missing", i)
		}
		if s.Size < 0 && i != len(live)-1 {
			return fmt.Errorf("segment %d has no end and is not the last", i)
		}
		if !h.Reencrypting() && s.Offset > 0 && s.Offset < 2*h.HeaderSize+h.Areas {
			return fmt.Errorf("segment %d at %d lies in the header of %d bytes", i, s.Offset, 2*h.HeaderSize+h.Areas)
		}
	}
	return nil
}

// Reencrypting reports a requirement that says that keys or data are on the move.
func (h *Header) Reencrypting() bool {
	for _, r := range h.Requirements {
		if r == RequireOfflineReencrypt || strings.HasPrefix(r, RequireOnlineReencrypt) {
			return true
		}
	}
	return h.OfflineReencryption
}

func (h *Header) validateReferences() error {
	slots, segments := map[int]*Slot{}, map[int]bool{}
	for i := range h.Slots {
		slots[h.Slots[i].Number] = &h.Slots[i]
	}
	for _, s := range h.Segments {
		segments[s.Number] = true
	}
	for _, d := range h.Digests {
		for _, n := range d.Slots {
			s := slots[n]
			if s == nil {
				return fmt.Errorf("digest %d lists key slot %d, which does not exist", d.Number, n)
			}
			if s.Digest >= 0 {
				return fmt.Errorf("key slot %d has more than one digest", n)
			}
			s.Digest = d.Number
		}
		for _, n := range d.Segments {
			if !segments[n] {
				return fmt.Errorf("digest %d lists segment %d, which does not exist", d.Number, n)
			}
		}
	}
	for _, s := range h.Segments {
		if s.Type == SegmentCrypt && h.DigestOf(s.Number) == nil {
			return fmt.Errorf("segment %d has no digest", s.Number)
		}
	}
	for _, s := range h.Slots {
		if s.Digest < 0 {
			return fmt.Errorf("key slot %d has no digest", s.Number)
		}
	}
	for _, t := range h.Tokens {
		for _, n := range t.Slots {
			if slots[n] == nil {
				return fmt.Errorf("token %d lists key slot %d, which does not exist", t.Number, n)
			}
		}
	}
	return nil
}
