// Package exports is the commands that give a recovery point to other programs
// without restoring it, and keep or drop what they wrote.
package exports

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
	return []*cobra.Command{
		a.export(), a.mount(),
		a.Group("overlay", "What was written over an exported recovery point", shell.GroupDaily,
			"lockstep overlay show scratch.ovl", a.show(), a.commit(), a.discard()),
	}
}

// absolute makes paths absolute, as an error tells them.
func absolute(paths ...*string) error {
	for _, p := range paths {
		if *p == "" {
			continue
		}
		abs, err := filepath.Abs(*p)
		if err != nil {
			return err
		}
		*p = abs
	}
	return nil
}

// ready says that programs can read now.
func (a group) ready(e shell.Exported) {
	if e.Warnings == nil {
		e.Warnings = []string{}
	}
	a.WarnAll(e.Warnings)
	if a.JSON() {
		a.PrintJSON(e)
		return
	}
	for _, d := range e.Disks {
		at := d.URI
		if at == "" {
			at = d.File
		}
		_, _ = fmt.Fprintf(a.Env.Stdout, "%s\t%s\t%s\n", screen.CleanLine(d.ID), screen.Size(d.SizeBytes), screen.CleanLine(at))
	}
	for _, v := range e.Volumes {
		at := v.URI
		if at == "" {
			at = v.File
		}
		_, _ = fmt.Fprintf(a.Env.Stdout, "%s\t%s\t%s\t%s\n", screen.CleanLine(v.ID), screen.Size(v.SizeBytes), screen.CleanLine(at), screen.CleanLine(v.Class))
	}
	a.Sayf("recovery point %s of %s; interrupt (Ctrl-C) ends it", screen.CleanLine(e.Point), screen.CleanLine(e.Machine))
}

// ended: to be interrupted is how these commands end.
func ended(ctx context.Context, op string, err error) error {
	if err == nil || ctx.Err() != nil && errors.Is(err, context.Canceled) {
		return nil
	}
	return shell.OperationError(op, err)
}

// unlocking is what both say about --unlock.
const unlocking = `
With --unlock the plaintext of the encrypted volumes is there too, read-only, as
DISK-VOLUME.plain, logical volumes and partitions inside among them; it stays in
this process's memory. The secrets come from custody with --reason, each release
being in the audit log, or from --secret-file. What stays locked is a warning,
unless nothing opens.
`

// unlock reads the flags of --unlock.
func (a group) unlock(ctx context.Context, cmd *cobra.Command, f *shell.UnlockFlags) (*shell.Unlock, error) {
	if !f.Unlock {
		for _, name := range []string{"reason", "secret-file", "kind"} {
			if cmd.Flags().Changed(name) {
				return nil, shell.UsageError(cmd, "%s: --%s goes with --unlock", shell.Operation(cmd), name)
			}
		}
		return nil, nil
	}
	return f.Read(ctx, a.Run, cmd)
}

func addUnlock(cmd *cobra.Command, f *shell.UnlockFlags) {
	cmd.Flags().BoolVar(&f.Unlock, "unlock", false, "open encrypted volumes, and give their plaintext as well")
	f.Add(cmd)
}

func (a group) export() *cobra.Command {
	var o shell.ExportOptions
	var u shell.UnlockFlags
	cmd := a.Leaf(shell.Command{
		Use:   "export POINT --nbd unix:PATH|HOST:PORT [--overlay FILE] [--unlock]",
		Short: "Give a recovery point's disks to NBD clients, without restoring",
		Long: `Every disk is an export under its id; what clients read is the ciphertext,
verified. A unix socket is its owner's alone. Across a network it wants
--tls-certificate, a folder with server-cert.pem and server-key.pem; with
ca-cert.pem in it, clients must show a certificate signed by that.
With --overlay clients may write: into FILE, which is made or used again, never
into the repository. 'lockstep overlay' commits or discards it.
` + unlocking + `Plaintext goes over a unix socket, or to clients with a certificate; not into an
overlay's export.

It ends on interrupt or termination, and that is exit status 0.`,
		Example: "lockstep export web01@latest --nbd unix:/run/web01.nbd",
		Exits:   []int{api.ExitRefused, api.ExitWrongSecret, api.ExitDamaged, api.ExitTarget, api.ExitBusy},
		Args:    cobra.ExactArgs(1),
		Run: func(ctx context.Context, cmd *cobra.Command, args []string) (err error) {
			if err := a.Local(cmd); err != nil {
				return err
			}
			if o.Address == "" {
				return shell.UsageError(cmd, "export: where? --nbd unix:PATH or --nbd HOST:PORT")
			}
			if path, ok := strings.CutPrefix(o.Address, "unix:"); ok && path != "" {
				if err := absolute(&path); err != nil {
					return shell.OperationError("export", err)
				}
				o.Address = "unix:" + path
			}
			if err := absolute(&o.Overlay, &o.Certificates); err != nil {
				return shell.OperationError("export", err)
			}
			if a.Env.Export == nil {
				return errors.New("export: this program cannot export")
			}
			if u.Unlock && o.Overlay != "" {
				return shell.WithHint(shell.UsageError(cmd, "export: --unlock and --overlay do not go together: plaintext is read-only"),
					"export the overlay, and open what it gives with cryptsetup")
			}
			if o.Unlock, err = a.unlock(ctx, cmd, &u); err != nil {
				return err
			}
			defer o.Unlock.Wipe()
			o.DataDir, o.Point, o.Log, o.Ready = a.DataDir, args[0], a.Env.Stderr, a.ready
			return ended(ctx, "export", a.Env.Export(ctx, o))
		},
	})
	cmd.GroupID = shell.GroupDaily
	f := cmd.Flags()
	f.StringVar(&o.Address, "nbd", "", "`ADDRESS` to listen on: unix:PATH or HOST:PORT")
	f.StringVar(&o.Overlay, "overlay", "", "`FILE` that takes what clients write")
	f.StringVar(&o.Certificates, "tls-certificate", "", "`DIR` with the server's certificate and key; nobody is served without encryption then")
	shell.Repository(cmd, &o.Repository)
	f.BoolVar(&o.Insecure, "insecure", false, "listen on a network address without encryption")
	addUnlock(cmd, &u)
	return cmd
}

func (a group) mount() *cobra.Command {
	var o shell.MountOptions
	var u shell.UnlockFlags
	cmd := a.Leaf(shell.Command{
		Use:   "mount POINT DIR [--unlock]",
		Short: "Show a recovery point's disks as files, read-only",
		Long: `Each disk is a file DISK.raw in DIR, an empty folder; point.json says what it
is. What is read is the ciphertext, verified; holes are holes. Only who mounts
it can read it. Linux only, with FUSE (/dev/fuse; for others than root also
fusermount3 of the package fuse3).
` + unlocking + `
It ends on interrupt, termination or umount, and that is exit status 0.`,
		Example: "lockstep mount web01@latest /mnt/web01",
		Exits:   []int{api.ExitRefused, api.ExitWrongSecret, api.ExitDamaged, api.ExitTarget},
		Args:    cobra.ExactArgs(2),
		Run: func(ctx context.Context, cmd *cobra.Command, args []string) (err error) {
			if err := a.Local(cmd); err != nil {
				return err
			}
			o.Dir = args[1]
			if err := absolute(&o.Dir); err != nil {
				return shell.OperationError("mount", err)
			}
			if a.Env.Mount == nil {
				return errors.New("mount: this program cannot mount")
			}
			if o.Unlock, err = a.unlock(ctx, cmd, &u); err != nil {
				return err
			}
			defer o.Unlock.Wipe()
			o.DataDir, o.Point, o.Log, o.Ready = a.DataDir, args[0], a.Env.Stderr, a.ready
			return ended(ctx, "mount", a.Env.Mount(ctx, o))
		},
	})
	shell.Repository(cmd, &o.Repository)
	addUnlock(cmd, &u)
	cmd.GroupID = shell.GroupDaily
	return cmd
}

func (a group) look(ctx context.Context, cmd *cobra.Command, file string) (shell.Overlay, error) {
	if err := a.Local(cmd); err != nil {
		return shell.Overlay{}, err
	}
	if err := absolute(&file); err != nil {
		return shell.Overlay{}, err
	}
	if a.Env.Overlay == nil {
		return shell.Overlay{}, errors.New("this program knows no overlays")
	}
	return a.Env.Overlay(ctx, shell.OverlayOptions{DataDir: a.DataDir, File: file})
}

func (a group) show() *cobra.Command {
	return a.Leaf(shell.Command{
		Use:     "show FILE",
		Short:   "Show what an overlay belongs to, and how much was written",
		Example: "lockstep overlay show scratch.ovl",
		Exits:   []int{api.ExitRefused, api.ExitDamaged, api.ExitBusy},
		Args:    cobra.ExactArgs(1),
		Run: func(ctx context.Context, cmd *cobra.Command, args []string) error {
			o, err := a.look(ctx, cmd, args[0])
			if err != nil {
				return shell.OperationError("overlay show", err)
			}
			a.Emit(o, func(w io.Writer) {
				var f screen.Facts
				f.Add("machine", o.Machine)
				f.Add("recovery point", o.Point)
				f.Add("of", screen.Stamp(o.Time))
				for _, d := range o.Disks {
					f.Add("disk", fmt.Sprintf("%s: %s of %s written", d.ID, screen.Size(d.WrittenBytes), screen.Size(d.SizeBytes)))
				}
				f.Print(w, "", a.Style)
			})
			return nil
		},
	})
}

func (a group) commit() *cobra.Command {
	var description string
	cmd := a.Leaf(shell.Command{
		Use:   "commit FILE [--description TEXT]",
		Short: "Make a recovery point of what was written over an exported one",
		Long: `It becomes the machine's newest recovery point, inspected and proven like any
other. Where the exported one is still the newest, only what was written is
read; else everything is compared. The overlay stays until it is discarded.
The source of the machine is not touched: its next backup stores what differs.`,
		Example: "lockstep overlay commit scratch.ovl --description 'repaired boot loader'",
		Exits:   []int{api.ExitNotProven, api.ExitRefused, api.ExitDamaged, api.ExitBusy},
		Args:    cobra.ExactArgs(1),
		Run: func(ctx context.Context, cmd *cobra.Command, args []string) error {
			o, err := a.look(ctx, cmd, args[0])
			if err != nil {
				return shell.OperationError("overlay commit", err)
			}
			c, closeFn, err := a.Env.Connect(ctx, shell.Connection{DataDir: a.DataDir, Overlay: o.File})
			if err != nil {
				return shell.OperationError("overlay commit", err)
			}
			r := api.BackupRequest{Machine: o.Machine, Description: "written over recovery point " + o.Point}
			if description != "" {
				r.Description = description + " (" + r.Description + ")"
			}
			j, err := a.RunJob(ctx, c, "overlay commit", "no recovery point was made, the overlay is as it was",
				func() (api.Job, error) { return c.Backup(ctx, r) })
			if closeFn != nil {
				err = errors.Join(err, closeFn())
			}
			if j.Backup == nil {
				if err == nil {
					err = errors.New("overlay commit: the job ended without a recovery point")
				}
				return err
			}
			p := *j.Backup
			a.Emit(p, func(w io.Writer) {
				if a.Quiet {
					return
				}
				_, _ = fmt.Fprintf(w, "recovery point %s of %s is %s\n", screen.CleanLine(p.ID), screen.CleanLine(p.Machine), a.PaintState(p.State))
				var f screen.Facts
				f.Add("transfer", fmt.Sprintf("%s: %s read, %s changed, %s stored, in %s", p.Transfer,
					screen.Size(p.ReadBytes), screen.Size(p.ChangedBytes), screen.Size(p.StoredBytes), screen.Duration(p.DurationSeconds)))
				f.Add("description", p.Description)
				f.Print(w, "  ", a.Style)
			})
			switch p.State {
			case api.StateProven, api.StatePlain:
			default:
				a.Warnf("warning: recovery point %s is %s\nhint: 'lockstep point show %s' says why", screen.CleanLine(p.ID), screen.CleanLine(p.State), screen.CleanLine(p.ID))
			}
			return err
		},
	})
	cmd.Flags().StringVar(&description, "description", "", "`TEXT` to find it by")
	return cmd
}

func (a group) discard() *cobra.Command {
	return a.Leaf(shell.Command{
		Use:     "discard FILE",
		Short:   "Throw away what was written over an exported recovery point",
		Long:    `The file is removed, if it is an overlay and no export uses it.`,
		Example: "lockstep overlay discard scratch.ovl",
		Exits:   []int{api.ExitRefused, api.ExitDamaged, api.ExitBusy},
		Args:    cobra.ExactArgs(1),
		Run: func(ctx context.Context, cmd *cobra.Command, args []string) error {
			if err := a.Local(cmd); err != nil {
				return err
			}
			file := args[0]
			if err := absolute(&file); err != nil {
				return shell.OperationError("overlay discard", err)
			}
			if a.Env.DiscardOverlay == nil {
				return errors.New("overlay discard: this program knows no overlays")
			}
			if err := a.Env.DiscardOverlay(ctx, shell.OverlayOptions{DataDir: a.DataDir, File: file}); err != nil {
				return shell.OperationError("overlay discard", err)
			}
			a.Emit(map[string]string{"file": file}, func(io.Writer) { a.Sayf("%s is discarded", screen.CleanLine(file)) })
			return nil
		},
	})
}
