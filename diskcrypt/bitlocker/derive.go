package bitlocker

import (
	"context"
	"fmt"

	"github.com/lockstep-backup/lockstep/diskcrypt"
	"github.com/lockstep-backup/lockstep/diskcrypt/bitlocker/internal/fve"
	"github.com/lockstep-backup/lockstep/diskcrypt/bitlocker/internal/keys"
	"github.com/lockstep-backup/lockstep/envelope"
)

// Derive opens the volume with a secret and gives the recovery passwords and
// the startup keys (as .BEK files) of its protectors: Windows keeps them under the
// volume master key. Each opens the volume; that is checked for startup keys by
// their box, for recovery passwords by whoever proves them. The caller wipes what
// is returned. A volume key is no help: diskcrypt.ErrUnsupported.
func Derive(ctx context.Context, p diskcrypt.Place, kind diskcrypt.Kind, secret envelope.Secret, lim diskcrypt.Limits) ([]diskcrypt.Derived, error) {
	return Format{}.Derive(ctx, p, kind, secret, lim)
}

// Derive is the function of the package.
func (Format) Derive(ctx context.Context, p diskcrypt.Place, kind diskcrypt.Kind, secret envelope.Secret, lim diskcrypt.Limits) ([]diskcrypt.Derived, error) {
	m, err := read(ctx, p)
	if err != nil {
		return nil, fmt.Errorf("derive secrets: %w", err)
	}
	if kind == diskcrypt.KindVolumeKey {
		return nil, fmt.Errorf("derive secrets: %w: a volume key opens none of the other secrets; give another one", diskcrypt.ErrUnsupported)
	}
	var out []diskcrypt.Derived
	opened := false
	err = m.try(ctx, kind, secret, newMeter(lim), func(_ string, vmk []byte) (bool, error) {
		if _, err := m.validate(vmk); err != nil {
			return false, err
		}
		opened = true
		for _, p := range m.protectors() {
			if s, ok := p.derive(vmk); ok {
				out = append(out, s)
			}
		}
		return false, nil
	})
	if err == nil && !opened {
		err = diskcrypt.ErrWrongSecret
	}
	if err != nil {
		return nil, fmt.Errorf("derive secrets: %w", err)
	}
	return out, nil
}

// derive gives the protector's own secret, where the metadata hold it.
func (p protector) derive(vmk []byte) (diskcrypt.Derived, bool) {
	switch p.Protection.Kind() {
	case fve.ByRecovery:
		return p.recoveryPassword(vmk)
	case fve.ByExternal:
		return p.startupKey(vmk)
	}
	return diskcrypt.Derived{}, false
}

// copyOf opens the first box among ds that holds a key of n bytes.
func copyOf(ds []fve.Datum, vmk []byte, n int) []byte {
	for _, d := range ds {
		box, ok := d.Box()
		if !ok {
			continue
		}
		blob, err := keys.Open(vmk, box.Nonce, box.Tag, box.Sealed)
		if err != nil {
			continue
		}
		if _, key, err := fve.ParseKeyBlob(blob); err == nil && len(key) == n {
			key = append(make([]byte, 0, n), key...)
			envelope.Wipe(blob)
			return key
		}
		envelope.Wipe(blob)
	}
	return nil
}

func (p protector) recoveryPassword(vmk []byte) (diskcrypt.Derived, bool) {
	d, ok := fve.First(p.Nested, -1, fve.TypeStretch)
	if !ok {
		return diskcrypt.Derived{}, false
	}
	key := copyOf(d.Nested, vmk, keys.RecoverySize)
	if key == nil {
		return diskcrypt.Derived{}, false
	}
	defer envelope.Wipe(key)
	return diskcrypt.Derived{
		Protector: p.id(), Kind: diskcrypt.KindRecoveryPassword, Secret: envelope.NewSecret(keys.FormatRecovery([keys.RecoverySize]byte(key))),
	}, true
}

func (p protector) startupKey(vmk []byte) (diskcrypt.Derived, bool) {
	d, ok := fve.First(p.Nested, -1, fve.TypeUse)
	if !ok {
		return diskcrypt.Derived{}, false
	}
	key := copyOf(d.Nested, vmk, 32)
	if key == nil {
		return diskcrypt.Derived{}, false
	}
	defer envelope.Wipe(key)
	box, _ := p.Box()
	blob, err := keys.Open(key, box.Nonce, box.Tag, box.Sealed)
	if err != nil {
		return diskcrypt.Derived{}, false // not the key of this protector
	}
	envelope.Wipe(blob)
	return diskcrypt.Derived{
		Protector: p.id(), Kind: diskcrypt.KindStartupKey,
		Secret: envelope.NewSecret(fve.FormatKeyFile(fve.KeyFile{GUID: p.GUID, FileTime: p.FileTime, Key: key})),
	}, true
}
