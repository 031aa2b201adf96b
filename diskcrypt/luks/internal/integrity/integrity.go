// Package integrity reads the data of a device that the Linux dm-integrity
// target lays out: data blocks, their tags between them, and a journal of
// blocks that are not in their place yet. It never writes: the journal counts
// in memory. It does not decrypt. Its invariant: a block is given out only if
// its tag matches.
package integrity

import (
	"bytes"
	"crypto/hmac"
	"crypto/sha256"
	"crypto/sha512"
	"encoding/binary"
	"errors"
	"fmt"
	"hash"
	"io"
	"math"
	"sync"

	"github.com/lockstep-backup/lockstep/envelope"
)

// Errors of this package.
var (
	ErrDamaged     = errors.New("dm-integrity layout is damaged")
	ErrUnsupported = errors.New("not supported")
	// ErrTag is given for a block whose tag does not match: it was damaged or changed.
	ErrTag = errors.New("integrity tag does not match")
)

const (
	sector     = 512
	superblock = 8 // sectors kept for the superblock
	maxVersion = 5 // 6 has inline tags

	flagJournalMAC   = 1
	flagRecalculate  = 2
	flagBitmap       = 4
	flagFixedPadding = 8
	flagFixedHMAC    = 16
	knownFlags       = flagJournalMAC | flagRecalculate | flagBitmap | flagFixedPadding | flagFixedHMAC

	maxBlockLog = 3 // a page
)

var magic = []byte("integrt\x00")

// macs are the tags that can be checked, by the names LUKS2 has for them.
var macs = map[string]func() hash.Hash{"hmac(sha256)": sha256.New, "hmac(sha512)": sha512.New}

// MACKeySize is the size in bytes of the key of a kind of tag, which lies
// behind the cipher's in the volume key; 0 for kinds that are not known.
func MACKeySize(kind string) int {
	if newHash := macs[kind]; newHash != nil {
		return newHash().Size()
	}
	return 0
}

// MAC computes the tags that dm-crypt gives to dm-integrity: over the number of
// the block's first 512 bytes, its IV and its ciphertext. IVs are those of plain64.
type MAC struct {
	newHash func() hash.Hash
	key     []byte
	tweak   uint64
}

// NewMAC makes a MAC of a kind; tweak is what is added to a block's number for
// its IV. The key is copied.
func NewMAC(kind string, key []byte, tweak uint64) (*MAC, error) {
	newHash := macs[kind]
	if newHash == nil || len(key) != newHash().Size() {
		return nil, fmt.Errorf("integrity %q with a key of %d bits: %w", kind, len(key)*8, ErrUnsupported)
	}
	return &MAC{newHash, append([]byte(nil), key...), tweak}, nil
}

// Wipe wipes the key.
func (m *MAC) Wipe() { envelope.Wipe(m.key) }

// Size is the length of a tag in bytes.
func (m *MAC) Size() int { return m.newHash().Size() }

// Sum is the tag of a block whose first 512 bytes are number unit.
func (m *MAC) Sum(unit uint64, block []byte) []byte {
	var head [8 + 16]byte
	binary.LittleEndian.PutUint64(head[:], unit)
	binary.LittleEndian.PutUint64(head[8:], unit+m.tweak)
	h := hmac.New(m.newHash, m.key)
	h.Write(head[:])
	h.Write(block)
	return h.Sum(nil)
}

// Device is the data of a dm-integrity device. It is safe for concurrent use.
type Device struct {
	r     io.ReaderAt
	start int64 // of the device in r
	size  int64 // of all of it
	mac   *MAC

	tag          int64
	block        int64 // bytes
	dataSectors  int64
	interleave   int64 // data sectors of one area
	metadataRun  int64 // sectors of tags in front of them
	initial      int64 // sectors in front of the first area
	journal      journal
	journalMap   map[int64]entry // data sector of a block → where it is
	journalOnce  sync.Once
	journalError error
}

// Open reads the superblock of a device at [start, start+size) of r.
func Open(r io.ReaderAt, start, size int64, mac *MAC) (*Device, error) {
	b := make([]byte, sector)
	if start < 0 || size < superblock*sector {
		return nil, fmt.Errorf("%w: device of %d bytes", ErrDamaged, size)
	}
	if err := readFull(r, b, start); err != nil {
		return nil, fmt.Errorf("read dm-integrity superblock: %w", err)
	}
	if !bytes.HasPrefix(b, magic) {
		return nil, fmt.Errorf("%w: no superblock", ErrDamaged)
	}
	d := &Device{r: r, start: start, size: size, mac: mac}
	version, logInterleave, logBlock := b[8], b[9], b[28]
	sections := int64(binary.LittleEndian.Uint32(b[12:]))
	data := binary.LittleEndian.Uint64(b[16:])
	flags := binary.LittleEndian.Uint32(b[24:])
	d.tag = int64(binary.LittleEndian.Uint16(b[10:]))
	switch {
	case version < 1 || version > maxVersion:
		return nil, fmt.Errorf("dm-integrity version %d: %w", version, ErrUnsupported)
	case flags&^uint32(knownFlags) != 0:
		return nil, fmt.Errorf("dm-integrity flags %#x: %w", flags, ErrUnsupported)
	case logInterleave < 3 || logInterleave > 31:
		return nil, fmt.Errorf("%w: tags in front of 2^%d sectors (0 is tags on another device)", ErrDamaged, logInterleave)
	case logBlock > maxBlockLog || logBlock > logInterleave:
		return nil, fmt.Errorf("%w: blocks of 2^%d sectors", ErrDamaged, logBlock)
	case d.tag != int64(mac.Size()):
		return nil, fmt.Errorf("tags of %d bytes where %d were expected: %w", d.tag, mac.Size(), ErrUnsupported)
	case data == 0 || data > math.MaxInt64/sector || data%(1<<logBlock) != 0:
		return nil, fmt.Errorf("%w: %d sectors of data", ErrDamaged, data)
	case sections < 1:
		return nil, fmt.Errorf("%w: no journal", ErrDamaged)
	}
	d.block, d.dataSectors, d.interleave = sector<<logBlock, int64(data), 1<<logInterleave
	d.journal = newJournal(sections, int64(1)<<logBlock, d.tag, flags&flagJournalMAC != 0)
	d.initial = superblock + d.journal.sectors()
	// Until the flag came, runs of tags were padded to 2^8 sectors: the target keeps to that.
	padding := int64(sector << 8)
	if flags&flagFixedPadding != 0 {
		padding = sector * 8
	}
	d.metadataRun = (d.tag*(d.interleave>>logBlock) + padding - 1) / padding * padding / sector
	last := d.dataSectors - d.block/sector
	if end := d.dataOffset(last); d.initial > size/sector || end < 0 || end > size-d.block {
		return nil, fmt.Errorf("%w: %d sectors of data in a device of %d bytes", ErrDamaged, data, size)
	}
	if flags&flagBitmap != 0 {
		d.journal.count = 0 // its place has a bitmap: blocks are where they belong
	}
	return d, nil
}

// Size is the number of bytes of data.
func (d *Device) Size() int64 { return d.dataSectors * sector }

// dataOffset is where a data sector lies, from the start of the device; negative where that overflows.
func (d *Device) dataOffset(s int64) int64 {
	area, in := s/d.interleave, s%d.interleave
	if area > math.MaxInt64/sector/4/(d.interleave+d.metadataRun) {
		return -1
	}
	return (d.initial + area*d.interleave + (area+1)*d.metadataRun + in) * sector
}

// tagOffset is where the tag of the block at a data sector lies.
func (d *Device) tagOffset(s int64) int64 {
	area, in := s/d.interleave, s%d.interleave
	return (d.initial+area*(d.interleave+d.metadataRun))*sector + in*sector/d.block*d.tag
}

// ReadAt reads data. What is in front of a block whose tag does not match is
// given; its error is ErrTag.
func (d *Device) ReadAt(p []byte, off int64) (int, error) {
	if off < 0 {
		return 0, fmt.Errorf("read integrity device: offset %d", off)
	}
	d.journalOnce.Do(func() { d.journalMap, d.journalError = d.replay() })
	if d.journalError != nil {
		return 0, d.journalError
	}
	n := 0
	buf := make([]byte, d.block)
	for n < len(p) {
		at := off + int64(n)
		if at >= d.Size() {
			return n, io.EOF
		}
		skip := at % d.block
		if skip == 0 && int64(len(p)-n) >= d.block {
			m, err := d.readBlocks(p[n:], at/sector)
			n += m
			if err != nil {
				return n, err
			}
			continue
		}
		if _, err := d.readBlocks(buf, (at-skip)/sector); err != nil {
			return n, err
		}
		n += copy(p[n:], buf[skip:])
	}
	return n, nil
}

// readBlocks fills the start of p from the block at a data sector: blocks that
// lie one behind another, or one that is in the journal.
func (d *Device) readBlocks(p []byte, s int64) (int, error) {
	per := d.block / sector
	if e, ok := d.journalMap[s]; ok {
		p = p[:d.block]
		if err := d.readJournaled(p, e); err != nil {
			return 0, err
		}
		return d.check(p, e.tag, s)
	}
	count := min(int64(len(p))/d.block, (d.interleave-s%d.interleave)/per, (d.dataSectors-s)/per)
	for i := int64(1); i < count && len(d.journalMap) > 0; i++ {
		if _, ok := d.journalMap[s+i*per]; ok {
			count = i
		}
	}
	p = p[:count*d.block]
	if err := readFull(d.r, p, d.start+d.dataOffset(s)); err != nil {
		return 0, err
	}
	tags := make([]byte, count*d.tag)
	if err := readFull(d.r, tags, d.start+d.tagOffset(s)); err != nil {
		return 0, fmt.Errorf("read integrity tags: %w", err)
	}
	return d.check(p, tags, s)
}

// check gives how many bytes of p have the right tags.
func (d *Device) check(p, tags []byte, s int64) (int, error) {
	n := 0
	for ; n < len(p); n += int(d.block) {
		unit := s + int64(n)/sector
		tag := tags[int64(n)/d.block*d.tag:][:d.tag]
		if !hmac.Equal(d.mac.Sum(uint64(unit), p[n:n+int(d.block)]), tag) {
			return n, fmt.Errorf("block at sector %d: %w", unit, ErrTag)
		}
	}
	return n, nil
}

func readFull(r io.ReaderAt, b []byte, off int64) error {
	n, err := r.ReadAt(b, off)
	if n == len(b) {
		return nil
	}
	if err == nil || errors.Is(err, io.EOF) {
		err = io.ErrUnexpectedEOF
	}
	return err
}
