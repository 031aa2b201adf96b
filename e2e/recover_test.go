package e2e

import (
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/lockstep-backup/lockstep/internal/judge"
)

// TestRecover: the backup host is gone; a copy of the repository and the kit
// are left, and lockstep-recover, by the words that are printed on the kit.
func TestRecover(t *testing.T) {
	t.Parallel()
	h := newHost(t)
	h.do(0, "init", "--kit", h.kit, "--repository", h.path("repository"))
	d := newCryptsetupDisk(t, h.dir, "the-old-passphrase")
	h.do(0, "machine", "add", "vm", "--disk", "vda="+d.path)
	h.do(0, "secret", "add", "vm", "--kind", "passphrase", "--file", h.write("old", "the-old-passphrase\n"))
	var first, second point
	h.ask(&first, []int{0}, "backup", "vm")
	firstSum := sum(t, d.path)
	cryptsetup := judge.Tool(t, "cryptsetup")
	tool(t, "", cryptsetup, "luksChangeKey", "-q", "--pbkdf", "pbkdf2", "--pbkdf-force-iterations", "1000",
		"--key-file", h.write("old.raw", "the-old-passphrase"), d.partition, h.write("new.raw", "the-new-passphrase"))
	d.put(t)
	h.ask(&second, []int{3}, "backup", "vm")
	h.do(0, "secret", "add", "vm", "--kind", "passphrase", "--file", h.write("new", "the-new-passphrase\n"))

	// Everything burns but a copy of the repository, read-only, and the kit.
	safe := h.path("safe")
	if err := os.Mkdir(safe, 0o700); err != nil {
		t.Fatal(err)
	}
	tool(t, "", "cp", "-a", h.path("repository"), filepath.Join(safe, "copy"))
	tool(t, "", "cp", "-a", h.kit, filepath.Join(safe, "kit.txt"))
	for _, gone := range []string{h.data, h.path("repository"), h.kit, d.path, d.partition, h.path("old"), h.path("new"), h.path("old.raw"), h.path("new.raw")} {
		if err := os.RemoveAll(gone); err != nil {
			t.Fatal(err)
		}
	}
	kit, repository := filepath.Join(safe, "kit.txt"), filepath.Join(safe, "copy")
	before := tool(t, "", "sh", "-c", "cd '"+repository+"' && find . -type f -exec sha256sum {} + | sort")

	// The kit says what to type.
	raw, err := os.ReadFile(kit)
	if err != nil {
		t.Fatal(err)
	}
	commands := regexp.MustCompile(`(?m)^#\s+(lockstep-recover [a-z-]+ .*)$`).FindAllStringSubmatch(string(raw), -1)
	if len(commands) < 3 {
		t.Fatalf("the kit names %d commands:\n%s", len(commands), regexp.MustCompile(`AGE-SECRET-KEY-\S+`).ReplaceAllString(string(raw), "…"))
	}
	printed := map[string]bool{}
	for _, c := range commands {
		line := c[1]
		// The words in capitals are to be replaced; the repository lies elsewhere now.
		line = strings.ReplaceAll(line, "file://"+h.path("repository"), repository)
		for _, put := range [][2]string{
			{"THIS-FILE", kit},
			{"REPOSITORY", repository},
			{"POINT", first.ID},
			{"FILE-OR-DEVICE", filepath.Join(safe, "printed.img")},
			{"NEW-FOLDER", filepath.Join(safe, "printed")},
		} {
			line = strings.ReplaceAll(line, put[0], put[1])
		}
		args := strings.Fields(line)
		cmd := exec.Command(filepath.Join(bin, args[0]), args[1:]...)
		cmd.Dir, cmd.Env = safe, environ()
		r := run(t, cmd, "")
		if r.exit != 0 {
			t.Errorf("as the kit says: %v", r)
		}
		printed[args[1]] = true
	}
	if !printed["list"] || !printed["restore"] || !printed["secrets"] {
		t.Errorf("the kit tells of %v", printed)
	}

	flags := func(args ...string) []string { return append(args, "--repository", repository, "--identity", kit) }
	r := h.recover(0, flags("list")...)
	for _, p := range []point{first, second} {
		if !strings.Contains(r.stdout, p.ID[:8]) {
			t.Errorf("%s is not listed: %v", p.ID, r)
		}
	}
	for _, c := range []struct {
		p    point
		want string
		pass string
	}{{first, firstSum, "the-old-passphrase"}, {second, "", "the-new-passphrase"}} {
		image, secrets := h.path(c.p.ID+".img"), h.path(c.p.ID+".secrets")
		h.recover(0, flags("open-check", c.p.ID)...)
		h.recover(0, flags("restore", c.p.ID, "--disk", "vda="+image)...)
		if c.want != "" && sum(t, image) != c.want {
			t.Errorf("%s is not as it was", image)
		}
		r := h.recover(0, flags("secrets", c.p.ID, "--to", secrets)...)
		if strings.Contains(r.stdout+r.stderr, c.pass) {
			t.Error("the secret is printed")
		}
		files, _ := filepath.Glob(filepath.Join(secrets, "*"))
		if len(files) != 1 {
			t.Fatalf("secrets: %v", files)
		}
		st, err := os.Stat(files[0])
		if err != nil || st.Mode().Perm() != 0o600 {
			t.Errorf("%v %v", st.Mode(), err)
		}
		part := d.partitionOf(t, image)
		tool(t, "", cryptsetup, "open", "--test-passphrase", "--key-file", files[0], part)
		judge.Decided(t, "cryptsetup open --key-file (recovered secret)")

		header := h.path(c.p.ID + ".header")
		h.recover(0, flags("header", c.p.ID+"/vda/p2", "--to", header)...)
		tool(t, "", "dd", "if=/dev/zero", "of="+part, "bs=1M", "count=1", "conv=notrunc", "status=none")
		tool(t, "", cryptsetup, "luksHeaderRestore", "-q", "--header-backup-file", header, part)
		tool(t, "", cryptsetup, "open", "--test-passphrase", "--key-file", files[0], part)
		judge.Decided(t, "cryptsetup luksHeaderRestore (recovered header)")
		h.recover(7, flags("restore", c.p.ID, "--disk", "vda="+image)...)
	}
	h.recover(0, flags("verify")...)
	// It wrote nothing into the repository.
	if after := tool(t, "", "sh", "-c", "cd '"+repository+"' && find . -type f -exec sha256sum {} + | sort"); after != before {
		t.Error("the repository was written to")
	}

	// The kit of another installation.
	other := initialised(t)
	r = h.recover(4, "list", "--repository", repository, "--identity", other.kit)
	if strings.Contains(r.stdout, first.ID[:8]) {
		t.Errorf("another kit lists it: %v", r)
	}
	h.recover(2, "list", "--repository", repository)
}
