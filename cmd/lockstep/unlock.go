package main

import (
	"context"
	"fmt"
	"strings"

	"github.com/lockstep-backup/lockstep/catalog"
	"github.com/lockstep-backup/lockstep/cli"
	"github.com/lockstep-backup/lockstep/cmd/internal/unlocking"
	"github.com/lockstep-backup/lockstep/diskcrypt"
	"github.com/lockstep-backup/lockstep/server"
	"github.com/lockstep-backup/lockstep/unlock"
)

// givenKeys are the secrets for the volumes of a recovery point.
type givenKeys struct {
	*unlocking.Given
	of unlock.Keys
}

// keys gives the secrets for the volumes of a recovery point: those that the user
// gave, then those in custody. what is the operation that they are for.
func (e *engine) keys(ctx context.Context, p catalog.Point, o *cli.Unlock, what string) (g givenKeys, err error) {
	var custody unlock.Keys
	if o.Reason != "" {
		if custody, err = server.Keys(ctx, e.deps(), p, o.Reason, what); err != nil {
			return g, err
		}
	}
	if g.Given, err = unlocking.New(formats(), o.Secrets, custody); err == nil {
		g.of = g.Keys
	}
	return g, err
}

// lockedRefusal says that nothing opened.
var lockedRefusal = unlocking.Refusal

// unlock opens the volumes of the recovery point, and refuses where none opens.
func (x *exporting) unlock(ctx context.Context, o *cli.Unlock, what string) error {
	if o == nil {
		return nil
	}
	x.reason = o.Reason
	keys, err := x.keys(ctx, x.listed, o, what)
	if err != nil {
		return err
	}
	tree, err := x.point.Unlock(ctx, x.point.repo, keys.of, unlock.Options{Formats: formats(), Limits: diskcrypt.Limits{KDFMemory: kdfMemory()}})
	if err != nil {
		return err
	}
	x.warnings = append(append(x.warnings, tree.Warnings...), keys.Warnings()...)
	var locked []string
	for _, l := range tree.Locked {
		locked = append(locked, fmt.Sprintf("%s/%s stays locked: %s", l.Disk, l.Name, strings.ReplaceAll(l.Why.Error(), "\n", "; ")))
	}
	switch {
	case len(x.point.Plain) > 0:
		x.warnings = append(x.warnings, locked...)
	case len(locked) > 0:
		return lockedRefusal(x.point.Manifest.Point, tree.Locked, locked)
	default:
		x.warnings = append(x.warnings, "nothing of this recovery point is encrypted: its disks are plaintext already")
	}
	return nil
}

// volumes are what was unlocked.
func (x *exporting) volumes(where func(id string, v *cli.ExportedVolume)) []cli.ExportedVolume {
	var out []cli.ExportedVolume
	for _, d := range x.point.Plain {
		v := cli.ExportedVolume{ID: d.ID, Disk: d.Disk, Volume: d.Name, Class: d.Class, SizeBytes: d.Size(), Secret: d.Key, Protector: d.Protector}
		where(d.ID, &v)
		out = append(out, v)
	}
	return out
}

// unlocked adds to the details of an audit entry what was unlocked by what.
func (x *exporting) unlocked(detail map[string]string, o *cli.Unlock) map[string]string {
	var list []string
	for _, d := range x.point.Plain {
		if d.Key != "" {
			list = append(list, d.Disk+"/"+d.Name+" by secret "+d.Key)
		}
	}
	if o != nil {
		detail["unlocked"] = strings.Join(list, ", ")
	}
	return detail
}
