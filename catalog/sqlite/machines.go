package sqlite

import (
	"context"
	"fmt"
	"time"

	"github.com/lockstep-backup/lockstep/catalog"
)

type machines struct{ session }

const machineColumns = `id, name, created, disks, removed_at`

func scanMachine(m *catalog.Machine) []any {
	return []any{&m.ID, &m.Name, timeColumn(&m.Created), jsonColumn(&m.Disks), timeColumn(&m.RemovedAt)}
}

func (s machines) Put(ctx context.Context, m catalog.Machine) error {
	op := "record machine " + m.Name
	disks, err := jsonText(m.Disks)
	if err != nil {
		return fmt.Errorf("%s: %w", op, err)
	}
	_, err = s.exec(ctx, op, `INSERT INTO machines (`+machineColumns+`) VALUES (?, ?, ?, ?, ?)
		ON CONFLICT (id) DO UPDATE SET name = excluded.name, created = excluded.created,
			disks = excluded.disks, removed_at = excluded.removed_at`,
		m.ID, m.Name, timeText(m.Created), disks, timeText(m.RemovedAt))
	if code(err) == codeUnique {
		return fmt.Errorf("%s: %w", op, catalog.ErrExists)
	}
	return err
}

func (s machines) Get(ctx context.Context, id string) (m catalog.Machine, err error) {
	err = s.row(ctx, "find machine "+id, `SELECT `+machineColumns+` FROM machines WHERE id = ?`, []any{id}, scanMachine(&m))
	return m, err
}

func (s machines) ByName(ctx context.Context, name string) (m catalog.Machine, err error) {
	err = s.row(ctx, "find machine "+name, `SELECT `+machineColumns+` FROM machines WHERE name = ?
		ORDER BY CASE WHEN removed_at = '' THEN 0 ELSE 1 END, removed_at DESC, id LIMIT 1`, []any{name}, scanMachine(&m))
	return m, err
}

func (s machines) List(ctx context.Context, removed bool) ([]catalog.Machine, error) {
	return rows(ctx, s.session, "list machines", `SELECT `+machineColumns+` FROM machines
		WHERE removed_at = '' OR ? ORDER BY name, removed_at, id`, []any{removed}, scanMachine)
}

func (s machines) Remove(ctx context.Context, id string, at time.Time) error {
	return s.execOne(ctx, "remove machine "+id, `UPDATE machines SET removed_at = ? WHERE id = ?`, timeText(at), id)
}

type repositories struct{ session }

const repositoryColumns = `id, url, trust_root, last_read_at`

func scanRepository(r *catalog.Repository) []any {
	return []any{&r.ID, &r.URL, &r.TrustRoot, timeColumn(&r.LastReadAt)}
}

func (s repositories) Put(ctx context.Context, r catalog.Repository) error {
	_, err := s.exec(ctx, "record repository "+r.ID, `INSERT INTO repositories (`+repositoryColumns+`) VALUES (?, ?, ?, ?)
		ON CONFLICT (id) DO UPDATE SET url = excluded.url, trust_root = excluded.trust_root, last_read_at = excluded.last_read_at`,
		r.ID, r.URL, r.TrustRoot, timeText(r.LastReadAt))
	return err
}

func (s repositories) Get(ctx context.Context, id string) (r catalog.Repository, err error) {
	err = s.row(ctx, "find repository "+id, `SELECT `+repositoryColumns+` FROM repositories WHERE id = ?`, []any{id}, scanRepository(&r))
	return r, err
}

func (s repositories) List(ctx context.Context) ([]catalog.Repository, error) {
	return rows(ctx, s.session, "list repositories", `SELECT `+repositoryColumns+` FROM repositories ORDER BY url, id`, nil, scanRepository)
}

func (s repositories) MarkRead(ctx context.Context, id string, at time.Time) error {
	return s.execOne(ctx, "mark repository "+id+" as read", `UPDATE repositories SET last_read_at = ? WHERE id = ?`, timeText(at), id)
}
