//go:build linux

// Command bench measures Lockstep's engine side by side with dd, cp, a plain
// reference pipeline and, where they are installed, restic, borg and kopia, on
// one image of incompressible bytes, and prints tables of ratios within the
// run. Figures from it go to docs/performance.md.
//
//	go run ./bench -dir /var/tmp/bench -size 8 -runs 5             # the table of targets, cold and warm
//	go run ./bench -dir /var/tmp/bench -size 8 -long 200           # the long run of incrementals
//	go run ./bench -dir /var/tmp/bench -scale 0.25,1,64:0.02       # TiB, simulated
//	go run ./bench -dir /var/tmp/bench -size 8 -export 20000       # instant access, so many random reads
//	go run ./bench -xts -runs 15                                   # decryption beside golang.org/x/crypto/xts
//
// It needs root to drop the page cache between steps.
package main

import (
	"context"
	"flag"
	"fmt"
	"os"
	"path/filepath"
)

func main() {
	if len(os.Args) > 1 && os.Args[1] == "engine" {
		if err := engine(context.Background(), os.Args[2:]); err != nil {
			fmt.Fprintln(os.Stderr, "bench:", err)
			os.Exit(1)
		}
		return
	}
	dir := flag.String("dir", "", "scratch folder on the disk to measure (default: a new one beside the working folder)")
	size := flag.Int("size", 8, "GiB of the image")
	runs := flag.Int("runs", 5, "runs of each step; the median of the paired ratios counts")
	cache := flag.String("cache", "cold,warm", "state of the page cache: cold, warm or both")
	peers := flag.Bool("peers", false, "measure restic, borg and kopia too, where installed")
	kopia := flag.String("kopia", "kopia", "the kopia program")
	growth := flag.Bool("growth", true, "measure growth of incrementals")
	long := flag.Int("long", 0, "instead of the table: so many incrementals of -share random writes of -piece bytes, then keep-30")
	share := flag.Float64("share", 0.01, "share of the disk that each incremental of the long run changes")
	piece := flag.Int64("piece", 4096, "bytes of one write of the long run")
	scale := flag.String("scale", "", "instead of the table: simulate disks of so many TiB, TIB or TIB:SHARE-ALLOCATED, separated by commas")
	points := flag.Int("points", 1000, "recovery points of a machine in the simulation")
	exported := flag.Int("export", 0, "instead of the table: instant access, with so many random reads")
	xts := flag.Bool("xts", false, "instead of the table: XTS-AES-256 beside golang.org/x/crypto/xts")
	flag.Parse()
	if *xts {
		if err := ciphers(*runs); err != nil {
			fmt.Fprintln(os.Stderr, "bench:", err)
			os.Exit(1)
		}
		return
	}
	b, err := newBench(*dir, int64(*size)<<30, *runs, *kopia)
	if err == nil {
		defer b.close()
		switch {
		case *scale != "":
			err = b.scale(*scale, *points)
		case *exported > 0:
			err = b.export(*exported)
		case *long > 0:
			err = b.long(*long, *share, *piece)
		default:
			err = b.run(*cache, *peers, *growth)
		}
	}
	if err != nil {
		b.close()
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

// bench is one run's places and what it measured.
type bench struct {
	dir, image string
	own        bool // dir is ours
	size       int64
	runs       int
	kopia      string
	warm       bool
	measures
}

// measures are what the steps took, run by run.
type measures struct {
	wall map[string][]float64
	cpu  map[string][]float64
	rss  map[string]int64 // KiB, the most of all runs
}

func newMeasures() measures {
	return measures{wall: map[string][]float64{}, cpu: map[string][]float64{}, rss: map[string]int64{}}
}

func newBench(dir string, size int64, runs int, kopia string) (*bench, error) {
	b := &bench{size: size, runs: runs, kopia: kopia, measures: newMeasures()}
	if dir == "" {
		d, err := os.MkdirTemp(".", "bench-")
		if err != nil {
			return b, err
		}
		b.own, dir = true, d
	}
	var err error
	if b.dir, err = filepath.Abs(dir); err != nil {
		return b, err
	}
	b.image = b.path("image.raw")
	return b, os.MkdirAll(b.dir, 0o700)
}

func (b *bench) path(name string) string { return filepath.Join(b.dir, name) }

// close removes what the run made.
func (b *bench) close() {
	for _, name := range []string{"image.raw", "repo", "repo.keys", "copy", "restic", "borg", "kopia", "scale", "scale.keys"} {
		_ = os.RemoveAll(b.path(name))
	}
	if b.own {
		_ = os.Remove(b.dir)
	}
}

// run measures the table in each state of the cache, then growth.
func (b *bench) run(caches string, peers, growth bool) error {
	if err := b.makeImage(); err != nil {
		return err
	}
	for _, c := range []string{"cold", "warm"} {
		if caches != c && caches != "cold,warm" {
			continue
		}
		b.warm, b.measures = c == "warm", newMeasures()
		for range b.runs {
			if err := b.round(peers); err != nil {
				return err
			}
		}
		b.table(c)
	}
	if growth {
		return b.growth()
	}
	return nil
}
