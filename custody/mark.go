package custody

import (
	"cmp"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/lockstep-backup/lockstep/envelope"
)

// MarkType is the payload type of a signed mark.
const MarkType = "application/vnd.lockstep.mark+json"

// Kinds of marks.
const (
	MarkPin       = "pin"        // keeps the recovery point
	MarkTag       = "tag"        // names it: key and value
	MarkLegalHold = "legal-hold" // keeps it, for a case
)

// Mark states that a recovery point is pinned, tagged or held for a case, or
// takes that back.
type Mark struct {
	Format     int    `json:"format"`
	Repository string `json:"repository"`
	Machine    string `json:"machine"`
	Point      string `json:"point"`
	Kind       string `json:"kind"`
	// Name is a tag's key or a legal hold's case, "" for a pin.
	Name  string `json:"name"`
	Value string `json:"value"` // of a tag
	Set   bool   `json:"set"`   // false takes it back
	// Sequence is one more than the greatest of the marks about the same thing.
	Sequence int64     `json:"sequence"`
	Reason   string    `json:"reason"`
	Actor    string    `json:"actor"`
	Time     time.Time `json:"time"`
}

const (
	maxTagKey   = 64
	maxTagValue = 256
	maxCase     = 128
	// maxSequence leaves room for one more: beyond it nothing could be taken back.
	maxSequence = 1 << 53
)

// Check refuses a mark that is malformed.
func (m Mark) Check() error {
	if err := checkFormat(m.Format); err != nil {
		return err
	}
	if err := checkIDs("repository", m.Repository, "machine", m.Machine, "point", m.Point); err != nil {
		return err
	}
	if err := checkTexts("name", m.Name, "value", m.Value, "actor", m.Actor); err != nil {
		return err
	}
	if err := checkText("reason", m.Reason, maxReason); err != nil {
		return err
	}
	if m.Sequence < 1 || m.Sequence >= maxSequence {
		return fmt.Errorf("%w: sequence is %d", ErrStatement, m.Sequence)
	}
	reasoned := strings.TrimSpace(m.Reason) != ""
	switch m.Kind {
	case MarkPin:
		if m.Name != "" || m.Value != "" {
			return fmt.Errorf("%w: a pin has no name and no value", ErrStatement)
		}
		if m.Set && !reasoned {
			return fmt.Errorf("%w: reason is missing", ErrStatement)
		}
	case MarkTag:
		if err := CheckTagKey(m.Name); err != nil {
			return err
		}
		if len(m.Value) > maxTagValue {
			return fmt.Errorf("%w: a tag's value has at most %d bytes", ErrStatement, maxTagValue)
		}
	case MarkLegalHold:
		if strings.TrimSpace(m.Name) == "" || len(m.Name) > maxCase || m.Value != "" {
			return fmt.Errorf("%w: a legal hold names its case, in at most %d bytes, and has no value", ErrStatement, maxCase)
		}
		if !reasoned {
			return fmt.Errorf("%w: reason is missing", ErrStatement)
		}
	default:
		return fmt.Errorf("%w: kind %q is not known", ErrStatement, m.Kind)
	}
	return checkTime("time", m.Time)
}

// CheckTagKey refuses what cannot be a tag's key.
func CheckTagKey(key string) error {
	const letters = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._/-"
	if key == "" || len(key) > maxTagKey || strings.Trim(key, letters) != "" {
		return fmt.Errorf("%w: a tag's key is 1 to %d letters, digits and ._/-", ErrStatement, maxTagKey)
	}
	return nil
}

// SignMark makes the signed statement, with a custodian's key.
func SignMark(m Mark, key envelope.SigningKey) ([]byte, error) {
	m.Format = formatVersion
	m.Time = m.Time.UTC()
	if err := m.Check(); err != nil {
		return nil, fmt.Errorf("sign mark: %w", err)
	}
	raw, err := signJSON(MarkType, m, envelope.RoleCustodian, key)
	if err != nil {
		return nil, fmt.Errorf("sign mark: %w", err)
	}
	return raw, nil
}

// VerifyMark checks signature and role, format, and that it is about this
// machine in this repository. With ErrRevoked the mark is returned too: it does
// not count, and yet what it kept is not to be deleted for that.
func VerifyMark(raw []byte, trust Trust, repository, machine string) (Mark, error) {
	return VerifyMarkOf(raw, trust, map[string]bool{repository: true}, machine)
}

// VerifyMarkOf is VerifyMark for a machine whose recovery points were made in
// several repositories and copied: the mark may name any.
func VerifyMarkOf(raw []byte, trust Trust, repositories map[string]bool, machine string) (Mark, error) {
	payload, _, revoked := verify(raw, MarkType, envelope.RoleCustodian, trust)
	if revoked != nil && !errors.Is(revoked, ErrRevoked) {
		return Mark{}, fmt.Errorf("verify mark: %w", revoked)
	}
	var m Mark
	if err := decode(payload, &m); err != nil {
		return Mark{}, fmt.Errorf("verify mark: %w", err)
	}
	if err := m.Check(); err != nil {
		return Mark{}, fmt.Errorf("verify mark: %w", err)
	}
	if !repositories[m.Repository] || m.Machine != machine {
		return Mark{}, fmt.Errorf("verify mark: %w: machine %s", ErrMismatch, m.Machine)
	}
	if revoked != nil {
		return m, fmt.Errorf("verify mark: %w", revoked)
	}
	return m, nil
}

// Marks are the marks of one recovery point that are in force.
type Marks struct {
	Pin        *Mark
	Tags       map[string]string
	LegalHolds []Mark // by case
}

type markKey struct{ point, kind, name string }

func (m Mark) about() markKey { return markKey{m.Point, m.Kind, m.Name} }

// later orders marks about the same thing: the last one counts. Of two of one
// sequence and time the one that keeps is the last.
func later(a, b Mark) int {
	if c := cmp.Compare(a.Sequence, b.Sequence); c != 0 {
		return c
	}
	if c := a.Time.Compare(b.Time); c != 0 {
		return c
	}
	if a.Set != b.Set {
		if b.Set {
			return -1
		}
		return 1
	}
	return cmp.Or(cmp.Compare(a.Value, b.Value), cmp.Compare(a.Reason, b.Reason), cmp.Compare(a.Actor, b.Actor))
}

// MarksInForce returns, by recovery point, what counts of all marks.
func MarksInForce(all []Mark) map[string]Marks {
	last := map[markKey]Mark{}
	for _, m := range all {
		if have, ok := last[m.about()]; !ok || later(have, m) < 0 {
			last[m.about()] = m
		}
	}
	out := map[string]Marks{}
	for k, m := range last {
		if !m.Set {
			continue
		}
		p := out[k.point]
		switch k.kind {
		case MarkPin:
			p.Pin = &m
		case MarkTag:
			if p.Tags == nil {
				p.Tags = map[string]string{}
			}
			p.Tags[k.name] = m.Value
		case MarkLegalHold:
			p.LegalHolds = append(p.LegalHolds, m)
		}
		out[k.point] = p
	}
	for _, p := range out {
		slices.SortFunc(p.LegalHolds, func(a, b Mark) int { return strings.Compare(a.Name, b.Name) })
	}
	return out
}

// NextSequence is the sequence of a new mark about what m is about.
func NextSequence(all []Mark, m Mark) int64 {
	n := int64(0)
	for _, o := range all {
		if o.about() == m.about() {
			n = max(n, o.Sequence)
		}
	}
	return n + 1
}
