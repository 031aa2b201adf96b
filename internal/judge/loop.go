package judge

import (
	"os/exec"
	"strconv"
	"strings"
	"testing"
)

// Loop attaches the image file at path to a loop device of the given logical
// sector size until the test ends, and returns the device's path; a missing
// loop driver or missing rights end the test like Tool.
func Loop(tb testing.TB, path string, sectorSize int, args ...string) string {
	tb.Helper()
	losetup := Tool(tb, "losetup")
	args = append([]string{"--find", "--show", "--sector-size", strconv.Itoa(sectorSize)}, append(args, path)...)
	out, err := exec.Command(losetup, args...).Output()
	if err != nil {
		Missing(tb, "loop device ("+err.Error()+")")
	}
	device := strings.TrimSpace(string(out))
	tb.Cleanup(func() {
		if out, err := exec.Command(losetup, "--detach", device).CombinedOutput(); err != nil {
			tb.Errorf("detach %s: %v: %s", device, err, out)
		}
	})
	return device
}
