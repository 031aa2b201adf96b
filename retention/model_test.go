package retention

import (
	"fmt"
	"testing"
	"time"

	"pgregory.net/rapid"
)

// The model decides on each recovery point by looking at all the others, rule
// by rule, as the rules are written down. It is quadratic, and shares nothing
// with the code but the types.

// samePeriod compares by calendar fields, without names of periods.
func samePeriod(rule string, a, b time.Time) bool {
	switch rule {
	case "yearly":
		return a.Year() == b.Year()
	case "monthly":
		return a.Year() == b.Year() && a.Month() == b.Month()
	case "weekly": // the Monday before
		monday := func(t time.Time) (int, time.Month, int) {
			noon := time.Date(t.Year(), t.Month(), t.Day(), 12, 0, 0, 0, time.UTC)
			return noon.AddDate(0, 0, -(int(noon.Weekday())+6)%7).Date()
		}
		ay, am, ad := monday(a)
		by, bm, bd := monday(b)
		return ay == by && am == bm && ad == bd
	case "daily":
		return a.Year() == b.Year() && a.YearDay() == b.YearDay()
	default: // hourly
		_, ao := a.Zone()
		_, bo := b.Zone()
		return a.Year() == b.Year() && a.YearDay() == b.YearDay() && a.Hour() == b.Hour() && ao == bo
	}
}

// byRule says whether n periods of a rule keep recovery point i.
func byRule(points []Point, i int, rule string, n int, loc *time.Location) bool {
	mine := points[i].Time.In(loc)
	var newer []time.Time // one for each period that a newer recovery point is in
	for j := i + 1; j < len(points); j++ {
		t := points[j].Time.In(loc)
		if samePeriod(rule, t, mine) {
			return false
		}
		known := false
		for _, o := range newer {
			known = known || samePeriod(rule, t, o)
		}
		if !known {
			newer = append(newer, t)
		}
	}
	return len(newer) < n
}

func model(points []Point, r Rules, now time.Time, loc *time.Location) []bool {
	keep := make([]bool, len(points))
	empty := r.Last+r.Hourly+r.Daily+r.Weekly+r.Monthly+r.Yearly == 0 && r.Within == 0
	for i, p := range points {
		newer := len(points) - 1 - i
		soundNewer := false
		for _, o := range points[i+1:] {
			soundNewer = soundNewer || o.Opens && !o.Incomplete
		}
		tagged := false
		for _, want := range r.Tags {
			for k, v := range p.Tags {
				tagged = tagged || want == k || want == k+"="+v
			}
		}
		keep[i] = empty || newer == 0 || newer < r.Last ||
			p.Opens && !p.Incomplete && !soundNewer ||
			r.Hourly > 0 && byRule(points, i, "hourly", r.Hourly, loc) ||
			r.Daily > 0 && byRule(points, i, "daily", r.Daily, loc) ||
			r.Weekly > 0 && byRule(points, i, "weekly", r.Weekly, loc) ||
			r.Monthly > 0 && byRule(points, i, "monthly", r.Monthly, loc) ||
			r.Yearly > 0 && byRule(points, i, "yearly", r.Yearly, loc) ||
			r.Within > 0 && !p.Time.Before(now.Add(-r.Within)) ||
			len(p.Pins) > 0 || len(p.LegalHolds) > 0 || len(p.Needed) > 0 || p.RetainUntil.After(now) || tagged
	}
	// The minimum: as long as too few are kept and another can be added, the newest is.
	for _, all := range []bool{false, true} {
		for {
			have, next := 0, -1
			for i, p := range points {
				if !all && (!p.Opens || p.Incomplete) {
					continue
				}
				if keep[i] {
					have++
				} else {
					next = i
				}
			}
			if have >= r.Minimum || next < 0 {
				break
			}
			keep[next] = true
		}
	}
	return keep
}

func drawPoints(t *rapid.T) []Point {
	n := rapid.IntRange(0, 60).Draw(t, "points")
	when := time.Date(rapid.IntRange(1999, 2040).Draw(t, "year"), 1, 1, 0, 0, 0, 0, time.UTC).
		Add(time.Duration(rapid.IntRange(0, 366*24).Draw(t, "hour")) * time.Hour)
	scale := rapid.SampledFrom([]time.Duration{time.Second, time.Minute, 17 * time.Minute, time.Hour, 7 * time.Hour, 30 * time.Hour, 9 * 24 * time.Hour, 100 * 24 * time.Hour}).Draw(t, "scale")
	jumps := rapid.Bool().Draw(t, "jumps")
	var out []Point
	for i := range n {
		least := 0
		if jumps {
			least = -4
		}
		when = when.Add(time.Duration(rapid.IntRange(least, 4).Draw(t, "step")) * scale)
		p := Point{
			ID: fmt.Sprintf("p%d", i), Time: when, Sequence: int64(2 * i),
			Opens: rapid.IntRange(0, 3).Draw(t, "opens") > 0, Incomplete: rapid.IntRange(0, 5).Draw(t, "incomplete") == 0,
		}
		switch rapid.IntRange(0, 30).Draw(t, "mark") {
		case 0:
			p.Pins = []Pin{{By: "somebody"}}
		case 1:
			p.LegalHolds = []LegalHold{{Case: "CASE-1"}}
		case 2:
			p.RetainUntil = when.Add(time.Duration(rapid.IntRange(0, 100).Draw(t, "worm")) * scale)
		case 3, 4, 5:
			p.Tags = map[string]string{rapid.SampledFrom([]string{"a", "b"}).Draw(t, "key"): rapid.SampledFrom([]string{"1", "2"}).Draw(t, "value")}
		case 6:
			p.Needed = []string{"a reason"}
		}
		out = append(out, p)
	}
	return out
}

func drawRules(t *rapid.T) Rules {
	few := func(name string) int { return max(0, rapid.IntRange(-4, 9).Draw(t, name)) }
	r := Rules{
		Last: few("last"), Hourly: few("hourly"), Daily: few("daily"), Weekly: few("weekly"), Monthly: few("monthly"), Yearly: few("yearly"),
		Minimum: few("minimum"), Within: time.Duration(few("within")) * 30 * time.Hour,
	}
	if rapid.IntRange(0, 2).Draw(t, "tag rules") == 0 {
		r.Tags = []string{"a", "b=2"}
	}
	return r
}

func drawCase(t *rapid.T) (points []Point, r Rules, now time.Time, loc *time.Location) {
	points, r = drawPoints(t), drawRules(t)
	now = time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	if len(points) > 0 {
		now = points[len(points)-1].Time
	}
	now = now.Add(time.Duration(rapid.IntRange(-100, 1000).Draw(t, "now")) * time.Hour)
	name := rapid.SampledFrom([]string{"UTC", "Europe/Berlin", "America/New_York", "Asia/Kolkata", "Australia/Lord_Howe", "Pacific/Apia"}).Draw(t, "zone")
	loc, err := time.LoadLocation(name)
	if err != nil {
		t.Fatal(err)
	}
	return points, r, now, loc
}

func TestDecideLikeTheModel(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		points, r, now, loc := drawCase(t)
		got, err := Decide(points, r, now, loc)
		if err != nil {
			t.Fatal(err)
		}
		for i, want := range model(points, r, now, loc) {
			if got[i].ID != points[i].ID || got[i].Keep != want {
				t.Fatalf("%s at %v: kept %v, want %v (%v; rules %+v, now %v)", points[i].ID, points[i].Time.In(loc), got[i].Keep, want, got[i], r, now)
			}
			if len(got[i].Reasons) == 0 {
				t.Fatalf("%s: no reason", points[i].ID)
			}
		}
	})
}

// What is left stays: pruning twice deletes no more than pruning once. And a
// larger rule never lets go what a smaller one keeps, minimum aside, which only
// fills up what other rules leave.
func TestDecideIsStable(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		points, r, now, loc := drawCase(t)
		first, err := Decide(points, r, now, loc)
		if err != nil {
			t.Fatal(err)
		}
		var left []Point
		for i, d := range first {
			if d.Keep {
				left = append(left, points[i])
			}
		}
		again, err := Decide(left, r, now, loc)
		if err != nil {
			t.Fatal(err)
		}
		for _, d := range again {
			if !d.Keep {
				t.Fatalf("%s was kept and goes now: %v (rules %+v)", d.ID, d, r)
			}
		}
		if r.KeepAll() {
			return
		}
		r.Minimum = 0
		small, err := Decide(points, r, now, loc)
		if err != nil {
			t.Fatal(err)
		}
		r.Last, r.Daily, r.Weekly, r.Within = r.Last+1, r.Daily+2, r.Weekly+1, r.Within+time.Hour
		large, err := Decide(points, r, now, loc)
		if err != nil {
			t.Fatal(err)
		}
		for i := range points {
			if small[i].Keep && !large[i].Keep {
				t.Fatalf("%s is kept by the smaller rules and not by the larger: %v", points[i].ID, large[i])
			}
		}
	})
}
