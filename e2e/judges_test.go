package e2e

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/lockstep-backup/lockstep/internal/judge"
)

// quickFormat is cryptsetup luksFormat with a header that is made and tried quickly.
func quickFormat(t *testing.T, file, phrase string, more ...string) {
	t.Helper()
	args := append([]string{
		"luksFormat", "-q", "--type", "luks2", "--pbkdf", "pbkdf2", "--pbkdf-force-iterations", "1000",
		"--luks2-metadata-size", "16k", "--luks2-keyslots-size", "1M", "--key-file", "-",
	}, more...)
	tool(t, phrase, judge.Tool(t, "cryptsetup"), append(args, file)...)
}

// opens says whether cryptsetup opens the volume in a file.
func opens(t *testing.T, file, phrase string, more ...string) bool {
	t.Helper()
	args := append([]string{"open", "--test-passphrase", "--key-file", "-"}, more...)
	r := run(t, toolCommand(judge.Tool(t, "cryptsetup"), append(args, file)...), phrase)
	if r.exit != 0 && r.exit != 2 { // 2: no key available with this passphrase
		t.Fatalf("%v", r)
	}
	judge.Decided(t, "cryptsetup open --test-passphrase")
	return r.exit == 0
}

// cryptsetupDisk makes a disk with sgdisk and cryptsetup, without code of ours.
type cryptsetupDisk struct {
	path      string
	partition string // a file with partition 2
	start     int64
	size      int64
}

func newCryptsetupDisk(t *testing.T, dir, phrase string) cryptsetupDisk {
	t.Helper()
	d := cryptsetupDisk{path: filepath.Join(dir, "cs.img"), partition: filepath.Join(dir, "cs.p2"), start: 4 * mib, size: 12 * mib}
	for path, size := range map[string]int64{d.path: 20 * mib, d.partition: d.size} {
		f, err := os.Create(path)
		if err != nil {
			t.Fatal(err)
		}
		if err := f.Truncate(size); err != nil {
			t.Fatal(err)
		}
		f.Close()
	}
	sector := func(n int64) string { return strconv.FormatInt(n/512, 10) }
	tool(t, "", judge.Tool(t, "sgdisk"), "-o", "-n", "1:2048:"+sector(4*mib-512), "-n", "2:"+sector(d.start)+":"+sector(d.start+d.size-512), d.path)
	quickFormat(t, d.partition, phrase)
	d.put(t)
	return d
}

// put writes the partition's file into the disk.
func (d cryptsetupDisk) put(t *testing.T) {
	t.Helper()
	raw, err := os.ReadFile(d.partition)
	if err != nil {
		t.Fatal(err)
	}
	f, err := os.OpenFile(d.path, os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := f.WriteAt(raw, d.start); err != nil {
		t.Fatal(err)
	}
}

// partitionOf takes partition 2 out of a restored disk.
func (d cryptsetupDisk) partitionOf(t *testing.T, image string) string {
	t.Helper()
	to := image + ".p2"
	if err := copyRange(image, to, d.start, d.size); err != nil {
		t.Fatal(err)
	}
	return to
}

// TestCryptsetup: what cryptsetup made and changed is proven, restored, and
// opened by cryptsetup with the secret of its time and no other.
func TestCryptsetup(t *testing.T) {
	t.Parallel()
	cryptsetup := judge.Tool(t, "cryptsetup")
	h := initialised(t)
	d := newCryptsetupDisk(t, h.dir, "the-old-passphrase")
	h.do(0, "machine", "add", "vm", "--disk", "vda="+d.path)
	h.do(0, "secret", "add", "vm", "--kind", "passphrase", "--file", h.write("old", "the-old-passphrase\n"))
	var first, second point
	h.ask(&first, []int{0}, "backup", "vm")
	before := sum(t, d.path)
	oldHeader := h.path("old.header")
	tool(t, "", cryptsetup, "luksHeaderBackup", "--header-backup-file", oldHeader, d.partition)

	tool(t, "", cryptsetup, "luksChangeKey", "-q", "--pbkdf", "pbkdf2", "--pbkdf-force-iterations", "1000",
		"--key-file", h.write("old.raw", "the-old-passphrase"), d.partition, h.write("new.raw", "the-new-passphrase"))
	d.put(t)
	h.ask(&second, []int{3}, "backup", "vm")
	h.do(0, "secret", "add", "vm", "--kind", "passphrase", "--file", h.write("new", "the-new-passphrase\n"))

	for _, c := range []struct {
		p              point
		right, wrong   string
		headerOfLaptop string
	}{
		{first, "the-old-passphrase", "the-new-passphrase", oldHeader},
		{second, "the-new-passphrase", "the-old-passphrase", ""},
	} {
		image := h.path(c.p.ID + ".img")
		h.do(0, "restore", c.p.ID, "--disk", "vda="+image)
		part := d.partitionOf(t, image)
		dump := tool(t, "", cryptsetup, "luksDump", part)
		if !strings.Contains(dump, "aes-xts-plain64") || !strings.Contains(dump, "Keyslots:") {
			t.Errorf("luksDump of a restored volume:\n%s", dump)
		}
		judge.Decided(t, "cryptsetup luksDump of restored volumes")
		if !opens(t, part, c.right) || opens(t, part, c.wrong) {
			t.Errorf("recovery point %s does not open with the secret of its time and no other", c.p.ID)
		}
		tool(t, "", judge.Tool(t, "sgdisk"), "-v", image)
		judge.Decided(t, "sgdisk -v of restored disks")

		// The exported header, put back where there is none any more.
		exported := h.path(c.p.ID + ".header")
		h.do(0, "header", "export", c.p.ID+"/vda/p2", "--to", exported)
		if c.headerOfLaptop != "" {
			if err := same(exported, c.headerOfLaptop); err != nil {
				t.Errorf("our header export and cryptsetup luksHeaderBackup: %v", err)
			}
			judge.Decided(t, "cryptsetup luksHeaderBackup")
		}
		tool(t, "", "dd", "if=/dev/zero", "of="+part, "bs=1M", "count=1", "conv=notrunc", "status=none")
		if r := run(t, toolCommand(cryptsetup, "isLuks", part), ""); r.exit == 0 {
			t.Fatal("the wiped copy is LUKS still")
		}
		tool(t, "", cryptsetup, "luksHeaderRestore", "-q", "--header-backup-file", exported, part)
		if !opens(t, part, c.right) || opens(t, part, c.wrong) {
			t.Errorf("the exported header of %s does not open with the secret of its time and no other", c.p.ID)
		}
		judge.Decided(t, "cryptsetup luksHeaderRestore")
	}
	if got := sum(t, h.path(first.ID+".img")); got != before {
		t.Errorf("the oldest is restored as %s, was %s", got, before)
	}

	// A released secret is what cryptsetup takes as a key file.
	h.do(0, "secret", "release", "vm@1", "--reason", "drill", "--to", h.path("released"))
	part := d.partitionOf(t, h.path(first.ID+".img"))
	tool(t, "", cryptsetup, "open", "--test-passphrase", "--key-file", h.path("released"), part)
	judge.Decided(t, "cryptsetup open --key-file (released secret)")
}

// TestDetachedHeader: a header in a file of its own, made by cryptsetup.
func TestDetachedHeader(t *testing.T) {
	t.Parallel()
	h := initialised(t)
	data, header := h.path("data.img"), h.path("data.header")
	if err := os.WriteFile(data, noise(9, 8*mib), 0o600); err != nil {
		t.Fatal(err)
	}
	h.write("data.header", "")
	if err := os.Truncate(header, 4*mib); err != nil {
		t.Fatal(err)
	}
	quickFormat(t, data, "detached-passphrase", "--header", header)
	h.do(0, "machine", "add", "vm", "--disk", "vda=data.img,header=data.header")
	h.do(0, "secret", "add", "vm", "--kind", "passphrase", "--file", h.write("pass", "detached-passphrase"))
	var p point
	h.ask(&p, []int{0}, "backup", "vm")
	h.do(0, "restore", "vm@latest", "--disk", "vda="+h.path("out.img"))
	if err := same(data, h.path("out.img")); err != nil {
		t.Error(err)
	}
	h.do(0, "header", "export", "vm@latest/vda/"+p.Disks[0].Volumes[0].ID, "--to", h.path("exported"))
	if !opens(t, h.path("out.img"), "detached-passphrase", "--header", h.path("exported")) {
		t.Error("the restored disk does not open with the exported header")
	}
	if opens(t, h.path("out.img"), "another-passphrase", "--header", h.path("exported")) {
		t.Error("any passphrase opens it")
	}
	// The header is part of the machine: without it there is no backup.
	if err := os.Remove(header); err != nil {
		t.Fatal(err)
	}
	r := h.do(1, "backup", "vm")
	if !strings.Contains(r.stderr, "data.header") {
		t.Errorf("the missing header is not named: %v", r)
	}
}

// TestPlaintext: the decrypted content of a restored disk, read by qemu-img,
// is what qemu-img put into it.
func TestPlaintext(t *testing.T) {
	t.Parallel()
	qemu := judge.Tool(t, "qemu-img")
	h := initialised(t)
	plain, encrypted := h.path("plain.img"), h.path("luks1.img")
	if err := os.Mkdir(h.path("files"), 0o700); err != nil {
		t.Fatal(err)
	}
	h.write("files/letter.txt", strings.Repeat("as it was in March\n", 9999))
	tool(t, "", judge.Tool(t, "mkfs.ext4"), "-q", "-O", "^has_journal", "-N", "64", "-d", h.path("files"), plain, "8M")
	secret := h.write("secret", "qemu-passphrase")
	object := "secret,id=s0,file=" + secret
	// qemu-img measures this CPU for its iterations, and on a busy one gives up at times.
	retry := func(args ...string) {
		t.Helper()
		var r result
		for range 20 {
			if r = run(t, toolCommand(qemu, args...), ""); r.exit == 0 {
				return
			}
			if !strings.Contains(r.stderr, "CPU usage") {
				break
			}
		}
		t.Fatalf("%v", r)
	}
	retry("create", "-q", "--object", object, "-f", "luks", "-o", "key-secret=s0,cipher-alg=aes-256,cipher-mode=xts,ivgen-alg=plain64,iter-time=10", encrypted, "8M")
	open := "driver=luks,key-secret=s0,file.filename="
	retry("convert", "-n", "--object", object, "-f", "raw", "--target-image-opts", plain, open+encrypted)

	h.do(0, "machine", "add", "vm", "--disk", "vda="+encrypted)
	h.do(0, "secret", "add", "vm", "--kind", "passphrase", "--file", secret)
	h.do(0, "backup", "vm")
	var p point
	h.ask(&p, []int{0}, "point", "show", "vm@latest")
	if p.Disks[0].Volumes[0].Type != "luks1" {
		t.Errorf("%+v", p)
	}
	h.do(0, "restore", "vm@latest", "--disk", "vda="+h.path("restored.img"))
	retry("convert", "--object", object, "--image-opts", open+h.path("restored.img"), "-O", "raw", h.path("decrypted.img"))
	if got, want := tool(t, "", "sha256sum", h.path("decrypted.img")), tool(t, "", "sha256sum", plain); got[:64] != want[:64] {
		t.Errorf("decrypted by qemu-img: %s, was %s", got[:64], want[:64])
	}
	judge.Decided(t, "qemu-img convert of restored LUKS1 disks (sha256 of the plaintext)")
}

// TestBlockDevices: a block device as source and as target; one in use is
// refused, or recorded as torn on request.
func TestBlockDevices(t *testing.T) {
	t.Parallel()
	h := initialised(t)
	file := h.path("disk.img")
	if err := makeDisk(file, 16*mib, "passphrase-of-a-device"); err != nil {
		t.Fatal(err)
	}
	device := judge.Loop(t, file, 512, "--read-only")
	h.do(0, "machine", "add", "vm", "--disk", "vda="+device)
	h.do(0, "secret", "add", "vm", "--kind", "passphrase", "--file", h.write("pass", "passphrase-of-a-device"))
	h.do(0, "backup", "vm")

	// A target device, full of something else at first.
	if err := os.WriteFile(h.path("target.img"), noise(3, 20*mib), 0o600); err != nil {
		t.Fatal(err)
	}
	target := judge.Loop(t, h.path("target.img"), 512)
	r := h.do(7, "restore", "vm@latest", "--disk", "vda="+target)
	if got, err := sumRange(h.path("target.img"), 0, 1<<40); err != nil || got != sumOf(noise(3, 20*mib)) {
		t.Errorf("a refused restore wrote to the device (%v): %v", err, r)
	}
	// It is larger than the disk, too: both have to be said.
	h.do(7, "restore", "vm@latest", "--disk", "vda="+target, "--force")
	h.do(0, "restore", "vm@latest", "--disk", "vda="+target, "--force", "--larger")
	tool(t, "", "sync")
	got, err := sumRange(target, 0, 16*mib)
	if err != nil || got != sum(t, file) {
		t.Errorf("the device holds %s, want %s (%v)", got, sum(t, file), err)
	}
	judge.Decided(t, "sha256 of a restored block device")
	// One that is too small.
	if err := os.WriteFile(h.path("small.img"), make([]byte, 8*mib), 0o600); err != nil {
		t.Fatal(err)
	}
	h.do(7, "restore", "vm@latest", "--disk", "vda="+judge.Loop(t, h.path("small.img"), 512), "--force")

	// In use: mounted.
	plain := h.path("plain.img")
	tool(t, "", judge.Tool(t, "mkfs.ext4"), "-q", plain, "8M")
	mounted := judge.Loop(t, plain, 512)
	at := h.path("mnt")
	if err := os.Mkdir(at, 0o700); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command("mount", mounted, at).CombinedOutput(); err != nil {
		judge.Missing(t, "mounting: "+string(out))
	}
	defer func() {
		if out, err := exec.Command("umount", at).CombinedOutput(); err != nil {
			t.Errorf("umount: %v: %s", err, out)
		}
	}()
	h.do(0, "machine", "add", "live", "--disk", "vda="+mounted)
	r = h.do(4, "backup", "live")
	if !strings.Contains(r.stderr, "--allow-live") || !strings.Contains(r.stderr, mounted) {
		t.Errorf("the refusal names neither the device nor the way out: %v", r)
	}
	var torn struct{ Consistency string }
	h.ask(&torn, []int{0}, "backup", "live", "--allow-live")
	if torn.Consistency != "none" {
		t.Errorf("a torn read is recorded as %q", torn.Consistency)
	}
	r = h.do(7, "restore", "vm@latest", "--disk", "vda="+mounted, "--force")
	if !bytes.Contains([]byte(r.stderr), []byte("in use")) {
		t.Errorf("%v", r)
	}
}
