package policy

import (
	"bytes"
	"errors"
	"reflect"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"
)

const whole = `{"format":1,"timezone":"Europe/Berlin","schedule":"30 2 * * *",
 "retention":{"keep_last":7,"hourly":24,"daily":14,"weekly":8,"monthly":12,"yearly":7,"within":"48h","minimum":3,"keep_tags":["release"]},
 "proof_age":"90d","verify_age":"12w",
 "limits":[{"from":"08:00","to":"18:00","read":200000000,"write":50000000}],
 "copies_to":["file:///srv/copy","s3://bucket/lockstep"]}`

func TestParse(t *testing.T) {
	p, err := Parse([]byte(whole))
	if err != nil {
		t.Fatal(err)
	}
	want := Retention{KeepLast: 7, Hourly: 24, Daily: 14, Weekly: 8, Monthly: 12, Yearly: 7, Within: Duration(48 * time.Hour), Minimum: 3, KeepTags: []string{"release"}}
	if !reflect.DeepEqual(p.Retention, want) || p.VerifyAge != Duration(84*day) || p.Schedule.String() != "30 2 * * *" {
		t.Errorf("%+v", p)
	}
	if r := p.Rules(); r.Last != 7 || r.Within != 48*time.Hour || r.Minimum != 3 || len(r.Tags) != 1 {
		t.Errorf("%+v", r)
	}
	raw, err := p.JSON()
	if err != nil {
		t.Fatal(err)
	}
	again, err := Parse(raw)
	if err != nil || !reflect.DeepEqual(again, p) {
		t.Errorf("written and read again: %+v, %v", again, err)
	}
	if p, err := Parse([]byte(`{"format":1}`)); err != nil || !p.Rules().KeepAll() {
		t.Errorf("an empty policy keeps all: %v", err)
	}
}

func TestParseRefuses(t *testing.T) {
	for _, k := range []struct{ raw, says string }{
		{``, "not JSON"},
		{`[]`, "not a JSON object"},
		{`7`, "not a JSON object"},
		{`{"format":1}{}`, "something follows"},
		{`{"format":1} 7`, "follows"},
		{`{"format":1`, "not JSON"},
		{`{}`, "format is 0"},
		{`{"format":2}`, "format is 2"},
		{`{"format":1,"retention":{"dayly":3}}`, `no member "dayly"`},
		{`{"format":1,"Retention":{}}`, `no member "Retention"`},
		{`{"format":1,"retention":{"daily":3,"daily":30}}`, `"daily" is there twice`},
		{`{"format":1,"retention":{"daily":"3"}}`, "retention.daily"},
		{`{"format":1,"retention":{"daily":-3}}`, "daily is -3"},
		{`{"format":1,"retention":{"daily":1e9}}`, "daily"},
		{`{"format":1,"retention":{"within":"14"}}`, "not a duration"},
		{`{"format":1,"retention":{"within":"14 days"}}`, "not a duration"},
		{`{"format":1,"retention":{"within":"999999999w"}}`, "100 years"},
		{`{"format":1,"retention":{"keep_tags":["=x"]}}`, "no key"},
		{`{"format":1,"retention":{"keep_tags":["a\u001b[2J"]}}`, "control characters"},
		{`{"format":1,"timezone":"Europe/Berlni"}`, "timezone"},
		{`{"format":1,"timezone":"Local"}`, "timezone"},
		{`{"format":1,"timezone":"../../etc/passwd"}`, "timezone"},
		{`{"format":1,"schedule":"61 2 * * *"}`, "calendar expression"},
		{`{"format":1,"schedule":"2 * * *"}`, "calendar expression"},
		{`{"format":1,"schedule":"TZ=UTC"}`, "calendar expression"},
		{`{"format":1,"schedule":"@every 1h"}`, "calendar expression"},
		{`{"format":1,"schedule":"every 5s"}`, "a minute"},
		{`{"format":1,"schedule":"0 0 30 2 *"}`, "never comes"},
		{`{"format":1,"limits":[{"from":"8:00","to":"18:00","read":65536}]}`, "time of day"},
		{`{"format":1,"limits":[{"from":"08:00","to":"24:00","read":65536}]}`, "time of day"},
		{`{"format":1,"limits":[{"from":"08:00","to":"18:00","read":5}]}`, "at least"},
		{`{"format":1,"limits":[{"from":"08:00","to":"18:00"}]}`, "nothing is limited"},
		{`{"format":1,"copies_to":["s3://user:word@host/b"]}`, "no password"},
		{`{"format":1,"copies_to":["/srv/copy"]}`, "URL"},
		{`{"format":1,"copies_to":["file:///a","file:///a"]}`, "twice"},
		{`{"format":1,"proof_age":"-1d"}`, "not a duration"},
		{strings.Repeat(" ", MaxSize) + `{"format":1}`, "more than"},
	} {
		_, err := Parse([]byte(k.raw))
		if !errors.Is(err, ErrInvalid) || !strings.Contains(err.Error(), k.says) {
			t.Errorf("%.80s: %v, want one that says %q", k.raw, err, k.says)
		}
		if err != nil && strings.Contains(err.Error(), ":word@") {
			t.Errorf("the error repeats a password: %v", err)
		}
	}
}

func TestDuration(t *testing.T) {
	for text, want := range map[string]time.Duration{
		"48h": 48 * time.Hour, "14d": 14 * day, "8w": 56 * day, "1d12h": 36 * time.Hour, "90m": 90 * time.Minute, "0s": 0, "1w2d3h4m5s": 9*day + 3*time.Hour + 4*time.Minute + 5*time.Second,
	} {
		if d, err := ParseDuration(text); err != nil || time.Duration(d) != want {
			t.Errorf("%s: %v, %v", text, time.Duration(d), err)
		}
	}
	for _, bad := range []string{"", "d", "1", "-1d", "1.5h", "1h1d", "1d1d", "1 d", "1y", "99999999999999999999d", "40000d"} {
		if d, err := ParseDuration(bad); err == nil {
			t.Errorf("%q is taken for %v", bad, d)
		}
	}
	rapid.Check(t, func(t *rapid.T) {
		d := Duration(rapid.Int64Range(0, int64(maxDuration/Duration(time.Second))).Draw(t, "seconds")) * Duration(time.Second)
		if again, err := ParseDuration(d.String()); err != nil || again != d {
			t.Fatalf("%v → %s → %v, %v", time.Duration(d), d, time.Duration(again), err)
		}
	})
}

func TestLimitsAt(t *testing.T) {
	l := Limits{{From: "08:00", To: "18:00", Read: 1 << 20}, {From: "22:00", To: "06:00", Read: 2 << 20}, {From: "12:00", To: "12:00", Read: 3 << 20}}
	berlin, err := time.LoadLocation("Europe/Berlin")
	if err != nil {
		t.Fatal(err)
	}
	for clock, want := range map[string]int64{
		"07:59": 3 << 20, "08:00": 1 << 20, "17:59": 1 << 20, "18:00": 3 << 20, "22:00": 2 << 20, "00:00": 2 << 20, "05:59": 2 << 20, "06:00": 3 << 20,
	} {
		at, err := time.ParseInLocation("2006-01-02 15:04", "2026-07-01 "+clock, berlin)
		if err != nil {
			t.Fatal(err)
		}
		if got := l.At(at.UTC(), berlin).Read; got != want {
			t.Errorf("%s: %d, want %d", clock, got, want)
		}
	}
	if got := l[:1].At(time.Date(2026, 7, 1, 20, 0, 0, 0, time.UTC), nil); got != (Limit{}) {
		t.Errorf("outside of all: %+v", got)
	}
}

func TestNext(t *testing.T) {
	berlin, err := time.LoadLocation("Europe/Berlin")
	if err != nil {
		t.Fatal(err)
	}
	for _, k := range []struct {
		name, schedule, last, now string
		want                      []string
	}{
		{"daily", "30 2 * * *", "", "2026-11-20T12:00:00+01:00", []string{"2026-11-21T02:30:00+01:00", "2026-11-22T02:30:00+01:00"}},
		{"not now, but the next", "30 2 * * *", "", "2026-11-20T02:30:00+01:00", []string{"2026-11-21T02:30:00+01:00"}},
		{"a time that summer time leaves out comes later", "30 2 * * *", "", "2026-03-28T12:00:00+01:00", []string{"2026-03-29T03:30:00+02:00", "2026-03-30T02:30:00+02:00"}},
		{"a time that comes twice comes once", "30 2 * * *", "", "2026-10-24T12:00:00+02:00", []string{"2026-10-25T02:30:00+02:00", "2026-10-26T02:30:00+01:00"}},
		{"between the two", "30 2 * * *", "", "2026-10-25T02:10:00+01:00", []string{"2026-10-26T02:30:00+01:00"}},
		{"every hour when one is left out", "30 * * * *", "", "2026-03-29T01:00:00+01:00", []string{"2026-03-29T01:30:00+01:00", "2026-03-29T03:30:00+02:00", "2026-03-29T04:30:00+02:00"}},
		{"29 February", "0 0 29 2 *", "", "2026-11-20T12:00:00+01:00", []string{"2028-02-29T00:00:00+01:00"}},
		{"descriptor", "@weekly", "", "2026-11-20T12:00:00+01:00", []string{"2026-11-22T00:00:00+01:00"}},
		{"interval from the last", "every 6h", "2026-11-20T10:00:00+01:00", "2026-11-20T12:00:00+01:00", []string{"2026-11-20T16:00:00+01:00", "2026-11-20T22:00:00+01:00"}},
		{"interval that is overdue", "every 6h", "2026-11-19T10:00:00+01:00", "2026-11-20T12:00:00+01:00", []string{"2026-11-20T12:00:00+01:00", "2026-11-20T18:00:00+01:00"}},
		{"interval and never backed up", "every 6h", "", "2026-11-20T12:00:00+01:00", []string{"2026-11-20T12:00:00+01:00"}},
		{"none", "", "", "2026-11-20T12:00:00+01:00", nil},
	} {
		s, err := ParseSchedule(k.schedule)
		if err != nil {
			t.Fatal(err)
		}
		parse := func(text string) (at time.Time) {
			if text != "" {
				if at, err = time.Parse(time.RFC3339, text); err != nil {
					t.Fatal(err)
				}
			}
			return at
		}
		var got []string
		for _, at := range s.Next(parse(k.last), parse(k.now), berlin, max(1, len(k.want))) {
			got = append(got, at.Format(time.RFC3339))
		}
		if !reflect.DeepEqual(got, k.want) {
			t.Errorf("%s: %v, want %v", k.name, got, k.want)
		}
	}
}

func FuzzParse(f *testing.F) {
	f.Add([]byte(whole))
	f.Add([]byte(`{"format":1,"schedule":"every 6h"}`))
	f.Add([]byte(`{"format":1,"schedule":"*/5 1-3 * jan mon-fri"}`))
	f.Add([]byte(`{"format":1,"schedule":"TZ=0"}`))
	f.Add([]byte(`{"format":1,"retention":{"within":"1d12h"},"limits":[{"from":"22:00","to":"06:00","write":65536}]}`))
	f.Fuzz(func(t *testing.T, raw []byte) {
		p, err := Parse(raw)
		if err != nil {
			if !errors.Is(err, ErrInvalid) {
				t.Fatalf("%v is not ErrInvalid", err)
			}
			return
		}
		out, err := p.JSON()
		if err != nil {
			t.Fatalf("what was read cannot be written: %v", err)
		}
		again, err := Parse(out)
		if err != nil {
			t.Fatalf("what was written cannot be read: %v\n%s", err, out)
		}
		loc, err := p.Location()
		if err != nil {
			t.Fatal(err)
		}
		now := time.Date(2026, 10, 25, 0, 30, 0, 0, time.UTC)
		a, b := p.Schedule.Next(now, now, loc, 5), again.Schedule.Next(now, now, loc, 5)
		if !p.Schedule.IsZero() && len(a) == 0 || !reflect.DeepEqual(a, b) {
			t.Fatalf("next times %v, then %v", a, b)
		}
		p.Limits.At(now, loc)
		if twice, err := again.JSON(); err != nil || !bytes.Equal(out, twice) {
			t.Fatalf("%s became %s, %v", out, twice, err)
		}
	})
}

func FuzzParseDuration(f *testing.F) {
	f.Add("1w2d3h4m5s")
	f.Fuzz(func(t *testing.T, s string) {
		if d, err := ParseDuration(s); err == nil {
			if again, err := ParseDuration(d.String()); err != nil || again != d {
				t.Fatalf("%q → %s → %v, %v", s, d, again, err)
			}
		}
	})
}
