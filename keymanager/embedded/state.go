package embedded

import (
	"bytes"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"strconv"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/lockstep-backup/lockstep/envelope"
	"github.com/lockstep-backup/lockstep/keymanager"
)

// Names in the state directory.
const (
	kekFile       = "kek.sealed"
	indexFile     = "index.sealed"
	recordFile    = "record.sealed"
	secretsFolder = "secrets"
	lockName      = "lock"
)

// Frame kinds of this format, and the contexts that bind frames to their place.
const (
	kindKEKFile   = 0x0300
	kindSealedKEK = 0x0301
	kindIndex     = 0x0302
	kindRecord    = 0x0303
	kindVersion   = 0x0304

	contextIndex   = "lockstep/keymanager/1/index"
	contextRecord  = "lockstep/keymanager/1/record/"
	contextVersion = "lockstep/keymanager/1/version/"
)

// Bounds on what is read, in bytes. A record of the largest size has room for
// some 250,000 holds.
const (
	maxHeader   = 4096
	maxKEKFile  = 3 * 4096
	maxMetadata = 64 << 20
	maxSecret   = envelope.MaxSecretFile
	maxVersion  = 16 << 20
	padTo       = 256
)

const (
	formatName    = "lockstep-keymanager"
	formatVersion = 1
)

func damaged(format string, args ...any) error {
	return fmt.Errorf("%w: %w", keymanager.ErrDamaged, fmt.Errorf(format, args...))
}

// header is the readable part of kek.sealed. Features that change the format
// are named, so that an old reader can say what it lacks.
type header struct {
	Format         string    `json:"format"`
	Version        int       `json:"version"`
	KEK            string    `json:"kek"`
	Created        time.Time `json:"created"`
	Sealer         string    `json:"sealer"`
	MustUnderstand []string  `json:"must_understand"`
	MayIgnore      []string  `json:"may_ignore"`
}

func (h header) line() ([]byte, error) {
	b, err := json.Marshal(h)
	return append(b, '\n'), err
}

func parseHeader(line []byte) (header, error) {
	var h header
	if len(line) > maxHeader {
		return h, damaged("header of %s: longer than %d bytes", kekFile, maxHeader)
	}
	// Unknown members are for later versions to name; the version and the
	// features decide, not the decoder.
	if err := json.Unmarshal(line, &h); err != nil {
		return h, damaged("header of %s: %w", kekFile, err)
	}
	if h.Format != formatName {
		return h, fmt.Errorf("%w: format %q", ErrFormat, h.Format)
	}
	if h.Version != formatVersion {
		return h, fmt.Errorf("%w: version %d, this one knows %d", ErrFormat, h.Version, formatVersion)
	}
	if len(h.MustUnderstand) > 0 {
		return h, fmt.Errorf("%w: it needs %s", ErrFormat, strings.Join(h.MustUnderstand, ", "))
	}
	if id, err := hex.DecodeString(h.KEK); err != nil || len(id) != 16 {
		return h, damaged("header of %s: the KEK's id is not 16 bytes in hexadecimal", kekFile)
	}
	return h, nil
}

func encodeKEKFile(line, blob []byte) ([]byte, error) {
	body := binary.LittleEndian.AppendUint32(nil, uint32(len(line)))
	return envelope.SealFrame(kindKEKFile, nil, nil, append(append(body, line...), blob...))
}

// decodeKEKFile returns the header's bytes as well: they are the sealer's context.
func decodeKEKFile(data []byte) (h header, line, blob []byte, err error) {
	body, err := envelope.OpenFrame(data, kindKEKFile, nil, nil)
	if err != nil {
		return header{}, nil, nil, damaged("%s: %w", kekFile, err)
	}
	line, blob, ok := cutPrefixed(body)
	if !ok {
		return header{}, nil, nil, damaged("%s: lengths do not add up", kekFile)
	}
	h, err = parseHeader(line)
	return h, line, blob, err
}

// cutPrefixed takes a u32 length and as many bytes from the front of b.
func cutPrefixed(b []byte) (part, rest []byte, ok bool) {
	if len(b) < 4 {
		return nil, nil, false
	}
	n := binary.LittleEndian.Uint32(b)
	if uint64(n) > uint64(len(b)-4) {
		return nil, nil, false
	}
	return b[4 : 4+n], b[4+n:], true
}

// index says which records there are and how new each must at least be.
type index struct {
	Records map[string]uint64 `json:"records"` // by folder: the record's generation
	Wiping  []wiping          `json:"wiping"`
}

type wiping struct {
	Name    string `json:"name"`
	Version int    `json:"version"`
}

func newIndex() *index { return &index{Records: map[string]uint64{}, Wiping: []wiping{}} }

func encodeIndex(k *keys, x *index) ([]byte, error) {
	body, err := json.Marshal(x)
	if err != nil {
		return nil, err
	}
	if len(body) > maxMetadata {
		return nil, fmt.Errorf("%w: too many secrets for one key manager", keymanager.ErrInvalid)
	}
	return sealFrame(kindIndex, k.index, []byte(contextIndex), body)
}

func decodeIndex(k *keys, data []byte) (*index, error) {
	body, err := openFrame(kindIndex, k.index, []byte(contextIndex), data)
	if err != nil {
		return nil, damaged("%s: %w", indexFile, err)
	}
	x, err := parseIndex(body)
	if err != nil {
		return nil, damaged("%s: %w", indexFile, err)
	}
	return x, nil
}

func parseIndex(body []byte) (*index, error) {
	x := newIndex()
	if err := strictJSON(body, x); err != nil {
		return nil, err
	}
	if x.Records == nil {
		x.Records = map[string]uint64{}
	}
	for name := range x.Records {
		if !validName(name) {
			return nil, fmt.Errorf("record name %q", name)
		}
	}
	for _, w := range x.Wiping {
		if !validName(w.Name) || w.Version < 1 {
			return nil, fmt.Errorf("wiping %q, version %d", w.Name, w.Version)
		}
	}
	return x, nil
}

// record is a secret's mutable part.
type record struct {
	ID         string            `json:"id"`
	Kind       string            `json:"kind"`
	Labels     map[string]string `json:"labels"`
	Generation uint64            `json:"generation"`
	Versions   []*version        `json:"versions"`
}

type version struct {
	Number  int                     `json:"version"`
	State   keymanager.State        `json:"state"`
	Created time.Time               `json:"created"`
	History []keymanager.Transition `json:"history"`
	Holds   []keymanager.Hold       `json:"holds"`
	Expires *time.Time              `json:"expires,omitempty"`
}

func (r *record) find(n int) *version {
	if r == nil || n < 1 || n > len(r.Versions) {
		return nil
	}
	return r.Versions[n-1]
}

// public copies, so that callers cannot change what a Manager works on.
func (v *version) public(id string) keymanager.Version {
	return keymanager.Version{
		Ref: keymanager.Ref{ID: id, Version: v.Number}, State: v.State, Created: v.Created,
		History: append([]keymanager.Transition(nil), v.History...),
		Holds:   append([]keymanager.Hold(nil), v.Holds...), Expires: v.Expires,
	}
}

func (v *version) holdIndex(key string) int {
	for i, h := range v.Holds {
		if h.Key() == key {
			return i
		}
	}
	return -1
}

func encodeRecord(k *keys, name string, r *record) ([]byte, error) {
	body, err := json.Marshal(r)
	if err != nil {
		return nil, err
	}
	if len(body) > maxMetadata {
		return nil, fmt.Errorf("%w: secret %s has too many holds", keymanager.ErrInvalid, r.ID)
	}
	return sealFrame(kindRecord, k.record, []byte(contextRecord+name), body)
}

func decodeRecord(k *keys, name string, data []byte) (*record, error) {
	where := name + "/" + recordFile
	body, err := openFrame(kindRecord, k.record, []byte(contextRecord+name), data)
	if err != nil {
		return nil, damaged("%s: %w", where, err)
	}
	r, err := parseRecord(body)
	if err != nil {
		return nil, damaged("%s: %w", where, err)
	}
	if k.nameOf(r.ID) != name {
		return nil, damaged("%s: it is another secret's", where)
	}
	return r, nil
}

func parseRecord(body []byte) (*record, error) {
	r := &record{}
	if err := strictJSON(body, r); err != nil {
		return nil, err
	}
	if err := checkID(r.ID); err != nil {
		return nil, err
	}
	if len(r.Versions) == 0 || r.Generation == 0 {
		return nil, fmt.Errorf("no versions, or generation 0")
	}
	for i, v := range r.Versions {
		if v == nil || v.Number != i+1 {
			return nil, fmt.Errorf("versions are not 1, 2, …")
		}
		if len(v.History) == 0 || v.History[len(v.History)-1].State != v.State {
			return nil, fmt.Errorf("version %d: its state is not its history's last", v.Number)
		}
		if !knownState(v.State) {
			return nil, fmt.Errorf("version %d: state %q is not known", v.Number, v.State)
		}
	}
	return r, nil
}

func knownState(s keymanager.State) bool {
	switch s {
	case keymanager.PreActive, keymanager.Active, keymanager.Disabled,
		keymanager.Deactivated, keymanager.Compromised, keymanager.Destroyed:
		return true
	}
	return false
}

// birth is a version's immutable part. It is enough to write the record anew
// where Put was interrupted before it did.
type birth struct {
	ID      string            `json:"id"`
	Kind    string            `json:"kind"`
	Labels  map[string]string `json:"labels"`
	Version int               `json:"version"`
	State   keymanager.State  `json:"state"`
	Created time.Time         `json:"created"`
	Reason  string            `json:"reason"`
}

func (b birth) version() *version {
	return &version{
		Number: b.Version, State: b.State, Created: b.Created, Holds: []keymanager.Hold{},
		History: []keymanager.Transition{{State: b.State, At: b.Created, Reason: b.Reason}},
	}
}

// join adds a version to the record that is to list it.
func (b birth) join(r *record) *record {
	if r == nil {
		r = &record{ID: b.ID, Kind: b.Kind}
	}
	if r.Labels == nil {
		r.Labels = map[string]string{}
	}
	for k, v := range b.Labels {
		r.Labels[k] = v
	}
	r.Versions = append(r.Versions, b.version())
	return r
}

func versionFile(n int) string { return strconv.Itoa(n) + ".sealed" }

func versionContext(name string, n int) []byte {
	return []byte(contextVersion + name + "/" + strconv.Itoa(n))
}

func encodeVersion(k *keys, name string, b birth, secret envelope.Secret) ([]byte, error) {
	dataKey, err := envelope.NewKey()
	if err != nil {
		return nil, err
	}
	defer dataKey.Wipe()
	context := versionContext(name, b.Version)
	wrapped, err := envelope.WrapKey(k.version, dataKey, context)
	if err != nil {
		return nil, err
	}
	born, err := json.Marshal(b)
	if err != nil {
		return nil, err
	}
	size := 4 + len(born) + 4 + secret.Len()
	body := make([]byte, 0, (size+padTo-1)/padTo*padTo)
	defer func() { envelope.Wipe(body[:cap(body)]) }()
	body = append(binary.LittleEndian.AppendUint32(body, uint32(len(born))), born...)
	body = append(binary.LittleEndian.AppendUint32(body, uint32(secret.Len())), secret.Expose()...)
	frame, err := sealFrame(kindVersion, dataKey, context, body[:cap(body)])
	if err != nil {
		return nil, err
	}
	out := binary.LittleEndian.AppendUint32(nil, uint32(len(wrapped)))
	return append(append(out, wrapped...), frame...), nil
}

// decodeVersion opens a version file; the caller wipes the secret.
func decodeVersion(k *keys, name string, n int, data []byte) (birth, envelope.Secret, error) {
	where := name + "/" + versionFile(n)
	wrapped, frame, ok := cutPrefixed(data)
	if !ok {
		return birth{}, envelope.Secret{}, damaged("%s: lengths do not add up", where)
	}
	context := versionContext(name, n)
	dataKey, err := envelope.UnwrapKey(k.version, wrapped, context)
	if err != nil {
		return birth{}, envelope.Secret{}, damaged("%s: %w", where, err)
	}
	defer dataKey.Wipe()
	body, err := openFrame(kindVersion, dataKey, context, frame)
	if err != nil {
		return birth{}, envelope.Secret{}, damaged("%s: %w", where, err)
	}
	defer envelope.Wipe(body)
	b, secret, err := parseVersion(body)
	if err != nil {
		return birth{}, envelope.Secret{}, damaged("%s: %w", where, err)
	}
	if b.Version != n || k.nameOf(b.ID) != name {
		secret.Wipe()
		return birth{}, envelope.Secret{}, damaged("%s: it is another version's", where)
	}
	return b, secret, nil
}

// parseVersion copies the secret out of body.
func parseVersion(body []byte) (birth, envelope.Secret, error) {
	var b birth
	born, rest, ok := cutPrefixed(body)
	if !ok {
		return b, envelope.Secret{}, fmt.Errorf("lengths do not add up")
	}
	if err := strictJSON(born, &b); err != nil {
		return b, envelope.Secret{}, err
	}
	if err := checkID(b.ID); err != nil {
		return b, envelope.Secret{}, err
	}
	if b.Version < 1 || (b.State != keymanager.PreActive && b.State != keymanager.Active) {
		return b, envelope.Secret{}, fmt.Errorf("born as version %d in state %q", b.Version, b.State)
	}
	bytesOf, padding, ok := cutPrefixed(rest)
	if !ok || len(bytesOf) == 0 || len(bytesOf) > maxSecret || len(padding) >= padTo {
		return b, envelope.Secret{}, fmt.Errorf("lengths do not add up")
	}
	for _, p := range padding {
		if p != 0 {
			return b, envelope.Secret{}, fmt.Errorf("padding is not zero")
		}
	}
	return b, envelope.CopySecret(bytesOf), nil
}

// nameOf is the folder of a secret: ids stay unreadable without the KEK.
func (k *keys) nameOf(id string) string {
	mac := hmac.New(sha256.New, k.name.Expose())
	mac.Write([]byte(id))
	return hex.EncodeToString(mac.Sum(nil)[:16])
}

func validName(name string) bool {
	b, err := hex.DecodeString(name)
	return err == nil && len(b) == 16 && strings.ToLower(name) == name
}

// checkID takes what can be printed as id@version and typed again.
func checkID(id string) error {
	if id == "" || len(id) > 128 || !utf8.ValidString(id) || strings.Contains(id, "@") {
		return fmt.Errorf("%w: a secret's id has 1 to 128 bytes of UTF-8 without @", keymanager.ErrInvalid)
	}
	for _, r := range id {
		if !unicode.IsGraphic(r) || unicode.IsSpace(r) {
			return fmt.Errorf("%w: a secret's id has visible characters only", keymanager.ErrInvalid)
		}
	}
	return nil
}

// strictJSON refuses unknown members: a later format has a feature's name for
// them, and writing a record without them would lose them.
func strictJSON(b []byte, v any) error {
	d := json.NewDecoder(bytes.NewReader(b))
	d.DisallowUnknownFields()
	if err := d.Decode(v); err != nil {
		return err
	}
	if _, err := d.Token(); err != io.EOF {
		return fmt.Errorf("something follows the JSON value")
	}
	return nil
}

func sealFrame(kind uint16, key envelope.Secret, context, body []byte) ([]byte, error) {
	k, err := key.Key32()
	if err != nil {
		return nil, err
	}
	defer envelope.Wipe(k[:])
	return envelope.SealFrame(kind, k, context, body)
}

func openFrame(kind uint16, key envelope.Secret, context, data []byte) ([]byte, error) {
	k, err := key.Key32()
	if err != nil {
		return nil, err
	}
	defer envelope.Wipe(k[:])
	return envelope.OpenFrame(data, kind, k, context)
}
