// Package catalogs is the commands about the catalog itself.
package catalogs

import (
	"context"
	"errors"
	"fmt"
	"io"

	"github.com/spf13/cobra"

	"github.com/lockstep-backup/lockstep/api"
	"github.com/lockstep-backup/lockstep/cli/internal/screen"
	"github.com/lockstep-backup/lockstep/cli/internal/shell"
)

type group struct{ *shell.Run }

// Commands are the commands of this group.
func Commands(r *shell.Run) []*cobra.Command {
	a := group{r}
	return []*cobra.Command{a.catalogCommand()}
}

func (a group) catalogCommand() *cobra.Command {
	return a.Group("catalog", "The index of what is where", shell.GroupWatch, "lockstep catalog rebuild", a.catalogRebuild())
}

func (a group) catalogRebuild() *cobra.Command {
	var repository string
	cmd := a.Leaf(shell.Command{
		Use:   "rebuild",
		Short: "Make the catalog anew from the repository",
		Long: `Recovery points, states, proofs and holds are in the repository and come back.
What is not there is named; it is backed up with the data directory.`,
		Example: "lockstep catalog rebuild",
		Exits:   []int{api.ExitRefused, api.ExitDamaged, api.ExitBusy},
		Args:    cobra.NoArgs,
		Run: func(ctx context.Context, cmd *cobra.Command, _ []string) (err error) {
			if repository != "" {
				if repository, err = a.EnginePath(cmd, repository); err != nil {
					return err
				}
			}
			return a.WithClient(ctx, func(c *api.Client) error {
				j, err := a.RunJob(ctx, c, "catalog rebuild", "the catalog is not complete; run it again",
					func() (api.Job, error) { return c.RebuildCatalog(ctx, repository) })
				if j.Rebuild == nil {
					if err == nil {
						err = errors.New("catalog rebuild: the job ended without a result")
					}
					return err
				}
				r := *j.Rebuild
				a.Emit(r, func(w io.Writer) {
					var f screen.Facts
					f.Add("machines", fmt.Sprint(r.Machines))
					f.Add("recovery points", fmt.Sprint(r.Points))
					f.Add("proofs", fmt.Sprint(r.Proofs))
					f.Add("holds", fmt.Sprint(r.Holds))
					_, _ = fmt.Fprintf(w, "the catalog is made anew from %s\n", screen.CleanLine(r.Repository))
					f.Print(w, "  ", a.Style)
					if len(r.NotRebuilt) > 0 {
						_, _ = fmt.Fprintf(w, "not in the repository, so not in the catalog:\n")
						for _, s := range r.NotRebuilt {
							_, _ = fmt.Fprintf(w, "  - %s\n", screen.CleanLine(s))
						}
					}
				})
				a.WarnAll(r.Problems)
				return err
			})
		},
	})
	cmd.Flags().StringVar(&repository, "repository", "", "`URL` of the repository to read (default: the installation's)")
	return cmd
}
