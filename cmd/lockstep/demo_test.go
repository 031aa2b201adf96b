package main

import (
	"bytes"
	"context"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/lockstep-backup/lockstep/api"
	"github.com/lockstep-backup/lockstep/cmd/internal/demodisk"
	"github.com/lockstep-backup/lockstep/diskcrypt"
	"github.com/lockstep-backup/lockstep/diskcrypt/luks"
	"github.com/lockstep-backup/lockstep/envelope"
	"github.com/lockstep-backup/lockstep/internal/judge"
)

// demoProgram builds the program: the prover is the program run again, which
// the test binary is not.
func demoProgram(t *testing.T) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "lockstep")
	cmd := exec.Command("go", "build", "-o", path, ".")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("build: %v\n%s", err, out)
	}
	return path
}

// runProgram runs it with an environment of its own.
func runProgram(t *testing.T, program string, env []string, args ...string) (status int, stdout, stderr string) {
	t.Helper()
	var out, errs bytes.Buffer
	cmd := exec.Command(program, args...)
	cmd.Env = append(slices.Clone(env), "HOME="+t.TempDir())
	cmd.Stdout, cmd.Stderr = &out, &errs
	if err := cmd.Run(); err != nil && cmd.ProcessState == nil {
		t.Fatal(err)
	}
	return cmd.ProcessState.ExitCode(), out.String(), errs.String()
}

// inOrder fails where one of the parts does not follow the one before.
func inOrder(t *testing.T, text string, parts ...string) {
	t.Helper()
	rest := text
	for _, p := range parts {
		i := strings.Index(rest, p)
		if i < 0 {
			t.Fatalf("%q is missing, or not in its place, in:\n%s", p, text)
		}
		rest = rest[i+len(p):]
	}
}

func TestDemo(t *testing.T) {
	program := demoProgram(t)
	tmp := t.TempDir()
	status, story, errs := runProgram(t, program, []string{"TMPDIR=" + tmp}, "demo")
	if status != 0 {
		t.Fatalf("exit status %d\n%s\n%s", status, story, errs)
	}
	inOrder(t, story,
		"$ lockstep init --repository ./repository --kit ./kit.txt", "RECOVERY KIT",
		"$ lockstep machine add web01 --disk vda=./web01.img", "p1", "fat16", "p2", "luks2",
		"$ lockstep secret add web01", "it opens:", "vda/p2", "slot-0",
		"$ lockstep backup web01", "is proven", "full: ",
		"$ lockstep backup web01", "is proven", "incremental: ", "132.0 KiB changed",
		"$ lockstep backup web01", "unrecoverable", "UNRECOVERABLE", "(exit status 3)",
		"$ lockstep secret add web01", "proven now: ",
		"$ lockstep point list web01", "proven", "proven", "proven",
		"$ lockstep restore", "$ lockstep secret release web01@1", "the same as before the first backup", "January: 1 order",
		"$ lockstep secret destroy web01@1", "held by 2 recovery points", "(exit status 4)",
		"$ lockstep-recover list", "ready", "$ lockstep-recover open-check", "vda/p2 opens",
		"$ lockstep-recover restore", "verified", "$ lockstep-recover secrets", "cryptsetup open --key-file ./secrets/vda-p2.passphrase",
		"the same as before the first backup", "January: 1 order",
		"$ lockstep status", "deactivated", "active", "–", "opens", "opens", "–",
	)
	if strings.Contains(story, "\x1b") {
		t.Error("there are colours although this is no terminal")
	}
	for _, secret := range []string{"correct horse", "incorrect donkey", "AGE-SECRET-KEY-"} {
		if strings.Contains(story+errs, secret) {
			t.Errorf("the story shows %q", secret)
		}
	}
	left, err := os.ReadDir(tmp)
	if err != nil || len(left) > 0 {
		t.Errorf("left behind: %v %v", left, err)
	}
}

func TestDemoStays(t *testing.T) {
	program := demoProgram(t)
	dir := filepath.Join(t.TempDir(), "stays")
	status, story, errs := runProgram(t, program, []string{"DEMO_DIR=" + dir}, "demo")
	if status != 0 {
		t.Fatalf("exit status %d\n%s\n%s", status, story, errs)
	}
	status, out, errs := runProgram(t, program, nil, "status", "web01", "--data", filepath.Join(dir, "data"))
	if status != 0 || !strings.Contains(out, "proven") {
		t.Errorf("status: exit status %d\n%s\n%s", status, out, errs)
	}
	status, _, errs = runProgram(t, program, nil, "demo", "--dir", dir)
	if status != api.ExitTarget || !strings.Contains(errs, "is not empty") {
		t.Errorf("into a folder that is not empty: exit status %d\n%s", status, errs)
	}
	restored, err := os.ReadFile(filepath.Join(dir, "restored.img"))
	if err != nil {
		t.Fatal(err)
	}
	recovered, err := os.ReadFile(filepath.Join(dir, "recovered.img"))
	if err != nil || !bytes.Equal(restored, recovered) {
		t.Errorf("lockstep and lockstep-recover restore different disks (%v)", err)
	}

	t.Run("sgdisk", func(t *testing.T) {
		out, err := exec.Command(judge.Tool(t, "sgdisk"), "-v", filepath.Join(dir, "web01.img")).CombinedOutput()
		if err != nil || !strings.Contains(string(out), "No problems found") {
			t.Fatalf("%v\n%s", err, out)
		}
		judge.Decided(t, "sgdisk -v")
	})
	t.Run("cryptsetup", func(t *testing.T) {
		tool := judge.Tool(t, "cryptsetup")
		for image, opens := range map[string]string{"web01.img": "spring", "restored.img": "winter"} {
			volume := cut(t, filepath.Join(dir, image), demodisk.Root.Offset, demodisk.Root.Length)
			if out, err := exec.Command(tool, "luksDump", volume).CombinedOutput(); err != nil || !strings.Contains(string(out), "argon2id") {
				t.Errorf("luksDump of %s: %v\n%s", image, err, out)
			}
			for _, season := range []string{"winter", "spring"} {
				cmd := exec.Command(tool, "open", "--test-passphrase", volume)
				in, err := os.Open(filepath.Join(dir, season+".passphrase"))
				if err != nil {
					t.Fatal(err)
				}
				cmd.Stdin = in
				err = cmd.Run()
				_ = in.Close()
				if (err == nil) != (season == opens) {
					t.Errorf("%s with the passphrase of %s: %v", image, season, err)
				}
				judge.Decided(t, "cryptsetup open --test-passphrase")
			}
		}
		// As lockstep-recover says it: the file that it wrote is the key file.
		volume := cut(t, filepath.Join(dir, "recovered.img"), demodisk.Root.Offset, demodisk.Root.Length)
		out, err := exec.Command(tool, "open", "--test-passphrase", "--key-file", filepath.Join(dir, "secrets", "vda-p2.passphrase"), volume).CombinedOutput()
		if err != nil {
			t.Errorf("with the recovered secret: %v\n%s", err, out)
		}
		judge.Decided(t, "cryptsetup open --test-passphrase")
	})
	t.Run("fsck.fat", func(t *testing.T) {
		tool := judge.Tool(t, "fsck.fat")
		plain := filepath.Join(t.TempDir(), "plain")
		decrypt(t, filepath.Join(dir, "web01.img"), filepath.Join(dir, "spring.passphrase"), plain)
		for _, path := range []string{cut(t, filepath.Join(dir, "web01.img"), demodisk.Boot.Offset, demodisk.Boot.Length), plain} {
			if out, err := exec.Command(tool, "-n", path).CombinedOutput(); err != nil {
				t.Errorf("%s: %v\n%s", path, err, out)
			}
			judge.Decided(t, "fsck.fat -n")
		}
	})
}

// cut copies a range of a file into one of its own.
func cut(t *testing.T, path string, offset, length int64) string {
	t.Helper()
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = f.Close() }()
	return save(t, filepath.Join(t.TempDir(), "part"), io.NewSectionReader(f, offset, length))
}

func save(t *testing.T, path string, r io.Reader) string {
	t.Helper()
	b, err := io.ReadAll(r)
	if err == nil {
		err = os.WriteFile(path, b, 0o600)
	}
	if err != nil {
		t.Fatal(err)
	}
	return path
}

func decrypt(t *testing.T, image, passphrase, to string) {
	t.Helper()
	secret, err := envelope.ReadSecretFile(passphrase, true, nil)
	if err != nil {
		t.Fatal(err)
	}
	f, err := os.Open(image)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = f.Close() }()
	vol, err := luks.Format{}.Open(context.Background(), diskcrypt.Place{Data: demodisk.Partition{File: f, Range: demodisk.Root}, Size: demodisk.Root.Length}, diskcrypt.KindPassphrase, secret, diskcrypt.Limits{})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = vol.Close() }()
	save(t, to, io.NewSectionReader(vol, 0, vol.Size()))
}
