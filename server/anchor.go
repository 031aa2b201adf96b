package server

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/lockstep-backup/lockstep/audit"
	"github.com/lockstep-backup/lockstep/catalog"
)

// anchorKey is the catalog's value that holds the audit log's newest
// checkpoint, as JSON: cut back consistently, the log is whole in itself, and
// only a checkpoint kept elsewhere shows it.
const anchorKey = "audit.head"

// anchorWait bounds how long an entry waits for the catalog.
const anchorWait = 5 * time.Second

// actionInit is the action of entry 0, which the making of an installation writes.
const actionInit = "init"

// anchor keeps the newest checkpoint in the catalog. It is one more witness:
// where it cannot be kept, the entry is in the log all the same.
func (s *Server) anchor(ctx context.Context) {
	ctx, stop := context.WithTimeout(context.WithoutCancel(ctx), anchorWait)
	defer stop()
	if err := s.keepAnchor(ctx); err != nil {
		s.d.Log.Info("the audit log's checkpoint is not kept in the catalog", "error", err)
	}
}

func (s *Server) keepAnchor(ctx context.Context) error {
	c, err := s.d.Catalog(ctx)
	if err != nil {
		return err
	}
	kept, err := readAnchor(ctx, c)
	if err != nil {
		return err
	}
	head, err := s.d.Audit.Head(ctx)
	if err != nil {
		return err
	}
	// One that contradicts the log is evidence, and stays.
	if continues, err := s.d.Audit.Continues(ctx, kept); err != nil || !continues {
		return errors.Join(err, errors.New("the log does not continue the checkpoint that is kept"))
	}
	if head.Size <= kept.Size {
		return nil
	}
	raw, err := json.Marshal(head)
	if err != nil {
		return err
	}
	return c.Meta.Set(ctx, anchorKey, string(raw))
}

// readAnchor reads the checkpoint that was kept; the zero one where none was.
func readAnchor(ctx context.Context, c *catalog.Catalog) (kept audit.Checkpoint, err error) {
	text, err := c.Meta.Get(ctx, anchorKey)
	if err != nil || text == "" {
		return kept, err
	}
	if err := json.Unmarshal([]byte(text), &kept); err != nil {
		return kept, fmt.Errorf("checkpoint kept in the catalog: %w", err)
	}
	return kept, nil
}

// known are the checkpoints kept elsewhere than in the log.
func (s *Server) known(ctx context.Context) (out []audit.Checkpoint, problems []string) {
	c, err := s.d.Catalog(ctx)
	if err != nil {
		return nil, nil // it may be gone; the log is checked by itself
	}
	kept, err := readAnchor(ctx, c)
	if err != nil {
		return nil, []string{err.Error()}
	}
	return []audit.Checkpoint{kept}, nil
}

// beginning says what is wrong with how the log begins.
func (s *Server) beginning(ctx context.Context) (problems []string) {
	enough := errors.New("enough")
	seen := false
	err := s.d.Audit.List(ctx, 0, func(_ int64, e audit.Event) error {
		seen = true
		if e.Action != actionInit {
			problems = append(problems, fmt.Sprintf("entry 0: removed: it is a %s of %s and not the making of this installation: the log was removed and begun anew", e.Action, e.Time.UTC().Format(time.RFC3339)))
		}
		return enough
	})
	if err == nil && !seen {
		problems = append(problems, "removed: the log is empty, though the installation was initialised: it was removed")
	}
	return problems // entries that cannot be read are among what Verify reports
}
