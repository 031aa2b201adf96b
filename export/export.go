// Package export gives the disks of a recovery point to whoever wants to read
// them at once, without restoring: over NBD, or as files through an adapter of
// its own. What is handed on is verified ciphertext, and what was unlocked of it:
// plaintext, which is in memory only.
//
// A recovery point never changes. Who wants to write gets an overlay: a file
// that takes the writes (docs/spec/overlay.md), to be thrown away or to become
// a recovery point of its own.
package export

import (
	"context"
	"errors"
	"fmt"
	"sync"

	"github.com/lockstep-backup/lockstep/disk"
	"github.com/lockstep-backup/lockstep/nbd"
	"github.com/lockstep-backup/lockstep/repository"
	"github.com/lockstep-backup/lockstep/unlock"
)

// Point is a recovery point that is open for reading.
type Point struct {
	Manifest *repository.Manifest
	Disks    []*Disk
	Plain    []*Plain // after Unlock
	cache    *cache
	tree     *unlock.Tree

	elsewhere func() []*repository.Repository // other repositories that have it
}

// Disk is one disk of it. Its methods are safe for concurrent use.
type Disk struct {
	ID string
	diskReader
	info repository.Disk
}

// Options say how to read.
type Options struct {
	// Elsewhere gives other repositories that have the recovery point, nearest
	// first. It is asked once, and not before something cannot be read: that is
	// taken from the first that has it, verified in the same way.
	Elsewhere func() []*repository.Repository
	// Borrowed is told of it once for each disk, by whoever reads, with the reason.
	Borrowed func(disk string, why error)
}

// Open opens all disks of a recovery point. ctx bounds its life.
func Open(ctx context.Context, r *repository.Repository, m *repository.Manifest, o Options) (*Point, error) {
	p := &Point{Manifest: m, cache: newCache(), elsewhere: func() []*repository.Repository { return nil }}
	if o.Elsewhere != nil {
		p.elsewhere = sync.OnceValue(o.Elsewhere)
	}
	for i, d := range m.Disks {
		reader, err := r.OpenDisk(ctx, m.Machine, d)
		if err != nil {
			return nil, fmt.Errorf("open recovery point %s: %w", m.Point, err)
		}
		c := content(reader)
		if o.Elsewhere != nil {
			c = borrowing(ctx, reader, m.Machine, d, p.elsewhere, o.Borrowed)
		}
		p.Disks = append(p.Disks, &Disk{ID: d.ID, diskReader: diskReader{content: c, c: p.cache, id: i}, info: d})
	}
	if len(p.Disks) == 0 {
		return nil, fmt.Errorf("open recovery point %s: it has no disks", m.Point)
	}
	return p, nil
}

// Close waits for reads that nobody waits for, and wipes the keys of what was unlocked.
func (p *Point) Close() error {
	p.cache.close()
	if p.tree == nil {
		return nil
	}
	return p.tree.Close()
}

// Exports are the disks for an NBD server, under their ids, and what was
// unlocked. With an overlay the disks can be written.
func (p *Point) Exports(o *Overlay) ([]nbd.Export, error) {
	var out []nbd.Export
	for _, d := range p.Disks {
		e := nbd.Export{
			Name:        d.ID,
			Description: fmt.Sprintf("disk %s of recovery point %s of %s, %s", d.ID, p.Manifest.Point, p.Manifest.MachineName, p.Manifest.Time.UTC().Format("2006-01-02T15:04:05Z")),
			Disk:        blockDevice{d},
		}
		if o != nil {
			w := o.disk(d.ID)
			if w == nil {
				return nil, fmt.Errorf("overlay has no disk %s: %w", d.ID, ErrOtherBase)
			}
			e.Disk, e.Writer = blockDevice{w}, w
		}
		out = append(out, e)
	}
	return append(out, p.plainExports()...), nil
}

// ranger is a disk in our words; blockDevice says the same in those of NBD.
type ranger interface {
	content
	Prefetch(off, length int64) error
}

type blockDevice struct{ ranger }

func (b blockDevice) NextData(off int64) (offset, length int64, err error) {
	r, err := b.ranger.NextData(off)
	return r.Offset, r.Length, err
}

// Errors that callers act on.
var (
	// ErrOtherBase says that an overlay was made over something else.
	ErrOtherBase = errors.New("overlay belongs to another recovery point")
	// ErrOverlay says that a file is no overlay, or a damaged one.
	ErrOverlay = errors.New("not an overlay, or damaged")
	// ErrInUse says that another process has the overlay open.
	ErrInUse = errors.New("overlay is in use")
)

// Unread are ranges of the disk that the recovery point does not have; they
// read as zeroes.
func (d *Disk) Unread() []disk.Range { return d.info.Unread }
