package retention

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"
	_ "time/tzdata" // the zones must be there wherever the tests run
)

func zone(t testing.TB, name string) *time.Location {
	t.Helper()
	loc, err := time.LoadLocation(name)
	if err != nil {
		t.Fatal(err)
	}
	return loc
}

// at makes proven, complete recovery points p0, p1, … of the times, in the
// log's order.
func at(t testing.TB, times ...string) []Point {
	t.Helper()
	var out []Point
	for i, s := range times {
		when, err := time.Parse(time.RFC3339, s)
		if err != nil {
			t.Fatal(err)
		}
		out = append(out, Point{ID: fmt.Sprintf("p%d", i), Time: when, Sequence: int64(i), Opens: true})
	}
	return out
}

func decide(t testing.TB, points []Point, r Rules, now string, loc *time.Location) []Decision {
	t.Helper()
	when, err := time.Parse(time.RFC3339, now)
	if err != nil {
		t.Fatal(err)
	}
	out, err := Decide(points, r, when, loc)
	if err != nil {
		t.Fatal(err)
	}
	if len(out) != len(points) {
		t.Fatalf("%d decisions on %d recovery points", len(out), len(points))
	}
	return out
}

func keptIDs(ds []Decision) string {
	var ids []string
	for _, d := range ds {
		if d.Keep {
			ids = append(ids, d.ID)
		}
	}
	return strings.Join(ids, " ")
}

func TestCalendar(t *testing.T) {
	const now = "2027-06-01T00:00:00Z"
	for _, k := range []struct {
		name  string
		zone  string
		rules Rules
		times []string
		want  string
		words map[int]string // by index: a reason that must be among them
	}{
		{
			name: "the newest of a day stays", zone: "UTC", rules: Rules{Daily: 2},
			times: []string{"2026-11-18T10:00:00Z", "2026-11-19T01:00:00Z", "2026-11-19T23:00:00Z", "2026-11-20T02:00:00Z"},
			want:  "p2 p3",
			words: map[int]string{
				0: "daily: 2026-11-18 is beyond 2", 1: "daily: 2026-11-19 is kept by p2",
				2: "daily 2 of 2 (2026-11-19)", 3: "daily 1 of 2 (2026-11-20)",
			},
		},
		{
			name: "a day is a day of the zone", zone: "Europe/Berlin", rules: Rules{Daily: 9},
			times: []string{"2026-11-19T22:59:59Z", "2026-11-19T23:00:00Z", "2026-11-20T22:59:59Z"},
			want:  "p0 p2",
		},
		{
			name: "spring: the day has 23 hours", zone: "Europe/Berlin", rules: Rules{Daily: 9},
			times: []string{"2026-03-28T22:59:00Z", "2026-03-28T23:00:00Z", "2026-03-29T21:59:00Z", "2026-03-29T22:00:00Z"},
			want:  "p0 p2 p3",
			words: map[int]string{2: "daily 2 of 9 (2026-03-29)", 3: "daily 1 of 9 (2026-03-30)"},
		},
		{
			name: "autumn: the day has 25 hours", zone: "Europe/Berlin", rules: Rules{Daily: 9},
			times: []string{"2026-10-24T21:59:00Z", "2026-10-24T22:00:00Z", "2026-10-25T22:59:00Z", "2026-10-25T23:00:00Z"},
			want:  "p0 p2 p3",
			words: map[int]string{2: "daily 2 of 9 (2026-10-25)", 3: "daily 1 of 9 (2026-10-26)"},
		},
		{
			name: "spring: no hour is missed", zone: "Europe/Berlin", rules: Rules{Hourly: 9},
			times: []string{"2026-03-29T00:30:00Z", "2026-03-29T00:59:00Z", "2026-03-29T01:00:00Z", "2026-03-29T02:00:00Z"},
			want:  "p1 p2 p3",
			words: map[int]string{1: "hourly 3 of 9 (2026-03-29 01:00 +0100)", 2: "hourly 2 of 9 (2026-03-29 03:00 +0200)"},
		},
		{
			name: "autumn: an hour that comes twice is two hours", zone: "Europe/Berlin", rules: Rules{Hourly: 9},
			times: []string{"2026-10-25T00:10:00Z", "2026-10-25T00:40:00Z", "2026-10-25T01:10:00Z", "2026-10-25T02:10:00Z"},
			want:  "p1 p2 p3",
			words: map[int]string{1: "hourly 3 of 9 (2026-10-25 02:00 +0200)", 2: "hourly 2 of 9 (2026-10-25 02:00 +0100)"},
		},
		{
			name: "half an hour off", zone: "Asia/Kolkata", rules: Rules{Hourly: 9},
			times: []string{"2026-05-01T00:29:00Z", "2026-05-01T00:30:00Z", "2026-05-01T01:29:00Z"},
			want:  "p0 p2",
		},
		{
			name: "summer time of half an hour", zone: "Australia/Lord_Howe", rules: Rules{Daily: 9},
			// ends on 2026-04-05: that day has 24.5 hours
			times: []string{"2026-04-04T12:59:00Z", "2026-04-04T13:00:00Z", "2026-04-05T13:29:00Z", "2026-04-05T13:30:00Z"},
			want:  "p0 p2 p3",
		},
		{
			name: "a zone that left out a day", zone: "Pacific/Apia", rules: Rules{Daily: 9},
			times: []string{"2011-12-30T09:00:00Z", "2011-12-30T10:00:00Z"}, // the 29th, then the 31st
			want:  "p0 p1",
			words: map[int]string{0: "daily 2 of 9 (2011-12-29)", 1: "daily 1 of 9 (2011-12-31)"},
		},
		{
			name: "29 February", zone: "UTC", rules: Rules{Daily: 9, Monthly: 1},
			times: []string{"2028-02-28T12:00:00Z", "2028-02-29T12:00:00Z", "2028-02-29T13:00:00Z", "2028-03-01T12:00:00Z"},
			want:  "p0 p2 p3",
			words: map[int]string{2: "daily 2 of 9 (2028-02-29)"},
		},
		{
			name: "a month ends on 29 February", zone: "UTC", rules: Rules{Monthly: 9},
			times: []string{"2028-01-31T12:00:00Z", "2028-02-28T12:00:00Z", "2028-02-29T23:59:59Z", "2028-03-01T00:00:00Z"},
			want:  "p0 p2 p3",
		},
		{
			name: "week 53 goes on into the new year", zone: "UTC", rules: Rules{Weekly: 9},
			times: []string{"2026-12-27T12:00:00Z", "2026-12-28T12:00:00Z", "2026-12-31T12:00:00Z", "2027-01-03T12:00:00Z", "2027-01-04T12:00:00Z"},
			want:  "p0 p3 p4",
			words: map[int]string{0: "weekly 3 of 9 (2026-W52)", 3: "weekly 2 of 9 (2026-W53)", 4: "weekly 1 of 9 (2027-W01)"},
		},
		{
			name: "the last days of a year are of the next one's week 1", zone: "UTC", rules: Rules{Weekly: 9},
			times: []string{"2024-12-29T12:00:00Z", "2024-12-30T12:00:00Z", "2025-01-05T12:00:00Z"},
			want:  "p0 p2",
			words: map[int]string{2: "weekly 1 of 9 (2025-W01)"},
		},
		{
			name: "year ends where the zone says", zone: "America/New_York", rules: Rules{Yearly: 9},
			times: []string{"2026-06-01T00:00:00Z", "2027-01-01T04:59:59Z", "2027-01-01T05:00:00Z"},
			want:  "p1 p2",
			words: map[int]string{1: "yearly 2 of 9 (2026)", 2: "yearly 1 of 9 (2027)"},
		},
		{
			name: "in one second the log's order counts", zone: "UTC", rules: Rules{Hourly: 1},
			times: []string{"2026-11-20T02:00:00Z", "2026-11-20T02:00:00Z", "2026-11-20T02:00:00Z"},
			want:  "p2",
		},
		{
			name: "the log's order counts, not the clock", zone: "UTC", rules: Rules{Daily: 9},
			times: []string{"2026-11-20T09:00:00Z", "2026-11-20T08:00:00Z"},
			want:  "p1",
		},
		{
			name: "a clock that was ahead takes no place for ever", zone: "UTC", rules: Rules{Yearly: 2},
			times: []string{"2099-01-01T00:00:00Z", "2026-01-01T00:00:00Z", "2027-01-01T00:00:00Z"},
			want:  "p1 p2",
		},
		{
			name: "days without recovery points do not count", zone: "UTC", rules: Rules{Daily: 2},
			times: []string{"2020-01-01T00:00:00Z", "2023-01-01T00:00:00Z", "2026-01-01T00:00:00Z"},
			want:  "p1 p2",
		},
		{
			name: "several rules, every reason", zone: "UTC", rules: Rules{Last: 1, Daily: 1, Yearly: 2},
			times: []string{"2025-11-18T10:00:00Z", "2026-11-19T01:00:00Z", "2026-11-20T02:00:00Z"},
			want:  "p0 p2",
			words: map[int]string{1: "not one of the last 1; daily: 2026-11-19 is beyond 1; yearly: 2026 is kept by p2", 2: "newest; last 1 of 1; daily 1 of 1 (2026-11-20); yearly 1 of 2 (2026)"},
		},
	} {
		t.Run(k.name, func(t *testing.T) {
			got := decide(t, at(t, k.times...), k.rules, now, zone(t, k.zone))
			if ids := keptIDs(got); ids != k.want {
				t.Errorf("kept %s, want %s", ids, k.want)
				for _, d := range got {
					t.Log(d.ID, d)
				}
			}
			for i, words := range k.words {
				if !strings.Contains(got[i].String(), words) {
					t.Errorf("p%d: %q lacks %q", i, got[i], words)
				}
			}
		})
	}
}

func TestOtherRules(t *testing.T) {
	const now = "2026-11-21T00:00:00Z"
	days := []string{"2026-11-16T00:00:00Z", "2026-11-17T00:00:00Z", "2026-11-18T00:00:00Z", "2026-11-19T00:00:00Z", "2026-11-20T00:00:00Z"}
	for _, k := range []struct {
		name   string
		rules  Rules
		change func([]Point)
		want   string
		words  map[int]string
	}{
		{name: "no rules keep all", want: "p0 p1 p2 p3 p4", words: map[int]string{0: "kept: no rule lets it go", 4: "kept: newest; no rule lets it go"}},
		{name: "a minimum alone lets nothing go", rules: Rules{Minimum: 1}, want: "p0 p1 p2 p3 p4"},
		{name: "tags alone let nothing go", rules: Rules{Tags: []string{"x"}}, want: "p0 p1 p2 p3 p4"},
		{name: "last", rules: Rules{Last: 2}, want: "p3 p4", words: map[int]string{3: "kept: last 2 of 2", 2: "deleted: not one of the last 2"}},
		{name: "within, to the second", rules: Rules{Within: 72 * time.Hour}, want: "p2 p3 p4", words: map[int]string{2: "kept: within 3 days", 1: "deleted: older than 3 days"}},
		{
			name: "a time in the future is within", rules: Rules{Within: time.Hour}, want: "p1 p4",
			change: func(p []Point) { p[1].Time = p[1].Time.AddDate(9, 0, 0) },
			words:  map[int]string{1: "its time is in the future"},
		},
		{name: "the newest stays whatever the rules say", rules: Rules{Within: time.Minute}, want: "p4", words: map[int]string{4: "kept: newest"}},
		{
			name: "the newest that opens stays too", rules: Rules{Last: 1}, want: "p2 p4",
			change: func(p []Point) { p[4].Opens = false; p[3].Incomplete = true },
			words:  map[int]string{2: "kept: newest that is proven and complete"},
		},
		{
			name: "where nothing opens the newest stays", rules: Rules{Last: 1}, want: "p4",
			change: func(p []Point) {
				for i := range p {
					p[i].Opens = false
				}
			},
		},
		{name: "minimum", rules: Rules{Last: 1, Minimum: 3}, want: "p2 p3 p4", words: map[int]string{2: "kept: minimum of 3", 3: "kept: minimum of 3"}},
		{name: "a minimum of more than there are", rules: Rules{Last: 1, Minimum: 30}, want: "p0 p1 p2 p3 p4"},
		{
			name: "a minimum counts what opens", rules: Rules{Last: 2, Minimum: 2}, want: "p1 p2 p3 p4",
			change: func(p []Point) { p[4].Opens = false; p[3].Opens = false },
		},
		{
			name: "a minimum is filled up with what there is", rules: Rules{Last: 1, Minimum: 3}, want: "p0 p3 p4",
			change: func(p []Point) {
				for i := 1; i < 5; i++ {
					p[i].Opens = false
				}
			},
		},
		{
			name: "a pin", rules: Rules{Last: 1}, want: "p0 p4",
			change: func(p []Point) { p[0].Pins = []Pin{{By: "uid:0", Reason: "before the move"}} },
			words:  map[int]string{0: "kept: pinned by uid:0 (before the move)"},
		},
		{
			name: "a legal hold", rules: Rules{Last: 1}, want: "p1 p4",
			change: func(p []Point) { p[1].LegalHolds = []LegalHold{{Case: "CASE-12"}} },
			words:  map[int]string{1: "kept: legal hold CASE-12"},
		},
		{
			name: "WORM, until its time", rules: Rules{Last: 1}, want: "p1 p4",
			change: func(p []Point) {
				p[0].RetainUntil = time.Date(2026, 11, 21, 0, 0, 0, 0, time.UTC)
				p[1].RetainUntil = p[0].RetainUntil.Add(time.Second)
			},
			words: map[int]string{1: "kept: WORM until 2026-11-21T00:00:01Z"},
		},
		{
			name: "tags", rules: Rules{Last: 1, Tags: []string{"release", "env=prod"}}, want: "p0 p2 p4",
			change: func(p []Point) {
				p[0].Tags = map[string]string{"release": "9"}
				p[1].Tags = map[string]string{"env": "test"}
				p[2].Tags = map[string]string{"env": "prod"}
			},
			words: map[int]string{0: "kept: tagged release=9", 2: "kept: tagged env=prod"},
		},
		{
			name: "what the caller needs", rules: Rules{Last: 1}, want: "p3 p4",
			change: func(p []Point) { p[3].Needed = []string{"a backup may build on it"} },
			words:  map[int]string{3: "kept: a backup may build on it"},
		},
		{
			name: "what is pinned counts as a copy", rules: Rules{Last: 1, Minimum: 2}, want: "p0 p4",
			change: func(p []Point) { p[0].Pins = []Pin{{By: "x"}} },
		},
	} {
		t.Run(k.name, func(t *testing.T) {
			points := at(t, days...)
			if k.change != nil {
				k.change(points)
			}
			got := decide(t, points, k.rules, now, nil)
			if ids := keptIDs(got); ids != k.want {
				t.Errorf("kept %s, want %s", ids, k.want)
			}
			for i, words := range k.words {
				if !strings.Contains(got[i].String(), words) {
					t.Errorf("p%d: %q lacks %q", i, got[i], words)
				}
			}
		})
	}
}

func TestRefusals(t *testing.T) {
	good := at(t, "2026-11-16T00:00:00Z", "2026-11-17T00:00:00Z")
	twice := slices.Clone(good)
	twice[1].ID = twice[0].ID
	back := slices.Clone(good)
	back[1].Sequence = back[0].Sequence
	for _, k := range []struct {
		name   string
		points []Point
		rules  Rules
		want   error
	}{
		{"the same twice", twice, Rules{}, ErrPoints},
		{"not in the log's order", back, Rules{}, ErrPoints},
		{"negative", good, Rules{Daily: -1}, ErrRules},
		{"too many", good, Rules{Last: MostCopies + 1}, ErrRules},
		{"negative time", good, Rules{Within: -1}, ErrRules},
		{"a tag without a key", good, Rules{Tags: []string{"=x"}}, ErrRules},
	} {
		if _, err := Decide(k.points, k.rules, time.Now(), nil); !errors.Is(err, k.want) {
			t.Errorf("%s: %v, want %v", k.name, err, k.want)
		}
	}
	if out, err := Decide(nil, Rules{Last: 1}, time.Now(), nil); err != nil || len(out) != 0 {
		t.Errorf("no recovery points: %v, %v", out, err)
	}
}

func TestWords(t *testing.T) {
	for d, want := range map[time.Duration]string{
		24 * time.Hour: "1 day", 14 * 24 * time.Hour: "14 days", 36 * time.Hour: "36 hours", 90 * time.Minute: "90 minutes",
		time.Second: "1 second", 1500 * time.Millisecond: "1.5s",
	} {
		if got := Words(d); got != want {
			t.Errorf("%v: %q, want %q", d, got, want)
		}
	}
}
