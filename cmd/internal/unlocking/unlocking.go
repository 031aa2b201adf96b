// Package unlocking is what commands that open encrypted volumes share: secrets
// that the user gave before those in custody, and what is said where nothing opens.
package unlocking

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"net/http"

	"github.com/lockstep-backup/lockstep/api"
	"github.com/lockstep-backup/lockstep/cli"
	"github.com/lockstep-backup/lockstep/diskcrypt"
	"github.com/lockstep-backup/lockstep/envelope"
	"github.com/lockstep-backup/lockstep/unlock"
)

// Given are secrets that the user gave, tried before those in custody.
type Given struct {
	secrets []cli.GivenSecret
	used    []bool
	custody unlock.Keys
}

// New puts secrets before those in custody, which is nil where it is not asked.
// One that is mistyped is refused before anything is opened.
func New(formats []diskcrypt.Format, secrets []cli.GivenSecret, custody unlock.Keys) (*Given, error) {
	for _, s := range secrets {
		typed := envelope.CopySecret(s.Data)
		err := diskcrypt.CheckSecret(formats, diskcrypt.Kind(s.Kind), typed)
		typed.Wipe()
		if err != nil {
			return nil, &api.Error{
				Status: http.StatusUnprocessableEntity, Title: "mistyped", Exit: api.ExitWrongSecret,
				Detail: fmt.Sprintf("secret of volume %s: %v", s.Volume, err),
				Hint:   "compare it with where it is written; 'lockstep secret release' hands out what is in custody",
			}
		}
	}
	return &Given{secrets: secrets, used: make([]bool, len(secrets)), custody: custody}, nil
}

// Keys is an unlock.Keys.
func (g *Given) Keys(ctx context.Context, disk string, v diskcrypt.Volume) iter.Seq2[unlock.Key, error] {
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

// Warnings name the secrets that are for no volume there is.
func (g *Given) Warnings() (out []string) {
	for i, s := range g.secrets {
		if !g.used[i] {
			out = append(out, fmt.Sprintf("there is no encrypted volume %s, or it lies in one that stays locked: its secret was not used", s.Volume))
		}
	}
	return out
}

// Refusal says that no volume of a recovery point opened, and in texts why not.
func Refusal(point string, volumes []unlock.Locked, texts []string) error {
	p := &api.Error{
		Status: http.StatusConflict, Title: "locked", Exit: api.ExitFailed, Items: texts,
		Detail: "unlock recovery point " + point + ": no volume opened",
		Hint:   "'lockstep point show " + point + "' says what is encrypted, and what is known to open it",
	}
	for _, l := range volumes {
		if errors.Is(l.Why, diskcrypt.ErrWrongSecret) || errors.Is(l.Why, unlock.ErrNoKey) {
			p.Exit, p.Hint = api.ExitWrongSecret, "--reason TEXT takes secrets from custody, --secret-file VOLUME=FILE gives one; 'lockstep secret add' takes one into custody"
		}
	}
	return p
}
