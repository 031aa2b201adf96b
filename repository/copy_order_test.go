package repository_test

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"os"
	"slices"
	"testing"

	"github.com/lockstep-backup/lockstep/repository"
	"github.com/lockstep-backup/lockstep/repository/copies"
	"github.com/lockstep-backup/lockstep/store/memstore"
)

// side is one of two repositories of a machine and what it has to list.
type side struct {
	*fixture
	mem    *memstore.Store
	listed map[string]bool
	gone   map[string]bool
}

// TestCopiesAmongReclaims does what people do to two repositories of a machine,
// in any order: backups in either, copies of all or of some in both directions,
// deletions and reclaims. After each step both list what they should, and every
// recovery point reads as it was made.
func TestCopiesAmongReclaims(t *testing.T) {
	seeds, steps := 6, 40
	if os.Getenv("LOCKSTEP_SOAK") != "" {
		seeds = 1000
	}
	replicas := int64(0)
	for seed := range seeds {
		draw := rand.New(rand.NewPCG(uint64(seed), 7))
		var sides [2]*side
		for i := range sides {
			mem := memstore.New()
			sides[i] = &side{fixture: newFixture(t, mem, repository.SealingAESGCM), mem: mem, listed: map[string]bool{}, gone: map[string]bool{}}
		}
		images := map[string][]byte{}
		image := noise(uint64(seed), 3*65536)
		machine := sides[0].machine
		has := [2]bool{true, false} // which knows the machine
		history := ""
		for step := range steps {
			at := draw.IntN(2)
			s, o := sides[at], sides[1-at]
			say := ""
			switch n := draw.IntN(10); {
			case n < 4 && has[at]:
				block := draw.IntN(len(image) / 4096)
				copy(image[block*4096:], noise(uint64(1000*seed+step+1), 4096*(1+draw.IntN(3))))
				s.machine = machine
				p, _ := s.backup(t, &memDisk{p: image}, repository.BeginOptions{Full: draw.IntN(6) == 0})
				images[p.ID], s.listed[p.ID] = bytes.Clone(image), true
				say = fmt.Sprintf("back up to %d: %.6s", at, p.ID)
			case n < 7 && has[at]:
				points := mustPoints(t, s.repo, machine.ID)
				opts := copies.Options{Custodian: &o.custodian}
				if draw.IntN(2) == 0 && len(points) > 0 {
					opts.Points = []string{points[draw.IntN(len(points))].ID}
					points = slices.DeleteFunc(points, func(p repository.Point) bool { return p.ID != opts.Points[0] })
				}
				res, err := copies.Copy(t.Context(), s.repo, o.repo, machine.ID, opts)
				if err != nil {
					t.Fatalf("seed %d:%s\ncopy from %d: %v", seed, history, at, err)
				}
				replicas += res.Replicas
				has[1-at] = true
				for _, p := range points {
					if !o.gone[p.ID] {
						o.listed[p.ID] = true
					}
				}
				say = fmt.Sprintf("copy from %d: %.6s", at, res.Points)
			case n < 9 && len(s.listed) > 0:
				for _, p := range mustPoints(t, s.repo, machine.ID) {
					if draw.IntN(3) == 0 {
						if err := s.repo.Delete(t.Context(), machine.ID, p.ID, "test"); err != nil {
							t.Fatal(err)
						}
						delete(s.listed, p.ID)
						s.gone[p.ID] = true
						say += fmt.Sprintf("delete in %d: %.6s; ", at, p.ID)
					}
				}
			case has[at]:
				if err := reclaim(s.repo, machine.ID, draw.IntN(2) == 0); err != nil {
					t.Fatalf("seed %d:%s\nreclaim in %d: %v", seed, history, at, err)
				}
				say = fmt.Sprintf("reclaim in %d", at)
			}
			history += "\n" + say
			for i, s := range sides {
				if !has[i] {
					continue
				}
				s.repo = s.open(t)
				points := mustPoints(t, s.repo, machine.ID)
				if len(points) != len(s.listed) {
					t.Fatalf("seed %d:%s\nrepository %d lists %v, not %v", seed, history, i, ids(points), s.listed)
				}
				for _, p := range points {
					got, err := readPoint(s.repo, p)
					if err != nil || !bytes.Equal(got, images[p.ID]) {
						t.Fatalf("seed %d:%s\nrepository %d: recovery point %.6s: %v", seed, history, i, p.ID, err)
					}
				}
			}
		}
	}
	if replicas == 0 {
		t.Error("no copy met a fence")
	}
}

// reclaim sweeps a machine; everything says to give up what attempts left, too.
func reclaim(r *repository.Repository, mid string, everything bool) error {
	_, err := r.Reclaim(ctxBackground, mid, repository.ReclaimOptions{Unfinished: everything})
	return err
}
