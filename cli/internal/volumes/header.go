package volumes

import (
	"context"
	"fmt"
	"io"
	"strings"

	"github.com/spf13/cobra"

	"github.com/lockstep-backup/lockstep/api"
	"github.com/lockstep-backup/lockstep/cli/internal/screen"
	"github.com/lockstep-backup/lockstep/cli/internal/shell"
)

func (a group) headerRestore() *cobra.Command {
	var r api.HeaderRestoreRequest
	cmd := a.Leaf(shell.Command{
		Use:   "restore POINT/DISK/VOLUME --to TARGET --backup FILE",
		Short: "Write a volume's header over the damaged one of a target",
		Long: `TARGET is the disk, or the partition or logical volume alone: an image file or a
block device, not in use. Its size tells which. The header of the recovery point
is written over what is there where that is damaged, erased or gone; the data
stay as they are. Written is nothing

  - over a sound header, another volume's, or one of another epoch, whose data
    have another volume key;
  - where of the pages behind the header that are compared none is as in the
    recovery point: it is another volume, or was written over as a whole;
  - of a header that was in the middle of a conversion.

--force lifts the first two. What was there goes to FILE before, each byte where
it was in the volume, and what was written is read back. The engine opens TARGET
and makes FILE: the server, where there is one.`,
		Example: "lockstep header restore web01@latest/vda/p2 --to /dev/vdb --backup vdb-header.old",
		Exits:   []int{api.ExitRefused, api.ExitTarget, api.ExitDamaged},
		Args:    cobra.ExactArgs(1),
		Run: func(ctx context.Context, cmd *cobra.Command, args []string) error {
			parts := strings.SplitN(args[0], "/", 3)
			switch {
			case len(parts) != 3 || parts[0] == "" || parts[1] == "" || parts[2] == "":
				return shell.UsageError(cmd, "header restore: %q is not of the form POINT/DISK/VOLUME", args[0])
			case r.Target == "":
				return shell.UsageError(cmd, "header restore: --to TARGET is missing")
			case r.Backup == "" && !r.DryRun:
				return shell.UsageError(cmd, "header restore: --backup FILE is missing: what is there now is kept in it")
			}
			for _, path := range []*string{&r.Target, &r.Backup} {
				if *path == "" {
					continue
				}
				var err error
				if *path, err = a.EnginePath(cmd, *path); err != nil {
					return err
				}
			}
			return a.WithClient(ctx, func(c *api.Client) error {
				done, err := c.RestoreHeader(ctx, parts[0], parts[1], parts[2], r)
				if err != nil {
					return shell.OperationError("header restore", err)
				}
				for _, text := range done.Warnings {
					a.Warnf("warning: %s", screen.CleanLine(text))
				}
				a.Emit(done, func(w io.Writer) {
					if !a.Quiet {
						restored(w, done, r)
					}
				})
				return nil
			})
		},
	})
	cmd.Flags().StringVar(&r.Target, "to", "", "`TARGET` with the damaged header")
	cmd.Flags().StringVar(&r.Backup, "backup", "", "new `FILE` for what is there now")
	cmd.Flags().BoolVar(&r.DryRun, "dry-run", false, "check, and write nothing")
	cmd.Flags().BoolVar(&r.Force, "force", false, "also over a sound header, and where nothing shows that it is this volume")
	shell.Repository(cmd, &r.Repository)
	return cmd
}

func restored(w io.Writer, d api.HeaderRestored, r api.HeaderRestoreRequest) {
	target, why := screen.CleanLine(d.Target), screen.CleanLine(d.Why)
	switch {
	case d.Written:
		_, _ = fmt.Fprintf(w, "header of %s/%s is on %s, %s, and reads back; before: %s\n", d.Disk, d.Volume, target, screen.Size(d.Bytes), why)
		_, _ = fmt.Fprintf(w, "what was there is in %s\n", screen.CleanLine(d.Backup))
	case r.DryRun && d.Found != "same":
		_, _ = fmt.Fprintf(w, "header of %s/%s would be written to %s, %s: %s\n", d.Disk, d.Volume, target, screen.Size(d.Bytes), why)
	default:
		_, _ = fmt.Fprintf(w, "nothing was written to %s: %s\n", target, why)
		return
	}
	_, _ = fmt.Fprintf(w, "%d of %d pages behind it are as in the recovery point\n", d.Equal, d.Samples)
}
