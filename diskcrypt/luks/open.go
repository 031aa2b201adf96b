package luks

import (
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"strings"
	"sync"

	"github.com/lockstep-backup/lockstep/diskcrypt"
	"github.com/lockstep-backup/lockstep/diskcrypt/internal/dmcrypt"
	"github.com/lockstep-backup/lockstep/diskcrypt/luks/internal/header"
	"github.com/lockstep-backup/lockstep/diskcrypt/luks/internal/keyslot"
	"github.com/lockstep-backup/lockstep/envelope"
)

// Open tries the secret against the key slots of the data segment, in order.
func (Format) Open(ctx context.Context, p diskcrypt.Place, kind diskcrypt.Kind, secret envelope.Secret, lim diskcrypt.Limits) (diskcrypt.Opened, error) {
	v, err := read(p)
	if err != nil {
		return nil, fmt.Errorf("open luks: %w", err)
	}
	if why := v.unsupported(); why != "" {
		return nil, fmt.Errorf("open luks: %w: %s", diskcrypt.ErrUnsupported, why)
	}
	segment := v.h.Live()[0]
	digest := v.h.DigestOf(segment.Number)
	if digest == nil {
		return nil, fmt.Errorf("open luks: %w: the data segment has no digest", diskcrypt.ErrDamaged)
	}
	var opened *opened
	found := func(id string, d *header.Digest, key []byte) (bool, error) {
		if d.Number != digest.Number {
			return true, nil // a key of its own, not the volume's
		}
		opened, err = v.open(segment, d, id, key)
		return false, err
	}
	if err := v.try(ctx, kind, secret, lim, found); err != nil {
		return nil, fmt.Errorf("open luks: %w", err)
	}
	if opened == nil {
		return nil, fmt.Errorf("open luks: %w", diskcrypt.ErrWrongSecret)
	}
	return opened, nil
}

// OpensAll tries every key slot of the data segments. It needs no support for the
// cipher of the data, so that it also serves volumes that Open refuses.
func (Format) OpensAll(ctx context.Context, p diskcrypt.Place, kind diskcrypt.Kind, secret envelope.Secret, lim diskcrypt.Limits) ([]string, error) {
	v, err := read(p)
	if err != nil {
		return nil, fmt.Errorf("open luks: %w", err)
	}
	for _, r := range v.h.Requirements {
		if !knownRequirement(r) {
			return nil, fmt.Errorf("open luks: %w: unknown mandatory requirement %q", diskcrypt.ErrUnsupported, r)
		}
	}
	var ids []string
	err = v.try(ctx, kind, secret, lim, func(id string, _ *header.Digest, _ []byte) (bool, error) {
		ids = append(ids, id)
		return true, nil
	})
	if err != nil {
		return ids, fmt.Errorf("open luks: %w", err)
	}
	if len(ids) == 0 {
		return nil, fmt.Errorf("open luks: %w", diskcrypt.ErrWrongSecret)
	}
	return ids, nil
}

func knownRequirement(r string) bool {
	return r == header.RequireOPAL || r == header.RequireInlineTags ||
		r == header.RequireOfflineReencrypt || strings.HasPrefix(r, header.RequireOnlineReencrypt)
}

// volumeKeyID stands for the protector where the volume key itself was given.
const volumeKeyID = "volume-key"

// foundFunc is told of a key that passed a digest and says whether to go on.
// The key is wiped when it returns.
type foundFunc func(id string, d *header.Digest, key []byte) (more bool, err error)

// try runs the secret against what it may open. Slots that are too expensive
// or of an unsupported kind are passed over; they are an error (ErrLimit,
// ErrUnsupported) only if found did not end the search. Without any error
// nothing need have been found.
func (v *volume) try(ctx context.Context, kind diskcrypt.Kind, secret envelope.Secret, lim diskcrypt.Limits, found foundFunc) error {
	meter := keyslot.NewMeter(lim.KDFMemory, lim.KDFWork)
	switch kind {
	case diskcrypt.KindVolumeKey:
		return v.tryVolumeKey(ctx, secret.Expose(), meter, found)
	case diskcrypt.KindPassphrase, diskcrypt.KindKeyFile:
		return v.trySlots(ctx, secret.Expose(), meter, found)
	}
	return fmt.Errorf("%w: a secret of kind %q opens no LUKS volume", diskcrypt.ErrWrongSecret, kind)
}

func (v *volume) tryVolumeKey(ctx context.Context, key []byte, meter *keyslot.Meter, found foundFunc) error {
	var skipped error
	for i := range v.h.Digests {
		d := &v.h.Digests[i]
		if len(d.Segments) == 0 || d.Type != keyslot.PBKDF2 || v.keyBytes(d) != 0 && v.keyBytes(d) != len(key) {
			continue
		}
		if err := ctx.Err(); err != nil {
			return err
		}
		ok, err := verify(d, key, meter)
		if err != nil {
			skipped = passOver(skipped, fmt.Sprintf("digest %d", d.Number), err)
			continue
		}
		if !ok {
			continue
		}
		if more, err := found(volumeKeyID, d, key); err != nil || !more {
			return err
		}
	}
	return skipped
}

// keyBytes is the size of the key a digest is for, 0 if nothing tells.
func (v *volume) keyBytes(d *header.Digest) int {
	if v.h.Version == 1 {
		return v.h.KeyBytes
	}
	for _, s := range v.h.Slots {
		if s.Digest == d.Number && s.Type == header.SlotLUKS2 {
			return s.Box.KeyBytes
		}
	}
	return 0
}

func verify(d *header.Digest, key []byte, meter *keyslot.Meter) (bool, error) {
	if d.Type != keyslot.PBKDF2 {
		return false, fmt.Errorf("digest type %q: %w", d.Type, keyslot.ErrUnsupported)
	}
	if err := meter.Pay(0, d.Check.Cost()); err != nil {
		return false, err
	}
	return d.Check.Verify(key)
}

func (v *volume) trySlots(ctx context.Context, secret []byte, meter *keyslot.Meter, found foundFunc) error {
	var skipped error
	for _, s := range v.h.Slots {
		if s.Type != header.SlotLUKS2 || !v.bound(s) {
			continue
		}
		if err := ctx.Err(); err != nil {
			return err
		}
		more, err := v.trySlot(ctx, s, secret, meter, found)
		switch {
		case err != nil && ctx.Err() != nil:
			return ctx.Err()
		case err != nil:
			skipped = passOver(skipped, fmt.Sprintf("key slot %d", s.Number), err)
		case !more:
			return nil
		}
	}
	return skipped
}

func (v *volume) trySlot(ctx context.Context, s header.Slot, secret []byte, meter *keyslot.Meter, found foundFunc) (more bool, err error) {
	if s.Box.Null() && len(secret) > 0 {
		return true, nil // it would open with anything, which proves nothing
	}
	if err := s.Box.Supported(); err != nil {
		return true, err
	}
	d := v.h.Digest(s.Digest)
	// Both costs are paid before either is incurred.
	memory, work := s.Box.KDF.Cost(s.Box.CipherKeySize)
	if err := meter.Pay(memory, work); err != nil {
		return true, err
	}
	if err := meter.Pay(0, d.Check.Cost()); err != nil {
		return true, err
	}
	if d.Type != keyslot.PBKDF2 {
		return true, fmt.Errorf("digest type %q: %w", d.Type, keyslot.ErrUnsupported)
	}
	key, err := s.Box.Open(ctx, v.head, secret)
	if err != nil {
		return true, err
	}
	defer envelope.Wipe(key)
	ok, err := d.Check.Verify(key)
	if err != nil || !ok {
		return true, err
	}
	return found(slotID(s.Number), d, key)
}

// passOver joins the reasons for which something was not tried, under the
// errors of the contract.
func passOver(have error, what string, err error) error {
	switch {
	case errors.Is(err, keyslot.ErrLimit):
		err = fmt.Errorf("%w: %s: %w", diskcrypt.ErrLimit, what, err)
	case errors.Is(err, keyslot.ErrUnsupported), errors.Is(err, dmcrypt.ErrUnsupported):
		err = fmt.Errorf("%w: %s: %w", diskcrypt.ErrUnsupported, what, err)
	default:
		err = fmt.Errorf("%s: %w", what, err)
	}
	return errors.Join(have, err)
}

// opened is a volume whose key is known.
type opened struct {
	data     io.ReaderAt
	offset   int64 // of the segment on the data device
	size     int64
	ivTweak  uint64
	cipher   *dmcrypt.Cipher
	id       string
	keyCheck string
	uuid     string

	mu     sync.RWMutex
	key    []byte
	closed bool
}

var _ diskcrypt.Opened = (*opened)(nil)

func (v *volume) open(s header.Segment, d *header.Digest, id string, key []byte) (*opened, error) {
	c, err := dmcrypt.New(s.Encryption, key, s.SectorSize)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", diskcrypt.ErrUnsupported, err)
	}
	size := s.Size
	if size < 0 {
		size = max(0, v.dataSize-s.Offset) / int64(s.SectorSize) * int64(s.SectorSize)
	}
	check := fmt.Sprintf("luks%d-digest-%d", v.h.Version, d.Number)
	return &opened{
		data: v.data, offset: s.Offset, size: size, ivTweak: s.IVTweak, cipher: c,
		id: id, keyCheck: check, uuid: v.h.UUID, key: append([]byte(nil), key...),
	}, nil
}

func (o *opened) Size() int64       { return o.size }
func (o *opened) Protector() string { return o.id }
func (o *opened) KeyCheck() string  { return o.keyCheck }

func (o *opened) KeyMAC(key []byte) []byte {
	o.mu.RLock()
	defer o.mu.RUnlock()
	m := hmac.New(sha256.New, key)
	m.Write([]byte("vk"))
	m.Write([]byte(o.uuid))
	m.Write(o.key)
	return m.Sum(nil)
}

func (o *opened) Close() error {
	o.mu.Lock()
	defer o.mu.Unlock()
	envelope.Wipe(o.key)
	o.cipher = nil
	o.closed = true
	return nil
}

var errClosed = errors.New("read luks volume: it is closed")

// ReadAt gives plaintext. It is safe for concurrent use; whole sectors are
// decrypted in place, a part of a sector through a buffer.
func (o *opened) ReadAt(p []byte, off int64) (int, error) {
	o.mu.RLock()
	defer o.mu.RUnlock()
	if o.closed {
		return 0, errClosed
	}
	if off < 0 {
		return 0, fmt.Errorf("read luks volume: offset %d", off)
	}
	if off >= o.size {
		return 0, io.EOF
	}
	atEnd := int64(len(p)) > o.size-off
	if atEnd {
		p = p[:o.size-off]
	}
	n := 0
	for n < len(p) {
		m, err := o.readSome(p[n:], off+int64(n))
		n += m
		if err != nil {
			return n, fmt.Errorf("read luks volume: %w", err)
		}
	}
	if atEnd {
		return n, io.EOF
	}
	return n, nil
}

// readSome reads either whole sectors or a part of one.
func (o *opened) readSome(p []byte, off int64) (int, error) {
	sector := int64(o.cipher.SectorSize())
	skip := off % sector
	if whole := int64(len(p)) / sector * sector; skip == 0 && whole > 0 {
		if err := o.readSectors(p[:whole], off); err != nil {
			return 0, err
		}
		return int(whole), nil
	}
	buf := make([]byte, sector)
	defer envelope.Wipe(buf)
	if err := o.readSectors(buf, off-skip); err != nil {
		return 0, err
	}
	return copy(p, buf[skip:]), nil
}

func (o *opened) readSectors(p []byte, off int64) error {
	n, err := o.data.ReadAt(p, o.offset+off)
	if n < len(p) {
		clear(p)
		if err == nil || errors.Is(err, io.EOF) {
			err = io.ErrUnexpectedEOF
		}
		return err
	}
	o.cipher.Decrypt(p, o.ivTweak+uint64(off)/ivUnit)
	return nil
}

// ivUnit is the unit in which IVs count, whatever the sector size.
const ivUnit = 512
