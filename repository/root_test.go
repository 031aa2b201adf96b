package repository_test

import (
	"encoding/binary"
	"encoding/hex"
	"strings"
	"testing"

	"github.com/zeebo/blake3"

	"github.com/lockstep-backup/lockstep/disk"
	"github.com/lockstep-backup/lockstep/repository"
	"github.com/lockstep-backup/lockstep/store/memstore"
)

// slowRoot is the content root by section 3 of the specification, the plain
// way: all block digests in a list, filled up, halved until one is left.
func slowRoot(blockKey, nodeKey *[32]byte, p []byte, unread map[int64]bool) string {
	keyed := func(key *[32]byte, parts ...[]byte) (d [32]byte) {
		h, err := blake3.NewKeyed(key[:])
		if err != nil {
			panic(err)
		}
		for _, q := range parts {
			_, _ = h.Write(q)
		}
		h.Sum(d[:0])
		return d
	}
	var row [][32]byte
	for at := 0; at < len(p); at += 65536 {
		block := make([]byte, 65536)
		copy(block, p[at:])
		var mask uint16
		for i := range 16 {
			if unread[int64(at/4096+i)] {
				mask |= 1 << i
				clear(block[i*4096 : (i+1)*4096])
			}
		}
		switch {
		case mask != 0:
			row = append(row, keyed(nodeKey, []byte{2}, binary.LittleEndian.AppendUint16(nil, mask), block))
		case strings.Trim(string(block), "\x00") == "":
			row = append(row, [32]byte{})
		default:
			row = append(row, keyed(blockKey, block))
		}
	}
	n := 32
	for n < len(row) {
		n *= 32
	}
	row = append(row, make([][32]byte, n-len(row))...)
	for len(row) > 1 {
		half := make([][32]byte, len(row)/2)
		for i := range half {
			if l, r := row[2*i], row[2*i+1]; l != ([32]byte{}) || r != ([32]byte{}) {
				half[i] = keyed(nodeKey, []byte{1}, l[:], r[:])
			}
		}
		row = half
	}
	root := keyed(nodeKey, []byte{0}, binary.LittleEndian.AppendUint64(nil, uint64(len(p))), row[0][:])
	return hex.EncodeToString(root[:])
}

func TestContentRootBySpecification(t *testing.T) {
	f := newFixture(t, memstore.New(), repository.SealingAESGCM)
	l := newLens(t, f.st, f.identity, f.machine.ID)
	block, node := l.key("block digest"), l.key("node digest")
	for _, size := range []int{0, 1, 4096, 65535, 65536, 65537, 2<<20 - 1, 2 << 20, 2<<20 + 1, 64<<20 - 1, 64 << 20, 64<<20 + 1} {
		full := []bool{true, false}
		if size > 60<<20 {
			full = []bool{false} // the slow way is slow
		}
		for _, full := range full {
			d := &memDisk{p: make([]byte, size)}
			if full {
				copy(d.p, noise(uint64(size), size))
			} else if size > 65536 {
				copy(d.p[65000:], noise(1, 2000))
				copy(d.p[size-min(size, 100):], noise(2, 100))
				if size > 3<<20 {
					copy(d.p[size/2:], noise(3, 100000))
					d.skip = []disk.Range{{Offset: 1 << 20, Length: int64(size/2) - 3<<20}}
				}
			}
			_, m := f.backup(t, d, repository.BeginOptions{Full: full})
			if want := slowRoot(block, node, d.p, nil); m.Disks[0].ContentRoot != want {
				t.Errorf("size %d, full %v: content root %s, by the specification %s", size, full, m.Disks[0].ContentRoot, want)
			}
		}
	}
	d := &memDisk{p: noise(9, 300000), bad: map[int64]bool{3: true, 20: true, 73: true}}
	_, m := f.backup(t, d, repository.BeginOptions{Unread: true})
	if want := slowRoot(block, node, d.p, d.bad); m.Disks[0].ContentRoot != want {
		t.Errorf("with unread pages: content root %s, by the specification %s", m.Disks[0].ContentRoot, want)
	}
}

// The content root depends on the content alone: not on the machine's history,
// not on how the map came about.
func TestContentRootIgnoresHistory(t *testing.T) {
	f := newFixture(t, memstore.New(), repository.SealingAESGCM)
	p := noise(1, 5<<20)
	for i := range 6 {
		copy(p[i<<19:], noise(uint64(i), 5000))
		f.backup(t, &memDisk{p: p}, repository.BeginOptions{})
	}
	_, grown := f.backup(t, &memDisk{p: p}, repository.BeginOptions{})
	_, fresh := f.backup(t, &memDisk{p: p}, repository.BeginOptions{Full: true})
	if grown.Disks[0].ContentRoot != fresh.Disks[0].ContentRoot {
		t.Error("the content root depends on how the map came about")
	}
	if fresh.Disks[0].Stats.Stored < 5<<20 {
		t.Error("a full transfer stored little")
	}
}
