// Package plainview is the sector engine: it gives the plaintext of an
// encrypted volume as an io.ReaderAt, and takes writes, whatever the format. A
// format says by a Plan what lies where; the view splits requests of any
// alignment, decrypts large ones in parallel, and reads, modifies and writes
// sectors that a write covers in part. It knows nothing of keys or headers. Its
// invariant: no byte is given out that the plan does not account for.
package plainview

import (
	"fmt"
	"io"
	"runtime"
	"sync"
	"sync/atomic"
)

const (
	// maxSectorSize is the largest unit that is encrypted by itself.
	maxSectorSize = 4096
	// pieceSize is what one worker takes at a time: large enough that handing
	// it out costs nothing, small enough to stay in a core's cache.
	pieceSize = 256 << 10
)

// View is the plaintext of a volume. It is safe for concurrent use. A read
// beside a write of the same sectors gives what the data give, which may be
// neither the old nor the new plaintext.
type View struct {
	data io.ReaderAt
	size int64
	plan Plan
	wmu  sync.Mutex // a sector written in part is read before
}

// New makes the view of size bytes of a plan over data, which is written to
// where it is an io.WriterAt.
func New(data io.ReaderAt, size int64, p Plan) *View {
	return &View{data: data, size: max(0, size), plan: p}
}

// Size is the number of plaintext bytes.
func (v *View) Size() int64 { return v.size }

// buffers are wiped before they go back: they held plaintext.
var buffers = sync.Pool{New: func() any { return new([pieceSize]byte) }}

func withBuffer(f func(*[pieceSize]byte) error) error {
	buf := buffers.Get().(*[pieceSize]byte)
	defer buffers.Put(buf)
	return f(buf)
}

// ReadAt is io.ReaderAt's. On an error the first n bytes of p are plaintext;
// what is behind them is undefined.
func (v *View) ReadAt(p []byte, off int64) (n int, err error) {
	switch {
	case off < 0:
		return 0, fmt.Errorf("read volume: offset %d", off)
	case off >= v.size:
		return 0, io.EOF
	case int64(len(p)) > v.size-off:
		p, err = p[:v.size-off], io.EOF
	}
	n, failed := parallel(p, off, v.readPiece)
	if failed != nil {
		return n, fmt.Errorf("read volume: %w", failed)
	}
	return n, err
}

// WriteAt is io.WriterAt's. It writes nothing where p reaches beyond the end.
// On an error the first n bytes are written, others may be.
func (v *View) WriteAt(p []byte, off int64) (int, error) {
	w, ok := v.data.(io.WriterAt)
	switch {
	case !ok:
		return 0, fmt.Errorf("write volume: %w", ErrReadOnly)
	case off < 0 || int64(len(p)) > v.size-off:
		return 0, fmt.Errorf("write volume: [%d, +%d) of %d bytes: %w", off, len(p), v.size, io.ErrShortWrite)
	}
	v.wmu.Lock()
	defer v.wmu.Unlock()
	n, err := parallel(p, off, func(b []byte, off int64) (int, error) { return v.writePiece(w, b, off) })
	if err != nil {
		return n, fmt.Errorf("write volume: %w", err)
	}
	return n, nil
}

// parallel hands p to do in pieces that end at multiples of pieceSize of the
// volume, so that no sector of an aligned run is shared by two of them.
func parallel(p []byte, off int64, do func(b []byte, off int64) (int, error)) (int, error) {
	first := off / pieceSize
	pieces := int((off+int64(len(p))-1)/pieceSize - first + 1)
	if len(p) == 0 || pieces == 1 {
		return do(p, off)
	}
	bounds := func(i int) (from, to int) {
		from = max(0, int((first+int64(i))*pieceSize-off))
		return from, min(len(p), int((first+int64(i)+1)*pieceSize-off))
	}
	// The first piece that fails decides; those behind it need not be done.
	var mu sync.Mutex
	failedAt, done := pieces, 0
	var failure error
	var next atomic.Int64
	work := func() {
		for {
			i := int(next.Add(1)) - 1
			mu.Lock()
			stop := i >= failedAt
			mu.Unlock()
			if i >= pieces || stop {
				return
			}
			from, to := bounds(i)
			n, err := do(p[from:to], off+int64(from))
			if err != nil {
				mu.Lock()
				if i < failedAt {
					failedAt, done, failure = i, from+n, err
				}
				mu.Unlock()
			}
		}
	}
	var wg sync.WaitGroup
	for range min(pieces, runtime.GOMAXPROCS(0)) - 1 {
		wg.Go(work)
	}
	work()
	wg.Wait()
	if failure != nil {
		return done, failure
	}
	return len(p), nil
}

// at gives the run at off, and how many of n bytes from off it covers.
func (v *View) at(off int64, n int) (Run, int, error) {
	r := v.plan.At(off)
	if err := r.check(off); err != nil {
		return r, 0, err
	}
	n = int(min(int64(n), r.Offset+r.Length-off))
	if r.Kind == Unreadable {
		if r.Why != nil {
			return r, n, fmt.Errorf("offset %d: %w: %w", off, ErrUnreadable, r.Why)
		}
		return r, n, fmt.Errorf("offset %d: %w", off, ErrUnreadable)
	}
	return r, n, nil
}

func (v *View) readPiece(p []byte, off int64) (int, error) {
	n := 0
	for n < len(p) {
		r, m, err := v.at(off+int64(n), len(p)-n)
		if err != nil {
			return n, err
		}
		b, in := p[n:n+m], off+int64(n)-r.Offset
		switch r.Kind {
		case Zero:
			clear(b)
		case Plain:
			err = readFull(v.data, b, r.From+in)
		default:
			m, err = v.readCrypt(b, r, in)
		}
		if err != nil {
			return n, err
		}
		n += m
	}
	return n, nil
}

// readCrypt fills the start of b from in bytes into the run: whole sectors in
// place, else a part of one sector. It returns how much.
func (v *View) readCrypt(b []byte, r Run, in int64) (int, error) {
	s := int64(r.Cipher.SectorSize())
	skip := in % s
	if whole := int64(len(b)) / s * s; skip == 0 && whole > 0 {
		b = b[:whole]
		if err := readFull(v.data, b, r.From+in); err != nil {
			return 0, err
		}
		r.Cipher.Decrypt(b, r.Unit+uint64(in)/unitSize)
		return len(b), nil
	}
	m := 0
	err := withBuffer(func(buf *[pieceSize]byte) error {
		sector := buf[:s]
		defer clear(sector)
		if err := v.readSector(sector, r, in-skip); err != nil {
			return err
		}
		m = copy(b, sector[skip:])
		return nil
	})
	return m, err
}

// readSector reads and decrypts the sector at in bytes into the run.
func (v *View) readSector(sector []byte, r Run, in int64) error {
	if err := readFull(v.data, sector, r.From+in); err != nil {
		return err
	}
	r.Cipher.Decrypt(sector, r.Unit+uint64(in)/unitSize)
	return nil
}

func (v *View) writePiece(w io.WriterAt, p []byte, off int64) (int, error) {
	n := 0
	for n < len(p) {
		r, m, err := v.at(off+int64(n), len(p)-n)
		if err != nil {
			return n, err
		}
		b, in := p[n:n+m], off+int64(n)-r.Offset
		switch r.Kind {
		case Zero:
			return n, fmt.Errorf("offset %d: %w: it is not stored", off+int64(n), ErrReadOnly)
		case Plain:
			err = writeFull(w, b, r.From+in)
		default:
			m, err = v.writeCrypt(w, b, r, in)
		}
		if err != nil {
			return n, err
		}
		n += m
	}
	return n, nil
}

// writeCrypt writes the start of b to in bytes into the run: whole sectors, or
// a part of one sector. It returns how much.
func (v *View) writeCrypt(w io.WriterAt, b []byte, r Run, in int64) (int, error) {
	s := r.Cipher.SectorSize()
	skip := int(in % int64(s))
	m := min(len(b), pieceSize) / s * s
	size := m
	if skip != 0 || m == 0 {
		m, size = min(len(b), s-skip), s
	}
	err := withBuffer(func(buf *[pieceSize]byte) error {
		sectors := buf[:size]
		defer clear(sectors)
		start := in - int64(skip)
		if m < size {
			if err := v.readSector(sectors, r, start); err != nil {
				return err
			}
		}
		copy(sectors[skip:], b[:m])
		r.Cipher.Encrypt(sectors, r.Unit+uint64(start)/unitSize)
		return writeFull(w, sectors, r.From+start)
	})
	if err != nil {
		return 0, err
	}
	return m, nil
}

func readFull(r io.ReaderAt, b []byte, off int64) error {
	n, err := r.ReadAt(b, off)
	switch {
	case n == len(b):
		return nil
	case err == nil, err == io.EOF:
		return fmt.Errorf("offset %d of the data: %w", off+int64(max(0, n)), io.ErrUnexpectedEOF)
	}
	return err
}

func writeFull(w io.WriterAt, b []byte, off int64) error {
	n, err := w.WriteAt(b, off)
	if err == nil && n != len(b) {
		err = io.ErrShortWrite
	}
	return err
}
