// Package policies is the commands about policies, and the one that removes
// what they let go.
package policies

import (
	"context"
	"io"
	"strings"

	"github.com/spf13/cobra"

	"github.com/lockstep-backup/lockstep/api"
	"github.com/lockstep-backup/lockstep/cli/internal/shell"
)

type group struct{ *shell.Run }

// Commands are the commands of this group.
func Commands(r *shell.Run) []*cobra.Command {
	a := group{r}
	return []*cobra.Command{
		a.Group("policy", "What is kept, and how long", shell.GroupDaily, "lockstep policy show web01", a.show(), a.set(), a.unset()),
		a.prune(),
	}
}

// defaultFlag adds --default, and says which policy is meant: a machine's name,
// or "" for the default.
func (a group) defaultFlag(cmd *cobra.Command) func(args []string) (string, error) {
	all := cmd.Flags().Bool("default", false, "the policy of machines that have none of their own")
	return func(args []string) (string, error) {
		if *all == (len(args) == 1) {
			return "", shell.UsageError(cmd, "%s: name a machine, or say --default", shell.Operation(cmd))
		}
		return shell.First(args), nil
	}
}

func (a group) show() *cobra.Command {
	var which func([]string) (string, error)
	cmd := a.Leaf(shell.Command{
		Use: "show {NAME | --default}", Short: "Show the policy in force for a machine",
		Long: `A machine without a policy of its own has the default; without that, everything
is kept.`,
		Example: "lockstep policy show web01",
		Exits:   []int{api.ExitRefused},
		Args:    cobra.MaximumNArgs(1),
		Run: func(ctx context.Context, _ *cobra.Command, args []string) error {
			name, err := which(args)
			if err != nil {
				return err
			}
			return a.WithClient(ctx, func(c *api.Client) error {
				v, err := c.Policy(ctx, name)
				if err != nil {
					return shell.OperationError("policy show", err)
				}
				a.Emit(v, func(w io.Writer) { a.print(w, v) })
				return nil
			})
		},
	})
	which = a.defaultFlag(cmd)
	return cmd
}

func (a group) unset() *cobra.Command {
	var which func([]string) (string, error)
	cmd := a.Leaf(shell.Command{
		Use: "unset {NAME | --default}", Short: "Take a policy away",
		Long:    "A machine has the default then; without a default everything is kept.",
		Example: "lockstep policy unset web01",
		Exits:   []int{api.ExitRefused},
		Args:    cobra.MaximumNArgs(1),
		Run: func(ctx context.Context, _ *cobra.Command, args []string) error {
			name, err := which(args)
			if err != nil {
				return err
			}
			return a.WithClient(ctx, func(c *api.Client) error {
				v, err := c.UnsetPolicy(ctx, name)
				if err != nil {
					return shell.OperationError("policy unset", err)
				}
				a.Emit(v, func(w io.Writer) { a.printUnlessQuiet(w, v) })
				return nil
			})
		},
	})
	which = a.defaultFlag(cmd)
	return cmd
}

func (a group) set() *cobra.Command {
	var p api.Policy
	var limits []string
	var which func([]string) (string, error)
	cmd := a.Leaf(shell.Command{
		Use: "set {NAME | --default} [--keep-last N] [--daily N] […]", Short: "Set a machine's policy",
		Long: `What is named is set, what is not named stays as it is; a machine without a
policy of its own begins with the default. 0 and "" take a rule away.

A recovery point stays if any rule keeps it, if it is pinned or under a legal
hold, if it is the newest, or the newest that is proven and complete. Calendar
rules keep the newest recovery point of each of the last N hours, days, ISO
weeks, months or years that have any, in the policy's time zone. With none of
--keep-last, --hourly, …, --yearly and --within everything is kept. Nothing is
deleted but by 'lockstep prune', which explains itself with --dry-run.

The schedule is checked, kept and shown; this version starts no backups by
itself. A DURATION is such as 36h, 14d or 8w. A LIMIT is FROM-TO,read=RATE,write=RATE
with times of day and rates in bytes a second, such as 08:00-18:00,read=200M.`,
		Example: "lockstep policy set web01 --keep-last 7 --daily 14 --weekly 8 --monthly 12 --yearly 7 --within 48h --minimum 3 --timezone Europe/Berlin",
		Exits:   []int{api.ExitRefused},
		Args:    cobra.MaximumNArgs(1),
		Run: func(ctx context.Context, cmd *cobra.Command, args []string) error {
			name, err := which(args)
			if err != nil {
				return err
			}
			var set []func(to, from *api.Policy)
			for name, f := range setters {
				if cmd.Flags().Changed(name) {
					set = append(set, f)
				}
			}
			if len(set) == 0 {
				return shell.UsageError(cmd, "policy set: what is to be set?")
			}
			if p.Limits, err = parseLimits(cmd, limits); err != nil {
				return err
			}
			return a.WithClient(ctx, func(c *api.Client) error {
				have, err := c.Policy(ctx, name)
				if err != nil {
					return shell.OperationError("policy set", err)
				}
				next := have.Policy
				for _, f := range set {
					f(&next, &p)
				}
				v, err := c.SetPolicy(ctx, name, next)
				if err != nil {
					return shell.OperationError("policy set", err)
				}
				a.Emit(v, func(w io.Writer) { a.printUnlessQuiet(w, v) })
				return nil
			})
		},
	})
	which = a.defaultFlag(cmd)
	f, r := cmd.Flags(), &p.Retention
	f.IntVar(&r.KeepLast, "keep-last", 0, "keep the last `N`")
	f.IntVar(&r.Hourly, "hourly", 0, "keep one of each of the last `N` hours")
	f.IntVar(&r.Daily, "daily", 0, "keep one of each of the last `N` days")
	f.IntVar(&r.Weekly, "weekly", 0, "keep one of each of the last `N` weeks")
	f.IntVar(&r.Monthly, "monthly", 0, "keep one of each of the last `N` months")
	f.IntVar(&r.Yearly, "yearly", 0, "keep one of each of the last `N` years")
	f.StringVar(&r.Within, "within", "", "keep all that are younger than `DURATION`")
	f.IntVar(&r.Minimum, "minimum", 0, "never keep fewer than `N`, proven and complete ones if there are")
	f.StringArrayVar(&r.KeepTags, "keep-tag", nil, "keep what has the tag `KEY[=VALUE]`; once for each")
	f.StringVar(&p.Timezone, "timezone", "", "`ZONE` of days and times, such as Europe/Berlin; empty is UTC")
	f.StringVar(&p.Schedule, "schedule", "", "`WHEN` to back up: five fields as in cron, or 'every 6h'")
	f.StringVar(&p.ProofAge, "proof-age", "", "`DURATION` after which a proof is too old")
	f.StringVar(&p.VerifyAge, "verify-age", "", "`DURATION` after which data is to be read back again")
	f.StringArrayVar(&limits, "limit", nil, "`LIMIT` of rates by time of day; once for each, the first that fits counts")
	f.StringArrayVar(&p.CopiesTo, "copy-to", nil, "name or URL of a `REPOSITORY` for copies; once for each")
	return cmd
}

// setters copy what a flag sets.
var setters = map[string]func(to, from *api.Policy){
	"keep-last":  func(to, from *api.Policy) { to.Retention.KeepLast = from.Retention.KeepLast },
	"hourly":     func(to, from *api.Policy) { to.Retention.Hourly = from.Retention.Hourly },
	"daily":      func(to, from *api.Policy) { to.Retention.Daily = from.Retention.Daily },
	"weekly":     func(to, from *api.Policy) { to.Retention.Weekly = from.Retention.Weekly },
	"monthly":    func(to, from *api.Policy) { to.Retention.Monthly = from.Retention.Monthly },
	"yearly":     func(to, from *api.Policy) { to.Retention.Yearly = from.Retention.Yearly },
	"within":     func(to, from *api.Policy) { to.Retention.Within = from.Retention.Within },
	"minimum":    func(to, from *api.Policy) { to.Retention.Minimum = from.Retention.Minimum },
	"keep-tag":   func(to, from *api.Policy) { to.Retention.KeepTags = named(from.Retention.KeepTags) },
	"timezone":   func(to, from *api.Policy) { to.Timezone = from.Timezone },
	"schedule":   func(to, from *api.Policy) { to.Schedule = from.Schedule },
	"proof-age":  func(to, from *api.Policy) { to.ProofAge = from.ProofAge },
	"verify-age": func(to, from *api.Policy) { to.VerifyAge = from.VerifyAge },
	"limit":      func(to, from *api.Policy) { to.Limits = from.Limits },
	"copy-to":    func(to, from *api.Policy) { to.CopiesTo = named(from.CopiesTo) },
}

// named takes a list as given; a single "" empties it.
func named(list []string) []string {
	if len(list) == 1 && list[0] == "" {
		return nil
	}
	return list
}

// parseLimits reads FROM-TO,read=RATE,write=RATE.
func parseLimits(cmd *cobra.Command, texts []string) ([]api.PolicyLimit, error) {
	var out []api.PolicyLimit
	for _, text := range named(texts) {
		parts := strings.Split(text, ",")
		var l api.PolicyLimit
		var ok bool
		if l.From, l.To, ok = strings.Cut(parts[0], "-"); !ok {
			return nil, shell.UsageError(cmd, "policy set: limit %q does not begin with FROM-TO, such as 08:00-18:00", text)
		}
		for _, part := range parts[1:] {
			name, value, _ := strings.Cut(part, "=")
			n, err := shell.ParseRate(value)
			switch {
			case err != nil:
				return nil, shell.UsageError(cmd, "policy set: limit %q: %v", text, err)
			case name == "read":
				l.Read = n
			case name == "write":
				l.Write = n
			default:
				return nil, shell.UsageError(cmd, "policy set: limit %q: %q is neither read=RATE nor write=RATE", text, part)
			}
		}
		out = append(out, l)
	}
	return out, nil
}
