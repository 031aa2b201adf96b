package format

import (
	"encoding/binary"
	"fmt"
	"sort"
)

// Run says that what lay at From in the original lies at Here in a replica.
// Segments count in pages, map objects in bytes.
type Run struct{ From, Here, Count uint32 }

const runSize = 12

func appendRuns(p []byte, runs []Run) []byte {
	p = binary.LittleEndian.AppendUint32(p, uint32(len(runs)))
	for _, r := range runs {
		p = binary.LittleEndian.AppendUint32(p, r.From)
		p = binary.LittleEndian.AppendUint32(p, r.Here)
		p = binary.LittleEndian.AppendUint32(p, r.Count)
	}
	return p
}

// parseRuns reads runs that fill p; what is here lies in [first, end).
func parseRuns(p []byte, first, end int64) ([]Run, error) {
	bad := func(what string) ([]Run, error) { return nil, fmt.Errorf("runs: %s: %w", what, ErrCorrupt) }
	r := &reader{p: p}
	n := r.u32()
	if r.bad || uint64(n)*runSize != uint64(len(r.p)) {
		return bad("number")
	}
	runs := make([]Run, n)
	behind := first // where the next run may begin in the original
	for i := range runs {
		g := Run{From: r.u32(), Here: r.u32(), Count: r.u32()}
		if g.Count == 0 || int64(g.From) < behind || int64(g.From)+int64(g.Count) > 1<<32 {
			return bad("order")
		}
		if int64(g.Here) < first || int64(g.Here)+int64(g.Count) > end {
			return bad("a run lies outside")
		}
		behind = int64(g.From) + int64(g.Count)
		runs[i] = g
	}
	return runs, nil
}

// Covers says whether one of runs, ascending, has all of [from, from+count).
func Covers(runs []Run, from, count int64) bool {
	i := sort.Search(len(runs), func(i int) bool { return int64(runs[i].From)+int64(runs[i].Count) > from })
	return i < len(runs) && int64(runs[i].From) <= from && from+count <= int64(runs[i].From)+int64(runs[i].Count)
}

// ReplicaTOC is the table of contents of a segment's replica: extents have the
// positions of the original.
type ReplicaTOC struct {
	TOC
	Runs []Run // in pages
}

// Encode gives the body of the table's frame.
func (t ReplicaTOC) Encode() []byte { return appendRuns(t.TOC.Encode(), t.Runs) }

// ParseReplicaTOC reads it and checks that every extent lies in a run, and the
// runs between the header and end.
func ParseReplicaTOC(p []byte, end int64) (t ReplicaTOC, err error) {
	toc, rest, err := parseTOC(p, 1<<32*PageSize)
	if err != nil {
		return t, err
	}
	runs, err := parseRuns(rest, SegmentHeaderSize/PageSize, end/PageSize)
	if err != nil {
		return t, fmt.Errorf("table of contents: %w", err)
	}
	for i := range toc.Extents {
		if e := &toc.Extents[i]; !Covers(runs, int64(e.Position), int64(Pages(e.Mask))) {
			return t, fmt.Errorf("table of contents: an extent lies in no run: %w", ErrCorrupt)
		}
	}
	return ReplicaTOC{TOC: toc, Runs: runs}, nil
}

// PageEntry says which page of which disk's map lies where in a map object.
type PageEntry struct {
	Disk   int // index into PageTable.Disks
	Level  int // 0 = leaf
	Index  int64
	Offset uint32 // in the original
	Length uint32
}

// PageTable says of a map object what is in it, in the order of offsets.
type PageTable struct {
	Disks []string
	Pages []PageEntry
	Runs  []Run // of a replica, in bytes
}

type tablePlace struct{ disk, level int }

// Encode gives the body of the table's frame; the runs come with a replica only.
func (t PageTable) Encode(replica bool) []byte {
	p := binary.LittleEndian.AppendUint16(nil, uint16(len(t.Disks)))
	for _, d := range t.Disks {
		p = binary.LittleEndian.AppendUint16(p, uint16(len(d)))
		p = append(p, d...)
	}
	p = binary.AppendUvarint(p, uint64(len(t.Pages)))
	last := map[tablePlace]int64{}
	for i := range t.Pages {
		e := &t.Pages[i]
		k := tablePlace{e.Disk, e.Level}
		p = binary.AppendUvarint(p, uint64(e.Disk))
		p = append(p, byte(e.Level))
		p = binary.AppendVarint(p, e.Index-last[k])
		p = binary.AppendUvarint(p, uint64(e.Length))
		last[k] = e.Index
	}
	if replica {
		p = appendRuns(p, t.Runs)
	}
	return p
}

// maxIndex bounds the number of a page of the map: blocks are below 2^47.
const maxIndex = 1 << 42

// ParsePageTable reads the table of a map object whose pages end at end, and
// checks that they fill the object, or the replica's runs, without gaps.
func ParsePageTable(p []byte, end int64, replica bool) (t PageTable, err error) {
	bad := func(what string) (PageTable, error) {
		return PageTable{}, fmt.Errorf("page table: %s: %w", what, ErrCorrupt)
	}
	r := &reader{p: p}
	nd := int(r.u16())
	if nd > maxTOCDisks {
		return bad("too many disks")
	}
	for range nd {
		n := int(r.u16())
		if r.bad || n > len(r.p) {
			return bad("too short")
		}
		t.Disks = append(t.Disks, string(r.p[:n]))
		r.p = r.p[n:]
	}
	n := r.uvarint()
	if n > uint64(len(r.p))/4 {
		return bad("number of pages")
	}
	t.Pages = make([]PageEntry, n)
	last := map[tablePlace]int64{}
	for i := range t.Pages {
		disk, level := r.uvarint(), r.u8()
		delta, length := r.varint(), r.uvarint()
		if r.bad {
			return bad("too short")
		}
		if disk >= uint64(nd) || level > MaxLevel || length <= TagSize || length > MaxMapPage {
			return bad("an entry")
		}
		k := tablePlace{int(disk), int(level)}
		index := last[k] + delta
		if delta > maxIndex || delta < -maxIndex || index < 0 || index > maxIndex {
			return bad("number of a page")
		}
		last[k] = index
		t.Pages[i] = PageEntry{Disk: int(disk), Level: int(level), Index: index, Length: uint32(length)}
	}
	runs := []Run{{From: MapHeaderSize, Here: MapHeaderSize, Count: uint32(min(max(end-MapHeaderSize, 0), 1<<32-1))}}
	if replica {
		if runs, err = parseRuns(r.p, MapHeaderSize, end); err != nil {
			return PageTable{}, fmt.Errorf("page table: %w", err)
		}
		t.Runs = runs
	} else if r.bad || len(r.p) != 0 {
		return bad("length")
	}
	at, used := 0, uint32(0) // place: so far into which run
	for i := range t.Pages {
		e := &t.Pages[i]
		if at == len(runs) || runs[at].Count-used < e.Length {
			return bad("pages and places do not match")
		}
		e.Offset = runs[at].From + used
		if used += e.Length; used == runs[at].Count {
			at, used = at+1, 0
		}
	}
	if used != 0 || at < len(runs) && runs[at].Count != 0 {
		return bad("pages and places do not match")
	}
	return t, nil
}

// LedgerEntry is what the ledger says of one object.
type LedgerEntry struct {
	Dead, Size uint32 // pages; map objects: bytes / 64
}

// ObjectName names a segment or a map object.
type ObjectName struct {
	Map bool
	Name
}

// Ledger is reclaim's account of what is dead.
type Ledger struct {
	Through uint64 // deletions and commits in log entries below are accounted for
	Objects map[ObjectName]LedgerEntry
}

const ledgerEntrySize = 17

// Encode gives the body of the ledger's frame.
func (l Ledger) Encode() []byte {
	names := make([]ObjectName, 0, len(l.Objects))
	for n := range l.Objects {
		names = append(names, n)
	}
	sort.Slice(names, func(i, j int) bool { return names[i].less(names[j]) })
	p := append(make([]byte, 0, 13+ledgerEntrySize*len(names)), 1)
	p = binary.LittleEndian.AppendUint64(p, l.Through)
	p = binary.LittleEndian.AppendUint32(p, uint32(len(names)))
	for _, n := range names {
		e := l.Objects[n]
		kind := byte(0)
		if n.Map {
			kind = 1
		}
		p = append(append(p, n.Name[:]...), kind)
		p = binary.LittleEndian.AppendUint32(p, e.Dead)
		p = binary.LittleEndian.AppendUint32(p, e.Size)
	}
	return p
}

func (n ObjectName) less(o ObjectName) bool {
	if n.Map != o.Map {
		return o.Map
	}
	return string(n.Name[:]) < string(o.Name[:])
}

// ParseLedger reads it; entries come in order, segments first.
func ParseLedger(p []byte) (l Ledger, err error) {
	bad := func(what string) (Ledger, error) { return Ledger{}, fmt.Errorf("ledger: %s: %w", what, ErrCorrupt) }
	r := &reader{p: p}
	if v := r.u8(); v != 1 && !r.bad {
		return l, fmt.Errorf("ledger: version %d is %w", v, ErrVersion)
	}
	l.Through = binary.LittleEndian.Uint64(r.take(8))
	n := r.u32()
	if r.bad || uint64(n)*ledgerEntrySize != uint64(len(r.p)) {
		return bad("length")
	}
	l.Objects = make(map[ObjectName]LedgerEntry, n)
	var last ObjectName
	for i := range n {
		var name ObjectName
		copy(name.Name[:], r.take(8))
		kind := r.u8()
		name.Map = kind == 1
		e := LedgerEntry{Dead: r.u32(), Size: r.u32()}
		if kind > 1 || i > 0 && !last.less(name) {
			return bad("order")
		}
		last = name
		l.Objects[name] = e
	}
	return l, nil
}
