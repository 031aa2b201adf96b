package header

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strconv"
)

const (
	maxDepth   = 16  // LUKS2 needs 5; clevis tokens nest deeper
	maxObjects = 32  // keyslots, tokens, segments, digests each
	maxList    = 256 // members of an array
	maxText    = 256 // bytes of a name or cipher that the model keeps
)

// parseTree reads one JSON value, strictly: no member twice, no second value
// behind the first, no deeper than maxDepth. Numbers stay as written.
func parseTree(b []byte) (any, error) {
	d := json.NewDecoder(bytes.NewReader(b))
	d.UseNumber()
	v, err := parseValue(d, 0)
	if err != nil {
		return nil, err
	}
	if _, err := d.Token(); !errors.Is(err, io.EOF) {
		return nil, errors.New("something follows the JSON value")
	}
	return v, nil
}

func parseValue(d *json.Decoder, depth int) (any, error) {
	t, err := d.Token()
	if err != nil {
		return nil, err
	}
	delim, ok := t.(json.Delim)
	if !ok {
		return t, nil
	}
	if depth >= maxDepth {
		return nil, fmt.Errorf("nested deeper than %d", maxDepth)
	}
	if delim == '[' {
		list := []any{}
		for d.More() {
			v, err := parseValue(d, depth+1)
			if err != nil {
				return nil, err
			}
			list = append(list, v)
		}
		_, err := d.Token()
		return list, err
	}
	m := map[string]any{}
	for d.More() {
		t, err := d.Token()
		if err != nil {
			return nil, err
		}
		name, ok := t.(string)
		if !ok {
			return nil, errors.New("a member's name is not a string")
		}
		if _, twice := m[name]; twice {
			return nil, fmt.Errorf("member %q occurs twice", cut(name))
		}
		if m[name], err = parseValue(d, depth+1); err != nil {
			return nil, err
		}
	}
	_, err = d.Token()
	return m, err
}

// Canonical is the canonical JSON of docs/spec/fingerprints.md.
func Canonical(v any) []byte {
	var b bytes.Buffer
	e := json.NewEncoder(&b)
	e.SetEscapeHTML(false)
	if err := e.Encode(v); err != nil {
		return nil // a tree of parseTree always encodes
	}
	return bytes.TrimSuffix(b.Bytes(), []byte("\n"))
}

func cut(s string) string {
	s = printable(s)
	if len(s) > 40 {
		return s[:40] + "…"
	}
	return s
}

// fields reads members of one object and remembers the first defect, so that
// a caller reads all it needs and asks once.
type fields struct {
	path string
	m    map[string]any
	err  *error
}

func (f fields) fail(format string, args ...any) {
	if *f.err == nil {
		*f.err = fmt.Errorf("%s: %s", f.path, fmt.Sprintf(format, args...))
	}
}

func (f fields) has(name string) bool { _, ok := f.m[name]; return ok }

func (f fields) object(name string) fields {
	m, ok := f.m[name].(map[string]any)
	if !ok {
		f.fail("%q is missing or not an object", name)
	}
	return fields{f.path + "." + name, m, f.err}
}

func (f fields) text(name string) string {
	s, ok := f.m[name].(string)
	if !ok || s == "" {
		f.fail("%q is missing or not a text", name)
	}
	if len(s) > maxText {
		f.fail("%q has %d bytes", name, len(s))
		return ""
	}
	return printable(s)
}

// int reads a JSON number that must be a whole one from lo to hi.
func (f fields) int(name string, lo, hi uint64) uint64 {
	n, ok := f.m[name].(json.Number)
	if !ok {
		f.fail("%q is missing or not a number", name)
		return 0
	}
	v, err := strconv.ParseUint(string(n), 10, 64)
	if err != nil || v < lo || v > hi {
		f.fail("%q is %s, not between %d and %d", name, cut(string(n)), lo, hi)
		return 0
	}
	return v
}

// decimal reads a 64-bit number, which LUKS2 writes as a decimal text.
func (f fields) decimal(name string) uint64 {
	s, ok := f.m[name].(string)
	if !ok {
		f.fail("%q is missing or not a decimal text", name)
		return 0
	}
	v, err := strconv.ParseUint(s, 10, 64)
	if err != nil {
		f.fail("%q is %q, not an unsigned 64-bit number", name, cut(s))
	}
	return v
}

// bytes64 reads a decimal that is a place or a length on a device.
func (f fields) bytes64(name string) int64 {
	v := f.decimal(name)
	if v > 1<<62 {
		f.fail("%q is %d, larger than any device", name, v)
		return 0
	}
	return int64(v)
}

func (f fields) base64(name string, most int) []byte {
	s, ok := f.m[name].(string)
	if !ok || len(s) > 2*most {
		f.fail("%q is missing, too long or not a text", name)
		return nil
	}
	b, err := base64.StdEncoding.DecodeString(s)
	if err != nil || len(b) > most {
		f.fail("%q is not base64 of at most %d bytes", name, most)
		return nil
	}
	return b
}

func (f fields) texts(name string) []string {
	list, ok := f.m[name].([]any)
	if !ok || len(list) > maxList {
		f.fail("%q is missing, too long or not an array", name)
		return nil
	}
	var out []string
	for _, v := range list {
		s, ok := v.(string)
		if !ok || len(s) > maxText {
			f.fail("%q has a member that is not a short text", name)
			return nil
		}
		out = append(out, printable(s))
	}
	return out
}

// numbers reads an array of object names.
func (f fields) numbers(name string) []int {
	var out []int
	seen := map[int]bool{}
	for _, s := range f.texts(name) {
		n, ok := objectNumber(s)
		if !ok {
			f.fail("%q lists %q, which is no number", name, cut(s))
			return nil
		}
		if seen[n] {
			f.fail("%q lists %d twice", name, n)
		}
		seen[n] = true
		out = append(out, n)
	}
	return out
}

// children reads an object whose members are objects named by numbers.
func (f fields) children(name string) map[int]fields {
	o := f.object(name)
	if len(o.m) > maxObjects {
		f.fail("%q has %d members", name, len(o.m))
		return nil
	}
	out := map[int]fields{}
	for key := range o.m {
		n, ok := objectNumber(key)
		if !ok {
			o.fail("name %q is not a number below %d", cut(key), maxObjects)
			return nil
		}
		out[n] = o.object(key)
	}
	return out
}

func objectNumber(s string) (int, bool) {
	n, err := strconv.Atoi(s)
	return n, err == nil && n >= 0 && n < maxObjects && strconv.Itoa(n) == s
}
