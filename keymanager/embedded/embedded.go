// Package embedded is the key manager that needs nothing installed: a folder
// of sealed files, laid out in docs/spec/keymanager-embedded.md. A KEK seals
// everything, and a Sealer seals the KEK.
//
// It is no defence against whoever can read the folder and has what opens the
// KEK; Sealer.Describe says in words how far apart the two are. Its invariant:
// files are whole or absent, and authenticated to their last byte, so that
// damage is told and never answered with other data.
package embedded

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/lockstep-backup/lockstep/envelope"
	"github.com/lockstep-backup/lockstep/keymanager"
)

// Errors of the state directory as a whole.
var (
	ErrNotInitialised = errors.New("not an initialised key manager")
	ErrInitialised    = errors.New("already holds a key manager")
	ErrFormat         = errors.New("written in a format this version does not know")
)

// Options of Open; the zero value is right outside tests.
type Options struct {
	Now func() time.Time // nil means time.Now
}

// Manager is one process's access to a state directory; any number may share
// it. It implements keymanager.Manager and envelope.KEK.
type Manager struct {
	dir   string
	kekID string
	now   func() time.Time

	open    sync.RWMutex // held for reading while keys are in use
	keys    *keys        // nil once closed
	writers chan struct{}
	readers chan struct{}

	// step is called around each durable step, so that tests can end the
	// process there.
	step func(point string)
}

var (
	_ keymanager.Manager = (*Manager)(nil)
	_ envelope.KEK       = (*Manager)(nil)
)

// Init makes a key manager in dir, which is created if need be, and a KEK that
// only sealer opens. ErrInitialised if there is one. An interrupted Init is
// repeated from the start.
func Init(dir string, sealer Sealer) error {
	if err := initialise(dir, sealer); err != nil {
		return fmt.Errorf("init key manager in %s: %w", dir, err)
	}
	return nil
}

func initialise(dir string, sealer Sealer) error {
	unlock, err := prepareEmpty(dir)
	if err != nil {
		return err
	}
	defer unlock()
	kek, err := envelope.NewKey()
	if err != nil {
		return err
	}
	k := newKeys(kek)
	defer k.wipe()
	id := make([]byte, 16)
	if _, err := rand.Read(id); err != nil {
		return err
	}
	if err := writeIndex(dir, k, newIndex()); err != nil {
		return err
	}
	h := header{Format: formatName, Version: formatVersion, KEK: hex.EncodeToString(id), Created: time.Now().UTC()}
	return writeKEK(dir, h, kek, sealer, envelope.WriteNewFileDurable)
}

// prepareEmpty makes the folders, locks them, and refuses a directory that is
// initialised or holds secrets.
func prepareEmpty(dir string) (unlock func(), err error) {
	if err := makeFolder(dir); err != nil {
		return nil, err
	}
	unlock, err = lockFolder(context.Background(), dir, true)
	if err != nil {
		return nil, err
	}
	if err := requireEmpty(dir); err != nil {
		unlock()
		return nil, err
	}
	return unlock, nil
}

func requireEmpty(dir string) error {
	if _, err := os.Lstat(filepath.Join(dir, kekFile)); err == nil {
		return ErrInitialised
	} else if !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	secrets := filepath.Join(dir, secretsFolder)
	if err := makeFolder(secrets); err != nil {
		return err
	}
	entries, err := os.ReadDir(secrets)
	if err != nil {
		return err
	}
	if len(entries) > 0 {
		return fmt.Errorf("%w: %s is not empty, though %s is missing: restore that file, or move the folder away",
			ErrInitialised, secrets, kekFile)
	}
	return nil
}

// Open opens the key manager in dir. keymanager.ErrSealed: sealer does not open
// it. keymanager.ErrDamaged, ErrFormat, ErrNotInitialised as they say.
func Open(dir string, sealer Sealer, opts Options) (*Manager, error) {
	h, kek, err := readKEK(dir, sealer)
	if err != nil {
		return nil, fmt.Errorf("open key manager in %s: %w", dir, err)
	}
	m := newManager(dir, h.KEK, newKeys(kek), opts)
	// A Destroy that was killed has bytes left. Reading works without finishing
	// it, on a full or read-only disk too; the next change insists.
	_ = m.finishWipes()
	return m, nil
}

func newManager(dir, kekID string, k *keys, opts Options) *Manager {
	if opts.Now == nil {
		opts.Now = time.Now
	}
	return &Manager{
		dir: dir, kekID: kekID, now: opts.Now, keys: k,
		writers: make(chan struct{}, 1), readers: make(chan struct{}, 8),
	}
}

// Close wipes the keys from memory, after the calls under way; later calls
// return keymanager.ErrSealed. It may be called again.
func (m *Manager) Close() error {
	m.open.Lock()
	defer m.open.Unlock()
	if m.keys != nil {
		m.keys.wipe()
		m.keys = nil
	}
	return nil
}

// ID is "embedded:" and the KEK's id, the same for the life of the directory
// and of every directory restored from its backups.
func (m *Manager) ID() string { return "embedded:" + m.kekID }

// Wrap seals a 32-byte key under a key that is derived from the KEK for nothing else.
func (m *Manager) Wrap(ctx context.Context, key envelope.Secret, context []byte) ([]byte, error) {
	k, done, err := m.use(ctx)
	if err != nil {
		return nil, fmt.Errorf("wrap under %s: %w", m.ID(), err)
	}
	defer done()
	return envelope.WrapKey(k.wrap, key, context)
}

// Unwrap undoes Wrap. envelope.ErrFrameAuth: another manager's, another context, or changed.
func (m *Manager) Unwrap(ctx context.Context, wrapped, context []byte) (envelope.Secret, error) {
	k, done, err := m.use(ctx)
	if err != nil {
		return envelope.Secret{}, fmt.Errorf("unwrap under %s: %w", m.ID(), err)
	}
	defer done()
	return envelope.UnwrapKey(k.wrap, wrapped, context)
}

// use keeps the keys from being wiped until done is called.
func (m *Manager) use(ctx context.Context) (k *keys, done func(), err error) {
	if err := ctx.Err(); err != nil {
		return nil, nil, err
	}
	m.open.RLock()
	if m.keys == nil {
		m.open.RUnlock()
		return nil, nil, fmt.Errorf("%w: it was closed", keymanager.ErrSealed)
	}
	return m.keys, m.open.RUnlock, nil
}

// keys are the KEK and what is derived from it, one for each purpose.
type keys struct {
	kek, index, record, version, name, wrap envelope.Secret
}

// newKeys takes ownership of kek.
func newKeys(kek envelope.Secret) *keys {
	derive := func(purpose string) envelope.Secret {
		return envelope.DeriveKey(kek, "lockstep keymanager embedded v1 "+purpose)
	}
	return &keys{
		kek: kek, index: derive("index"), record: derive("record"),
		version: derive("version"), name: derive("name"), wrap: derive("wrap"),
	}
}

func (k *keys) wipe() {
	for _, s := range []envelope.Secret{k.kek, k.index, k.record, k.version, k.name, k.wrap} {
		s.Wipe()
	}
}

// readKEK reads kek.sealed and has sealer open it.
func readKEK(dir string, sealer Sealer) (header, envelope.Secret, error) {
	data, err := readBounded(filepath.Join(dir, kekFile), maxKEKFile)
	if errors.Is(err, fs.ErrNotExist) {
		return header{}, envelope.Secret{}, fmt.Errorf("%w: there is no %s", ErrNotInitialised, kekFile)
	}
	if err != nil {
		return header{}, envelope.Secret{}, err
	}
	h, line, blob, err := decodeKEKFile(data)
	if err != nil {
		return header{}, envelope.Secret{}, err
	}
	if h.Sealer != sealer.Kind() {
		return header{}, envelope.Secret{}, fmt.Errorf("%w: it was sealed by a %s, and a %s was given",
			keymanager.ErrSealed, h.Sealer, sealer.Kind())
	}
	kek, err := sealer.Open(blob, line)
	if err != nil {
		return header{}, envelope.Secret{}, fmt.Errorf("%w: %w", keymanager.ErrSealed, err)
	}
	if kek.Len() != envelope.KeySize {
		kek.Wipe()
		return header{}, envelope.Secret{}, fmt.Errorf("%w: the KEK is not %d bytes", keymanager.ErrDamaged, envelope.KeySize)
	}
	return h, kek, nil
}

// writeKEK seals kek and writes kek.sealed; h is given without the sealer.
func writeKEK(dir string, h header, kek envelope.Secret, sealer Sealer,
	write func(string, []byte, fs.FileMode) error,
) error {
	h.Sealer = sealer.Kind()
	line, err := h.line()
	if err != nil {
		return err
	}
	blob, err := sealer.Seal(kek, line)
	if err != nil {
		return fmt.Errorf("seal the KEK: %w", err)
	}
	// A sealer that cannot open what it sealed would lose every secret.
	again, err := sealer.Open(blob, line)
	if err != nil {
		return fmt.Errorf("seal the KEK: the sealer does not open it again: %w", err)
	}
	defer again.Wipe()
	if !again.Equal(kek) {
		return errors.New("seal the KEK: the sealer opens another one")
	}
	data, err := encodeKEKFile(line, blob)
	if err != nil {
		return err
	}
	return write(filepath.Join(dir, kekFile), data, 0o600)
}

// Reseal has another sealer seal the same KEK: a new passphrase, a moved key
// file. Old copies of kek.sealed still open with the old one.
func Reseal(dir string, from, to Sealer) error {
	unlock, err := lockFolder(context.Background(), dir, true)
	if err != nil {
		return fmt.Errorf("reseal key manager in %s: %w", dir, err)
	}
	defer unlock()
	h, kek, err := readKEK(dir, from)
	if err != nil {
		return fmt.Errorf("reseal key manager in %s: %w", dir, err)
	}
	defer kek.Wipe()
	if err := writeKEK(dir, h, kek, to, envelope.WriteFileDurable); err != nil {
		return fmt.Errorf("reseal key manager in %s: %w", dir, err)
	}
	return nil
}

// headerOf is for Backup, which has the keys but not the header.
func headerOf(dir string) ([]byte, error) {
	data, err := readBounded(filepath.Join(dir, kekFile), maxKEKFile)
	if err != nil {
		return nil, err
	}
	_, line, _, err := decodeKEKFile(data)
	return bytes.Clone(line), err
}
