package format

import (
	"bytes"
	"reflect"
	"testing"

	"pgregory.net/rapid"
)

func sampleReplicaTOC() ReplicaTOC {
	toc := sampleTOC()
	var runs []Run
	for i, e := range toc.Extents {
		runs = append(runs, Run{From: e.Position, Here: uint32(1 + 16*i), Count: uint32(Pages(e.Mask))})
	}
	return ReplicaTOC{TOC: toc, Runs: runs}
}

const sampleReplicaEnd = 100 * PageSize

func samplePages(replica bool) PageTable {
	t := PageTable{Disks: []string{"vda", "vdb"}, Pages: []PageEntry{
		{Disk: 0, Level: 0, Index: 7, Offset: 64, Length: 100},
		{Disk: 0, Level: 0, Index: 5, Offset: 164, Length: 300},
		{Disk: 0, Level: 1, Index: 0, Offset: 464, Length: 65536},
		{Disk: 1, Level: 0, Index: 1 << 40, Offset: 66000, Length: 17},
	}}
	if replica {
		t.Pages[3].Offset = 1 << 31
		t.Runs = []Run{{From: 64, Here: 64, Count: 65936}, {From: 1 << 31, Here: 66000, Count: 17}}
	}
	return t
}

const samplePagesEnd = 66017

func sampleLedger() Ledger {
	return Ledger{Through: 77, Objects: map[ObjectName]LedgerEntry{
		{Name: name(1, 2)}: {Dead: 3, Size: 4}, {Name: name(0, 9)}: {Dead: 1 << 31, Size: 1<<32 - 1}, {Map: true, Name: name(1, 2)}: {Dead: 0, Size: 1},
	}}
}

func TestReplicaTOCDefects(t *testing.T) {
	toc := sampleReplicaTOC()
	good := toc.Encode()
	at := len(good) - runSize*len(toc.Runs)
	runDefects(t, good, func(p []byte) error { _, err := ParseReplicaTOC(p, sampleReplicaEnd); return err }, []defect{
		{"a run more", set(at-4, byte(len(toc.Runs)+1)), "number"},
		{"trailing byte", grow(0), "number"},
		{"empty run", set(at+8, 0), "order"},
		{"run of the header", set(at, 0), "order"},
		{"run elsewhere", set(at, byte(toc.Runs[0].From+1)), "runs"},
		{"beyond the end", set(at+4, 0xff), "outside"},
		{"in the header", set(at+4, 0), "outside"},
		{"an extent in no run", set(at+8, byte(toc.Runs[0].Count-1)), "no run"},
	})
}

func TestPageTableDefects(t *testing.T) {
	for _, replica := range []bool{false, true} {
		good := samplePages(replica).Encode(replica)
		defects := []defect{
			{"a disk more", set(0, 3), "page table"},
			{"disks without bound", set(0, 1, 0x10), "too many disks"},
			{"pages without bound", set(12, 0x7f), "number of pages"},
			{"disk out of range", set(13, 2), "entry"},
			{"level out of range", set(14, MaxLevel+1), "entry"},
			{"negative number", set(15, 1), "number of a page"},
			{"a page of a tag only", set(16, TagSize), "entry"},
			{"another length", set(16, 101), "do not match"},
			{"trailing byte", grow(0), ""},
		}
		runDefects(t, good, func(p []byte) error { _, err := ParsePageTable(p, samplePagesEnd, replica); return err }, defects)
		for _, end := range []int64{0, samplePagesEnd - 1, samplePagesEnd + 1} {
			if _, err := ParsePageTable(good, end, replica); err == nil && (!replica || end < samplePagesEnd) {
				t.Errorf("replica %v: taken with pages that end at %d", replica, end)
			}
		}
	}
}

func TestLedgerDefects(t *testing.T) {
	runDefects(t, sampleLedger().Encode(), func(p []byte) error { _, err := ParseLedger(p); return err }, []defect{
		{"an entry more", set(9, 4), "length"},
		{"trailing byte", grow(0), "length"},
		{"order", set(13, 0xff), "order"},
		{"kind", set(13+8, 2), "order"},
		{"empty", func([]byte) []byte { return nil }, "length"},
	})
}

func TestReplicaTablesRoundTrip(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		p := PageTable{Disks: []string{"", "x"}}
		at, here := uint32(MapHeaderSize), uint32(MapHeaderSize)
		replica := rapid.Bool().Draw(t, "replica")
		for range rapid.IntRange(0, 20).Draw(t, "pages") {
			e := PageEntry{
				Disk: rapid.IntRange(0, 1).Draw(t, "disk"), Level: rapid.IntRange(0, MaxLevel).Draw(t, "level"),
				Index: rapid.Int64Range(0, maxIndex/2).Draw(t, "index"), Length: rapid.Uint32Range(17, MaxMapPage).Draw(t, "length"),
			}
			if replica {
				gap := rapid.Uint32Range(0, 1).Draw(t, "gap") * 100
				at += gap
				if n := len(p.Runs); n == 0 || gap > 0 {
					p.Runs = append(p.Runs, Run{From: at, Here: here, Count: e.Length})
				} else {
					p.Runs[n-1].Count += e.Length
				}
			}
			e.Offset = at
			at += e.Length
			here += e.Length
			p.Pages = append(p.Pages, e)
		}
		got, err := ParsePageTable(p.Encode(replica), int64(here), replica)
		if err != nil || len(got.Pages) != len(p.Pages) || len(p.Pages) > 0 && !reflect.DeepEqual(got, p) {
			t.Fatalf("%+v came back as %+v, %v", p, got, err)
		}
	})
}

func FuzzReplicaTOC(f *testing.F) {
	f.Add(sampleReplicaTOC().Encode(), int64(sampleReplicaEnd))
	f.Fuzz(func(t *testing.T, p []byte, end int64) {
		toc, err := ParseReplicaTOC(p, end)
		if refused(t, err) {
			return
		}
		for _, r := range toc.Runs {
			if r.Here < 1 || (int64(r.Here)+int64(r.Count))*PageSize > end {
				t.Fatalf("%+v lies outside of %d", r, end)
			}
		}
		for _, e := range toc.Extents {
			if !Covers(toc.Runs, int64(e.Position), int64(Pages(e.Mask))) {
				t.Fatalf("%+v lies in no run", e)
			}
		}
		if got := toc.Encode(); !bytes.Equal(got, p) {
			t.Fatalf("%x was taken, %x is what a writer makes", p, got)
		}
	})
}

func FuzzPageTable(f *testing.F) {
	f.Add(samplePages(false).Encode(false), int64(samplePagesEnd), false)
	f.Add(samplePages(true).Encode(true), int64(samplePagesEnd), true)
	f.Fuzz(func(t *testing.T, p []byte, end int64, replica bool) {
		table, err := ParsePageTable(p, end, replica)
		if refused(t, err) {
			return
		}
		for _, e := range table.Pages {
			if e.Disk >= len(table.Disks) || e.Index < 0 || e.Offset < MapHeaderSize || e.Length <= TagSize {
				t.Fatalf("taken: %+v", e)
			}
			if replica && !Covers(table.Runs, int64(e.Offset), int64(e.Length)) || !replica && int64(e.Offset)+int64(e.Length) > end {
				t.Fatalf("%+v lies outside", e)
			}
		}
		again, err := ParsePageTable(table.Encode(replica), end, replica)
		if err != nil || !reflect.DeepEqual(again, table) {
			t.Fatalf("%+v came back as %+v, %v", table, again, err)
		}
	})
}

func FuzzLedger(f *testing.F) {
	f.Add(sampleLedger().Encode())
	f.Add(Ledger{}.Encode())
	f.Fuzz(func(t *testing.T, p []byte) {
		l, err := ParseLedger(p)
		if refused(t, err) {
			return
		}
		if got := l.Encode(); !bytes.Equal(got, p) {
			t.Fatalf("%x was taken, %x is what a writer makes", p, got)
		}
	})
}
