package diskcrypt_test

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/lockstep-backup/lockstep/diskcrypt"
	"github.com/lockstep-backup/lockstep/diskcrypt/luks"
	"github.com/lockstep-backup/lockstep/diskcrypt/luks/luksformat"
	"github.com/lockstep-backup/lockstep/envelope"
	"github.com/lockstep-backup/lockstep/internal/judge"
)

// memory is a device of bytes.
type memory []byte

func (m memory) ReadAt(p []byte, off int64) (int, error) { return bytes.NewReader(m).ReadAt(p, off) }

func (m memory) WriteAt(p []byte, off int64) (int, error) {
	if off+int64(len(p)) > int64(len(m)) {
		return 0, io.ErrShortWrite
	}
	return copy(m[off:], p), nil
}

const mib = 1 << 20

// luksAt formats a LUKS2 volume into a part of a disk.
func luksAt(t *testing.T, m memory, from, to int64) {
	t.Helper()
	v, err := luksformat.Format(memory(m[from:to]), to-from, luksformat.Options{KeyslotsSize: 512 << 10})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := v.AddKey(context.Background(), envelope.NewSecret([]byte("pw")), luksformat.KDF{}); err != nil {
		t.Fatal(err)
	}
}

func random(t *testing.T, b []byte) {
	t.Helper()
	if _, err := rand.Read(b); err != nil {
		t.Fatal(err)
	}
}

// mbr writes partitions of type 0x83, in bytes.
func mbr(m memory, parts ...[2]int64) {
	m[510], m[511] = 0x55, 0xaa
	for i, p := range parts {
		e := m[446+16*i:]
		e[4] = 0x83
		binary.LittleEndian.PutUint32(e[8:], uint32(p[0]/512))
		binary.LittleEndian.PutUint32(e[12:], uint32((p[1]-p[0])/512))
	}
}

func extMagic(b []byte) { b[1024+56], b[1024+57] = 0x53, 0xef }

func find(t *testing.T, m memory, opts diskcrypt.FindOptions) *diskcrypt.Report {
	t.Helper()
	opts.Formats = []diskcrypt.Format{luks.Format{}}
	rep, err := diskcrypt.Find(context.Background(), m, int64(len(m)), opts)
	if err != nil {
		t.Fatal(err)
	}
	return rep
}

// summary is "id=class …" of the areas, then "id:type" of the volumes.
func summary(rep *diskcrypt.Report) string {
	var s []string
	for _, a := range rep.Areas {
		s = append(s, a.ID+"="+a.Class)
	}
	for _, v := range rep.Volumes {
		s = append(s, v.ID+":"+v.Type)
	}
	return strings.Join(s, " ")
}

func TestFind(t *testing.T) {
	cases := []struct {
		name    string
		make    func(t *testing.T, m memory)
		want    string
		warning string // part of one
	}{
		{"whole disk", func(t *testing.T, m memory) { luksAt(t, m, 0, int64(len(m))) }, "disk=luks2 disk:luks2", ""},
		{"partitions", func(t *testing.T, m memory) {
			mbr(m, [2]int64{mib, 2 * mib}, [2]int64{2 * mib, 6 * mib}, [2]int64{6 * mib, 7 * mib}, [2]int64{7 * mib, 8 * mib})
			extMagic(m[mib:])
			luksAt(t, m, 2*mib, 6*mib)
			random(t, m[6*mib:7*mib])
		}, "disk=partition-table p1=ext2 p2=luks2 p3=opaque p4=empty p2:luks2 p3:opaque", ""},
		{"empty disk", func(*testing.T, memory) {}, "disk=empty", ""},
		{"text", func(_ *testing.T, m memory) {
			for i := range m {
				m[i] = "a database of no known kind "[i%28]
			}
		}, "disk=unknown", ""},
		{"opaque disk", func(t *testing.T, m memory) { random(t, m) }, "disk=opaque disk:opaque", ""},
		{"wiped start of an opaque disk", func(t *testing.T, m memory) { random(t, m[mib:]) }, "disk=opaque disk:opaque", ""},
		{"zeroes and text", func(_ *testing.T, m memory) { copy(m[5*mib:], bytes.Repeat([]byte("text"), mib/4)) }, "disk=unknown", ""},
		{"primary header gone", func(t *testing.T, m memory) {
			luksAt(t, m, 0, int64(len(m)))
			clear(m[:16<<10])
		}, "disk=luks2 disk:luks2", ""},
		{"damaged header", func(t *testing.T, m memory) {
			luksAt(t, m, 0, int64(len(m)))
			m[5000] ^= 1
			m[5000+16<<10] ^= 1
		}, "disk=luks2 disk:luks2", ""},
		{"header under an empty MBR", func(t *testing.T, m memory) {
			luksAt(t, m, 0, int64(len(m)))
			clear(m[:4096])
			mbr(m)
		}, "disk=luks2 disk:luks2", ""},
		{"remains under a table with partitions", func(t *testing.T, m memory) {
			luksAt(t, m, 0, int64(len(m)))
			clear(m[:4096])
			mbr(m, [2]int64{mib, 2 * mib})
			clear(m[mib : 2*mib])
		}, "disk=partition-table p1=empty", ""},
		{"LUKS over an old table", func(t *testing.T, m memory) {
			luksAt(t, m, 0, int64(len(m)))
			// LUKS1 and 2 leave byte 510 free: an old MBR shines through.
			mbr(m, [2]int64{mib, 2 * mib})
			luksformat.Checksum(m[:16<<10])
		}, "disk=luks2 disk:luks2", ""},
		{"BEK volume", func(_ *testing.T, m memory) {
			b := m[:512]
			copy(b, "\xeb\x3c\x90MSDOS5.0")
			binary.LittleEndian.PutUint16(b[11:], 512)
			b[13], b[14], b[16] = 2, 1, 2
			binary.LittleEndian.PutUint16(b[17:], 512)
			binary.LittleEndian.PutUint16(b[19:], 16384)
			b[21] = 0xf8
			binary.LittleEndian.PutUint16(b[22:], 32)
			b[38] = 0x29
			copy(b[43:], "BEK VOLUME FAT16   ")
			b[510], b[511] = 0x55, 0xaa
		}, "disk=fat16", "Azure Disk Encryption"},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			m := make(memory, 8*mib)
			c.make(t, m)
			rep := find(t, m, diskcrypt.FindOptions{})
			if got := summary(rep); got != c.want {
				t.Fatalf("got  %s\nwant %s\nwarnings %q", got, c.want, rep.Warnings)
			}
			if c.warning != "" && !strings.Contains(strings.Join(rep.Warnings, "\n"), c.warning) {
				t.Fatalf("warnings %q do not say %q", rep.Warnings, c.warning)
			}
			for _, v := range rep.Volumes {
				if v.Type == diskcrypt.TypeOpaque && v.Unsupported == "" {
					t.Error("an opaque volume without a reason")
				}
			}
		})
	}
}

func TestFindDetached(t *testing.T) {
	head := make(memory, mib)
	v, err := luksformat.Format(head, int64(len(head)), luksformat.Options{KeyslotsSize: 512 << 10, DataOffset: -1})
	if err != nil {
		t.Fatal(err)
	}
	data := make(memory, 4*mib)
	random(t, data)
	mbr(data, [2]int64{mib, 2 * mib}) // ciphertext may look like anything
	if _, err := v.AddKey(context.Background(), envelope.NewSecret([]byte("pw")), luksformat.KDF{}); err != nil {
		t.Fatal(err)
	}
	opts := diskcrypt.FindOptions{Detached: map[string]diskcrypt.Header{diskcrypt.WholeDisk: {R: head, Size: int64(len(head))}}}
	rep := find(t, data, opts)
	if summary(rep) != "disk=luks2 disk:luks2" || !rep.Volumes[0].Detached {
		t.Fatal(summary(rep))
	}
	opts.Detached = map[string]diskcrypt.Header{"p7": {R: head, Size: int64(len(head))}}
	opts.Formats = []diskcrypt.Format{luks.Format{}}
	if _, err := diskcrypt.Find(context.Background(), data, int64(len(data)), opts); err == nil {
		t.Fatal("a detached header for a volume that is not there was ignored")
	}
	opts.Detached = map[string]diskcrypt.Header{diskcrypt.WholeDisk: {R: data, Size: int64(len(data))}}
	if _, err := diskcrypt.Find(context.Background(), data, int64(len(data)), opts); err == nil {
		t.Fatal("a detached header that is none was ignored")
	}
}

type failing struct{ io.ReaderAt }

var errBadSector = errors.New("bad sector")

func (f failing) ReadAt([]byte, int64) (int, error) { return 0, errBadSector }

func TestFindReadError(t *testing.T) {
	if _, err := diskcrypt.Find(context.Background(), failing{}, mib, diskcrypt.FindOptions{}); !errors.Is(err, errBadSector) {
		t.Fatal(err)
	}
}

// TestFindFixtures: real disks and volumes of other software, by name.
func TestFindFixtures(t *testing.T) {
	dir := judge.Fixtures(t)
	for _, c := range []struct{ file, want, uuid string }{
		{"disk/disk-gpt-esp-boot-luks2-lvm.img.xz", "disk=partition-table p1=fat16 p2=ext4 p3=luks2 p3:luks2", ""},
		{"luks/blkid-luks2-pv.img.xz", "disk=lvm2-pv", ""},
		{"luks/luks2-detached-data.img.xz", "disk=opaque disk:opaque", ""},
	} {
		t.Run(filepath.Base(c.file), func(t *testing.T) {
			src := filepath.Join(dir, c.file)
			if _, err := os.Stat(src); err != nil {
				judge.Missing(t, src)
			}
			out, err := exec.Command(judge.Tool(t, "xz"), "-dc", src).Output()
			if err != nil {
				t.Fatal(err)
			}
			rep := find(t, out, diskcrypt.FindOptions{})
			if got := summary(rep); got != c.want {
				t.Fatalf("got  %s\nwant %s\nwarnings %q", got, c.want, rep.Warnings)
			}
			judge.Decided(t, "image "+c.file)
		})
	}
	t.Run("veracrypt", func(t *testing.T) {
		tmp := t.TempDir()
		if out, err := exec.Command(judge.Tool(t, "tar"), "-SxJf", filepath.Join(dir, "veracrypt/tcrypt-images.tar.xz"), "-C", tmp).CombinedOutput(); err != nil {
			t.Fatalf("tar: %v: %s", err, out)
		}
		n, opaque := 0, 0
		_ = filepath.WalkDir(tmp, func(path string, d os.DirEntry, _ error) error {
			b, err := os.ReadFile(path)
			if err != nil || len(b) < 256<<10 || strings.HasPrefix(d.Name(), "sys_") {
				return nil // folders, key files, and images cut down to less than a volume can be
			}
			n++
			rep := find(t, b, diskcrypt.FindOptions{})
			if len(rep.Volumes) == 1 && rep.Volumes[0].Type == diskcrypt.TypeOpaque {
				opaque++
				return nil
			}
			t.Errorf("%s: %s", filepath.Base(path), summary(rep))
			return nil
		})
		if t.Logf("%d of %d images are opaque", opaque, n); opaque == 0 {
			t.Error("none is called opaque")
		}
	})
	t.Run("bitlocker", func(t *testing.T) {
		tmp := t.TempDir()
		if out, err := exec.Command(judge.Tool(t, "tar"), "-SxJf", filepath.Join(dir, "bitlocker/bitlk-images.tar.xz"), "-C", tmp).CombinedOutput(); err != nil {
			t.Fatalf("tar: %v: %s", err, out)
		}
		var images []string
		_ = filepath.WalkDir(tmp, func(path string, _ os.DirEntry, _ error) error {
			if strings.HasSuffix(path, ".img") {
				images = append(images, path)
			}
			return nil
		})
		if len(images) < 20 {
			t.Fatalf("%d images", len(images))
		}
		for _, path := range images {
			f, err := os.Open(path)
			if err != nil {
				t.Fatal(err)
			}
			st, _ := f.Stat()
			rep, err := diskcrypt.Find(context.Background(), f, st.Size(), diskcrypt.FindOptions{Formats: []diskcrypt.Format{luks.Format{}}})
			f.Close()
			if err != nil || summary(rep) != "disk=bitlocker disk:bitlocker" {
				t.Errorf("%s: %s %v", filepath.Base(path), summary(rep), err)
				continue
			}
			v := rep.Volumes[0]
			if len(v.UUID) != 36 || v.Unsupported == "" {
				t.Errorf("%s: uuid %q, unsupported %q", filepath.Base(path), v.UUID, v.Unsupported)
				continue
			}
			dump, err := exec.Command(judge.Tool(t, "cryptsetup"), "bitlkDump", path).Output()
			if err == nil && bytes.Contains(dump, []byte("GUID:")) {
				if !strings.Contains(strings.ToLower(string(dump)), v.UUID) {
					t.Errorf("%s: bitlkDump does not know GUID %s", filepath.Base(path), v.UUID)
				}
				judge.Decided(t, "cryptsetup bitlkDump")
			}
		}
	})
}
