package disk

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/lockstep-backup/lockstep/internal/judge"
)

const testDiskGUID = "0A1B2C3D-4E5F-4A6B-8C7D-9E0F1A2B3C4D"

// image is a disk in memory.
type image []byte

func (m image) WriteAt(p []byte, off int64) (int, error) {
	if off < 0 || off+int64(len(p)) > int64(len(m)) {
		return 0, errors.New("outside of the image")
	}
	return copy(m[off:], p), nil
}

func (m image) layout(tb testing.TB) Layout {
	tb.Helper()
	l, err := ReadLayout(bytes.NewReader(m), int64(len(m)))
	if err != nil {
		tb.Fatalf("ReadLayout: %v", err)
	}
	return l
}

func testParts(sectorSize int) []Partition {
	return []Partition{
		{Number: 1, Range: Range{1 << 20, 1 << 20}, Type: TypeEFISystem, GUID: "11111111-2222-4333-8444-555555555555", Name: "EFI"},
		{Number: 2, Range: Range{2 << 20, 1<<20 + int64(sectorSize)}, Type: TypeLinux, GUID: "21111111-2222-4333-8444-555555555555", Name: "größe 💾"},
		{Number: 5, Range: Range{5 << 20, 1 << 20}, Type: TypeLUKS, GUID: "31111111-2222-4333-8444-555555555555"},
	}
}

func gptImage(tb testing.TB, sectorSize int) image {
	tb.Helper()
	m := make(image, 8<<20)
	if err := WriteGPT(m, int64(len(m)), sectorSize, testDiskGUID, testParts(sectorSize)); err != nil {
		tb.Fatal(err)
	}
	return m
}

func sameParts(tb testing.TB, got, want []Partition) {
	tb.Helper()
	if fmt.Sprint(got) != fmt.Sprint(want) {
		tb.Errorf("partitions\n got %v\nwant %v", got, want)
	}
}

func TestGPTRoundTrip(t *testing.T) {
	for _, sectorSize := range []int{512, 4096} {
		l := gptImage(t, sectorSize).layout(t)
		if l.Table != TableGPT || l.SectorSize != sectorSize || l.GUID != testDiskGUID || len(l.Warnings) != 0 {
			t.Errorf("layout %+v", l)
		}
		sameParts(t, l.Partitions, testParts(sectorSize))
	}
}

// TestDamagedGPT has one defect per case. Offsets are for 512-byte sectors.
func TestDamagedGPT(t *testing.T) {
	const primary, backup = 512, 8<<20 - 512
	reseal := func(m image, header int) {
		clear(m[header+16 : header+20])
		binary.LittleEndian.PutUint32(m[header+16:], crc32.ChecksumIEEE(m[header:header+92]))
	}
	resealEntries := func(m image, header, entries int) {
		binary.LittleEndian.PutUint32(m[header+88:], crc32.ChecksumIEEE(m[entries:entries+128*128]))
		reseal(m, header)
	}
	both := func(m image, entry int, edit func(e []byte)) {
		edit(m[1024+128*entry:])
		edit(m[backup-32*512+128*entry:])
		resealEntries(m, primary, 1024)
		resealEntries(m, backup, backup-32*512)
	}
	for _, c := range []struct {
		name    string
		damage  func(m image)
		table   string
		parts   []int // numbers
		warning string
	}{
		{"primary header bit", func(m image) { m[primary+40] ^= 1 }, TableGPT, []int{1, 2, 5}, "the backup is used"},
		{"primary entries bit", func(m image) { m[1024+3] ^= 1 }, TableGPT, []int{1, 2, 5}, "the backup is used"},
		{"primary wiped", func(m image) { clear(m[:1<<20]) }, TableGPT, []int{1, 2, 5}, "the backup is used"},
		{"backup header bit", func(m image) { m[backup+40] ^= 1 }, TableGPT, []int{1, 2, 5}, "backup GPT is damaged: header checksum"},
		{"backup entries bit", func(m image) { m[backup-32*512] ^= 1 }, TableGPT, []int{1, 2, 5}, "backup GPT is damaged: entries checksum"},
		{"backup wiped", func(m image) { clear(m[backup-32*512:]) }, TableGPT, []int{1, 2, 5}, "backup GPT is missing"},
		{"copies differ", func(m image) { m[1024+56] ^= 1; resealEntries(m, primary, 1024) }, TableGPT, []int{1, 2, 5}, "two copies of the GPT differ"},
		{"both headers", func(m image) { m[primary+40] ^= 1; m[backup+40] ^= 1 }, TableNone, nil, "neither copy"},
		{"header of another sector", func(m image) {
			binary.LittleEndian.PutUint64(m[primary+24:], 7)
			reseal(m, primary)
		}, TableGPT, []int{1, 2, 5}, "the backup is used"},
		{"absurd entry count", func(m image) {
			binary.LittleEndian.PutUint32(m[primary+80:], 0xFFFFFFFF)
			reseal(m, primary)
		}, TableGPT, []int{1, 2, 5}, "the backup is used"},
		{"entry size 0", func(m image) {
			binary.LittleEndian.PutUint32(m[primary+84:], 0)
			reseal(m, primary)
		}, TableGPT, []int{1, 2, 5}, "the backup is used"},
		{"header size 4 GiB", func(m image) { binary.LittleEndian.PutUint32(m[primary+12:], 0xFFFFFFFF) }, TableGPT, []int{1, 2, 5}, "the backup is used"},
		{"entries outside", func(m image) {
			binary.LittleEndian.PutUint64(m[primary+72:], 1<<62)
			reseal(m, primary)
		}, TableGPT, []int{1, 2, 5}, "the backup is used"},
		{"protective MBR wiped", func(m image) { clear(m[:512]) }, TableGPT, []int{1, 2, 5}, "protective MBR is missing"},
		{"left over behind an MBR", func(m image) {
			clear(m[446:510])
			m[446+4] = 0x83
			binary.LittleEndian.PutUint32(m[446+8:], 2048)
			binary.LittleEndian.PutUint32(m[446+12:], 2048)
		}, TableMBR, []int{1}, "the MBR does not name it"},
		{"left over at the end", func(m image) {
			clear(m[:1<<20])
			copy(m[1024+56:], []byte{0x53, 0xEF}) // an ext4 file system on the whole disk
		}, TableNone, nil, "left over"},
		{"left over behind LUKS", func(m image) { clear(m[:512]); copy(m, "LUKS\xba\xbe\x00\x02") }, TableNone, nil, ""},
		{"behind the end: cut", func(m image) {
			both(m, 4, func(e []byte) { binary.LittleEndian.PutUint64(e[40:], 1<<40) })
		}, TableGPT, []int{1, 2, 5}, "partition 5 reaches behind the end"},
		{"behind the end: dropped", func(m image) {
			both(m, 4, func(e []byte) {
				binary.LittleEndian.PutUint64(e[32:], 1<<63)
				binary.LittleEndian.PutUint64(e[40:], 1<<63)
			})
		}, TableGPT, []int{1, 2}, "partition 5 starts behind the end"},
		{"ends before it starts", func(m image) {
			both(m, 4, func(e []byte) { binary.LittleEndian.PutUint64(e[40:], 1) })
		}, TableGPT, []int{1, 2}, "partition 5 ends before"},
		{"overlap", func(m image) {
			both(m, 4, func(e []byte) { binary.LittleEndian.PutUint64(e[32:], 4097) })
		}, TableGPT, []int{1, 2}, "partition 5 overlaps partition 2"},
	} {
		t.Run(c.name, func(t *testing.T) {
			m := gptImage(t, 512)
			c.damage(m)
			l := m.layout(t)
			var numbers []int
			for _, p := range l.Partitions {
				numbers = append(numbers, p.Number)
			}
			if l.Table != c.table || fmt.Sprint(numbers) != fmt.Sprint(c.parts) {
				t.Errorf("table %s with %v, want %s with %v", l.Table, numbers, c.table, c.parts)
			}
			if text := strings.Join(l.Warnings, "; "); c.warning == "" && text != "" || !strings.Contains(text, c.warning) {
				t.Errorf("warnings %q, want %q", text, c.warning)
			}
		})
	}
}

func TestGPTOfResizedDisk(t *testing.T) {
	m := append(gptImage(t, 512), make(image, 4<<20)...)
	l := m.layout(t)
	if l.Table != TableGPT || len(l.Partitions) != 3 || !strings.Contains(strings.Join(l.Warnings, ";"), "not at the end") {
		t.Errorf("grown: %+v", l)
	}
	m = m[:6<<20]
	l = m.layout(t)
	if l.Table != TableGPT || len(l.Partitions) != 3 || !strings.Contains(strings.Join(l.Warnings, ";"), "backup GPT is missing") {
		t.Errorf("shrunk: %+v", l)
	}
}

func TestGPTNameIsPrintable(t *testing.T) {
	name := make([]byte, 72)
	for i, u := range []uint16{'a', 0x1B, '[', 'm', 0xD800, 'b', 0x202E} {
		binary.LittleEndian.PutUint16(name[2*i:], u)
	}
	if got := gptName(name); got != "a�[m�b�" {
		t.Errorf("name %q", got)
	}
}

func TestWriteGPTRefuses(t *testing.T) {
	one := func(edit func(p *Partition)) []Partition {
		parts := testParts(512)
		edit(&parts[1])
		return parts
	}
	for _, c := range []struct {
		name       string
		size       int64
		sectorSize int
		guid       string
		parts      []Partition
	}{
		{"sector size", 8 << 20, 1024, testDiskGUID, nil},
		{"tiny disk", 32 << 10, 512, testDiskGUID, nil},
		{"guid", 8 << 20, 512, "0A1B2C3D4E5F4A6B8C7D9E0F1A2B3C4D", nil},
		{"overlap", 8 << 20, 512, testDiskGUID, one(func(p *Partition) { p.Range.Offset-- })},
		{"overlap", 8 << 20, 512, testDiskGUID, one(func(p *Partition) { p.Range.Offset -= 512 })},
		{"over the table", 8 << 20, 512, testDiskGUID, one(func(p *Partition) { p.Range = Range{512 * 33, 512} })},
		{"over the backup", 8 << 20, 512, testDiskGUID, one(func(p *Partition) { p.Range = Range{7 << 20, 1 << 20} })},
		{"overflow", 8 << 20, 512, testDiskGUID, one(func(p *Partition) { p.Range = Range{1 << 62, 1 << 62} })},
		{"number twice", 8 << 20, 512, testDiskGUID, one(func(p *Partition) { p.Number = 1 })},
		{"number 129", 8 << 20, 512, testDiskGUID, one(func(p *Partition) { p.Number = 129 })},
		{"type", 8 << 20, 512, testDiskGUID, one(func(p *Partition) { p.Type = "0x83" })},
		{"name", 8 << 20, 512, testDiskGUID, one(func(p *Partition) { p.Name = strings.Repeat("x", 37) })},
	} {
		m := make(image, 8<<20)
		if err := WriteGPT(m, c.size, c.sectorSize, c.guid, c.parts); err == nil {
			t.Errorf("%s: no error", c.name)
		}
		if bytes.Count(m, []byte{0}) != len(m) {
			t.Errorf("%s: something was written", c.name)
		}
	}
}

// mbrImage has an MBR with two primary and, in the extended one, logical partitions.
func mbrImage(logical int) image {
	m := make(image, 8<<20)
	put := func(at, slot int, kind byte, start, sectors uint32) {
		e := m[at+446+16*slot:]
		e[4] = kind
		binary.LittleEndian.PutUint32(e[8:], start)
		binary.LittleEndian.PutUint32(e[12:], sectors)
		m[at+510], m[at+511] = 0x55, 0xAA
	}
	binary.LittleEndian.PutUint32(m[440:], 0x1A2B3C4D)
	put(0, 0, 0x83, 2048, 2048)
	put(0, 1, 0x07, 4096, 2048)
	put(0, 3, 0x05, 8192, 8192)
	for i := range logical {
		put((8192+i*1024)*512, 0, 0x8E, 256, 512)
		if i < logical-1 {
			put((8192+i*1024)*512, 1, 0x05, uint32((i+1)*1024), 1024)
		}
	}
	return m
}

func TestMBR(t *testing.T) {
	l := mbrImage(3).layout(t)
	if l.Table != TableMBR || l.SectorSize != 512 || l.GUID != "0x1a2b3c4d" || len(l.Warnings) != 0 {
		t.Errorf("layout %+v", l)
	}
	sameParts(t, l.Partitions, []Partition{
		{Number: 1, Range: Range{1 << 20, 1 << 20}, Type: "0x83", GUID: "1a2b3c4d-01"},
		{Number: 2, Range: Range{2 << 20, 1 << 20}, Type: "0x07", GUID: "1a2b3c4d-02"},
		{Number: 5, Range: Range{(8192 + 256) * 512, 256 << 10}, Type: "0x8e", GUID: "1a2b3c4d-05", Logical: true},
		{Number: 6, Range: Range{(9216 + 256) * 512, 256 << 10}, Type: "0x8e", GUID: "1a2b3c4d-06", Logical: true},
		{Number: 7, Range: Range{(10240 + 256) * 512, 256 << 10}, Type: "0x8e", GUID: "1a2b3c4d-07", Logical: true},
	})
}

func TestDamagedMBR(t *testing.T) {
	const ebr0, ebr1 = 8192 * 512, 9216 * 512
	put32 := func(m image, at int, v uint32) { binary.LittleEndian.PutUint32(m[at:], v) }
	for _, c := range []struct {
		name    string
		damage  func(m image)
		table   string
		parts   []int
		warning string
	}{
		{"circle", func(m image) { put32(m, ebr1+446+16+8, 0) }, TableMBR, []int{1, 2, 5, 6}, "in a circle"},
		{"link outside", func(m image) { put32(m, ebr1+446+16+8, 1<<31) }, TableMBR, []int{1, 2, 5, 6}, "lies outside"},
		{"record without signature", func(m image) { m[ebr1+510] = 0 }, TableMBR, []int{1, 2, 5}, "no signature"},
		{"logical outside", func(m image) { put32(m, ebr1+446+8, 1<<31) }, TableMBR, []int{1, 2, 5, 7}, "partition 6 starts behind"},
		{"primary behind the end", func(m image) { put32(m, 446+8, 1<<31) }, TableMBR, []int{2, 5, 6, 7}, "partition 1 starts behind"},
		{"primary too long", func(m image) { put32(m, 446+12, 1<<31) }, TableMBR, []int{1}, "partition 1 reaches behind"},
		{"primaries overlap", func(m image) { put32(m, 446+12, 2049) }, TableMBR, []int{1, 5, 6, 7}, "partition 2 overlaps partition 1"},
		{"no signature", func(m image) { m[510] = 0 }, TableNone, nil, ""},
		{"boot flag is text", func(m image) { m[446+32] = 'B' }, TableNone, nil, ""},
		{"empty table", func(m image) { clear(m[446:510]) }, TableNone, nil, ""},
		{"all behind the end", func(m image) {
			clear(m[446+16 : 510])
			put32(m, 446+8, 1<<31)
		}, TableNone, nil, "none of its partitions lies on the disk"},
		{"LUKS that ends in 55AA", func(m image) { copy(m, "LUKS\xba\xbe\x00\x02") }, TableNone, nil, ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			m := mbrImage(3)
			c.damage(m)
			l := m.layout(t)
			var numbers []int
			for _, p := range l.Partitions {
				numbers = append(numbers, p.Number)
			}
			if l.Table != c.table || fmt.Sprint(numbers) != fmt.Sprint(c.parts) {
				t.Errorf("table %s with %v, want %s with %v (%q)", l.Table, numbers, c.table, c.parts, l.Warnings)
			}
			if text := strings.Join(l.Warnings, "; "); c.warning == "" && text != "" || !strings.Contains(text, c.warning) {
				t.Errorf("warnings %q, want %q", text, c.warning)
			}
		})
	}
}

// TestEndlessLogicalPartitions: a chain without a circle that is longer than anybody follows.
func TestEndlessLogicalPartitions(t *testing.T) {
	m := mbrImage(0)
	binary.LittleEndian.PutUint32(m[446+16*3+12:], 1<<20)
	for i := range 400 {
		e := m[(8192+i)*512:]
		e[446+16+4] = 0x05
		binary.LittleEndian.PutUint32(e[446+16+8:], uint32(i+1))
		binary.LittleEndian.PutUint32(e[446+16+12:], 1)
		e[510], e[511] = 0x55, 0xAA
	}
	if text := strings.Join(m.layout(t).Warnings, ";"); !strings.Contains(text, "more than 256 boot records") {
		t.Errorf("warnings %q", text)
	}
}

func TestFileSystemIsNoTable(t *testing.T) {
	boot := func(edit func(b []byte)) image {
		m := make(image, 1<<20)
		m[510], m[511] = 0x55, 0xAA
		edit(m)
		return m
	}
	for name, m := range map[string]image{
		"NTFS": boot(func(b []byte) {
			copy(b[3:], "NTFS    ")
			copy(b[440:], "\r\nPress Ctrl+Alt+Del to restart, and so on until the end.")
		}),
		"FAT32":     boot(func(b []byte) { copy(b[0x52:], "FAT32   ") }),
		"BitLocker": boot(func(b []byte) { copy(b[3:], "-FVE-FS-") }),
		"zeroes":    make(image, 1<<20),
		"tiny":      make(image, 100),
		"nothing":   {},
	} {
		if l := m.layout(t); l.Table != TableNone || len(l.Partitions) != 0 || l.SectorSize != 512 {
			t.Errorf("%s: %+v", name, l)
		}
	}
}

type brokenReader struct {
	image
	badAt int64
}

var errBroken = errors.New("broken")

func (b brokenReader) ReadAt(p []byte, off int64) (int, error) {
	if off <= b.badAt && b.badAt < off+int64(len(p)) {
		return 0, errBroken
	}
	return bytes.NewReader(b.image).ReadAt(p, off)
}

func TestReadLayoutReturnsReadErrors(t *testing.T) {
	for name, c := range map[string]brokenReader{
		"MBR":            {mbrImage(3), 0},
		"boot record":    {mbrImage(3), 9216 * 512},
		"GPT header":     {gptImage(t, 512), 512},
		"GPT entries":    {gptImage(t, 512), 2048},
		"backup header":  {gptImage(t, 512), 8<<20 - 1},
		"backup entries": {gptImage(t, 512), 8<<20 - 1024},
	} {
		if _, err := ReadLayout(c, 8<<20); !errors.Is(err, errBroken) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := ReadLayout(bytes.NewReader(gptImage(t, 512)[:4096]), 8<<20); !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Errorf("short reader: %v", err)
	}
}

func writeImage(tb testing.TB, m image) string {
	tb.Helper()
	path := filepath.Join(tb.TempDir(), "disk.img")
	if err := os.WriteFile(path, m, 0o600); err != nil {
		tb.Fatal(err)
	}
	return path
}

func run(tb testing.TB, stdin string, name string, args ...string) []byte {
	tb.Helper()
	cmd := exec.Command(judge.Tool(tb, name), args...)
	cmd.Stdin = strings.NewReader(stdin)
	out, err := cmd.CombinedOutput()
	if err != nil {
		tb.Fatalf("%s %v: %v: %s", name, args, err, out)
	}
	return out
}

// device is where sgdisk and sfdisk see the image: for sectors of 4096 through a loop device.
func device(tb testing.TB, path string, sectorSize int) string {
	if sectorSize == 512 {
		return path
	}
	return judge.Loop(tb, path, sectorSize)
}

// sfdiskSays returns the layout as util-linux reads it.
func sfdiskSays(tb testing.TB, device string, sectorSize int) Layout {
	tb.Helper()
	var out struct {
		Table struct {
			Label, ID  string
			Partitions []struct {
				Node, Type, UUID, Name string
				Start, Size            int64
			}
		} `json:"partitiontable"`
	}
	if err := json.Unmarshal(run(tb, "", "sfdisk", "--json", device), &out); err != nil {
		tb.Fatal(err)
	}
	l := Layout{Table: map[string]string{"gpt": TableGPT, "dos": TableMBR}[out.Table.Label], SectorSize: sectorSize, GUID: out.Table.ID}
	for _, p := range out.Table.Partitions {
		var number int
		if _, err := fmt.Sscan(strings.TrimPrefix(strings.TrimPrefix(p.Node, device), "p"), &number); err != nil {
			tb.Fatal(err)
		}
		part := Partition{Number: number, Range: Range{p.Start * int64(sectorSize), p.Size * int64(sectorSize)}, Type: p.Type, GUID: p.UUID, Name: p.Name}
		if l.Table == TableMBR {
			if p.Type == "5" || p.Type == "f" {
				continue
			}
			part.Type = fmt.Sprintf("0x%02s", p.Type)
			part.GUID = fmt.Sprintf("%s-%02x", strings.TrimPrefix(out.Table.ID, "0x"), number)
			part.Logical = number > 4
		}
		l.Partitions = append(l.Partitions, part)
	}
	return l
}

func sameLayout(tb testing.TB, path string, want Layout) {
	tb.Helper()
	m, err := os.ReadFile(path)
	if err != nil {
		tb.Fatal(err)
	}
	got := image(m).layout(tb)
	if fmt.Sprintf("%+v", got) != fmt.Sprintf("%+v", want) {
		tb.Errorf("layout\n got %+v\nwant %+v", got, want)
	}
}

func TestJudgesAcceptOurGPT(t *testing.T) {
	for _, sectorSize := range []int{512, 4096} {
		t.Run(fmt.Sprint(sectorSize), func(t *testing.T) {
			path := writeImage(t, gptImage(t, sectorSize))
			dev := device(t, path, sectorSize)
			if out := string(run(t, "", "sgdisk", "-v", dev)); !strings.Contains(out, "No problems found") {
				t.Errorf("sgdisk -v: %s", out)
			}
			judge.Decided(t, "sgdisk -v")
			sameLayout(t, path, sfdiskSays(t, dev, sectorSize))
			judge.Decided(t, "sfdisk --json")
		})
	}
}

func TestWeReadTablesOfJudges(t *testing.T) {
	for _, c := range []struct {
		name, tool, script string
		sectorSize         int
	}{
		{"gpt", "sfdisk", "label: gpt\n,1M,U\n,2M,L\n,,L\n", 512},
		{"gpt-4096", "sfdisk", "label: gpt\n,1M,U\n,2M,L\n,,L\n", 4096},
		{"gpt-hybrid-order", "sfdisk", "label: gpt\n3: start=2M,size=1M\n1: start=5M,size=1M, name=\"Böse 分区\"\n", 512},
		{"mbr", "sfdisk", "label: dos\n,1M,83\n,2M,7\n,1M,e8\n,,c\n", 512},
		{"mbr-extended", "sfdisk", "label: dos\n,1M,83\n,,E\n,1M,8e\n,1M,7\n,1M,83\n,,fd\n", 512},
		{"mbr-extended-4096", "sfdisk", "label: dos\n,1M,83\n,,E\n,2M,8e\n,2M,7\n,,fd\n", 4096},
		{"sgdisk", "sgdisk", "-n 1:0:+1M -t 1:ef00 -c 1:boot -n 4:0:+2M -t 4:8309 -n 2:0:0 -t 2:0700", 512},
		{"sgdisk-4096", "sgdisk", "-n 1:0:+1M -t 1:ef00 -c 1:boot -n 4:0:+2M -t 4:8309 -n 2:0:0 -t 2:0700", 4096},
		{"sgdisk-many-entries", "sgdisk", "-S 512 -n 1:0:+1M -n 400:0:+1M", 512},
	} {
		t.Run(c.name, func(t *testing.T) {
			path := writeImage(t, make(image, 16<<20))
			dev := device(t, path, c.sectorSize)
			if c.tool == "sgdisk" {
				run(t, "", "sgdisk", append(strings.Fields(c.script), dev)...)
			} else {
				run(t, c.script, "sfdisk", "--quiet", "--no-reread", "--no-tell-kernel", dev)
			}
			want := sfdiskSays(t, dev, c.sectorSize)
			if len(want.Partitions) == 0 {
				t.Fatal("the judge found no partitions")
			}
			sameLayout(t, path, want)
			judge.Decided(t, "sfdisk --json")
		})
	}
}

// TestMkfsIsNoTable: real boot sectors of whole-disk file systems.
func TestMkfsIsNoTable(t *testing.T) {
	for _, args := range [][]string{{"mkfs.fat", "-F", "32"}, {"mkfs.fat", "-F", "16"}, {"mkfs.ext4", "-q"}} {
		path := writeImage(t, make(image, 64<<20))
		run(t, "", args[0], append(args[1:], path)...)
		sameLayout(t, path, Layout{Table: TableNone, SectorSize: 512})
		judge.Decided(t, args[0])
	}
}

// TestFixtureDisk reads a disk that sfdisk made inside a guest.
func TestFixtureDisk(t *testing.T) {
	packed := filepath.Join(judge.Fixtures(t), "disk", "disk-gpt-esp-boot-luks2-lvm.img.xz")
	path := filepath.Join(t.TempDir(), "disk.img")
	out, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	defer out.Close()
	cmd := exec.Command(judge.Tool(t, "xz"), "-dc", packed)
	cmd.Stdout = out
	if err := cmd.Run(); err != nil {
		t.Fatal(err)
	}
	sameLayout(t, path, sfdiskSays(t, path, 512))
	judge.Decided(t, "sfdisk --json")
}

func FuzzReadLayout(f *testing.F) {
	// Seeds hold only the beginning of a disk, four entries long: small ones mutate fast.
	for _, sectorSize := range []int{512, 4096} {
		m := gptImage(f, sectorSize)
		binary.LittleEndian.PutUint32(m[sectorSize+80:], 4)
		f.Add([]byte(m[:2*sectorSize+4*gptEntrySize]), int64(8<<20))
		backup := m[8<<20-sectorSize:]
		f.Add([]byte(backup[:sectorSize]), int64(0))
	}
	chain := make([]byte, 8*512)
	for i, start := range []uint32{2, 2, 4} { // sector 0, and boot records in sectors 2, 4, 6
		b := chain[1024*i:]
		b[446+4], b[446+16+4] = 0x83, 0x05
		binary.LittleEndian.PutUint32(b[446+8:], 1)
		binary.LittleEndian.PutUint32(b[446+12:], 1)
		binary.LittleEndian.PutUint32(b[446+16+8:], start)
		binary.LittleEndian.PutUint32(b[446+16+12:], 6)
		b[510], b[511] = 0x55, 0xAA
	}
	f.Add(chain, int64(0))
	f.Add(chain, int64(1<<40))
	f.Fuzz(func(t *testing.T, content []byte, more int64) {
		more &= 1<<50 - 1
		size := int64(len(content)) + more
		for _, sectorSize := range []int{512, 4096} {
			reseal(content, sectorSize)
		}
		l, err := ReadLayout(padded{content, size}, size)
		if err != nil {
			t.Fatal(err)
		}
		var all Ranges
		var sum int64
		for _, p := range l.Partitions {
			if p.Range.Offset <= 0 || p.Range.Length <= 0 || p.Range.End() > size {
				t.Fatalf("partition %+v on a disk of %d bytes", p, size)
			}
			all, sum = all.Add(p.Range), sum+p.Range.Length
		}
		if all.Total() != sum {
			t.Fatalf("partitions overlap: %+v", l.Partitions)
		}
		if len(l.Warnings) > maxWarnings {
			t.Fatalf("%d warnings", len(l.Warnings))
		}
	})
}

// reseal mends the checksums of a mutated primary GPT, so that the fuzzer gets past them.
func reseal(content []byte, sectorSize int) {
	if len(content) < 2*sectorSize || !bytes.HasPrefix(content[sectorSize:], gptSignature) {
		return
	}
	h := content[sectorSize : 2*sectorSize]
	le := binary.LittleEndian
	at := le.Uint64(h[72:]) * uint64(sectorSize)
	n := uint64(le.Uint32(h[80:])) * uint64(le.Uint32(h[84:]))
	if all := uint64(len(content)); at < all && n <= all-at {
		le.PutUint32(h[88:], crc32.ChecksumIEEE(content[at:at+n]))
	}
	if size := int(le.Uint32(h[12:])); size >= gptHeaderSize && size <= sectorSize {
		clear(h[16:20])
		le.PutUint32(h[16:], crc32.ChecksumIEEE(h[:size]))
	}
}

// padded is content and zeroes behind it.
type padded struct {
	content []byte
	size    int64
}

func (p padded) ReadAt(b []byte, off int64) (int, error) {
	clear(b)
	if off < int64(len(p.content)) {
		copy(b, p.content[off:])
	}
	if off+int64(len(b)) > p.size {
		return int(max(p.size-off, 0)), io.EOF
	}
	return len(b), nil
}
