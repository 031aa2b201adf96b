package bitlocker

import (
	"bytes"
	"context"
	"crypto/sha256"
	"crypto/subtle"
	"errors"
	"fmt"

	"github.com/lockstep-backup/lockstep/diskcrypt"
	"github.com/lockstep-backup/lockstep/diskcrypt/bitlocker/internal/fve"
	"github.com/lockstep-backup/lockstep/diskcrypt/bitlocker/internal/keys"
	"github.com/lockstep-backup/lockstep/diskcrypt/internal/opened"
	"github.com/lockstep-backup/lockstep/diskcrypt/internal/plainview"
	"github.com/lockstep-backup/lockstep/envelope"
)

// MistypedError names the group of a recovery password that is mistyped; it
// comes with diskcrypt.ErrWrongSecret.
type MistypedError = keys.MistypedError

// CheckSecret finds typing errors in recovery passwords: each group has a check
// digit. The error wraps a *MistypedError.
func (Format) CheckSecret(kind diskcrypt.Kind, secret envelope.Secret) error {
	if kind != diskcrypt.KindRecoveryPassword {
		return nil
	}
	key, err := keys.ParseRecovery(secret.Expose())
	envelope.Wipe(key[:])
	if err != nil {
		return fmt.Errorf("%w: %w", diskcrypt.ErrMistyped, err)
	}
	return nil
}

// Ids of what opens a volume without being one of its protectors.
const (
	idVolumeKey       = string(diskcrypt.KindVolumeKey)
	idVolumeMasterKey = string(diskcrypt.KindVolumeMasterKey)
	idNone            = "none" // the data are plain
)

const (
	// defaultWork lets some 64 passwords be stretched: no volume has that many.
	defaultWork = 64 * keys.StretchWork
	boxWork     = 1 << 10
	vmkSize     = 32
)

// meter counts what was spent.
type meter struct{ left int64 }

func newMeter(lim diskcrypt.Limits) *meter {
	if lim.KDFWork == 0 {
		return &meter{defaultWork}
	}
	return &meter{lim.KDFWork}
}

func (m *meter) pay(work int64) error {
	if work > m.left {
		return fmt.Errorf("%w: stretching of passwords", diskcrypt.ErrLimit)
	}
	m.left -= work
	return nil
}

// Open tries the secret against the protectors of its kind, in the order of the
// metadata.
func (Format) Open(ctx context.Context, p diskcrypt.Place, kind diskcrypt.Kind, secret envelope.Secret, lim diskcrypt.Limits) (diskcrypt.Opened, error) {
	m, err := read(ctx, p)
	if err != nil {
		return nil, fmt.Errorf("open bitlocker: %w", err)
	}
	o, err := m.open(ctx, p, kind, secret, newMeter(lim))
	if err != nil {
		return nil, fmt.Errorf("open bitlocker: %w", err)
	}
	return o, nil
}

func (m *metadata) open(ctx context.Context, p diskcrypt.Place, kind diskcrypt.Kind, secret envelope.Secret, meter *meter) (*opened.Volume, error) {
	if why := m.unsupported(); why != "" {
		return nil, fmt.Errorf("%w: %s", diskcrypt.ErrUnsupported, why)
	}
	if m.block.State == fve.StateDecrypted && kind == diskcrypt.KindNone && secret.Len() == 0 {
		return m.opened(p, nil, nil, idNone, "none"), nil
	}
	if kind == diskcrypt.KindVolumeKey {
		return m.openFVEK(ctx, p, secret, meter)
	}
	var out *opened.Volume
	err := m.try(ctx, kind, secret, meter, func(id string, vmk []byte) (bool, error) {
		check, err := m.validate(vmk)
		if err != nil {
			return false, err
		}
		fvek, err := m.fvek(vmk)
		if err != nil {
			return false, err
		}
		defer envelope.Wipe(fvek)
		out, err = m.withKey(p, fvek, id, check)
		return false, err
	})
	if err != nil {
		return nil, err
	}
	if out == nil {
		return nil, diskcrypt.ErrWrongSecret
	}
	return out, nil
}

// OpensAll tries every protector of the secret's kind. It needs neither the data
// nor a method that is known.
func (Format) OpensAll(ctx context.Context, p diskcrypt.Place, kind diskcrypt.Kind, secret envelope.Secret, lim diskcrypt.Limits) ([]string, error) {
	m, err := read(ctx, p)
	if err != nil {
		return nil, fmt.Errorf("open bitlocker: %w", err)
	}
	if kind == diskcrypt.KindVolumeKey {
		o, err := m.openFVEK(ctx, p, secret, newMeter(lim))
		if err != nil {
			return nil, fmt.Errorf("open bitlocker: %w", err)
		}
		return []string{o.Protector()}, o.Close()
	}
	var ids []string
	err = m.try(ctx, kind, secret, newMeter(lim), func(id string, vmk []byte) (bool, error) {
		if _, err := m.validate(vmk); err != nil {
			return false, err
		}
		ids = append(ids, id)
		return true, nil
	})
	if err != nil {
		return ids, fmt.Errorf("open bitlocker: %w", err)
	}
	if len(ids) == 0 {
		return nil, fmt.Errorf("open bitlocker: %w", diskcrypt.ErrWrongSecret)
	}
	return ids, nil
}

// foundFunc takes a VMK that a protector gave, and says whether to go on. The
// key is wiped when it returns.
type foundFunc func(id string, vmk []byte) (more bool, err error)

// try runs the secret against what it may open. What is too expensive is passed
// over, and is an error only if found did not end the search.
func (m *metadata) try(ctx context.Context, kind diskcrypt.Kind, secret envelope.Secret, meter *meter, found foundFunc) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	b := secret.Expose()
	switch kind {
	case diskcrypt.KindPassphrase:
		hash, ok := keys.PasswordHash(b)
		if !ok {
			return diskcrypt.ErrWrongSecret
		}
		defer envelope.Wipe(hash[:])
		return m.tryStretched(ctx, fve.ByPassword, hash, meter, found)
	case diskcrypt.KindRecoveryPassword:
		key, err := keys.ParseRecovery(b)
		if err != nil {
			return fmt.Errorf("%w: %w", diskcrypt.ErrWrongSecret, err)
		}
		defer envelope.Wipe(key[:])
		hash := keys.RecoveryHash(key)
		defer envelope.Wipe(hash[:])
		return m.tryStretched(ctx, fve.ByRecovery, hash, meter, found)
	case diskcrypt.KindStartupKey:
		return m.tryKeyFile(b, meter, found)
	case diskcrypt.KindVolumeMasterKey:
		return m.tryVMK(b, meter, found)
	case diskcrypt.KindNone:
		return m.tryClear(b, meter, found)
	}
	return fmt.Errorf("%w: a secret of kind %q opens no BitLocker volume", diskcrypt.ErrWrongSecret, kind)
}

func (m *metadata) tryStretched(ctx context.Context, by fve.Protection, hash [32]byte, meter *meter, found foundFunc) error {
	var skipped error
	for _, p := range m.protectors() {
		box, ok := p.Box()
		if p.Protection.Kind() != by || !ok || p.salt() == nil {
			continue
		}
		if err := meter.pay(keys.StretchWork); err != nil {
			skipped = errors.Join(skipped, fmt.Errorf("protector %s: %w", p.id(), err))
			continue
		}
		key, err := keys.Stretch(ctx, hash, p.salt())
		if err != nil {
			return err
		}
		more, err := unbox(key, box, p.id(), found)
		envelope.Wipe(key)
		if err != nil || !more {
			return err
		}
	}
	return skipped
}

func (m *metadata) tryKeyFile(file []byte, meter *meter, found foundFunc) error {
	k, err := fve.ParseKeyFile(file)
	if err != nil {
		return fmt.Errorf("%w: %w", diskcrypt.ErrWrongSecret, err)
	}
	for _, p := range m.protectors() {
		box, ok := p.Box()
		if p.GUID != k.GUID || !ok {
			continue
		}
		if err := meter.pay(boxWork); err != nil {
			return err
		}
		_, err := unbox(k.Key, box, p.id(), found)
		return err
	}
	return fmt.Errorf("%w: the key file belongs to the protector %s, which this volume does not have", diskcrypt.ErrWrongSecret, k.GUID)
}

func (m *metadata) tryVMK(vmk []byte, meter *meter, found foundFunc) error {
	if err := meter.pay(boxWork); err != nil {
		return err
	}
	if len(vmk) != vmkSize {
		return diskcrypt.ErrWrongSecret
	}
	fvek, err := m.fvek(vmk)
	if err != nil {
		return fmt.Errorf("%w: %w", diskcrypt.ErrWrongSecret, err)
	}
	envelope.Wipe(fvek)
	own := bytes.Clone(vmk)
	defer envelope.Wipe(own)
	_, err = found(idVolumeMasterKey, own)
	return err
}

// tryClear opens with the clear key, which takes no secret: with one it would
// prove nothing.
func (m *metadata) tryClear(secret []byte, meter *meter, found foundFunc) error {
	if len(secret) > 0 {
		return diskcrypt.ErrWrongSecret
	}
	for _, p := range m.protectors() {
		box, ok := p.Box()
		if p.Protection.Kind() != fve.ByClearKey || !ok {
			continue
		}
		d, ok := fve.First(p.Nested, -1, fve.TypeKey)
		if _, key, isKey := d.Key(); ok && isKey {
			if err := meter.pay(boxWork); err != nil {
				return err
			}
			if more, err := unbox(key, box, p.id(), found); err != nil || !more {
				return err
			}
		}
	}
	return nil
}

// unbox opens a protector's box and hands the VMK to found.
func unbox(key []byte, box fve.Box, id string, found foundFunc) (more bool, err error) {
	blob, err := keys.Open(key, box.Nonce, box.Tag, box.Sealed)
	if err != nil {
		return true, nil // another secret's
	}
	defer envelope.Wipe(blob)
	_, vmk, err := fve.ParseKeyBlob(blob)
	if err != nil || len(vmk) != vmkSize {
		return false, fmt.Errorf("protector %s: %w: it opens to something else than a volume master key", id, diskcrypt.ErrDamaged)
	}
	return found(id, vmk)
}

// Names of the checks that a key passed.
const (
	checkValidation = "bitlocker-validation" // the metadata's hash, sealed under the VMK
	checkBox        = "bitlocker-fvek-box"   // the box of the FVEK opened under the VMK
	checkBoot       = "bitlocker-boot-sector"
)

// validate checks that the metadata are what the VMK's owner wrote.
func (m *metadata) validate(vmk []byte) (check string, err error) {
	v := m.block.Validation
	if v == nil {
		return checkBox, nil
	}
	want := sha256.Sum256(m.block.Raw)
	blob, check := v.Raw, checkBox // on decrypted volumes the hash is not sealed
	if box, ok := v.Box(); ok {
		check = checkValidation
		if blob, err = keys.Open(vmk, box.Nonce, box.Tag, box.Sealed); err != nil {
			return "", fmt.Errorf("%w: the metadata's validation does not open under the volume master key", diskcrypt.ErrDamaged)
		}
	}
	_, sum, err := fve.ParseKeyBlob(blob)
	if err != nil || subtle.ConstantTimeCompare(sum, want[:]) != 1 {
		return "", fmt.Errorf("%w: the metadata are not what they were sealed as: changed or torn", diskcrypt.ErrDamaged)
	}
	return check, nil
}

// fvek opens the box of the volume key. The caller wipes it.
func (m *metadata) fvek(vmk []byte) ([]byte, error) {
	d, ok := fve.First(m.block.Datums, fve.RoleFVEK, fve.TypeCCM)
	if !ok {
		return nil, fmt.Errorf("%w: the metadata hold no volume key", diskcrypt.ErrDamaged)
	}
	box, ok := d.Box()
	if !ok {
		return nil, fmt.Errorf("%w: the volume key's box is cut short", diskcrypt.ErrDamaged)
	}
	blob, err := keys.Open(vmk, box.Nonce, box.Tag, box.Sealed)
	if err != nil {
		return nil, fmt.Errorf("%w: the volume key does not open under the volume master key", diskcrypt.ErrDamaged)
	}
	defer envelope.Wipe(blob)
	alg, key, err := fve.ParseKeyBlob(blob)
	if err != nil || alg != m.block.Method {
		return nil, fmt.Errorf("%w: the volume key is for method %#04x, the volume of %#04x", diskcrypt.ErrDamaged, alg, m.block.Method)
	}
	return bytes.Clone(key), nil
}

// openFVEK opens with the volume key itself. Nothing in the metadata tells
// whether it is the right one; the file system's boot sector does.
func (m *metadata) openFVEK(ctx context.Context, p diskcrypt.Place, secret envelope.Secret, meter *meter) (*opened.Volume, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	if err := meter.pay(boxWork); err != nil {
		return nil, err
	}
	if why := m.unsupported(); why != "" {
		return nil, fmt.Errorf("%w: %s", diskcrypt.ErrUnsupported, why)
	}
	if how, ok := methods[m.block.Method]; !ok || secret.Len() != how.fvek {
		return nil, diskcrypt.ErrWrongSecret
	}
	o, err := m.withKey(p, secret.Expose(), idVolumeKey, checkBoot)
	if err != nil {
		return nil, err
	}
	boot := make([]byte, min(fve.BootSize, o.Size()))
	defer envelope.Wipe(boot)
	if _, err := o.ReadAt(boot, 0); err != nil {
		o.Close()
		return nil, err
	}
	if m.block.Version == 1 && len(m.encrypted()) > 0 {
		// Vista leaves the boot sector plain: it proves nothing.
		o.Close()
		return nil, fmt.Errorf("%w: a volume key cannot be checked on a volume of Windows Vista; give the volume master key", diskcrypt.ErrUnsupported)
	}
	if !isBootSector(boot) {
		o.Close()
		return nil, diskcrypt.ErrWrongSecret
	}
	return o, nil
}

// isBootSector knows the boot sectors of what BitLocker encrypts.
func isBootSector(b []byte) bool {
	if len(b) < fve.BootSize {
		return false
	}
	switch string(b[3:11]) {
	case "NTFS    ", "EXFAT   ", "ReFS\x00\x00\x00\x00":
		return true
	}
	return b[510] == 0x55 && b[511] == 0xaa && (string(b[54:57]) == "FAT" || string(b[82:85]) == "FAT")
}

// withKey makes the view of a volume under an FVEK, which the caller wipes.
func (m *metadata) withKey(p diskcrypt.Place, fvek []byte, id, check string) (*opened.Volume, error) {
	how := methods[m.block.Method]
	if len(fvek) < how.fvek {
		return nil, fmt.Errorf("%w: a volume key of %d bytes for %s", diskcrypt.ErrDamaged, len(fvek), how.name)
	}
	key := how.used(fvek)
	if m.orphan {
		m.sector = m.probeSector(p, how, key)
	}
	if m.eowFailed != nil {
		m.head = m.probeHead(p, how, key)
	}
	c, err := how.newCipher(key, int(m.sector))
	if err != nil {
		envelope.Wipe(key)
		return nil, err
	}
	return m.opened(p, c, key, id, check), nil
}

// probeSector tells the sector size by which of them gives a boot sector.
func (m *metadata) probeSector(p diskcrypt.Place, how method, key []byte) int64 {
	assumed := m.sector
	defer func() { m.sector = assumed }()
	for _, size := range []int64{assumed, 512 + 4096 - assumed} {
		m.sector = size
		c, err := how.newCipher(key, int(size))
		if err != nil {
			return assumed
		}
		boot := make([]byte, fve.BootSize)
		_, err = plainview.New(m.data(p.Data), m.logicalSize(), m.plan(c)).ReadAt(boot, 0)
		ok := err == nil && isBootSector(boot)
		envelope.Wipe(boot)
		c.wipe()
		if ok {
			return size
		}
	}
	return assumed
}

// probeHead tells whether the moved boot area is encrypted by what gives a boot
// sector; Unreadable where neither does.
func (m *metadata) probeHead(p diskcrypt.Place, how method, key []byte) plainview.Kind {
	c, err := how.newCipher(key, int(m.sector))
	if err != nil {
		return plainview.Unreadable
	}
	defer c.wipe()
	boot := make([]byte, fve.BootSize)
	defer envelope.Wipe(boot)
	for _, m.head = range []plainview.Kind{plainview.Crypt, plainview.Plain} {
		if _, err := plainview.New(p.Data, m.logicalSize(), m.plan(c)).ReadAt(boot, 0); err == nil && isBootSector(boot) {
			return m.head
		}
	}
	return plainview.Unreadable
}

func (m *metadata) opened(p diskcrypt.Place, c *sectorCipher, key []byte, id, check string) *opened.Volume {
	v := &opened.Volume{
		Format: "bitlocker", View: plainview.New(m.data(p.Data), m.logicalSize(), m.plan(c)),
		ID: id, Check: check, Container: m.block.GUID.String(), Key: key,
	}
	if c != nil {
		v.Wipe = c.wipe
	}
	return v
}
