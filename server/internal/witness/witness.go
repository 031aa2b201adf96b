// Package witness keeps the audit log's newest checkpoint in the catalog and
// holds the log against it. It is not the log: package audit is. Its invariant:
// a checkpoint that the log contradicts is never replaced.
package witness

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/lockstep-backup/lockstep/audit"
	"github.com/lockstep-backup/lockstep/catalog"
)

// key is the catalog's value that holds the audit log's newest
// checkpoint, as JSON: cut back consistently, the log is whole in itself, and
// only a checkpoint kept elsewhere shows it.
const key = "audit.head"

// actionInit is the action of entry 0, which the making of an installation writes.
const actionInit = "init"

// Keep puts the log's newest checkpoint into the catalog.
func Keep(ctx context.Context, c *catalog.Catalog, log *audit.Log) error {
	kept, err := Kept(ctx, c)
	if err != nil {
		return err
	}
	head, err := log.Head(ctx)
	if err != nil {
		return err
	}
	// One that contradicts the log is evidence, and stays.
	if continues, err := log.Continues(ctx, kept); err != nil || !continues {
		return errors.Join(err, errors.New("the log does not continue the checkpoint that is kept"))
	}
	if head.Size <= kept.Size {
		return nil
	}
	raw, err := json.Marshal(head)
	if err != nil {
		return err
	}
	return c.Meta.Set(ctx, key, string(raw))
}

// Kept is the checkpoint that was kept; the zero one where none was.
func Kept(ctx context.Context, c *catalog.Catalog) (kept audit.Checkpoint, err error) {
	text, err := c.Meta.Get(ctx, key)
	if err != nil || text == "" {
		return kept, err
	}
	if err := json.Unmarshal([]byte(text), &kept); err != nil {
		return kept, fmt.Errorf("checkpoint kept in the catalog: %w", err)
	}
	return kept, nil
}

// Beginning says what is wrong with how the log of an installation begins.
func Beginning(ctx context.Context, log *audit.Log) (problems []string) {
	enough := errors.New("enough")
	seen := false
	err := log.List(ctx, 0, func(_ int64, e audit.Event) error {
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
