package cli

import (
	"bytes"
	"context"
	"encoding/json"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"

	"github.com/spf13/cobra"

	"github.com/lockstep-backup/lockstep/api"

	"github.com/lockstep-backup/lockstep/cli/internal/shell"
)

// lockedBuffer is an output that bars and the command write at once.
type lockedBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *lockedBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *lockedBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

type result struct {
	status         int
	stdout, stderr string
}

// run runs a command against f; change may alter the Env.
func run(t *testing.T, f *fake, change func(*Env), args ...string) result {
	t.Helper()
	return runContext(t, context.Background(), f, change, args...)
}

func runContext(t *testing.T, ctx context.Context, f *fake, change func(*Env), args ...string) result {
	t.Helper()
	var stdout, stderr lockedBuffer
	env := fakeEnv(f)
	env.Args, env.Stdout, env.Stderr = args, &stdout, &stderr
	dir := t.TempDir()
	env.Getenv = func(name string) string {
		return map[string]string{"LOCKSTEP_DATA": dir, "TERM": "xterm"}[name]
	}
	if change != nil {
		change(&env)
	}
	status := Main(ctx, env)
	return result{status, stdout.String(), stderr.String()}
}

// commands returns every command of the tree that people see.
func commands(root *cobra.Command) []*cobra.Command {
	out := []*cobra.Command{root}
	for _, c := range root.Commands() {
		if !c.Hidden && c.Name() != "completion" {
			out = append(out, commands(c)...)
		}
	}
	return out
}

// fields splits an example as a shell does, with single quotes only.
func fields(t *testing.T, line string) []string {
	t.Helper()
	var out []string
	for i, part := range strings.Split(line, "'") {
		if i%2 == 1 {
			out = append(out, part)
			continue
		}
		out = append(out, strings.Fields(part)...)
	}
	return out
}

func TestEveryHelpEndsWithExitStatusesAndAnExampleThatWorks(t *testing.T) {
	for _, cmd := range commands(newRun(fakeEnv(newFake())).Root) {
		path := strings.Fields(cmd.CommandPath())[1:]
		t.Run(cmd.CommandPath(), func(t *testing.T) {
			t.Chdir(t.TempDir()) // some examples make files
			r := run(t, newFake(), nil, append(slices.Clone(path), "--help")...)
			if r.status != 0 || r.stderr != "" {
				t.Fatalf("help: exit status %d, standard error %q", r.status, r.stderr)
			}
			_, tail, found := strings.Cut(r.stdout, "\nExit status:\n")
			if !found {
				t.Fatalf("no exit statuses in the help:\n%s", r.stdout)
			}
			statuses, example, found := strings.Cut(tail, "\n\nExample:\n  ")
			if !found || strings.Count(example, "\n") != 1 || !strings.HasSuffix(example, "\n") {
				t.Fatalf("the help does not end with one example:\n%s", r.stdout)
			}
			var declared []int
			for _, line := range strings.Split(statuses, "\n") {
				n, err := strconv.Atoi(strings.Fields(line)[0])
				if err != nil || !strings.HasSuffix(line, "  "+shell.Meanings[n]) {
					t.Fatalf("not an exit status of the contract: %q", line)
				}
				declared = append(declared, n)
			}
			for _, n := range []int{0, 1, 2, 130} {
				if !slices.Contains(declared, n) {
					t.Errorf("exit status %d is not declared", n)
				}
			}
			args := fields(t, strings.TrimSpace(example))
			if args[0] != "lockstep" {
				t.Fatalf("the example is not of lockstep: %q", example)
			}
			if cmd.HasParent() && !strings.HasPrefix(example, cmd.CommandPath()) {
				t.Errorf("the example of %s is of another command: %q", cmd.CommandPath(), example)
			}
			r = run(t, newFake(), func(e *Env) { e.Stdin = strings.NewReader(theSecret + "\n") }, args[1:]...)
			if r.status != 0 && r.status != api.ExitNotProven {
				t.Fatalf("the example ends with %d:\n%s%s", r.status, r.stdout, r.stderr)
			}
			if !slices.Contains(declared, r.status) {
				t.Errorf("the example ends with %d, which the help does not declare", r.status)
			}
		})
	}
}

const docsFile = "../docs/cli.md"

// TestDocsNameEveryCommand keeps the reference in docs/cli.md in step with the
// commands; LOCKSTEP_UPDATE_DOCS=1 writes it anew.
func TestDocsNameEveryCommand(t *testing.T) {
	const begin, end = "<!-- commands: written by the tests of cli -->\n", "<!-- end of commands -->\n"
	var b strings.Builder
	env := fakeEnv(newFake())
	env.Getenv = func(name string) string { return map[string]string{"XDG_DATA_HOME": "/home/you/.local/share"}[name] }
	for _, cmd := range commands(newRun(env).Root) {
		if cmd.HasAvailableSubCommands() {
			continue
		}
		b.WriteString("### " + cmd.CommandPath() + "\n\n```text\n")
		var help bytes.Buffer
		cmd.SetOut(&help)
		// The global flags are said once, above.
		text := func() string {
			if err := cmd.Help(); err != nil {
				t.Fatal(err)
			}
			return help.String()
		}()
		if i := strings.Index(text, "\nGlobal flags:\n"); i >= 0 {
			j := strings.Index(text, "\nExit status:\n")
			text = text[:i] + text[j:]
		}
		b.WriteString(strings.TrimSpace(text) + "\n```\n\n")
	}
	raw, err := os.ReadFile(docsFile)
	if err != nil {
		t.Fatal(err)
	}
	doc := string(raw)
	i, j := strings.Index(doc, begin), strings.Index(doc, end)
	if i < 0 || j < i {
		t.Fatalf("%s does not hold the marks %q and %q", docsFile, begin, end)
	}
	want := doc[:i+len(begin)] + "\n" + b.String() + doc[j:]
	if doc == want {
		return
	}
	if os.Getenv("LOCKSTEP_UPDATE_DOCS") != "1" {
		t.Fatalf("%s is behind the commands; LOCKSTEP_UPDATE_DOCS=1 go test ./cli writes it anew", docsFile)
	}
	if err := os.WriteFile(docsFile, []byte(want), 0o644); err != nil {
		t.Fatal(err)
	}
}

func TestDocsHoldTheExitStatuses(t *testing.T) {
	doc, err := os.ReadFile(docsFile)
	if err != nil {
		t.Fatal(err)
	}
	for n, meaning := range shell.Meanings {
		if !strings.Contains(string(doc), "| "+strconv.Itoa(n)+" | "+meaning) {
			t.Errorf("%s does not say that %d means %q", docsFile, n, meaning)
		}
	}
}

// cancelWhen cancels when the job has begun.
func cancelWhen(f *fake, cancel context.CancelFunc) {
	for {
		f.mu.Lock()
		var j *fakeJob
		for _, x := range f.jobs {
			j = x
		}
		f.mu.Unlock()
		if j != nil {
			<-j.started
			cancel()
			return
		}
	}
}

func TestInterruptCancelsTheJob(t *testing.T) {
	for _, format := range []string{"text", "json"} {
		t.Run(format, func(t *testing.T) {
			f := newFake()
			ctx, cancel := context.WithCancel(context.Background())
			defer cancel()
			go cancelWhen(f, cancel)
			r := runContext(t, ctx, f, nil, "backup", "slow", "-o", format)
			if r.status != api.ExitInterrupted {
				t.Fatalf("exit status %d, want 130\n%s", r.status, r.stderr)
			}
			if !slices.Contains(f.seen, "POST /v1/jobs/job-1/cancel") {
				t.Errorf("the job was not cancelled: %q", f.seen)
			}
			if want := "lockstep: backup: interrupted; no recovery point was made"; !strings.Contains(r.stderr, want) {
				t.Errorf("standard error is %q, want %q in it", r.stderr, want)
			}
			if n := strings.Count(r.stderr, "tracking lost"); n != 1 {
				t.Errorf("an event was shown %d times", n)
			}
			var doc api.Error
			if format == "json" {
				if err := json.Unmarshal([]byte(r.stdout), &doc); err != nil || doc.Exit != 130 {
					t.Errorf("standard output is %q", r.stdout)
				}
			}
		})
	}
}

func TestInterruptedWatchLeavesTheJobAlone(t *testing.T) {
	f := newFake()
	j := &fakeJob{job: api.Job{ID: "job-9", Kind: "backup", State: "running"}, blocks: true, canceled: make(chan struct{}), started: make(chan struct{})}
	f.jobs["job-9"] = j
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	go cancelWhen(f, cancel)
	r := runContext(t, ctx, f, nil, "job", "watch", "job-9")
	if r.status != api.ExitInterrupted || !strings.Contains(r.stderr, "job watch: interrupted; job job-9 goes on") {
		t.Fatalf("exit status %d, standard error %q", r.status, r.stderr)
	}
	if slices.ContainsFunc(f.seen, func(s string) bool { return strings.HasSuffix(s, "/cancel") }) {
		t.Errorf("the job was cancelled: %q", f.seen)
	}
}

func terminal(e *Env) { e.IsTerminal = func(any) bool { return true } }

func TestStatusInColour(t *testing.T) {
	r := run(t, newFake(), terminal, "status")
	for _, want := range []string{"\x1b[1;97;41mUNRECOVERABLE\x1b[0m", "\x1b[32mopens\x1b[0m", "\x1b[33muntried\x1b[0m"} {
		if !strings.Contains(r.stdout, want) {
			t.Errorf("no %q in %q", want, r.stdout)
		}
	}
	r = run(t, newFake(), func(e *Env) {
		terminal(e)
		before := e.Getenv
		e.Getenv = func(name string) string {
			if name == "NO_COLOR" {
				return "1"
			}
			return before(name)
		}
	}, "status")
	if strings.Contains(r.stdout, "\x1b") {
		t.Errorf("NO_COLOR is not respected: %q", r.stdout)
	}
}

func TestColourDoesNotMoveColumns(t *testing.T) {
	coloured := run(t, newFake(), terminal, "status").stdout
	for _, code := range []string{"1;97;41", "1", "2", "32", "33", "0"} {
		coloured = strings.ReplaceAll(coloured, "\x1b["+code+"m", "")
	}
	if plain := run(t, newFake(), nil, "status").stdout; coloured != plain {
		t.Errorf("with colour:\n%s\nwithout:\n%s", coloured, plain)
	}
}

func TestLabelsFromDisksCannotMoveTheCursor(t *testing.T) {
	for _, args := range [][]string{{"machine", "show", "web01"}, {"volume", "list", "web01"}, {"point", "show", "web01@latest"}} {
		if r := run(t, newFake(), terminal, args...); strings.Contains(r.stdout+r.stderr, "\x1b[2J") {
			t.Errorf("%v passes on an escape sequence from a label", args)
		}
	}
}

func TestPassphraseIsAskedForOnATerminal(t *testing.T) {
	f := newFake()
	asked := 0
	var typed []byte
	r := run(t, f, func(e *Env) {
		terminal(e)
		e.Stdin = strings.NewReader("not read")
		e.ReadPassword = func(context.Context) ([]byte, error) {
			asked++
			typed = []byte(theSecret)
			return typed, nil
		}
	}, "secret", "add", "web01", "--kind", "passphrase", "--file", "-")
	if r.status != 0 || asked != 1 || !strings.HasPrefix(r.stderr, "passphrase of web01: \n") {
		t.Fatalf("exit status %d, asked %d times, standard error %q", r.status, asked, r.stderr)
	}
	if !bytes.Equal(typed, make([]byte, len(theSecret))) {
		t.Error("the passphrase is still in memory")
	}
	var sent api.SecretAdd
	if err := json.Unmarshal(f.last["/v1/secrets"], &sent); err != nil || string(sent.Data) != theSecret {
		t.Errorf("sent %q, %v", sent.Data, err)
	}
}

func TestSecretIsNotShownOnATerminal(t *testing.T) {
	f := newFake()
	r := run(t, f, terminal, "secret", "release", "web01@1", "--reason", "drill")
	if r.status != api.ExitUsage || strings.Contains(r.stdout, theSecret) || len(f.seen) != 0 {
		t.Fatalf("exit status %d, standard output %q, requests %q", r.status, r.stdout, f.seen)
	}
	if !strings.Contains(r.stderr, "hint: --to FILE makes a file of it") {
		t.Errorf("standard error %q", r.stderr)
	}
	if r = run(t, f, terminal, "secret", "release", "web01@1", "--reason", "drill", "--to", "-"); r.stdout != theSecret {
		t.Errorf("--to -: %q", r.stdout)
	}
}

func TestReleasedFileIsPrivateAndNotReleasedInVain(t *testing.T) {
	f := newFake()
	to := filepath.Join(t.TempDir(), "key")
	if r := run(t, f, nil, "secret", "release", "web01@1", "--reason", "drill", "--to", to); r.status != 0 {
		t.Fatalf("%+v", r)
	}
	info, err := os.Stat(to)
	if err != nil || info.Mode().Perm() != 0o600 {
		t.Fatalf("%v, %v", info, err)
	}
	before := len(f.seen)
	if r := run(t, f, nil, "secret", "release", "web01@1", "--reason", "drill", "--to", to); r.status != api.ExitTarget {
		t.Fatalf("%+v", r)
	}
	if len(f.seen) != before {
		t.Error("the secret was released although the file could not be made")
	}
}

func TestBarsOnATerminalOnly(t *testing.T) {
	r := run(t, newFake(), terminal, "backup", "db01")
	if !strings.Contains(r.stderr, "scan") || !strings.Contains(r.stderr, "8.0 GiB") || !strings.Contains(r.stderr, "tracking lost") {
		t.Errorf("no bar in %q", r.stderr)
	}
	if strings.Contains(r.stdout, "scan") {
		t.Errorf("progress on standard output: %q", r.stdout)
	}
	if r = run(t, newFake(), nil, "backup", "db01"); strings.Contains(r.stderr, "scan") {
		t.Errorf("progress without a terminal: %q", r.stderr)
	}
	if r = run(t, newFake(), func(e *Env) { terminal(e) }, "backup", "db01", "--quiet"); strings.Contains(r.stderr, "scan") || strings.Contains(r.stderr, "tracking lost") {
		t.Errorf("progress with --quiet: %q", r.stderr)
	}
}

func TestWhatIsSent(t *testing.T) {
	tests := []struct {
		args []string
		path string
		want string
	}{
		{
			[]string{"machine", "add", "web02", "--disk", "vda=/a,b=c,header=/h", "--disk", "vdb=nbd+unix:///x?socket=/y,z", "--disk", `vdc=/dev/vg/c`},
			"/v1/machines",
			`{"name":"web02","disks":[{"id":"vda","source":"/a,b=c","header":"/h"},{"id":"vdb","source":"nbd+unix:///x?socket=/y,z"},{"id":"vdc","source":"/dev/vg/c"}]}`,
		},
		{
			[]string{"backup", "db01", "--full", "--description", "x y", "--allow-live", "--allow-incomplete"},
			"/v1/backups",
			`{"machine":"db01","full":true,"description":"x y","allow_live":true,"allow_incomplete":true}`,
		},
		{[]string{"prove", "--all"}, "/v1/proofs", `{"all":true}`},
		{
			[]string{"restore", "web01@latest", "--disk", "vda=/x=y", "--force"},
			"/v1/restores",
			`{"point":"web01@latest","targets":[{"disk":"vda","target":"/x=y"}],"format":"raw","force":true}`,
		},
		{
			[]string{"volume", "not-needed", "web01", "vda/p3", "--reason", "swap"},
			"/v1/machines/web01/not-needed", `{"volume":"vda/p3","reason":"swap"}`,
		},
		{[]string{"secret", "disable", "web01@1"}, "/v1/secrets/web01@1/disable", `{"reason":"no reason given"}`},
		{[]string{"point", "delete", "web01@latest", "--reason", "x"}, "/v1/points/web01@latest", `{"reason":"x"}`},
	}
	for _, tt := range tests {
		f := newFake()
		if r := run(t, f, nil, tt.args...); r.status != 0 && r.status != api.ExitNotProven {
			t.Errorf("%v: exit status %d: %s", tt.args, r.status, r.stderr)
			continue
		}
		if got := string(f.last[tt.path]); got != tt.want {
			t.Errorf("%v\n sent %s\n want %s", tt.args, got, tt.want)
		}
	}
}

func TestRelativePathsAreMadeAbsolute(t *testing.T) {
	dir := t.TempDir()
	t.Chdir(dir)
	wd, err := os.Getwd()
	if err != nil {
		t.Fatal(err)
	}
	f := newFake()
	run(t, f, nil, "machine", "add", "web02", "--disk", "vda=disk.img")
	var m api.MachineCreate
	if err := json.Unmarshal(f.last["/v1/machines"], &m); err != nil {
		t.Fatal(err)
	}
	if want := filepath.Join(wd, "disk.img"); m.Disks[0].Source != want {
		t.Errorf("source %q, want %q", m.Disks[0].Source, want)
	}
}

func TestGlobalFlags(t *testing.T) {
	abs := func(s string) string {
		s, err := filepath.Abs(s)
		if err != nil {
			t.Fatal(err)
		}
		return s
	}
	tests := []struct {
		env  map[string]string
		args []string
		want Connection
	}{
		{map[string]string{"LOCKSTEP_DATA": "/env"}, nil, Connection{DataDir: "/env"}},
		{map[string]string{"LOCKSTEP_DATA": "/env", "LOCKSTEP_SERVER": "https://a"}, []string{"--data", "rel"}, Connection{DataDir: abs("rel"), Server: "https://a"}},
		{map[string]string{"LOCKSTEP_SERVER": "https://a"}, []string{"--server", "https://b", "--data", "/d"}, Connection{DataDir: "/d", Server: "https://b"}},
	}
	for _, tt := range tests {
		var got Connection
		run(t, newFake(), func(e *Env) {
			e.Getenv = func(name string) string { return tt.env[name] }
			connect := e.Connect
			e.Connect = func(ctx context.Context, c Connection) (*api.Client, func() error, error) {
				got = c
				return connect(ctx, c)
			}
		}, append([]string{"machine", "list"}, tt.args...)...)
		if got != tt.want {
			t.Errorf("%v %v: %+v, want %+v", tt.env, tt.args, got, tt.want)
		}
	}
}

func TestCommandsWithoutAnEngineFailClearly(t *testing.T) {
	for _, args := range [][]string{{"status"}, {"init"}, {"serve"}, {"demo"}} {
		r := run(t, newFake(), func(e *Env) { e.Connect, e.Init, e.Serve, e.Demo = nil, nil, nil, nil }, args...)
		if r.status != api.ExitFailed || !strings.HasPrefix(r.stderr, "lockstep: ") {
			t.Errorf("%v: %+v", args, r)
		}
	}
}
