package format

import (
	"bytes"
	"encoding/hex"
	"flag"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

var update = flag.Bool("update", false, "write golden files anew: a change of the format")

// The bytes of each structure as format 1 has them. A difference here is a
// change of the format, which needs a version, not new golden files.
func TestGolden(t *testing.T) {
	segment := make([]byte, SegmentHeaderSize)
	SegmentHeader{Sealed: true, ID: digest(5), Machine: tag(6)}.Encode(segment)
	plain := make([]byte, SegmentHeaderSize)
	SegmentHeader{ID: digest(5), Machine: tag(6)}.Encode(plain)
	g, err := NewDigester(bytes.Repeat([]byte{1}, 32), bytes.Repeat([]byte{2}, 32))
	if err != nil {
		t.Fatal(err)
	}
	replica := make([]byte, SegmentHeaderSize)
	SegmentHeader{Sealed: true, Replica: true, ID: digest(5), Machine: tag(6)}.Encode(replica)
	block := make([]byte, BlockSize)
	block[BlockSize-1] = 1
	var row [32]Digest
	row[0], row[31] = g.Block(block), g.UnreadBlock(block, 0x1234)
	join := g.Join32(&row)
	hash := func(d Digest) []byte { return d[:] }
	for name, p := range map[string][]byte{
		"leaf": sampleLeaf().Encode(nil), "node": sampleNode().Encode(nil),
		"toc": sampleTOC().Encode(), "segment-header": segment, "segment-header-unsealed": plain,
		"segment-header-replica": replica,
		"map-header":             MapHeader{Version: 1, ID: digest(7), Machine: tag(8)}.Encode(),
		"map-header-2":           MapHeader{Version: 2, ID: digest(7), Machine: tag(8)}.Encode(),
		"map-header-replica":     MapHeader{Version: 2, Replica: true, ID: digest(7), Machine: tag(8)}.Encode(),
		"segment-trailer":        SegmentTrailer(2<<20, 123, []uint32{1, 0xffffffff}),
		"map-trailer":            MapTrailer1(1<<20+1, []uint32{1, 0xffffffff}),
		"map-trailer-2":          MapTrailer(1<<20+1, 77, []uint32{1, 0xffffffff}),
		"toc-replica":            sampleReplicaTOC().Encode(),
		"pages":                  samplePages(false).Encode(false), "pages-replica": samplePages(true).Encode(true),
		"ledger":       sampleLedger().Encode(),
		"digest-block": hash(g.Block(block)), "digest-unread": hash(g.UnreadBlock(block, 0x1234)), "digest-join": hash(join),
		"digest-root": hash(g.Root(1<<40+5, join)), "digest-keyed": hash(g.Keyed([]byte("a"), []byte("bc"))),
	} {
		t.Run(name, func(t *testing.T) {
			path := filepath.Join("testdata", name+".hex")
			got := dump(p)
			if *update {
				if err := os.WriteFile(path, []byte(got), 0o644); err != nil {
					t.Fatal(err)
				}
			}
			want, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			if got != string(want) {
				t.Errorf("format 1 has\n%swritten is\n%s", want, got)
			}
		})
	}
}

// dump is 32 bytes a line; lines of zeroes are counted.
func dump(p []byte) string {
	var b strings.Builder
	for len(p) > 0 {
		n := min(32, len(p))
		b.WriteString(hex.EncodeToString(p[:n]))
		b.WriteByte('\n')
		p = p[n:]
	}
	zero := strings.Repeat("00", 32) + "\n"
	s := b.String()
	for strings.Contains(s, zero+zero) {
		s = strings.ReplaceAll(s, zero+zero, zero+"*\n")
		s = strings.ReplaceAll(s, "*\n"+zero, "*\n")
		s = strings.ReplaceAll(s, "*\n*\n", "*\n")
	}
	return s
}
