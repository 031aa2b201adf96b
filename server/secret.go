package server

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"reflect"
	"slices"
	"strconv"
	"strings"

	"github.com/danielgtaylor/huma/v2"

	"github.com/lockstep-backup/lockstep/api"
	"github.com/lockstep-backup/lockstep/audit"
	"github.com/lockstep-backup/lockstep/catalog"
	"github.com/lockstep-backup/lockstep/diskcrypt"
	"github.com/lockstep-backup/lockstep/envelope"
	"github.com/lockstep-backup/lockstep/keymanager"
	"github.com/lockstep-backup/lockstep/prove"
	"github.com/lockstep-backup/lockstep/server/internal/show"
)

type secretPath struct {
	Secret string `path:"secret" doc:"id or unique prefix, or a machine's name where it has one secret"`
}

type refChange struct {
	Ref  string `path:"ref" doc:"SECRET or SECRET@VERSION"`
	Body api.Reason
}

func (s *Server) secretRoutes() {
	route(s, "list-secrets", http.MethodGet, "/v1/secrets", "List secrets, without their bytes", s.listSecrets)
	route(s, "add-secret", http.MethodPost, "/v1/secrets", "Take a secret into custody, and say what it opens", s.addSecret)
	// Described afterwards: a body that the framework knows of, it reads itself.
	s.api.OpenAPI().Paths["/v1/secrets"].Post.RequestBody = &huma.RequestBody{
		Required: true, Content: map[string]*huma.MediaType{
			"application/json": {Schema: s.api.OpenAPI().Components.Schemas.Schema(reflect.TypeFor[api.SecretAdd](), true, "SecretAdd")},
		},
	}
	route(s, "get-secret", http.MethodGet, "/v1/secrets/{secret}", "Show a secret, without its bytes", s.getSecret)
	route(s, "disable-secret", http.MethodPost, "/v1/secrets/{ref}/disable", "Deactivate a secret or one version of it", s.disableSecret)
	route(s, "enable-secret", http.MethodPost, "/v1/secrets/{ref}/enable", "Take a deactivation back", s.enableSecret)
	route(s, "destroy-secret", http.MethodPost, "/v1/secrets/{ref}/destroy", "Destroy a version that no recovery point needs", s.destroySecret)
	route(s, "release-secret", http.MethodPost, "/v1/secrets/{ref}/release", "Hand a secret out", s.releaseSecret,
		func(o *huma.Operation) {
			schema := s.api.OpenAPI().Components.Schemas.Schema(reflect.TypeFor[api.Released](), true, "Released")
			o.Responses = map[string]*huma.Response{"200": {
				Description: "The secret", Content: map[string]*huma.MediaType{"application/json": {Schema: schema}},
			}}
		})
}

// names gives machines' names to ids, as far as the catalog can say.
func (s *Server) names(ctx context.Context) map[string]string {
	out := map[string]string{}
	c, err := s.d.Catalog(ctx)
	if err != nil {
		return out
	}
	all, err := c.Machines.List(ctx, true)
	if err != nil {
		return out
	}
	for _, m := range all {
		out[m.ID] = m.Name
	}
	return out
}

func (s *Server) listSecrets(ctx context.Context, req *ofMachine) (*out[[]api.Secret], error) {
	manager, err := s.d.Manager(ctx)
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
		s.d.Log.Error("some secrets cannot be read", "error", err)
	}
	names := s.names(ctx)
	id := ""
	if req.Machine != "" {
		c, err := s.d.Catalog(ctx)
		if err != nil {
			return nil, err
		}
		m, err := s.machine(ctx, c, req.Machine)
		if err != nil {
			return nil, err
		}
		id = m.ID
	}
	r := &out[[]api.Secret]{Body: []api.Secret{}}
	for _, i := range all {
		if id == "" || i.Labels[keymanager.LabelMachine] == id {
			r.Body = append(r.Body, show.Secret(i, names))
		}
	}
	return r, nil
}

// findSecret finds a secret, and the version where ref names one: ID, a unique
// prefix of it, or a machine's name where it has one secret, each with
// @VERSION or without. Version 0 is none named.
func (s *Server) findSecret(ctx context.Context, manager keymanager.Manager, ref string) (keymanager.Info, int, error) {
	var none keymanager.Info
	name, version, err := splitRef(ref)
	if err != nil {
		return none, 0, err
	}
	all, err := manager.List(ctx)
	if err != nil && !errors.Is(err, keymanager.ErrDamaged) {
		return none, 0, err
	}
	damaged := err
	found := s.candidateSecrets(ctx, all, name)
	switch len(found) {
	case 1:
	case 0:
		return none, 0, fmt.Errorf("find secret %q: %w", name, errors.Join(keymanager.ErrNotFound, damaged))
	default:
		p := newProblem(http.StatusUnprocessableEntity, api.ExitUsage, fmt.Sprintf("find secret: more than one is %q", name))
		for _, i := range found {
			p.Items = append(p.Items, i.ID)
		}
		p.Hint = "name one by its id; 'lockstep secret list' shows them"
		return none, 0, p
	}
	if version != 0 && !slices.ContainsFunc(found[0].Versions, func(v keymanager.Version) bool { return v.Ref.Version == version }) {
		return none, 0, fmt.Errorf("find secret %s@%d: %w", found[0].ID, version, keymanager.ErrNotFound)
	}
	return found[0], version, nil
}

func splitRef(ref string) (name string, version int, err error) {
	name, text, has := strings.Cut(ref, "@")
	if !has {
		return name, 0, nil
	}
	version, err = strconv.Atoi(text)
	if err != nil || version < 1 || name == "" {
		return "", 0, usage("find secret: %q is not SECRET or SECRET@VERSION", ref)
	}
	return name, version, nil
}

func (s *Server) candidateSecrets(ctx context.Context, all []keymanager.Info, name string) []keymanager.Info {
	var found []keymanager.Info
	for _, i := range all {
		if i.ID == name {
			return []keymanager.Info{i}
		}
	}
	names := s.names(ctx)
	for _, i := range all {
		if m := i.Labels[keymanager.LabelMachine]; m != "" && names[m] == name {
			found = append(found, i)
		}
	}
	if len(found) > 0 {
		return found
	}
	for _, i := range all {
		if name != "" && strings.HasPrefix(i.ID, name) {
			found = append(found, i)
		}
	}
	return found
}

func (s *Server) getSecret(ctx context.Context, req *secretPath) (*out[api.Secret], error) {
	manager, err := s.d.Manager(ctx)
	if err != nil {
		return nil, err
	}
	i, _, err := s.findSecret(ctx, manager, req.Secret)
	if err != nil {
		return nil, err
	}
	return &out[api.Secret]{Body: show.Secret(i, s.names(ctx))}, nil
}

// secretBody is a request with a secret. It is read here and not by the
// framework, which would keep the bytes in its buffers.
type secretBody struct {
	add api.SecretAdd
}

// Resolve reads the body.
func (b *secretBody) Resolve(c huma.Context) []error {
	raw, err := readWiped(c.BodyReader(), maxSecretBody)
	defer clear(raw)
	if err != nil {
		return []error{err}
	}
	if err := json.Unmarshal(raw, &b.add); err != nil {
		// The decoder's error may repeat a part of what it did not like.
		return []error{newProblem(http.StatusUnprocessableEntity, api.ExitUsage, "add secret: the request is not the JSON of a SecretAdd")}
	}
	switch {
	case b.add.Machine == "":
		return []error{newProblem(http.StatusUnprocessableEntity, api.ExitUsage, "add secret: no machine is named")}
	case !slices.Contains(diskcrypt.Kinds, diskcrypt.Kind(b.add.Kind)):
		return []error{newProblem(http.StatusUnprocessableEntity, api.ExitUsage, fmt.Sprintf("add secret: kind is one of %s", kindNames()))}
	case len(b.add.Data) == 0:
		return []error{newProblem(http.StatusUnprocessableEntity, api.ExitUsage, "add secret: the secret is empty")}
	case len(b.add.Data) > envelope.MaxSecretFile:
		clear(b.add.Data)
		return []error{newProblem(http.StatusRequestEntityTooLarge, api.ExitUsage, fmt.Sprintf("add secret: it is longer than %d bytes", envelope.MaxSecretFile))}
	case b.add.Secret != "" && b.add.New:
		return []error{newProblem(http.StatusUnprocessableEntity, api.ExitUsage, "add secret: a version of a secret is not a new one")}
	}
	return nil
}

func kindNames() string {
	names := make([]string, 0, len(diskcrypt.Kinds))
	for _, k := range diskcrypt.Kinds {
		names = append(names, string(k))
	}
	return strings.Join(names, ", ")
}

// readWiped reads all of r and leaves no copy behind in memory that it gave up.
func readWiped(r io.Reader, limit int) ([]byte, error) {
	buf := make([]byte, 0, 8<<10)
	for {
		if len(buf) == cap(buf) {
			grown := make([]byte, len(buf), min(2*cap(buf), limit+1))
			copy(grown, buf)
			clear(buf)
			buf = grown
		}
		n, err := r.Read(buf[len(buf):cap(buf)])
		buf = buf[:len(buf)+n]
		switch {
		case len(buf) > limit:
			clear(buf)
			return nil, newProblem(http.StatusRequestEntityTooLarge, api.ExitUsage, fmt.Sprintf("request: the body is longer than %d bytes", limit))
		case errors.Is(err, io.EOF):
			return buf, nil
		case err != nil:
			clear(buf)
			return nil, newProblem(http.StatusBadRequest, api.ExitFailed, "request: the body could not be read")
		}
	}
}

func (s *Server) addSecret(ctx context.Context, req *secretBody) (*out[api.SecretAddResult], error) {
	secret := envelope.NewSecret(req.add.Data)
	req.add.Data = nil
	defer secret.Wipe()
	r, deps, err := s.prepareAdd(ctx, req.add, secret)
	if err != nil {
		e := audit.Event{
			Action: "secret.add", Object: req.add.Machine, Outcome: outcomeOf(err),
			Detail: map[string]string{"kind": req.add.Kind, "error": clip(problemOf(err).Detail)},
		}
		return nil, errors.Join(err, s.record(ctx, e))
	}
	begun := audit.Event{Action: "secret.add", Object: req.add.Machine, Detail: map[string]string{"kind": req.add.Kind, "volume": r.Volume}}
	if err := s.begin(ctx, begun); err != nil {
		return nil, err
	}
	res, err := prove.AddSecret(ctx, deps, r)
	var nothing *prove.NothingOpensError
	switch {
	case errors.As(err, &nothing) && nothing.Headers == 0:
		// Not wrong, but not seen to be right either.
		p := newProblem(http.StatusConflict, api.ExitFailed, err.Error())
		p.Hint = "--keep takes it into custody without trying it"
		return nil, p
	case err != nil:
		return nil, err
	}
	return &out[api.SecretAddResult]{Body: show.Added(res)}, nil
}

func (s *Server) prepareAdd(ctx context.Context, add api.SecretAdd, secret envelope.Secret) (r prove.AddRequest, deps prove.Deps, err error) {
	c, err := s.d.Catalog(ctx)
	if err != nil {
		return r, deps, err
	}
	m, err := s.machine(ctx, c, add.Machine)
	if err != nil {
		return r, deps, err
	}
	manager, err := s.d.Manager(ctx)
	if err != nil {
		return r, deps, err
	}
	r = prove.AddRequest{Machine: m.ID, Kind: diskcrypt.Kind(add.Kind), Secret: secret, Keep: add.Keep, New: add.New}
	if add.Volume != "" {
		if r.Volume, err = s.scope(ctx, c, m, add.Volume); err != nil {
			return r, deps, err
		}
	}
	if add.Secret != "" {
		i, version, err := s.findSecret(ctx, manager, add.Secret)
		if err != nil {
			return r, deps, err
		}
		if version != 0 {
			return r, deps, usage("add secret: a version is added to a secret, not to a version of it")
		}
		r.SecretID = i.ID
	}
	return r, s.custodyDeps(ctx, c), nil
}

func (s *Server) scope(ctx context.Context, c *catalog.Catalog, m catalog.Machine, volume string) (string, error) {
	all, err := s.places(ctx, c, m)
	if err != nil {
		return "", err
	}
	at, err := findVolume(all, volume)
	return at.String(), err
}

// change does something to the versions that ref names and shows the secret.
func (s *Server) change(ctx context.Context, e audit.Event, ref string, fn func(keymanager.Manager, keymanager.Info, int) error) (*out[api.Secret], error) {
	act := func() (*out[api.Secret], error) {
		manager, err := s.d.Manager(ctx)
		if err != nil {
			return nil, err
		}
		i, version, err := s.findSecret(ctx, manager, ref)
		if err != nil {
			return nil, err
		}
		if err := s.begin(ctx, e); err != nil {
			return nil, err
		}
		if err := fn(manager, i, version); err != nil {
			return nil, err
		}
		i, _, err = s.findSecret(ctx, manager, i.ID)
		if err != nil {
			return nil, err
		}
		return &out[api.Secret]{Body: show.Secret(i, s.names(ctx))}, nil
	}
	return audited(ctx, s, e, act)
}

// disableSecret has the key manager give versions to nobody.
func (s *Server) disableSecret(ctx context.Context, req *refChange) (*out[api.Secret], error) {
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

func (s *Server) enableSecret(ctx context.Context, req *refChange) (*out[api.Secret], error) {
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
func (s *Server) setStates(ctx context.Context, req *refChange, action string, to keymanager.State, change func(keymanager.Manager, keymanager.Version) (bool, error)) (*out[api.Secret], error) {
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
			return refused("%s: no version of %s can become %s", strings.ReplaceAll(action, ".", " "), i.ID, to)
		}
		return nil
	})
}

// theVersion is the version that was named, or the only one that is not destroyed.
func theVersion(i keymanager.Info, version int, what string) (keymanager.Ref, error) {
	if version != 0 {
		return keymanager.Ref{ID: i.ID, Version: version}, nil
	}
	var left []keymanager.Ref
	for _, v := range i.Versions {
		if v.State != keymanager.Destroyed {
			left = append(left, v.Ref)
		}
	}
	switch len(left) {
	case 1:
		return left[0], nil
	case 0:
		return keymanager.Ref{}, fmt.Errorf("%s secret %s: %w", what, i.ID, keymanager.ErrDestroyed)
	}
	p := newProblem(http.StatusUnprocessableEntity, api.ExitUsage, fmt.Sprintf("%s secret %s: it has %d versions: name one, as %s", what, i.ID, len(left), left[len(left)-1]))
	for _, r := range left {
		p.Items = append(p.Items, r.String())
	}
	return keymanager.Ref{}, p
}

func (s *Server) destroySecret(ctx context.Context, req *refChange) (*out[api.Secret], error) {
	i, ref, err := s.destroy(ctx, req)
	if err != nil {
		return nil, err
	}
	r := &out[api.Secret]{Body: show.Secret(i, s.names(ctx))}
	if r.Body.SealedCopies, err = s.sealedCopies(context.WithoutCancel(ctx), ref); err != nil {
		return nil, hint(fmt.Errorf("destroy secret %s: it is destroyed, but which key packages still hold it is not known: %w", ref, err),
			"deleted recovery points keep theirs in the repository; the recovery kit opens them")
	}
	return r, nil
}

// sealedCopies are the key packages that still hold a version: those of
// recovery points that were deleted stay until space is reclaimed, and whoever
// has a recovery identity opens them.
func (s *Server) sealedCopies(ctx context.Context, ref keymanager.Ref) ([]api.SealedCopy, error) {
	c, err := s.d.Catalog(ctx)
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
func (s *Server) destroy(ctx context.Context, req *refChange) (keymanager.Info, keymanager.Ref, error) {
	early := func(err error) (keymanager.Info, keymanager.Ref, error) {
		e := audit.Event{
			Action: "secret.destroy", Object: req.Ref, Reason: req.Body.Reason, Outcome: outcomeOf(err),
			Detail: withDetail(nil, "error", clip(problemOf(err).Detail)),
		}
		return keymanager.Info{}, keymanager.Ref{}, errors.Join(err, s.record(ctx, e))
	}
	manager, err := s.d.Manager(ctx)
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
	c, err := s.d.Catalog(ctx)
	if err != nil {
		return early(err)
	}
	if err := s.begin(ctx, audit.Event{Action: "secret.destroy", Object: ref.String(), Reason: req.Body.Reason}); err != nil {
		return keymanager.Info{}, ref, err
	}
	if err := prove.Destroy(ctx, s.custodyDeps(ctx, c), ref, req.Body.Reason); err != nil {
		return keymanager.Info{}, ref, err
	}
	i, _, err = s.findSecret(ctx, manager, i.ID)
	return i, ref, err
}

// releaseSecret hands a secret out. It is recorded first: what cannot be
// recorded is not released.
func (s *Server) releaseSecret(ctx context.Context, req *refChange) (*huma.StreamResponse, error) {
	e := audit.Event{Action: "secret.release", Object: req.Ref, Reason: req.Body.Reason}
	fail := func(err error) (*huma.StreamResponse, error) {
		e.Outcome, e.Detail = outcomeOf(err), withDetail(e.Detail, "error", clip(problemOf(err).Detail))
		return nil, errors.Join(err, s.record(ctx, e))
	}
	if strings.TrimSpace(req.Body.Reason) == "" {
		return fail(usage("release secret: a reason must be given; it goes into the audit log"))
	}
	manager, err := s.d.Manager(ctx)
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
	if err := s.record(ctx, e); err != nil {
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

// newestActive is the version in use, 0 where none is.
func newestActive(i keymanager.Info) int {
	n := 0
	for _, v := range i.Versions {
		if v.State == keymanager.Active {
			n = v.Ref.Version
		}
	}
	return n
}
