// Package repositories is the commands about the installation's repositories.
package repositories

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
	return []*cobra.Command{a.Group("repository", "Where recovery points are kept, and copies of them", shell.GroupWatch, "lockstep repository list",
		a.list(), a.add(), a.copy(), a.repair(), a.promote(), a.remove(), a.checkStore(), a.stats(), a.lock())}
}

func (a group) list() *cobra.Command {
	return a.Leaf(shell.Command{
		Use:   "list",
		Short: "List the repositories, and what each lacks",
		Long: `The first is the one that backups write to. MISSING counts the recovery points
that it has and the other one neither has nor deleted.`,
		Example: "lockstep repository list",
		Args:    cobra.NoArgs,
		Run: func(ctx context.Context, _ *cobra.Command, _ []string) error {
			return a.WithClient(ctx, func(c *api.Client) error {
				all, err := c.Repositories(ctx)
				if err != nil {
					return shell.OperationError("repository list", err)
				}
				shell.EmitList(a.Run, all, func(w io.Writer) {
					t := screen.NewTable("", "NAME", "ROLE", "MACHINES", "POINTS", "NEWEST", "MISSING", "LAST COPY", "URL")
					for _, r := range all {
						role, missing := "copy", fmt.Sprint(r.Missing)
						if r.Primary {
							role, missing = "primary", "–"
						}
						machines, points := fmt.Sprint(r.Machines), fmt.Sprint(r.Points)
						if !r.Reachable {
							role, machines, points, missing = "unreachable", "?", "?", "?"
						}
						t.Add(screen.Text(r.Name), screen.Text(role), screen.Number(machines), screen.Number(points),
							screen.Text(when(r.Newest)), screen.Number(missing), screen.Text(when(r.LastCopy)), screen.Text(r.URL))
					}
					t.Print(w, a.Style)
				})
				for _, r := range all {
					if r.Error != "" {
						a.Warnf("repository %s: %s", screen.CleanLine(r.Name), screen.CleanLine(r.Error))
					}
				}
				return nil
			})
		},
	})
}

func when(t *time.Time) string {
	if t == nil {
		return "–"
	}
	return t.UTC().Format(time.RFC3339)
}

func (a group) add() *cobra.Command {
	var r api.RepositoryAdd
	cmd := a.Leaf(shell.Command{
		Use:   "add NAME URL",
		Short: "Make a repository for copies, or join one that is there",
		Long: `A new repository is opened by what opens the first: the host's identity, the
recovery identity, the key manager. Its recovery kit has its pins and no
identity: keep it with the first kit, lockstep-recover takes both.

One that is there is joined: copied and restored from, and copied to as far as
this installation's signatures count there. --identity names its recovery kit,
whose pins are compared.`,
		Example: "lockstep repository add offsite /mnt/offsite/lockstep",
		Exits:   []int{api.ExitRefused, api.ExitTarget, api.ExitWrongSecret, api.ExitBusy},
		Args:    cobra.ExactArgs(2),
		Run: func(ctx context.Context, cmd *cobra.Command, args []string) error {
			r.Name = args[0]
			var err error
			if r.URL, err = a.EnginePath(cmd, args[1]); err != nil {
				return err
			}
			for _, f := range []*string{&r.IdentityFile, &r.PassphraseFile, &r.KitFile} {
				if *f == "" {
					continue
				}
				if *f, err = a.EnginePath(cmd, *f); err != nil {
					return err
				}
			}
			return a.WithClient(ctx, func(c *api.Client) error {
				v, err := c.AddRepository(ctx, r)
				if err != nil {
					return shell.OperationError("repository add", err)
				}
				a.Emit(v, func(w io.Writer) {
					if a.Quiet {
						return
					}
					what := "joined"
					if v.Made {
						what = "made"
					}
					var f screen.Facts
					f.Add("id", v.ID)
					f.Add("place", v.URL)
					if v.KitFile != "" {
						f.Add("recovery kit", v.KitFile)
					}
					_, _ = fmt.Fprintf(w, "repository %s is %s\n", screen.CleanLine(v.Name), what)
					f.Print(w, "  ", a.Style)
				})
				a.WarnAll(v.Warnings)
				return nil
			})
		},
	})
	f := cmd.Flags()
	f.StringVar(&r.IdentityFile, "identity", "", "`FILE` with the recovery kit, or an identity, of a repository that is there")
	f.StringVar(&r.PassphraseFile, "passphrase-file", "", "`FILE` with a passphrase that opens the repository, or will open the new one as well")
	f.StringVar(&r.KitFile, "kit", "", "`FILE` for the recovery kit of a new repository (default: in the current folder)")
	return cmd
}

func (a group) copy() *cobra.Command {
	var r api.CopyRequest
	cmd := a.Leaf(shell.Command{
		Use:   "copy [MACHINE…] [--to REPOSITORY] [--from REPOSITORY]",
		Short: "Copy recovery points to another repository",
		Long: `Objects go as they are: nothing is sealed anew, proofs stay valid. What is there
is not moved again, and what was deleted there does not come back. An interrupted
copy goes on when it is run again.

Without --to, what the machines' policies say is done: that is the command for a
timer.`,
		Example: "lockstep repository copy --to offsite",
		Exits:   []int{api.ExitRefused, api.ExitDamaged, api.ExitBusy},
		Args:    cobra.ArbitraryArgs,
		Run: func(ctx context.Context, cmd *cobra.Command, args []string) error {
			r.Machines = args
			if r.To == "" && (r.Newest > 0 || len(r.Points) > 0) {
				return shell.UsageError(cmd, "repository copy: --point and --newest need --to")
			}
			return a.WithClient(ctx, func(c *api.Client) error {
				j, err := a.RunJob(ctx, c, "copy", "what was copied stays; run it again to go on",
					func() (api.Job, error) { return c.Copy(ctx, r) })
				if j.Copy == nil {
					if err == nil {
						err = errors.New("repository copy: the job ended without a result")
					}
					return err
				}
				a.Emit(j.Copy, func(w io.Writer) { a.printCopies(w, j.Copy.Copies) })
				return err
			})
		},
	})
	f := cmd.Flags()
	f.StringVar(&r.To, "to", "", "`REPOSITORY` to copy to (default: what the policies say)")
	f.StringVar(&r.From, "from", "", "`REPOSITORY` to copy from (default: the one that backups write to)")
	f.StringArrayVar(&r.Points, "point", nil, "`ID` of a recovery point; once for each (default: all)")
	f.IntVar(&r.Newest, "newest", 0, "only the newest `N` of each machine")
	f.BoolVar(&r.Verify, "verify", false, "open every extent that was copied where it lies then")
	shell.Rates(cmd, &r.Rates)
	return cmd
}

func (a group) printCopies(w io.Writer, all []api.MachineCopy) {
	if len(all) == 0 {
		_, _ = fmt.Fprintln(w, "nothing to copy")
		return
	}
	t := screen.NewTable("", "MACHINE", "FROM", "TO", "COPIED", "THERE", "DELETED THERE", "FAILED", "OBJECTS", "BYTES")
	for _, m := range all {
		failed := screen.Number(fmt.Sprint(len(m.Failed)))
		if m.Error != "" && len(m.Failed) == 0 {
			failed = screen.Number("!")
		}
		t.Add(screen.Text(m.Machine), screen.Text(m.From), screen.Text(m.To), screen.Number(fmt.Sprint(len(m.Points))),
			screen.Number(fmt.Sprint(m.Present)), screen.Number(fmt.Sprint(m.Deleted)), failed,
			screen.Number(fmt.Sprint(m.Objects)), screen.Number(screen.Size(m.Bytes)))
	}
	t.Print(w, a.Style)
}

func (a group) repair() *cobra.Command {
	var r api.RepairRequest
	cmd := a.Leaf(shell.Command{
		Use:   "repair [OBJECT…] [--from REPOSITORY]",
		Short: "Bring damaged objects back from another repository",
		Long: `OBJECT is a key as 'lockstep verify' names it; without any, everything is
verified first. What is brought back is whole and authentic before anything
damaged is deleted, and everything is verified again at the end. --dry-run says
what can be brought back, and from where.`,
		Example: "lockstep repository repair --dry-run",
		Exits:   []int{api.ExitRefused, api.ExitDamaged, api.ExitBusy},
		Args:    cobra.ArbitraryArgs,
		Run: func(ctx context.Context, _ *cobra.Command, args []string) error {
			r.Objects = args
			return a.WithClient(ctx, func(c *api.Client) error {
				j, err := a.RunJob(ctx, c, "repair", "what was repaired stays; run it again to go on",
					func() (api.Job, error) { return c.Repair(ctx, r) })
				if j.Repair == nil {
					if err == nil {
						err = errors.New("repository repair: the job ended without a result")
					}
					return err
				}
				a.Emit(j.Repair, func(w io.Writer) { a.printRepair(w, *j.Repair) })
				return err
			})
		},
	})
	f := cmd.Flags()
	f.StringVar(&r.Repository, "repository", "", "`REPOSITORY` to repair (default: the one that backups write to)")
	f.StringVar(&r.From, "from", "", "`REPOSITORY` to take objects from (default: any other)")
	f.BoolVar(&r.DryRun, "dry-run", false, "say what can be brought back from where, and change nothing")
	shell.Rates(cmd, &r.Rates)
	return cmd
}

func (a group) printRepair(w io.Writer, r api.RepairResult) {
	verb := "brought back"
	if r.DryRun {
		verb = "can be brought back"
	}
	for _, x := range r.Repaired {
		as := ""
		if x.As != "" {
			as = ", as " + x.As[strings.LastIndexByte(x.As, '/')+1:]
		}
		_, _ = fmt.Fprintf(w, "%s: %s from %s%s\n", screen.CleanLine(x.Object), verb, screen.CleanLine(x.From), screen.CleanLine(as))
	}
	for _, x := range r.Failed {
		_, _ = fmt.Fprintf(w, "%s: %s\n", screen.CleanLine(x.Object), screen.CleanLine(x.Error))
	}
	switch {
	case len(r.Repaired)+len(r.Failed) == 0:
		_, _ = fmt.Fprintf(w, "repository %s: nothing is damaged\n", screen.CleanLine(r.Repository))
	case r.DryRun:
		_, _ = fmt.Fprintf(w, "repository %s: %d of %d can be brought back\n", screen.CleanLine(r.Repository), len(r.Repaired), len(r.Repaired)+len(r.Failed))
	case r.Left == 0:
		_, _ = fmt.Fprintf(w, "repository %s is whole again\n", screen.CleanLine(r.Repository))
	default:
		_, _ = fmt.Fprintf(w, "repository %s: %d objects are damaged still\n", screen.CleanLine(r.Repository), r.Left)
	}
}

func (a group) promote() *cobra.Command {
	return a.Leaf(shell.Command{
		Use:   "promote REPOSITORY",
		Short: "Have backups write to this repository from now on",
		Long: `For when the one that backups write to is lost, or given up. The next backup of
a machine follows the newest recovery point that was copied, and is incremental.
The repository that was written until now stays on the list, as a copy.`,
		Example: "lockstep repository promote offsite",
		Exits:   []int{api.ExitRefused, api.ExitBusy},
		Args:    cobra.ExactArgs(1),
		Run: func(ctx context.Context, _ *cobra.Command, args []string) error {
			return a.WithClient(ctx, func(c *api.Client) error {
				r, err := c.PromoteRepository(ctx, args[0])
				if err != nil {
					return shell.OperationError("repository promote", err)
				}
				a.Done(r, "backups write to repository %s from now on", screen.CleanLine(r.Name))
				return nil
			})
		},
	})
}

func (a group) remove() *cobra.Command {
	var force bool
	cmd := a.Leaf(shell.Command{
		Use:   "remove REPOSITORY [--force]",
		Short: "Forget a repository of copies, and touch nothing in it",
		Long: `Nothing is deleted: 'lockstep repository add' takes it back. It is refused while
it is the only place of a recovery point; what counts is what the others are
found to list now. Without --force, one that is lost is removed only when
recovery points that it had are elsewhere.`,
		Example: "lockstep repository remove offsite",
		Exits:   []int{api.ExitRefused, api.ExitBusy},
		Args:    cobra.ExactArgs(1),
		Run: func(ctx context.Context, _ *cobra.Command, args []string) error {
			return a.WithClient(ctx, func(c *api.Client) error {
				r, err := c.RemoveRepository(ctx, args[0], force)
				if err != nil {
					return shell.OperationError("repository remove", err)
				}
				a.WarnAll(r.Warnings)
				if len(r.Only) > 0 {
					a.Warnf("%s in no other repository", screen.Count(len(r.Only), "recovery point", "recovery points"))
				}
				a.Done(r, "repository %s is forgotten; what is at %s is as it was", screen.CleanLine(r.Name), screen.CleanLine(r.URL))
				return nil
			})
		},
	})
	cmd.Flags().BoolVar(&force, "force", false, "also where it is the only place of recovery points")
	return cmd
}
