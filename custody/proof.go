package custody

import (
	"encoding/json"
	"fmt"
	"time"

	"github.com/lockstep-backup/lockstep/diskcrypt"
	"github.com/lockstep-backup/lockstep/envelope"
	"github.com/lockstep-backup/lockstep/keymanager"
)

// ProofType is the payload type of a signed proof.
const ProofType = "application/vnd.lockstep.proof+json"

// ClassNone is said where nothing was recognised behind a volume: swap and raw
// databases have no signature.
const ClassNone = "none"

const maxProtectors = 256

// Proof states that a secret version opened a volume of a recovery point
// (docs/spec/custody.md, section 2). It holds nothing of the plaintext but Class.
type Proof struct {
	Format      int    `json:"format"`
	Repository  string `json:"repository"`
	Machine     string `json:"machine"`
	Point       string `json:"point"`
	Disk        string `json:"disk"`
	ContentRoot string `json:"content_root"` // hex

	Volume       string `json:"volume"` // diskcrypt.Volume.ID
	Type         string `json:"type"`
	UUID         string `json:"uuid,omitempty"`
	Epoch        string `json:"epoch,omitempty"`
	HeaderDigest string `json:"header_digest"`
	// Declared is under what declaration the volume was opened, where it cannot be
	// seen: the recovery point may be older than the declaration.
	Declared map[string]string `json:"declared,omitempty"`

	Secret     keymanager.Ref   `json:"secret"`
	Kind       diskcrypt.Kind   `json:"kind"`
	Protectors []ProofProtector `json:"protectors"`
	KeyCheck   string           `json:"key_check"`
	Class      string           `json:"class"`
	VKProof    []byte           `json:"vkproof,omitempty"`
	Time       time.Time        `json:"time"`
	Software   string           `json:"software"`
}

// ProofProtector is a protector that the secret opened.
type ProofProtector struct {
	ID          string `json:"id"`
	Fingerprint string `json:"fingerprint"`
}

// Check refuses a proof that is malformed.
func (p Proof) Check() error {
	if err := checkFormat(p.Format); err != nil {
		return err
	}
	if err := checkIDs("repository", p.Repository, "machine", p.Machine, "point", p.Point); err != nil {
		return err
	}
	if err := checkHex("content_root", p.ContentRoot); err != nil {
		return err
	}
	if err := checkTexts("disk", p.Disk, "volume", p.Volume, "type", p.Type, "uuid", p.UUID, "epoch", p.Epoch,
		"header_digest", p.HeaderDigest, "secret", p.Secret.ID, "kind", string(p.Kind), "key_check", p.KeyCheck,
		"class", p.Class, "software", p.Software); err != nil {
		return err
	}
	switch {
	case p.Disk == "" || p.Volume == "" || p.HeaderDigest == "" || p.KeyCheck == "":
		return fmt.Errorf("%w: disk, volume, header_digest or key_check is missing", ErrStatement)
	case p.Secret.ID == "" || p.Secret.Version < 1:
		return fmt.Errorf("%w: secret version is missing", ErrStatement)
	case !isClass(p.Class):
		return fmt.Errorf("%w: class is not a word", ErrStatement)
	case len(p.Protectors) == 0 || len(p.Protectors) > maxProtectors:
		return fmt.Errorf("%w: %d protectors", ErrStatement, len(p.Protectors))
	case len(p.VKProof) != 0 && len(p.VKProof) != 32:
		return fmt.Errorf("%w: vkproof has %d bytes", ErrStatement, len(p.VKProof))
	}
	if p.Declared != nil {
		if err := diskcrypt.CheckDeclaration(p.Declared); err != nil || p.Declared[diskcrypt.DeclaredType] != p.Type {
			return fmt.Errorf("%w: declared is not a declaration of the volume's type", ErrStatement)
		}
	}
	for _, x := range p.Protectors {
		if x.ID == "" {
			return fmt.Errorf("%w: protector without id", ErrStatement)
		}
		if err := checkTexts("protector", x.ID, "fingerprint", x.Fingerprint); err != nil {
			return err
		}
	}
	return checkTime("time", p.Time)
}

// isClass keeps labels and other plaintext out of class.
func isClass(s string) bool {
	if s == "" || len(s) > 32 {
		return false
	}
	for _, c := range []byte(s) {
		if (c < 'a' || c > 'z') && (c < '0' || c > '9') && c != '_' && c != '-' {
			return false
		}
	}
	return true
}

// SignProof makes the signed statement, with a prover's key.
func SignProof(p Proof, key envelope.SigningKey) ([]byte, error) {
	p.Format = formatVersion
	p.Time = p.Time.UTC()
	if err := p.Check(); err != nil {
		return nil, fmt.Errorf("sign proof: %w", err)
	}
	raw, err := signJSON(ProofType, p, envelope.RoleProver, key)
	if err != nil {
		return nil, fmt.Errorf("sign proof: %w", err)
	}
	return raw, nil
}

// ExpectedPoint is what a proof is held against: the recovery point where its
// sidecar was found, as the signed manifest describes it.
type ExpectedPoint struct {
	Repository, Machine, Point string
	Disks                      []ExpectedDisk
}

// ExpectedDisk is a disk of the manifest.
type ExpectedDisk struct {
	ID          string
	ContentRoot string
	Volumes     []diskcrypt.Volume
}

// VerifyProof checks signature and role, format, and that the proof is about
// this recovery point: content root, volume and header included. ErrMismatch,
// ErrRevoked, ErrFormat, ErrStatement, or what envelope.Verify says.
func VerifyProof(raw []byte, trust Trust, want ExpectedPoint) (Proof, envelope.KeyID, error) {
	payload, signer, err := verify(raw, ProofType, envelope.RoleProver, trust)
	if err != nil {
		return Proof{}, "", fmt.Errorf("verify proof: %w", err)
	}
	var p Proof
	if err := decode(payload, &p); err != nil {
		return Proof{}, "", fmt.Errorf("verify proof: %w", err)
	}
	if err := p.Check(); err != nil {
		return Proof{}, "", fmt.Errorf("verify proof: %w", err)
	}
	if err := want.holds(p); err != nil {
		return Proof{}, "", fmt.Errorf("verify proof: %w", err)
	}
	return p, signer, nil
}

func (e ExpectedPoint) holds(p Proof) error {
	switch {
	case p.Repository != e.Repository:
		return fmt.Errorf("%w: repository %s", ErrMismatch, p.Repository)
	case p.Machine != e.Machine:
		return fmt.Errorf("%w: machine %s", ErrMismatch, p.Machine)
	case p.Point != e.Point:
		return fmt.Errorf("%w: recovery point %s", ErrMismatch, p.Point)
	}
	for _, d := range e.Disks {
		if d.ID != p.Disk {
			continue
		}
		if d.ContentRoot != p.ContentRoot {
			return fmt.Errorf("%w: disk %s has another content root", ErrMismatch, p.Disk)
		}
		for _, v := range d.Volumes {
			if v.ID != p.Volume {
				continue
			}
			if v.Type == diskcrypt.TypeOpaque && v.HeaderDigest == "" && p.Declared != nil {
				return nil // the declaration came later; its header is the disk's bytes
			}
			if v.HeaderDigest != p.HeaderDigest || v.Type != p.Type {
				return fmt.Errorf("%w: volume %s/%s has another header", ErrMismatch, p.Disk, p.Volume)
			}
			return nil
		}
		return fmt.Errorf("%w: disk %s has no volume %s", ErrMismatch, p.Disk, p.Volume)
	}
	return fmt.Errorf("%w: disk %s", ErrMismatch, p.Disk)
}

func signJSON(payloadType string, statement any, role string, key envelope.SigningKey) ([]byte, error) {
	if key.Role() != role {
		return nil, fmt.Errorf("key has role %q, want %q", key.Role(), role)
	}
	payload, err := json.Marshal(statement)
	if err != nil {
		return nil, err
	}
	return envelope.Sign(payloadType, payload, key)
}
