package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"

	"github.com/lockstep-backup/lockstep/api"
	"github.com/lockstep-backup/lockstep/cli"
	"github.com/lockstep-backup/lockstep/diskcrypt/luks/luksformat"
)

// Whoever wants a core dump of a process that holds keys gets none, and what it
// says when it dies has no secret in it: not where the shell allows dumps, nor
// where Go's runtime was told to make one.
func TestCrashLeavesNoSecrets(t *testing.T) {
	w, disk := web(t)
	w.add(oldPassphrase)
	w.backup(api.StateProven)
	secrets := w.volumeKeyOf(disk, oldPassphrase)
	secrets["passphrase"] = []byte(oldPassphrase)

	for _, signal := range []syscall.Signal{syscall.SIGSEGV, syscall.SIGABRT, syscall.SIGQUIT} {
		t.Run(signal.String(), func(t *testing.T) {
			cwd := t.TempDir()
			inner := w.program("-o", "json", "export", "web01@latest", "--nbd", "unix:"+filepath.Join(cwd, "s"), "--unlock", "--reason", "a crash")
			cmd := exec.Command("sh", append([]string{"-c", `ulimit -c unlimited 2>/dev/null; exec "$0" "$@"`}, inner.Args...)...)
			cmd.Env, cmd.Dir = append(inner.Env, "GOTRACEBACK=crash"), cwd
			var errs bytes.Buffer
			cmd.Stderr = &errs
			out, err := cmd.StdoutPipe()
			if err != nil {
				t.Fatal(err)
			}
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
			var ready cli.Exported
			if err := json.NewDecoder(out).Decode(&ready); err != nil || len(ready.Volumes) != 1 {
				_ = cmd.Process.Kill()
				t.Fatalf("%+v, %v, %v\n%s", ready, err, cmd.Wait(), errs.String())
			}
			proc := fmt.Sprintf("/proc/%d", cmd.Process.Pid)
			limits, err := os.ReadFile(proc + "/limits")
			if err != nil || !regexp.MustCompile(`(?m)^Max core file size\s+0\s+0\s`).Match(limits) {
				t.Errorf("it may leave a core dump, %v:\n%s", err, limits)
			}
			// What is not dumpable is root's in /proc, and only who may trace it reads it.
			if os.Getuid() != 0 {
				if f, err := os.Open(proc + "/mem"); err == nil {
					_ = f.Close()
					t.Error("another process of the user may read its memory")
				}
			}
			if err := cmd.Process.Signal(signal); err != nil {
				t.Fatal(err)
			}
			_, _ = io.Copy(io.Discard, out)
			_ = cmd.Wait()
			status, ok := cmd.ProcessState.Sys().(syscall.WaitStatus)
			if !ok || status.CoreDump() || status.Exited() && status.ExitStatus() == 0 {
				t.Errorf("it ended with %v", cmd.ProcessState)
			}
			files, err := os.ReadDir(cwd)
			if err != nil {
				t.Fatal(err)
			}
			for _, f := range files {
				if strings.Contains(f.Name(), "core") {
					t.Errorf("it left %s", f.Name())
				}
			}
			for name, secret := range secrets {
				for _, form := range [][]byte{secret, fmt.Appendf(nil, "%x", secret), fmt.Appendf(nil, "%d", secret)} {
					if bytes.Contains(errs.Bytes(), form) {
						t.Errorf("what it said has the %s in it", name)
					}
				}
			}
		})
	}
}

// volumeKeyOf are pieces of the volume key of an image.
func (w *world) volumeKeyOf(path, passphrase string) map[string][]byte {
	w.t.Helper()
	out := map[string][]byte{}
	w.edit(path, func(f *os.File) {
		v, err := luksformat.Attach(w.t.Context(), f, diskSize, secretOf(passphrase))
		if err != nil {
			w.t.Fatal(err)
		}
		defer v.Close()
		key := v.VolumeKey().Expose()
		out["start of the volume key"], out["end of the volume key"] = key[:16], key[len(key)-16:]
	})
	return out
}
