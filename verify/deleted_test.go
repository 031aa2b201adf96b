package verify_test

import (
	"context"
	"slices"
	"testing"

	"github.com/lockstep-backup/lockstep/repository"
	"github.com/lockstep-backup/lockstep/verify"
)

// What is deleted while others are read is no damage; what is read has a lease,
// and so has what it is compared with.
func TestDeletedMeanwhile(t *testing.T) {
	w := newTwo(t)
	points := w.points[0]
	var held, all []string
	r := w.reader(t)
	defer r.Close()
	res, err := verify.Run(t.Context(), verify.Request{
		Repository: r, Points: points,
		Lease: func(_ context.Context, point string) (func(), error) {
			held, all = append(held, point), append(all, point)
			if len(held) > 2 {
				t.Errorf("%d leases at once", len(held))
			}
			if point == points[1].ID { // somebody without a lease comes first
				if err := w.repo.Delete(t.Context(), w.machines[0].ID, point, "test"); err != nil {
					t.Fatal(err)
				}
				if _, err := w.repo.Reclaim(t.Context(), w.machines[0].ID, repository.ReclaimOptions{}); err != nil {
					t.Fatal(err)
				}
			}
			return func() { held = slices.DeleteFunc(held, func(p string) bool { return p == point }) }, nil
		},
	})
	if err != nil || len(res.Damage) != 0 || res.Points != 3 {
		t.Errorf("%+v, %v", res, err)
	}
	if len(all) != 4 || len(held) != 0 {
		t.Errorf("leases: %v, left %v", all, held)
	}
}
