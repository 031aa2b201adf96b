package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/lockstep-backup/lockstep/audit"
	"github.com/lockstep-backup/lockstep/backup"
	"github.com/lockstep-backup/lockstep/catalog"
	"github.com/lockstep-backup/lockstep/catalog/sqlite"
	"github.com/lockstep-backup/lockstep/cmd/internal/hostos"
	"github.com/lockstep-backup/lockstep/cmd/internal/stores"
	"github.com/lockstep-backup/lockstep/custody/prover"
	"github.com/lockstep-backup/lockstep/disk"
	"github.com/lockstep-backup/lockstep/diskcrypt"
	"github.com/lockstep-backup/lockstep/diskcrypt/bitlocker"
	"github.com/lockstep-backup/lockstep/diskcrypt/luks"
	"github.com/lockstep-backup/lockstep/diskcrypt/plaindm"
	"github.com/lockstep-backup/lockstep/diskcrypt/veracrypt"
	"github.com/lockstep-backup/lockstep/envelope"
	"github.com/lockstep-backup/lockstep/job"
	"github.com/lockstep-backup/lockstep/keymanager"
	"github.com/lockstep-backup/lockstep/keymanager/embedded"
	"github.com/lockstep-backup/lockstep/repository"
	"github.com/lockstep-backup/lockstep/server"
	"github.com/lockstep-backup/lockstep/source"
	sourceimage "github.com/lockstep-backup/lockstep/source/image"
	"github.com/lockstep-backup/lockstep/source/nbd"
	"github.com/lockstep-backup/lockstep/source/nbd/qemunbd"
	"github.com/lockstep-backup/lockstep/store"
	"github.com/lockstep-backup/lockstep/target"
	targetimage "github.com/lockstep-backup/lockstep/target/image"
)

// formats are the kinds of encryption that this program reads.
func formats() []diskcrypt.Format {
	return []diskcrypt.Format{luks.Format{}, bitlocker.Format{}, veracrypt.Format{}, plaindm.Format{}}
}

// engine is an installation as one process has it open. What a command does
// not need is not opened: secrets can be read with the repository gone.
type engine struct {
	dir    dataDir
	config config
	log    *slog.Logger
	audit  *audit.Log
	prover *prover.Client

	catalog lazy[*catalog.Catalog]
	repos   repositories
	manager lazy[*embedded.Manager]
}

// lazy is something that is opened when it is first needed, and again after
// that failed.
type lazy[T any] struct {
	mu    sync.Mutex
	value T
	open  bool
}

func (l *lazy[T]) get(open func() (T, error)) (T, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.open {
		return l.value, nil
	}
	v, err := open()
	if err == nil {
		l.value, l.open = v, true
	}
	return v, err
}

// replace puts v in the place of what was open, and returns that.
func (l *lazy[T]) replace(v T) (old T, had bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	old, had = l.value, l.open
	l.value, l.open = v, true
	return old, had
}

// take closes the door: what was open is the caller's to close.
func (l *lazy[T]) take() (T, bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	v, had := l.value, l.open
	var zero T
	l.value, l.open = zero, false
	return v, had
}

func openEngine(dir dataDir, log *slog.Logger) (*engine, error) {
	c, err := dir.load()
	if err != nil {
		return nil, err
	}
	if err := dir.checkPrivate(); err != nil {
		return nil, err
	}
	e := &engine{dir: dir, config: c, log: log}
	custodian, err := envelope.ReadSigningKeyFile(dir.custodianKey())
	if err != nil {
		return nil, fmt.Errorf("open audit log: %w", err)
	}
	// The checkpoints of the audit log are the custodian's signatures.
	if e.audit, err = audit.Open(dir.audit(), custodian, envelope.KeySet{custodian.Public()}); err != nil {
		return nil, fmt.Errorf("open audit log: %w", err)
	}
	if head, err := e.audit.Head(context.Background()); err == nil && head.Size == 0 {
		log.Warn("the audit log is empty: it was removed, or restored without its content", "folder", dir.audit())
	}
	e.prover = prover.New(proverCommand(dir), log)
	return e, nil
}

func (e *engine) deps() server.Deps {
	return server.Deps{
		Catalog: e.openCatalog, Repository: e.openRepository, Repositories: places{e},
		Manager: func(context.Context) (keymanager.Manager, error) {
			m, err := e.openManager()
			if err != nil {
				return nil, err // not a nil manager in an interface
			}
			return m, nil
		},
		Custodian: func() (envelope.SigningKey, error) { return envelope.ReadSigningKeyFile(e.dir.custodianKey()) },
		Rebuild:   e.rebuild, Locked: e.locked,
		LockOf: e.lockOf, SetLock: e.setLock, Free: hostos.FreeSpace,
		Prover: e.prover, Recipients: e.config.Recipients, Audit: e.audit,
		OpenSource: openSource, OpenTarget: openTarget, Formats: formats(),
		Locks: job.NewLocks(e.dir.locks()), Installation: e.config.Installation,
		Software: software(),
		Actor:    localActor(), Log: e.log,
	}
}

// localActor is who acts where no server stands between.
func localActor() string { return fmt.Sprintf("uid:%d (in-process)", os.Getuid()) }

func (e *engine) openManager() (*embedded.Manager, error) {
	return e.manager.get(func() (*embedded.Manager, error) { return e.dir.openManager(e.config) })
}

func (e *engine) openCatalog(ctx context.Context) (*catalog.Catalog, error) {
	return e.catalog.get(func() (*catalog.Catalog, error) {
		ctx := context.WithoutCancel(ctx)
		c, err := sqlite.Open(ctx, e.dir.catalog(), sqlite.Options{Log: e.log})
		if err == nil {
			e.catchUp(ctx, c)
		}
		return c, err
	})
}

// catchUp records what a process that died had committed. Where it cannot, the
// next backup of the machine does.
func (e *engine) catchUp(ctx context.Context, c *catalog.Catalog) {
	pending, err := backup.Pending(ctx, c)
	if len(pending) > 0 && err == nil {
		var repo *repository.Repository
		if repo, err = e.openRepository(ctx); err == nil {
			for _, m := range pending {
				added, cerr := backup.CatchUp(ctx, backup.Deps{Repository: repo, Catalog: c, Log: e.log}, m)
				err = errors.Join(err, cerr)
				for _, point := range added {
					_, aerr := e.audit.Append(ctx, server.CaughtUp(m, point, localActor(), time.Now()))
					err = errors.Join(err, aerr)
				}
			}
		}
	}
	if err != nil {
		e.log.Warn("the catalog may lack a recovery point that was committed when a process died", "error", err)
	}
}

// rebuild fills the catalog anew, in the place of one that may be damaged, gone
// or deleted while it was open.
func (e *engine) rebuild(ctx context.Context, fill func(*catalog.Catalog) error) error {
	c, err := sqlite.Open(ctx, e.dir.catalog(), sqlite.Options{Rebuild: true, Log: e.log})
	if err != nil {
		return err
	}
	if err := fill(c); err != nil {
		return errors.Join(err, c.Maintenance.Close())
	}
	if old, had := e.catalog.replace(c); had {
		_ = old.Maintenance.Close() // it is superseded, whatever it has to say
	}
	return nil
}

// leftovers is how old a temporary file must be to be nobody's any more.
const leftovers = 24 * time.Hour

// tidy removes what killed writers left in the store, of a remote one once a
// day: there it costs a listing. That it cannot is no reason for not going on.
func (e *engine) tidy(ctx context.Context, st store.Store, c repositoryConfig) {
	cl, ok := stores.As[stores.Cleaner](st)
	if !ok {
		return
	}
	if _, local := localSpec(e.dir.repositoryURL(c)); !local {
		mark := filepath.Join(e.dir.cache(), c.ID+".tidied")
		if info, err := os.Stat(mark); err == nil && time.Since(info.ModTime()).Abs() < leftovers {
			return
		}
		err := os.MkdirAll(e.dir.cache(), 0o700)
		if err == nil {
			err = os.WriteFile(mark, []byte(time.Now().UTC().Format(time.RFC3339)+"\n"), 0o600)
		}
		if err != nil {
			e.log.Debug("it is not noted that the repository was tidied", "error", err)
		}
	}
	if n, err := cl.CleanTemp(ctx, leftovers); err != nil {
		e.log.Warn("temporary files could not be removed from the repository", "error", err)
	} else if n > 0 {
		e.log.Info("temporary files of killed writers are removed from the repository", "files", n)
	}
}

// unlock opens the repository with the host's identity, so that a backup needs
// no key manager; with the key manager's KEK where the identity is gone.
func (e *engine) unlock(ctx context.Context, st store.Store, o repository.OpenOptions) (*repository.Repository, error) {
	identity, err := envelope.ReadSecretFile(e.dir.hostIdentity(), false, nil)
	defer identity.Wipe()
	if err == nil {
		o.Unlock.Identities = identity
		repo, err := repository.Open(ctx, st, o)
		if err == nil || !errors.Is(err, repository.ErrNoKey) {
			return repo, err
		}
		e.log.Warn("the host's identity does not open the repository; trying the key manager", "error", err)
	} else {
		e.log.Warn("the host's identity cannot be read; trying the key manager", "error", err)
	}
	m, merr := e.openManager()
	if merr != nil {
		return nil, errors.Join(repository.ErrNoKey, err, merr)
	}
	o.Unlock = repository.Unlocker{KEKs: []envelope.KEK{m}}
	return repository.Open(ctx, st, o)
}

// close ends the prover, wipes keys and closes files.
func (e *engine) close() error {
	errs := []error{e.prover.Close()}
	if c, had := e.catalog.take(); had {
		errs = append(errs, c.Maintenance.Close())
	}
	errs = append(errs, e.repos.close())
	if m, had := e.manager.take(); had {
		errs = append(errs, m.Close())
	}
	return errors.Join(errs...)
}

// localSpec says whether a spec is a path or file URL; other schemes are named
// in the error, without the rest, which may hold a password.
func localSpec(spec string) (scheme string, local bool) {
	scheme, _, isURL := strings.Cut(spec, "://")
	if !isURL || strings.ContainsAny(scheme, `/\`) || strings.EqualFold(scheme, "file") {
		return "", true
	}
	if u, err := url.Parse(scheme + "://"); err == nil && u.Scheme != "" {
		scheme = u.Scheme
	}
	return scheme, false
}

func openSource(ctx context.Context, spec string, o source.Options) (source.Disk, error) {
	if nbd.IsURL(spec) {
		return nbd.Opener{}.Open(ctx, spec, o)
	}
	if scheme, local := localSpec(spec); !local {
		return nil, fmt.Errorf("open source: %s sources are not available in this version (image files, block devices and NBD exports are): %w", scheme, source.ErrUnsupported)
	}
	// The format is what the user says, never what the disk's content looks like.
	if _, query, err := disk.LocalPath(spec); err == nil && slices.Contains(qemunbd.Formats, query.Get("format")) {
		return qemunbd.Opener{}.Open(ctx, spec, o)
	}
	return sourceimage.Opener{}.Open(ctx, spec, o)
}

func openTarget(ctx context.Context, spec string, size int64, o target.Options) (target.Disk, error) {
	if scheme, local := localSpec(spec); !local {
		return nil, fmt.Errorf("open target: %s targets are not available in this version (image files and block devices are): %w", scheme, target.ErrNotNamed)
	}
	return targetimage.Opener{}.Open(ctx, spec, size, o)
}
