package prove

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/lockstep-backup/lockstep/custody"
	"github.com/lockstep-backup/lockstep/envelope"
	"github.com/lockstep-backup/lockstep/repository"
)

// Policies are the statements in repositories about the policy of one machine,
// by the keys of their sidecars.
type Policies struct {
	Read    map[string]custody.Policy
	Revoked map[string]custody.Policy // signed by a key that is revoked
	Unread  map[string]error          // which may be the one that counts
}

func newPolicies() Policies {
	return Policies{Read: map[string]custody.Policy{}, Revoked: map[string]custody.Policy{}, Unread: map[string]error{}}
}

// Add adds what another repository has about the machine. What is whole in one
// of them is read.
func (p *Policies) Add(o Policies) {
	if p.Read == nil {
		*p = newPolicies()
	}
	maps.Copy(p.Read, o.Read)
	maps.Copy(p.Revoked, o.Revoked)
	maps.Copy(p.Unread, o.Unread)
	for _, whole := range []map[string]custody.Policy{p.Read, p.Revoked} {
		for key := range whole {
			delete(p.Unread, key)
		}
	}
}

// InForce is the statement that counts; found is false where nothing was ever
// stated. The error says why it is not known which one does.
func (p Policies) InForce() (s custody.Policy, found bool, err error) {
	for _, key := range slices.Sorted(maps.Keys(p.Unread)) {
		return s, false, p.Unread[key]
	}
	all := slices.SortedFunc(maps.Values(p.Read), custody.LaterPolicy)
	if len(all) > 0 {
		s, found = all[len(all)-1], true
	}
	for _, r := range p.Revoked {
		if !found || custody.LaterPolicy(r, s) >= 0 {
			return custody.Policy{}, false, fmt.Errorf("the last statement of it is signed by a key that is revoked: %w", custody.ErrRevoked)
		}
	}
	for _, o := range all {
		if custody.LaterPolicy(o, s) == 0 && !o.Same(s) {
			return custody.Policy{}, false, errors.New("two statements of it differ, and neither is the later one")
		}
	}
	return s, found, nil
}

// readPolicy sorts one sidecar that states a policy.
func (c *MachineCustody) readPolicy(s repository.Sidecar, trust custody.Trust, homes map[string]bool, machine string) error {
	p, err := custody.VerifyPolicyOf(s.Raw, trust, homes, machine)
	switch {
	case err == nil:
		c.Policies.Read[s.Key] = p
	case errors.Is(err, custody.ErrRevoked):
		c.Policies.Revoked[s.Key] = p
	case errors.Is(err, custody.ErrFormat):
		c.Policies.Unread[s.Key] = err // a later version's
	}
	return err
}

// statedKey is the catalog's value with what a repository was last told about
// the policy of a machine: so a backup need not look. pending is its value where
// that could not be done yet.
func statedKey(repo, machine string) string { return "policy.stated." + repo + "." + machine }

const pending = "pending"

// MetaPolicies is the catalog's value that is set where policies were ever set,
// taken away or filled in from repositories: what it has then is how it is meant.
const MetaPolicies = "policies.known"

// UnreadPolicy is the catalog's value that says why a machine's policy, by the
// machine's id, is not known; "" where it is.
func UnreadPolicy(machine string) string { return "policy.unread." + machine }

// StatePolicy states in the repository what policy is in force for a machine:
// doc, nil = none; ofAll says that it is the one of all machines without one of
// their own. It writes nothing where that was stated last. A machine that the
// repository does not know yet is stated later. changed says that somebody just
// changed it; otherwise a catalog that never knew a policy takes none away.
// custodian gives the key where it is needed; the caller wipes it.
func StatePolicy(ctx context.Context, d Deps, machine string, doc []byte, ofAll, changed bool, custodian func() (envelope.SigningKey, error)) error {
	d = d.withDefaults()
	fail := func(err error) error { return fmt.Errorf("state the policy in the repository: %w", err) }
	s := custody.Policy{Repository: d.Repo.ID(), Machine: machine, Default: ofAll, Actor: d.Actor, Time: d.Now().UTC().Truncate(time.Millisecond)}
	if doc != nil {
		var b bytes.Buffer
		if err := json.Compact(&b, doc); err != nil {
			return fail(err)
		}
		s.Document = b.Bytes()
	}
	sum := sha256.Sum256(fmt.Appendf(nil, "%v %s", s.Default, s.Document))
	now, stated := hex.EncodeToString(sum[:]), statedKey(d.Repo.ID(), machine)
	before, err := d.Catalog.Meta.Get(ctx, stated)
	if err != nil || before == now {
		return err
	}
	if before == "" && doc == nil && !changed {
		if known, err := d.Catalog.Meta.Get(ctx, MetaPolicies); err != nil || known == "" {
			return err
		}
	}
	if changed { // killed or without the repository, the next backup does it
		if err := d.Catalog.Meta.Set(ctx, stated, pending); err != nil {
			return fail(err)
		}
	}
	c, err := ReadMachine(ctx, d.Repo, machine)
	if errors.Is(err, repository.ErrNotFound) {
		return nil
	}
	if err != nil {
		return fail(err)
	}
	if last, found, err := c.Policies.InForce(); err != nil || !found || !last.Same(s) {
		var known []custody.Policy
		known = slices.AppendSeq(known, maps.Values(c.Policies.Read))
		known = slices.AppendSeq(known, maps.Values(c.Policies.Revoked))
		s.Sequence = custody.NextPolicy(known)
		key, err := custodian()
		if err != nil {
			return fail(err)
		}
		raw, err := custody.SignPolicy(s, key)
		if err != nil {
			return fail(err)
		}
		// Read back as a stranger would, as marks are.
		if _, err := custody.VerifyPolicyOf(raw, d.Repo.Trust(), map[string]bool{s.Repository: true}, machine); err != nil {
			return fail(err)
		}
		if _, err := d.Repo.PutSidecar(ctx, machine, repository.MachineSidecars, repository.SidecarPolicy, raw); err != nil {
			return fail(err)
		}
	}
	if err := d.Catalog.Meta.Set(ctx, stated, now); err != nil {
		return fail(err)
	}
	return nil
}

// isPolicy reports whether a sidecar's key is that of a policy statement.
func isPolicy(key string) bool { return strings.Contains(key, "/"+repository.SidecarPolicy+"-") }
