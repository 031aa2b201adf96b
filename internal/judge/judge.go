// Package judge finds the independent tools and fixtures that tests are
// judged by, and counts the cases each decided. With LOCKSTEP_REQUIRE_JUDGES=1
// a missing judge fails the test instead of skipping it. Only tests import it.
package judge

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"testing"
)

// Tool returns the path of an independent program, e.g. "cryptsetup", or ends
// the test: skipped, or failed where judges are required.
func Tool(tb testing.TB, name string) string {
	tb.Helper()
	dirs := []string{"", "/usr/sbin", "/sbin"}
	if cache, err := os.UserCacheDir(); err == nil {
		dirs = append(dirs, filepath.Join(cache, "lockstep-judges", "bin")) // .ci/judges builds some
	}
	for _, dir := range dirs {
		if p, err := exec.LookPath(filepath.Join(dir, name)); err == nil {
			return p
		}
	}
	Missing(tb, "program "+name)
	return ""
}

// Missing ends the test: skipped, or failed where judges are required.
func Missing(tb testing.TB, what string) {
	tb.Helper()
	if os.Getenv("LOCKSTEP_REQUIRE_JUDGES") == "1" {
		tb.Fatalf("judge missing: %s (LOCKSTEP_REQUIRE_JUDGES=1)", what)
	}
	tb.Skipf("judge missing: %s", what)
}

// Fixtures returns the folder with real images, $LOCKSTEP_FIXTURES or
// ../shared/fixtures beside the module's root, or ends the test like Tool.
func Fixtures(tb testing.TB) string {
	tb.Helper()
	dir := os.Getenv("LOCKSTEP_FIXTURES")
	if dir == "" {
		_, file, _, _ := runtime.Caller(0)
		dir = filepath.Join(filepath.Dir(file), "..", "..", "..", "shared", "fixtures")
	}
	if st, err := os.Stat(dir); err != nil || !st.IsDir() {
		Missing(tb, "fixtures folder "+dir)
	}
	return dir
}

// Decided records that a judge ("cryptsetup open --test-passphrase",
// "qemu-img convert", …) decided one case of this test. The lines go to the
// file $LOCKSTEP_JUDGE_LOG, from which the closing table is made.
func Decided(tb testing.TB, judge string) {
	tb.Helper()
	path := os.Getenv("LOCKSTEP_JUDGE_LOG")
	if path == "" {
		return
	}
	f, err := os.OpenFile(path, os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o644)
	if err != nil {
		tb.Fatalf("write judge log: %v", err)
	}
	defer f.Close()
	if _, err := fmt.Fprintf(f, "%s\t%s\n", judge, tb.Name()); err != nil {
		tb.Fatalf("write judge log: %v", err)
	}
}
