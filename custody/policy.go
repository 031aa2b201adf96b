package custody

import (
	"bytes"
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/lockstep-backup/lockstep/envelope"
)

// PolicyType is the payload type of a signed policy statement.
const PolicyType = "application/vnd.lockstep.policy+json"

// Policy states what policy is in force for a machine.
type Policy struct {
	Format     int    `json:"format"`
	Repository string `json:"repository"`
	Machine    string `json:"machine"`
	// Document is the policy, null where the machine has none.
	Document json.RawMessage `json:"policy"`
	// Default says that the machine has none of its own, and this one is that of
	// all such machines.
	Default bool `json:"default"`
	// Sequence is one more than the greatest of the machine's policy statements.
	Sequence int64     `json:"sequence"`
	Actor    string    `json:"actor"`
	Time     time.Time `json:"time"`
}

const maxPolicy = 64 << 10

// Check refuses a statement that is malformed. What is in the policy is for
// others to judge.
func (p Policy) Check() error {
	if err := checkFormat(p.Format); err != nil {
		return err
	}
	if err := checkIDs("repository", p.Repository, "machine", p.Machine); err != nil {
		return err
	}
	if err := checkTexts("actor", p.Actor); err != nil {
		return err
	}
	if p.Sequence < 1 || p.Sequence >= maxSequence {
		return fmt.Errorf("%w: sequence is %d", ErrStatement, p.Sequence)
	}
	if len(p.Document) > maxPolicy {
		return fmt.Errorf("%w: a policy has at most %d bytes", ErrStatement, maxPolicy)
	}
	if p.Document != nil && (len(p.Document) == 0 || p.Document[0] != '{' || !json.Valid(p.Document)) {
		return fmt.Errorf("%w: the policy is no JSON object", ErrStatement)
	}
	return checkTime("time", p.Time)
}

// Same reports whether two statements put the same policy in force.
func (p Policy) Same(o Policy) bool {
	return p.Default == o.Default && bytes.Equal(p.Document, o.Document)
}

// SignPolicy makes the signed statement, with a custodian's key.
func SignPolicy(p Policy, key envelope.SigningKey) ([]byte, error) {
	p.Format = formatVersion
	p.Time = p.Time.UTC()
	if err := p.Check(); err != nil {
		return nil, fmt.Errorf("sign policy: %w", err)
	}
	raw, err := signJSON(PolicyType, p, envelope.RoleCustodian, key)
	if err != nil {
		return nil, fmt.Errorf("sign policy: %w", err)
	}
	return raw, nil
}

// VerifyPolicyOf checks signature and role, format, and that it is about this
// machine in one of these repositories. With ErrRevoked the statement is
// returned too: it does not count, and an older one does not count in its place.
func VerifyPolicyOf(raw []byte, trust Trust, repositories map[string]bool, machine string) (Policy, error) {
	payload, _, revoked := verify(raw, PolicyType, envelope.RoleCustodian, trust)
	if revoked != nil && !errors.Is(revoked, ErrRevoked) {
		return Policy{}, fmt.Errorf("verify policy: %w", revoked)
	}
	var p Policy
	err := decode(payload, &p)
	if string(p.Document) == "null" {
		p.Document = nil
	}
	if err == nil {
		err = p.Check()
	}
	if err != nil {
		return Policy{}, fmt.Errorf("verify policy: %w", err)
	}
	if !repositories[p.Repository] || p.Machine != machine {
		return Policy{}, fmt.Errorf("verify policy: %w: machine %s", ErrMismatch, p.Machine)
	}
	if revoked != nil {
		return p, fmt.Errorf("verify policy: %w", revoked)
	}
	return p, nil
}

// LaterPolicy orders the policy statements about a machine: the last one counts.
// Where it gives 0 for two that are not the same, none does.
func LaterPolicy(a, b Policy) int {
	return cmp.Or(cmp.Compare(a.Sequence, b.Sequence), a.Time.Compare(b.Time))
}

// NextPolicy is the sequence of the next statement.
func NextPolicy(known []Policy) int64 {
	n := int64(1)
	for _, p := range known {
		n = max(n, p.Sequence+1)
	}
	return n
}
