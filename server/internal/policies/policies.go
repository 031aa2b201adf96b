// Package policies is the routes of policies.
package policies

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/lockstep-backup/lockstep/api"
	"github.com/lockstep-backup/lockstep/audit"
	"github.com/lockstep-backup/lockstep/catalog"
	"github.com/lockstep-backup/lockstep/policy"
	"github.com/lockstep-backup/lockstep/server/internal/frame"
)

type routes struct{ *frame.Frame }

// Register adds the routes.
func Register(f *frame.Frame) {
	s := routes{f}
	frame.Route(f, "get-policy", http.MethodGet, "/v1/machines/{name}/policy", "Show the policy in force for a machine", s.get)
	frame.Route(f, "set-policy", http.MethodPut, "/v1/machines/{name}/policy", "Set a machine's policy", s.set)
	frame.Route(f, "unset-policy", http.MethodDelete, "/v1/machines/{name}/policy", "Take a machine's policy away: the default is in force then", s.unset)
	frame.Route(f, "get-default-policy", http.MethodGet, "/v1/policy", "Show the policy of machines that have none of their own",
		func(ctx context.Context, _ *frame.None) (*frame.Out[api.PolicyView], error) {
			return s.get(ctx, &frame.MachinePath{})
		})
	frame.Route(f, "set-default-policy", http.MethodPut, "/v1/policy", "Set the policy of machines that have none of their own",
		func(ctx context.Context, req *frame.In[api.Policy]) (*frame.Out[api.PolicyView], error) {
			return s.set(ctx, &setPolicy{Body: req.Body})
		})
	frame.Route(f, "unset-default-policy", http.MethodDelete, "/v1/policy", "Take the default policy away: then everything is kept",
		func(ctx context.Context, _ *frame.None) (*frame.Out[api.PolicyView], error) {
			return s.unset(ctx, &frame.MachinePath{})
		})
}

type setPolicy struct {
	frame.MachinePath
	Body api.Policy
}

// find finds the machine; no name is the default.
func (s routes) find(ctx context.Context, name string) (*catalog.Catalog, catalog.Machine, error) {
	c, err := s.Catalog(ctx)
	if err != nil || name == "" {
		return c, catalog.Machine{}, err
	}
	m, err := s.Machine(ctx, c, name)
	return c, m, err
}

func (s routes) get(ctx context.Context, req *frame.MachinePath) (*frame.Out[api.PolicyView], error) {
	c, m, err := s.find(ctx, req.Name)
	if err != nil {
		return nil, err
	}
	return s.view(ctx, c, m)
}

func (s routes) set(ctx context.Context, req *setPolicy) (*frame.Out[api.PolicyView], error) {
	e := audit.Event{Action: "policy.set", Object: object(req.Name)}
	return frame.Audited(ctx, s.Frame, e, func() (*frame.Out[api.PolicyView], error) {
		c, m, err := s.find(ctx, req.Name)
		if err != nil {
			return nil, err
		}
		body := req.Body
		if body.Format == 0 {
			body.Format = 1
		}
		if err := s.resolveCopies(&body); err != nil {
			return nil, err
		}
		// The wire type and the policy have one JSON form: what the policy's own
		// parser refuses is refused, with its words.
		raw, err := json.Marshal(body)
		if err != nil {
			return nil, err
		}
		p, err := policy.Parse(raw)
		if err != nil {
			return nil, fmt.Errorf("set policy: %w", err)
		}
		if err := s.checkNew(ctx, c, m.ID, p); err != nil {
			return nil, err
		}
		doc, err := p.JSON()
		if err != nil {
			return nil, fmt.Errorf("set policy: %w", err)
		}
		e.Detail = frame.WithDetail(nil, "policy", frame.Clip(string(doc)))
		if err := s.Begin(ctx, e); err != nil {
			return nil, err
		}
		if err := c.Policies.Put(ctx, m.ID, doc); err != nil {
			return nil, err
		}
		return s.changed(ctx, c, m)
	})
}

// resolveCopies turns names, ids and paths of repositories into the URLs that a
// policy keeps. A URL that nobody knows is for checkNew: it may hold a password,
// which the parser refuses without repeating it.
func (s routes) resolveCopies(body *api.Policy) error {
	for i, name := range body.CopiesTo {
		place, err := s.Place(name)
		switch {
		case err == nil:
			body.CopiesTo[i] = place.URL
		case !strings.Contains(name, ":"):
			return unknownCopy(name)
		}
	}
	return nil
}

func unknownCopy(name string) error {
	p := frame.Refused("set policy: copies to %s: this installation has no such repository", frame.Clip(name))
	p.Hint = "'lockstep repository add' adds it first; 'lockstep repository list' shows those that are there"
	return p
}

// checkNew refuses what a stored policy may have and a new one may not: refused
// by the parser, it would make the stored ones unreadable. What the policy in
// force has already may stay.
func (s routes) checkNew(ctx context.Context, c *catalog.Catalog, machine string, p policy.Policy) error {
	old, _, err := frame.PolicyOf(ctx, c, machine)
	if err != nil {
		old = policy.Policy{} // it is replaced because it cannot be read
	}
	for _, l := range p.Limits {
		if l.From == l.To && !slices.Contains(old.Limits, l) {
			return frame.Hint(frame.Usage("set policy: limit from %s to %s is no time at all", l.From, l.To),
				"for the whole day take 00:00-12:00 and 12:00-00:00")
		}
	}
	for _, u := range p.CopiesTo {
		place, err := s.Place(u)
		switch {
		case slices.Contains(old.CopiesTo, u):
		case err != nil:
			return unknownCopy(u)
		case place.Primary:
			return frame.Hint(frame.Refused("set policy: copies to %s: backups write to it already", place.Name), "name another: 'lockstep repository list' shows them")
		}
	}
	return nil
}

func (s routes) unset(ctx context.Context, req *frame.MachinePath) (*frame.Out[api.PolicyView], error) {
	e := audit.Event{Action: "policy.unset", Object: object(req.Name)}
	return frame.Audited(ctx, s.Frame, e, func() (*frame.Out[api.PolicyView], error) {
		c, m, err := s.find(ctx, req.Name)
		if err != nil {
			return nil, err
		}
		if err := s.Begin(ctx, e); err != nil {
			return nil, err
		}
		if err := c.Policies.Delete(ctx, m.ID); err != nil {
			return nil, err
		}
		return s.changed(ctx, c, m)
	})
}

// changed shows the policy that a machine, or the default, has from now on, and
// has the repository know it.
func (s routes) changed(ctx context.Context, c *catalog.Catalog, m catalog.Machine) (*frame.Out[api.PolicyView], error) {
	ctx = context.WithoutCancel(ctx)
	if err := frame.PolicyChanged(ctx, c, m.ID, s.Now().UTC().Format(time.RFC3339)); err != nil {
		return nil, err
	}
	machines := []catalog.Machine{m}
	if m.ID == "" {
		all, err := c.Machines.List(ctx, true)
		if err != nil {
			return nil, err
		}
		machines = nil
		for _, m := range all {
			if own, err := c.Policies.Get(ctx, m.ID); err != nil {
				return nil, err
			} else if own == nil {
				machines = append(machines, m)
			}
		}
	}
	serr := s.StatePolicies(ctx, c, true, machines...)
	v, err := s.view(ctx, c, m)
	if err == nil && serr != nil {
		v.Body.Warnings = append(v.Body.Warnings, "the policy holds, and is not in the repository yet, from which a lost catalog would be rebuilt: "+frame.ProblemOf(serr).Detail+"; the next backup tries again")
	}
	return v, err
}

func object(machine string) string {
	if machine == "" {
		return "default"
	}
	return machine
}

// times is how many of the next times are shown.
const times = 3

func (s routes) view(ctx context.Context, c *catalog.Catalog, m catalog.Machine) (*frame.Out[api.PolicyView], error) {
	p, origin, err := frame.PolicyOf(ctx, c, m.ID)
	if err != nil {
		return nil, err
	}
	v := api.PolicyView{Machine: m.Name, Origin: origin}
	doc, err := p.JSON()
	if err != nil {
		return nil, err
	}
	if err := json.Unmarshal(doc, &v.Policy); err != nil {
		return nil, err
	}
	loc, err := p.Location()
	if err != nil {
		return nil, err
	}
	var last time.Time
	if m.ID != "" {
		points, err := c.Points.List(ctx, catalog.PointQuery{Machine: m.ID, Bare: true})
		if err != nil {
			return nil, err
		}
		if newest, ok := catalog.Newest(points, time.Time{}); ok {
			last = newest.Time
		}
	}
	if why, err := frame.PolicyUnread(ctx, c, m.ID); err != nil {
		return nil, err
	} else if why != "" {
		v.Warnings = append(v.Warnings, "the machine's own policy was lost with the catalog ("+why+"): nothing of it is pruned until it is set, or unset, again")
	}
	v.Next = p.Schedule.Next(last, s.Now(), loc, times)
	return &frame.Out[api.PolicyView]{Body: v}, nil
}
