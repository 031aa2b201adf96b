// Package secrets is the commands about secrets in custody.
package secrets

import (
	"context"
	"fmt"
	"io"
	"os"
	"strings"

	"github.com/spf13/cobra"

	"github.com/lockstep-backup/lockstep/api"
	"github.com/lockstep-backup/lockstep/cli/internal/files"
	"github.com/lockstep-backup/lockstep/cli/internal/screen"
	"github.com/lockstep-backup/lockstep/cli/internal/shell"
)

type group struct{ *shell.Run }

// Commands are the commands of this group.
func Commands(r *shell.Run) []*cobra.Command {
	a := group{r}
	return []*cobra.Command{a.secretCommand()}
}

var secretKinds = shell.SecretKinds

func (a group) secretCommand() *cobra.Command {
	return a.Group("secret", "Secrets in custody", shell.GroupKeys, "lockstep secret list web01",
		a.secretAdd(), a.secretDerive(), a.secretList(), a.secretShow(), a.secretVersions(),
		a.secretChange("disable", "Disable a secret or one version of it",
			"A disabled version is kept and given to nobody, until it is enabled again;\nrecovery points that have nothing else are at risk.",
			"web01@1 --reason 'somebody may have seen it'",
			(*api.Client).DisableSecret),
		a.secretChange("enable", "Enable what was disabled", "", "web01@1 --reason 'still used by db02'", (*api.Client).EnableSecret),
		a.secretChange("destroy", "Destroy a version that no recovery point needs",
			"A version that a recovery point holds is not destroyed: the exit status is 4, and\nthe recovery points are listed. Deleted recovery points leave sealed copies in the\nrepository, which the recovery kit opens; they are named.",
			"web01@2 --reason 'never used'",
			(*api.Client).DestroySecret),
		a.secretRelease())
}

func (a group) secretList() *cobra.Command {
	return a.Leaf(shell.Command{
		Use: "list [NAME]", Short: "List secrets, without their bytes",
		Example: "lockstep secret list",
		Exits:   []int{api.ExitRefused},
		Args:    cobra.MaximumNArgs(1),
		Run: func(ctx context.Context, _ *cobra.Command, args []string) error {
			return a.WithClient(ctx, func(c *api.Client) error {
				secrets, err := c.Secrets(ctx, shell.First(args))
				if err != nil {
					return shell.OperationError("secret list", err)
				}
				shell.EmitList(a.Run, secrets, func(w io.Writer) {
					if len(secrets) == 0 {
						a.Sayf("no secret is in custody")
						return
					}
					t := screen.NewTable("", "SECRET", "MACHINE", "VOLUME", "KIND", "VERSION", "STATE", "CREATED", "RECOVERY POINTS")
					for _, s := range secrets {
						id, machine, volume, kind := s.ID, s.Machine, s.Volume, s.Kind
						for _, v := range s.Versions {
							t.Add(screen.Text(id), screen.Text(machine), screen.Text(volume), screen.Text(kind), screen.Number(fmt.Sprint(v.Version)),
								screen.Painted(v.State, secretColour(v.State)), screen.Text(screen.Stamp(v.Created)), screen.Number(fmt.Sprint(len(v.Holds))))
							id, machine, volume, kind = "", "", "", ""
						}
						if len(s.Versions) == 0 {
							t.Add(screen.Text(id), screen.Text(machine), screen.Text(volume), screen.Text(kind))
						}
					}
					t.Print(w, a.Style)
				})
				return nil
			})
		},
	})
}

func secretColour(state string) string {
	switch state {
	case "active":
		return screen.Green
	case "compromised":
		return screen.Alarm
	case "destroyed":
		return screen.Dim
	default:
		return screen.Plain
	}
}

func (a group) secretShow() *cobra.Command {
	return a.Leaf(shell.Command{
		Use: "show SECRET", Short: "Show a secret, its versions and the recovery points that need them",
		Long:    "SECRET is an id, or a machine's name where it has one secret. The secret's bytes\nare never shown; 'secret release' hands them out.",
		Example: "lockstep secret show web01",
		Exits:   []int{api.ExitRefused},
		Args:    cobra.ExactArgs(1),
		Run: func(ctx context.Context, _ *cobra.Command, args []string) error {
			return a.WithClient(ctx, func(c *api.Client) error {
				s, err := c.Secret(ctx, args[0])
				if err != nil {
					return shell.OperationError("secret show", err)
				}
				a.Emit(s, func(w io.Writer) { a.printSecret(w, s) })
				return nil
			})
		},
	})
}

func (a group) printSecret(w io.Writer, s api.Secret) {
	_, _ = fmt.Fprintln(w, a.Style.Paint(screen.Bold, screen.CleanLine(s.ID)))
	var f screen.Facts
	f.Add("kind", s.Kind)
	f.Add("machine", s.Machine)
	f.Add("volume", s.Volume)
	f.Print(w, "  ", a.Style)
	for _, v := range s.Versions {
		_, _ = fmt.Fprintf(w, "\n  version %d  %s\n", v.Version, a.Style.Paint(secretColour(v.State), screen.CleanLine(v.State)))
		var f screen.Facts
		f.Add("created", screen.Stamp(v.Created))
		f.Add("expires", screen.StampOr(v.Expires, ""))
		for _, h := range v.History {
			line := screen.Stamp(h.At) + "  " + h.State
			if h.Reason != "" {
				line += ": " + h.Reason
			}
			f.Add("since", line)
		}
		f.Print(w, "    ", a.Style)
		if len(v.Holds) == 0 {
			_, _ = fmt.Fprintln(w, "    no recovery point needs it")
			continue
		}
		t := screen.NewTable("    ", "NEEDED BY", "MACHINE", "SINCE", "REPOSITORY")
		for _, h := range v.Holds {
			t.Add(screen.Text(h.Point), screen.Text(h.Machine), screen.Text(screen.Stamp(h.Since)), screen.Text(h.Repository))
		}
		t.Print(w, a.Style)
	}
}

func (a group) secretVersions() *cobra.Command {
	return a.Leaf(shell.Command{
		Use: "versions SECRET", Short: "List the versions of a secret",
		Example: "lockstep secret versions web01",
		Exits:   []int{api.ExitRefused},
		Args:    cobra.ExactArgs(1),
		Run: func(ctx context.Context, _ *cobra.Command, args []string) error {
			return a.WithClient(ctx, func(c *api.Client) error {
				s, err := c.Secret(ctx, args[0])
				if err != nil {
					return shell.OperationError("secret versions", err)
				}
				shell.EmitList(a.Run, s.Versions, func(w io.Writer) {
					t := screen.NewTable("", "VERSION", "STATE", "CREATED", "EXPIRES", "RECOVERY POINTS")
					for _, v := range s.Versions {
						ref := v.Ref
						if ref == "" {
							ref = fmt.Sprintf("%s@%d", s.ID, v.Version)
						}
						t.Add(screen.Text(ref), screen.Painted(v.State, secretColour(v.State)), screen.Text(screen.Stamp(v.Created)),
							screen.Text(screen.StampOr(v.Expires, "–")), screen.Number(fmt.Sprint(len(v.Holds))))
					}
					t.Print(w, a.Style)
				})
				return nil
			})
		},
	})
}

// secretChange is disable, enable and destroy.
func (a group) secretChange(verb, short, long, example string, do func(*api.Client, context.Context, string, string) (api.Secret, error)) *cobra.Command {
	var reason string
	cmd := a.Leaf(shell.Command{
		Use: verb + " SECRET[@VERSION] [--reason TEXT]", Short: short, Long: long,
		Example: "lockstep secret " + verb + " " + example,
		Exits:   []int{api.ExitRefused},
		Args:    cobra.ExactArgs(1),
		Run: func(ctx context.Context, _ *cobra.Command, args []string) error {
			return a.WithClient(ctx, func(c *api.Client) error {
				s, err := do(c, ctx, args[0], reason)
				if err != nil {
					return shell.OperationError("secret "+verb, err)
				}
				a.Emit(s, func(w io.Writer) {
					if a.Quiet {
						return
					}
					for _, v := range s.Versions {
						_, _ = fmt.Fprintf(w, "secret %s@%d is %s\n", screen.CleanLine(s.ID), v.Version, screen.CleanLine(v.State))
					}
				})
				if verb == "destroy" {
					a.warnCopies(s.SealedCopies)
				}
				return nil
			})
		},
	})
	cmd.Flags().StringVar(&reason, "reason", "no reason given", "why, `TEXT`, for the audit log")
	return cmd
}

// warnCopies says that destroyed is not gone: deleted recovery points leave
// their key packages in the repository.
func (a group) warnCopies(copies []api.SealedCopy) {
	if len(copies) == 0 {
		return
	}
	a.Warnf("warning: sealed copies remain in the key packages of deleted recovery points until space is reclaimed; the recovery kit opens them:")
	for _, c := range copies {
		a.Warnf("  - %s, recovery point %s of %s: %s", screen.CleanLine(c.Ref), screen.CleanLine(c.Point), screen.CleanLine(c.Machine), screen.CleanLine(c.Object))
	}
}

func (a group) secretRelease() *cobra.Command {
	var reason, to string
	cmd := a.Leaf(shell.Command{
		Use:   "release SECRET[@VERSION] --reason TEXT [--to FILE]",
		Short: "Hand a secret out",
		Long: `The secret goes into a new file with mode 0600, never over another one, or to
standard output, byte for byte: if that is no terminal, or --to - says so. The
release and its reason are in the audit log for ever.`,
		Example: "lockstep secret release web01@1 --reason 'restore of March' --to web01.key",
		Exits:   []int{api.ExitRefused, api.ExitTarget},
		Args:    cobra.ExactArgs(1),
		Run: func(ctx context.Context, cmd *cobra.Command, args []string) error {
			if strings.TrimSpace(reason) == "" {
				return shell.UsageError(cmd, "secret release: --reason TEXT is missing; it goes into the audit log")
			}
			if to == "" && a.Env.IsTerminal(a.Env.Stdout) {
				return shell.WithHint(shell.UsageError(cmd, "secret release: standard output is a terminal, which would show the secret"),
					"--to FILE makes a file of it; --to - shows it all the same")
			}
			// Found out before the release, which is audited and cannot be undone.
			if to != "" && to != "-" {
				if _, err := os.Lstat(to); err == nil {
					return fmt.Errorf("secret release: %w", &os.PathError{Op: "create", Path: to, Err: os.ErrExist})
				}
			}
			return a.WithClient(ctx, func(c *api.Client) error {
				r, err := c.ReleaseSecret(ctx, args[0], reason)
				if err != nil {
					return shell.OperationError("secret release", err)
				}
				defer clear(r.Data)
				return a.handOut(r, to)
			})
		},
	})
	cmd.Flags().StringVar(&reason, "reason", "", "why, `TEXT`, for the audit log")
	cmd.Flags().StringVar(&to, "to", "", "`FILE` to make, - for standard output")
	return cmd
}

func (a group) handOut(r api.Released, to string) error {
	if to == "" || to == "-" {
		if a.JSON() {
			a.PrintJSON(r)
			return nil
		}
		if _, err := a.Env.Stdout.Write(r.Data); err != nil {
			return fmt.Errorf("secret release: %w", err)
		}
		return nil
	}
	err := files.CreateNew(to, func(w io.Writer) error {
		_, err := w.Write(r.Data)
		return err
	})
	if err != nil {
		return fmt.Errorf("secret release: %w", err)
	}
	a.Done(map[string]any{"ref": r.Ref, "kind": r.Kind, "to": to, "size_bytes": len(r.Data)},
		"secret %s (%s) is in %s, %s", screen.CleanLine(r.Ref), screen.CleanLine(r.Kind), screen.CleanLine(to), screen.Size(int64(len(r.Data))))
	return nil
}
