package main

import (
	"fmt"
	"os"
	"regexp"
	"syscall"
	"testing"
)

// A server holds keys as the prover does: no core dump, and nobody of the same
// user reads its memory.
func TestServerIsHardened(t *testing.T) {
	w := started(t)
	s := w.serve()
	defer s.stop(t)
	proc := fmt.Sprintf("/proc/%d", s.cmd.Process.Pid)
	limits, err := os.ReadFile(proc + "/limits")
	if err != nil {
		t.Fatal(err)
	}
	if !regexp.MustCompile(`(?m)^Max core file size\s+0\s+0\s`).Match(limits) {
		t.Errorf("it may leave a core dump:\n%s", limits)
	}
	// What is not dumpable is root's in /proc; run by root, that shows nothing.
	if os.Getuid() == 0 {
		t.Skip("as root, who may attach does not show")
	}
	info, err := os.Stat(proc + "/environ")
	if err != nil {
		t.Fatal(err)
	}
	if st := info.Sys().(*syscall.Stat_t); st.Uid != 0 {
		t.Error("other processes of the user may attach to it")
	}
}
