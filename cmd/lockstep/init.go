package main

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net/http"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"time"

	"github.com/lockstep-backup/lockstep/api"
	"github.com/lockstep-backup/lockstep/audit"
	"github.com/lockstep-backup/lockstep/catalog"
	"github.com/lockstep-backup/lockstep/catalog/sqlite"
	"github.com/lockstep-backup/lockstep/cli"
	"github.com/lockstep-backup/lockstep/cmd/internal/stores"
	"github.com/lockstep-backup/lockstep/disk"
	"github.com/lockstep-backup/lockstep/envelope"
	"github.com/lockstep-backup/lockstep/job"
	"github.com/lockstep-backup/lockstep/keymanager/embedded"
	"github.com/lockstep-backup/lockstep/repository"
	"github.com/lockstep-backup/lockstep/repository/format"
	"github.com/lockstep-backup/lockstep/store"
)

// initialise makes a data directory. Interrupted, it goes on when it is run
// again with the same options: each step makes what is not there yet, and
// lockstep.json comes last.
func initialise(ctx context.Context, o cli.InitOptions) (cli.InitResult, error) {
	i := initialiser{options: o, dir: dataDir(o.DataDir)}
	if err := i.run(ctx); err != nil {
		return cli.InitResult{}, err
	}
	return i.result, nil
}

// plan is what an init is about to do, kept while it is not done, so that one
// that was interrupted can go on.
type plan struct {
	Installation             string   `json:"installation"`
	Repository               string   `json:"repository"`
	Unsealed                 bool     `json:"unsealed"`
	PassphraseFile           string   `json:"passphrase_file"`
	KeyManagerPassphraseFile string   `json:"key_manager_passphrase_file"`
	KeyManagerKeyFile        string   `json:"key_manager_key_file"`
	Recipients               []string `json:"recipients"` // as given
	KitFile                  string   `json:"kit_file"`
}

type initialiser struct {
	options cli.InitOptions
	dir     dataDir
	plan    plan
	again   bool // an interrupted init goes on
	made    bool // the folder was not there

	config   config
	before   func(step int)  // for tests, may be nil
	identity envelope.Secret // recovery identity, empty where recipients were given
	host     envelope.Secret
	result   cli.InitResult
}

func (i *initialiser) run(ctx context.Context) error {
	defer func() { i.identity.Wipe(); i.host.Wipe() }()
	if _, err := os.Lstat(i.dir.config()); err == nil {
		_ = os.Remove(i.dir.pending()) // left by an init that was killed when all was done
		return taken(fmt.Sprintf("init: %s is a Lockstep data directory already", i.dir), "--data DIR or LOCKSTEP_DATA names another")
	} else if !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if err := i.makeDir(); err != nil {
		return err
	}
	lock, err := job.NewLocks(i.dir.locks()).Acquire("init", "lockstep init")
	if err != nil {
		return err
	}
	defer lock.Release()
	if err := i.decide(ctx); err != nil {
		lock.Release()
		i.unmake()
		return err
	}
	for n, step := range []func(context.Context) error{
		i.makeKeys, i.makeIdentity, i.makeKeyManager, i.makeRepository, i.makeCatalog, i.makeAudit, i.finish,
	} {
		if i.before != nil {
			i.before(n)
		}
		if err := ctx.Err(); err != nil {
			return err
		}
		if err := step(ctx); err != nil {
			return err
		}
	}
	return nil
}

// taken says that something is there already.
func taken(detail, hint string) error {
	return &api.Error{Status: http.StatusConflict, Title: "exists", Detail: detail, Exit: api.ExitTarget, Hint: hint}
}

// ours are the names that init makes in the data directory.
var ours = []string{"keys", "keymanager", "repository", "catalog.db", "audit"}

// makeDir makes the folder, or takes one in which nothing of ours lies.
func (i *initialiser) makeDir() error {
	_, err := os.Lstat(i.dir.pending())
	i.again = err == nil
	_, err = os.Lstat(string(i.dir))
	i.made = errors.Is(err, fs.ErrNotExist)
	if err := os.MkdirAll(string(i.dir), 0o700); err != nil {
		return err
	}
	entries, err := os.ReadDir(string(i.dir))
	if err != nil {
		return err
	}
	if !i.again {
		for _, e := range entries {
			if slices.Contains(ours, e.Name()) {
				return taken(fmt.Sprintf("init: %s holds %s, and no lockstep.json: it may be what is left of a data directory", i.dir, e.Name()),
					"bring lockstep.json back from a backup of the data directory, or name another with --data")
			}
		}
	}
	if len(entries) == 0 && runtime.GOOS != "windows" {
		if err := os.Chmod(string(i.dir), 0o700); err != nil {
			return err
		}
	}
	return i.dir.checkPrivate()
}

// unmake takes the folder away again where nothing was decided on: a wrong
// option is no reason to leave something behind.
func (i *initialiser) unmake() {
	if _, err := os.Lstat(i.dir.pending()); i.made && errors.Is(err, fs.ErrNotExist) {
		_ = os.RemoveAll(i.dir.run())
		_ = os.Remove(string(i.dir)) // only if it is empty
	}
}

// decide makes the plan, or takes up the one of the init that was interrupted.
func (i *initialiser) decide(ctx context.Context) error {
	location, err := repositoryLocation(ctx, i.options.Repository)
	if err != nil {
		return stores.Refusal("init", err)
	}
	want := plan{
		Repository: location, Unsealed: i.options.Unsealed, PassphraseFile: i.options.PassphraseFile,
		KeyManagerPassphraseFile: i.options.KeyManagerPassphraseFile, KeyManagerKeyFile: i.options.KeyManagerKeyFile,
		Recipients: i.options.Recipients,
	}
	for _, r := range want.Recipients {
		if err := envelope.CheckRecipient(r); err != nil {
			return &api.Error{Status: http.StatusUnprocessableEntity, Title: "wrong usage", Exit: api.ExitUsage, Detail: fmt.Sprintf("init: recipient: %v", err)}
		}
	}
	if i.again {
		raw, err := os.ReadFile(i.dir.pending())
		if err == nil {
			err = json.Unmarshal(raw, &i.plan)
		}
		if err != nil {
			return fmt.Errorf("take up the interrupted init: %w", err)
		}
		want.Installation, want.KitFile = i.plan.Installation, i.plan.KitFile
		if !samePlan(want, i.plan) || i.options.KitFile != "" && i.options.KitFile != i.plan.KitFile {
			return taken(fmt.Sprintf("init: an init of %s with other options was interrupted", i.dir),
				fmt.Sprintf("run it again with the same options, or remove %s and begin anew", i.dir))
		}
		return nil
	}
	want.Installation = randomID()
	if want.KitFile = i.options.KitFile; want.KitFile == "" {
		want.KitFile = i.kitPlace(want.Installation)
	}
	if _, err := os.Lstat(want.KitFile); err == nil {
		return taken(fmt.Sprintf("init: %s exists already", want.KitFile), "--kit FILE names another place for the recovery kit")
	}
	if info, err := os.Stat(filepath.Dir(want.KitFile)); err != nil || !info.IsDir() {
		return &api.Error{
			Status: http.StatusUnprocessableEntity, Title: "wrong usage", Exit: api.ExitUsage,
			Detail: fmt.Sprintf("init: the folder of the recovery kit %s does not exist", want.KitFile),
		}
	}
	raw, err := json.MarshalIndent(want, "", "  ")
	if err != nil {
		return err
	}
	i.plan = want
	return envelope.WriteFileDurable(i.dir.pending(), raw, 0o600)
}

func samePlan(a, b plan) bool {
	x, errX := json.Marshal(a)
	y, errY := json.Marshal(b)
	return errX == nil && errY == nil && string(x) == string(y)
}

// randomID draws 128 random bits as 32 hex digits.
func randomID() string {
	var b [16]byte
	_, _ = rand.Read(b[:]) // never fails since Go 1.24
	return hex.EncodeToString(b[:])
}

// repositoryLocation makes a path absolute; URLs are as their stores write them.
// "" is the default.
func repositoryLocation(ctx context.Context, location string) (string, error) {
	if location == "" {
		return "", nil
	}
	if stores.IsRemote(location) {
		return remoteLocation(ctx, location)
	}
	path, _, err := disk.LocalPath(location)
	if err != nil {
		return "", err
	}
	abs, err := filepath.Abs(path)
	if err != nil {
		return "", err
	}
	return fileURL(abs), nil
}

// kitPlace is where the kit goes by default: where the user stands, unless
// that is inside the data directory or read only; else beside the data
// directory; inside it only where nothing else can be written.
func (i *initialiser) kitPlace(installation string) string {
	name := "lockstep-recovery-kit-" + installation[:8] + ".txt"
	var places []string
	if here, err := os.Getwd(); err == nil {
		places = append(places, here)
	}
	places = append(places, filepath.Dir(string(i.dir)))
	for _, p := range places {
		if !within(string(i.dir), p) && writable(p) {
			return filepath.Join(p, name)
		}
	}
	return i.dir.path(name)
}

// within says whether path lies in dir.
func within(dir, path string) bool {
	real := func(p string) string {
		if r, err := filepath.EvalSymlinks(p); err == nil {
			return r
		}
		return p
	}
	rel, err := filepath.Rel(real(dir), real(path))
	return err == nil && filepath.IsLocal(rel)
}

func writable(dir string) bool {
	f, err := os.CreateTemp(dir, ".lockstep-")
	if err != nil {
		return false
	}
	name := f.Name()
	return errors.Join(f.Close(), os.Remove(name)) == nil
}

// makeKeys makes the three signing keys and the key of the volume-key proofs.
func (i *initialiser) makeKeys(context.Context) error {
	if err := os.MkdirAll(i.dir.keys(), 0o700); err != nil {
		return err
	}
	for _, k := range []struct{ role, path string }{
		{envelope.RoleWriter, i.dir.writerKey()},
		{envelope.RoleProver, i.dir.proverKey()},
		{envelope.RoleCustodian, i.dir.custodianKey()},
	} {
		if _, err := os.Lstat(k.path); err == nil {
			continue
		}
		key, err := envelope.GenerateSigningKey(k.role)
		if err != nil {
			return err
		}
		err = envelope.WriteSigningKeyFile(k.path, key)
		key.Wipe()
		if err != nil {
			return err
		}
	}
	if err := makeSecret(i.dir.vkproofKey(), func() (envelope.Secret, error) { return envelope.NewKey() }); err != nil {
		return err
	}
	err := makeSecret(i.dir.hostIdentity(), func() (envelope.Secret, error) {
		s, _, err := envelope.GenerateIdentity()
		return s, err
	})
	if err != nil {
		return err
	}
	i.host, err = envelope.ReadSecretFile(i.dir.hostIdentity(), false, nil)
	return err
}

// makeSecret writes a file with what draw gives, unless it is there.
func makeSecret(path string, draw func() (envelope.Secret, error)) error {
	if _, err := os.Lstat(path); err == nil {
		return nil
	}
	s, err := draw()
	if err != nil {
		return err
	}
	defer s.Wipe()
	return envelope.WriteNewFileDurable(path, s.Expose(), 0o600)
}

// makeIdentity makes the recovery identity, unless there are recipients
// already. It goes into the kit before anything is sealed to it, and nowhere else.
func (i *initialiser) makeIdentity(context.Context) error {
	i.config = config{
		Version: configVersion, Installation: i.plan.Installation, Created: time.Now().UTC(),
		KeyManager: keyManagerConfig{Kind: kindEmbedded, Sealer: sealKeyFile}, Recipients: slices.Clone(i.plan.Recipients),
	}
	if len(i.plan.Recipients) > 0 {
		return nil
	}
	begun, err := i.readKit()
	switch {
	case err == nil:
		i.identity = begun
	case !errors.Is(err, fs.ErrNotExist):
		return fmt.Errorf("recovery kit: %w", err)
	default:
		if i.identity, _, err = envelope.GenerateIdentity(); err != nil {
			return err
		}
		if err := i.writeUnfinishedKit(); err != nil {
			return err
		}
	}
	if i.config.Recipients, err = envelope.RecipientsOf(i.identity); err != nil {
		return fmt.Errorf("recovery kit %s: %w", i.plan.KitFile, err)
	}
	return nil
}

func (i *initialiser) sealer() embedded.Sealer {
	switch p := i.plan; {
	case p.KeyManagerPassphraseFile != "":
		i.config.KeyManager.Sealer, i.config.KeyManager.File = sealPassphraseFile, p.KeyManagerPassphraseFile
		return embedded.PassphraseFile(p.KeyManagerPassphraseFile)
	case p.KeyManagerKeyFile != "":
		i.config.KeyManager.File = p.KeyManagerKeyFile
		return embedded.KeyFile(p.KeyManagerKeyFile)
	default:
		return embedded.GenerateKeyFile(i.dir.kek())
	}
}

func (i *initialiser) makeKeyManager(context.Context) error {
	s := i.sealer()
	if err := embedded.Init(i.dir.keyManager(), s); err != nil && !(i.again && errors.Is(err, embedded.ErrInitialised)) {
		return fmt.Errorf("make key manager: %w", err)
	}
	i.result.KeyPlaces = append(i.result.KeyPlaces, "key manager: "+s.Describe())
	return nil
}

func (i *initialiser) makeRepository(ctx context.Context) error {
	c := repositoryConfig{URL: i.plan.Repository}
	location := i.dir.repositoryURL(c)
	st, err := newStore(ctx, location)
	if err != nil {
		return fmt.Errorf("make repository: %w", err)
	}
	defer st.Close()
	_, err = st.Stat(ctx, format.ConfigKey)
	switch {
	case err == nil && !i.again:
		return taken(fmt.Sprintf("init: there is a repository in %s already", location),
			"init makes a new one: name another place; lockstep-recover restores from one whose data directory is lost")
	case err == nil: // it is ours if our identity opens it, which is tried below
	case !errors.Is(err, store.ErrNotExist):
		return fmt.Errorf("make repository: %w", err)
	default:
		if err := i.createRepository(ctx, st); err != nil {
			return err
		}
	}
	// What could not be opened one day is noticed now.
	if c.ID, c.TrustRoot, err = i.tryOpen(ctx, st, i.host); err != nil {
		return fmt.Errorf("open the new repository with the host's identity: %w", err)
	}
	if i.identity.Len() > 0 {
		if _, _, err := i.tryOpen(ctx, st, i.identity); err != nil {
			return fmt.Errorf("open the new repository with the recovery identity: %w", err)
		}
	}
	i.config.Repository = c
	i.result.Repository = location
	return nil
}

func (i *initialiser) createRepository(ctx context.Context, st store.Store) error {
	if i.again {
		// Without its last object there is no repository; what an interrupted
		// creation left would be in the way.
		for _, prefix := range []string{format.HolderPrefix, format.TrustPrefix} {
			var keys []string
			if err := st.List(ctx, prefix, func(o store.Info) error { keys = append(keys, o.Key); return nil }); err != nil {
				return fmt.Errorf("make repository: %w", err)
			}
			for _, k := range keys {
				if err := st.Delete(ctx, k); err != nil {
					return fmt.Errorf("make repository: %w", err)
				}
			}
		}
	}
	o := repository.CreateOptions{Sealing: repository.SealingAESGCM}
	if i.plan.Unsealed {
		o.Sealing = repository.SealingNone
	}
	hosts, err := envelope.RecipientsOf(i.host)
	if err != nil {
		return err
	}
	o.Holders = append(o.Holders, repository.NewHolder{Name: "host", Recipient: hosts[0], Role: repository.RoleHost})
	for n, r := range i.config.Recipients {
		name := "recovery"
		if n > 0 {
			name = fmt.Sprintf("recovery-%d", n+1)
		}
		o.Holders = append(o.Holders, repository.NewHolder{Name: name, Recipient: r, Role: repository.RoleRecovery})
	}
	manager, err := i.dir.openManager(i.config)
	if err != nil {
		return err
	}
	defer manager.Close()
	o.Holders = append(o.Holders, repository.NewHolder{Name: "key-manager", KEK: manager})
	if i.plan.PassphraseFile != "" {
		passphrase, err := envelope.ReadSecretFile(i.plan.PassphraseFile, true, nil)
		if err != nil {
			return fmt.Errorf("passphrase of the repository: %w", err)
		}
		defer passphrase.Wipe()
		o.Holders = append(o.Holders, repository.NewHolder{Name: "passphrase", Passphrase: passphrase})
	}
	if err := checkHolders(o.Holders); err != nil {
		return err
	}
	if o.Custodian, err = envelope.ReadSigningKeyFile(i.dir.custodianKey()); err != nil {
		return err
	}
	defer o.Custodian.Wipe()
	for _, k := range []struct {
		path string
		to   *envelope.PublicKey
	}{{i.dir.writerKey(), &o.Writer}, {i.dir.proverKey(), &o.Prover}} {
		key, err := envelope.ReadSigningKeyFile(k.path)
		if err != nil {
			return err
		}
		*k.to = key.Public()
		key.Wipe()
	}
	_, _, err = repository.Create(ctx, st, o)
	return err
}

// checkHolders refuses a repository that only the key manager could open: a
// backup must never wait for one, nor a restore die with it.
func checkHolders(holders []repository.NewHolder) error {
	if slices.ContainsFunc(holders, func(h repository.NewHolder) bool { return h.KEK == nil }) {
		return nil
	}
	return &api.Error{
		Status: http.StatusConflict, Title: "refused", Exit: api.ExitRefused,
		Detail: "init: nothing but the key manager would open the repository",
		Hint:   "give a passphrase or a recipient",
	}
}

func (i *initialiser) tryOpen(ctx context.Context, st store.Store, identity envelope.Secret) (id, root string, err error) {
	r, err := repository.Open(ctx, st, repository.OpenOptions{Unlock: repository.Unlocker{Identities: identity}})
	if err != nil {
		return "", "", err
	}
	defer r.Close()
	return r.ID(), r.Trust().Root, nil
}

func (i *initialiser) makeCatalog(ctx context.Context) error {
	c, err := sqlite.Open(ctx, i.dir.catalog(), sqlite.Options{Create: true})
	if err != nil {
		return err
	}
	// It is new, so nothing in it is unread.
	err = c.Repositories.Put(ctx, catalog.Repository{
		ID: i.config.Repository.ID, URL: i.result.Repository, TrustRoot: i.config.Repository.TrustRoot, LastReadAt: time.Now().UTC(),
	})
	return errors.Join(err, c.Maintenance.Close())
}

func (i *initialiser) makeAudit(ctx context.Context) error {
	custodian, err := envelope.ReadSigningKeyFile(i.dir.custodianKey())
	if err != nil {
		return err
	}
	defer custodian.Wipe()
	log, err := audit.Open(i.dir.audit(), custodian, envelope.KeySet{custodian.Public()})
	if err != nil {
		return err
	}
	_, err = log.Append(ctx, audit.Event{
		Time: time.Now().UTC(), Actor: fmt.Sprintf("uid:%d (in-process)", os.Getuid()), Action: "init", Object: i.config.Repository.ID,
		Outcome: audit.Done, Detail: map[string]string{"installation": i.config.Installation, "recipients": strings.Join(i.config.Recipients, " ")},
	})
	return err
}

// finish writes the kit as it stays, then lockstep.json, and tells.
func (i *initialiser) finish(context.Context) error {
	if err := i.writeKit(); err != nil {
		return err
	}
	if err := i.config.write(i.dir.config()); err != nil {
		return err
	}
	if err := os.Remove(i.dir.pending()); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	i.result.DataDir = string(i.dir)
	i.result.KitFile = i.plan.KitFile
	i.result.Recipient = strings.Join(i.config.Recipients, " ")
	i.result.KeyPlaces = append(i.result.KeyPlaces,
		fmt.Sprintf("repository: %s (mode 0600) opens it without the key manager, so that backups never wait for one: whoever has it and the repository can read disks as the guests encrypted them, and what they left plain", i.dir.hostIdentity()),
		fmt.Sprintf("signatures: %s, prover.key, custodian.key beside it (mode 0600): whoever has them can sign recovery points, proofs and the audit log in this installation's name", i.dir.writerKey()))
	switch {
	case i.identity.Len() > 0:
		i.result.KeyPlaces = append(i.result.KeyPlaces, fmt.Sprintf("recovery: the identity is in %s and nowhere else; it opens the repository and every key package", i.plan.KitFile))
	default:
		i.result.KeyPlaces = append(i.result.KeyPlaces, "recovery: the identities of the recipients given; this host never had them")
	}
	if i.plan.PassphraseFile != "" {
		i.result.KeyPlaces = append(i.result.KeyPlaces, "repository: the passphrase in "+i.plan.PassphraseFile+" opens it too: whoever has the repository can try passphrases against it")
	}
	if within(string(i.dir), filepath.Dir(i.plan.KitFile)) {
		i.result.Warnings = append(i.result.Warnings, "the recovery kit lies inside the data directory: lost together, they are lost")
	}
	if i.plan.Repository == "" {
		i.result.Warnings = append(i.result.Warnings, "the repository lies inside the data directory: one disk holds the recovery points and the secrets that open them; --repository puts it elsewhere")
	}
	if i.plan.Unsealed {
		i.result.Warnings = append(i.result.Warnings, "the repository is not sealed: what the guests left plain, and headers, can be read by whoever has it")
	}
	return nil
}
