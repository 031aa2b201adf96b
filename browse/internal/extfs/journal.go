package extfs

import (
	"encoding/binary"
	"fmt"
	"io"

	"github.com/lockstep-backup/lockstep/browse/internal/fsys"
)

var be = binary.BigEndian

const (
	journalMagic = 0xC03B3998

	blockDescriptor = 1
	blockCommit     = 2
	blockRevoke     = 5

	tagEscaped  = 1
	tagSameUUID = 2
	tagLast     = 8

	jbd64bit      = 0x2
	jbdCsumV2     = 0x8
	jbdCsumV3     = 0x10
	jbdFastCommit = 0x20
	jbdKnown      = 0x1 | jbd64bit | 0x4 | jbdCsumV2 | jbdCsumV3 | jbdFastCommit

	maxJournalBlocks = 1 << 20
)

// overlay is the volume with the journal applied: blocks that committed
// transactions wrote come from the journal.
type overlay struct {
	r            io.ReaderAt
	bs           int64
	blocks       map[int64]logged // by number of the block they replace
	transactions int
	warnings     []string
}

type logged struct {
	at      int64 // in the volume, bytes
	escaped bool  // its first four bytes were zeroed, for they look like the journal's
}

func (o *overlay) ReadAt(p []byte, off int64) (int, error) {
	for done := 0; done < len(p); {
		at := off + int64(done)
		within := at % o.bs
		// As many bytes as come from one place, whole blocks of the volume at once.
		n := min(o.bs-within, int64(len(p)-done))
		from, ok := o.blocks[at/o.bs]
		if !ok {
			for done+int(n) < len(p) {
				if _, ok := o.blocks[(at+n)/o.bs]; ok {
					break
				}
				n = min(n+o.bs, int64(len(p)-done))
			}
		} else {
			at = from.at + within
		}
		b := p[done : done+int(n)]
		if k, err := o.r.ReadAt(b, at); err != nil {
			return done + k, err
		}
		if ok && from.escaped && within < 4 {
			var magic [4]byte
			be.PutUint32(magic[:], journalMagic)
			copy(b, magic[within:])
		}
		done += int(n)
	}
	return len(p), nil
}

type journal struct {
	f        *FS
	runs     fsys.Runs
	bs       int64
	max      uint32 // blocks of the log
	first    uint32
	incompat uint32
	seed     uint32
}

// replay reads the journal as the kernel does at a mount.
func (f *FS) replay() (*overlay, error) {
	i, err := f.inode(uint64(f.journal))
	if err != nil {
		return nil, err
	}
	runs, err := f.runs(i)
	if err != nil {
		return nil, err
	}
	o := &overlay{bs: f.bs, blocks: map[int64]logged{}}
	j := &journal{f: f, runs: runs, bs: f.bs}
	sb, _, err := j.block(0)
	if err != nil {
		return nil, err
	}
	kind := be.Uint32(sb[4:])
	if be.Uint32(sb) != journalMagic || kind != 3 && kind != 4 {
		return nil, fsys.Corrupt("journal without a superblock")
	}
	if int64(be.Uint32(sb[12:])) != f.bs {
		return nil, fsys.Corrupt("journal with blocks of %d bytes", be.Uint32(sb[12:]))
	}
	j.max, j.first = be.Uint32(sb[16:]), be.Uint32(sb[20:])
	if kind == 4 {
		j.incompat = be.Uint32(sb[40:])
	}
	if unknown := j.incompat &^ jbdKnown; unknown != 0 {
		return nil, fsys.Unsupported("journal features %#x", unknown)
	}
	if j.incompat&jbdFastCommit != 0 {
		n := be.Uint32(sb[0x54:])
		if n == 0 {
			n = 256
		}
		if n >= j.max {
			return nil, fsys.Corrupt("a journal of %d blocks with %d of fast commits", j.max, n)
		}
		j.max -= n
		o.warnings = append(o.warnings, "fast commits of its journal are not applied: the last seconds before the image may be missing")
	}
	sequence, start := be.Uint32(sb[24:]), be.Uint32(sb[28:])
	if start == 0 {
		return o, nil // all of it has reached its place
	}
	if j.first == 0 || j.max > maxJournalBlocks || int64(j.max)*j.bs > f.vol.Size() || start < j.first || start >= j.max || int64(j.max)*j.bs > i.size() {
		return nil, fsys.Corrupt("journal of %d blocks that begins at %d", j.max, start)
	}
	j.seed = crc32c(^uint32(0), sb[48:64])
	revoked := map[int64]uint32{}
	// First what is revoked, for that holds for earlier transactions too.
	end, err := j.walk(start, sequence, 0, func(t transaction) error {
		for n := range t.revoked {
			revoked[n] = t.sequence
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	_, err = j.walk(start, sequence, end-sequence, func(t transaction) error {
		o.transactions++
		o.warnings = append(o.warnings, t.warnings...)
		for _, b := range t.blocks {
			if last, ok := revoked[b.target]; ok && int32(last-t.sequence) >= 0 {
				continue
			}
			o.blocks[b.target] = b.logged
		}
		return nil
	})
	if len(o.warnings) > 10 {
		o.warnings = append(o.warnings[:10], "more of the same")
	}
	return o, err
}

// block is a block of the journal and where it is.
func (j *journal) block(n uint32) ([]byte, int64, error) {
	at := int64(n) * j.bs
	if r, ok := j.runs.Find(at); ok {
		from := r.From + at - r.At
		b, err := j.f.vol.Bytes(from, j.bs)
		return b, from, err
	}
	return nil, 0, fsys.Corrupt("block %d of the journal is not there", n)
}

type transaction struct {
	sequence uint32
	blocks   []loggedBlock
	revoked  map[int64]bool
	warnings []string
}

type loggedBlock struct {
	target int64
	logged
}

// walk calls fn for each committed transaction, at most limit (0 = all), and
// returns the sequence behind the last.
func (j *journal) walk(at, sequence, limit uint32, fn func(transaction) error) (uint32, error) {
	t := transaction{sequence: sequence, revoked: map[int64]bool{}}
	next := func() {
		if at++; at >= j.max {
			at = j.first
		}
	}
	first := sequence
	for used := uint32(0); used < j.max; used++ {
		b, _, err := j.block(at)
		if err != nil {
			return t.sequence, err
		}
		if be.Uint32(b) != journalMagic || be.Uint32(b[8:]) != t.sequence {
			break
		}
		next()
		switch be.Uint32(b[4:]) {
		case blockDescriptor:
			if !j.tailFits(b) {
				return t.sequence, nil
			}
			n, err := j.descriptor(b, &at, next, &t)
			if err != nil {
				return t.sequence, err
			}
			used += n
		case blockRevoke:
			if !j.tailFits(b) {
				return t.sequence, nil
			}
			if err := j.revokes(b, &t); err != nil {
				return t.sequence, err
			}
		case blockCommit:
			if !j.commitFits(b) {
				return t.sequence, nil // it was being written
			}
			if err := fn(t); err != nil {
				return t.sequence, err
			}
			t = transaction{sequence: t.sequence + 1, revoked: map[int64]bool{}}
			if limit > 0 && t.sequence-first >= limit {
				return t.sequence, nil
			}
		default:
			return t.sequence, nil
		}
	}
	return t.sequence, nil
}

// checksummed says whether blocks of the journal end with a checksum.
func (j *journal) checksummed() bool { return j.incompat&(jbdCsumV2|jbdCsumV3) != 0 }

func (j *journal) tailFits(b []byte) bool {
	if !j.checksummed() {
		return true
	}
	want := be.Uint32(b[len(b)-4:])
	c := append([]byte(nil), b...)
	clear(c[len(c)-4:])
	return crc32c(j.seed, c) == want
}

func (j *journal) commitFits(b []byte) bool {
	if !j.checksummed() {
		return true
	}
	want := be.Uint32(b[16:])
	c := append([]byte(nil), b...)
	clear(c[16:20])
	return crc32c(j.seed, c) == want
}

// descriptor reads the tags of a descriptor block; the blocks that they name
// follow it in the log.
func (j *journal) descriptor(b []byte, at *uint32, next func(), t *transaction) (used uint32, err error) {
	size, end := 8, len(b)
	switch {
	case j.incompat&jbdCsumV3 != 0:
		size = 16
	case j.incompat&jbdCsumV2 != 0:
		size = 10
	}
	if j.incompat&jbd64bit != 0 && j.incompat&jbdCsumV3 == 0 {
		size += 4
	}
	if j.checksummed() {
		end -= 4
	}
	for p := 12; p+size <= end; {
		tag := b[p:]
		target, sum := uint64(be.Uint32(tag)), uint32(be.Uint16(tag[4:]))
		flags := uint32(be.Uint16(tag[6:]))
		if j.incompat&jbdCsumV3 != 0 {
			flags, sum = be.Uint32(tag[4:]), be.Uint32(tag[12:])
		}
		if j.incompat&jbd64bit != 0 {
			target |= uint64(be.Uint32(tag[8:])) << 32
		}
		p += size
		if flags&tagSameUUID == 0 {
			p += 16
		}
		data, from, err := j.block(*at)
		if err != nil {
			return used, err
		}
		next()
		if used++; used > j.max {
			return used, fsys.Corrupt("a transaction is larger than the journal")
		}
		switch {
		case target >= j.f.blocks:
			return used, fsys.Corrupt("the journal writes block %d of %d", target, j.f.blocks)
		case !j.dataFits(data, t.sequence, sum):
			t.warnings = append(t.warnings, fmt.Sprintf("block %d in its journal is damaged and not applied", target))
		default:
			t.blocks = append(t.blocks, loggedBlock{int64(target), logged{at: from, escaped: flags&tagEscaped != 0}})
		}
		if flags&tagLast != 0 {
			break
		}
	}
	return used, nil
}

func (j *journal) dataFits(b []byte, sequence, sum uint32) bool {
	if !j.checksummed() {
		return true
	}
	var s [4]byte
	be.PutUint32(s[:], sequence)
	got := crc32c(crc32c(j.seed, s[:]), b)
	if j.incompat&jbdCsumV3 == 0 {
		got &= 0xFFFF
	}
	return got == sum
}

func (j *journal) revokes(b []byte, t *transaction) error {
	size, count := 4, int(be.Uint32(b[12:]))
	if j.incompat&jbd64bit != 0 {
		size = 8
	}
	if count < 16 || count > len(b) {
		return fsys.Corrupt("a revoke block of %d bytes", count)
	}
	for p := 16; p+size <= count; p += size {
		n := uint64(be.Uint32(b[p:]))
		if size == 8 {
			n = be.Uint64(b[p:])
		}
		if n < j.f.blocks {
			t.revoked[int64(n)] = true
		}
	}
	return nil
}
