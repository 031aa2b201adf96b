package frame

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net/http"
	"net/url"
	"path/filepath"
	"slices"
	"strings"

	"github.com/lockstep-backup/lockstep/api"
	"github.com/lockstep-backup/lockstep/disk"
	"github.com/lockstep-backup/lockstep/importing"
	"github.com/lockstep-backup/lockstep/limit"
	"github.com/lockstep-backup/lockstep/source"
	"github.com/lockstep-backup/lockstep/target"
)

// OpenSource opens what the user wrote as SOURCE, if that is allowed.
func (s *Frame) OpenSource(ctx context.Context, spec string, o source.Options) (source.Disk, error) {
	if path, ok := importing.Imported(spec); ok {
		return nil, Hint(fmt.Errorf("open source: the disk was imported from %s and has no other place: %w", path, source.ErrUnsupported),
			"'lockstep machine change' says where the machine's disk is now")
	}
	spec, err := s.allowedSource(spec)
	if err != nil {
		return nil, err
	}
	d, err := s.Deps.OpenSource(ctx, spec, o)
	if err != nil {
		return nil, err
	}
	return limit.Source(ctx, d), nil
}

// AllowedSource is where a path really is, if disks may be read from there.
func (s *Frame) AllowedSource(path string) (string, error) {
	return s.allowed(path, s.AllowSources, "source", "--allow-source")
}

// allowedSource checks all that a source may make this host open: the path,
// folders for what an image names, an NBD server's socket, or its address,
// which is allowed as a whole ("nbd://host:port").
func (s *Frame) allowedSource(spec string) (string, error) {
	if !s.Restricted {
		return spec, nil
	}
	u, err := url.Parse(spec)
	if err != nil || !strings.Contains(spec, "://") {
		return s.AllowedSource(spec)
	}
	q := u.Query()
	switch scheme := strings.ToLower(u.Scheme); scheme {
	case "file":
		for i, dir := range q["backing"] {
			if q["backing"][i], err = s.AllowedSource(dir); err != nil {
				return "", err
			}
		}
		u.RawQuery = q.Encode()
		return s.AllowedSource(u.String())
	case "nbd", "nbds", "nbd+unix", "nbds+unix":
		for _, key := range []string{"socket", "tls-certificates"} {
			for i, path := range q[key] {
				if q[key][i], err = s.AllowedSource(path); err != nil {
					return "", err
				}
			}
		}
		u.RawQuery = q.Encode()
		if strings.HasSuffix(scheme, "+unix") || slices.Contains(s.AllowSources, scheme+"://"+u.Host) {
			return u.String(), nil
		}
	}
	return s.AllowedSource(spec)
}

// OpenTarget opens what the user wrote as TARGET, if that is allowed.
func (s *Frame) OpenTarget(ctx context.Context, spec string, size int64, o target.Options) (target.Disk, error) {
	allowed, err := s.allowed(spec, s.AllowTargets, "target", "--allow-target")
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("open target %s: %w: its folder does not exist", spec, target.ErrNotNamed)
	}
	if err != nil {
		return nil, err
	}
	d, err := s.Deps.OpenTarget(ctx, allowed, size, o)
	if err != nil {
		return nil, err
	}
	return limit.Target(ctx, d), nil
}

// allowed checks that a path lies in one of the folders, with symbolic links
// followed, and returns where it really is, so that what was checked is opened.
func (s *Frame) allowed(spec string, folders []string, what, flag string) (string, error) {
	if !s.Restricted {
		return spec, nil
	}
	no := func(why string) error {
		p := NewProblem(http.StatusForbidden, api.ExitRefused, fmt.Sprintf("open %s %s: %s", what, spec, why))
		p.Hint = "start the server with " + flag + " DIR for the folder that it may use"
		return p
	}
	// The openers of local disks read specs with the same function.
	path, query, err := disk.LocalPath(spec)
	if err != nil {
		return "", no("it is not a path on this host")
	}
	if !filepath.IsAbs(path) {
		return "", no("it is not a path from the root")
	}
	real, err := resolve(path)
	if err != nil {
		return "", fmt.Errorf("open %s %s: %w", what, spec, err)
	}
	for _, f := range folders {
		root, err := filepath.EvalSymlinks(f)
		if err != nil {
			continue
		}
		if rel, err := filepath.Rel(root, real); err == nil && filepath.IsLocal(rel) {
			if len(query) > 0 {
				return (&url.URL{Scheme: "file", Path: filepath.ToSlash(real), RawQuery: query.Encode()}).String(), nil
			}
			return real, nil
		}
	}
	return "", no("the server may not use this folder")
}

// resolve follows symbolic links; the last part of the path need not exist.
func resolve(path string) (string, error) {
	real, err := filepath.EvalSymlinks(path)
	if err == nil {
		return real, nil
	}
	dir, derr := filepath.EvalSymlinks(filepath.Dir(path))
	if derr != nil {
		return "", err
	}
	return filepath.Join(dir, filepath.Base(path)), nil
}
