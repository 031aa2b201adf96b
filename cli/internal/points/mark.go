package points

import (
	"context"
	"strings"

	"github.com/spf13/cobra"

	"github.com/lockstep-backup/lockstep/api"
	"github.com/lockstep-backup/lockstep/cli/internal/screen"
	"github.com/lockstep-backup/lockstep/cli/internal/shell"
)

// marks are the verbs that pin, tag and hold recovery points.
func (a group) marks() []*cobra.Command {
	return []*cobra.Command{a.pin(), a.unpin(), a.tag(), a.untag(), a.hold(), a.unhold()}
}

// mark sends one mark and confirms it.
func (a group) mark(ctx context.Context, op, ref string, m api.MarkRequest, done string) error {
	return a.WithClient(ctx, func(c *api.Client) error {
		p, err := c.MarkPoint(ctx, ref, m)
		if err != nil {
			return shell.OperationError(op, err)
		}
		a.Done(p, "recovery point %s of %s %s", screen.CleanLine(p.ID), screen.CleanLine(p.Machine), screen.CleanLine(done))
		return nil
	})
}

// reason is the --reason of a verb that must have one.
func (a group) reason(cmd *cobra.Command) func() (string, error) {
	r := cmd.Flags().String("reason", "", "why, `TEXT`; it is kept with the recovery point")
	return func() (string, error) {
		if strings.TrimSpace(*r) == "" {
			return "", shell.UsageError(cmd, "%s: say why, with --reason TEXT", shell.Operation(cmd))
		}
		return *r, nil
	}
}

func (a group) pin() *cobra.Command {
	var reason func() (string, error)
	cmd := a.Leaf(shell.Command{
		Use: "pin POINT --reason TEXT", Short: "Keep a recovery point until it is unpinned",
		Long:    "Neither 'prune' nor 'point delete' deletes it. Pins, tags and legal holds are kept\nin the repository, signed.",
		Example: "lockstep point pin web01@latest --reason 'before the move'",
		Exits:   []int{api.ExitRefused},
		Args:    cobra.ExactArgs(1),
		Run: func(ctx context.Context, _ *cobra.Command, args []string) error {
			why, err := reason()
			if err != nil {
				return err
			}
			return a.mark(ctx, "point pin", args[0], api.MarkRequest{Kind: api.MarkPin, Set: true, Reason: why}, "is pinned")
		},
	})
	reason = a.reason(cmd)
	return cmd
}

func (a group) unpin() *cobra.Command {
	var reason string
	cmd := a.Leaf(shell.Command{
		Use: "unpin POINT [--reason TEXT]", Short: "Take a pin back",
		Example: "lockstep point unpin web01@latest",
		Exits:   []int{api.ExitRefused},
		Args:    cobra.ExactArgs(1),
		Run: func(ctx context.Context, _ *cobra.Command, args []string) error {
			return a.mark(ctx, "point unpin", args[0], api.MarkRequest{Kind: api.MarkPin, Reason: reason}, "is not pinned any more")
		},
	})
	cmd.Flags().StringVar(&reason, "reason", "", "why, `TEXT`")
	return cmd
}

func (a group) tag() *cobra.Command {
	return a.Leaf(shell.Command{
		Use: "tag POINT KEY=VALUE", Short: "Give a recovery point a tag",
		Long:    "A key has one value; the last one counts. A policy may keep what has a tag\n('policy set --keep-tag').",
		Example: "lockstep point tag web01@latest release=9",
		Exits:   []int{api.ExitRefused},
		Args:    cobra.ExactArgs(2),
		Run: func(ctx context.Context, cmd *cobra.Command, args []string) error {
			key, value, ok := strings.Cut(args[1], "=")
			if !ok || key == "" {
				return shell.UsageError(cmd, "point tag: %q is not of the form KEY=VALUE", args[1])
			}
			return a.mark(ctx, "point tag", args[0], api.MarkRequest{Kind: api.MarkTag, Name: key, Value: value, Set: true}, "is tagged "+args[1])
		},
	})
}

func (a group) untag() *cobra.Command {
	return a.Leaf(shell.Command{
		Use: "untag POINT KEY", Short: "Take a tag back",
		Example: "lockstep point untag web01@latest release",
		Exits:   []int{api.ExitRefused},
		Args:    cobra.ExactArgs(2),
		Run: func(ctx context.Context, _ *cobra.Command, args []string) error {
			return a.mark(ctx, "point untag", args[0], api.MarkRequest{Kind: api.MarkTag, Name: args[1]}, "has no tag "+args[1]+" any more")
		},
	})
}

// caseName is the --case of a verb that must have one.
func (a group) caseName(cmd *cobra.Command) func() (string, error) {
	c := cmd.Flags().String("case", "", "`NAME` of the case")
	return func() (string, error) {
		if strings.TrimSpace(*c) == "" {
			return "", shell.UsageError(cmd, "%s: name the case, with --case NAME", shell.Operation(cmd))
		}
		return *c, nil
	}
}

func (a group) hold() *cobra.Command {
	return a.legalHold(true, shell.Command{
		Use: "hold POINT --case NAME --reason TEXT", Short: "Put a recovery point under a legal hold",
		Long: `Neither 'prune' nor 'point delete' deletes it until every case that holds it has
let it go. It says nothing about secrets: those are held by what they open.`,
		Example: "lockstep point hold web01@latest --case CASE-12 --reason 'asked for by the court'",
	}, "is under a legal hold for ")
}

func (a group) unhold() *cobra.Command {
	return a.legalHold(false, shell.Command{
		Use: "unhold POINT --case NAME --reason TEXT", Short: "Lift the legal hold of a case",
		Example: "lockstep point unhold web01@latest --case CASE-12 --reason 'closed'",
	}, "is not held any more for ")
}

func (a group) legalHold(set bool, c shell.Command, done string) *cobra.Command {
	var name, reason func() (string, error)
	c.Exits, c.Args = []int{api.ExitRefused}, cobra.ExactArgs(1)
	c.Run = func(ctx context.Context, cmd *cobra.Command, args []string) error {
		of, err := name()
		if err != nil {
			return err
		}
		why, err := reason()
		if err != nil {
			return err
		}
		return a.mark(ctx, shell.Operation(cmd), args[0], api.MarkRequest{Kind: api.MarkLegalHold, Name: of, Set: set, Reason: why}, done+of)
	}
	cmd := a.Leaf(c)
	name, reason = a.caseName(cmd), a.reason(cmd)
	return cmd
}
