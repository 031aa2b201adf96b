package diskcrypt

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"

	"github.com/lockstep-backup/lockstep/blockstack"
	"github.com/lockstep-backup/lockstep/disk"
)

// ErrDeclaration says that what was declared of a volume cannot be.
var ErrDeclaration = errors.New("declaration cannot be")

// DeclaredType is the parameter of a declaration that names the volume's type.
const DeclaredType = "type"

// declarable are the types that nothing on the disk shows, and the parameters
// that each takes beside its type.
var declarable = map[string][]string{
	TypeVeraCrypt: {"cipher", "hash", "system"},
	TypePlain:     {"cipher", "hash", "iv-large-sectors", "offset", "sector-size", "size", "skip"},
}

// maxParameter bounds a parameter's value, in bytes.
const maxParameter = 128

// ParseDeclaration reads "TYPE[,NAME=VALUE]…". A part without "=" belongs to the
// value before it: cipher names may hold commas. ErrDeclaration.
func ParseDeclaration(s string) (map[string]string, error) {
	parts := strings.Split(s, ",")
	d := map[string]string{DeclaredType: parts[0]}
	last := ""
	for _, p := range parts[1:] {
		name, value, ok := strings.Cut(p, "=")
		switch _, twice := d[name]; {
		case !ok && last != "":
			d[last] += "," + p
			continue
		case !ok:
			return nil, fmt.Errorf("%w: %q is not of the form NAME=VALUE", ErrDeclaration, p)
		case twice:
			return nil, fmt.Errorf("%w: %q is said twice", ErrDeclaration, name)
		}
		d[name], last = value, name
	}
	return d, CheckDeclaration(d)
}

// CheckDeclaration refuses a type that cannot be declared and parameters that
// it does not have. What the values mean is the format's. ErrDeclaration.
func CheckDeclaration(d map[string]string) error {
	names, ok := declarable[d[DeclaredType]]
	if !ok {
		return fmt.Errorf("%w: type %q: one of %s", ErrDeclaration, d[DeclaredType], strings.Join(slices.Sorted(maps.Keys(declarable)), ", "))
	}
	for name, value := range d {
		if name != DeclaredType && !slices.Contains(names, name) {
			return fmt.Errorf("%w: %s has no parameter %q: one of %s", ErrDeclaration, d[DeclaredType], name, strings.Join(names, ", "))
		}
		if value == "" || len(value) > maxParameter || strings.ContainsFunc(value, func(r rune) bool { return r <= ' ' || r > '~' || r == '=' }) {
			return fmt.Errorf("%w: the value of %q is empty, too long or not plain text", ErrDeclaration, name)
		}
	}
	return nil
}

// FormatDeclaration is the text that ParseDeclaration reads, parameters in the
// order of their names; "" of nothing.
func FormatDeclaration(d map[string]string) string {
	if len(d) == 0 {
		return ""
	}
	s := d[DeclaredType]
	for _, name := range slices.Sorted(maps.Keys(d)) {
		if name != DeclaredType {
			s += "," + name + "=" + d[name]
		}
	}
	return s
}

// DeclaredAs is how a format asks whether a place is declared to be of its type.
func (p Place) DeclaredAs(volumeType string) bool { return p.Declared[DeclaredType] == volumeType }

// Declared looks at one place as the user declared it: what an older recovery
// point holds of a volume that was not declared yet. nil where no format reads it.
func Declared(ctx context.Context, formats []Format, r io.ReaderAt, v Volume, declared map[string]string) (*Volume, error) {
	f := finder{report: &Report{}, opts: FindOptions{Formats: formats}, r: r}
	out, _, err := f.inspect(ctx, Place{Data: PlaceOf(r, v), Size: v.Size(), Declared: declared})
	if err != nil || out == nil || out.Declared == nil {
		return nil, err
	}
	out.ID, out.Range, out.Extents = v.ID, v.Range, v.Extents
	return out, nil
}

// declaredWhole reports a disk that is declared to be one volume: whatever looks
// like a table in it is chance, or part of the volume.
func (f *finder) declaredWhole() bool { return f.opts.Declared[WholeDisk] != nil }

// declared is what the user declared of a place, nil where something is there
// that can be seen: what a checksum confirms at the first byte is no chance.
func (f *finder) declared(id string, signatures []blockstack.Signature) map[string]string {
	d := f.opts.Declared[id]
	if d == nil {
		return nil
	}
	f.declaredSeen = append(f.declaredSeen, id)
	for _, s := range signatures {
		table := d["system"] != "" && (s.Class == blockstack.GPT || s.Class == blockstack.MBR)
		if (s.Confirmed || isLUKS(s) && s.Offset == 0) && s.Offset < disk.BlockSize && d["offset"] == "" && !table {
			f.warn("%s: declared as %s, but %s is there; the declaration does not count", id, FormatDeclaration(d), s)
			return nil
		}
	}
	return d
}

// missedDeclarations says which declarations are about no place of the disk: a
// backup does not fail for them.
func (f *finder) missedDeclarations() {
	for _, id := range slices.Sorted(maps.Keys(f.opts.Declared)) {
		if !slices.Contains(f.declaredSeen, id) {
			f.warn("%s: declared as %s, but there is no such place on the disk", id, FormatDeclaration(f.opts.Declared[id]))
		}
	}
}

// undeclarable is a volume that is declared to be of a type that no format reads.
func undeclarable(p Place) *Volume {
	return &Volume{
		Type: p.Declared[DeclaredType], Declared: maps.Clone(p.Declared), Protectors: []Protector{},
		Unsupported: "no reader for " + p.Declared[DeclaredType] + " is linked in, or the place is too small for one",
	}
}
