package verify_test

import (
	"errors"
	"strings"
	"testing"

	"github.com/lockstep-backup/lockstep/repository"
	"github.com/lockstep-backup/lockstep/verify"
)

// expected is what a catalog would know of all recovery points.
func (w *two) expected(t *testing.T) []verify.Expected {
	t.Helper()
	var out []verify.Expected
	for m := range w.points {
		for _, p := range w.points[m] {
			mf, err := w.repo.Manifest(t.Context(), p)
			if err != nil {
				t.Fatal(err)
			}
			e := verify.Expected{Machine: p.Machine, Point: p.ID, Sequence: p.Sequence, Roots: map[string]string{}}
			for _, d := range mf.Disks {
				e.Roots[d.ID] = d.ContentRoot
			}
			e.Objects = []string{w.key(t, "side/"+p.Machine+"/"+p.ID+"/")}
			out = append(out, e)
		}
	}
	return out
}

// TestWhatIsExpectedIsThere takes away what a repository alone does not miss.
func TestWhatIsExpectedIsThere(t *testing.T) {
	for _, c := range []struct {
		name   string
		change func(t *testing.T, w *two, e []verify.Expected)
		lost   []int // of the first machine's recovery points
		object string
	}{
		{"nothing", func(*testing.T, *two, []verify.Expected) {}, nil, ""},
		{"newest entries", func(t *testing.T, w *two, _ []verify.Expected) {
			for _, p := range w.points[0][2:] {
				remove(t, w, "log/"+p.Machine+"/000000000000000"+string(rune('0'+p.Sequence)))
			}
		}, []int{2, 3}, "log/"},
		{"the machine", func(t *testing.T, w *two, _ []verify.Expected) {
			for _, under := range []string{"log/", "points/", "seg/", "map/", "side/", "headers-a/", "headers-b/", "machines/", "copies/machines/"} {
				for _, key := range w.keys(t, under+w.machines[0].ID+"/") {
					remove(t, w, key)
				}
			}
		}, []int{0, 1, 2, 3}, "log/"},
		{"a statement", func(t *testing.T, w *two, e []verify.Expected) { remove(t, w, e[1].Objects[0]) }, []int{1}, "side/"},
		{"other contents", func(_ *testing.T, _ *two, e []verify.Expected) { e[2].Roots["vda"] = "00" }, []int{2}, "log/"},
		{"another disk", func(_ *testing.T, _ *two, e []verify.Expected) { e[2].Roots["vdz"] = "00" }, []int{2}, "log/"},
		{"another place in the log", func(_ *testing.T, _ *two, e []verify.Expected) { e[0].Sequence = 7 }, []int{0}, "log/"},
		{"deleted in the repository only", func(t *testing.T, w *two, e []verify.Expected) {
			if err := w.repo.Delete(t.Context(), e[1].Machine, e[1].Point, "test"); err != nil {
				t.Fatal(err)
			}
			remove(t, w, e[1].Objects[0])
		}, nil, ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			w := newTwo(t)
			e := w.expected(t)
			c.change(t, w, e)
			for _, all := range []bool{true, false} {
				// A process that runs for long has read the log before.
				for _, r := range []*repository.Repository{w.repo, w.reader(t)} {
					res, err := verify.Run(t.Context(), verify.Request{Repository: r, All: all, Expected: e})
					if err != nil {
						t.Fatal(err)
					}
					lost := map[string]bool{}
					for _, d := range res.Damage {
						if !strings.HasPrefix(d.Object, c.object) || d.Machine != w.machines[0].ID || !errors.Is(d.Err, repository.ErrDamaged) {
							t.Errorf("all %v: damage %+v", all, d)
						}
						for _, p := range d.Points {
							lost[p] = true
						}
					}
					if len(lost) != len(c.lost) {
						t.Errorf("all %v: %d recovery points are named, want %d: %+v", all, len(lost), len(c.lost), res.Damage)
					}
					for _, i := range c.lost {
						if !lost[w.points[0][i].ID] {
							t.Errorf("all %v: recovery point %d is not named", all, i)
						}
					}
				}
			}
		})
	}
}
