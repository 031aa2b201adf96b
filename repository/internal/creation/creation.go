// Package creation makes a repository in an empty store.
package creation

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/lockstep-backup/lockstep/envelope"
	"github.com/lockstep-backup/lockstep/repository/format"
	"github.com/lockstep-backup/lockstep/repository/internal/damage"
	"github.com/lockstep-backup/lockstep/repository/internal/holder"
	"github.com/lockstep-backup/lockstep/repository/internal/settings"
	"github.com/lockstep-backup/lockstep/repository/internal/trust"
	"github.com/lockstep-backup/lockstep/repository/internal/twin"
	"github.com/lockstep-backup/lockstep/store"
)

// ErrExists says that there is a repository already.
var ErrExists = errors.New("repository exists already")

// Options of a new repository.
type Options struct {
	Sealing   string // SealingAESGCM (default) or SealingNone
	Holders   []holder.New
	Writer    envelope.PublicKey
	Prover    envelope.PublicKey
	Custodian envelope.SigningKey // signs the first trust entry
	Now       func() time.Time
}

// Create makes a repository in an empty store and returns its id and the
// digest of the first trust entry, which readers pin.
func Create(ctx context.Context, st store.Store, o Options) (id, trustRoot string, err error) {
	if o.Sealing == "" {
		o.Sealing = settings.AESGCM
	}
	if o.Sealing != settings.AESGCM && o.Sealing != settings.None {
		return "", "", fmt.Errorf("create repository: sealing %q: %w", o.Sealing, damage.ErrFormat)
	}
	if o.Now == nil {
		o.Now = time.Now
	}
	if len(o.Holders) > maxCreateHolders {
		return "", "", fmt.Errorf("create repository: %d holders of its key are too many", len(o.Holders))
	}
	offline := false
	for _, h := range o.Holders {
		offline = offline || h.KEK == nil
	}
	if !offline {
		return "", "", errors.New("create repository: at least one holder of its key must work without the key manager (a passphrase or a recipient)")
	}
	if _, err := st.Stat(ctx, format.ConfigKey); err == nil {
		return "", "", fmt.Errorf("create repository: %w", ErrExists)
	} else if !errors.Is(err, store.ErrNotExist) {
		return "", "", fmt.Errorf("create repository: %w", err)
	}
	if err := clearInterrupted(ctx, st); err != nil {
		return "", "", fmt.Errorf("create repository: %w", err)
	}
	dek, err := envelope.NewKey()
	if err != nil {
		return "", "", fmt.Errorf("create repository: %w", err)
	}
	defer dek.Wipe()
	cfg := settings.Config{Format: 1, ID: newID(), Created: o.Now().UTC(), Sealing: o.Sealing, Must: []string{}, May: []string{}}
	body, err := json.Marshal(cfg)
	if err != nil {
		return "", "", fmt.Errorf("create repository: %w", err)
	}
	frame, err := envelope.SealFrame(format.KindConfig, nil, nil, body)
	if err != nil {
		return "", "", fmt.Errorf("create repository: %w", err)
	}
	// The config object comes last: without it there is no repository, and what
	// an interrupted creation left is overwritten by nobody and read by nobody.
	for _, h := range o.Holders {
		if err := holder.Put(ctx, st, cfg.ID, dek, h, o.Now()); err != nil {
			return "", "", fmt.Errorf("create repository: %w", err)
		}
	}
	first, err := trust.First(cfg.ID, trust.Digest(frame), o.Writer, o.Prover, o.Custodian, o.Now())
	if err != nil {
		return "", "", fmt.Errorf("create repository: %w", err)
	}
	if err := twin.Put(ctx, st, format.TrustKey(0), first); err != nil {
		return "", "", fmt.Errorf("create repository: %w", err)
	}
	if err := twin.Put(ctx, st, format.ConfigKey, frame); err != nil {
		if errors.Is(err, store.ErrExist) {
			err = ErrExists
		}
		return "", "", fmt.Errorf("create repository: %w", err)
	}
	return cfg.ID, trust.Digest(first), nil
}

// clearInterrupted removes what an interrupted Create left. Anything else
// beside a missing configuration is a damaged repository, which nobody may
// overwrite.
func clearInterrupted(ctx context.Context, st store.Store) error {
	var left []string
	err := st.List(ctx, "", func(i store.Info) error {
		key := strings.TrimPrefix(i.Key, twin.Prefix)
		if !strings.HasPrefix(key, format.HolderPrefix) && key != format.TrustKey(0) || len(left) > 2*maxCreateHolders {
			return fmt.Errorf("%w: object %s is there, but no configuration", ErrExists, i.Key)
		}
		left = append(left, i.Key)
		return nil
	})
	if err != nil {
		return err
	}
	for _, key := range left {
		if err := st.Delete(ctx, key); err != nil {
			return fmt.Errorf("remove what an interrupted creation left: %w", err)
		}
	}
	return nil
}

const maxCreateHolders = 100

// newID draws 128 random bits as 32 hex digits.
func newID() string {
	var b [16]byte
	_, _ = rand.Read(b[:]) // never fails since Go 1.24
	return hex.EncodeToString(b[:])
}
