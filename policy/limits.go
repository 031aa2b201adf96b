package policy

import (
	"errors"
	"fmt"
	"time"
)

// Limits say how fast may be read and written at what time of day.
type Limits []Limit

// Limit is what counts from a time of day to another, "HH:MM" in the policy's
// time zone; To does not belong to it. Where To is not behind From it goes over
// midnight, and the whole day where they are equal.
type Limit struct {
	From  string `json:"from"`
	To    string `json:"to"`
	Read  int64  `json:"read,omitempty"`  // from the source, bytes/s, 0 = no limit
	Write int64  `json:"write,omitempty"` // to the repository, bytes/s, 0 = no limit
}

// minRate is what a limit may be at least: with less nothing ever ends.
const minRate = 64 << 10

// At returns what counts at a time: the first that it lies in, by its clock
// time in loc. Without one there is no limit.
func (l Limits) At(t time.Time, loc *time.Location) Limit {
	if loc == nil {
		loc = time.UTC
	}
	t = t.In(loc)
	now := t.Hour()*60 + t.Minute()
	for _, x := range l {
		from, err1 := minutes(x.From)
		to, err2 := minutes(x.To)
		if err1 != nil || err2 != nil {
			continue
		}
		if from < to && from <= now && now < to || from >= to && (now >= from || now < to) {
			return x
		}
	}
	return Limit{}
}

func (l Limits) check() error {
	if len(l) > maxLimits {
		return fmt.Errorf("%d are too many, %d are allowed", len(l), maxLimits)
	}
	for _, x := range l {
		for _, s := range []string{x.From, x.To} {
			if _, err := minutes(s); err != nil {
				return fmt.Errorf("%.64q: %w", s, err)
			}
		}
		for _, n := range []int64{x.Read, x.Write} {
			if n < 0 || n > 0 && n < minRate {
				return fmt.Errorf("%d bytes/s: it is 0, for no limit, or at least %d", n, minRate)
			}
		}
		if x.Read == 0 && x.Write == 0 {
			return fmt.Errorf("from %s to %s nothing is limited: name a rate, or leave it out", x.From, x.To)
		}
	}
	return nil
}

// minutes since midnight of "HH:MM".
func minutes(s string) (int, error) {
	t, err := time.Parse("15:04", s)
	if err != nil || len(s) != 5 {
		return 0, errors.New("not a time of day, such as 08:00")
	}
	return t.Hour()*60 + t.Minute(), nil
}
