package lvm

import (
	"errors"
	"fmt"
	"math"
	"strconv"
	"strings"
)

// Bounds of a metadata text. LVM's own limit is the metadata area, 1 MiB by default.
const (
	maxText  = 8 << 20
	maxNodes = 400_000 // keys, sections and list elements
	maxDepth = 16
)

// section is a named group of the text: "name { … }". Keys are unique.
type section struct {
	name     string
	values   map[string][]value // a value that is no list has one element
	sections []*section
	byName   map[string]*section
}

// value is a number or a string.
type value struct {
	text   string
	number int64
	isText bool
}

var errText = errors.New("metadata text is damaged")

// parseText reads LVM's configuration format, as far as LVM writes it: sections,
// assignments, lists, integers, floats (kept as text), strings, comments.
func parseText(text string) (*section, error) {
	if len(text) > maxText {
		return nil, fmt.Errorf("%w: %d bytes", errText, len(text))
	}
	p := parser{s: text}
	root := newSection("")
	if err := p.body(root, 0); err != nil {
		return nil, fmt.Errorf("%w: at byte %d: %w", errText, p.i, err)
	}
	return root, nil
}

func newSection(name string) *section {
	return &section{name: name, values: map[string][]value{}, byName: map[string]*section{}}
}

type parser struct {
	s     string
	i     int
	nodes int
}

// skip passes space and comments, and returns the next byte, 0 at the end.
// The text may end in a zero byte.
func (p *parser) skip() byte {
	for p.i < len(p.s) {
		switch c := p.s[p.i]; {
		case c == '#':
			for p.i < len(p.s) && p.s[p.i] != '\n' {
				p.i++
			}
		case c == ' ' || c >= '\t' && c <= '\r':
			p.i++
		default:
			return c
		}
	}
	return 0
}

func (p *parser) count() error {
	if p.nodes++; p.nodes > maxNodes {
		return fmt.Errorf("more than %d entries", maxNodes)
	}
	return nil
}

func (p *parser) body(into *section, depth int) error {
	for {
		c := p.skip()
		switch {
		case c == 0 && depth == 0:
			return nil
		case c == 0:
			return errors.New("a section has no end")
		case c == '}' && depth > 0:
			p.i++
			return nil
		}
		if err := p.count(); err != nil {
			return err
		}
		name, err := p.name()
		if err != nil {
			return err
		}
		if _, twice := into.values[name]; twice || into.byName[name] != nil {
			return fmt.Errorf("%q is there twice", clip(name))
		}
		switch p.skip() {
		case '{':
			p.i++
			if depth++; depth >= maxDepth {
				return errors.New("sections are nested too deep")
			}
			sub := newSection(name)
			if err := p.body(sub, depth); err != nil {
				return err
			}
			depth--
			into.sections = append(into.sections, sub)
			into.byName[name] = sub
		case '=':
			p.i++
			if into.values[name], err = p.values(); err != nil {
				return err
			}
		default:
			return fmt.Errorf("%q is neither a section nor an assignment", clip(name))
		}
	}
}

// name is an identifier; LVM ends it at space and at the signs below.
func (p *parser) name() (string, error) {
	if p.s[p.i] == '"' {
		return p.quoted()
	}
	from := p.i
	for p.i < len(p.s) && p.s[p.i] > ' ' && !strings.ContainsRune(`#={}[],"`, rune(p.s[p.i])) {
		p.i++
	}
	if p.i == from {
		return "", fmt.Errorf("%q where a name is due", p.s[from])
	}
	return p.s[from:p.i], nil
}

func (p *parser) values() ([]value, error) {
	if p.skip() != '[' {
		v, err := p.value()
		return []value{v}, err
	}
	p.i++
	list := []value{}
	for {
		if p.skip() == ']' {
			p.i++
			return list, nil
		}
		if err := p.count(); err != nil {
			return nil, err
		}
		v, err := p.value()
		if err != nil {
			return nil, err
		}
		list = append(list, v)
		switch p.skip() {
		case ',':
			p.i++
		case ']':
		default:
			return nil, errors.New("a list has no end")
		}
	}
}

func (p *parser) value() (value, error) {
	c := p.skip()
	switch {
	case c == '"':
		s, err := p.quoted()
		return value{text: s, isText: true}, err
	case c == '-' || c == '+' || c >= '0' && c <= '9':
		from := p.i
		p.i++
		for p.i < len(p.s) && (p.s[p.i] >= '0' && p.s[p.i] <= '9' || p.s[p.i] == '.') {
			p.i++
		}
		digits := p.s[from:p.i]
		n, err := strconv.ParseInt(digits, 10, 64)
		if err != nil && strings.Contains(digits, ".") {
			return value{text: digits, isText: true}, nil
		}
		if err != nil {
			return value{}, fmt.Errorf("number %q", clip(digits))
		}
		return value{number: n}, nil
	case c == 0:
		return value{}, errors.New("a value is missing")
	}
	return value{}, fmt.Errorf("%q where a value is due", c)
}

// quoted is a string; a backslash takes the special meaning of quote and backslash.
func (p *parser) quoted() (string, error) {
	p.i++
	from := p.i
	escaped := false
	for ; p.i < len(p.s); p.i++ {
		switch p.s[p.i] {
		case '\\':
			escaped = true
			p.i++
		case '"':
			s := p.s[from:p.i]
			p.i++
			if escaped {
				s = unescape(s)
			}
			return s, nil
		}
	}
	return "", errors.New("a string has no end")
}

func unescape(s string) string {
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		if s[i] == '\\' && i+1 < len(s) {
			i++
		}
		b.WriteByte(s[i])
	}
	return b.String()
}

// clip bounds what of a hostile text gets into a message.
func clip(s string) string { return s[:min(len(s), 64)] }

// number is an integer from 0 on.
func (s *section) number(key string) (int64, error) {
	v := s.values[key]
	if len(v) != 1 || v[0].isText || v[0].number < 0 {
		return 0, fmt.Errorf("%w: %s has no number %q", errText, clip(s.name), key)
	}
	return v[0].number, nil
}

// numberOr is an integer from 0 on; what is not there is the other.
func (s *section) numberOr(key string, other int64) (int64, error) {
	if s.values[key] == nil {
		return other, nil
	}
	return s.number(key)
}

// text is a string, "" where it is not there.
func (s *section) text(key string) string {
	if v := s.values[key]; len(v) == 1 && v[0].isText {
		return v[0].text
	}
	return ""
}

// has reports whether a list of strings has one.
func (s *section) has(key, element string) bool {
	for _, v := range s.values[key] {
		if v.isText && v.text == element {
			return true
		}
	}
	return false
}

// times multiplies what a hostile text may have said.
func times(a, b int64) (int64, error) {
	if a < 0 || b < 0 || b > 0 && a > math.MaxInt64/4/b {
		return 0, fmt.Errorf("%w: %d times %d is too much", errText, a, b)
	}
	return a * b, nil
}
