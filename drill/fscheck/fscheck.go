// Package fscheck has file systems checked by their own tools. A tool sees a
// file in a FUSE mount that only this user can look into: the plaintext, with a
// scratch disk over it that lives in memory and takes what a tool writes, e.g.
// when it applies a journal. Nothing else of the plaintext leaves the process.
// On systems other than Linux it refuses.
package fscheck

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os/exec"
	"strings"

	"github.com/lockstep-backup/lockstep/blockstack"
	"github.com/lockstep-backup/lockstep/custody"
	"github.com/lockstep-backup/lockstep/drill"
)

// Checker implements drill.Checker.
type Checker struct {
	// Tell is given what the tools say, for people: it may name files. nil = nobody.
	Tell func(format string, args ...any)
}

var _ drill.Checker = Checker{}

// check is one run of a tool.
type check struct {
	args []string
	// mean says what an exit status and the output mean: an outcome, and a word
	// for people that quotes nothing.
	mean func(status int, out string) (outcome, detail string)
}

// tool checks a class of file systems.
type tool struct {
	name    string
	version []string // arguments; nil: it is the first line of every run
	runs    []check
}

// clean is the rule of most: 0 is clean.
func clean(status int, _ string) (string, string) {
	if status == 0 {
		return custody.DrillPassed, "clean"
	}
	return custody.DrillFailed, fmt.Sprintf("found damage (exit status %d)", status)
}

var e2fsck = tool{
	name: "e2fsck", version: []string{"-V"},
	runs: []check{
		// The journal first, as a mount would: what it holds is no damage. Status 1:
		// it was applied. (Without a journal there is nothing to apply, status 8 or 0.)
		{[]string{"-y", "-E", "journal_only"}, func(status int, _ string) (string, string) {
			if status&^(1|8) == 0 {
				return custody.DrillPassed, ""
			}
			return custody.DrillFailed, fmt.Sprintf("the journal cannot be applied (exit status %d)", status)
		}},
		{[]string{"-f", "-n"}, clean},
	},
}

var fsckFAT = tool{
	name: "fsck.fat",
	runs: []check{{[]string{"-n"}, func(status int, out string) (string, string) {
		if status == 1 && strings.Contains(out, "Dirty bit is set") && strings.Count(out, "\n") <= 5 {
			return custody.DrillWarned, "was not unmounted; nothing else found"
		}
		return clean(status, out)
	}}},
}

// tools by class.
var tools = map[string]tool{
	blockstack.Ext2: e2fsck, blockstack.Ext3: e2fsck, blockstack.Ext4: e2fsck,
	blockstack.XFS: {name: "xfs_repair", version: []string{"-V"}, runs: []check{{[]string{"-n", "-f"}, func(status int, out string) (string, string) {
		if strings.Contains(out, "log which needs to be replayed") || strings.Contains(out, "log has valuable metadata") || strings.Contains(out, "valuable metadata changes in a log") {
			// What the log would mend counts as damage to the tool.
			return custody.DrillWarned, fmt.Sprintf("was in use: its log was not applied before the check (exit status %d)", status)
		}
		return clean(status, out)
	}}}},
	blockstack.NTFS: {name: "ntfsfix", version: []string{"-V"}, runs: []check{{[]string{"-n"}, func(status int, out string) (string, string) {
		if status != 0 && (strings.Contains(out, "is scheduled for check") || strings.Contains(out, "unclean") || strings.Contains(out, "hibernat")) {
			return custody.DrillWarned, fmt.Sprintf("was in use, or is to be checked by Windows (exit status %d)", status)
		}
		return clean(status, out)
	}}}},
	blockstack.FAT12: fsckFAT, blockstack.FAT16: fsckFAT, blockstack.FAT32: fsckFAT,
	blockstack.ExFAT: {name: "fsck.exfat", version: []string{"-V"}, runs: []check{{[]string{"-n"}, clean}}},
	blockstack.Btrfs: {name: "btrfs", version: []string{"--version"}, runs: []check{{[]string{"check", "--readonly", "--force"}, clean}}},
}

// packages are where Debian has them, for the hint.
var packages = map[string]string{
	"e2fsck": "e2fsprogs", "xfs_repair": "xfsprogs", "ntfsfix": "ntfs-3g", "fsck.fat": "dosfstools", "fsck.exfat": "exfatprogs", "btrfs": "btrfs-progs",
}

// Check runs the tool for a class. ErrNoTool where there is none.
func (c Checker) Check(ctx context.Context, class string, on *drill.Scratch) (f drill.Finding, err error) {
	t, ok := tools[class]
	if !ok {
		return f, fmt.Errorf("check %s: %w: none is known for it", class, drill.ErrNoTool)
	}
	path, err := lookPath(t.name)
	if err != nil {
		return f, fmt.Errorf("check %s: %w: %s, of the package %s", class, drill.ErrNoTool, t.name, packages[t.name])
	}
	file, unmount, err := show(on)
	if err != nil {
		return f, fmt.Errorf("check %s: %w", class, err)
	}
	defer func() { err = errors.Join(err, unmount()) }()
	used := custody.DrillTool{Name: t.name, Version: "unknown"}
	if t.version != nil {
		_, out, _ := run(ctx, path, t.version...)
		used.Version = versionIn(out)
	}
	for _, r := range t.runs {
		status, out, rerr := run(ctx, path, append(r.args[:len(r.args):len(r.args)], file)...)
		if t.version == nil {
			used.Version = versionIn(out)
		}
		f.Tools = []custody.DrillTool{used}
		if c.Tell != nil && out != "" {
			c.Tell("%s %s\n%s", t.name, strings.Join(r.args, " "), out)
		}
		if rerr != nil {
			return f, fmt.Errorf("check %s: %s: %w", class, t.name, rerr)
		}
		var what string
		f.Outcome, what = r.mean(status, out)
		f.Detail = t.name + ": " + what
		if f.Outcome == custody.DrillFailed {
			if errors.Is(on.Full(), drill.ErrScratchFull) {
				f.Outcome, f.Detail = custody.DrillWarned, t.name+": it had more to write than the memory for it"
			}
			break
		}
	}
	return f, nil
}

// lookPath finds a tool also where only root's PATH leads.
func lookPath(name string) (string, error) {
	path, err := exec.LookPath(name)
	for _, dir := range []string{"/usr/sbin/", "/sbin/"} {
		if err == nil {
			break
		}
		path, err = exec.LookPath(dir + name)
	}
	return path, err
}

// maxOutput is how much of what a tool says is kept: a damaged file system can
// be the reason for gigabytes.
const maxOutput = 1 << 20

// run runs a tool and tells its exit status.
func run(ctx context.Context, path string, args ...string) (status int, out string, err error) {
	cmd := exec.CommandContext(ctx, path, args...)
	cmd.Env = []string{"LC_ALL=C", "PATH=/usr/sbin:/usr/bin:/sbin:/bin"}
	var buf clipped
	cmd.Stdout, cmd.Stderr = &buf, &buf
	err = cmd.Run()
	if exit := (*exec.ExitError)(nil); errors.As(err, &exit) && exit.Exited() {
		err = nil
	}
	if ctx.Err() != nil {
		err = ctx.Err()
	}
	if err != nil {
		return 0, "", err
	}
	return cmd.ProcessState.ExitCode(), buf.String(), nil
}

// clipped keeps the beginning.
type clipped struct{ bytes.Buffer }

func (c *clipped) Write(p []byte) (int, error) {
	if room := maxOutput - c.Len(); room > 0 {
		c.Buffer.Write(p[:min(len(p), room)])
	}
	return len(p), nil
}

// versionIn is the first line in which a tool says its own.
func versionIn(out string) string {
	for line := range strings.Lines(out) {
		if line = strings.TrimSpace(line); strings.ContainsAny(line, "0123456789") {
			return line
		}
	}
	return "unknown"
}
