//go:build linux

package main

import (
	"fmt"
	"os"
	"path/filepath"
	"sort"
	"strings"
)

func median(v []float64) float64 {
	if len(v) == 0 {
		return 0
	}
	s := append([]float64(nil), v...)
	sort.Float64s(s)
	return s[len(s)/2]
}

// ratio is the median of the ratios of paired runs; of several references the
// fastest of each run counts.
func ratio(a []float64, references ...[]float64) (float64, bool) {
	var r []float64
	for i := range a {
		best := 0.0
		for _, ref := range references {
			if i < len(ref) && (best == 0 || ref[i] < best) {
				best = ref[i]
			}
		}
		if best > 0 {
			r = append(r, a[i]/best)
		}
	}
	return median(r), len(r) > 0
}

func (b *bench) table(cache string) {
	fmt.Printf("%d GiB incompressible, %s cache, median of %d paired runs\n\n", b.size>>30, cache, b.runs)
	fmt.Println("| step | wall s | CPU s | peak MiB | against | wall ratio | limit | CPU ratio | limit |")
	fmt.Println("|---|---|---|---|---|---|---|---|---|")
	for _, r := range rows {
		if len(b.wall[r.step]) == 0 {
			continue
		}
		var walls, cpus [][]float64
		for _, a := range r.against {
			walls, cpus = append(walls, b.wall[a]), append(cpus, b.cpu[a])
		}
		w, c := "", ""
		q, ok := ratio(b.wall[r.step], walls...)
		if len(r.against) > 0 && !ok {
			continue // the reference is not installed here
		}
		if ok {
			w = fmt.Sprintf("%.3f", q)
		}
		if q, ok := ratio(b.cpu[r.step], cpus...); ok {
			c = fmt.Sprintf("%.3f", q)
		}
		fmt.Printf("| %s | %.2f | %.2f | %d | %s | %s | %s | %s | %s |\n", r.step, median(b.wall[r.step]), median(b.cpu[r.step]), b.rss[r.step]>>10,
			strings.Join(r.against, " or "), w, r.wall, c, r.cpu)
	}
	fmt.Println()
}

// usedBy counts a folder's bytes by the first part of the path below it.
func usedBy(dir string) (map[string]int64, error) {
	used := map[string]int64{}
	err := filepath.Walk(dir, func(p string, i os.FileInfo, err error) error {
		if err != nil || !i.Mode().IsRegular() {
			return err
		}
		rel, err := filepath.Rel(dir, p)
		used[strings.Split(rel, string(filepath.Separator))[0]] += i.Size()
		used["total"] += i.Size()
		return err
	})
	return used, err
}

func (b *bench) growth() error {
	for _, name := range []string{"repo", "copy"} {
		if err := os.RemoveAll(b.path(name)); err != nil {
			return err
		}
	}
	if err := b.engine("growth", "backup", b.image); err != nil {
		return err
	}
	before, err := usedBy(b.path("repo"))
	if err != nil {
		return err
	}
	fmt.Printf("repository after a first backup ÷ disk: %.4f\n\n", float64(before["total"])/float64(b.size))
	fmt.Println("| random writes | changed bytes | growth ÷ changed | of it maps |")
	fmt.Println("|---|---|---|---|")
	for _, c := range []struct {
		share float64
		piece int64
	}{{0.01, 4096}, {0.01, 65536}, {0.001, 4096}, {0.001, 65536}, {0.0001, 4096}, {0.0001, 65536}} {
		if _, err := b.churn(c.share, c.piece); err != nil {
			return err
		}
		if err := b.engine("growth", "backup", b.image); err != nil {
			return err
		}
		after, err := usedBy(b.path("repo"))
		if err != nil {
			return err
		}
		changed := float64(int64(float64(b.size)*c.share/float64(c.piece)) * c.piece)
		fmt.Printf("| %g %% as %d KiB | %.0f | %.3f | %.3f |\n", c.share*100, c.piece>>10, changed,
			float64(after["total"]-before["total"])/changed, float64(after["map"]-before["map"])/changed)
		before = after
	}
	return nil
}
