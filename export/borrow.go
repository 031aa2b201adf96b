package export

import (
	"context"
	"errors"
	"io"
	"sync"

	"github.com/lockstep-backup/lockstep/disk"
	"github.com/lockstep-backup/lockstep/repository"
)

// borrower reads a disk in the nearest repository, and what cannot be read there
// in others that have the recovery point. All of them verify what they give.
type borrower struct {
	content
	ctx    context.Context
	others func() []content // nearest first, opened when something is damaged
	told   sync.Once
	tell   func(why error)
}

func borrowing(ctx context.Context, near content, machine string, d repository.Disk, elsewhere func() []*repository.Repository, tell func(disk string, why error)) *borrower {
	b := &borrower{content: near, ctx: ctx, tell: func(error) {}}
	if tell != nil {
		b.tell = func(why error) { tell(d.ID, why) }
	}
	b.others = sync.OnceValue(func() []content {
		var out []content
		for _, r := range elsewhere() {
			// A machine's keys are the same everywhere, and so is its map.
			if reader, err := r.OpenDisk(ctx, machine, d); err == nil {
				out = append(out, reader)
			}
		}
		return out
	})
	return b
}

// ReadAt reads near what can be read there, block by block where some cannot.
func (b *borrower) ReadAt(p []byte, off int64) (int, error) {
	n, err := b.content.ReadAt(p, off)
	if err == nil || errors.Is(err, io.EOF) || b.ctx.Err() != nil {
		return n, err
	}
	if len(b.others()) == 0 {
		return n, err
	}
	for n = 0; n < len(p); {
		block := p[n:min(len(p), n+disk.BlockSize-int((off+int64(n))%disk.BlockSize))]
		got, err := b.content.ReadAt(block, off+int64(n))
		if err != nil && !errors.Is(err, io.EOF) {
			got, err = b.borrow(block, off+int64(n), err)
		}
		if n += got; err != nil {
			return n, err
		}
	}
	return n, nil
}

// borrow reads elsewhere what cannot be read here because of why.
func (b *borrower) borrow(p []byte, off int64, why error) (int, error) {
	for _, o := range b.others() {
		if n, err := o.ReadAt(p, off); err == nil || errors.Is(err, io.EOF) {
			b.told.Do(func() { b.tell(why) })
			return n, err
		}
	}
	return 0, why
}

// NextData asks the same map elsewhere where it cannot be read here.
func (b *borrower) NextData(off int64) (disk.Range, error) {
	r, err := b.content.NextData(off)
	if err == nil || errors.Is(err, io.EOF) || b.ctx.Err() != nil {
		return r, err
	}
	for _, o := range b.others() {
		if r, oerr := o.NextData(off); oerr == nil || errors.Is(oerr, io.EOF) {
			b.told.Do(func() { b.tell(err) })
			return r, oerr
		}
	}
	return r, err
}
