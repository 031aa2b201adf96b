package barestore

import (
	"context"
	"errors"
	"io/fs"

	"github.com/lockstep-backup/lockstep/cli"
	"github.com/lockstep-backup/lockstep/cmd/internal/stores"
	"github.com/lockstep-backup/lockstep/store/remote"
	"github.com/lockstep-backup/lockstep/store/storecheck"
)

// Check tries a store without a data directory.
func Check(ctx context.Context, o cli.StoreCheckOptions) (r cli.StoreCheckResult, err error) {
	st, err := stores.Open(ctx, o.URL, stores.Options{})
	if refused := stores.Refusal("repository check-store", err); refused != err {
		return r, refused
	}
	if errors.Is(err, fs.ErrNotExist) && !stores.IsRemote(o.URL) {
		return r, cli.WithHint(err, "make the folder first: what is checked is a folder that is there")
	}
	if err != nil {
		return r, err
	}
	defer func() { err = errors.Join(err, st.Close()) }()
	r = cli.StoreCheckResult{Store: st.Location(), Checks: []cli.StoreCheck{}}
	r.Passed, err = storecheck.Run(ctx, st, storecheck.Options{}, func(c storecheck.Result) {
		said := cli.StoreCheck{Name: c.Name, Outcome: string(c.Outcome), Details: append([]string{}, c.Details...), Seconds: c.Took.Seconds()}
		r.Checks = append(r.Checks, said)
		o.Report(said)
	})
	if errors.Is(err, storecheck.ErrRetained) {
		err = cli.WithHint(err, "check a bucket with the same settings but no default retention, and let Lockstep lock what it needs")
	}
	if c, ok := stores.As[interface{ Counts() remote.Counts }](st); ok {
		r.Requests = c.Counts().Requests()
	}
	return r, err
}
