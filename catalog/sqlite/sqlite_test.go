package sqlite_test

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/lockstep-backup/lockstep/catalog"
	"github.com/lockstep-backup/lockstep/catalog/catalogtest"
	"github.com/lockstep-backup/lockstep/catalog/sqlite"
)

func TestConformance(t *testing.T) {
	catalogtest.Run(t, func(tb testing.TB) catalogtest.Open {
		path := filepath.Join(tb.TempDir(), "catalog.db")
		return func(tb testing.TB) *catalog.Catalog {
			tb.Helper()
			c, err := sqlite.Open(tb.Context(), path, sqlite.Options{Create: true})
			if err != nil {
				tb.Fatal(err)
			}
			return c
		}
	})
}

func create(t *testing.T, path string) *catalog.Catalog {
	t.Helper()
	c, err := sqlite.Open(t.Context(), path, sqlite.Options{Create: true})
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// filled makes a catalog with enough rows for several pages, and closes it.
func filled(t *testing.T, path string) {
	t.Helper()
	c := create(t, path)
	for i := range 200 {
		m := catalog.Machine{ID: fmt.Sprint("m", i), Name: fmt.Sprint("name", i), Disks: []catalog.MachineDisk{{ID: "vda", Source: strings.Repeat("x", 200)}}}
		if err := c.Machines.Put(t.Context(), m); err != nil {
			t.Fatal(err)
		}
	}
	if err := c.Maintenance.Close(); err != nil {
		t.Fatal(err)
	}
}

func TestOpenRefuses(t *testing.T) {
	for _, k := range []struct {
		name string
		harm func(t *testing.T, path string)
		want error
	}{
		{"missing", func(t *testing.T, path string) { must(t, os.Remove(path)) }, catalog.ErrMissing},
		{"empty", func(t *testing.T, path string) { must(t, os.Truncate(path, 0)) }, catalog.ErrDamaged},
		{"half", func(t *testing.T, path string) { truncate(t, path, 2) }, catalog.ErrDamaged},
		{"garbage", func(t *testing.T, path string) {
			must(t, os.WriteFile(path, []byte(strings.Repeat("garbage ", 4096)), 0o600))
		}, catalog.ErrDamaged},
		{"header flipped", func(t *testing.T, path string) { overwrite(t, path, 0, "Not a database!!") }, catalog.ErrDamaged},
		{"page overwritten", func(t *testing.T, path string) {
			overwrite(t, path, 8192, strings.Repeat("\xff", 3*4096))
		}, catalog.ErrDamaged},
		{"folder", func(t *testing.T, path string) { must(t, os.Remove(path)); must(t, os.Mkdir(path, 0o700)) }, catalog.ErrDamaged},
		{"newer schema", func(t *testing.T, path string) {
			run(t, path, `INSERT INTO schema_version (version_id, is_applied) VALUES (99, 1)`)
		}, catalog.ErrNewer},
		{"another database", func(t *testing.T, path string) {
			must(t, os.Remove(path))
			run(t, path, `CREATE TABLE t (x)`)
		}, catalog.ErrDamaged},
	} {
		t.Run(k.name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "catalog.db")
			filled(t, path)
			k.harm(t, path)
			c, err := sqlite.Open(t.Context(), path, sqlite.Options{})
			if err == nil {
				c.Maintenance.Close()
				t.Fatal("opened")
			}
			var u *catalog.UnusableError
			if !errors.As(err, &u) || !errors.Is(err, k.want) {
				t.Fatalf("error %v (%T), want %v", err, err, k.want)
			}
			if !strings.Contains(u.Error(), path) {
				t.Errorf("error does not name the file: %v", u)
			}
			wantHint := "catalog rebuild"
			if k.want == catalog.ErrNewer {
				wantHint = "version"
			}
			if !strings.Contains(u.Hint(), wantHint) {
				t.Errorf("hint %q does not name %q", u.Hint(), wantHint)
			}
		})
	}
}

func TestNewerSchemaIsNeverRebuiltOver(t *testing.T) {
	path := filepath.Join(t.TempDir(), "catalog.db")
	filled(t, path)
	run(t, path, `INSERT INTO schema_version (version_id, is_applied) VALUES (99, 1)`)
	if _, err := sqlite.Open(t.Context(), path, sqlite.Options{Rebuild: true}); !errors.Is(err, catalog.ErrNewer) {
		t.Fatalf("error %v, want %v", err, catalog.ErrNewer)
	}
}

// Rows that SQLite finds sound and we cannot read are damage too.
func TestDamagedRow(t *testing.T) {
	path := filepath.Join(t.TempDir(), "catalog.db")
	filled(t, path)
	for _, set := range []string{`created = 'Tuesday'`, `disks = '{'`} {
		run(t, path, `UPDATE machines SET `+set+` WHERE id = 'm7'`)
		c, err := sqlite.Open(t.Context(), path, sqlite.Options{})
		if err != nil {
			t.Fatal(err)
		}
		var u *catalog.UnusableError
		if _, err := c.Machines.Get(t.Context(), "m7"); !errors.As(err, &u) || !errors.Is(err, catalog.ErrDamaged) {
			t.Errorf("%s: error %v, want %v", set, err, catalog.ErrDamaged)
		}
		must(t, c.Maintenance.Close())
	}
}

func TestCheckFindsOrphans(t *testing.T) {
	path := filepath.Join(t.TempDir(), "catalog.db")
	filled(t, path)
	run(t, path, `INSERT INTO job_events (job, n, time, body) VALUES ('none', 1, '', '{}')`)
	c, err := sqlite.Open(t.Context(), path, sqlite.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Maintenance.Close()
	if err := c.Maintenance.Check(t.Context()); !errors.Is(err, catalog.ErrDamaged) {
		t.Fatalf("error %v, want %v", err, catalog.ErrDamaged)
	}
}

func TestRebuildOfMissingAndDamaged(t *testing.T) {
	for _, k := range []struct {
		name string
		harm func(t *testing.T, path string)
		kept bool
	}{
		{"missing", func(t *testing.T, path string) { must(t, os.Remove(path)) }, false},
		{"damaged", func(t *testing.T, path string) { overwrite(t, path, 0, "Not a database!!") }, true},
	} {
		t.Run(k.name, func(t *testing.T) {
			dir := t.TempDir()
			path := filepath.Join(dir, "catalog.db")
			filled(t, path)
			k.harm(t, path)
			c, err := sqlite.Open(t.Context(), path, sqlite.Options{Rebuild: true})
			if err != nil {
				t.Fatal(err)
			}
			// A rebuild that was killed here must not pass for an empty catalog.
			if _, err := sqlite.Open(t.Context(), path, sqlite.Options{}); !errors.Is(err, catalog.ErrIncomplete) {
				t.Fatalf("error %v, want %v", err, catalog.ErrIncomplete)
			}
			must(t, c.Maintenance.Rebuild(t.Context(), func(c *catalog.Catalog) error {
				return c.Machines.Put(t.Context(), catalog.Machine{ID: "m", Name: "back"})
			}))
			must(t, c.Maintenance.Close())
			c, err = sqlite.Open(t.Context(), path, sqlite.Options{})
			if err != nil {
				t.Fatal(err)
			}
			defer c.Maintenance.Close()
			if _, err := c.Machines.ByName(t.Context(), "back"); err != nil {
				t.Fatal(err)
			}
			old, err := filepath.Glob(path + ".damaged-*")
			must(t, err)
			if (len(old) > 0) != k.kept {
				t.Errorf("set aside: %v", old)
			}
		})
	}
}

// Of a catalog whose file was deleted while it was in use, the log is left. It
// must not come back to life in a new file.
func TestLogOfADeletedCatalog(t *testing.T) {
	path := filepath.Join(t.TempDir(), "catalog.db")
	c := create(t, path)
	must(t, c.Machines.Put(t.Context(), catalog.Machine{ID: "m", Name: "old"}))
	log, err := os.ReadFile(path + "-wal")
	must(t, err)
	must(t, c.Maintenance.Close())
	must(t, os.Remove(path))
	must(t, os.WriteFile(path+"-wal", log, 0o600))

	for _, o := range []sqlite.Options{{}, {Create: true}} {
		var u *catalog.UnusableError
		if c, err := sqlite.Open(t.Context(), path, o); !errors.As(err, &u) {
			t.Fatalf("%+v: %v, %v", o, c, err)
		}
	}
	c, err = sqlite.Open(t.Context(), path, sqlite.Options{Rebuild: true})
	must(t, err)
	defer c.Maintenance.Close()
	if _, err := c.Machines.ByName(t.Context(), "old"); !errors.Is(err, catalog.ErrNotFound) {
		t.Errorf("the old log was played: %v", err)
	}
}

func TestManyOpenANewCatalogAtOnce(t *testing.T) {
	path := filepath.Join(t.TempDir(), "catalog.db")
	var wg sync.WaitGroup
	for i := range 6 {
		wg.Go(func() {
			c, err := sqlite.Open(t.Context(), path, sqlite.Options{Create: true})
			if err != nil {
				t.Error(err)
				return
			}
			defer c.Maintenance.Close()
			if err := c.Meta.Set(t.Context(), fmt.Sprint(i), "x"); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
}

func TestOddPathAndMode(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "a b?c#d%20é&_pragma=journal_mode(OFF)")
	must(t, os.Mkdir(dir, 0o700))
	path := filepath.Join(dir, "catalog.db")
	filled(t, path)
	info, err := os.Stat(path)
	must(t, err)
	if info.Mode().Perm() != 0o600 {
		t.Errorf("mode %v, want 0600", info.Mode().Perm())
	}
	entries, err := os.ReadDir(dir)
	must(t, err)
	for _, e := range entries {
		if !strings.HasPrefix(e.Name(), "catalog.db") {
			t.Errorf("stray file %q", e.Name())
		}
	}
}

// A process that is killed in the middle of writing loses nothing that a call
// returned from, and leaves a sound file.
func TestKill(t *testing.T) {
	path := filepath.Join(t.TempDir(), "catalog.db")
	must(t, create(t, path).Maintenance.Close())
	for round := range 4 {
		cmd := exec.CommandContext(t.Context(), os.Args[0], "-test.run=^TestKillVictim$")
		cmd.Env = append(os.Environ(), "LOCKSTEP_CATALOG_VICTIM="+path, fmt.Sprint("LOCKSTEP_CATALOG_ROUND=", round))
		out, err := cmd.StdoutPipe()
		must(t, err)
		must(t, cmd.Start())
		var last string
		for range 15 + round*7 {
			if _, err := fmt.Fscanln(out, &last); err != nil {
				t.Fatalf("read from victim: %v", err)
			}
		}
		must(t, cmd.Process.Kill())
		_ = cmd.Wait() // killed, as it should be
		c, err := sqlite.Open(t.Context(), path, sqlite.Options{})
		if err != nil {
			t.Fatal(err)
		}
		must(t, c.Maintenance.Check(t.Context()))
		if v, err := c.Meta.Get(t.Context(), last); err != nil || v != "written" {
			t.Errorf("%s was lost: %q, %v", last, v, err)
		}
		must(t, c.Maintenance.Close())
	}
}

func TestKillVictim(t *testing.T) {
	path := os.Getenv("LOCKSTEP_CATALOG_VICTIM")
	if path == "" {
		t.Skip("runs as the child of TestKill")
	}
	c, err := sqlite.Open(t.Context(), path, sqlite.Options{})
	if err != nil {
		t.Fatal(err)
	}
	for i := range 1 << 20 {
		key := fmt.Sprintf("%s-%d", os.Getenv("LOCKSTEP_CATALOG_ROUND"), i)
		if err := c.Meta.Set(context.Background(), key, "written"); err != nil {
			t.Fatal(err)
		}
		fmt.Println(key)
	}
}

func TestTimesSortAsText(t *testing.T) {
	c := create(t, filepath.Join(t.TempDir(), "catalog.db"))
	defer c.Maintenance.Close()
	base := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	want := []time.Time{base, base.Add(time.Nanosecond), base.Add(time.Second / 10), base.Add(time.Second)}
	for i := len(want) - 1; i >= 0; i-- {
		must(t, c.Proofs.Put(t.Context(), catalog.Proof{Key: fmt.Sprint(i), Point: "p", Time: want[i].In(time.FixedZone("", 3600*(i-2)))}))
	}
	got, err := c.Proofs.OfPoint(t.Context(), "p")
	must(t, err)
	for i := range want {
		if !got[i].Time.Equal(want[i]) {
			t.Fatalf("place %d holds %v, want %v", i, got[i].Time, want[i])
		}
	}
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func truncate(t *testing.T, path string, parts int64) {
	t.Helper()
	info, err := os.Stat(path)
	must(t, err)
	must(t, os.Truncate(path, info.Size()/parts))
}

func overwrite(t *testing.T, path string, off int64, with string) {
	t.Helper()
	f, err := os.OpenFile(path, os.O_WRONLY, 0)
	must(t, err)
	_, err = f.WriteAt([]byte(with), off)
	must(t, err)
	must(t, f.Close())
}

// run runs SQL on the file behind the catalog's back.
func run(t *testing.T, path, query string) {
	t.Helper()
	db, err := sql.Open("sqlite", path)
	must(t, err)
	_, err = db.ExecContext(t.Context(), query)
	must(t, err)
	must(t, db.Close())
}

// A catalog of an earlier version is brought up to date with all that it holds.
func TestMigratesAnEarlierCatalog(t *testing.T) {
	path := filepath.Join(t.TempDir(), "catalog.db")
	filled(t, path)
	for _, s := range []string{`DROP TABLE readings`, `DROP TABLE marks`, `DROP TABLE policies`, `ALTER TABLE proofs DROP COLUMN vkproof`, `DELETE FROM schema_version WHERE version_id > 1`} {
		run(t, path, s)
	}
	c, err := sqlite.Open(t.Context(), path, sqlite.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Maintenance.Close()
	if _, err := c.Machines.Get(t.Context(), "m7"); err != nil {
		t.Error(err)
	}
	if err := c.Policies.Put(t.Context(), "m7", []byte(`{}`)); err != nil {
		t.Error(err)
	}
	if got, err := c.Marks.OfMachine(t.Context(), "m7"); err != nil || len(got) != 0 {
		t.Errorf("%v, %v", got, err)
	}
}
