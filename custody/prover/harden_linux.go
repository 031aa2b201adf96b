package prover

import (
	"bytes"
	"fmt"
	"os"
	"runtime/debug"
	"strconv"

	"golang.org/x/sys/unix"
)

// overhead is what the program needs beside key derivation, in bytes.
const overhead = 256 << 20

// Harden makes this process one that holds secrets: no core dump, no other
// process of the user may attach to it, and, where memory (bytes) is not 0, no
// more than that and some overhead: then the process dies, and its parent lives.
func Harden(memory int64) error {
	if err := unix.Prctl(unix.PR_SET_DUMPABLE, 0, 0, 0, 0); err != nil {
		return fmt.Errorf("harden process: forbid attaching: %w", err)
	}
	if err := unix.Setrlimit(unix.RLIMIT_CORE, &unix.Rlimit{}); err != nil {
		return fmt.Errorf("harden process: forbid core dumps: %w", err)
	}
	debug.SetTraceback("none")
	if memory > 0 {
		limit := uint64(memory) + overhead
		if err := unix.Setrlimit(unix.RLIMIT_DATA, &unix.Rlimit{Cur: limit, Max: limit}); err != nil {
			return fmt.Errorf("harden process: limit memory: %w", err)
		}
		debug.SetMemoryLimit(memory + overhead/2)
	}
	return nil
}

// resetPeak makes peakRSS count from now. Where the system refuses (a process
// that is not dumpable may not, unless it is root's), it counts from the start.
func resetPeak() {
	f, err := os.OpenFile("/proc/self/clear_refs", os.O_WRONLY, 0)
	if err != nil {
		return
	}
	defer f.Close()
	_, _ = f.WriteString("5\n")
}

func peakRSS() int64 {
	status, err := os.ReadFile("/proc/self/status")
	if err != nil {
		return 0
	}
	for line := range bytes.Lines(status) {
		if rest, ok := bytes.CutPrefix(line, []byte("VmHWM:")); ok {
			kib, err := strconv.ParseInt(string(bytes.TrimSpace(bytes.TrimSuffix(bytes.TrimSpace(rest), []byte("kB")))), 10, 64)
			if err != nil {
				return 0
			}
			return kib << 10
		}
	}
	return 0
}
