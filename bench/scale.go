//go:build linux

package main

import (
	"context"
	"encoding/binary"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/lockstep-backup/lockstep/disk"
	"github.com/lockstep-backup/lockstep/repository"
	"github.com/lockstep-backup/lockstep/repository/format"
	"github.com/lockstep-backup/lockstep/store"
	"github.com/lockstep-backup/lockstep/store/localdir"
)

// generated is a disk that is made up as it is read: blocks of noise, each
// unlike any other, of which a share is allocated in runs of 64 MiB. changed
// says how often a block was rewritten.
type generated struct {
	size    int64
	every   int64 // one run of 64 MiB in so many is allocated
	noise   []byte
	changed map[int64]uint32
}

const generatedRun = 64 << 20

func newGenerated(size int64, share float64) *generated {
	g := &generated{size: size, every: max(int64(1/share+0.5), 1), noise: make([]byte, 8<<20), changed: map[int64]uint32{}}
	_, _ = rand.NewChaCha8([32]byte{3}).Read(g.noise)
	return g
}

func (g *generated) Size() int64 { return g.size }

// NextData implements repository.DiskSource.
func (g *generated) NextData(off int64) (disk.Range, error) {
	run := off / generatedRun
	if run%g.every != 0 {
		run += g.every - run%g.every
		off = run * generatedRun
	}
	if off >= g.size {
		return disk.Range{}, io.EOF
	}
	end := min((run+1)*generatedRun, g.size)
	if g.every == 1 {
		end = g.size
	}
	return disk.Range{Offset: off, Length: end - off}, nil
}

// ReadAt implements io.ReaderAt for whole blocks.
func (g *generated) ReadAt(p []byte, off int64) (int, error) {
	for at := 0; at < len(p); at += format.BlockSize {
		b := p[at:min(at+format.BlockSize, len(p))]
		block := (off + int64(at)) / format.BlockSize
		if (off+int64(at))/generatedRun%g.every != 0 {
			clear(b)
			continue
		}
		from := uint64(block) * 0x9e3779b97f4a7c15 % uint64(len(g.noise)-format.BlockSize)
		copy(b, g.noise[from:])
		for page := 0; page+format.PageSize <= len(b); page += format.PageSize {
			binary.LittleEndian.PutUint64(b[page:], uint64(block))
			binary.LittleEndian.PutUint32(b[page+8:], g.changed[block])
		}
	}
	return len(p), nil
}

// change rewrites n random allocated blocks and returns where they are.
func (g *generated) change(rnd *rand.Rand, n int64) []disk.Range {
	var places []disk.Range
	for range n {
		off := rnd.Int64N(g.size/generatedRun/g.every) * g.every * generatedRun
		block := off/format.BlockSize + rnd.Int64N(generatedRun/format.BlockSize)
		g.changed[block]++
		places = append(places, disk.Range{Offset: block * format.BlockSize, Length: format.BlockSize})
	}
	return places
}

// scale simulates disks of the sizes in TiB that spec names, on a store that
// discards what extents hold, and prints what grows with size and with history.
func (b *bench) scale(spec string, points int) error {
	fmt.Printf("generated disks, extents discarded, %d recovery points; an incremental changes 1 GiB (the first) or 1 MiB (the others) in random blocks of 64 KiB, ranges known\n\n", points)
	fmt.Println("| disk TiB | allocated | first backup s | its map MiB | incremental of 1 GiB s | its map MiB | all incrementals of 1 MiB s | list s | delete half and reclaim s | map pages MiB after | peak MiB |")
	fmt.Println("|---|---|---|---|---|---|---|---|---|---|---|")
	for _, item := range strings.Split(spec, ",") {
		tib, share, found := strings.Cut(item, ":")
		size, err := strconv.ParseFloat(tib, 64)
		if err != nil {
			return err
		}
		allocated := 1.0
		if found {
			if allocated, err = strconv.ParseFloat(share, 64); err != nil {
				return err
			}
		}
		if err := b.scaleOne(int64(size*(1<<40)), allocated, points); err != nil {
			return err
		}
	}
	return nil
}

func (b *bench) scaleOne(size int64, share float64, points int) error {
	ctx := context.Background()
	for _, name := range []string{"scale", "scale.keys"} {
		if err := os.RemoveAll(b.path(name)); err != nil {
			return err
		}
	}
	r, machine, err := openRepositoryOn(ctx, b.path("scale"), func(s *localdir.Store) store.Store { return discarding{s} })
	if err != nil {
		return err
	}
	defer r.Close()
	src := newGenerated(size, share)
	rnd := rand.New(rand.NewPCG(4, 5))
	write := func(changed []disk.Range, known bool) (float64, repository.Stats, error) {
		start := time.Now()
		w, err := r.Begin(ctx, machine, repository.BeginOptions{})
		if err != nil {
			return 0, repository.Stats{}, err
		}
		d, err := w.WriteDisk(ctx, repository.DiskInput{ID: "vda", Source: src, Changed: changed, Known: known, Why: "bench"})
		if err != nil {
			return 0, d.Stats, err
		}
		_, err = w.Commit(ctx, &repository.Manifest{Disks: []repository.Disk{d}})
		return time.Since(start).Seconds(), d.Stats, err
	}
	first, firstStats, err := write(nil, false)
	if err != nil {
		return err
	}
	large, largeStats, err := write(src.change(rnd, (1<<30)/format.BlockSize), true)
	if err != nil {
		return err
	}
	start := time.Now()
	for range points - 2 {
		if _, _, err := write(src.change(rnd, (1<<20)/format.BlockSize), true); err != nil {
			return err
		}
	}
	small := time.Since(start).Seconds()
	start = time.Now()
	ps, err := r.Points(ctx, machine)
	if err != nil {
		return err
	}
	list := time.Since(start).Seconds()
	start = time.Now()
	for i, p := range ps[:len(ps)-1] {
		if i%2 == 0 {
			if err := r.Delete(ctx, machine, p.ID, "bench"); err != nil {
				return err
			}
		}
	}
	if _, err := r.Reclaim(ctx, machine, repository.ReclaimOptions{}); err != nil {
		return err
	}
	prune := time.Since(start).Seconds()
	used, err := usedBy(b.path("scale"))
	if err != nil {
		return err
	}
	var usage syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &usage); err != nil {
		return err
	}
	fmt.Printf("| %g | %g %% | %.1f | %.1f | %.2f | %.2f | %.1f | %.3f | %.1f | %.1f | %d |\n", float64(size)/(1<<40), share*100,
		first, float64(firstStats.Map)/(1<<20), large, float64(largeStats.Map)/(1<<20), small, list, prune, float64(used["map"])/(1<<20), usage.Maxrss>>10)
	return nil
}
