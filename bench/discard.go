//go:build linux

package main

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"strings"

	"github.com/lockstep-backup/lockstep/repository/format"
	"github.com/lockstep-backup/lockstep/store"
)

// discarding is a store that forgets what extents hold, and nothing else: of a
// segment it keeps the first page and what was written last, the table of
// contents and the checksums. What it forgot reads as zeroes.
type discarding struct{ store.Store }

const keptHead = format.PageSize

func isSegment(key string) bool { return strings.HasPrefix(key, "seg/") }

func (d discarding) Create(ctx context.Context, key string) (store.Writer, error) {
	if !isSegment(key) {
		return d.Store.Create(ctx, key)
	}
	return &discardWriter{d: d, ctx: ctx, key: key}, nil
}

type discardWriter struct {
	d    discarding
	ctx  context.Context
	key  string
	size int64
	head []byte
	last []byte
}

func (w *discardWriter) Write(p []byte) (int, error) {
	if n := keptHead - len(w.head); n > 0 {
		w.head = append(w.head, p[:min(n, len(p))]...)
	}
	w.size += int64(len(p))
	w.last = p[:0]
	if len(p)%format.PageSize != 0 { // the table of contents and what follows it come in one piece
		w.last = append([]byte(nil), p...)
	}
	return len(p), nil
}

func (w *discardWriter) Commit() error {
	kept := binary.LittleEndian.AppendUint64(nil, uint64(w.size))
	return w.d.Put(w.ctx, w.key, append(append(kept, w.head...), w.last...))
}

func (w *discardWriter) Abort() error { return nil }

// parts are the size that was written, and what is kept of it.
func (d discarding) parts(ctx context.Context, key string) (size int64, kept []byte, err error) {
	raw, err := store.GetAll(ctx, d.Store, key, store.MaxSmallObject)
	if err != nil {
		return 0, nil, err
	}
	if len(raw) < 8+keptHead {
		return 0, nil, fmt.Errorf("%s: %d bytes are no segment", key, len(raw))
	}
	return int64(binary.LittleEndian.Uint64(raw)), raw[8:], nil
}

func (d discarding) ReadRange(ctx context.Context, key string, off int64, p []byte) (int, error) {
	if !isSegment(key) {
		return d.Store.ReadRange(ctx, key, off, p)
	}
	size, kept, err := d.parts(ctx, key)
	if err != nil {
		return 0, err
	}
	if off >= size {
		return 0, io.EOF
	}
	n := int(min(int64(len(p)), size-off))
	clear(p[:n])
	if off < keptHead {
		copy(p[:n], kept[off:keptHead])
	}
	tail := size - int64(len(kept)-keptHead)
	if end := off + int64(n); end > tail {
		from := max(off, tail)
		copy(p[from-off:n], kept[keptHead+from-tail:])
	}
	if n < len(p) {
		return n, io.EOF
	}
	return n, nil
}

func (d discarding) Stat(ctx context.Context, key string) (store.Info, error) {
	if !isSegment(key) {
		return d.Store.Stat(ctx, key)
	}
	size, _, err := d.parts(ctx, key)
	return store.Info{Key: key, Size: size}, err
}

func (d discarding) List(ctx context.Context, prefix string, fn func(store.Info) error) error {
	return d.Store.List(ctx, prefix, func(i store.Info) error {
		if isSegment(i.Key) {
			size, _, err := d.parts(ctx, i.Key)
			if errors.Is(err, store.ErrNotExist) {
				return nil
			}
			if err != nil {
				return err
			}
			i.Size = size
		}
		return fn(i)
	})
}
