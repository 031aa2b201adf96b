package custody

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"unicode/utf8"

	"github.com/lockstep-backup/lockstep/envelope"
)

// decode reads one JSON object of a payload whose signature was checked.
// Members that are not known are ignored, as the format asks; a format that is
// not known is told before anything else is.
func decode(payload []byte, into any) error {
	if !utf8.Valid(payload) {
		return fmt.Errorf("%w: not UTF-8", ErrStatement)
	}
	var head struct {
		Format int `json:"format"`
	}
	if err := decodeOne(payload, &head); err != nil {
		return err
	}
	if err := checkFormat(head.Format); err != nil {
		return err
	}
	return decodeOne(payload, into)
}

func decodeOne(payload []byte, into any) error {
	d := json.NewDecoder(bytes.NewReader(payload))
	if err := d.Decode(into); err != nil {
		return fmt.Errorf("%w: %w", ErrStatement, err)
	}
	if _, err := d.Token(); !errors.Is(err, io.EOF) {
		return fmt.Errorf("%w: something follows it", ErrStatement)
	}
	return nil
}

func appendBase64(out, b []byte) []byte { return base64.StdEncoding.AppendEncode(out, b) }

// decodeBase64 decodes into one buffer of its own; errors quote nothing.
func decodeBase64(text []byte) ([]byte, error) {
	b := make([]byte, base64.StdEncoding.DecodedLen(len(text)))
	n, err := base64.StdEncoding.Strict().Decode(b, text)
	if err != nil || bytes.ContainsAny(text, "\r\n") {
		envelope.Wipe(b)
		return nil, fmt.Errorf("%w: not base64", ErrStatement)
	}
	return b[:n], nil
}
