// Package checks is the commands that read back what is stored.
package checks

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strconv"
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
	return []*cobra.Command{a.verifyCommand(), a.scrubCommand()}
}

func (a group) verifyCommand() *cobra.Command {
	var r api.VerifyRequest
	var sample, stored string
	cmd := a.Leaf(shell.Command{
		Use:   "verify [POINT …] [--structure | --sample SHARE [--seed SEED]]",
		Short: "Read back what is stored and compare",
		Long: `Without POINT everything is read. Damage is named with the disks, ranges and
recovery points it touches, and the exit status is 6.

With --structure no content of disks is read, but objects, signatures and maps,
and of segments that they are there with header and table of contents. --sample
reads a random share of what each recovery point added besides, such as 5%; the
seed that chose it is in the result, and with --seed it chooses the same.

--repository verifies a copy as the primary: what the last copy brought and is
gone there is damage; 'all' verifies one repository after the other.

--without-keys reads the repository at URL with nothing but access to it, for
hosts that hold no keys: every object's shape and checksums. That finds what
rotted, not what somebody made, and not what is gone.`,
		Example: "lockstep verify web01@latest",
		Exits:   []int{api.ExitRefused, api.ExitDamaged},
		Args:    cobra.ArbitraryArgs,
		Run: func(ctx context.Context, cmd *cobra.Command, args []string) (err error) {
			r.Points = args
			if stored != "" {
				if len(args) > 0 || r.Repository != "" || r.Structure || sample != "" || r.Seed != "" {
					return shell.UsageError(cmd, "verify: --without-keys reads all objects at its URL and knows no recovery points")
				}
				return a.verifyStored(ctx, cmd, stored)
			}
			if sample != "" {
				if r.Sample, err = parseShare(sample); err != nil {
					return shell.UsageError(cmd, "verify: --sample: %v", err)
				}
			}
			switch {
			case r.Structure && r.Sample > 0:
				return shell.UsageError(cmd, "verify: give either --structure or --sample")
			case r.Seed != "" && r.Sample == 0:
				return shell.UsageError(cmd, "verify: --seed is for --sample")
			}
			return a.WithClient(ctx, func(c *api.Client) error {
				j, err := a.RunJob(ctx, c, "verify", "nothing is changed by it",
					func() (api.Job, error) { return c.Verify(ctx, r) })
				if j.Verify != nil {
					a.emitVerified(*j.Verify)
				} else if err == nil {
					err = errors.New("verify: the job ended without a result")
				}
				return err
			})
		},
	})
	cmd.GroupID = shell.GroupWatch
	f := cmd.Flags()
	shell.Rates(cmd, &r.Rates)
	f.BoolVar(&r.Structure, "structure", false, "read no content of disks")
	f.StringVar(&sample, "sample", "", "read this `SHARE` of the content, such as 5%")
	f.StringVar(&r.Seed, "seed", "", "`SEED` of an earlier sample, to read the same again")
	f.StringVar(&r.Repository, "repository", "", "verify `REPOSITORY`, or all (default: the one that backups write to)")
	f.StringVar(&stored, "without-keys", "", "`URL` of a repository to check without any key")
	return cmd
}

// parseShare reads a share of more than nothing and at most all, "5%" or "0.05".
func parseShare(s string) (float64, error) {
	digits, percent := strings.CutSuffix(s, "%")
	x, err := strconv.ParseFloat(digits, 64)
	if percent {
		x /= 100
	}
	if err != nil || !(x > 0 && x <= 1) {
		return 0, fmt.Errorf("%q is not a share such as 5%%", s)
	}
	return x, nil
}

// verifyStored checks a repository in this process.
func (a group) verifyStored(ctx context.Context, cmd *cobra.Command, url string) error {
	if err := a.Local(cmd); err != nil {
		return err
	}
	if a.Env.VerifyStored == nil {
		return errors.New("verify: this program cannot open repositories")
	}
	p := a.Progress()
	r, err := a.Env.VerifyStored(ctx, url, func(done int64) {
		_ = p.Event(api.JobEvent{Kind: "progress", Phase: "content", Done: done, Unit: "bytes"})
	})
	p.Close(err == nil)
	if err != nil {
		return shell.OperationError("verify", err)
	}
	if len(r.Damage) > 0 {
		a.Note(api.ExitDamaged)
	}
	a.emitVerified(r)
	return nil
}

func (a group) emitVerified(v api.VerifyResult) {
	if v.Damage == nil {
		v.Damage = []api.Damage{}
	}
	a.Emit(v, func(w io.Writer) { a.printVerified(w, v) })
}

func (a group) printVerified(w io.Writer, v api.VerifyResult) {
	if !a.Quiet || len(v.Damage) > 0 {
		what := screen.Count(int(v.Objects), "object", "objects") + ", " + screen.Size(v.ReadBytes)
		switch v.Depth {
		case "stored":
		case "structure":
			what = screen.Count(v.Points, "recovery point", "recovery points") + ", " + screen.Count(int(v.Objects), "object", "objects") + ", structure only"
		default:
			what = screen.Count(v.Points, "recovery point", "recovery points") + ", " + what
		}
		if v.Depth == "sample" {
			what += fmt.Sprintf(", a sample of %.4g%% with seed %s", v.Sample*100, screen.CleanLine(v.Seed))
		}
		if len(v.Repositories) > 1 {
			what += " in repositories " + screen.CleanLine(strings.Join(v.Repositories, ", "))
		}
		_, _ = fmt.Fprintf(w, "read back %s: %s\n", what, a.verdict(v.Damage))
	}
	a.printDamage(w, v.Damage)
}

func (a group) verdict(found []api.Damage) string {
	if len(found) > 0 {
		return a.Style.Paint(screen.Alarm, "DAMAGED in "+screen.Count(len(found), "place", "places"))
	}
	return a.Style.Paint(screen.Green, "no damage")
}

func (a group) printDamage(w io.Writer, found []api.Damage) {
	if len(found) == 0 {
		return
	}
	_, _ = fmt.Fprintln(w)
	t := screen.NewTable("  ", "OBJECT", "MACHINE", "DISK", "RANGE", "RECOVERY POINTS", "ERROR")
	several := slices.ContainsFunc(found, func(d api.Damage) bool { return d.Repository != found[0].Repository })
	for _, d := range found {
		if several {
			d.Error = "repository " + d.Repository + ": " + d.Error
		}
		where := ""
		if d.Range != nil {
			where = fmt.Sprintf("%d+%d", d.Range.Offset, d.Range.Length)
		}
		t.Add(screen.Text(d.Object), screen.Text(d.Machine), screen.Text(d.Disk), screen.Text(where), screen.Text(strings.Join(d.Points, ", ")), screen.Text(d.Error))
	}
	t.Print(w, a.Style)
}
