package embedded

import (
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"

	"golang.org/x/crypto/argon2"

	"github.com/lockstep-backup/lockstep/envelope"
)

// Sealer seals the KEK. context is authenticated with it and must be given
// again. Open's error says what was tried, never what was read.
type Sealer interface {
	// Kind is a constant, stored in the clear: "passphrase-file", "key-file".
	Kind() string
	// Describe says for people where the key to everything lies and how weak that is.
	Describe() string
	Seal(kek envelope.Secret, context []byte) ([]byte, error)
	Open(sealed, context []byte) (envelope.Secret, error)
}

// Errors of sealers.
var (
	ErrPermissions = errors.New("group or others may access it")
	ErrWrongKey    = errors.New("does not open the KEK")
	ErrWeakKeyFile = errors.New("has too few bytes for a key file")
)

const (
	minKeyFile = 32
	saltSize   = 32
	keyPurpose = "lockstep keymanager embedded v1 key file"

	tagPassphrase = 1
	tagKeyFile    = 2
)

// argonCost is Argon2id's: passes, KiB, lanes. The default is the second
// recommended choice of RFC 9106; the bounds keep a forged file from taking
// more than 256 MiB.
type argonCost struct {
	passes uint32
	memory uint32
	lanes  uint8
}

var (
	defaultCost = argonCost{passes: 3, memory: 64 << 10, lanes: 4}
	maxCost     = argonCost{passes: 16, memory: 256 << 10, lanes: 16}
)

// PassphraseFile seals under the passphrase in the first line of a file.
func PassphraseFile(path string) Sealer { return passphraseFile{path: path, cost: defaultCost} }

type passphraseFile struct {
	path string
	cost argonCost
}

func (p passphraseFile) Kind() string { return "passphrase-file" }

func (p passphraseFile) Describe() string {
	return fmt.Sprintf("passphrase file %s: whoever can read it and the data directory can read the secrets; "+
		"whoever has only the data directory can try passphrases against it. Lost, it takes every secret with it: keep a copy elsewhere", p.path)
}

func (p passphraseFile) key(cost argonCost, salt []byte) (envelope.Secret, error) {
	passphrase, err := readOwnerOnly(p.path, true)
	if err != nil {
		return envelope.Secret{}, fmt.Errorf("passphrase file: %w", err)
	}
	defer passphrase.Wipe()
	return envelope.NewSecret(argon2.IDKey(passphrase.Expose(), salt, cost.passes, cost.memory, cost.lanes, envelope.KeySize)), nil
}

func (p passphraseFile) Seal(kek envelope.Secret, context []byte) ([]byte, error) {
	salt, err := newSalt()
	if err != nil {
		return nil, err
	}
	key, err := p.key(p.cost, salt)
	if err != nil {
		return nil, err
	}
	defer key.Wipe()
	head := []byte{tagPassphrase}
	head = binary.LittleEndian.AppendUint32(head, p.cost.passes)
	head = binary.LittleEndian.AppendUint32(head, p.cost.memory)
	head = append(append(head, p.cost.lanes), salt...)
	return sealKEK(key, kek, head, context)
}

const passphraseHead = 1 + 4 + 4 + 1 + saltSize

func (p passphraseFile) Open(sealed, context []byte) (envelope.Secret, error) {
	cost, err := passphraseCost(sealed)
	if err != nil {
		return envelope.Secret{}, fmt.Errorf("passphrase file %s: %w", p.path, err)
	}
	key, err := p.key(cost, sealed[passphraseHead-saltSize:passphraseHead])
	if err != nil {
		return envelope.Secret{}, err
	}
	defer key.Wipe()
	kek, err := openKEK(key, sealed, passphraseHead, context)
	if err != nil {
		return envelope.Secret{}, fmt.Errorf("the passphrase in %s %w", p.path, err)
	}
	return kek, nil
}

// passphraseCost reads the cost and refuses what would take too long, or panic.
func passphraseCost(sealed []byte) (argonCost, error) {
	if len(sealed) < passphraseHead || sealed[0] != tagPassphrase {
		return argonCost{}, errors.New("the sealed KEK is not one of a passphrase")
	}
	cost := argonCost{
		passes: binary.LittleEndian.Uint32(sealed[1:]),
		memory: binary.LittleEndian.Uint32(sealed[5:]),
		lanes:  sealed[9],
	}
	if cost.passes < 1 || cost.passes > maxCost.passes || cost.memory < 8 || cost.memory > maxCost.memory ||
		cost.lanes < 1 || cost.lanes > maxCost.lanes {
		return argonCost{}, fmt.Errorf("argon2id cost out of bounds: %d passes, %d KiB, %d lanes", cost.passes, cost.memory, cost.lanes)
	}
	return cost, nil
}

// KeyFile seals under a file of at least 32 random bytes, taken byte for byte.
func KeyFile(path string) Sealer { return keyFile{path: path} }

// GenerateKeyFile is KeyFile for a file that Init makes: 32 random bytes, mode 0600.
func GenerateKeyFile(path string) Sealer { return keyFile{path: path, generate: true} }

type keyFile struct {
	path     string
	generate bool
}

func (k keyFile) Kind() string { return "key-file" }

func (k keyFile) Describe() string {
	if k.generate {
		return fmt.Sprintf("key file %s: whoever can read the data directory and this file can read the secrets, "+
			"and on one disk that is whoever has the disk; move it to another disk or host, or seal with a passphrase. "+
			"Lost, it takes every secret with it: keep a copy elsewhere", k.path)
	}
	return fmt.Sprintf("key file %s: whoever can read it and the data directory can read the secrets; "+
		"keep the two apart. Lost, it takes every secret with it: keep a copy elsewhere", k.path)
}

func (k keyFile) key(salt []byte) (envelope.Secret, error) {
	content, err := readOwnerOnly(k.path, false)
	if err != nil {
		return envelope.Secret{}, fmt.Errorf("key file: %w", err)
	}
	defer content.Wipe()
	if content.Len() < minKeyFile {
		return envelope.Secret{}, fmt.Errorf("key file %s: %w: %d, at least %d are needed", k.path, ErrWeakKeyFile, content.Len(), minKeyFile)
	}
	return envelope.DeriveKey(content, keyPurpose, salt), nil
}

func (k keyFile) Seal(kek envelope.Secret, context []byte) ([]byte, error) {
	if k.generate {
		if err := generateKeyFile(k.path); err != nil {
			return nil, fmt.Errorf("generate key file: %w", err)
		}
	}
	salt, err := newSalt()
	if err != nil {
		return nil, err
	}
	key, err := k.key(salt)
	if err != nil {
		return nil, err
	}
	defer key.Wipe()
	return sealKEK(key, kek, append([]byte{tagKeyFile}, salt...), context)
}

func (k keyFile) Open(sealed, context []byte) (envelope.Secret, error) {
	const head = 1 + saltSize
	if len(sealed) < head || sealed[0] != tagKeyFile {
		return envelope.Secret{}, fmt.Errorf("key file %s: the sealed KEK is not one of a key file", k.path)
	}
	key, err := k.key(sealed[1:head])
	if err != nil {
		return envelope.Secret{}, err
	}
	defer key.Wipe()
	kek, err := openKEK(key, sealed, head, context)
	if err != nil {
		return envelope.Secret{}, fmt.Errorf("the key file %s %w", k.path, err)
	}
	return kek, nil
}

// generateKeyFile takes over a file that can only be its own, from an
// interrupted Init; anything else that exists is left alone.
func generateKeyFile(path string) error {
	key, err := envelope.NewKey()
	if err != nil {
		return err
	}
	defer key.Wipe()
	if err := makeFolder(filepath.Dir(path)); err != nil {
		return err
	}
	err = envelope.WriteNewFileDurable(path, key.Expose(), 0o600)
	if !errors.Is(err, fs.ErrExist) {
		return err
	}
	existing, readErr := readOwnerOnly(path, false)
	if readErr != nil {
		return readErr
	}
	defer existing.Wipe()
	if existing.Len() != envelope.KeySize {
		return err
	}
	return nil
}

// readOwnerOnly reads a secret from a file that nobody else may access. The
// check is on the opened file, so that it cannot be exchanged in between.
func readOwnerOnly(path string, firstLine bool) (envelope.Secret, error) {
	f, err := os.Open(path)
	if err != nil {
		return envelope.Secret{}, err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return envelope.Secret{}, err
	}
	// Windows has access lists and answers 0666 for every file.
	if perm := info.Mode().Perm(); runtime.GOOS != "windows" && perm&0o077 != 0 {
		return envelope.Secret{}, fmt.Errorf("%s: %w: mode %04o (chmod go= %s)", path, ErrPermissions, perm, path)
	}
	secret, err := envelope.ReadSecret(f, firstLine)
	if err != nil {
		return envelope.Secret{}, fmt.Errorf("%s: %w", path, err)
	}
	return secret, nil
}

func newSalt() ([]byte, error) {
	salt := make([]byte, saltSize)
	_, err := rand.Read(salt)
	return salt, err
}

func sealKEK(key, kek envelope.Secret, head, context []byte) ([]byte, error) {
	frame, err := sealFrame(kindSealedKEK, key, joined(head, context), kek.Expose())
	if err != nil {
		return nil, err
	}
	return append(head, frame...), nil
}

func openKEK(key envelope.Secret, sealed []byte, head int, context []byte) (envelope.Secret, error) {
	body, err := openFrame(kindSealedKEK, key, joined(sealed[:head], context), sealed[head:])
	if err != nil {
		return envelope.Secret{}, ErrWrongKey
	}
	return envelope.NewSecret(body), nil
}

func joined(a, b []byte) []byte {
	return append(append(make([]byte, 0, len(a)+len(b)), a...), b...)
}
