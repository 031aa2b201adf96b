package prove

import (
	"context"
	"fmt"

	"github.com/lockstep-backup/lockstep/catalog"
	"github.com/lockstep-backup/lockstep/custody"
	"github.com/lockstep-backup/lockstep/keymanager"
	"github.com/lockstep-backup/lockstep/repository"
)

// PointCustody is what a repository says about the custody of one recovery
// point, verified.
type PointCustody struct {
	Proofs   []VerifiedProof
	Packages []catalog.Package
	Problems []string // statements that do not count, and why
}

// VerifiedProof is a proof that counts.
type VerifiedProof struct {
	Record catalog.Proof
	Proof  custody.Proof
}

// ReadPoint reads and verifies the sidecars of a recovery point. Damaged ones
// and those that do not count are problems, not errors.
func ReadPoint(ctx context.Context, repo *repository.Repository, mf *repository.Manifest) (PointCustody, error) {
	var out PointCustody
	want, err := Expected(mf)
	if err != nil {
		return out, err
	}
	sidecars, err := repo.Sidecars(ctx, mf.Machine, mf.Point)
	if ctx.Err() != nil {
		return out, ctx.Err()
	}
	if err != nil {
		out.Problems = append(out.Problems, fmt.Sprintf("recovery point %s: %v", mf.Point, err))
	}
	trust := repo.Trust()
	for _, s := range sidecars {
		var err error
		switch s.Kind {
		case repository.SidecarProof:
			p, signer, e := custody.VerifyProof(s.Raw, trust, want)
			if err = e; err == nil {
				out.Proofs = append(out.Proofs, VerifiedProof{Record: CatalogProof(s.Key, p, signer), Proof: p})
			}
		case repository.SidecarKeyPackage:
			c, e := custody.ReadKeyCover(s.Raw, trust)
			if err = e; err == nil && (c.Repository != mf.Repository || c.Machine != mf.Machine || c.Point != mf.Point) {
				err = custody.ErrMismatch
			}
			if err == nil {
				out.Packages = append(out.Packages, CatalogPackage(s.Key, c))
			}
		}
		if err != nil {
			out.Problems = append(out.Problems, fmt.Sprintf("%s does not count: %v", s.Key, err))
		}
	}
	return out, nil
}

// reconcile drops from the catalog, and from view, the proofs and packages
// whose sidecars are gone from the repository or damaged: they are no good to
// somebody who has the repository alone, and are made again.
func (r *runner) reconcile(ctx context.Context, s *subject, view *View, res *Result) error {
	gone := func(key string) bool {
		err := r.Repo.CheckObject(ctx, key)
		return err != nil && ctx.Err() == nil && isDamage(err)
	}
	id, lost := s.catalog.ID, 0
	var keep []catalog.Proof
	for _, p := range view.proofs[id] {
		if !gone(p.Key) {
			keep = append(keep, p)
			continue
		}
		lost++
		if err := r.Catalog.Proofs.Forget(ctx, p.Key); err != nil {
			return fmt.Errorf("compare proofs with the repository: %w", err)
		}
	}
	view.proofs[id] = keep
	var packages []catalog.Package
	for _, p := range view.packages[id] {
		if !gone(p.Key) {
			packages = append(packages, p)
			continue
		}
		lost++
		if err := r.Catalog.Packages.Forget(ctx, p.Key); err != nil {
			return fmt.Errorf("compare key packages with the repository: %w", err)
		}
	}
	view.packages[id] = packages
	if machine := s.catalog.Machine; !r.headers[machine] {
		r.headers[machine] = true
		headers, err := r.Catalog.Packages.Headers(ctx, machine)
		if err != nil {
			return fmt.Errorf("compare header packages with the repository: %w", err)
		}
		for _, h := range headers {
			if !gone(h.Key) {
				continue
			}
			lost++
			if err := r.Catalog.Packages.Forget(ctx, h.Key); err != nil {
				return fmt.Errorf("compare header packages with the repository: %w", err)
			}
		}
	}
	if lost > 0 {
		r.Log.Warn("proofs and packages are not in the repository any more", "point", id, "lost", lost)
		res.Problems = append(res.Problems, fmt.Sprintf("%d proofs and packages were lost or damaged in the repository; they are made again as far as their secrets can be had", lost))
	}
	return ctx.Err()
}

// MachineCustody is what a repository says about the custody of a machine as a
// whole, verified.
type MachineCustody struct {
	Declarations []catalog.Declaration
	Headers      []catalog.HeaderPackage
	Marks        []catalog.Mark
	// DoubtfulMarks are recovery points that marks name which do not count, and
	// why: nothing is to be deleted by a rule for that.
	DoubtfulMarks map[string]string
	Policies      Policies
	Problems      []string

	unreadMarks map[string]error // by sidecar
}

// ReadMachine reads and verifies the sidecars of a machine.
func ReadMachine(ctx context.Context, repo *repository.Repository, machine string) (MachineCustody, error) {
	out := MachineCustody{DoubtfulMarks: map[string]string{}, Policies: newPolicies(), unreadMarks: map[string]error{}}
	sidecars, err := repo.Sidecars(ctx, machine, repository.MachineSidecars)
	if ctx.Err() != nil {
		return out, ctx.Err()
	}
	if err != nil {
		out.Problems = append(out.Problems, fmt.Sprintf("machine %s: %v", machine, err))
		out.unreadable(err)
	}
	// What was stated where the recovery points were made counts for their copies.
	homes, err := repo.Homes(ctx, machine)
	if err != nil {
		return out, err
	}
	trust := repo.Trust()
	for _, s := range sidecars {
		var err error
		switch s.Kind {
		case repository.SidecarTag:
			err = out.readMark(s, trust, homes, machine)
		case repository.SidecarPolicy:
			err = out.readPolicy(s, trust, homes, machine)
		case repository.SidecarDeclaration:
			d, e := custody.VerifyDeclarationOf(s.Raw, trust, homes, machine)
			if err = e; err == nil {
				out.Declarations = append(out.Declarations, CatalogDeclaration(s.Key, d))
			}
		case repository.SidecarHeaderPackage:
			c, e := custody.ReadHeaderCover(s.Raw, trust)
			if err = e; err == nil && (!homes[c.Repository] || c.Machine != machine) {
				err = custody.ErrMismatch
			}
			if err == nil {
				out.Headers = append(out.Headers, CatalogHeaderPackage(s.Key, c))
			}
		}
		if err != nil {
			out.Problems = append(out.Problems, fmt.Sprintf("%s does not count: %v", s.Key, err))
		}
	}
	return out, nil
}

// RefHold is a hold of one secret version.
type RefHold struct {
	Secret keymanager.Ref
	Hold   keymanager.Hold
}

// HoldsOf derives the holds that follow from a recovery point's proofs.
func HoldsOf(proofs []VerifiedProof, installation string) []RefHold {
	var out []RefHold
	seen := map[keymanager.Ref]int{}
	for _, p := range proofs {
		h := keymanager.Hold{Repository: p.Proof.Repository, Machine: p.Proof.Machine, Point: p.Proof.Point, Installer: installation, Since: p.Proof.Time}
		if i, ok := seen[p.Proof.Secret]; ok {
			if h.Since.Before(out[i].Hold.Since) {
				out[i].Hold.Since = h.Since
			}
			continue
		}
		seen[p.Proof.Secret] = len(out)
		out = append(out, RefHold{Secret: p.Proof.Secret, Hold: h})
	}
	return out
}

// HoldsFromRepository derives all holds from a repository alone. Problems name
// what could not be read: then the list may lack some.
func HoldsFromRepository(ctx context.Context, repo *repository.Repository, installation string) (holds []RefHold, problems []string, err error) {
	machines, err := repo.Machines(ctx)
	if err != nil {
		return nil, nil, fmt.Errorf("derive holds: %w", err)
	}
	for _, m := range machines {
		points, err := repo.Points(ctx, m.ID)
		if err != nil {
			if ctx.Err() != nil {
				return nil, nil, ctx.Err()
			}
			problems = append(problems, fmt.Sprintf("machine %s: %v", m.Name, err))
		}
		for _, p := range points {
			mf, err := repo.Manifest(ctx, p)
			if err == nil {
				var c PointCustody
				if c, err = ReadPoint(ctx, repo, mf); err == nil {
					holds = append(holds, HoldsOf(c.Proofs, installation)...)
					problems = append(problems, c.Problems...)
					continue
				}
			}
			if ctx.Err() != nil {
				return nil, nil, ctx.Err()
			}
			problems = append(problems, fmt.Sprintf("recovery point %s: %v", p.ID, err))
		}
	}
	return holds, problems, nil
}
