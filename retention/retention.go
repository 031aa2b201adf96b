// Package retention decides which recovery points of a machine stay and which
// go, and says why, in words. It is a pure function: no store, no catalog, no
// clock. What it decides, prune carries out.
//
// Its invariants: the order is the machine log's, never the clock's; the newest
// recovery point stays, and so does the newest that is proven and complete; and
// what is left, decided upon again at the same time, stays as it is.
package retention

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"
)

// Errors that callers act on.
var (
	// ErrRules: the rules are not valid.
	ErrRules = errors.New("retention rules are not valid")
	// ErrPoints: the recovery points are not those of one log, in its order.
	ErrPoints = errors.New("recovery points are not in the log's order")
)

// MostCopies bounds the numbers in rules.
const MostCopies = 1_000_000

// Rules say what is kept. A recovery point that one of them keeps stays. Without
// any of Last, Hourly, Daily, Weekly, Monthly, Yearly and Within everything is
// kept. Calendar rules keep the newest recovery point, by the log's order, of
// each of so many hours, days, ISO weeks, months or years that have any.
type Rules struct {
	Last    int
	Hourly  int
	Daily   int
	Weekly  int
	Monthly int
	Yearly  int
	Within  time.Duration // younger ones stay; 0 = no such rule
	Minimum int           // so many stay, proven and complete ones if there are
	// Tags keep what has one of them: "key" or "key=value".
	Tags []string
}

// KeepAll says that no rule lets anything go.
func (r Rules) KeepAll() bool {
	return r.Last == 0 && r.Hourly == 0 && r.Daily == 0 && r.Weekly == 0 && r.Monthly == 0 && r.Yearly == 0 && r.Within == 0
}

// Check refuses rules that cannot be meant.
func (r Rules) Check() error {
	for _, n := range []struct {
		name  string
		value int
	}{
		{"last", r.Last},
		{"hourly", r.Hourly},
		{"daily", r.Daily},
		{"weekly", r.Weekly},
		{"monthly", r.Monthly},
		{"yearly", r.Yearly},
		{"minimum", r.Minimum},
	} {
		if n.value < 0 || n.value > MostCopies {
			return fmt.Errorf("%w: %s is %d, it goes from 0 to %d", ErrRules, n.name, n.value, MostCopies)
		}
	}
	if r.Within < 0 {
		return fmt.Errorf("%w: within is negative", ErrRules)
	}
	for _, t := range r.Tags {
		if key, _, _ := strings.Cut(t, "="); key == "" {
			return fmt.Errorf("%w: tag %q has no key", ErrRules, t)
		}
	}
	return nil
}

// Point is a recovery point as far as retention looks at it.
type Point struct {
	ID       string
	Time     time.Time // of the state that it holds
	Sequence int64     // in the machine log
	// Opens says that what is in custody opens it, or that nothing need open it.
	Opens      bool
	Incomplete bool

	Pins        []Pin
	Tags        map[string]string
	LegalHolds  []LegalHold
	RetainUntil time.Time // the store keeps it until then (WORM); zero = it does not
	// Needed are reasons, in words, that only the caller knows.
	Needed []string
}

// sound is a recovery point from which all can be had.
func (p Point) sound() bool { return p.Opens && !p.Incomplete }

// Pin keeps a recovery point until it is taken back.
type Pin struct {
	By     string
	Reason string
}

// LegalHold keeps a recovery point for a case.
type LegalHold struct {
	Case   string
	Reason string
}

// Decision is what becomes of a recovery point, and every reason, in words.
type Decision struct {
	ID      string
	Keep    bool
	Reasons []string
}

// String is the decision in one line: "kept: newest; daily 1 of 7 (2026-11-20)".
func (d Decision) String() string {
	verb := "deleted: "
	if d.Keep {
		verb = "kept: "
	}
	return verb + strings.Join(d.Reasons, "; ")
}

// Decide decides on all recovery points of one machine in one repository, given
// in the order of its log, the oldest first. Calendar rules count in loc, nil is
// UTC. The decisions come in the order of points.
func Decide(points []Point, r Rules, now time.Time, loc *time.Location) ([]Decision, error) {
	if err := r.Check(); err != nil {
		return nil, fmt.Errorf("decide retention: %w", err)
	}
	if err := inOrder(points); err != nil {
		return nil, fmt.Errorf("decide retention: %w", err)
	}
	if loc == nil {
		loc = time.UTC
	}
	d := decider{points: points, rules: r, now: now, loc: loc, kept: make([][]string, len(points)), missed: make([][]string, len(points))}
	d.newest()
	if r.KeepAll() {
		d.each(func(int) string { return "no rule lets it go" })
	}
	d.last()
	for _, c := range calendar {
		d.calendar(c.name, c.number(r), c.period)
	}
	d.within()
	d.marks()
	d.minimum()
	out := make([]Decision, len(points))
	for i, p := range points {
		out[i] = Decision{ID: p.ID, Keep: len(d.kept[i]) > 0, Reasons: d.kept[i]}
		if !out[i].Keep {
			out[i].Reasons = d.missed[i]
		}
	}
	return out, nil
}

func inOrder(points []Point) error {
	ids := make(map[string]bool, len(points))
	for i, p := range points {
		if i > 0 && p.Sequence <= points[i-1].Sequence {
			return fmt.Errorf("%w: %s (%d) follows %d", ErrPoints, p.ID, p.Sequence, points[i-1].Sequence)
		}
		if ids[p.ID] {
			return fmt.Errorf("%w: %s is there twice", ErrPoints, p.ID)
		}
		ids[p.ID] = true
	}
	return nil
}

// decider collects, by the index of the recovery point, why it is kept, and
// which rules do not keep it.
type decider struct {
	points []Point
	rules  Rules
	now    time.Time
	loc    *time.Location
	kept   [][]string
	missed [][]string
}

func (d *decider) keep(i int, format string, args ...any) {
	d.kept[i] = append(d.kept[i], fmt.Sprintf(format, args...))
}

func (d *decider) miss(i int, format string, args ...any) {
	d.missed[i] = append(d.missed[i], fmt.Sprintf(format, args...))
}

// each keeps the recovery points for which why says something.
func (d *decider) each(why func(i int) string) {
	for i := range d.points {
		if s := why(i); s != "" {
			d.keep(i, "%s", s)
		}
	}
}

func (d *decider) newest() {
	last := len(d.points) - 1
	if last < 0 {
		return
	}
	d.keep(last, "newest")
	for i := last; i >= 0; i-- {
		if d.points[i].sound() {
			if i != last {
				d.keep(i, "newest that is proven and complete")
			}
			return
		}
	}
}

func (d *decider) last() {
	n := d.rules.Last
	if n == 0 {
		return
	}
	for i := range d.points {
		if place := len(d.points) - i; place <= n {
			d.keep(i, "last %d of %d", place, n)
		} else {
			d.miss(i, "not one of the last %d", n)
		}
	}
}

// calendar are the rules that count periods; period is what the period of a
// time in its zone is called, and equal names mean the same period.
var calendar = []struct {
	name   string
	number func(Rules) int
	period func(time.Time) string
}{
	// With the offset: when summer time ends, one hour comes twice.
	{"hourly", func(r Rules) int { return r.Hourly }, func(t time.Time) string { return t.Format("2006-01-02 15:00 -0700") }},
	{"daily", func(r Rules) int { return r.Daily }, func(t time.Time) string { return t.Format("2006-01-02") }},
	{"weekly", func(r Rules) int { return r.Weekly }, func(t time.Time) string {
		year, week := t.ISOWeek()
		return fmt.Sprintf("%04d-W%02d", year, week)
	}},
	{"monthly", func(r Rules) int { return r.Monthly }, func(t time.Time) string { return t.Format("2006-01") }},
	{"yearly", func(r Rules) int { return r.Yearly }, func(t time.Time) string { return t.Format("2006") }},
}

func (d *decider) calendar(name string, n int, period func(time.Time) string) {
	if n == 0 {
		return
	}
	by := map[string]string{} // period → what keeps it, "" = it is beyond n
	count := 0
	for i, p := range slices.Backward(d.points) {
		k := period(p.Time.In(d.loc))
		keeper, seen := by[k]
		switch {
		case seen && keeper != "":
			d.miss(i, "%s: %s is kept by %s", name, k, keeper)
		case seen || count == n:
			by[k] = ""
			d.miss(i, "%s: %s is beyond %d", name, k, n)
		default:
			count++
			by[k] = short(p.ID)
			d.keep(i, "%s %d of %d (%s)", name, count, n, k)
		}
	}
}

// short is enough of an id for people to find it.
func short(id string) string { return id[:min(12, len(id))] }

func (d *decider) within() {
	if d.rules.Within == 0 {
		return
	}
	for i, p := range d.points {
		age := d.now.Sub(p.Time)
		switch {
		case age < 0:
			d.keep(i, "within %s (its time is in the future)", Words(d.rules.Within))
		case age <= d.rules.Within:
			d.keep(i, "within %s", Words(d.rules.Within))
		default:
			d.miss(i, "older than %s", Words(d.rules.Within))
		}
	}
}

// marks are what people and the store said of single recovery points.
func (d *decider) marks() {
	for i, p := range d.points {
		for _, pin := range p.Pins {
			d.keep(i, "pinned by %s%s", pin.By, inBrackets(pin.Reason))
		}
		for _, h := range p.LegalHolds {
			d.keep(i, "legal hold %s%s", h.Case, inBrackets(h.Reason))
		}
		if d.now.Before(p.RetainUntil) {
			d.keep(i, "WORM until %s", p.RetainUntil.In(d.loc).Format(time.RFC3339))
		}
		for _, rule := range d.rules.Tags {
			key, want, exact := strings.Cut(rule, "=")
			if have, ok := p.Tags[key]; ok && (!exact || have == want) {
				d.keep(i, "tagged %s=%s", key, have)
			}
		}
		for _, why := range p.Needed {
			d.keep(i, "%s", why)
		}
	}
}

// minimum adds the newest of what is not kept: first of what can be restored
// and opened, then of any kind.
func (d *decider) minimum() {
	add := func(counts func(Point) bool) {
		n := d.rules.Minimum
		for i, p := range d.points {
			if len(d.kept[i]) > 0 && counts(p) {
				n--
			}
		}
		for i, p := range slices.Backward(d.points) {
			if n <= 0 {
				return
			}
			if len(d.kept[i]) == 0 && counts(p) {
				d.keep(i, "minimum of %d", d.rules.Minimum)
				n--
			}
		}
	}
	add(Point.sound)
	add(func(Point) bool { return true })
}

func inBrackets(s string) string {
	if s == "" {
		return ""
	}
	return " (" + s + ")"
}

// Words is a duration as people say it: "14 days", "36 hours".
func Words(v time.Duration) string {
	const day = 24 * time.Hour
	for _, u := range []struct {
		one  time.Duration
		name string
	}{{day, "day"}, {time.Hour, "hour"}, {time.Minute, "minute"}, {time.Second, "second"}} {
		if v >= u.one && v%u.one == 0 {
			n := int64(v / u.one)
			if n == 1 {
				return "1 " + u.name
			}
			return fmt.Sprintf("%d %ss", n, u.name)
		}
	}
	return v.String()
}
