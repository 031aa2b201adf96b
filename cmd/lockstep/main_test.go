package main

import (
	"bytes"
	"context"
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/lockstep-backup/lockstep/api"
	"github.com/lockstep-backup/lockstep/cli"
	"github.com/lockstep-backup/lockstep/diskcrypt"
	"github.com/lockstep-backup/lockstep/diskcrypt/luks"
	"github.com/lockstep-backup/lockstep/diskcrypt/luks/luksformat"
	"github.com/lockstep-backup/lockstep/envelope"
)

const programEnv = "LOCKSTEP_TEST_PROGRAM"

// TestMain lets the test's binary be the program: the prover that the engine
// starts, and, where the environment says so, a lockstep command.
func TestMain(m *testing.M) {
	restrictFileModes()
	if len(os.Args) == 3 && os.Args[1] == proverArgument || os.Getenv(programEnv) != "" {
		os.Exit(program())
	}
	os.Exit(m.Run())
}

const (
	oldPassphrase = "old-passphrase-of-the-disk"
	newPassphrase = "new-passphrase-of-the-disk"
	diskSize      = 4 << 20
)

// world is one data directory and what stands around it.
type world struct {
	t    *testing.T
	dir  string // around it
	data string
	said bytes.Buffer // everything that any command said

	errors bytes.Buffer // what the last one in the background said on its standard error
}

func newWorld(t *testing.T) *world {
	t.Helper()
	// Sockets need short paths.
	dir, err := os.MkdirTemp("", "ls")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	return &world{t: t, dir: dir, data: filepath.Join(dir, "data")}
}

// started is a world after init.
func started(t *testing.T, initArgs ...string) *world {
	t.Helper()
	w := newWorld(t)
	w.ok("", append([]string{"init", "--kit", w.path("kit.txt")}, initArgs...)...)
	return w
}

func (w *world) path(name string) string { return filepath.Join(w.dir, name) }

// run runs one command in this process.
func (w *world) run(stdin string, args ...string) (code int, stdout, stderr string) {
	w.t.Helper()
	env := environment()
	var out, errs bytes.Buffer
	env.Args = append([]string{"--data", w.data}, args...)
	env.Stdin, env.Stdout, env.Stderr = strings.NewReader(stdin), &out, &errs
	env.Getenv = func(string) string { return "" }
	code = cli.Main(context.Background(), env)
	w.said.Write(out.Bytes())
	w.said.Write(errs.Bytes())
	return code, out.String(), errs.String()
}

// want runs a command that ends with an exit status, and returns its output.
func (w *world) want(code int, stdin string, args ...string) (stdout, stderr string) {
	w.t.Helper()
	got, stdout, stderr := w.run(stdin, args...)
	if got != code {
		w.t.Fatalf("lockstep %s: exit %d, want %d\n%s%s", strings.Join(args, " "), got, code, stdout, stderr)
	}
	return stdout, stderr
}

func (w *world) ok(stdin string, args ...string) string {
	w.t.Helper()
	out, _ := w.want(0, stdin, args...)
	return out
}

// asked runs a command that ends with an exit status and decodes its document.
func asked[T any](w *world, code int, stdin string, args ...string) T {
	w.t.Helper()
	out, _ := w.want(code, stdin, append([]string{"-o", "json"}, args...)...)
	var v T
	if err := json.Unmarshal([]byte(out), &v); err != nil {
		w.t.Fatalf("lockstep %s: %v\n%s", strings.Join(args, " "), err, out)
	}
	return v
}

// encrypted makes a LUKS2 image that a passphrase opens.
func (w *world) encrypted(name, passphrase string) string {
	w.t.Helper()
	path := w.path(name)
	w.edit(path, func(f *os.File) {
		if err := f.Truncate(diskSize); err != nil {
			w.t.Fatal(err)
		}
		v, err := luksformat.Format(f, diskSize, luksformat.Options{KeyslotsSize: 1 << 20})
		if err != nil {
			w.t.Fatal(err)
		}
		defer v.Close()
		if _, err := v.AddKey(context.Background(), secretOf(passphrase), luksformat.KDF{}); err != nil {
			w.t.Fatal(err)
		}
		p, err := v.Payload(nil, 0)
		if err != nil {
			w.t.Fatal(err)
		}
		if _, err := p.WriteAt(bytes.Repeat([]byte("payload "), 1<<14), 0); err != nil {
			w.t.Fatal(err)
		}
	})
	return path
}

// rotate changes the passphrase of the first key slot, as a guest would.
func (w *world) rotate(path, from, to string) {
	w.t.Helper()
	w.edit(path, func(f *os.File) {
		v, err := luksformat.Attach(context.Background(), f, diskSize, secretOf(from))
		if err != nil {
			w.t.Fatal(err)
		}
		defer v.Close()
		if _, err := v.ChangeKey(context.Background(), 0, secretOf(to), luksformat.KDF{}); err != nil {
			w.t.Fatal(err)
		}
	})
}

func (w *world) edit(path string, fn func(*os.File)) {
	w.t.Helper()
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		w.t.Fatal(err)
	}
	fn(f)
	if err := f.Close(); err != nil {
		w.t.Fatal(err)
	}
}

func secretOf(s string) envelope.Secret { return envelope.NewSecret([]byte(s)) }

// opens says which key slots of an image a passphrase opens.
func (w *world) opens(path, passphrase string) []string {
	w.t.Helper()
	f, err := os.Open(path)
	if err != nil {
		w.t.Fatal(err)
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		w.t.Fatal(err)
	}
	ids, err := luks.Format{}.OpensAll(context.Background(), diskcrypt.Place{Data: f, Size: info.Size()},
		diskcrypt.KindPassphrase, secretOf(passphrase), diskcrypt.Limits{})
	if err != nil {
		return nil
	}
	return ids
}

// web is a world with the machine web01, which has one encrypted disk.
func web(t *testing.T) (w *world, image string) {
	t.Helper()
	w = started(t)
	image = w.encrypted("web01.img", oldPassphrase)
	w.ok("", "machine", "add", "web01", "--disk", "vda="+image)
	return w, image
}

// backup makes a recovery point, which comes out in a state.
func (w *world) backup(state string, args ...string) api.Point {
	w.t.Helper()
	code := 3
	if state == api.StateProven || state == api.StatePlain {
		code = 0
	}
	p := asked[api.Point](w, code, "", append([]string{"backup", "web01"}, args...)...)
	if p.State != state {
		w.t.Fatalf("recovery point %s is %s, want %s: %q", p.ID, p.State, state, p.Why)
	}
	return p
}

func (w *world) add(passphrase string) api.SecretAddResult {
	w.t.Helper()
	return asked[api.SecretAddResult](w, 0, passphrase+"\n", "secret", "add", "web01", "--kind", "passphrase", "--file", "-")
}

// program starts a command in a process of its own.
func (w *world) program(args ...string) *exec.Cmd {
	w.t.Helper()
	self, err := os.Executable()
	if err != nil {
		w.t.Fatal(err)
	}
	cmd := exec.Command(self, append([]string{"--data", w.data}, args...)...)
	cmd.Env = append(os.Environ(), programEnv+"=1", "LOCKSTEP_DATA=", "LOCKSTEP_SERVER=")
	return cmd
}
