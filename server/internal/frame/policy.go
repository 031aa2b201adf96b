package frame

import (
	"context"
	"errors"
	"fmt"
	"sync"

	"github.com/lockstep-backup/lockstep/api"
	"github.com/lockstep-backup/lockstep/catalog"
	"github.com/lockstep-backup/lockstep/envelope"
	"github.com/lockstep-backup/lockstep/policy"
	"github.com/lockstep-backup/lockstep/prove"
)

// PolicyOf is the policy in force for a machine, by its id, or the default
// where machine is "", and whose it is (api.PolicyOwn and so on).
func PolicyOf(ctx context.Context, c *catalog.Catalog, machine string) (p policy.Policy, origin string, err error) {
	doc, origin, err := policyDoc(ctx, c, machine)
	if err != nil || doc == nil {
		return p, origin, err
	}
	if p, err = policy.Parse(doc); err != nil {
		return p, "", fmt.Errorf("read the policy in the catalog: %w", err)
	}
	return p, origin, nil
}

func policyDoc(ctx context.Context, c *catalog.Catalog, machine string) (doc []byte, origin string, err error) {
	if machine != "" {
		if doc, err = c.Policies.Get(ctx, machine); err != nil || doc != nil {
			return doc, api.PolicyOwn, err
		}
	}
	if doc, err = c.Policies.Get(ctx, ""); err != nil || doc != nil {
		return doc, api.PolicyDefault, err
	}
	return nil, api.PolicyNone, nil
}

// PolicyUnread says why the policy of a machine is not known since the catalog
// was lost, although another one may seem to be in force; "" where it is known.
func PolicyUnread(ctx context.Context, c *catalog.Catalog, machine string) (why string, err error) {
	if machine == "" {
		return "", nil
	}
	return c.Meta.Get(ctx, prove.UnreadPolicy(machine))
}

// PolicyChanged notes that a machine's policy, or the default where machine is
// "", is what somebody wants it to be.
func PolicyChanged(ctx context.Context, c *catalog.Catalog, machine, now string) error {
	err := c.Meta.Set(ctx, prove.MetaPolicies, now)
	if machine != "" {
		err = errors.Join(err, c.Meta.Set(ctx, prove.UnreadPolicy(machine), ""))
	}
	return err
}

// StatePolicies states in the repository what policies are in force for
// machines, where that is not stated there yet: a catalog may be lost. changed
// says that somebody just changed them.
func (s *Frame) StatePolicies(ctx context.Context, c *catalog.Catalog, changed bool, machines ...catalog.Machine) error {
	repo, err := s.Repository(ctx)
	if err != nil {
		return fmt.Errorf("state policies in the repository: %w", err)
	}
	d := prove.Deps{Repo: repo, Catalog: c, Now: s.Now, Log: s.Log, Actor: s.ActorOf(ctx)}
	custodian := sync.OnceValues(s.Deps.Custodian)
	used := false
	defer func() {
		if !used {
			return
		}
		if key, err := custodian(); err == nil {
			key.Wipe()
		}
	}()
	sign := func() (envelope.SigningKey, error) { used = true; return custodian() }
	var bad []error
	for _, m := range machines {
		why, err := PolicyUnread(ctx, c, m.ID)
		var doc []byte
		var origin string
		if err == nil && why == "" { // what is not known is not stated
			if doc, origin, err = policyDoc(ctx, c, m.ID); err == nil {
				err = prove.StatePolicy(ctx, d, m.ID, doc, origin != api.PolicyOwn, changed, sign)
			}
		}
		if err != nil {
			bad = append(bad, fmt.Errorf("machine %s: %w", m.Name, err))
		}
	}
	return errors.Join(bad...)
}
