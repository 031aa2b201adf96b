package secrets

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strconv"
	"strings"

	"github.com/lockstep-backup/lockstep/api"
	"github.com/lockstep-backup/lockstep/keymanager"
	"github.com/lockstep-backup/lockstep/server/internal/frame"
)

// findSecret finds a secret, and the version where ref names one: ID, a unique
// prefix of it, or a machine's name where it has one secret, each with
// @VERSION or without. Version 0 is none named.
func (s routes) findSecret(ctx context.Context, manager keymanager.Manager, ref string) (keymanager.Info, int, error) {
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
		p := frame.NewProblem(http.StatusUnprocessableEntity, api.ExitUsage, fmt.Sprintf("find secret: more than one is %q", name))
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
		return "", 0, frame.Usage("find secret: %q is not SECRET or SECRET@VERSION", ref)
	}
	return name, version, nil
}

func (s routes) candidateSecrets(ctx context.Context, all []keymanager.Info, name string) []keymanager.Info {
	var found []keymanager.Info
	for _, i := range all {
		if i.ID == name {
			return []keymanager.Info{i}
		}
	}
	names := s.Names(ctx)
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
	p := frame.NewProblem(http.StatusUnprocessableEntity, api.ExitUsage, fmt.Sprintf("%s secret %s: it has %d versions: name one, as %s", what, i.ID, len(left), left[len(left)-1]))
	for _, r := range left {
		p.Items = append(p.Items, r.String())
	}
	return keymanager.Ref{}, p
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
