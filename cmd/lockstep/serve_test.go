package main

import (
	"bufio"
	"bytes"
	"context"
	"crypto/rand"
	"encoding/json"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"

	"github.com/lockstep-backup/lockstep/api"
	"github.com/lockstep-backup/lockstep/cmd/internal/hostos"
)

// served is a server in a process of its own.
type served struct {
	cmd  *exec.Cmd
	errs *lockedBuffer
}

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

// serve starts a server and waits until it says that it answers.
func (w *world) serve(args ...string) *served {
	w.t.Helper()
	s := &served{cmd: w.program(append([]string{"-o", "json", "serve"}, args...)...), errs: new(lockedBuffer)}
	s.cmd.Stderr = s.errs
	out, err := s.cmd.StdoutPipe()
	if err != nil {
		w.t.Fatal(err)
	}
	if err := s.cmd.Start(); err != nil {
		w.t.Fatal(err)
	}
	w.t.Cleanup(func() {
		_ = s.cmd.Process.Kill()
		_ = s.cmd.Wait()
	})
	r := bufio.NewReader(out)
	line, err := r.ReadString('}')
	var ready struct{ Address string }
	if err != nil || json.Unmarshal([]byte(line), &ready) != nil || ready.Address != "unix://"+dataDir(w.data).socket() {
		w.t.Fatalf("server: %v %q\n%s", err, line, s.errs)
	}
	return s
}

// stop asks the server to end.
func (s *served) stop(t *testing.T) {
	t.Helper()
	if err := s.cmd.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	if err := s.cmd.Wait(); err != nil {
		t.Fatalf("server: %v\n%s", err, s.errs)
	}
}

func TestServe(t *testing.T) {
	w := started(t)
	image := w.encrypted("web01.img", oldPassphrase)
	if err := os.Mkdir(w.path("out"), 0o700); err != nil {
		t.Fatal(err)
	}
	outside := w.encrypted("data/outside.img", oldPassphrase)
	if err := os.Mkdir(w.path("in"), 0o700); err != nil {
		t.Fatal(err)
	}
	inside := w.path("in/web01.img")
	if err := os.Rename(image, inside); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(outside, w.path("in/link.img")); err != nil {
		t.Fatal(err)
	}
	s := w.serve("--allow-source", w.path("in"), "--allow-target", w.path("out"))
	info, err := os.Stat(dataDir(w.data).socket())
	if err != nil || info.Mode().Perm() != 0o600 {
		t.Fatalf("socket: %v %v", info.Mode(), err)
	}

	// The same commands find it.
	w.ok("", "machine", "add", "web01", "--disk", "vda="+inside)
	w.add(oldPassphrase)
	p := w.backup(api.StateProven)
	target := w.path("out/restored.img")
	w.ok("", "restore", p.ID, "--disk", "vda="+target)
	if len(w.opens(target, oldPassphrase)) == 0 {
		t.Error("what the server restored does not open")
	}
	for _, e := range asked[[]api.AuditEntry](w, 0, "", "audit", "list")[1:] {
		if e.Actor != "uid:"+strings.TrimSpace(uid()) {
			t.Errorf("entry %d (%s) is by %q", e.Index, e.Action, e.Actor)
		}
	}

	// It opens nothing but what it is allowed to.
	for name, args := range map[string][]string{
		"source outside": {"machine", "add", "db01", "--disk", "vda=" + outside},
		"source by link": {"machine", "add", "db01", "--disk", "vda=" + w.path("in/link.img")},
		"source by dots": {"machine", "add", "db01", "--disk", "vda=" + w.path("in") + "/../data/outside.img"},
		"source by URL":  {"machine", "add", "db01", "--disk", "vda=FILE://" + outside},
		"header outside": {"machine", "add", "db01", "--disk", "vda=" + inside + ",header=" + outside},
		"target outside": {"restore", p.ID, "--disk", "vda=" + w.path("elsewhere.img")},
		"target by dots": {"restore", p.ID, "--disk", "vda=" + w.path("out") + "/../elsewhere.img"},
	} {
		if _, stderr := w.want(4, "", args...); !strings.Contains(stderr, "--allow-") {
			t.Errorf("%s: it says %s", name, stderr)
		}
	}
	if _, err := os.Stat(w.path("elsewhere.img")); err == nil {
		t.Error("it wrote outside of its folders")
	}

	// Two servers never share a data directory.
	second := w.program("serve")
	out, err := second.CombinedOutput()
	if code := second.ProcessState.ExitCode(); err == nil || code != 8 {
		t.Errorf("a second server: exit %d\n%s", code, out)
	}
	w.ok("", "status")
	w.redactedIn(s.errs.String())
	s.stop(t)
	if _, err := os.Stat(dataDir(w.data).socket()); err == nil {
		t.Error("the socket is left over")
	}
	w.ok("", "status")
	w.redacted()
	w.private()
}

// redactedIn looks for the passphrase in a text.
func (w *world) redactedIn(text string) {
	w.t.Helper()
	if strings.Contains(text, oldPassphrase) {
		w.t.Error("a secret is in the server's log")
	}
}

func uid() string {
	out, _ := exec.Command("id", "-u").Output()
	return string(out)
}

func TestKilledServerIsSucceeded(t *testing.T) {
	w := started(t)
	image := w.encrypted("web01.img", oldPassphrase)
	s := w.serve("--allow-source", w.dir)
	w.ok("", "machine", "add", "web01", "--disk", "vda="+image)
	w.add(oldPassphrase)
	w.backup(api.StateProven)

	// A job that runs when the server is killed: there is much to store.
	c := api.NewUnix(dataDir(w.data).socket())
	w.grow(image, 96<<20)
	j, err := c.Backup(context.Background(), api.BackupRequest{Machine: "web01", Full: true})
	if err != nil {
		t.Fatal(err)
	}
	if err := s.cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = s.cmd.Wait()
	if _, err := os.Stat(dataDir(w.data).socket()); err != nil {
		t.Fatalf("the killed server took its socket along: %v", err)
	}
	// The socket is stale; commands go on in their own process.
	w.ok("", "machine", "list")
	jobs := asked[[]api.Job](w, 0, "", "job", "list")
	i := slices.IndexFunc(jobs, func(x api.Job) bool { return x.ID == j.ID })
	if i < 0 {
		t.Fatalf("the job is forgotten: %+v", jobs)
	}
	if jobs[i].State != "failed" || jobs[i].Error == nil || !strings.Contains(jobs[i].Error.Detail, "died") {
		t.Errorf("the job of a server that died is %s: %v", jobs[i].State, jobs[i].Error)
	}
	w.backup(api.StateProven)
	// And so does another server.
	again := w.serve("--allow-source", w.dir)
	w.backup(api.StateProven)
	w.ok("", "audit", "verify")
	w.ok("", "verify")
	again.stop(t)
}

// grow appends random bytes to an image.
func (w *world) grow(image string, n int64) {
	w.t.Helper()
	w.edit(image, func(f *os.File) {
		if _, err := f.Seek(0, io.SeekEnd); err != nil {
			w.t.Fatal(err)
		}
		if _, err := io.CopyN(f, rand.Reader, n); err != nil {
			w.t.Fatal(err)
		}
	})
}

func TestSocketIsTheOwnersOnly(t *testing.T) {
	l, err := net.Listen("unix", newWorld(t).path("s"))
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	seen := make(chan string, 1)
	h := &http.Server{
		Handler: http.HandlerFunc(func(http.ResponseWriter, *http.Request) {}),
		ConnContext: func(ctx context.Context, c net.Conn) context.Context {
			id, known, err := hostos.Peer(c)
			if err != nil || known && id != os.Getuid() {
				seen <- "wrong peer"
			} else {
				seen <- ""
			}
			return identify(ctx, c)
		},
	}
	go func() { _ = h.Serve(ownerOnly{l}) }()
	defer h.Close()
	conn, err := net.Dial("unix", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if got := <-seen; got != "" {
		t.Error(got)
	}
}
