package backup_test

import (
	"errors"
	"slices"
	"strings"
	"testing"

	"github.com/lockstep-backup/lockstep/backup"
	"github.com/lockstep-backup/lockstep/prove/provetest"
	"github.com/lockstep-backup/lockstep/repository"
	"github.com/lockstep-backup/lockstep/store"
)

func TestLostRecoveryPointsAreNoticed(t *testing.T) {
	for _, c := range []struct {
		name string
		cut  func(e *provetest.Env, machine string)
		lost int // the newest of three
	}{
		{"none", func(*provetest.Env, string) {}, 0},
		{"log cut off", func(e *provetest.Env, machine string) {
			e.Must(e.Store.Delete(e.T.Context(), "log/"+machine+"/0000000000000002"))
		}, 1},
		{"machine gone", func(e *provetest.Env, machine string) {
			var keys []string
			e.Must(e.Store.List(e.T.Context(), "", func(i store.Info) error {
				if strings.Contains(i.Key, machine) {
					keys = append(keys, i.Key)
				}
				return nil
			}))
			for _, key := range keys {
				e.Must(e.Store.Delete(e.T.Context(), key))
			}
		}, 3},
		{"deleted, and the catalog not told", func(e *provetest.Env, machine string) {
			points, err := e.Repo.Points(e.T.Context(), machine)
			e.Must(err)
			e.Must(e.Repo.Delete(e.T.Context(), machine, points[2].ID, "test"))
		}, 0},
	} {
		t.Run(c.name, func(t *testing.T) {
			e := provetest.New(t)
			m := e.Machine("web01", map[string]*provetest.Device{"vda": e.Encrypted("one")})
			ids := []string{e.Store1(m), e.Store1(m), e.Store1(m)}
			c.cut(e, m.ID)
			d := e.BackupDeps()
			d.Repository = e.OpenRepo()
			for range 2 { // it is said until somebody mends it
				res, err := backup.Run(t.Context(), d, backup.Request{Machine: m})
				if err != nil {
					t.Fatal(err)
				}
				if !slices.Equal(res.Lost, ids[3-c.lost:]) {
					t.Errorf("lost %v of %v, want %d", res.Lost, ids, c.lost)
				}
				warned := slices.ContainsFunc(res.Warnings, func(w string) bool { return strings.Contains(w, "the repository lost") })
				if warned != (c.lost > 0) {
					t.Errorf("warnings: %q", res.Warnings)
				}
				if _, err := d.Repository.CheckCommitted(t.Context(), m.ID, res.Point.ID); err != nil {
					t.Errorf("the new recovery point: %v", err)
				}
			}
			if _, err := d.Repository.CheckCommitted(t.Context(), m.ID, repository.NewPointID()); !errors.Is(err, repository.ErrNotFound) {
				t.Errorf("a recovery point that never was: %v", err)
			}
		})
	}
}
