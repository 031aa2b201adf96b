// Package secrets is the routes of secrets in custody.
package secrets

import (
	"context"
	"errors"
	"net/http"
	"reflect"
	"strings"

	"github.com/danielgtaylor/huma/v2"

	"github.com/lockstep-backup/lockstep/api"
	"github.com/lockstep-backup/lockstep/audit"
	"github.com/lockstep-backup/lockstep/keymanager"
	"github.com/lockstep-backup/lockstep/server/internal/frame"
	"github.com/lockstep-backup/lockstep/server/internal/show"
)

type routes struct{ *frame.Frame }

// Register adds the routes.
func Register(f *frame.Frame) {
	s := routes{f}
	frame.Route(f, "list-secrets", http.MethodGet, "/v1/secrets", "List secrets, without their bytes", s.listSecrets)
	frame.Route(f, "add-secret", http.MethodPost, "/v1/secrets", "Take a secret into custody, and say what it opens", s.addSecret)
	// Described afterwards: a body that the framework knows of, it reads itself.
	s.API.OpenAPI().Paths["/v1/secrets"].Post.RequestBody = &huma.RequestBody{
		Required: true, Content: map[string]*huma.MediaType{
			"application/json": {Schema: s.API.OpenAPI().Components.Schemas.Schema(reflect.TypeFor[api.SecretAdd](), true, "SecretAdd")},
		},
	}
	frame.Route(f, "derive-secrets", http.MethodPost, "/v1/secrets/derive", "Take into custody the secrets that a volume keeps under its own key", s.deriveSecrets)
	frame.Route(f, "get-secret", http.MethodGet, "/v1/secrets/{secret}", "Show a secret, without its bytes", s.getSecret)
	frame.Route(f, "disable-secret", http.MethodPost, "/v1/secrets/{ref}/disable", "Deactivate a secret or one version of it", s.disableSecret)
	frame.Route(f, "enable-secret", http.MethodPost, "/v1/secrets/{ref}/enable", "Take a deactivation back", s.enableSecret)
	frame.Route(f, "destroy-secret", http.MethodPost, "/v1/secrets/{ref}/destroy", "Destroy a version that no recovery point needs", s.destroySecret)
	frame.Route(f, "release-secret", http.MethodPost, "/v1/secrets/{ref}/release", "Hand a secret out", s.releaseSecret,
		func(o *huma.Operation) {
			schema := s.API.OpenAPI().Components.Schemas.Schema(reflect.TypeFor[api.Released](), true, "Released")
			o.Responses = map[string]*huma.Response{"200": {
				Description: "The secret", Content: map[string]*huma.MediaType{"application/json": {Schema: schema}},
			}}
		})
}

type secretPath struct {
	Secret string `path:"secret" doc:"id or unique prefix, or a machine's name where it has one secret"`
}

type refChange struct {
	Ref  string `path:"ref" doc:"SECRET or SECRET@VERSION"`
	Body api.Reason
}

func (s routes) listSecrets(ctx context.Context, req *frame.OfMachine) (*frame.Out[[]api.Secret], error) {
	manager, err := s.Manager(ctx)
	if err != nil {
		return nil, err
	}
	all, err := manager.List(ctx)
	if err != nil && !errors.Is(err, keymanager.ErrDamaged) {
		return nil, err
	}
	if err != nil {
		if len(all) == 0 {
			return nil, err
		}
		s.Log.Error("some secrets cannot be read", "error", err)
	}
	names := s.Names(ctx)
	id := ""
	if req.Machine != "" {
		c, err := s.Catalog(ctx)
		if err != nil {
			return nil, err
		}
		m, err := s.Machine(ctx, c, req.Machine)
		if err != nil {
			return nil, err
		}
		id = m.ID
	}
	r := &frame.Out[[]api.Secret]{Body: []api.Secret{}}
	for _, i := range all {
		if id == "" || i.Labels[keymanager.LabelMachine] == id {
			r.Body = append(r.Body, show.Secret(i, names))
		}
	}
	return r, nil
}

func (s routes) getSecret(ctx context.Context, req *secretPath) (*frame.Out[api.Secret], error) {
	manager, err := s.Manager(ctx)
	if err != nil {
		return nil, err
	}
	i, _, err := s.findSecret(ctx, manager, req.Secret)
	if err != nil {
		return nil, err
	}
	return &frame.Out[api.Secret]{Body: show.Secret(i, s.Names(ctx))}, nil
}

// change does something to the versions that ref names and shows the secret.
func (s routes) change(ctx context.Context, e audit.Event, ref string, fn func(keymanager.Manager, keymanager.Info, int) error) (*frame.Out[api.Secret], error) {
	act := func() (*frame.Out[api.Secret], error) {
		manager, err := s.Manager(ctx)
		if err != nil {
			return nil, err
		}
		i, version, err := s.findSecret(ctx, manager, ref)
		if err != nil {
			return nil, err
		}
		if err := s.Begin(ctx, e); err != nil {
			return nil, err
		}
		if err := fn(manager, i, version); err != nil {
			return nil, err
		}
		i, _, err = s.findSecret(ctx, manager, i.ID)
		if err != nil {
			return nil, err
		}
		return &frame.Out[api.Secret]{Body: show.Secret(i, s.Names(ctx))}, nil
	}
	return frame.Audited(ctx, s.Frame, e, act)
}

// disableSecret has the key manager give versions to nobody.
func (s routes) disableSecret(ctx context.Context, req *refChange) (*frame.Out[api.Secret], error) {
	return s.setStates(ctx, req, "secret.disable", keymanager.Disabled, func(m keymanager.Manager, v keymanager.Version) (bool, error) {
		switch v.State {
		case keymanager.Deactivated:
			// From the archive it is reached by way of active alone.
			if err := m.SetState(ctx, v.Ref, keymanager.Active, fromArchive); err != nil {
				return false, err
			}
		case keymanager.Active:
		default:
			return false, nil
		}
		return true, m.SetState(ctx, v.Ref, keymanager.Disabled, req.Body.Reason)
	})
}

// fromArchive is the reason of the step between archive and disabled; enabling
// goes back by it.
const fromArchive = "to be disabled: from the archive"

func (s routes) enableSecret(ctx context.Context, req *refChange) (*frame.Out[api.Secret], error) {
	return s.setStates(ctx, req, "secret.enable", keymanager.Active, func(m keymanager.Manager, v keymanager.Version) (bool, error) {
		to := keymanager.Active
		switch n := len(v.History); {
		case v.State == keymanager.Disabled && n > 1 && v.History[n-2].Reason == fromArchive:
			to = keymanager.Deactivated
		case v.State == keymanager.Disabled, v.State == keymanager.Deactivated:
		default:
			return false, nil
		}
		return true, m.SetState(ctx, v.Ref, to, req.Body.Reason)
	})
}

// setStates changes the version named, or of the secret all for which change
// says that it applies.
func (s routes) setStates(ctx context.Context, req *refChange, action string, to keymanager.State, change func(keymanager.Manager, keymanager.Version) (bool, error)) (*frame.Out[api.Secret], error) {
	e := audit.Event{Action: action, Object: req.Ref, Reason: req.Body.Reason}
	return s.change(ctx, e, req.Ref, func(m keymanager.Manager, i keymanager.Info, version int) error {
		any := false
		for _, v := range i.Versions {
			// Of a whole secret, the archive stays where it is.
			if version != 0 && v.Ref.Version != version || version == 0 && v.State == keymanager.Deactivated {
				continue
			}
			if v.State == to { // asked again, it is there already
				any = true
				continue
			}
			changed, err := change(m, v)
			if err != nil {
				return err
			}
			any = any || changed
		}
		if !any {
			return frame.Refused("%s: no version of %s can become %s", strings.ReplaceAll(action, ".", " "), i.ID, to)
		}
		return nil
	})
}
