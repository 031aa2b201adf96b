package prove

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/lockstep-backup/lockstep/audit"
	"github.com/lockstep-backup/lockstep/catalog"
	"github.com/lockstep-backup/lockstep/custody"
	"github.com/lockstep-backup/lockstep/keymanager"
	"github.com/lockstep-backup/lockstep/repository"
)

// MetaRebuilt is the catalog's meta key under which a rebuild notes its time, RFC 3339.
const MetaRebuilt = "catalog-rebuilt"

// ErrUnread refuses to destroy: a registered repository was not read since the
// catalog was rebuilt, and may hold recovery points that need the secret.
var ErrUnread = errors.New("a registered repository was not read since the catalog was rebuilt")

// ReleaseHolds releases the holds of recovery points that no repository lists
// any more, and counts them. It is to be repeated where the key manager
// did not answer.
func ReleaseHolds(ctx context.Context, d Deps, points ...catalog.Point) (released int, err error) {
	fail := func(err error) error {
		if len(points) == 1 {
			return fmt.Errorf("release holds of %s: %w", points[0].ID, err)
		}
		return fmt.Errorf("release holds of %d recovery points: %w", len(points), err)
	}
	if d.Manager == nil {
		return 0, fail(keymanager.ErrUnavailable)
	}
	infos, err := d.Manager.List(ctx)
	if err != nil && !errors.Is(err, keymanager.ErrDamaged) {
		return 0, fail(err)
	}
	errs := []error{err}
	gone := map[string]bool{}
	for _, p := range points {
		h := keymanager.Hold{Repository: p.Repository, Machine: p.Machine, Point: p.ID, Installer: d.Installation}
		gone[h.Key()] = true
	}
	for _, s := range infos {
		for _, v := range s.Versions {
			holds := slices.DeleteFunc(slices.Clone(v.Holds), func(h keymanager.Hold) bool { return !gone[h.Key()] })
			if len(holds) == 0 {
				continue
			}
			if err := d.Manager.Unhold(ctx, v.Ref, holds...); err != nil {
				errs = append(errs, err)
			} else {
				released += len(holds)
			}
		}
	}
	if err := errors.Join(errs...); err != nil {
		return released, fail(err)
	}
	return released, nil
}

// CheckDestroy says whether a secret version may be destroyed: nil, ErrUnread,
// or a *keymanager.HeldError with the holds in the manager and those that
// follow from the catalog's proofs.
func CheckDestroy(ctx context.Context, d Deps, ref keymanager.Ref) error {
	d = d.withDefaults()
	if d.Manager == nil {
		return fmt.Errorf("check holds of %s: %w", ref, keymanager.ErrUnavailable)
	}
	infos, err := d.Manager.List(ctx)
	if err != nil && !errors.Is(err, keymanager.ErrDamaged) {
		return fmt.Errorf("check holds of %s: %w", ref, err)
	}
	version, known := findVersion(infos, ref)
	if !known {
		return fmt.Errorf("check holds of %s: %w", ref, errors.Join(keymanager.ErrNotFound, err))
	}
	holds := slices.Clone(version.Holds)
	proofs, err := d.Catalog.Proofs.OfSecret(ctx, ref.ID, ref.Version)
	if err != nil {
		return fmt.Errorf("check holds of %s: %w", ref, err)
	}
	for _, p := range proofs {
		h := keymanager.Hold{Point: p.Point, Installer: d.Installation, Since: p.Time}
		point, err := d.Catalog.Points.Get(ctx, p.Point)
		switch {
		case errors.Is(err, catalog.ErrNotFound): // it is proven, so it was there: it counts
		case err != nil:
			return fmt.Errorf("check holds of %s: %w", ref, err)
		case !point.DeletedAt.IsZero():
			continue
		default:
			h.Repository, h.Machine = point.Repository, point.Machine
		}
		same := func(o keymanager.Hold) bool { return o.Point == h.Point && o.Installer == h.Installer }
		if !slices.ContainsFunc(holds, same) {
			holds = append(holds, h)
		}
	}
	if len(holds) > 0 {
		return &keymanager.HeldError{Ref: ref, Holds: holds}
	}
	// Nothing is known that needs it. That counts only if all there is was read.
	return allRead(ctx, d)
}

func allRead(ctx context.Context, d Deps) error {
	text, err := d.Catalog.Meta.Get(ctx, MetaRebuilt)
	if err != nil {
		return fmt.Errorf("look for unread repositories: %w", err)
	}
	var rebuilt time.Time
	if text != "" {
		if rebuilt, err = time.Parse(time.RFC3339Nano, text); err != nil {
			return fmt.Errorf("look for unread repositories: time of the last rebuild: %w", err)
		}
	}
	repos, err := d.Catalog.Repositories.List(ctx)
	if err != nil {
		return fmt.Errorf("look for unread repositories: %w", err)
	}
	for _, r := range repos {
		if r.LastReadAt.IsZero() || r.LastReadAt.Before(rebuilt) {
			return fmt.Errorf("%w: %s (%s)", ErrUnread, r.ID, r.URL)
		}
	}
	return nil
}

// Destroy destroys a secret version that nothing needs. Recovery points without
// a proof are tried before: a backup that died between its commit and the proof
// left one that this version may be the only one to open.
func Destroy(ctx context.Context, d Deps, ref keymanager.Ref, reason string) error {
	d = d.withDefaults()
	err := proveFirst(ctx, d, ref)
	if err == nil {
		err = CheckDestroy(ctx, d, ref)
	}
	if err == nil {
		// The manager refuses once more, by its own holds, in the same step as it destroys.
		err = d.Manager.Destroy(ctx, ref, reason)
	}
	var held *keymanager.HeldError
	switch {
	case err == nil:
		d.audit(ctx, "secret.destroy", ref.String(), audit.Done, reason, nil)
	case errors.As(err, &held) || errors.Is(err, ErrUnread):
		d.audit(ctx, "secret.destroy", ref.String(), audit.Refused, err.Error(), nil)
	default:
		d.audit(ctx, "secret.destroy", ref.String(), audit.Failed, "", nil)
	}
	if err != nil {
		return fmt.Errorf("destroy secret %s: %w", ref, err)
	}
	return nil
}

// proveFirst proves the recovery points of the version's machine that have no
// proof. An error says that it could not be found out who needs the version.
func proveFirst(ctx context.Context, d Deps, ref keymanager.Ref) error {
	if d.Manager == nil {
		return keymanager.ErrUnavailable
	}
	infos, err := d.Manager.List(ctx)
	if err != nil && !errors.Is(err, keymanager.ErrDamaged) {
		return err
	}
	i := slices.IndexFunc(infos, func(s keymanager.Info) bool { return s.ID == ref.ID })
	if i < 0 {
		return nil // CheckDestroy says so
	}
	machine := infos[i].Labels[keymanager.LabelMachine]
	if machine == "" {
		return nil
	}
	points, err := d.Catalog.Points.List(ctx, catalog.PointQuery{Machine: machine, Bare: true})
	if err != nil {
		return err
	}
	proofs, err := d.Catalog.Proofs.OfMachine(ctx, machine)
	if err != nil {
		return err
	}
	proven := map[string]bool{}
	for _, p := range proofs {
		proven[p.Point] = true
	}
	var ids []string
	for _, p := range points {
		if !proven[p.ID] && p.Repository == d.Repo.ID() {
			ids = append(ids, p.ID)
		}
	}
	if len(ids) == 0 {
		return nil
	}
	results, err := Points(ctx, d, ids, nil)
	for _, r := range results {
		if len(r.Unheld) > 0 && slices.Contains(r.Unheld, ref) {
			err = errors.Join(err, fmt.Errorf("recovery point %s needs it, and the key manager could not be made to hold it", r.Point))
		}
	}
	return err
}

// DeclareNotNeeded states that a volume is not needed, with a reason, or, with
// an empty one, withdraws that. It holds for all recovery points of the machine.
func DeclareNotNeeded(ctx context.Context, d Deps, m catalog.Machine, k custody.VolumeKey, reason string) error {
	d = d.withDefaults()
	reason = strings.TrimSpace(reason)
	if _, err := d.Repo.Points(ctx, m.ID); errors.Is(err, repository.ErrNotFound) {
		if _, err := d.Repo.CreateMachine(ctx, m.ID, m.Name); err != nil {
			return fmt.Errorf("declare volume %s: %w", k, err)
		}
	}
	earlier, err := d.Catalog.Declarations.OfMachine(ctx, m.ID)
	if err != nil {
		return fmt.Errorf("declare volume %s: %w", k, err)
	}
	var before []custody.Declaration
	for _, e := range earlier {
		before = append(before, custody.Declaration{Disk: e.Disk, Volume: e.Volume, Time: e.Time})
	}
	s := custody.Declaration{
		Repository: d.Repo.ID(), Machine: m.ID, Disk: k.Disk, Volume: k.Volume,
		NotNeeded: reason != "", Reason: reason, Actor: d.Actor, Time: custody.NextTime(before, k, d.Now().UTC()),
	}
	raw, err := custody.SignDeclaration(s, d.Custodian)
	if err != nil {
		return fmt.Errorf("declare volume %s: %w", k, err)
	}
	// Read back as a stranger would: a custodian's key that the trust log does
	// not know must not seem to have declared anything.
	if _, err := custody.VerifyDeclaration(raw, d.Repo.Trust(), d.Repo.ID(), m.ID); err != nil {
		return fmt.Errorf("declare volume %s: %w", k, err)
	}
	key, err := d.Repo.PutSidecar(ctx, m.ID, repository.MachineSidecars, repository.SidecarDeclaration, raw)
	if err != nil {
		return fmt.Errorf("declare volume %s: %w", k, err)
	}
	if err := d.Catalog.Declarations.Put(ctx, CatalogDeclaration(key, s)); err != nil {
		return fmt.Errorf("declare volume %s: %w", k, err)
	}
	action := "volume.declare"
	if reason == "" {
		action = "volume.withdraw"
	}
	d.audit(ctx, action, m.ID+"/"+k.String(), audit.Done, reason, nil)
	return nil
}

// CatalogDeclaration is what the catalog keeps of a verified declaration.
func CatalogDeclaration(key string, s custody.Declaration) catalog.Declaration {
	return catalog.Declaration{Key: key, Machine: s.Machine, Disk: s.Disk, Volume: s.Volume, Reason: s.Reason, Time: s.Time, Withdrawn: !s.NotNeeded}
}
