package blockmap

import (
	"context"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"

	"github.com/lockstep-backup/lockstep/envelope"
	"github.com/lockstep-backup/lockstep/repository/format"
	"github.com/lockstep-backup/lockstep/repository/internal/damage"
	"github.com/lockstep-backup/lockstep/repository/internal/machinekey"
	"github.com/lockstep-backup/lockstep/repository/internal/segment"
	"github.com/lockstep-backup/lockstep/store"
)

// ReadPages reads the page table of a map object or of a replica of one; a map
// object of version 1 has none (segment.ErrNoTable).
func ReadPages(ctx context.Context, st store.Store, m *machinekey.Keys, key string) (t format.PageTable, err error) {
	body, end, err := segment.ReadTable(ctx, st, m, key)
	if err != nil {
		return t, err
	}
	_, _, replica, _ := format.Original(key)
	if t, err = format.ParsePageTable(body, end, replica); err != nil {
		return t, &damage.Error{Object: key, Machine: m.ID, Err: err}
	}
	return t, nil
}

// WriteReplica makes a replica of a map object in dst that has the pages of
// t, in the order of their offsets, which the cache reads. A page that cannot
// be opened ends it with a *damage.Error. It returns the replica's key and size.
func (c *Cache) WriteReplica(ctx context.Context, dst store.Store, name format.Name, t format.PageTable) (store.Info, error) {
	original := format.MapKey(c.m.ID, name)
	head := make([]byte, format.MapHeaderSize)
	if err := damage.ReadFull(ctx, c.st, original, 0, head); err != nil {
		return store.Info{}, err
	}
	h, err := format.ParseMapHeader(head)
	if err != nil {
		return store.Info{}, &damage.Error{Object: original, Machine: c.m.ID, Err: err}
	}
	h.Version, h.Replica = 2, true
	var random [4]byte
	_, _ = rand.Read(random[:])
	key := format.ReplicaKey(original, binary.LittleEndian.Uint32(random[:]))
	w, err := dst.Create(ctx, key)
	if err != nil {
		return store.Info{}, fmt.Errorf("write replica: %w", err)
	}
	size, err := c.fill(ctx, w, key, name, h, t)
	if err != nil {
		return store.Info{}, errors.Join(err, w.Abort())
	}
	return store.Info{Key: key, Size: size}, nil
}

func (c *Cache) fill(ctx context.Context, w store.Writer, key string, name format.Name, h format.MapHeader, t format.PageTable) (int64, error) {
	var crcs format.CRCs
	put := func(p []byte) error {
		_, _ = crcs.Write(p)
		if _, err := w.Write(p); err != nil {
			return fmt.Errorf("write replica: %w", err)
		}
		return nil
	}
	buf := h.Encode()
	here := uint32(format.MapHeaderSize)
	t.Runs = []format.Run{}
	for i := range t.Pages {
		e := &t.Pages[i]
		ref := format.Ref{Object: name, Offset: e.Offset, Length: e.Length}
		kind := byte(format.PageNode)
		if e.Level == 0 {
			kind = format.PageLeaf
		}
		if _, err := c.page(ctx, ref, kind); err != nil { // damage must not get new checksums
			return 0, err
		}
		at := len(buf)
		buf = append(buf, make([]byte, e.Length)...)
		if err := c.read(ctx, ref, buf[at:]); err != nil {
			return 0, err
		}
		if k := len(t.Runs); k > 0 && t.Runs[k-1].From+t.Runs[k-1].Count == e.Offset {
			t.Runs[k-1].Count += e.Length
		} else {
			t.Runs = append(t.Runs, format.Run{From: e.Offset, Here: here, Count: e.Length})
		}
		here += e.Length
		if len(buf) >= flushSize {
			if err := put(buf); err != nil {
				return 0, err
			}
			buf = buf[:0]
		}
	}
	if err := put(buf); err != nil {
		return 0, err
	}
	end := crcs.Size()
	frame, err := envelope.SealFrame(format.KindPages, c.m.Map, []byte(key), t.Encode(true))
	if err != nil {
		return 0, fmt.Errorf("write replica: %w", err)
	}
	tail := append(frame, format.MapTrailer(end, int64(len(frame)), crcs.Finish())...)
	if _, err := w.Write(tail); err != nil {
		return 0, fmt.Errorf("write replica: %w", err)
	}
	if err := w.Commit(); err != nil {
		return 0, fmt.Errorf("write replica: %w", err)
	}
	return end + int64(len(tail)), nil
}
