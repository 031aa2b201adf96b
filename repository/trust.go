package repository

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/lockstep-backup/lockstep/envelope"
	"github.com/lockstep-backup/lockstep/repository/format"
	"github.com/lockstep-backup/lockstep/store"
)

const trustType = "application/vnd.lockstep.trust+json"

type trustKey struct {
	ID      envelope.KeyID `json:"id"`
	Role    string         `json:"role"`
	Key     []byte         `json:"key"`
	From    time.Time      `json:"from"`
	Revoked *time.Time     `json:"revoked,omitempty"`
}

func (k trustKey) public() (envelope.PublicKey, error) {
	p := envelope.NewPublicKey(k.Role, k.Key)
	if err := p.Check(); err != nil {
		return p, err
	}
	if p.ID != k.ID {
		return p, fmt.Errorf("key %s does not have this id: %w", k.ID, format.ErrCorrupt)
	}
	return p, nil
}

type trustEntry struct {
	N          int64      `json:"n"`
	Repository string     `json:"repository"`
	Config     string     `json:"config,omitempty"`
	Previous   string     `json:"previous,omitempty"`
	Keys       []trustKey `json:"keys"`
}

// Trust says which keys sign what in a repository.
type Trust struct {
	Root string // digest of entry 0, to pin
	keys []trustKey
}

// Key finds a key by its id; revoked is the date from which it does not count.
func (t Trust) Key(id envelope.KeyID) (k envelope.PublicKey, revoked *time.Time, ok bool) {
	for _, e := range t.keys {
		if e.ID == id {
			p, err := e.public()
			return p, e.Revoked, err == nil
		}
	}
	return k, nil, false
}

// KeySet returns all keys of a role that ever counted; callers look up
// revocation with Key where the date matters.
func (t Trust) KeySet(role string) envelope.KeySet {
	var s envelope.KeySet
	for _, e := range t.keys {
		if p, err := e.public(); err == nil && e.Role == role {
			s = append(s, p)
		}
	}
	return s
}

func firstTrust(repo, cfg string, o CreateOptions) ([]byte, error) {
	now := o.Now().UTC()
	e := trustEntry{Repository: repo, Config: cfg}
	want := map[string]envelope.PublicKey{"writer": o.Writer, "prover": o.Prover, "custodian": o.Custodian.Public()}
	for _, role := range []string{"writer", "prover", "custodian"} {
		p := want[role]
		if p.Role != role {
			return nil, fmt.Errorf("trust log: the %s key has the role %q", role, p.Role)
		}
		if err := p.Check(); err != nil {
			return nil, fmt.Errorf("trust log: %s key: %w", role, err)
		}
		e.Keys = append(e.Keys, trustKey{ID: p.ID, Role: role, Key: p.Key, From: now})
	}
	return signTrust(e, o.Custodian)
}

func signTrust(e trustEntry, k envelope.SigningKey) ([]byte, error) {
	body, err := json.Marshal(e)
	if err != nil {
		return nil, err
	}
	signed, err := envelope.Sign(trustType, body, k)
	if err != nil {
		return nil, err
	}
	return envelope.SealFrame(format.KindTrust, nil, nil, signed)
}

func readTrust(ctx context.Context, st store.Store, repo, cfg, pinned string) (t Trust, err error) {
	previous := ""
	for n := int64(0); ; n++ {
		key := format.TrustKey(n)
		raw, err := store.GetAll(ctx, st, key, 1<<20)
		if errors.Is(err, store.ErrNotExist) && n > 0 {
			return t, nil
		}
		if err != nil {
			return t, fmt.Errorf("read trust log: %w", err)
		}
		if n == 0 {
			if t.Root = digestOf(raw); pinned != "" && pinned != t.Root {
				return t, fmt.Errorf("read trust log: its first entry is not the pinned one: %w", ErrUntrusted)
			}
		}
		e, err := parseTrust(raw, n, t)
		if err != nil {
			return t, &DamageError{Object: key, Err: err}
		}
		if e.N != n || e.Repository != repo || e.Previous != previous || n == 0 && e.Config != cfg {
			return t, &DamageError{Object: key, Err: fmt.Errorf("it does not belong here: %w", ErrUntrusted)}
		}
		t.keys = e.Keys
		previous = digestOf(raw)
	}
}

// parseTrust checks entry n's signature: by the custodian it names itself if
// it is the first (the pin vouches for it), else by one that t holds valid.
func parseTrust(raw []byte, n int64, t Trust) (e trustEntry, err error) {
	signed, err := envelope.OpenFrame(raw, format.KindTrust, nil, nil)
	if err != nil {
		return e, err
	}
	d, err := envelope.ParseDSSE(signed)
	if err != nil {
		return e, err
	}
	if n == 0 {
		if err := json.Unmarshal(d.Payload, &e); err != nil {
			return e, err
		}
		t.keys = e.Keys
	}
	var valid envelope.KeySet
	for _, k := range t.keys {
		if k.Role != "custodian" || k.Revoked != nil {
			continue
		}
		p, err := k.public()
		if err != nil {
			return e, err
		}
		valid = append(valid, p)
	}
	body, _, err := envelope.Verify(signed, trustType, valid)
	if err != nil {
		return e, fmt.Errorf("%w: %w", ErrUntrusted, err)
	}
	e = trustEntry{}
	if err := json.Unmarshal(body, &e); err != nil {
		return e, err
	}
	if len(e.Keys) == 0 || len(e.Keys) > 10000 {
		return e, fmt.Errorf("%d keys: %w", len(e.Keys), format.ErrCorrupt)
	}
	for _, k := range e.Keys {
		if _, err := k.public(); err != nil {
			return e, err
		}
	}
	return e, nil
}

// PublishKeys appends a trust entry: new keys, and dates from which keys do
// not count. The signing custodian must be valid now.
func (r *Repository) PublishKeys(ctx context.Context, custodian envelope.SigningKey, add []envelope.PublicKey, revoke map[envelope.KeyID]time.Time) error {
	n, last := int64(0), []byte(nil)
	for {
		raw, err := store.GetAll(ctx, r.st, format.TrustKey(n), 1<<20)
		if errors.Is(err, store.ErrNotExist) {
			break
		}
		if err != nil {
			return fmt.Errorf("publish keys: %w", err)
		}
		last, n = raw, n+1
	}
	e := trustEntry{N: n, Repository: r.cfg.ID, Previous: digestOf(last), Keys: append([]trustKey(nil), r.trust.keys...)}
	for i := range e.Keys {
		if at, ok := revoke[e.Keys[i].ID]; ok {
			at = at.UTC()
			e.Keys[i].Revoked = &at
		}
	}
	for _, p := range add {
		e.Keys = append(e.Keys, trustKey{ID: p.ID, Role: p.Role, Key: p.Key, From: r.now().UTC()})
	}
	if k, revoked, ok := r.trust.Key(custodian.ID()); !ok || revoked != nil || k.Role != "custodian" {
		return fmt.Errorf("publish keys: custodian key %s: %w", custodian.ID(), ErrUntrusted)
	}
	frame, err := signTrust(e, custodian)
	if err != nil {
		return fmt.Errorf("publish keys: %w", err)
	}
	if err := r.st.Put(ctx, format.TrustKey(n), frame); err != nil {
		return fmt.Errorf("publish keys: %w", err)
	}
	r.trust.keys = e.Keys
	return nil
}
