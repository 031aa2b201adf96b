package fve

import (
	"errors"
	"fmt"
	"time"
	"unicode/utf16"
)

// Roles of datums ("entry type").
const (
	RoleProperty       = 0
	RoleVMK            = 2
	RoleFVEK           = 3
	RoleValidation     = 4
	RoleStartupKey     = 6
	RoleDescription    = 7
	RoleAutoUnlock     = 0xb
	RoleVirtualization = 0xf
	RoleRecoveryCopy   = 0x12
	RoleStretchedCopy  = 0x13
	RoleVolumeGUID     = 0x19
)

// Types of datums ("value type").
const (
	TypeErased         = 0x00
	TypeKey            = 0x01
	TypeUnicode        = 0x02
	TypeStretch        = 0x03
	TypeUse            = 0x04
	TypeCCM            = 0x05
	TypeTPM            = 0x06
	TypeVMK            = 0x08
	TypeExternalKey    = 0x09
	TypeVirtualization = 0x0f
	TypeBackup         = 0x15
	TypeGUID           = 0x17
)

// Algorithms of keys.
const (
	AlgStretchRecovery = 0x1000
	AlgStretchPassword = 0x1001
	AlgClearKey        = 0x2000
	AlgExternalKey     = 0x2002
	AlgVMK             = 0x2003
	AlgSHA256          = 0x2005
	AlgPasswordKey     = 0x2007
	AlgRecoveryKey     = 0x2008
)

const (
	datumHeader = 8
	maxDepth    = 4
	// maxDatums is far more than Windows makes; a block of 64 KiB has place for 8192.
	maxDatums = 2048
)

// fixed is what lies before the nested datums of the types that have any.
var fixed = map[uint16]int{TypeStretch: 20, TypeUse: 4, TypeVMK: 28, TypeExternalKey: 24}

// Datum is one entry. Its slices are parts of the block.
type Datum struct {
	Role, Type uint16
	Raw        []byte // all of it
	Body       []byte // behind the header of 8 bytes
	Nested     []Datum
}

// ParseDatums reads a list of datums that fills b to its end, or ends with a
// size of 0 and zeroes behind it.
func ParseDatums(b []byte) ([]Datum, error) {
	left := maxDatums
	return parseDatums(b, 0, &left)
}

func parseDatums(b []byte, depth int, left *int) (out []Datum, err error) {
	if depth > maxDepth {
		return nil, errors.New("datums are nested too deep")
	}
	for len(b) > 0 {
		if len(b) < 2 {
			return nil, errors.New("a datum is cut short")
		}
		size := int(le.Uint16(b))
		if size == 0 {
			return out, nil
		}
		if size < datumHeader || size > len(b) {
			return nil, fmt.Errorf("a datum of %d bytes where %d are left", size, len(b))
		}
		if *left--; *left < 0 {
			return nil, fmt.Errorf("more than %d datums", maxDatums)
		}
		d := Datum{Role: le.Uint16(b[2:]), Type: le.Uint16(b[4:]), Raw: b[:size:size], Body: b[datumHeader:size:size]}
		if n, ok := fixed[d.Type]; ok {
			if len(d.Body) < n {
				return nil, fmt.Errorf("a datum of type %#x with %d bytes", d.Type, len(d.Body))
			}
			if d.Nested, err = parseDatums(d.Body[n:], depth+1, left); err != nil {
				return nil, err
			}
		}
		out = append(out, d)
		b = b[size:]
	}
	return out, nil
}

// Key is the algorithm and the bytes of a KEY datum.
func (d Datum) Key() (alg uint16, key []byte, ok bool) {
	if d.Type != TypeKey || len(d.Body) < 4 {
		return 0, nil, false
	}
	return le.Uint16(d.Body), d.Body[4:], true
}

// Box is an AES-CCM box.
type Box struct{ Nonce, Tag, Sealed []byte }

// Box is the box of a datum of type CCM.
func (d Datum) Box() (Box, bool) {
	if d.Type != TypeCCM || len(d.Body) < 28 {
		return Box{}, false
	}
	return Box{Nonce: d.Body[:12], Tag: d.Body[12:28], Sealed: d.Body[28:]}, true
}

// Stretch is the algorithm and the salt of a STRETCH_KEY datum.
func (d Datum) Stretch() (alg uint16, salt []byte, ok bool) {
	if d.Type != TypeStretch {
		return 0, nil, false
	}
	return le.Uint16(d.Body), d.Body[4:20], true
}

// Text is the text of a UNICODE datum: printable, and not long.
func (d Datum) Text() string {
	if d.Type != TypeUnicode {
		return ""
	}
	const maxText = 200
	var u []uint16
	for b := d.Body; len(b) >= 2 && len(u) < maxText; b = b[2:] {
		c := le.Uint16(b)
		if c == 0 {
			break
		}
		u = append(u, c)
	}
	out := utf16.Decode(u)
	for i, r := range out {
		if r < 0x20 || r >= 0x7f && r < 0xa0 || r == 0x2028 || r == 0x2029 {
			out[i] = '?'
		}
	}
	return string(out)
}

// First is the first of the datums with this type, and, unless role is
// negative, this role.
func First(ds []Datum, role int, typ uint16) (Datum, bool) {
	for _, d := range ds {
		if d.Type == typ && (role < 0 || int(d.Role) == role) {
			return d, true
		}
	}
	return Datum{}, false
}

// ParseKeyBlob reads what a box holds: one KEY datum that fills b.
func ParseKeyBlob(b []byte) (alg uint16, key []byte, err error) {
	if len(b) < datumHeader+4 || int(le.Uint16(b)) != len(b) || le.Uint16(b[4:]) != TypeKey {
		return 0, nil, errors.New("the box holds no key")
	}
	return le.Uint16(b[datumHeader:]), b[datumHeader+4:], nil
}

// Time converts a FILETIME, to the second; the zero time where it is 0 or absurd.
func Time(filetime uint64) time.Time {
	const perSecond, epoch = 10_000_000, 11_644_473_600 // 1601 to 1970
	seconds := filetime / perSecond
	if filetime == 0 || seconds > 200_000_000_000 { // past the year 7900
		return time.Time{}
	}
	return time.Unix(int64(seconds)-epoch, 0).UTC()
}

// Protection says what a VMK datum is protected by.
type Protection uint16

// The bits of a Protection; the low byte is a priority.
const (
	ByClearKey  Protection = 0
	ByTPM       Protection = 0x0100
	ByExternal  Protection = 0x0200
	ByPIN       Protection = 0x0400
	ByRecovery  Protection = 0x0800
	ByPublicKey Protection = 0x1000
	ByPassword  Protection = 0x2000
)

// Kind is the protection without its priority.
func (p Protection) Kind() Protection { return p &^ 0xff }

// Protector is a VMK datum.
type Protector struct {
	GUID       GUID
	FileTime   uint64
	Protection Protection
	Nested     []Datum
}

// Protector reads a datum of type VMK.
func (d Datum) Protector() (Protector, bool) {
	if d.Type != TypeVMK {
		return Protector{}, false
	}
	return Protector{
		GUID: GUID(d.Body[:16]), FileTime: le.Uint64(d.Body[16:]), Protection: Protection(le.Uint16(d.Body[26:])), Nested: d.Nested,
	}, true
}

// Box is the box with the VMK: the direct one, not one of those inside the
// datums that say how its key is made.
func (p Protector) Box() (Box, bool) {
	d, ok := First(p.Nested, -1, TypeCCM)
	if !ok {
		return Box{}, false
	}
	return d.Box()
}
