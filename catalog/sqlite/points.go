package sqlite

import (
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/lockstep-backup/lockstep/catalog"
)

type points struct{ session }

const pointColumns = `id, machine, repository, sequence, parent, time, written, consistency, full_transfer, description,
	incomplete, read_bytes, changed_bytes, stored_bytes, map_bytes, seconds, deleted_at, deleted_reason`

func scanPoint(p *catalog.Point) []any {
	return []any{
		&p.ID, &p.Machine, &p.Repository, &p.Sequence, &p.Parent, timeColumn(&p.Time), timeColumn(&p.Written),
		&p.Consistency, &p.FullTransfer, &p.Description, &p.Incomplete,
		&p.Stats.Read, &p.Stats.Changed, &p.Stats.Stored, &p.Stats.Map, &p.Seconds,
		timeColumn(&p.DeletedAt), &p.DeletedReason,
	}
}

func (s points) Record(ctx context.Context, p catalog.Point) error {
	op := "record recovery point " + p.ID
	return s.inTx(ctx, op, func(x session) error {
		_, err := x.exec(ctx, op, `INSERT INTO points (`+pointColumns+`)
			VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)
			ON CONFLICT (id) DO UPDATE SET machine = excluded.machine, repository = excluded.repository,
				sequence = excluded.sequence, parent = excluded.parent, time = excluded.time, written = excluded.written,
				consistency = excluded.consistency, full_transfer = excluded.full_transfer,
				description = excluded.description, incomplete = excluded.incomplete,
				read_bytes = excluded.read_bytes, changed_bytes = excluded.changed_bytes,
				stored_bytes = excluded.stored_bytes, map_bytes = excluded.map_bytes, seconds = excluded.seconds,
				deleted_reason = CASE WHEN points.deleted_at = '' THEN excluded.deleted_reason ELSE points.deleted_reason END,
				deleted_at = CASE WHEN points.deleted_at = '' THEN excluded.deleted_at ELSE points.deleted_at END`,
			p.ID, p.Machine, p.Repository, p.Sequence, p.Parent, timeText(p.Time), timeText(p.Written),
			p.Consistency, p.FullTransfer, p.Description, p.Incomplete,
			p.Stats.Read, p.Stats.Changed, p.Stats.Stored, p.Stats.Map, p.Seconds,
			timeText(p.DeletedAt), p.DeletedReason)
		if code(err) == codeForeignKey {
			return fmt.Errorf("%s: machine %s: %w", op, p.Machine, catalog.ErrNotFound)
		}
		if err != nil {
			return err
		}
		if _, err := x.exec(ctx, op, `DELETE FROM point_disks WHERE point = ?`, p.ID); err != nil {
			return err
		}
		for i, d := range p.Disks {
			if err := x.recordDisk(ctx, op, p.ID, i, d); err != nil {
				return err
			}
		}
		return nil
	})
}

func (x session) recordDisk(ctx context.Context, op, point string, place int, d catalog.PointDisk) error {
	unread, err := jsonText(d.Unread)
	if err != nil {
		return fmt.Errorf("%s: %w", op, err)
	}
	_, err = x.exec(ctx, op, `INSERT INTO point_disks (point, disk, place, size, content_root, unread, areas, changes)
		VALUES (?, ?, ?, ?, ?, ?, ?, ?)`,
		point, d.Disk, place, d.Size, d.ContentRoot, unread, string(d.Areas), d.Changes)
	if err != nil {
		return err
	}
	for i, v := range d.Volumes {
		_, err := x.exec(ctx, op, `INSERT INTO volumes
			(point, disk, volume, place, type, uuid, label, epoch, header_digest, header_copy, body)
			VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)`,
			point, d.Disk, v.Volume, i, v.Type, v.UUID, v.Label, v.Epoch, v.HeaderDigest, v.HeaderCopy, string(v.Body))
		if err != nil {
			return err
		}
	}
	return nil
}

func (s points) Get(ctx context.Context, id string) (catalog.Point, error) {
	op := "find recovery point " + id
	found, err := rows(ctx, s.session, op, `SELECT `+pointColumns+` FROM points WHERE id = ?`, []any{id}, scanPoint)
	if err == nil && len(found) == 0 {
		err = fmt.Errorf("%s: %w", op, catalog.ErrNotFound)
	}
	if err == nil {
		err = s.addDisks(ctx, op, found, `point = ?`, []any{id})
	}
	if err != nil {
		return catalog.Point{}, err
	}
	return found[0], nil
}

func (s points) List(ctx context.Context, q catalog.PointQuery) ([]catalog.Point, error) {
	const op = "list recovery points"
	where, args := `(? = '' OR machine = ?) AND (? = '' OR repository = ?) AND (deleted_at = '' OR ?)`,
		[]any{q.Machine, q.Machine, q.Repository, q.Repository, q.Deleted}
	if q.Machine != "" {
		// Said plainly, so that the index is used.
		where, args = `machine = ? AND `+where, append([]any{q.Machine}, args...)
	}
	found, err := rows(ctx, s.session, op, `SELECT `+pointColumns+` FROM points WHERE `+where+
		` ORDER BY machine, repository, sequence, id`, args, scanPoint)
	if err != nil || q.Bare || len(found) == 0 {
		return found, err
	}
	err = s.addDisks(ctx, op, found, `point IN (SELECT id FROM points WHERE `+where+`)`, args)
	return found, err
}

type diskRow struct {
	point string
	catalog.PointDisk
}

type volumeRow struct {
	point, disk string
	catalog.Volume
}

// addDisks fills in the disks and volumes of the points, which where selects.
// Rows of points that were recorded since are left alone.
func (s points) addDisks(ctx context.Context, op string, into []catalog.Point, where string, args []any) error {
	disks, err := rows(ctx, s.session, op, `SELECT point, disk, size, content_root, unread, areas, changes
		FROM point_disks WHERE `+where+` ORDER BY point, place`, args, func(r *diskRow) []any {
		return []any{&r.point, &r.Disk, &r.Size, &r.ContentRoot, jsonColumn(&r.Unread), rawColumn(&r.Areas), &r.Changes}
	})
	if err != nil {
		return err
	}
	volumes, err := rows(ctx, s.session, op, `SELECT point, disk, volume, type, uuid, label, epoch, header_digest, header_copy, body
		FROM volumes WHERE `+where+` ORDER BY point, disk, place`, args, func(r *volumeRow) []any {
		return []any{
			&r.point, &r.disk, &r.Volume.Volume, &r.Type, &r.UUID, &r.Label, &r.Epoch,
			&r.HeaderDigest, &r.HeaderCopy, rawColumn(&r.Body),
		}
	})
	if err != nil {
		return err
	}
	type place struct{ point, disk string }
	of := map[place][]catalog.Volume{}
	for _, v := range volumes {
		of[place{v.point, v.disk}] = append(of[place{v.point, v.disk}], v.Volume)
	}
	byID := make(map[string]*catalog.Point, len(into))
	for i := range into {
		byID[into[i].ID] = &into[i]
	}
	for _, d := range disks {
		if p := byID[d.point]; p != nil {
			d.Volumes = of[place{d.point, d.Disk}]
			p.Disks = append(p.Disks, d.PointDisk)
		}
	}
	return nil
}

func (s points) ByPrefix(ctx context.Context, prefix string, limit int) ([]string, error) {
	pattern := strings.NewReplacer(`\`, `\\`, `%`, `\%`, `_`, `\_`).Replace(prefix) + "%"
	return rows(ctx, s.session, "find recovery point "+prefix, `SELECT id FROM points
		WHERE id LIKE ? ESCAPE '\' AND deleted_at = '' ORDER BY id LIMIT ?`, []any{pattern, limit},
		func(id *string) []any { return []any{id} })
}

func (s points) WithHeader(ctx context.Context, headerDigest string) ([]catalog.HeaderUse, error) {
	return rows(ctx, s.session, "find recovery points with header "+headerDigest, `SELECT v.point, v.disk, v.volume
		FROM volumes v JOIN points p ON p.id = v.point
		WHERE v.header_digest = ? AND p.deleted_at = ''
		ORDER BY p.machine, p.sequence DESC, p.id, v.disk, v.place`, []any{headerDigest},
		func(u *catalog.HeaderUse) []any { return []any{&u.Point, &u.Disk, &u.Volume} })
}

func (s points) Delete(ctx context.Context, id string, at time.Time, reason string) error {
	return s.execOne(ctx, "delete recovery point "+id, `UPDATE points SET
		deleted_reason = CASE WHEN deleted_at = '' THEN ? ELSE deleted_reason END,
		deleted_at = CASE WHEN deleted_at = '' THEN ? ELSE deleted_at END WHERE id = ?`, reason, timeText(at), id)
}
