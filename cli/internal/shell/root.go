package shell

import (
	"context"
	"fmt"
	"io"
	"runtime"
	"strings"

	"github.com/spf13/cobra"
)

func (a *Run) rootCommand() *cobra.Command {
	root := &cobra.Command{
		Use:   "lockstep",
		Short: "Backup of encrypted disks, in lockstep with the keys that open them",
		Long: `Lockstep backs up machines whose disks are encrypted inside the guest, without
ever decrypting them, keeps the secrets that open them in custody, and proves
for every recovery point that one of them does.

Words: a recovery point is a machine's restorable state at an instant; a volume
is an encrypted volume on a disk; a protector unlocks a volume (a LUKS keyslot);
a secret is what opens a protector.

POINT is a recovery point's id or a unique prefix of it, NAME@latest, or
NAME@TIME (the newest at or before that time). Times are RFC 3339 UTC.`,
		Example:           "  lockstep status",
		SilenceErrors:     true,
		SilenceUsage:      true,
		CompletionOptions: cobra.CompletionOptions{HiddenDefaultCmd: true},
		PersistentPreRunE: func(cmd *cobra.Command, _ []string) error { return a.prepare() },
	}
	f := root.PersistentFlags()
	f.StringVar(&a.DataDir, "data", "", "data `directory` (LOCKSTEP_DATA; default "+a.defaultDataDir()+")")
	f.StringVar(&a.Server, "server", "", "`URL` of a server (LOCKSTEP_SERVER; default: the one on the data directory's socket, else none)")
	f.StringVarP(&a.output, "output", "o", outputText, "`text|json`")
	f.BoolVar(&a.Quiet, "quiet", false, "no progress and no confirmations; results, warnings and errors only")
	_ = root.RegisterFlagCompletionFunc("output", cobra.FixedCompletions([]string{outputText, outputJSON}, cobra.ShellCompDirectiveNoFileComp))

	root.AddGroup(
		&cobra.Group{ID: GroupStart, Title: "Set up:"},
		&cobra.Group{ID: GroupDaily, Title: "Protect and restore:"},
		&cobra.Group{ID: GroupKeys, Title: "Custody:"},
		&cobra.Group{ID: GroupWatch, Title: "Look and check:"},
	)
	root.AddCommand(a.versionCommand())
	root.SetHelpCommand(a.helpCommand())
	root.SetFlagErrorFunc(func(cmd *cobra.Command, err error) error {
		return UsageError(cmd, "%s: %v", Operation(cmd), err)
	})
	root.SetUsageTemplate(usageTemplate)
	root.Annotations = map[string]string{exitAnnotation: exitLines(precedence)}
	root.Args = cobra.ArbitraryArgs
	root.RunE = groupRun
	return root
}

func (a *Run) versionCommand() *cobra.Command {
	cmd := a.Leaf(Command{
		Use: "version", Short: "Print the version",
		Example: "lockstep version",
		Args:    cobra.NoArgs,
		Run: func(context.Context, *cobra.Command, []string) error {
			v := map[string]string{"version": a.Env.Version, "go": runtime.Version(), "os": runtime.GOOS, "arch": runtime.GOARCH}
			a.Emit(v, func(w io.Writer) {
				_, _ = fmt.Fprintf(w, "lockstep %s (%s, %s/%s)\n", v["version"], v["go"], v["os"], v["arch"])
			})
			return nil
		},
	})
	cmd.GroupID = GroupWatch
	return cmd
}

func (a *Run) helpCommand() *cobra.Command {
	cmd := a.Leaf(Command{
		Use: "help [COMMAND]", Short: "Print the help of a command",
		Example: "lockstep help secret add",
		Args:    cobra.ArbitraryArgs,
		Run: func(_ context.Context, cmd *cobra.Command, args []string) error {
			found, rest, err := a.Root.Find(args)
			if err != nil || found == nil || len(rest) > 0 {
				return UsageError(cmd, "help: there is no command %q", strings.Join(args, " "))
			}
			return found.Help()
		},
	})
	cmd.GroupID = GroupWatch
	return cmd
}
