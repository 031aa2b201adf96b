package envelope

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"strings"

	"filippo.io/age"
)

// MaxSealed bounds the plaintext of a sealed file, in bytes.
const MaxSealed = 16 << 20

// maxSealedFile leaves room for many recipients above the plaintext.
const maxSealedFile = MaxSealed + 4<<20

// Work factors of scrypt, as log2 of N: what is written unless the caller says
// otherwise, and the most that is accepted on reading (2^20 takes 1 GiB).
const (
	DefaultWorkFactor = 18
	MaxWorkFactor     = 20
)

const maxIdentities = 256

// Errors of sealed files.
var (
	ErrRecipient  = errors.New("recipient is not valid")
	ErrIdentity   = errors.New("identity is not valid")
	ErrNoIdentity = errors.New("none of the identities opens it")
	ErrPassphrase = errors.New("passphrase does not open it")
	ErrSealed     = errors.New("sealed file is damaged")
	ErrTooLarge   = errors.New("larger than may be")
)

// GenerateIdentity makes an X25519 identity ("AGE-SECRET-KEY-1…") and its
// recipient ("age1…").
func GenerateIdentity() (identity Secret, recipient string, err error) {
	id, err := age.GenerateX25519Identity()
	if err != nil {
		return Secret{}, "", fmt.Errorf("generate identity: %w", err)
	}
	return NewSecret([]byte(id.String())), id.Recipient().String(), nil
}

// GenerateHybridIdentity makes an identity that withstands quantum computers
// ("AGE-SECRET-KEY-PQ-1…", ML-KEM-768 with X25519) and its recipient ("age1pq1…").
func GenerateHybridIdentity() (identity Secret, recipient string, err error) {
	id, err := age.GenerateHybridIdentity()
	if err != nil {
		return Secret{}, "", fmt.Errorf("generate identity: %w", err)
	}
	return NewSecret([]byte(id.String())), id.Recipient().String(), nil
}

// CheckRecipient refuses what SealToRecipients would not take, with ErrRecipient.
func CheckRecipient(recipient string) error {
	_, err := parseRecipient(recipient)
	return err
}

// RecipientsOf gives the recipients that belong to identities, in their order.
func RecipientsOf(identities Secret) ([]string, error) {
	ids, err := parseIdentities(identities)
	if err != nil {
		return nil, fmt.Errorf("read identities: %w", err)
	}
	var out []string
	for _, id := range ids {
		switch id := id.(type) {
		case *age.X25519Identity:
			out = append(out, id.Recipient().String())
		case *age.HybridIdentity:
			out = append(out, id.Recipient().String())
		}
	}
	return out, nil
}

// SealToRecipients seals plaintext (at most MaxSealed bytes) so that each of
// the recipients can open it. age refuses X25519 and hybrid recipients in one
// file; seal twice then.
func SealToRecipients(plaintext []byte, recipients []string) ([]byte, error) {
	parsed, err := parseRecipients(recipients)
	if err != nil {
		return nil, fmt.Errorf("seal: %w", err)
	}
	return sealAge(plaintext, parsed...)
}

// SealingWriter seals what is written to it, of any length, so that each of the
// recipients can open it. What is not closed cannot be opened.
func SealingWriter(w io.Writer, recipients []string) (io.WriteCloser, error) {
	parsed, err := parseRecipients(recipients)
	if err != nil {
		return nil, fmt.Errorf("seal: %w", err)
	}
	sealed, err := age.Encrypt(w, parsed...)
	if err != nil {
		return nil, fmt.Errorf("seal: %w", err)
	}
	return sealed, nil
}

// OpeningReader opens what SealingWriter or SealToRecipients made, of any
// length. The last bytes are authentic only once io.EOF was read.
// ErrNoIdentity: none of ids fits. ErrSealed: damaged.
func OpeningReader(r io.Reader, ids Secret) (io.Reader, error) {
	identities, err := parseIdentities(ids)
	if err != nil {
		return nil, fmt.Errorf("open sealed file: %w", err)
	}
	plain, err := age.Decrypt(r, identities...)
	if err != nil {
		return nil, fmt.Errorf("open sealed file: %w", noMatchOr(err, ErrNoIdentity))
	}
	return plain, nil
}

// noMatchOr tells a file sealed to others, noMatch, from a damaged one.
func noMatchOr(err, noMatch error) error {
	if _, ok := errors.AsType[*age.NoIdentityMatchError](err); ok {
		return noMatch
	}
	return fmt.Errorf("%w: %w", ErrSealed, err)
}

func parseRecipients(recipients []string) ([]age.Recipient, error) {
	if len(recipients) == 0 {
		return nil, fmt.Errorf("%w: there is none", ErrRecipient)
	}
	parsed := make([]age.Recipient, len(recipients))
	for i, r := range recipients {
		var err error
		if parsed[i], err = parseRecipient(r); err != nil {
			return nil, err
		}
	}
	return parsed, nil
}

// OpenWithIdentities opens what was sealed to a recipient of one of ids, a
// text of identities, one a line, with "#" comments, as age-keygen writes it.
// ErrNoIdentity: none of them fits. ErrSealed: damaged.
func OpenWithIdentities(ct []byte, ids Secret) (Secret, error) {
	identities, err := parseIdentities(ids)
	if err != nil {
		return Secret{}, fmt.Errorf("open sealed file: %w", err)
	}
	return openAge(ct, ErrNoIdentity, identities...)
}

// SealWithPassphrase seals plaintext under a passphrase with scrypt; a
// workFactor of 0 means DefaultWorkFactor.
func SealWithPassphrase(plaintext []byte, passphrase Secret, workFactor int) ([]byte, error) {
	if workFactor == 0 {
		workFactor = DefaultWorkFactor
	}
	if workFactor < 1 || workFactor > MaxWorkFactor {
		return nil, fmt.Errorf("seal: work factor %d is not between 1 and %d", workFactor, MaxWorkFactor)
	}
	recipient, err := age.NewScryptRecipient(string(passphrase.Expose()))
	if err != nil {
		return nil, fmt.Errorf("seal: %w", err)
	}
	recipient.SetWorkFactor(workFactor)
	return sealAge(plaintext, recipient)
}

// OpenWithPassphrase undoes SealWithPassphrase. ErrPassphrase: another
// passphrase. A work factor above MaxWorkFactor is refused with ErrSealed.
func OpenWithPassphrase(ct []byte, passphrase Secret) (Secret, error) {
	identity, err := age.NewScryptIdentity(string(passphrase.Expose()))
	if err != nil {
		return Secret{}, fmt.Errorf("open sealed file: %w", err)
	}
	identity.SetMaxWorkFactor(MaxWorkFactor)
	return openAge(ct, ErrPassphrase, identity)
}

func sealAge(plaintext []byte, recipients ...age.Recipient) ([]byte, error) {
	if len(plaintext) > MaxSealed {
		return nil, fmt.Errorf("seal: %w: %d bytes", ErrTooLarge, len(plaintext))
	}
	var out bytes.Buffer
	w, err := age.Encrypt(&out, recipients...)
	if err != nil {
		return nil, fmt.Errorf("seal: %w", err)
	}
	if _, err := w.Write(plaintext); err != nil {
		return nil, fmt.Errorf("seal: %w", err)
	}
	if err := w.Close(); err != nil {
		return nil, fmt.Errorf("seal: %w", err)
	}
	if out.Len() > maxSealedFile {
		return nil, fmt.Errorf("seal: %w: too many recipients", ErrTooLarge)
	}
	return out.Bytes(), nil
}

func openAge(ct []byte, noMatch error, identities ...age.Identity) (Secret, error) {
	if len(ct) > maxSealedFile {
		return Secret{}, fmt.Errorf("open sealed file: %w: %d bytes", ErrTooLarge, len(ct))
	}
	r, err := age.Decrypt(bytes.NewReader(ct), identities...)
	if err != nil {
		return Secret{}, fmt.Errorf("open sealed file: %w", noMatchOr(err, noMatch))
	}
	plaintext, err := readBounded(r, MaxSealed)
	if err != nil && !errors.Is(err, ErrTooLarge) {
		err = fmt.Errorf("%w: %w", ErrSealed, err)
	}
	if err != nil {
		return Secret{}, fmt.Errorf("open sealed file: %w", err)
	}
	return plaintext, nil
}

func parseRecipient(s string) (age.Recipient, error) {
	var r age.Recipient
	var err error
	if strings.HasPrefix(s, "age1pq1") {
		r, err = age.ParseHybridRecipient(s)
	} else {
		r, err = age.ParseX25519Recipient(s)
	}
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrRecipient, err)
	}
	return r, nil
}

// parseIdentities does not pass on age's errors: they quote the line.
func parseIdentities(text Secret) ([]age.Identity, error) {
	var out []age.Identity
	for number, line := range bytes.Split(text.Expose(), []byte("\n")) {
		line = bytes.TrimSpace(line)
		if len(line) == 0 || line[0] == '#' {
			continue
		}
		if len(out) == maxIdentities {
			return nil, fmt.Errorf("%w: more than %d", ErrIdentity, maxIdentities)
		}
		var id age.Identity
		var err error
		if bytes.HasPrefix(line, []byte("AGE-SECRET-KEY-PQ-1")) {
			id, err = age.ParseHybridIdentity(string(line))
		} else {
			id, err = age.ParseX25519Identity(string(line))
		}
		if err != nil {
			return nil, fmt.Errorf("%w: line %d", ErrIdentity, number+1)
		}
		out = append(out, id)
	}
	if len(out) == 0 {
		return nil, fmt.Errorf("%w: there is none", ErrIdentity)
	}
	return out, nil
}

// readBounded reads all of r into a secret of at most limit bytes and leaves
// no copies behind when its buffer grows.
func readBounded(r io.Reader, limit int) (Secret, error) {
	buf := make([]byte, min(4096, limit+1))
	n := 0
	for {
		m, err := r.Read(buf[n:])
		n += m
		if errors.Is(err, io.EOF) && n <= limit {
			return NewSecret(buf[:n:n]), nil
		}
		if err != nil && !errors.Is(err, io.EOF) {
			Wipe(buf)
			return Secret{}, err
		}
		if n > limit {
			Wipe(buf)
			return Secret{}, fmt.Errorf("%w: more than %d bytes", ErrTooLarge, limit)
		}
		if n == len(buf) {
			grown := make([]byte, min(4*len(buf), limit+1))
			copy(grown, buf)
			Wipe(buf)
			buf = grown
		}
	}
}
