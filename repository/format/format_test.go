package format

import (
	"encoding/binary"
	"errors"
	"fmt"
	"reflect"
	"strings"
	"testing"

	"pgregory.net/rapid"
)

func name(entry int64, random uint32) Name { return NewName(entry, random) }

func digest(b byte) (d Digest) {
	for i := range d {
		d[i] = b + byte(i)
	}
	return d
}

func tag(b byte) (t [TagSize]byte) {
	for i := range t {
		t[i] = b ^ byte(i)
	}
	return t
}

// sampleLeaf has one of each: a whole block, one that continues it, a block of
// several extents in two segments, one with unread pages, zeroes between.
func sampleLeaf() *Leaf {
	l := new(Leaf)
	a, b := name(3, 0xdeadbeef), name(4, 1)
	l[0] = Block{Digest: digest(1), Extents: []Extent{{Segment: a, Position: 1, Stored: 0xffff, Live: 0xffff, Tag: tag(1)}}}
	l[1] = Block{Digest: digest(2), Extents: []Extent{{Segment: a, Position: 17, Stored: 0xffff, Live: 0xffff, Tag: tag(2)}}}
	l[5] = Block{Digest: digest(3), Extents: []Extent{
		{Segment: a, Position: 33, Stored: 0xffff, Live: 0xfff0, Tag: tag(3)},
		{Segment: b, Position: 1, Stored: 0x0007, Live: 0x0003, Tag: tag(4)},
		{Segment: b, Position: 4, Stored: 0x000c, Live: 0x000c, Tag: tag(5)},
	}}
	l[31] = Block{Digest: digest(4), Unread: 0x8001, Extents: []Extent{{Segment: b, Position: 900, Stored: 0x7ffe, Live: 0x7ffe, Tag: tag(6)}}}
	return l
}

func sampleNode() *Node {
	n := &Node{Level: 2}
	n.Children[0] = Ref{Node: digest(9), Object: name(7, 7), Offset: MapHeaderSize, Length: 100}
	n.Children[31] = Ref{Node: digest(10), Object: name(8, 0), Offset: 1 << 20, Length: MaxMapPage}
	return n
}

func sampleTOC() TOC {
	return TOC{
		Disks: []string{"vda", "scsi0:0:1"},
		Extents: []TOCExtent{
			{Disk: 0, Block: 0, Position: 1, Mask: 0xffff, Tag: tag(1), Digest: tag(2)},
			{Disk: 1, Block: 1<<47 - 1, Position: 17, Mask: 0x8001, Tag: tag(3), Digest: tag(4)},
		},
	}
}

const sampleTOCEnd = 19 * PageSize

func drawExtents(t *rapid.T, unread uint16, names []Name) (es []Extent) {
	free := ^unread
	for free != 0 && len(es) < PagesPerBlock && rapid.IntRange(0, 3).Draw(t, "more") > 0 {
		live := free & rapid.Uint16().Draw(t, "live")
		if rapid.Bool().Draw(t, "all") {
			live = free
		}
		if live == 0 {
			break
		}
		free &^= live
		es = append(es, Extent{
			Segment: rapid.SampledFrom(names).Draw(t, "segment"), Position: rapid.Uint32Range(1, 1<<24).Draw(t, "position"),
			Stored: live | rapid.Uint16().Draw(t, "stored"), Live: live, Tag: tag(rapid.Byte().Draw(t, "tag")),
		})
		if n := len(es); n > 1 && rapid.Bool().Draw(t, "next") {
			es[n-1].Segment = es[n-2].Segment
			es[n-1].Position = es[n-2].Position + uint32(Pages(es[n-2].Stored))
		}
	}
	return es
}

func TestLeafRoundTrip(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		names := make([]Name, rapid.IntRange(1, 40).Draw(t, "segments"))
		for i := range names {
			names[i] = name(int64(i), rapid.Uint32().Draw(t, "random"))
		}
		l := new(Leaf)
		for i := range l {
			if rapid.Bool().Draw(t, "zero") {
				continue
			}
			l[i].Digest = digest(rapid.ByteRange(1, 255).Draw(t, "digest"))
			if rapid.IntRange(0, 5).Draw(t, "bad") == 0 {
				l[i].Unread = rapid.Uint16().Draw(t, "unread")
			}
			l[i].Extents = drawExtents(t, l[i].Unread, names)
		}
		p := l.Encode(nil)
		if len(p)+TagSize > MaxMapPage {
			t.Fatalf("a leaf of %d bytes does not fit a page", len(p))
		}
		got, err := ParseLeaf(p)
		if err != nil {
			t.Fatal(err)
		}
		if !reflect.DeepEqual(got, l) {
			t.Fatalf("came back as %+v", got)
		}
	})
}

// The largest leaf that a writer can make fits a page.
func TestLargestLeafFits(t *testing.T) {
	l := new(Leaf)
	for i := range l {
		l[i].Digest = digest(1)
		for j := range PagesPerBlock {
			l[i].Extents = append(l[i].Extents, Extent{Segment: name(int64(i), uint32(j)), Position: 1 << 20, Stored: 1 << j, Live: 1 << j})
		}
	}
	p := l.Encode(nil)
	if len(p)+TagSize > MaxMapPage {
		t.Fatalf("%d bytes", len(p))
	}
	if got, err := ParseLeaf(p); err != nil || !reflect.DeepEqual(got, l) {
		t.Fatal(err)
	}
}

func TestNodeRoundTrip(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		n := &Node{Level: rapid.IntRange(1, MaxLevel).Draw(t, "level")}
		for i := range n.Children {
			if rapid.Bool().Draw(t, "present") {
				n.Children[i] = Ref{
					Node: digest(rapid.ByteRange(1, 255).Draw(t, "node")), Object: name(rapid.Int64Range(0, 1<<32-1).Draw(t, "entry"), rapid.Uint32().Draw(t, "random")),
					Offset: rapid.Uint32Range(MapHeaderSize, 1<<32-1).Draw(t, "offset"), Length: rapid.Uint32Range(TagSize+1, MaxMapPage).Draw(t, "length"),
				}
			}
		}
		got, err := ParseNode(n.Encode(nil), n.Level)
		if err != nil || !reflect.DeepEqual(got, n) {
			t.Fatalf("came back as %+v, %v", got, err)
		}
	})
}

func TestTOCRoundTrip(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		toc := TOC{Disks: rapid.SliceOfN(rapid.StringN(0, 300, 300), 1, 5).Draw(t, "disks")}
		position := uint32(1)
		for range rapid.IntRange(0, 50).Draw(t, "extents") {
			e := TOCExtent{
				Disk: uint16(rapid.IntRange(0, len(toc.Disks)-1).Draw(t, "disk")), Block: rapid.Int64Range(0, 1<<47).Draw(t, "block"),
				Position: position, Mask: rapid.Uint16Range(1, 0xffff).Draw(t, "mask"), Tag: tag(rapid.Byte().Draw(t, "tag")),
			}
			toc.Extents = append(toc.Extents, e)
			position += uint32(Pages(e.Mask))
		}
		got, err := ParseTOC(toc.Encode(), int64(position)*PageSize)
		if err != nil {
			t.Fatal(err)
		}
		if len(got.Extents) == 0 {
			got.Extents = nil
		}
		if !reflect.DeepEqual(got, toc) {
			t.Fatalf("came back as %+v", got)
		}
	})
}

func TestTrailerRoundTrip(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		segment := rapid.Bool().Draw(t, "segment")
		end := rapid.Int64Range(1, 5000).Draw(t, "pages") * PageSize
		tocLen := int64(0)
		if segment {
			tocLen = rapid.Int64Range(0, 1<<20).Draw(t, "toc")
		} else {
			end += rapid.Int64Range(0, PageSize).Draw(t, "odd")
		}
		var c CRCs
		chunk := make([]byte, rapid.IntRange(1, 3<<20).Draw(t, "chunk"))
		for c.Size() < end {
			if _, err := c.Write(chunk[:min(int64(len(chunk)), end-c.Size())]); err != nil {
				t.Fatal(err)
			}
		}
		crcs := c.Finish()
		p := MapTrailer1(end, crcs)
		if segment {
			p = SegmentTrailer(end, tocLen, crcs)
		}
		size := end + tocLen + int64(len(p))
		n, err := TrailerSize(p[max(0, len(p)-FooterSize):], size, segment)
		if err != nil || n != int64(len(p)) {
			t.Fatalf("size %d, want %d: %v", n, len(p), err)
		}
		f, err := ParseTrailer(p, size, segment)
		if err != nil || f.DataEnd != end || f.TOCLen != tocLen || !reflect.DeepEqual(f.CRCs, c.Table) {
			t.Fatalf("came back as %+v, %v", f, err)
		}
	})
}

// The checksums do not depend on how the bytes come, and are those of each MiB.
func TestCRCs(t *testing.T) {
	p := make([]byte, 2*CRCChunk+777)
	for i := range p {
		p[i] = byte(i * i >> 3)
	}
	want := []uint32{CRC(p[:CRCChunk]), CRC(p[CRCChunk : 2*CRCChunk]), CRC(p[2*CRCChunk:])}
	for _, step := range []int{1000, 4096, CRCChunk, CRCChunk + 1, len(p)} {
		var c CRCs
		for at := 0; at < len(p); at += step {
			if n, err := c.Write(p[at:min(at+step, len(p))]); err != nil || n != min(step, len(p)-at) {
				t.Fatal(n, err)
			}
		}
		if got := c.Finish(); !reflect.DeepEqual(got, want) || c.Size() != int64(len(p)) {
			t.Errorf("steps of %d give %x, want %x", step, got, want)
		}
	}
	// CRC-32C's check value (RFC 3720, B.4, is its own; this is the catalogue's "123456789").
	if got := CRC([]byte("123456789")); got != 0xe3069283 {
		t.Errorf("not CRC-32C: %#x", got)
	}
}

func TestHeadersRoundTrip(t *testing.T) {
	for _, sealed := range []bool{false, true} {
		h := SegmentHeader{Sealed: sealed, ID: digest(5), Machine: tag(6)}
		p := make([]byte, SegmentHeaderSize+1)
		h.Encode(p)
		if got, err := ParseSegmentHeader(p); err != nil || got != h {
			t.Errorf("segment header came back as %+v, %v", got, err)
		}
	}
	h := MapHeader{Version: 1, ID: digest(7), Machine: tag(8)}
	if got, err := ParseMapHeader(append(h.Encode(), 1)); err != nil || got != h {
		t.Errorf("map header came back as %+v, %v", got, err)
	}
}

// defect is a vector that differs from a good one in one thing.
type defect struct {
	name string
	make func(p []byte) []byte
	want string // of the error
}

func set(at int, bs ...byte) func([]byte) []byte {
	return func(p []byte) []byte { copy(p[at:], bs); return p }
}

func grow(bs ...byte) func([]byte) []byte {
	return func(p []byte) []byte { return append(p, bs...) }
}

func runDefects(t *testing.T, good []byte, parse func([]byte) error, defects []defect) {
	t.Helper()
	if err := parse(append([]byte(nil), good...)); err != nil {
		t.Fatalf("the good vector: %v", err)
	}
	for _, d := range defects {
		t.Run(d.name, func(t *testing.T) {
			err := parse(d.make(append([]byte(nil), good...)))
			want := ErrCorrupt
			if strings.HasPrefix(d.want, "version") || strings.HasPrefix(d.want, "flags") {
				want = ErrVersion
			}
			if !errors.Is(err, want) || !strings.Contains(err.Error(), d.want) {
				t.Errorf("error is %v, want one about %q", err, d.want)
			}
		})
	}
	for n := range good { // every prefix is an error, and none reads beyond its end
		if err := parse(good[:n:n]); !errors.Is(err, ErrCorrupt) {
			t.Errorf("the first %d bytes parse: %v", n, err)
		}
	}
}

// Places in sampleLeaf's encoding: type 0, flag 1, present 2, segments 6, two
// names 7..23, block 0: digest 23, flags 55, extent: code 56, position 57,
// tag 61; block 1: digest 77, flags 109, code 110, tag 111; block 5: digest
// 127, flags 159, code 160, masks 161, 163.
func TestLeafDefects(t *testing.T) {
	good := sampleLeaf().Encode(nil)
	runDefects(t, good, func(p []byte) error { _, err := ParseLeaf(p); return err }, []defect{
		{"another type", set(0, PageNode), "type"},
		{"reserved byte", set(1, 1), "type"},
		{"one block more", set(2, good[2]|4), "map leaf"},
		{"one block fewer", set(5, 0), "trailing"},
		{"too many segments", set(6, 0x81, 0x04), "number of segments"},
		{"endless varint", set(6, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80), "map leaf"},
		{"no segments", set(6, 0), "map leaf"},
		{"zero digest", func(p []byte) []byte { clear(p[23:55]); return p }, "zero digest"},
		{"unknown block flag", set(55, good[55]|0x40), "block flags"},
		{"seventeen extents", set(55, 17), "block flags"},
		{"segment out of range", set(56, 2<<2|2), "segment index"},
		{"position zero", set(57, 0, 0, 0, 0), "page masks"},
		{"position at the end of numbers", set(57, 0xf8, 0xff, 0xff, 0xff), "position"},
		{"next without a previous extent", set(56, 1<<2|2|1), "map leaf"},
		{"live page that is not stored", set(161, 0xf0, 0xff, 0xff, 0xff), "page masks"},
		{"no live page", set(163, 0, 0), "page masks"},
		{"live pages twice", set(163, 0xf1, 0xff), "page masks"},
		{"trailing byte", grow(0), "trailing"},
	})
	// The unread mask of the last block: its flags are at the end but 1+2+1+4+4+16.
	at := len(good) - 28
	if good[at]&0x20 == 0 {
		t.Fatalf("no unread flag at %d: %#x", at, good[at])
	}
	runDefects(t, good, func(p []byte) error { _, err := ParseLeaf(p); return err }, []defect{
		{"empty unread mask", set(at+1, 0, 0), "empty unread mask"},
		{"unread page is live", set(at+1, 0x02, 0x80), "page masks"},
	})
}

func TestNodeDefects(t *testing.T) {
	good := sampleNode().Encode(nil)
	parse := func(p []byte) error { _, err := ParseNode(p, 2); return err }
	runDefects(t, good, parse, []defect{
		{"another type", set(0, PageLeaf), "type"},
		{"another level", set(1, 3), "level"},
		{"a child more", set(2, 3), "too short"},
		{"a child fewer", set(5, 0), "length"},
		{"zero child", func(p []byte) []byte { clear(p[6:38]); return p }, "reference"},
		{"inside the header", set(46, 63, 0, 0, 0), "reference"},
		{"no more than a tag", set(50, TagSize, 0, 0, 0), "reference"},
		{"too large", set(50, 1, 0, 1, 0), "reference"},
		{"trailing byte", grow(0), "length"},
	})
	for _, level := range []int{-1, 0, MaxLevel + 1, 255} {
		if _, err := ParseNode(set(1, byte(level))(append([]byte(nil), good...)), level); !errors.Is(err, ErrCorrupt) {
			t.Errorf("level %d: %v", level, err)
		}
	}
}

// Places in sampleTOC's encoding: disks 0, "vda" 4..9, "scsi0:0:1" 9..20, extents 20, first 24, second 72.
func TestTOCDefects(t *testing.T) {
	runDefects(t, sampleTOC().Encode(), func(p []byte) error { _, err := ParseTOC(p, sampleTOCEnd); return err }, []defect{
		{"too many disks", set(0, 1, 0x10, 0, 0), "too many disks"},
		{"a disk more", set(0, 3), "table of contents"},
		{"disk id beyond the end", set(4, 0xff, 0xff), "too short"},
		{"an extent more", set(20, 3), "number of extents"},
		{"extents without bound", set(20, 0, 0, 0x20, 0), "number of extents"},
		{"disk out of range", set(24, 2), "outside"},
		{"position zero", set(32, 0, 0, 0, 0), "outside"},
		{"empty mask", set(36, 0, 0), "outside"},
		{"reserved byte", set(38, 1), "reserved"},
		{"beyond the end", set(80, 18), "outside"},
		{"far beyond the end", set(80, 0xff, 0xff, 0xff, 0xff), "outside"},
		{"trailing byte", grow(0), "number of extents"},
	})
}

// recrc puts the checksum right behind a change, so that only the change is wrong.
func recrc(at int, make func([]byte) []byte) func([]byte) []byte {
	return func(p []byte) []byte {
		p = make(p)
		end := at
		if at < 0 {
			end = len(p) + at
		}
		binary.LittleEndian.PutUint32(p[end:], CRC(p[:end]))
		return p
	}
}

func TestSegmentHeaderDefects(t *testing.T) {
	good := make([]byte, SegmentHeaderSize)
	SegmentHeader{Sealed: true, ID: digest(5), Machine: tag(6)}.Encode(good)
	runDefects(t, good, func(p []byte) error { _, err := ParseSegmentHeader(p); return err }, []defect{
		{"magic", recrc(4092, set(0, 'X')), "magic"},
		{"checksum", set(3000, 1), "checksum"},
		{"version 2", recrc(4092, set(8, 2)), "version 2"},
		{"unknown flag", recrc(4092, set(10, 5)), "flags 0x5"},
	})
}

func TestMapHeaderDefects(t *testing.T) {
	runDefects(t, MapHeader{Version: 1, ID: digest(5), Machine: tag(6)}.Encode(), func(p []byte) error { _, err := ParseMapHeader(p); return err }, []defect{
		{"magic", recrc(60, set(0, 'X')), "magic"},
		{"checksum", set(30, 1), "checksum"},
		{"version 3", recrc(60, set(8, 3)), "version 3"},
		{"flags", recrc(60, set(10, 1)), "flags 0x1"},
		{"flags of version 2", recrc(60, set(8, 2, 0, 2)), "flags 0x2"},
	})
}

func TestTrailerDefects(t *testing.T) {
	const end, tocLen = 3 * PageSize, 100
	for _, c := range []struct {
		segment, table bool
		good           []byte
		fs             int
		size           int64
	}{
		{true, true, SegmentTrailer(end, tocLen, []uint32{7}), FooterSize, end + tocLen},
		{false, false, MapTrailer1(end, []uint32{7}), mapFooterSize1, end},
		{false, true, MapTrailer(end, tocLen, []uint32{7}), FooterSize, end + tocLen},
	} {
		segment, good, fs, size := c.segment, c.good, c.fs, c.size
		size += int64(len(good))
		at := len(good) - fs
		parse := func(p []byte) error {
			n, err := TrailerSize(p, size, segment)
			if err != nil {
				return err
			}
			if n != int64(len(p)) {
				return fmt.Errorf("trailer size %d: %w", n, ErrCorrupt)
			}
			_, err = ParseTrailer(p, size, segment)
			return err
		}
		defects := []defect{
			{"magic", recrc(-4, set(len(good)-16, 'X')), "magic"},
			{"checksum", set(0, 8), "checksum"},
			{"data ends elsewhere", recrc(-4, set(at+1, 0x20)), "add up"},
			{"data ends beyond the object", recrc(-4, set(at, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff)), "add up"},
			{"more checksums", recrc(-4, set(len(good)-24, 2)), "checksums"},
			{"checksums without bound", recrc(-4, set(len(good)-24, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff)), "checksums"},
			{"one byte longer", grow(0), "magic"},
		}
		if c.table {
			defects = append(defects, defect{"table of contents beyond the object", recrc(-4, set(at+8, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff)), "table of contents"})
		}
		t.Run(fmt.Sprintf("segment=%v table=%v", segment, c.table), func(t *testing.T) { runDefects(t, good, parse, defects) })
	}
	for _, c := range []struct {
		name    string
		p       []byte
		size    int64
		segment bool
	}{
		{"data of a segment not in pages", SegmentTrailer(PageSize+1, 0, []uint32{1}), PageSize + 1, true},
		{"segment without a header", SegmentTrailer(0, 0, nil), 0, true},
		{"map without a header", MapTrailer1(MapHeaderSize-1, []uint32{1}), MapHeaderSize - 1, false},
		{"map of version 2 without a table", MapTrailer(MapHeaderSize, 0, []uint32{1}), MapHeaderSize, false},
		{"checksums of more than there is", SegmentTrailer(PageSize, 0, []uint32{1, 2}), PageSize, true},
	} {
		if _, err := ParseTrailer(c.p, c.size+int64(len(c.p)), c.segment); !errors.Is(err, ErrCorrupt) {
			t.Errorf("%s: %v", c.name, err)
		}
	}
}

func TestObjectKeys(t *testing.T) {
	const mid, pid = "00112233445566778899aabbccddeeff", "ffeeddccbbaa99887766554433221100"
	n := name(0x12, 0xabcdef01)
	for got, want := range map[string]string{
		TrustKey(26):                           "trust/000000000000001a",
		LogKey(mid, 26):                        "log/" + mid + "/000000000000001a",
		ManifestKey(mid, pid):                  "points/" + mid + "/" + pid,
		MachineKey(mid):                        "machines/" + mid + "/key",
		HolderKey("host"):                      "keys/host",
		SegmentKey(mid, n):                     "seg/" + mid + "/00000012/abcdef01",
		MapKey(mid, n):                         "map/" + mid + "/00000012/abcdef01",
		BirthPrefix(mid, 0x12):                 "seg/" + mid + "/00000012/",
		SidecarKey(mid, pid, "proof", "0123"):  "side/" + mid + "/" + pid + "/proof-0123",
		HeaderKeys(mid, pid)[0]:                "headers-a/" + mid + "/" + pid,
		HeaderKeys(mid, pid)[1]:                "headers-b/" + mid + "/" + pid,
		n.String():                             "00000012abcdef01",
		fmt.Sprint(n.Birth()):                  "18",
		fmt.Sprint(name(1<<32-1, 0).Birth()):   "4294967295",
		fmt.Sprint(ValidID(mid), ValidID("x")): "true false",
		fmt.Sprint(ValidID(mid[:31] + "G")):    "false",
		fmt.Sprint(ValidID(mid[:31] + "A")):    "false",
	} {
		if got != want {
			t.Errorf("%s, want %s", got, want)
		}
	}
	if got, err := ParseName(n.String()); err != nil || got != n {
		t.Errorf("name came back as %v, %v", got, err)
	}
	for _, s := range []string{"", "0", "00000012ABCDEF01", "00000012abcdef0", "00000012abcdef011", "g0000012abcdef01", "+0000012abcdef01"} {
		if _, err := ParseName(s); !errors.Is(err, ErrCorrupt) {
			t.Errorf("name %q: %v", s, err)
		}
	}
	if got, err := ParseNumber("000000000000001a"); err != nil || got != 26 {
		t.Errorf("number %d, %v", got, err)
	}
	for _, s := range []string{"", "1a", "000000000000001A", "8000000000000000", "ffffffffffffffff", "00000000000000001", "-000000000000001", "0x00000000000001"} {
		if _, err := ParseNumber(s); !errors.Is(err, ErrCorrupt) {
			t.Errorf("number %q: %v", s, err)
		}
	}
}

func TestLevels(t *testing.T) {
	const leaf = LeafSize
	for _, c := range []struct {
		size          int64
		levels        int
		leaves, block int64
	}{
		{0, 0, 1, 0},
		{1, 0, 1, 1},
		{BlockSize, 0, 1, 1},
		{BlockSize + 1, 0, 1, 2},
		{leaf, 0, 1, 32},
		{leaf + 1, 1, 2, 33},
		{32 * leaf, 1, 32, 1024},
		{32*leaf + 1, 2, 33, 1025},
		{1 << 62, 9, 1 << 41, 1 << 46},
	} {
		if l, n, b := Levels(c.size), LeafCount(c.size), BlockCount(c.size); l != c.levels || n != c.leaves || b != c.block {
			t.Errorf("size %d: level %d, %d leaves, %d blocks; want %d, %d, %d", c.size, l, n, b, c.levels, c.leaves, c.block)
		}
	}
}
