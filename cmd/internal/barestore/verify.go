// Package barestore is what can be done with a store when nothing is there but
// its URL: no data directory and no key.
package barestore

import (
	"context"
	"errors"

	"github.com/lockstep-backup/lockstep/api"
	"github.com/lockstep-backup/lockstep/cmd/internal/stores"
	"github.com/lockstep-backup/lockstep/verify"
)

// Verify checks a repository with nothing but its URL: no data directory,
// no key, and no cache, for what is stored is in question.
func Verify(ctx context.Context, url string, progress func(done int64)) (r api.VerifyResult, err error) {
	st, err := stores.Open(ctx, url, stores.Options{})
	if err != nil {
		return r, err
	}
	found, err := verify.Stored(ctx, st, func(_ string, done, _ int64) { progress(done) })
	r = api.VerifyResult{Depth: "stored", Objects: found.Objects, ReadBytes: found.Read, Damage: []api.Damage{}}
	for _, d := range found.Damage {
		r.Damage = append(r.Damage, api.Damage{Object: d.Object, Error: d.Err.Error()})
	}
	return r, errors.Join(err, st.Close())
}
