package sqlite

import (
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/lockstep-backup/lockstep/catalog"
)

// querier is *sql.DB or *sql.Tx.
type querier interface {
	ExecContext(ctx context.Context, query string, args ...any) (sql.Result, error)
	QueryContext(ctx context.Context, query string, args ...any) (*sql.Rows, error)
	QueryRowContext(ctx context.Context, query string, args ...any) *sql.Row
}

// session runs statements on the database or inside one transaction of it.
type session struct {
	*shared
	q querier
}

// timeLayout is RFC 3339 in UTC with a fixed width.
const timeLayout = "2006-01-02T15:04:05.000000000Z"

func timeText(t time.Time) string {
	if t.IsZero() {
		return ""
	}
	return t.UTC().Format(timeLayout)
}

func parseTime(s string) (time.Time, error) {
	if s == "" {
		return time.Time{}, nil
	}
	return time.Parse(timeLayout, s)
}

func jsonText(v any) (string, error) {
	b, err := json.Marshal(v)
	return string(b), err
}

// column scans a text column into a value of ours.
type column[T any] struct {
	into  *T
	parse func(string) (T, error)
}

func (c column[T]) Scan(v any) error {
	var text string
	switch v := v.(type) {
	case string:
		text = v
	case []byte:
		text = string(v)
	default:
		return errDamage(fmt.Sprintf("a text column holds %T", v))
	}
	parsed, err := c.parse(text)
	if err != nil {
		return errDamage("a column does not parse: " + err.Error())
	}
	*c.into = parsed
	return nil
}

func timeColumn(into *time.Time) column[time.Time] {
	return column[time.Time]{into, parseTime}
}

func jsonColumn[T any](into *T) column[T] {
	return column[T]{into, func(s string) (v T, err error) {
		if s != "" {
			err = json.Unmarshal([]byte(s), &v)
		}
		return v, err
	}}
}

func rawColumn(into *json.RawMessage) column[json.RawMessage] {
	return column[json.RawMessage]{into, func(s string) (json.RawMessage, error) {
		if s == "" {
			return nil, nil
		}
		return json.RawMessage(s), nil
	}}
}

// fail names the operation; damage becomes an UnusableError.
func (x session) fail(op string, err error) error {
	if err == nil {
		return nil
	}
	if u := x.unusable(err); u != err {
		return u
	}
	if errors.Is(err, sql.ErrNoRows) {
		err = catalog.ErrNotFound
	}
	return fmt.Errorf("%s: %w", op, err)
}

// exec runs one statement and says how many rows it touched.
func (x session) exec(ctx context.Context, op, query string, args ...any) (int64, error) {
	res, err := x.q.ExecContext(ctx, query, args...)
	if err != nil {
		return 0, x.fail(op, err)
	}
	n, err := res.RowsAffected()
	return n, x.fail(op, err)
}

// execOne is exec that must find its row.
func (x session) execOne(ctx context.Context, op, query string, args ...any) error {
	n, err := x.exec(ctx, op, query, args...)
	if err == nil && n == 0 {
		return fmt.Errorf("%s: %w", op, catalog.ErrNotFound)
	}
	return err
}

// row reads one row.
func (x session) row(ctx context.Context, op, query string, args, into []any) error {
	return x.fail(op, x.q.QueryRowContext(ctx, query, args...).Scan(into...))
}

// rows reads all rows of a query; scan gives the places for one row.
func rows[T any](ctx context.Context, x session, op, query string, args []any, scan func(*T) []any) ([]T, error) {
	r, err := x.q.QueryContext(ctx, query, args...)
	if err != nil {
		return nil, x.fail(op, err)
	}
	defer r.Close()
	var out []T
	for r.Next() {
		var v T
		if err := r.Scan(scan(&v)...); err != nil {
			return nil, x.fail(op, err)
		}
		out = append(out, v)
	}
	return out, x.fail(op, r.Err())
}

// inTx runs fn in a transaction: the one that is open, or one of its own.
func (x session) inTx(ctx context.Context, op string, fn func(session) error) error {
	if _, ok := x.q.(*sql.Tx); ok {
		return fn(x)
	}
	tx, err := x.db.BeginTx(ctx, nil)
	if err != nil {
		return x.fail(op, err)
	}
	if err := fn(session{shared: x.shared, q: tx}); err != nil {
		// What failed is what the caller wants to know, not how the rollback went.
		_ = tx.Rollback()
		return err
	}
	return x.fail(op, tx.Commit())
}

type meta struct{ session }

func (m meta) Get(ctx context.Context, key string) (string, error) {
	var v string
	err := m.row(ctx, "read catalog meta "+key, `SELECT value FROM meta WHERE key = ?`, []any{key}, []any{&v})
	if errors.Is(err, catalog.ErrNotFound) {
		return "", nil
	}
	return v, err
}

func (m meta) Set(ctx context.Context, key, value string) error {
	_, err := m.exec(ctx, "write catalog meta "+key,
		`INSERT INTO meta (key, value) VALUES (?, ?) ON CONFLICT (key) DO UPDATE SET value = excluded.value`, key, value)
	return err
}

type maintenance struct{ session }

func (m maintenance) Rebuild(ctx context.Context, fill func(*catalog.Catalog) error) error {
	const op = "rebuild catalog"
	return m.inTx(ctx, op, func(x session) error {
		for _, table := range []string{
			"volumes", "point_disks", "points", "machines",
			"proofs", "attempts", "packages", "header_packages", "declarations", "marks",
		} {
			if _, err := x.exec(ctx, op, "DELETE FROM "+table); err != nil {
				return err
			}
		}
		if err := fill(x.catalog(x.q)); err != nil {
			return fmt.Errorf("%s: %w", op, err)
		}
		_, err := x.exec(ctx, op, `DELETE FROM meta WHERE key = ?`, rebuildMark)
		return err
	})
}

func (m maintenance) Check(ctx context.Context) error {
	const op = "check catalog"
	if err := check(ctx, m.db, "PRAGMA integrity_check(1)"); err != nil {
		return m.fail(op, err)
	}
	lost, err := rows(ctx, m.session, op, `SELECT "table", COALESCE(rowid, 0) FROM pragma_foreign_key_check LIMIT 1`, nil,
		func(v *[2]string) []any { return []any{&v[0], &v[1]} })
	if err != nil {
		return err
	}
	if len(lost) > 0 {
		return m.fail(op, errDamage(fmt.Sprintf("row %s of table %s belongs to nothing", lost[0][1], lost[0][0])))
	}
	return nil
}

func (m maintenance) Close() error {
	return m.fail("close catalog", m.db.Close())
}
