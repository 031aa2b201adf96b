package server

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"net/url"
	"path/filepath"

	"github.com/lockstep-backup/lockstep/api"
	"github.com/lockstep-backup/lockstep/catalog"
	"github.com/lockstep-backup/lockstep/disk"
	"github.com/lockstep-backup/lockstep/diskcrypt"
	"github.com/lockstep-backup/lockstep/job"
	"github.com/lockstep-backup/lockstep/server/internal/headers"
	"github.com/lockstep-backup/lockstep/server/internal/show"
	"github.com/lockstep-backup/lockstep/source"
	"github.com/lockstep-backup/lockstep/target"
)

// openLive opens a disk as it is now, and its detached header, to look at
// headers only: that it is in use does not matter for that.
func (s *Server) openLive(ctx context.Context, def catalog.MachineDisk) (source.Disk, map[string]diskcrypt.Header, error) {
	var detached map[string]diskcrypt.Header
	if def.Header != "" {
		h, err := s.openSource(ctx, def.Header, source.Options{AllowLive: true})
		if err != nil {
			return nil, nil, fmt.Errorf("open its detached header: %w", err)
		}
		defer h.Close()
		if h.Size() > headers.MaxDetached {
			return nil, nil, fmt.Errorf("open its detached header: %d bytes are too many for a header: %w", h.Size(), source.ErrUnsupported)
		}
		p := make([]byte, h.Size())
		if _, err := h.ReadAt(p, 0); err != nil && !errors.Is(err, io.EOF) {
			return nil, nil, fmt.Errorf("read its detached header: %w", err)
		}
		detached = map[string]diskcrypt.Header{diskcrypt.WholeDisk: {R: bytes.NewReader(p), Size: int64(len(p))}}
	}
	d, err := s.openSource(ctx, def.Source, source.Options{AllowLive: true})
	return d, detached, err
}

func (s *Server) inspectLive(ctx context.Context, def catalog.MachineDisk) (foundDisk, error) {
	f := foundDisk{id: def.ID}
	d, detached, err := s.openLive(ctx, def)
	if err != nil {
		return f, err
	}
	defer d.Close()
	f.size = d.Size()
	f.report, err = diskcrypt.Find(ctx, d, d.Size(), diskcrypt.FindOptions{Formats: s.d.Formats, Detached: detached})
	return f, err
}

// liveView shows a disk as it is now. Which secret opens a protector is known
// from trying it on an equal header.
func (s *Server) liveView(ctx context.Context, c *catalog.Catalog, id string, f foundDisk) api.DiskView {
	v := api.DiskView{ID: id, SizeBytes: f.size, Volumes: []api.Volume{}, Areas: show.Areas(f.report)}
	for _, vol := range f.report.Volumes {
		v.Volumes = append(v.Volumes, show.Volume(id, vol, s.attempted(ctx, c, vol.HeaderDigest)))
	}
	return v
}

// attempted says which secret versions opened the protectors of a header.
func (s *Server) attempted(ctx context.Context, c *catalog.Catalog, headerDigest string) map[string][]string {
	if headerDigest == "" {
		return nil
	}
	tried, err := c.Proofs.Attempts(ctx, headerDigest)
	if err != nil {
		s.d.Log.Warn("attempts on a header could not be read", "error", err)
		return nil
	}
	opened := map[string][]string{}
	for _, a := range tried {
		for _, p := range a.Opened {
			opened[p] = append(opened[p], refText(a.Secret, a.Version))
		}
	}
	return opened
}

func refText(id string, version int) string { return fmt.Sprintf("%s@%d", id, version) }

// openSource opens what the user wrote as SOURCE, if that is allowed.
func (s *Server) openSource(ctx context.Context, spec string, o source.Options) (source.Disk, error) {
	spec, err := s.allowed(spec, s.d.AllowSources, "source", "--allow-source")
	if err != nil {
		return nil, err
	}
	return s.d.OpenSource(ctx, spec, o)
}

func (s *Server) openTarget(ctx context.Context, spec string, size int64, o target.Options) (target.Disk, error) {
	allowed, err := s.allowed(spec, s.d.AllowTargets, "target", "--allow-target")
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("open target %s: %w: its folder does not exist", spec, target.ErrNotNamed)
	}
	if err != nil {
		return nil, err
	}
	return s.d.OpenTarget(ctx, allowed, size, o)
}

// allowed checks that a path lies in one of the folders, with symbolic links
// followed, and returns where it really is, so that what was checked is opened.
func (s *Server) allowed(spec string, folders []string, what, flag string) (string, error) {
	if !s.d.Restricted {
		return spec, nil
	}
	no := func(why string) error {
		p := newProblem(http.StatusForbidden, api.ExitRefused, fmt.Sprintf("open %s %s: %s", what, spec, why))
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

// lock keeps backups, restores and deletions of a machine apart.
func (s *Server) lock(m catalog.Machine, what string) (*job.Lock, error) {
	return s.d.Locks.Acquire(machineKey(m), what)
}

func machineKey(m catalog.Machine) string { return "machine:" + m.Name }
