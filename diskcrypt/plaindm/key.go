package plaindm

import (
	"crypto/sha1"
	"crypto/sha256"
	"crypto/sha512"
	"errors"
	"fmt"
	"hash"
	"slices"
	"strconv"
	"strings"

	"github.com/jzelinskie/whirlpool"
	"golang.org/x/crypto/ripemd160" //lint:ignore SA1019 cryptsetup's default until 2.6

	"github.com/lockstep-backup/lockstep/diskcrypt"
	"github.com/lockstep-backup/lockstep/diskcrypt/internal/dmcrypt"
	"github.com/lockstep-backup/lockstep/envelope"
)

// keyHash is how a passphrase becomes a key: "plain" takes it as it is,
// "NAME:BYTES" fills up with zeroes behind so many bytes.
type keyHash struct {
	plain bool
	new   func() hash.Hash // nil = plain, or not known
	bytes int              // of the key that are hashed
}

func (h keyHash) known() bool { return h.plain || h.new != nil }

// parseHash reads a hash as cryptsetup writes it. A name that is not known is
// no error here.
func parseHash(s string, keyBytes int) (keyHash, error) {
	name, length, ok := strings.Cut(s, ":")
	h := keyHash{bytes: keyBytes, plain: name == "plain"}
	if ok {
		n, err := strconv.Atoi(length)
		if err != nil || n < 1 || n > keyBytes {
			return h, errors.New("hash:BYTES is at least one byte and at most the key's size")
		}
		h.bytes = n
	}
	switch name {
	case "ripemd160":
		h.new = ripemd160.New
	case "sha1":
		h.new = sha1.New
	case "sha224":
		h.new = sha256.New224
	case "sha256":
		h.new = sha256.New
	case "sha384":
		h.new = sha512.New384
	case "sha512":
		h.new = sha512.New
	case "whirlpool":
		h.new = whirlpool.New
	}
	return h, nil
}

// key makes the volume key of a secret. The caller wipes it. Only a passphrase
// is hashed: of a key file, the first bytes are the key.
func (p params) key(kind diskcrypt.Kind, secret []byte) ([]byte, error) {
	switch kind {
	case diskcrypt.KindPassphrase:
		if len(secret) == 0 {
			return nil, errors.New("it is empty")
		}
		return p.hash.key(secret, p.keyBytes)
	case diskcrypt.KindKeyFile:
		if len(secret) < p.keyBytes {
			return nil, fmt.Errorf("the key file has %d bytes, the key %d", len(secret), p.keyBytes)
		}
		return slices.Clone(secret[:p.keyBytes]), nil
	case diskcrypt.KindVolumeKey:
		if len(secret) != p.keyBytes {
			return nil, fmt.Errorf("the volume key has %d bytes, not %d", len(secret), p.keyBytes)
		}
		return slices.Clone(secret), nil
	}
	return nil, fmt.Errorf("a secret of kind %q opens no volume of this type", kind)
}

// key hashes in rounds, each with one "A" more before the passphrase, until the
// key is full.
func (h keyHash) key(passphrase []byte, keyBytes int) ([]byte, error) {
	key := make([]byte, keyBytes)
	if h.plain {
		if len(passphrase) < h.bytes {
			return nil, fmt.Errorf("the passphrase has %d bytes, the key %d, and is not hashed", len(passphrase), h.bytes)
		}
		copy(key, passphrase[:h.bytes])
		return key, nil
	}
	for round, at := 0, 0; at < h.bytes; round++ {
		d := h.new()
		d.Write([]byte(strings.Repeat("A", round)))
		d.Write(passphrase)
		sum := d.Sum(nil)
		at += copy(key[at:h.bytes], sum)
		envelope.Wipe(sum)
	}
	return key, nil
}

func (p params) newCipher(key []byte) (*dmcrypt.Cipher, error) {
	var options []dmcrypt.Option
	if p.largeIV {
		options = append(options, dmcrypt.IVLargeSectors)
	}
	return dmcrypt.New(p.cipher, key, p.sectorSize, options...)
}
