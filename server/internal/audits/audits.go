// Package audits is the routes of the audit log: listing it and checking it.
package audits

import (
	"context"
	"fmt"
	"net/http"

	"github.com/lockstep-backup/lockstep/api"
	"github.com/lockstep-backup/lockstep/audit"
	"github.com/lockstep-backup/lockstep/server/internal/frame"
	"github.com/lockstep-backup/lockstep/server/internal/witness"
)

type routes struct{ *frame.Frame }

// Register adds the routes.
func Register(f *frame.Frame) {
	s := routes{f}
	frame.Route(f, "list-audit", http.MethodGet, "/v1/audit", "List the entries of the audit log", s.listAudit)
	frame.Route(f, "verify-audit", http.MethodPost, "/v1/audit/verify", "Check the audit log against its signed checkpoints", s.verifyAudit)
}

type auditFrom struct {
	From int64 `query:"from" minimum:"0" doc:"index of the first entry"`
}

func (s routes) listAudit(ctx context.Context, req *auditFrom) (*frame.Out[[]api.AuditEntry], error) {
	r := &frame.Out[[]api.AuditEntry]{Body: []api.AuditEntry{}}
	err := s.Audit.List(ctx, req.From, func(i int64, e audit.Event) error {
		r.Body = append(r.Body, api.AuditEntry{
			Index: i, Time: e.Time.UTC(), Actor: e.Actor, Action: e.Action, Object: e.Object,
			Outcome: e.Outcome, Reason: e.Reason, Detail: e.Detail,
		})
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("list the audit log: %w", err)
	}
	return r, nil
}

func (s routes) verifyAudit(ctx context.Context, _ *frame.None) (*frame.Out[api.AuditReport], error) {
	var known []audit.Checkpoint
	var wrong []string
	// The catalog may be gone; then the log is checked by itself.
	if c, err := s.Catalog(ctx); err == nil {
		kept, err := witness.Kept(ctx, c)
		if err != nil {
			wrong = append(wrong, err.Error())
		}
		known = append(known, kept)
	}
	found, err := s.Audit.Verify(ctx, known...)
	if err != nil {
		return nil, fmt.Errorf("verify the audit log: %w", err)
	}
	v := api.AuditReport{Entries: found.Entries, Root: found.Root.String(), Checkpoints: int(found.Checkpoints), Problems: append([]string{}, wrong...)}
	v.Problems = append(v.Problems, witness.Beginning(ctx, s.Audit)...)
	for _, p := range found.Problems {
		text := fmt.Sprintf("entry %d: %s: %s", p.Index, p.Kind, p.Text)
		if p.AfterCrash() {
			text += " (a crash alone explains this; the next entry repairs it, and a note stays)"
		}
		v.Problems = append(v.Problems, text)
	}
	if found.More > 0 {
		v.Problems = append(v.Problems, fmt.Sprintf("and %d more", found.More))
	}
	return &frame.Out[api.AuditReport]{Body: v}, nil
}
