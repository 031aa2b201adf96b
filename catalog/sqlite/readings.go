package sqlite

import (
	"context"

	"github.com/lockstep-backup/lockstep/catalog"
)

type readings struct{ session }

func (s readings) Put(ctx context.Context, repository string, list []catalog.Reading) error {
	const op = "record what was read back"
	return s.inTx(ctx, op, func(x session) error {
		for _, r := range list {
			if _, err := x.exec(ctx, op, `INSERT INTO readings (repository, key, since, never) VALUES (?, ?, ?, ?)
				ON CONFLICT (repository, key) DO UPDATE SET since = excluded.since, never = excluded.never`,
				repository, r.Key, timeText(r.Since), r.Never); err != nil {
				return err
			}
		}
		return nil
	})
}

const readingsInOrder = `SELECT key, since, never FROM readings WHERE repository = ? ORDER BY since, never DESC, key`

func scanReading(r *catalog.Reading) []any { return []any{&r.Key, timeColumn(&r.Since), &r.Never} }

func (s readings) List(ctx context.Context, repository string) ([]catalog.Reading, error) {
	return rows(ctx, s.session, "list what was read back", readingsInOrder, []any{repository}, scanReading)
}

func (s readings) Oldest(ctx context.Context, repository string) (r catalog.Reading, err error) {
	err = s.row(ctx, "find what was not read back for the longest", readingsInOrder+` LIMIT 1`, []any{repository}, scanReading(&r))
	return r, err
}

func (s readings) Forget(ctx context.Context, repository string, keys []string) error {
	const op = "forget what is gone"
	return s.inTx(ctx, op, func(x session) error {
		for _, key := range keys {
			if _, err := x.exec(ctx, op, `DELETE FROM readings WHERE repository = ? AND key = ?`, repository, key); err != nil {
				return err
			}
		}
		return nil
	})
}
