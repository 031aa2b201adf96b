package secrets

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strings"

	"github.com/danielgtaylor/huma/v2"

	"github.com/lockstep-backup/lockstep/api"
	"github.com/lockstep-backup/lockstep/audit"
	"github.com/lockstep-backup/lockstep/catalog"
	"github.com/lockstep-backup/lockstep/diskcrypt"
	"github.com/lockstep-backup/lockstep/envelope"
	"github.com/lockstep-backup/lockstep/prove"
	"github.com/lockstep-backup/lockstep/server/internal/frame"
	"github.com/lockstep-backup/lockstep/server/internal/places"
	"github.com/lockstep-backup/lockstep/server/internal/show"
)

// maxBody bounds a request with a secret: a key file of 8 MiB, in base64.
const maxBody = 12 << 20

// secretBody is a request with a secret. It is read here and not by the
// framework, which would keep the bytes in its buffers.
type secretBody struct {
	add api.SecretAdd
}

// Resolve reads the body.
func (b *secretBody) Resolve(c huma.Context) []error {
	raw, err := readWiped(c.BodyReader(), maxBody)
	defer clear(raw)
	if err != nil {
		return []error{err}
	}
	if err := json.Unmarshal(raw, &b.add); err != nil {
		// The decoder's error may repeat a part of what it did not like.
		return []error{frame.NewProblem(http.StatusUnprocessableEntity, api.ExitUsage, "add secret: the request is not the JSON of a SecretAdd")}
	}
	switch {
	case b.add.Machine == "":
		return []error{frame.NewProblem(http.StatusUnprocessableEntity, api.ExitUsage, "add secret: no machine is named")}
	case !slices.Contains(diskcrypt.Kinds, diskcrypt.Kind(b.add.Kind)):
		return []error{frame.NewProblem(http.StatusUnprocessableEntity, api.ExitUsage, fmt.Sprintf("add secret: kind is one of %s", kindNames()))}
	case len(b.add.Data) == 0:
		return []error{frame.NewProblem(http.StatusUnprocessableEntity, api.ExitUsage, "add secret: the secret is empty")}
	case len(b.add.Data) > envelope.MaxSecretFile:
		clear(b.add.Data)
		return []error{frame.NewProblem(http.StatusRequestEntityTooLarge, api.ExitUsage, fmt.Sprintf("add secret: it is longer than %d bytes", envelope.MaxSecretFile))}
	case b.add.Secret != "" && b.add.New:
		return []error{frame.NewProblem(http.StatusUnprocessableEntity, api.ExitUsage, "add secret: a version of a secret is not a new one")}
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
			return nil, frame.NewProblem(http.StatusRequestEntityTooLarge, api.ExitUsage, fmt.Sprintf("request: the body is longer than %d bytes", limit))
		case errors.Is(err, io.EOF):
			return buf, nil
		case err != nil:
			clear(buf)
			return nil, frame.NewProblem(http.StatusBadRequest, api.ExitFailed, "request: the body could not be read")
		}
	}
}

func (s routes) addSecret(ctx context.Context, req *secretBody) (*frame.Out[api.SecretAddResult], error) {
	secret := envelope.NewSecret(req.add.Data)
	req.add.Data = nil
	defer secret.Wipe()
	r, deps, err := s.prepareAdd(ctx, req.add, secret)
	if err != nil {
		e := audit.Event{
			Action: "secret.add", Object: req.add.Machine, Outcome: frame.OutcomeOf(err),
			Detail: map[string]string{"kind": req.add.Kind, "error": frame.Clip(frame.ProblemOf(err).Detail)},
		}
		return nil, errors.Join(err, s.Record(ctx, e))
	}
	begun := audit.Event{Action: "secret.add", Object: req.add.Machine, Detail: map[string]string{"kind": req.add.Kind, "volume": r.Volume}}
	if err := s.Begin(ctx, begun); err != nil {
		return nil, err
	}
	res, err := prove.AddSecret(ctx, deps, r)
	var nothing *prove.NothingOpensError
	switch {
	case errors.As(err, &nothing) && nothing.Headers == 0:
		// Not wrong, but not seen to be right either.
		p := frame.NewProblem(http.StatusConflict, api.ExitFailed, err.Error())
		p.Hint = "--keep takes it into custody without trying it"
		return nil, p
	case err != nil:
		return nil, err
	}
	return &frame.Out[api.SecretAddResult]{Body: show.Added(res)}, nil
}

func (s routes) prepareAdd(ctx context.Context, add api.SecretAdd, secret envelope.Secret) (r prove.AddRequest, deps prove.Deps, err error) {
	// Before anything is tried or kept: opening says only that it opens nothing.
	if err := diskcrypt.CheckSecret(s.Formats, diskcrypt.Kind(add.Kind), secret); err != nil {
		return r, deps, fmt.Errorf("add secret: %w", err)
	}
	c, err := s.Catalog(ctx)
	if err != nil {
		return r, deps, err
	}
	m, err := s.Machine(ctx, c, add.Machine)
	if err != nil {
		return r, deps, err
	}
	manager, err := s.Manager(ctx)
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
			return r, deps, frame.Usage("add secret: a version is added to a secret, not to a version of it")
		}
		r.SecretID = i.ID
	}
	return r, s.Custody(ctx, c), nil
}

func (s routes) scope(ctx context.Context, c *catalog.Catalog, m catalog.Machine, volume string) (string, error) {
	all, err := places.Of(ctx, s.Frame, c, m)
	if err != nil {
		return "", err
	}
	at, err := places.Find(all, volume)
	return at.String(), err
}
