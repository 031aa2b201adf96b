package secrets

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strconv"
	"strings"

	"github.com/danielgtaylor/huma/v2"

	"github.com/lockstep-backup/lockstep/api"
	"github.com/lockstep-backup/lockstep/audit"
	"github.com/lockstep-backup/lockstep/catalog"
	"github.com/lockstep-backup/lockstep/keymanager"
	"github.com/lockstep-backup/lockstep/prove"
	"github.com/lockstep-backup/lockstep/server/internal/frame"
	"github.com/lockstep-backup/lockstep/server/internal/show"
)

func (s routes) destroySecret(ctx context.Context, req *refChange) (*frame.Out[api.Secret], error) {
	i, ref, err := s.destroy(ctx, req)
	if err != nil {
		return nil, err
	}
	r := &frame.Out[api.Secret]{Body: show.Secret(i, s.Names(ctx))}
	if r.Body.SealedCopies, err = s.sealedCopies(context.WithoutCancel(ctx), ref); err != nil {
		return nil, frame.Hint(fmt.Errorf("destroy secret %s: it is destroyed, but which key packages still hold it is not known: %w", ref, err),
			"deleted recovery points keep theirs in the repository; the recovery kit opens them")
	}
	return r, nil
}

// sealedCopies are the key packages that still hold a version: those of
// recovery points that were deleted stay until space is reclaimed, and whoever
// has a recovery identity opens them.
func (s routes) sealedCopies(ctx context.Context, ref keymanager.Ref) ([]api.SealedCopy, error) {
	c, err := s.Catalog(ctx)
	if err != nil {
		return nil, err
	}
	machines, err := c.Machines.List(ctx, true)
	if err != nil {
		return nil, err
	}
	var copies []api.SealedCopy
	for _, m := range machines {
		packages, err := c.Packages.OfMachine(ctx, m.ID)
		if err != nil {
			return nil, err
		}
		for _, p := range packages {
			if slices.Contains(p.Refs, ref.String()) {
				copies = append(copies, api.SealedCopy{Ref: ref.String(), Machine: m.Name, Point: p.Point, Object: p.Key})
			}
		}
	}
	return copies, nil
}

// destroy finds the version; package prove destroys it, or refuses, and
// records either.
func (s routes) destroy(ctx context.Context, req *refChange) (keymanager.Info, keymanager.Ref, error) {
	early := func(err error) (keymanager.Info, keymanager.Ref, error) {
		e := audit.Event{
			Action: "secret.destroy", Object: req.Ref, Reason: req.Body.Reason, Outcome: frame.OutcomeOf(err),
			Detail: frame.WithDetail(nil, "error", frame.Clip(frame.ProblemOf(err).Detail)),
		}
		return keymanager.Info{}, keymanager.Ref{}, errors.Join(err, s.Record(ctx, e))
	}
	manager, err := s.Manager(ctx)
	if err != nil {
		return early(err)
	}
	i, version, err := s.findSecret(ctx, manager, req.Ref)
	if err != nil {
		return early(err)
	}
	ref, err := theVersion(i, version, "destroy")
	if err != nil {
		return early(err)
	}
	// Without the catalog nobody knows what needs it.
	c, err := s.Catalog(ctx)
	if err != nil {
		return early(err)
	}
	if err := s.Begin(ctx, audit.Event{Action: "secret.destroy", Object: ref.String(), Reason: req.Body.Reason}); err != nil {
		return keymanager.Info{}, ref, err
	}
	if err := prove.Destroy(ctx, s.Custody(ctx, c), ref, req.Body.Reason); err != nil {
		return keymanager.Info{}, ref, s.whereHeld(ctx, c, err)
	}
	i, _, err = s.findSecret(ctx, manager, i.ID)
	return i, ref, err
}

// whereHeld says of recovery points that keep a secret from being destroyed in
// which repositories they are, where backups' repository has them not any more.
func (s routes) whereHeld(ctx context.Context, c *catalog.Catalog, err error) error {
	var held *keymanager.HeldError
	if !errors.As(err, &held) {
		return err
	}
	var hint string
	for _, h := range held.Holds {
		only, oerr := s.OnlyIn(ctx, c, h.Machine)
		if oerr != nil {
			s.Log.Warn("where recovery points are is not known", "error", oerr)
			return err
		}
		for _, name := range only[h.Point] {
			err = fmt.Errorf("%w; recovery point %s is in repository %s", err, h.Point, name)
			if hint == "" {
				hint = fmt.Sprintf("recovery points need it: it can be destroyed when no repository lists them ('lockstep point delete %s --repository %s')", h.Point, name)
			}
		}
	}
	if hint != "" {
		err = frame.Hint(err, "%s", hint)
	}
	return err
}

// releaseSecret hands a secret out. It is recorded first: what cannot be
// recorded is not released.
func (s routes) releaseSecret(ctx context.Context, req *refChange) (*huma.StreamResponse, error) {
	e := audit.Event{Action: "secret.release", Object: req.Ref, Reason: req.Body.Reason}
	fail := func(err error) (*huma.StreamResponse, error) {
		e.Outcome, e.Detail = frame.OutcomeOf(err), frame.WithDetail(e.Detail, "error", frame.Clip(frame.ProblemOf(err).Detail))
		return nil, errors.Join(err, s.Record(ctx, e))
	}
	if strings.TrimSpace(req.Body.Reason) == "" {
		return fail(frame.Usage("release secret: a reason must be given; it goes into the audit log"))
	}
	manager, err := s.Manager(ctx)
	if err != nil {
		return fail(err)
	}
	i, version, err := s.findSecret(ctx, manager, req.Ref)
	if err != nil {
		return fail(err)
	}
	if version == 0 {
		version = newestActive(i)
	}
	ref, err := theVersion(i, version, "release")
	if err != nil {
		return fail(err)
	}
	e.Object = ref.String()
	secret, err := manager.Get(ctx, ref)
	if err != nil {
		return fail(fmt.Errorf("release secret %s: %w", ref, err))
	}
	e.Outcome = audit.Done
	if err := s.Record(ctx, e); err != nil {
		secret.Wipe()
		return nil, fmt.Errorf("release secret %s: it could not be recorded, so it is not released: %w", ref, err)
	}
	return &huma.StreamResponse{Body: func(c huma.Context) {
		body := show.Released(ref.String(), i.Kind, secret)
		secret.Wipe()
		defer clear(body)
		c.SetHeader("Content-Type", "application/json")
		c.SetHeader("Content-Length", strconv.Itoa(len(body)))
		c.SetStatus(http.StatusOK)
		_, _ = c.BodyWriter().Write(body)
	}}, nil
}
