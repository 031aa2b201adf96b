//go:build linux

package main

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/lockstep-backup/lockstep/disk"
)

// makeImage writes noise around the page cache.
func (b *bench) makeImage() error {
	f, err := os.OpenFile(b.image, os.O_CREATE|os.O_TRUNC|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	defer f.Close()
	src := rand.NewChaCha8([32]byte{1})
	buf := disk.AlignedBuffer(4 << 20)
	for n := int64(0); n < b.size; n += int64(len(buf)) {
		_, _ = src.Read(buf)
		if _, err := f.Write(buf); err != nil {
			return err
		}
	}
	return f.Sync()
}

// settle brings the cache into the state that the run is about: empty, or with
// the image in it.
func (b *bench) settle() error {
	unix.Sync()
	if !b.warm {
		if err := os.WriteFile("/proc/sys/vm/drop_caches", []byte("3"), 0o200); err != nil {
			return fmt.Errorf("drop page cache (needs root): %w", err)
		}
		return nil
	}
	return exec.Command("dd", "if="+b.image, "of=/dev/null", "bs=4M", "status=none").Run()
}

// step runs a command and notes wall, CPU and peak memory of it and its children.
func (b *bench) step(name string, argv ...string) error {
	if err := b.settle(); err != nil {
		return err
	}
	cmd := exec.Command(argv[0], argv[1:]...)
	cmd.Env = append(os.Environ(), "RESTIC_PASSWORD=bench", "BORG_PASSPHRASE=bench", "BORG_UNKNOWN_UNENCRYPTED_REPO_ACCESS_IS_OK=yes",
		"KOPIA_PASSWORD=bench", "KOPIA_CONFIG_PATH="+b.path("kopia")+".config", "KOPIA_CHECK_FOR_UPDATES=false")
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	start := time.Now()
	err := cmd.Run()
	wall := time.Since(start).Seconds()
	if err != nil {
		return fmt.Errorf("%s: %w\n%s", name, err, out.Bytes())
	}
	usage, ok := cmd.ProcessState.SysUsage().(*syscall.Rusage)
	if !ok {
		return fmt.Errorf("%s: no resource usage", name)
	}
	b.wall[name] = append(b.wall[name], wall)
	b.cpu[name] = append(b.cpu[name], cmd.ProcessState.UserTime().Seconds()+cmd.ProcessState.SystemTime().Seconds())
	b.rss[name] = max(b.rss[name], usage.Maxrss)
	return nil
}

// engine runs one operation of ours in a process of its own.
func (b *bench) engine(name, command string, args ...string) error {
	self, err := os.Executable()
	if err != nil {
		return err
	}
	return b.step(name, append([]string{self, "engine", command, b.path("repo")}, args...)...)
}

// Names of the steps.
const (
	stepRef      = "R: dd, tee, openssl dgst"
	stepDD       = "dd direct → direct, fsync"
	stepRead     = "dd direct → /dev/null"
	stepBuffered = "dd buffered → /dev/null"
	stepOpenSSL  = "openssl dgst -sha256"
	stepCopy     = "cp, fsync"
	stepConvert  = "qemu-img convert, cache=none"
	stepFirst    = "first backup"
	stepSame     = "nothing changed, full scan"
	stepKnown    = "1 % changed as 64 KiB, ranges known"
	stepChanged  = "1 % changed as 64 KiB, full scan"
	stepRestore  = "restore to a new file"
	stepVerify   = "verify everything"
	stepPlain    = "dd direct of the repository"
	stepRestic   = "restic, first backup"
	stepBorg     = "borg, first backup"
	stepKopia    = "kopia FIXED-1M BLAKE3, first backup"
	stepResticRe = "restic, restore"
	stepBorgRe   = "borg, restore"
)

// rows are the table: a step, what it is compared with (the best of several
// where more are named), and the limits of wall and CPU ("" = none).
var rows = []struct {
	step    string
	against []string
	wall    string
	cpu     string
}{
	{stepRef, nil, "", ""},
	{stepDD, nil, "", ""},
	{stepCopy, []string{stepDD}, "", ""},
	{stepConvert, []string{stepDD}, "", ""},
	{stepRead, nil, "", ""},
	{stepBuffered, nil, "", ""},
	{stepOpenSSL, nil, "", ""},
	{stepFirst, []string{stepRef}, "0.45", "0.40"},
	{stepFirst, []string{stepDD}, "1.25 cold", ""},
	{stepFirst, []string{stepCopy}, "1.15 warm", ""},
	{stepFirst, []string{stepKopia}, "0.80", "0.60"},
	{stepSame, []string{stepRead, stepBuffered}, "1.15 cold", ""},
	{stepSame, []string{stepOpenSSL}, "", "0.5"},
	{stepChanged, []string{stepSame}, "1.15", ""},
	{stepKnown, []string{stepFirst}, "0.03", ""},
	{stepRestore, []string{stepDD}, "1.25 cold", ""},
	{stepPlain, nil, "", ""},
	{stepVerify, []string{stepPlain}, "1.15 cold", ""},
	{stepRestic, []string{stepFirst}, "", ""},
	{stepBorg, []string{stepFirst}, "", ""},
	{stepKopia, []string{stepFirst}, "", ""},
	{stepResticRe, []string{stepRestore}, "", ""},
	{stepBorgRe, []string{stepRestore}, "", ""},
}

func (b *bench) round(peers bool) error {
	for _, name := range []string{"repo", "copy", "restic", "borg", "kopia"} {
		if err := os.RemoveAll(b.path(name)); err != nil {
			return err
		}
	}
	type command struct {
		name string
		argv []string
	}
	for _, c := range []command{
		{stepRef, []string{"sh", "-c", "dd if='" + b.image + "' bs=4M status=none | tee '" + b.path("copy") + "' | openssl dgst -sha256 && sync '" + b.path("copy") + "'"}},
		{stepDD, []string{"dd", "if=" + b.image, "of=" + b.path("copy"), "bs=4M", "iflag=direct", "oflag=direct", "conv=fsync"}},
		{stepCopy, []string{"sh", "-c", "cp --reflink=never '" + b.image + "' '" + b.path("copy") + "' && sync '" + b.path("copy") + "'"}},
		{stepConvert, []string{"qemu-img", "convert", "-T", "none", "-t", "none", "-f", "raw", "-O", "raw", b.image, b.path("copy")}},
		{stepRead, []string{"dd", "if=" + b.image, "of=/dev/null", "bs=4M", "iflag=direct"}},
		{stepBuffered, []string{"dd", "if=" + b.image, "of=/dev/null", "bs=4M"}},
		{stepOpenSSL, []string{"openssl", "dgst", "-sha256", b.image}},
	} {
		if _, err := exec.LookPath(c.argv[0]); err != nil {
			continue
		}
		if err := b.step(c.name, c.argv...); err != nil {
			return err
		}
		_ = os.Remove(b.path("copy"))
	}
	for _, c := range []command{
		{stepFirst, []string{"backup", b.image}},
		{stepSame, []string{"backup", b.image}},
		{stepVerify, []string{"verify"}},
	} {
		if err := b.engine(c.name, c.argv[0], c.argv[1:]...); err != nil {
			return err
		}
	}
	if err := b.step(stepPlain, "sh", "-c", "find '"+b.path("repo")+"' -type f -size +64k -print0 | xargs -0 -n1 -I{} dd if={} of=/dev/null bs=4M iflag=direct status=none"); err != nil {
		return err
	}
	if err := b.engine(stepRestore, "restore", b.path("copy")); err != nil {
		return err
	}
	if out, err := exec.Command("cmp", b.image, b.path("copy")).CombinedOutput(); err != nil {
		return fmt.Errorf("restored image differs: %w\n%s", err, out)
	}
	_ = os.Remove(b.path("copy"))
	for _, name := range []string{stepKnown, stepChanged} {
		changed, err := b.churn(0.01, 64<<10)
		if err != nil {
			return err
		}
		args := []string{b.image}
		if name == stepKnown {
			if err := os.WriteFile(b.path("changed"), changed, 0o600); err != nil {
				return err
			}
			args = append(args, b.path("changed"))
		}
		if err := b.engine(name, "backup", args...); err != nil {
			return err
		}
	}
	if err := b.engine("check", "restore", b.path("copy")); err != nil {
		return err
	}
	if out, err := exec.Command("cmp", b.image, b.path("copy")).CombinedOutput(); err != nil {
		return fmt.Errorf("restored image differs: %w\n%s", err, out)
	}
	_ = os.Remove(b.path("copy"))
	if peers {
		return b.peers()
	}
	return nil
}

// churn overwrites a share of the image with noise, in pieces at random places,
// and returns the places: lines of offset and length.
func (b *bench) churn(share float64, piece int64) ([]byte, error) {
	f, err := os.OpenFile(b.image, os.O_WRONLY, 0)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	var seed [32]byte
	now := time.Now().UnixNano()
	for i := range 8 {
		seed[i] = byte(now >> (8 * i))
	}
	src := rand.NewChaCha8(seed)
	rnd := rand.New(src)
	buf := make([]byte, piece)
	var places bytes.Buffer
	n := int64(float64(b.size) * share / float64(piece))
	for _, at := range rnd.Perm(int(b.size / piece))[:n] {
		_, _ = src.Read(buf)
		if _, err := f.WriteAt(buf, int64(at)*piece); err != nil {
			return nil, err
		}
		fmt.Fprintln(&places, int64(at)*piece, piece)
	}
	return places.Bytes(), f.Sync()
}
