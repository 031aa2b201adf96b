package prove

import (
	"context"
	"fmt"
	"slices"

	"github.com/lockstep-backup/lockstep/catalog"
	"github.com/lockstep-backup/lockstep/custody"
	"github.com/lockstep-backup/lockstep/diskcrypt"
	"github.com/lockstep-backup/lockstep/keymanager"
	"github.com/lockstep-backup/lockstep/repository"
)

// packages has key and header packages made for recovery recipients that lack
// them. The error is the context's or the catalog's.
func (r *runner) packages(ctx context.Context, s *subject, view *View, res *Result) error {
	cover, volumes := r.keyCover(s, view)
	if len(cover.Secrets) == 0 || len(r.Recipients) == 0 || r.Prover == nil {
		return nil
	}
	var refs []string
	for _, e := range cover.Secrets {
		if !slices.Contains(refs, e.Secret.String()) {
			refs = append(refs, e.Secret.String())
		}
	}
	headers, err := r.Catalog.Packages.Headers(ctx, s.catalog.Machine)
	if err != nil {
		return fmt.Errorf("look for header packages: %w", err)
	}
	for _, group := range custody.RecipientGroups(r.Recipients) {
		req := custody.PackageRequest{Recipients: group}
		if !hasKeyPackage(view.packages[s.catalog.ID], group, refs) {
			req.Cover = cover
		} else {
			req.Cover = custody.KeyCover{Repository: cover.Repository, Machine: cover.Machine, Point: cover.Point}
		}
		seen := map[string]bool{}
		for _, v := range volumes {
			digest := v.volume.HeaderDigest
			if seen[digest] || hasHeaderPackage(headers, group, digest) {
				continue
			}
			seen[digest] = true
			ranges := v.volume.HeaderEssential
			if len(ranges) == 0 {
				ranges = v.volume.HeaderRanges
			}
			if len(ranges) > 0 {
				req.Headers = append(req.Headers, custody.HeaderRequest{Disk: v.disk, Volume: v.volume, HeaderSize: v.headerSize, Ranges: ranges})
			}
		}
		if len(req.Cover.Secrets) == 0 && len(req.Headers) == 0 {
			continue
		}
		made, err := r.Prover.Package(ctx, req, s.reader)
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if err != nil {
			r.Log.Warn("make key package", "point", s.catalog.ID, "error", err)
			res.Problems = append(res.Problems, fmt.Sprintf("no key package was made: %v", err))
			continue
		}
		res.Problems = append(res.Problems, made.Problems...)
		if err := r.storePackages(ctx, s, made, req, view, res); err != nil {
			return err
		}
	}
	return nil
}

// keyCover names the versions that open the recovery point and can be had, and
// the volumes that they open.
func (r *runner) keyCover(s *subject, view *View) (custody.KeyCover, []subjectVolume) {
	c := custody.KeyCover{Repository: s.catalog.Repository, Machine: s.catalog.Machine, Point: s.catalog.ID, Disks: map[string]string{}}
	kinds := map[keymanager.Ref]diskcrypt.Kind{}
	for _, x := range view.secrets {
		for _, y := range x.Versions {
			if (custody.Candidate{State: y.State}).Usable() {
				kinds[y.Ref] = diskcrypt.Kind(x.Kind)
			}
		}
	}
	var opened []subjectVolume
	for _, v := range s.volumes {
		seen := map[keymanager.Ref]bool{}
		for _, p := range view.proofs[s.catalog.ID] {
			kind, usable := kinds[refOf(p)]
			if p.Disk != v.disk || p.Volume != v.volume.ID || !usable || seen[refOf(p)] {
				continue
			}
			seen[refOf(p)] = true
			c.Secrets = append(c.Secrets, custody.PackageSecret{Disk: p.Disk, Volume: p.Volume, Kind: kind, Secret: refOf(p)})
		}
		if len(seen) == 0 {
			continue
		}
		opened = append(opened, v)
		c.Disks[v.disk] = v.contentRoot
		c.Headers = append(c.Headers, custody.PackageHeader{Disk: v.disk, Volume: v.volume.ID, Type: v.volume.Type, HeaderDigest: v.volume.HeaderDigest})
	}
	return c, opened
}

// hasKeyPackage says whether one package holds all the refs for all of group.
func hasKeyPackage(packages []catalog.Package, group, refs []string) bool {
	return slices.ContainsFunc(packages, func(p catalog.Package) bool {
		return containsAll(p.Recipients, group) && containsAll(p.Refs, refs)
	})
}

func hasHeaderPackage(packages []catalog.HeaderPackage, group []string, digest string) bool {
	return slices.ContainsFunc(packages, func(p catalog.HeaderPackage) bool {
		return p.HeaderDigest == digest && containsAll(p.Recipients, group)
	})
}

func containsAll(have, want []string) bool {
	for _, w := range want {
		if !slices.Contains(have, w) {
			return false
		}
	}
	return true
}

// storePackages checks what the prover made as a stranger would, and stores it.
func (r *runner) storePackages(ctx context.Context, s *subject, made custody.Packages, req custody.PackageRequest, view *View, res *Result) error {
	problem := func(err error) {
		res.Problems = append(res.Problems, fmt.Sprintf("store key package: %v", err))
	}
	for _, k := range made.Key {
		c, err := custody.ReadKeyCover(k.Raw, r.Repo.Trust())
		if err == nil && (c.Point != s.catalog.ID || c.Machine != s.catalog.Machine || c.Repository != s.catalog.Repository || !containsAll(req.Recipients, c.Recipients)) {
			err = custody.ErrMismatch
		}
		if err != nil {
			problem(err)
			continue
		}
		key, err := r.Repo.PutSidecar(ctx, c.Machine, c.Point, repository.SidecarKeyPackage, k.Raw)
		if err != nil {
			problem(err)
			continue
		}
		p := CatalogPackage(key, c)
		if err := r.Catalog.Packages.Put(ctx, p); err != nil {
			return fmt.Errorf("record key package: %w", err)
		}
		view.packages[c.Point] = append(view.packages[c.Point], p)
	}
	for _, h := range made.Headers {
		c, err := custody.ReadHeaderCover(h.Raw, r.Repo.Trust())
		if err == nil && (c.Machine != s.catalog.Machine || c.Repository != s.catalog.Repository) {
			err = custody.ErrMismatch
		}
		if err != nil {
			problem(err)
			continue
		}
		key, err := r.Repo.PutSidecar(ctx, c.Machine, repository.MachineSidecars, repository.SidecarHeaderPackage, h.Raw)
		if err != nil {
			problem(err)
			continue
		}
		if err := r.Catalog.Packages.PutHeader(ctx, CatalogHeaderPackage(key, c)); err != nil {
			return fmt.Errorf("record header package: %w", err)
		}
	}
	return ctx.Err()
}

// CatalogPackage is what the catalog keeps of a verified key package.
func CatalogPackage(key string, c custody.KeyCover) catalog.Package {
	p := catalog.Package{Key: key, Point: c.Point, Recipients: c.Recipients, Time: c.Time}
	for _, e := range c.Secrets {
		if ref := e.Secret.String(); !slices.Contains(p.Refs, ref) {
			p.Refs = append(p.Refs, ref)
		}
	}
	return p
}

// CatalogHeaderPackage is what the catalog keeps of a verified header package.
func CatalogHeaderPackage(key string, c custody.HeaderCover) catalog.HeaderPackage {
	return catalog.HeaderPackage{Key: key, Machine: c.Machine, HeaderDigest: c.HeaderDigest, Recipients: c.Recipients}
}
