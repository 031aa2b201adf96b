// Package kit writes and reads the recovery kit: one text file that, together
// with a repository, is all that a restore needs when everything else is gone.
// docs/spec/kit.md is the format.
//
// A kit is also an age identity file, so that age itself can open what a
// recovery identity opens. The package decides nothing about trust; it carries
// the pins. Its invariant: what Read returns is what Write was given, or an
// error; a line that was mistyped or cut off is noticed.
package kit

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"regexp"
	"slices"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/lockstep-backup/lockstep/envelope"
)

// Errors that callers act on.
var (
	ErrNotKit  = errors.New("not a recovery kit")
	ErrDamaged = errors.New("recovery kit is damaged")
	ErrVersion = errors.New("recovery kit version is not known")
)

// MaxSize bounds a kit, in bytes.
const MaxSize = 1 << 20

// maxItems bounds recipients, locations and keys, each.
const maxItems = 1000

// Kit is what lies in the safe.
type Kit struct {
	// Identity is one or more age identities, one a line. It is empty where the
	// recovery identity was the user's own before and is kept by the user.
	Identity   envelope.Secret
	Recipients []string             // age recipients that key packages are sealed to
	Repository string               // id, 32 hex digits
	Locations  []string             // URLs or paths where the repository was, for people and as a default
	TrustRoot  string               // pin of the repository's first trust entry, "sha256:…"
	Keys       []envelope.PublicKey // pinned public keys of writer, prover, custodian
	Created    time.Time
}

var (
	repositoryID = regexp.MustCompile(`^[0-9a-f]{32}$`)
	digest       = regexp.MustCompile(`^sha256:[0-9a-f]{64}$`)
)

// Check refuses a kit that could not be used.
func (k Kit) Check() error {
	switch {
	case !repositoryID.MatchString(k.Repository):
		return fmt.Errorf("repository id %q is not 32 hex digits", k.Repository)
	case !digest.MatchString(k.TrustRoot):
		return fmt.Errorf("trust root %q is not a sha256 digest", k.TrustRoot)
	case len(k.Recipients) == 0 || len(k.Recipients) > maxItems:
		return fmt.Errorf("%d recipients", len(k.Recipients))
	case len(k.Locations) > maxItems || len(k.Keys) == 0 || len(k.Keys) > maxItems:
		return fmt.Errorf("%d locations, %d keys", len(k.Locations), len(k.Keys))
	case k.Created.IsZero():
		return errors.New("date is missing")
	}
	for _, r := range k.Recipients {
		if err := envelope.CheckRecipient(r); err != nil {
			return err
		}
	}
	for _, l := range k.Locations {
		if l == "" || len(l) > 4096 || !printable(l) {
			return fmt.Errorf("location %q cannot be printed", l)
		}
	}
	for _, p := range k.Keys {
		if err := p.Check(); err != nil {
			return err
		}
	}
	if k.Identity.Len() == 0 {
		return nil
	}
	if !utf8.Valid(k.Identity.Expose()) {
		return envelope.ErrIdentity
	}
	own, err := envelope.RecipientsOf(k.Identity)
	if err != nil {
		return err
	}
	for _, r := range own {
		if !slices.Contains(k.Recipients, r) {
			return fmt.Errorf("recipient %s of its identity is not among its recipients", r)
		}
	}
	return nil
}

func printable(s string) bool {
	return utf8.ValidString(s) && strings.TrimSpace(s) == s && strings.IndexFunc(s, unicode.IsControl) < 0
}

// Write writes a new kit with mode 0600, durably. It never overwrites; the
// error then matches fs.ErrExist.
func Write(path string, k Kit) error {
	text, err := Encode(k)
	if err != nil {
		return err
	}
	defer text.Wipe()
	if err := envelope.WriteNewFileDurable(path, text.Expose(), fs.FileMode(0o600)); err != nil {
		return fmt.Errorf("write recovery kit: %w", err)
	}
	return nil
}

// Read reads and parses a kit.
func Read(path string) (Kit, error) {
	f, err := os.Open(path)
	if err != nil {
		return Kit{}, fmt.Errorf("read recovery kit: %w", err)
	}
	defer func() { _ = f.Close() }()
	raw, err := io.ReadAll(io.LimitReader(f, MaxSize+1))
	if err != nil {
		return Kit{}, fmt.Errorf("read recovery kit: %w", err)
	}
	text := envelope.NewSecret(raw)
	defer text.Wipe()
	return Parse(text)
}

const (
	magic      = "#: lockstep-kit 1"
	magicStart = "#: lockstep-kit"
	dataPrefix = "#: "
)

// Is tells whether text says of itself that it is a kit.
func Is(text envelope.Secret) bool {
	rest := text.Expose()
	for len(rest) > 0 {
		var line []byte
		line, rest, _ = bytes.Cut(rest, []byte("\n"))
		if bytes.HasPrefix(bytes.TrimSpace(line), []byte(magicStart)) {
			return true
		}
	}
	return false
}

// Encode gives the text of a kit.
func Encode(k Kit) (envelope.Secret, error) {
	if err := k.Check(); err != nil {
		return envelope.Secret{}, fmt.Errorf("write recovery kit: %w", err)
	}
	var data []string
	add := func(name, value string) { data = append(data, dataPrefix+name+" "+value) }
	data = append(data, magic)
	add("created", k.Created.UTC().Format(time.RFC3339))
	add("repository", k.Repository)
	for _, l := range k.Locations {
		add("location", l)
	}
	add("trust-root", k.TrustRoot)
	for _, p := range k.Keys {
		add("key", p.String())
	}
	for _, r := range k.Recipients {
		add("recipient", r)
	}
	ids := identityLines(k.Identity.Expose())

	h := sha256.New()
	for _, l := range data {
		_, _ = io.WriteString(h, l+"\n")
	}
	size := 8192
	for _, l := range ids {
		h.Write(l)
		h.Write([]byte("\n"))
		size += len(l) + 1
	}
	for _, l := range data {
		size += len(l) + 1
	}
	// One buffer of sufficient size, so that growing leaves no copy of the identity behind.
	guide := guideText(k)
	out := make([]byte, 0, size+len(guide))
	out = append(out, guide...)
	for _, l := range data {
		out = append(append(out, l...), '\n')
	}
	for _, l := range ids {
		out = append(append(out, l...), '\n')
	}
	out = append(append(append(out, dataPrefix+"sum "...), sumText(h.Sum(nil))...), '\n')
	return envelope.NewSecret(out), nil
}

func sumText(sum []byte) string { return "sha256:" + hex.EncodeToString(sum) }

// identityLines are the lines of an identity file that are not comments; they
// share its memory.
func identityLines(text []byte) (out [][]byte) {
	for line := range bytes.Lines(text) {
		line = bytes.TrimSpace(line)
		if len(line) > 0 && line[0] != '#' {
			out = append(out, line)
		}
	}
	return out
}

// Parse reads the text of a kit. ErrNotKit: it does not say that it is one.
// ErrVersion: of a later version. ErrDamaged: something is missing or changed.
// What people read in it (lines that begin with "# ") does not count, nor do
// spaces at the ends of lines: a kit may have been typed from paper.
func Parse(text envelope.Secret) (Kit, error) {
	k, err := parse(text)
	if err != nil {
		k.Identity.Wipe()
		return Kit{}, fmt.Errorf("read recovery kit: %w", err)
	}
	return k, nil
}

func parse(text envelope.Secret) (k Kit, err error) {
	if text.Len() > MaxSize {
		return k, fmt.Errorf("%w: more than %d bytes", ErrDamaged, MaxSize)
	}
	if !Is(text) {
		return k, ErrNotKit
	}
	h := sha256.New()
	started, sum := false, ""
	ids := make([]byte, 0, text.Len())
	defer func() { envelope.Wipe(ids[:cap(ids)]) }()
	for line := range bytes.Lines(text.Expose()) {
		line = bytes.TrimSpace(line)
		isData := bytes.HasPrefix(line, []byte(dataPrefix))
		if len(line) == 0 || line[0] == '#' && !isData {
			continue
		}
		if sum != "" {
			return k, fmt.Errorf("%w: something follows its end", ErrDamaged)
		}
		if !started {
			if string(line) != magic {
				if bytes.HasPrefix(line, []byte(magicStart+" ")) {
					return k, fmt.Errorf("%w: %q, this program reads version 1", ErrVersion, line[len(dataPrefix):])
				}
				return k, fmt.Errorf("%w: its first line is missing", ErrDamaged)
			}
			started = true
		} else if name, value, _ := strings.Cut(string(dataOf(line, isData)), " "); isData {
			if name == "sum" {
				sum = value
				continue
			}
			if err := k.set(name, value); err != nil {
				return k, err
			}
		} else {
			ids = append(append(ids, line...), '\n')
		}
		h.Write(line)
		h.Write([]byte("\n"))
	}
	if sum == "" {
		return k, fmt.Errorf("%w: its end is missing", ErrDamaged)
	}
	if sum != sumText(h.Sum(nil)) {
		return k, fmt.Errorf("%w: a line was changed (its sum differs)", ErrDamaged)
	}
	k.Identity = envelope.CopySecret(ids)
	if err := k.Check(); err != nil {
		return k, fmt.Errorf("%w: %w", ErrDamaged, err)
	}
	return k, nil
}

// dataOf is what follows the prefix of a data line; a line with an identity
// must not become a string, which nobody could wipe.
func dataOf(line []byte, isData bool) []byte {
	if !isData {
		return nil
	}
	return line[len(dataPrefix):]
}

func (k *Kit) set(name, value string) (err error) {
	once := func(field *string) {
		if *field != "" {
			err = fmt.Errorf("%w: it names %s twice", ErrDamaged, name)
		}
		*field = value
	}
	switch name {
	case "created":
		if k.Created, err = time.Parse(time.RFC3339, value); err != nil {
			return fmt.Errorf("%w: date %q", ErrDamaged, value)
		}
		k.Created = k.Created.UTC()
	case "repository":
		once(&k.Repository)
	case "trust-root":
		once(&k.TrustRoot)
	case "location":
		k.Locations = append(k.Locations, value)
	case "recipient":
		k.Recipients = append(k.Recipients, value)
	case "key":
		p, perr := envelope.ParsePublicKey(value)
		if perr != nil {
			return fmt.Errorf("%w: %w", ErrDamaged, perr)
		}
		k.Keys = append(k.Keys, p)
	default:
		return fmt.Errorf("%w: it has a line %q, which this program does not know", ErrVersion, name)
	}
	return err
}
