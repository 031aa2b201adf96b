package integrity

import (
	"encoding/binary"
	"fmt"
)

// The journal is a ring of sections; each has some sectors of entries, and the
// blocks that these say are to be written. All sectors end with a commit id of
// the round that wrote them; what it replaces of a block is in the entry. This
// follows the kernel's own replay, which counts even after a clean stop: what
// the journal has is at least as new as what lies in place.
const (
	entrySectors = 8
	commitBytes  = 8
	entryRoundUp = 8
	rounds       = 4
	maxJournal   = 1 << 30 // bytes
	unusedEntry  = 0xffffffff
	runningEntry = 0xfffffffe
)

type journal struct {
	count     int64 // sections
	perBlock  int64 // sectors of a block
	tag       int64
	entrySize int64
	perSector int64 // entries in a sector
	mac       bool
}

// entry is a block in the journal.
type entry struct {
	section, number int64
	last            []byte // the ends of its sectors
	tag             []byte
}

func newJournal(sections, perBlock, tag int64, mac bool) journal {
	j := journal{count: sections, perBlock: perBlock, tag: tag, mac: mac}
	j.entrySize = (8 + 8*perBlock + tag + entryRoundUp - 1) / entryRoundUp * entryRoundUp
	space := int64(sector - commitBytes)
	if mac {
		space -= 8
	}
	j.perSector = space / j.entrySize
	return j
}

func (j journal) entries() int64        { return j.perSector * entrySectors }
func (j journal) sectionSectors() int64 { return j.entries()*j.perBlock + entrySectors }
func (j journal) sectors() int64        { return j.count * j.sectionSectors() }

// commitID is how sector s of a section ends in a round.
func commitID(section, s int64, round int) uint64 {
	return 0x1111111111111111*uint64(round+1) ^ (uint64(section)<<32 ^ uint64(s))
}

func roundOf(section, s int64, id uint64) int {
	for i := range rounds {
		if id == commitID(section, s, i) {
			return i
		}
	}
	return -1
}

func next(round int) int     { return (round + 1) % rounds }
func previous(round int) int { return (round + rounds - 1) % rounds }

func (d *Device) journalOffset(section, s int64) int64 {
	return d.start + (superblock+section*d.journal.sectionSectors()+s)*sector
}

// replay gives the blocks that are not in their place.
func (d *Device) replay() (map[int64]entry, error) {
	j := d.journal
	if j.count == 0 {
		return nil, nil
	}
	if j.sectors()*sector > maxJournal {
		return nil, fmt.Errorf("dm-integrity journal of %d bytes: %w", j.sectors()*sector, ErrUnsupported)
	}
	// First pass: of which round each sector is. One sector of none, and the
	// journal does not count.
	per := j.sectionSectors()
	seen := make([]int8, j.count) // the round of a whole section, -1 where its sectors differ
	var used [rounds]bool
	var last [rounds]int64
	buf := make([]byte, per*sector)
	for section := range j.count {
		if err := readFull(d.r, buf, d.journalOffset(section, 0)); err != nil {
			return nil, fmt.Errorf("read dm-integrity journal: %w", err)
		}
		for s := range per {
			round := roundOf(section, s, binary.LittleEndian.Uint64(buf[(s+1)*sector-commitBytes:]))
			if round < 0 {
				return nil, nil
			}
			used[round], last[round] = true, section
			if s == 0 {
				seen[section] = int8(round)
			} else if seen[section] != int8(round) {
				seen[section] = -1
			}
		}
	}
	first, round, ok := oldest(used, last, j.count)
	if !ok {
		return nil, nil
	}
	// Second pass, from the oldest section on: the newest write of a block wins.
	out := map[int64]entry{}
	section := first
	for range j.count {
		if seen[section] != int8(round) {
			break // a crash in the middle of writing: what follows is not of this round
		}
		if err := readFull(d.r, buf[:entrySectors*sector], d.journalOffset(section, 0)); err != nil {
			return nil, fmt.Errorf("read dm-integrity journal: %w", err)
		}
		for n := range j.entries() {
			e := buf[n%entrySectors*sector+n/entrySectors*j.entrySize:][:j.entrySize]
			hi := binary.LittleEndian.Uint32(e[4:])
			at := int64(binary.LittleEndian.Uint64(e))
			if hi == unusedEntry || hi == runningEntry || at < 0 || at >= d.dataSectors || at%j.perBlock != 0 {
				continue
			}
			rest := append([]byte(nil), e[8:8+8*j.perBlock+j.tag]...)
			out[at] = entry{section: section, number: n, last: rest[:8*j.perBlock], tag: rest[8*j.perBlock:]}
		}
		if section++; section == j.count {
			section, round = 0, next(round)
		}
	}
	return out, nil
}

// oldest is the section and round at which a replay begins.
func oldest(used [rounds]bool, last [rounds]int64, count int64) (section int64, round int, ok bool) {
	unused := 0
	if !used[rounds-1] {
		for unused = rounds - 1; unused > 0 && !used[unused-1]; unused-- {
		}
	} else {
		for unused < rounds && used[unused] {
			unused++
		}
		if unused == rounds {
			return 0, 0, false
		}
	}
	newest := previous(unused)
	round = previous(newest)
	if !used[round] && used[previous(round)] {
		return 0, 0, false
	}
	if section = last[newest] + 1; section >= count {
		section, round = 0, next(round)
	}
	return section, round, true
}

// readJournaled reads a block out of the journal, with the ends of its sectors.
func (d *Device) readJournaled(p []byte, e entry) error {
	at := d.journalOffset(e.section, entrySectors+e.number*d.journal.perBlock)
	if err := readFull(d.r, p, at); err != nil {
		return fmt.Errorf("read dm-integrity journal: %w", err)
	}
	for s := range d.journal.perBlock {
		copy(p[(s+1)*sector-commitBytes:], e.last[s*8:][:8])
	}
	return nil
}
