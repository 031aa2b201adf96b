// Package luks reads LUKS1 and LUKS2 volumes: what is in the header, which
// secret opens it, and the plaintext behind it. It never writes to a volume
// (the formatter for demonstrations and tests is luksformat). What it cannot
// decrypt it names: hardware encryption, ciphers and tags that are not known,
// and of a conversion in progress what its own record does not decide. Its invariant: nothing a header asks for is
// done before it was checked against Limits.
package luks

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"

	"github.com/lockstep-backup/lockstep/disk"
	"github.com/lockstep-backup/lockstep/diskcrypt"
	"github.com/lockstep-backup/lockstep/diskcrypt/internal/dmcrypt"
	"github.com/lockstep-backup/lockstep/diskcrypt/internal/fingerprint"
	"github.com/lockstep-backup/lockstep/diskcrypt/luks/internal/header"
	"github.com/lockstep-backup/lockstep/diskcrypt/luks/internal/integrity"
	"github.com/lockstep-backup/lockstep/diskcrypt/luks/internal/keyslot"
)

// Format implements diskcrypt.Format for LUKS1 and LUKS2.
type Format struct{}

var _ diskcrypt.Format = Format{}

// Name is "luks".
func (Format) Name() string { return "luks" }

// volume is a header that was read, with the device its areas are on.
type volume struct {
	h        *header.Header
	head     io.ReaderAt
	headSize int64
	data     io.ReaderAt
	dataSize int64
	detached bool
}

// read finds the header of a place. With ErrDamaged the volume is non-nil.
func read(p diskcrypt.Place) (*volume, error) {
	v := &volume{head: p.Data, headSize: p.Size, data: p.Data, dataSize: p.Size}
	if p.Header != nil {
		v.head, v.headSize, v.detached = p.Header, p.HeadSize, true
	}
	h, err := header.Read(v.head, v.headSize, v.dataSize)
	switch {
	case errors.Is(err, header.ErrNone):
		return nil, diskcrypt.ErrNotThisFormat
	case errors.Is(err, header.ErrDamaged):
		v.h = h
		return v, fmt.Errorf("%w: %w", diskcrypt.ErrDamaged, err)
	case err != nil:
		return nil, err
	}
	v.h = h
	return v, nil
}

// Inspect reads the header and the areas of its live key slots.
func (Format) Inspect(ctx context.Context, p diskcrypt.Place) (*diskcrypt.Volume, error) {
	v, err := read(p)
	if err != nil && !errors.Is(err, diskcrypt.ErrDamaged) {
		return nil, err
	}
	out := v.describe()
	if err != nil {
		out.Unsupported = err.Error()
		out.Warnings = append(out.Warnings, err.Error())
		return out, err
	}
	digest := fingerprint.New("luks-header")
	for _, c := range v.h.Copies[:min(v.h.Version, 2)] {
		digest.Field(c)
	}
	for _, s := range v.h.Slots {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		out.Protectors = append(out.Protectors, v.protector(s, digest, &out.Warnings))
	}
	out.HeaderDigest = digest.Digest()
	out.Tokens = append(v.tokens(out.Protectors), v.luksMeta(out.Protectors)...)
	if opening(out.Protectors) == 0 {
		out.Warnings = append(out.Warnings, "no key slot opens this volume: it was erased; only its volume key still opens it")
	}
	return out, nil
}

func opening(ps []diskcrypt.Protector) (n int) {
	for _, p := range ps {
		if p.Kind != kindUnbound && p.Kind != kindReencryption {
			n++
		}
	}
	return n
}

// Kinds of protectors that do not open the volume.
const (
	kindPassphrase   = "passphrase"
	kindUnbound      = "unbound"
	kindReencryption = "reencryption-state"
)

// describe is what the header says without its areas.
func (v *volume) describe() *diskcrypt.Volume {
	h := v.h
	out := &diskcrypt.Volume{
		Type: diskcrypt.TypeLUKS2, UUID: h.UUID, Label: h.Label, SequenceID: h.SequenceID,
		Range: disk.Range{Length: v.dataSize}, Detached: v.detached,
		Protectors: []diskcrypt.Protector{}, Warnings: append([]string(nil), h.Warnings...),
	}
	if h.Version == 1 {
		out.Type = diskcrypt.TypeLUKS1
	}
	if h.Extent > 0 {
		out.HeaderRanges = []disk.Range{{Length: h.Extent}}
		out.HeaderEssential = essential(h)
	}
	if seg := v.mainSegment(); seg != nil {
		out.Cipher, out.SectorSize = seg.Encryption, seg.SectorSize
		if d := h.DigestOf(seg.Number); d != nil {
			out.Epoch = epoch(h, d)
			if n := v.keyBytes(d); n > 0 {
				out.KeyBits = n * 8
			}
		} else {
			out.Warnings = append(out.Warnings, "the data segment has no digest: no key can be recognised as its key")
		}
	}
	out.Conversion, out.Undecidable = v.conversion(), v.undecided()
	out.Unsupported = v.unsupported()
	out.SelfOpening = v.selfOpening()
	return out
}

// mainSegment is the segment whose key is the volume key: during a
// re-encryption the goal, or the start where the goal is not encrypted.
func (v *volume) mainSegment() *header.Segment {
	for _, flag := range []string{flagFinal, flagPrevious} {
		if s := v.h.Flagged(flag); s != nil && s.Encryption != "" && v.h.Reencrypting() {
			return s
		}
	}
	for i, s := range v.h.Segments {
		if s.Live() && s.Encryption != "" {
			return &v.h.Segments[i]
		}
	}
	return nil
}

// unsupported names why the data cannot be decrypted here, "" if it can.
func (v *volume) unsupported() string {
	h := v.h
	var why []string
	for _, r := range h.Requirements {
		switch {
		case r == header.RequireOPAL:
			why = append(why, "hardware encryption (OPAL): the image holds what the drive gave out")
		case r == header.RequireInlineTags:
			why = append(why, "integrity tags in hardware sectors")
		case r == header.RequireOfflineReencrypt, strings.HasPrefix(r, header.RequireOnlineReencrypt):
		default:
			why = append(why, fmt.Sprintf("unknown mandatory requirement %q", r))
		}
	}
	if h.Reencrypting() {
		return strings.Join(append(why, v.unsupportedConversion()...), "; ")
	}
	live := h.Live()
	for _, s := range live {
		keyBytes := 0
		if d := h.DigestOf(s.Number); d != nil {
			keyBytes = v.keyBytes(d)
		}
		why = append(why, unsupportedSegment(s, keyBytes)...)
		if s.Integrity != "" && len(live) > 1 {
			why = append(why, fmt.Sprintf("integrity in one of %d data segments", len(live)))
		}
		if s.Has(flagHot) {
			why = append(why, fmt.Sprintf("segment %d is marked as being re-encrypted, and nothing else says so", s.Number))
		}
	}
	if len(live) == 0 {
		why = append(why, "no data segment")
	}
	if h.Version == 1 && len(h.Digests) > 0 {
		why = append(why, v.unsupportedHash()...)
	}
	return strings.Join(why, "; ")
}

func unsupportedSegment(s header.Segment, keyBytes int) (why []string) {
	switch s.Type {
	case header.SegmentCrypt:
	case header.SegmentOPAL, header.SegmentOPALCrypt:
		why = append(why, "hardware encryption (segment "+s.Type+")")
	default:
		why = append(why, fmt.Sprintf("segment type %q", s.Type))
	}
	if s.Integrity != "" {
		mac := integrity.MACKeySize(s.Integrity)
		if keyBytes > 0 && keyBytes <= mac {
			return append(why, fmt.Sprintf("integrity %q with a key of %d bits", s.Integrity, keyBytes*8))
		}
		keyBytes = max(0, keyBytes-mac)
		switch {
		case mac == 0:
			return append(why, fmt.Sprintf("integrity %q with cipher %q", s.Integrity, s.Encryption))
		case !strings.HasSuffix(s.Encryption, "-plain64"):
			return append(why, fmt.Sprintf("integrity %q with the IVs of cipher %q", s.Integrity, s.Encryption))
		case !slices.Contains([]string{"", "none"}, s.JournalCrypt), !slices.Contains([]string{"", "none"}, s.JournalMAC):
			return append(why, fmt.Sprintf("integrity with a journal protected by %q and %q", s.JournalCrypt, s.JournalMAC))
		}
	}
	if s.Encryption != "" {
		if spec, err := dmcrypt.ParseSpec(s.Encryption); err != nil {
			why = append(why, fmt.Sprintf("cipher %q", s.Encryption))
		} else if keyBytes > 0 && !spec.KeySizeOK(keyBytes) {
			why = append(why, fmt.Sprintf("cipher %q with a key of %d bits", s.Encryption, keyBytes*8))
		}
	}
	return why
}

func (v *volume) unsupportedHash() []string {
	if _, err := keyslot.NewHash(v.h.Digests[0].Check.Hash); err != nil {
		return []string{fmt.Sprintf("hash %q", v.h.Digests[0].Check.Hash)}
	}
	return nil
}

// selfOpening says what on the volume itself opens it.
func (v *volume) selfOpening() string {
	if seg := v.mainSegment(); seg != nil {
		if spec, err := dmcrypt.ParseSpec(seg.Encryption); err == nil && spec.Null() {
			return "null cipher: the data are not encrypted"
		}
	}
	for _, s := range v.h.Slots {
		if s.Type == header.SlotLUKS2 && s.Box.Null() && v.bound(s) {
			return fmt.Sprintf("null cipher: key slot %d holds the volume key unencrypted", s.Number)
		}
	}
	return ""
}

// bound reports that the slot's key is the key of a data segment.
func (v *volume) bound(s header.Slot) bool {
	d := v.h.Digest(s.Digest)
	return d != nil && len(d.Segments) > 0
}

// conversion names a re-encryption in progress and its share done.
func (v *volume) conversion() string {
	h := v.h
	if !h.Reencrypting() {
		return ""
	}
	final := h.Flagged(flagFinal)
	if final == nil {
		return "offline re-encryption in progress; its state is in files of the machine that runs it"
	}
	name := "re-encryption"
	if r, _ := h.Reencryption(); r != nil && r.Mode != "reencrypt" {
		name = r.Mode + "ion"
	}
	finalDigest := h.DigestOf(final.Number)
	var done, total int64
	for _, s := range h.Live() {
		size := s.Size
		if size < 0 {
			size = max(0, v.dataSize-s.Offset)
		}
		total += size
		same := s.Type == final.Type && s.Encryption == final.Encryption && !s.Has(flagHot)
		if d := h.DigestOf(s.Number); d != finalDigest {
			same = false
		}
		if same {
			done += size
		}
	}
	if total == 0 {
		return name + " in progress"
	}
	text := fmt.Sprintf("%s in progress, %d %% done", name, int(float64(done)/float64(total)*100))
	if lost := v.undecided(); lost != "" {
		text += "; " + lost
	}
	return text
}

// protector describes a slot and adds its area to the header's digest.
func (v *volume) protector(s header.Slot, digest fingerprint.Hash, warnings *[]string) diskcrypt.Protector {
	p := diskcrypt.Protector{ID: slotID(s.Number), Kind: kindPassphrase, Fingerprint: slotFingerprint(v.h, s), Offline: true}
	var notes []string
	switch {
	case s.Type == header.SlotReencrypt:
		p.Kind, p.Offline = kindReencryption, false
		notes = append(notes, "state of the re-encryption, opens nothing")
	case s.Type != header.SlotLUKS2:
		p.Kind, p.Offline = "unknown", false
		notes = append(notes, fmt.Sprintf("key slot type %q is not known", s.Type))
	default:
		p.KDF = s.Box.KDF.String()
		if err := s.Box.Supported(); err != nil {
			notes = append(notes, err.Error())
		}
		if !v.bound(s) {
			p.Kind, p.Offline = kindUnbound, false
			notes = append(notes, "unbound: holds a key of its own and does not open the volume")
		}
		if s.Priority == 0 {
			notes = append(notes, "tried only when named (priority ignore)")
		}
		material := make([]byte, keyslot.MaterialSize(s.Box.KeyBytes))
		if _, err := io.ReadFull(io.NewSectionReader(v.head, s.Area.Offset, int64(len(material))), material); err != nil {
			*warnings = append(*warnings, fmt.Sprintf("key slot %d: its area cannot be read: %v", s.Number, err))
			notes = append(notes, "area cannot be read")
			break
		}
		sum := sha256.Sum256(material)
		p.AreaDigest = "sha256:" + hex.EncodeToString(sum[:])
		digest.Number(uint64(s.Number))
		digest.Field(material)
		if n := lowSectors(material); n > 0 && !s.Box.Null() {
			*warnings = append(*warnings, fmt.Sprintf("key slot %d: %d sectors of its area do not look encrypted: it was probably overwritten and opens no more", s.Number, n))
		}
	}
	p.Note = strings.Join(notes, "; ")
	return p
}

// lowSectors counts the sectors of a key area that are not random: one lost
// sector loses the key. Random 512 bytes repeat a value 10 times less often
// than once in 2^40 sectors; 32 is far from any false alarm and finds zeroes,
// text, partition tables and superblocks.
func lowSectors(material []byte) (n int) {
	for ; len(material) >= disk.SectorSize; material = material[disk.SectorSize:] {
		var count [256]int
		most := 0
		for _, b := range material[:disk.SectorSize] {
			count[b]++
			most = max(most, count[b])
		}
		if most >= 32 {
			n++
		}
	}
	return n
}

func slotID(number int) string { return fmt.Sprintf("slot-%d", number) }

func epoch(h *header.Header, d *header.Digest) string {
	f := fingerprint.New("luks-vk")
	f.Text(h.UUID)
	f.Text(d.Type)
	f.Text(d.Check.Hash)
	f.Number(d.Check.Iterations)
	f.Field(d.Check.Salt)
	f.Field(d.Check.Sum)
	return f.V1()
}

func slotFingerprint(h *header.Header, s header.Slot) string {
	b := s.Box
	known := b.KDF.Type == keyslot.PBKDF2 || b.KDF.Type == keyslot.Argon2i || b.KDF.Type == keyslot.Argon2id
	if s.Type != header.SlotLUKS2 || !known {
		f := fingerprint.New("luks-slot-other")
		f.Text(h.UUID)
		f.Number(uint64(s.Number))
		f.Field(header.Canonical(s.Raw))
		return f.V1()
	}
	f := fingerprint.New("luks-slot")
	f.Text(h.UUID)
	f.Number(uint64(s.Number))
	f.Text(b.KDF.Type)
	if b.KDF.Type == keyslot.PBKDF2 {
		f.Text(b.KDF.Hash)
		f.Number(b.KDF.Iterations)
	} else {
		f.Number(b.KDF.Time)
		f.Number(b.KDF.MemoryKiB)
		f.Number(b.KDF.Lanes)
	}
	f.Field(b.KDF.Salt)
	f.Text("luks1")
	f.Number(keyslot.Stripes)
	f.Text(b.AFHash)
	f.Text(b.Cipher)
	f.Number(uint64(b.CipherKeySize))
	f.Number(uint64(b.KeyBytes))
	return f.V1()
}
