package restores

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/spf13/cobra"

	"github.com/lockstep-backup/lockstep/api"
	"github.com/lockstep-backup/lockstep/cli/internal/screen"
	"github.com/lockstep-backup/lockstep/cli/internal/shell"
)

// stdout is the target that is standard output.
const stdout = "-"

// stream writes a disk to standard output; all else goes to standard error.
func (a group) stream(ctx context.Context, cmd *cobra.Command, r api.StreamRequest) error {
	switch {
	case a.JSON():
		return shell.UsageError(cmd, "restore: standard output is the disk, and cannot be JSON as well")
	case a.Env.IsTerminal(a.Env.Stdout):
		return shell.WithHint(shell.UsageError(cmd, "restore: standard output is a terminal"), "send it to a file or a program")
	}
	return a.WithClient(ctx, func(c *api.Client) error {
		w := &counted{a: a, progress: screen.NewProgress(a.Env.Stderr, a.Env.IsTerminal(a.Env.Stderr) && a.Env.Getenv("TERM") != "dumb", a.Quiet)}
		out, err := c.RestoreTo(ctx, r, w, func(n int64) { w.total = n })
		w.progress.Close(err == nil)
		for _, text := range out.Warnings {
			a.Warnf("warning: %s", screen.CleanLine(text))
		}
		var problem *api.Error
		switch {
		case errors.As(err, &problem):
			return shell.OperationError("restore", err)
		case ctx.Err() != nil:
			return fmt.Errorf("restore: interrupted; %d of %d bytes were written to standard output", w.done, w.total)
		case err != nil:
			return err
		}
		a.Note(out.Exit)
		if out.Restore == nil {
			return nil
		}
		a.NotePoint(out.Restore.State)
		for _, d := range out.Restore.Disks {
			if len(d.UnreadRanges) > 0 {
				a.Warnf("warning: disk %s: %d ranges could not be read when the recovery point was made, and are zeroes", screen.CleanLine(d.ID), len(d.UnreadRanges))
			}
			a.Sayf("recovery point %s (%s): disk %s is written, %s, all of it verified", screen.CleanLine(out.Restore.Point),
				screen.CleanLine(out.Restore.State), screen.CleanLine(d.ID), screen.Size(d.SizeBytes))
		}
		for _, k := range out.Restore.Keys {
			if len(k.Opens) == 0 {
				a.Warnf("warning: %s/%s: no secret in custody is proven to open it (%s)", screen.CleanLine(k.Disk), screen.CleanLine(k.Volume), screen.CleanLine(k.State))
			}
		}
		return nil
	})
}

// counted is standard output, and shows how far it is.
type counted struct {
	a           group
	progress    *screen.Progress
	done, total int64
	shown       time.Time
}

// showEvery keeps the bar from costing more than the writing.
const showEvery = 100 * time.Millisecond

func (c *counted) Write(p []byte) (int, error) {
	n, err := c.a.Env.Stdout.Write(p)
	c.done += int64(n)
	if now := time.Now(); c.done == c.total || now.Sub(c.shown) > showEvery {
		c.shown = now
		_ = c.progress.Event(api.JobEvent{Kind: "progress", Phase: "write", Done: c.done, Total: c.total, Unit: "bytes"})
	}
	return n, err
}
