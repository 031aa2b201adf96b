package export

import (
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/lockstep-backup/lockstep/disk"
	"github.com/lockstep-backup/lockstep/repository"
)

// image is a disk in memory; blocks of zeroes are holes.
type image struct {
	p     []byte
	reads atomic.Int64
	bad   int64 // reads that touch this byte fail, where it is not 0
}

func (m *image) Size() int64 { return int64(len(m.p)) }

func (m *image) ReadAt(p []byte, off int64) (int, error) {
	m.reads.Add(1)
	if m.bad != 0 && off <= m.bad && m.bad < off+int64(len(p)) {
		return 0, repository.ErrDamaged
	}
	n := copy(p, m.p[off:])
	if n < len(p) {
		return n, io.EOF
	}
	return n, nil
}

func (m *image) NextData(off int64) (disk.Range, error) {
	for at := off; at < m.Size(); {
		end := min((at/disk.BlockSize+1)*disk.BlockSize, m.Size())
		if b := m.p[at/disk.BlockSize*disk.BlockSize : end]; bytes.Count(b, []byte{0}) != len(b) {
			return disk.Range{Offset: at, Length: end - at}, nil
		}
		at = end
	}
	return disk.Range{}, io.EOF
}

// noise has data with holes between.
func noise(size int, seed byte) *image {
	m := &image{p: make([]byte, size)}
	_, _ = rand.NewChaCha8([32]byte{seed}).Read(m.p)
	clear(m.p[size/3 : size/2])
	return m
}

// point is a recovery point of such disks.
func point(t testing.TB, images ...*image) *Point {
	m := &repository.Manifest{Repository: "r", Machine: "m", MachineName: "web01", Point: "p", Time: time.Unix(1e9, 0)}
	p := &Point{Manifest: m, cache: newCache()}
	for i, x := range images {
		d := repository.Disk{ID: string(rune('a' + i)), Size: x.Size(), ContentRoot: "root"}
		m.Disks = append(m.Disks, d)
		p.Disks = append(p.Disks, &Disk{ID: d.ID, diskReader: diskReader{content: x, c: p.cache, id: i}, info: d})
	}
	t.Cleanup(func() { _ = p.Close() })
	return p
}

func TestReadThroughTheCache(t *testing.T) {
	m := noise(40<<20+12345, 1) // more than the cache holds
	d := point(t, m).Disks[0]
	var all sync.WaitGroup
	for g := range 8 {
		all.Go(func() {
			r := rand.New(rand.NewPCG(2, uint64(g)))
			at := r.Int64N(d.Size())
			for i := range 300 {
				if i%10 == 0 || at >= d.Size() { // in order for a while, then elsewhere
					at = r.Int64N(d.Size())
				}
				p := make([]byte, 1+r.Int64N(min(600<<10, d.Size()-at)))
				if g < 4 {
					p = p[:min(len(p), 4096)]
				}
				n, err := d.ReadAt(p, at)
				if err != nil || n != len(p) || !bytes.Equal(p, m.p[at:at+int64(n)]) {
					t.Errorf("read %d at %d: %d, %v, or wrong content", len(p), at, n, err)
					return
				}
				at += int64(n)
			}
		})
	}
	all.Wait()
	buf := make([]byte, 100)
	if n, err := d.ReadAt(buf, d.Size()-50); n != 50 || !errors.Is(err, io.EOF) {
		t.Errorf("read over the end: %d, %v", n, err)
	}
	if _, err := d.ReadAt(buf, d.Size()); !errors.Is(err, io.EOF) {
		t.Errorf("read at the end: %v", err)
	}
}

func TestCacheReadsABlockOnce(t *testing.T) {
	m := noise(8<<20, 1)
	d := point(t, m).Disks[0]
	p := make([]byte, 4096)
	for range 3 {
		for _, at := range []int64{5 << 20, 1 << 20, 7 << 20} {
			if _, err := d.ReadAt(p, at); err != nil {
				t.Fatal(err)
			}
		}
	}
	if n := m.reads.Load(); n != 3 {
		t.Errorf("%d reads of 3 blocks", n)
	}
}

func TestReadAhead(t *testing.T) {
	m := noise(16<<20, 1)
	p := point(t, m)
	d := p.Disks[0]
	buf := make([]byte, disk.BlockSize)
	for at := int64(0); at < d.Size(); at += disk.BlockSize {
		if _, err := d.ReadAt(buf, at); err != nil || !bytes.Equal(buf, m.p[at:at+disk.BlockSize]) {
			t.Fatalf("read at %d: %v, or wrong content", at, err)
		}
		p.cache.tasks.Wait() // else this reader, which reads memory, is faster
	}
	if n := m.reads.Load(); n > d.Size()/aheadRun+10 {
		t.Errorf("%d reads for %d blocks in order: nothing is read ahead", n, d.Size()/disk.BlockSize)
	}
}

// What could not be read is not kept as if it could.
func TestDamagedBlock(t *testing.T) {
	m := noise(4<<20, 1)
	m.bad = 1 << 20
	d := point(t, m).Disks[0]
	p := make([]byte, 4096)
	for range 2 {
		if _, err := d.ReadAt(p, 1<<20); !errors.Is(err, repository.ErrDamaged) {
			t.Errorf("damaged block: %v", err)
		}
	}
	if err := d.Prefetch(0, 4<<20); err != nil {
		t.Error(err)
	}
	if _, err := d.ReadAt(p, 2<<20); err != nil || !bytes.Equal(p, m.p[2<<20:2<<20+4096]) {
		t.Errorf("block beside it: %v", err)
	}
}

// model is an overlay beside plain bytes that do the same.
type model struct {
	t    *testing.T
	o    *Overlay
	path string
	p    *Point
	want [][]byte
}

func newModel(t *testing.T, images ...*image) *model {
	m := &model{t: t, path: filepath.Join(t.TempDir(), "overlay"), p: point(t, images...)}
	var err error
	if m.o, err = CreateOverlay(m.path, m.p); err != nil {
		t.Fatal(err)
	}
	for _, x := range images {
		m.want = append(m.want, bytes.Clone(x.p))
	}
	t.Cleanup(func() { _ = m.o.Close() })
	return m
}

func (m *model) reopen() {
	m.t.Helper()
	if err := m.o.Close(); err != nil {
		m.t.Fatal(err)
	}
	var err error
	if m.o, err = OpenOverlay(m.path); err != nil {
		m.t.Fatal(err)
	}
	if err := m.o.Attach(m.p); err != nil {
		m.t.Fatal(err)
	}
}

func (m *model) check() {
	m.t.Helper()
	for i, d := range m.o.disks {
		got := make([]byte, d.Size())
		if _, err := d.ReadAt(got, 0); err != nil {
			m.t.Fatal(err)
		}
		if !bytes.Equal(got, m.want[i]) {
			at := 0
			for got[at] == m.want[i][at] {
				at++
			}
			m.t.Fatalf("disk %d differs at %d (state %d)", i, at, d.state(int64(at)/disk.PageSize))
		}
		// What NextData leaves out is zeroes, and what was not written is as below.
		var data, changed disk.Ranges
		for at := int64(0); ; {
			r, err := d.NextData(at)
			if errors.Is(err, io.EOF) {
				break
			}
			if err != nil || r.Offset < at || r.Length <= 0 {
				m.t.Fatalf("next data at %d: %+v, %v", at, r, err)
			}
			data, at = data.Add(r), r.End()
		}
		changed = d.written()
		whole := disk.Ranges{{Length: d.Size()}}
		for _, r := range whole.Subtract(data) {
			if !isZero(got[r.Offset:r.End()]) {
				m.t.Fatalf("disk %d: %+v is not zeroes", i, r)
			}
		}
		below := d.below.content.(*image).p
		for _, r := range whole.Subtract(changed) {
			if !bytes.Equal(got[r.Offset:r.End()], below[r.Offset:r.End()]) {
				m.t.Fatalf("disk %d: %+v changed and is not told", i, r)
			}
		}
	}
}

func TestOverlayBesideModel(t *testing.T) {
	m := newModel(t, noise(3<<20+777, 1), noise(100, 2), noise(70<<20, 3)) // the last has two state pages
	r := rand.New(rand.NewPCG(3, 4))
	for step := range 400 {
		i := r.IntN(len(m.o.disks))
		d := m.o.disks[i]
		off := r.Int64N(d.Size())
		n := 1 + r.Int64N(min(d.Size()-off, []int64{10, 5000, 70000, 3 << 20}[r.IntN(4)]))
		switch r.IntN(5) {
		case 0:
			if err := d.Zero(off, n); err != nil {
				t.Fatal(err)
			}
			clear(m.want[i][off : off+n])
		case 1:
			if step%4 == 0 {
				m.reopen()
			} else if err := m.o.Sync(); err != nil {
				t.Fatal(err)
			}
		default:
			p := make([]byte, n)
			for k := range p {
				p[k] = byte(step + k)
			}
			if _, err := d.WriteAt(p, off); err != nil {
				t.Fatal(err)
			}
			copy(m.want[i][off:], p)
		}
		if step%130 == 0 {
			m.check()
		}
	}
	m.check()
	m.reopen()
	m.check()
	for _, d := range m.o.disks {
		for _, bad := range []struct{ off, n int64 }{{-1, 1}, {d.Size(), 1}, {d.Size() - 1, 2}} {
			if _, err := d.WriteAt(make([]byte, bad.n), bad.off); err == nil {
				t.Errorf("write of %d at %d is taken", bad.n, bad.off)
			}
			if err := d.Zero(bad.off, bad.n); err == nil {
				t.Errorf("zero of %d at %d is taken", bad.n, bad.off)
			}
		}
	}
}

// After a crash, what was synchronised is there, whatever came behind it.
func TestOverlayAfterACrash(t *testing.T) {
	m := newModel(t, noise(1<<20, 1))
	d := m.o.disks[0]
	write := func(b byte, at int64) {
		if _, err := d.WriteAt(bytes.Repeat([]byte{b}, 5000), at); err != nil {
			t.Fatal(err)
		}
	}
	write(1, 100)
	if err := m.o.Sync(); err != nil {
		t.Fatal(err)
	}
	write(2, 300_000)
	if err := m.o.Sync(); err != nil {
		t.Fatal(err)
	}
	write(3, 600_000) // never synchronised: in the data area, not in the states
	file, err := os.ReadFile(m.path)
	if err != nil {
		t.Fatal(err)
	}
	second := d.statesAt + slotSize // generation 2
	for _, k := range []struct {
		name  string
		spoil func(p []byte)
		has   []byte
		bad   bool
	}{
		{"process died", func([]byte) {}, []byte{1, 2}, false},
		{"second slot torn", func(p []byte) { p[second+600] ^= 1 }, []byte{1}, false},
		{"both slots damaged", func(p []byte) { p[second+600] ^= 1; p[second-100] ^= 1 }, nil, true},
		{"first synchronisation torn", func(p []byte) { p[second-100] ^= 1; clear(p[second : second+slotSize]) }, []byte{}, false},
		{"state 3", func(p []byte) {
			s := p[second : second+slotSize]
			s[slotFixed] = 3
			binary.LittleEndian.PutUint32(s, checksum(s[4:]))
		}, nil, true},
		{"state page of another place", func(p []byte) {
			for _, at := range []int64{second, second - slotSize} {
				s := p[at : at+slotSize]
				s[8]++
				binary.LittleEndian.PutUint32(s, checksum(s[4:]))
			}
		}, nil, true},
	} {
		p := bytes.Clone(file)
		k.spoil(p)
		path := filepath.Join(t.TempDir(), "o")
		if err := os.WriteFile(path, p, 0o600); err != nil {
			t.Fatal(err)
		}
		o, err := OpenOverlay(path)
		if k.bad {
			if !errors.Is(err, ErrOverlay) {
				t.Errorf("%s: %v", k.name, err)
			}
			continue
		}
		if err != nil {
			t.Errorf("%s: %v", k.name, err)
			continue
		}
		if err := o.Attach(m.p); err != nil {
			t.Fatal(err)
		}
		for i, at := range []int64{4000, 302_000, 602_000} {
			want := d.below.content.(*image).p[at]
			if bytes.IndexByte(k.has, byte(i+1)) >= 0 {
				want = byte(i + 1)
			}
			var b [1]byte
			if _, err := o.disks[0].ReadAt(b[:], at); err != nil || b[0] != want {
				t.Errorf("%s: byte at %d is %d, %v, want %d", k.name, at, b[0], err, want)
			}
		}
		_ = o.Close()
	}
}

func TestOverlayRefusals(t *testing.T) {
	m := newModel(t, noise(1<<20, 1))
	if _, err := CreateOverlay(m.path, m.p); !errors.Is(err, os.ErrExist) {
		t.Errorf("made over another: %v", err)
	}
	if _, err := OpenOverlay(m.path); !errors.Is(err, ErrInUse) {
		t.Errorf("opened twice: %v", err)
	}
	if err := DiscardOverlay(m.path); !errors.Is(err, ErrInUse) {
		t.Errorf("discarded while in use: %v", err)
	}
	if st, err := os.Stat(m.path); err != nil || st.Mode().Perm() != 0o600 {
		t.Errorf("mode %v, %v", st.Mode(), err)
	}
	if err := m.o.Close(); err != nil {
		t.Fatal(err)
	}
	other := point(t, noise(1<<20, 1))
	other.Manifest.Point = "q"
	o, err := OpenOverlay(m.path)
	if err != nil {
		t.Fatal(err)
	}
	if err := o.Attach(other); !errors.Is(err, ErrOtherBase) {
		t.Errorf("attached to another recovery point: %v", err)
	}
	_ = o.Close()
	not := filepath.Join(t.TempDir(), "letter")
	if err := os.WriteFile(not, []byte("Dear all, this is no overlay"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := DiscardOverlay(not); !errors.Is(err, ErrOverlay) {
		t.Errorf("another file is discarded: %v", err)
	}
	if _, err := OpenOverlay(not); !errors.Is(err, ErrOverlay) {
		t.Errorf("another file is opened: %v", err)
	}
	if err := DiscardOverlay(m.path); err != nil {
		t.Error(err)
	}
	if _, err := os.Stat(m.path); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("it is still there: %v", err)
	}
}

func TestConcurrentWrites(t *testing.T) {
	m := newModel(t, noise(4<<20, 1))
	d := m.o.disks[0]
	var all sync.WaitGroup
	const parts = 8
	share := d.Size() / parts
	for g := range parts { // each its own bytes, but pages are shared at the seams
		all.Go(func() {
			r := rand.New(rand.NewPCG(5, uint64(g)))
			from := int64(g)*share + int64(g)*13
			for range 50 {
				n := 1 + r.Int64N(9000)
				at := from + r.Int64N(share-9000-200)
				p := bytes.Repeat([]byte{byte(g + 1)}, int(n))
				if _, err := d.WriteAt(p, at); err != nil {
					t.Error(err)
				}
				copy(m.want[0][at:], p)
				if r.IntN(10) == 0 {
					if err := d.Sync(); err != nil {
						t.Error(err)
					}
				}
			}
		})
	}
	all.Wait()
	m.check()
}

func FuzzOverlay(f *testing.F) {
	p := point(f, noise(1<<20, 1))
	path := filepath.Join(f.TempDir(), "o")
	o, err := CreateOverlay(path, p)
	if err != nil {
		f.Fatal(err)
	}
	if _, err := o.disks[0].WriteAt([]byte("x"), 5); err != nil {
		f.Fatal(err)
	}
	states := o.disks[0].statesAt
	if err := o.Close(); err != nil {
		f.Fatal(err)
	}
	file, err := os.ReadFile(path)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(file[:headerSize], file[states:states+2*slotSize])
	f.Add([]byte(overlayMagic), []byte{1})
	f.Fuzz(func(t *testing.T, header, slots []byte) {
		if b, err := parseHeader(header); err == nil {
			if _, err := encodeHeader(b); err != nil {
				t.Errorf("%+v is read and cannot be written: %v", b, err)
			}
		}
		var q [2 * slotSize]byte
		copy(q[:], slots)
		for at := range int64(2) { // past the checksum
			s := q[at*slotSize : (at+1)*slotSize]
			binary.LittleEndian.PutUint32(s, checksum(s[4:]))
		}
		d := &overlayDisk{pages: pagesPerState + 5, base: BaseDisk{Size: (pagesPerState + 5) * disk.PageSize}, states: map[int64]*statePage{}}
		s, err := d.parseStates(0, &q)
		if err != nil || s == nil {
			return
		}
		d.states[0] = s
		if total := d.written().Total(); total > d.base.Size {
			t.Errorf("%d bytes written of %d", total, d.base.Size)
		}
	})
}
