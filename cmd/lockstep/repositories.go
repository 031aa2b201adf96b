package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/lockstep-backup/lockstep/api"
	"github.com/lockstep-backup/lockstep/catalog"
	"github.com/lockstep-backup/lockstep/cli"
	"github.com/lockstep-backup/lockstep/cmd/internal/stores"
	"github.com/lockstep-backup/lockstep/envelope"
	"github.com/lockstep-backup/lockstep/kit"
	"github.com/lockstep-backup/lockstep/limit"
	"github.com/lockstep-backup/lockstep/repository"
	"github.com/lockstep-backup/lockstep/repository/format"
	"github.com/lockstep-backup/lockstep/server"
	"github.com/lockstep-backup/lockstep/store"
)

// repositories are the open ones, by id. What was opened stays open: jobs may
// read it.
type repositories struct {
	mu   sync.Mutex // of the configuration's repositories, too
	open map[string]*openRepository
}

type openRepository struct {
	lazy   lazy[*repository.Repository]
	store  openedStore
	writer *envelope.SigningKey
}

func (r *repositories) of(id string) *openRepository {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.open == nil {
		r.open = map[string]*openRepository{}
	}
	if r.open[id] == nil {
		r.open[id] = &openRepository{}
	}
	return r.open[id]
}

func (r *repositories) close() error {
	r.mu.Lock()
	defer r.mu.Unlock()
	var errs []error
	for _, o := range r.open {
		if repo, had := o.lazy.take(); had {
			errs = append(errs, repo.Close(), o.store.Close())
			if o.writer != nil {
				o.writer.Wipe()
			}
		}
	}
	return errors.Join(errs...)
}

// mainName is what the first repository is called.
const mainName = "main"

func (c repositoryConfig) name() string { return cmp.Or(c.Name, mainName) }

// repositoryConfigs are all, the one that is written first.
func (e *engine) repositoryConfigs() []repositoryConfig {
	e.repos.mu.Lock()
	defer e.repos.mu.Unlock()
	return append([]repositoryConfig{e.config.Repository}, e.config.Others...)
}

func (e *engine) openRepository(ctx context.Context) (*repository.Repository, error) {
	return e.openOne(ctx, e.repositoryConfigs()[0], true)
}

// openOne opens a repository with the host's identity. One in which this
// installation's signatures do not count can be read, unless it is the one
// that backups write to.
func (e *engine) openOne(ctx context.Context, c repositoryConfig, primary bool) (*repository.Repository, error) {
	o := e.repos.of(c.ID)
	return o.lazy.get(func() (*repository.Repository, error) {
		st, err := e.openStore(ctx, c)
		if err != nil {
			return nil, fmt.Errorf("open repository: %w", err)
		}
		options := repository.OpenOptions{TrustRoot: c.TrustRoot, Log: e.log, Lock: c.lockPolicy()}
		writer, err := envelope.ReadSigningKeyFile(e.dir.writerKey())
		if err == nil {
			options.Writer = &writer
		} else {
			// Who restores or verifies does not sign anything.
			options.ReadOnly = cli.WithHint(fmt.Errorf("writer key: %w", err),
				"bring it back from a backup of the data directory, and start the server again where there is one; what is stored can be read, proven and restored meanwhile")
		}
		repo, err := e.unlock(context.WithoutCancel(ctx), limit.Store(st), options)
		if !primary && errors.Is(err, repository.ErrUntrusted) && !errors.Is(err, repository.ErrDamaged) && options.Writer != nil {
			options.Writer, options.ReadOnly = nil, fmt.Errorf("repository %s is another installation's: %w", c.name(), err)
			repo, err = e.unlock(context.WithoutCancel(ctx), limit.Store(st), options)
		}
		if err != nil {
			return nil, errors.Join(err, st.Close())
		}
		o.store, o.writer = st, options.Writer
		if options.Writer != nil {
			e.tidy(ctx, st, c)
		}
		return repo, nil
	})
}

// places are the installation's repositories for the server.
type places struct{ e *engine }

func (p places) place(c repositoryConfig, primary bool) server.Place {
	url := p.e.dir.repositoryURL(c)
	_, local := localSpec(url)
	return server.Place{Name: c.name(), ID: c.ID, URL: url, TrustRoot: c.TrustRoot, Primary: primary, Local: local}
}

// List gives all in the order in which they are read.
func (p places) List() []server.Place {
	var all []server.Place
	for i, c := range p.e.repositoryConfigs() {
		all = append(all, p.place(c, i == 0))
	}
	slices.SortFunc(all[1:], func(a, b server.Place) int {
		if a.Local != b.Local {
			if a.Local {
				return -1
			}
			return 1
		}
		return strings.Compare(a.Name, b.Name)
	})
	return all
}

// Open opens one by name.
func (p places) Open(ctx context.Context, name string) (*repository.Repository, error) {
	for i, c := range p.e.repositoryConfigs() {
		if c.name() == name {
			return p.e.openOne(ctx, c, i == 0)
		}
	}
	return nil, fmt.Errorf("open repository %s: %w", name, catalog.ErrNotFound)
}

// change writes the configuration anew, with what is in it now.
func (p places) change(fn func(*config) error) error {
	e := p.e
	e.repos.mu.Lock()
	defer e.repos.mu.Unlock()
	now, err := e.dir.load()
	if err != nil {
		return err
	}
	if err := fn(&now); err != nil {
		return err
	}
	if err := now.write(e.dir.config()); err != nil {
		return err
	}
	e.config.Repository, e.config.Others = now.Repository, now.Others
	return nil
}

// Promote makes a repository the one that backups write to.
func (p places) Promote(_ context.Context, name string) error {
	return p.change(func(c *config) error {
		i := slices.IndexFunc(c.Others, func(o repositoryConfig) bool { return o.name() == name })
		if i < 0 {
			return fmt.Errorf("promote repository %s: %w", name, catalog.ErrNotFound)
		}
		c.Repository, c.Others[i] = c.Others[i], c.Repository
		return nil
	})
}

// Remove forgets a repository.
func (p places) Remove(_ context.Context, name string) error {
	return p.change(func(c *config) error {
		c.Others = slices.DeleteFunc(c.Others, func(o repositoryConfig) bool { return o.name() == name })
		return nil
	})
}

var repositoryName = regexp.MustCompile(`^[a-z0-9][a-z0-9-]{0,62}$`)

func wrongUsage(detail, hint string) error {
	return &api.Error{Status: http.StatusUnprocessableEntity, Title: "wrong usage", Exit: api.ExitUsage, Detail: detail, Hint: hint}
}

// Add makes a repository for this installation, or joins one that is there.
func (p places) Add(ctx context.Context, n server.NewPlace) (server.AddedPlace, error) {
	e := p.e
	var added server.AddedPlace
	if !repositoryName.MatchString(n.Name) || n.Name == api.AllRepositories {
		return added, wrongUsage(fmt.Sprintf("add repository: name %q", n.Name), "a name has 1 to 63 of a-z, 0-9 and -, and does not begin with -; "+api.AllRepositories+" stands for every one")
	}
	location, err := repositoryLocation(ctx, n.URL)
	if err != nil {
		return added, stores.Refusal("add repository", err)
	}
	for _, c := range e.repositoryConfigs() {
		if c.name() == n.Name || e.dir.repositoryURL(c) == location {
			return added, taken(fmt.Sprintf("add repository: %s is there already, as %s", e.dir.repositoryURL(c), c.name()), "'lockstep repository list' shows the repositories")
		}
	}
	st, err := newStore(ctx, location)
	if err != nil {
		return added, fmt.Errorf("add repository: %w", err)
	}
	defer st.Close()
	host, err := envelope.ReadSecretFile(e.dir.hostIdentity(), false, nil)
	if err != nil {
		return added, fmt.Errorf("add repository: the host's identity: %w", err)
	}
	defer host.Wipe()
	c := repositoryConfig{Name: n.Name, URL: location}
	var sealing string
	switch _, err := st.Stat(ctx, format.ConfigKey); {
	case err == nil:
		c.ID, c.TrustRoot, sealing, err = e.join(ctx, st, host, n, &added)
		if err != nil {
			return added, fmt.Errorf("add repository: %w", err)
		}
	case errors.Is(err, store.ErrNotExist):
		if c.ID, c.TrustRoot, sealing, err = e.make(ctx, st, host, n); err != nil {
			return added, fmt.Errorf("add repository: %w", err)
		}
		added.Made = true
	default:
		return added, fmt.Errorf("add repository: %w", err)
	}
	if primary, err := e.openRepository(ctx); err == nil && primary.Sealing() != sealing {
		added.Warnings = append(added.Warnings, fmt.Sprintf("it is not sealed like the repository %s: nothing can be copied between them", e.repositoryConfigs()[0].name()))
	}
	if err := e.placeKit(n, c, location, &added); err != nil {
		return added, err
	}
	err = p.change(func(now *config) error {
		for _, o := range append([]repositoryConfig{now.Repository}, now.Others...) {
			if o.ID == c.ID {
				return taken(fmt.Sprintf("add repository: it is there already, as %s", o.name()), "one repository is enough")
			}
		}
		now.Others = append(now.Others, c)
		return nil
	})
	if err != nil {
		return added, err
	}
	added.Place = p.place(c, false)
	cat, err := e.openCatalog(ctx)
	if err == nil {
		err = cat.Repositories.Put(ctx, catalog.Repository{ID: c.ID, URL: location, TrustRoot: c.TrustRoot, LastReadAt: time.Now().UTC()})
	}
	if err != nil {
		added.Warnings = append(added.Warnings, fmt.Sprintf("it is not in the catalog yet: %v", err))
	}
	return added, nil
}

// make creates a repository with this installation's keys, sealed like the one
// that is written.
func (e *engine) make(ctx context.Context, st store.Store, host envelope.Secret, n server.NewPlace) (id, root, sealing string, err error) {
	primary, err := e.openRepository(ctx)
	if err != nil {
		return "", "", "", fmt.Errorf("a new one is sealed like the one that is written: %w", err)
	}
	holders, wipe, err := e.holders(host, n.PassphraseFile)
	if err != nil {
		return "", "", "", err
	}
	defer wipe()
	o := repository.CreateOptions{Sealing: primary.Sealing(), Holders: holders}
	if o.Custodian, err = envelope.ReadSigningKeyFile(e.dir.custodianKey()); err != nil {
		return "", "", "", err
	}
	defer o.Custodian.Wipe()
	for _, k := range []struct {
		path string
		to   *envelope.PublicKey
	}{{e.dir.writerKey(), &o.Writer}, {e.dir.proverKey(), &o.Prover}} {
		key, err := envelope.ReadSigningKeyFile(k.path)
		if err != nil {
			return "", "", "", err
		}
		*k.to = key.Public()
		key.Wipe()
	}
	id, root, err = repository.Create(ctx, st, o)
	return id, root, o.Sealing, err
}

// holders are who opens a repository of this installation.
func (e *engine) holders(host envelope.Secret, passphraseFile string) (holders []repository.NewHolder, wipe func(), err error) {
	recipients, err := envelope.RecipientsOf(host)
	if err != nil {
		return nil, nil, err
	}
	holders = append(holders, repository.NewHolder{Name: "host", Recipient: recipients[0], Role: repository.RoleHost})
	for i, r := range e.config.Recipients {
		name := "recovery"
		if i > 0 {
			name = fmt.Sprintf("recovery-%d", i+1)
		}
		holders = append(holders, repository.NewHolder{Name: name, Recipient: r, Role: repository.RoleRecovery})
	}
	manager, err := e.openManager()
	if err != nil {
		return nil, nil, err
	}
	holders = append(holders, repository.NewHolder{Name: "key-manager", KEK: manager})
	if passphraseFile == "" {
		return holders, func() {}, nil
	}
	passphrase, err := envelope.ReadSecretFile(passphraseFile, true, nil)
	if err != nil {
		return nil, nil, fmt.Errorf("passphrase of the repository: %w", err)
	}
	return append(holders, repository.NewHolder{Name: "passphrase", Passphrase: passphrase}), passphrase.Wipe, nil
}

// join opens a repository that is there, and has the host's identity open it
// from then on.
func (e *engine) join(ctx context.Context, st store.Store, host envelope.Secret, n server.NewPlace, added *server.AddedPlace) (id, root, sealing string, err error) {
	var o repository.OpenOptions
	o.Unlock.Identities = host
	if n.IdentityFile != "" {
		if o.Unlock.Identities, err = envelope.ReadSecretFile(n.IdentityFile, false, nil); err != nil {
			return "", "", "", fmt.Errorf("identity: %w", err)
		}
		defer o.Unlock.Identities.Wipe()
		if kit.Is(o.Unlock.Identities) { // its pins count
			k, err := kit.Parse(o.Unlock.Identities)
			if err != nil {
				return "", "", "", err
			}
			defer k.Identity.Wipe()
			o.Unlock.Identities, o.TrustRoot = k.Identity, k.TrustRoot
		}
	}
	if n.PassphraseFile != "" {
		if o.Unlock.Passphrase, err = envelope.ReadSecretFile(n.PassphraseFile, true, nil); err != nil {
			return "", "", "", fmt.Errorf("passphrase: %w", err)
		}
		defer o.Unlock.Passphrase.Wipe()
	}
	repo, err := repository.Open(ctx, st, o)
	if errors.Is(err, repository.ErrNoKey) {
		err = cli.WithHint(err, "--identity FILE takes its recovery kit or an identity that opens it, --passphrase-file FILE its passphrase")
	}
	if err != nil {
		return "", "", "", err
	}
	defer repo.Close()
	counts := func(path string) (bool, error) {
		key, err := envelope.ReadSigningKeyFile(path)
		if err != nil {
			return false, err
		}
		defer key.Wipe()
		_, revoked, ok := repo.Trust().Key(key.ID())
		return ok && revoked == nil, nil
	}
	writes, err := counts(e.dir.writerKey())
	if err == nil {
		// One with our custodian is ours: an addition that was interrupted goes on.
		added.Made, err = counts(e.dir.custodianKey())
	}
	if err != nil {
		return "", "", "", err
	}
	if !writes {
		added.Warnings = append(added.Warnings, "it is another installation's: recovery points can be copied and restored from it, not to it")
	}
	if o.TrustRoot == "" && !added.Made {
		added.Warnings = append(added.Warnings, "nothing vouched for it: its trust log is pinned as it is now ("+repo.Trust().Root+")")
	}
	recipients, err := envelope.RecipientsOf(host)
	if err != nil {
		return "", "", "", err
	}
	err = nil
	if opened, oerr := repository.Open(ctx, st, repository.OpenOptions{Unlock: repository.Unlocker{Identities: host}}); oerr == nil {
		_ = opened.Close() // the host's identity opens it already
	} else {
		err = repo.AddHolder(ctx, repository.NewHolder{Name: "host-" + e.config.Installation[:8], Recipient: recipients[0], Role: repository.RoleHost})
	}
	return repo.ID(), repo.Trust().Root, repo.Sealing(), err
}

// placeKit writes the recovery kit of a repository that was made: without the
// identity, which this host does not have; the first kit does, or its owner.
func (e *engine) placeKit(n server.NewPlace, c repositoryConfig, location string, added *server.AddedPlace) error {
	if !added.Made {
		return nil
	}
	k := kit.Kit{Recipients: e.config.Recipients, Repository: c.ID, Locations: []string{location}, TrustRoot: c.TrustRoot, Created: time.Now().UTC()}
	for _, path := range []string{e.dir.writerKey(), e.dir.proverKey(), e.dir.custodianKey()} {
		key, err := envelope.ReadSigningKeyFile(path)
		if err != nil {
			return fmt.Errorf("write recovery kit: %w", err)
		}
		k.Keys = append(k.Keys, key.Public())
		key.Wipe()
	}
	path := n.KitFile
	if path == "" {
		path = filepath.Join(string(e.dir), "lockstep-recovery-kit-"+n.Name+".txt")
		if here, err := os.Getwd(); err == nil && !within(string(e.dir), here) && writable(here) {
			path = filepath.Join(here, filepath.Base(path))
		}
	}
	err := kit.Write(path, k)
	if old, rerr := kit.Read(path); errors.Is(err, fs.ErrExist) && rerr == nil && old.Repository == k.Repository && old.TrustRoot == k.TrustRoot {
		old.Identity.Wipe()
		err = nil // it was written before
	}
	if errors.Is(err, fs.ErrExist) {
		return taken(fmt.Sprintf("add repository: %s exists already", path), "--kit FILE names another place for its recovery kit")
	}
	if err != nil {
		return err
	}
	added.KitFile = path
	if within(string(e.dir), filepath.Dir(path)) {
		added.Warnings = append(added.Warnings, "its recovery kit lies inside the data directory: lost together, they are lost")
	}
	return nil
}
