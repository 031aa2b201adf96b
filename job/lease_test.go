package job_test

import (
	"context"
	"errors"
	"path/filepath"
	"strings"
	"testing"

	"github.com/lockstep-backup/lockstep/job"
)

// Shared keys keep out only who wants the key alone, in this process and, by
// the files, in others, which a second Locks over the folder stands for.
func TestShare(t *testing.T) {
	for name, dir := range map[string]string{"one process": "", "files": t.TempDir()} {
		t.Run(name, func(t *testing.T) {
			a := job.NewLocks(dir)
			b := a
			if dir != "" {
				b = job.NewLocks(dir)
			}
			first, err := a.Share(t.Context(), "point:x", "a restore")
			if err != nil {
				t.Fatal(err)
			}
			second, err := b.Share(t.Context(), "point:x", "an export")
			if err != nil {
				t.Fatal(err)
			}
			busy := func(where *job.Locks, text string) {
				t.Helper()
				_, err := where.Acquire("point:x", "prune")
				if !errors.Is(err, job.ErrBusy) || !strings.Contains(err.Error(), text) {
					t.Errorf("%v, and it should name %q", err, text)
				}
			}
			busy(a, "a restore")
			second.Release()
			busy(b, "") // in another process nobody is named that has ended
			first.Release()
			first.Release()
			alone, err := b.Acquire("point:x", "prune")
			if err != nil {
				t.Fatal(err)
			}
			ctx, cancel := context.WithCancel(t.Context())
			cancel()
			if _, err := a.Share(ctx, "point:x", "a restore"); !errors.Is(err, context.Canceled) {
				t.Errorf("shared with who has it alone: %v", err)
			}
			alone.Discard()
			if dir != "" {
				if left, err := filepath.Glob(filepath.Join(dir, "*")); len(left) != 0 || err != nil {
					t.Errorf("left: %v, %v", left, err)
				}
			}
			third, err := a.Share(t.Context(), "point:x", "a restore")
			if err != nil {
				t.Fatal(err)
			}
			third.Release()
		})
	}
}
