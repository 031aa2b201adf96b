package keys

import (
	"encoding/binary"
	"fmt"
)

// RecoverySize is the size of a recovery key: eight 16-bit words.
const RecoverySize = 16

// A recovery password is eight groups of six digits, each a 16-bit word times 11.
const (
	groups    = 8
	digits    = 6
	groupStep = 11
)

// MistypedError says where a recovery password is mistyped. It never holds the
// digits themselves.
type MistypedError struct {
	Group  int // from 1; 0: it is not eight groups of six digits at all
	Reason string
}

func (e *MistypedError) Error() string {
	if e.Group == 0 {
		return "recovery password: " + e.Reason
	}
	return fmt.Sprintf("recovery password: group %d of %d is mistyped: %s", e.Group, groups, e.Reason)
}

// ParseRecovery reads a recovery password, with or without dashes and blanks
// between the digits. The error is a *MistypedError that names the first wrong group.
func ParseRecovery(password []byte) (key [RecoverySize]byte, err error) {
	fail := func(group int, format string, args ...any) ([RecoverySize]byte, error) {
		clear(key[:])
		return key, &MistypedError{group, fmt.Sprintf(format, args...)}
	}
	n, value := 0, 0
	for _, c := range password {
		switch {
		case c == '-' || c == ' ':
			// A separator inside a group says that a digit is missing or too many right here.
			if n%digits != 0 {
				return fail(n/digits+1, "it has %d digits before the separator, not %d", n%digits, digits)
			}
			continue
		case c < '0' || c > '9':
			return fail(min(n/digits+1, groups), "a character that is no digit")
		case n == groups*digits:
			return fail(0, "more than %d digits", groups*digits)
		}
		value = value*10 + int(c-'0')
		if n++; n%digits != 0 {
			continue
		}
		group := n / digits
		if value%groupStep != 0 {
			return fail(group, "its check digit is wrong")
		}
		if value >= groupStep<<16 {
			return fail(group, "it is larger than any group can be")
		}
		binary.LittleEndian.PutUint16(key[2*(group-1):], uint16(value/groupStep))
		value = 0
	}
	if n != groups*digits {
		return fail(0, "%d digits, not %d", n, groups*digits)
	}
	return key, nil
}

// FormatRecovery writes a recovery key as Windows shows it. The caller wipes it.
func FormatRecovery(key [RecoverySize]byte) []byte {
	out := make([]byte, 0, groups*(digits+1))
	for i := range groups {
		if i > 0 {
			out = append(out, '-')
		}
		v := int(binary.LittleEndian.Uint16(key[2*i:])) * groupStep
		for div := 100000; div > 0; div /= 10 {
			out = append(out, byte('0'+v/div%10))
		}
	}
	return out
}
