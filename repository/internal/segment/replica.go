package segment

import (
	"context"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"

	"github.com/lockstep-backup/lockstep/disk"
	"github.com/lockstep-backup/lockstep/repository/format"
	"github.com/lockstep-backup/lockstep/repository/internal/damage"
	"github.com/lockstep-backup/lockstep/repository/internal/machinekey"
	"github.com/lockstep-backup/lockstep/store"
)

const (
	moveRun = 2 << 20  // read at once
	moveGap = 64 << 10 // read over
)

// WriteReplica makes a replica of s in dst that has the extents of toc, which
// it reads from src by the original's positions and moves as they are. An
// extent whose tag is not right ends it with a *damage.Error: damage must not
// get new checksums. It returns the replica's key and size.
func WriteReplica(ctx context.Context, dst store.Store, src damage.Reader, m *machinekey.Keys, s *Segment, toc format.TOC) (store.Info, error) {
	var random [4]byte
	_, _ = rand.Read(random[:])
	replica := *s
	replica.Key = format.ReplicaKey(s.Key, binary.LittleEndian.Uint32(random[:]))
	sw, err := dst.Create(ctx, replica.Key)
	if err != nil {
		return store.Info{}, fmt.Errorf("write replica: %w", err)
	}
	w := newWriter(&replica, m, sw, toc.Disks, true)
	w.TOC.Extents = slices.Clone(toc.Extents)
	slices.SortFunc(w.TOC.Extents, func(a, b format.TOCExtent) int { return int(int64(a.Position) - int64(b.Position)) })
	w.runs = []format.Run{}
	if err := w.move(ctx, src, s, m); err != nil {
		return store.Info{}, errors.Join(err, sw.Abort())
	}
	size, err := w.Finish()
	return store.Info{Key: replica.Key, Size: size}, err
}

func (w *Writer) move(ctx context.Context, src damage.Reader, s *Segment, m *machinekey.Keys) error {
	g := m.Digester()
	defer m.Release(g)
	in, out := disk.AlignedBuffer(moveRun), disk.AlignedBuffer(moveRun)
	plain := make([]byte, format.BlockSize+format.TagSize)
	var x Scratch
	end := func(e *format.TOCExtent) int64 {
		return (int64(e.Position) + int64(format.Pages(e.Mask))) * format.PageSize
	}
	es := w.TOC.Extents
	for len(es) > 0 {
		start, stop, n := int64(es[0].Position)*format.PageSize, end(&es[0]), 1
		for n < len(es) && int64(es[n].Position)*format.PageSize <= stop+moveGap && end(&es[n])-start <= moveRun {
			stop = end(&es[n])
			n++
		}
		if err := damage.ReadFull(ctx, src, s.Key, start, in[:stop-start]); err != nil {
			return err
		}
		at := 0
		for i := range es[:n] {
			e := &es[i]
			p := in[int64(e.Position)*format.PageSize-start : end(e)-start]
			copy(plain, p)
			if err := s.Open(g, &x, plain[:len(p)+format.TagSize], len(p), e.Position, e.Mask, e.Tag); err != nil {
				return &damage.Error{Object: s.Key, Machine: m.ID, Err: err}
			}
			if k := len(w.runs); k > 0 && w.runs[k-1].From+w.runs[k-1].Count == e.Position {
				w.runs[k-1].Count += uint32(format.Pages(e.Mask))
			} else {
				w.runs = append(w.runs, format.Run{
					From: e.Position, Here: w.Position + uint32(at/format.PageSize), Count: uint32(format.Pages(e.Mask)),
				})
			}
			at += copy(out[at:], p)
		}
		if err := w.Append(out[:at]); err != nil {
			return err
		}
		es = es[n:]
	}
	return nil
}
