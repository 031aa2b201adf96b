package luks

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash"
	"io"
	"strings"

	"github.com/lockstep-backup/lockstep/diskcrypt"
	"github.com/lockstep-backup/lockstep/diskcrypt/internal/plainview"
	"github.com/lockstep-backup/lockstep/diskcrypt/luks/internal/header"
	"github.com/lockstep-backup/lockstep/diskcrypt/luks/internal/keyslot"
	"github.com/lockstep-backup/lockstep/envelope"
)

// Flags of segments while data are being moved from one key to another.
const (
	flagHot      = "in-reencryption" // the step that was running
	flagPrevious = "backup-previous"
	flagFinal    = "backup-final"
	flagMoved    = "backup-moved-segment"
)

// Kinds of resilience.
const (
	resilienceNone      = "none"
	resilienceChecksum  = "checksum"
	resilienceJournal   = "journal"
	resilienceDatashift = "datashift"
)

// maxZone is the longest step that cryptsetup makes.
const maxZone = 1 << 30

// unsupportedConversion names why data in the middle of a conversion cannot be
// read, "" if they can (but for what undecided says).
func (v *volume) unsupportedConversion() []string {
	h := v.h
	if h.OfflineReencryption {
		return []string{offlineText}
	}
	version := ""
	for _, r := range h.Requirements {
		switch {
		case r == header.RequireOfflineReencrypt:
			return []string{offlineText}
		case r == header.RequireOnlineReencrypt:
			return []string{"re-encryption in progress by cryptsetup 2.2 to 2.4.2, whose state is not authenticated: finish it with 'cryptsetup repair' and 'cryptsetup reencrypt --resume-only'"}
		case strings.HasPrefix(r, header.RequireOnlineReencrypt):
			version = strings.TrimPrefix(r, header.RequireOnlineReencrypt)
		}
	}
	if version != "-v2" && version != "-v3" {
		return []string{fmt.Sprintf("re-encryption in progress of an unknown version %q", version)}
	}
	r, _ := h.Reencryption()
	if r == nil || h.Flagged(flagPrevious) == nil || h.Flagged(flagFinal) == nil {
		return []string{"re-encryption in progress without a record of its start and goal"}
	}
	var why []string
	for _, first := range []bool{true, false} {
		if _, err := protection(r, first); err != nil {
			why = append(why, err.Error())
			break
		}
	}
	for _, s := range h.Segments {
		if s.Type == header.SegmentLinear {
			continue
		}
		keyBytes := 0
		if d := h.DigestOf(s.Number); d != nil && !s.Has(flagHot) {
			keyBytes = v.keyBytes(d)
		}
		for _, w := range unsupportedSegment(s, keyBytes) {
			why = append(why, fmt.Sprintf("segment %d: %s", s.Number, w))
		}
		if s.Integrity != "" {
			why = append(why, fmt.Sprintf("segment %d: integrity %q in a conversion", s.Number, s.Integrity))
		}
	}
	return why
}

const offlineText = "offline re-encryption in progress: its state is in the files LUKS-<uuid>.log, .new and .org of the machine that runs it, and the header opens nothing without them"

// maybeMoved reports that a segment need not be what the header says. Without
// resilience cryptsetup writes the header when it is done or is told to stop,
// and not at each step: after a crash any part of what the header has as before
// may be as after.
func (v *volume) maybeMoved(s header.Segment) bool {
	r, _ := v.h.Reencryption()
	final := v.h.Flagged(flagFinal)
	return r != nil && r.Resilience == resilienceNone && final != nil && (s.Has(flagHot) || !alike(v.h, s, *final))
}

// undecided says how much of the plaintext nobody can decide, "" if nothing.
func (v *volume) undecided() string {
	var n int64
	for _, s := range v.h.Live() {
		if v.maybeMoved(s) {
			n += v.sizeOf(s)
		}
	}
	if n == 0 {
		return ""
	}
	return fmt.Sprintf("%d bytes cannot be read: they %s; finish the conversion and back up again", n, errUndecided)
}

// verifyConversion checks, with the keys that the state of the conversion
// needs, that this state is the one which who has the keys wrote: a forged one
// would have plaintext read as ciphertext, or the reverse.
func (v *volume) verifyConversion(keys keyring, meter *keyslot.Meter) error {
	r, slot := v.h.Reencryption()
	d := v.h.Digest(slot.Digest)
	message, err := v.conversionState(r, slot, keys)
	if err != nil {
		return err
	}
	defer envelope.Wipe(message)
	ok, err := verify(d, message, meter)
	if err != nil {
		return passOver(nil, fmt.Sprintf("digest %d", d.Number), err)
	}
	if !ok {
		return fmt.Errorf("%w: the state of the re-encryption does not match its digest %d: who wrote it had not both keys, or it is damaged", diskcrypt.ErrDamaged, d.Number)
	}
	return v.checkSegments(r)
}

// conversionState is what the digest of a conversion is made over.
func (v *volume) conversionState(r *header.Reencryption, slot *header.Slot, keys keyring) ([]byte, error) {
	version := byte('2')
	for _, q := range v.h.Requirements {
		if q == header.RequireOnlineReencrypt+"-v3" {
			version = '3'
		}
	}
	m := make([]byte, 0, 2*keyslot.MaxKeyBytes+2048) // keys leave no copy behind in a smaller one
	m = append(m, 'v', version)
	last := -1
	previous, final, moved := v.h.Flagged(flagPrevious), v.h.Flagged(flagFinal), v.h.Flagged(flagMoved)
	for _, s := range []*header.Segment{previous, final} {
		d := v.h.DigestOf(s.Number)
		if d == nil || d.Number == last {
			continue
		}
		last = d.Number
		m = append(m, keys[d.Number].key...)
	}
	m = append(m, r.Mode+r.Direction+r.Resilience...)
	m = binary.BigEndian.AppendUint64(m, uint64(slot.Area.Offset))
	m = binary.BigEndian.AppendUint64(m, uint64(slot.Area.Size))
	if r.Hash != "" {
		m = append(m, r.Hash...)
		m = binary.BigEndian.AppendUint32(m, uint32(r.BlockSize))
	}
	if r.Shift > 0 {
		m = binary.BigEndian.AppendUint64(m, uint64(r.Shift))
	}
	for _, s := range []*header.Segment{previous, final, moved} {
		if s == nil {
			continue
		}
		m = append(m, s.Type...)
		m = binary.BigEndian.AppendUint64(m, uint64(s.Offset))
		if s.Size < 0 {
			m = append(m, "dynamic"...)
		} else {
			m = binary.BigEndian.AppendUint64(m, uint64(s.Size))
		}
		switch s.Type {
		case header.SegmentCrypt:
			m = binary.BigEndian.AppendUint64(m, s.IVTweak)
			m = append(m, s.Encryption...)
			m = binary.BigEndian.AppendUint32(m, uint32(s.SectorSize))
		case header.SegmentLinear:
		default:
			return nil, fmt.Errorf("%w: segment type %q in a conversion", diskcrypt.ErrUnsupported, s.Type)
		}
	}
	return m, nil
}

// checkSegments holds what is live against start and goal, which are
// authenticated: nothing else may be in between.
func (v *volume) checkSegments(r *header.Reencryption) error {
	previous, final := v.h.Flagged(flagPrevious), v.h.Flagged(flagFinal)
	if (r.Mode == "encrypt") == encrypted(*previous) || (r.Mode == "decrypt") == encrypted(*final) {
		return fmt.Errorf("%w: mode %s from a segment of type %s to one of type %s", diskcrypt.ErrDamaged, r.Mode, previous.Type, final.Type)
	}
	hot := 0
	for _, s := range v.h.Live() {
		if s.Has(flagHot) {
			hot++
		}
		if !alike(v.h, s, *previous) && !alike(v.h, s, *final) {
			return fmt.Errorf("%w: segment %d is neither as before nor as after the conversion", diskcrypt.ErrDamaged, s.Number)
		}
	}
	if hot > 1 {
		return fmt.Errorf("%w: %d segments are being converted at once", diskcrypt.ErrDamaged, hot)
	}
	return nil
}

func alike(h *header.Header, a, b header.Segment) bool {
	if a.Type != b.Type || a.Encryption != b.Encryption || a.SectorSize != b.SectorSize {
		return false
	}
	return !encrypted(a) || a.Has(flagHot) || h.DigestOf(a.Number) == h.DigestOf(b.Number)
}

// hotZone is the step that was running when the machine stopped: what lies in
// it may be as before, as after, or block by block either. Nothing of it is
// decided before it is read: the data may be those of another recovery point
// with the same header.
type hotZone struct {
	offset, length int64 // logical
	from           int64 // on the data device
	unit           uint64
	before, after  side
	kept           *plainview.Run // where data as before are whole, nil where blocks decide
	blockSize      int64
	newHash        func() hash.Hash
	hashSize       int64
	sums           int64 // where the checksums of the blocks as before are on the header's device
	data, head     io.ReaderAt
}

var errUndecided = errors.New("may be as before or as after the conversion, which keeps no record (resilience none)")

func (b *builder) hotZone(s header.Segment, offset, length int64) (*hotZone, error) {
	h := b.v.h
	r, slot := h.Reencryption()
	z := &hotZone{offset: offset, length: length, from: s.Offset, unit: s.IVTweak, data: b.v.data, head: b.v.head}
	if length > maxZone {
		return nil, fmt.Errorf("%w: a step of %d bytes", diskcrypt.ErrDamaged, length)
	}
	if r.Mode == "decrypt" {
		z.unit = uint64(offset) / ivUnit
	}
	var err error
	if z.before, err = b.of(*h.Flagged(flagPrevious)); err != nil {
		return nil, err
	}
	if z.after, err = b.of(*h.Flagged(flagFinal)); err != nil {
		return nil, err
	}
	if length%z.before.sectorSize() != 0 || length%z.after.sectorSize() != 0 {
		return nil, fmt.Errorf("%w: a step of %d bytes is not of whole sectors", diskcrypt.ErrDamaged, length)
	}
	how, err := protection(r, offset == 0)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", diskcrypt.ErrUnsupported, err)
	}
	keep := func(from int64, unit uint64) {
		run := z.before.run(offset, length, from, unit)
		z.kept = &run
	}
	switch how {
	case resilienceChecksum:
		return z, z.checksums(r, slot)
	case resilienceJournal:
		if length > slot.Area.Size {
			return nil, fmt.Errorf("%w: a step of %d bytes in a journal of %d", diskcrypt.ErrDamaged, length, slot.Area.Size)
		}
		keep(headerBase+slot.Area.Offset, z.unit)
	case resilienceDatashift:
		moved := h.Flagged(flagMoved)
		switch {
		case offset == 0 && moved == nil:
			return nil, fmt.Errorf("%w: the first part is on the move and no segment says where it was put", diskcrypt.ErrDamaged)
		case offset == 0:
			keep(moved.Offset, 0)
		case r.Direction == "forward":
			keep(s.Offset+r.Shift, z.unit)
		case s.Offset < r.Shift:
			return nil, fmt.Errorf("%w: shift of %d bytes at %d", diskcrypt.ErrDamaged, r.Shift, s.Offset)
		default:
			keep(s.Offset-r.Shift, z.unit)
		}
	}
	return z, nil
}

// protection is what tells the state of a step: the first part of the device
// has one of its own where the rest is protected by the shift of its data.
func protection(r *header.Reencryption, first bool) (string, error) {
	how, own, shifted := strings.Cut(r.Resilience, "-")
	if shifted && first {
		how = own
	}
	switch how {
	case resilienceNone, resilienceChecksum, resilienceJournal, resilienceDatashift:
		return how, nil
	}
	return "", fmt.Errorf("re-encryption with resilience %q", r.Resilience)
}

func (z *hotZone) checksums(r *header.Reencryption, slot *header.Slot) error {
	newHash, err := keyslot.NewHash(r.Hash)
	if err != nil {
		return fmt.Errorf("%w: checksums of a re-encryption: %w", diskcrypt.ErrUnsupported, err)
	}
	z.newHash, z.hashSize, z.blockSize, z.sums = newHash, int64(newHash().Size()), r.BlockSize, slot.Area.Offset
	switch {
	case z.length%z.blockSize != 0, z.blockSize%z.before.sectorSize() != 0, z.blockSize%z.after.sectorSize() != 0:
		return fmt.Errorf("%w: a step of %d bytes with checksums of blocks of %d", diskcrypt.ErrDamaged, z.length, z.blockSize)
	case z.length/z.blockSize*z.hashSize > slot.Area.Size:
		return fmt.Errorf("%w: checksums of a step of %d bytes do not fit %d bytes", diskcrypt.ErrDamaged, z.length, slot.Area.Size)
	}
	return nil
}

func (z *hotZone) covers(off int64) bool { return off >= z.offset && off-z.offset < z.length }

func (z *hotZone) at(off int64) plainview.Run {
	if z.kept != nil {
		return *z.kept
	}
	i := (off - z.offset) / z.blockSize
	at := z.offset + i*z.blockSize
	from, unit := z.from+i*z.blockSize, z.unit+uint64(i*z.blockSize)/ivUnit
	is, err := z.isBefore(i, from)
	switch {
	case err != nil:
		return plainview.Run{Offset: at, Length: z.blockSize, Kind: plainview.Unreadable, Why: err}
	case is:
		return z.before.run(at, z.blockSize, from, unit)
	}
	return z.after.run(at, z.blockSize, from, unit)
}

// isBefore tells by its checksum whether a block is as it was before.
func (z *hotZone) isBefore(i, from int64) (bool, error) {
	want, block := make([]byte, z.hashSize), make([]byte, z.blockSize)
	defer envelope.Wipe(block) // it may be plaintext
	if err := readAll(z.head, want, z.sums+i*z.hashSize); err != nil {
		return false, fmt.Errorf("read checksum of block %d: %w", i, err)
	}
	if err := readAll(z.data, block, from); err != nil {
		return false, err
	}
	h := z.newHash()
	h.Write(block)
	return string(h.Sum(nil)) == string(want), nil
}

func readAll(r io.ReaderAt, b []byte, off int64) error {
	n, err := r.ReadAt(b, off)
	if n == len(b) {
		return nil
	}
	if err == nil || errors.Is(err, io.EOF) {
		err = io.ErrUnexpectedEOF
	}
	return err
}
