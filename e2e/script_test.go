package e2e

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"

	"github.com/lockstep-backup/lockstep/internal/judge"
)

// TestLocal runs the stories with the engine in the process of each command.
func TestLocal(t *testing.T) {
	t.Parallel()
	scripts(t, false, "both", "local")
}

// TestServer runs the same stories against a server in another process, which
// the commands find by themselves, and the stories that are about the server.
func TestServer(t *testing.T) {
	t.Parallel()
	scripts(t, true, "both", "serve")
}

func scripts(t *testing.T, server bool, folders ...string) {
	root, err := os.MkdirTemp("", "ls-") // short, for the socket's sake
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := os.RemoveAll(root); err != nil {
			t.Error(err)
		}
	})
	var judges sync.Map // counted once for each folder of scripts
	for _, folder := range folders {
		t.Run(folder, func(t *testing.T) {
			testscript.Run(t, testscript.Params{
				Dir:                 filepath.Join("testdata", folder),
				WorkdirRoot:         root,
				RequireExplicitExec: true,
				RequireUniqueNames:  true,
				Setup: func(env *testscript.Env) error {
					env.Setenv("PATH", bin+":"+env.Getenv("PATH")+":/usr/sbin:/sbin")
					env.Setenv("LOCKSTEP_DATA", filepath.Join(env.WorkDir, "data"))
					env.Setenv("NO_COLOR", "1")
					env.Values[serverKey{}] = &served{wanted: server}
					return nil
				},
				Condition: func(name string) (bool, error) {
					switch name {
					case "server":
						return server, nil
					case "root":
						return os.Getuid() == 0, nil
					}
					tool, ok := strings.CutPrefix(name, "judge:")
					if !ok {
						return false, fmt.Errorf("there is no condition %q", name)
					}
					for _, dir := range []string{"", "/usr/sbin", "/sbin"} {
						if _, err := exec.LookPath(filepath.Join(dir, tool)); err == nil {
							if _, counted := judges.LoadOrStore(folder+"/"+tool, true); !counted {
								judge.Decided(t, tool+" (in scripts)")
							}
							return true, nil
						}
					}
					if os.Getenv("LOCKSTEP_REQUIRE_JUDGES") == "1" {
						return false, fmt.Errorf("judge missing: program %s", tool)
					}
					return false, nil
				},
				Cmds: map[string]func(*testscript.TestScript, bool, []string){
					"exits": exits, "begin": begin, "json": jsonIs, "setjson": setJSON,
					"mkdisk": mkdisk, "passwd": passwd, "addpass": addpass, "scribble": scribbleOn,
					"resize": resize, "same": sameFiles, "differ": sameFiles, "mode": mode, "noleak": noLeak, "flip": flip,
					"serve": serve, "unserve": unserve, "biggest": biggest, "replace": replace,
				},
			})
		})
	}
}

type serverKey struct{}

// served is the server of a script.
type served struct {
	wanted bool
	cmd    *exec.Cmd
	log    *bytes.Buffer
}

// begin makes the data directory with the kit beside it, and where the stories
// are told to a server, starts it.
func begin(ts *testscript.TestScript, neg bool, args []string) {
	noNeg(ts, neg)
	ts.Check(ts.Exec("lockstep", append([]string{"init", "--kit", "kit.txt"}, args...)...))
	if ts.Value(serverKey{}).(*served).wanted {
		startServer(ts)
	}
}

// serve starts the server; unserve ends it: "unserve" as an operator does,
// "unserve kill" by kill -9.
func serve(ts *testscript.TestScript, neg bool, args []string) {
	noNeg(ts, neg)
	startServer(ts, args...)
}

func startServer(ts *testscript.TestScript, args ...string) {
	if len(args) == 0 {
		args = []string{"--allow-source", ts.MkAbs("."), "--allow-target", ts.MkAbs(".")}
	}
	s := ts.Value(serverKey{}).(*served)
	s.log = &bytes.Buffer{}
	cmd := exec.Command(filepath.Join(bin, "lockstep"), append([]string{"serve"}, args...)...)
	cmd.Dir = ts.MkAbs(".")
	cmd.Env = environ("LOCKSTEP_DATA=" + ts.Getenv("LOCKSTEP_DATA"))
	cmd.Stdout, cmd.Stderr = nil, s.log
	ready, err := startReady(cmd)
	ts.Check(err)
	if !ready {
		_ = cmd.Wait()
		ts.Fatalf("the server did not begin to serve:\n%s", s.log)
	}
	s.cmd = cmd
	ts.Defer(func() { stopServer(ts, s, syscall.SIGTERM) })
}

// startReady starts a server and waits until it says that it serves, or ends.
// Standard error of the command is collected in its buffer all the same.
func startReady(cmd *exec.Cmd) (ready bool, err error) {
	log := cmd.Stderr.(*bytes.Buffer)
	w := &readyWriter{to: log, ready: make(chan struct{})}
	cmd.Stdout, cmd.Stderr = w, w
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := cmd.Start(); err != nil {
		return false, err
	}
	select {
	case <-w.ready:
		return true, nil
	case <-time.After(time.Minute): // a bound, not an expectation
		return false, errors.Join(errors.New("no word from the server"), syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL))
	}
}

// readyWriter looks for the word that the server serves.
type readyWriter struct {
	to    *bytes.Buffer
	ready chan struct{}
	said  bool
}

func (w *readyWriter) Write(p []byte) (int, error) {
	n, err := w.to.Write(p)
	if !w.said && bytes.Contains(w.to.Bytes(), []byte("serving on ")) {
		w.said = true
		close(w.ready)
	}
	return n, err
}

func unserve(ts *testscript.TestScript, neg bool, args []string) {
	noNeg(ts, neg)
	s := ts.Value(serverKey{}).(*served)
	if s.cmd == nil {
		ts.Fatalf("no server runs")
	}
	sig := syscall.SIGTERM
	if len(args) == 1 && args[0] == "kill" {
		sig = syscall.SIGKILL
	}
	stopServer(ts, s, sig)
}

func stopServer(ts *testscript.TestScript, s *served, sig syscall.Signal) {
	if s.cmd == nil {
		return
	}
	cmd := s.cmd
	s.cmd = nil
	pid := cmd.Process.Pid
	if sig == syscall.SIGKILL {
		pid = -pid
	}
	if err := syscall.Kill(pid, sig); err != nil {
		ts.Fatalf("end the server: %v", err)
	}
	err := cmd.Wait()
	if sig == syscall.SIGTERM && err != nil {
		ts.Fatalf("the server was asked to end: %v\n%s", err, s.log)
	}
	leaks(ts, "the server's log", s.log.String())
}

func noNeg(ts *testscript.TestScript, neg bool) {
	if neg {
		ts.Fatalf("! makes no sense here")
	}
}

// exits runs a program and wants its exit status: "exits 3 lockstep backup web01".
// Nothing that it says may hold a secret of the script.
func exits(ts *testscript.TestScript, neg bool, args []string) {
	noNeg(ts, neg)
	if len(args) < 2 {
		ts.Fatalf("usage: exits STATUS PROGRAM [ARG …]")
	}
	want, err := strconv.Atoi(args[0])
	ts.Check(err)
	got := 0
	err = ts.Exec(args[1], args[2:]...)
	var exit *exec.ExitError
	switch {
	case errors.As(err, &exit):
		got = exit.ExitCode()
	case err != nil:
		ts.Fatalf("%v", err)
	}
	if got != want {
		ts.Fatalf("exit status %d, want %d", got, want)
	}
	leaks(ts, "output of "+strings.Join(args[1:], " "), ts.ReadFile("stdout")+ts.ReadFile("stderr"))
	if slices.Contains(args, "json") {
		var doc any
		if err := oneDocument(ts.ReadFile("stdout"), &doc); err != nil {
			ts.Fatalf("%v", err)
		}
	}
}

// secrets are the first lines of the script's *.pass files.
func secrets(ts *testscript.TestScript) [][]byte {
	files, err := filepath.Glob(ts.MkAbs("*.pass"))
	ts.Check(err)
	var out [][]byte
	for _, f := range files {
		raw, err := os.ReadFile(f)
		ts.Check(err)
		line, _, _ := bytes.Cut(raw, []byte("\n"))
		if len(line) < 12 {
			ts.Fatalf("%s: a secret of a script has at least 12 bytes, so that it is not found by chance", f)
		}
		out = append(out, line)
	}
	return out
}

func leaks(ts *testscript.TestScript, where, text string) {
	for _, s := range secrets(ts) {
		if strings.Contains(text, string(s)) {
			ts.Fatalf("SECRET in %s", where)
		}
	}
}

// noLeak looks for the script's secrets in every file below the folders.
func noLeak(ts *testscript.TestScript, neg bool, args []string) {
	noNeg(ts, neg)
	known := secrets(ts)
	if len(known) == 0 {
		ts.Fatalf("the script has no secrets")
	}
	files := 0
	for _, dir := range args {
		err := filepath.WalkDir(ts.MkAbs(dir), func(p string, d fs.DirEntry, err error) error {
			if err != nil || !d.Type().IsRegular() {
				return err
			}
			raw, err := os.ReadFile(p)
			if err != nil {
				return err
			}
			files++
			for _, s := range known {
				if bytes.Contains(raw, s) {
					return fmt.Errorf("SECRET in %s", p)
				}
			}
			return nil
		})
		ts.Check(err)
	}
	if files == 0 {
		ts.Fatalf("no file was looked into")
	}
}

// jsonIs wants a value of the JSON document that the last command printed, as a
// regular expression of all of it: "json .disks.0.volumes.len 1". len is a length.
func jsonIs(ts *testscript.TestScript, neg bool, args []string) {
	if len(args) < 1 || len(args) > 2 {
		ts.Fatalf("usage: json PATH [REGEXP]")
	}
	got, err := lookup(ts.ReadFile("stdout"), args[0])
	if len(args) == 1 {
		if (err == nil) == neg {
			ts.Fatalf("%s: %v %v", args[0], got, err)
		}
		return
	}
	ts.Check(err)
	re, err := regexp.Compile("^(?:" + args[1] + ")$")
	ts.Check(err)
	if re.MatchString(got) == neg {
		ts.Fatalf("%s is %s, want %s (negated: %v)", args[0], got, args[1], neg)
	}
}

// setJSON puts a value of the last document into a variable.
func setJSON(ts *testscript.TestScript, neg bool, args []string) {
	noNeg(ts, neg)
	if len(args) != 2 {
		ts.Fatalf("usage: setjson NAME PATH")
	}
	v, err := lookup(ts.ReadFile("stdout"), args[1])
	ts.Check(err)
	ts.Setenv(args[0], v)
}

func lookup(text, path string) (string, error) {
	var doc any
	if err := oneDocument(text, &doc); err != nil {
		return "", err
	}
	for _, part := range strings.Split(strings.TrimPrefix(path, "."), ".") {
		switch v := doc.(type) {
		case map[string]any:
			next, ok := v[part]
			if !ok {
				return "", fmt.Errorf("%s: there is no %q", path, part)
			}
			doc = next
		case []any:
			if part == "len" {
				return strconv.Itoa(len(v)), nil
			}
			i, err := strconv.Atoi(part)
			if err != nil || i < 0 || i >= len(v) {
				return "", fmt.Errorf("%s: no element %s of %d", path, part, len(v))
			}
			doc = v[i]
		default:
			if part == "" {
				break
			}
			return "", fmt.Errorf("%s: nothing below %v", path, doc)
		}
	}
	if s, ok := doc.(string); ok {
		return s, nil
	}
	raw, err := json.Marshal(doc)
	return string(raw), err
}

// passphrase reads a *.pass file as the guest would take it.
func passphrase(ts *testscript.TestScript, file string) string {
	line, _, _ := strings.Cut(ts.ReadFile(file), "\n")
	return line
}

func mkdisk(ts *testscript.TestScript, neg bool, args []string) {
	noNeg(ts, neg)
	if len(args) < 3 {
		ts.Fatalf("usage: mkdisk FILE MIB SECRETFILE …")
	}
	size, err := strconv.Atoi(args[1])
	ts.Check(err)
	var phrases []string
	for _, f := range args[2:] {
		phrases = append(phrases, passphrase(ts, f))
	}
	ts.Check(makeDisk(ts.MkAbs(args[0]), int64(size)*mib, phrases...))
}

func passwd(ts *testscript.TestScript, neg bool, args []string) {
	noNeg(ts, neg)
	ts.Check(changePassphrase(ts.MkAbs(args[0]), passphrase(ts, args[1]), passphrase(ts, args[2])))
}

func addpass(ts *testscript.TestScript, neg bool, args []string) {
	noNeg(ts, neg)
	ts.Check(addPassphrase(ts.MkAbs(args[0]), passphrase(ts, args[1]), passphrase(ts, args[2])))
}

func scribbleOn(ts *testscript.TestScript, neg bool, args []string) {
	noNeg(ts, neg)
	seed, err := strconv.ParseUint(args[1], 10, 64)
	ts.Check(err)
	pages, err := strconv.Atoi(args[2])
	ts.Check(err)
	ts.Check(scribble(ts.MkAbs(args[0]), seed, pages))
}

func resize(ts *testscript.TestScript, neg bool, args []string) {
	noNeg(ts, neg)
	size, err := strconv.ParseInt(args[1], 10, 64)
	ts.Check(err)
	ts.Check(os.Truncate(ts.MkAbs(args[0]), size))
}

func sameFiles(ts *testscript.TestScript, neg bool, args []string) {
	err := same(ts.MkAbs(args[0]), ts.MkAbs(args[1]))
	if neg == (err == nil) {
		ts.Fatalf("same: %v", err)
	}
}

func mode(ts *testscript.TestScript, neg bool, args []string) {
	noNeg(ts, neg)
	for _, name := range args[1:] {
		st, err := os.Lstat(ts.MkAbs(name))
		ts.Check(err)
		if got := fmt.Sprintf("%04o", st.Mode().Perm()); got != args[0] {
			ts.Fatalf("%s has mode %s, want %s", name, got, args[0])
		}
	}
}

// biggest puts the path of the largest file below a folder into a variable.
func biggest(ts *testscript.TestScript, neg bool, args []string) {
	noNeg(ts, neg)
	var size int64 = -1
	var found string
	ts.Check(filepath.WalkDir(ts.MkAbs(args[1]), func(p string, d fs.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() {
			return err
		}
		st, err := d.Info()
		if err == nil && st.Size() > size {
			size, found = st.Size(), p
		}
		return err
	}))
	if found == "" {
		ts.Fatalf("no file below %s", args[1])
	}
	ts.Setenv(args[0], found)
}

// flip changes one bit in the middle of a file.
func flip(ts *testscript.TestScript, neg bool, args []string) {
	noNeg(ts, neg)
	raw, err := os.ReadFile(ts.MkAbs(args[0]))
	ts.Check(err)
	if len(raw) == 0 {
		ts.Fatalf("%s is empty", args[0])
	}
	st, err := os.Stat(ts.MkAbs(args[0]))
	ts.Check(err)
	raw[len(raw)/2] ^= 0x10
	ts.Check(os.Chmod(ts.MkAbs(args[0]), 0o600))
	ts.Check(os.WriteFile(ts.MkAbs(args[0]), raw, 0o600))
	ts.Check(os.Chmod(ts.MkAbs(args[0]), st.Mode().Perm()))
}

// replace puts one text in the place of another in a file: "replace FILE OLD NEW".
func replace(ts *testscript.TestScript, neg bool, args []string) {
	noNeg(ts, neg)
	old := ts.ReadFile(args[0])
	now := strings.Replace(old, args[1], args[2], 1)
	if now == old {
		ts.Fatalf("%s does not hold %q", args[0], args[1])
	}
	ts.Check(os.WriteFile(ts.MkAbs(args[0]), []byte(now), 0o600))
}
