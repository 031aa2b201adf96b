package blockstack

import (
	"bytes"
	"crypto/rand"
	"encoding/binary"
	"hash/crc32"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/lockstep-backup/lockstep/internal/judge"
)

// blkid asks util-linux what a file is: TYPE, UUID, LABEL, SEC_TYPE, …
func blkid(t *testing.T, path string) map[string]string {
	t.Helper()
	out, err := exec.Command(judge.Tool(t, "blkid"), "-p", "-o", "export", path).Output()
	if err != nil {
		t.Fatalf("blkid: %v", err)
	}
	m := map[string]string{}
	for line := range strings.Lines(string(out)) {
		if k, v, ok := strings.Cut(strings.TrimSpace(line), "="); ok {
			m[k] = strings.ReplaceAll(v, `\ `, " ")
		}
	}
	return m
}

// TestAgainstMkfsAndBlkid: file systems made by their own tools, judged by blkid.
func TestAgainstMkfsAndBlkid(t *testing.T) {
	cases := []struct {
		name      string
		sizeMiB   int64
		tool      string
		args      string // IMG is the image
		class     string
		confirmed bool
		label     string
	}{
		{"ext2", 8, "mkfs.ext4", "-q -F -t ext2 -L lab IMG", Ext2, false, "lab"},
		{"ext3", 16, "mkfs.ext4", "-q -F -t ext3 -L lab IMG", Ext3, false, "lab"},
		{"ext4", 16, "mkfs.ext4", "-q -F -t ext4 -L lab IMG", Ext4, true, "lab"},
		{"ext4 without checksums", 16, "mkfs.ext4", "-q -F -t ext4 -O ^metadata_csum IMG", Ext4, false, ""},
		{"ext4 without journal", 16, "mkfs.ext4", "-q -F -t ext4 -O ^has_journal IMG", Ext4, true, ""},
		{"ext journal", 16, "mkfs.ext4", "-q -F -O journal_dev IMG", ExtLog, true, ""},
		{"xfs", 320, "mkfs.xfs", "-q -L lab IMG", XFS, true, "lab"},
		{"xfs 4k", 320, "mkfs.xfs", "-q -s size=4096 IMG", XFS, true, ""},
		{"xfs v4", 320, "mkfs.xfs", "-q -m crc=0 IMG", XFS, false, ""},
		{"btrfs", 128, "mkfs.btrfs", "-q -L lab IMG", Btrfs, true, "lab"},
		{"btrfs sha256", 128, "mkfs.btrfs", "-q --csum sha256 IMG", Btrfs, false, ""},
		{"fat12", 2, "mkfs.vfat", "-F 12 -n LAB IMG", FAT12, false, "LAB"},
		{"fat16", 16, "mkfs.vfat", "-F 16 -n LAB IMG", FAT16, false, "LAB"},
		{"fat32", 64, "mkfs.vfat", "-F 32 IMG", FAT32, false, ""},
		{"small fat32", 2, "mkfs.vfat", "-F 32 -n LAB IMG", FAT32, false, "LAB"},
		{"exfat", 16, "mkfs.exfat", "IMG", ExFAT, true, ""},
		{"ntfs", 16, "mkntfs", "-q -F -f IMG", NTFS, false, ""},
		{"swap", 4, "mkswap", "-L lab IMG", Swap, false, "lab"},
		{"swap 64k", 4, "mkswap", "-p 65536 IMG", Swap, false, ""},
		{"lvm2", 8, "pvcreate", "-ff -y --config devices{filter=[\"a|.*|\"] scan=\"DIR\" dir=\"DIR\"} IMG", LVM2, true, ""},
		{"iso9660", 0, "genisoimage", "-quiet -V LAB -o IMG DIR", ISO9660, false, "LAB"},
		{"squashfs", 0, "mksquashfs", "DIR IMG -quiet -no-progress", SquashFS, false, ""},
	}
	names := map[string]string{
		FAT12: "vfat", FAT16: "vfat", FAT32: "vfat", LVM2: "LVM2_member", ExtLog: "jbd",
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			dir := t.TempDir()
			img := filepath.Join(dir, "img")
			if c.sizeMiB > 0 {
				if err := os.WriteFile(img, nil, 0o600); err != nil {
					t.Fatal(err)
				}
				if err := os.Truncate(img, c.sizeMiB<<20); err != nil {
					t.Fatal(err)
				}
			} else if err := os.WriteFile(filepath.Join(dir, "file"), []byte("x"), 0o600); err != nil {
				t.Fatal(err)
			}
			content := dir
			tool := judge.Tool(t, c.tool)
			var args []string
			if c.tool == "pvcreate" {
				makePV(t, tool, img)
			} else {
				for _, a := range strings.Fields(c.args) {
					args = append(args, strings.NewReplacer("IMG", img, "DIR", content).Replace(a))
				}
				if out, err := exec.Command(tool, args...).CombinedOutput(); err != nil {
					t.Fatalf("%s: %v: %s", c.tool, err, out)
				}
			}
			b, err := os.ReadFile(img)
			if err != nil {
				t.Fatal(err)
			}
			found, err := Identify(bytes.NewReader(b), int64(len(b)))
			if err != nil || len(found) == 0 {
				t.Fatalf("nothing found: %v", err)
			}
			s := found[0]
			if s.Class != c.class || s.Confirmed != c.confirmed || s.Broken || s.Label != c.label {
				t.Fatalf("got %+v, want %s confirmed=%v label %q", s, c.class, c.confirmed, c.label)
			}
			if got := Class(b[:min(len(b), 128<<10)]); got != c.class {
				t.Errorf("by its first 128 KiB: %q", got)
			}
			says := blkid(t, img)
			want := c.class
			if n, ok := names[want]; ok {
				want = n
			}
			if says["TYPE"] != want || says["UUID"] != s.UUID && c.class != ISO9660 && c.class != SquashFS {
				t.Errorf("blkid says %q %q, we %q %q", says["TYPE"], says["UUID"], want, s.UUID)
			}
			if v, ok := strings.CutPrefix(c.class, "fat"); ok && says["VERSION"] != "FAT"+v {
				t.Errorf("blkid says %q", says["VERSION"])
			}
			judge.Decided(t, "blkid")
			if c.confirmed {
				damageOne(t, b, s)
			}
		})
	}
}

// makePV runs pvcreate on a file, which it takes for a device only where its
// device folder is.
func makePV(t *testing.T, tool, img string) {
	t.Helper()
	loop, err := exec.Command(judge.Tool(t, "losetup"), "-f", "--show", img).Output()
	if err != nil {
		judge.Missing(t, "loop devices")
	}
	dev := strings.TrimSpace(string(loop))
	defer func() { _ = exec.Command("losetup", "-d", dev).Run() }()
	if out, err := exec.Command(tool, "-ff", "-y", "--config", "devices{use_devicesfile=0} global{use_lvmpolld=0 locking_type=1}", dev).CombinedOutput(); err != nil {
		t.Fatalf("pvcreate: %v: %s", err, out)
	}
	if out, err := exec.Command("sync", dev).CombinedOutput(); err != nil {
		t.Fatalf("sync: %v: %s", err, out)
	}
}

// damageOne changes a byte that the checksum covers: the signature must then
// be called broken.
func damageOne(t *testing.T, b []byte, s Signature) {
	t.Helper()
	at := map[string]int64{Ext4: 1024 + 136, ExtLog: 1024 + 136, XFS: 50, Btrfs: 0x10000 + 0x30, ExFAT: 120, LVM2: s.Offset + 100}[s.Class]
	b[at] ^= 1
	found, err := Identify(bytes.NewReader(b), int64(len(b)))
	if err != nil || len(found) == 0 {
		t.Fatalf("damaged: %v %v", found, err)
	}
	for _, f := range found {
		if f.Class == s.Class && (f.Confirmed || !f.Broken) {
			t.Errorf("a flipped byte goes unnoticed: %+v", f)
		}
	}
}

// mdMember builds a superblock the way the md driver does.
func mdMember(b []byte, version string) {
	size := int64(len(b))
	le := binary.LittleEndian
	if version == "0.90" {
		sb := b[size&^0xffff-0x10000:][:4096]
		le.PutUint32(sb, 0xA92B4EFC)
		le.PutUint32(sb[8:], 90)
		le.PutUint32(sb[20:], 0x01020304)
		var sum uint64
		for i := 0; i < 4096; i += 4 {
			sum += uint64(le.Uint32(sb[i:]))
		}
		le.PutUint32(sb[152:], uint32(sum)+uint32(sum>>32))
		return
	}
	at := map[string]int64{"1.0": ((size/512 - 16) &^ 7) * 512, "1.1": 0, "1.2": 4096}[version]
	sb := b[at:][:4096]
	le.PutUint32(sb, 0xA92B4EFC)
	le.PutUint32(sb[4:], 1)
	copy(sb[16:], "0123456789abcdef")
	copy(sb[32:], "host:0")
	le.PutUint64(sb[144:], uint64(at/512))
	le.PutUint32(sb[220:], 3)
	var sum uint64
	for i := 0; i < 260; i += 4 {
		sum += uint64(le.Uint32(sb[i:]))
	}
	sum += uint64(le.Uint16(sb[260:]))
	le.PutUint32(sb[216:], uint32(sum)+uint32(sum>>32))
}

func TestMDRaid(t *testing.T) {
	for _, version := range []string{"0.90", "1.0", "1.1", "1.2"} {
		t.Run(version, func(t *testing.T) {
			b := make([]byte, 4<<20)
			mdMember(b, version)
			path := filepath.Join(t.TempDir(), "member")
			if err := os.WriteFile(path, b, 0o600); err != nil {
				t.Fatal(err)
			}
			found, err := Identify(bytes.NewReader(b), int64(len(b)))
			if err != nil || len(found) == 0 || found[0].Class != MDRaid || found[0].Version != version || !found[0].Confirmed {
				t.Fatalf("%+v %v", found, err)
			}
			if out, err := exec.Command(judge.Tool(t, "mdadm"), "--examine", path).CombinedOutput(); err != nil || !bytes.Contains(out, []byte("correct")) {
				t.Errorf("mdadm --examine: %v: %s", err, out)
			}
			if version != "0.90" {
				if says := blkid(t, path); says["TYPE"] != "linux_raid_member" || says["UUID"] != found[0].UUID {
					t.Errorf("blkid says %v, we %s", says, found[0].UUID)
				}
			}
			judge.Decided(t, "mdadm --examine")
		})
	}
}

// TestSynthetic: signatures that no tool here can make.
func TestSynthetic(t *testing.T) {
	put := func(off int, s string) []byte {
		b := make([]byte, 256<<10)
		copy(b[off:], s)
		return b
	}
	coreStorage := put(88, "CS")
	coreStorage[8], coreStorage[10] = 1, 0x10
	binary.LittleEndian.PutUint32(coreStorage, ^crc32.Checksum(coreStorage[8:512], castagnoli))
	apfs := put(32, "NXSB")
	binary.LittleEndian.PutUint32(apfs[36:], 4096)
	binary.LittleEndian.PutUint64(apfs, fletcher64(apfs[8:4096]))
	toGo := put(3, "MSWIN4.1")
	copy(toGo[424:], guidBitLocker)
	win := put(0, "\xeb\x58\x90-FVE-FS-")
	copy(win[160:], guidBitLocker)
	stale := put(1080, "\x53\xef")
	copy(stale[512:], "LABELONE")
	for _, c := range []struct {
		name  string
		b     []byte
		class string
		count int
	}{
		{"empty", make([]byte, 256<<10), Empty, 1},
		{"corestorage", coreStorage, CoreStore, 1},
		{"apfs", apfs, APFS, 1},
		{"bitlocker to go", toGo, ToGo, 1},
		{"bitlocker", win, BitLocker, 1},
		{"bitlocker vista", put(0, "\xeb\x52\x90-FVE-FS-"), BitLocker, 1},
		{"refs", put(3, "ReFS\x00\x00\x00\x00"), ReFS, 1},
		{"dm-integrity", put(0, "integrt\x00"), Integrity, 1},
		{"an ordinary Win9x FAT is not To Go", put(3, "MSWIN4.1"), "", 0},
		{"half a label is no label", stale, Ext2, 1},
		{"last byte set", append(make([]byte, 256<<10), 1), "", 0},
	} {
		t.Run(c.name, func(t *testing.T) {
			found, err := Identify(bytes.NewReader(c.b), int64(len(c.b)))
			if err != nil || len(found) != c.count || c.count > 0 && found[0].Class != c.class {
				t.Fatalf("%+v %v", found, err)
			}
		})
	}
}

func TestClassOfShortReads(t *testing.T) {
	if Class(nil) != "" || Class(make([]byte, 512)) != Empty || Class([]byte("hello")) != "" {
		t.Fatal("short reads are misnamed")
	}
	random := make([]byte, 64<<10)
	if _, err := rand.Read(random); err != nil {
		t.Fatal(err)
	}
	clear(random[510:512])
	if got := Class(random); got != "" {
		t.Fatalf("random bytes are %q", got)
	}
}

func FuzzIdentify(f *testing.F) {
	for _, version := range []string{"1.1", "1.2"} {
		b := make([]byte, 64<<10)
		mdMember(b, version)
		f.Add(b[:8192])
	}
	f.Add([]byte("\xeb\x58\x90-FVE-FS-"))
	f.Add(append(make([]byte, 512), "LABELONE"...))
	f.Add([]byte("XFSB"))
	f.Fuzz(func(t *testing.T, b []byte) {
		found, err := Identify(bytes.NewReader(b), int64(len(b)))
		if err != nil {
			t.Fatal(err)
		}
		for _, s := range found {
			if s.Class == "" || s.Confirmed && s.Broken || s.Offset < 0 || s.Offset > int64(len(b)) {
				t.Fatalf("%+v", s)
			}
		}
		Class(b)
	})
}
