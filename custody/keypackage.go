package custody

import (
	"bytes"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/lockstep-backup/lockstep/disk"
	"github.com/lockstep-backup/lockstep/diskcrypt"
	"github.com/lockstep-backup/lockstep/envelope"
	"github.com/lockstep-backup/lockstep/keymanager"
)

// Payload types of signed packages.
const (
	KeyPackageType    = "application/vnd.lockstep.keypackage+age"
	HeaderPackageType = "application/vnd.lockstep.headerpackage+age"
)

// MaxHeader bounds the header bytes in a header package.
const MaxHeader = 8 << 20

const (
	maxCover      = 1 << 20
	maxEntries    = 4096
	maxRecipients = 1000
	maxRanges     = 65536
)

// PackageSecret names a secret version in a key package.
type PackageSecret struct {
	Disk   string         `json:"disk"`
	Volume string         `json:"volume"`
	Kind   diskcrypt.Kind `json:"kind"`
	Secret keymanager.Ref `json:"secret"`
}

// PackageHeader names the header package that goes with a volume, by digest.
type PackageHeader struct {
	Disk         string `json:"disk"`
	Volume       string `json:"volume"`
	Type         string `json:"type"`
	HeaderDigest string `json:"header_digest"`
}

// KeyCover says what a key package covers and for whom. It is readable without a key.
type KeyCover struct {
	Format     int               `json:"format"`
	Repository string            `json:"repository"`
	Machine    string            `json:"machine"`
	Point      string            `json:"point"`
	Disks      map[string]string `json:"disks"` // disk → content root
	Secrets    []PackageSecret   `json:"secrets"`
	Headers    []PackageHeader   `json:"headers"`
	Recipients []string          `json:"recipients"`
	Time       time.Time         `json:"time"`
	Software   string            `json:"software"`
}

// Check refuses a cover that is malformed.
func (c KeyCover) Check() error {
	if err := checkFormat(c.Format); err != nil {
		return err
	}
	if err := checkIDs("repository", c.Repository, "machine", c.Machine, "point", c.Point); err != nil {
		return err
	}
	if len(c.Secrets) == 0 || len(c.Secrets) > maxEntries || len(c.Headers) > maxEntries || len(c.Disks) > maxEntries {
		return fmt.Errorf("%w: %d secrets, %d headers, %d disks", ErrStatement, len(c.Secrets), len(c.Headers), len(c.Disks))
	}
	for id, root := range c.Disks {
		if err := checkTexts("disk", id); err != nil {
			return err
		}
		if err := checkHex("content root", root); err != nil {
			return err
		}
	}
	for _, s := range c.Secrets {
		if err := checkTexts("disk", s.Disk, "volume", s.Volume, "kind", string(s.Kind), "secret", s.Secret.ID); err != nil {
			return err
		}
		if s.Secret.ID == "" || s.Secret.Version < 1 {
			return fmt.Errorf("%w: secret version is missing", ErrStatement)
		}
	}
	for _, h := range c.Headers {
		if err := checkTexts("disk", h.Disk, "volume", h.Volume, "type", h.Type, "header_digest", h.HeaderDigest); err != nil {
			return err
		}
	}
	return checkPackage(c.Recipients, c.Time, c.Software)
}

func checkPackage(recipients []string, t time.Time, software string) error {
	if len(recipients) == 0 || len(recipients) > maxRecipients {
		return fmt.Errorf("%w: %d recipients", ErrStatement, len(recipients))
	}
	for _, r := range recipients {
		if err := checkText("recipient", r, 4096); err != nil { // hybrid recipients have about 2,000 characters
			return err
		}
	}
	if err := checkTexts("software", software); err != nil {
		return err
	}
	return checkTime("time", t)
}

// KeyPackage is an opened key package: Bytes[i] belongs to Cover.Secrets[i].
type KeyPackage struct {
	Cover KeyCover
	Bytes []envelope.Secret
}

// Wipe overwrites the secrets.
func (p *KeyPackage) Wipe() {
	for _, b := range p.Bytes {
		b.Wipe()
	}
}

// SealKeyPackage seals secrets to the cover's recipients and signs the package
// with a prover's key. The recipients are of one kind (see RecipientGroups).
func SealKeyPackage(c KeyCover, secrets []envelope.Secret, key envelope.SigningKey) ([]byte, error) {
	c.Format = formatVersion
	c.Time = c.Time.UTC()
	if err := c.Check(); err != nil {
		return nil, fmt.Errorf("seal key package: %w", err)
	}
	if len(secrets) != len(c.Secrets) {
		return nil, fmt.Errorf("seal key package: %w: %d secrets, the cover names %d", ErrStatement, len(secrets), len(c.Secrets))
	}
	cover, err := json.Marshal(c)
	if err != nil {
		return nil, fmt.Errorf("seal key package: %w", err)
	}
	inner, err := appendInner(cover, secrets)
	defer envelope.Wipe(inner)
	if err != nil {
		return nil, fmt.Errorf("seal key package: %w", err)
	}
	raw, err := sealPackage(KeyPackageType, cover, inner, c.Recipients, key)
	if err != nil {
		return nil, fmt.Errorf("seal key package: %w", err)
	}
	return raw, nil
}

// appendInner builds the sealed JSON in one buffer of known size, so that
// nothing but that buffer, which is wiped, holds the secrets.
func appendInner(cover []byte, secrets []envelope.Secret) ([]byte, error) {
	size := len(cover) + 64
	for _, s := range secrets {
		size += (s.Len()+2)/3*4 + 3
	}
	if size > envelope.MaxSealed {
		return nil, fmt.Errorf("%w: %d bytes of secrets", ErrTooLarge, size)
	}
	out := make([]byte, 0, size)
	out = append(out, `{"cover":`...)
	out = append(out, cover...)
	out = append(out, `,"bytes":[`...)
	for i, s := range secrets {
		if i > 0 {
			out = append(out, ',')
		}
		out = append(out, '"')
		out = appendBase64(out, s.Expose())
		out = append(out, '"')
	}
	return append(out, "]}"...), nil
}

// ReadKeyCover verifies a key package without opening it. With ErrRevoked the
// cover is returned too: such a package does not count as a copy.
func ReadKeyCover(raw []byte, trust Trust) (KeyCover, error) {
	c, _, _, err := splitKeyPackage(raw, trust)
	if err != nil {
		return c, fmt.Errorf("read key package: %w", err)
	}
	return c, nil
}

// OpenKeyPackage verifies a key package and opens it with an age identity
// text. The caller wipes it. With ErrRevoked the package is returned too: who
// was told may use it, for whether a secret is right is seen by opening the volume.
func OpenKeyPackage(raw []byte, identity envelope.Secret, trust Trust) (*KeyPackage, error) {
	c, cover, sealed, revoked := splitKeyPackage(raw, trust)
	if revoked != nil && sealed == nil {
		return nil, fmt.Errorf("open key package: %w", revoked)
	}
	inner, err := envelope.OpenWithIdentities(sealed, identity)
	if err != nil {
		return nil, fmt.Errorf("open key package: %w", err)
	}
	defer inner.Wipe()
	p := &KeyPackage{Cover: c}
	if p.Bytes, err = parseInner(inner.Expose(), cover, len(c.Secrets)); err != nil {
		return nil, fmt.Errorf("open key package: %w", err)
	}
	if revoked != nil {
		return p, fmt.Errorf("open key package: %w", revoked)
	}
	return p, nil
}

// parseInner reads `{"cover":COVER,"bytes":["…",…]}`. The cover is compared as
// bytes, so what is left has no freedom and needs no JSON reader, which would
// leave copies of the secrets behind.
func parseInner(inner, cover []byte, n int) ([]envelope.Secret, error) {
	bad := func() ([]envelope.Secret, error) {
		return nil, fmt.Errorf("%w: sealed part does not fit the cover", ErrMismatch)
	}
	rest, ok := bytes.CutPrefix(inner, []byte(`{"cover":`))
	if !ok {
		return bad()
	}
	if rest, ok = bytes.CutPrefix(rest, cover); !ok {
		return bad()
	}
	if rest, ok = bytes.CutPrefix(rest, []byte(`,"bytes":[`)); !ok {
		return bad()
	}
	if rest, ok = bytes.CutSuffix(rest, []byte("]}")); !ok {
		return bad()
	}
	var out []envelope.Secret
	fail := func() ([]envelope.Secret, error) {
		for _, s := range out {
			s.Wipe()
		}
		return bad()
	}
	for i := range n {
		if i > 0 {
			if rest, ok = bytes.CutPrefix(rest, []byte(",")); !ok {
				return fail()
			}
		}
		if rest, ok = bytes.CutPrefix(rest, []byte(`"`)); !ok {
			return fail()
		}
		end := bytes.IndexByte(rest, '"')
		if end < 0 {
			return fail()
		}
		b, err := decodeBase64(rest[:end])
		if err != nil {
			return fail()
		}
		out = append(out, envelope.NewSecret(b))
		rest = rest[end+1:]
	}
	if len(rest) != 0 {
		return fail()
	}
	return out, nil
}

func splitKeyPackage(raw []byte, trust Trust) (c KeyCover, cover, sealed []byte, err error) {
	cover, sealed, revoked := splitPackage(raw, KeyPackageType, trust)
	if cover == nil {
		return c, nil, nil, revoked
	}
	if err := decode(cover, &c); err != nil {
		return c, nil, nil, err
	}
	if err := c.Check(); err != nil {
		return c, nil, nil, err
	}
	return c, cover, sealed, revoked
}

// splitPackage returns cover and age file of a signed package; both also where
// the error is ErrRevoked.
func splitPackage(raw []byte, payloadType string, trust Trust) (cover, sealed []byte, err error) {
	payload, _, err := verify(raw, payloadType, envelope.RoleProver, trust)
	if payload == nil {
		return nil, nil, err
	}
	cover, sealed, ok := bytes.Cut(payload, []byte("\n"))
	if !ok || len(cover) > maxCover || len(sealed) == 0 {
		return nil, nil, fmt.Errorf("%w: no cover", ErrStatement)
	}
	return cover, sealed, err
}

func sealPackage(payloadType string, cover, inner []byte, recipients []string, key envelope.SigningKey) ([]byte, error) {
	if key.Role() != envelope.RoleProver {
		return nil, fmt.Errorf("key has role %q, want %q", key.Role(), envelope.RoleProver)
	}
	if len(cover) > maxCover {
		return nil, fmt.Errorf("%w: cover of %d bytes", ErrTooLarge, len(cover))
	}
	sealed, err := envelope.SealToRecipients(inner, recipients)
	if err != nil {
		return nil, err
	}
	return envelope.Sign(payloadType, slices.Concat(cover, []byte("\n"), sealed), key)
}

// RecipientGroups sorts recipients into groups that age seals to in one file:
// X25519 and hybrid ones apart, each sorted and without doubles.
func RecipientGroups(recipients []string) [][]string {
	var classic, hybrid []string
	for _, r := range recipients {
		if strings.HasPrefix(r, "age1pq1") {
			hybrid = append(hybrid, r)
		} else {
			classic = append(classic, r)
		}
	}
	var out [][]string
	for _, g := range [][]string{classic, hybrid} {
		slices.Sort(g)
		if g = slices.Compact(g); len(g) > 0 {
			out = append(out, g)
		}
	}
	return out
}

// HeaderCover says what a header package covers and for whom.
type HeaderCover struct {
	Format       int          `json:"format"`
	Repository   string       `json:"repository"`
	Machine      string       `json:"machine"`
	HeaderDigest string       `json:"header_digest"`
	Type         string       `json:"type"`
	Detached     bool         `json:"detached"`
	Size         int64        `json:"size"` // of the volume, or of the detached header
	Ranges       []disk.Range `json:"ranges"`
	Recipients   []string     `json:"recipients"`
	Time         time.Time    `json:"time"`
	Software     string       `json:"software"`
}

// Check refuses a cover that is malformed.
func (c HeaderCover) Check() error {
	if err := checkFormat(c.Format); err != nil {
		return err
	}
	if err := checkIDs("repository", c.Repository, "machine", c.Machine); err != nil {
		return err
	}
	if err := checkTexts("header_digest", c.HeaderDigest, "type", c.Type); err != nil {
		return err
	}
	if c.HeaderDigest == "" || len(c.Ranges) == 0 || len(c.Ranges) > maxRanges {
		return fmt.Errorf("%w: header digest or ranges are missing", ErrStatement)
	}
	if _, err := c.bytes(); err != nil {
		return err
	}
	return checkPackage(c.Recipients, c.Time, c.Software)
}

// bytes sums the ranges up; they ascend and lie within Size.
func (c HeaderCover) bytes() (int64, error) {
	var sum, end int64
	for _, r := range c.Ranges {
		if r.Offset < end || r.Length <= 0 || r.Length > MaxHeader || r.Offset > c.Size-r.Length {
			return 0, fmt.Errorf("%w: header range at %d", ErrStatement, r.Offset)
		}
		end = r.End()
		if sum += r.Length; sum > MaxHeader {
			return 0, fmt.Errorf("%w: header of more than %d bytes", ErrTooLarge, MaxHeader)
		}
	}
	return sum, nil
}

// HeaderPackage is an opened header package: Bytes holds the ranges one behind the other.
type HeaderPackage struct {
	Cover HeaderCover
	Bytes []byte
}

// SealHeaderPackage seals a header's bytes and signs the package with a prover's key.
func SealHeaderPackage(c HeaderCover, header []byte, key envelope.SigningKey) ([]byte, error) {
	c.Format = formatVersion
	c.Time = c.Time.UTC()
	if err := c.Check(); err != nil {
		return nil, fmt.Errorf("seal header package: %w", err)
	}
	if sum, _ := c.bytes(); sum != int64(len(header)) {
		return nil, fmt.Errorf("seal header package: %w: %d bytes, the ranges have %d", ErrStatement, len(header), sum)
	}
	cover, err := json.Marshal(c)
	if err != nil {
		return nil, fmt.Errorf("seal header package: %w", err)
	}
	raw, err := sealPackage(HeaderPackageType, cover, slices.Concat(cover, []byte("\n"), header), c.Recipients, key)
	if err != nil {
		return nil, fmt.Errorf("seal header package: %w", err)
	}
	return raw, nil
}

// ReadHeaderCover verifies a header package without opening it. With
// ErrRevoked the cover is returned too.
func ReadHeaderCover(raw []byte, trust Trust) (HeaderCover, error) {
	c, _, _, err := splitHeaderPackage(raw, trust)
	if err != nil {
		return c, fmt.Errorf("read header package: %w", err)
	}
	return c, nil
}

// OpenHeaderPackage verifies a header package and opens it. With ErrRevoked the
// package is returned too, as by OpenKeyPackage.
func OpenHeaderPackage(raw []byte, identity envelope.Secret, trust Trust) (*HeaderPackage, error) {
	c, cover, sealed, revoked := splitHeaderPackage(raw, trust)
	if revoked != nil && sealed == nil {
		return nil, fmt.Errorf("open header package: %w", revoked)
	}
	inner, err := envelope.OpenWithIdentities(sealed, identity)
	if err != nil {
		return nil, fmt.Errorf("open header package: %w", err)
	}
	again, header, ok := bytes.Cut(inner.Expose(), []byte("\n"))
	sum, _ := c.bytes()
	if !ok || !bytes.Equal(again, cover) || int64(len(header)) != sum {
		return nil, fmt.Errorf("open header package: %w: sealed part does not fit the cover", ErrMismatch)
	}
	p := &HeaderPackage{Cover: c, Bytes: header}
	if revoked != nil {
		return p, fmt.Errorf("open header package: %w", revoked)
	}
	return p, nil
}

func splitHeaderPackage(raw []byte, trust Trust) (c HeaderCover, cover, sealed []byte, err error) {
	cover, sealed, revoked := splitPackage(raw, HeaderPackageType, trust)
	if cover == nil {
		return c, nil, nil, revoked
	}
	if err := decode(cover, &c); err != nil {
		return c, nil, nil, err
	}
	if err := c.Check(); err != nil {
		return c, nil, nil, err
	}
	return c, cover, sealed, revoked
}
