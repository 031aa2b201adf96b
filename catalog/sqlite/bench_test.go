package sqlite_test

import (
	"encoding/json"
	"fmt"
	"path/filepath"
	"strings"
	"testing"

	"github.com/lockstep-backup/lockstep/catalog"
	"github.com/lockstep-backup/lockstep/catalog/sqlite"
)

// A machine with three years of daily recovery points, as `status` reads it.
func BenchmarkList(b *testing.B) {
	c, err := sqlite.Open(b.Context(), filepath.Join(b.TempDir(), "catalog.db"), sqlite.Options{Create: true})
	if err != nil {
		b.Fatal(err)
	}
	defer c.Maintenance.Close()
	body, err := json.Marshal(strings.Repeat("x", 3000))
	if err != nil {
		b.Fatal(err)
	}
	err = c.Maintenance.Rebuild(b.Context(), func(c *catalog.Catalog) error {
		if err := c.Machines.Put(b.Context(), catalog.Machine{ID: "m", Name: "web"}); err != nil {
			return err
		}
		for i := range 1000 {
			p := catalog.Point{ID: fmt.Sprintf("%032x", i), Machine: "m", Sequence: int64(i)}
			for d := range 2 {
				p.Disks = append(p.Disks, catalog.PointDisk{
					Disk: fmt.Sprint("vd", d), Volumes: []catalog.Volume{{Volume: "p1", Body: body}, {Volume: "p2", Body: body}},
				})
			}
			if err := c.Points.Record(b.Context(), p); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		b.Fatal(err)
	}
	for b.Loop() {
		points, err := c.Points.List(b.Context(), catalog.PointQuery{Machine: "m"})
		if err != nil || len(points) != 1000 {
			b.Fatal(len(points), err)
		}
	}
}
