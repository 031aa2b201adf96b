package checks

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

func (a group) scrubCommand() *cobra.Command {
	var limit, older, warn shell.Age
	var most shell.Amount
	var repository string
	cmd := a.Leaf(shell.Command{
		Use:   "scrub [--for TIME] [--bytes SIZE] [--older-than TIME]",
		Short: "Read back what has not been read for the longest",
		Long: `For every night: objects are read whole and compared with their checksums and
signatures, what was not read for the longest first, until the time or the bytes
are used up. When each was read is remembered, and what 'lockstep verify' read
counts. Damage is named with the disks, ranges and recovery points it touches,
and the exit status is 6; what is damaged comes first again the next time.

'lockstep status' warns of what was not read within --warn-after, which is
remembered (90 days where it was never set). That something is gone, 'lockstep
verify --structure' finds.`,
		Example: "lockstep scrub --for 1h --older-than 30d",
		Exits:   []int{api.ExitRefused, api.ExitDamaged, api.ExitBusy},
		Args:    cobra.NoArgs,
		Run: func(ctx context.Context, _ *cobra.Command, _ []string) error {
			r := api.ScrubRequest{
				Repository: repository, ForSeconds: limit.Seconds(), Bytes: int64(most), OlderThanSeconds: older.Seconds(), WarnAfterSeconds: warn.Seconds(),
			}
			return a.WithClient(ctx, func(c *api.Client) error {
				j, err := a.RunJob(ctx, c, "scrub", "what was read is remembered", func() (api.Job, error) { return c.Scrub(ctx, r) })
				if j.Scrub == nil {
					if err == nil {
						err = errors.New("scrub: the job ended without a result")
					}
					return err
				}
				v := *j.Scrub
				if v.Damage == nil {
					v.Damage = []api.Damage{}
				}
				a.Emit(v, func(w io.Writer) { a.printScrubbed(w, v) })
				return err
			})
		},
	})
	cmd.GroupID = shell.GroupWatch
	f := cmd.Flags()
	f.StringVar(&repository, "repository", "", "read `REPOSITORY` (default: the one that backups write to)")
	f.Var(&limit, "for", "stop after `TIME`, such as 1h")
	f.Var(&most, "bytes", "stop after `SIZE`, such as 100G")
	f.Var(&older, "older-than", "leave out what was read within `TIME`, such as 30d")
	f.Var(&warn, "warn-after", "have status warn of what was not read within `TIME`, from now on")
	return cmd
}

func (a group) printScrubbed(w io.Writer, r api.ScrubResult) {
	if !a.Quiet || len(r.Damage) > 0 {
		_, _ = fmt.Fprintf(w, "read back %s, %s: %s\n", screen.Count(int(r.Objects), "object", "objects"), screen.Size(r.ReadBytes), a.verdict(r.Damage))
	}
	if !a.Quiet {
		var f screen.Facts
		if r.LeftObjects > 0 {
			f.Add("left", fmt.Sprintf("%s, %s, are due", screen.Count(int(r.LeftObjects), "object", "objects"), screen.Size(r.LeftBytes)))
		}
		switch {
		case r.Oldest != nil:
			f.Add("oldest", "last read "+screen.Stamp(*r.Oldest))
		case r.Never:
			f.Add("oldest", "never read")
		}
		f.Print(w, "  ", a.Style)
	}
	a.printDamage(w, r.Damage)
}
