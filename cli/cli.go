// Package cli is the lockstep command: it turns arguments into calls of the
// HTTP API and answers into text or JSON. It is not an engine: it imports the
// api package only, and whatever it can do a script can do with the same calls.
//
// Its invariant is the command contract of docs/cli.md: the exit statuses, one
// JSON document on standard output with -o json, and no secret in an argument,
// an error or any output but the one that was asked for.
package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"strings"

	"github.com/spf13/cobra"

	"github.com/lockstep-backup/lockstep/api"
	"github.com/lockstep-backup/lockstep/cli/internal/screen"
)

// Env is everything that Main needs from outside. Nil functions of a command
// make that command fail with a clear error; the others have defaults.
type Env struct {
	Args           []string // without the program's name
	Stdin          io.Reader
	Stdout, Stderr io.Writer
	Getenv         func(string) string
	Version        string

	// Connect gives a client of the named server, else of the server on the
	// data directory's socket, else of a handler in this process. The returned
	// function ends what was started for it.
	Connect func(context.Context, Connection) (*api.Client, func() error, error)
	Init    func(context.Context, InitOptions) (InitResult, error)
	// Serve answers until the context ends.
	Serve func(context.Context, ServeOptions) error
	Demo  func(context.Context, DemoOptions) error

	// IsTerminal says whether one of Stdin, Stdout and Stderr is a terminal.
	// By default an *os.File is asked.
	IsTerminal func(stream any) bool
	// ReadPassword reads a line from the terminal without echo. By default
	// Stdin is read.
	ReadPassword func(context.Context) ([]byte, error)
}

// Connection says which server is meant.
type Connection struct {
	DataDir string
	Server  string // URL, "" = whatever serves the data directory
}

// InitOptions says how to make a data directory.
type InitOptions struct {
	DataDir                  string
	Repository               string   // URL, "" = a local one inside the data directory
	Unsealed                 bool     // the repository is not sealed a second time
	PassphraseFile           string   // passphrase that holds the repository's DEK
	KeyManagerPassphraseFile string   // passphrase that seals the embedded key manager
	KeyManagerKeyFile        string   // key file that seals the embedded key manager
	KitFile                  string   // where the recovery kit goes, "" = a default
	Recipients               []string // age recipients of key packages; none = a new identity goes into the kit
}

// InitResult says what was made.
type InitResult struct {
	DataDir    string   `json:"data_dir"`
	Repository string   `json:"repository"`
	KitFile    string   `json:"kit_file,omitempty"`
	Recipient  string   `json:"recipient,omitempty"`
	Warnings   []string `json:"warnings"`
	KeyPlaces  []string `json:"key_places"` // where each key of ours lies and how weak that is, in words
}

// ServeOptions says what to serve.
type ServeOptions struct {
	DataDir      string
	AllowSources []string // folders from which disks may be read
	AllowTargets []string // folders into which disks may be restored
	// Ready is called once with the address when requests are answered.
	Ready func(address string)
	Log   io.Writer
}

// DemoOptions says how to show the whole story.
type DemoOptions struct {
	Dir   string    // stays afterwards; "" = a temporary directory that goes
	Story io.Writer // what happens, for people
}

// app is one run of the command.
type app struct {
	env  Env
	root *cobra.Command

	dataDir string
	server  string
	output  string
	quiet   bool

	status  int  // the worst exit status so far
	printed bool // the JSON document is out
	style   screen.Style
}

// Main runs one command and returns its exit status.
func Main(ctx context.Context, env Env) int {
	a := newApp(env)
	return a.main(ctx)
}

func newApp(env Env) *app {
	if env.Stdin == nil {
		env.Stdin = strings.NewReader("")
	}
	if env.Stdout == nil {
		env.Stdout = io.Discard
	}
	if env.Stderr == nil {
		env.Stderr = io.Discard
	}
	if env.Getenv == nil {
		env.Getenv = func(string) string { return "" }
	}
	if env.IsTerminal == nil {
		env.IsTerminal = isTerminal
	}
	if env.ReadPassword == nil {
		stdin := env.Stdin
		env.ReadPassword = func(ctx context.Context) ([]byte, error) { return readPassword(ctx, stdin) }
	}
	if env.Version == "" {
		env.Version = "development"
	}
	a := &app{env: env}
	a.root = a.rootCommand()
	return a
}

func (a *app) main(ctx context.Context) int {
	// The output format is needed to report that the arguments are wrong.
	if wantsJSON(a.env.Args) {
		a.output = outputJSON
	}
	a.root.SetArgs(a.env.Args)
	a.root.SetIn(a.env.Stdin)
	a.root.SetOut(a.env.Stdout)
	a.root.SetErr(a.env.Stderr)
	err := a.root.ExecuteContext(ctx)
	if err != nil {
		a.note(a.report(ctx, err))
	}
	return a.status
}

const (
	outputText = "text"
	outputJSON = "json"
)

func (a *app) json() bool { return a.output == outputJSON }

func (a *app) rootCommand() *cobra.Command {
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
	f.StringVar(&a.dataDir, "data", "", "data `directory` (LOCKSTEP_DATA; default "+a.defaultDataDir()+")")
	f.StringVar(&a.server, "server", "", "`URL` of a server (LOCKSTEP_SERVER; default: the one on the data directory's socket, else none)")
	f.StringVarP(&a.output, "output", "o", outputText, "`text|json`")
	f.BoolVar(&a.quiet, "quiet", false, "no progress and no confirmations; results, warnings and errors only")
	_ = root.RegisterFlagCompletionFunc("output", cobra.FixedCompletions([]string{outputText, outputJSON}, cobra.ShellCompDirectiveNoFileComp))

	root.AddGroup(
		&cobra.Group{ID: groupStart, Title: "Set up:"},
		&cobra.Group{ID: groupDaily, Title: "Protect and restore:"},
		&cobra.Group{ID: groupKeys, Title: "Custody:"},
		&cobra.Group{ID: groupWatch, Title: "Look and check:"},
	)
	root.AddCommand(
		a.initCommand(), a.machineCommand(), a.serveCommand(), a.demoCommand(),
		a.backupCommand(), a.pointCommand(), a.restoreCommand(), a.headerCommand(),
		a.volumeCommand(), a.secretCommand(), a.proveCommand(),
		a.statusCommand(), a.verifyCommand(), a.jobCommand(), a.auditCommand(), a.catalogCommand(),
		a.versionCommand(),
	)
	root.SetHelpCommand(a.helpCommand())
	root.SetFlagErrorFunc(func(cmd *cobra.Command, err error) error {
		return usageError(cmd, "%s: %v", operation(cmd), err)
	})
	root.SetUsageTemplate(usageTemplate)
	root.Annotations = map[string]string{exitAnnotation: exitLines(precedence)}
	root.Args = cobra.ArbitraryArgs
	root.RunE = groupRun
	return root
}

// The groups of commands in the help.
const (
	groupStart = "start"
	groupDaily = "daily"
	groupKeys  = "keys"
	groupWatch = "watch"
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

// command is one runnable command of the tree.
type command struct {
	use, short, long, example string
	exits                     []int // beyond done, failed, wrong usage, interrupted
	args                      cobra.PositionalArgs
	run                       func(ctx context.Context, cmd *cobra.Command, args []string) error
}

func (a *app) leaf(c command) *cobra.Command {
	cmd := &cobra.Command{
		Use: c.use, Short: c.short, Long: strings.TrimSpace(c.short + ".\n\n" + c.long),
		Example:               "  " + c.example,
		Annotations:           map[string]string{exitAnnotation: exitLines(c.exits)},
		DisableFlagsInUseLine: true,
	}
	cmd.Args = func(cmd *cobra.Command, args []string) error {
		if err := c.args(cmd, args); err != nil {
			return usageError(cmd, "%s: %v", operation(cmd), err)
		}
		return nil
	}
	cmd.RunE = func(cmd *cobra.Command, args []string) error { return c.run(cmd.Context(), cmd, args) }
	return cmd
}

// group is a noun with verbs under it.
func (a *app) group(name, short, groupID, example string, children ...*cobra.Command) *cobra.Command {
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
		err := usageError(cmd, "%s: there is no command %q", operation(cmd), args[0])
		cmd.SuggestionsMinimumDistance = 2
		if near := cmd.SuggestionsFor(args[0]); len(near) > 0 {
			err = WithHint(err, "did you mean '"+cmd.CommandPath()+" "+near[0]+"'?")
		}
		return err
	}
	if !cmd.HasParent() {
		cmd.SetOut(cmd.ErrOrStderr())
		_ = cmd.Help()
		return usageError(cmd, "usage: which command?")
	}
	names := make([]string, 0, 8)
	for _, c := range cmd.Commands() {
		if c.IsAvailableCommand() {
			names = append(names, c.Name())
		}
	}
	return usageError(cmd, "%s: which command? %s", operation(cmd), strings.Join(names, ", "))
}

// operation is what errors of a command begin with, e.g. "secret add".
func operation(cmd *cobra.Command) string {
	path := cmd.CommandPath()
	if _, verb, ok := strings.Cut(path, " "); ok {
		return verb
	}
	return "usage"
}

// prepare reads the global flags.
func (a *app) prepare() error {
	switch a.output {
	case outputText, outputJSON:
	default:
		bad := a.output
		a.output = outputText
		return usageError(a.root, "usage: output format %q is neither text nor json", bad)
	}
	if a.server == "" {
		a.server = a.env.Getenv("LOCKSTEP_SERVER")
	}
	if a.dataDir == "" {
		a.dataDir = a.env.Getenv("LOCKSTEP_DATA")
	}
	if a.dataDir == "" {
		a.dataDir = a.defaultDataDir()
	}
	if abs, err := filepath.Abs(a.dataDir); err == nil {
		a.dataDir = abs
	}
	a.style = screen.NewStyle(a.env.IsTerminal(a.env.Stdout), a.env.Getenv)
	return nil
}

// wantsJSON looks for -o json in arguments that may be wrong otherwise.
func wantsJSON(args []string) bool {
	for i, s := range args {
		switch {
		case s == "--":
			return false
		case s == "-ojson" || s == "-o=json" || s == "--output=json":
			return true
		case (s == "-o" || s == "--output") && i+1 < len(args):
			return args[i+1] == outputJSON
		}
	}
	return false
}

// defaultDataDir is /var/lib/lockstep for root, else the XDG data directory.
func (a *app) defaultDataDir() string {
	if runtime.GOOS == "windows" {
		if dir := a.env.Getenv("LOCALAPPDATA"); dir != "" {
			return filepath.Join(dir, "lockstep")
		}
	}
	if os.Geteuid() == 0 {
		return "/var/lib/lockstep"
	}
	// The XDG specification wants relative values to be passed over.
	if dir := a.env.Getenv("XDG_DATA_HOME"); filepath.IsAbs(dir) {
		return filepath.Join(dir, "lockstep")
	}
	return filepath.Join(a.env.Getenv("HOME"), ".local", "share", "lockstep")
}

// withClient connects, calls fn and ends the connection.
func (a *app) withClient(ctx context.Context, fn func(*api.Client) error) (err error) {
	if a.env.Connect == nil {
		return errors.New("connect: this program has no way to reach a server")
	}
	c, closeFn, err := a.env.Connect(ctx, Connection{DataDir: a.dataDir, Server: a.server})
	if err != nil {
		return operationError("connect", err)
	}
	defer func() {
		if closeFn == nil {
			return
		}
		if cerr := closeFn(); cerr != nil && err == nil {
			err = operationError("disconnect", cerr)
		}
	}()
	return fn(c)
}

// local refuses a server for what can only be done on this host.
func (a *app) local(cmd *cobra.Command) error {
	if f := cmd.Flag("server"); f != nil && f.Changed {
		return usageError(cmd, "%s: this works on a data directory, not on a server", operation(cmd))
	}
	return nil
}

// enginePath makes a path absolute, because the engine that opens it may be a
// server with another working directory. URLs stay as they are.
func (a *app) enginePath(cmd *cobra.Command, path string) (string, error) {
	if strings.Contains(path, "://") || filepath.IsAbs(path) {
		return path, nil
	}
	if a.server != "" && !strings.HasPrefix(a.server, "unix:") {
		return "", WithHint(
			usageError(cmd, "%s: %q is opened by the server's host, where it means nothing", operation(cmd), path),
			"give the path in full, from the root")
	}
	abs, err := filepath.Abs(path)
	if err != nil {
		return "", fmt.Errorf("%s: %w", operation(cmd), err)
	}
	return abs, nil
}
