package sqlite

import (
	"context"
	"errors"

	"github.com/lockstep-backup/lockstep/catalog"
)

type policies struct{ session }

func (s policies) Put(ctx context.Context, machine string, doc []byte) error {
	_, err := s.exec(ctx, "set policy of "+machine,
		`INSERT INTO policies (machine, body) VALUES (?, ?) ON CONFLICT (machine) DO UPDATE SET body = excluded.body`, machine, string(doc))
	return err
}

func (s policies) Get(ctx context.Context, machine string) ([]byte, error) {
	var body string
	err := s.row(ctx, "read policy of "+machine, `SELECT body FROM policies WHERE machine = ?`, []any{machine}, []any{&body})
	if errors.Is(err, catalog.ErrNotFound) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	return []byte(body), nil
}

func (s policies) Delete(ctx context.Context, machine string) error {
	_, err := s.exec(ctx, "delete policy of "+machine, `DELETE FROM policies WHERE machine = ?`, machine)
	return err
}

type marks struct{ session }

const markColumns = `key, machine, point, kind, name, value, is_set, sequence, reason, actor, time`

func (s marks) Put(ctx context.Context, m catalog.Mark) error {
	_, err := s.exec(ctx, "record mark "+m.Key, `INSERT INTO marks (`+markColumns+`)
		VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT (key) DO NOTHING`,
		m.Key, m.Machine, m.Point, m.Kind, m.Name, m.Value, m.Set, m.Sequence, m.Reason, m.Actor, timeText(m.Time))
	return err
}

func (s marks) OfMachine(ctx context.Context, machine string) ([]catalog.Mark, error) {
	return rows(ctx, s.session, "list marks", `SELECT `+markColumns+` FROM marks
		WHERE machine = ? ORDER BY sequence, time, key`, []any{machine}, func(m *catalog.Mark) []any {
		return []any{&m.Key, &m.Machine, &m.Point, &m.Kind, &m.Name, &m.Value, &m.Set, &m.Sequence, &m.Reason, &m.Actor, timeColumn(&m.Time)}
	})
}
