package integrity

import (
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"math/rand/v2"
	"strings"
	"testing"
)

const (
	testStart  = 4096
	testBlocks = 300
)

var testKey = bytes.Repeat([]byte{9}, 32)

// image makes a device of 300 blocks of 4096 bytes with areas of 64 blocks and
// a journal of four sections, all of the first round and unused.
func image(t testing.TB, flags uint32) (b []byte, data []byte, d *Device) {
	t.Helper()
	mac, err := NewMAC("hmac(sha256)", testKey, 0)
	if err != nil {
		t.Fatal(err)
	}
	b = make([]byte, 4<<20)
	s := b[testStart:]
	copy(s, magic)
	s[8], s[9], s[28] = 3, 9, 3
	binary.LittleEndian.PutUint16(s[10:], 32)
	binary.LittleEndian.PutUint32(s[12:], 4)
	binary.LittleEndian.PutUint64(s[16:], testBlocks*8)
	binary.LittleEndian.PutUint32(s[24:], flags)
	if d, err = Open(bytes.NewReader(b), testStart, int64(len(b))-testStart, mac); err != nil {
		t.Fatal(err)
	}
	data = make([]byte, testBlocks*4096)
	_, _ = rand.NewChaCha8([32]byte{1}).Read(data)
	for i := range int64(testBlocks) {
		block := data[i*4096:][:4096]
		copy(b[testStart+d.dataOffset(i*8):], block)
		copy(b[testStart+d.tagOffset(i*8):], mac.Sum(uint64(i*8), block))
	}
	for section := range int64(4) {
		for n := range d.journal.entries() {
			binary.LittleEndian.PutUint64(b[d.entryOffset(section, n):], 1<<64-1)
		}
		commit(b, d, section, 0)
	}
	return b, data, d
}

func (d *Device) entryOffset(section, n int64) int64 {
	return d.journalOffset(section, n%entrySectors) + n/entrySectors*d.journal.entrySize
}

func commit(b []byte, d *Device, section int64, round int) {
	for s := range d.journal.sectionSectors() {
		binary.LittleEndian.PutUint64(b[d.journalOffset(section, s+1)-commitBytes:], commitID(section, s, round))
	}
}

// log writes a block into the journal.
func log(b []byte, d *Device, section, n, sectorNumber int64, block []byte) {
	at := d.entryOffset(section, n)
	binary.LittleEndian.PutUint64(b[at:], uint64(sectorNumber))
	to := d.journalOffset(section, entrySectors+n*d.journal.perBlock)
	copy(b[to:], block)
	for s := range d.journal.perBlock {
		copy(b[at+8+8*s:], block[(s+1)*sector-8:][:8])
	}
	copy(b[at+8+8*d.journal.perBlock:], d.mac.Sum(uint64(sectorNumber), block))
}

func readAll(d *Device) ([]byte, error) {
	got := make([]byte, d.Size())
	n, err := d.ReadAt(got, 0)
	if errors.Is(err, io.EOF) {
		err = nil
	}
	return got[:n], err
}

func TestRead(t *testing.T) {
	for _, flags := range []uint32{0, flagFixedPadding, flagFixedPadding | flagJournalMAC, flagFixedPadding | flagBitmap} {
		b, data, d := image(t, flags)
		if got, err := readAll(d); err != nil || !bytes.Equal(got, data) {
			t.Fatalf("flags %d: %v", flags, err)
		}
		part := make([]byte, 9000)
		if _, err := d.ReadAt(part, 63*4096+100); err != nil || !bytes.Equal(part, data[63*4096+100:][:9000]) {
			t.Fatalf("across areas: %v", err)
		}
		if n, err := d.ReadAt(part, d.Size()-100); n != 100 || !errors.Is(err, io.EOF) {
			t.Fatalf("at the end: %d %v", n, err)
		}
		// A flipped bit, in a block or in its tag, keeps that block back and no other.
		for _, at := range []int64{d.dataOffset(70*8) + 17, d.tagOffset(70*8) + 3} {
			b[testStart+at] ^= 1
			if got, err := readAll(d); !errors.Is(err, ErrTag) || len(got) != 70*4096 || !strings.Contains(err.Error(), "sector 560") {
				t.Fatalf("damage: %d bytes, %v", len(got), err)
			}
			if _, err := d.ReadAt(part, 71*4096); err != nil {
				t.Fatal(err)
			}
			b[testStart+at] ^= 1
		}
	}
}

// TestJournal: what is committed counts, in its order; what is not does not.
func TestJournal(t *testing.T) {
	one, two, three := bytes.Repeat([]byte("one "), 1024), bytes.Repeat([]byte("two "), 1024), bytes.Repeat([]byte("thre"), 1024)
	for _, c := range []struct {
		name string
		log  func(b []byte, d *Device)
		want []byte // block 5
	}{
		{"empty", func([]byte, *Device) {}, nil},
		{"one write", func(b []byte, d *Device) {
			log(b, d, 0, 0, 40, one)
			commit(b, d, 0, 1)
		}, one},
		{"the newer write wins", func(b []byte, d *Device) {
			log(b, d, 0, 3, 40, one)
			commit(b, d, 0, 1)
			log(b, d, 1, 0, 40, two)
			commit(b, d, 1, 1)
		}, two},
		{"the last entry of a section", func(b []byte, d *Device) {
			log(b, d, 0, d.journal.entries()-1, 40, three)
			commit(b, d, 0, 1)
		}, three},
		{"a write of the round before is older", func(b []byte, d *Device) {
			log(b, d, 3, 0, 40, one) // the end of round 0
			commit(b, d, 3, 0)
			log(b, d, 0, 0, 40, two)
			commit(b, d, 0, 1)
		}, two},
		{"a section that is half written", func(b []byte, d *Device) {
			log(b, d, 0, 0, 40, one)
			commit(b, d, 0, 1)
			log(b, d, 1, 0, 40, two)
			commit(b, d, 1, 1)
			binary.LittleEndian.PutUint64(b[d.journalOffset(1, 21)-commitBytes:], commitID(1, 20, 0))
		}, one},
		{"a sector of no round: the journal does not count", func(b []byte, d *Device) {
			log(b, d, 0, 0, 40, one)
			commit(b, d, 0, 1)
			b[d.journalOffset(2, 9)-1] ^= 0x55
		}, nil},
		{"a block behind the end", func(b []byte, d *Device) {
			log(b, d, 0, 0, testBlocks*8, one)
			commit(b, d, 0, 1)
		}, nil},
		{"half a block", func(b []byte, d *Device) {
			log(b, d, 0, 0, 41, one)
			commit(b, d, 0, 1)
		}, nil},
	} {
		t.Run(c.name, func(t *testing.T) {
			b, data, d := image(t, flagFixedPadding)
			c.log(b, d)
			if c.want != nil {
				copy(data[5*4096:], c.want)
			}
			if got, err := readAll(d); err != nil || !bytes.Equal(got, data) {
				t.Fatalf("%v: block 5 begins with %q", err, got[5*4096:][:4])
			}
		})
	}
	t.Run("damage in it", func(t *testing.T) {
		b, _, d := image(t, flagFixedPadding)
		log(b, d, 0, 0, 40, one)
		commit(b, d, 0, 1)
		b[d.journalOffset(0, entrySectors)] ^= 1
		if got, err := readAll(d); !errors.Is(err, ErrTag) || len(got) != 5*4096 {
			t.Fatalf("%d bytes, %v", len(got), err)
		}
	})
}

func TestSuperblocks(t *testing.T) {
	for _, c := range []struct {
		name   string
		defect func(s []byte)
		want   error
	}{
		{"magic", func(s []byte) { s[0] = 'I' }, ErrDamaged},
		{"version 0", func(s []byte) { s[8] = 0 }, ErrUnsupported},
		{"version 6", func(s []byte) { s[8] = 6 }, ErrUnsupported},
		{"inline tags", func(s []byte) { s[24] |= 0x20 }, ErrUnsupported},
		{"tags on another device", func(s []byte) { s[9] = 0 }, ErrDamaged},
		{"interleave", func(s []byte) { s[9] = 200 }, ErrDamaged},
		{"tag size", func(s []byte) { s[10] = 20 }, ErrUnsupported},
		{"no journal", func(s []byte) { s[12] = 0 }, ErrDamaged},
		{"journal larger than the device", func(s []byte) { s[14] = 0xff }, ErrDamaged},
		{"more data than the device", func(s []byte) { s[22] = 1 }, ErrDamaged},
		{"data of absurd size", func(s []byte) { s[23] = 0xff }, ErrDamaged},
		{"no data", func(s []byte) { clear(s[16:24]) }, ErrDamaged},
		{"block", func(s []byte) { s[28] = 9 }, ErrDamaged},
		{"part of a block", func(s []byte) { s[16]++ }, ErrDamaged},
	} {
		t.Run(c.name, func(t *testing.T) {
			b, _, d := image(t, 0)
			c.defect(b[testStart:])
			if _, err := Open(bytes.NewReader(b), testStart, int64(len(b))-testStart, d.mac); !errors.Is(err, c.want) {
				t.Fatal(err)
			}
		})
	}
	if _, err := NewMAC("poly1305", testKey, 0); !errors.Is(err, ErrUnsupported) {
		t.Fatal(err)
	}
}

// FuzzDevice: whatever superblock and journal say, reading ends, within bounds,
// and gives no block without its tag.
func FuzzDevice(f *testing.F) {
	b, _, d := image(f, flagFixedPadding)
	log(b, d, 0, 0, 40, make([]byte, 4096))
	commit(b, d, 0, 1)
	f.Add(b[testStart:][:512], b[d.journalOffset(0, 0):][:16<<10])
	f.Add([]byte("integrt\x00"), []byte{})
	f.Fuzz(func(t *testing.T, head, journal []byte) {
		raw := make([]byte, 1<<20)
		copy(raw, head[:min(len(head), 512)])
		copy(raw[superblock*sector:], journal[:min(len(journal), 1<<19)])
		mac, err := NewMAC("hmac(sha256)", testKey, 0)
		if err != nil {
			t.Fatal(err)
		}
		d, err := Open(bytes.NewReader(raw), 0, int64(len(raw)), mac)
		if err != nil {
			return
		}
		if d.Size() > int64(len(raw)) {
			t.Fatalf("%d bytes of data in %d", d.Size(), len(raw))
		}
		p := make([]byte, 16<<10)
		for _, off := range []int64{0, 100, d.Size() - 1, d.Size()} {
			_, _ = d.ReadAt(p, off)
		}
	})
}
