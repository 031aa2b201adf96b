package remote

import (
	"context"
	"errors"
	"fmt"
	"io"
	"sync"

	"golang.org/x/sync/errgroup"
)

// Upload is what a provider does for one object being written. Part may be
// called from several goroutines at once; the rest is called in order. Each
// method retries by itself; the data is the writer's again when it returns.
type Upload interface {
	// Whole creates the object in one request, conditionally.
	Whole(ctx context.Context, data Data) error
	// Begin starts an object of parts.
	Begin(ctx context.Context) error
	// Part sends part n, counted from 1. All but the last are UploadOptions.Part long.
	Part(ctx context.Context, n int, data []byte) error
	// Complete makes an object of the parts 1 to n, size bytes in all, conditionally.
	Complete(ctx context.Context, n int, size int64) error
	// Drop removes what Begin and Part left; called after a successful Begin
	// only, and not after a successful Complete.
	Drop(ctx context.Context) error
}

// Data are bytes in pieces, one after another.
type Data [][]byte

// Size is the number of bytes.
func (d Data) Size() int64 {
	n := int64(0)
	for _, p := range d {
		n += int64(len(p))
	}
	return n
}

// ReadAt implements io.ReaderAt.
func (d Data) ReadAt(p []byte, off int64) (int, error) {
	n := 0
	for _, piece := range d {
		if off >= int64(len(piece)) {
			off -= int64(len(piece))
			continue
		}
		n += copy(p[n:], piece[off:])
		if off = 0; n == len(p) {
			return n, nil
		}
	}
	if n < len(p) {
		return n, io.EOF
	}
	return n, nil
}

// Reader reads it from the beginning; each attempt takes a new one.
func (d Data) Reader() *io.SectionReader { return io.NewSectionReader(d, 0, d.Size()) }

// UploadOptions bound a writer's memory: Whole or Part × (Parallel + 1) bytes,
// whichever is more.
type UploadOptions struct {
	Whole    int // objects up to this size are sent in one request; rounded to a multiple of Part
	Part     int // size of the parts of larger ones
	Parallel int // parts under way at once
	Buffers  *Buffers
}

// Buffers are memory that the writers of one store use again; the zero value is ready.
type Buffers struct{ free sync.Pool }

func (b *Buffers) get(size int) []byte {
	if p, ok := b.free.Get().(*[]byte); ok && cap(*p) == size {
		return (*p)[:0]
	}
	return make([]byte, 0, size)
}

func (b *Buffers) put(p []byte, size int) {
	if cap(p) == size {
		b.free.Put(&p)
	}
}

// Writer is a store.Writer that sends what it is given through an Upload. It is
// not safe for concurrent use.
type Writer struct {
	ctx    context.Context
	key    string
	upload Upload
	o      UploadOptions

	pending Data // what was not sent yet: pieces of Part bytes, the last at most
	size    int64
	parts   int
	begun   bool
	done    bool
	group   *errgroup.Group
	gctx    context.Context
}

// NewWriter writes one object; key is for messages.
func NewWriter(ctx context.Context, key string, upload Upload, o UploadOptions) *Writer {
	o.Whole = max(o.Whole-o.Whole%o.Part, o.Part)
	w := &Writer{ctx: ctx, key: key, upload: upload, o: o}
	w.group, w.gctx = errgroup.WithContext(ctx)
	w.group.SetLimit(max(o.Parallel, 1))
	return w
}

var errDone = errors.New("writer was committed or aborted")

// Write implements io.Writer.
func (w *Writer) Write(p []byte) (int, error) {
	if w.done {
		return 0, fmt.Errorf("write %s: %w", w.key, errDone)
	}
	written := 0
	for len(p) > 0 {
		if w.gctx.Err() != nil {
			return written, fmt.Errorf("write %s: %w", w.key, w.cause())
		}
		// Only what is followed by more is sent ahead: the last part is
		// Commit's, and an object of exactly Whole bytes is one request.
		if w.begun && w.last() == w.o.Part || w.size == int64(w.o.Whole) && !w.begun {
			if err := w.flush(); err != nil {
				return written, fmt.Errorf("write %s: %w", w.key, err)
			}
		}
		n := w.take(p)
		p = p[n:]
		written += n
		w.size += int64(n)
	}
	return written, nil
}

// last is the length of the last pending piece.
func (w *Writer) last() int {
	if len(w.pending) == 0 {
		return 0
	}
	return len(w.pending[len(w.pending)-1])
}

// take appends some of p to the last piece. The first piece of an object
// doubles, so that small objects take little; the others are whole at once.
func (w *Writer) take(p []byte) int {
	last := w.last()
	if len(w.pending) == 0 || last == w.o.Part {
		last = 0
		if w.size == 0 {
			w.pending = append(w.pending, nil)
		} else {
			w.pending = append(w.pending, w.o.Buffers.get(w.o.Part))
		}
	}
	piece := &w.pending[len(w.pending)-1]
	n := min(len(p), w.o.Part-last)
	if need := last + n; need > cap(*piece) {
		size := max(need, 2*cap(*piece), min(64<<10, w.o.Part))
		if size >= w.o.Part/2 {
			*piece = append(w.o.Buffers.get(w.o.Part), *piece...)
		} else {
			*piece = append(make([]byte, 0, size), *piece...)
		}
	}
	*piece = append(*piece, p[:n]...)
	return n
}

// cause says why the parts ended: the caller's context, or the one that failed.
func (w *Writer) cause() error {
	if err := w.ctx.Err(); err != nil {
		return err
	}
	return w.group.Wait()
}

// flush sends what is pending as parts.
func (w *Writer) flush() error {
	if !w.begun {
		if err := w.upload.Begin(w.ctx); err != nil {
			return err
		}
		w.begun = true
	}
	for _, piece := range w.pending {
		w.parts++
		n := w.parts
		w.group.Go(func() error { // waits while Parallel parts are under way
			defer w.o.Buffers.put(piece[:0], w.o.Part)
			if err := w.gctx.Err(); err != nil {
				return err
			}
			return w.upload.Part(w.gctx, n, piece)
		})
	}
	w.pending = nil
	return nil
}

// Commit implements store.Writer.
func (w *Writer) Commit() error {
	if w.done {
		return fmt.Errorf("commit %s: %w", w.key, errDone)
	}
	w.done = true
	if err := w.commit(); err != nil {
		// What cannot be dropped now is swept later; the first error says more.
		_ = w.drop()
		return fmt.Errorf("commit %s: %w", w.key, err)
	}
	w.free()
	return nil
}

func (w *Writer) commit() error {
	if err := w.ctx.Err(); err != nil {
		return err
	}
	if !w.begun {
		return w.upload.Whole(w.ctx, w.pending)
	}
	if err := w.flush(); err != nil {
		return err
	}
	if err := w.group.Wait(); err != nil {
		return err
	}
	return w.upload.Complete(w.ctx, w.parts, w.size)
}

// Abort implements store.Writer.
func (w *Writer) Abort() error {
	if w.done {
		return nil
	}
	w.done = true
	return w.drop()
}

// drop removes the parts that were sent, also when the context is over.
func (w *Writer) drop() error {
	_ = w.group.Wait() // no part may follow the removal
	w.free()
	if !w.begun {
		return nil
	}
	if err := w.upload.Drop(context.WithoutCancel(w.ctx)); err != nil {
		return fmt.Errorf("abort %s: %w", w.key, err)
	}
	return nil
}

func (w *Writer) free() {
	for _, piece := range w.pending {
		w.o.Buffers.put(piece[:0], w.o.Part)
	}
	w.pending = nil
}
