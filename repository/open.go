package repository

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"regexp"
	"sync"
	"time"

	"github.com/lockstep-backup/lockstep/envelope"
	"github.com/lockstep-backup/lockstep/repository/format"
	"github.com/lockstep-backup/lockstep/store"
)

// config is the body of the object "config".
type config struct {
	Format  int       `json:"format"`
	ID      string    `json:"id"`
	Created time.Time `json:"created"`
	Sealing string    `json:"sealing"`
	Must    []string  `json:"must"`
	May     []string  `json:"may"`
}

// knownFeatures are the must-understand features this version reads.
var knownFeatures = map[string]bool{}

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
	HolderPassphrase = "passphrase"
	HolderRecipient  = "recipient"
	HolderKEK        = "kek"

	RoleRecovery = "recovery" // its identity lies in a safe
	RoleHost     = "host"     // its identity lies with the data directory
)

// NewHolder asks for the DEK to be wrapped; exactly one of Passphrase, Recipient, KEK is set.
type NewHolder struct {
	Name       string // 1–64 of [a-z0-9-]
	Passphrase envelope.Secret
	WorkFactor int // of the passphrase's scrypt, 0 = default
	Recipient  string
	Role       string // of the recipient
	KEK        envelope.KEK
}

// CreateOptions for a new repository.
type CreateOptions struct {
	Sealing   string // SealingAESGCM (default) or SealingNone
	Holders   []NewHolder
	Writer    envelope.PublicKey
	Prover    envelope.PublicKey
	Custodian envelope.SigningKey // signs the first trust entry
	Now       func() time.Time
}

// Unlocker is what may open the DEK; whatever fits is used.
type Unlocker struct {
	Passphrase envelope.Secret
	Identities envelope.Secret // an age identity file's text
	KEKs       []envelope.KEK
}

// OpenOptions for an existing repository.
type OpenOptions struct {
	Unlock    Unlocker
	Writer    *envelope.SigningKey // nil: read only
	TrustRoot string               // pinned digest of trust entry 0, "sha256:…"; empty: not pinned
	Log       *slog.Logger
	Now       func() time.Time
}

// Repository is an open repository. It is safe for concurrent use.
type Repository struct {
	st     store.Store
	cfg    config
	dek    envelope.Secret
	trust  Trust
	writer *envelope.SigningKey
	log    *slog.Logger
	now    func() time.Time

	mu       sync.Mutex
	machines map[string]*machine
}

var holderName = regexp.MustCompile(`^[a-z0-9-]{1,64}$`)

// Create makes a repository in an empty store and returns its id and the
// digest of the first trust entry, which readers pin.
func Create(ctx context.Context, st store.Store, o CreateOptions) (id, trustRoot string, err error) {
	if o.Sealing == "" {
		o.Sealing = SealingAESGCM
	}
	if o.Sealing != SealingAESGCM && o.Sealing != SealingNone {
		return "", "", fmt.Errorf("create repository: sealing %q: %w", o.Sealing, ErrFormat)
	}
	if o.Now == nil {
		o.Now = time.Now
	}
	offline := false
	for _, h := range o.Holders {
		if !holderName.MatchString(h.Name) {
			return "", "", fmt.Errorf("create repository: holder name %q: only 1 to 64 of a-z, 0-9 and - can be used", h.Name)
		}
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
	dek, err := envelope.NewKey()
	if err != nil {
		return "", "", fmt.Errorf("create repository: %w", err)
	}
	defer dek.Wipe()
	cfg := config{Format: 1, ID: newID(), Created: o.Now().UTC(), Sealing: o.Sealing, Must: []string{}, May: []string{}}
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
		if err := putHolder(ctx, st, cfg.ID, dek, h, o.Now()); err != nil {
			return "", "", fmt.Errorf("create repository: %w", err)
		}
	}
	first, err := firstTrust(cfg.ID, digestOf(frame), o)
	if err != nil {
		return "", "", fmt.Errorf("create repository: %w", err)
	}
	if err := st.Put(ctx, format.TrustKey(0), first); err != nil {
		return "", "", fmt.Errorf("create repository: write trust log: %w", err)
	}
	if err := st.Put(ctx, format.ConfigKey, frame); err != nil {
		if errors.Is(err, store.ErrExist) {
			err = ErrExists
		}
		return "", "", fmt.Errorf("create repository: %w", err)
	}
	return cfg.ID, digestOf(first), nil
}

// Open reads the configuration, checks the trust log and unwraps the DEK.
func Open(ctx context.Context, st store.Store, o OpenOptions) (*Repository, error) {
	r := &Repository{st: st, writer: o.Writer, log: o.Log, now: o.Now, machines: map[string]*machine{}}
	if r.log == nil {
		r.log = slog.New(slog.DiscardHandler)
	}
	if r.now == nil {
		r.now = time.Now
	}
	raw, err := store.GetAll(ctx, st, format.ConfigKey, 1<<20)
	if errors.Is(err, store.ErrNotExist) {
		return nil, fmt.Errorf("open repository %s: %w: there is none", st.Location(), ErrNotFound)
	}
	if err != nil {
		return nil, fmt.Errorf("open repository %s: %w", st.Location(), err)
	}
	if r.cfg, err = parseConfig(raw); err != nil {
		return nil, fmt.Errorf("open repository %s: %w", st.Location(), err)
	}
	if r.trust, err = readTrust(ctx, st, r.cfg.ID, digestOf(raw), o.TrustRoot); err != nil {
		return nil, fmt.Errorf("open repository %s: %w", st.Location(), err)
	}
	if o.Writer != nil {
		if k, revoked, ok := r.trust.Key(o.Writer.ID()); !ok || revoked != nil || k.Role != "writer" {
			return nil, fmt.Errorf("open repository %s: writer key %s: %w", st.Location(), o.Writer.ID(), ErrUntrusted)
		}
	}
	if r.dek, err = unwrapDEK(ctx, st, r.cfg.ID, o.Unlock, r.log); err != nil {
		return nil, fmt.Errorf("open repository %s: %w", st.Location(), err)
	}
	return r, nil
}

func parseConfig(raw []byte) (c config, err error) {
	body, err := envelope.OpenFrame(raw, format.KindConfig, nil, nil)
	if err != nil {
		return c, &DamageError{Object: format.ConfigKey, Err: err}
	}
	if err := json.Unmarshal(body, &c); err != nil {
		return c, &DamageError{Object: format.ConfigKey, Err: err}
	}
	if c.Format != 1 {
		return c, fmt.Errorf("%w: version %d, this program reads version 1", ErrFormat, c.Format)
	}
	for _, f := range c.Must {
		if !knownFeatures[f] {
			return c, fmt.Errorf("%w: it needs the feature %q, which this program lacks", ErrFormat, f)
		}
	}
	if c.Sealing != SealingAESGCM && c.Sealing != SealingNone {
		return c, fmt.Errorf("%w: sealing %q", ErrFormat, c.Sealing)
	}
	if !format.ValidID(c.ID) {
		return c, &DamageError{Object: format.ConfigKey, Err: format.ErrCorrupt}
	}
	return c, nil
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

func putHolder(ctx context.Context, st store.Store, repo string, dek envelope.Secret, n NewHolder, now time.Time) error {
	h := Holder{Name: n.Name, Role: n.Role, DEK: dekID(dek), Created: now.UTC()}
	var err error
	switch {
	case n.KEK != nil:
		h.Kind, h.KEK = HolderKEK, n.KEK.ID()
		h.Wrapped, err = n.KEK.Wrap(ctx, dek, holderContext(repo, n.Name))
	case n.Recipient != "":
		h.Kind, h.Recipient = HolderRecipient, n.Recipient
		h.Wrapped, err = envelope.SealToRecipients(dek.Expose(), []string{n.Recipient})
	default:
		h.Kind = HolderPassphrase
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
	if err := st.Put(ctx, format.HolderKey(n.Name), frame); err != nil {
		return fmt.Errorf("write holder %s: %w", n.Name, err)
	}
	return nil
}

const maxHolders = 1000

// ListHolders reads who can open a repository, without opening it. Damaged
// holders come back as an error beside the good ones.
func ListHolders(ctx context.Context, st store.Store) ([]Holder, error) {
	var hs []Holder
	var bad []error
	err := st.List(ctx, format.HolderPrefix, func(i store.Info) error {
		if len(hs) >= maxHolders {
			return fmt.Errorf("list holders: more than %d: %w", maxHolders, ErrDamaged)
		}
		h, err := readHolder(ctx, st, i.Key)
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

func readHolder(ctx context.Context, st store.Store, key string) (h Holder, err error) {
	raw, err := store.GetAll(ctx, st, key, 1<<20)
	if err != nil {
		return h, err
	}
	body, err := envelope.OpenFrame(raw, format.KindHolder, nil, nil)
	if err != nil {
		return h, &DamageError{Object: key, Err: err}
	}
	if err := json.Unmarshal(body, &h); err != nil {
		return h, &DamageError{Object: key, Err: err}
	}
	if format.HolderKey(h.Name) != key {
		return h, &DamageError{Object: key, Err: fmt.Errorf("it names itself %q: %w", h.Name, format.ErrCorrupt)}
	}
	return h, nil
}

func unwrapDEK(ctx context.Context, st store.Store, repo string, u Unlocker, log *slog.Logger) (envelope.Secret, error) {
	hs, err := ListHolders(ctx, st)
	if len(hs) == 0 && err != nil {
		return envelope.Secret{}, err
	}
	tried := errors.Join(ErrNoKey, err)
	for _, h := range hs {
		var dek envelope.Secret
		err := errNotTried
		switch h.Kind {
		case HolderRecipient:
			if u.Identities.Len() > 0 {
				dek, err = envelope.OpenWithIdentities(h.Wrapped, u.Identities)
			}
		case HolderPassphrase:
			if u.Passphrase.Len() > 0 {
				dek, err = envelope.OpenWithPassphrase(h.Wrapped, u.Passphrase)
			}
		case HolderKEK:
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

// AddHolder wraps the DEK for one more holder.
func (r *Repository) AddHolder(ctx context.Context, n NewHolder) error {
	if !holderName.MatchString(n.Name) {
		return fmt.Errorf("add holder: name %q: only 1 to 64 of a-z, 0-9 and - can be used", n.Name)
	}
	if err := putHolder(ctx, r.st, r.cfg.ID, r.dek, n, r.now()); err != nil {
		return fmt.Errorf("add holder: %w", err)
	}
	return nil
}

// Holders lists who can unwrap the DEK.
func (r *Repository) Holders(ctx context.Context) ([]Holder, error) { return ListHolders(ctx, r.st) }

// ID is the repository's id, 32 hex digits.
func (r *Repository) ID() string { return r.cfg.ID }

// Sealing is how extents are stored.
func (r *Repository) Sealing() string { return r.cfg.Sealing }

// Trust is the state of the trust log when the repository was opened.
func (r *Repository) Trust() Trust { return r.trust }

// Store is the store beneath.
func (r *Repository) Store() store.Store { return r.st }

// Close wipes the keys.
func (r *Repository) Close() error {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.dek.Wipe()
	for _, m := range r.machines {
		m.wipe()
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

func digestOf(p []byte) string {
	d := sha256.Sum256(p)
	return "sha256:" + hex.EncodeToString(d[:])
}
