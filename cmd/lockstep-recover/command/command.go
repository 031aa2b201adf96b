// Package command is lockstep-recover as a function, so that its tests and the
// demonstration run it in their own process. What it does is package rescue;
// this is arguments, text and exit statuses.
//
// Its invariant: no secret reaches an output, but by 'secrets --to'.
package command

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"slices"
	"strings"
	"unicode"
	"unicode/utf8"

	"github.com/spf13/cobra"

	"github.com/lockstep-backup/lockstep/api"
	"github.com/lockstep-backup/lockstep/cmd/internal/stores"
	"github.com/lockstep-backup/lockstep/diskcrypt"
	"github.com/lockstep-backup/lockstep/diskcrypt/bitlocker"
	"github.com/lockstep-backup/lockstep/diskcrypt/luks"
	"github.com/lockstep-backup/lockstep/diskcrypt/plaindm"
	"github.com/lockstep-backup/lockstep/diskcrypt/veracrypt"
	"github.com/lockstep-backup/lockstep/envelope"
	"github.com/lockstep-backup/lockstep/kit"
	"github.com/lockstep-backup/lockstep/repository"
	"github.com/lockstep-backup/lockstep/rescue"
	"github.com/lockstep-backup/lockstep/restore"
	"github.com/lockstep-backup/lockstep/store"
	"github.com/lockstep-backup/lockstep/store/remote"
	"github.com/lockstep-backup/lockstep/target"
)

// Env is everything that Main needs from outside.
type Env struct {
	Args           []string // without the program's name
	Stdin          io.Reader
	Stdout, Stderr io.Writer
	Version        string
	StdoutTerminal bool
	StderrTerminal bool
}

type app struct {
	env  Env
	root *cobra.Command

	repository string
	identities []string
	passphrase string
	unpinned   bool
	output     string
	quiet      bool

	status  int
	printed bool
}

// Main runs one command and returns its exit status.
func Main(ctx context.Context, env Env) int {
	if env.Stdin == nil {
		env.Stdin = strings.NewReader("")
	}
	if env.Stdout == nil {
		env.Stdout = io.Discard
	}
	if env.Stderr == nil {
		env.Stderr = io.Discard
	}
	a := &app{env: env, output: "text"}
	a.root = a.rootCommand()
	a.root.SetArgs(env.Args)
	a.root.SetIn(env.Stdin)
	a.root.SetOut(env.Stdout)
	a.root.SetErr(env.Stderr)
	if err := a.root.ExecuteContext(ctx); err != nil {
		a.note(a.report(ctx, err))
	}
	return a.status
}

func (a *app) rootCommand() *cobra.Command {
	root := &cobra.Command{
		Use:   "lockstep-recover",
		Short: "Restore with nothing left but a repository and the recovery kit",
		Long: `Restore with nothing left but a repository and the recovery kit: no server, no
catalog, no key manager. The repository may be read-only; it is never written to.

FILE is the recovery kit, or a file with a bare age identity. The kit says whose
signatures to trust; without one, --unpinned must say that this is known. Where
the kit holds no identity because it is your own, give both files.

POINT is a recovery point's id or a unique prefix of it, NAME@latest, or
NAME@TIME (the newest at or before that time). Times are RFC 3339 UTC.

What to do, step by step: list, open-check, restore, secrets.`,
		Example:           "  lockstep-recover list --repository /mnt/repository --identity kit.txt",
		SilenceErrors:     true,
		SilenceUsage:      true,
		CompletionOptions: cobra.CompletionOptions{HiddenDefaultCmd: true},
		Args:              cobra.ArbitraryArgs,
		PersistentPreRunE: func(cmd *cobra.Command, _ []string) error {
			if a.output != "text" && a.output != "json" {
				bad := a.output
				a.output = "text"
				return usagef("output format %q is neither text nor json", bad)
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			if len(args) > 0 {
				return usagef("there is no command %q", args[0])
			}
			cmd.SetOut(cmd.ErrOrStderr())
			_ = cmd.Help()
			return usagef("which command?")
		},
	}
	f := root.PersistentFlags()
	f.StringVar(&a.repository, "repository", "", "`DIR` or URL of the repository or a copy of it (default: where the kit says it was)")
	f.StringArrayVar(&a.identities, "identity", nil, "`FILE` with the recovery kit or a bare age identity; may be repeated")
	f.StringVar(&a.passphrase, "passphrase-file", "", "`FILE` with the repository's passphrase, where init was given one: restores disks, opens no key packages")
	f.BoolVar(&a.unpinned, "unpinned", false, "go on without a kit, trusting whatever the repository says of itself")
	f.StringVarP(&a.output, "output", "o", "text", "`text|json`")
	f.BoolVar(&a.quiet, "quiet", false, "no progress; results, warnings and errors only")
	root.SetFlagErrorFunc(func(_ *cobra.Command, err error) error { return usagef("%v", err) })
	root.SetUsageTemplate(usageTemplate)
	root.Annotations = map[string]string{exits: exitLines(precedence)}
	root.AddCommand(a.listCommand(), a.openCheckCommand(), a.restoreCommand(), a.secretsCommand(), a.unlockCommand(),
		a.headerCommand(), a.verifyCommand(), a.versionCommand())
	root.SetHelpCommand(&cobra.Command{Use: "help", Hidden: true, Run: func(*cobra.Command, []string) { _ = root.Help() }})
	return root
}

const exits = "exit"

const usageTemplate = `Usage:
{{- if .HasAvailableSubCommands}}
  {{.CommandPath}} COMMAND
{{- else}}
  {{.UseLine}}
{{- end}}
{{- if .HasAvailableSubCommands}}

Commands:
{{- range .Commands}}{{if .IsAvailableCommand}}
  {{rpad .Name .NamePadding}} {{.Short}}{{end}}{{end}}{{end}}
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

// verb is one command.
type verb struct {
	use, short, long, example string
	exits                     []int
	args                      int // number of arguments
	run                       func(ctx context.Context, args []string) error
}

func (a *app) command(v verb) *cobra.Command {
	return &cobra.Command{
		Use: v.use, Short: v.short, Long: strings.TrimSpace(v.short + ".\n\n" + v.long), Example: "  " + v.example,
		DisableFlagsInUseLine: true,
		Annotations:           map[string]string{exits: exitLines(append([]int{api.ExitDone, api.ExitFailed, api.ExitUsage, api.ExitRefused, api.ExitWrongSecret, api.ExitDamaged, api.ExitInterrupted}, v.exits...))},
		Args: func(cmd *cobra.Command, args []string) error {
			if len(args) != v.args {
				return usagef("%s: %s", cmd.Name(), cmd.UseLine())
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := v.run(cmd.Context(), args); err != nil {
				return &operation{cmd.Name(), err}
			}
			return nil
		},
	}
}

// operation names the command that failed.
type operation struct {
	name string
	err  error
}

func (e *operation) Error() string { return e.name + ": " + e.err.Error() }
func (e *operation) Unwrap() error { return e.err }

// usage is wrong usage.
type usage struct{ text string }

func (e *usage) Error() string { return e.text }

func usagef(format string, args ...any) error { return &usage{fmt.Sprintf(format, args...)} }

// statusError carries an exit status of its own.
type statusError struct {
	error
	status int
	hint   string
}

func (e *statusError) Unwrap() error { return e.error }

// precedence orders exit statuses: where several apply, the first is given.
var precedence = []int{
	api.ExitInterrupted, api.ExitUsage, api.ExitRefused, api.ExitTarget,
	api.ExitFailed, api.ExitDamaged, api.ExitWrongSecret, api.ExitNotProven, api.ExitDone,
}

var meanings = map[int]string{
	api.ExitDone:        "done",
	api.ExitFailed:      "failed",
	api.ExitUsage:       "wrong usage",
	api.ExitNotProven:   "done, but this identity does not open all volumes of the recovery point",
	api.ExitRefused:     "refused: the repository is not the one that the kit pins",
	api.ExitWrongSecret: "the identity does not open the repository, or no protector opened with the secrets",
	api.ExitDamaged:     "damaged data found",
	api.ExitTarget:      "target exists or is not what was named; nothing was written",
	api.ExitInterrupted: "interrupted",
}

func exitLines(list []int) string {
	list = slices.Clone(list)
	slices.Sort(list)
	var lines []string
	for _, s := range slices.Compact(list) {
		lines = append(lines, fmt.Sprintf("  %3d  %s", s, meanings[s]))
	}
	return strings.Join(lines, "\n")
}

// note remembers an exit status that applies.
func (a *app) note(status int) {
	if slices.Index(precedence, status) < slices.Index(precedence, a.status) {
		a.status = status
	}
}

// classify finds exit status and hint of an error.
func classify(ctx context.Context, err error) (status int, hint string) {
	var wrong *usage
	var own *statusError
	switch {
	case ctx.Err() != nil:
		return api.ExitInterrupted, ""
	case errors.As(err, &own):
		return own.status, own.hint
	case errors.As(err, &wrong):
		return api.ExitUsage, "see 'lockstep-recover --help'"
	case errors.Is(err, rescue.ErrUnpinned):
		return api.ExitUsage, "give the recovery kit, or add --unpinned if you know by other means that this repository is yours"
	case errors.Is(err, rescue.ErrPin):
		return api.ExitRefused, "this is another repository, or somebody put one in its place; compare the path, and other copies of the kit"
	case errors.Is(err, kit.ErrDamaged), errors.Is(err, kit.ErrVersion):
		return api.ExitFailed, "try another copy of the kit; with only its AGE-SECRET-KEY line in a file of its own, --unpinned goes on without pins"
	case errors.Is(err, envelope.ErrIdentity):
		return api.ExitFailed, "--identity takes the recovery kit or a file with an AGE-SECRET-KEY line; a kit without one needs your own identity file, too"
	case errors.Is(err, target.ErrNotEmpty), errors.Is(err, target.ErrTooSmall), errors.Is(err, target.ErrLarger), errors.Is(err, target.ErrNotNamed),
		errors.Is(err, target.ErrInUse), errors.Is(err, fs.ErrExist):
		return api.ExitTarget, "name another target, or --force where the command has it"
	case errors.Is(err, rescue.ErrNoPoint), errors.Is(err, rescue.ErrNoVolume), errors.Is(err, restore.ErrNoDisk):
		return api.ExitFailed, "'lockstep-recover list' shows recovery points, disks and volumes"
	case errors.Is(err, repository.ErrFormat):
		return api.ExitFailed, "use a newer lockstep-recover"
	case errors.Is(err, restore.ErrDeleted):
		return api.ExitFailed, "somebody pruned the repository meanwhile; 'lockstep-recover list' shows the recovery points that are left"
	case errors.Is(err, repository.ErrDamaged):
		return api.ExitDamaged, "'lockstep-recover verify' says what is damaged; other recovery points, and other copies of the repository, may be whole"
	case errors.Is(err, repository.ErrUntrusted):
		return api.ExitRefused, "its signatures are not by keys that it trusts itself"
	case errors.Is(err, repository.ErrNoKey), errors.Is(err, diskcrypt.ErrWrongSecret):
		return api.ExitWrongSecret, "is it the kit of this repository?"
	case errors.Is(err, repository.ErrNotFound):
		return api.ExitFailed, "--repository names the folder that holds the file \"config\""
	}
	return api.ExitFailed, ""
}

func (a *app) report(ctx context.Context, err error) int {
	status, hint := classify(ctx, err)
	text := err.Error()
	if status == api.ExitInterrupted {
		op, _, _ := strings.Cut(text, ":")
		text = op + ": interrupted"
	}
	a.warnf("lockstep-recover: %s", text)
	if hint != "" {
		a.warnf("hint: %s", hint)
	}
	if a.output == "json" && !a.printed {
		a.emit(api.Error{Title: meanings[status], Detail: clean(text), Exit: status, Hint: hint}, nil)
	}
	return status
}

// warnf prints a line to standard error.
func (a *app) warnf(format string, args ...any) {
	_, _ = fmt.Fprintln(a.env.Stderr, clean(fmt.Sprintf(format, args...)))
}

// emit prints the result: doc as JSON, or what text prints.
func (a *app) emit(doc any, text func(w io.Writer)) {
	a.printed = true
	if a.output == "json" {
		e := json.NewEncoder(a.env.Stdout)
		e.SetIndent("", "  ")
		e.SetEscapeHTML(false)
		_ = e.Encode(doc)
		return
	}
	if text != nil {
		text(a.env.Stdout)
	}
}

// clean makes text from a repository harmless on a terminal.
func clean(s string) string {
	return strings.Map(func(r rune) rune {
		if r != '\n' && (unicode.IsControl(r) || unicode.Is(unicode.Cf, r)) || r == utf8.RuneError || r == '\u2028' || r == '\u2029' {
			return '\uFFFD'
		}
		return r
	}, s)
}

// readIdentities reads kits and bare identities.
func (a *app) readIdentities() (ids envelope.Secret, kits []kit.Kit, err error) {
	if len(a.identities) == 0 {
		if a.passphrase != "" {
			return ids, nil, nil
		}
		return ids, nil, usagef("--identity is missing: the recovery kit")
	}
	var texts []envelope.Secret
	defer func() {
		for _, t := range texts {
			t.Wipe()
		}
	}()
	for _, path := range a.identities {
		text, err := envelope.ReadSecretFile(path, false, a.env.Stdin)
		if err != nil {
			return ids, nil, fmt.Errorf("read identity %s: %w", path, err)
		}
		texts = append(texts, text)
		if !kit.Is(text) {
			continue
		}
		k, err := kit.Parse(text)
		if err != nil {
			return ids, nil, fmt.Errorf("%s: %w", path, err)
		}
		texts[len(texts)-1] = k.Identity
		text.Wipe()
		kits = append(kits, k)
	}
	size := 0
	for _, t := range texts {
		size += t.Len() + 1
	}
	all := make([]byte, 0, size)
	for _, t := range texts {
		all = append(append(all, t.Expose()...), '\n')
	}
	return envelope.NewSecret(all), kits, nil
}

// openStore opens the store of a location.
func openStore(ctx context.Context, location string) (stores.Store, error) {
	st, err := stores.Open(ctx, location, stores.Options{})
	var hinted interface{ Hint() string }
	switch {
	case errors.Is(err, stores.ErrScheme), errors.Is(err, remote.ErrLocation):
		return nil, usagef("repository: %v", err)
	case errors.Is(err, store.ErrNotExist):
		return nil, &statusError{fmt.Errorf("open repository: %w", err), api.ExitFailed, "--repository names the folder that holds the file \"config\""}
	case errors.As(err, &hinted):
		return nil, &statusError{fmt.Errorf("open repository: %w", err), api.ExitFailed, hinted.Hint()}
	}
	return st, err
}

// with opens the repository for fn.
func (a *app) with(ctx context.Context, fn func(r *rescue.Rescue) error) error {
	ids, kits, err := a.readIdentities()
	if err != nil {
		return err
	}
	defer func() {
		ids.Wipe()
		for _, k := range kits {
			k.Identity.Wipe()
		}
	}()
	var passphrase envelope.Secret
	if a.passphrase != "" {
		if passphrase, err = envelope.ReadSecretFile(a.passphrase, true, a.env.Stdin); err != nil {
			return fmt.Errorf("read passphrase %s: %w", a.passphrase, err)
		}
		defer passphrase.Wipe()
	}
	location := a.repository
	if location == "" {
		for _, k := range kits {
			if len(k.Locations) > 0 {
				location = k.Locations[0]
				break
			}
		}
	}
	if location == "" {
		return usagef("--repository is missing")
	}
	st, err := openStore(ctx, location)
	if err != nil {
		return err
	}
	defer func() { _ = st.Close() }()
	r, err := rescue.Open(ctx, rescue.Options{
		Store: st, Identities: ids, Passphrase: passphrase, Kits: kits, Unpinned: a.unpinned,
		Formats: []diskcrypt.Format{luks.Format{}, bitlocker.Format{}, veracrypt.Format{}, plaindm.Format{}}, Log: slog.New(slog.DiscardHandler),
	})
	if err != nil {
		return err
	}
	defer func() { _ = r.Close() }()
	for _, n := range r.Notes() {
		a.warnf("warning: %s", n)
	}
	return fn(r)
}

// machines reads the repository and reports what is wrong with it.
func (a *app) machines(ctx context.Context, r *rescue.Rescue) ([]*rescue.Machine, []string, error) {
	ms, problems, err := r.Machines(ctx)
	if err != nil {
		return nil, nil, err
	}
	var texts []string
	add := func(where string, errs []error) {
		for _, e := range errs {
			texts = append(texts, where+e.Error())
			if errors.Is(e, repository.ErrDamaged) || errors.Is(e, repository.ErrNotFound) {
				a.note(api.ExitDamaged)
			}
		}
	}
	add("", problems)
	for _, m := range ms {
		add("machine "+m.Name+": ", m.Problems)
		for _, p := range m.Points {
			add("recovery point "+p.ID+": ", p.Problems)
		}
	}
	for _, t := range texts {
		a.warnf("warning: %s", t)
	}
	return ms, texts, nil
}

// withPoint opens the repository and finds a recovery point.
func (a *app) withPoint(ctx context.Context, name string, fn func(r *rescue.Rescue, p *rescue.Point) error) error {
	return a.with(ctx, func(r *rescue.Rescue) error {
		ms, _, err := r.Machines(ctx)
		if err != nil {
			return err
		}
		p, err := rescue.Find(ms, name)
		if err != nil {
			return err
		}
		if p.Manifest == nil {
			return fmt.Errorf("recovery point %s: %w", p.ID, errors.Join(p.Problems...))
		}
		// Where the machine's log is damaged, the newest that is listed need not be the newest there was.
		problems := slices.Clone(p.Problems)
		for _, m := range ms {
			if m.ID == p.Machine {
				problems = append(problems, m.Problems...)
			}
		}
		for _, e := range problems {
			a.warnf("warning: %s", e)
			if errors.Is(e, repository.ErrDamaged) {
				a.note(api.ExitDamaged)
			}
		}
		return fn(r, p)
	})
}
