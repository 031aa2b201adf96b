package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net/url"
	"os"
	"path/filepath"
	"runtime"
	"time"

	"github.com/lockstep-backup/lockstep/cli"
	"github.com/lockstep-backup/lockstep/envelope"
	"github.com/lockstep-backup/lockstep/keymanager/embedded"
)

// dataDir is a data directory; docs/operations.md says what lies where.
type dataDir string

func (d dataDir) path(name ...string) string {
	return filepath.Join(append([]string{string(d)}, name...)...)
}

func (d dataDir) config() string       { return d.path("lockstep.json") }
func (d dataDir) keys() string         { return d.path("keys") }
func (d dataDir) writerKey() string    { return d.path("keys", "writer.key") }
func (d dataDir) proverKey() string    { return d.path("keys", "prover.key") }
func (d dataDir) custodianKey() string { return d.path("keys", "custodian.key") }
func (d dataDir) vkproofKey() string   { return d.path("keys", "vkproof.key") }
func (d dataDir) hostIdentity() string { return d.path("keys", "repository.identity") }
func (d dataDir) kek() string          { return d.path("keys", "kek.key") }
func (d dataDir) keyManager() string   { return d.path("keymanager") }
func (d dataDir) repository() string   { return d.path("repository") }
func (d dataDir) catalog() string      { return d.path("catalog.db") }
func (d dataDir) audit() string        { return d.path("audit") }
func (d dataDir) run() string          { return d.path("run") }
func (d dataDir) socket() string       { return d.path("run", "lockstep.sock") }
func (d dataDir) locks() string        { return d.path("run", "locks") }
func (d dataDir) pending() string      { return d.path("init.pending") }

// configVersion is the version of lockstep.json.
const configVersion = 1

// Kinds of sealers of the embedded key manager.
const (
	sealKeyFile        = "key-file"
	sealPassphraseFile = "passphrase-file"
)

// config is lockstep.json. It is written last by init: without it there is no
// installation.
type config struct {
	Version      int                `json:"version"`
	Installation string             `json:"installation"` // tags holds
	Created      time.Time          `json:"created"`
	Repository   repositoryConfig   `json:"repository"` // the one that backups write to
	Others       []repositoryConfig `json:"other_repositories,omitempty"`
	KeyManager   keyManagerConfig   `json:"key_manager"`
	Recipients   []string           `json:"recipients"` // recovery recipients
}

type repositoryConfig struct {
	Name      string      `json:"name,omitempty"` // "" = main
	ID        string      `json:"id"`
	URL       string      `json:"url"` // "" = the folder repository/ of the data directory
	TrustRoot string      `json:"trust_root"`
	Lock      *lockConfig `json:"lock,omitempty"` // for how long the store locks what is written; nil: not at all
}

type keyManagerConfig struct {
	Kind   string `json:"kind"`           // "embedded"
	Sealer string `json:"sealer"`         // "key-file", "passphrase-file"
	File   string `json:"file,omitempty"` // "" = keys/kek.key of the data directory
}

const kindEmbedded = "embedded"

// errNotInitialised says that there is no installation yet.
var errNotInitialised = errors.New("there is no Lockstep data directory")

func (d dataDir) load() (c config, err error) {
	raw, err := os.ReadFile(d.config())
	if errors.Is(err, fs.ErrNotExist) {
		return c, cli.WithHint(fmt.Errorf("%s: %w", d, errNotInitialised), "'lockstep init' makes one; --data DIR or LOCKSTEP_DATA names another")
	}
	if err != nil {
		return c, fmt.Errorf("read configuration: %w", err)
	}
	if err := json.Unmarshal(raw, &c); err != nil {
		return c, fmt.Errorf("read configuration %s: %w", d.config(), err)
	}
	if c.Version != configVersion {
		return c, cli.WithHint(fmt.Errorf("read configuration %s: version %d is not known (this program knows %d)", d.config(), c.Version, configVersion),
			"use the version of lockstep that wrote it, or a later one")
	}
	if c.KeyManager.Kind != kindEmbedded {
		return c, fmt.Errorf("read configuration %s: key manager %q is not known", d.config(), c.KeyManager.Kind)
	}
	return c, nil
}

func (c config) write(path string) error {
	raw, err := json.MarshalIndent(c, "", "  ")
	if err != nil {
		return fmt.Errorf("write configuration: %w", err)
	}
	if err := envelope.WriteFileDurable(path, append(raw, '\n'), 0o600); err != nil {
		return fmt.Errorf("write configuration: %w", err)
	}
	return nil
}

// sealer opens the key manager's KEK.
func (d dataDir) sealer(c keyManagerConfig) (embedded.Sealer, error) {
	file := c.File
	if file == "" {
		file = d.kek()
	}
	switch c.Sealer {
	case sealKeyFile:
		return embedded.KeyFile(file), nil
	case sealPassphraseFile:
		return embedded.PassphraseFile(file), nil
	default:
		return nil, fmt.Errorf("open key manager: sealer %q is not known", c.Sealer)
	}
}

func (d dataDir) openManager(c config) (*embedded.Manager, error) {
	s, err := d.sealer(c.KeyManager)
	if err != nil {
		return nil, err
	}
	m, err := embedded.Open(d.keyManager(), s, embedded.Options{})
	if err != nil {
		return nil, fmt.Errorf("open key manager: %w", err)
	}
	return m, nil
}

// cache keeps parts of a remote repository; it may be removed at any time.
func (d dataDir) cache() string { return d.path("cache") }

// repositoryURL is the repository's place, for people and for the store.
func (d dataDir) repositoryURL(c repositoryConfig) string {
	if c.URL != "" {
		return c.URL
	}
	return fileURL(d.repository())
}

// fileURL is a path as a file URL (RFC 8089).
func fileURL(path string) string {
	slashed := filepath.ToSlash(path)
	if runtime.GOOS == "windows" {
		slashed = "/" + slashed
	}
	return (&url.URL{Scheme: "file", Path: slashed}).String()
}

// checkPrivate refuses a data directory that others may enter: secrets are in it.
func (d dataDir) checkPrivate() error {
	info, err := os.Stat(string(d))
	if err != nil {
		return err
	}
	if runtime.GOOS != "windows" && info.Mode().Perm()&0o077 != 0 {
		return cli.WithHint(fmt.Errorf("data directory %s: group or others may enter it (mode %04o)", d, info.Mode().Perm()), "chmod 0700 "+string(d))
	}
	return nil
}
