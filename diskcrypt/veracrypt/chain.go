package veracrypt

import (
	"crypto/aes"
	"crypto/cipher"
	"fmt"
	"slices"
	"strings"

	"github.com/aead/serpent"
	"golang.org/x/crypto/twofish" //lint:ignore SA1019 what volumes were made with is not ours to choose

	"github.com/lockstep-backup/lockstep/disk"
	"github.com/lockstep-backup/lockstep/diskcrypt/internal/xts"
)

// chain is a cipher or a cascade, in the order in which its keys lie: the last
// one encrypts last.
type chain struct {
	name    string // as VeraCrypt writes it, in lower case: the first one decrypts first
	ciphers []string
}

// chains are the ones that can be read. VeraCrypt names a cascade from the
// outermost cipher; keys lie from the innermost.
var chains = []chain{
	{"aes", []string{"aes"}},
	{"serpent", []string{"serpent"}},
	{"twofish", []string{"twofish"}},
	{"aes-twofish", []string{"twofish", "aes"}},
	{"serpent-aes", []string{"aes", "serpent"}},
	{"twofish-serpent", []string{"serpent", "twofish"}},
	{"aes-twofish-serpent", []string{"serpent", "twofish", "aes"}},
	{"serpent-twofish-aes", []string{"aes", "twofish", "serpent"}},
}

const cipherKey = 32 // bytes, of each cipher and each of its tweaks

func (c chain) keyBytes() int { return 2 * cipherKey * len(c.ciphers) }

// chainsOf are the chains that a declared cipher may mean: all where none is
// declared, none where it cannot be read.
func chainsOf(name string) []chain {
	if name == "" {
		return chains
	}
	i := slices.IndexFunc(chains, func(c chain) bool { return c.name == strings.TrimSuffix(name, "-xts") })
	if i < 0 {
		return nil
	}
	return chains[i : i+1]
}

func chainNames() (names []string) {
	for _, c := range chains {
		names = append(names, c.name)
	}
	return names
}

// cascade is a chain with its keys, as plainview wants ciphers.
type cascade []*xts.Cipher

// newCascade takes the keys from the first bytes of key: the data keys of all
// ciphers, then their tweak keys.
func newCascade(c chain, key []byte) (cascade, error) {
	var out cascade
	tweaks := key[cipherKey*len(c.ciphers):]
	for i, name := range c.ciphers {
		data, err := block(name, key[i*cipherKey:(i+1)*cipherKey])
		if err != nil {
			return nil, err
		}
		tweak, err := block(name, tweaks[i*cipherKey:(i+1)*cipherKey])
		if err != nil {
			return nil, err
		}
		x, err := xts.NewBlocks(data, tweak)
		if name == "aes" { // has a path of its own
			pair := append(append(make([]byte, 0, 2*cipherKey), key[i*cipherKey:(i+1)*cipherKey]...), tweaks[i*cipherKey:(i+1)*cipherKey]...)
			x, err = xts.New(pair)
			clear(pair)
		}
		if err != nil {
			return nil, err
		}
		out = append(out, x)
	}
	return out, nil
}

func block(name string, key []byte) (cipher.Block, error) {
	switch name {
	case "aes":
		return aes.NewCipher(key)
	case "serpent":
		return serpent.NewCipher(key)
	case "twofish":
		return twofish.NewCipher(key)
	}
	return nil, fmt.Errorf("cipher %q", name)
}

func (c cascade) SectorSize() int { return disk.SectorSize }

func (c cascade) Decrypt(b []byte, unit uint64) { c.decrypt(b, disk.SectorSize, unit) }

func (c cascade) decrypt(b []byte, size int, unit uint64) {
	for _, x := range slices.Backward(c) {
		x.Decrypt(b, size, unit, 1)
	}
}

func (c cascade) Encrypt(b []byte, unit uint64) {
	for _, x := range c {
		x.Encrypt(b, disk.SectorSize, unit, 1)
	}
}

func (c cascade) wipe() {
	for _, x := range c {
		x.Wipe()
	}
}
