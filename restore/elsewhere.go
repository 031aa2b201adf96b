package restore

import (
	"context"
	"sync"

	"github.com/lockstep-backup/lockstep/repository"
)

// borrowed counts what was read in other repositories.
type borrowed struct {
	mu    sync.Mutex
	bytes int64
	why   error
}

// lend has a scan take what it cannot read from other repositories.
func (b *borrowed) lend(ctx context.Context, o *repository.ScanOptions, elsewhere func() []*repository.Repository, m *repository.Manifest, d repository.Disk) {
	if elsewhere == nil {
		return
	}
	o.Elsewhere = sync.OnceValue(func() []*repository.DiskReader {
		var readers []*repository.DiskReader
		for _, r := range elsewhere() {
			// A machine's keys are the same everywhere, and so is its map.
			if reader, err := r.OpenDisk(ctx, m.Machine, d); err == nil {
				readers = append(readers, reader)
			}
		}
		return readers
	})
	o.Borrowed = func(why error, _, length int64) {
		b.mu.Lock()
		defer b.mu.Unlock()
		if b.bytes += length; b.why == nil {
			b.why = why
		}
	}
}
