package shell

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

// Run is one run of the command. What the flags say is there when a command
// runs, not before.
type Run struct {
	Env  Env
	Root *cobra.Command

	DataDir string // absolute
	Server  string // URL, "" = whatever serves the data directory
	Quiet   bool   // no progress, no confirmations
	Style   screen.Style

	output  string
	status  int  // the worst exit status so far
	printed bool // the JSON document is out
}

// New makes a run with the global flags and without commands: those are added
// to Root.
func New(env Env) *Run {
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
	a := &Run{Env: env}
	a.Root = a.rootCommand()
	return a
}

// Main runs the command that the arguments name and returns its exit status.
func (a *Run) Main(ctx context.Context) int {
	// The output format is needed to report that the arguments are wrong.
	if wantsJSON(a.Env.Args) {
		a.output = outputJSON
	}
	a.Root.SetArgs(a.Env.Args)
	a.Root.SetIn(a.Env.Stdin)
	a.Root.SetOut(a.Env.Stdout)
	a.Root.SetErr(a.Env.Stderr)
	err := a.Root.ExecuteContext(ctx)
	if err != nil {
		a.Note(a.report(ctx, err))
	}
	return a.status
}

const (
	outputText = "text"
	outputJSON = "json"
)

// JSON says whether the answer is one JSON document on standard output.
func (a *Run) JSON() bool { return a.output == outputJSON }

// prepare reads the global flags.
func (a *Run) prepare() error {
	switch a.output {
	case outputText, outputJSON:
	default:
		bad := a.output
		a.output = outputText
		return UsageError(a.Root, "usage: output format %q is neither text nor json", bad)
	}
	if a.Server == "" {
		a.Server = a.Env.Getenv("LOCKSTEP_SERVER")
	}
	if a.DataDir == "" {
		a.DataDir = a.Env.Getenv("LOCKSTEP_DATA")
	}
	if a.DataDir == "" {
		a.DataDir = a.defaultDataDir()
	}
	if abs, err := filepath.Abs(a.DataDir); err == nil {
		a.DataDir = abs
	}
	a.Style = screen.NewStyle(a.Env.IsTerminal(a.Env.Stdout), a.Env.Getenv)
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
func (a *Run) defaultDataDir() string {
	if runtime.GOOS == "windows" {
		if dir := a.Env.Getenv("LOCALAPPDATA"); dir != "" {
			return filepath.Join(dir, "lockstep")
		}
	}
	if os.Geteuid() == 0 {
		return "/var/lib/lockstep"
	}
	// The XDG specification wants relative values to be passed over.
	if dir := a.Env.Getenv("XDG_DATA_HOME"); filepath.IsAbs(dir) {
		return filepath.Join(dir, "lockstep")
	}
	return filepath.Join(a.Env.Getenv("HOME"), ".local", "share", "lockstep")
}

// WithClient connects, calls fn and ends the connection.
func (a *Run) WithClient(ctx context.Context, fn func(*api.Client) error) (err error) {
	if a.Env.Connect == nil {
		return errors.New("connect: this program has no way to reach a server")
	}
	c, closeFn, err := a.Env.Connect(ctx, Connection{DataDir: a.DataDir, Server: a.Server})
	if err != nil {
		return OperationError("connect", err)
	}
	defer func() {
		if closeFn == nil {
			return
		}
		if cerr := closeFn(); cerr != nil && err == nil {
			err = OperationError("disconnect", cerr)
		}
	}()
	return fn(c)
}

// Local refuses a server for what can only be done on this host.
func (a *Run) Local(cmd *cobra.Command) error {
	if f := cmd.Flag("server"); f != nil && f.Changed {
		return UsageError(cmd, "%s: this works on a data directory, not on a server", Operation(cmd))
	}
	return nil
}

// EnginePath makes a path absolute, because the engine that opens it may be a
// server with another working directory. URLs stay as they are.
func (a *Run) EnginePath(cmd *cobra.Command, path string) (string, error) {
	if strings.Contains(path, "://") || filepath.IsAbs(path) {
		return path, nil
	}
	if a.Server != "" && !strings.HasPrefix(a.Server, "unix:") {
		return "", WithHint(
			UsageError(cmd, "%s: %q is opened by the server's host, where it means nothing", Operation(cmd), path),
			"give the path in full, from the root")
	}
	abs, err := filepath.Abs(path)
	if err != nil {
		return "", fmt.Errorf("%s: %w", Operation(cmd), err)
	}
	return abs, nil
}
