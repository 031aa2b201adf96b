package shell

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/lockstep-backup/lockstep/api"
	"github.com/lockstep-backup/lockstep/cli/internal/screen"
)

// precedence orders exit statuses: where several apply, the first is given.
var precedence = []int{
	api.ExitInterrupted, api.ExitUsage, api.ExitRefused, api.ExitBusy, api.ExitTarget,
	api.ExitFailed, api.ExitDamaged, api.ExitWrongSecret, api.ExitNotProven, api.ExitDone,
}

// Meanings are the exit statuses of the contract.
var Meanings = map[int]string{
	api.ExitDone:        "done",
	api.ExitFailed:      "failed",
	api.ExitUsage:       "wrong usage",
	api.ExitNotProven:   "done, but a recovery point it made or looked at is not proven",
	api.ExitRefused:     "refused: permission, hold, policy, approval pending",
	api.ExitWrongSecret: "no protector opened with the given secret",
	api.ExitDamaged:     "damaged data found",
	api.ExitTarget:      "target exists or is not what was named; nothing was written",
	api.ExitBusy:        "busy: another backup of this machine is running",
	api.ExitInterrupted: "interrupted; what was committed stays, the rest is resumable",
}

// exitLines lists a command's exit statuses for its help.
func exitLines(more []int) string {
	all := append([]int{api.ExitDone, api.ExitFailed, api.ExitUsage, api.ExitInterrupted}, more...)
	slices.Sort(all)
	lines := make([]string, 0, len(all))
	for _, s := range slices.Compact(all) {
		lines = append(lines, fmt.Sprintf("  %3d  %s", s, Meanings[s]))
	}
	return strings.Join(lines, "\n")
}

// worse returns the exit status that takes precedence; statuses outside the
// contract count as failed.
func worse(x, y int) int {
	rank := func(s int) (int, int) {
		if i := slices.Index(precedence, s); i >= 0 {
			return i, s
		}
		return slices.Index(precedence, api.ExitFailed), api.ExitFailed
	}
	i, x := rank(x)
	j, y := rank(y)
	if i <= j {
		return x
	}
	return y
}

// Note remembers an exit status that applies.
func (a *Run) Note(status int) { a.status = worse(a.status, status) }

// NotePoint remembers that a recovery point was looked at.
func (a *Run) NotePoint(state string) {
	switch state {
	case api.StateUnproven, api.StateAtRisk, api.StateUnrecoverable:
		a.Note(api.ExitNotProven)
	}
}

// hinted is an error with what to do about it.
type hinted struct {
	error
	hint string
}

func (h *hinted) Unwrap() error { return h.error }

// Hint says what to do.
func (h *hinted) Hint() string { return h.hint }

// WithHint adds to an error what the user can do about it.
func WithHint(err error, hint string) error {
	if err == nil {
		return nil
	}
	return &hinted{err, hint}
}

// usage is wrong usage.
type usage struct {
	text string
	path string // the command
}

func (e *usage) Error() string { return e.text }

func (e *usage) Hint() string { return "see '" + e.path + " --help'" }

// UsageError is wrong usage of a command; the text begins with the operation.
func UsageError(cmd *cobra.Command, format string, args ...any) error {
	return &usage{fmt.Sprintf(format, args...), cmd.CommandPath()}
}

// OperationError names the operation, unless the error comes from the API,
// where it does so itself.
func OperationError(op string, err error) error {
	var refused *api.Error
	if errors.As(err, &refused) || strings.HasPrefix(err.Error(), op+":") {
		return err
	}
	return fmt.Errorf("%s: %w", op, err)
}

func exitOf(ctx context.Context, err error) int {
	var wrong *usage
	var refused *api.Error
	switch {
	case err == nil:
		return api.ExitDone
	case ctx.Err() != nil:
		return api.ExitInterrupted
	case errors.As(err, &wrong):
		return api.ExitUsage
	case errors.As(err, &refused):
		if refused.Exit > api.ExitDone {
			return refused.Exit
		}
		return api.ExitFailed
	case errors.Is(err, fs.ErrExist):
		return api.ExitTarget
	default:
		return api.ExitFailed
	}
}

// GeneralHints are given where nobody knows better.
var GeneralHints = map[int]string{
	api.ExitUsage:       "see 'lockstep --help'",
	api.ExitRefused:     "'lockstep audit list' shows what was refused, to whom and why",
	api.ExitWrongSecret: "check that it is the secret of this machine and volume; 'lockstep volume list NAME' shows the protectors",
	api.ExitDamaged:     "'lockstep verify' says which recovery points are affected",
	api.ExitTarget:      "name another target, or --force where the command has it",
	api.ExitBusy:        "'lockstep job list' shows what is running",
}

// report prints an error with its hint and returns its exit status.
func (a *Run) report(ctx context.Context, err error) int {
	status := exitOf(ctx, err)
	text, hint := err.Error(), ""
	doc := api.Error{Title: Meanings[status], Detail: text, Exit: status}
	var refused *api.Error
	if errors.As(err, &refused) {
		doc = *refused
		doc.Exit = status
		hint = refused.Hint
	}
	var h interface{ Hint() string }
	if hint == "" && errors.As(err, &h) {
		hint = h.Hint()
	}
	if status == api.ExitInterrupted && refused == nil {
		text = interruptedText(text)
	}
	// What a server says of a value, no help of a command explains.
	if hint == "" && (refused == nil || status != api.ExitUsage) {
		hint = GeneralHints[status]
	}
	a.Warnf("lockstep: %s", screen.Clean(text))
	for _, item := range doc.Items {
		a.Warnf("  - %s", screen.Clean(item))
	}
	if hint != "" {
		a.Warnf("hint: %s", screen.Clean(hint))
	}
	if a.JSON() && !a.printed {
		doc.Hint = hint
		doc.Detail = text
		a.PrintJSON(doc)
	}
	return status
}

// interruptedText says it in words rather than "context canceled".
func interruptedText(text string) string {
	op, _, found := strings.Cut(text, ":")
	if !found {
		op = "lockstep"
	}
	if strings.Contains(text, "interrupted") {
		return text
	}
	return op + ": interrupted"
}
