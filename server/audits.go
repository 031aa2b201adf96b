package server

import (
	"context"
	"fmt"
	"net/http"

	"github.com/lockstep-backup/lockstep/api"
	"github.com/lockstep-backup/lockstep/audit"
	"github.com/lockstep-backup/lockstep/server/internal/witness"
)

type auditFrom struct {
	From int64 `query:"from" minimum:"0" doc:"index of the first entry"`
}

func (s *Server) auditRoutes() {
	route(s, "list-audit", http.MethodGet, "/v1/audit", "List the entries of the audit log", s.listAudit)
	route(s, "verify-audit", http.MethodPost, "/v1/audit/verify", "Check the audit log against its signed checkpoints", s.verifyAudit)
}

func (s *Server) listAudit(ctx context.Context, req *auditFrom) (*out[[]api.AuditEntry], error) {
	r := &out[[]api.AuditEntry]{Body: []api.AuditEntry{}}
	err := s.d.Audit.List(ctx, req.From, func(i int64, e audit.Event) error {
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

func (s *Server) verifyAudit(ctx context.Context, _ *none) (*out[api.AuditReport], error) {
	var known []audit.Checkpoint
	var wrong []string
	// The catalog may be gone; then the log is checked by itself.
	if c, err := s.d.Catalog(ctx); err == nil {
		kept, err := witness.Kept(ctx, c)
		if err != nil {
			wrong = append(wrong, err.Error())
		}
		known = append(known, kept)
	}
	found, err := s.d.Audit.Verify(ctx, known...)
	if err != nil {
		return nil, fmt.Errorf("verify the audit log: %w", err)
	}
	v := api.AuditReport{Entries: found.Entries, Root: found.Root.String(), Checkpoints: int(found.Checkpoints), Problems: append([]string{}, wrong...)}
	v.Problems = append(v.Problems, witness.Beginning(ctx, s.d.Audit)...)
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
	return &out[api.AuditReport]{Body: v}, nil
}
