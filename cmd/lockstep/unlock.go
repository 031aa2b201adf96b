package main

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"net/http"
	"strings"

	"github.com/lockstep-backup/lockstep/api"
	"github.com/lockstep-backup/lockstep/catalog"
	"github.com/lockstep-backup/lockstep/cli"
	"github.com/lockstep-backup/lockstep/diskcrypt"
	"github.com/lockstep-backup/lockstep/envelope"
	"github.com/lockstep-backup/lockstep/server"
	"github.com/lockstep-backup/lockstep/unlock"
)

// givenKeys are secrets that the user gave, tried before those in custody.
type givenKeys struct {
	secrets []cli.GivenSecret
	used    []bool
	custody unlock.Keys // nil: not asked
}

// keys gives the secrets for the volumes of a recovery point. what is the
// operation that they are for.
func (e *engine) keys(ctx context.Context, p catalog.Point, o *cli.Unlock, what string) (*givenKeys, error) {
	g := &givenKeys{secrets: o.Secrets, used: make([]bool, len(o.Secrets))}
	var err error
	if o.Reason != "" {
		g.custody, err = server.Keys(ctx, e.deps(), p, o.Reason, what)
	}
	return g, err
}

// of is an unlock.Keys.
func (g *givenKeys) of(ctx context.Context, disk string, v diskcrypt.Volume) iter.Seq2[unlock.Key, error] {
	return func(yield func(unlock.Key, error) bool) {
		for i, s := range g.secrets {
			if s.Volume != v.ID && s.Volume != disk+"/"+v.ID && (s.Volume != disk || v.ID != diskcrypt.WholeDisk) {
				continue
			}
			g.used[i] = true
			k := unlock.Key{Name: "given for " + s.Volume, Kind: diskcrypt.Kind(s.Kind), Secret: envelope.CopySecret(s.Data)}
			if !yield(k, nil) {
				return
			}
		}
		if g.custody == nil {
			return
		}
		for k, err := range g.custody(ctx, disk, v) {
			if !yield(k, err) {
				return
			}
		}
	}
}

// warnings name the secrets that are for no volume there is.
func (g *givenKeys) warnings() (out []string) {
	for i, s := range g.secrets {
		if !g.used[i] {
			out = append(out, fmt.Sprintf("there is no encrypted volume %s, or it lies in one that stays locked: its secret was not used", s.Volume))
		}
	}
	return out
}

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
	x.warnings = append(append(x.warnings, tree.Warnings...), keys.warnings()...)
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

func lockedRefusal(point string, volumes []unlock.Locked, texts []string) error {
	p := &api.Error{
		Status: http.StatusConflict, Title: "locked", Exit: api.ExitFailed, Items: texts,
		Detail: "unlock recovery point " + point + ": no volume opened",
		Hint:   "'lockstep point show " + point + "' says what is encrypted, and what is known to open it",
	}
	for _, l := range volumes {
		if errors.Is(l.Why, diskcrypt.ErrWrongSecret) || errors.Is(l.Why, unlock.ErrNoKey) {
			p.Exit, p.Hint = api.ExitWrongSecret, "--secret-file VOLUME=FILE gives a secret; 'lockstep secret add' takes one into custody"
		}
	}
	return p
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
