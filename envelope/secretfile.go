package envelope

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
)

// MaxSecretFile bounds a secret read from a file: cryptsetup's limit for key
// files, 8 MiB.
const MaxSecretFile = 8 << 20

// ErrEmptySecret says that a file or reader held no secret.
var ErrEmptySecret = errors.New("secret is empty")

// ReadSecretFile reads a secret from a file, or from stdin if path is "-"; a
// nil stdin refuses "-". With firstLine it is the first line without its line
// ending (LF or CRLF): a passphrase as an editor saves it. Without, it is every
// byte: a key file.
func ReadSecretFile(path string, firstLine bool, stdin io.Reader) (Secret, error) {
	if path == "-" {
		if stdin == nil {
			return Secret{}, errors.New("read secret: standard input cannot be used here")
		}
		secret, err := ReadSecret(stdin, firstLine)
		if err != nil {
			return Secret{}, fmt.Errorf("%w (standard input)", err)
		}
		return secret, nil
	}
	f, err := os.Open(path)
	if err != nil {
		return Secret{}, fmt.Errorf("read secret: %w", err)
	}
	defer f.Close()
	secret, err := ReadSecret(f, firstLine)
	if err != nil {
		return Secret{}, fmt.Errorf("%w (%s)", err, path)
	}
	return secret, nil
}

// ReadSecret is ReadSecretFile for a reader, which is read to its end.
func ReadSecret(r io.Reader, firstLine bool) (Secret, error) {
	secret, err := readBounded(r, MaxSecretFile)
	if err != nil {
		return Secret{}, fmt.Errorf("read secret: %w", err)
	}
	if firstLine {
		b := secret.Expose()
		if i := bytes.IndexByte(b, '\n'); i >= 0 {
			Wipe(b[i:])
			b = bytes.TrimSuffix(b[:i], []byte("\r"))
		}
		secret = NewSecret(b)
	}
	if secret.Len() == 0 {
		return Secret{}, fmt.Errorf("read secret: %w", ErrEmptySecret)
	}
	return secret, nil
}
