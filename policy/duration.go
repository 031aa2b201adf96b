package policy

import (
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"
)

// Duration is written with weeks, days, hours, minutes and seconds, "8w",
// "14d", "36h", "1d12h". A day has 24 hours and a week 7 days, whatever the
// calendar says.
type Duration time.Duration

// maxDuration is 100 years, within what a time.Duration holds.
const maxDuration = Duration(100 * 365 * day)

const day = 24 * time.Hour

var units = []struct {
	letter byte
	one    time.Duration
}{{'w', 7 * day}, {'d', day}, {'h', time.Hour}, {'m', time.Minute}, {'s', time.Second}}

var errDuration = errors.New("not a duration, such as 36h, 14d or 8w")

// ParseDuration reads a duration.
func ParseDuration(s string) (Duration, error) {
	rest, sum, last := s, time.Duration(0), -1
	if s == "" || len(s) > 64 {
		return 0, errDuration
	}
	for rest != "" {
		digits := len(rest) - len(strings.TrimLeft(rest, "0123456789"))
		if digits == 0 || digits == len(rest) {
			return 0, errDuration
		}
		n, err := strconv.ParseInt(rest[:digits], 10, 64)
		if err != nil {
			return 0, errDuration
		}
		unit := -1
		for i, u := range units {
			if u.letter == rest[digits] {
				unit = i
			}
		}
		if unit <= last { // not a unit, or not smaller than the one before
			return 0, errDuration
		}
		if n > int64(maxDuration)/int64(units[unit].one) {
			return 0, errTooLong
		}
		sum += time.Duration(n) * units[unit].one
		if Duration(sum) > maxDuration {
			return 0, errTooLong
		}
		rest, last = rest[digits+1:], unit
	}
	return Duration(sum), nil
}

var errTooLong = errors.New("more than 100 years")

func (d Duration) check() error {
	switch {
	case d < 0:
		return errDuration
	case d > maxDuration:
		return errTooLong
	case time.Duration(d)%time.Second != 0:
		return errors.New("not whole seconds")
	}
	return nil
}

// String is what ParseDuration reads: days and smaller.
func (d Duration) String() string {
	if d.check() != nil {
		return time.Duration(d).String()
	}
	if d == 0 {
		return "0s"
	}
	var b strings.Builder
	left := time.Duration(d)
	for _, u := range units[1:] {
		if n := left / u.one; n > 0 {
			fmt.Fprintf(&b, "%d%c", n, u.letter)
			left %= u.one
		}
	}
	return b.String()
}

// MarshalText implements encoding.TextMarshaler.
func (d Duration) MarshalText() ([]byte, error) { return []byte(d.String()), nil }

// UnmarshalText implements encoding.TextUnmarshaler.
func (d *Duration) UnmarshalText(text []byte) error {
	v, err := ParseDuration(string(text))
	if err != nil {
		return fmt.Errorf("%w: %.64q: %w", ErrInvalid, text, err)
	}
	*d = v
	return nil
}
