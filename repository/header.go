package repository

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"io"

	"github.com/lockstep-backup/lockstep/disk"
	"github.com/lockstep-backup/lockstep/repository/format"
	"github.com/lockstep-backup/lockstep/repository/internal/headercopy"
	"github.com/lockstep-backup/lockstep/repository/internal/smallobject"
	"github.com/lockstep-backup/lockstep/store"
)

// PutHeader stores two copies of the given ranges of a header whose file form
// has size bytes, and returns their id. Where the parent has both copies of an
// equal header, that one's id is returned. At most 32 MiB in 10,000 ranges.
func (w *PointWriter) PutHeader(ctx context.Context, ranges []disk.Range, size int64, src io.ReaderAt) (string, error) {
	var total int64
	for _, g := range ranges {
		if g.Offset < 0 || g.Length < 0 || g.Offset > size-g.Length {
			return "", fmt.Errorf("store header: range %d+%d lies outside", g.Offset, g.Length)
		}
		total += g.Length
	}
	if total > 32<<20 || len(ranges) > 10000 {
		return "", fmt.Errorf("store header: %d bytes in %d ranges are too many", total, len(ranges))
	}
	body := headercopy.Body(ranges, size, total)
	for _, g := range ranges {
		at := len(body)
		body = append(body, make([]byte, g.Length)...)
		if _, err := src.ReadAt(body[at:], g.Offset); err != nil && !errors.Is(err, io.EOF) {
			return "", fmt.Errorf("store header: %w", err)
		}
	}
	if hid, ok := w.parentHeader(ctx, body); ok {
		return hid, nil
	}
	g := w.m.Digester()
	d := g.Keyed([]byte(w.id), body)
	w.m.Release(g)
	hid := fmt.Sprintf("%08x%s", w.birth, hex.EncodeToString(d[:12]))
	for _, key := range format.HeaderKeys(w.m.Machine.ID, hid) {
		_, err := smallobject.Put(ctx, w.r.st, key, format.KindHeader, w.m.Header, body)
		if err != nil && (!errors.Is(err, store.ErrExist) || !w.headerIs(ctx, key, body)) { // two volumes may have one header
			return "", err
		}
	}
	return hid, nil
}

// parentHeader finds the copies of an equal header among those that the
// parent refers to; a copy of any other recovery point may be about to go.
func (w *PointWriter) parentHeader(ctx context.Context, body []byte) (string, bool) {
	if w.parent == nil || w.opts.Full {
		return "", false
	}
	for _, d := range w.parent.Disks {
		for _, h := range d.Headers {
			keys := format.HeaderKeys(w.m.Machine.ID, h.ID)
			if format.ValidID(h.ID) && w.headerIs(ctx, keys[0], body) && w.headerIs(ctx, keys[1], body) {
				return h.ID, true
			}
		}
	}
	return "", false
}

// headerIs says whether the copy at key can be read and is body: one that
// rotted would be trusted for years otherwise.
func (w *PointWriter) headerIs(ctx context.Context, key string, body []byte) bool {
	old, err := smallobject.Get(ctx, w.r.st, key, format.KindHeader, w.m.Header)
	if err != nil {
		w.r.log.Warn("stored header copy cannot be read, the header is stored anew", "object", key, "error", err)
		return false
	}
	return string(old) == string(body)
}
