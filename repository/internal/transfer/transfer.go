// Package transfer moves objects from one store to another byte for byte, and
// compares on the way what can be compared: what arrives is what was written
// once, or does not arrive at all.
package transfer

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/lockstep-backup/lockstep/disk"
	"github.com/lockstep-backup/lockstep/envelope"
	"github.com/lockstep-backup/lockstep/repository/format"
	"github.com/lockstep-backup/lockstep/repository/internal/damage"
	"github.com/lockstep-backup/lockstep/repository/internal/segment"
	"github.com/lockstep-backup/lockstep/store"
)

// Buffer is what Large needs; one a goroutine.
type Buffer []byte

// NewBuffer makes one.
func NewBuffer() Buffer { return disk.AlignedBuffer(format.CRCChunk) }

// Large copies a segment or map object, of any size, under the same key and
// compares every checksum. It returns the bytes copied; store.ErrExist where
// there is an object of that name. A *damage.Error is about the source.
func Large(ctx context.Context, dst, src store.Store, key string, buf Buffer) (int64, error) {
	isSegment := strings.HasPrefix(key, "seg/")
	f, size, err := segment.ReadTrailer(ctx, src, key, isSegment)
	if err != nil {
		return 0, err
	}
	w, err := dst.Create(ctx, key)
	if err != nil {
		return 0, fmt.Errorf("copy %s: %w", key, err)
	}
	if err := large(ctx, w, src, key, isSegment, f, size, buf); err != nil {
		return 0, errors.Join(err, w.Abort())
	}
	if err := w.Commit(); err != nil {
		return 0, fmt.Errorf("copy %s: %w", key, err)
	}
	return size, nil
}

func large(ctx context.Context, w store.Writer, src store.Store, key string, isSegment bool, f format.Footer, size int64, buf Buffer) error {
	bad := func(format string, args ...any) error {
		return &damage.Error{Object: key, Err: fmt.Errorf(format, args...)}
	}
	for i, want := range f.CRCs {
		off := int64(i) * format.CRCChunk
		p := buf[:min(format.CRCChunk, f.DataEnd-off)]
		if err := damage.ReadFull(ctx, src, key, off, p); err != nil {
			return err
		}
		if format.CRC(p) != want {
			return bad("checksum of the bytes from %d on: %w", off, format.ErrCorrupt)
		}
		if i == 0 {
			if err := checkHeader(p, key); err != nil {
				return bad("%w", err)
			}
		}
		if _, err := w.Write(p); err != nil {
			return fmt.Errorf("copy %s: %w", key, err)
		}
	}
	// The table behind the data has a checksum of its own, and so has the end.
	if f.TOCLen > store.MaxSmallObject || size-f.DataEnd > 2*store.MaxSmallObject {
		return bad("table of contents: %w", format.ErrCorrupt)
	}
	tail := make([]byte, size-f.DataEnd)
	if err := damage.ReadFull(ctx, src, key, f.DataEnd, tail); err != nil {
		return err
	}
	if f.TOCLen > 0 {
		if err := envelope.CheckFrame(tail[:f.TOCLen]); err != nil {
			return bad("%w", err)
		}
	}
	if _, err := format.ParseTrailer(tail[f.TOCLen:], size, isSegment); err != nil {
		return bad("%w", err)
	}
	if _, err := w.Write(tail); err != nil {
		return fmt.Errorf("copy %s: %w", key, err)
	}
	return nil
}

// checkHeader compares an object's header with its name.
func checkHeader(p []byte, key string) error {
	_, _, replica, _ := format.Original(key)
	var is bool
	var err error
	if strings.HasPrefix(key, "seg/") {
		var h format.SegmentHeader
		h, err = format.ParseSegmentHeader(p)
		is = h.Replica
	} else {
		var h format.MapHeader
		h, err = format.ParseMapHeader(p)
		is = h.Replica
	}
	if err == nil && is != replica {
		err = fmt.Errorf("header: it is not the object of this name: %w", format.ErrCorrupt)
	}
	return err
}

// Small copies an object that is read as a whole. check is asked about what the
// source has; nil asks for a sound frame. wrote is false where the same bytes
// are there already; other bytes under the key are damage of dst (ErrDiffers).
func Small(ctx context.Context, dst, src store.Store, key string, check func([]byte) error) (n int64, wrote bool, err error) {
	raw, err := Read(ctx, src, key, check)
	if err != nil {
		return 0, false, err
	}
	wrote, err = Put(ctx, dst, key, raw)
	return int64(len(raw)), wrote, err
}

// Read reads an object as a whole and checks it.
func Read(ctx context.Context, st store.Store, key string, check func([]byte) error) ([]byte, error) {
	if check == nil {
		check = envelope.CheckFrame
	}
	raw, err := store.GetAll(ctx, st, key, store.MaxSmallObject)
	if err != nil {
		return nil, damage.FromStore(key, err)
	}
	if err := check(raw); err != nil {
		return nil, &damage.Error{Object: key, Err: err}
	}
	return raw, nil
}

// ErrDiffers says that an object of this name has other bytes: it is damaged.
var ErrDiffers = errors.New("an object of this name has other bytes")

// Put stores an object unless it is there.
func Put(ctx context.Context, dst store.Store, key string, raw []byte) (wrote bool, err error) {
	err = dst.Put(ctx, key, raw)
	if !errors.Is(err, store.ErrExist) {
		if err != nil {
			return false, fmt.Errorf("copy %s: %w", key, err)
		}
		return true, nil
	}
	old, err := store.GetAll(ctx, dst, key, store.MaxSmallObject)
	var large *store.TooLargeError
	switch {
	case err == nil && bytes.Equal(old, raw):
		return false, nil
	case err == nil || errors.As(err, &large):
		return false, &damage.Error{Object: key, Err: ErrDiffers}
	}
	return false, damage.FromStore(key, err)
}
