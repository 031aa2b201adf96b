package shell

import (
	"fmt"
	"math"
	"strconv"
	"strings"
	"time"
)

// Amount is a flag's number of bytes as people write it, with K, M, G or T for
// powers of 1024: "100G".
type Amount int64

// Type is what the help calls the value.
func (a *Amount) Type() string { return "size" }

// String is the number of bytes; "" for none.
func (a *Amount) String() string {
	if *a == 0 {
		return ""
	}
	return strconv.FormatInt(int64(*a), 10)
}

// Set reads it.
func (a *Amount) Set(s string) error {
	digits, shift := s, 0
	if s != "" {
		if i := strings.IndexByte("KMGT", s[len(s)-1]&^0x20); i >= 0 {
			digits, shift = s[:len(s)-1], 10*(i+1)
		}
	}
	n, err := strconv.ParseUint(digits, 10, 63) // takes no sign
	if err != nil || n == 0 || n > math.MaxInt64>>shift {
		return fmt.Errorf("size %q is not a number of bytes such as 100G", s)
	}
	*a = Amount(n << shift)
	return nil
}

// Age is a flag's length of time in weeks, days, hours, minutes and seconds, the
// larger ones first: "30d", "1d12h". A day has 24 hours.
type Age time.Duration

// Type is what the help calls the value.
func (a *Age) Type() string { return "time" }

// String is as time.Duration writes it; "" for none.
func (a *Age) String() string {
	if *a == 0 {
		return ""
	}
	return time.Duration(*a).String()
}

// Seconds is the age in seconds.
func (a *Age) Seconds() int64 { return int64(time.Duration(*a) / time.Second) }

// maxAge is 100 years.
const maxAge = 100 * 365 * 24 * time.Hour

var ageUnits = []struct {
	letter byte
	one    time.Duration
}{{'w', 7 * 24 * time.Hour}, {'d', 24 * time.Hour}, {'h', time.Hour}, {'m', time.Minute}, {'s', time.Second}}

// Set reads it.
func (a *Age) Set(s string) error {
	bad := fmt.Errorf("time %q is not a length of time such as 1h, 36h or 30d", s)
	var sum time.Duration
	rest := s
	for _, u := range ageUnits {
		i := strings.IndexByte(rest, u.letter)
		if i < 0 {
			continue
		}
		n, err := strconv.ParseUint(rest[:i], 10, 40)
		if err != nil || n > uint64(maxAge/u.one) {
			return bad
		}
		sum += time.Duration(n) * u.one
		rest = rest[i+1:]
	}
	if rest != "" || sum <= 0 || sum > maxAge {
		return bad
	}
	*a = Age(sum)
	return nil
}
