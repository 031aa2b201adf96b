//go:build linux

package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/lockstep-backup/lockstep/disk"
	"github.com/lockstep-backup/lockstep/export"
	"github.com/lockstep-backup/lockstep/export/fusefs"
	"github.com/lockstep-backup/lockstep/nbd"
)

// export measures instant access: how soon the first byte is there, reading in
// order beside a restore, and random reads of 4 KiB beside those of the device
// itself, around the page cache.
func (b *bench) export(reads int) error {
	if err := b.makeImage(); err != nil {
		return err
	}
	if err := os.RemoveAll(b.path("repo")); err != nil {
		return err
	}
	if err := b.engine("export", "backup", b.image); err != nil {
		return err
	}
	e := exportBench{bench: b, reads: reads, first: map[string][]float64{}, rate: map[string][]float64{}, p99: map[string][]float64{}, p50: map[string][]float64{}}
	for range b.runs {
		if err := e.round(context.Background()); err != nil {
			return err
		}
	}
	e.table()
	return nil
}

type exportBench struct {
	*bench
	reads          int
	first          map[string][]float64 // seconds
	rate, p50, p99 map[string][]float64 // reads a second, seconds
}

const (
	seqRestore = "restore to a new file"
	seqFile    = "nbdcopy to a new file"
	seqNBD     = "nbdcopy to nowhere, 4 connections"
	seqFUSE    = "mount, dd bs=1M to /dev/null"
)

// depths are how many reads are in flight.
var depths = []int{1, 16}

func (e *exportBench) round(ctx context.Context) error {
	copyTo := e.path("copy")
	_ = os.Remove(copyTo)
	if err := e.engine(seqRestore, "restore", copyTo); err != nil {
		return err
	}
	_ = os.Remove(copyTo)
	return errors.Join(e.inOrder(ctx, copyTo), e.atRandom(ctx))
}

// open opens the newest recovery point, cold, and notes when the first byte came.
func (e *exportBench) open(ctx context.Context) (*export.Point, func() error, error) {
	if err := e.settle(); err != nil {
		return nil, nil, err
	}
	start := time.Now()
	r, machine, err := openRepository(ctx, e.path("repo"))
	if err != nil {
		return nil, nil, err
	}
	ps, err := r.Points(ctx, machine)
	if err != nil {
		return nil, nil, err
	}
	m, err := r.Manifest(ctx, ps[len(ps)-1])
	if err != nil {
		return nil, nil, err
	}
	p, err := export.Open(ctx, r, m, export.Options{})
	if err != nil {
		return nil, nil, err
	}
	if _, err := p.Disks[0].ReadAt(make([]byte, 4096), e.size/2); err != nil {
		return nil, nil, err
	}
	e.first["export"] = append(e.first["export"], time.Since(start).Seconds())
	return p, func() error { return errors.Join(p.Close(), r.Close()) }, nil
}

// serve exports on a socket.
func (e *exportBench) serve(ctx context.Context, p *export.Point) (socket string, stop func() error, err error) {
	exports, err := p.Exports(nil)
	if err != nil {
		return "", nil, err
	}
	s, err := nbd.NewServer(nbd.Config{Exports: exports})
	if err != nil {
		return "", nil, err
	}
	dir, err := os.MkdirTemp("", "bench-")
	if err != nil {
		return "", nil, err
	}
	socket = filepath.Join(dir, "s")
	l, err := net.Listen("unix", socket)
	if err != nil {
		return "", nil, errors.Join(err, os.RemoveAll(dir))
	}
	ctx, cancel := context.WithCancel(ctx)
	ended := make(chan error, 1)
	go func() { ended <- s.Serve(ctx, l) }()
	return socket, func() error { cancel(); return errors.Join(<-ended, os.RemoveAll(dir)) }, nil
}

// time notes how long a program takes, cold.
func (e *exportBench) time(name string, argv ...string) error {
	if err := e.settle(); err != nil {
		return err
	}
	start := time.Now()
	if out, err := exec.Command(argv[0], argv[1:]...).CombinedOutput(); err != nil {
		return fmt.Errorf("%s: %w\n%s", name, err, out)
	}
	e.first[name] = append(e.first[name], time.Since(start).Seconds())
	return nil
}

func (e *exportBench) inOrder(ctx context.Context, copyTo string) (err error) {
	p, done, err := e.open(ctx)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, done()) }()
	socket, stop, err := e.serve(ctx, p)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, stop()) }()
	uri := "nbd+unix:///vda?socket=" + socket
	if _, err := exec.LookPath("nbdcopy"); err == nil {
		if err := e.time(seqNBD, "nbdcopy", "--connections=4", uri, "null:"); err != nil {
			return err
		}
		if err := e.time(seqFile, "nbdcopy", "--connections=4", "--flush", uri, copyTo); err != nil {
			return err
		}
		_ = os.Remove(copyTo)
	}
	dir, err := os.MkdirTemp("", "bench-")
	if err != nil {
		return err
	}
	defer os.Remove(dir)
	m, err := fusefs.New(p, dir, fusefs.Options{})
	if errors.Is(err, fusefs.ErrUnavailable) {
		return nil
	}
	if err != nil {
		return err
	}
	err = e.time(seqFUSE, "dd", "if="+filepath.Join(dir, fusefs.FileName("vda")), "of=/dev/null", "bs=1M", "status=none")
	_, uerr := m.Unmount()
	return errors.Join(err, uerr)
}

// atRandom reads 4 KiB at random places. Blocks of 64 KiB are what is sealed and
// so what has to be read: the device is measured with them as well.
func (e *exportBench) atRandom(ctx context.Context) (err error) {
	f, err := os.OpenFile(e.image, os.O_RDONLY|unix.O_DIRECT, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	for _, depth := range depths {
		if err := e.settle(); err != nil {
			return err
		}
		if err := e.random("device", depth, disk.PageSize, f); err != nil {
			return err
		}
		if err := e.random("device, 64 KiB each", depth, disk.BlockSize, f); err != nil {
			return err
		}
		p, done, err := e.open(ctx)
		if err != nil {
			return err
		}
		err = e.random("export", depth, disk.PageSize, p.Disks[0])
		if err = errors.Join(err, done()); err != nil {
			return err
		}
		if err := e.randomNBD(ctx, depth); err != nil {
			return err
		}
	}
	return nil
}

func (e *exportBench) randomNBD(ctx context.Context, depth int) (err error) {
	p, done, err := e.open(ctx)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, done()) }()
	socket, stop, err := e.serve(ctx, p)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, stop()) }()
	c, err := nbd.Dial(ctx, "unix", socket, "vda", nil)
	if err != nil {
		return err
	}
	defer c.Close()
	return e.random("nbd", depth, disk.PageSize, c)
}

// random has depth readers read size bytes each time, and notes rate and latency.
func (e *exportBench) random(name string, depth, size int, r io.ReaderAt) error {
	places := make([][]int64, depth)
	n := e.size / int64(size)
	rnd := rand.New(rand.NewPCG(1, 2)) // the same for all
	for i := range e.reads {
		places[i%depth] = append(places[i%depth], rnd.Int64N(n)*int64(size))
	}
	took := make([][]float64, depth)
	failed := make([]error, depth)
	var all sync.WaitGroup
	start := time.Now()
	for i := range depth {
		all.Go(func() {
			buf := disk.AlignedBuffer(size)
			for _, at := range places[i] {
				begin := time.Now()
				if _, err := r.ReadAt(buf, at); err != nil {
					failed[i] = err
					return
				}
				took[i] = append(took[i], time.Since(begin).Seconds())
			}
		})
	}
	all.Wait()
	wall := time.Since(start).Seconds()
	if err := errors.Join(failed...); err != nil {
		return fmt.Errorf("random reads of %s: %w", name, err)
	}
	t := slices.Concat(took...)
	slices.Sort(t)
	key := fmt.Sprintf("%s, %d in flight", name, depth)
	e.rate[key] = append(e.rate[key], float64(len(t))/wall)
	e.p50[key] = append(e.p50[key], t[len(t)/2])
	e.p99[key] = append(e.p99[key], t[len(t)*99/100])
	return nil
}

func (e *exportBench) table() {
	first := slices.Clone(e.first["export"])
	slices.Sort(first)
	fmt.Printf("%d GiB incompressible, cold cache, median of %d\n\n", e.size>>30, e.runs)
	fmt.Printf("first byte: %.1f ms, at most %.1f ms of %d\n\n", 1000*median(first), 1000*first[len(first)-1], len(first))
	fmt.Println("| in order | wall s | MiB/s | rate ÷ restore |")
	fmt.Println("|---|---|---|---|")
	restored := e.wall[seqRestore]
	for _, name := range []string{seqRestore, seqFile, seqNBD, seqFUSE} {
		t := e.first[name]
		if name == seqRestore {
			t = restored
		}
		if q, ok := ratio(restored, t); ok {
			fmt.Printf("| %s | %.2f | %.0f | %.2f |\n", name, median(t), float64(e.size>>20)/median(t), q)
		}
	}
	fmt.Printf("\n| %d random reads of 4 KiB | a second | p50 ms | p99 ms | rate ÷ device |\n|---|---|---|---|---|\n", e.reads)
	for _, depth := range depths {
		device := e.rate[fmt.Sprintf("device, %d in flight", depth)]
		for _, name := range []string{"device", "device, 64 KiB each", "export", "nbd"} {
			key := fmt.Sprintf("%s, %d in flight", name, depth)
			q, _ := ratio(e.rate[key], device)
			fmt.Printf("| %s | %.0f | %.2f | %.2f | %.2f |\n", key, median(e.rate[key]), 1000*median(e.p50[key]), 1000*median(e.p99[key]), q)
		}
	}
}
