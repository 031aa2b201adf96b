package e2e

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/lockstep-backup/lockstep/diskcrypt/luks/luksformat"
	"github.com/lockstep-backup/lockstep/envelope"
)

// slowSlot gives the disk a key slot whose derivation takes a good part of a
// second, so that processes can be looked at while they hold the secret.
func slowSlot(path, known, phrase string) error {
	return withVolume(path, func(s section) error {
		v, err := luksformat.Attach(context.Background(), s, s.size, envelope.NewSecret([]byte(known)))
		if err != nil {
			return err
		}
		defer v.Close()
		if _, err := v.AddKey(context.Background(), envelope.NewSecret([]byte(phrase)), luksformat.KDF{Type: "argon2id", Time: 8, MemoryKiB: 64 << 10, Lanes: 1}); err != nil {
			return err
		}
		return v.RemoveKey(0)
	})
}

// seenProcess is a process that was seen.
type seenProcess struct{ cmdline, environ string }

// look reads what a process shows, "" where it may not be read or is gone.
func look(pid int) seenProcess {
	read := func(name string) string {
		b, _ := os.ReadFile(fmt.Sprintf("/proc/%d/%s", pid, name))
		return string(bytes.ReplaceAll(b, []byte{0}, []byte{' '}))
	}
	return seenProcess{read("cmdline"), read("environ")}
}

// group lists the processes of a process group.
func group(pgid int) []int {
	var pids []int
	entries, _ := os.ReadDir("/proc")
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		if err != nil {
			continue
		}
		if got, err := syscall.Getpgid(pid); err == nil && got == pgid {
			pids = append(pids, pid)
		}
	}
	return pids
}

// TestSecretsAreNotShown looks at every process that lockstep is, and at every
// file that it makes, for the secrets that it handles.
func TestSecretsAreNotShown(t *testing.T) {
	t.Parallel()
	const phrase = "a-passphrase-that-nobody-may-see"
	h := initialised(t)
	image := h.path("disk.img")
	if err := makeDisk(image, 16*mib, "first-of-all"); err != nil {
		t.Fatal(err)
	}
	if err := slowSlot(image, "first-of-all", phrase); err != nil {
		t.Fatal(err)
	}
	h.do(0, "machine", "add", "vm", "--disk", "vda="+image)
	h.do(3, "backup", "vm")
	pass := h.write("pass", phrase+"\n")
	provers := 0
	for _, c := range []struct {
		stdin string
		exit  int
		args  []string
	}{
		{phrase + "\n", 0, []string{"secret", "add", "vm", "--kind", "passphrase", "--file", "-"}},
		{"", 0, []string{"secret", "add", "vm", "--kind", "passphrase", "--file", pass, "--new"}},
		{"", 0, []string{"prove", "vm@latest"}},
		{"", 0, []string{"backup", "vm"}},
		{"", 0, []string{"secret", "release", "vm@1", "--reason", "test", "--to", h.path("released")}},
		{"", 0, []string{"restore", "vm@latest", "--disk", "vda=" + h.path("out.img")}},
	} {
		if c.args[0] == "secret" && c.args[1] == "release" {
			// Of two secrets one is named by its id.
			var secrets []struct{ ID string }
			h.ask(&secrets, []int{0}, "secret", "list")
			c.args[2] = secrets[0].ID + "@1"
		}
		cmd := h.command(c.args...)
		var out bytes.Buffer
		cmd.Stdin, cmd.Stdout, cmd.Stderr = strings.NewReader(c.stdin), &out, &out
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		ended := make(chan struct{})
		go func() { _ = cmd.Wait(); close(ended) }()
		sawProver := false
		for running := true; running; {
			for _, pid := range group(cmd.Process.Pid) {
				p := look(pid)
				if strings.Contains(p.cmdline+p.environ, phrase) {
					t.Fatalf("SECRET in the arguments or the environment of %q", strings.Fields(p.cmdline)[:2])
				}
				if f := strings.Fields(p.cmdline); len(f) > 1 && f[1] == "prover" {
					sawProver = true
					if strings.TrimSpace(p.environ) != "" {
						t.Errorf("the prover has an environment: %s", p.environ)
					}
				}
			}
			select {
			case <-ended:
				running = false
			case <-time.After(time.Millisecond): // looks a thousand times a second
			}
		}
		if sawProver {
			provers++
		}
		if got := cmd.ProcessState.ExitCode(); got != c.exit {
			t.Fatalf("%v: exit status %d\n%s", c.args, got, out.String())
		}
		if strings.Contains(out.String(), phrase) {
			t.Errorf("SECRET in the output of %v", c.args)
		}
		if left := group(cmd.Process.Pid); len(left) > 0 {
			t.Errorf("%v leaves processes behind: %v", c.args, left)
		}
	}
	if provers < 2 {
		t.Errorf("a prover was seen in %d runs only: nothing was looked at", provers)
	}
	// Nowhere in a file, but in those that were asked for.
	asked := []string{pass, h.path("released")}
	err := filepath.WalkDir(h.dir, func(p string, d os.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() || slices.Contains(asked, p) {
			return err
		}
		raw, err := os.ReadFile(p)
		if err == nil && bytes.Contains(raw, []byte(phrase)) {
			t.Errorf("SECRET in %s", p)
		}
		if st, serr := d.Info(); serr == nil && st.Mode().Perm()&0o077 != 0 && strings.HasPrefix(p, h.data+"/") {
			t.Errorf("%s has mode %04o", p, st.Mode().Perm())
		}
		return err
	})
	if err != nil {
		t.Error(err)
	}
}

// stopped runs a command until something appears below a folder of the data
// directory, and stops it there.
func (h *host) stopped(under string, args ...string) (resume func(sig ...syscall.Signal) result) {
	h.tb.Helper()
	w := newWatch(h.tb, h.data)
	defer w.close()
	cmd := h.command(args...)
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	if err := cmd.Start(); err != nil {
		h.tb.Fatal(err)
	}
	for deadline := time.Now().Add(time.Minute); ; {
		if slices.ContainsFunc(w.next(20*time.Millisecond), func(e event) bool { return strings.Contains(e.path, under) }) {
			break
		}
		if time.Now().After(deadline) {
			_ = syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL)
			_ = cmd.Wait()
			h.tb.Fatalf("nothing appeared in %s: %s", under, stderr.String())
		}
	}
	if err := syscall.Kill(-cmd.Process.Pid, syscall.SIGSTOP); err != nil {
		h.tb.Fatal(err)
	}
	return func(signals ...syscall.Signal) result {
		h.tb.Helper()
		for _, s := range append(signals, syscall.SIGCONT) {
			if err := syscall.Kill(-cmd.Process.Pid, s); err != nil {
				h.tb.Fatal(err)
			}
		}
		_ = cmd.Wait()
		return result{cmd.Args, stdout.String(), stderr.String(), cmd.ProcessState.ExitCode()}
	}
}

// TestBusy: of two backups of a machine at once one is refused, and nothing is
// lost; another machine's does not wait.
func TestBusy(t *testing.T) {
	t.Parallel()
	h := initialised(t)
	for _, name := range []string{"web01", "db02"} {
		if err := makeDisk(h.path(name), 16*mib, "passphrase-of-"+name); err != nil {
			t.Fatal(err)
		}
		h.do(0, "machine", "add", name, "--disk", "vda="+h.path(name))
		h.do(0, "secret", "add", name, "--kind", "passphrase", "--file", h.write(name+".pass", "passphrase-of-"+name))
	}
	resume := h.stopped("/~tmp/", "backup", "web01")
	r := h.run("", "backup", "web01")
	other := h.run("", "backup", "db02")
	first := resume()
	if r.exit != 8 || !strings.Contains(r.stderr, "web01") || !strings.Contains(r.stderr, "hint: ") {
		t.Errorf("the second backup: %v", r)
	}
	if other.exit != 0 {
		t.Errorf("another machine's backup: %v", other)
	}
	if first.exit != 0 {
		t.Errorf("the first backup: %v", first)
	}
	h.do(0, "backup", "web01")
	h.do(0, "verify")
	var points []point
	h.ask(&points, []int{0}, "point", "list", "web01")
	if len(points) != 2 {
		t.Errorf("%d recovery points of web01", len(points))
	}
}

// TestInterrupted: Ctrl-C ends with 130, says what stays, and the next run goes on.
func TestInterrupted(t *testing.T) {
	t.Parallel()
	h := initialised(t)
	if err := makeDisk(h.path("disk.img"), 64*mib, "some-passphrase"); err != nil {
		t.Fatal(err)
	}
	if err := scribble(h.path("disk.img"), 1, 9000); err != nil {
		t.Fatal(err)
	}
	h.do(0, "machine", "add", "vm", "--disk", "vda="+h.path("disk.img"))
	h.do(0, "secret", "add", "vm", "--kind", "passphrase", "--file", h.write("pass", "some-passphrase"))
	r := h.stopped("/~tmp/", "backup", "vm")(syscall.SIGINT)
	if r.exit != 130 || !strings.Contains(r.stderr, "interrupted") {
		t.Errorf("%v", r)
	}
	var points []point
	h.ask(&points, []int{0}, "point", "list", "vm")
	if len(points) != 0 {
		t.Errorf("an interrupted backup is listed: %v", points)
	}
	h.do(0, "backup", "vm")
	h.do(0, "restore", "vm@latest", "--disk", "vda="+h.path("out.img"))
	if err := same(h.path("disk.img"), h.path("out.img")); err != nil {
		t.Error(err)
	}
	h.do(0, "audit", "verify")
}

// TestDemo: the story of `make demo`, its exit statuses, and that nothing stays
// behind unless it is asked for.
func TestDemo(t *testing.T) {
	t.Parallel()
	h := newHost(t)
	tmp := h.path("tmp")
	if err := os.Mkdir(tmp, 0o700); err != nil {
		t.Fatal(err)
	}
	demo := func(env ...string) result {
		t.Helper()
		cmd := h.command("demo")
		cmd.Env = append(environ(env...), "TMPDIR="+tmp)
		r := run(t, cmd, "")
		if r.exit != 0 {
			t.Fatalf("%v", r)
		}
		for _, want := range []string{
			"RECOVERY KIT", "is proven", "incremental: ", "UNRECOVERABLE", "(exit status 3)", "proven now: ",
			"is restored", "(exit status 4)", "held by 2 recovery points", "lockstep-recover list", "web01  proven  3 recovery points",
		} {
			if !strings.Contains(r.stdout, want) {
				t.Errorf("the demo does not say %q: %v", want, r)
			}
		}
		// The picture: the newest opens with the second version, the others with the first.
		_, picture, _ := strings.Cut(r.stdout, "$ lockstep status")
		if strings.Count(picture, "opens") < 3 {
			t.Errorf("the picture: %s", picture)
		}
		return r
	}
	demo()
	if left, _ := os.ReadDir(tmp); len(left) > 0 {
		t.Errorf("the demo leaves behind %v", left)
	}
	if left, _ := os.ReadDir(h.dir); len(left) != 1 {
		t.Errorf("the demo leaves behind %v", left)
	}
	keep := h.path("kept")
	demo("DEMO_DIR=" + keep)
	if left, _ := os.ReadDir(tmp); len(left) > 0 {
		t.Errorf("the demo leaves behind %v", left)
	}
	for _, want := range []string{"data", "repository", "kit.txt"} {
		if _, err := os.Stat(filepath.Join(keep, want)); err != nil {
			t.Errorf("kept: %v", err)
		}
	}
	// What it kept can be looked at.
	cmd := h.command("status")
	cmd.Env = environ("LOCKSTEP_DATA=" + filepath.Join(keep, "data"))
	if r := run(t, cmd, ""); r.exit != 0 || !strings.Contains(r.stdout, "web01") {
		t.Errorf("%v", r)
	}
}
