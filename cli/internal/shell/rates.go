package shell

import (
	"fmt"
	"math"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"github.com/lockstep-backup/lockstep/api"
)

// slowest is the lowest rate that is taken: below it nothing useful ends.
const slowest = 64 << 10

// Rates adds --limit-read and --limit-write to a command.
func Rates(cmd *cobra.Command, r *api.Rates) {
	f := cmd.Flags()
	f.Var((*rate)(&r.LimitRead), "limit-read", "read no more than `RATE` bytes a second, such as 200M, from disks and stores together")
	f.Var((*rate)(&r.LimitWrite), "limit-write", "write no more than `RATE` bytes a second, to disks and stores together")
}

// rate is a number of bytes a second as people write it.
type rate int64

// Type is what the help calls the value.
func (r *rate) Type() string { return "rate" }

// String is what was set, in bytes; "" where nothing was.
func (r *rate) String() string {
	if *r == 0 {
		return ""
	}
	return strconv.FormatInt(int64(*r), 10)
}

// Set is ParseRate.
func (r *rate) Set(s string) error {
	n, err := ParseRate(s)
	*r = rate(n)
	return err
}

// ParseRate reads bytes a second, with K, M, G or T for powers of 1024; 0 is no limit.
func ParseRate(s string) (int64, error) {
	if s == "0" {
		return 0, nil
	}
	bad := fmt.Errorf("rate %q is not a number of bytes a second such as 200M", s)
	if s == "" {
		return 0, bad
	}
	digits, shift := s, 0
	if i := strings.IndexByte("KMGT", s[len(s)-1]&^0x20); i >= 0 {
		digits, shift = s[:len(s)-1], 10*(i+1)
	}
	n, err := strconv.ParseUint(digits, 10, 63) // takes no sign
	if err != nil || n > math.MaxInt64>>shift {
		return 0, bad
	}
	if n <<= shift; n < slowest {
		return 0, fmt.Errorf("rate %q is less than %dK a second", s, slowest>>10)
	}
	return int64(n), nil
}
