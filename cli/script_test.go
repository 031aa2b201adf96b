package cli

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/rogpeppe/go-internal/testscript"

	"github.com/lockstep-backup/lockstep/api"
)

func TestMain(m *testing.M) {
	testscript.Main(m, map[string]func(){
		"lockstep": func() {
			env := fakeEnv(newFake())
			env.Args = os.Args[1:]
			env.Stdin, env.Stdout, env.Stderr = os.Stdin, os.Stdout, os.Stderr
			env.Getenv = os.Getenv
			os.Exit(Main(context.Background(), env))
		},
	})
}

// fakeEnv is an Env whose server is f and whose local commands do nothing.
func fakeEnv(f *fake) Env {
	return withExports(Env{
		Version: "1.2.3",
		Connect: func(_ context.Context, c Connection) (*api.Client, func() error, error) {
			if c.Server == "https://unreachable.example" {
				return nil, nil, WithHint(errors.New("dial unreachable.example: refused"), "is the server running?")
			}
			return api.NewHandler(f), func() error { return nil }, nil
		},
		Init: func(_ context.Context, o InitOptions) (InitResult, error) {
			if strings.HasSuffix(o.DataDir, "taken") {
				return InitResult{}, WithHint(&os.PathError{Op: "init", Path: o.DataDir, Err: os.ErrExist}, "choose another directory")
			}
			kit := o.KitFile
			if kit == "" {
				kit = "/root/lockstep-kit.txt"
			}
			return InitResult{
				DataDir: o.DataDir, Repository: "file://" + o.DataDir + "/repository", KitFile: kit, Recipient: "age1qqqq",
				KeyPlaces: []string{"the key manager's key: " + o.DataDir + "/keys/kek, mode 0600: whoever reads this disk has it"},
				Warnings:  []string{"repository and keys are on one disk"},
			}, nil
		},
		Serve: func(_ context.Context, o ServeOptions) error {
			o.Ready("unix://" + o.DataDir + "/run/lockstep.sock")
			return nil
		},
		VerifyStored: func(_ context.Context, url string, progress func(int64)) (api.VerifyResult, error) {
			r := api.VerifyResult{Depth: "stored", Objects: 40, ReadBytes: 2 << 30}
			progress(r.ReadBytes)
			if strings.HasSuffix(url, "nothing") {
				return r, errors.New("verify what is stored: there is no object in it")
			}
			if strings.HasSuffix(url, "rotten") {
				r.Damage = []api.Damage{{Object: "seg/aa/01", Error: "checksum differs"}}
			}
			return r, nil
		},
		Demo: func(_ context.Context, o DemoOptions) error {
			_, err := io.WriteString(o.Story, "once upon a time\n")
			return err
		},
		CheckStore: func(_ context.Context, o StoreCheckOptions) (StoreCheckResult, error) {
			r := StoreCheckResult{Store: "file://" + o.URL, Passed: !strings.Contains(o.URL, "bad"), Checks: []StoreCheck{
				{Name: "put never overwrites", Outcome: "passed", Details: []string{}, Seconds: 0.5},
				{Name: "object lock", Outcome: "not applicable", Details: []string{"this kind of store does not lock objects"}},
			}}
			if !r.Passed {
				r.Checks[0].Outcome, r.Checks[0].Details = "failed", []string{"put again: <nil>, want ErrExist"}
			}
			for _, c := range r.Checks {
				o.Report(c)
			}
			return r, nil
		},
	})
}

func TestScripts(t *testing.T) {
	testscript.Run(t, testscript.Params{
		Dir:                 "testdata/script",
		RequireExplicitExec: true,
		UpdateScripts:       os.Getenv("LOCKSTEP_UPDATE_SCRIPTS") == "1",
		Setup: func(e *testscript.Env) error {
			e.Setenv("LOCKSTEP_DATA", filepath.Join(e.WorkDir, "data"))
			e.Setenv("SECRET", theSecret)
			// A file without a newline at its end, which a script cannot hold.
			return os.WriteFile(filepath.Join(e.WorkDir, "bare"), []byte(theSecret), 0o600)
		},
		Cmds: map[string]func(*testscript.TestScript, bool, []string){
			"status":  scriptStatus,
			"onejson": scriptOneJSON,
			"nojson":  scriptNoJSON,
		},
	})
}

// scriptStatus is "status N COMMAND …": the command ends with exit status N,
// and the secret is in none of its outputs, unless it is a release.
func scriptStatus(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 2 {
		ts.Fatalf("usage: status N COMMAND …")
	}
	want, err := strconv.Atoi(args[0])
	ts.Check(err)
	got := 0
	if err := ts.Exec(args[1], args[2:]...); err != nil {
		var exit *exec.ExitError
		if !errors.As(err, &exit) {
			ts.Fatalf("run: %v", err)
		}
		got = exit.ExitCode()
	}
	if got != want {
		ts.Fatalf("exit status %d, want %d\n%s%s", got, want, ts.ReadFile("stdout"), ts.ReadFile("stderr"))
	}
	stdout, stderr := ts.ReadFile("stdout"), ts.ReadFile("stderr")
	released := len(args) > 3 && args[2] == "secret" && args[3] == "release"
	if hasSecret(stderr) || (!released && hasSecret(stdout)) {
		ts.Fatalf("the secret is in the output of %v", args[1:])
	}
	if strings.ContainsRune(stdout+stderr, '\x1b') {
		ts.Fatalf("an escape sequence is in the output of %v, which is no terminal", args[1:])
	}
}

func hasSecret(s string) bool {
	return strings.Contains(s, theSecret) || strings.Contains(s, base64.StdEncoding.EncodeToString([]byte(theSecret))) ||
		strings.Contains(s, "wrong horse")
}

// scriptOneJSON is "onejson array|object": standard output is one such document.
func scriptOneJSON(ts *testscript.TestScript, _ bool, args []string) {
	dec := json.NewDecoder(strings.NewReader(ts.ReadFile("stdout")))
	var v any
	ts.Check(dec.Decode(&v))
	if _, err := dec.Token(); !errors.Is(err, io.EOF) {
		ts.Fatalf("more than one JSON document: %s", ts.ReadFile("stdout"))
	}
	kind := "object"
	if _, ok := v.([]any); ok {
		kind = "array"
	}
	if len(args) != 1 || args[0] != kind {
		ts.Fatalf("the document is an %s, want %v", kind, args)
	}
}

// scriptNoJSON says that standard output is empty.
func scriptNoJSON(ts *testscript.TestScript, _ bool, _ []string) {
	if s := ts.ReadFile("stdout"); s != "" {
		ts.Fatalf("standard output is not empty: %q", s)
	}
}
