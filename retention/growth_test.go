package retention_test

import (
	"fmt"
	"math"
	"testing"
	"time"

	"github.com/lockstep-backup/lockstep/retention"
)

const gib = int64(1) << 30

// daily are n recovery points, a day apart, the last one at the given time: the
// first stores full, each other bytes, of which alone goes with it.
func daily(n int, last time.Time, full, bytes, alone int64) (out []retention.Stored) {
	for i := range n {
		s := retention.Stored{Bytes: bytes, Alone: alone}
		s.ID, s.Sequence, s.Opens = fmt.Sprintf("%08d", i), int64(i), true
		s.Time = last.AddDate(0, 0, i-n+1)
		if i == 0 {
			s.Bytes = full
		}
		out = append(out, s)
	}
	return out
}

func days(n ...int) (d []time.Duration) {
	for _, n := range n {
		d = append(d, time.Duration(n)*24*time.Hour)
	}
	return d
}

func TestExpect(t *testing.T) {
	now := time.Date(2026, 11, 23, 12, 0, 0, 0, time.UTC)
	for _, c := range []struct {
		name   string
		held   int64
		points []retention.Stored
		rules  retention.Rules
		want   []int64 // GiB in 30, 90, 365 days
		kept   []int
	}{
		{"everything is kept: it grows by what a day brings", 110 * gib, daily(11, now, 100*gib, gib, 0), retention.Rules{}, []int64{140, 200, 475}, []int{41, 101, 376}},
		{"the last 30 are reached: it grows no more", 129 * gib, daily(30, now, 100*gib, gib, 0), retention.Rules{Last: 30}, []int64{129, 129, 129}, []int{30, 30, 30}},
		{"the last 30 are not reached yet", 110 * gib, daily(11, now, 100*gib, gib, 0), retention.Rules{Last: 30}, []int64{129, 129, 129}, []int{30, 30, 30}},
		{"for 60 days", 110 * gib, daily(11, now, 100*gib, gib, 0), retention.Rules{Within: 60 * 24 * time.Hour}, []int64{140, 160, 160}, []int{41, 61, 61}},
		{
			"what goes in between frees nothing: it grows as if all were kept, until the last week goes", 110 * gib, daily(11, now, 100*gib, gib, 0),
			retention.Rules{Weekly: 10},
			[]int64{138, 163, 158},
			[]int{7, 10, 10},
		},
		{
			"what goes in between frees all that was stored for it", 110 * gib, daily(11, now, 100*gib, gib, gib),
			retention.Rules{Last: 7},
			[]int64{106, 106, 106},
			[]int{7, 7, 7},
		},
		{"nothing changes", 100 * gib, daily(11, now, 100*gib, 0, 0), retention.Rules{}, []int64{100, 100, 100}, []int{41, 101, 376}},
	} {
		t.Run(c.name, func(t *testing.T) {
			o, ok, err := retention.Expect(c.held, c.points, c.rules, now, nil, days(30, 90, 365))
			if err != nil || !ok || len(o.Ahead) != 3 {
				t.Fatalf("%+v, %v, %v", o, ok, err)
			}
			for i, e := range o.Ahead {
				if e.Points != c.kept[i] || math.Abs(float64(e.Bytes-c.want[i]*gib)) > float64(gib)/2 {
					t.Errorf("in %v: %.1f GiB in %d recovery points, want %d GiB in %d", e.In, float64(e.Bytes)/float64(gib), e.Points, c.want[i], c.kept[i])
				}
			}
		})
	}
}

func TestExpectRates(t *testing.T) {
	now := time.Date(2026, 11, 23, 12, 0, 0, 0, time.UTC)
	points := daily(21, now, 100*gib, gib, 0)
	points[15].Bytes = 41 * gib // a full one
	o, ok, err := retention.Expect(0, points, retention.Rules{}, now, nil, days(1))
	if err != nil || !ok || o.PerDay != 3*gib || o.Typical != gib || o.Every != 24*time.Hour || o.Observed != 20 {
		t.Errorf("%+v, %v, %v", o, ok, err)
	}
	// Hourly ones are thought up at a pace that is bounded.
	var hourly []retention.Stored
	for i := range 100 {
		s := daily(1, now.Add(time.Duration(i-99)*time.Minute), gib, gib, 0)[0]
		s.ID, s.Sequence = fmt.Sprintf("%08d", i), int64(i)
		hourly = append(hourly, s)
	}
	o, ok, err = retention.Expect(100*gib, hourly, retention.Rules{}, now, nil, days(365))
	if want := 100*gib + 365*24*60*gib; err != nil || !ok || o.Ahead[0].Points > 1200 || math.Abs(float64(o.Ahead[0].Bytes-want)) > 0.01*float64(want) {
		t.Errorf("every minute: %+v, %v, %v", o, ok, err)
	}
	for name, points := range map[string][]retention.Stored{
		"none": nil, "one": points[:1], "two": points[:2],
		"at one time": {points[0], {Point: retention.Point{ID: "b", Sequence: 1, Time: points[0].Time}}, {Point: retention.Point{ID: "c", Sequence: 2, Time: points[0].Time}}},
	} {
		if o, ok, err := retention.Expect(gib, points, retention.Rules{}, now, nil, days(30)); ok || err != nil || len(o.Ahead) > 0 {
			t.Errorf("%s: %+v, %v, %v", name, o, ok, err)
		}
	}
	points[20].Time = points[3].Time // the clock went back
	if _, _, err := retention.Expect(gib, points, retention.Rules{Daily: 3}, now, nil, days(30)); err != nil {
		t.Error(err)
	}
}

func TestFullIn(t *testing.T) {
	ahead := []retention.Expected{{In: days(30)[0], Bytes: 130}, {In: days(90)[0], Bytes: 190}, {In: days(365)[0], Bytes: 190}}
	for _, c := range []struct {
		free int64
		want time.Duration
		ok   bool
	}{{0, 0, true}, {-5, 0, true}, {15, days(15)[0], true}, {30, days(30)[0], true}, {60, days(60)[0], true}, {90, days(90)[0], true}, {91, 0, false}} {
		if in, ok := retention.FullIn(100, c.free, ahead); in != c.want || ok != c.ok {
			t.Errorf("%d free: in %v, %v; want %v, %v", c.free, in, ok, c.want, c.ok)
		}
	}
}
