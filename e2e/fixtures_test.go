package e2e

import (
	"encoding/base64"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/lockstep-backup/lockstep/internal/judge"
)

// point is what scripts may rely on of a recovery point (docs/cli.md).
type point struct {
	ID           string   `json:"id"`
	State        string   `json:"state"`
	Transfer     string   `json:"transfer"`
	Parent       string   `json:"parent"`
	Why          []string `json:"why"`
	SelfOpening  bool     `json:"self_opening"`
	ChangedBytes int64    `json:"changed_bytes"`
	StoredBytes  int64    `json:"stored_bytes"`
	Disks        []struct {
		ID        string `json:"id"`
		SizeBytes int64  `json:"size_bytes"`
		Volumes   []struct {
			ID          string `json:"id"`
			Type        string `json:"type"`
			Cipher      string `json:"cipher"`
			Unsupported string `json:"unsupported"`
			Conversion  string `json:"conversion"`
			State       string `json:"state"`
			Protectors  []struct {
				ID       string   `json:"id"`
				OpenedBy []string `json:"opened_by"`
			} `json:"protectors"`
		} `json:"volumes"`
		Areas []struct{ ID, Class, Note string } `json:"areas"`
	} `json:"disks"`
}

// unpack unpacks a fixture into a folder and returns the folder.
func unpack(t *testing.T, dir, fixture string) string {
	t.Helper()
	from := filepath.Join(judge.Fixtures(t), fixture)
	if _, err := os.Stat(from); err != nil {
		judge.Missing(t, "fixture "+fixture)
	}
	xz := judge.Tool(t, "xz")
	if strings.HasSuffix(fixture, ".tar.xz") {
		tool(t, "", judge.Tool(t, "tar"), "-xSJf", from, "-C", dir)
		return dir
	}
	to := filepath.Join(dir, strings.TrimSuffix(filepath.Base(fixture), ".xz"))
	f, err := os.OpenFile(to, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	cmd := toolCommand(xz, "-dc", from)
	cmd.Stdout = f
	if err := cmd.Run(); err != nil {
		t.Fatal(err)
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	return dir
}

// protect enrols an image as a machine of its own, backs it up, and restores
// what was stored, bit for bit.
func (h *host) protect(name, image string, args ...string) point {
	h.tb.Helper()
	h.do(0, "machine", "add", name, "--disk", "vda="+image+strings.Join(args, ""))
	var p point
	h.ask(&p, []int{0, 3}, "backup", name)
	to := h.path(name + ".restored")
	if r := h.run("", "restore", p.ID, "--disk", "vda="+to); r.exit != 0 && r.exit != 3 {
		h.tb.Fatalf("%v", r)
	}
	if got, want := tool(h.tb, "", "sha256sum", to), tool(h.tb, "", "sha256sum", image); got[:64] != want[:64] {
		h.tb.Fatalf("%s is restored as %s, was %s", name, got[:64], want[:64])
	}
	judge.Decided(h.tb, "sha256sum of restored images")
	if err := os.Remove(to); err != nil {
		h.tb.Fatal(err)
	}
	return p
}

// TestLUKSImages protects every LUKS image that other software made: it is
// backed up and named, and where a secret is listed for it, proven.
func TestLUKSImages(t *testing.T) {
	t.Parallel()
	h := initialised(t)
	keyFile := func(name, content string) []string { return []string{"key-file", h.write(name, content)} }
	passphrase := func(p string) []string { return []string{"passphrase", h.write(p+".pass", p+"\n")} }
	type image struct {
		file, typ  string // "" = no volume is seen
		secret     []string
		state      string
		cipher     string
		unfinished bool // its conversion
	}
	var images []image
	add := func(dir string, list ...image) {
		for _, i := range list {
			i.file = filepath.Join(dir, i.file)
			images = append(images, i)
		}
	}
	dir := h.path("luks")
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	for _, f := range []string{
		"luks1-aes-xts-512-sha256-ext4", "luks1-twofish-xts-256-ripemd160-ext4", "luks2-aes-cbc-essiv-256-ext4", "luks2-aes-xts-512-argon2id-ext4",
		"luks2-serpent-xts-512-ext4", "luks2-multislot-keyfile-token", "luks2-integrity-aes-xts-hmac-sha256-ext4",
		"luks2-encrypt-midway", "luks2-reenc-midway-checksum", "compatimage", "compatimage2", "compatv10image",
		"luks2_valid_hdr", "luks2_invalid_cipher", "luks2_keyslot_unassigned", "blkid-luks2-pv",
	} {
		unpack(t, dir, "luks/"+f+".img.xz")
	}
	unpack(t, dir, "luks/luks1-images.tar.xz")
	unpack(t, dir, "luks/luks2_header_requirements.tar.xz")
	unpack(t, dir, "luks/luks2_mda_images.tar.xz")

	fixture, compat := passphrase("fixture-pass"), passphrase("compatkey")
	const proven, not = "proven", "unrecoverable"
	add(dir,
		image{"luks1-aes-xts-512-sha256-ext4.img", "luks1", fixture, proven, "aes-xts-plain64", false},
		image{"luks1-twofish-xts-256-ripemd160-ext4.img", "luks1", fixture, proven, "twofish-xts-plain64", false},
		image{"luks2-aes-cbc-essiv-256-ext4.img", "luks2", fixture, proven, "aes-cbc-essiv:sha256", false},
		image{"luks2-aes-xts-512-argon2id-ext4.img", "luks2", fixture, proven, "aes-xts-plain64", false},
		image{"luks2-serpent-xts-512-ext4.img", "luks2", fixture, proven, "serpent-xts-plain64", false},
		image{"luks2-multislot-keyfile-token.img", "luks2", fixture, proven, "aes-xts-plain64", false},
		image{"luks2-integrity-aes-xts-hmac-sha256-ext4.img", "luks2", fixture, proven, "", false},
		image{"luks2-encrypt-midway.img", "luks2", fixture, proven, "", true},
		image{"luks2-reenc-midway-checksum.img", "luks2", fixture, proven, "", true},
		image{"compatimage.img", "luks1", compat, proven, "", false},
		image{"compatv10image.img", "luks1", compat, proven, "", false},
		image{"compatimage2.img", "luks2", compat, proven, "", false},
		image{"luks2_valid_hdr.img", "luks2", nil, not, "", false},
		image{"luks2_invalid_cipher.img", "luks2", nil, not, "capi:xts(ecb(aes-generic))-plain64", false},
		image{"luks2_keyslot_unassigned.img", "luks2", nil, not, "", false},
		image{"luks2_header_requirements", "luks2", nil, not, "", false},
		image{"luks2_header_requirements_free", "luks2", nil, not, "", false},
	)
	for _, size := range []int{16, 32, 64, 128, 256, 512, 1024, 2048, 4096} {
		add(dir, image{fmt.Sprintf("test_image_%d", size), "luks2", nil, not, "", false})
	}
	raw, err := os.ReadFile(filepath.Join(dir, "luks1-images", "keyfile1"))
	if err != nil {
		t.Fatal(err)
	}
	key := keyFile("keyfile1", string(raw))
	found, _ := filepath.Glob(filepath.Join(dir, "luks1-images", "*.img"))
	if len(found) != 12 {
		t.Fatalf("%d LUKS1 images", len(found))
	}
	for _, f := range found {
		i := image{filepath.Base(f), "luks1", key, proven, "", false}
		if strings.Contains(i.file, "lrw") || strings.Contains(i.file, "wp256") { // named, not read
			i.secret, i.state = nil, not
		}
		add(filepath.Dir(f), i)
	}

	for _, i := range images {
		name := strings.TrimSuffix(filepath.Base(i.file), ".img")
		p := h.protect(name, i.file)
		if len(p.Disks) != 1 || len(p.Disks[0].Volumes) != 1 {
			t.Errorf("%s: %+v", name, p.Disks)
			continue
		}
		v := p.Disks[0].Volumes[0]
		if v.Type != i.typ || i.cipher != "" && v.Cipher != i.cipher || i.unfinished != (v.Conversion != "") {
			t.Errorf("%s: a volume of type %q, cipher %q, conversion %q", name, v.Type, v.Cipher, v.Conversion)
		}
		if p.State != "unrecoverable" {
			t.Errorf("%s is %s before any secret is in custody", name, p.State)
		}
		if i.secret != nil {
			if r := h.run("", "secret", "add", name, "--kind", i.secret[0], "--file", i.secret[1]); r.exit != 0 {
				t.Errorf("%s: %v", name, r)
				continue
			}
		}
		r := h.ask(&p, []int{0, 3}, "point", "show", name+"@latest")
		if p.State != i.state {
			t.Errorf("%s is %s, want %s: %v", name, p.State, i.state, r)
		}
		judge.Decided(t, "cryptsetup's and the kernel's images in ../shared/fixtures/luks")
		if err := os.Remove(i.file); err != nil {
			t.Error(err)
		}
	}

	// The key file and the other passphrase of the image with three slots.
	notes, err := os.ReadFile(filepath.Join(judge.Fixtures(t), "luks/luks2-multislot-keyfile-token.txt"))
	if err != nil {
		t.Fatal(err)
	}
	_, rest, _ := strings.Cut(string(notes), "KEYFILE\n")
	var encoded strings.Builder
	for line := range strings.Lines(rest) {
		if strings.Contains(line, " ") {
			break
		}
		encoded.WriteString(strings.TrimSpace(line))
	}
	kf, err := base64.StdEncoding.DecodeString(encoded.String())
	if err != nil {
		t.Fatal(err)
	}
	var opened struct {
		Opens []struct{ Protectors []string }
	}
	h.ask(&opened, []int{0}, "secret", "add", "luks2-multislot-keyfile-token", "--kind", "key-file", "--new", "--file", h.write("multislot.key", string(kf)))
	if len(opened.Opens) == 0 || strings.Join(opened.Opens[0].Protectors, " ") != "slot-1" {
		t.Errorf("the key file opens %v", opened)
	}
	h.ask(&opened, []int{0}, "secret", "add", "luks2-multislot-keyfile-token", "--kind", "passphrase", "--new", "--file", passphrase("second")[1])
	if len(opened.Opens) == 0 || strings.Join(opened.Opens[0].Protectors, " ") != "slot-2" {
		t.Errorf("the other passphrase opens %v", opened)
	}
	h.do(0, "verify")
}

// TestDetachedImage: data without a header are opaque, and open with it.
func TestDetachedImage(t *testing.T) {
	t.Parallel()
	h := initialised(t)
	unpack(t, h.dir, "luks/luks2-detached-data.img.xz")
	unpack(t, h.dir, "luks/luks2-detached-header.img.xz")
	data, header := h.path("luks2-detached-data.img"), h.path("luks2-detached-header.img")
	if p := h.protect("blind", data); p.State != "opaque" {
		t.Errorf("data without their header are %s", p.State)
	}
	p := h.protect("whole", data, ",header="+header)
	if p.State != "unrecoverable" || p.Disks[0].Volumes[0].Type != "luks2" {
		t.Fatalf("%+v", p)
	}
	h.do(0, "secret", "add", "whole", "--kind", "passphrase", "--file", h.write("pass", "fixture-pass"))
	h.do(0, "point", "show", "whole@latest")
	// The header went into the recovery point: the file is not needed any more.
	if err := os.Rename(header, header+".gone"); err != nil {
		t.Fatal(err)
	}
	h.do(0, "prove", "whole@latest")
	volume := p.Disks[0].Volumes[0].ID
	h.do(0, "header", "export", "whole@latest/vda/"+volume, "--to", h.path("exported"))
	cryptsetup := judge.Tool(t, "cryptsetup")
	tool(t, "fixture-pass", cryptsetup, "open", "--test-passphrase", "--key-file", "-", "--header", h.path("exported"), data)
	judge.Decided(t, "cryptsetup open --test-passphrase --header (exported)")
}

// TestOtherEncryption: what cannot be opened yet is named.
func TestOtherEncryption(t *testing.T) {
	t.Parallel()
	h := initialised(t)
	unpack(t, h.dir, "veracrypt/tcrypt-images.tar.xz")
	for _, f := range []string{"vc_1-sha512-xts-camellia-serpent-kuznyechik", "tc_4-sha512-xts-aes-hidden", "vck_1_nopw-sha512-xts-aes"} {
		if p := h.protect(f[:4]+f[len(f)-6:], h.path("tcrypt-images", f)); p.State != "opaque" {
			t.Errorf("%s is %s", f, p.State)
		}
		judge.Decided(t, "VeraCrypt's and TrueCrypt's images")
	}
}

// TestHostileImages: damaged and hostile headers are backed up like any disk.
func TestHostileImages(t *testing.T) {
	t.Parallel()
	h := initialised(t)
	for _, f := range []string{"keyslot_overlap", "luks_hdr_damage", "payload_overwrite", "small_luks_device", "stripes_payload_dmg"} {
		unpack(t, h.dir, "hostile/evil_hdr-"+f+".xz")
		p := h.protect(f, h.path("evil_hdr-"+f))
		if p.State == "proven" {
			t.Errorf("%s is proven", f)
		}
		if r := h.run("", "secret", "add", f, "--kind", "passphrase", "--file", h.write("pass", "compatkey")); r.exit != 5 && r.exit != 1 && r.exit != 6 && r.exit != 0 {
			t.Errorf("%s: %v", f, r)
		}
		judge.Decided(t, "cryptsetup's hostile headers")
	}
}

// TestWholeDiskImage: a disk with an ESP, /boot and LVM inside LUKS2.
func TestWholeDiskImage(t *testing.T) {
	t.Parallel()
	h := initialised(t)
	unpack(t, h.dir, "disk/disk-gpt-esp-boot-luks2-lvm.img.xz")
	image := h.path("disk-gpt-esp-boot-luks2-lvm.img")
	p := h.protect("vm", image)
	if len(p.Disks[0].Volumes) != 1 || p.Disks[0].Volumes[0].Type != "luks2" {
		t.Fatalf("%+v", p)
	}
	classes := map[string]bool{}
	for _, a := range p.Disks[0].Areas {
		classes[a.Class] = true
	}
	if !classes["ext4"] || !classes["partition-table"] || !(classes["vfat"] || classes["fat16"] || classes["fat32"] || classes["fat12"]) {
		t.Errorf("areas: %+v", p.Disks[0].Areas)
	}
	h.do(0, "secret", "add", "vm", "--kind", "passphrase", "--file", h.write("pass", "fixture-pass"))
	h.do(0, "point", "show", "vm@latest")
	h.do(0, "restore", "vm@latest", "--disk", "vda="+h.path("out.img"))
	tool(t, "", judge.Tool(t, "sgdisk"), "-v", h.path("out.img"))
	judge.Decided(t, "sgdisk -v of restored disks")
	if got, want := tool(t, "", judge.Tool(t, "sfdisk"), "--json", h.path("out.img")), tool(t, "", "sfdisk", "--json", image); strings.ReplaceAll(got, h.path("out.img"), image) != want {
		t.Errorf("sfdisk sees another table:\n%s\n%s", got, want)
	}
	judge.Decided(t, "sfdisk --json of restored disks")
}
