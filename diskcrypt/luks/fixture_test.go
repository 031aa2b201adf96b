package luks_test

import (
	"context"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/lockstep-backup/lockstep/diskcrypt"
	"github.com/lockstep-backup/lockstep/diskcrypt/internal/dmcrypt"
	"github.com/lockstep-backup/lockstep/diskcrypt/luks"
	"github.com/lockstep-backup/lockstep/envelope"
	"github.com/lockstep-backup/lockstep/internal/judge"
)

// unxz unpacks one image, sparse, into a temporary folder and returns its path.
func unxz(t *testing.T, name string) string {
	t.Helper()
	src := filepath.Join(judge.Fixtures(t), name)
	if _, err := os.Stat(src); err != nil {
		judge.Missing(t, "fixture "+name)
	}
	dst := filepath.Join(t.TempDir(), strings.TrimSuffix(filepath.Base(name), ".xz"))
	out, err := os.Create(dst)
	if err != nil {
		t.Fatal(err)
	}
	defer out.Close()
	cmd := exec.Command(judge.Tool(t, "xz"), "-dc", src)
	pipe, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	buf := make([]byte, 64<<10)
	var size int64
	for {
		n, err := io.ReadFull(pipe, buf)
		if n > 0 && strings.Trim(string(buf[:n]), "\x00") != "" {
			if _, err := out.WriteAt(buf[:n], size); err != nil {
				t.Fatal(err)
			}
		}
		size += int64(n)
		if err != nil {
			break
		}
	}
	if err := cmd.Wait(); err != nil {
		t.Fatal(err)
	}
	if err := out.Truncate(size); err != nil {
		t.Fatal(err)
	}
	return dst
}

// untar unpacks an archive of images and returns the folder.
func untar(t *testing.T, name string) string {
	t.Helper()
	src := filepath.Join(judge.Fixtures(t), name)
	if _, err := os.Stat(src); err != nil {
		judge.Missing(t, "fixture "+name)
	}
	dir := t.TempDir()
	if out, err := exec.Command(judge.Tool(t, "tar"), "-SxJf", src, "-C", dir).CombinedOutput(); err != nil {
		t.Fatalf("tar: %v: %s", err, out)
	}
	return dir
}

func place(t *testing.T, path string) diskcrypt.Place {
	t.Helper()
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	st, err := f.Stat()
	if err != nil {
		t.Fatal(err)
	}
	return diskcrypt.Place{Data: f, Size: st.Size()}
}

func pass(s string) envelope.Secret { return envelope.NewSecret([]byte(s)) }

// notes reads "PT size sha256" and the volume key from the text beside an image.
func notes(t *testing.T, name string) (size int64, sum, volumeKey, all string) {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(judge.Fixtures(t), name))
	if err != nil {
		judge.Missing(t, "fixture "+name)
	}
	for line := range strings.Lines(string(b)) {
		if f := strings.Fields(line); len(f) > 3 && f[0] == "PT" {
			fmt.Sscan(f[1], &size)
			sum = f[2]
		} else if len(f) >= 32 && len(f[0]) == 2 {
			volumeKey = strings.Join(f, "")
		}
	}
	return size, sum, volumeKey, string(b)
}

func shaOf(t *testing.T, r io.ReaderAt, n int64) string {
	t.Helper()
	h := sha256.New()
	if _, err := io.CopyBuffer(struct{ io.Writer }{h}, io.NewSectionReader(r, 0, n), make([]byte, 1<<20)); err != nil {
		t.Fatal(err)
	}
	return hex.EncodeToString(h.Sum(nil))
}

// missing is what Inspect says of a cipher that the engine does not have.
func missing(cipher string) string {
	if _, err := dmcrypt.ParseSpec(cipher); err != nil {
		return fmt.Sprintf("cipher %q", cipher)
	}
	return ""
}

func opensIf(cipher string) string {
	if missing(cipher) != "" {
		return ""
	}
	return "slot-0"
}

// TestGuestImages: images made by a Linux guest with the kernel's dm-crypt.
func TestGuestImages(t *testing.T) {
	ctx := context.Background()
	cases := []struct {
		name        string
		typ         string
		cipher      string
		keyBits     int
		protectors  int
		unsupported string // part of it
		opens       string // what OpensAll gives for fixture-pass, "" for none
	}{
		{"luks1-aes-xts-512-sha256-ext4", "luks1", "aes-xts-plain64", 512, 1, "", "slot-0"},
		{"luks1-twofish-xts-256-ripemd160-ext4", "luks1", "twofish-xts-plain64", 256, 1, missing("twofish-xts-plain64"), opensIf("twofish-xts-plain64")},
		{"luks2-aes-cbc-essiv-256-ext4", "luks2", "aes-cbc-essiv:sha256", 256, 1, "", "slot-0"},
		{"luks2-aes-xts-512-argon2id-ext4", "luks2", "aes-xts-plain64", 512, 1, "", "slot-0"},
		{"luks2-serpent-xts-512-ext4", "luks2", "serpent-xts-plain64", 512, 1, missing("serpent-xts-plain64"), opensIf("serpent-xts-plain64")},
		{"luks2-multislot-keyfile-token", "luks2", "aes-xts-plain64", 512, 3, "", "slot-0"},
		{"luks2-integrity-aes-xts-hmac-sha256-ext4", "luks2", "aes-xts-plain64", 768, 1, "", "slot-0"},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			p := place(t, unxz(t, "luks/"+c.name+".img.xz"))
			size, sum, vk, text := notes(t, "luks/"+c.name+".txt")
			v, err := luks.Format{}.Inspect(ctx, p)
			if err != nil {
				t.Fatal(err)
			}
			if v.Type != c.typ || v.Cipher != c.cipher || v.KeyBits != c.keyBits || len(v.Protectors) != c.protectors || len(v.Warnings) != 0 {
				t.Fatalf("inspect: %+v", v)
			}
			if !strings.Contains(v.Unsupported, c.unsupported) || (c.unsupported == "") != (v.Unsupported == "") {
				t.Fatalf("unsupported: %q, want %q", v.Unsupported, c.unsupported)
			}
			ids, err := luks.Format{}.OpensAll(ctx, p, diskcrypt.KindPassphrase, pass("fixture-pass"), diskcrypt.Limits{})
			if c.opens == "" {
				if !errors.Is(err, diskcrypt.ErrUnsupported) {
					t.Fatalf("opens all: %v %v", ids, err)
				}
			} else if err != nil || strings.Join(ids, " ") != c.opens {
				t.Fatalf("opens all: %v %v, want %s", ids, err, c.opens)
			}
			o, err := luks.Format{}.Open(ctx, p, diskcrypt.KindPassphrase, pass("fixture-pass"), diskcrypt.Limits{})
			if c.unsupported != "" {
				if !errors.Is(err, diskcrypt.ErrUnsupported) || !strings.Contains(err.Error(), c.unsupported) {
					t.Fatalf("open: %v", err)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			defer o.Close()
			if o.Size() != size || shaOf(t, o, size) != sum {
				t.Fatalf("plaintext of %d bytes differs from what the guest read (%d bytes)", o.Size(), size)
			}
			judge.Decided(t, "dm-crypt of the Linux kernel (sha256 of the decrypted device)")
			if _, err := (luks.Format{}).Open(ctx, p, diskcrypt.KindPassphrase, pass("fixture-pasS"), diskcrypt.Limits{}); !errors.Is(err, diskcrypt.ErrWrongSecret) {
				t.Fatalf("wrong passphrase: %v", err)
			}
			if vk != "" {
				key, _ := hex.DecodeString(vk)
				k, err := luks.Format{}.Open(ctx, p, diskcrypt.KindVolumeKey, envelope.NewSecret(key), diskcrypt.Limits{})
				if err != nil {
					t.Fatalf("volume key: %v", err)
				}
				if k.Protector() != "volume-key" || string(k.KeyMAC([]byte("k"))) != string(o.KeyMAC([]byte("k"))) {
					t.Fatal("the volume key given and the one unwrapped differ")
				}
			}
			if _, rest, ok := strings.Cut(text, "KEYFILE\n"); ok {
				var enc strings.Builder
				for line := range strings.Lines(rest) {
					if strings.Contains(line, " ") {
						break
					}
					enc.WriteString(strings.TrimSpace(line))
				}
				kf, err := base64.StdEncoding.DecodeString(enc.String())
				if err != nil {
					t.Fatal(err)
				}
				k, err := luks.Format{}.Open(ctx, p, diskcrypt.KindKeyFile, envelope.NewSecret(kf), diskcrypt.Limits{})
				if err != nil || k.Protector() != "slot-1" {
					t.Fatalf("key file: %v", err)
				}
				if k, err = (luks.Format{}).Open(ctx, p, diskcrypt.KindPassphrase, pass("second"), diskcrypt.Limits{}); err != nil || k.Protector() != "slot-2" {
					t.Fatalf("argon2id slot: %v", err)
				}
				if len(v.Tokens) != 2 || v.Tokens[0].Type != "vaultbackup" || strings.Join(v.Tokens[0].Slots, " ") != "slot-1" || v.Label == "" {
					t.Fatalf("tokens: %+v", v.Tokens)
				}
			}
		})
	}
}

func TestDetachedHeaderImage(t *testing.T) {
	ctx := context.Background()
	p := place(t, unxz(t, "luks/luks2-detached-data.img.xz"))
	if _, err := (luks.Format{}).Inspect(ctx, p); !errors.Is(err, diskcrypt.ErrNotThisFormat) {
		t.Fatalf("data without their header: %v", err)
	}
	h := place(t, unxz(t, "luks/luks2-detached-header.img.xz"))
	p.Header, p.HeadSize = h.Data, h.Size
	v, err := luks.Format{}.Inspect(ctx, p)
	if err != nil || !v.Detached || v.Unsupported != "" {
		t.Fatalf("%+v %v", v, err)
	}
	o, err := luks.Format{}.Open(ctx, p, diskcrypt.KindPassphrase, pass("fixture-pass"), diskcrypt.Limits{})
	if err != nil {
		t.Fatal(err)
	}
	size, sum, _, _ := notes(t, "luks/luks2-detached.txt")
	if o.Size() != size || shaOf(t, o, size) != sum {
		t.Fatal("plaintext differs from what the guest read")
	}
	judge.Decided(t, "dm-crypt of the Linux kernel (sha256 of the decrypted device)")
}

// TestCryptsetupImages: the images of cryptsetup's own test suite.
func TestCryptsetupImages(t *testing.T) {
	ctx := context.Background()
	t.Run("luks1-images", func(t *testing.T) {
		dir := filepath.Join(untar(t, "luks/luks1-images.tar.xz"), "luks1-images")
		kf, err := os.ReadFile(filepath.Join(dir, "keyfile1"))
		if err != nil {
			t.Fatal(err)
		}
		images, _ := filepath.Glob(filepath.Join(dir, "*.img"))
		if len(images) != 12 {
			t.Fatalf("%d images", len(images))
		}
		for _, path := range images {
			name := filepath.Base(path)
			p := place(t, path)
			v, err := luks.Format{}.Inspect(ctx, p)
			if err != nil || v.Type != "luks1" {
				t.Fatalf("%s: %v", name, err)
			}
			o, err := luks.Format{}.Open(ctx, p, diskcrypt.KindKeyFile, envelope.CopySecret(kf), diskcrypt.Limits{})
			if v.Unsupported != "" {
				if !strings.Contains(v.Unsupported, "lrw") && missing(v.Cipher) == "" {
					t.Errorf("%s: %s", name, v.Unsupported)
				}
				if strings.HasPrefix(v.Cipher, "aes-xts-plain") || v.Cipher == "aes-cbc-essiv:sha256" {
					t.Errorf("%s: not opened: %s", name, v.Unsupported)
				}
				if !errors.Is(err, diskcrypt.ErrUnsupported) {
					t.Errorf("%s: %v, unsupported %q", name, err, v.Unsupported)
				}
				continue
			}
			if err != nil {
				t.Errorf("%s: %v", name, err)
				continue
			}
			sector := make([]byte, 512)
			if _, err := o.ReadAt(sector, 0); err != nil || sector[510] != 0x55 || sector[511] != 0xaa {
				t.Errorf("%s: no FAT boot sector inside (%v)", name, err)
			}
			judge.Decided(t, "cryptsetup's image "+name)
		}
	})
	for _, c := range []struct{ file, typ string }{
		{"compatimage", "luks1"}, {"compatv10image", "luks1"}, {"compatimage2", "luks2"},
	} {
		t.Run(c.file, func(t *testing.T) {
			p := place(t, unxz(t, "luks/"+c.file+".img.xz"))
			v, err := luks.Format{}.Inspect(ctx, p)
			if err != nil || v.Type != c.typ {
				t.Fatalf("%+v %v", v, err)
			}
			o, err := luks.Format{}.Open(ctx, p, diskcrypt.KindPassphrase, pass("compatkey"), diskcrypt.Limits{})
			if err != nil {
				t.Fatalf("%v (%s)", err, v.Unsupported)
			}
			t.Logf("%s %s, %d bytes, opened by %s", v.Cipher, v.Protectors[0].KDF, o.Size(), o.Protector())
			judge.Decided(t, "cryptsetup's image "+c.file)
		})
	}
	t.Run("metadata sizes", func(t *testing.T) {
		images, _ := filepath.Glob(filepath.Join(untar(t, "luks/luks2_mda_images.tar.xz"), "test_image_*"))
		if len(images) != 9 {
			t.Fatalf("%d images", len(images))
		}
		for _, path := range images {
			v, err := luks.Format{}.Inspect(ctx, place(t, path))
			if err != nil || len(v.Warnings) > 0 {
				t.Errorf("%s: %+v %v", filepath.Base(path), v, err)
			}
			judge.Decided(t, "cryptsetup's image "+filepath.Base(path))
		}
	})
	t.Run("requirements", func(t *testing.T) {
		dir := untar(t, "luks/luks2_header_requirements.tar.xz")
		p := place(t, filepath.Join(dir, "luks2_header_requirements"))
		v, err := luks.Format{}.Inspect(ctx, p)
		if err != nil || !strings.Contains(v.Unsupported, `"req0"`) || !strings.Contains(v.Unsupported, `"req1"`) {
			t.Fatalf("%+v %v", v, err)
		}
		if _, err := (luks.Format{}).OpensAll(ctx, p, diskcrypt.KindPassphrase, pass("x"), diskcrypt.Limits{}); !errors.Is(err, diskcrypt.ErrUnsupported) {
			t.Fatal(err)
		}
		v, err = luks.Format{}.Inspect(ctx, place(t, filepath.Join(dir, "luks2_header_requirements_free")))
		if err != nil || v.Unsupported != "" {
			t.Fatalf("%+v %v", v, err)
		}
	})
	t.Run("impossible cipher", func(t *testing.T) {
		v, err := luks.Format{}.Inspect(ctx, place(t, unxz(t, "luks/luks2_invalid_cipher.img.xz")))
		if err != nil || !strings.Contains(v.Unsupported, "capi:xts(ecb(aes-generic))-plain64") {
			t.Fatalf("%+v %v", v, err)
		}
	})
	t.Run("unassigned key slot", func(t *testing.T) {
		v, err := luks.Format{}.Inspect(ctx, place(t, unxz(t, "luks/luks2_keyslot_unassigned.img.xz")))
		if err != nil || len(v.Protectors) != 2 {
			t.Fatalf("%+v %v", v, err)
		}
		if p := v.Protectors[1]; p.ID != "slot-1" || p.Offline || !strings.Contains(p.Note, "unbound") {
			t.Fatalf("%+v", p)
		}
	})
	t.Run("valid header", func(t *testing.T) {
		v, err := luks.Format{}.Inspect(ctx, place(t, unxz(t, "luks/luks2_valid_hdr.img.xz")))
		if err != nil || v.Unsupported != "" {
			t.Fatalf("%+v %v", v, err)
		}
	})
	t.Run("secondary under a physical volume", func(t *testing.T) {
		v, err := luks.Format{}.Inspect(ctx, place(t, unxz(t, "luks/blkid-luks2-pv.img.xz")))
		if err != nil || len(v.Warnings) == 0 || !strings.Contains(v.Warnings[0], "primary header is not valid") {
			t.Fatalf("%+v %v", v, err)
		}
	})
}

// TestConversionsInProgress: killed in the middle by SIGKILL. The plaintext is
// that of the file system that was encrypted.
func TestConversionsInProgress(t *testing.T) {
	ctx := context.Background()
	const size, sum = 3 << 20, "cc8cff3dc120bf98970380a4d0c8bf1c73f243f654f64321bda8802f838c0442"
	for _, c := range []struct{ file, conversion string }{
		{"luks2-reenc-midway-checksum", "re-encryption in progress, 7 % done"},
		{"luks2-encrypt-midway", "encryption in progress, 0 % done"},
	} {
		t.Run(c.file, func(t *testing.T) {
			p := place(t, unxz(t, "luks/"+c.file+".img.xz"))
			v, err := luks.Format{}.Inspect(ctx, p)
			if err != nil {
				t.Fatal(err)
			}
			if v.Conversion != c.conversion || v.Unsupported != "" || v.Epoch == "" {
				t.Fatalf("%q %q %q", v.Conversion, v.Unsupported, v.Epoch)
			}
			ids, err := luks.Format{}.OpensAll(ctx, p, diskcrypt.KindPassphrase, pass("fixture-pass"), diskcrypt.Limits{})
			if err != nil || ids[0] != "slot-0" {
				t.Fatalf("%v %v", ids, err)
			}
			o, err := luks.Format{}.Open(ctx, p, diskcrypt.KindPassphrase, pass("fixture-pass"), diskcrypt.Limits{})
			if err != nil {
				t.Fatal(err)
			}
			defer o.Close()
			if got := shaOf(t, o, size); got != sum {
				t.Fatalf("plaintext %s, want %s", got, sum)
			}
			judge.Decided(t, "cryptsetup reencrypt, killed (sha256 of what was encrypted)")
		})
	}
}

// TestHostileImages: cryptsetup refuses each of them; so do we, and say why.
func TestHostileImages(t *testing.T) {
	ctx := context.Background()
	for _, c := range []struct{ file, says string }{
		{"evil_hdr-keyslot_overlap", "overlap"},
		{"evil_hdr-luks_hdr_damage", "lies in the header"},
		{"evil_hdr-payload_overwrite", "beyond the device"},
		{"evil_hdr-small_luks_device", "beyond the device"},
		{"evil_hdr-stripes_payload_dmg", "stripes"},
	} {
		t.Run(c.file, func(t *testing.T) {
			p := place(t, unxz(t, "hostile/"+c.file+".xz"))
			v, err := luks.Format{}.Inspect(ctx, p)
			if !errors.Is(err, diskcrypt.ErrDamaged) || v == nil || v.UUID == "" {
				t.Fatalf("%+v %v", v, err)
			}
			if !strings.Contains(err.Error(), c.says) {
				t.Fatalf("%v does not say %q", err, c.says)
			}
			if _, err := (luks.Format{}).Open(ctx, p, diskcrypt.KindPassphrase, pass("x"), diskcrypt.Limits{}); !errors.Is(err, diskcrypt.ErrDamaged) {
				t.Fatal(err)
			}
			judge.Decided(t, "cryptsetup's image "+c.file)
		})
	}
}
