// Package e2e tests the programs as they are shipped: it builds lockstep and
// lockstep-recover once, runs them as a user does, each test with a data
// directory of its own, and lets tools that are not ours judge what they made.
// It holds no code that programs import, and it looks inside nothing: what it
// knows of Lockstep is docs/cli.md and where the data directory keeps its files.
package e2e

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
)

// bin is the folder with the programs, set before tests run.
var bin string

func TestMain(m *testing.M) {
	code := func() int {
		dir, err := os.MkdirTemp("", "lockstep-e2e-bin-")
		if err != nil {
			fmt.Fprintln(os.Stderr, "e2e:", err)
			return 1
		}
		defer os.RemoveAll(dir)
		build := exec.Command("go", "build", "-trimpath", "-o", dir+"/", "./cmd/...")
		build.Dir = ".."
		build.Env = append(os.Environ(), "CGO_ENABLED=0", "GOOS=", "GOARCH=")
		if out, err := build.CombinedOutput(); err != nil {
			fmt.Fprintf(os.Stderr, "e2e: build the programs: %v\n%s", err, out)
			return 1
		}
		bin = dir
		return m.Run()
	}()
	os.Exit(code)
}

// environ is what the programs get: nothing of the developer's settings.
func environ(more ...string) []string {
	return append([]string{
		"PATH=" + bin + ":" + os.Getenv("PATH") + ":/usr/sbin:/sbin",
		"HOME=/no-home", "LC_ALL=C", "NO_COLOR=1", "TMPDIR=" + os.TempDir(),
	}, more...)
}

// host is a backup host: a data directory and a folder for everything else.
type host struct {
	tb   testing.TB
	dir  string // everything is below it
	data string
	kit  string // moved away
}

// newHost makes a folder whose path is short enough for sockets.
func newHost(tb testing.TB) *host {
	tb.Helper()
	dir, err := os.MkdirTemp("", "lockstep-e2e-")
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() {
		if err := os.RemoveAll(dir); err != nil {
			tb.Error(err)
		}
	})
	return &host{tb: tb, dir: dir, data: filepath.Join(dir, "data"), kit: filepath.Join(dir, "kit.txt")}
}

// initialised is a host with a data directory.
func initialised(tb testing.TB, args ...string) *host {
	tb.Helper()
	h := newHost(tb)
	h.do(0, append([]string{"init", "--kit", h.kit}, args...)...)
	return h
}

func (h *host) path(name ...string) string {
	return filepath.Join(append([]string{h.dir}, name...)...)
}

// result is what a program said.
type result struct {
	args           []string
	stdout, stderr string
	exit           int
}

func (r result) String() string {
	return fmt.Sprintf("%s\nexit status %d\n--- stdout\n%s--- stderr\n%s", strings.Join(r.args, " "), r.exit, r.stdout, r.stderr)
}

// command prepares lockstep on the host's data directory, as the leader of a
// process group of its own, so that a kill takes the prover with it.
func (h *host) command(args ...string) *exec.Cmd {
	cmd := exec.Command(filepath.Join(bin, "lockstep"), args...)
	cmd.Dir = h.dir
	cmd.Env = environ("LOCKSTEP_DATA=" + h.data)
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	return cmd
}

// run runs lockstep.
func (h *host) run(stdin string, args ...string) result {
	h.tb.Helper()
	return run(h.tb, h.command(args...), stdin)
}

func run(tb testing.TB, cmd *exec.Cmd, stdin string) result {
	tb.Helper()
	var stdout, stderr bytes.Buffer
	cmd.Stdin, cmd.Stdout, cmd.Stderr = strings.NewReader(stdin), &stdout, &stderr
	err := cmd.Run()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		tb.Fatalf("%s: %v", strings.Join(cmd.Args, " "), err)
	}
	return result{cmd.Args, stdout.String(), stderr.String(), cmd.ProcessState.ExitCode()}
}

// do runs lockstep and wants the exit status.
func (h *host) do(exit int, args ...string) result {
	h.tb.Helper()
	r := h.run("", args...)
	if r.exit != exit {
		h.tb.Fatalf("exit status %d wanted: %v", exit, r)
	}
	return r
}

// ask runs lockstep -o json, wants one of the exit statuses, and decodes the
// document into out.
func (h *host) ask(out any, exits []int, args ...string) result {
	h.tb.Helper()
	r := h.run("", append(args, "-o", "json")...)
	for _, e := range exits {
		if r.exit == e {
			if err := oneDocument(r.stdout, out); err != nil {
				h.tb.Fatalf("%v: %v", err, r)
			}
			return r
		}
	}
	h.tb.Fatalf("one of exit statuses %v wanted: %v", exits, r)
	return r
}

// oneDocument decodes exactly one JSON document.
func oneDocument(text string, out any) error {
	dec := json.NewDecoder(strings.NewReader(text))
	if err := dec.Decode(out); err != nil {
		return fmt.Errorf("standard output is no JSON document: %w", err)
	}
	if _, err := dec.Token(); !errors.Is(err, io.EOF) {
		return errors.New("standard output is more than one JSON document")
	}
	return nil
}

// recoverDisk runs lockstep-recover, without a data directory.
func (h *host) recover(exit int, args ...string) result {
	h.tb.Helper()
	cmd := exec.Command(filepath.Join(bin, "lockstep-recover"), args...)
	cmd.Dir, cmd.Env = h.dir, environ()
	r := run(h.tb, cmd, "")
	if r.exit != exit {
		h.tb.Fatalf("exit status %d wanted: %v", exit, r)
	}
	return r
}

// tool runs a program that is not ours and returns its output; it must succeed.
func tool(tb testing.TB, stdin string, name string, args ...string) string {
	tb.Helper()
	r := run(tb, toolCommand(name, args...), stdin)
	if r.exit != 0 {
		tb.Fatalf("%v", r)
	}
	return r.stdout
}

func toolCommand(name string, args ...string) *exec.Cmd {
	cmd := exec.CommandContext(context.Background(), name, args...)
	cmd.Env = environ()
	return cmd
}

// write makes a file with mode 0600.
func (h *host) write(name, content string) string {
	h.tb.Helper()
	p := h.path(name)
	if err := os.WriteFile(p, []byte(content), 0o600); err != nil {
		h.tb.Fatal(err)
	}
	return p
}
