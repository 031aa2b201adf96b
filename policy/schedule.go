package policy

import (
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/robfig/cron/v3"
)

// Schedule says when a machine is to be backed up: a calendar expression of five
// fields (minute, hour, day of the month, month, day of the week), as cron has
// them, one of @hourly, @daily, @weekly, @monthly, @yearly, or an interval,
// "every 6h". The zero value is none.
type Schedule struct {
	text string
	// One of the two is set.
	every    time.Duration
	calendar cron.Schedule
}

const (
	minInterval = time.Minute
	maxInterval = 366 * day
)

var calendarParser = cron.NewParser(cron.Minute | cron.Hour | cron.Dom | cron.Month | cron.Dow | cron.Descriptor)

// ParseSchedule reads a schedule; "" is none.
func ParseSchedule(s string) (Schedule, error) {
	text := strings.Join(strings.Fields(s), " ")
	if text == "" {
		return Schedule{}, nil
	}
	if interval, ok := strings.CutPrefix(text, "every "); ok {
		d, err := ParseDuration(interval)
		if err != nil {
			return Schedule{}, fmt.Errorf("%.64q: %w", s, err)
		}
		if time.Duration(d) < minInterval || time.Duration(d) > maxInterval {
			return Schedule{}, fmt.Errorf("%.64q: an interval is from a minute to a year", s)
		}
		return Schedule{text: "every " + d.String(), every: time.Duration(d)}, nil
	}
	// The parser has more than we want: a zone of its own, and intervals that
	// count from when it was started.
	if len(text) > 256 || strings.Contains(text, "=") || strings.HasPrefix(text, "@every") {
		return Schedule{}, fmt.Errorf("%.64q: %w", s, errSchedule)
	}
	c, err := calendarParser.Parse(text)
	if err != nil {
		return Schedule{}, fmt.Errorf("%.64q: %w (%s)", s, errSchedule, err)
	}
	return Schedule{text: text, calendar: c}, nil
}

var errSchedule = errors.New("neither a calendar expression, such as '30 2 * * *', nor an interval, such as 'every 6h'")

// String is what ParseSchedule reads.
func (s Schedule) String() string { return s.text }

// IsZero says that there is no schedule.
func (s Schedule) IsZero() bool { return s.text == "" }

// MarshalText implements encoding.TextMarshaler.
func (s Schedule) MarshalText() ([]byte, error) { return []byte(s.text), nil }

// UnmarshalText implements encoding.TextUnmarshaler.
func (s *Schedule) UnmarshalText(text []byte) error {
	v, err := ParseSchedule(string(text))
	if err != nil {
		return fmt.Errorf("%w: schedule: %w", ErrInvalid, err)
	}
	*s = v
	return nil
}

func (s Schedule) check(loc *time.Location) error {
	if s.calendar != nil && len(s.Next(time.Time{}, time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC), loc, 1)) == 0 {
		return fmt.Errorf("%q: it never comes", s.text)
	}
	return nil
}

// Next returns the next n times after now. An interval counts from last, the
// newest recovery point's time (zero: there is none): what is overdue is due
// now. Calendar expressions count in loc. A clock time that summer time leaves
// out comes as much later as the clock was put forward; one that comes twice
// counts the first time.
func (s Schedule) Next(last, now time.Time, loc *time.Location, n int) []time.Time {
	if loc == nil {
		loc = time.UTC
	}
	var out []time.Time
	if s.every > 0 {
		due := last.Add(s.every)
		if last.IsZero() || due.Before(now) {
			due = now
		}
		for range n {
			out = append(out, due.In(loc))
			due = due.Add(s.every)
		}
		return out
	}
	if s.calendar == nil {
		return nil
	}
	// The expression is about what the clock shows: it is counted as if the clock
	// were never changed, and then looked up which instant that is.
	local := now.In(loc)
	wall := time.Date(local.Year(), local.Month(), local.Day(), local.Hour(), local.Minute(), local.Second(), 0, time.UTC)
	for len(out) < n {
		if wall = s.calendar.Next(wall); wall.IsZero() {
			return out
		}
		t := instant(wall, loc)
		if t.After(now) && (len(out) == 0 || t.After(out[len(out)-1])) {
			out = append(out, t)
		}
	}
	return out
}

// instant is when a clock in loc shows what wall shows in UTC. time.Date does not
// say what it does when the clock shows it twice or not at all.
func instant(wall time.Time, loc *time.Location) time.Time {
	shows := func(t time.Time) time.Time {
		_, offset := t.In(loc).Zone()
		return wall.Add(-time.Duration(offset) * time.Second).In(loc)
	}
	before, after := shows(wall.Add(-day)), shows(wall.Add(day))
	same := func(t time.Time) bool {
		return t.Hour() == wall.Hour() && t.Minute() == wall.Minute() && t.Day() == wall.Day()
	}
	if !same(before) && same(after) {
		return after
	}
	return before
}
