// Package release hands secrets in custody to what opens the volumes of a
// recovery point. Its invariant: what is handed out is in the audit log, with
// the reason, the recovery point and the volume; what cannot be recorded is not
// handed out.
package release

import (
	"context"
	"fmt"
	"iter"
	"strings"

	"github.com/lockstep-backup/lockstep/audit"
	"github.com/lockstep-backup/lockstep/catalog"
	"github.com/lockstep-backup/lockstep/custody"
	"github.com/lockstep-backup/lockstep/diskcrypt"
	"github.com/lockstep-backup/lockstep/envelope"
	"github.com/lockstep-backup/lockstep/keymanager"
	"github.com/lockstep-backup/lockstep/prove"
	"github.com/lockstep-backup/lockstep/server/internal/frame"
	"github.com/lockstep-backup/lockstep/unlock"
)

// Keys gives the secrets that claim the volumes of a recovery point, the
// likeliest first. reason goes into the audit log, and so does what, the
// operation that they are for. The result is for one goroutine.
func Keys(ctx context.Context, f *frame.Frame, p catalog.Point, reason, what string) (unlock.Keys, error) {
	if strings.TrimSpace(reason) == "" {
		return nil, frame.Hint(frame.Usage("release secrets of recovery point %s: a reason must be given; it goes into the audit log", p.ID), "--reason TEXT")
	}
	c, err := f.Catalog(ctx)
	if err != nil {
		return nil, err
	}
	manager, err := f.Manager(ctx)
	if err != nil {
		return nil, err
	}
	view, err := prove.Load(ctx, f.Custody(ctx, c), p.Machine)
	if err != nil {
		return nil, err
	}
	r := releaser{f, manager, view, p, reason, what}
	return func(ctx context.Context, disk string, v diskcrypt.Volume) iter.Seq2[unlock.Key, error] {
		return func(yield func(unlock.Key, error) bool) { r.each(ctx, disk, v, yield) }
	}, nil
}

type releaser struct {
	f            *frame.Frame
	manager      keymanager.Manager
	view         *prove.View
	point        catalog.Point
	reason, what string
}

func (r releaser) each(ctx context.Context, disk string, v diskcrypt.Volume, yield func(unlock.Key, error) bool) {
	candidates, err := r.view.Candidates(ctx, r.point, disk, v)
	if err != nil {
		yield(unlock.Key{}, err)
		return
	}
	for _, c := range candidates {
		if !c.Usable() || c.Refused {
			continue // what is known to open nothing is not handed out for it
		}
		secret, err := r.release(ctx, c, custody.VolumeKey{Disk: disk, Volume: v.ID})
		if !yield(unlock.Key{Name: c.Secret.String(), Kind: c.Kind, Secret: secret}, err) || ctx.Err() != nil {
			return
		}
	}
}

func (r releaser) release(ctx context.Context, c custody.Candidate, volume custody.VolumeKey) (none envelope.Secret, err error) {
	e := audit.Event{
		Action: "secret.release", Object: c.Secret.String(), Reason: r.reason,
		Detail: map[string]string{"point": r.point.ID, "volume": volume.String(), "for": r.what},
	}
	s, err := r.manager.Get(ctx, c.Secret)
	if err != nil {
		return none, r.f.Refuse(ctx, e, fmt.Errorf("release secret %s: %w", c.Secret, err))
	}
	e.Outcome = audit.Done
	if err := r.f.Record(ctx, e); err != nil {
		s.Wipe()
		return none, frame.Hint(fmt.Errorf("release secret %s: it could not be recorded, so it is not released: %w", c.Secret, err),
			"'lockstep audit verify' says what is wrong with the audit log")
	}
	return s, nil
}
