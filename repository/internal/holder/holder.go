// Package holder wraps a repository's DEK for those who may open it.
// docs/spec/repository.md, section 2.
package holder

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"regexp"
	"time"

	"github.com/lockstep-backup/lockstep/envelope"
	"github.com/lockstep-backup/lockstep/repository/format"
	"github.com/lockstep-backup/lockstep/repository/internal/damage"
	"github.com/lockstep-backup/lockstep/repository/internal/twin"
	"github.com/lockstep-backup/lockstep/store"
)

// ErrNoKey says that nothing given opens the repository.
var ErrNoKey = errors.New("no key opens the repository")

var validName = regexp.MustCompile(`^[a-z0-9-]{1,64}$`)

// Holder is who can unwrap the repository's DEK.
type Holder struct {
	Name      string    `json:"name"`
	Kind      string    `json:"kind"` // "passphrase", "recipient", "kek"
	Role      string    `json:"role,omitempty"`
	Recipient string    `json:"recipient,omitempty"`
	KEK       string    `json:"kek,omitempty"`
	DEK       string    `json:"id"` // DEK id
	Created   time.Time `json:"created"`
	Wrapped   []byte    `json:"wrapped"`
}

// Holder kinds and recipient roles.
const (
	Passphrase = "passphrase"
	Recipient  = "recipient"
	KEK        = "kek"

	RoleRecovery = "recovery" // its identity lies in a safe
	RoleHost     = "host"     // its identity lies with the data directory
)

// New asks for the DEK to be wrapped; exactly one of Passphrase, Recipient, KEK is set.
type New struct {
	Name       string // 1–64 of [a-z0-9-]
	Passphrase envelope.Secret
	WorkFactor int // of the passphrase's scrypt, 0 = default
	Recipient  string
	Role       string // of the recipient
	KEK        envelope.KEK
}

// Unlocker is what may open the DEK; whatever fits is used.
type Unlocker struct {
	Passphrase envelope.Secret
	Identities envelope.Secret // an age identity file's text
	KEKs       []envelope.KEK
}

func dekID(dek envelope.Secret) string {
	h := sha256.New()
	h.Write([]byte("lockstep dek id"))
	h.Write(dek.Expose())
	return hex.EncodeToString(h.Sum(nil)[:16])
}

func holderContext(repo, holder string) []byte {
	return []byte("lockstep dek " + repo + " " + holder)
}

// Put wraps dek for one holder.
func Put(ctx context.Context, st store.Store, repo string, dek envelope.Secret, n New, now time.Time) error {
	if !validName.MatchString(n.Name) {
		return fmt.Errorf("name of holder %q: only 1 to 64 of a-z, 0-9 and - can be used", n.Name)
	}
	h := Holder{Name: n.Name, Role: n.Role, DEK: dekID(dek), Created: now.UTC()}
	var err error
	switch {
	case n.KEK != nil:
		h.Kind, h.KEK = KEK, n.KEK.ID()
		h.Wrapped, err = n.KEK.Wrap(ctx, dek, holderContext(repo, n.Name))
	case n.Recipient != "":
		h.Kind, h.Recipient = Recipient, n.Recipient
		h.Wrapped, err = envelope.SealToRecipients(dek.Expose(), []string{n.Recipient})
	default:
		h.Kind = Passphrase
		h.Wrapped, err = envelope.SealWithPassphrase(dek.Expose(), n.Passphrase, n.WorkFactor)
	}
	if err != nil {
		return fmt.Errorf("wrap repository key for %s: %w", n.Name, err)
	}
	body, err := json.Marshal(h)
	if err != nil {
		return err
	}
	frame, err := envelope.SealFrame(format.KindHolder, nil, nil, body)
	if err != nil {
		return err
	}
	return twin.Put(ctx, st, format.HolderKey(n.Name), frame)
}

const maxHolders = 1000

// List reads who can open a repository, without opening it. Damaged
// holders come back as an error beside the good ones.
func List(ctx context.Context, st store.Store) ([]Holder, error) {
	var hs []Holder
	var bad []error
	err := twin.List(ctx, st, format.HolderPrefix, maxHolders, func(key string) error {
		h, err := Read(ctx, st, key)
		if err != nil {
			bad = append(bad, err)
			return nil
		}
		hs = append(hs, h)
		return nil
	})
	if err != nil {
		return hs, fmt.Errorf("list holders: %w", err)
	}
	return hs, errors.Join(bad...)
}

// Read reads a holder by its object key.
func Read(ctx context.Context, st store.Store, key string) (Holder, error) {
	return read(key, func(check func([]byte) error) ([]byte, error) { return twin.Get(ctx, st, key, check) })
}

func read(key string, get func(check func([]byte) error) ([]byte, error)) (h Holder, err error) {
	_, err = get(func(raw []byte) error {
		h = Holder{}
		body, err := envelope.OpenFrame(raw, format.KindHolder, nil, nil)
		if err == nil {
			err = json.Unmarshal(body, &h)
		}
		if err == nil && format.HolderKey(h.Name) != key {
			err = fmt.Errorf("it names itself %q: %w", h.Name, format.ErrCorrupt)
		}
		return err
	})
	return h, err
}

// Unwrap opens the DEK with whatever of u fits: first with the holders whose
// second copies the store listed, and where none of them does, or a copy of one
// is missing, with those that have a first copy alone.
func Unwrap(ctx context.Context, st store.Store, second *twin.Survey, repo string, u Unlocker, log *slog.Logger) (envelope.Secret, error) {
	var bad []error
	readAll := func(keys []string) (hs []Holder, torn bool) {
		for _, key := range keys {
			h, err := read(key, func(check func([]byte) error) ([]byte, error) { return second.Get(ctx, key, check) })
			if err != nil {
				bad = append(bad, err)
			} else {
				hs = append(hs, h)
			}
			torn = torn || err != nil || second.Torn(key)
		}
		return hs, torn
	}
	keys := second.Keys(format.HolderPrefix)
	if len(keys) > maxHolders {
		return envelope.Secret{}, fmt.Errorf("list holders: more than %d: %w", maxHolders, damage.ErrDamaged)
	}
	hs, torn := readAll(keys)
	dek, tried := open(ctx, hs, repo, u, log)
	if tried == nil && !torn {
		return dek, nil
	}
	var more []string
	err := twin.List(ctx, st, format.HolderPrefix, maxHolders, func(key string) error {
		if !second.Has(key) {
			more = append(more, key)
		}
		return nil
	})
	if err != nil {
		bad = append(bad, fmt.Errorf("list holders: %w", err))
	}
	others, _ := readAll(more)
	if tried == nil {
		return dek, nil
	}
	if len(hs)+len(others) == 0 && len(bad) > 0 {
		return dek, errors.Join(bad...)
	}
	dek, again := open(ctx, others, repo, u, log)
	if again == nil {
		return dek, nil
	}
	return dek, errors.Join(append([]error{ErrNoKey, tried, again}, bad...)...)
}

// open tries holders one after the other; the error is not nil where none opens.
func open(ctx context.Context, hs []Holder, repo string, u Unlocker, log *slog.Logger) (envelope.Secret, error) {
	tried := ErrNoKey
	for _, h := range hs {
		var dek envelope.Secret
		err := errNotTried
		switch h.Kind {
		case Recipient:
			if u.Identities.Len() > 0 {
				dek, err = envelope.OpenWithIdentities(h.Wrapped, u.Identities)
			}
		case Passphrase:
			if u.Passphrase.Len() > 0 {
				dek, err = envelope.OpenWithPassphrase(h.Wrapped, u.Passphrase)
			}
		case KEK:
			for _, k := range u.KEKs {
				if k.ID() == h.KEK {
					dek, err = k.Unwrap(ctx, h.Wrapped, holderContext(repo, h.Name))
				}
			}
		}
		if errors.Is(err, errNotTried) {
			continue
		}
		if err == nil && dekID(dek) != h.DEK {
			dek.Wipe()
			err = format.ErrCorrupt
		}
		if err == nil {
			return dek, nil
		}
		log.Debug("holder does not open the repository", "holder", h.Name, "error", err)
		tried = errors.Join(tried, fmt.Errorf("holder %s: %w", h.Name, err))
	}
	return envelope.Secret{}, tried
}

var errNotTried = errors.New("no key for this holder was given")
