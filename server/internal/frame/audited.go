package frame

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/lockstep-backup/lockstep/audit"
	"github.com/lockstep-backup/lockstep/server/internal/witness"
)

// Record appends to the audit log.
func (s *Frame) Record(ctx context.Context, e audit.Event) error {
	e.Time, e.Actor = s.Now().UTC(), s.ActorOf(ctx)
	if _, err := s.Audit.Append(context.WithoutCancel(ctx), e); err != nil {
		return err
	}
	// One more witness: where it cannot be kept, the entry is in the log all the same.
	ctx, stop := context.WithTimeout(context.WithoutCancel(ctx), witnessWait)
	defer stop()
	c, err := s.Catalog(ctx)
	if err == nil {
		err = witness.Keep(ctx, c, s.Audit)
	}
	if err != nil {
		s.Log.Info("the audit log's checkpoint is not kept in the catalog", "error", err)
	}
	return nil
}

// witnessWait bounds how long an entry waits for the catalog.
const witnessWait = 5 * time.Second

// Begin records what is about to be done. What cannot be recorded is not done:
// the caller goes no further where this returns an error.
func (s *Frame) Begin(ctx context.Context, e audit.Event) error {
	e.Outcome = audit.Begun
	if err := s.Record(ctx, e); err != nil {
		return Hint(fmt.Errorf("%s: it could not be recorded in the audit log, so nothing was done: %w", strings.ReplaceAll(e.Action, ".", " "), err),
			"'lockstep audit verify' says what is wrong with the audit log")
	}
	return nil
}

// Audited does something and records it with its outcome. Where it was done
// but could not be recorded, that is the error.
func Audited[T any](ctx context.Context, s *Frame, e audit.Event, fn func() (T, error)) (T, error) {
	v, err := fn()
	e.Outcome = OutcomeOf(err)
	if err != nil {
		e.Detail = WithDetail(e.Detail, "error", Clip(ProblemOf(err).Detail))
	}
	if aerr := s.Record(ctx, e); aerr != nil {
		s.Log.Error("audit log", "action", e.Action, "object", e.Object, "error", aerr)
		if err == nil {
			err = Hint(errors.Join(errors.New("done, but not recorded in the audit log"), aerr),
				"'lockstep audit verify' says what is wrong with the audit log")
		}
	}
	return v, err
}

// Refuse records that something was not even started.
func (s *Frame) Refuse(ctx context.Context, e audit.Event, err error) error {
	e.Outcome, e.Detail = OutcomeOf(err), WithDetail(e.Detail, "error", Clip(ProblemOf(err).Detail))
	return errors.Join(err, s.Record(ctx, e))
}

// WithDetail adds to the details of an entry; m may be nil.
func WithDetail(m map[string]string, key, value string) map[string]string {
	if m == nil {
		m = map[string]string{}
	}
	m[key] = value
	return m
}

// Clip keeps an entry of the audit log short.
func Clip(text string) string {
	const most = 2000
	if len(text) > most {
		return text[:most] + "…"
	}
	return text
}
