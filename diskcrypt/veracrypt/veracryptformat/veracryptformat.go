// Package veracryptformat makes VeraCrypt and TrueCrypt volumes for tests. It
// shares no code with the reader but the secret's form: what one makes and the
// other opens was understood twice. It is for tests: the counts of iterations are
// right, nothing else about it is meant to be secure.
package veracryptformat

import (
	"crypto/aes"
	"crypto/cipher"
	"crypto/pbkdf2"
	"crypto/rand"
	"crypto/sha256"
	"crypto/sha512"
	"encoding/binary"
	"fmt"
	"hash"
	"hash/crc32"
	"io"
	"strings"

	"github.com/aead/serpent"
	"golang.org/x/crypto/twofish" //lint:ignore SA1019 a cipher of the format
	"golang.org/x/crypto/xts"

	"github.com/lockstep-backup/lockstep/diskcrypt/veracrypt"
)

// Options of one volume.
type Options struct {
	Secret    veracrypt.Secret // without key files
	Hash      string           // sha512 or sha256
	Cipher    string           // as VeraCrypt names it: "aes-twofish-serpent"
	TrueCrypt bool
	// HiddenSize makes the hidden volume, of so many bytes before the backup headers.
	HiddenSize int64
}

const (
	groups = 128 << 10 // headers at either end
	sector = 512
	units  = 64 << 10
)

// DataRange is where the plaintext of a volume lies in a container of size bytes.
func (o Options) DataRange(size int64) (offset, length int64) {
	if o.HiddenSize > 0 {
		return size - groups - o.HiddenSize, o.HiddenSize
	}
	return groups, size - 2*groups
}

// Format writes the headers of a volume and, encrypted, the plaintext, into a
// container of size bytes.
func Format(w io.WriterAt, size int64, o Options, plaintext io.Reader) error {
	offset, length := o.DataRange(size)
	if length <= 0 || offset < groups || size%sector != 0 {
		return fmt.Errorf("format veracrypt volume: no room in %d bytes", size)
	}
	names := strings.Split(o.Cipher, "-")
	keys := make([]byte, 256)
	if _, err := rand.Read(keys); err != nil {
		return err
	}
	at := []int64{0, size - groups}
	if o.HiddenSize > 0 {
		at = []int64{64 << 10, size - 64<<10}
	}
	for _, place := range at {
		b, err := o.header(names, keys, offset, length)
		if err != nil {
			return fmt.Errorf("format veracrypt volume: %w", err)
		}
		if _, err := w.WriteAt(b, place); err != nil {
			return err
		}
	}
	data, err := ciphers(names, keys)
	if err != nil {
		return err
	}
	buf := make([]byte, units)
	for done := int64(0); done < length; {
		b := buf[:min(units, length-done)]
		clear(b)
		if _, err := io.ReadFull(plaintext, b); err != nil && err != io.EOF && err != io.ErrUnexpectedEOF {
			return err
		}
		for i := 0; i < len(b); i += sector {
			for _, c := range data {
				c.Encrypt(b[i:i+sector], b[i:i+sector], uint64((offset+done+int64(i))/sector))
			}
		}
		if _, err := w.WriteAt(b, offset+done); err != nil {
			return err
		}
		done += int64(len(b))
	}
	return nil
}

// ciphers in the order of encryption: VeraCrypt names them from the last.
func ciphers(names []string, keys []byte) ([]*xts.Cipher, error) {
	n := len(names)
	var out []*xts.Cipher
	for i := range n {
		pair := append(append([]byte(nil), keys[32*i:32*i+32]...), keys[32*(n+i):32*(n+i)+32]...)
		c, err := xts.NewCipher(func(key []byte) (cipher.Block, error) {
			switch names[n-1-i] {
			case "aes":
				return aes.NewCipher(key)
			case "serpent":
				return serpent.NewCipher(key)
			case "twofish":
				return twofish.NewCipher(key)
			}
			return nil, fmt.Errorf("cipher %q", names[n-1-i])
		}, pair)
		if err != nil {
			return nil, err
		}
		out = append(out, c)
	}
	return out, nil
}

func (o Options) header(names []string, keys []byte, offset, length int64) ([]byte, error) {
	be := binary.BigEndian
	b := make([]byte, 512)
	f := b[64:]
	copy(f, "VERA")
	if o.TrueCrypt {
		copy(f, "TRUE")
	}
	be.PutUint16(f[4:], 5)
	be.PutUint16(f[6:], 0x010b)
	copy(f[192:], keys)
	be.PutUint32(f[8:], crc32.ChecksumIEEE(keys))
	if o.HiddenSize > 0 {
		be.PutUint64(f[28:], uint64(length))
	}
	be.PutUint64(f[36:], uint64(length))
	be.PutUint64(f[44:], uint64(offset))
	be.PutUint64(f[52:], uint64(length))
	be.PutUint32(f[64:], sector)
	be.PutUint32(f[188:], crc32.ChecksumIEEE(f[:188]))

	if _, err := rand.Read(b[:64]); err != nil {
		return nil, err
	}
	iterations, newHash := 500_000, func() hash.Hash { return sha512.New() }
	if o.Hash == "sha256" {
		newHash = sha256.New
	}
	if o.Secret.PIM > 0 {
		iterations = 15_000 + 1000*int(o.Secret.PIM)
	}
	if o.TrueCrypt {
		iterations = 1000
	}
	key, err := pbkdf2.Key(newHash, string(o.Secret.Password), b[:64], iterations, 192)
	if err != nil {
		return nil, err
	}
	all, err := ciphers(names, key)
	if err != nil {
		return nil, err
	}
	for _, c := range all {
		c.Encrypt(f, f, 0)
	}
	return b, nil
}
