// Package ade reads what Azure Disk Encryption leaves: secrets as a key vault
// shows them, plain or wrapped by a key that the caller has, in the forms that
// the Windows and the Linux extension gave them. It speaks to no cloud, and it
// opens nothing: which form is meant, opening tells. Its invariant: nothing of a
// secret is in its errors.
package ade

import (
	"crypto"
	"crypto/rsa"
	"crypto/sha1"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"hash"
	"strings"

	"github.com/lockstep-backup/lockstep/diskcrypt"
	"github.com/lockstep-backup/lockstep/envelope"
)

// Errors that callers act on.
var (
	ErrForm    = errors.New("not a secret of Azure Disk Encryption")
	ErrWrapped = errors.New("the secret is wrapped by a key of the key vault")
	ErrUnwrap  = errors.New("the key does not unwrap the secret")
)

// Form is one way in which a secret may be meant. The caller wipes it.
type Form struct {
	Kind   diskcrypt.Kind
	Secret envelope.Secret
}

// shown is what "az keyvault secret show" prints, and what the vault's API answers.
type shown struct {
	Value       string            `json:"value"`
	ContentType string            `json:"contentType"`
	Tags        map[string]string `json:"tags"`
}

// Names of the service.
const (
	contentWrapped = "Wrapped BEK"
	tagFile        = "DiskEncryptionKeyFileName"
	tagAlgorithm   = "DiskEncryptionKeyEncryptionAlgorithm"
	tagKeyURL      = "DiskEncryptionKeyEncryptionKeyURL"
	linuxFile      = "LinuxPassPhraseFileName"
	bekSuffix      = ".BEK"
)

// maxValue bounds a secret's value: the vault allows 25 KiB.
const maxValue = 32 << 10

// Decode reads a secret. kek is the private key that unwraps it, in PEM; nil
// where it is not wrapped. The forms come likeliest first. ErrForm, ErrWrapped,
// ErrUnwrap.
func Decode(text, kek []byte) ([]Form, error) {
	var s shown
	if err := json.Unmarshal(text, &s); err != nil || s.Value == "" || len(s.Value) > maxValue {
		return nil, fmt.Errorf("read key vault secret: %w: no JSON object with a value", ErrForm)
	}
	wrapped := strings.EqualFold(s.ContentType, contentWrapped) || s.Tags[tagKeyURL] != ""
	if wrapped {
		if len(kek) == 0 {
			return nil, fmt.Errorf("read key vault secret: %w%s", ErrWrapped, keyWords(s.Tags[tagKeyURL]))
		}
		plain, err := unwrap(s, kek)
		if err != nil {
			return nil, fmt.Errorf("read key vault secret: %w", err)
		}
		defer envelope.Wipe(plain)
		return forms(s, plain), nil
	}
	plain, err := decode([]byte(s.Value))
	if err != nil {
		return nil, fmt.Errorf("read key vault secret: %w: its value is not base64", ErrForm)
	}
	defer envelope.Wipe(plain)
	return forms(s, plain), nil
}

func keyWords(url string) string {
	for _, r := range url {
		if r <= ' ' || r > '~' {
			return ""
		}
	}
	if url == "" || len(url) > 512 {
		return ""
	}
	return ": " + url
}

// forms are what the bytes may be: of Windows the .BEK file; of Linux the
// passphrase, and, of the old extension, one more base64 of it.
func forms(s shown, plain []byte) []Form {
	file := s.Tags[tagFile]
	linux := strings.HasPrefix(file, linuxFile)
	if !linux && (strings.HasSuffix(strings.ToUpper(file), bekSuffix) || !isText(plain)) {
		return []Form{{diskcrypt.KindStartupKey, envelope.CopySecret(plain)}}
	}
	// Byte for byte: LUKS takes passphrases and key files alike.
	out := []Form{{diskcrypt.KindKeyFile, envelope.CopySecret(plain)}}
	if inner, err := decode(plain); err == nil && len(inner) > 0 {
		out = append(out, Form{diskcrypt.KindKeyFile, envelope.NewSecret(inner)})
	}
	return out
}

func isText(b []byte) bool {
	for _, c := range b {
		if c < ' ' || c > '~' {
			return false
		}
	}
	return true
}

// decode reads base64 as the services write it: of either alphabet, padded or not.
func decode(text []byte) ([]byte, error) {
	for len(text) > 0 && (text[len(text)-1] == '=' || text[len(text)-1] == '\n' || text[len(text)-1] == '\r') {
		text = text[:len(text)-1]
	}
	encoding := base64.RawStdEncoding
	for _, c := range text {
		if c == '-' || c == '_' {
			encoding = base64.RawURLEncoding
		}
	}
	out := make([]byte, encoding.DecodedLen(len(text)))
	n, err := encoding.Strict().Decode(out, text)
	if err != nil {
		envelope.Wipe(out)
		return nil, ErrForm
	}
	return out[:n], nil
}

// unwrap is what the vault's unwrapkey does.
func unwrap(s shown, kek []byte) ([]byte, error) {
	key, err := privateKey(kek)
	if err != nil {
		return nil, err
	}
	sealed, err := decode([]byte(s.Value))
	if err != nil {
		return nil, fmt.Errorf("%w: its value is not base64", ErrForm)
	}
	var algorithm func() ([]byte, error)
	oaep := func(h func() hash.Hash) func() ([]byte, error) {
		return func() ([]byte, error) { return rsa.DecryptOAEP(h(), nil, key, sealed, nil) }
	}
	switch name := strings.ToUpper(s.Tags[tagAlgorithm]); name {
	case "", "RSA-OAEP":
		algorithm = oaep(sha1.New)
	case "RSA-OAEP-256":
		algorithm = oaep(sha256.New)
	case "RSA1_5":
		//lint:ignore SA1019 what the vault wrapped is not ours to choose; nobody can ask us often
		algorithm = func() ([]byte, error) { return key.Decrypt(nil, sealed, &rsa.PKCS1v15DecryptOptions{}) }
	default:
		return nil, fmt.Errorf("%w: algorithm %q", diskcrypt.ErrUnsupported, name)
	}
	plain, err := algorithm()
	if err != nil || len(plain) == 0 {
		return nil, ErrUnwrap // why is nobody's business
	}
	return plain, nil
}

func privateKey(text []byte) (*rsa.PrivateKey, error) {
	block, _ := pem.Decode(text)
	if block == nil {
		return nil, fmt.Errorf("%w: no PEM", ErrUnwrap)
	}
	defer envelope.Wipe(block.Bytes)
	var key crypto.PrivateKey
	var err error
	if key, err = x509.ParsePKCS8PrivateKey(block.Bytes); err != nil {
		if key, err = x509.ParsePKCS1PrivateKey(block.Bytes); err != nil {
			return nil, fmt.Errorf("%w: no private key in the PEM", ErrUnwrap)
		}
	}
	rsaKey, ok := key.(*rsa.PrivateKey)
	if !ok {
		return nil, fmt.Errorf("%w: it is no RSA key", ErrUnwrap)
	}
	return rsaKey, nil
}
