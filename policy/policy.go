// Package policy is what a machine's policy says: when it is backed up, what is
// kept, how old proofs and verifications may get, how fast may be read and
// written at what time of day, and where copies go. It reads, checks and writes
// policies; it carries none of them out.
//
// Its invariant: what Parse or Check lets through can be carried out, and a
// policy that is written and read again is the same.
package policy

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/url"
	"slices"
	"strings"
	"time"
	_ "time/tzdata" // zones are known on every host, or a policy could be read on one and not on another
	"unicode"
	"unicode/utf8"

	"github.com/lockstep-backup/lockstep/retention"
)

// ErrInvalid: it is not a policy; the error says which member is wrong, and why.
var ErrInvalid = errors.New("policy is not valid")

const (
	formatVersion = 1
	// MaxSize bounds the JSON form, in bytes.
	MaxSize   = 64 << 10
	maxText   = 1024
	maxLimits = 48
	maxCopies = 16
	maxTags   = 64
)

// Policy of a machine. The zero value keeps everything, and does nothing by itself.
type Policy struct {
	// Timezone is an IANA name; days, weeks and times of day are those of this
	// zone. "" is UTC.
	Timezone  string    `json:"timezone,omitempty"`
	Schedule  Schedule  `json:"schedule,omitzero"`
	Retention Retention `json:"retention,omitzero"`
	// ProofAge is how old a proof may get before it is made again, VerifyAge how
	// long ago a recovery point's data may have been read back. 0 = any age.
	ProofAge  Duration `json:"proof_age,omitzero"`
	VerifyAge Duration `json:"verify_age,omitzero"`
	Limits    Limits   `json:"limits,omitempty"`
	// CopiesTo are URLs of repositories that hold copies. They carry no secret.
	CopiesTo []string `json:"copies_to,omitempty"`
}

// Retention is what is kept; see package retention for what the rules mean.
type Retention struct {
	KeepLast int      `json:"keep_last,omitempty"`
	Hourly   int      `json:"hourly,omitempty"`
	Daily    int      `json:"daily,omitempty"`
	Weekly   int      `json:"weekly,omitempty"`
	Monthly  int      `json:"monthly,omitempty"`
	Yearly   int      `json:"yearly,omitempty"`
	Within   Duration `json:"within,omitzero"`
	Minimum  int      `json:"minimum,omitempty"`
	KeepTags []string `json:"keep_tags,omitempty"`
}

// Rules are the retention rules of the policy.
func (p Policy) Rules() retention.Rules {
	r := p.Retention
	return retention.Rules{
		Last: r.KeepLast, Hourly: r.Hourly, Daily: r.Daily, Weekly: r.Weekly, Monthly: r.Monthly, Yearly: r.Yearly,
		Within: time.Duration(r.Within), Minimum: r.Minimum, Tags: r.KeepTags,
	}
}

// Location is the policy's time zone.
func (p Policy) Location() (*time.Location, error) {
	if p.Timezone == "Local" {
		return nil, fmt.Errorf("%w: timezone: name it, such as Europe/Berlin: a host's own zone is another one on another host", ErrInvalid)
	}
	loc, err := time.LoadLocation(p.Timezone)
	if err != nil {
		return nil, fmt.Errorf("%w: timezone: %q is no IANA time zone, such as Europe/Berlin", ErrInvalid, p.Timezone)
	}
	return loc, nil
}

// Check refuses what cannot be carried out.
func (p Policy) Check() error {
	loc, err := p.Location()
	if err != nil {
		return err
	}
	if err := p.Rules().Check(); err != nil {
		return fmt.Errorf("%w: retention: %w", ErrInvalid, err)
	}
	if len(p.Retention.KeepTags) > maxTags {
		return fmt.Errorf("%w: retention.keep_tags: %d are too many, %d are allowed", ErrInvalid, len(p.Retention.KeepTags), maxTags)
	}
	if err := checkTexts("retention.keep_tags", p.Retention.KeepTags); err != nil {
		return err
	}
	for _, d := range []struct {
		name  string
		value Duration
	}{
		{"retention.within", p.Retention.Within},
		{"proof_age", p.ProofAge},
		{"verify_age", p.VerifyAge},
	} {
		if err := d.value.check(); err != nil {
			return fmt.Errorf("%w: %s: %w", ErrInvalid, d.name, err)
		}
	}
	if err := p.Schedule.check(loc); err != nil {
		return fmt.Errorf("%w: schedule: %w", ErrInvalid, err)
	}
	if err := p.Limits.check(); err != nil {
		return fmt.Errorf("%w: limits: %w", ErrInvalid, err)
	}
	return p.checkCopies()
}

func (p Policy) checkCopies() error {
	if len(p.CopiesTo) > maxCopies {
		return fmt.Errorf("%w: copies_to: %d are too many, %d are allowed", ErrInvalid, len(p.CopiesTo), maxCopies)
	}
	if err := checkTexts("copies_to", p.CopiesTo); err != nil {
		return err
	}
	for _, s := range p.CopiesTo {
		u, err := url.Parse(s)
		if err != nil || u.Scheme == "" || u.Host == "" && u.Path == "" {
			return fmt.Errorf("%w: copies_to: not a repository's URL, such as file:///srv/copy", ErrInvalid)
		}
		if _, secret := u.User.Password(); secret {
			return fmt.Errorf("%w: copies_to: a URL in a policy holds no password", ErrInvalid)
		}
	}
	return nil
}

// checkTexts refuses what must not reach a terminal, and repetitions.
func checkTexts(member string, texts []string) error {
	for i, s := range texts {
		switch {
		case strings.TrimSpace(s) == "":
			return fmt.Errorf("%w: %s: one is empty", ErrInvalid, member)
		case len(s) > maxText:
			return fmt.Errorf("%w: %s: one has %d bytes, %d are allowed", ErrInvalid, member, len(s), maxText)
		case !utf8.ValidString(s) || strings.ContainsFunc(s, unicode.IsControl):
			return fmt.Errorf("%w: %s: one holds control characters", ErrInvalid, member)
		case slices.Contains(texts[:i], s):
			return fmt.Errorf("%w: %s: %q is there twice", ErrInvalid, member, s)
		}
	}
	return nil
}

// document is the JSON form: a policy and the format's number.
type document struct {
	Format int `json:"format"`
	Policy
}

// Parse reads the JSON form. It refuses what it does not know: a misspelt rule
// must not pass for a rule that is not there.
func Parse(raw []byte) (Policy, error) {
	if len(raw) > MaxSize {
		return Policy{}, fmt.Errorf("%w: it has more than %d bytes", ErrInvalid, MaxSize)
	}
	if !utf8.Valid(raw) {
		return Policy{}, fmt.Errorf("%w: it is not UTF-8", ErrInvalid)
	}
	if err := checkNames(raw); err != nil {
		return Policy{}, err
	}
	d := json.NewDecoder(bytes.NewReader(raw))
	d.DisallowUnknownFields()
	var doc document
	if err := d.Decode(&doc); err != nil {
		return Policy{}, decodeError(err)
	}
	if doc.Format != formatVersion {
		return Policy{}, fmt.Errorf("%w: format is %d, this version reads %d", ErrInvalid, doc.Format, formatVersion)
	}
	if err := doc.Check(); err != nil {
		return Policy{}, err
	}
	return doc.Policy, nil
}

// JSON is the form that Parse reads.
func (p Policy) JSON() ([]byte, error) {
	if err := p.Check(); err != nil {
		return nil, err
	}
	return json.Marshal(document{Format: formatVersion, Policy: p})
}

// decodeError says in words what the JSON decoder did not take.
func decodeError(err error) error {
	var kind *json.UnmarshalTypeError
	if errors.As(err, &kind) {
		field := strings.TrimPrefix(kind.Field, "Policy.")
		if field == "" {
			field = "it"
		}
		return fmt.Errorf("%w: %s: a %s cannot be its value", ErrInvalid, field, kind.Value)
	}
	if errors.Is(err, ErrInvalid) {
		return err
	}
	if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		return fmt.Errorf("%w: it is not JSON: it ends too early", ErrInvalid)
	}
	text := strings.TrimPrefix(err.Error(), "json: ")
	if name, ok := strings.CutPrefix(text, "unknown field "); ok {
		return fmt.Errorf("%w: there is no member %s", ErrInvalid, name)
	}
	return fmt.Errorf("%w: it is not JSON: %s", ErrInvalid, text)
}

// checkNames refuses what the decoder lets through: a name that is there twice,
// of which the last would win in silence, names in other letters, and whatever
// follows the object.
func checkNames(raw []byte) error {
	d := json.NewDecoder(bytes.NewReader(raw))
	bad := func(format string, args ...any) error {
		return fmt.Errorf("%w: %s", ErrInvalid, fmt.Sprintf(format, args...))
	}
	type level struct {
		names map[string]bool // nil: an array
		value bool            // the name was read, its value comes next
	}
	var stack []level
	for first := true; ; first = false {
		tok, err := d.Token()
		if errors.Is(err, io.EOF) && !first {
			return nil
		}
		if err != nil {
			return decodeError(err)
		}
		top := len(stack) - 1
		switch v := tok.(type) {
		case json.Delim:
			switch v {
			case '{':
				if first || top >= 0 {
					stack = append(stack, level{names: map[string]bool{}})
					break
				}
				return bad("something follows it")
			case '[':
				if first {
					return bad("it is not a JSON object")
				}
				stack = append(stack, level{})
			default:
				stack = stack[:top]
				if top > 0 {
					stack[top-1].value = false
				} else if d.More() {
					return bad("something follows it")
				}
			}
			if len(stack) > 8 {
				return bad("it is nested too deeply")
			}
		default:
			if top < 0 {
				return bad("it is not a JSON object")
			}
			l := &stack[top]
			if l.names == nil || l.value {
				l.value = false
				break
			}
			name, _ := v.(string)
			if l.names[name] {
				return bad("%q is there twice", name)
			}
			if strings.ContainsFunc(name, unicode.IsUpper) {
				return bad("there is no member %q", name)
			}
			l.names[name], l.value = true, true
		}
	}
}
