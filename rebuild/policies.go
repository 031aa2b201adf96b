package rebuild

import (
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/lockstep-backup/lockstep/catalog"
	"github.com/lockstep-backup/lockstep/custody"
	"github.com/lockstep-backup/lockstep/policy"
	"github.com/lockstep-backup/lockstep/prove"
)

// fillPolicies brings back the policies that repositories state, unless the
// catalog has its own. Of a machine whose policy is not certain the catalog
// says so: by the default, or by none, it might keep less.
func fillPolicies(ctx context.Context, c *catalog.Catalog, all *contents, now time.Time, res *Result) error {
	if known, err := knowsPolicies(ctx, c, all.machines); err != nil || known {
		return err
	}
	stated := false
	unread := map[string]error{} // by machine
	var ofAll *custody.Policy
	for _, m := range all.machines {
		s, found, err := all.policies[m.ID].InForce()
		if err == nil && s.Document != nil {
			_, err = policy.Parse(s.Document)
		}
		stated = stated || found || err != nil
		switch {
		case err != nil:
			unread[m.ID] = err
		case !found:
			if slices.ContainsFunc(all.points, func(p catalog.Point) bool { return p.Machine == m.ID }) {
				unread[m.ID] = errUnstated
			}
		case s.Default:
			if ofAll == nil || s.Time.After(ofAll.Time) {
				ofAll = &s
			}
		case s.Document != nil:
			if err := c.Policies.Put(ctx, m.ID, s.Document); err != nil {
				return err
			}
			res.Policies++
		}
	}
	if !stated {
		return nil
	}
	if ofAll != nil && ofAll.Document != nil {
		if err := c.Policies.Put(ctx, "", ofAll.Document); err != nil {
			return err
		}
		res.Policies++
	}
	for _, m := range all.machines {
		why := unread[m.ID]
		if why == nil {
			continue
		}
		res.Problems = append(res.Problems, fmt.Sprintf("the policy of machine %s is not known (%v): nothing of it is pruned until 'lockstep policy set %[1]s' or 'lockstep policy unset %[1]s' says what holds", m.Name, why))
		if err := c.Meta.Set(ctx, prove.UnreadPolicy(m.ID), why.Error()); err != nil {
			return err
		}
	}
	return c.Meta.Set(ctx, prove.MetaPolicies, now.Format(time.RFC3339Nano))
}

var errUnstated = fmt.Errorf("no repository states it: %w", catalog.ErrNotFound)

// knowsPolicies reports whether the catalog is not a new one.
func knowsPolicies(ctx context.Context, c *catalog.Catalog, machines []catalog.Machine) (bool, error) {
	if at, err := c.Meta.Get(ctx, prove.MetaPolicies); err != nil || at != "" {
		return err == nil, err
	}
	ids := []string{""}
	for _, m := range machines {
		ids = append(ids, m.ID)
	}
	for _, id := range ids {
		if doc, err := c.Policies.Get(ctx, id); err != nil || doc != nil {
			return err == nil, err
		}
	}
	return false, nil
}
