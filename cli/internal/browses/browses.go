// Package browses is the commands that read files out of a recovery point.
package browses

import (
	"context"
	"errors"
	"fmt"
	"io"
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"

	"github.com/lockstep-backup/lockstep/api"
	"github.com/lockstep-backup/lockstep/cli/internal/screen"
	"github.com/lockstep-backup/lockstep/cli/internal/shell"
)

type group struct{ *shell.Run }

// Commands are the commands of this group.
func Commands(r *shell.Run) []*cobra.Command {
	a := group{r}
	return []*cobra.Command{a.Group("browse", "Files out of a recovery point, without restoring it", shell.GroupDaily,
		"lockstep browse ls web01@latest/vda/p2:/etc --reason 'a lost file'", a.ls(), a.find(), a.cat(), a.get(), a.tar())}
}

// about is what all of them say.
const about = `
PATH begins at the root of the file system in VOLUME: a partition (p2), the whole
disk (disk), or a logical volume (vg-lv), inside an encrypted volume too; a wrong
name is answered with those that are there. 'lockstep drill' lists them as well.
ext2/3/4, XFS, btrfs, NTFS, FAT and exFAT are read in user space, without a mount. What
of a journal is applied, and what is not, is said on standard error.
Encrypted volumes are opened by secrets from custody with --reason, each release
being in the audit log, or from --secret-file.
`

var exits = []int{api.ExitRefused, api.ExitWrongSecret, api.ExitDamaged, api.ExitTarget}

// place takes POINT/DISK/VOLUME:PATH apart.
func place(s string, o *shell.BrowseOptions) bool {
	parts := strings.SplitN(s, "/", 3)
	if len(parts) < 3 {
		return false
	}
	volume, path, ok := strings.Cut(parts[2], ":")
	if !ok || path == "" {
		path = "/"
	}
	o.Point, o.Disk, o.Volume, o.Path = parts[0], parts[1], volume, path
	return o.Point != "" && o.Disk != "" && o.Volume != "" && !strings.Contains(o.Volume, "/")
}

// run reads the flags and does it.
func (a group) run(ctx context.Context, cmd *cobra.Command, where string, u *shell.UnlockFlags, o shell.BrowseOptions) (shell.BrowseResult, error) {
	var none shell.BrowseResult
	if err := a.Local(cmd); err != nil {
		return none, err
	}
	op := shell.Operation(cmd)
	if !place(where, &o) {
		return none, shell.WithHint(shell.UsageError(cmd, "%s: %q is not of the form POINT/DISK/VOLUME:PATH", op, where), "for example web01@latest/vda/p2:/etc/passwd")
	}
	if a.Env.Browse == nil {
		return none, errors.New(op + ": this program cannot browse")
	}
	if cmd.Flags().Changed("reason") || cmd.Flags().Changed("secret-file") || cmd.Flags().Changed("kind") {
		unlock, err := u.Read(ctx, a.Run, cmd)
		if err != nil {
			return none, err
		}
		o.Unlock = unlock
	}
	defer o.Unlock.Wipe()
	o.DataDir, o.Log, o.Opened = a.DataDir, a.Env.Stderr, a.opened
	r, err := a.Env.Browse(ctx, o)
	if err != nil {
		return r, shell.OperationError(op, err)
	}
	for _, p := range r.Problems {
		a.Warnf("not read: %s", screen.CleanLine(p))
	}
	return r, nil
}

// opened says how it is read.
func (a group) opened(b shell.Browsed) {
	a.WarnAll(b.Warnings)
	how := "it was closed cleanly"
	switch {
	case b.Replayed:
		how = "its journal is applied, in memory"
	case b.Dirty:
		how = "it was in use"
	}
	a.Sayf("%s of recovery point %s of %s, read in user space; %s", screen.CleanLine(b.Class), screen.CleanLine(b.Point), screen.CleanLine(b.Machine), how)
}

// incomplete is the error of what was read in part.
func incomplete(op string, r shell.BrowseResult) error {
	if len(r.Problems) == 0 {
		return nil
	}
	return &api.Error{
		Title: "damaged", Exit: api.ExitDamaged, Detail: fmt.Sprintf("%s: %d files could not be read, or in part", op, len(r.Problems)),
		Hint: "'lockstep verify' says whether the recovery point is whole; where the file system was in use or is damaged, export it with --unlock and have its own tools repair a copy",
	}
}

func (a group) leaf(o *shell.BrowseOptions, u *shell.UnlockFlags, c shell.Command) *cobra.Command {
	c.Long += about
	c.Exits = exits
	cmd := a.Leaf(c)
	shell.Repository(cmd, &o.Repository)
	u.Add(cmd)
	return cmd
}

// line is a file as ls -l shows it.
func (a group) line(f shell.BrowsedFile) string {
	s := fmt.Sprintf("%s %3d %5d %5d %12d %s %s", f.Mode, f.Links, f.UID, f.GID, f.SizeBytes, f.Modified.UTC().Format("2006-01-02 15:04:05"), screen.CleanLine(f.Path))
	if f.Target != "" {
		s += " -> " + screen.CleanLine(f.Target)
	}
	return s
}

// list is ls and find: files as they come, or one array of them.
func (a group) list(ctx context.Context, cmd *cobra.Command, where string, u *shell.UnlockFlags, o shell.BrowseOptions, line func(shell.BrowsedFile) string) error {
	var all []shell.BrowsedFile
	o.File = func(f shell.BrowsedFile) error {
		if a.JSON() {
			all = append(all, f)
			return nil
		}
		_, err := fmt.Fprintln(a.Env.Stdout, line(f))
		return err
	}
	r, err := a.run(ctx, cmd, where, u, o)
	if err != nil {
		return err
	}
	if a.JSON() {
		shell.EmitList(a.Run, all, nil)
	}
	return incomplete(shell.Operation(cmd), r)
}

func (a group) ls() *cobra.Command {
	o := shell.BrowseOptions{Action: "ls"}
	var u shell.UnlockFlags
	return a.leaf(&o, &u, shell.Command{
		Use: "ls POINT/DISK/VOLUME:PATH", Short: "List a directory", Example: "lockstep browse ls web01@latest/vda/p2:/etc --reason 'a lost file'",
		Args: cobra.ExactArgs(1),
		Run: func(ctx context.Context, cmd *cobra.Command, args []string) error {
			return a.list(ctx, cmd, args[0], &u, o, a.line)
		},
	})
}

func (a group) find() *cobra.Command {
	o := shell.BrowseOptions{Action: "find"}
	var u shell.UnlockFlags
	return a.leaf(&o, &u, shell.Command{
		Use: "find POINT/DISK/VOLUME:PATH PATTERN", Short: "Find files by name",
		Long: `PATTERN (with *, ?, [a-z]) is matched with names, or with whole paths if it has a
slash.
`,
		Example: "lockstep browse find web01@latest/vda/p2:/home '*.odt' --reason 'a lost file'",
		Args:    cobra.ExactArgs(2),
		Run: func(ctx context.Context, cmd *cobra.Command, args []string) error {
			o.Pattern = args[1]
			return a.list(ctx, cmd, args[0], &u, o, func(f shell.BrowsedFile) string { return screen.CleanLine(f.Path) })
		},
	})
}

// bytesOnly refuses -o json where standard output is content.
func (a group) bytesOnly(cmd *cobra.Command, instead string) error {
	if !a.JSON() {
		return nil
	}
	return shell.WithHint(shell.UsageError(cmd, "%s: what it writes is not JSON", shell.Operation(cmd)), instead)
}

func (a group) cat() *cobra.Command {
	o := shell.BrowseOptions{Action: "cat"}
	var u shell.UnlockFlags
	return a.leaf(&o, &u, shell.Command{
		Use: "cat POINT/DISK/VOLUME:PATH", Short: "Write a file to standard output",
		Long: `On NTFS PATH may end with :NAME, a named stream.
`,
		Example: "lockstep browse cat web01@latest/vda/p2:/etc/fstab --reason 'a lost file'",
		Args:    cobra.ExactArgs(1),
		Run: func(ctx context.Context, cmd *cobra.Command, args []string) error {
			if err := a.bytesOnly(cmd, "'lockstep browse get' writes a file, and says so in JSON"); err != nil {
				return err
			}
			o.Out = a.Env.Stdout
			_, err := a.run(ctx, cmd, args[0], &u, o)
			return err
		},
	})
}

func (a group) get() *cobra.Command {
	o := shell.BrowseOptions{Action: "get"}
	var u shell.UnlockFlags
	cmd := a.leaf(&o, &u, shell.Command{
		Use: "get POINT/DISK/VOLUME:PATH [--to DIR]", Short: "Copy a file or a tree to this machine",
		Long: `It is written into DIR under its own name, with modes, times, holes, symbolic and
hard links; with owners and set-user-ID bits only with --owners, as root. Access
lists and other extended attributes are in 'lockstep browse tar'. Nothing is
written outside of DIR, and nothing over what is there unless --force is given.
`,
		Example: "lockstep browse get web01@latest/vda/p2:/etc/fstab --to /tmp --reason 'a lost file'",
		Args:    cobra.ExactArgs(1),
		Run: func(ctx context.Context, cmd *cobra.Command, args []string) error {
			dir, err := filepath.Abs(o.Dir)
			if err != nil {
				return err
			}
			o.Dir = dir
			r, err := a.run(ctx, cmd, args[0], &u, o)
			if err != nil {
				return err
			}
			a.Emit(r, func(io.Writer) {
				a.Sayf("%s: %d files, %d directories, %d links, %s", screen.CleanLine(r.Written), r.Files, r.Dirs, r.Links, screen.Size(r.Bytes))
			})
			return incomplete(shell.Operation(cmd), r)
		},
	})
	f := cmd.Flags()
	f.StringVar(&o.Dir, "to", ".", "`DIR` to write into")
	f.BoolVar(&o.Force, "force", false, "write over files that are there")
	f.BoolVar(&o.Owners, "owners", false, "give files to their owners, with all mode bits")
	return cmd
}

func (a group) tar() *cobra.Command {
	o := shell.BrowseOptions{Action: "tar"}
	var u shell.UnlockFlags
	return a.leaf(&o, &u, shell.Command{
		Use: "tar POINT/DISK/VOLUME:PATH", Short: "Write a tree to standard output as a tar stream",
		Long: `It has owners, modes, times, links, devices and extended attributes (PAX); 'tar
--xattrs --xattrs-include=* --numeric-owner -xpf -' restores them. Holes are
zeros in it.
`,
		Example: "lockstep browse tar web01@latest/vda/p2:/etc --reason 'a lost file'",
		Args:    cobra.ExactArgs(1),
		Run: func(ctx context.Context, cmd *cobra.Command, args []string) error {
			if err := a.bytesOnly(cmd, "'lockstep browse get' writes a tree, and says so in JSON"); err != nil {
				return err
			}
			if a.Env.IsTerminal(a.Env.Stdout) {
				return shell.WithHint(shell.UsageError(cmd, "browse tar: a tar stream does not go to a terminal"), "lockstep browse tar … > FILE")
			}
			o.Out = a.Env.Stdout
			r, err := a.run(ctx, cmd, args[0], &u, o)
			if err != nil {
				return err
			}
			a.Sayf("%d files, %d directories, %d links, %s", r.Files, r.Dirs, r.Links, screen.Size(r.Bytes))
			return incomplete(shell.Operation(cmd), r)
		},
	})
}
