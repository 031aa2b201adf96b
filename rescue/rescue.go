// Package rescue restores with nothing left but a repository and the recovery
// identity: no server, no catalog, no key manager. lockstep-recover is its
// command.
//
// It reads only; the store that it works on refuses every change. It is not a
// second engine: reading, verifying and writing back are those of repository,
// custody and restore. Its invariant: what it shows was signed by a key that
// follows from the pins of the recovery kit, unless the caller said that
// nothing is pinned.
package rescue

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"

	"github.com/lockstep-backup/lockstep/custody"
	"github.com/lockstep-backup/lockstep/diskcrypt"
	"github.com/lockstep-backup/lockstep/envelope"
	"github.com/lockstep-backup/lockstep/kit"
	"github.com/lockstep-backup/lockstep/repository"
	"github.com/lockstep-backup/lockstep/store"
)

// Errors that callers act on.
var (
	// ErrPin: the repository is not the one that the kit was made for.
	ErrPin = errors.New("repository is not the one that the recovery kit pins")
	// ErrUnpinned: there is no kit, and the caller did not say that none is needed.
	ErrUnpinned = errors.New("nothing says whose signatures to trust: the identity comes without a recovery kit")
	ErrNoPoint  = errors.New("no such recovery point")
	ErrNoVolume = errors.New("no such volume")
	// ErrNoSecret: no key package that this identity opens holds a secret for it.
	ErrNoSecret = errors.New("no key package that this identity opens holds a secret for it")
	ErrReadOnly = errors.New("the repository is never written to")
)

// Options of Open.
type Options struct {
	Store      store.Store
	Identities envelope.Secret // text of an age identity file
	Passphrase envelope.Secret // of the repository; without identities it opens no key packages
	Kits       []kit.Kit       // one of them must be this repository's
	Unpinned   bool            // go on without a kit: believe whatever the repository says of itself
	Formats    []diskcrypt.Format
	Limits     diskcrypt.Limits
	Log        *slog.Logger
}

// Rescue is an open repository. Not for concurrent use.
type Rescue struct {
	repo       *repository.Repository
	identities envelope.Secret
	recipients []string // of the identities
	formats    []diskcrypt.Format
	limits     diskcrypt.Limits
	pinned     bool
	notes      []string
}

// Open opens the repository and holds it against the kits' pins: ErrPin,
// ErrUnpinned, or what repository.Open says (ErrNoKey: another identity).
func Open(ctx context.Context, o Options) (*Rescue, error) {
	if len(o.Kits) == 0 && !o.Unpinned {
		return nil, ErrUnpinned
	}
	var recipients []string
	if o.Identities.Len() > 0 || o.Passphrase.Len() == 0 {
		var err error
		if recipients, err = envelope.RecipientsOf(o.Identities); err != nil {
			return nil, fmt.Errorf("read recovery identity: %w", err)
		}
	}
	r := &Rescue{
		identities: envelope.CopySecret(o.Identities.Expose()), recipients: recipients,
		formats: o.Formats, limits: o.Limits,
	}
	if err := r.open(ctx, o); err != nil {
		r.identities.Wipe()
		return nil, err
	}
	return r, nil
}

func (r *Rescue) open(ctx context.Context, o Options) (err error) {
	open := func(root string) (*repository.Repository, error) {
		return repository.Open(ctx, readOnly{o.Store}, repository.OpenOptions{
			Unlock: repository.Unlocker{Identities: r.identities, Passphrase: o.Passphrase}, TrustRoot: root, Log: o.Log,
		})
	}
	if len(o.Kits) == 0 {
		r.repo, err = open("")
		r.notes = append(r.notes, "nothing is pinned: whoever could write to the repository could have made all of this up")
		return err
	}
	var refused []error
	for _, k := range o.Kits {
		repo, err := open(k.TrustRoot)
		if errors.Is(err, repository.ErrUntrusted) && !errors.Is(err, repository.ErrDamaged) {
			refused = append(refused, fmt.Errorf("%w: its trust log begins otherwise", ErrPin))
			continue
		}
		if err != nil {
			return err
		}
		if err := r.check(repo, k); err != nil {
			_ = repo.Close()
			refused = append(refused, err)
			continue
		}
		r.repo, r.pinned = repo, true
		return nil
	}
	return fmt.Errorf("open repository %s: %w", o.Store.Location(), refused[0])
}

// check compares what the trust root does not bind by itself.
func (r *Rescue) check(repo *repository.Repository, k kit.Kit) error {
	if repo.ID() != k.Repository {
		return fmt.Errorf("%w: its id is %s, the kit says %s", ErrPin, repo.ID(), k.Repository)
	}
	trust := repo.Trust()
	for _, p := range k.Keys {
		got, revoked, ok := trust.Key(p.ID)
		if !ok || got.Role != p.Role || !got.Key.Equal(p.Key) {
			return fmt.Errorf("%w: its trust log lacks the %s key %s", ErrPin, p.Role, p.ID)
		}
		if revoked != nil {
			r.notes = append(r.notes, fmt.Sprintf("the %s key %s of the kit was revoked by the repository's custodian", p.Role, p.ID))
		}
	}
	return nil
}

// Repository is the repository, for reading.
func (r *Rescue) Repository() *repository.Repository { return r.repo }

// Pinned says whether a kit vouches for the repository.
func (r *Rescue) Pinned() bool { return r.pinned }

// Notes are what a person should know before believing anything.
func (r *Rescue) Notes() []string { return slices.Clone(r.notes) }

// Close wipes the keys.
func (r *Rescue) Close() error {
	r.identities.Wipe()
	return r.repo.Close()
}

// ours says whether one of the identities opens what is sealed to recipients.
func (r *Rescue) ours(recipients []string) bool {
	return slices.ContainsFunc(recipients, func(s string) bool { return slices.Contains(r.recipients, s) })
}

// trust is the repository's, whose root is the pinned one.
func (r *Rescue) trust() custody.Trust { return r.repo.Trust() }

// readOnly is a store that can only be read.
type readOnly struct{ store.Store }

func (readOnly) Put(context.Context, string, []byte) error { return ErrReadOnly }

func (readOnly) Create(context.Context, string) (store.Writer, error) { return nil, ErrReadOnly }

func (readOnly) Delete(context.Context, string) error { return ErrReadOnly }
