package luks

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

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
	need, err := v.needed()
	if err != nil {
		return nil, fmt.Errorf("open luks: %w", err)
	}
	keys := keyring{}
	defer keys.wipe()
	found := func(id string, d *header.Digest, key []byte) (bool, error) {
		_, have := keys[d.Number]
		if !have && slices.Contains(need, d) { // else a key of its own, not the volume's
			keys[d.Number] = heldKey{id, append([]byte(nil), key...)}
		}
		return len(keys) < len(need), nil
	}
	if err := v.try(ctx, kind, secret, lim, found); err != nil {
		return nil, fmt.Errorf("open luks: %w", err)
	}
	switch {
	case len(keys) == 0:
		return nil, fmt.Errorf("open luks: %w", diskcrypt.ErrWrongSecret)
	case len(keys) < len(need):
		return nil, fmt.Errorf("open luks: %w: %s", diskcrypt.ErrUnsupported, v.half(keys, need))
	}
	if v.h.Reencrypting() {
		if err := v.verifyConversion(keys, keyslot.NewMeter(lim.KDFMemory, lim.KDFWork)); err != nil {
			return nil, fmt.Errorf("open luks: %w", err)
		}
	}
	o, err := v.view(keys)
	if err != nil {
		if o != nil {
			_ = o.Close()
		}
		return nil, fmt.Errorf("open luks: %w", err)
	}
	return o, nil
}

// half says which key of a conversion a secret did not give.
func (v *volume) half(keys keyring, need []*header.Digest) string {
	var has, lacks []string
	for _, d := range need {
		if held, ok := keys[d.Number]; ok {
			has = append(has, held.id)
			continue
		}
		var slots []string
		for _, n := range d.Slots {
			slots = append(slots, slotID(n))
		}
		lacks = append(lacks, strings.Join(slots, " or "))
	}
	return fmt.Sprintf("re-encryption in progress: it takes the old and the new volume key; the secret opens %s, and not %s: have both take one passphrase, or finish the re-encryption", strings.Join(has, ", "), strings.Join(lacks, ", "))
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
