// Package sqlite keeps the catalog in one SQLite file, which several processes
// may have open. It is an adapter of package catalog and the only place that
// imports the driver.
//
// Its invariant: a write that returned is on the disk (write-ahead log,
// synchronous=FULL), and a file that cannot be trusted is refused with what to
// do about it, never repaired in silence.
package sqlite

import (
	"context"
	"database/sql"
	"embed"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/pressly/goose/v3"
	"github.com/pressly/goose/v3/database"
	"modernc.org/sqlite"

	"github.com/lockstep-backup/lockstep/catalog"
)

//go:embed migrations/*.sql
var migrations embed.FS

const (
	versionTable = "schema_version"
	// rebuildMark is the meta key that is set from the making of a file for a
	// rebuild to the rebuild's commit.
	rebuildMark = "rebuild-pending"
	// checkBytes bounds the files that Open reads through; larger ones are
	// checked by Maintenance.Check and by whatever reads them.
	checkBytes = 8 << 20
)

// Options for Open.
type Options struct {
	// Create makes a new catalog where there is no file.
	Create bool
	// Rebuild opens for a rebuild: a missing file is made, a damaged one set
	// aside (PATH.damaged-TIME). Until Maintenance.Rebuild commits, other opens
	// of a file made so are refused with catalog.ErrIncomplete.
	Rebuild bool
	// Log may be nil.
	Log *slog.Logger
}

// Open opens the catalog in the file path. Where it cannot be used the error is
// a *catalog.UnusableError.
func Open(ctx context.Context, path string, o Options) (*catalog.Catalog, error) {
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	abs, err := filepath.Abs(path)
	if err != nil {
		return nil, fmt.Errorf("open catalog: %w", err)
	}
	c, err := open(ctx, abs, o)
	if o.Rebuild && errors.Is(err, catalog.ErrDamaged) {
		if err := setAside(abs, o.Log); err != nil {
			return nil, fmt.Errorf("set damaged catalog aside: %w", err)
		}
		c, err = open(ctx, abs, o)
	}
	return c, err
}

func open(ctx context.Context, path string, o Options) (*catalog.Catalog, error) {
	info, err := os.Stat(path)
	fresh := errors.Is(err, fs.ErrNotExist)
	switch {
	case fresh && !o.Create && !o.Rebuild:
		return nil, &catalog.UnusableError{Path: path, Reason: catalog.ErrMissing}
	case err != nil && !fresh:
		return nil, fmt.Errorf("open catalog: %w", err)
	case !fresh && !info.Mode().IsRegular():
		return nil, &catalog.UnusableError{Path: path, Reason: catalog.ErrDamaged, Err: errors.New("not a regular file")}
	}
	if !fresh && info.Size() == 0 && !o.Create {
		// SQLite takes an empty file for a new database. Here it is what is
		// left of one, unless another process is just making it.
		if _, err := os.Stat(path + "-wal"); err != nil {
			return nil, &catalog.UnusableError{Path: path, Reason: catalog.ErrDamaged, Err: errors.New("file is empty")}
		}
	}
	if fresh {
		// SQLite would play an old log into the new file.
		if err := noLeftovers(path, o); err != nil {
			return nil, err
		}
		// The file is made here for its mode; SQLite gives its -wal and -shm the same.
		f, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR, 0o600)
		if err != nil {
			return nil, fmt.Errorf("create catalog: %w", err)
		}
		if err := f.Close(); err != nil {
			return nil, fmt.Errorf("create catalog: %w", err)
		}
	}
	db, err := sql.Open("sqlite", dsn(path))
	if err != nil {
		return nil, fmt.Errorf("open catalog: %w", err)
	}
	s := &shared{db: db, path: path, log: o.Log}
	if err := s.prepare(ctx, fresh, o); err != nil {
		db.Close()
		return nil, s.unusable(err)
	}
	return s.catalog(db), nil
}

func dsn(path string) string {
	q := url.Values{}
	q.Add("_pragma", "busy_timeout(15000)")
	q.Add("_pragma", "journal_mode(WAL)")
	q.Add("_pragma", "synchronous(FULL)")
	q.Add("_pragma", "foreign_keys(1)")
	q.Add("_pragma", "trusted_schema(0)")
	// A transaction that begins by reading and then writes cannot wait for
	// another writer; one that takes the write lock at once can.
	q.Add("_txlock", "immediate")
	path = filepath.ToSlash(path)
	if path[0] != '/' { // C:/… on Windows
		path = "/" + path
	}
	return (&url.URL{Scheme: "file", Path: path, RawQuery: q.Encode()}).String()
}

// shared is what the parts of one open catalog have in common.
type shared struct {
	db   *sql.DB
	path string
	log  *slog.Logger
}

func (s *shared) catalog(q querier) *catalog.Catalog {
	x := session{shared: s, q: q}
	return &catalog.Catalog{
		Machines:     machines{x},
		Repositories: repositories{x},
		Points:       points{x},
		Proofs:       proofs{x},
		Packages:     packages{x},
		Declarations: declarations{x},
		Marks:        marks{x},
		Policies:     policies{x},
		Readings:     readings{x},
		Jobs:         jobs{x},
		Meta:         meta{x},
		Maintenance:  maintenance{x},
	}
}

// prepare checks the file and brings its schema up to date.
func (s *shared) prepare(ctx context.Context, fresh bool, o Options) error {
	if err := s.connect(ctx); err != nil {
		return err
	}
	if info, err := os.Stat(s.path); err == nil && !fresh && info.Size() <= checkBytes {
		if err := check(ctx, s.db, "PRAGMA quick_check(1)"); err != nil {
			return err
		}
	}
	if err := s.migrate(ctx, fresh || o.Create); err != nil {
		return err
	}
	m := meta{session{shared: s, q: s.db}}
	if fresh && o.Rebuild && !o.Create {
		return m.Set(ctx, rebuildMark, "1")
	}
	if o.Rebuild {
		return nil
	}
	mark, err := m.Get(ctx, rebuildMark)
	if err != nil {
		return err
	}
	if mark != "" {
		return &catalog.UnusableError{Path: s.path, Reason: catalog.ErrIncomplete}
	}
	return nil
}

// connect makes the first connection. Turning the write-ahead log on needs the
// file for itself for an instant, which SQLite does not wait for: when several
// processes open a new catalog at once, all but one are told it is busy.
func (s *shared) connect(ctx context.Context) error {
	var err error
	for attempt := range 50 {
		if err = s.db.PingContext(ctx); !isBusy(err) {
			return err
		}
		if err := pause(ctx, attempt); err != nil {
			return err
		}
	}
	return err
}

func pause(ctx context.Context, attempt int) error {
	t := time.NewTimer(min(time.Duration(attempt+1)*5*time.Millisecond, 200*time.Millisecond))
	defer t.Stop()
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-t.C:
		return nil
	}
}

// migrate applies the migrations that are missing. A file without a schema is
// what is left of a catalog unless it may be created.
func (s *shared) migrate(ctx context.Context, create bool) error {
	sub, err := fs.Sub(migrations, "migrations")
	if err != nil {
		return err
	}
	store, err := database.NewStore(database.DialectSQLite3, versionTable)
	if err != nil {
		return err
	}
	p, err := goose.NewProvider(goose.DialectCustom, s.db, sub,
		goose.WithStore(store), goose.WithDisableGlobalRegistry(true), goose.WithSlog(s.log))
	if err != nil {
		return fmt.Errorf("read migrations: %w", err)
	}
	target := p.ListSources()[len(p.ListSources())-1].Version
	for attempt := 0; ; attempt++ {
		have, err := s.version(ctx)
		if err != nil {
			return err
		}
		switch {
		case have == target:
			return nil
		case have > target:
			return &catalog.UnusableError{
				Path: s.path, Reason: catalog.ErrNewer,
				Err: fmt.Errorf("its schema is version %d, this program knows up to %d", have, target),
			}
		case have == 0 && !create:
			// Another process may be between making the file and its tables.
			if attempt >= 20 {
				return &catalog.UnusableError{Path: s.path, Reason: catalog.ErrDamaged, Err: errors.New("it has no tables")}
			}
		default:
			// Two processes may get here together: one applies, the other finds
			// tables that exist, rolls back, and looks again.
			if _, err = p.Up(ctx); err == nil {
				continue
			}
			if attempt >= 20 {
				return fmt.Errorf("migrate catalog: %w", err)
			}
		}
		if err := pause(ctx, attempt); err != nil {
			return err
		}
	}
}

// version is the schema version of the file, 0 where it has no tables.
func (s *shared) version(ctx context.Context) (int64, error) {
	var n int64
	err := s.db.QueryRowContext(ctx, `SELECT COUNT(*) FROM sqlite_master WHERE type = 'table' AND name = ?`, versionTable).Scan(&n)
	if err != nil || n == 0 {
		return 0, err
	}
	err = s.db.QueryRowContext(ctx, `SELECT COALESCE(MAX(version_id), 0) FROM `+versionTable+` WHERE is_applied`).Scan(&n)
	return n, err
}

// Primary result codes of SQLite, https://www.sqlite.org/rescode.html; an
// extended code has its primary one in the low byte.
const (
	codeBusy    = 5
	codeCorrupt = 11
	codeNotADB  = 26

	codeForeignKey = 787  // SQLITE_CONSTRAINT_FOREIGNKEY
	codeUnique     = 2067 // SQLITE_CONSTRAINT_UNIQUE
)

func code(err error) int {
	var e *sqlite.Error
	if errors.As(err, &e) {
		return e.Code()
	}
	return 0
}

func isBusy(err error) bool { return code(err)&0xff == codeBusy }

// unusable turns what SQLite says about a damaged file into an UnusableError.
func (s *shared) unusable(err error) error {
	var u *catalog.UnusableError
	if err == nil || errors.As(err, &u) {
		return err
	}
	var d errDamage
	if c := code(err) & 0xff; c == codeCorrupt || c == codeNotADB || errors.As(err, &d) {
		return &catalog.UnusableError{Path: s.path, Reason: catalog.ErrDamaged, Err: err}
	}
	return err
}

// check runs one of SQLite's checks, which answer with the row "ok".
func check(ctx context.Context, db *sql.DB, pragma string) error {
	var said string
	if err := db.QueryRowContext(ctx, pragma).Scan(&said); err != nil {
		return err
	}
	if said != "ok" {
		return errDamage(said)
	}
	return nil
}

// errDamage is damage that we found, or SQLite in its own words.
type errDamage string

func (e errDamage) Error() string { return strings.Join(strings.Fields(string(e)), " ") }

// noLeftovers sees to it that a new catalog does not meet the log of an old one.
func noLeftovers(path string, o Options) error {
	for _, ext := range []string{"-wal", "-shm"} {
		if _, err := os.Lstat(path + ext); err != nil {
			continue
		}
		if _, err := os.Stat(path); err == nil {
			return nil // another process made it meanwhile, and its log
		}
		if !o.Rebuild {
			return &catalog.UnusableError{
				Path: path, Reason: catalog.ErrDamaged,
				Err: errors.New("the file is gone, its " + ext + " file is there"),
			}
		}
		if err := setAside(path, o.Log); err != nil {
			return fmt.Errorf("set damaged catalog aside: %w", err)
		}
	}
	return nil
}

// setAside renames a damaged catalog with its companions, so that nothing is
// lost that somebody may still want to look at.
func setAside(path string, log *slog.Logger) error {
	suffix := ".damaged-" + time.Now().UTC().Format("20060102T150405.000000000Z")
	for _, ext := range []string{"-wal", "-shm", ""} {
		err := os.Rename(path+ext, path+suffix+ext)
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	log.Warn("damaged catalog was set aside", "to", path+suffix)
	return nil
}
