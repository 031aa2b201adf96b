// Package trust is a repository's trust log: which keys sign what.
// docs/spec/repository.md, section 9.
package trust

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/lockstep-backup/lockstep/envelope"
	"github.com/lockstep-backup/lockstep/repository/format"
	"github.com/lockstep-backup/lockstep/repository/internal/damage"
	"github.com/lockstep-backup/lockstep/repository/internal/twin"
	"github.com/lockstep-backup/lockstep/store"
)

const payloadType = "application/vnd.lockstep.trust+json"

type key struct {
	ID      envelope.KeyID `json:"id"`
	Role    string         `json:"role"`
	Key     []byte         `json:"key"`
	From    time.Time      `json:"from"`
	Revoked *time.Time     `json:"revoked,omitempty"`
}

func (k key) public() (envelope.PublicKey, error) {
	p := envelope.NewPublicKey(k.Role, k.Key)
	if err := p.Check(); err != nil {
		return p, err
	}
	if p.ID != k.ID {
		return p, fmt.Errorf("key %s does not have this id: %w", k.ID, format.ErrCorrupt)
	}
	return p, nil
}

type entry struct {
	N          int64  `json:"n"`
	Repository string `json:"repository"`
	Config     string `json:"config,omitempty"`
	Previous   string `json:"previous,omitempty"`
	Keys       []key  `json:"keys"`
}

// Log says which keys sign what in a repository.
type Log struct {
	Root string // digest of entry 0, to pin
	keys []key
	n    int64  // number of entries
	last string // digest of the last
	cfg  string // digest of the configuration, for Again
}

// Key finds a key by its id; revoked is the date from which it does not count.
func (t Log) Key(id envelope.KeyID) (k envelope.PublicKey, revoked *time.Time, ok bool) {
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
func (t Log) KeySet(role string) envelope.KeySet {
	var s envelope.KeySet
	for _, e := range t.keys {
		if p, err := e.public(); err == nil && e.Role == role {
			s = append(s, p)
		}
	}
	return s
}

// First makes the first entry of a repository, whose configuration object has
// the digest cfg. It is signed by the custodian it names.
func First(repo, cfg string, writer, prover envelope.PublicKey, custodian envelope.SigningKey, now time.Time) ([]byte, error) {
	e := entry{Repository: repo, Config: cfg}
	want := map[string]envelope.PublicKey{envelope.RoleWriter: writer, envelope.RoleProver: prover, envelope.RoleCustodian: custodian.Public()}
	for _, role := range []string{envelope.RoleWriter, envelope.RoleProver, envelope.RoleCustodian} {
		p := want[role]
		if p.Role != role {
			return nil, fmt.Errorf("trust log: the %s key has the role %q", role, p.Role)
		}
		if err := p.Check(); err != nil {
			return nil, fmt.Errorf("trust log: %s key: %w", role, err)
		}
		e.Keys = append(e.Keys, key{ID: p.ID, Role: role, Key: p.Key, From: now.UTC()})
	}
	return sign(e, custodian)
}

func sign(e entry, k envelope.SigningKey) ([]byte, error) {
	body, err := json.Marshal(e)
	if err != nil {
		return nil, err
	}
	signed, err := envelope.Sign(payloadType, body, k)
	if err != nil {
		return nil, err
	}
	return envelope.SealFrame(format.KindTrust, nil, nil, signed)
}

// Read reads and checks the whole log. second is what the store listed just
// before; pinned is the digest that entry 0 must have, empty where nobody
// pinned it.
func Read(ctx context.Context, st store.Store, second *twin.Survey, repo, cfg, pinned string) (t Log, err error) {
	previous := ""
	t.cfg = cfg
	for n := int64(0); ; n++ {
		key := format.TrustKey(n)
		raw, err := second.Get(ctx, key, envelope.CheckFrame)
		if errors.Is(err, damage.ErrNotFound) && n > 0 {
			return t, nothingBehind(ctx, st, second, n)
		}
		if err != nil {
			return t, fmt.Errorf("read trust log: %w", err)
		}
		if n == 0 {
			if t.Root = Digest(raw); pinned != "" && pinned != t.Root {
				return t, fmt.Errorf("read trust log: its first entry is not the pinned one: %w", damage.ErrUntrusted)
			}
		}
		e, err := parse(raw, n, t)
		if err != nil {
			return t, &damage.Error{Object: key, Err: err}
		}
		if e.N != n || e.Repository != repo || e.Previous != previous || n == 0 && e.Config != cfg {
			return t, &damage.Error{Object: key, Err: fmt.Errorf("it does not belong here: %w", damage.ErrUntrusted)}
		}
		previous = Digest(raw)
		t.keys, t.n, t.last = e.Keys, n+1, previous
	}
}

const (
	maxEntries = 1 << 20
	maxKeys    = 10000
)

// Again reads the log as it is now; somebody may have added to it.
func (t Log) Again(ctx context.Context, st store.Store, repo string) (Log, error) {
	second, err := twin.Look(ctx, st)
	if err != nil {
		return t, fmt.Errorf("read trust log: %w", err)
	}
	return Read(ctx, st, second, repo, t.cfg, t.Root)
}

// nothingBehind: keys that later entries add or revoke must not go unnoticed
// because an entry between is lost. The second copies show it, where those of
// the entries that were read are all there; else the first copies are listed too.
func nothingBehind(ctx context.Context, st store.Store, second *twin.Survey, n int64) error {
	end, listed := n, 0
	see := func(key string) {
		if m, err := format.ParseNumber(key[len(format.TrustPrefix):]); err == nil {
			end = max(end, m)
		}
	}
	for _, key := range second.Keys(format.TrustPrefix) {
		see(key)
	}
	whole := true
	for i := int64(0); whole && i < n; i++ {
		whole = second.Has(format.TrustKey(i))
	}
	var err error
	if !whole && end == n {
		err = st.List(ctx, format.TrustPrefix, func(i store.Info) error {
			if listed++; listed > maxEntries {
				return fmt.Errorf("more than %d entries: %w", maxEntries, damage.ErrDamaged)
			}
			see(i.Key)
			return nil
		})
	}
	if err == nil && end > n {
		// Entry n may have come between the reading and the listing, and more behind it.
		if _, err = twin.Get(ctx, st, format.TrustKey(n), envelope.CheckFrame); errors.Is(err, damage.ErrNotFound) {
			err = &damage.Error{Object: format.TrustKey(n), Err: fmt.Errorf("entry is missing, later ones are there: %w", err)}
		}
	}
	if err != nil {
		return fmt.Errorf("read trust log: %w", err)
	}
	return nil
}

// parse checks entry n's signature: by the custodian it names itself if
// it is the first (the pin vouches for it), else by one that t holds valid.
func parse(raw []byte, n int64, t Log) (e entry, err error) {
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
		if k.Role != envelope.RoleCustodian || k.Revoked != nil {
			continue
		}
		p, err := k.public()
		if err != nil {
			return e, err
		}
		valid = append(valid, p)
	}
	body, _, err := envelope.Verify(signed, payloadType, valid)
	if err != nil {
		return e, fmt.Errorf("%w: %w", damage.ErrUntrusted, err)
	}
	e = entry{}
	if err := json.Unmarshal(body, &e); err != nil {
		return e, err
	}
	if len(e.Keys) == 0 || len(e.Keys) > maxKeys {
		return e, fmt.Errorf("%d keys: %w", len(e.Keys), format.ErrCorrupt)
	}
	for _, k := range e.Keys {
		if _, err := k.public(); err != nil {
			return e, err
		}
	}
	return e, nil
}

// Append writes the next entry: new keys, and dates from which keys do not
// count. The signing custodian must be valid now.
func (t Log) Append(ctx context.Context, st store.Store, repo string, custodian envelope.SigningKey, add []envelope.PublicKey, revoke map[envelope.KeyID]time.Time, now time.Time) (Log, error) {
	if k, revoked, ok := t.Key(custodian.ID()); !ok || revoked != nil || k.Role != envelope.RoleCustodian {
		return t, fmt.Errorf("publish keys: custodian key %s: %w", custodian.ID(), damage.ErrUntrusted)
	}
	keys := slices.Clone(t.keys)
	for i := range keys {
		if at, ok := revoke[keys[i].ID]; ok {
			at = at.UTC()
			keys[i].Revoked = &at
		}
	}
	for _, p := range add {
		keys = append(keys, key{ID: p.ID, Role: p.Role, Key: p.Key, From: now.UTC()})
	}
	after, err := t.write(ctx, st, repo, custodian, keys)
	if err != nil {
		return t, fmt.Errorf("publish keys: %w", err)
	}
	return after, nil
}

// Adopt makes the keys of another repository count in this one, with their
// roles, from then on: statements that they signed are copied. Dates of
// revocation come along; one that this log has already stays where it is
// earlier. A custodian of the other repository is adopted only where it is
// revoked there, or asked for by name in custodians, for it could go on to
// change this log. changed is false where all was known: then nothing is written.
func (t Log) Adopt(ctx context.Context, st store.Store, repo string, custodian envelope.SigningKey, from Log, custodians []envelope.KeyID, now time.Time) (after Log, changed bool, err error) {
	if k, revoked, ok := t.Key(custodian.ID()); !ok || revoked != nil || k.Role != envelope.RoleCustodian {
		return t, false, fmt.Errorf("adopt keys: custodian key %s: %w", custodian.ID(), damage.ErrUntrusted)
	}
	keys := slices.Clone(t.keys)
	for _, k := range from.keys {
		i := slices.IndexFunc(keys, func(o key) bool { return o.ID == k.ID })
		if i >= 0 {
			if keys[i].Role != k.Role {
				return t, false, fmt.Errorf("adopt keys: key %s is a %s here and a %s there: %w", k.ID, keys[i].Role, k.Role, damage.ErrUntrusted)
			}
			if k.Revoked != nil && (keys[i].Revoked == nil || k.Revoked.Before(*keys[i].Revoked)) {
				if k.ID == custodian.ID() {
					return t, false, fmt.Errorf("adopt keys: custodian key %s was revoked in the other repository: %w", k.ID, damage.ErrUntrusted)
				}
				keys[i].Revoked, changed = k.Revoked, true
			}
			continue
		}
		if k.Role == envelope.RoleCustodian && k.Revoked == nil && !slices.Contains(custodians, k.ID) {
			continue
		}
		k.From = now.UTC()
		keys, changed = append(keys, k), true
	}
	if !changed {
		return t, false, nil
	}
	if len(keys) > maxKeys {
		return t, false, fmt.Errorf("adopt keys: %d keys are too many", len(keys))
	}
	after, err = t.write(ctx, st, repo, custodian, keys)
	if err != nil {
		return t, false, fmt.Errorf("adopt keys: %w", err)
	}
	return after, true, nil
}

// Missing says which keys of another repository this one does not have, or has
// without their revocation.
func (t Log) Missing(from Log) []envelope.KeyID {
	var ids []envelope.KeyID
	for _, k := range from.keys {
		_, revoked, ok := t.Key(k.ID)
		if !ok || k.Revoked != nil && (revoked == nil || k.Revoked.Before(*revoked)) {
			ids = append(ids, k.ID)
		}
	}
	return ids
}

// write makes keys the next entry.
func (t Log) write(ctx context.Context, st store.Store, repo string, custodian envelope.SigningKey, keys []key) (Log, error) {
	e := entry{N: t.n, Repository: repo, Previous: t.last, Keys: keys}
	frame, err := sign(e, custodian)
	if err == nil {
		err = twin.Put(ctx, st, format.TrustKey(e.N), frame)
	}
	if err != nil {
		return t, err
	}
	return Log{Root: t.Root, keys: keys, n: t.n + 1, last: Digest(frame), cfg: t.cfg}, nil
}

// Digest is "sha256:" and the hex digits.
func Digest(p []byte) string {
	d := sha256.Sum256(p)
	return "sha256:" + hex.EncodeToString(d[:])
}
