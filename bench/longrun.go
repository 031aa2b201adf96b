//go:build linux

package main

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"strconv"
	"time"

	"github.com/lockstep-backup/lockstep/repository"
)

// long makes n incrementals of random writes with the changed ranges known,
// and says how the repository grew, and what restoring the last costs against
// restoring the first.
func (b *bench) long(n int, share float64, piece int64) error {
	ctx := context.Background()
	for _, name := range []string{"repo", "copy"} {
		if err := os.RemoveAll(b.path(name)); err != nil {
			return err
		}
	}
	if err := b.makeImage(); err != nil {
		return err
	}
	r, machine, err := openRepository(ctx, b.path("repo"))
	if err != nil {
		return err
	}
	defer r.Close()
	if err := backup(ctx, r, machine, b.image, nil); err != nil {
		return err
	}
	first, err := usedBy(b.path("repo"))
	if err != nil {
		return err
	}
	fmt.Printf("%d GiB, %d incrementals of %g %% in random writes of %d KiB, ranges known\n\n", b.size>>30, n, share*100, piece>>10)
	fmt.Println("| incrementals | changed bytes | growth ÷ changed | of it maps |")
	fmt.Println("|---|---|---|---|")
	changed := 0.0
	for i := 1; i <= n; i++ {
		places, err := b.churn(share, piece)
		if err != nil {
			return err
		}
		if err := backup(ctx, r, machine, b.image, places); err != nil {
			return err
		}
		changed += float64(int64(float64(b.size)*share/float64(piece)) * piece)
		if i != 1 && i%25 != 0 && i != n {
			continue
		}
		used, err := usedBy(b.path("repo"))
		if err != nil {
			return err
		}
		fmt.Printf("| %d | %.0f | %.3f | %.3f |\n", i, changed, float64(used["total"]-first["total"])/changed, float64(used["map"]-first["map"])/changed)
	}
	fmt.Println()
	for range b.runs {
		for _, c := range []struct {
			name  string
			point int
		}{{"restore the first", 0}, {"restore the last", n}} {
			if err := b.engine(c.name, "restore", b.path("copy"), strconv.Itoa(c.point)); err != nil {
				return err
			}
			_ = os.Remove(b.path("copy"))
		}
	}
	q, _ := ratio(b.wall["restore the last"], b.wall["restore the first"])
	fmt.Printf("restore of the last ÷ restore of a first backup, cold, median of %d pairs: %.3f (%.2f s against %.2f s)\n", b.runs, q,
		median(b.wall["restore the last"]), median(b.wall["restore the first"]))
	ps, err := r.Points(ctx, machine)
	if err != nil {
		return err
	}
	const keep = 30
	start := time.Now()
	for _, p := range ps[:max(len(ps)-keep, 0)] {
		if err := r.Delete(ctx, machine, p.ID, "bench"); err != nil {
			return err
		}
	}
	res, err := r.Reclaim(ctx, machine, repository.ReclaimOptions{})
	if err != nil {
		return err
	}
	wall := time.Since(start).Seconds()
	used, err := usedBy(b.path("repo"))
	if err != nil {
		return err
	}
	fmt.Printf("keep the last %d: %.2f s; repository ÷ disk %.3f (before: of the first backup %.3f), dead bytes that stay ÷ repository %.3f; %d objects deleted, %d rewritten\n",
		keep, wall, float64(used["total"])/float64(b.size), float64(first["total"])/float64(b.size), float64(res.Dead)/float64(used["total"]),
		res.Deleted.Objects, res.Rewritten.Objects)
	if err := b.engine("restore after keep", "restore", b.path("copy")); err != nil {
		return err
	}
	if out, err := exec.Command("cmp", b.image, b.path("copy")).CombinedOutput(); err != nil {
		return fmt.Errorf("restored image differs: %w\n%s", err, out)
	}
	return nil
}
