package points

import (
	"context"
	"errors"
	"fmt"

	"github.com/lockstep-backup/lockstep/api"
	"github.com/lockstep-backup/lockstep/audit"
	"github.com/lockstep-backup/lockstep/catalog"
	"github.com/lockstep-backup/lockstep/custody"
	"github.com/lockstep-backup/lockstep/prove"
	"github.com/lockstep-backup/lockstep/server/internal/frame"
)

type pointMark struct {
	frame.PointPath
	Body api.MarkRequest
}

func (s routes) markPoint(ctx context.Context, req *pointMark) (*frame.Out[api.Point], error) {
	m := custody.Mark{Kind: req.Body.Kind, Name: req.Body.Name, Value: req.Body.Value, Set: req.Body.Set, Reason: req.Body.Reason}
	e := audit.Event{Action: prove.MarkAction(m), Object: req.Point, Reason: m.Reason, Detail: prove.MarkDetail(m)}
	v, err := s.mark(ctx, req.Point, m, e)
	if err != nil { // what was done is recorded by package prove
		e.Outcome, e.Detail = frame.OutcomeOf(err), frame.WithDetail(e.Detail, "error", frame.Clip(frame.ProblemOf(err).Detail))
		return nil, errors.Join(err, s.Record(ctx, e))
	}
	return &frame.Out[api.Point]{Body: v}, nil
}

func (s routes) mark(ctx context.Context, ref string, m custody.Mark, e audit.Event) (api.Point, error) {
	var v api.Point
	c, err := s.Catalog(ctx)
	if err != nil {
		return v, err
	}
	p, err := s.ResolvePoint(ctx, c, ref)
	if err != nil {
		return v, err
	}
	deps := s.Custody(ctx, c)
	if deps.Repo == nil { // marks are kept there
		_, err := s.Repository(ctx)
		return v, err
	}
	if !m.Set {
		if err := s.inForce(ctx, c, p, m); err != nil {
			return v, err
		}
	}
	if deps.Custodian, err = s.Custodian(); err != nil {
		return v, err
	}
	defer deps.Custodian.Wipe()
	e.Object = p.ID
	if err := s.Begin(ctx, e); err != nil {
		return v, err
	}
	if err := prove.SetMark(ctx, deps, p, m); err != nil {
		return v, err
	}
	// A deletion that was under way may not have seen it.
	if p, err = c.Points.Get(ctx, p.ID); err == nil && !p.DeletedAt.IsZero() {
		err = fmt.Errorf("mark recovery point %s: it was deleted meanwhile (%s): %w", p.ID, p.DeletedReason, catalog.ErrNotFound)
	}
	if err != nil {
		return v, err
	}
	return s.PointView(ctx, c, p)
}

// inForce refuses to take back what is not there: it would be a typing error.
func (s routes) inForce(ctx context.Context, c *catalog.Catalog, p catalog.Point, m custody.Mark) error {
	all, err := prove.MarksOf(ctx, c, p.Machine)
	if err != nil {
		return err
	}
	have := all[p.ID]
	_, tagged := have.Tags[m.Name]
	held := false
	for _, h := range have.LegalHolds {
		held = held || h.Name == m.Name
	}
	switch {
	case m.Kind == custody.MarkPin && have.Pin == nil:
		err = errors.New("it is not pinned")
	case m.Kind == custody.MarkTag && !tagged:
		err = fmt.Errorf("it has no tag %q", m.Name)
	case m.Kind == custody.MarkLegalHold && !held:
		err = fmt.Errorf("it is not held for case %q", m.Name)
	}
	if err != nil {
		return frame.Hint(frame.Refused("unmark recovery point %s: %v", p.ID, err), "'lockstep point show %s' shows what is set", p.ID[:min(12, len(p.ID))])
	}
	return nil
}
