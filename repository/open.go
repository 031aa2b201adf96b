package repository

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/lockstep-backup/lockstep/envelope"
	"github.com/lockstep-backup/lockstep/repository/format"
	"github.com/lockstep-backup/lockstep/repository/internal/creation"
	"github.com/lockstep-backup/lockstep/repository/internal/holder"
	"github.com/lockstep-backup/lockstep/repository/internal/retainlock"
	"github.com/lockstep-backup/lockstep/repository/internal/settings"
	"github.com/lockstep-backup/lockstep/repository/internal/trust"
	"github.com/lockstep-backup/lockstep/repository/internal/twin"
	"github.com/lockstep-backup/lockstep/store"
)

// config is the body of the object "config".
type config = settings.Config

// Holder is who can unwrap the repository's DEK; NewHolder asks for one more;
// Unlocker is what may open it.
type (
	Holder    = holder.Holder
	NewHolder = holder.New
	Unlocker  = holder.Unlocker
)

// Holder kinds and recipient roles.
const (
	HolderPassphrase = holder.Passphrase
	HolderRecipient  = holder.Recipient
	HolderKEK        = holder.KEK

	RoleRecovery = holder.RoleRecovery
	RoleHost     = holder.RoleHost
)

// CreateOptions for a new repository.
type CreateOptions = creation.Options

// OpenOptions for an existing repository.
type OpenOptions struct {
	Unlock    Unlocker
	Writer    *envelope.SigningKey // nil: read only
	ReadOnly  error                // why there is no Writer, for who tries to write; may be nil
	TrustRoot string               // pinned digest of trust entry 0, "sha256:…"; empty: not pinned
	Lock      LockPolicy           // for what is written; zero: nothing is locked
	Log       *slog.Logger
	Now       func() time.Time
}

// Repository is an open repository. It is safe for concurrent use.
type Repository struct {
	st     store.Store
	cfg    config
	dek    envelope.Secret
	trust  trust.Log // behind trustMu
	writer *envelope.SigningKey
	why    error             // why there is no writer, may be nil
	lock   *retainlock.Store // st, where what is written is locked; else nil
	log    *slog.Logger
	now    func() time.Time

	trustMu sync.RWMutex

	mu       sync.Mutex
	twins    *twin.Survey // of when it was opened
	machines map[string]*machine

	healedMu sync.Mutex
	healed   []string
}

// Create makes a repository in an empty store and returns its id and the
// digest of the first trust entry, which readers pin.
func Create(ctx context.Context, st store.Store, o CreateOptions) (id, trustRoot string, err error) {
	return creation.Create(ctx, st, o)
}

// Open reads the configuration, checks the trust log and unwraps the DEK.
func Open(ctx context.Context, st store.Store, o OpenOptions) (_ *Repository, err error) {
	r := &Repository{st: st, writer: o.Writer, why: o.ReadOnly, log: o.Log, now: o.Now, machines: map[string]*machine{}}
	if r.log == nil {
		r.log = slog.New(slog.DiscardHandler)
	}
	if r.now == nil {
		r.now = time.Now
	}
	if err := o.Lock.Check(); err != nil {
		return nil, fmt.Errorf("open repository %s: %w", st.Location(), err)
	}
	if o.Lock.For > 0 && o.Writer != nil {
		r.lock = retainlock.New(st, o.Lock, r.now, r.log)
		r.st, st = r.lock, r.lock
	}
	if r.twins, err = twin.Look(ctx, st); err != nil {
		return nil, fmt.Errorf("open repository %s: %w", st.Location(), err)
	}
	raw, err := r.twins.Get(ctx, format.ConfigKey, func(raw []byte) error { r.cfg, err = settings.Parse(raw); return err })
	if err != nil {
		return nil, fmt.Errorf("open repository %s: %w", st.Location(), err)
	}
	if r.trust, err = trust.Read(ctx, st, r.twins, r.cfg.ID, trust.Digest(raw), o.TrustRoot); err != nil {
		return nil, fmt.Errorf("open repository %s: %w", st.Location(), err)
	}
	if o.Writer != nil {
		if k, revoked, ok := r.trust.Key(o.Writer.ID()); !ok || revoked != nil || k.Role != envelope.RoleWriter {
			return nil, fmt.Errorf("open repository %s: writer key %s: %w", st.Location(), o.Writer.ID(), ErrUntrusted)
		}
	}
	dek, err := holder.Unwrap(ctx, st, r.twins, r.cfg.ID, o.Unlock, r.log)
	if o.Writer != nil { // also where nothing opens: what is missing is missing all the same
		r.warnTorn(r.twins.Heal(ctx, envelope.CheckFrame, r.noteHealed))
	}
	if err != nil {
		return nil, fmt.Errorf("open repository %s: %w", st.Location(), err)
	}
	r.dek = dek
	return r, nil
}

// warnTorn: bringing back copies that a crash left out or a store lost is for
// writers only, and where they cannot, that stops nobody.
func (r *Repository) warnTorn(err error) {
	if err != nil {
		r.log.Warn("an object that is kept twice has one copy", "error", err)
	}
}

const maxHealed = 1 << 12

// healHolders brings back copies of wrapped keys of which nobody needed to know
// when the repository was opened.
func (r *Repository) healHolders(ctx context.Context) {
	if r.writer != nil {
		r.warnTorn(twin.HealAll(ctx, r.st, format.HolderPrefix, maxHealed, envelope.CheckFrame, r.noteHealed))
	}
}

// noteHealed remembers, and says, that a copy was lost: it is whole again, but
// a store that loses objects is no good.
func (r *Repository) noteHealed(key string) {
	r.log.Warn("a lost copy of an object that is kept twice was written again", "object", key)
	r.healedMu.Lock()
	defer r.healedMu.Unlock()
	r.healed = append(r.healed, key)
}

// TakeHealed returns the keys of lost copies that were written again since
// Open, each once.
func (r *Repository) TakeHealed() []string {
	r.healedMu.Lock()
	defer r.healedMu.Unlock()
	keys := r.healed
	r.healed = nil
	return keys
}

// readOnly is the error of writing without a writer's key.
func (r *Repository) readOnly(operation string) error {
	if r.why != nil {
		return fmt.Errorf("%s: %w: %w", operation, ErrReadOnly, r.why)
	}
	return fmt.Errorf("%s: %w", operation, ErrReadOnly)
}

// AddHolder wraps the DEK for one more holder.
func (r *Repository) AddHolder(ctx context.Context, n NewHolder) error {
	r.healHolders(ctx) // who was killed here tries again
	if err := holder.Put(ctx, r.st, r.cfg.ID, r.dek, n, r.now()); err != nil {
		return fmt.Errorf("add holder: %w", err)
	}
	return nil
}

// Holders lists who can unwrap the DEK.
func (r *Repository) Holders(ctx context.Context) ([]Holder, error) { return holder.List(ctx, r.st) }

// ListHolders reads who can open a repository, without opening it.
func ListHolders(ctx context.Context, st store.Store) ([]Holder, error) { return holder.List(ctx, st) }

// ID is the repository's id, 32 hex digits.
func (r *Repository) ID() string { return r.cfg.ID }

// Sealing is how extents are stored.
func (r *Repository) Sealing() string { return r.cfg.Sealing }

// Trust says which keys sign what.
type Trust = trust.Log

// Trust is the state of the trust log when the repository was opened, and what
// Copy added to it since.
func (r *Repository) Trust() Trust {
	r.trustMu.RLock()
	defer r.trustMu.RUnlock()
	return r.trust
}

// Store is the store beneath.
func (r *Repository) Store() store.Store { return r.st }

// Close wipes the keys.
func (r *Repository) Close() error {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.dek.Wipe()
	for _, m := range r.machines {
		m.Wipe()
	}
	r.machines = map[string]*machine{}
	return nil
}

// newID draws 128 random bits as 32 hex digits.
func newID() string {
	var b [16]byte
	_, _ = rand.Read(b[:]) // never fails since Go 1.24
	return hex.EncodeToString(b[:])
}

// NewPointID draws the id of a recovery point.
func NewPointID() string { return newID() }

// PublishKeys appends a trust entry: new keys, and dates from which keys do
// not count. The signing custodian must be valid now.
func (r *Repository) PublishKeys(ctx context.Context, custodian envelope.SigningKey, add []envelope.PublicKey, revoke map[envelope.KeyID]time.Time) error {
	t, err := r.trust.Append(ctx, r.st, r.cfg.ID, custodian, add, revoke, r.now())
	r.trust = t
	return err
}

func digestOf(p []byte) string { return trust.Digest(p) }
