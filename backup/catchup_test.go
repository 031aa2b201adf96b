package backup_test

import (
	"context"
	"errors"
	"slices"
	"testing"

	"github.com/lockstep-backup/lockstep/backup"
	"github.com/lockstep-backup/lockstep/catalog"
	"github.com/lockstep-backup/lockstep/prove/provetest"
)

// lostRecords is a catalog whose recovery points cannot be recorded, as if the
// process had died right after the commit.
type lostRecords struct{ catalog.Points }

var errDied = errors.New("the process died")

func (lostRecords) Record(context.Context, catalog.Point) error { return errDied }

func TestCommittedPointsAreNeverLostToTheCatalog(t *testing.T) {
	e := provetest.New(t)
	m := e.Machine("web01", map[string]*provetest.Device{"vda": e.Encrypted("one")})
	first := e.Store1(m)

	d := e.BackupDeps()
	broken := *e.Catalog
	broken.Points = lostRecords{e.Catalog.Points}
	d.Catalog = &broken
	if _, err := backup.Run(t.Context(), d, backup.Request{Machine: m}); !errors.Is(err, errDied) {
		t.Fatalf("a record that is lost gives %v", err)
	}
	pending, err := backup.Pending(t.Context(), e.Catalog)
	if err != nil || len(pending) != 1 || pending[0].ID != m.ID {
		t.Fatalf("pending commits: %v, %v", pending, err)
	}

	added, err := backup.CatchUp(t.Context(), e.BackupDeps(), m)
	if err != nil || len(added) != 1 || added[0] == first {
		t.Fatalf("caught up with %v, %v", added, err)
	}
	if p, err := e.Catalog.Points.Get(t.Context(), added[0]); err != nil || p.Parent != first {
		t.Fatalf("the recovery point in the catalog: %+v, %v", p, err)
	}
	if pending, err = backup.Pending(t.Context(), e.Catalog); err != nil || len(pending) != 0 {
		t.Fatalf("pending commits afterwards: %v, %v", pending, err)
	}
	if again, err := backup.CatchUp(t.Context(), e.BackupDeps(), m); err != nil || len(again) != 0 {
		t.Fatalf("caught up twice: %v, %v", again, err)
	}
}

func TestNextBackupCatchesUp(t *testing.T) {
	e := provetest.New(t)
	m := e.Machine("web01", map[string]*provetest.Device{"vda": e.Encrypted("one")})
	d := e.BackupDeps()
	broken := *e.Catalog
	broken.Points = lostRecords{e.Catalog.Points}
	d.Catalog = &broken
	_, err := backup.Run(t.Context(), d, backup.Request{Machine: m})
	if !errors.Is(err, errDied) {
		t.Fatalf("a record that is lost gives %v", err)
	}
	res, err := backup.Run(t.Context(), e.BackupDeps(), backup.Request{Machine: m})
	if err != nil {
		t.Fatal(err)
	}
	if len(res.CaughtUp) != 1 || res.Point.Parent != res.CaughtUp[0] {
		t.Fatalf("caught up with %v, parent is %s", res.CaughtUp, res.Point.Parent)
	}
	points, err := e.Catalog.Points.List(t.Context(), catalog.PointQuery{Machine: m.ID})
	if err != nil || len(points) != 2 || !slices.IsSortedFunc(points, func(a, b catalog.Point) int { return int(a.Sequence - b.Sequence) }) {
		t.Fatalf("catalog lists %v, %v", points, err)
	}
}
