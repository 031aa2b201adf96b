// Package imports is the command that makes recovery points of images that
// exist already.
package imports

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/lockstep-backup/lockstep/api"
	"github.com/lockstep-backup/lockstep/cli/internal/screen"
	"github.com/lockstep-backup/lockstep/cli/internal/shell"
)

type group struct{ *shell.Run }

// Commands are the commands of this group.
func Commands(r *shell.Run) []*cobra.Command {
	a := group{r}
	return []*cobra.Command{a.importCommand()}
}

func (a group) importCommand() *cobra.Command {
	var r api.ImportRequest
	var at string
	var disks []string
	cmd := a.Leaf(shell.Command{
		Use:   "import NAME {--time T --disk ID=FILE [--disk …] | --directory DIR [--time-from FROM]}",
		Short: "Make recovery points of existing images, with their original time",
		Long: `FILE is raw, qcow2 with what it stands on, VMDK, VHD or VHDX, as its name or
--format says; its content is never asked, for a guest could have written it.
Other formats than raw are read through qemu-nbd. What an image names must lie
in its own folder, or in one that --allow-backing names.

--directory imports each image of a folder, in order of time: the time at which
the file was last written, or what name:LAYOUT finds in its name (%Y %m %d %H %M
%S in UTC, or %s; * is anything). What was imported before is passed over, so
the same command goes on after an interruption; and so, and named, is what is
older than the newest recovery point of NAME.

History comes first: a single image that is older than a recovery point of NAME
is refused, because what is written last is the newest, and the next backup builds
on it. Give history of a machine that is backed up already a name of its own.
NAME is made where there is none. The recovery points are proven like others;
'secret add' later opens old ones.`,
		Example: "lockstep import web01-history --directory /srv/old/web01 --time-from name:web01-%Y-%m-%d --dry-run",
		Exits:   []int{api.ExitNotProven, api.ExitRefused, api.ExitDamaged, api.ExitBusy},
		Args:    cobra.ExactArgs(1),
		Run: func(ctx context.Context, cmd *cobra.Command, args []string) error {
			r.Machine = args[0]
			if err := a.read(cmd, &r, at, disks); err != nil {
				return err
			}
			return a.WithClient(ctx, func(c *api.Client) error {
				j, err := a.RunJob(ctx, c, "import", "what was imported stays",
					func() (api.Job, error) { return c.Import(ctx, r) })
				if j.Import != nil {
					a.Emit(j.Import, func(w io.Writer) { a.print(w, *j.Import) })
				} else if err == nil {
					err = errors.New("import: the job ended without a result")
				}
				return err
			})
		},
	})
	cmd.GroupID = shell.GroupDaily
	f := cmd.Flags()
	f.StringVar(&at, "time", "", "`TIME` that the images show, RFC 3339")
	f.StringArrayVar(&disks, "disk", nil, "a disk and its image, `ID=FILE`, once for each; with --directory the ID alone (default vda)")
	f.StringVar(&r.Directory, "directory", "", "`DIR` with images of one disk, one for each time")
	f.StringVar(&r.TimeFrom, "time-from", "", "mtime or name:LAYOUT, `FROM` which a file's time comes (default mtime)")
	f.StringVar(&r.Format, "format", "", "`FORMAT` of the images, whatever their names say: raw, qcow2, vmdk, vpc (VHD), vhdx")
	f.StringArrayVar(&r.AllowBacking, "allow-backing", nil, "`DIR` in which files may lie that an image names; once for each")
	f.StringVar(&r.Consistency, "consistency", "", "`LEVEL` of the images: unknown (default), none, crash-consistent, file-system-consistent, application-consistent")
	f.StringVar(&r.Description, "description", "", "`TEXT` to find them by")
	f.BoolVar(&r.DryRun, "dry-run", false, "look at the images, say what would be imported, and store nothing")
	shell.Rates(cmd, &r.Rates)
	return cmd
}

// read puts the flags together.
func (a group) read(cmd *cobra.Command, r *api.ImportRequest, at string, disks []string) (err error) {
	for i, dir := range r.AllowBacking {
		if r.AllowBacking[i], err = a.EnginePath(cmd, dir); err != nil {
			return err
		}
	}
	if r.Directory != "" {
		switch {
		case at != "":
			return shell.UsageError(cmd, "import: --time is for --disk ID=FILE; in a folder --time-from says where times come from")
		case len(disks) > 1 || len(disks) == 1 && strings.Contains(disks[0], "="):
			return shell.UsageError(cmd, "import: a folder holds images of one disk; --disk is its id alone")
		case len(disks) == 1:
			r.Disk = disks[0]
		}
		r.Directory, err = a.EnginePath(cmd, r.Directory)
		return err
	}
	switch {
	case len(disks) == 0:
		return shell.UsageError(cmd, "import: name --disk ID=FILE and --time, or a --directory")
	case at == "":
		return shell.UsageError(cmd, "import: --time TIME is missing: when were the images made?")
	case r.TimeFrom != "":
		return shell.UsageError(cmd, "import: --time-from is for --directory")
	}
	t, err := time.Parse(time.RFC3339Nano, at)
	if err != nil {
		return shell.UsageError(cmd, "import: %q is not a time such as 2019-03-31T02:15:00Z", at)
	}
	r.Time = &t
	seen := map[string]bool{}
	for _, s := range disks {
		id, file, found := strings.Cut(s, "=")
		if !found || id == "" || file == "" {
			return shell.UsageError(cmd, "import: disk %q is not of the form ID=FILE", s)
		}
		if seen[id] {
			return shell.UsageError(cmd, "import: disk %s is named twice", id)
		}
		seen[id] = true
		if file, err = a.EnginePath(cmd, file); err != nil {
			return err
		}
		r.Disks = append(r.Disks, api.ImportDisk{ID: id, File: file})
	}
	return nil
}

func (a group) print(w io.Writer, r api.ImportResult) {
	t := screen.NewTable("", "TIME", "DISK", "SIZE", "RECOVERY POINT", "STATE", "IMAGE")
	imported, existing := 0, 0
	for _, it := range r.Items {
		state := screen.Painted(it.State, screen.StateColour(it.State))
		switch {
		case it.Existing:
			existing++
			state = screen.Text("imported before")
		case r.DryRun:
			state = screen.Text("would be imported")
		default:
			imported++
		}
		point := it.Point
		if len(point) > 12 {
			point = point[:12]
		}
		when, size := screen.Stamp(it.Time), screen.Size(it.SizeBytes)
		for _, d := range it.Disks {
			t.Add(screen.Text(when), screen.Text(d.ID), screen.Number(size), screen.Text(point), state, screen.Text(d.File))
			when, size, point, state = "", "", "", screen.Text("")
		}
	}
	if len(r.Items) > 0 {
		t.Print(w, a.Style)
	}
	if len(r.PassedOver) > 0 {
		_, _ = fmt.Fprintf(w, "\npassed over, for they are no images or show no time: %s\n", screen.CleanLine(strings.Join(r.PassedOver, ", ")))
	}
	if len(r.Older) > 0 {
		_, _ = fmt.Fprintf(w, "\nolder than the newest recovery point, passed over: %s\n", screen.CleanLine(strings.Join(r.Older, ", ")))
	}
	if a.Quiet {
		return
	}
	switch {
	case r.DryRun:
		_, _ = fmt.Fprintf(w, "\n%s would be imported into %s; %d there already\n", screen.Count(len(r.Items)-existing, "image", "images"), screen.CleanLine(r.Machine), existing)
	default:
		_, _ = fmt.Fprintf(w, "\n%s imported into %s; %d there already\n", screen.Count(imported, "image is", "images are"), screen.CleanLine(r.Machine), existing)
	}
}
