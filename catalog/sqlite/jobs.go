package sqlite

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/lockstep-backup/lockstep/catalog"
)

type jobs struct{ session }

func scanDoc(doc *[]byte) []any { return []any{doc} }

func (s jobs) PutJob(ctx context.Context, id, kind, state string, created, ended time.Time, doc []byte) error {
	_, err := s.exec(ctx, "record job "+id, `INSERT INTO jobs (id, kind, state, created, ended, body) VALUES (?, ?, ?, ?, ?, ?)
		ON CONFLICT (id) DO UPDATE SET kind = excluded.kind, state = excluded.state, created = excluded.created,
			ended = excluded.ended, body = excluded.body`,
		id, kind, state, timeText(created), timeText(ended), string(doc))
	return err
}

func (s jobs) GetJob(ctx context.Context, id string) (doc []byte, err error) {
	err = s.row(ctx, "find job "+id, `SELECT body FROM jobs WHERE id = ?`, []any{id}, scanDoc(&doc))
	if errors.Is(err, catalog.ErrNotFound) {
		return nil, nil
	}
	return doc, err
}

func (s jobs) JobDocs(ctx context.Context, states []string, limit int) ([][]byte, error) {
	where, args := "", []any{}
	if len(states) > 0 {
		where = "WHERE state IN (?" + strings.Repeat(", ?", len(states)-1) + ")"
		for _, st := range states {
			args = append(args, st)
		}
	}
	return rows(ctx, s.session, "list jobs", `SELECT body FROM jobs `+where+` ORDER BY created DESC, id DESC LIMIT ?`,
		append(args, limit), scanDoc)
}

func (s jobs) PutJobEvent(ctx context.Context, id string, n int, at time.Time, doc []byte) error {
	op := "record event of job " + id
	_, err := s.exec(ctx, op, `INSERT INTO job_events (job, n, time, body) VALUES (?, ?, ?, ?) ON CONFLICT (job, n) DO NOTHING`,
		id, n, timeText(at), string(doc))
	if code(err) == codeForeignKey {
		return fmt.Errorf("%s: %w", op, catalog.ErrNotFound)
	}
	return err
}

func (s jobs) JobEventDocs(ctx context.Context, id string, after, limit int) ([][]byte, error) {
	return rows(ctx, s.session, "list events of job "+id, `SELECT body FROM job_events WHERE job = ? AND n > ? ORDER BY n LIMIT ?`,
		[]any{id, after, limit}, scanDoc)
}

func (s jobs) TrimJobs(ctx context.Context, t time.Time) error {
	_, err := s.exec(ctx, "trim jobs", `DELETE FROM jobs WHERE ended <> '' AND ended < ?`, timeText(t))
	return err
}
