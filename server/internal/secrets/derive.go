package secrets

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/lockstep-backup/lockstep/api"
	"github.com/lockstep-backup/lockstep/audit"
	"github.com/lockstep-backup/lockstep/backup"
	"github.com/lockstep-backup/lockstep/catalog"
	"github.com/lockstep-backup/lockstep/diskcrypt"
	"github.com/lockstep-backup/lockstep/envelope"
	"github.com/lockstep-backup/lockstep/keymanager"
	"github.com/lockstep-backup/lockstep/prove"
	"github.com/lockstep-backup/lockstep/repository"
	"github.com/lockstep-backup/lockstep/server/internal/frame"
	"github.com/lockstep-backup/lockstep/server/internal/places"
	"github.com/lockstep-backup/lockstep/server/internal/release"
)

// deriveSecrets opens a volume of a recovery point with a secret in custody and
// takes what the volume keeps under its own key into custody too. The secrets
// are in this process for that time only, and in no answer.
func (s routes) deriveSecrets(ctx context.Context, req *frame.In[api.SecretDerive]) (*frame.Out[api.SecretDeriveResult], error) {
	r := req.Body
	e := audit.Event{
		Action: "secret.derive", Object: r.Point + "/" + r.Disk + "/" + r.Volume, Reason: r.Reason, Detail: map[string]string{},
	}
	return frame.Audited(ctx, s.Frame, e, func() (*frame.Out[api.SecretDeriveResult], error) {
		if strings.TrimSpace(r.Reason) == "" {
			return nil, frame.Hint(frame.Usage("derive secrets: a reason must be given; it goes into the audit log"), "--reason TEXT")
		}
		d := derivation{routes: s, event: e, reason: r.Reason}
		defer d.wipe()
		if err := d.run(ctx, r); err != nil {
			return nil, fmt.Errorf("derive secrets: %w", err)
		}
		return &frame.Out[api.SecretDeriveResult]{Body: d.out}, nil
	})
}

// derivation is one request.
type derivation struct {
	routes
	event  audit.Event // its details are filled in
	reason string

	catalog *catalog.Catalog
	point   catalog.Point
	at      places.Place
	volume  diskcrypt.Volume
	derived []diskcrypt.Derived
	out     api.SecretDeriveResult
}

func (d *derivation) wipe() {
	for _, s := range d.derived {
		s.Secret.Wipe()
	}
}

func (d *derivation) run(ctx context.Context, r api.SecretDerive) (err error) {
	if d.catalog, err = d.Catalog(ctx); err != nil {
		return err
	}
	if d.point, err = d.ResolvePoint(ctx, d.catalog, r.Point); err != nil {
		return err
	}
	lease, err := d.Lease(ctx, d.point.ID, "a derivation of secrets")
	if err != nil {
		return err
	}
	defer lease.Release()
	if d.at, err = places.InPoint(d.point, r.Disk+"/"+r.Volume); err != nil {
		return err
	}
	d.event.Detail["point"], d.event.Detail["volume"] = d.point.ID, d.at.String()
	d.out = api.SecretDeriveResult{Point: d.point.ID, Disk: d.at.Disk, Volume: d.at.Volume, Secrets: []api.DerivedSecret{}}
	near, _, err := d.Nearest(ctx, d.point, "", func(format string, args ...any) { d.say(format, args...) })
	if err != nil {
		return err
	}
	i := slices.IndexFunc(near.Manifest.Disks, func(x repository.Disk) bool { return x.ID == d.at.Disk })
	if i < 0 {
		return fmt.Errorf("disk %s: %w", d.at.Disk, repository.ErrNotFound)
	}
	stored := near.Manifest.Disks[i]
	rep, err := backup.Inspection(stored)
	if err != nil {
		return err
	}
	j := slices.IndexFunc(rep.Volumes, func(v diskcrypt.Volume) bool { return v.ID == d.at.Volume })
	if j < 0 {
		return fmt.Errorf("volume %s: %w", d.at, repository.ErrNotFound)
	}
	d.volume = rep.Volumes[j]
	if d.volume.Type != diskcrypt.TypeBitLocker {
		return frame.Refused("volume %s is of type %s, which keeps no secrets under its key; BitLocker does", d.at, d.volume.Type)
	}
	disk, err := near.Repo.OpenDisk(ctx, near.Manifest.Machine, stored)
	if err != nil {
		return err
	}
	defer disk.Close()
	if err := d.open(ctx, diskcrypt.Place{Data: diskcrypt.PlaceOf(disk, d.volume), Size: d.volume.Size()}); err != nil {
		return err
	}
	return d.take(ctx)
}

func (d *derivation) say(format string, args ...any) {
	d.out.Messages = append(d.out.Messages, frame.Clip(fmt.Sprintf(format, args...)))
}

// clearKey is what opened a volume whose protection is suspended.
const clearKey = "clear key"

// open derives with what opens the volume without a secret, then with the
// secrets in custody until one does.
func (d *derivation) open(ctx context.Context, p diskcrypt.Place) error {
	keys, err := release.Keys(ctx, d.Frame, d.point, d.reason, d.event.Action)
	if err != nil {
		return err
	}
	if err := d.Begin(ctx, d.event); err != nil {
		return err
	}
	if d.volume.SelfOpening != "" && d.derive(ctx, p, diskcrypt.KindNone, envelope.Secret{}) == nil {
		d.out.From = clearKey
		return nil
	}
	var failed []error
	for k, err := range keys(ctx, d.at.Disk, d.volume) {
		if err != nil {
			failed = append(failed, err)
			continue
		}
		err = d.derive(ctx, p, k.Kind, k.Secret)
		k.Secret.Wipe()
		if err == nil {
			d.out.From = k.Name
			return nil
		}
		if ctx.Err() != nil {
			return ctx.Err()
		}
		failed = append(failed, fmt.Errorf("secret %s: %w", k.Name, err))
	}
	hint := "'lockstep secret add' takes a password, a recovery password, a startup key or the volume master key into custody"
	if len(failed) == 0 {
		return frame.Hint(frame.Refused("no secret in custody claims to open volume %s of recovery point %s", d.at, d.point.ID), "%s", hint)
	}
	return frame.Hint(errors.Join(failed...), "%s", hint)
}

func (d *derivation) derive(ctx context.Context, p diskcrypt.Place, kind diskcrypt.Kind, secret envelope.Secret) error {
	for _, f := range d.Formats {
		x, ok := f.(diskcrypt.Deriver)
		if !ok {
			continue
		}
		derived, err := x.Derive(ctx, p, kind, secret, diskcrypt.Limits{})
		if errors.Is(err, diskcrypt.ErrNotThisFormat) {
			continue
		}
		if err == nil {
			d.derived = derived
		}
		return err
	}
	return diskcrypt.ErrUnsupported
}

// take puts what was derived into custody, each as a secret of its own.
func (d *derivation) take(ctx context.Context) error {
	d.event.Detail["from"] = d.out.From
	if len(d.derived) == 0 {
		d.say("volume %s has no recovery password and no startup key: 'manage-bde -protectors -add X: -recoverypassword' makes one, and the next recovery point has it", d.at)
		return nil
	}
	deps := d.Custody(ctx, d.catalog)
	var taken []string
	defer func() { d.event.Detail["secrets"] = strings.Join(taken, ", ") }()
	for _, x := range d.derived {
		have, err := d.escrowed(ctx, deps, x)
		if err != nil {
			return err
		}
		if have != nil {
			d.out.Secrets = append(d.out.Secrets, *have)
			continue
		}
		res, err := prove.AddSecret(ctx, deps, prove.AddRequest{
			Machine: d.point.Machine, Volume: d.at.String(), Kind: x.Kind, Secret: x.Secret, New: true,
			Note: fmt.Sprintf("derived with %s from volume %s of recovery point %s", d.out.From, d.at, d.point.ID),
		})
		var nothing *prove.NothingOpensError
		if errors.As(err, &nothing) {
			// What the volume holds and what opens it can differ only by damage.
			d.say("the %s of protector %s is not taken into custody: %v", x.Kind, x.Protector, err)
			continue
		}
		if err != nil {
			return err
		}
		taken = append(taken, res.Version.Ref.String())
		d.out.Secrets = append(d.out.Secrets, d.shown(x, res.Version, false, d.proves(res)))
		for _, m := range res.Messages {
			d.say("%s: %s", res.Version.Ref, m)
		}
	}
	return nil
}

// proves says whether the version was shown to open the recovery point.
func (d *derivation) proves(res prove.AddResult) bool {
	for _, r := range res.Results {
		if r.Point == d.point.ID && slices.ContainsFunc(r.Opened, func(o prove.Opening) bool {
			return o.Secret == res.Version.Ref && o.Disk == d.at.Disk && o.Volume == d.at.Volume
		}) {
			return true
		}
	}
	return false
}

func (d *derivation) shown(x diskcrypt.Derived, v keymanager.Version, existing, proven bool) api.DerivedSecret {
	return api.DerivedSecret{
		Protector: x.Protector, Kind: string(x.Kind), Secret: v.Ref.ID, Version: v.Ref.Version, State: string(v.State),
		Existing: existing, Proven: proven,
	}
}

// escrowed finds the version that is this secret already, nil where none is: a
// protector has one secret of its kind, so what is known to open it is that
// one. No secret's bytes are asked for.
func (d *derivation) escrowed(ctx context.Context, deps prove.Deps, x diskcrypt.Derived) (*api.DerivedSecret, error) {
	view, err := prove.Load(ctx, deps, d.point.Machine)
	if err != nil {
		return nil, err
	}
	infos, err := view.Secrets()
	if err != nil {
		return nil, err
	}
	for _, ref := range view.OpenedBy(d.volume.HeaderDigest, x.Protector) {
		for _, i := range infos {
			if i.ID != ref.ID || i.Kind != string(x.Kind) {
				continue
			}
			for _, v := range i.Versions {
				if v.Ref == ref && v.State != keymanager.Destroyed {
					proven := slices.ContainsFunc(view.Proofs(d.point.ID), func(p catalog.Proof) bool {
						return p.Disk == d.at.Disk && p.Volume == d.at.Volume && p.Secret == ref.ID && p.Version == ref.Version
					})
					shown := d.shown(x, v, true, proven)
					return &shown, nil
				}
			}
		}
	}
	return nil, nil
}
