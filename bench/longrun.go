//go:build linux

package main

import (
	"context"
	"fmt"
	"os"
	"strconv"
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
	return nil
}
