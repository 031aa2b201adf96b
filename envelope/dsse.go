package envelope

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strconv"
	"strings"
	"unicode/utf8"
)

// MaxDSSE is the size of the largest envelope that is written or read, in bytes.
const MaxDSSE = 16 << 20

const maxSignatures = 64

// Errors of signed statements.
var (
	ErrDSSE        = errors.New("signed statement is malformed")
	ErrPayloadType = errors.New("signed statement is of another type")
	ErrSignature   = errors.New("no valid signature by a trusted key")
)

// DSSE is a signed statement (github.com/secure-systems-lab/dsse).
type DSSE struct {
	PayloadType string      `json:"payloadType"`
	Payload     []byte      `json:"payload"`
	Signatures  []Signature `json:"signatures"`
}

// Signature is one signature over the statement; KeyID is a hint only.
type Signature struct {
	KeyID KeyID  `json:"keyid"`
	Sig   []byte `json:"sig"`
}

// PAE is DSSE's pre-authentication encoding: the bytes that are signed.
func PAE(payloadType string, payload []byte) []byte {
	out := make([]byte, 0, len(payload)+len(payloadType)+64)
	out = append(out, "DSSEv1 "...)
	out = strconv.AppendInt(out, int64(len(payloadType)), 10)
	out = append(out, ' ')
	out = append(out, payloadType...)
	out = append(out, ' ')
	out = strconv.AppendInt(out, int64(len(payload)), 10)
	out = append(out, ' ')
	return append(out, payload...)
}

// Sign makes a statement signed by every key, in JSON.
func Sign(payloadType string, payload []byte, keys ...SigningKey) ([]byte, error) {
	if len(keys) == 0 || len(keys) > maxSignatures {
		return nil, fmt.Errorf("sign statement: %d keys, want 1 to %d", len(keys), maxSignatures)
	}
	if !utf8.ValidString(payloadType) || payloadType == "" {
		return nil, fmt.Errorf("sign statement: payload type %q is not valid", payloadType)
	}
	if payload == nil {
		payload = []byte{}
	}
	pae := PAE(payloadType, payload)
	statement := DSSE{PayloadType: payloadType, Payload: payload}
	for _, k := range keys {
		id, sig, err := k.Sign(pae)
		if err != nil {
			return nil, fmt.Errorf("sign statement: %w", err)
		}
		statement.Signatures = append(statement.Signatures, Signature{KeyID: KeyID(id), Sig: sig})
	}
	raw, err := json.Marshal(statement)
	if err != nil {
		return nil, fmt.Errorf("sign statement: %w", err)
	}
	if len(raw) > MaxDSSE {
		return nil, fmt.Errorf("sign statement: %d bytes are more than %d", len(raw), MaxDSSE)
	}
	return raw, nil
}

// Verify checks a statement against the keys that are trusted for it (see
// KeySet.WithRole) and returns the payload and the first signer found valid.
func Verify(raw []byte, payloadType string, keys KeySet) (payload []byte, signer KeyID, err error) {
	statement, err := ParseDSSE(raw)
	if err != nil {
		return nil, "", fmt.Errorf("verify statement: %w", err)
	}
	if statement.PayloadType != payloadType {
		return nil, "", fmt.Errorf("verify statement: %w: %q, want %q", ErrPayloadType, statement.PayloadType, payloadType)
	}
	for _, k := range keys {
		if err := k.Check(); err != nil {
			return nil, "", fmt.Errorf("verify statement: %w", err)
		}
	}
	pae := PAE(payloadType, statement.Payload)
	for _, s := range statement.Signatures {
		for _, k := range keys {
			if s.KeyID != "" && s.KeyID != k.ID {
				continue
			}
			if k.Verify(pae, s.Sig) {
				return statement.Payload, k.ID, nil
			}
		}
	}
	return nil, "", fmt.Errorf("verify statement: %w", ErrSignature)
}

// ParseDSSE reads a statement without verifying anything.
func ParseDSSE(raw []byte) (DSSE, error) {
	if len(raw) > MaxDSSE {
		return DSSE{}, fmt.Errorf("%w: %d bytes are more than %d", ErrDSSE, len(raw), MaxDSSE)
	}
	if !utf8.Valid(raw) || !json.Valid(raw) {
		return DSSE{}, fmt.Errorf("%w: not JSON", ErrDSSE)
	}
	fields, err := jsonObject(raw, "payloadType", "payload", "signatures")
	if err != nil {
		return DSSE{}, err
	}
	var statement DSSE
	if statement.PayloadType, err = jsonString(fields["payloadType"]); err != nil {
		return DSSE{}, fmt.Errorf("%w (payloadType)", err)
	}
	if statement.Payload, err = jsonBase64(fields["payload"]); err != nil {
		return DSSE{}, fmt.Errorf("%w (payload)", err)
	}
	list := json.NewDecoder(bytes.NewReader(fields["signatures"]))
	if t, err := list.Token(); err != nil || t != json.Delim('[') {
		return DSSE{}, fmt.Errorf("%w: signatures are not a list", ErrDSSE)
	}
	for list.More() {
		if len(statement.Signatures) == maxSignatures {
			return DSSE{}, fmt.Errorf("%w: more than %d signatures", ErrDSSE, maxSignatures)
		}
		var one json.RawMessage
		if err := list.Decode(&one); err != nil {
			return DSSE{}, fmt.Errorf("%w: %w", ErrDSSE, err)
		}
		fields, err := jsonObject(one, "keyid", "sig")
		if err != nil {
			return DSSE{}, err
		}
		var s Signature
		if raw, ok := fields["keyid"]; ok {
			id, err := jsonString(raw)
			if err != nil {
				return DSSE{}, fmt.Errorf("%w (keyid)", err)
			}
			s.KeyID = KeyID(id)
		}
		if s.Sig, err = jsonBase64(fields["sig"]); err != nil {
			return DSSE{}, fmt.Errorf("%w (sig)", err)
		}
		statement.Signatures = append(statement.Signatures, s)
	}
	return statement, nil
}

// jsonObject takes the named fields of an object. encoding/json alone would
// accept "Payload" for "payload" and the last of two; then two readers could
// see two statements under one signature.
func jsonObject(raw []byte, names ...string) (map[string]json.RawMessage, error) {
	d := json.NewDecoder(bytes.NewReader(raw))
	if t, err := d.Token(); err != nil || t != json.Delim('{') {
		return nil, fmt.Errorf("%w: not an object", ErrDSSE)
	}
	fields := make(map[string]json.RawMessage, len(names))
	for d.More() {
		t, err := d.Token()
		if err != nil {
			return nil, fmt.Errorf("%w: %w", ErrDSSE, err)
		}
		name, _ := t.(string)
		var value json.RawMessage
		if err := d.Decode(&value); err != nil {
			return nil, fmt.Errorf("%w: %w", ErrDSSE, err)
		}
		for _, known := range names {
			if !strings.EqualFold(name, known) {
				continue
			}
			if name != known {
				return nil, fmt.Errorf("%w: field %q in another case", ErrDSSE, name)
			}
			if _, twice := fields[name]; twice {
				return nil, fmt.Errorf("%w: field %q twice", ErrDSSE, name)
			}
			fields[name] = value
		}
	}
	if _, err := d.Token(); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrDSSE, err)
	}
	if _, err := d.Token(); !errors.Is(err, io.EOF) {
		return nil, fmt.Errorf("%w: something follows it", ErrDSSE)
	}
	return fields, nil
}

func jsonString(raw json.RawMessage) (string, error) {
	if len(raw) == 0 || raw[0] != '"' {
		return "", fmt.Errorf("%w: string missing", ErrDSSE)
	}
	var s string
	if err := json.Unmarshal(raw, &s); err != nil {
		return "", fmt.Errorf("%w: %w", ErrDSSE, err)
	}
	return s, nil
}

func jsonBase64(raw json.RawMessage) ([]byte, error) {
	s, err := jsonString(raw)
	if err != nil {
		return nil, err
	}
	encoding := base64.StdEncoding
	if strings.ContainsAny(s, "-_") {
		encoding = base64.URLEncoding
	}
	b, err := encoding.Strict().DecodeString(s)
	// The decoder skips line breaks; a second encoding of the same bytes has no use here.
	if err != nil || strings.ContainsAny(s, "\r\n") {
		return nil, fmt.Errorf("%w: not base64", ErrDSSE)
	}
	return b, nil
}
