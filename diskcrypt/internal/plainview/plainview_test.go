package plainview

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math"
	"math/rand/v2"
	"sync"
	"testing"
)

// toy is a cipher of which every byte depends on its unit and its place: a
// mistake in either shows.
type toy struct{ size int }

func (c toy) SectorSize() int                    { return c.size }
func (c toy) Decrypt(b []byte, unit uint64)      { c.run(b, unit) }
func (c toy) Encrypt(b []byte, unit uint64)      { c.run(b, unit) }
func (c toy) pad(i int, sector uint64) byte      { return byte(uint64(i)*7 + sector*131 + sector>>8 + 5) }
func (c toy) sector(at int, u uint64) uint64     { return u + uint64(at/c.size*(c.size/unitSize)) }
func (c toy) plain(b byte, i int, u uint64) byte { return b ^ c.pad(i%c.size, c.sector(i, u)) }

func (c toy) run(b []byte, unit uint64) {
	if len(b)%c.size != 0 || len(b) == 0 {
		panic(fmt.Sprintf("%d bytes in sectors of %d", len(b), c.size))
	}
	for i := range b {
		b[i] = c.plain(b[i], i, unit)
	}
}

// memory is data of a fixed length that can be written.
type memory struct {
	mu sync.Mutex
	b  []byte
}

func (m *memory) ReadAt(p []byte, off int64) (int, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if off >= int64(len(m.b)) {
		return 0, io.EOF
	}
	n := copy(p, m.b[off:])
	if n < len(p) {
		return n, io.EOF
	}
	return n, nil
}

func (m *memory) WriteAt(p []byte, off int64) (int, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if off+int64(len(p)) > int64(len(m.b)) {
		return 0, io.ErrShortWrite
	}
	return copy(m.b[off:], p), nil
}

func random(seed uint64, n int) []byte {
	b := make([]byte, n)
	var s [32]byte
	binary.LittleEndian.PutUint64(s[:], seed)
	_, _ = rand.NewChaCha8(s).Read(b)
	return b
}

// volume makes data and a plan with every kind of run, at places that are out
// of order in the data.
func volume(r *rand.Rand, unreadable bool) (*memory, Runs, int64) {
	const block = 4096
	n := 3 + r.IntN(6)
	var runs Runs
	var off, from int64
	sizes := []int{512, 1024, 4096}
	for range n {
		length := int64(1+r.IntN(40)) * block
		if r.IntN(4) == 0 {
			length += 2 * pieceSize
		}
		run := Run{Offset: off, Length: length, Kind: Kind(r.IntN(3)), From: from, Unit: r.Uint64N(1 << 40), Cipher: toy{sizes[r.IntN(3)]}}
		if unreadable && r.IntN(4) == 0 {
			run.Kind, run.Why = Unreadable, errors.New("a reason")
		}
		runs = append(runs, run)
		off += length
		from += length + int64(r.IntN(3))*512
	}
	// Two runs of one length change places in the data.
	for i := range runs {
		for j := range runs[:i] {
			if runs[i].Length == runs[j].Length {
				runs[i].From, runs[j].From = runs[j].From, runs[i].From
			}
		}
	}
	return &memory{b: random(r.Uint64(), int(from))}, runs, off
}

// model is the obvious way: byte by byte. ok is false from the first byte that
// cannot be read.
func model(data []byte, runs Runs, size int64) (plain []byte, unreadable int64) {
	plain = make([]byte, size)
	unreadable = size
	for _, r := range runs {
		for i := range r.Length {
			switch r.Kind {
			case Crypt:
				c := r.Cipher.(toy)
				plain[r.Offset+i] = c.plain(data[r.From+i], int(i), r.Unit)
			case Plain:
				plain[r.Offset+i] = data[r.From+i]
			case Unreadable:
				unreadable = min(unreadable, r.Offset)
			}
		}
	}
	return plain, unreadable
}

func span(r *rand.Rand, size int64) (off, n int64) {
	off = r.Int64N(size)
	n = r.Int64N(size - off + 1)
	if r.IntN(2) == 0 {
		n = min(n, r.Int64N(9000))
	}
	return off, n
}

func TestReadAgainstModel(t *testing.T) {
	for seed := range uint64(40) {
		r := rand.New(rand.NewPCG(seed, 1))
		data, runs, size := volume(r, false)
		plain, _ := model(data.b, runs, size)
		v := New(data, size, runs)
		for range 30 {
			off, n := span(r, size)
			got := make([]byte, n)
			if m, err := v.ReadAt(got, off); int64(m) != n || err != nil {
				t.Fatalf("seed %d: read [%d, +%d): %d, %v", seed, off, n, m, err)
			}
			if !bytes.Equal(got, plain[off:off+n]) {
				t.Fatalf("seed %d: read [%d, +%d) differs", seed, off, n)
			}
		}
		past := make([]byte, 100)
		if n, err := v.ReadAt(past, size-40); n != 40 || err != io.EOF || !bytes.Equal(past[:40], plain[size-40:]) {
			t.Fatalf("seed %d: beyond the end: %d, %v", seed, n, err)
		}
		if n, err := v.ReadAt(past, size); n != 0 || err != io.EOF {
			t.Fatalf("seed %d: at the end: %d, %v", seed, n, err)
		}
	}
}

// What comes before the first byte that cannot be read is given, and right.
func TestUnreadableRuns(t *testing.T) {
	for seed := range uint64(60) {
		r := rand.New(rand.NewPCG(seed, 2))
		data, runs, size := volume(r, true)
		plain, _ := model(data.b, runs, size)
		v := New(data, size, runs)
		for range 10 {
			off, n := span(r, size)
			good := n
			for _, run := range runs {
				if run.Kind == Unreadable && run.Offset < off+n && run.Offset+run.Length > off {
					good = max(0, run.Offset-off)
					break
				}
			}
			got := make([]byte, n)
			m, err := v.ReadAt(got, off)
			if int64(m) != good || errors.Is(err, ErrUnreadable) != (good < n) {
				t.Fatalf("seed %d: read [%d, +%d): %d, %v, want %d", seed, off, n, m, err, good)
			}
			if !bytes.Equal(got[:m], plain[off:off+good]) {
				t.Fatalf("seed %d: read [%d, +%d) differs", seed, off, n)
			}
		}
	}
}

func TestWriteAgainstModel(t *testing.T) {
	for seed := range uint64(30) {
		r := rand.New(rand.NewPCG(seed, 3))
		data, runs, size := volume(r, false)
		for i := range runs {
			if runs[i].Kind == Zero {
				runs[i].Kind = Plain
			}
		}
		plain, _ := model(data.b, runs, size)
		v := New(data, size, runs)
		for range 20 {
			off, n := span(r, size)
			p := random(r.Uint64(), int(n))
			before := bytes.Clone(p)
			if m, err := v.WriteAt(p, off); int64(m) != n || err != nil {
				t.Fatalf("seed %d: write [%d, +%d): %d, %v", seed, off, n, m, err)
			}
			if !bytes.Equal(p, before) {
				t.Fatal("what was handed in was changed")
			}
			copy(plain[off:], p)
		}
		// The ciphertext that was written is what the slow way reads.
		if now, _ := model(data.b, runs, size); !bytes.Equal(now, plain) {
			t.Fatalf("seed %d: what was written is not what is read", seed)
		}
	}
}

func TestWriteRefusals(t *testing.T) {
	data := &memory{b: make([]byte, 8192)}
	runs := Runs{{Offset: 0, Length: 4096, Kind: Plain}, {Offset: 4096, Length: 4096, Kind: Zero}}
	v := New(data, 8192, runs)
	if n, err := v.WriteAt(make([]byte, 5000), 0); n != 4096 || !errors.Is(err, ErrReadOnly) {
		t.Errorf("into zeros: %d, %v", n, err)
	}
	for _, off := range []int64{-1, 8000, math.MaxInt64} {
		if n, err := v.WriteAt(make([]byte, 500), off); n != 0 || err == nil {
			t.Errorf("write at %d: %d, %v", off, n, err)
		}
	}
	if _, err := New(bytes.NewReader(data.b), 8192, runs).WriteAt([]byte{1}, 0); !errors.Is(err, ErrReadOnly) {
		t.Errorf("data that cannot be written: %v", err)
	}
}

// plan gives the same run whatever it is asked.
type plan Run

func (p plan) At(int64) Run { return Run(p) }

// A plan made from a hostile header must not make reading panic or loop.
func TestPlansThatAreWrong(t *testing.T) {
	data := &memory{b: make([]byte, 1<<16)}
	c := toy{512}
	for name, run := range map[string]Run{
		"empty":         {Kind: Plain},
		"negative":      {Kind: Plain, Length: -1},
		"elsewhere":     {Kind: Plain, Offset: 1 << 20, Length: 512},
		"before":        {Kind: Plain, Offset: 0, Length: 100},
		"offset < 0":    {Kind: Plain, Offset: -1, Length: math.MaxInt64},
		"overflow":      {Kind: Plain, Offset: 512, Length: math.MaxInt64},
		"from < 0":      {Kind: Plain, Length: 1 << 20, From: -1},
		"from overflow": {Kind: Crypt, Length: 1 << 20, From: math.MaxInt64 - 5, Cipher: c},
		"no cipher":     {Kind: Crypt, Length: 1 << 20},
		"no sectors":    {Kind: Crypt, Length: 1 << 20, Cipher: toy{0}},
		"odd sectors":   {Kind: Crypt, Length: 1 << 20, Cipher: toy{520}},
		"huge sectors":  {Kind: Crypt, Length: 1 << 20, Cipher: toy{8192}},
		"part sector":   {Kind: Crypt, Length: 1<<20 + 1, Cipher: c},
		"unknown kind":  {Kind: 9, Length: 1 << 20},
	} {
		v := New(data, 1<<20, plan(run))
		if _, err := v.ReadAt(make([]byte, 1000), 200); !errors.Is(err, ErrPlan) {
			t.Errorf("%s: read: %v", name, err)
		}
		if _, err := v.WriteAt(make([]byte, 1000), 200); !errors.Is(err, ErrPlan) {
			t.Errorf("%s: write: %v", name, err)
		}
	}
	// A hole between runs, and before the first and behind the last, says so.
	v := New(data, 4096, Runs{{Offset: 512, Length: 512, Kind: Plain}, {Offset: 2048, Length: 512, Kind: Plain}})
	for off, n := range map[int64]int{0: 0, 512: 512, 1024: 0, 2048: 512, 3000: 0} {
		if m, err := v.ReadAt(make([]byte, 1000), off); m != n || !errors.Is(err, ErrUnreadable) {
			t.Errorf("hole, read at %d: %d, %v", off, m, err)
		}
	}
}

// failing fails from an offset on.
type failing struct {
	memory
	from int64
}

var errFailing = errors.New("bad sector")

func (f *failing) ReadAt(p []byte, off int64) (int, error) {
	if off+int64(len(p)) > f.from {
		return int(max(0, f.from-off)), errFailing
	}
	return f.memory.ReadAt(p, off)
}

func TestErrorsOfTheData(t *testing.T) {
	size := int64(4 * pieceSize)
	data := &failing{memory: memory{b: random(1, int(size))}, from: 2*pieceSize + 1000}
	runs := Runs{{Length: size, Cipher: toy{512}}}
	plain, _ := model(data.b, runs, size)
	got := make([]byte, size)
	n, err := New(data, size, runs).ReadAt(got, 0)
	if !errors.Is(err, errFailing) || n != 2*pieceSize || !bytes.Equal(got[:n], plain[:n]) {
		t.Errorf("%d, %v", n, err)
	}
	short := &memory{b: data.b[:size-600]}
	if n, err := New(short, size, runs).ReadAt(got, 0); !errors.Is(err, io.ErrUnexpectedEOF) || n != 3*pieceSize {
		t.Errorf("data that end too soon: %d, %v", n, err)
	}
}

// Readers and writers of neighbouring parts of sectors do not lose each other's bytes.
func TestConcurrentWritesOfPartsOfSectors(t *testing.T) {
	const size, part = 1 << 16, 100
	data := &memory{b: random(1, size)}
	runs := Runs{{Length: size, Cipher: toy{4096}, Unit: 77}}
	v := New(data, size, runs)
	want := random(2, size)
	var wg sync.WaitGroup
	for g := range 8 {
		wg.Go(func() {
			for at := g * part; at < size; at += 8 * part {
				end := min(at+part, size)
				if _, err := v.WriteAt(want[at:end], int64(at)); err != nil {
					t.Error(err)
				}
				if _, err := v.ReadAt(make([]byte, 5000), int64(at)); err != nil && err != io.EOF {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	if got, _ := model(data.b, runs, size); !bytes.Equal(got, want) {
		t.Error("bytes were lost")
	}
}

// Buffers that held plaintext are wiped when they go back.
func TestBuffersAreWiped(t *testing.T) {
	data := &memory{b: random(1, 8192)}
	v := New(data, 8192, Runs{{Length: 8192, Cipher: toy{4096}}})
	for range 50 {
		if _, err := v.ReadAt(make([]byte, 1000), 3600); err != nil {
			t.Fatal(err)
		}
		if _, err := v.WriteAt(random(3, 6000), 100); err != nil {
			t.Fatal(err)
		}
		buf := buffers.Get().(*[pieceSize]byte)
		if !bytes.Equal(buf[:], make([]byte, pieceSize)) {
			t.Fatal("a pooled buffer holds data")
		}
		buffers.Put(buf)
	}
}

func FuzzView(f *testing.F) {
	f.Add(uint64(1), uint32(100), uint32(5000), []byte("written"))
	f.Fuzz(func(t *testing.T, seed uint64, off, n uint32, written []byte) {
		r := rand.New(rand.NewPCG(seed, 4))
		data, runs, size := volume(r, false)
		v := New(data, size, runs)
		at := int64(off) % size
		if n, err := v.WriteAt(written, at); err != nil && !errors.Is(err, ErrReadOnly) && !errors.Is(err, io.ErrShortWrite) || n > len(written) {
			t.Fatalf("write: %d, %v", n, err)
		}
		plain, _ := model(data.b, runs, size)
		got := make([]byte, n%(1<<20))
		m, err := v.ReadAt(got, at)
		if want := min(int64(len(got)), size-at); int64(m) != want || (err == nil) != (want == int64(len(got))) {
			t.Fatalf("read: %d, %v, want %d", m, err, want)
		}
		if !bytes.Equal(got[:m], plain[at:at+int64(m)]) {
			t.Fatal("read differs from the model")
		}
	})
}
