package luks

import (
	"errors"
	"fmt"
	"io"
	"math"

	"github.com/lockstep-backup/lockstep/diskcrypt"
	"github.com/lockstep-backup/lockstep/diskcrypt/internal/dmcrypt"
	"github.com/lockstep-backup/lockstep/diskcrypt/internal/plainview"
	"github.com/lockstep-backup/lockstep/diskcrypt/luks/internal/header"
	"github.com/lockstep-backup/lockstep/diskcrypt/luks/internal/integrity"
	"github.com/lockstep-backup/lockstep/envelope"
)

// keyring are the volume keys that were found, by the number of their digest.
type keyring map[int]heldKey

type heldKey struct {
	id  string // of the protector that gave it
	key []byte
}

func (k keyring) wipe() {
	for _, h := range k {
		envelope.Wipe(h.key)
	}
}

// needed are the digests whose keys it takes to read the data.
func (v *volume) needed() ([]*header.Digest, error) {
	var out []*header.Digest
	have := map[int]bool{}
	for _, s := range v.h.Segments {
		if !encrypted(s) || !v.h.Reencrypting() && !s.Live() {
			continue
		}
		d := v.h.DigestOf(s.Number)
		if d == nil {
			return nil, fmt.Errorf("%w: segment %d has no digest", diskcrypt.ErrDamaged, s.Number)
		}
		// A segment between two keys lists both digests; the notes of start and goal name them too.
		if !have[d.Number] && !s.Has(flagHot) {
			have[d.Number] = true
			out = append(out, d)
		}
	}
	if len(out) == 0 {
		return nil, fmt.Errorf("%w: no segment has a key", diskcrypt.ErrDamaged)
	}
	return out, nil
}

func encrypted(s header.Segment) bool { return s.Type == header.SegmentCrypt }

// builder makes the map of the plaintext device.
type builder struct {
	v       *volume
	keys    keyring
	ciphers map[cipherKey]*dmcrypt.Cipher
	used    []any
}

type cipherKey struct {
	encryption string
	sectorSize int
	digest     int
}

// side is how data are stored before or after a conversion: encrypted, or as
// they are (nil cipher).
type side struct{ cipher *dmcrypt.Cipher }

func (s side) sectorSize() int64 {
	if s.cipher == nil {
		return ivUnit
	}
	return int64(s.cipher.SectorSize())
}

func (s side) run(off, length, from int64, unit uint64) plainview.Run {
	r := plainview.Run{Offset: off, Length: length, From: from, Kind: plainview.Plain}
	if s.cipher != nil {
		r.Kind, r.Unit, r.Cipher = plainview.Crypt, unit, s.cipher
	}
	return r
}

// of is the side of a segment.
func (b *builder) of(s header.Segment) (side, error) {
	if !encrypted(s) {
		return side{}, nil
	}
	d := b.v.h.DigestOf(s.Number)
	if d == nil {
		return side{}, fmt.Errorf("%w: segment %d has no digest", diskcrypt.ErrDamaged, s.Number)
	}
	held, ok := b.keys[d.Number]
	if !ok {
		return side{}, fmt.Errorf("%w: the key of segment %d is not known", diskcrypt.ErrWrongSecret, s.Number)
	}
	k := cipherKey{s.Encryption, s.SectorSize, d.Number}
	if c := b.ciphers[k]; c != nil {
		return side{c}, nil
	}
	key := held.key
	if mac := integrity.MACKeySize(s.Integrity); mac > 0 {
		key = key[:max(0, len(key)-mac)]
	}
	c, err := dmcrypt.New(s.Encryption, key, s.SectorSize)
	if err != nil {
		return side{}, fmt.Errorf("%w: %w", diskcrypt.ErrUnsupported, err)
	}
	b.ciphers[k] = c
	b.used = append(b.used, c)
	return side{c}, nil
}

// layout is a plainview.Plan: the segments one behind another, and at most one
// stretch of which each block must be looked at.
type layout struct {
	runs plainview.Runs
	zone *hotZone
}

func (l *layout) At(off int64) plainview.Run {
	if l.zone != nil && l.zone.covers(off) {
		return l.zone.at(off)
	}
	return l.runs.At(off)
}

// view makes the plaintext device of the volume.
func (v *volume) view(keys keyring) (*volumeOpened, error) {
	b := &builder{v: v, keys: keys, ciphers: map[cipherKey]*dmcrypt.Cipher{}}
	o := &volumeOpened{}
	o.Format, o.Container = "luks", v.h.UUID
	main := v.h.DigestOf(v.mainSegment().Number)
	o.ID, o.Key = keys[main.Number].id, append([]byte(nil), keys[main.Number].key...)
	o.Check = fmt.Sprintf("luks%d-digest-%d", v.h.Version, main.Number)
	live := v.h.Live()
	if s := live[0]; len(live) == 1 && s.Integrity != "" {
		return o, v.viewIntegrity(o, b, s)
	}
	l := &layout{}
	total := int64(0)
	for _, s := range live {
		size := v.sizeOf(s)
		if size > math.MaxInt64-total {
			return nil, fmt.Errorf("%w: segments are longer than any device", diskcrypt.ErrDamaged)
		}
		if size == 0 {
			continue
		}
		switch {
		case v.maybeMoved(s):
			l.runs = append(l.runs, plainview.Run{Offset: total, Length: size, Kind: plainview.Unreadable, Why: errUndecided})
		case s.Has(flagHot):
			zone, err := b.hotZone(s, total, size)
			if err != nil {
				return nil, err
			}
			l.zone = zone
		default:
			at, err := b.of(s)
			if err != nil {
				return nil, err
			}
			l.runs = append(l.runs, at.run(total, size, s.Offset, s.IVTweak))
		}
		total += size
	}
	o.Wipe = wipeAll(b.used)
	o.View = plainview.New(devices{v.data, v.head}, total, l)
	return o, nil
}

// sizeOf is the length of a segment in bytes, of whole sectors.
func (v *volume) sizeOf(s header.Segment) int64 {
	if s.Size >= 0 {
		return s.Size
	}
	return max(0, v.dataSize-s.Offset) / int64(s.SectorSize) * int64(s.SectorSize)
}

// viewIntegrity makes the view of a segment that lies on dm-integrity: its data
// are checked against their tags before they are decrypted.
func (v *volume) viewIntegrity(o *volumeOpened, b *builder, s header.Segment) error {
	at, err := b.of(s)
	if err != nil {
		return err
	}
	held := b.keys[v.h.DigestOf(s.Number).Number].key
	mac, err := integrity.NewMAC(s.Integrity, held[len(held)-integrity.MACKeySize(s.Integrity):], s.IVTweak)
	if err != nil {
		return fmt.Errorf("%w: %w", diskcrypt.ErrUnsupported, err)
	}
	size := v.dataSize - s.Offset
	if s.Size >= 0 {
		size = min(size, s.Size)
	}
	dev, err := integrity.Open(v.data, s.Offset, size, mac)
	switch {
	case errors.Is(err, integrity.ErrDamaged):
		return fmt.Errorf("%w: %w", diskcrypt.ErrDamaged, err)
	case errors.Is(err, integrity.ErrUnsupported):
		return fmt.Errorf("%w: %w", diskcrypt.ErrUnsupported, err)
	case err != nil:
		return err
	}
	o.bound = true // its journal was read
	size = dev.Size() / at.sectorSize() * at.sectorSize()
	o.Wipe = wipeAll(append(b.used, mac))
	o.View = plainview.New(dev, size, plainview.Runs{at.run(0, max(size, at.sectorSize()), 0, s.IVTweak)})
	return nil
}

// devices are the data at their own offsets, and the header's device behind
// headerBase: a conversion keeps data in the header.
type devices struct{ data, head io.ReaderAt }

const headerBase = 1 << 61

func (d devices) ReadAt(p []byte, off int64) (int, error) {
	if off >= headerBase {
		return d.head.ReadAt(p, off-headerBase)
	}
	return d.data.ReadAt(p, off)
}

// ivUnit is the unit in which IVs count, whatever the sector size.
const ivUnit = 512
