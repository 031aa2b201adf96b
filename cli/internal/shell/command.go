package shell

import (
	"context"
	"strings"

	"github.com/spf13/cobra"
)

// Groups of commands in the help.
const (
	GroupStart = "start"
	GroupDaily = "daily"
	GroupKeys  = "keys"
	GroupWatch = "watch"
)

// usageTemplate ends with the exit statuses and one example.
const usageTemplate = `Usage:
{{- if .HasAvailableSubCommands}}
  {{.CommandPath}} COMMAND
{{- else}}
  {{.UseLine}}
{{- end}}
{{- if .HasAvailableSubCommands}}{{$cmds := .Commands}}
{{- range $group := .Groups}}

{{.Title}}
{{- range $cmds}}{{if (and (eq .GroupID $group.ID) .IsAvailableCommand)}}
  {{rpad .Name .NamePadding}} {{.Short}}{{end}}{{end}}{{end}}
{{- if not .AllChildCommandsHaveGroup}}

Commands:
{{- range $cmds}}{{if (and (eq .GroupID "") .IsAvailableCommand)}}
  {{rpad .Name .NamePadding}} {{.Short}}{{end}}{{end}}{{end}}{{end}}
{{- if .HasAvailableLocalFlags}}

Flags:
{{.LocalFlags.FlagUsages | trimTrailingWhitespaces}}{{end}}
{{- if .HasAvailableInheritedFlags}}

Global flags:
{{.InheritedFlags.FlagUsages | trimTrailingWhitespaces}}{{end}}

Exit status:
{{index .Annotations "exit"}}

Example:
{{.Example}}
`

const exitAnnotation = "exit"

// Command is one runnable command of the tree. Its help ends with its exit
// statuses and the example, which must work against the fake of the tests.
type Command struct {
	Use, Short, Long, Example string
	Exits                     []int // beyond done, failed, wrong usage, interrupted
	Args                      cobra.PositionalArgs
	Run                       func(ctx context.Context, cmd *cobra.Command, args []string) error
}

// Leaf makes a verb.
func (a *Run) Leaf(c Command) *cobra.Command {
	cmd := &cobra.Command{
		Use: c.Use, Short: c.Short, Long: strings.TrimSpace(c.Short + ".\n\n" + c.Long),
		Example:               "  " + c.Example,
		Annotations:           map[string]string{exitAnnotation: exitLines(c.Exits)},
		DisableFlagsInUseLine: true,
	}
	cmd.Args = func(cmd *cobra.Command, args []string) error {
		if err := c.Args(cmd, args); err != nil {
			return UsageError(cmd, "%s: %v", Operation(cmd), err)
		}
		return nil
	}
	cmd.RunE = func(cmd *cobra.Command, args []string) error { return c.Run(cmd.Context(), cmd, args) }
	return cmd
}

// Group is a noun with verbs under it.
func (a *Run) Group(name, short, groupID, example string, children ...*cobra.Command) *cobra.Command {
	cmd := &cobra.Command{
		Use: name, Short: short, Long: short + ".", Example: "  " + example, GroupID: groupID,
		Annotations: map[string]string{exitAnnotation: exitLines(nil)},
		Args:        cobra.ArbitraryArgs,
		RunE:        groupRun,
	}
	cmd.AddCommand(children...)
	return cmd
}

// groupRun answers a noun without a verb.
func groupRun(cmd *cobra.Command, args []string) error {
	if len(args) > 0 {
		err := UsageError(cmd, "%s: there is no command %q", Operation(cmd), args[0])
		cmd.SuggestionsMinimumDistance = 2
		if near := cmd.SuggestionsFor(args[0]); len(near) > 0 {
			err = WithHint(err, "did you mean '"+cmd.CommandPath()+" "+near[0]+"'?")
		}
		return err
	}
	if !cmd.HasParent() {
		cmd.SetOut(cmd.ErrOrStderr())
		_ = cmd.Help()
		return UsageError(cmd, "usage: which command?")
	}
	names := make([]string, 0, 8)
	for _, c := range cmd.Commands() {
		if c.IsAvailableCommand() {
			names = append(names, c.Name())
		}
	}
	return UsageError(cmd, "%s: which command? %s", Operation(cmd), strings.Join(names, ", "))
}

// Operation is what errors of a command begin with, e.g. "secret add".
func Operation(cmd *cobra.Command) string {
	path := cmd.CommandPath()
	if _, verb, ok := strings.Cut(path, " "); ok {
		return verb
	}
	return "usage"
}

// Repository gives a command that reads a recovery point the flag that says in
// which repository.
func Repository(cmd *cobra.Command, name *string) {
	cmd.Flags().StringVar(name, "repository", "", "read it in `REPOSITORY` (default: the nearest that has it)")
}
